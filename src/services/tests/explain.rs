//! What would become of a packet, against what becomes of it.

use serde_json::Value;

use super::{World, control, facts, kit, parsed, text_of};
use crate::qrexec::{ExitCode, Progress, Services};
use crate::testing::v6::{A6, Build6, SERVER6};
use crate::testing::{A, B, Build, CLIENT_DNS, FROM_A, Kit, OTHER_SERVER, OWN, SERVER, SYN};
use crate::wire::protocol;
use crate::*;

fn said(kit: &Kit, argument: Option<&str>, stdin: &[u8]) -> (String, ExitCode) {
    let (control, facts) = (control(), facts(kit));
    let world = World { firewall: &kit.fw, control: &control, facts: &facts };
    world.said("firewall.Explain", argument, stdin)
}

fn explained(kit: &Kit, question: &str) -> Value {
    let (text, code) = said(kit, None, question.as_bytes());
    assert_eq!(code, ExitCode::SUCCESS, "{text}");
    let mut lines = parsed(&text);
    assert_eq!(lines.len(), 1);
    lines.remove(0)
}

#[test]
fn the_rule_that_decides_is_named_in_both_ways_of_asking() {
    let kit = kit();
    let expected = serde_json::json!({
        "schema": 1, "kind": "explain", "client": text_of(A), "proto": "tcp", "dst": text_of(SERVER),
        "dport": 443, "verdict": "accept", "rule": 0,
        "text": "action=accept dst4=198.51.100.7/32 proto=tcp dstports=443-443",
        "reason": "Rule 0 (key 0000) is the first that matches.",
    });
    assert_eq!(explained(&kit, "10.137.0.10 tcp 198.51.100.7 443"), expected);
    let (text, code) = said(&kit, Some("10.137.0.10+tcp+198.51.100.7+443"), b"");
    assert_eq!((parsed(&text), code), (vec![expected], ExitCode::SUCCESS));
    let refused = explained(&kit, "10.137.0.10 udp 198.51.100.7 53\n");
    assert_eq!((&refused["verdict"], &refused["rule"]), (&"reject".into(), &1.into()));
    assert_eq!(refused["drop_reason"], "rule-rejected");
    let by_policy = explained(&kit, "10.137.0.11 tcp 198.51.100.7 1\nmore");
    assert_eq!((&by_policy["verdict"], &by_policy["rule"]), (&"reject".into(), &"policy".into()));
    assert!(by_policy["text"].is_null());
}

/// What is explained is what happens: to the same packet in the same state.
#[test]
fn an_explanation_agrees_with_the_packet_path() {
    let sets: [&[&str]; 5] = [
        &["action=accept"],
        &["action=accept proto=tcp dstports=80-443", "action=drop dst4=198.51.100.0/24"],
        &["action=accept specialtarget=dns", "action=accept proto=icmp icmptype=8"],
        &["action=drop dsthost=www.example.org", "action=accept"],
        &[],
    ];
    let destinations = [
        SERVER,
        OTHER_SERVER,
        B,
        crate::testing::ABSENT,
        OWN,
        CLIENT_DNS[0],
        [224, 0, 0, 1].into(),
    ];
    let mut verdicts = std::collections::BTreeMap::new();
    for (number, set) in sets.into_iter().enumerate() {
        for words in ["", "fw-allow=10.137.0.10>10.137.0.11"] {
            for (proto, port) in [
                ("tcp", 80),
                ("tcp", 53),
                ("udp", 53),
                ("udp", 9),
                ("icmp", 8),
                ("icmp", 0),
                ("icmp", 5),
                ("47", 0),
            ] {
                for destination in destinations {
                    let mut kit = Kit::new().rules(A, set);
                    kit.expose(words);
                    if number == 4 {
                        kit.set_rules(A, RulesState::None);
                    }
                    let port_word = if proto == "47" { String::new() } else { port.to_string() };
                    let question = format!("{A} {proto} {destination} {port_word}");
                    let answer = explained(&kit, question.trim());
                    let build = match proto {
                        "tcp" => Build::tcp((A, 7), (destination, port), SYN),
                        "udp" => Build::udp((A, 7), (destination, port)),
                        "icmp" => Build::query(A, destination, port as u8, 7),
                        _ => Build::raw(A, destination, 47, vec![0; 8]),
                    };
                    let out = kit.bytes(FROM_A, &build.frame(), Offload::default());
                    let by = match kit.fw.decided_by() {
                        Some(
                            rules::DecidedBy::Rule { index, .. }
                            | rules::DecidedBy::UnresolvedName { index, .. },
                        ) => index.into(),
                        Some(rules::DecidedBy::Policy) => "policy".into(),
                        _ => Value::Null,
                    };
                    let is_back = matches!(out.fate, Fate::Send(PortId::Client(id)) if Origin::Client(id) == FROM_A);
                    let is_echo = is_back && destination == OWN && proto == "icmp";
                    let happened = match out.fate {
                        Fate::Send(_) if is_back && !is_echo => "reject",
                        Fate::Send(_) | Fate::Consumed | Fate::Segments(_) => "accept",
                        Fate::Drop(_) => "drop",
                    };
                    assert_eq!(
                        (&answer["verdict"], &answer["rule"]),
                        (&happened.into(), &by),
                        "{set:?} {words} {question}: {answer}"
                    );
                    if let Fate::Drop(reason) = out.fate {
                        assert_eq!(answer["drop_reason"], reason.name(), "{question}");
                    }
                    *verdicts.entry(happened).or_insert(0) += 1;
                }
            }
        }
    }
    assert!(verdicts.len() == 3 && verdicts.values().all(|count| *count > 30), "{verdicts:?}");
}

