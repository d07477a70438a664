//! Datagrams in fragments through the loop: collected, judged, and their pieces fetched and sent.

use super::*;
use crate::tests::fragments::{joined, split};

const WEB: (Ipv4Addr, u16) = (SERVER, 443);

/// The three fragments of a datagram to this port.
fn fragments(port: u16) -> Vec<Build> {
    let whole = Build::udp((A, 5000), (SERVER, port)).payload(3000).with(|b| b.fragment = 0);
    split(&whole, &[1480, 1000])
}

/// Hands the frames in, in one turn.
fn arrive(rig: &mut Rig, origin: Origin, parts: &[Build]) -> Vec<(PortId, Vec<u8>)> {
    rig.machine.frames.extend(parts.iter().map(|part| (origin, part.frame())));
    rig.machine.sent.clear();
    rig.turn();
    rig.machine.sent.iter().filter(|(_, frame)| frame[12..14] == [8, 0]).cloned().collect()
}

fn rig() -> Rig {
    let mut rig = Rig::up();
    rig.write("/qubes-firewall/10.137.0.10/0000", "action=accept proto=udp dstports=443-443");
    rig.write("/qubes-firewall/10.137.0.10", "");
    rig.turn();
    rig
}

#[test]
fn a_datagram_in_fragments_is_collected_judged_and_sent_in_pieces() {
    let mut rig = rig();
    let parts = fragments(443);
    assert!(arrive(&mut rig, FROM_A, &parts[1..]).is_empty(), "the first one is missing");
    assert!(!rig.has_line("fw: first packet forwarded"));
    let sent = arrive(&mut rig, FROM_A, &parts[..1]);
    let whole = joined(&sent, PortId::Uplink);
    assert_eq!((whole.src(), whole.dst(), whole.dport()), (OWN, SERVER, 443));
    assert!(rig.has_line("fw: first packet forwarded"));
    assert!(arrive(&mut rig, FROM_A, &[]).is_empty(), "nothing is left");

    let back = Build::udp(WEB, (OWN, whole.sport())).payload(3000).with(|b| b.fragment = 0).up();
    let sent = arrive(&mut rig, Origin::Uplink, &split(&back, &[1480, 1000]));
    let whole = joined(&sent, PortId::Client(ID_A));
    assert_eq!((whole.src(), whole.dst(), whole.dport()), (SERVER, A, 5000));
}

#[test]
fn two_datagrams_in_one_batch_both_leave() {
    let mut rig = rig();
    let mut parts = fragments(443);
    parts.extend(fragments(443).into_iter().map(|part| part.with(|b| b.id = 0x4321)));
    let sent = arrive(&mut rig, FROM_A, &parts);
    let (first, second) = sent.split_at(sent.len() / 2);
    joined(first, PortId::Uplink);
    joined(second, PortId::Uplink);
}

#[test]
fn no_piece_of_a_forbidden_datagram_leaves() {
    let mut rig = rig();
    let sent = arrive(&mut rig, FROM_A, &fragments(80));
    assert_eq!(sent.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [PortId::Client(ID_A)]);
    // ICMP, type 3, code 13.
    assert_eq!((sent[0].1[23], &sent[0].1[34..36]), (1, &[3u8, 13][..]));
    assert!(arrive(&mut rig, FROM_A, &[]).is_empty());
}

#[test]
fn pieces_wait_for_memory() {
    let mut rig = rig();
    rig.machine.has_no_pages = true;
    assert!(arrive(&mut rig, FROM_A, &fragments(443)).is_empty());
    rig.machine.has_no_pages = false;
    joined(&arrive(&mut rig, FROM_A, &[]), PortId::Uplink);
}

#[test]
fn pieces_that_wait_do_not_leave_once_the_rules_forbid_them() {
    let mut rig = rig();
    rig.machine.has_no_pages = true;
    assert!(arrive(&mut rig, FROM_A, &fragments(443)).is_empty());
    assert!(rig.event_loop.firewall.next_piece_len().is_some());
    rig.write("/qubes-firewall/10.137.0.10/0000", "action=drop");
    rig.write("/qubes-firewall/10.137.0.10", "");
    rig.turn();
    rig.machine.has_no_pages = false;
    assert!(arrive(&mut rig, FROM_A, &[]).is_empty());
    assert_eq!(rig.event_loop.firewall.next_piece_len(), None);
}

#[test]
fn a_datagram_that_stays_incomplete_is_forgotten_in_time() {
    let mut rig = rig();
    arrive(&mut rig, FROM_A, &fragments(443)[..2]);
    let wake = rig.machine.deadlines.last().copied().flatten().unwrap();
    assert!(wake.as_nanos() <= rig.machine.now_ns + 30_000_000_000, "the loop wakes up for it");
    rig.machine.now_ns += 31_000_000_000;
    rig.turn();
    assert!(rig.has_line("fw: drop reason=fragment-timeout origin=client new=1 count=1"));
    assert!(arrive(&mut rig, FROM_A, &fragments(443)[2..]).is_empty());
}
