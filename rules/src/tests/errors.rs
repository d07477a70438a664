//! Refusals beyond the vectors: every reason once, limits, keys, and what a message shows.

use crate::{Excerpt, Family, Limits, Mismatch, NoNames, Reason, Rule, RuleSet, RuleSetError};

use super::{icmp, subject, tcp, udp, v4, v6};

/// Family, line, position of the element at fault (0: the line), reason.
const REFUSED: &[(Family, &str, usize, Reason)] = &[
    (Family::V4, "action=accept action=accept", 2, Reason::DuplicateOption),
    (Family::V4, "action=drop action=accept", 2, Reason::DuplicateOption),
    (Family::V4, "action=accept proto=tcp proto=udp", 3, Reason::DuplicateOption),
    (Family::V4, "action=accept dst4=1.2.3.4 dsthost=a.b", 3, Reason::SecondDestination),
    (Family::V4, "dsthost=a.b action=accept dst4=1.2.3.4", 3, Reason::SecondDestination),
    (Family::V4, "action=accept dst4=1.2.3.4 dst6=::1", 3, Reason::SecondDestination),
    (Family::V6, "action=accept dst6=::1 dsthost=a.b", 3, Reason::SecondDestination),
    (Family::V4, "action=accept dst4=1.2.3.4 dst6=::1 dsthost=a", 3, Reason::SecondDestination),
    (Family::V4, " action=accept", 1, Reason::EmptyElement),
    (Family::V4, " ", 1, Reason::EmptyElement),
    (Family::V4, "action=accept\tproto=tcp", 1, Reason::SecondEquals),
    (Family::V4, "action=accept\n", 1, Reason::UnknownAction),
    (Family::V4, "=accept", 1, Reason::UnknownOption),
    (Family::V4, "Action=accept", 1, Reason::UnknownOption),
    (Family::V4, "action=", 1, Reason::EmptyValue),
    (Family::V4, "action=accept proto=TCP", 2, Reason::UnknownProtocol),
    (Family::V4, "action=accept proto=6", 2, Reason::UnknownProtocol),
    (Family::V4, "action=accept proto=icmpv6", 2, Reason::UnknownProtocol),
    (Family::V4, "action=accept specialtarget=foo", 2, Reason::UnknownTarget),
    (Family::V4, "action=accept icmptype=8 specialtarget=dns", 3, Reason::DnsWithIcmp),
    (Family::V4, "action=accept dst4=10/8", 2, Reason::BadAddress(Family::V4)),
    (Family::V4, "action=accept dst4=10.1/16", 2, Reason::BadAddress(Family::V4)),
    (Family::V4, "action=accept dst4=010.0.0.1/32", 2, Reason::BadAddress(Family::V4)),
    (Family::V4, "action=accept dst4=10.0.0.00/32", 2, Reason::BadAddress(Family::V4)),
    (Family::V4, "action=accept dst4=1.2.3.4-1.2.3.9", 2, Reason::BadAddress(Family::V4)),
    (Family::V4, "action=accept dst4=::1", 2, Reason::BadAddress(Family::V4)),
    (Family::V4, "action=accept dst4=/8", 2, Reason::BadAddress(Family::V4)),
    (Family::V4, "action=accept dst4=1.2.3.4/", 2, Reason::BadPrefixLength(32)),
    (Family::V4, "action=accept dst4=1.2.3.4/08", 2, Reason::BadPrefixLength(32)),
    (Family::V4, "action=accept dst4=1.2.3.4/+8", 2, Reason::BadPrefixLength(32)),
    (Family::V4, "action=accept dst4=1.2.3.4/-1", 2, Reason::BadPrefixLength(32)),
    (Family::V4, "action=accept dst4=1.2.3.4/8/8", 2, Reason::BadPrefixLength(32)),
    (Family::V4, "action=accept dst4=1.2.3.4/255.0.0.0", 2, Reason::BadPrefixLength(32)),
    (Family::V6, "action=accept dst6=2001:db8::/129", 2, Reason::BadPrefixLength(128)),
    (Family::V6, "action=accept dst6=2001:db8::/99999", 2, Reason::BadPrefixLength(128)),
    (Family::V6, "action=accept dst6=fe80::1%eth0", 2, Reason::BadAddress(Family::V6)),
    (Family::V6, "action=accept dst6=[::1]/128", 2, Reason::BadAddress(Family::V6)),
    (Family::V6, "action=accept dst6=1:2:3/48", 2, Reason::BadAddress(Family::V6)),
    (Family::V4, "action=accept dsthost=WWW.example.org", 2, Reason::BadName),
    (Family::V4, "action=accept dsthost=a,b", 2, Reason::BadName),
    (Family::V4, "action=accept dsthost=2001:db8::1", 2, Reason::BadName),
    (Family::V4, "action=accept dsthost=10.0.0.0/8", 2, Reason::BadName),
    (Family::V4, "action=accept proto=tcp dstports=0443", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=https", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=80,443", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=-80", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=80-", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=+80", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=00", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=65536", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=tcp dstports=18446744073709551696", 3, Reason::BadPorts),
    (Family::V4, "action=accept proto=icmp icmptype=08", 3, Reason::BadIcmpType),
    (Family::V4, "action=accept proto=icmp icmptype=-1", 3, Reason::BadIcmpType),
    (Family::V4, "action=accept proto=icmp icmptype=echo-request", 3, Reason::BadIcmpType),
    (Family::V4, "action=accept proto=udp icmptype=8", 3, Reason::TypeWithoutIcmp),
    (Family::V4, "action=accept dstports=80 icmptype=8", 3, Reason::TypeWithoutIcmp),
    (Family::V4, "action=accept icmptype=8 dstports=80", 2, Reason::TypeWithoutIcmp),
    (Family::V4, "action=accept proto=icmp dstports=80 icmptype=8", 3, Reason::PortsWithIcmp),
    (Family::V4, "action=accept dsthost=m\u{fc}ller.example", 0, Reason::NotText),
];

