//! Properties: no text panics, the canonical form is a fixed point, the first match decides.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::{DecidedBy, Family, NameMatch, NoNames, Rule, RuleSet, Subject, Upper, Verdict};

/// Words that appear in rule lines, right and wrong: far more likely to get deep into the parser
/// than random text.
const WORDS: &[&str] = &[
    "action=accept",
    "action=drop",
    "action=",
    "dst4=10.0.0.0/8",
    "dst4=1.2.3.4",
    "dst4=1.2.3/8",
    "dst6=2001:db8::/32",
    "dst6=::1",
    "dst6=::/129",
    "dsthost=a.example",
    "dsthost=",
    "proto=tcp",
    "proto=udp",
    "proto=icmp",
    "proto=sctp",
    "specialtarget=dns",
    "specialtarget=x",
    "dstports=53",
    "dstports=1-65535",
    "dstports=9-1",
    "dstports=65536",
    "icmptype=8",
    "icmptype=256",
    "dpi=NO",
    "",
    "=",
    "==",
    "\t",
    "\u{fc}",
];

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn destination(family: Family) -> BoxedStrategy<String> {
    let name = "[a-z0-9._-]{1,20}".prop_map(|name| format!("dsthost={name}"));
    match family {
        Family::V4 => {
            let net = (any::<u32>(), 0..=32_u8)
                .prop_map(|(bits, length)| format!("dst4={}/{length}", Ipv4Addr::from_bits(bits)));
            prop_oneof![Just(String::new()), net, name].boxed()
        }
        Family::V6 => {
            let net = (any::<u128>(), 0..=128_u8)
                .prop_map(|(bits, length)| format!("dst6={}/{length}", Ipv6Addr::from_bits(bits)));
            prop_oneof![Just(String::new()), net, name].boxed()
        }
    }
}

fn ports() -> impl Strategy<Value = String> {
    let range = (any::<u16>(), any::<u16>())
        .prop_map(|(one, other)| format!("dstports={}-{}", one.min(other), one.max(other)));
    prop_oneof![range, any::<u16>().prop_map(|port| format!("dstports={port}"))]
}

/// The elements about the protocol that go together.
fn upper() -> impl Strategy<Value = Vec<String>> {
    let icmp_type = || any::<u8>().prop_map(|number| format!("icmptype={number}"));
    let dns = || prop_oneof![Just(vec![]), Just(vec!["specialtarget=dns".to_owned()])];
    let with_ports = (
        prop_oneof![
            Just(vec![]),
            Just(vec!["proto=tcp".to_owned()]),
            Just(vec!["proto=udp".into()])
        ],
        prop_oneof![Just(vec![]), ports().prop_map(|ports| vec![ports])],
        dns(),
    )
        .prop_map(|(proto, ports, dns)| [proto, ports, dns].concat());
    prop_oneof![
        with_ports,
        Just(vec!["proto=icmp".into()]),
        icmp_type().prop_map(|icmp_type| vec![icmp_type]),
        icmp_type().prop_map(|icmp_type| vec!["proto=icmp".into(), icmp_type]),
    ]
}

/// A valid line with its options in any order.
fn line(family: Family) -> impl Strategy<Value = String> {
    let action = prop_oneof![Just("action=accept".to_owned()), Just("action=drop".to_owned())];
    (action, destination(family), upper())
        .prop_map(|(action, destination, mut elements)| {
            elements.extend([action, destination]);
            elements.retain(|element| !element.is_empty());
            elements
        })
        .prop_shuffle()
        .prop_map(|elements| elements.join(" "))
}

/// Lines over few addresses and ports, so that several rules match one packet.
fn crowded_line() -> impl Strategy<Value = String> {
    let action = prop_oneof![Just("action=accept"), Just("action=drop")];
    let destination = prop_oneof![
        Just(""),
        Just(" dst4=10.0.0.0/30"),
        Just(" dst4=10.0.0.1/32"),
        Just(" dst4=10.0.0.2/31"),
        Just(" dsthost=a.example"),
    ];
    let upper = prop_oneof![
        Just(""),
        Just(" proto=tcp"),
        Just(" proto=udp dstports=53"),
        Just(" dstports=52-54"),
        Just(" specialtarget=dns"),
        Just(" proto=icmp"),
        Just(" icmptype=8"),
    ];
    (action, destination, upper)
        .prop_map(|(action, destination, upper)| [action, destination, upper].concat())
}

