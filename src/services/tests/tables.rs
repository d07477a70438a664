//! Flows, drops and rules: what they tell, and what happens when they change under way.

use core::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{MESSAGE_BYTES, World, ask, call, control, facts, kit, of_kind, parsed, text_of};
use crate::qrexec::{ExitCode, Progress, Services};
use crate::testing::v6::{A6, Build6, SERVER6};
use crate::testing::{
    A, ACK, B, Build, CLIENT_DNS, FROM_A, ID_A, Kit, LIMITS, OTHER_SERVER, OWN, OWN_DNS, SERVER,
    SYN, rules,
};
use crate::*;

const EXAMPLE: &str = "www.example.org";

#[test]
fn a_running_flow_is_told_with_its_addresses_state_and_rule() {
    let mut kit = kit();
    kit.wait(3);
    let lines = ask(&kit, "firewall.Flows", None);
    assert_eq!(lines[0], json!({"schema": 1, "kind": "flows", "uptime_ms": 77, "flows": 1}));
    let expected = json!({
        "kind": "flow", "client": text_of(A), "slot": 0, "direction": "out", "proto": "tcp",
        "src": text_of(A), "sport": 40_000, "dst": text_of(SERVER), "dport": 443,
        "nat": text_of(OWN), "nat_port": 40_000, "state": "established", "rule": 0, "idle_ms": 3000,
    });
    assert_eq!(lines[1..], [expected]);
}

#[test]
fn each_kind_of_flow_has_its_own_keys() {
    let mut kit = Kit::new().rules(A, &["action=accept"]).rules(B, &["action=accept"]);
    kit.expose("fw-allow=10.137.0.10>10.137.0.11 fw-forward=tcp/80>10.137.0.10/8080");
    let _ = kit.a(&Build::query(A, SERVER, 8, 77));
    let _ = kit.a(&Build::udp((A, 5000), (CLIENT_DNS[0], 53)));
    let _ = kit.a(&Build::tcp((A, 6000), (B, 22), SYN));
    let _ = kit.up(Build::tcp((SERVER, 7000), (OWN, 80), SYN));
    let _ = kit.a(&Build::raw(A, SERVER, 47, vec![0; 8]));
    let flows = of_kind(&ask(&kit, "firewall.Flows", None), "flow");
    let of = |proto: &str, direction: &str| -> Value {
        let is_it = |line: &&Value| line["proto"] == proto && line["direction"] == direction;
        flows.iter().find(is_it).unwrap().clone()
    };
    let ping = of("icmp", "out");
    assert_eq!(
        (&ping["id"], &ping["type"], &ping["state"]),
        (&77.into(), &8.into(), &"query".into())
    );
    assert!(ping["sport"].is_null() && ping["nat"] == text_of(OWN) && ping["rule"] == 0);
    let dns = of("udp", "out");
    assert_eq!(
        (&dns["dst"], &dns["redirected_to"]),
        (&text_of(CLIENT_DNS[0]).into(), &text_of(OWN_DNS[0]).into())
    );
    assert_eq!(dns["state"], "one-way");
    let across = of("tcp", "across");
    assert!(
        across["nat"].is_null() && across["dst"] == text_of(B) && across["state"] == "syn-sent"
    );
    let forwarded = of("tcp", "in");
    assert_eq!((&forwarded["src"], &forwarded["dport"]), (&text_of(SERVER).into(), &8080.into()));
    assert_eq!((&forwarded["nat_port"], &forwarded["client"]), (&80.into(), &text_of(A).into()));
    assert!(forwarded["rule"].is_null() && forwarded["state"] == "syn-received");
    let gre = of("47", "out");
    assert!(gre["nat_port"].is_null() && gre["state"] == "open");
}

#[test]
fn a_flow_that_the_rules_forbid_now_says_so_from_its_next_packet_on() {
    let mut kit = kit();
    kit.set_rules(A, rules(&["action=drop"]));
    assert_eq!(ask(&kit, "firewall.Flows", None)[1]["rule"], 0);
    let _ = kit.a(&Build::tcp((A, 40_000), (SERVER, 443), ACK).numbers(0x1000_2001, 0x7001));
    assert_eq!(ask(&kit, "firewall.Flows", None)[1]["state"], "forbidden");
}