#[test]
fn each_refusal_names_the_element_and_the_reason() {
    for (family, line, position, reason) in REFUSED {
        let error = Rule::parse(*family, line.as_bytes()).expect_err(line);
        assert_eq!(error.reason, *reason, "{line}");
        assert_eq!(error.element.map_or(0, |element| element.position), *position, "{line}");
    }
}

/// Key or rule, element, what is wrong, what was expected: all in the text that the console and `qfw check` show.
#[test]
fn each_message_says_what_was_expected() {
    for (family, line, _, reason) in REFUSED {
        let tree = if *family == Family::V4 { v4(&[line]) } else { v6(&[line]) };
        let text = tree.parse().unwrap_err().to_string();
        assert!(text.starts_with("rule 0000: "), "{text}");
        assert!(reason.to_string().contains("expected "), "{reason}");
        assert!(text.ends_with(&reason.to_string()), "{text}");
    }
    let twins = v4(&["action=drop", "action=drop"]).keys(&["0001", "0001"]);
    for tree in [v4(&[]).without_policy(), v4(&[]).policy("x"), v4(&[""]).keys(&["1"]), twins] {
        let text = tree.parse().unwrap_err().to_string();
        assert!(text.contains("expected "), "{text}");
    }
}

#[test]
fn canonical_form_is_that_of_dom0() {
    for (family, line, canonical) in [
        (Family::V4, "action=drop", "action=drop"),
        (Family::V4, "dst4=10.1.2.3/8 action=accept", "action=accept dst4=10.0.0.0/8"),
        (Family::V4, "action=accept dst4=1.2.3.4", "action=accept dst4=1.2.3.4/32"),
        (Family::V6, "action=accept dst6=2001:DB8:0::5/32", "action=accept dst6=2001:db8::/32"),
        (Family::V6, "action=accept dst6=::1", "action=accept dst6=::1/128"),
        (
            Family::V4,
            "dstports=443 specialtarget=dns proto=tcp dsthost=a.b action=accept",
            "action=accept dsthost=a.b proto=tcp specialtarget=dns dstports=443-443",
        ),
        (Family::V4, "icmptype=8 action=drop", "action=drop proto=icmp icmptype=8"),
        (Family::V4, "dstports=1-2 action=drop", "action=drop dstports=1-2"),
    ] {
        assert_eq!(Rule::parse(family, line.as_bytes()).unwrap().to_string(), canonical);
    }
}

