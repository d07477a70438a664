//! Rules that are valid and still not what somebody meant.

use rules::{Action, Destination, PortRange, Rule, RuleKey, RuleSet, SpecialTarget, UpperMatch};

use crate::engine::KnownNames;

/// What is worth a look, in the order of the rules.
pub(crate) fn warnings(set: &RuleSet, names: &KnownNames) -> Vec<String> {
    let mut found = Vec::new();
    let rules: Vec<(RuleKey, &Rule)> = set.rules().collect();
    for (at, (key, rule)) in rules.iter().enumerate() {
        let named = format!("rule {key} ({rule})");
        let earlier = rules.iter().take(at).find(|(_, earlier)| covers(earlier, rule));
        if let Some((by, earlier)) = earlier {
            if is_everything(earlier) {
                let count = rules.len().saturating_sub(at);
                found.push(format!(
                    "rule {by} ({earlier}) decides about everything: {count} from {named} on never do"
                ));
                break;
            }
            found.push(format!("{named} never decides: rule {by} ({earlier}) does before"));
            continue;
        }
        if never_matches(rule) {
            found.push(format!(
                "{named} never matches: the special target dns is port 53, expected dstports=53-53 or none"
            ));
        }
        if let Some(name) = rule.host_name() {
            let is_known = names.knows(name);
            if looks_like_an_address(name.as_str()) {
                found.push(format!(
                    "{named}: {name} is not an address, and as a name never resolves"
                ));
            } else if !is_known && rule.action() == Action::Drop {
                found.push(format!(
                    "{named}: while {name} is not resolved, all that reaches the rule is rejected"
                ));
            } else if !is_known && !names.is_empty() {
                found.push(format!("{named}: {name} is not resolved, so the rule matches nothing"));
            }
        }
    }
    found
}

/// Whether whatever `later` would decide about was decided by `earlier` already.
fn covers(earlier: &Rule, later: &Rule) -> bool {
    // While its name is not resolved, a drop rule decides about everything.
    let is_wider_at_times = later.action() == Action::Drop && later.host_name().is_some();
    let destination = match (earlier.destination(), later.destination()) {
        (Destination::Any, _) => !is_wider_at_times || is_everything(earlier),
        (Destination::Net(wide), Destination::Net(narrow)) => wide.contains(narrow),
        (Destination::Host(one), Destination::Host(other)) => {
            one == other && (!is_wider_at_times || earlier.action() == Action::Drop)
        }
        _ => false,
    };
    let target = match (earlier.target(), later.target()) {
        (None, _) => true,
        (Some(SpecialTarget::Dns), Some(SpecialTarget::Dns)) => !never_matches(earlier),
        (Some(SpecialTarget::Dns), None) => false,
    };
    destination && target && upper_covers(earlier.upper(), later.upper())
}

fn is_everything(rule: &Rule) -> bool {
    *rule.destination() == Destination::Any
        && rule.upper() == UpperMatch::Any
        && rule.target().is_none()
}

fn upper_covers(wide: UpperMatch, narrow: UpperMatch) -> bool {
    match (wide, narrow) {
        (UpperMatch::Any, _) => true,
        (UpperMatch::Tcp(wide), UpperMatch::Tcp(narrow))
        | (UpperMatch::Udp(wide), UpperMatch::Udp(narrow)) => ports_cover(wide, narrow),
        (UpperMatch::TcpOrUdp(wide), UpperMatch::Tcp(narrow) | UpperMatch::Udp(narrow)) => {
            ports_cover(Some(wide), narrow)
        }
        (UpperMatch::TcpOrUdp(wide), UpperMatch::TcpOrUdp(narrow)) => {
            ports_cover(Some(wide), Some(narrow))
        }
        (UpperMatch::Icmp(wide), UpperMatch::Icmp(narrow)) => wide.is_none() || wide == narrow,
        _ => false,
    }
}

fn ports_cover(wide: Option<PortRange>, narrow: Option<PortRange>) -> bool {
    let ends = |range: Option<PortRange>| range.map_or((0, u16::MAX), |r| (r.first(), r.last()));
    let ((first, last), (low, high)) = (ends(wide), ends(narrow));
    first <= low && high <= last
}

fn never_matches(rule: &Rule) -> bool {
    let is_dns = rule.target() == Some(SpecialTarget::Dns);
    is_dns && rule.upper().ports().is_some_and(|ports| (ports.first(), ports.last()) != (53, 53))
}

