//! Clients that are told other addresses than their real ones: the five situations that Qubes' own tests cover, as far
//! as they concern this core. Those are a client directly behind us, a client behind a proxy that is our client, a
//! hidden address of the firewall itself, two clients with one visible address, and rules, which name real addresses.

use core::net::Ipv4Addr;

use crate::testing::*;
use crate::visible::{MappedIp, Visible};
use crate::*;

const UPLINK: PortId = PortId::Uplink;
const TO_A: PortId = PortId::Client(ID_A);
const TO_B: PortId = PortId::Client(ID_B);
/// What A knows.
const VISIBLE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 128);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const WEB: (Ipv4Addr, u16) = (SERVER, 443);

fn mapping(real: Ipv4Addr) -> MappedIp {
    MappedIp { real, visible: Visible::As { address: VISIBLE, gateway: GATEWAY } }
}

fn map(kit: &mut Kit, mapped: &[MappedIp]) {
    kit.set_network(|config| {
        config.mapped = mapped.to_vec();
        // dom0 lists what the clients take for their own.
        let is_mapped = |ip| mapped.iter().any(|one| core::net::IpAddr::V4(one.real) == ip);
        config.connected.retain(|ip| !is_mapped(*ip));
        config.connected.push(VISIBLE.into());
    });
}

fn kit() -> Kit {
    let mut kit = Kit::new();
    map(&mut kit, &[mapping(A)]);
    kit
}

fn from_b(build: Build) -> Build {
    build.with(|b| b.link.1 = MAC_B)
}

#[test]
fn a_client_uses_its_visible_address_and_the_world_sees_ours() {
    let mut kit = kit();
    for build in [
        Build::udp((VISIBLE, 5000), WEB),
        Build::udp((VISIBLE, 5001), WEB).blank(),
        Build::tcp((VISIBLE, 5000), WEB, SYN),
        Build::tcp((VISIBLE, 5001), WEB, SYN).blank(),
        Build::query(VISIBLE, SERVER, 8, 7),
        Build::raw(VISIBLE, SERVER, 47, vec![0; 8]),
    ] {
        let out = kit.a(&build);
        assert_eq!((out.assert_sent(UPLINK).src(), out.dst()), (OWN, SERVER), "{build:?}");
    }
    let reply = Build::udp(WEB, (OWN, 5000));
    for reply in [reply.clone(), reply.clone().blank(), reply.with(|b| b.l4[6..8].fill(0))] {
        let out = kit.up(reply);
        assert_eq!((out.assert_sent(TO_A).dst(), out.dport(), out.src()), (VISIBLE, 5000, SERVER));
    }
    let out = kit.up(Build::tcp(WEB, (OWN, 5000), SYN | ACK).numbers(0x7000, 0x1001).blank());
    assert_eq!(out.assert_sent(TO_A).dst(), VISIBLE);
    assert_eq!(kit.up(Build::query(SERVER, OWN, 0, 7)).assert_sent(TO_A).dst(), VISIBLE);
    let dns = kit.a(&Build::udp((VISIBLE, 5003), (CLIENT_DNS[1], 53)));
    assert_eq!(dns.assert_sent(UPLINK).dst(), OWN_DNS[1]);
    let out = kit.up(Build::udp((OWN_DNS[1], 53), (OWN, dns.sport())));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (CLIENT_DNS[1], VISIBLE));
}

#[test]
fn the_state_behind_the_vif_is_that_of_the_real_address() {
    let mut kit = kit();
    kit.a(&Build::udp((VISIBLE, 5000), WEB)).assert_sent(UPLINK);
    assert_eq!((kit.fw.flows_of(A.into()), kit.fw.flows_of(VISIBLE.into())), (1, 0));
    // Rules of the visible address are nobody's.
    kit.set_rules(VISIBLE, rules(&["action=drop"]));
    kit.a(&Build::udp((VISIBLE, 5000), WEB)).assert_sent(UPLINK);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.a(&Build::udp((VISIBLE, 5000), WEB)).assert_refused(ID_A, 3, 13);
    kit.set_rules(VISIBLE, rules(&["action=accept"]));
    kit.a(&Build::udp((VISIBLE, 5000), WEB)).assert_refused(ID_A, 3, 13);
}

