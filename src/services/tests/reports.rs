//! Version, statistics, memory: what callers read, and that a line always fits into a message.

use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use super::{MESSAGE_BYTES, World, call};
use crate::clients::ClientPort;
use crate::control::{self, Control};
use crate::event_loop::machine::Effort;
use crate::event_loop::machine::{MAX_PARTS, MemoryUse, PartUse};
use crate::firewall::Firewall;
use crate::limits::Limits;
use crate::port::{ClientId, Origin, PortCaps, PortId};
use crate::qrexec::{ExitCode, NoSuchService, Progress, Services};
use crate::services::{Facts, FirewallServices, Kind, Session};
use crate::stats::Counter;
use crate::verdict::DropReason;
use crate::wire::Mac;

const LIMITS: Limits =
    Limits { clients: 3, addresses: 8, flows: 64, flows_per_client: 16, fragment_bytes: 4096 };
/// Two parts, one of them with a budget.
pub(super) fn memory() -> MemoryUse {
    let part = |name, budget| PartUse {
        name,
        live: 10,
        peak: 20,
        budget,
        blocks: 1,
        count: 3,
        failures: 2,
    };
    let mut parts = [PartUse::default(); MAX_PARTS];
    parts[0] = part("tables", usize::MAX);
    parts[1] = part("rules", 500);
    MemoryUse {
        heap_used: 1000,
        heap_peak: 1500,
        heap_size: 2000,
        pages_used: 3,
        pages: 9,
        grants: 4,
        quarantined: 1,
        ports: 5,
        watches: 6,
        largest_operation: 700,
        operations_refused: 8,
        leaks: 0,
        parts,
    }
}

pub(super) fn effort() -> Effort {
    Effort { hypercalls: 9, copies: 2, batches: [1, 2, 3, 4], ..Effort::default() }
}

/// The longest numbers.
fn most() -> Effort {
    const MOST: u64 = u64::MAX;
    Effort {
        hypercalls: MOST,
        copies: MOST,
        copy_operations: MOST,
        copied_bytes: MOST,
        notifications: MOST,
        sleeps: MOST,
        timers: MOST,
        batches: [MOST; 4],
        allocations: MOST,
        limited_vifs: MOST,
    }
}

fn control() -> Control {
    Control::new("", control::Limits::default())
}

fn answer(firewall: &Firewall, facts: &Facts, service: &str) -> Vec<serde_json::Value> {
    World { firewall, control: &control(), facts }.lines(service, None)
}

fn firewall() -> Firewall {
    let mut firewall = Firewall::new(LIMITS, [7; 32]).unwrap();
    let port = ClientPort {
        domid: 5,
        mac: Mac([0, 0x16, 0x3e, 0, 0, 1]),
        ip4: Some(Ipv4Addr::new(10, 137, 0, 9)),
        ip6: Some(Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 9)),
        caps: PortCaps::PLAIN,
    };
    firewall.attach_client(ClientId(1), port).unwrap();
    firewall
}

