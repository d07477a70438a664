//! Whether all is well: each problem has its cause, and goes with it.

use serde_json::Value;

use super::{World, control, facts, kit, of_kind, reports};
use crate::config::testdb::TestDb;
use crate::control::{Action, Control, Limits as ControlLimits};
use crate::services::Facts;
use crate::stats::Stats;
use crate::testing::{A, B, Build, Kit, LIMITS, SERVER, rules};
use crate::verdict::DropReason;
use crate::*;

fn all_lines(kit: &Kit, control: &Control, facts: &Facts) -> Vec<Value> {
    World { firewall: &kit.fw, control, facts }.lines("firewall.Health", None)
}

/// Without notes, of which the frontends of these tests give reason to.
fn health(kit: &Kit, control: &Control, facts: &Facts) -> Vec<Value> {
    let mut lines = all_lines(kit, control, facts);
    lines.retain(|line| line["kind"] != "note");
    lines
}

/// The words of the problems.
fn problems(kit: &Kit, control: &Control, facts: &Facts) -> Vec<String> {
    let lines = health(kit, control, facts);
    let problems: Vec<_> =
        lines[1..].iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(lines[0]["ok"], problems.is_empty(), "{lines:?}");
    assert!(
        lines[1..].iter().all(|line| line["text"].as_str().is_some_and(|text| text.len() > 20))
    );
    problems
}

#[test]
fn all_is_well() {
    let kit = kit();
    let expected = serde_json::json!({
        "schema": 1, "kind": "health", "ok": true, "uptime_ms": 77, "version": env!("CARGO_PKG_VERSION"),
        "uplink": "connected", "database": "connected", "rules_refused": 0, "without_accept": 0, "leaks": 0,
    });
    assert_eq!(health(&kit, &control(), &facts(&kit)), [expected]);
}

#[test]
fn what_is_missing_is_told_until_it_is_there() {
    let mut kit = kit();
    kit.fw.set_uplink(kit.now, None);
    let lost = facts(&kit).at(kit.now, false);
    assert_eq!(problems(&kit, &control(), &lost), ["no-uplink", "database-lost"]);
    let line = &health(&kit, &control(), &lost)[0];
    assert_eq!((&line["uplink"], &line["database"]), (&"none".into(), &"lost".into()));
}

#[test]
fn faults_of_the_firewall_are_told() {
    let mut kit = kit();
    kit.fw.stats.count_drop(Origin::Uplink, DropReason::WithoutAccept);
    let mut facts = facts(&kit);
    facts.memory.leaks = 3;
    assert_eq!(problems(&kit, &control(), &facts), ["without-accept", "leak"]);
    let line = &health(&kit, &control(), &facts)[0];
    assert_eq!((&line["without_accept"], &line["leaks"]), (&1.into(), &3.into()));
    kit.fw.stats = Stats::new(4).unwrap();
}

#[test]
fn words_and_keys_that_were_not_understood_are_told() {
    let kit = kit();
    let line = Control::new("ro fw-nonsense=1 fw-log=loud quiet", ControlLimits::default());
    assert_eq!(problems(&kit, &line, &facts(&kit)), ["config-word", "config-word"]);
    let text = &health(&kit, &line, &facts(&kit))[1]["text"];
    assert!(text.as_str().unwrap().contains("fw-nonsense"), "{text}");
    let mut db = TestDb::new();
    let mut control = control();
    let take = |db: &mut TestDb, control: &mut Control| {
        db.run(|event, client| control.on_event(event, client.store()));
        while control.poll_action().is_some() {}
    };
    db.dump(&[("/vm-config/fw-log", "loud"), ("/qubes-debug-mode", "maybe")]);
    take(&mut db, &mut control);
    let found = problems(&kit, &control, &facts(&kit));
    assert_eq!(found.first().map(String::as_str), Some("config-word"));
    assert!(found[1..].iter().all(|id| id == "config-value") && found.len() > 1, "{found:?}");
    db.write("/vm-config/fw-log", "drops");
    take(&mut db, &mut control);
    assert!(!problems(&kit, &control, &facts(&kit)).contains(&"config-word".to_owned()));
}

