//! Super-frames by their heads alone: passed on whole, re-addressed, followed, refused.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use crate::frame::MIN_HEAD_BYTES;
use crate::testing::v6::*;
use crate::testing::*;
use crate::visible::{MappedIp, Visible};
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const WEB6: (Ipv6Addr, u16) = (SERVER6, 443);
const HERE: (Ipv4Addr, u16) = (A, 40_000);
const HERE6: (Ipv6Addr, u16) = (A6, 40_000);
const UPLINK: PortId = PortId::Uplink;
const TO_A: PortId = PortId::Client(ID_A);
const HEAD: usize = MIN_HEAD_BYTES;
/// The longest payload of TCP behind headers without options.
const MOST: usize = 65_535 - 40;
const MOST6: usize = 65_535 - 60;
pub(super) const ALL: PortCaps = PortCaps { accepts_gso_v4: true, accepts_gso_v6: true, ..CAPS };

/// A firewall with both families whose ports have these capabilities.
pub(super) fn kit(caps: PortCaps) -> Kit {
    let mut kit = Kit::new6();
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps }));
    kit.fw.detach_client(ID_A);
    let port = ClientPort { caps, ip6: Some(A6), ..vif(10, MAC_A, A) };
    kit.fw.attach_client(ID_A, port).unwrap();
    kit
}

pub(super) fn gso4(build: Build, size: u16) -> Build {
    build.blank().with(|b| b.offload.gso = Some(Gso { kind: GsoKind::TcpV4, size }))
}

pub(super) fn gso6(build: Build6, size: u16) -> Build6 {
    build.blank().with(|b| b.offload.gso = Some(Gso { kind: GsoKind::TcpV6, size }))
}

impl Kit {
    fn head4(&mut self, origin: Origin, build: &Build, head: usize) -> Vec<Out> {
        self.scattered(origin, &build.frame(), head, build.offload)
    }

    fn head6(&mut self, origin: Origin, build: &Build6, head: usize) -> Vec<Out> {
        self.scattered(origin, &build.frame(), head, build.offload)
    }
}

#[track_caller]
fn only(mut outs: Vec<Out>) -> Out {
    assert_eq!(outs.len(), 1);
    outs.remove(0)
}

#[test]
fn the_longest_super_frame_goes_out_and_in_by_its_head_and_is_the_same_but_for_its_ends() {
    let mut kit = kit(ALL);
    let port = kit.connect(HERE, WEB);
    let data = |from, to| Build::tcp(from, to, ACK).numbers(0x1000_2001, 0x7001).payload(MOST);
    let sent = gso4(data(HERE, WEB), 1448);
    let out = only(kit.head4(FROM_A, &sent, HEAD));
    let expected = gso4(data((OWN, port), WEB), 1448).with(|b| b.ttl = 63);
    assert_eq!(out.assert_sent(UPLINK).offload, sent.offload);
    assert!(out.packet() == expected.packet(), "not the same");

    let back = |from, to| Build::tcp(from, to, ACK).numbers(0x7001, 0x1000_2001).payload(MOST);
    let sent = gso4(back(WEB, (OWN, port)), 1400).up();
    let out = only(kit.head4(Origin::Uplink, &sent, 300));
    let expected = gso4(back(WEB, HERE), 1400).with(|b| b.ttl = 63);
    assert_eq!(out.assert_sent(TO_A).offload, sent.offload);
    assert!(out.packet() == expected.packet(), "not the same");
}