#[test]
fn one_client_can_be_asked_for() {
    let mut kit = kit();
    let _ = kit.b(&Build::query(B, SERVER, 8, 5).with(|b| b.link.1 = crate::testing::MAC_B));
    let told = |service: &str, kind: &str, client: Ipv4Addr| {
        let lines = ask(&kit, service, Some(&text_of(client)));
        let lines = of_kind(&lines, kind);
        assert!(lines.iter().all(|line| line["client"] == text_of(client)), "{lines:?}");
        lines.len()
    };
    assert_eq!([A, B, SERVER].map(|ip| told("firewall.Flows", "flow", ip)), [1, 1, 0]);
    assert_eq!([A, B, SERVER].map(|ip| told("firewall.Drops", "drop", ip)), [1, 0, 0]);
    assert_eq!([A, B, SERVER].map(|ip| told("firewall.Rules", "rule", ip)), [2, 2, 0]);
}

#[test]
fn a_refused_packet_is_told_with_the_rule_that_refused_it() {
    let mut kit = kit();
    kit.wait(1);
    let _ = kit.a(&Build::tcp((A, 40_002), (SERVER, 80), SYN));
    kit.wait(2);
    let lines = ask(&kit, "firewall.Drops", None);
    assert_eq!(
        lines[0],
        json!({"schema": 1, "kind": "drops", "uptime_ms": 77, "kept": 1, "limit": 64, "total": 2})
    );
    let expected = json!({
        "kind": "drop", "age_ms": 2000, "times": 2, "client": text_of(A), "slot": 0, "direction": "out",
        "reason": "rule-rejected", "rule": 1, "text": "action=drop",
        "why": "The rules of this source reject the flow.", "proto": "tcp",
        "src": text_of(A), "sport": 40_002, "dst": text_of(SERVER), "dport": 80,
    });
    assert_eq!(lines[1..], [expected]);
    // The text is told while the rules are those that decided.
    kit.set_rules(A, rules(&["action=accept"]));
    let line = &ask(&kit, "firewall.Drops", None)[1];
    assert!(line["rule"] == 1 && line["text"].is_null());
    let _ = kit.up(Build::tcp((SERVER, 9), (OWN, 25), SYN));
    let line = &ask(&kit, "firewall.Drops", None)[1];
    assert!(line["client"].is_null() && line["direction"] == "in" && line["dport"] == 25, "{line}");
    assert!(line["rule"].is_null() && line["reason"] == "no-flow");
}