fn crowded_subject() -> impl Strategy<Value = Subject> {
    let upper = prop_oneof![
        (51..56_u16).prop_map(|port| Upper::Tcp { port }),
        (51..56_u16).prop_map(|port| Upper::Udp { port }),
        (7..10_u8).prop_map(|icmp_type| Upper::Icmp { icmp_type }),
        Just(Upper::Other { protocol: 47 }),
    ];
    (0..5_u8, upper, any::<bool>()).prop_map(|(host, upper, is_dns_server)| Subject {
        destination: IpAddr::from([10, 0, 0, host]),
        upper,
        is_dns_server,
    })
}

/// What a line says about a packet, read from the text: written apart from the parser, slow, and
/// only for valid lines. An unresolved name is `None`.
fn holds(line: &str, subject: &Subject) -> Option<bool> {
    let options: BTreeMap<_, _> = line.split(' ').map(|e| e.split_once('=').unwrap()).collect();
    let (protocol, number) = match subject.upper {
        Upper::Tcp { port } => ("tcp", u32::from(port)),
        Upper::Udp { port } => ("udp", u32::from(port)),
        Upper::Icmp { icmp_type } => ("icmp", u32::from(icmp_type)),
        Upper::Other { .. } => ("", 0),
    };
    let has_port = protocol == "tcp" || protocol == "udp";
    let one = |(key, value): (&&str, &&str)| match *key {
        "dst4" => {
            let (net, length) = value.split_once('/').unwrap();
            let net: Ipv4Addr = net.parse().unwrap();
            let IpAddr::V4(destination) = subject.destination else { return false };
            (0..length.parse::<u32>().unwrap())
                .all(|bit| (net.to_bits() ^ destination.to_bits()) >> (31 - bit) & 1 == 0)
        }
        "proto" => *value == protocol,
        "dstports" => {
            let (first, last) = value.split_once('-').unwrap_or((value, value));
            let range = first.parse().unwrap()..=last.parse().unwrap();
            has_port && range.contains(&number)
        }
        "specialtarget" => {
            let only_53 = matches!(options.get("dstports"), None | Some(&"53" | &"53-53"));
            subject.is_dns_server && has_port && number == 53 && only_53
        }
        "icmptype" => protocol == "icmp" && number.to_string() == *value,
        _ => true,
    };
    if options.contains_key("dsthost") {
        return (options["action"] == "accept").then_some(false);
    }
    Some(options.iter().all(one))
}

fn slow_verdict(tree: &BTreeMap<u16, String>, policy: &str, subject: &Subject) -> (bool, String) {
    for (key, line) in tree {
        match holds(line, subject) {
            None => return (false, format!("{key:04} name")),
            Some(true) => return (line.contains("action=accept"), format!("{key:04}")),
            Some(false) => {}
        }
    }
    (policy == "accept", "policy".into())
}