#[test]
fn the_same_over_ipv6() {
    let mut kit = kit(ALL);
    let port = kit.connect6(HERE6, WEB6);
    let data = |from, to| Build6::tcp(from, to, ACK).numbers(0x1000_2001, 0x7001).payload(MOST6);
    let sent = gso6(data(HERE6, WEB6), 1428);
    let out = only(kit.head6(FROM_A, &sent, HEAD));
    let expected = gso6(data((OWN6, port), WEB6), 1428).with(|b| b.hop_limit = 63);
    assert_eq!(out.assert_sent(UPLINK).offload, sent.offload);
    assert!(out.packet() == expected.packet(), "not the same");

    let back = |from, to| Build6::tcp(from, to, ACK).numbers(0x7001, 0x1000_2001).payload(MOST6);
    let sent = gso6(back(WEB6, (OWN6, port)), 1428).up();
    let out = only(kit.head6(Origin::Uplink, &sent, HEAD));
    let expected = gso6(back(WEB6, HERE6), 1428).with(|b| b.hop_limit = 63);
    assert!(out.assert_sent(TO_A).packet() == expected.packet(), "not the same");
}

#[test]
fn between_clients_nothing_but_the_time_to_live_changes() {
    let mut kit = kit(ALL);
    kit.fw.detach_client(ID_B);
    kit.fw.attach_client(ID_B, ClientPort { caps: ALL, ..vif(11, MAC_B, B) }).unwrap();
    kit.set_rules(B, rules(&["action=accept"]));
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    kit.a(&Build::tcp(HERE, (B, 22), SYN).numbers(0x1000_2000, 0));
    let data = Build::tcp(HERE, (B, 22), ACK).numbers(0x1000_2001, 0x7001).payload(30_000);
    let sent = gso4(data, 1448);
    let out = only(kit.head4(FROM_A, &sent, HEAD));
    out.assert_sent(PortId::Client(ID_B));
    assert!(out.packet() == sent.with(|b| b.ttl = 63).packet(), "not the same");
}

#[test]
fn a_client_with_a_hidden_address_gets_and_sends_super_frames() {
    let (address, gateway) = (Ipv4Addr::new(192, 168, 1, 128), Ipv4Addr::new(192, 168, 1, 1));
    for caps in [ALL, CAPS] {
        let mut kit = kit(caps);
        let mapped = MappedIp { real: A, visible: Visible::As { address, gateway } };
        kit.set_network(|config| config.mapped = vec![mapped]);
        let data = Build::tcp((address, 40_000), WEB, ACK).payload(9000);
        for out in kit.head4(FROM_A, &gso4(data, 1448), HEAD) {
            assert_eq!((out.assert_sent(UPLINK).src(), out.dst()), (OWN, SERVER));
        }
        let back = Build::tcp(WEB, (OWN, 40_000), ACK).numbers(0x2000, 0x1001).payload(9000);
        let outs = kit.head4(Origin::Uplink, &gso4(back, 1448).up(), HEAD);
        assert_eq!(outs.len(), if caps == ALL { 1 } else { 7 });
        for out in outs {
            assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (SERVER, address));
        }
    }
}

#[test]
fn a_connection_is_followed_over_the_whole_payload() {
    let mut kit = kit(ALL);
    let port = kit.connect(HERE, WEB);
    let data = Build::tcp(HERE, WEB, ACK).numbers(0x1000_2001, 0x7001).payload(60_000);
    let end = 0x1000_2001 + 60_000;
    let ack = |number| Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, number);
    kit.up(ack(end)).assert_dropped(DropReason::TcpOutOfWindow);
    only(kit.head4(FROM_A, &gso4(data, 1448), HEAD)).assert_sent(UPLINK);
    kit.up(ack(end + 1)).assert_dropped(DropReason::TcpOutOfWindow);
    kit.up(ack(end)).assert_sent(TO_A);
    // What comes in moves on by all of it, too: a reset has to be where it ends.
    let back = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, end).payload(50_000);
    only(kit.head4(Origin::Uplink, &gso4(back, 1448).up(), HEAD)).assert_sent(TO_A);
    let answer = Build::tcp(HERE, WEB, ACK).numbers(end, 0x7001 + 50_000);
    kit.a(&answer).assert_sent(UPLINK);
    let early = Build::tcp(WEB, (OWN, port), RST).numbers(0x7001, 0);
    kit.up(early).assert_dropped(DropReason::TcpOutOfWindow);
    kit.up(Build::tcp(WEB, (OWN, port), RST).numbers(0x7001 + 50_000, 0)).assert_sent(TO_A);
}

