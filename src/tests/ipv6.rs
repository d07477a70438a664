//! IPv6 through the whole core. Names carry the requirement of the RFC list that a test shows, or the measured row (V).

use core::net::Ipv6Addr;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::testing::v6::*;
use crate::testing::*;
use crate::*;

const UPLINK: PortId = PortId::Uplink;
const TO_A: PortId = PortId::Client(ID_A);
const WEB: (Ipv6Addr, u16) = (SERVER6, 443);
const PAD: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn one_hop_on(build: Build6) -> Vec<u8> {
    build.with(|b| b.hop_limit -= 1).packet()
}

#[test]
fn v29_v30_rules_of_the_ipv6_tree_decide() {
    let syn = Build6::tcp((A6, 1), WEB, SYN);
    let prefix = "action=accept dst6=2001:db8::/32";
    Kit::new6().rules6(A6, &[prefix]).a6(&syn).assert_sent(UPLINK);
    let mut kit = Kit::new6().rules6(A6, &["action=accept dst6=2001:db8::6/128"]);
    assert_eq!(kit.a6(&syn).assert_refused(ID_A, 1, 1).src6(), OWN6);
}

#[test]
fn v28_a_refused_ipv6_tree_rejects() {
    let mut kit = Kit::new6();
    kit.set_rules6(A6, RulesState::Refused);
    let out = kit.a6(&Build6::tcp((A6, 1), WEB, SYN));
    assert_eq!(out.assert_refused(ID_A, 1, 1).ends6(), (OWN6, A6));
    // The IPv4 tree is another one.
    kit.a(&Build::tcp((A, 1), (SERVER, 443), SYN)).assert_sent(UPLINK);
}

#[test]
fn v41_v42_proto_icmp_means_icmpv6() {
    for line in ["action=accept proto=icmp", "action=accept proto=icmp icmptype=128"] {
        let mut kit = Kit::new6().rules6(A6, &[line]);
        kit.a6(&Build6::echo(A6, SERVER6, 128, 9)).assert_sent(UPLINK);
        // ICMP of the other family is an unknown protocol here.
        kit.a6(&Build6::raw(A6, SERVER6, 1, vec![8; 16])).assert_refused(ID_A, 1, 1);
    }
    let mut kit = Kit::new6().rules6(A6, &["action=accept proto=icmp icmptype=8"]);
    kit.a6(&Build6::echo(A6, SERVER6, 128, 9)).assert_refused(ID_A, 1, 1);
}

#[test]
fn v89_another_client_is_out_of_reach() {
    let mut kit = Kit::new6();
    for other in [B6, ABSENT6] {
        kit.a6(&Build6::tcp((A6, 1), (other, 22), SYN)).assert_dropped(DropReason::ClientIsolation);
        kit.a6(&Build6::echo(A6, other, 128, 1)).assert_dropped(DropReason::ClientIsolation);
    }
}

#[test]
fn a_client_that_is_not_there_is_refused_by_the_rules_only() {
    let mut kit = Kit::new6().rules6(A6, &["action=drop"]);
    kit.a6(&Build6::udp((A6, 1), (ABSENT6, 22))).assert_refused(ID_A, 1, 1);
    kit.a6(&Build6::udp((A6, 1), (B6, 22))).assert_dropped(DropReason::ClientIsolation);
}

#[test]
fn traceroute_to_any_address_finds_the_firewall_first() {
    let mut kit = Kit::new6();
    for to in [SERVER6, B6, ABSENT6] {
        kit.a6(&Build6::udp((A6, 1), (to, 1)).with(|b| b.hop_limit = 1)).assert_refused(ID_A, 3, 0);
        // Types from 128 on are no errors (RFC 4443, 2.1); whether the others are is not known.
        for kind in [128, 129, 200] {
            let last = Build6::echo(A6, to, kind, 1).with(|b| b.hop_limit = 1);
            kit.a6(&last).assert_refused(ID_A, 3, 0);
        }
        for kind in [0, 100] {
            let last = Build6::echo(A6, to, kind, 1).with(|b| b.hop_limit = 1);
            assert!(matches!(kit.a6(&last).fate, Fate::Drop(_)), "type {kind}");
        }
    }
}

#[test]
fn v90_v92_the_firewall_answers_pings_and_nothing_else() {
    for rules in [&["action=accept"], &["action=drop"]] {
        let mut kit = Kit::new6().rules6(A6, rules);
        let ping = Build6::echo(A6, OWN6, 128, 7);
        let pong = kit.a6(&ping);
        assert_eq!(pong.assert_sent(TO_A).icmp(), Some((129, 0)));
        assert_eq!((pong.ends6(), &pong.l4()[4..]), ((OWN6, A6), &ping.l4[4..]));
        for other in [
            Build6::tcp((A6, 1), (OWN6, 22), SYN),
            Build6::udp((A6, 1), (OWN6, 68)),
            Build6::raw(A6, OWN6, 47, vec![0; 8]),
        ] {
            let out = kit.a6(&other);
            assert_eq!(out.assert_refused(ID_A, 1, 1).src6(), OWN6);
        }
        for kind in [129, 100, 150] {
            kit.a6(&Build6::echo(A6, OWN6, kind, 1)).assert_dropped(DropReason::LocalSilent);
        }
        kit.a6(&ping.extended(60, &PAD)).assert_dropped(DropReason::LocalSilent);
    }
}