#[test]
fn s4_any_other_source_is_dropped() {
    let mut kit = kit();
    for source in [A, B, OWN, GATEWAY, SERVER, Ipv4Addr::new(192, 168, 1, 129)] {
        let spoofed = Build::udp((source, 1), WEB);
        kit.a(&spoofed).assert_dropped(DropReason::SourceSpoofed);
    }
    // Neither address of the client comes from the uplink or from another client.
    for source in [A, VISIBLE] {
        let spoofed = Build::udp((source, 1), (OWN, 2));
        kit.up(spoofed.clone()).assert_dropped(DropReason::SourceSpoofed);
        kit.b(&from_b(spoofed)).assert_dropped(DropReason::SourceSpoofed);
    }
    // Nothing for them leaves.
    for target in [A, VISIBLE] {
        let stray = from_b(Build::tcp((B, 1), (target, 22), SYN));
        kit.b(&stray).assert_dropped(DropReason::ClientIsolation);
    }
    kit.a(&Build::udp((VISIBLE, 1), (A, 2))).assert_dropped(DropReason::ClientIsolation);
    kit.a(&Build::udp((VISIBLE, 1), (VISIBLE, 2))).assert_dropped(DropReason::ClientIsolation);
}

#[test]
fn the_visible_gateway_answers_pings_and_nothing_else() {
    let mut kit = kit();
    let out = kit.a(&Build::query(VISIBLE, GATEWAY, 8, 9));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (GATEWAY, VISIBLE));
    assert_eq!((out.icmp(), out.icmp_id()), (Some((0, 0)), 9));
    let question = Build::tcp((VISIBLE, 1), (GATEWAY, 22), SYN);
    let out = kit.a(&question);
    assert_eq!((out.assert_refused(ID_A, 3, 10).src(), out.dst()), (GATEWAY, VISIBLE));
    assert_eq!(out.l4()[8..], question.packet()[..]);
}

#[test]
fn arp_is_answered_to_the_visible_address_and_its_mac_only() {
    let mut kit = kit();
    let ask = |mac, sender, target| arp(1, (mac, sender), (Mac([0; 6]), target));
    let out = kit.bytes(FROM_A, &ask(MAC_A, VISIBLE, GATEWAY), Offload::default());
    assert_eq!(out.fate, Fate::Send(TO_A));
    assert_eq!(out.bytes[22..28], Mac::GATEWAY.0);
    assert_eq!(
        (&out.bytes[28..32], &out.bytes[38..42]),
        (&GATEWAY.octets()[..], &VISIBLE.octets()[..])
    );
    for (mac, sender) in [(MAC_A, A), (MAC_B, VISIBLE), (MAC_A, GATEWAY)] {
        let out = kit.bytes(FROM_A, &ask(mac, sender, GATEWAY), Offload::default());
        out.assert_dropped(DropReason::ArpSpoofed);
    }
    let out = kit.bytes(FROM_A, &ask(MAC_A, VISIBLE, VISIBLE), Offload::default());
    out.assert_dropped(DropReason::ArpIgnored);
}

#[test]
fn errors_and_their_quotes_show_visible_addresses() {
    let mut kit = kit();
    // Our own.
    let question = Build::udp((VISIBLE, 5000), WEB);
    for (build, error) in
        [(question.clone().with(|b| b.ttl = 1), (11, 0)), (question.clone().payload(1500), (3, 4))]
    {
        let out = kit.a(&build);
        assert_eq!(
            (out.assert_refused(ID_A, error.0, error.1).src(), out.dst()),
            (GATEWAY, VISIBLE)
        );
        let quoted = &out.l4()[8..];
        assert_eq!(quoted, &build.packet()[..quoted.len()]);
    }
    // From outside, about the client's packet.
    let sent = kit.a(&question).assert_sent(UPLINK).packet().to_vec();
    let out = kit.up(Build::error(OTHER_SERVER, OWN, 3, 3, &sent));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (OTHER_SERVER, VISIBLE));
    let expected = question.clone().with(|b| b.ttl = 63).packet();
    assert_eq!(out.l4()[8..], expected[..]);
    // Of the client, about what it got.
    let got = kit.up(Build::udp(WEB, (OWN, 5000))).assert_sent(TO_A).packet().to_vec();
    let out = kit.a(&Build::error(VISIBLE, SERVER, 3, 3, &got));
    assert_eq!((out.assert_sent(UPLINK).src(), out.dst()), (OWN, SERVER));
    let expected = Build::udp(WEB, (OWN, 5000)).with(|b| b.ttl = 63).packet();
    assert_eq!(out.l4()[8..], expected[..]);
}

#[test]
fn resets_show_visible_addresses() {
    let mut kit = kit();
    let here = (VISIBLE, 40_000);
    kit.a(&Build::tcp(here, WEB, SYN).numbers(0x1000, 0)).assert_sent(UPLINK);
    kit.up(Build::tcp(WEB, (OWN, 40_000), SYN | ACK).numbers(0x7000, 0x1001)).assert_sent(TO_A);
    kit.set_rules(A, rules(&["action=drop"]));
    let out = kit.a(&Build::tcp(here, WEB, ACK).numbers(0x1001, 0x7001));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst(), out.dport()), (SERVER, VISIBLE, 40_000));
    assert_eq!(out.l4()[13] & RST, RST);
}