#[test]
fn ipv6_is_explained_too() {
    let mut kit = Kit::new6().rules6(A6, &["action=accept proto=tcp"]);
    for (word, number) in [("tcp", protocol::TCP), ("udp", protocol::UDP)] {
        let answer = explained(&kit, &format!("{A6} {word} {SERVER6} 443"));
        let build = match number {
            protocol::TCP => Build6::tcp((A6, 7), (SERVER6, 443), SYN),
            _ => Build6::udp((A6, 7), (SERVER6, 443)),
        };
        let is_sent = kit.a6(&build).fate == Fate::Send(PortId::Uplink);
        assert_eq!(answer["verdict"] == "accept", is_sent, "{answer}");
    }
    let ping = explained(&kit, &format!("{A6} icmp {SERVER6}"));
    assert_eq!((&ping["type"], &ping["proto"]), (&128.into(), &"icmpv6".into()));
}

#[test]
fn names_count_as_they_are_resolved_now() {
    let mut kit = kit();
    let ask = |kit: &Kit| explained(kit, "10.137.0.11 udp 203.0.113.9 53");
    assert_eq!(ask(&kit)["verdict"], "reject");
    kit.serve_dns(&[("www.example.org", &[OTHER_SERVER])]);
    let answer = ask(&kit);
    assert_eq!((&answer["verdict"], &answer["rule"]), (&"accept".into(), &1.into()));
    assert_eq!(answer["text"], "action=accept dsthost=www.example.org");
}

#[test]
fn nothing_is_counted_and_nothing_changes_by_asking() {
    let kit = kit();
    let before = (kit.counters(), kit.fw.flow_count(), super::ask(&kit, "firewall.Rules", None));
    for _ in 0..20 {
        let _ = explained(&kit, "10.137.0.10 tcp 198.51.100.7 443");
        let _ = explained(&kit, "10.137.0.10 tcp 198.51.100.7 444");
    }
    let after = (kit.counters(), kit.fw.flow_count(), super::ask(&kit, "firewall.Rules", None));
    assert_eq!(before, after);
}

#[test]
fn who_is_no_client_and_who_is_not_connected_hears_so() {
    let mut kit = kit();
    let answer = explained(&kit, "192.0.2.1 tcp 198.51.100.7 443");
    assert_eq!((&answer["verdict"], &answer["rule"]), (&"drop".into(), &Value::Null));
    assert!(answer["reason"].as_str().unwrap().contains("No client"));
    kit.fw.detach_client(crate::testing::ID_A);
    let answer = explained(&kit, "10.137.0.10 tcp 198.51.100.7 443");
    assert!(
        answer["verdict"] == "accept"
            && answer["reason"].as_str().unwrap().contains("not connected")
    );
    kit.fw.set_uplink(kit.now, None);
    let answer = explained(&kit, "10.137.0.10 tcp 198.51.100.7 443");
    assert_eq!(
        (&answer["verdict"], &answer["drop_reason"]),
        (&"reject".into(), &"no-uplink".into())
    );
}

#[test]
fn what_is_no_question_is_answered_with_what_was_expected() {
    let kit = kit();
    let long = "1".repeat(600);
    let just_too_long = format!("10.137.0.10 tcp 198.51.100.7 443{}", " ".repeat(481));
    for stdin in [
        "",
        "\n",
        "x",
        "10.137.0.10",
        "10.137.0.10 tcp",
        "10.137.0.10 tcp 198.51.100.7",
        "10.137.0.10 tcp 198.51.100.7 70000",
        "10.137.0.10 tcp 198.51.100.7 -1",
        "10.137.0.10 tcp 198.51.100.7 443 5",
        "10.137.0.10  tcp 198.51.100.7 443",
        "10.137.0.10 icmp 198.51.100.7 256",
        "10.137.0.10 47 198.51.100.7 5",
        "10.137.0.10 256 198.51.100.7",
        "10.137.0.10 tcp fd09::1 443",
        "a tcp b 1",
        "10.137.0.10+tcp+198.51.100.7+443",
        "\u{fc}",
        &long,
        &just_too_long,
    ] {
        let (text, code) = said(&kit, None, stdin.as_bytes());
        let lines = parsed(&text);
        assert_eq!(
            (code, lines.len(), &lines[0]["kind"]),
            (ExitCode(1), 1, &"error".into()),
            "{stdin}"
        );
        assert!(lines[0]["reason"].as_str().unwrap().starts_with("expected "));
    }
    for argument in
        ["x", "10.137.0.10+tcp+198.51.100.7", "10.137.0.10 tcp 198.51.100.7 443", "+", &long]
    {
        let (text, code) = said(&kit, Some(argument), b"10.137.0.10 tcp 198.51.100.7 443\n");
        assert_eq!((code, &parsed(&text)[0]["kind"]), (ExitCode(1), &"error".into()), "{argument}");
    }
}

#[test]
fn the_answer_comes_with_the_end_of_the_line_and_not_before() {
    let (kit, control) = (kit(), control());
    let facts = facts(&kit);
    let world = World { firewall: &kit.fw, control: &control, facts: &facts };
    let mut services = world.services();
    let mut session = services.start(&super::call("firewall.Explain", None)).unwrap();
    let mut buffer = [0; 4096];
    for byte in b"10.137.0.10 tcp 198.51.100.7 443" {
        services.stdin(&mut session, &[*byte]);
        assert_eq!(services.poll(&mut session, &mut buffer), Progress::Waiting);
    }
    services.stdin(&mut session, b"\nwhatever else");
    assert!(matches!(services.poll(&mut session, &mut buffer), Progress::Stdout(_)));
    assert_eq!(services.poll(&mut session, &mut buffer), Progress::Exit(ExitCode::SUCCESS));
}