#[test]
fn what_is_spoofed_or_no_packet_at_all_is_told_as_far_as_it_can_be() {
    let mut kit = kit();
    let _ = kit.a(&Build::udp((OTHER_SERVER, 1), (SERVER, 2)));
    let _ = kit.bytes(FROM_A, &[0; 9], Offload::default());
    let _ = kit.a(&Build::query(A, SERVER, 8, 1).with(|b| b.l4[2] ^= 1));
    let drops = of_kind(&ask(&kit, "firewall.Drops", None), "drop");
    let reasons: Vec<_> = drops.iter().map(|drop| drop["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["icmp-checksum", "frame-too-short", "source-spoofed", "rule-rejected"]);
    assert_eq!((&drops[0]["type"], &drops[0]["proto"]), (&8.into(), &"icmp".into()));
    assert!(drops[1]["proto"].is_null() && drops[1]["client"] == text_of(A));
    assert_eq!((&drops[2]["src"], &drops[2]["dport"]), (&text_of(OTHER_SERVER).into(), &2.into()));
    assert!(drops.iter().all(|drop| drop["client"] == text_of(A) && drop["slot"] == 0));
}

#[test]
fn rules_count_what_they_decide_and_begin_anew_with_each_commit() {
    let mut kit = kit();
    for port in 0..3 {
        let _ = kit.a(&Build::tcp((A, 41_000 + port), (SERVER, 80), SYN));
    }
    // The flow that stands asks no rule again.
    let _ = kit.a(&Build::tcp((A, 40_000), (SERVER, 443), ACK).numbers(0x1000_2001, 0x7001));
    let lines = ask(&kit, "firewall.Rules", Some(&text_of(A)));
    let text = "action=accept dst4=198.51.100.7/32 proto=tcp dstports=443-443";
    let expected = [
        json!({"schema": 1, "kind": "rules", "clients": 1}),
        json!({"kind": "ruleset", "client": text_of(A), "state": "in-force", "rules": 2, "generation": 3}),
        json!({"kind": "rule", "client": text_of(A), "index": 0, "key": "0000", "text": text, "hits": 1}),
        json!({"kind": "rule", "client": text_of(A), "index": 1, "key": "0001", "text": "action=drop", "hits": 4}),
        json!({"kind": "policy", "client": text_of(A), "action": "drop", "hits": 0}),
    ];
    assert_eq!(lines, expected);
    kit.set_rules(A, rules(&["action=accept proto=udp"]));
    let _ = kit.a(&Build::tcp((A, 42_000), (SERVER, 80), SYN));
    let lines = ask(&kit, "firewall.Rules", Some(&text_of(A)));
    assert_eq!((&lines[2]["hits"], &lines[3]["hits"]), (&0.into(), &1.into()));
}

#[test]
fn names_are_told_with_their_addresses_where_they_have_any() {
    let mut kit = kit();
    let of_b =
        |kit: &Kit| of_kind(&ask(kit, "firewall.Rules", Some(&text_of(B))), "rule")[1].clone();
    let line = of_b(&kit);
    assert_eq!((&line["unresolved"], &line["addresses"]), (&true.into(), &json!([])));
    kit.serve_dns(&[(EXAMPLE, &[SERVER, OTHER_SERVER])]);
    let line = of_b(&kit);
    let mut addresses: Vec<_> = line["addresses"].as_array().unwrap().clone();
    addresses.sort_by_key(|address| address.to_string());
    assert_eq!(addresses, [text_of(SERVER), text_of(OTHER_SERVER)]);
    assert!(line["unresolved"].is_null() && line["more_addresses"].is_null());
    let by_b = |build: Build| build.with(|b| b.link.1 = crate::testing::MAC_B);
    kit.connect_of_b();
    let _ = kit.b(&by_b(Build::udp((B, 9), (OTHER_SERVER, 9))));
    let flows = of_kind(&ask(&kit, "firewall.Flows", Some(&text_of(B))), "flow");
    assert!(flows.iter().all(|flow| flow["name"] == EXAMPLE && flow["rule"] == 1), "{flows:?}");
    assert_eq!(flows.len(), 2);
}

impl Kit {
    fn connect_of_b(&mut self) {
        let syn = Build::tcp((B, 4000), (SERVER, 80), SYN);
        let _ = self.b(&syn.with(|b| b.link.1 = crate::testing::MAC_B));
    }
}

#[test]
fn clients_without_rules_and_with_refused_ones_are_told() {
    let mut kit = kit();
    kit.set_rules(A, RulesState::Refused);
    kit.set_rules(B, RulesState::None);
    let sets = of_kind(&ask(&kit, "firewall.Rules", None), "ruleset");
    let of = |ip: Ipv4Addr| {
        sets.iter().find(|set| set["client"] == text_of(ip)).unwrap()["state"].clone()
    };
    assert_eq!([A, B, crate::testing::ABSENT].map(of), ["refused", "none", "none"]);
}

#[test]
fn ipv6_is_told_alike() {
    let mut kit = Kit::new6();
    kit.connect6((A6, 40_000), (SERVER6, 443));
    let _ = kit.a6(&Build6::echo(A6, crate::testing::v6::B6, 128, 5));
    let lines = ask(&kit, "firewall.Flows", Some(&text_of(A6)));
    assert_eq!((&lines[1]["dst"], &lines[1]["dport"]), (&text_of(SERVER6).into(), &443.into()));
    let drop = &of_kind(&ask(&kit, "firewall.Drops", Some(&text_of(A6))), "drop")[0];
    assert_eq!((&drop["proto"], &drop["type"]), (&"icmpv6".into(), &128.into()));
    assert_eq!(of_kind(&ask(&kit, "firewall.Rules", Some(&text_of(A6))), "rule").len(), 1);
}

/// Asks for piece after piece, and lets `change` happen between two of them.
fn slowly(kit: &mut Kit, service: &str, mut change: impl FnMut(usize, &mut Kit)) -> Vec<Value> {
    let control = control();
    let start = facts(kit);
    let world = World { firewall: &kit.fw, control: &control, facts: &start };
    let mut session = world.services().start(&call(service, None)).unwrap();
    let mut text = String::new();
    for number in 0..100_000 {
        let facts = facts(kit);
        let world = World { firewall: &kit.fw, control: &control, facts: &facts };
        let mut buffer = [0; MESSAGE_BYTES];
        match world.services().poll(&mut session, &mut buffer) {
            Progress::Stdout(bytes) => text += core::str::from_utf8(&buffer[..bytes]).unwrap(),
            Progress::Later => {}
            Progress::Exit(code) => {
                assert_eq!(code, ExitCode::SUCCESS);
                return parsed(&text);
            }
            other => panic!("{other:?}"),
        }
        change(number, kit);
    }
    panic!("it does not end");
}

#[test]
fn flows_that_come_and_go_under_way_are_told_once_at_most() {
    let mut kit = Kit::with_limits(Limits { flows: 4096, flows_per_client: 4096, ..LIMITS });
    kit.set_rules(A, rules(&["action=accept"]));
    let mut port = 1000;
    let mut open = |kit: &mut Kit| {
        port += 1;
        let _ = kit.a(&Build::udp((A, port), (SERVER, 9)));
    };
    (0..3000).for_each(|_| open(&mut kit));
    // Each line a flow comes, and each tenth all of a client go.
    let lines = slowly(&mut kit, "firewall.Flows", |number, kit| {
        open(kit);
        if number == 500 {
            kit.set_network(|network| network.v4.address = Some(Ipv4Addr::new(10, 137, 0, 7)));
        }
    });
    let mut ports: Vec<_> = lines.iter().filter_map(|line| line["sport"].as_u64()).collect();
    let all = ports.len();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), all);
    assert!(all > 500 && all < 4096, "{all}");
}

