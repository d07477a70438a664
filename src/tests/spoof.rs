//! S4 (RFC 2827, RFC 3704): who may use which source, on every port, in packets and in ARP.

use core::net::Ipv4Addr;

use crate::testing::*;
use crate::visible::{MappedIp, Visible};
use crate::*;

/// B is told this address, and dom0 lists it in place of B's own one.
const VISIBLE_B: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 128);
/// A client with a public address (property `ip` of the qube).
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);
const PUBLIC_ID: ClientId = ClientId(2);
const FROM_PUBLIC: Origin = Origin::Client(PUBLIC_ID);

fn kit() -> Kit {
    let mut kit = Kit::new();
    kit.set_network(|config| {
        config.connected = vec![A.into(), VISIBLE_B.into(), ABSENT.into(), PUBLIC.into()];
        let visible = Visible::As { address: VISIBLE_B, gateway: [192, 168, 1, 1].into() };
        config.mapped = vec![MappedIp { real: B, visible }];
    });
    kit.fw.attach_client(PUBLIC_ID, vif(12, MAC_A, PUBLIC)).unwrap();
    kit.set_rules(PUBLIC, rules(&["action=accept"]));
    kit
}

const SOURCES: [Ipv4Addr; 10] = [
    A,
    B,
    VISIBLE_B,
    ABSENT,
    PUBLIC,
    OWN,
    NETVM,
    SERVER,
    Ipv4Addr::new(10, 137, 0, 99),
    Ipv4Addr::new(203, 0, 113, 201),
];

#[test]
fn s4_every_port_has_its_own_sources() {
    for (origin, allowed) in [
        (FROM_A, &[A][..]),
        (FROM_B, &[VISIBLE_B]),
        (FROM_PUBLIC, &[PUBLIC]),
        (Origin::Uplink, &SOURCES[6..]),
    ] {
        for source in SOURCES {
            let mut kit = kit();
            let is_from_client = origin != Origin::Uplink;
            let to = if is_from_client { OTHER_SERVER } else { OWN };
            let build = Build::udp((source, 5000), (to, 53));
            let build = if is_from_client { build } else { build.up() };
            let out = kit.send(origin, &build);
            let is_spoofed = out.fate == Fate::Drop(DropReason::SourceSpoofed);
            assert_eq!(is_spoofed, !allowed.contains(&source), "{origin:?} {source}");
            assert_eq!(out.fate == Fate::Send(PortId::Uplink), is_from_client && !is_spoofed);
        }
    }
}

#[test]
fn s4_arp_senders_are_checked_like_sources() {
    let macs = [(FROM_A, MAC_A, A), (FROM_B, MAC_B, VISIBLE_B), (FROM_PUBLIC, MAC_A, PUBLIC)];
    for (origin, mac, own) in macs {
        for sender in SOURCES {
            let mut kit = kit();
            let ask = arp(1, (mac, sender), (Mac([0; 6]), Ipv4Addr::new(10, 137, 0, 77)));
            let out = kit.bytes(origin, &ask, Offload::default());
            let is_spoofed = out.fate == Fate::Drop(DropReason::ArpSpoofed);
            assert_eq!(is_spoofed, sender != own, "{origin:?} {sender}");
        }
    }
    for sender in SOURCES {
        let mut kit = kit();
        let ask = arp(1, (MAC_UP, sender), (Mac([0; 6]), OWN));
        let out = kit.bytes(Origin::Uplink, &ask, Offload::default());
        let is_spoofed = out.fate == Fate::Drop(DropReason::ArpSpoofed);
        assert_eq!(is_spoofed, !SOURCES[6..].contains(&sender), "{sender}");
    }
}

/// Row 9 of the packet path: nothing for an address of a client leaves towards the uplink, whoever sends it and
/// whether the client is there or not.
#[test]
fn s4_nothing_for_a_client_leaves_upstream() {
    for (origin, own) in [(FROM_A, A), (FROM_B, VISIBLE_B), (FROM_PUBLIC, PUBLIC)] {
        for target in [A, B, VISIBLE_B, ABSENT, PUBLIC] {
            for is_opened in [false, true] {
                let mut kit = kit();
                if is_opened {
                    // A way to a client that is not there leads nowhere either.
                    kit.expose(&format!("fw-allow={A}>{ABSENT},{B}>{ABSENT},{PUBLIC}>{ABSENT}"));
                }
                for build in [
                    Build::udp((own, 5000), (target, 5001)),
                    Build::tcp((own, 5000), (target, 22), SYN),
                    Build::query(own, target, 8, 7),
                    Build::raw(own, target, 47, vec![0; 8]),
                ] {
                    let out = kit.send(origin, &build);
                    assert_ne!(out.fate, Fate::Send(PortId::Uplink), "{origin:?} {target}");
                }
                let sent =
                    kit.fw.stats().uplink().counters().find(|(name, _)| *name == "sent-frames");
                assert_eq!(sent.map(|(_, n)| n), Some(0));
            }
        }
    }
}

#[test]
fn a_client_with_a_public_address_is_a_client_like_any_other() {
    let mut kit = kit();
    let out = kit.send(FROM_PUBLIC, &Build::udp((PUBLIC, 5000), (SERVER, 53)));
    assert_eq!(out.assert_sent(PortId::Uplink).src(), OWN);
    let reply = Build::udp((SERVER, 53), (OWN, out.sport()));
    assert_eq!(kit.up(reply).assert_sent(PortId::Client(PUBLIC_ID)).dst(), PUBLIC);
    kit.up(Build::udp((SERVER, 53), (PUBLIC, 5000))).assert_dropped(DropReason::NotOurAddress);
    kit.a(&Build::tcp((A, 1), (PUBLIC, 22), SYN)).assert_dropped(DropReason::ClientIsolation);
    kit.expose(&format!("fw-allow={A}>{PUBLIC}/tcp/22"));
    let out = kit.a(&Build::tcp((A, 1), (PUBLIC, 22), SYN));
    assert_eq!(out.assert_sent(PortId::Client(PUBLIC_ID)).src(), A);
    kit.set_rules(PUBLIC, rules(&["action=drop"]));
    let out = kit.send(FROM_PUBLIC, &Build::udp((PUBLIC, 5001), (SERVER, 53)));
    out.assert_refused(PUBLIC_ID, 3, 13);
}