#[test]
fn version_is_one_object_and_memory_one_for_each_part_besides() {
    let firewall = firewall();
    let facts = Facts::new(1234, memory(), Effort::default(), &[]);
    let version = answer(&firewall, &facts, "firewall.Version");
    assert_eq!(version.len(), 1);
    assert_eq!(version[0]["schema"], 1);
    assert_eq!(version[0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version[0]["uptime_ms"], 1234);
    let memory = answer(&firewall, &facts, "firewall.Memory");
    let expected = serde_json::json!({
        "schema": 1, "kind": "memory", "heap_used": 1000, "heap_peak": 1500, "heap_size": 2000,
        "pages_used": 3, "pages": 9, "flows": 0, "flows_limit": 64, "flows_per_client_limit": 16,
        "clients": 1, "clients_limit": 3, "grants": 4, "quarantined": 1, "ports": 5, "watches": 6,
        "nat_ports": 0, "largest_operation": 700, "operations_refused": 8, "leaks": 0,
    });
    let tables = serde_json::json!({
        "kind": "part", "part": "tables", "live": 10, "peak": 20, "blocks": 1, "count": 3,
        "failures": 2,
    });
    let mut rules = tables.clone();
    rules["part"] = "rules".into();
    rules["budget"] = 500.into();
    assert_eq!(memory, [expected, tables, rules]);
}

#[test]
fn statistics_have_two_lines_for_each_port_that_there_is() {
    let mut firewall = firewall();
    firewall.stats.count(PortId::Client(ClientId(1)), Counter::ReceivedFrames, 7);
    firewall.stats.count_drop(Origin::Client(ClientId(1)), DropReason::SourceSpoofed);
    firewall.stats.count_drop(Origin::Uplink, DropReason::NoFlow);
    let facts = Facts::new(5, memory(), effort(), &[("uplink-full", 4), ("client-gone", 0)]);
    let lines = answer(&firewall, &facts, "firewall.Stats");
    let kinds: Vec<&str> = lines.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    let ports = ["uplink", "uplink", "departed", "departed", "client", "client"];
    assert_eq!(kinds, [&["firewall", "machine"], &ports[..]].concat());
    assert_eq!(lines[0]["unsent"], serde_json::json!({"uplink-full": 4, "client-gone": 0}));
    assert_eq!(lines[0]["without_accept"], 0);
    let machine = &lines[1];
    assert_eq!((&machine["hypercalls"], &machine["copies"]), (&9.into(), &2.into()));
    assert_eq!(machine["batches_from_clients"], 1);
    assert_eq!(machine["batches_to_uplink"], 4);
    assert_eq!(lines[3]["drops"], serde_json::json!({"no-flow": 1}));
    assert_eq!(lines[5]["drops"], serde_json::json!({}));
    let client = &lines[6];
    assert_eq!(client["slot"], 1);
    assert_eq!(client["domid"], 5);
    assert_eq!(client["ip"], "10.137.0.9");
    assert_eq!(client["ip6"], "fd09:24ef:4179::a89:9");
    assert_eq!(client["counters"]["received-frames"], 7);
    assert_eq!(lines[7]["drops"], serde_json::json!({"source-spoofed": 1}));
}

#[test]
fn a_client_without_an_address_of_a_family_has_null_there() {
    let mut firewall = Firewall::new(LIMITS, [7; 32]).unwrap();
    let mac = Mac([0, 0x16, 0x3e, 0, 0, 1]);
    let port = ClientPort { domid: 5, mac, ip4: None, ip6: None, caps: PortCaps::PLAIN };
    firewall.attach_client(ClientId(0), port).unwrap();
    let lines = answer(&firewall, &Facts::default(), "firewall.Stats");
    assert!(lines[6]["ip"].is_null() && lines[6]["ip6"].is_null());
}

/// With the largest numbers, in every place.
#[test]
fn the_longest_lines_fit_into_a_message() {
    let mut firewall = firewall();
    let client = PortId::Client(ClientId(1));
    for counter in Counter::ALL {
        firewall.stats.count(client, counter, u64::MAX);
    }
    let facts = Facts::new(
        u64::MAX,
        memory(),
        most(),
        &[("a-reason-with-a-long-name-indeed", u64::MAX); 16],
    );
    let mut longest = 0;
    let control = control();
    let services = FirewallServices::new(&firewall, &control, &facts);
    for number in 0..services.most_lines(Kind::Stats) {
        let mut buffer = [0; MESSAGE_BYTES];
        if let Some(written) = services.line(Kind::Stats, number, &mut buffer) {
            longest = longest.max(written.unwrap());
        }
    }
    // Drops cannot be set to the largest number here: room for it in place of the missing digits and names.
    let names: usize = DropReason::ALL.iter().map(|reason| reason.name().len()).sum();
    let drops = names + DropReason::COUNT * r#""":18446744073709551615,"#.len();
    let rest = r#"{"kind":"client","slot":65535,"domid":65535,"ip":"255.255.255.255","ip6":"","drops":{}}"#;
    assert!(
        longest <= MESSAGE_BYTES && drops + rest.len() + 46 <= MESSAGE_BYTES,
        "{longest} {drops}"
    );
}

#[test]
fn a_line_that_does_not_fit_ends_the_call_with_a_code() {
    let (firewall, control, facts) = (firewall(), control(), Facts::default());
    let mut services = FirewallServices::new(&firewall, &control, &facts);
    for room in [0, 1, 20] {
        let mut session = services.start(&call("firewall.Stats", None)).unwrap();
        let end = services.poll(&mut session, &mut [0; MESSAGE_BYTES][..room]);
        assert_eq!(end, Progress::Exit(ExitCode(1)));
    }
}

#[test]
fn other_services_are_unknown() {
    let (firewall, control, facts) = (firewall(), control(), Facts::default());
    let mut services = FirewallServices::new(&firewall, &control, &facts);
    for service in ["firewall.Nothing", "firewall", "firewall.", "firewall.stats", ""] {
        assert_eq!(services.start(&call(service, None)), Err(NoSuchService), "{service}");
    }
}

#[test]
fn the_standard_calls_are_answered_as_before() {
    let (firewall, control, facts) = (firewall(), control(), Facts::default());
    let mut services = FirewallServices::new(&firewall, &control, &facts);
    let mut session = services.start(&call("qubes.SetDateTime", None)).unwrap();
    assert!(matches!(session, Session::Standard(_)));
    let mut buffer = [0; 16];
    assert_eq!(services.poll(&mut session, &mut buffer), Progress::Waiting);
    services.stdin(&mut session, b"2026-01-01\n");
    services.stdin_end(&mut session);
    assert_eq!(services.poll(&mut session, &mut buffer), Progress::Exit(ExitCode::SUCCESS));
}
