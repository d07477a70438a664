//! `packaging/book/services.md` names every key that there is, and no other.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{World, control, kit, metrics, parsed, reports};
use crate::config::testdb::TestDb;
use crate::control::Action;
use crate::services::Facts;
use crate::stats::Counter;
use crate::testing::{A, B, Build, CLIENT_DNS, Kit, MAC_B, OTHER_SERVER, SERVER, SYN};
use crate::verdict::DropReason;
use crate::*;

const BOOK: &str = include_str!("../../../packaging/book/services.md");

type Keys = BTreeSet<(String, String, String)>;

/// Service, kind of line, first column of each table row, where the kind is one of lines.
fn documented() -> (Keys, Keys) {
    let (mut service, mut kind) = (String::new(), None);
    let (mut keys, mut others) = (Keys::new(), Keys::new());
    let quoted = |text: &str| text.split('`').nth(1).map(str::to_owned);
    for line in BOOK.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            (service, kind) = (quoted(title).unwrap_or_else(|| title.to_owned()), None);
        } else if let Some(title) = line.strip_prefix("### ") {
            kind = Some(quoted(title).ok_or(title.to_owned()));
        } else if let (Some(row), Some(kind)) = (line.strip_prefix("| `"), &kind) {
            let key = row.split('`').next().unwrap().to_owned();
            let (set, kind) = match kind {
                Ok(kind) => (&mut keys, kind.clone()),
                Err(title) if title == "One line" => (&mut keys, String::new()),
                Err(title) => (&mut others, title.clone()),
            };
            assert!(set.insert((service.clone(), kind, key.clone())), "{key} comes twice");
        }
    }
    (keys, others)
}

/// A firewall about which there is everything to tell.
fn everything() -> (Kit, crate::control::Control, Facts) {
    let mut kit = kit();
    let many: Vec<_> = (1..=40).map(|n| [192, 0, 2, n].into()).collect();
    let names = ["action=accept dsthost=www.example.org", "action=drop dsthost=many.example"];
    kit = kit.rules(B, &[&names[..], &["action=accept dsthost=never.example"]].concat());
    kit.serve_dns(&[("www.example.org", &[SERVER, OTHER_SERVER]), ("many.example", &many)]);
    kit.set_rules(
        A,
        crate::testing::rules(&[
            "action=accept dsthost=new.example",
            "action=drop dst4=203.0.113.0/24",
            "action=accept",
        ]),
    );
    let by_b = |build: Build| build.with(|b| b.link.1 = MAC_B);
    let _ = kit.a(&Build::udp((A, 5), (CLIENT_DNS[0], 53)));
    let _ = kit.a(&Build::query(A, SERVER, 8, 5));
    let _ = kit.a(&Build::query(A, OTHER_SERVER, 8, 5));
    let _ = kit.b(&by_b(Build::udp((B, 5), (SERVER, 9))));
    let _ = kit.b(&by_b(Build::tcp((B, 5), (many[0], 9), SYN)));
    let mut db = TestDb::new();
    let mut control = control();
    let tree = "/qubes-firewall/10.137.0.12";
    db.dump(&[(&format!("{tree}/policy"), "drop"), (&format!("{tree}/0000"), "what")]);
    db.run(|event, client| control.on_event(event, client.store()));
    while let Some(action) = control.poll_action() {
        if let Action::SetRules { ip, rules } = action {
            kit.fw.set_rules(kit.now, ip, rules.into()).unwrap();
        }
    }
    let unsent = [("uplink-full", 4)];
    let facts = Facts::new(5, reports::memory(), reports::effort(), &unsent).at(kit.now, true);
    (kit, control, facts)
}

fn real() -> Keys {
    let (kit, control, facts) = everything();
    let world = World { firewall: &kit.fw, control: &control, facts: &facts };
    let calls: [(&str, Option<&str>); 14] = [
        ("firewall.Version", None),
        ("firewall.Version", Some("x")),
        ("firewall.Stats", None),
        ("firewall.Memory", None),
        ("firewall.Flows", None),
        ("firewall.Flows", Some("x")),
        ("firewall.Drops", None),
        ("firewall.Rules", None),
        ("firewall.Health", None),
        ("firewall.Explain", Some("10.137.0.10+tcp+203.0.113.9+1")),
        ("firewall.Explain", Some("10.137.0.10+udp+10.139.1.1+53")),
        ("firewall.Explain", Some("10.137.0.10+icmp+203.0.113.9")),
        ("firewall.Explain", Some("x")),
        ("firewall.Stats", Some("x")),
    ];
    let mut keys = Keys::new();
    for (service, argument) in calls {
        for (number, line) in parsed(&world.said(service, argument, b"").0).iter().enumerate() {
            let kind = line["kind"].as_str().unwrap_or_default().to_owned();
            let service = if kind == "error" { "Any service" } else { service };
            let Value::Object(line) = line else { panic!("{line}") };
            assert_eq!(line.contains_key("schema"), number == 0, "{service}: {line:?}");
            for key in line.keys() {
                keys.insert((service.to_owned(), kind.clone(), key.clone()));
            }
        }
    }
    keys
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_real() {
    let (documented, _) = documented();
    let real = real();
    let missing: Vec<_> = real.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&real).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "not documented: {missing:?}; not real: {stale:?}"
    );
    assert!(real.len() > 120, "{}", real.len());
}

#[test]
fn counters_reasons_families_and_problems_are_those_that_there_are() {
    let (_, others) = documented();
    let of = |title: &str| -> BTreeSet<&str> {
        others.iter().filter(|(_, kind, _)| kind == title).map(|(.., key)| key.as_str()).collect()
    };
    assert_eq!(of("Counters"), Counter::ALL.map(Counter::name).into());
    assert_eq!(of("Reasons of drops"), DropReason::ALL.map(DropReason::name).into());
    let text = metrics::of_a_busy_firewall();
    let families = metrics::families(&text);
    let derived: BTreeSet<String> = Counter::ALL
        .map(|counter| format!("rust_firewall_{}", counter.name().replace('-', "_")))
        .into_iter()
        .chain(
            documented()
                .0
                .into_iter()
                .filter(|(_, kind, _)| kind == "machine")
                .map(|(.., key)| format!("rust_firewall_{key}")),
        )
        .collect();
    let own: BTreeSet<&str> = families
        .iter()
        .map(|(name, _)| name.as_str())
        .filter(|name| !derived.contains(*name))
        .collect();
    assert_eq!(of("OpenMetrics"), own);
    assert!(
        derived
            .iter()
            .all(|name| families.iter().any(|(one, _)| one == name) || name.ends_with("_kind"))
    );
    assert_eq!(of("Problems"), crate::services::PROBLEMS.into());
    assert_eq!(of("Notes"), crate::services::NOTES.into());
}

#[test]
fn the_bounds_in_the_book_are_those_of_the_code() {
    for (bound, text) in [
        (Limits::for_memory(32 << 20).drops() / 8 * 8, "224 with 32 MiB"),
        (Limits::for_memory(16 << 20).drops() / 8 * 8, "112 with 16 MiB"),
    ] {
        let said = format!("{bound} with");
        assert!(text.starts_with(&said) && BOOK.contains(text), "{bound}");
    }
}