fn looks_like_an_address(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use rules::{Family, Subject, Upper};

    use super::*;
    use crate::case;
    use crate::engine::decide;
    use rules::DecidedBy;

    fn set(lines: &[&str]) -> RuleSet {
        let numbered = lines.iter().enumerate();
        let rules = numbered.map(|(n, line)| (format!("{n:04}"), (*line).to_owned()));
        let policy = [("policy".to_owned(), "drop".to_owned())];
        case::parse(Family::V4, &rules.chain(policy).collect::<Vec<_>>()).unwrap()
    }

    fn warned(lines: &[&str]) -> Vec<String> {
        warnings(&set(lines), &KnownNames::default())
    }

    #[test]
    fn nothing_is_odd_about_what_the_settings_dialog_writes() {
        let lines = [
            "action=accept dsthost=www.example.org proto=tcp dstports=443-443",
            "action=accept specialtarget=dns",
            "action=accept proto=icmp",
            "action=drop",
        ];
        assert_eq!(warned(&lines), Vec::<String>::new());
    }

    #[test]
    fn rules_behind_a_wider_one_are_named_with_it() {
        let lines = [
            "action=accept dst4=10.0.0.0/8 dstports=1-99",
            "action=drop dst4=10.1.0.0/16 proto=tcp dstports=80",
        ];
        assert_eq!(
            warned(&lines),
            [
                "rule 0001 (action=drop dst4=10.1.0.0/16 proto=tcp dstports=80-80) never decides: rule 0000 (action=accept dst4=10.0.0.0/8 dstports=1-99) does before"
            ]
        );
    }

    #[test]
    fn all_rules_behind_a_catch_all_are_one_warning() {
        let lines = ["action=drop", "action=accept proto=tcp", "action=accept"];
        assert_eq!(
            warned(&lines),
            [
                "rule 0000 (action=drop) decides about everything: 2 from rule 0001 (action=accept proto=tcp) on never do"
            ]
        );
    }

    #[test]
    fn names_that_will_surprise() {
        let found = warned(&["action=accept dsthost=300.1.1.1", "action=drop dsthost=bad.example"]);
        assert!(found[0].contains("is not an address"), "{found:?}");
        assert!(found[1].contains("all that reaches the rule is rejected"), "{found:?}");
        let mut names = KnownNames::default();
        names.insert("bad.example", Vec::new());
        let set = set(&["action=accept dsthost=a.example", "action=drop dsthost=bad.example"]);
        let found = warnings(&set, &names);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a.example is not resolved"), "{found:?}");
    }

    #[test]
    fn dns_with_another_port_never_matches() {
        assert!(
            warned(&["action=accept specialtarget=dns dstports=1-99"])[0].contains("never matches")
        );
    }

    fn line() -> impl Strategy<Value = String> {
        let action = prop_oneof![Just("action=accept"), Just("action=drop")];
        let destination = prop_oneof![
            Just(""),
            Just(" dst4=10.0.0.0/30"),
            Just(" dst4=10.0.0.1/32"),
            Just(" dsthost=a.example"),
            Just(" dsthost=b.example"),
        ];
        let upper = prop_oneof![
            Just(""),
            Just(" proto=tcp"),
            Just(" proto=tcp dstports=0-65535"),
            Just(" proto=udp dstports=53"),
            Just(" dstports=52-54"),
            Just(" specialtarget=dns"),
            Just(" specialtarget=dns dstports=53"),
            Just(" specialtarget=dns dstports=52-54"),
            Just(" proto=icmp"),
            Just(" icmptype=8"),
        ];
        (action, destination, upper).prop_map(|(action, to, upper)| [action, to, upper].concat())
    }

    fn packet() -> impl Strategy<Value = Subject> {
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

    proptest! {
        #[test]
        fn a_rule_of_which_it_is_said_never_decides(
            lines in vec(line(), 2..6),
            packets in vec(packet(), 1..20),
            known in vec(any::<bool>(), 3),
        ) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let set = set(&lines);
            let mut names = KnownNames::default();
            for (name, is_known) in ["a.example", "b.example"].into_iter().zip(&known) {
                if *is_known {
                    let addresses = if known[2] { vec![[10, 0, 0, 1].into()] } else { Vec::new() };
                    names.insert(name, addresses);
                }
            }
            let rules: Vec<&Rule> = set.rules().map(|(_, rule)| rule).collect();
            for packet in &packets {
                let (DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. }) =
                    decide(&set, packet, &names).by
                else {
                    continue;
                };
                prop_assert!(!rules[..index].iter().any(|earlier| covers(earlier, rules[index])));
            }
        }
    }
}