proptest! {
    #[test]
    fn parse_never_panics_on_any_bytes(family in family(), bytes in vec(any::<u8>(), 0..200)) {
        let _ = Rule::parse(family, &bytes);
        let _ = RuleSet::parse(family, [(&bytes[..], &bytes[..])]);
    }

    #[test]
    fn what_parses_has_a_canonical_form_that_is_a_fixed_point(
        family in family(),
        words in vec(prop::sample::select(WORDS), 0..5),
    ) {
        if let Ok(rule) = Rule::parse(family, words.join(" ").as_bytes()) {
            let printed = rule.to_string();
            prop_assert_eq!(Rule::parse(family, printed.as_bytes()), Ok(rule));
        }
    }

    #[test]
    fn valid_lines_parse_and_survive_printing(
        (family, line) in family().prop_flat_map(|family| (Just(family), line(family))),
    ) {
        let rule = Rule::parse(family, line.as_bytes());
        let rule = rule.map_err(|error| TestCaseError::fail(format!("{line}: {error}")))?;
        let printed = rule.to_string();
        let again = Rule::parse(family, printed.as_bytes()).unwrap();
        prop_assert_eq!(&again, &rule);
        prop_assert_eq!(again.to_string(), printed);
    }

    #[test]
    fn verdicts_agree_with_a_slow_reading_of_the_text(
        tree in btree_map(0..10_000_u16, crowded_line(), 0..12),
        policy in prop_oneof![Just("accept"), Just("drop")],
        subject in crowded_subject(),
        reversed in any::<bool>(),
    ) {
        let mut keys: Vec<_> = tree.iter().map(|(key, line)| (format!("{key:04}"), line)).collect();
        if reversed {
            keys.reverse();
        }
        let entries = keys.iter().map(|(key, line)| (key.as_bytes(), line.as_bytes()));
        let policy_entry = (&b"policy"[..], policy.as_bytes());
        let set = RuleSet::parse(Family::V4, entries.chain([policy_entry])).unwrap();
        let decision = set.evaluate(&subject, &NoNames);
        let by = match decision.by {
            DecidedBy::Rule { key, .. } => key.to_string(),
            DecidedBy::UnresolvedName { key, .. } => format!("{key} name"),
            DecidedBy::Policy => "policy".to_owned(),
            DecidedBy::OtherFamily => "family".to_owned(),
        };
        let accepted = decision.verdict == Verdict::Accept;
        prop_assert_eq!((accepted, by), slow_verdict(&tree, policy, &subject));
    }

    #[test]
    fn the_rule_that_decides_is_the_first_without_a_mismatch(
        lines in vec(crowded_line(), 0..8),
        subject in crowded_subject(),
        has_name in any::<Option<bool>>(),
    ) {
        let keys: Vec<String> = (0..lines.len()).map(|n| format!("{n:04}")).collect();
        let rules = keys.iter().zip(&lines).map(|(key, line)| (key.as_bytes(), line.as_bytes()));
        let entries = rules.chain([(&b"policy"[..], &b"drop"[..])]);
        let Ok(set) = RuleSet::parse(Family::of(subject.destination), entries) else { return Ok(()) };
        let mut names = super::KnownNames::default();
        for (name, has_name) in set.names().zip(has_name) {
            let addresses = if has_name { vec![subject.destination] } else { Vec::new() };
            names.0.insert(name.as_str().to_owned(), addresses);
        }
        let first = set.rules().position(|(_, rule)| rule.mismatch(&subject, &names).is_none());
        let decided = match set.evaluate(&subject, &names).by {
            DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. } => Some(index),
            DecidedBy::Policy | DecidedBy::OtherFamily => None,
        };
        prop_assert_eq!(first, decided);
    }

    #[test]
    fn known_names_never_turn_an_accept_of_the_rest_into_more(
        tree in btree_map(0..100_u16, crowded_line(), 0..8),
        subject in crowded_subject(),
    ) {
        // A name that has no address at all must act as if its rules were not there.
        let keys: Vec<_> = tree.iter().map(|(key, line)| (format!("{key:04}"), line)).collect();
        let parse = |with_names: bool| {
            let kept = keys.iter().filter(|(_, line)| with_names || !line.contains("dsthost"));
            let entries = kept.map(|(key, line)| (key.as_bytes(), line.as_bytes()));
            RuleSet::parse(Family::V4, entries.chain([(&b"policy"[..], &b"drop"[..])])).unwrap()
        };
        struct NoAddress;
        impl crate::Names for NoAddress {
            fn lookup(&self, _: &crate::HostName, _: IpAddr) -> NameMatch {
                NameMatch::HasNot
            }

            fn each_at(&self, _: IpAddr, _: &mut dyn FnMut(&str)) {}

            fn is_known(&self, _: &crate::HostName) -> bool {
                true
            }
        }
        let with = parse(true).evaluate(&subject, &NoAddress).verdict;
        prop_assert_eq!(with, parse(false).evaluate(&subject, &NoNames).verdict);
    }
}