#[test]
fn what_the_rules_refuse_is_answered_with_a_quote_of_the_head() {
    let mut kit = kit(ALL);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.set_rules6(A6, rules6(&["action=drop"]));
    let sent = gso4(Build::tcp(HERE, WEB, ACK).payload(MOST), 1448);
    for head in [HEAD, 700, 4000] {
        let out = only(kit.head4(FROM_A, &sent, head));
        out.assert_refused(ID_A, 3, 13);
        let quoted = (head - 14).min(576 - 28);
        assert_eq!(out.l4()[8..], sent.packet()[..quoted], "{head}");
        assert_eq!(out.offload, Offload { checksum: Checksum::Validated, gso: None });
    }
    let sent = gso6(Build6::tcp(HERE6, WEB6, ACK).payload(MOST6), 1428);
    let out = only(kit.head6(FROM_A, &sent, HEAD));
    out.assert_refused(ID_A, 1, 1);
    assert_eq!(out.l4()[8..], sent.packet()[..HEAD - 14]);
}

#[test]
fn a_connection_that_the_rules_no_longer_accept_is_reset() {
    let mut kit = kit(ALL);
    kit.connect(HERE, WEB);
    kit.set_rules(A, rules(&["action=drop"]));
    let data = Build::tcp(HERE, WEB, ACK).numbers(0x1000_2001, 0x7001).payload(20_000);
    let out = only(kit.head4(FROM_A, &gso4(data, 1448), HEAD));
    out.assert_sent(TO_A);
    assert_eq!((out.bytes.len(), out.l4()[13], &out.l4()[4..8]), (54, RST, &[0, 0, 0x70, 1][..]));
}

#[test]
fn the_sender_is_told_if_segments_are_too_large_and_must_stay_so() {
    let caps = [ALL, CAPS].map(|caps| PortCaps { mtu: 1400, ..caps });
    for caps in caps {
        let mut kit = kit(caps);
        let sent = gso4(Build::tcp(HERE, WEB, ACK).payload(9000), 1361);
        let out = only(kit.head4(FROM_A, &sent, HEAD));
        out.assert_refused(ID_A, 3, 4);
        assert_eq!((out.word(4), out.word(6)), (0, 1400));
        assert_eq!(out.l4()[8..], sent.packet()[..HEAD - 14], "as it was sent");
        let fits = gso4(Build::tcp(HERE, WEB, ACK).payload(9000), 1360);
        kit.head4(FROM_A, &fits, HEAD)[0].assert_sent(UPLINK);

        let sent = gso6(Build6::tcp(HERE6, WEB6, ACK).payload(9000), 1341);
        let out = only(kit.head6(FROM_A, &sent, HEAD));
        out.assert_refused(ID_A, 2, 0);
        assert_eq!((out.word(4), out.word(6)), (0, 1400));
        let fits = gso6(Build6::tcp(HERE6, WEB6, ACK).payload(9000), 1340);
        kit.head6(FROM_A, &fits, HEAD)[0].assert_sent(UPLINK);
    }
}

#[test]
fn ipv4_without_dont_fragment_gets_smaller_segments() {
    let sent = gso4(Build::tcp(HERE, WEB, ACK).payload(9000), 1460).with(|b| b.fragment = 0);
    let out = only(kit(PortCaps { mtu: 1400, ..ALL }).head4(FROM_A, &sent, HEAD));
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1360 });
    assert_eq!(out.assert_sent(UPLINK).offload, Offload { checksum: Checksum::Blank, gso });
    let outs = kit(PortCaps { mtu: 1400, ..CAPS }).head4(FROM_A, &sent, HEAD);
    assert_eq!(outs.len(), 7);
    assert!(outs.iter().all(|out| out.assert_sent(UPLINK).packet().len() <= 1400));
    // Nothing fits.
    let out = only(kit(PortCaps { mtu: 40, ..ALL }).head4(FROM_A, &sent, HEAD));
    out.assert_dropped(DropReason::TooBig);
}