#[test]
fn v97_v98_nothing_new_comes_in() {
    let mut kit = Kit::new6();
    kit.up6(Build6::tcp(WEB, (A6, 22), SYN)).assert_dropped(DropReason::NotOurAddress);
    kit.up6(Build6::tcp(WEB, (OWN6, 22), SYN)).assert_dropped(DropReason::NoFlow);
    kit.up6(Build6::echo(SERVER6, OWN6, 128, 1)).assert_dropped(DropReason::NoFlow);
    kit.up6(Build6::echo(A6, OWN6, 128, 1)).assert_dropped(DropReason::SourceSpoofed);
}

#[test]
fn first_packets_that_start_nothing_are_dropped() {
    let mut kit = Kit::new6();
    for kind in [129, 100, 127, 144, 200] {
        kit.a6(&Build6::echo(A6, SERVER6, kind, 1)).assert_dropped(DropReason::NotAFirstPacket);
    }
    kit.a6(&Build6::tcp((A6, 1), WEB, RST)).assert_dropped(DropReason::NotAFirstPacket);
    kit.a6(&Build6::tcp((A6, 1), WEB, ACK)).assert_sent(UPLINK);
}

#[test]
fn ipv6_is_off_when_dom0_gave_no_address() {
    let mut kit = Kit::new6();
    let syn = Build6::tcp((A6, 1), WEB, SYN);
    kit.set_network(|config| config.v6.client_gateway = None);
    kit.a6(&syn).assert_sent(UPLINK);
    // Clients have a gateway, but the uplink has no IPv6.
    kit.set_network(|config| (config.v6.address, config.v6.client_gateway) = (None, Some(OWN6)));
    assert_eq!(kit.a6(&syn).assert_refused(ID_A, 1, 0).src6(), OWN6);
    kit.set_network(|config| config.v6.client_gateway = None);
    kit.a6(&syn).assert_dropped(DropReason::Ipv6);
    kit.up6(Build6::tcp(WEB, (OWN6, 1), SYN)).assert_dropped(DropReason::Ipv6);
    kit.a(&Build::tcp((A, 1), (SERVER, 443), SYN)).assert_sent(UPLINK);
}

#[test]
fn the_uplink_needs_an_address_of_the_packets_family_only() {
    let mut kit = Kit::new6();
    kit.set_network(|config| config.v4.address = None);
    kit.a6(&Build6::udp((A6, 1), WEB)).assert_sent(UPLINK);
    kit.a(&Build::udp((A, 1), (SERVER, 443))).assert_refused(ID_A, 3, 0);
}

#[test]
fn s4_spoofed_sources_are_dropped_on_both_sides() {
    let mut kit = Kit::new6();
    let strange = ["::", "::1", "fe80::1", "ff02::1", "::ffff:10.137.0.10", "2001:db8::5"].map(ip);
    for src in [B6, ABSENT6, OWN6, NETVM6].into_iter().chain(strange) {
        kit.a6(&Build6::udp((src, 1), WEB)).assert_dropped(DropReason::SourceSpoofed);
        kit.a6(&Build6::echo(src, OWN6, 128, 1)).assert_dropped(DropReason::SourceSpoofed);
    }
    let out = kit.a6(&Build6::udp((A6, 5000), WEB));
    let to = (OWN6, out.assert_sent(UPLINK).sport());
    for src in [A6, B6, ABSENT6, OWN6] {
        kit.up6(Build6::udp((src, 443), to)).assert_dropped(DropReason::SourceSpoofed);
    }
    for src in ["::", "::1", "fe80::1", "ff02::1", "::ffff:1.2.3.4", "::1.2.3.4"].map(ip) {
        kit.up6(Build6::udp((src, 443), to)).assert_dropped(DropReason::SourceMartian);
    }
    for dst in [A6, B6, NETVM6, SERVER6, ip("ff02::1"), ip("fe80::1")] {
        kit.up6(Build6::udp(WEB, (dst, to.1))).assert_dropped(DropReason::NotOurAddress);
    }
    kit.up6(Build6::udp(WEB, to)).assert_sent(TO_A);
}

#[test]
fn s4_a_client_without_an_ipv6_address_has_no_source() {
    let mut kit = Kit::new6();
    kit.fw.detach_client(ID_A);
    kit.fw.attach_client(ID_A, vif(10, MAC_A, A)).unwrap();
    kit.a6(&Build6::udp((A6, 1), WEB)).assert_dropped(DropReason::SourceSpoofed);
}