#[test]
fn two_clients_with_one_visible_address_do_not_meet() {
    let mut kit = Kit::new();
    map(&mut kit, &[mapping(A), mapping(B)]);
    let question = Build::udp((VISIBLE, 5000), WEB);
    let of_a = kit.a(&question).assert_sent(UPLINK).sport();
    let of_b = kit.b(&from_b(question)).assert_sent(UPLINK).sport();
    assert_ne!(of_a, of_b);
    for (port, to, mac) in [(of_a, TO_A, MAC_A), (of_b, TO_B, MAC_B)] {
        let out = kit.up(Build::udp(WEB, (OWN, port)));
        assert_eq!((out.assert_sent(to).dst(), &out.bytes[..6]), (VISIBLE, &mac.0[..]));
    }
    kit.set_rules(A, rules(&["action=drop"]));
    kit.a(&Build::udp((VISIBLE, 5000), WEB)).assert_refused(ID_A, 3, 13);
    kit.b(&from_b(Build::udp((VISIBLE, 5000), WEB))).assert_sent(UPLINK);
}

#[test]
fn behind_a_proxy_that_is_our_client_the_visible_address_means_nothing() {
    // The proxy hides it: to us its client does not exist.
    let mut kit = Kit::new();
    kit.a(&Build::udp((VISIBLE, 5000), WEB)).assert_dropped(DropReason::SourceSpoofed);
    kit.a(&Build::udp((A, 5000), WEB)).assert_sent(UPLINK);
}

#[test]
fn our_own_hidden_address_is_just_our_address() {
    let mut kit = Kit::new();
    kit.set_network(|config| {
        config.v4.address = Some(VISIBLE);
        config.v4.gateway = Some(GATEWAY);
        config.v4.client_gateway = Some(VISIBLE);
    });
    let out = kit.a(&Build::udp((A, 5000), WEB));
    assert_eq!(out.assert_sent(UPLINK).src(), VISIBLE);
    assert_eq!(kit.up(Build::udp(WEB, (VISIBLE, 5000))).assert_sent(TO_A).dst(), A);
    kit.a(&Build::query(A, VISIBLE, 8, 1)).assert_sent(TO_A);
}

#[test]
fn mapped_clients_may_talk_by_their_real_addresses() {
    let mut kit = kit();
    kit.expose(
        "fw-allow=10.137.0.10>10.137.0.11,10.137.0.11>10.137.0.10 fw-forward=tcp/80>10.137.0.10",
    );
    let out = kit.a(&Build::udp((VISIBLE, 1), (B, 2)));
    assert_eq!((out.assert_sent(TO_B).src(), out.dst()), (A, B));
    let out = kit.b(&from_b(Build::udp((B, 2), (A, 1))));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (B, VISIBLE));
    let out = kit.b(&from_b(Build::udp((B, 3), (A, 3))));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (B, VISIBLE));
    let out = kit.up(Build::tcp((SERVER, 1), (OWN, 80), SYN));
    assert_eq!((out.assert_sent(TO_A).dst(), out.dport()), (VISIBLE, 80));
    let out = kit.a(&Build::tcp((VISIBLE, 80), (SERVER, 1), SYN | ACK));
    assert_eq!((out.assert_sent(UPLINK).src(), out.sport()), (OWN, 80));
}

#[test]
fn mappings_are_live() {
    let mut kit = Kit::new();
    let (plain, hidden) = (Build::udp((A, 5000), WEB), Build::udp((VISIBLE, 5000), WEB));
    kit.a(&plain).assert_sent(UPLINK);
    map(&mut kit, &[mapping(A)]);
    kit.a(&plain).assert_dropped(DropReason::SourceSpoofed);
    kit.a(&hidden).assert_sent(UPLINK);
    map(&mut kit, &[MappedIp { real: A, visible: Visible::Unknown }]);
    for build in [&plain, &hidden] {
        kit.a(build).assert_dropped(DropReason::MappingUnknown);
    }
    let ask = arp(1, (MAC_A, A), (Mac([0; 6]), OWN));
    kit.bytes(FROM_A, &ask, Offload::default()).assert_dropped(DropReason::MappingUnknown);
    kit.up(Build::udp(WEB, (OWN, 5000))).assert_dropped(DropReason::NoFlow);
    map(&mut kit, &[]);
    kit.a(&hidden).assert_dropped(DropReason::SourceSpoofed);
    kit.a(&plain).assert_sent(UPLINK);
    // What is attached later knows too.
    map(&mut kit, &[mapping(ABSENT)]);
    kit.fw.attach_client(ClientId(2), vif(12, MAC_A, ABSENT)).unwrap();
    kit.set_rules(ABSENT, rules(&["action=accept"]));
    kit.send(Origin::Client(ClientId(2)), &hidden).assert_sent(UPLINK);
}