#[test]
fn contradictions_are_dropped() {
    let illegal = |build: &Build, reason| {
        for caps in [ALL, CAPS] {
            only(kit(caps).head4(FROM_A, build, HEAD)).assert_dropped(reason);
        }
    };
    let good = gso4(Build::tcp(HERE, WEB, ACK).payload(5000), 1448);
    let gso = |kind, size| good.clone().with(|b| b.offload.gso = Some(Gso { kind, size }));
    illegal(&gso(GsoKind::TcpV4, 0), DropReason::GsoIllegal);
    illegal(&gso(GsoKind::TcpV4, 5000), DropReason::GsoIllegal);
    illegal(&gso(GsoKind::TcpV4, 5001), DropReason::GsoIllegal);
    illegal(&gso(GsoKind::TcpV6, 1448), DropReason::GsoIllegal);
    let flags = |flags| gso4(Build::tcp(HERE, WEB, flags).payload(5000), 1448);
    illegal(&flags(SYN), DropReason::GsoIllegal);
    illegal(&flags(RST), DropReason::GsoIllegal);
    let udp = gso4(Build::udp(HERE, WEB).payload(5000), 1448);
    illegal(&udp, DropReason::GsoIllegal);
    let icmp = gso4(Build::icmp(A, SERVER, 8, 0, [0; 4], &[0; 5000]), 1448);
    illegal(&icmp, DropReason::BlankIllegal);
    let fragment = good.clone().with(|b| b.fragment = 0x2000);
    illegal(&fragment, DropReason::BlankIllegal);
    illegal(&good.clone().with(|b| b.offload.checksum = Checksum::Full), DropReason::Scattered);
    illegal(&good.clone().with(|b| b.offload.gso = None), DropReason::Scattered);
    let long_header = gso(GsoKind::TcpV4, 1420).with(|b| b.l4[12] = 0xf0);
    kit(ALL).head4(FROM_A, &long_header, HEAD)[0].assert_sent(UPLINK);
    let short_header = good.with(|b| b.l4[12] = 0x40);
    illegal(&short_header, DropReason::TransportHeader);
}

#[test]
fn a_super_frame_has_a_partial_checksum_in_one_page_too() {
    let good = gso4(Build::tcp(HERE, WEB, ACK).payload(3000), 1448);
    let full = good.clone().checksummed(16).with(|b| b.offload.checksum = Checksum::Full);
    kit(ALL).a(&full).assert_dropped(DropReason::GsoIllegal);
    kit(ALL).a(&good).assert_sent(UPLINK);
}

#[test]
fn a_length_that_is_not_that_of_the_frame_is_a_contradiction() {
    let good = gso4(Build::tcp(HERE, WEB, ACK).payload(5000), 1448);
    let mut longer = good.frame();
    longer.extend([0; 6]);
    let handled = |bytes: &[u8]| only(kit(ALL).scattered(FROM_A, bytes, HEAD, good.offload));
    handled(&longer).assert_dropped(DropReason::GsoIllegal);
    handled(&good.frame()[..5000]).assert_dropped(DropReason::Ipv4Header);
    let good = gso6(Build6::tcp(HERE6, WEB6, ACK).payload(5000), 1428);
    let mut longer = good.frame();
    longer.push(0);
    let handled = |bytes: &[u8]| only(kit(ALL).scattered(FROM_A, bytes, HEAD, good.offload));
    handled(&longer).assert_dropped(DropReason::GsoIllegal);
    handled(&good.frame()[..5000]).assert_dropped(DropReason::Ipv6Header);
}