#[test]
fn martian_destinations_are_dropped() {
    let mut kit = Kit::new6();
    for dst in ["::1", "ff02::fb", "ff0e::1", "fe80::1"].map(ip) {
        let build = Build6::udp((A6, 1), (dst, 53));
        kit.a6(&build).assert_dropped(DropReason::DestinationMartian);
    }
    // Reserved, and still the rules' business.
    for dst in ["::", "::ffff:10.137.0.11", "::10.137.0.11"].map(ip) {
        kit.a6(&Build6::udp((A6, 1), (dst, 53))).assert_sent(PortId::Uplink);
    }
    let group = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let wrong = Build6::udp((A6, 1), WEB).with(|b| b.link.0 = group);
    kit.a6(&wrong).assert_dropped(DropReason::LinkDestination);
    kit.a6(&wrong.with(|b| b.link.0 = Mac::BROADCAST)).assert_dropped(DropReason::LinkDestination);
}

#[test]
fn a_link_local_gateway_answers_pings() {
    let gateway = ip("fe80::fcff:ffff:feff:ffff");
    let mut kit = Kit::new6();
    kit.set_network(|config| config.v6.client_gateway = Some(gateway));
    assert_eq!(kit.a6(&Build6::echo(A6, gateway, 128, 1)).icmp(), Some((129, 0)));
}

#[test]
fn s5_flows_are_stateful_and_live_as_long_as_those_of_ipv4() {
    let mut kit = Kit::new6();
    let out = kit.a6(&Build6::udp((A6, 5000), WEB));
    let port = kit.connect6((A6, 40_000), WEB);
    for from in [(SERVER6, 444), (OTHER_SERVER6, 443)] {
        kit.up6(Build6::udp(from, (OWN6, 5000))).assert_dropped(DropReason::NoFlow);
        kit.up6(Build6::tcp(from, (OWN6, port), SYN)).assert_dropped(DropReason::NoFlow);
    }
    let answer = Build6::udp(WEB, (OWN6, out.sport()));
    kit.wait(119);
    kit.up6(answer.clone()).assert_sent(TO_A);
    kit.wait(182);
    kit.up6(answer).assert_dropped(DropReason::NoFlow);
    kit.wait(7439 - 301);
    let data = |seq| Build6::tcp(WEB, (OWN6, port), ACK).numbers(seq, 0x1000_2001).payload(9);
    kit.up6(data(0x7001)).assert_sent(TO_A);
    kit.wait(1);
    kit.up6(data(0x700a)).assert_dropped(DropReason::NoFlow);
}

#[test]
fn s5_esp_and_other_protocols_pass_with_the_address_replaced() {
    let mut kit = Kit::new6();
    for protocol in [47, 50, 59, 132, 253] {
        let payload = vec![0x42; 32];
        let out = kit.a6(&Build6::raw(A6, SERVER6, protocol, payload.clone()));
        assert_eq!((out.assert_sent(UPLINK).ends6(), out.l4()), ((OWN6, SERVER6), &payload[..]));
        let back = kit.up6(Build6::raw(SERVER6, OWN6, protocol, payload));
        assert_eq!(back.assert_sent(TO_A).dst6(), A6);
        let other = Build6::raw(B6, SERVER6, protocol, vec![0; 8]);
        kit.b6(&other).assert_refused(ID_B, 1, 1);
    }
}

#[test]
fn u1_t1_i1_mappings_are_endpoint_independent_and_a_pool_of_their_own() {
    let mut kit = Kit::new6();
    // IPv4 takes no port from IPv6.
    kit.a(&Build::udp((A, 5000), (SERVER, 443))).assert_sent(UPLINK);
    assert_eq!(kit.b6(&Build6::udp((B6, 5000), WEB)).assert_sent(UPLINK).sport(), 5000);
    let ports = [WEB, (SERVER6, 444), (OTHER_SERVER6, 443)]
        .map(|to| kit.a6(&Build6::udp((A6, 5000), to)).assert_sent(UPLINK).sport());
    assert_ne!(ports[0], 5000);
    assert_eq!(ports, [ports[0]; 3]);
    kit.b6(&Build6::echo(B6, SERVER6, 128, 77)).assert_sent(UPLINK);
    let ids = [SERVER6, OTHER_SERVER6].map(|host| {
        let id = kit.a6(&Build6::echo(A6, host, 128, 77)).assert_sent(UPLINK).icmp_id();
        let back = kit.up6(Build6::echo(host, OWN6, 129, id));
        assert_eq!((back.assert_sent(TO_A).icmp_id(), back.ends6()), (77, (host, A6)));
        id
    });
    assert!(ids[0] != 77 && ids == [ids[0]; 2]);
}

#[test]
fn dns_goes_to_our_resolver_and_comes_back_from_the_clients() {
    let mut kit = Kit::new6().rules6(A6, &["action=accept specialtarget=dns"]);
    let out = kit.a6(&Build6::udp((A6, 5353), (CLIENT_DNS6, 53)));
    assert_eq!(out.assert_sent(UPLINK).ends6(), (OWN6, OWN_DNS6));
    let back = kit.up6(Build6::udp((OWN_DNS6, 53), (OWN6, out.sport())));
    assert_eq!(back.assert_sent(TO_A).ends6(), (CLIENT_DNS6, A6));
    kit.set_network(|config| config.v6.dns.clear());
    let again = Build6::udp((A6, 5353), (CLIENT_DNS6, 53));
    kit.a6(&again).assert_dropped(DropReason::NoResolver);
}

