//! The vectors V01 to V88: rule lines and packets whose verdicts were measured at the Qubes agent for
//! Linux with nftables. Where this project decided otherwise the row says so: V67 and V84 are parse
//! errors, V71 and V72 (names) do not block the whole source.
//!
//! V89 to V98 are about addresses, not rules: they are tests of the packet path.

use super::{icmp, other, tcp, udp, v4, v6};

macro_rules! vectors {
    ($($name:ident: $tree:expr, $packet:expr => $expected:literal;)*) => {$(
        #[test]
        fn $name() {
            assert_eq!($tree.judge($packet), $expected);
        }
    )*};
}

vectors! {
    v01_no_predicate_matches_every_packet:
        v4(&["action=accept"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v02_drop_means_reject: v4(&["action=drop"]), tcp("198.51.100.7", 443) => "reject 0000";
    v03_without_rules_the_policy_decides: v4(&[]), tcp("198.51.100.7", 443) => "reject policy";
    v04_policy_accept: v4(&[]).policy("accept"), tcp("198.51.100.7", 443) => "accept policy";
    v05_policy_key_missing:
        v4(&["action=accept"]).without_policy(),
        tcp("198.51.100.7", 443) =>
        "refused: key policy is missing";
    v06_policy_value_unknown:
        v4(&["action=accept"]).policy("reject"),
        tcp("198.51.100.7", 443) =>
        "refused: key policy: 'reject' is neither accept nor drop";
    v07_action_missing:
        v4(&["proto=tcp"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: there is no action";
    v08_action_unknown:
        v4(&["action=reject"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 1 'action=reject': the action is neither accept nor drop";
    v09_values_are_case_sensitive:
        v4(&["action=ACCEPT"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 1 'action=ACCEPT': the action is neither accept nor drop";
    v10_dpi_is_unknown:
        v4(&["action=accept dpi=NO"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'dpi=NO': unknown option";
    v11_expire_is_unknown:
        v4(&["action=accept expire=2000000000"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'expire=2000000000': unknown option";
    v12_comment_is_unknown:
        v4(&["action=accept comment=hi"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'comment=hi': unknown option";
    v13_trailing_space:
        v4(&["action=accept "]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 '': empty element (a space too many)";
    v14_double_space:
        v4(&["action=accept  proto=tcp"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 '': empty element (a space too many)";
    v15_element_without_equals:
        v4(&["action=accept proto"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'proto': no = in it";
    v16_two_equals:
        v4(&["action=accept dsthost=a=b"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'dsthost=a=b': more than one = in it";
    v17_empty_line: v4(&[""]), tcp("198.51.100.7", 443) => "refused: rule 0000: the line is empty";
    v18_one_bad_rule_poisons_the_set:
        v4(&["action=drop proto=udp", "action=accept zzz=1"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0001: element 2 'zzz=1': unknown option";
    v19_prefix_matches:
        v4(&["action=accept dst4=198.51.100.0/24"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v20_outside_the_prefix:
        v4(&["action=accept dst4=198.51.100.0/24"]),
        tcp("198.51.101.7", 443) =>
        "reject policy";
    v21_host_bits_are_masked:
        v4(&["action=accept dst4=198.51.100.9/24"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v22_single_address:
        v4(&["action=accept dst4=198.51.100.7/32"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v23_no_mask_means_one_address:
        v4(&["action=accept dst4=198.51.100.7"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v24_prefix_zero_matches_everything:
        v4(&["action=accept dst4=0.0.0.0/0"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v25_mask_too_long:
        v4(&["action=accept dst4=198.51.100.0/33"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'dst4=198.51.100.0/33': not a prefix length from 0 to 32";
    v26_bad_octet:
        v4(&["action=accept dst4=198.51.100.256/32"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'dst4=198.51.100.256/32': not an IPv4 address in full form without leading zeros";
    v27_dst6_below_an_ipv4_source:
        v4(&["action=accept dst6=2001:db8::/32"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'dst6=2001:db8::/32': an IPv6 destination in an IPv4 tree";
    v28_dst4_below_an_ipv6_source:
        v6(&["action=accept dst4=198.51.100.0/24"]),
        tcp("2001:db8::5", 443) =>
        "refused: rule 0000: element 2 'dst4=198.51.100.0/24': an IPv4 destination in an IPv6 tree";
    v29_ipv6_prefix:
        v6(&["action=accept dst6=2001:db8::/32"]),
        tcp("2001:db8::5", 443) =>
        "accept 0000";
    v30_ipv6_other_host:
        v6(&["action=accept dst6=2001:db8::5/128"]),
        tcp("2001:db8::6", 443) =>
        "reject policy";
    v31_protocol_only: v4(&["action=accept proto=tcp"]), tcp("198.51.100.7", 443) => "accept 0000";
    v32_protocol_differs:
        v4(&["action=accept proto=udp"]),
        tcp("198.51.100.7", 443) =>
        "reject policy";
    v33_any_icmp_type: v4(&["action=accept proto=icmp"]), icmp("198.51.100.7", 8) => "accept 0000";
    v34_echo_request:
        v4(&["action=accept proto=icmp icmptype=8"]),
        icmp("198.51.100.7", 8) =>
        "accept 0000";
    v35_other_icmp_type:
        v4(&["action=accept proto=icmp icmptype=8"]),
        icmp("198.51.100.7", 13) =>
        "reject policy";
    v36_icmp_type_out_of_range:
        v4(&["action=accept proto=icmp icmptype=256"]),
        icmp("198.51.100.7", 8) =>
        "refused: rule 0000: element 3 'icmptype=256': not a type from 0 to 255 without leading zeros";
    v37_icmp_type_without_proto:
        v4(&["action=accept icmptype=8"]),
        icmp("198.51.100.7", 8) =>
        "accept 0000";
    v38_icmp_type_without_proto_matches_icmp_only:
        v4(&["action=accept icmptype=8"]),
        tcp("198.51.100.7", 443) =>
        "reject policy";
    v39_icmp_type_with_tcp:
        v4(&["action=accept proto=tcp icmptype=8"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 3 'icmptype=8': an ICMP type does not go with TCP, UDP or ports";
    v40_ports_with_icmp:
        v4(&["action=accept proto=icmp dstports=80-80"]),
        icmp("198.51.100.7", 8) =>
        "refused: rule 0000: element 3 'dstports=80-80': ports do not go with ICMP";
    v41_icmp_means_icmpv6_below_an_ipv6_source:
        v6(&["action=accept proto=icmp"]),
        icmp("2001:db8::5", 128) =>
        "accept 0000";
    v42_icmpv6_type:
        v6(&["action=accept proto=icmp icmptype=128"]),
        icmp("2001:db8::5", 128) =>
        "accept 0000";
    v43_single_port:
        v4(&["action=accept proto=tcp dstports=443-443"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v44_bare_port:
        v4(&["action=accept proto=tcp dstports=443"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v45_port_range:
        v4(&["action=accept proto=tcp dstports=400-500"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v46_low_bound_inclusive:
        v4(&["action=accept proto=tcp dstports=443-500"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v47_high_bound_inclusive:
        v4(&["action=accept proto=tcp dstports=400-443"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v48_below_the_range:
        v4(&["action=accept proto=tcp dstports=444-500"]),
        tcp("198.51.100.7", 443) =>
        "reject policy";
    v49_reversed_range:
        v4(&["action=accept proto=tcp dstports=90-80"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 3 'dstports=90-80': the port range is reversed";
    v50_full_range:
        v4(&["action=accept proto=tcp dstports=0-65535"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v51_port_above_65535:
        v4(&["action=accept proto=tcp dstports=1-65536"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 3 'dstports=1-65536': not a port or a range of two ports from 0 to 65535 without leading zeros";
    v52_two_dashes:
        v4(&["action=accept proto=tcp dstports=1-2-3"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 3 'dstports=1-2-3': not a port or a range of two ports from 0 to 65535 without leading zeros";
    v53_ports_without_proto_cover_tcp:
        v4(&["action=accept dstports=443-443"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v54_ports_without_proto_cover_udp:
        v4(&["action=accept dstports=443-443"]),
        udp("198.51.100.7", 443) =>
        "accept 0000";
    v55_ports_without_proto_do_not_cover_icmp:
        v4(&["action=accept dstports=443-443"]),
        icmp("198.51.100.7", 8) =>
        "reject policy";
    v56_dns_over_udp_to_the_first_resolver:
        v4(&["action=accept specialtarget=dns"]),
        udp("10.139.1.1", 53) =>
        "accept 0000";
    v57_dns_over_tcp_to_the_second_resolver:
        v4(&["action=accept specialtarget=dns"]),
        tcp("10.139.1.2", 53) =>
        "accept 0000";
    v58_other_resolver:
        v4(&["action=accept specialtarget=dns"]),
        udp("8.8.8.8", 53) =>
        "reject policy";
    v59_other_port_of_the_resolver:
        v4(&["action=accept specialtarget=dns"]),
        udp("10.139.1.1", 5353) =>
        "reject policy";
    v60_icmp_to_the_resolver_is_not_dns:
        v4(&["action=accept specialtarget=dns"]),
        icmp("10.139.1.1", 8) =>
        "reject policy";
    v61_dns_limited_to_udp:
        v4(&["action=accept proto=udp specialtarget=dns"]),
        udp("10.139.1.1", 53) =>
        "accept 0000";
    v62_dns_limited_to_udp_refuses_tcp:
        v4(&["action=accept proto=udp specialtarget=dns"]),
        tcp("10.139.1.1", 53) =>
        "reject policy";
    v63_dns_limited_to_udp_refuses_other_udp:
        v4(&["action=accept proto=udp specialtarget=dns"]),
        udp("198.51.100.7", 9999) =>
        "reject policy";
    v64_ban_of_dns_over_tcp_leaves_other_tcp_alone:
        v4(&["action=drop proto=tcp specialtarget=dns", "action=accept"]),
        tcp("198.51.100.7", 443) =>
        "accept 0001";
    v65_port_53_with_dns:
        v4(&["action=accept proto=tcp specialtarget=dns dstports=53-53"]),
        tcp("10.139.1.1", 53) =>
        "accept 0000";
    v66_dns_with_other_port_never_matches:
        v4(&["action=accept proto=tcp specialtarget=dns dstports=80-80"]),
        tcp("10.139.1.1", 80) =>
        "reject policy";
    v67_dns_with_icmp:
        v4(&["action=accept proto=icmp specialtarget=dns"]),
        icmp("10.139.1.1", 8) =>
        "refused: rule 0000: element 3 'specialtarget=dns': the special target dns does not go with ICMP";
    v68_dns_and_destination_must_both_hold:
        v4(&["action=accept dst4=10.139.1.2/32 specialtarget=dns"]),
        udp("10.139.1.1", 53) =>
        "reject policy";
    v69_name_resolves_to_the_destination:
        v4(&["action=accept dsthost=www.example.org"])
        .name("www.example.org", &["198.51.100.6", "198.51.100.7"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v70_address_not_in_the_answer:
        v4(&["action=accept dsthost=www.example.org"])
        .name("www.example.org", &["198.51.100.6", "198.51.100.7"]),
        tcp("198.51.100.8", 443) =>
        "reject policy";
    v71_unresolved_name_behind_an_accept_harms_nothing:
        v4(&["action=accept", "action=accept dsthost=nx.example.org"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v72_name_without_an_address_of_the_family_matches_nothing:
        v4(&["action=accept dsthost=v6only.example.org"])
        .name("v6only.example.org", &["2001:db8::5"]),
        tcp("198.51.100.7", 443) =>
        "reject policy";
    v73_name_and_ports_must_both_hold:
        v4(&["action=accept dsthost=www.example.org proto=tcp dstports=80-80"])
        .name("www.example.org", &["198.51.100.7"]),
        tcp("198.51.100.7", 443) =>
        "reject policy";
    v74_drop_before_accept:
        v4(&["action=drop proto=tcp dstports=443-443", "action=accept"]),
        tcp("198.51.100.7", 443) =>
        "reject 0000";
    v75_accept_before_drop:
        v4(&["action=accept proto=tcp dstports=443-443", "action=drop"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v76_falls_through_to_the_next_rule:
        v4(&["action=drop dst4=198.51.100.0/24", "action=accept"]),
        tcp("203.0.113.1", 443) =>
        "accept 0001";
    v77_order_is_by_key:
        v4(&["action=drop", "action=accept"]).keys(&["0001", "0000"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v78_only_key_0003:
        v4(&["action=accept"]).keys(&["0003"]),
        tcp("198.51.100.7", 443) =>
        "accept 0003";
    v79_gap_between_0000_and_0007:
        v4(&["action=drop proto=udp", "action=accept"]).keys(&["0000", "0007"]),
        tcp("198.51.100.7", 443) =>
        "accept 0007";
    v80_key_with_five_digits:
        v4(&["action=accept"]).keys(&["10000"]),
        tcp("198.51.100.7", 443) =>
        "refused: key '10000' is neither policy nor four digits";
    v81_key_with_three_digits:
        v4(&["action=accept"]).keys(&["000"]),
        tcp("198.51.100.7", 443) =>
        "refused: key '000' is neither policy nor four digits";
    v82_key_that_is_no_number:
        v4(&["action=accept"]).keys(&["note"]),
        tcp("198.51.100.7", 443) =>
        "refused: key 'note' is neither policy nor four digits";
    v83_order_of_options_is_free:
        v4(&["proto=tcp action=accept dstports=443-443"]),
        tcp("198.51.100.7", 443) =>
        "accept 0000";
    v84_sctp_by_name_is_refused:
        v4(&["action=accept proto=sctp"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'proto=sctp': the protocol is none of tcp, udp, icmp";
    v85_unknown_protocol:
        v4(&["action=accept proto=bogus"]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'proto=bogus': the protocol is none of tcp, udp, icmp";
    v86_empty_value:
        v4(&["action=accept proto="]),
        tcp("198.51.100.7", 443) =>
        "refused: rule 0000: element 2 'proto=': no value";
    v87_accept_covers_other_protocols:
        v4(&["action=accept"]),
        other("198.51.100.7", 47) =>
        "accept 0000";
    v88_other_protocol_is_not_tcp:
        v4(&["action=accept proto=tcp"]),
        other("198.51.100.7", 47) =>
        "reject policy";
}
