//! Requirements of NAT and rules that are about many flows or whole rule sets, through the whole pipeline.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use rules::{CompiledSet, Family, RuleSet};

use crate::testing::*;
use crate::*;

const ACCEPT: &[&str] = &["action=accept"];

fn state(entries: &[(&str, &str)]) -> RulesState {
    let entries = entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    let set = RuleSet::parse(Family::V4, entries).and_then(CompiledSet::new);
    set.map_or(RulesState::Refused, RulesState::Active)
}

/// Whether each destination port of 80, 443 and 22 is let out.
fn open_ports(state: RulesState) -> [bool; 3] {
    let mut kit = Kit::new();
    kit.set_rules(A, state);
    [80, 443, 22].map(|port| {
        let out = kit.a(&Build::tcp((A, 40_000 + port), (SERVER, port), SYN));
        out.fate == Fate::Send(PortId::Uplink)
    })
}

#[test]
fn q1_a_set_with_an_error_anywhere_lets_nothing_out() {
    let good = [("policy", "drop"), ("0000", "action=accept proto=tcp dstports=80-80")];
    assert_eq!(open_ports(state(&good)), [true, false, false]);
    for bad in [
        ("0001", "action=accept proto=tcp dstports=443"),
        ("0001", "dstports=443 proto=tcp action=accept"),
    ] {
        assert_eq!(
            open_ports(state(&[good[0], good[1], bad])),
            [true, true, false],
            "order is free"
        );
    }
    for bad in [
        ("0001", "action=accept proto=sctp"),
        ("0001", "action=accept unknown=1"),
        ("0001", "action=accept action=accept"),
        ("0001", "action=accept dst4=1.2.3.4/33"),
        ("0001", "action=accept dstports=9-1"),
        ("0001", ""),
        ("0000", "action=accept"),
        ("policy", "drop"),
        ("unknown", "1"),
        ("00001", "action=accept"),
    ] {
        let refused = state(&[good[0], good[1], bad]);
        assert!(matches!(refused, RulesState::Refused), "{bad:?}");
        assert_eq!(open_ports(refused), [false; 3], "{bad:?}");
    }
    assert_eq!(open_ports(state(&good[1..])), [false; 3], "without policy");
}

#[test]
fn q1_a_refused_set_is_told_to_its_client_alone() {
    let mut kit = Kit::new();
    kit.set_rules(A, state(&[("policy", "accept"), ("0000", "nonsense")]));
    let out = kit.a(&Build::udp((A, 40_000), (SERVER, 53)));
    out.assert_refused(ID_A, 3, 13);
    kit.b(&Build::udp((B, 40_000), (SERVER, 53))).assert_sent(PortId::Uplink);
}

#[test]
fn q2_numbers_with_gaps_a_thousand_rules_and_the_policy_behind_them() {
    let gaps = [
        ("policy", "drop"),
        ("0990", "action=accept proto=tcp dstports=22-22"),
        ("0003", "action=drop proto=tcp dstports=80-80"),
        ("0700", "action=accept proto=tcp dstports=80-443"),
    ];
    assert_eq!(open_ports(state(&gaps)), [false, true, true]);
    let keys: Vec<String> = (0..1_200).map(|n| format!("{:04}", n * 3)).collect();
    let lines = keys.iter().map(|key| (key.as_str(), "action=drop proto=tcp dstports=1-79"));
    let mut many: Vec<(&str, &str)> = lines.collect();
    many.push(("9999", "action=drop proto=tcp dstports=443-443"));
    many.push(("policy", "accept"));
    assert_eq!(open_ports(state(&many)), [true, false, false]);
}

#[test]
fn t8_60_000_connections_to_one_server_have_ports_of_their_own() {
    const EACH: u16 = 15_000;
    let limits = Limits {
        clients: 4,
        addresses: 16,
        flows: 60_000,
        flows_per_client: u32::from(EACH),
        fragment_bytes: 0,
    };
    let mut kit = Kit::with_limits(limits);
    let clients = [A, B, Ipv4Addr::new(10, 137, 0, 21), Ipv4Addr::new(10, 137, 0, 22)];
    for (slot, address) in (0..).zip(clients) {
        if slot >= 2 {
            kit.fw.attach_client(ClientId(slot), vif(20 + slot, MAC_B, address)).unwrap();
        }
        kit.set_rules(address, rules(ACCEPT));
    }
    let mut outside = BTreeSet::new();
    for n in 0..EACH {
        for (slot, address) in (0..).zip(clients) {
            // All clients use the same ports.
            let syn = Build::tcp((address, 10_000 + n), (SERVER, 443), SYN);
            let out = kit.send(Origin::Client(ClientId(slot)), &syn);
            out.assert_sent(PortId::Uplink);
            assert!(outside.insert(out.sport()), "port {} twice", out.sport());
        }
    }
    assert_eq!((outside.len(), kit.fw.flow_count()), (60_000, 60_000));
}

/// Whether each packet of A goes out, in the given order, while B does nothing or floods.
fn verdicts(packets: &[Build], order: impl Iterator<Item = usize>, is_loaded: bool) -> Vec<bool> {
    let limits = Limits {
        clients: 4,
        addresses: 16,
        flows: 1_000,
        flows_per_client: 500,
        fragment_bytes: 0,
    };
    let lines = [
        "action=drop proto=udp dstports=100-199",
        "action=accept dst4=198.51.100.0/24",
        "action=accept proto=tcp dstports=400-499",
    ];
    let mut kit = Kit::with_limits(limits).rules(A, &lines).rules(B, ACCEPT);
    let mut gone_out = vec![false; packets.len()];
    let mut flood = 0_u16;
    for at in order {
        for _ in 0..if is_loaded { 5 } else { 0 } {
            flood = flood.wrapping_add(7);
            kit.b(&Build::udp((B, flood), (OTHER_SERVER, 9)));
        }
        gone_out[at] = kit.a(&packets[at]).fate == Fate::Send(PortId::Uplink);
        // What went out goes on, also when the table is full.
        let again = kit.a(&packets[at]).fate == Fate::Send(PortId::Uplink);
        assert_eq!(again, gone_out[at]);
    }
    gone_out
}

#[test]
fn u10_verdicts_depend_neither_on_load_nor_on_order() {
    let mut seed = 12_345_u32;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    let packets: Vec<Build> = (0..400)
        .map(|n| {
            let to = ([SERVER, OTHER_SERVER][random(2) as usize], random(600) as u16 + 1);
            match random(2) {
                0 => Build::udp((A, 20_000 + n), to),
                _ => Build::tcp((A, 20_000 + n), to, SYN),
            }
        })
        .collect();
    let count = packets.len();
    let quiet = verdicts(&packets, 0..count, false);
    assert!((50..350).contains(&quiet.iter().filter(|out| **out).count()), "both occur");
    assert_eq!(quiet, verdicts(&packets, (0..count).rev(), false));
    assert_eq!(quiet, verdicts(&packets, 0..count, true));
    assert_eq!(quiet, verdicts(&packets, (0..count).rev(), true));
}