#[test]
fn s6_icmpv6_that_must_not_pass_is_dropped_both_ways() {
    let mut kit = Kit::new6();
    kit.a6(&Build6::udp((A6, 5000), WEB)).assert_sent(UPLINK);
    for kind in (130..=134).chain(137..=143).chain([148, 149, 151, 152, 153]) {
        kit.a6(&Build6::echo(A6, SERVER6, kind, 1)).assert_dropped(DropReason::IcmpForbidden);
        kit.up6(Build6::echo(SERVER6, OWN6, kind, 1)).assert_dropped(DropReason::IcmpForbidden);
    }
}

#[test]
fn s6_i4_errors_that_must_pass_reach_the_client_with_what_it_sent() {
    let mut kit = Kit::new6();
    // B holds port and identifier, so that A's are translated.
    kit.connect6((B6, 5000), WEB);
    kit.b6(&Build6::udp((B6, 5000), WEB));
    kit.b6(&Build6::echo(B6, SERVER6, 128, 5000));
    let router = ip("2001:db8:ffff::1");
    let kinds = [(1, 0), (1, 1), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)];
    for build in [
        Build6::tcp((A6, 5000), WEB, SYN),
        Build6::udp((A6, 5000), WEB),
        Build6::udp((A6, 5000), (CLIENT_DNS6, 53)).extended(0, &PAD).extended(60, &PAD),
        Build6::echo(A6, SERVER6, 128, 5000),
        Build6::raw(A6, SERVER6, 50, vec![9; 30]),
    ] {
        let out = kit.a6(&build);
        out.assert_sent(UPLINK);
        for kind in kinds {
            let back = kit.up6(Build6::error((router, OWN6), kind, 1300, out.packet()));
            assert_eq!(back.assert_sent(TO_A).icmp(), Some(kind));
            assert_eq!((back.ends6(), &back.l4()[4..8]), ((router, A6), &[0, 0, 5, 20][..]));
            assert_eq!(back.l4()[8..], one_hop_on(build.clone()), "{build:?}");
        }
    }
}

#[test]
fn s6_i4_an_error_needs_a_flow_and_a_readable_quote() {
    let mut kit = Kit::new6();
    let out = kit.a6(&Build6::udp((A6, 5000), WEB));
    let about = |src, port, to| Build6::udp((src, port), to);
    let nine = (0..9).fold(about(OWN6, 5000, WEB), |b, _| b.extended(60, &PAD));
    for quote in [
        about(OWN6, out.sport() + 1, WEB).packet(),
        about(OWN6, 5000, (SERVER6, 444)).packet(),
        about(A6, 5000, WEB).packet(),
        about(OWN6, 5000, WEB).extended(44, &[0, 0, 0, 8, 0, 0, 0, 1]).packet(),
        nine.packet(),
        out.packet()[..47].to_vec(),
        vec![0x60; 20],
        vec![],
    ] {
        let error = Build6::error((SERVER6, OWN6), (1, 4), 0, &quote);
        kit.up6(error).assert_dropped(DropReason::IcmpErrorUnrelated);
    }
}

#[test]
fn i3_inner_checksums_are_not_verified_and_outer_ones_are() {
    let mut kit = Kit::new6();
    let out = kit.a6(&Build6::udp((A6, 5000), WEB));
    let mut wrong = out.packet().to_vec();
    wrong[46] ^= 0x55;
    kit.up6(Build6::error((SERVER6, OWN6), (1, 4), 0, &wrong)).assert_sent(TO_A);
    let outer = Build6::error((SERVER6, OWN6), (1, 4), 0, out.packet()).with(|b| b.l4[2] ^= 1);
    kit.up6(outer).assert_dropped(DropReason::IcmpChecksum);
    let ping = Build6::echo(A6, SERVER6, 128, 1).with(|b| b.l4[9] ^= 1);
    kit.a6(&ping).assert_dropped(DropReason::IcmpChecksum);
}

#[test]
fn i5_an_error_of_the_client_shows_our_address_only() {
    let mut kit = Kit::new6();
    kit.b6(&Build6::udp((B6, 5000), (CLIENT_DNS6, 53)));
    let out = kit.a6(&Build6::udp((A6, 5000), (CLIENT_DNS6, 53)));
    let answer = Build6::udp((OWN_DNS6, 53), (OWN6, out.sport()));
    let seen = kit.up6(answer.clone());
    seen.assert_sent(TO_A);
    let sent = kit.a6(&Build6::error((A6, CLIENT_DNS6), (1, 4), 0, seen.packet()));
    assert_eq!(sent.assert_sent(UPLINK).ends6(), (OWN6, OWN_DNS6));
    assert_eq!(sent.l4()[8..], one_hop_on(answer));
    let elsewhere = Build6::error((A6, OTHER_SERVER6), (1, 4), 0, seen.packet());
    kit.a6(&elsewhere).assert_dropped(DropReason::IcmpErrorUnrelated);
}