#[test]
fn refused_rules_are_told_with_their_reason_in_both_services() {
    let mut kit = kit();
    let mut db = TestDb::new();
    let mut control = control();
    db.dump(&[
        ("/qubes-firewall/10.137.0.10/policy", "drop"),
        ("/qubes-firewall/10.137.0.10/0000", "action=accept proto=sctp"),
    ]);
    db.run(|event, client| control.on_event(event, client.store()));
    while let Some(action) = control.poll_action() {
        if let Action::SetRules { ip, rules } = action {
            kit.fw.set_rules(kit.now, ip, rules.into()).unwrap();
        }
    }
    let facts = facts(&kit);
    let world = World { firewall: &kit.fw, control: &control, facts: &facts };
    let lines = world.lines("firewall.Health", None);
    let refused = lines.iter().find(|line| line["id"] == "rules-refused").unwrap();
    assert_eq!(
        (&refused["client"], &lines[0]["rules_refused"]),
        (&"10.137.0.10".into(), &1.into())
    );
    assert!(refused["text"].as_str().unwrap().contains("sctp"), "{refused}");
    let sets = of_kind(&world.lines("firewall.Rules", Some("10.137.0.10")), "ruleset");
    assert_eq!(sets[0]["state"], "refused");
    assert!(sets[0]["why"].as_str().unwrap().contains("sctp"), "{sets:?}");
    // Of a source for which there is no room in the packet path.
    kit.fw.set_rules(kit.now, A.into(), RulesState::None).unwrap();
    kit.set_network(|network| network.connected.clear());
    kit.fw.detach_client(crate::testing::ID_A);
    let ids = problems(&kit, &control, &facts);
    assert!(ids.contains(&"rules-not-taken".to_owned()), "{ids:?}");
}

#[test]
fn shortages_are_told() {
    let limits = Limits { flows: 4, flows_per_client: 2, ..LIMITS };
    let mut kit =
        Kit::with_limits(limits).rules(A, &["action=accept"]).rules(B, &["action=accept"]);
    for port in 1..3 {
        let _ = kit.a(&Build::udp((A, port), (SERVER, 9)));
        let to_b = |b: &mut Build| b.link.1 = crate::testing::MAC_B;
        let _ = kit.b(&Build::udp((B, port), (SERVER, 9)).with(to_b));
    }
    let mut facts = facts(&kit);
    let all = ["flow-table-full", "client-limited", "client-limited"];
    assert_eq!(problems(&kit, &control(), &facts), all);
    facts.memory = reports::memory();
    let refused = ["memory-refused", "flow-table-full", "client-limited", "client-limited"];
    assert_eq!(problems(&kit, &control(), &facts), refused);
    facts.memory.heap_used = 1900;
    assert_eq!(problems(&kit, &control(), &facts)[0], "memory");
    facts.memory.heap_used = 1800;
    assert_eq!(problems(&kit, &control(), &facts)[0], "memory-refused");
}

#[test]
fn names_that_cannot_be_resolved_are_told() {
    let mut kit = kit();
    kit.set_rules(A, rules(&["action=accept dsthost=a.example"]));
    for _ in 0..8 {
        let Some(asked) = kit.try_asked() else {
            kit.wait(2);
            continue;
        };
        let reply = crate::dns::testing::Reply::to(&asked).rcode(2).bytes();
        let _ = kit.dns(asked.server, asked.port, &reply);
    }
    let found = problems(&kit, &control(), &facts(&kit));
    assert_eq!(found, ["names-unresolved"]);
}

#[test]
fn clients_with_fewer_features_and_refused_writes_are_notes_and_no_problem() {
    let mut kit = kit();
    let caps = PortCaps {
        accepts_blank_v4: true,
        accepts_blank_v6: true,
        accepts_gso_v4: true,
        accepts_gso_v6: true,
        mtu: 1500,
    };
    // One that takes everything, beside A and B, which take no super-frames.
    let ip = core::net::Ipv4Addr::new(10, 137, 0, 77);
    let port = ClientPort { caps, ..crate::testing::vif(9, crate::testing::MAC_B, ip) };
    kit.fw.attach_client(ClientId(3), port).unwrap();
    let mut facts = facts(&kit);
    facts.effort.store_refusals = 2;
    let lines = all_lines(&kit, &control(), &facts);
    assert_eq!(lines[0]["ok"], true);
    let told: Vec<_> = lines[1..].iter().map(|line| (&line["id"], &line["client"])).collect();
    let [refused, features] = ["store-refused", "client-features"].map(Value::from);
    let [a, b] = [A, B].map(|ip| Value::from(ip.to_string()));
    assert_eq!(told, [(&refused, &Value::Null), (&features, &a), (&features, &b)]);
    let text = lines[2]["text"].as_str().unwrap();
    let has = |words: &str| text.contains(words);
    assert!(has("feature-gso-tcpv4") && has("feature-gso-tcpv6"), "{text}");
    assert!(!has("feature-no-csum-offload") && !has("feature-ipv6-csum-offload"), "{text}");
    // Behind problems.
    facts.has_database = false;
    let lines = all_lines(&kit, &control(), &facts);
    let kinds: Vec<_> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["health", "problem", "note", "note", "note"]);
}
