//! OpenMetrics text: its grammar, and that its counters are those of the statistics.

use std::collections::{BTreeMap, BTreeSet};

use super::{World, control, facts, kit, reports};
use crate::event_loop::machine::MemoryUse;
use crate::qrexec::ExitCode;
use crate::services::Facts;
use crate::stats::Counter;
use crate::testing::Kit;
use crate::*;

fn text(kit: &Kit) -> String {
    let unsent = [("uplink-full", 4), ("client-gone", 0)];
    let facts = Facts::new(77, MemoryUse::default(), reports::effort(), &unsent).at(kit.now, true);
    let control = control();
    let world = World { firewall: &kit.fw, control: &control, facts: &facts };
    let (text, code) = world.said("firewall.Stats", Some("openmetrics"), b"");
    assert_eq!(code, ExitCode::SUCCESS);
    text
}

/// Samples by their names with labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

pub(super) fn families(text: &str) -> Vec<(String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split_once(' ').unwrap()).map(|(a, b)| (a.into(), b.into())).collect()
}

pub(super) fn of_a_busy_firewall() -> String {
    text(&kit())
}

#[test]
fn each_family_comes_once_with_its_type_and_help_and_the_text_has_its_end() {
    let text = text(&kit());
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    let mut seen = BTreeSet::new();
    let mut family = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            family = (name.to_owned(), kind.to_owned());
            assert!(seen.insert(family.0.clone()), "{name} comes twice");
        } else if let Some(rest) = line.strip_prefix("# HELP ").or(line.strip_prefix("# UNIT ")) {
            assert!(rest.starts_with(&format!("{} ", family.0)), "{line}");
        } else if line != "# EOF" {
            let suffix = match family.1.as_str() {
                "counter" => "_total",
                "info" => "_info",
                "gauge" => "",
                other => panic!("{other}"),
            };
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(name, format!("{}{suffix}", family.0), "{line}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
        }
    }
    assert_eq!(seen.len(), 6 + 13 + Counter::ALL.len() + 1);
}

#[test]
fn the_counters_are_those_of_the_statistics() {
    let kit = kit();
    let samples = samples(&text(&kit));
    assert_eq!(samples["rust_firewall_flows"], 1.0);
    assert_eq!(samples["rust_firewall_has_uplink"], 1.0);
    assert_eq!(samples["rust_firewall_hypercalls_total"], 9.0);
    assert_eq!(samples["rust_firewall_batches_to_uplink_total"], 4.0);
    assert_eq!(samples["rust_firewall_unsent_frames_total{reason=\"uplink-full\"}"], 4.0);
    assert_eq!(samples["rust_firewall_uptime_seconds"], 0.077);
    let label = "port=\"client\",slot=\"0\",client=\"10.137.0.10\"";
    let stats = kit.fw.stats().client(ClientId(0)).unwrap();
    for counter in Counter::ALL {
        let name = counter.name().replace('-', "_");
        let sample = samples[&format!("rust_firewall_{name}_total{{{label}}}")];
        assert_eq!(sample, stats.get(counter) as f64, "{name}");
    }
    let dropped =
        format!("rust_firewall_dropped_packets_total{{{label},reason=\"rule-rejected\"}}");
    assert_eq!(samples[&dropped], 1.0);
    let ports = |name: &str| samples.keys().filter(|key| key.starts_with(name)).count();
    assert_eq!(ports("rust_firewall_received_frames_total"), 4, "uplink, departed, two clients");
    assert_eq!(ports("rust_firewall_dropped_packets_total"), 1);
    assert!(facts(&kit).has_database);
}