#[test]
fn s1_only_a_path_mtu_that_can_be_true_is_believed() {
    let mut kit = Kit::new6();
    let port = kit.connect6((A6, 40_000), WEB);
    let udp = kit.a6(&Build6::udp((A6, 5000), WEB));
    let about = |seq| Build6::tcp((OWN6, port), WEB, ACK).numbers(seq, 0x7001).packet();
    let big = |mtu, quote: &[u8]| Build6::error((OTHER_SERVER6, OWN6), (2, 0), mtu, quote);
    for (mtu, is_good) in [(0, false), (68, false), (1279, false), (1280, true), (1499, true)] {
        for quote in [udp.packet(), &about(0x1000_2001)[..]] {
            let fate = kit.up6(big(mtu, quote)).fate;
            assert_eq!(fate == Fate::Send(TO_A), is_good, "{mtu}");
            assert!(is_good || fate == Fate::Drop(DropReason::PathMtu));
        }
    }
    for blind in [0x1000_2002, 0x2000_0000, 0x0f00_0000, 0x9000_2001] {
        kit.up6(big(1400, &about(blind))).assert_dropped(DropReason::PathMtu);
        // As an error that lowers nothing it is the client's to judge.
        let hard = Build6::error((OTHER_SERVER6, OWN6), (1, 4), 0, &about(blind));
        kit.up6(hard).assert_sent(TO_A);
    }
}

#[test]
fn s1_only_a_path_mtu_that_can_be_true_is_believed_over_ipv4() {
    let mut kit = Kit::new();
    let web = (SERVER, 443);
    let port = kit.connect((A, 40_000), web);
    let udp = kit.a(&Build::udp((A, 5000), web));
    let about = |seq| Build::tcp((OWN, port), web, ACK).numbers(seq, 0x7001).packet();
    let big = |mtu: u16, quote: &[u8]| {
        let [high, low] = mtu.to_be_bytes();
        Build::icmp(OTHER_SERVER, OWN, 3, 4, [0, 0, high, low], quote)
    };
    for (mtu, is_good) in [(0, false), (68, false), (575, false), (576, true), (1499, true)] {
        for quote in [udp.packet(), &about(0x1000_2001)[..]] {
            let fate = kit.up(big(mtu, quote)).fate;
            assert_eq!(fate == Fate::Send(TO_A), is_good, "{mtu}");
            assert!(is_good || fate == Fate::Drop(DropReason::PathMtu));
        }
    }
    for blind in [0x1000_2002, 0x2000_0000, 0x0f00_0000, 0x9000_2001] {
        kit.up(big(1400, &about(blind))).assert_dropped(DropReason::PathMtu);
    }
}

#[test]
fn s8_up_to_eight_extension_headers_are_followed_and_kept() {
    let mut kit = Kit::new6().rules6(A6, &["action=drop proto=tcp", "action=accept"]);
    let chain = |build: Build6, count: usize| (0..count).fold(build, |b, _| b.extended(60, &PAD));
    for count in 0..8 {
        // A client cannot hide TCP from a drop rule, and UDP passes whole.
        let syn = chain(Build6::tcp((A6, 1), WEB, SYN).extended(0, &PAD), count);
        kit.a6(&syn).assert_refused(ID_A, 1, 1);
        let build = chain(Build6::udp((A6, 5000), WEB).extended(0, &PAD), count);
        let out = kit.a6(&build);
        assert_eq!(out.assert_sent(UPLINK).ends6(), (OWN6, SERVER6));
        let payload = (count + 1) * PAD.len();
        assert_eq!(out.packet()[40..40 + payload], build.packet()[40..40 + payload]);
    }
    let nine = chain(Build6::udp((A6, 5000), WEB), 9);
    kit.a6(&nine).assert_dropped(DropReason::ExtensionHeader);
}