#[test]
fn ipv6_with_extension_headers_is_no_super_frame() {
    let plain = Build6::tcp(HERE6, WEB6, ACK).payload(5000);
    let (pad, route) = ([0, 0, 1, 4, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0, 0, 0]);
    // The last belongs to a datagram that is whole (RFC 6946).
    for (number, content) in [(0, pad), (60, pad), (43, route), (44, [0; 8])] {
        let sent = gso6(plain.clone().extended(number, &content), 1400);
        only(kit(ALL).head6(FROM_A, &sent, HEAD)).assert_dropped(DropReason::GsoIllegal);
    }
    // More of them than the head holds.
    let long = [&[0, 31, 1, 253][..], &[0; 252]].concat();
    let sent = gso6(plain.clone().extended(60, &long), 1400);
    only(kit(ALL).head6(FROM_A, &sent, HEAD)).assert_dropped(DropReason::ExtensionHeader);
    let fragment = gso6(plain.extended(44, &[0, 0, 0, 1, 0, 0, 0, 9]), 1400);
    only(kit(ALL).head6(FROM_A, &fragment, HEAD)).assert_dropped(DropReason::BlankIllegal);
}

#[test]
fn a_head_without_all_headers_is_nothing() {
    let sent = gso4(Build::tcp(HERE, WEB, ACK).payload(5000), 1448);
    for head in 0..HEAD {
        only(kit(ALL).head4(FROM_A, &sent, head)).assert_dropped(DropReason::Scattered);
    }
    // Neighbours speak in whole frames.
    let offload = sent.offload;
    let mut long = arp(1, (MAC_A, A), (Mac([0; 6]), OWN));
    long.resize(5000, 0);
    only(kit(ALL).scattered(FROM_A, &long, HEAD, offload)).assert_dropped(DropReason::Scattered);
    let nd = Build6::nd((A6, OWN6), 135, 0, OWN6, (1, MAC_A)).payload(5000);
    let offload = Offload { gso: Some(Gso { kind: GsoKind::TcpV6, size: 700 }), ..offload };
    let out = only(kit(ALL).scattered(FROM_A, &nd.frame(), HEAD, offload));
    out.assert_dropped(DropReason::Scattered);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_heads_never_panic_and_what_leaves_is_whole(
        edits in proptest::collection::vec((12usize..120, any::<u8>()), 0..5),
        head in 0usize..400,
        size: u16,
        payload in 0usize..6000,
        is_v6: bool,
        is_up: bool,
        takes: bool,
    ) {
        let mut kit = kit(if takes { ALL } else { CAPS });
        let (port, port6) = (kit.connect(HERE, WEB), kit.connect6(HERE6, WEB6));
        let (mut frame, offload) = match (is_v6, is_up) {
            (false, false) => {
                let b = gso4(Build::tcp(HERE, WEB, ACK).payload(payload), size);
                (b.frame(), b.offload)
            }
            (false, true) => {
                let b = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, 0x1000_2001);
                let b = gso4(b.payload(payload), size).up();
                (b.frame(), b.offload)
            }
            (true, false) => {
                let b = gso6(Build6::tcp(HERE6, WEB6, ACK).payload(payload), size);
                (b.frame(), b.offload)
            }
            (true, true) => {
                let b = Build6::tcp(WEB6, (OWN6, port6), ACK).numbers(0x7001, 0x1000_2001);
                let b = gso6(b.payload(payload), size).up();
                (b.frame(), b.offload)
            }
        };
        for (at, value) in edits {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if !is_v6 {
            let header_len = (usize::from(frame[14] & 0xf) * 4).max(20);
            frame[24..26].fill(0);
            let checksum = !sum(&[&frame[14..14 + header_len]]);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        let origin = if is_up { Origin::Uplink } else { FROM_A };
        let head = head.min(frame.len());
        for out in kit.scattered(origin, &frame, head, offload) {
            if matches!(out.fate, Fate::Send(_)) {
                let ip = out.packet();
                let length = match ip[0] >> 4 {
                    4 => usize::from(u16::from_be_bytes([ip[2], ip[3]])),
                    _ => 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])),
                };
                prop_assert_eq!(length, ip.len());
                prop_assert!(out.offload.gso.is_some() || ip.len() <= 1500);
            }
        }
    }
}