#[test]
fn a_search_through_a_large_table_lets_packets_have_their_turn() {
    let mut kit = Kit::with_limits(Limits { flows: 8192, flows_per_client: 8192, ..LIMITS });
    kit.set_rules(A, rules(&["action=accept"]));
    for port in 1000..7000 {
        let _ = kit.a(&Build::udp((A, port), (SERVER, 9)));
    }
    let (control, facts) = (control(), facts(&kit));
    let world = World { firewall: &kit.fw, control: &control, facts: &facts };
    let mut services = world.services();
    let mut session = services.start(&call("firewall.Flows", Some(&text_of(B)))).unwrap();
    let mut steps = Vec::new();
    loop {
        let step = services.poll(&mut session, &mut [0; MESSAGE_BYTES]);
        steps.push(step);
        if step == Progress::Exit(ExitCode::SUCCESS) {
            break;
        }
    }
    assert!(matches!(steps[0], Progress::Stdout(_)));
    assert_eq!(steps[1..steps.len() - 1], [Progress::Later; 2], "2,048 of 6,000 slots at once");
}

#[test]
fn drops_that_count_up_under_way_are_told_once_at_most() {
    let mut kit = kit();
    for port in 0..30 {
        let _ = kit.a(&Build::tcp((A, 1), (SERVER, 1000 + port), SYN));
    }
    let lines = slowly(&mut kit, "firewall.Drops", |_, kit| {
        let _ = kit.a(&Build::tcp((A, 2), (SERVER, 1000), SYN));
        let _ = kit.a(&Build::tcp((A, 2), (SERVER, 1029), SYN));
    });
    let mut ports: Vec<_> = lines[1..].iter().map(|line| line["dport"].as_u64().unwrap()).collect();
    assert!(ports.len() <= 8 && ports.len() > 4, "{ports:?}");
    ports.sort_unstable();
    assert!(ports.array_windows().all(|[one, next]| one < next), "{ports:?}");
}

#[test]
fn a_set_that_is_replaced_while_it_is_told_ends_there() {
    let mut kit = kit();
    let lines = slowly(&mut kit, "firewall.Rules", |number, kit| {
        if number == 2 {
            kit.set_rules(A, rules(&["action=drop"; 5]));
        }
    });
    let of_a = lines.iter().filter(|line| line["client"] == text_of(A));
    let kinds: Vec<_> = of_a.map(|line| (line["kind"].as_str(), line["state"].as_str())).collect();
    let (set, rule) = (Some("ruleset"), (Some("rule"), None));
    assert_eq!(kinds, [(set, Some("in-force")), rule, (set, Some("replaced"))]);
    assert_eq!(lines.iter().filter(|line| line["kind"] == "policy").count(), 1, "B follows");
}

#[test]
fn a_client_that_goes_while_it_is_told_ends_there() {
    let mut kit = kit();
    let lines = slowly(&mut kit, "firewall.Rules", |number, kit| {
        if number == 2 {
            kit.set_rules(A, RulesState::None);
            kit.set_network(|network| network.connected.clear());
            kit.fw.detach_client(ID_A);
        }
    });
    assert!(lines.iter().any(|line| line["state"] == "replaced"));
}