#[test]
fn s8_chains_that_cannot_be_followed_are_dropped() {
    let mut kit = Kit::new6();
    let udp = || Build6::udp((A6, 5000), WEB);
    for broken in [
        // Hop-by-hop options not in front; headers longer than the packet; one that is cut off.
        udp().extended(60, &PAD).extended(0, &PAD),
        udp().extended(60, &[0, 99, 0, 0, 0, 0, 0, 0]),
        udp().extended(51, &[0, 255, 0, 0, 0, 0, 0, 0]),
        Build6::raw(A6, SERVER6, 60, vec![17, 0, 0]),
        Build6::raw(A6, SERVER6, 44, vec![17, 0, 0, 0]),
        Build6::raw(A6, SERVER6, 0, vec![]),
    ] {
        kit.a6(&broken).assert_dropped(DropReason::ExtensionHeader);
    }
    let authenticated = udp().extended(51, &[0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
    kit.a6(&authenticated).assert_sent(UPLINK);
}

#[test]
fn s8_routing_headers_that_steer_are_dropped() {
    let mut kit = Kit::new6();
    let routed =
        |kind, left| Build6::udp((A6, 5000), WEB).extended(43, &[0, 0, kind, left, 0, 0, 0, 0]);
    for (kind, left) in [(0, 0), (0, 1), (2, 1), (4, 1), (253, 9)] {
        kit.a6(&routed(kind, left)).assert_dropped(DropReason::SourceRoute);
        let up = Build6::udp(WEB, (OWN6, 5000)).extended(43, &[0, 0, kind, left, 0, 0, 0, 0]);
        kit.up6(up).assert_dropped(DropReason::SourceRoute);
    }
    kit.a6(&routed(2, 0)).assert_sent(UPLINK);
}

#[test]
fn s3_an_atomic_fragment_is_a_whole_packet() {
    let mut kit = Kit::new6();
    let fragment =
        |high, low| Build6::udp((A6, 5000), WEB).extended(44, &[0, 0, high, low, 1, 2, 3, 4]);
    let out = kit.a6(&fragment(0, 0));
    assert_eq!(out.assert_sent(UPLINK).ends6(), (OWN6, SERVER6));
    // A reserved bit changes nothing.
    kit.a6(&fragment(0, 2)).assert_sent(UPLINK);
    let back = Build6::udp(WEB, (OWN6, 5000)).extended(44, &[0, 0, 0, 0, 9, 9, 9, 9]);
    assert_eq!(kit.up6(back).assert_sent(TO_A).dst6(), A6);
}

#[test]
fn i8_our_own_errors_quote_what_was_sent_and_fit_the_smallest_link() {
    let mut kit = Kit::new6();
    let expiring = Build6::udp((A6, 5000), WEB).with(|b| b.hop_limit = 1);
    let exceeded = kit.a6(&expiring);
    assert_eq!(exceeded.assert_refused(ID_A, 3, 0).ends6(), (OWN6, A6));
    assert_eq!(exceeded.l4()[8..], expiring.packet());
    let big = Build6::udp((A6, 5000), WEB).payload(1448);
    let needed = kit.a6(&big);
    assert_eq!(needed.assert_refused(ID_A, 2, 0).l4()[4..8], [0, 0, 5, 220]);
    assert_eq!(needed.packet().len(), 1280);
    assert_eq!(needed.l4()[8..], big.packet()[..1232]);
    kit.a6(&Build6::udp((A6, 5000), WEB).payload(1447)).assert_sent(UPLINK);
    let answer = Build6::udp(WEB, (OWN6, 5000)).with(|b| b.hop_limit = 1);
    assert_eq!(kit.up6(answer).assert_sent(UPLINK).ends6(), (OWN6, SERVER6));
    // Never about an error.
    let seen = kit.up6(Build6::udp(WEB, (OWN6, 5000)));
    let error = Build6::error((A6, SERVER6), (1, 4), 0, seen.packet()).with(|b| b.hop_limit = 1);
    kit.a6(&error).assert_dropped(DropReason::TtlExpired);
}

#[test]
fn i8_errors_are_rate_limited_with_those_of_ipv4() {
    let mut kit = Kit::new6().rules6(A6, &["action=drop"]);
    let syn = Build6::tcp((A6, 1), WEB, SYN);
    let sent = (0..500).filter(|_| kit.a6(&syn).fate == Fate::Send(TO_A)).count();
    assert_eq!(sent, 100);
    kit.wait(1);
    kit.a6(&syn).assert_refused(ID_A, 1, 1);
}

#[test]
fn i7_a_full_quota_is_told_with_a_prohibition() {
    let mut kit = Kit::new6();
    let quota = LIMITS.flows_per_client as u16;
    for n in 0..quota {
        kit.connect6((A6, 20_000 + n), WEB);
    }
    kit.a6(&Build6::tcp((A6, 1), WEB, SYN)).assert_refused(ID_A, 1, 1);
    // Each address of a client has a quota of its own.
    kit.connect((A, 1), (SERVER, 443));
}

#[test]
fn a_forbidden_connection_is_reset_and_its_far_side_meets_silence() {
    let mut kit = Kit::new6();
    let here = (A6, 40_000);
    let port = kit.connect6(here, WEB);
    kit.set_rules6(A6, rules6(&["action=drop"]));
    let up = Build6::tcp(WEB, (OWN6, port), ACK).numbers(0x7001, 0x1000_2001).payload(10);
    kit.up6(up.clone()).assert_dropped(DropReason::FlowForbidden);
    let reset = kit.a6(&Build6::tcp(here, WEB, ACK).numbers(0x1000_2001, 0x7001).payload(10));
    let expected = Build6::tcp(WEB, here, RST).numbers(0x7001, 0).with(|b| {
        b.l4[14..16].fill(0);
        b.link = (MAC_A, Mac::GATEWAY);
    });
    assert_eq!(reset.assert_sent(TO_A).bytes, expected.checksummed().frame());
    let mut udp = Kit::new6();
    udp.a6(&Build6::udp(here, WEB)).assert_sent(UPLINK);
    udp.set_rules6(A6, rules6(&["action=drop"]));
    udp.a6(&Build6::udp(here, WEB)).assert_refused(ID_A, 1, 1);
    // The rules of IPv4 are others.
    udp.a(&Build::udp((A, 1), (SERVER, 1))).assert_sent(UPLINK);
}

#[test]
fn q3_packets_before_the_rules_are_dropped() {
    let mut kit = Kit::new6();
    kit.set_rules6(A6, RulesState::None);
    kit.a6(&Build6::tcp((A6, 1), WEB, SYN)).assert_dropped(DropReason::NoRules);
}

fn capable(caps: PortCaps) -> Kit {
    let mut kit = Kit::new6();
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps }));
    kit.fw.detach_client(ID_A);
    let port = ClientPort { ip6: Some(A6), caps, ..vif(10, MAC_A, A) };
    kit.fw.attach_client(ID_A, port).unwrap();
    kit
}