#[test]
fn bytes_that_are_not_text_are_refused() {
    for line in [&b"action=accept\xff"[..], b"\x80", b"action=accept dsthost=\xc3\xa4"] {
        let error = Rule::parse(Family::V4, line).unwrap_err();
        assert_eq!(error.reason, Reason::NotText);
    }
}

#[test]
fn second_policy_is_refused() {
    let entries: [(&[u8], &[u8]); 2] = [(b"policy", b"accept"), (b"policy", b"accept")];
    assert_eq!(RuleSet::parse(Family::V4, entries), Err(RuleSetError::DuplicatePolicy));
}

#[test]
fn second_rule_of_a_number_is_refused() {
    let error = v4(&["action=drop", "action=accept"]).keys(&["0007", "0007"]).parse().unwrap_err();
    assert_eq!(error.to_string(), "rule 0007 appears twice, expected once");
}

#[test]
fn policy_that_is_empty_or_in_capitals_is_refused() {
    for value in ["", "Accept", " accept", "accept "] {
        let error = v4(&[]).policy(value).parse().unwrap_err();
        assert_eq!(error, RuleSetError::PolicyValue(Excerpt::new(value.as_bytes())));
    }
}

#[test]
fn keys_with_signs_or_other_digits_are_refused() {
    for key in ["", "+001", "-001", "0x01", "00 1", "Policy", "policy2", "0000/1", "\u{661}00"] {
        let error = v4(&["action=accept"]).keys(&[key]).parse().unwrap_err();
        assert_eq!(error, RuleSetError::BadKey(Excerpt::new(key.as_bytes())));
    }
}

#[test]
fn one_rule_more_than_the_limit_refuses_the_set() {
    let limits = Limits { rules: 2, text_bytes: 1000 };
    let all: [(&[u8], &[u8]); 4] = [
        (b"policy", b"accept"),
        (b"0000", b"action=accept"),
        (b"0001", b"action=accept"),
        (b"0002", b"action=accept"),
    ];
    let parse = |count| RuleSet::parse_within(limits, Family::V4, all.into_iter().take(count));
    assert_eq!(parse(3).unwrap().rules().len(), 2);
    assert_eq!(parse(4), Err(RuleSetError::TooManyRules(2)));
}

#[test]
fn one_byte_more_than_the_limit_refuses_the_set() {
    let entries: [(&[u8], &[u8]); 2] = [(b"0000", b"action=accept"), (b"policy", b"drop")];
    let parse = |text_bytes| {
        RuleSet::parse_within(Limits { rules: 2, text_bytes }, Family::V4, entries).map(|_| ())
    };
    assert_eq!(parse(27), Ok(()));
    assert_eq!(parse(26), Err(RuleSetError::TooMuchText(26)));
}

#[test]
fn all_ten_thousand_numbers_fit_into_the_default_limits() {
    let keys: Vec<String> = (0..10_000).map(|number| format!("{number:04}")).collect();
    let line = b"action=drop proto=tcp dst4=198.51.100.0/24 dstports=443-443";
    let rules = keys.iter().map(|key| (key.as_bytes(), &line[..]));
    let set = RuleSet::parse(Family::V4, rules.chain([(&b"policy"[..], &b"accept"[..])])).unwrap();
    assert_eq!(set.rules().len(), 10_000);
    assert!(set.heap_bytes() < 1024 * 1024, "{}", set.heap_bytes());
}