#[test]
fn a_partial_checksum_stays_or_is_completed_as_the_port_takes_ipv6() {
    let both = [
        Build6::tcp((A6, 5000), WEB, ACK).payload(101),
        Build6::udp((A6, 5000), WEB).extended(60, &PAD).payload(100),
    ];
    let only4 = PortCaps { accepts_blank_v4: true, ..PortCaps::PLAIN };
    for build in both {
        let out = capable(CAPS).a6(&build.clone().blank());
        assert_eq!(out.assert_sent(UPLINK).offload.checksum, Checksum::Blank);
        let mut kit = capable(only4);
        let full = kit.a6(&build);
        let out = kit.a6(&build.blank());
        assert_eq!(out.assert_sent(UPLINK).offload.checksum, Checksum::Validated);
        assert_eq!(out.bytes, full.bytes, "as if it had been complete");
    }
}

#[test]
fn super_frames_are_checked_against_their_family() {
    let caps = PortCaps { accepts_gso_v4: true, accepts_gso_v6: true, ..CAPS };
    let big = |kind| {
        let gso = Some(Gso { kind, size: 700 });
        Build6::tcp((A6, 5000), WEB, ACK).payload(3000).blank().with(|b| b.offload.gso = gso)
    };
    let out = capable(caps).a6(&big(GsoKind::TcpV6));
    assert_eq!(out.assert_sent(UPLINK).bytes.len(), 14 + 40 + 20 + 3000);
    capable(caps).a6(&big(GsoKind::TcpV4)).assert_dropped(DropReason::GsoIllegal);
    let only4 = PortCaps { accepts_gso_v6: false, ..caps };
    assert_eq!(capable(only4).a6(&big(GsoKind::TcpV6)).fate, Fate::Segments(UPLINK));
    let v4 = Build::tcp((A, 1), (SERVER, 443), ACK).payload(3000).blank();
    let gso = Some(Gso { kind: GsoKind::TcpV6, size: 700 });
    capable(caps).a(&v4.with(|b| b.offload.gso = gso)).assert_dropped(DropReason::GsoIllegal);
}

#[test]
fn udp_always_has_a_checksum() {
    let mut kit = Kit::new6();
    let none = Build6::udp((A6, 5000), WEB).with(|b| b.l4[6..8].fill(0));
    kit.a6(&none).assert_dropped(DropReason::TransportHeader);
    let mut field = |word: u16| {
        let build = Build6::udp((A6, 5000), WEB)
            .with(|b| b.l4[8..10].copy_from_slice(&word.to_be_bytes()))
            .checksummed();
        kit.a6(&build).assert_sent(UPLINK).word(6)
    };
    let vanishing = field(0);
    let ones = words_about(vanishing).filter(|word| field(*word) == 0xffff);
    assert_eq!(ones.collect::<Vec<_>>(), [vanishing]);
}

#[test]
fn link_padding_is_cut_off() {
    let mut frame = Build6::udp((A6, 5000), WEB).frame();
    let len = frame.len();
    frame.extend([0xee; 9]);
    let out = Kit::new6().bytes(FROM_A, &frame, Offload::default());
    assert_eq!(out.assert_sent(UPLINK).bytes.len(), len);
    // Cut off anywhere, it is nothing.
    for cut in 0..len {
        let fate = Kit::new6().bytes(FROM_A, &frame[..cut], Offload::default()).fate;
        assert!(matches!(fate, Fate::Drop(_)), "{cut}");
    }
}

fn offload() -> impl Strategy<Value = Offload> {
    let checksum =
        prop_oneof![Just(Checksum::Full), Just(Checksum::Validated), Just(Checksum::Blank)];
    let kind = prop_oneof![Just(GsoKind::TcpV4), Just(GsoKind::TcpV6)];
    let gso = prop_oneof![
        4 => Just(None),
        1 => (kind, any::<u16>()).prop_map(|(kind, size)| Some(Gso { kind, size })),
    ];
    (checksum, gso).prop_map(|(checksum, gso)| Offload { checksum, gso })
}

/// Frames that are nearly right: a good packet with some bytes changed, and perhaps its end cut off.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let about = Build6::udp(WEB, (A6, 40_000)).packet();
    let about_ours = Build6::tcp((OWN6, 40_000), WEB, ACK).extended(60, &PAD).packet();
    let good = prop_oneof![
        Just(Build6::tcp((A6, 40_000), WEB, ACK)),
        Just(Build6::udp((A6, 40_000), (CLIENT_DNS6, 53)).extended(0, &PAD).extended(60, &PAD)),
        Just(Build6::udp((A6, 40_000), WEB).extended(44, &PAD)),
        Just(Build6::udp((A6, 40_000), WEB).extended(43, &[0, 0, 2, 0, 0, 0, 0, 0])),
        Just(Build6::echo(A6, SERVER6, 128, 7)),
        Just(Build6::echo(A6, OWN6, 128, 7)),
        Just(Build6::error((A6, SERVER6), (1, 4), 0, &about)),
        Just(Build6::nd((A6, SERVER6), 135, 0, SERVER6, (1, MAC_A))),
        Just(Build6::nd((NETVM6, OWN6), 136, 0x60, NETVM6, (2, MAC_B)).up()),
        Just(Build6::udp(WEB, (OWN6, 40_000)).up()),
        Just(Build6::tcp(WEB, (OWN6, 40_000), SYN | ACK).up()),
        Just(Build6::error((SERVER6, OWN6), (2, 0), 1400, &about_ours).up()),
        Just(Build6::raw(A6, SERVER6, 47, vec![1; 40])),
    ];
    let edits = vec((12usize..150, any::<u8>()), 0..5);
    let cut = proptest::option::of(0usize..160);
    (good, edits, cut, any::<bool>()).prop_map(|(build, edits, cut, is_repaired)| {
        let mut frame = build.frame();
        for (at, value) in edits {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            frame.truncate(cut);
        }
        if is_repaired && frame.len() >= 54 {
            let length = ((frame.len() - 54) as u16).to_be_bytes();
            frame[18..20].copy_from_slice(&length);
        }
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn mangled_packets_never_panic_and_leave_whole(
        frames in vec((prop_oneof![Just(FROM_A), Just(FROM_B), Just(Origin::Uplink)], mangled(), offload()), 1..20),
        is_drop_all: bool,
    ) {
        let mut kit = Kit::new6();
        kit.connect6((A6, 40_000), WEB);
        kit.a6(&Build6::udp((A6, 40_000), WEB)).assert_sent(UPLINK);
        kit.a6(&Build6::echo(A6, SERVER6, 128, 7)).assert_sent(UPLINK);
        if is_drop_all {
            kit.set_rules6(A6, rules6(&["action=drop"]));
        }
        for (origin, frame, offload) in frames {
            let out = kit.bytes(origin, &frame, offload);
            let Fate::Send(port) = out.fate else { continue };
            if out.bytes[12..14] == [0x86, 0xdd] {
                let ip = out.packet();
                prop_assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])) + 40, ip.len());
            }
            if port == UPLINK && origin != Origin::Uplink {
                prop_assert!(!is_drop_all || origin == FROM_B, "forwarded against the rules");
                prop_assert_eq!(out.src6(), OWN6);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_behind_an_ipv6_header_never_panic(
        payload in vec(any::<u8>(), 0..200), next: u8, is_up: bool, offload in offload(),
    ) {
        let mut build = Build6::raw(A6, SERVER6, next, payload);
        build.offload = offload;
        if is_up {
            (build.src, build.dst) = (SERVER6, OWN6);
        }
        let mut kit = Kit::new6();
        if is_up { kit.up6(build) } else { kit.a6(&build) };
    }

    /// NAT and then un-NAT is identity: an answer to what left comes back as the answer to what was sent.
    #[test]
    fn translation_and_back_is_identity(
        remote: [u16; 7], dport in 1u16.., sport in 1u16.., kind in 0u8..3, is_blank: bool, is_port_taken: bool,
        extensions in 0usize..3, extra in 0usize..1300,
    ) {
        let [b, c, d, e, f, g, h] = remote;
        let remote = (Ipv6Addr::new(0x2001, b, c, d, e, f, g, h), dport);
        let mut kit = Kit::new6();
        let packet = |from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), is_answer: bool| {
            let build = match kind {
                0 => Build6::tcp(from, to, ACK).payload(extra),
                1 => Build6::udp(from, to).payload(extra),
                _ if is_answer => Build6::echo(from.0, to.0, 129, to.1),
                _ => Build6::echo(from.0, to.0, 128, from.1),
            };
            let build = (0..extensions).fold(build, |b, _| b.extended(60, &PAD));
            if is_blank && kind < 2 { build.blank() } else { build }
        };
        if is_port_taken {
            kit.b6(&packet((B6, sport), remote, false)).assert_sent(UPLINK);
        }
        let out = kit.a6(&packet((A6, sport), remote, false));
        prop_assert_eq!(out.assert_sent(UPLINK).ends6(), (OWN6, remote.0));
        let local = if kind < 2 { out.sport() } else { out.icmp_id() };
        prop_assert_eq!(local == sport, !is_port_taken);
        let back = kit.up6(packet(remote, (OWN6, local), true));
        let expected = packet(remote, (A6, sport), true).with(|b| {
            b.link = (MAC_A, Mac::GATEWAY);
            b.hop_limit -= 1;
        });
        prop_assert_eq!(&back.assert_sent(TO_A).bytes, &expected.frame());
    }
}