#[test]
fn excerpt_escapes_and_cuts() {
    assert_eq!(Excerpt::new(b"a\n\"\x1b[1m\xff").to_string(), r#"'a\n\"\x1b[1m\xff'"#);
    assert_eq!(Excerpt::new(&[b'x'; 48]).to_string(), format!("'{}'", "x".repeat(48)));
    assert_eq!(Excerpt::new(&[b'x'; 49]).to_string(), format!("'{}...'", "x".repeat(48)));
}

#[test]
fn packet_of_the_other_family_is_never_accepted() {
    let accept_all = v4(&["action=accept"]).policy("accept");
    assert_eq!(accept_all.judge(tcp("2001:db8::5", 443)), "reject (other family)");
    assert_eq!(accept_all.judge(tcp("::ffff:198.51.100.7", 443)), "reject (other family)");
    let accept_all = v6(&["action=accept"]).policy("accept");
    assert_eq!(accept_all.judge(tcp("198.51.100.7", 443)), "reject (other family)");
}

#[test]
fn drop_rule_with_an_unresolved_name_refuses_all_that_reaches_it() {
    let tree = v4(&[
        "action=accept proto=tcp dstports=22",
        "action=drop dsthost=bad.example proto=tcp dstports=443",
        "action=accept",
    ]);
    assert_eq!(tree.judge(tcp("198.51.100.7", 22)), "accept 0000");
    assert_eq!(tree.judge(tcp("198.51.100.7", 443)), "reject 0001 (name)");
    assert_eq!(tree.judge(udp("198.51.100.7", 123)), "reject 0001 (name)");
    assert_eq!(tree.judge(icmp("198.51.100.7", 8)), "reject 0001 (name)");
}

#[test]
fn drop_rule_with_a_known_name_refuses_only_that_name() {
    let tree = v4(&["action=drop dsthost=bad.example", "action=accept"]);
    let known = tree.name("bad.example", &["198.51.100.7"]);
    assert_eq!(known.judge(tcp("198.51.100.7", 443)), "reject 0000");
    assert_eq!(known.judge(tcp("198.51.100.8", 443)), "accept 0001");
    let gone = v4(&["action=drop dsthost=bad.example", "action=accept"]).name("bad.example", &[]);
    assert_eq!(gone.judge(tcp("198.51.100.7", 443)), "accept 0001");
}

#[test]
fn accept_rule_with_an_unresolved_name_leaves_the_rest_alone() {
    let tree = v4(&["action=accept dsthost=a.example", "action=accept proto=icmp"]);
    assert_eq!(tree.judge(tcp("198.51.100.7", 443)), "reject policy");
    assert_eq!(tree.judge(icmp("198.51.100.7", 8)), "accept 0001");
}

#[test]
fn dns_rule_with_a_range_around_53_never_matches() {
    let tree = v4(&["action=accept specialtarget=dns dstports=1-1000"]);
    assert_eq!(tree.judge(udp("10.139.1.1", 53)), "reject policy");
}

#[test]
fn dns_rule_takes_the_resolvers_from_the_packet_not_from_the_family() {
    let mut packet = subject("2001:db8::53", crate::Upper::Udp { port: 53 });
    let set = v6(&["action=accept specialtarget=dns"]).parse().unwrap();
    assert_eq!(set.evaluate(&packet, &NoNames).verdict, crate::Verdict::Reject);
    packet.is_dns_server = true;
    assert_eq!(set.evaluate(&packet, &NoNames).verdict, crate::Verdict::Accept);
}

#[test]
fn names_are_listed_once_in_ascending_order() {
    let lines = ["b.example", "a.example", "b.example"].map(|n| format!("action=drop dsthost={n}"));
    let set = v4(&lines.each_ref().map(String::as_str)).parse().unwrap();
    let names: Vec<_> = set.names().map(|name| name.as_str()).collect();
    assert_eq!(names, ["a.example", "b.example"]);
}

#[test]
fn mismatch_is_the_first_part_that_does_not_hold() {
    let known = v4(&[]).name("a.example", &["198.51.100.8"]).names;
    let packet = tcp("198.51.100.7", 443);
    for (line, expected) in [
        ("action=accept dst4=198.51.100.8", Some(Mismatch::Destination)),
        ("action=drop dsthost=a.example", Some(Mismatch::Name)),
        ("action=accept dsthost=b.example", Some(Mismatch::UnresolvedName)),
        ("action=drop dsthost=b.example proto=udp", None),
        ("action=accept proto=udp dstports=443", Some(Mismatch::Protocol)),
        ("action=accept proto=tcp dstports=444", Some(Mismatch::Port)),
        ("action=accept icmptype=8", Some(Mismatch::Protocol)),
        ("action=accept specialtarget=dns", Some(Mismatch::Target)),
        ("action=accept dst4=198.51.100.0/24 dstports=443", None),
    ] {
        let rule = Rule::parse(Family::V4, line.as_bytes()).unwrap();
        assert_eq!(rule.mismatch(&packet, &known), expected, "{line}");
    }
    let rule = Rule::parse(Family::V4, b"action=accept icmptype=8").unwrap();
    let other_type = icmp("198.51.100.7", 13);
    assert_eq!(rule.mismatch(&other_type, &NoNames), Some(Mismatch::IcmpType));
}
