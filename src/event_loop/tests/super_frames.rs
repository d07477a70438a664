//! Super-frames through the loop: their tail goes with them, stays behind, or is cut up into pages.

use super::*;
use crate::frame::{Checksum, Gso, GsoKind};
use crate::testing::ACK;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const HEAD: usize = 256;
const TAKES_ALL: PortCaps =
    PortCaps { accepts_blank_v4: true, accepts_gso_v4: true, ..PortCaps::PLAIN };

fn rig(caps: PortCaps) -> Rig {
    let mut rig = Rig::up();
    rig.machine
        .changes
        .push_back(Change::UplinkUp { port: UplinkPort { mac: MAC_UP, caps }, backend: 1 });
    rig.turn();
    rig
}

fn super_frame(port: u16) -> Build {
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
    let build = Build::tcp((A, 5000), (SERVER, port), ACK).payload(20_000).blank();
    build.with(|b| b.offload.gso = gso)
}

/// Hands it in; what was sent, with its offload.
fn arrive(rig: &mut Rig, build: &Build) -> Vec<(PortId, Vec<u8>, Offload)> {
    rig.machine.supers.push_back((FROM_A, build.frame(), HEAD, build.offload));
    rig.machine.sent.clear();
    rig.machine.offloads.clear();
    rig.turn();
    let sent = rig.machine.sent.iter().cloned().zip(rig.machine.offloads.iter().copied());
    let sent = sent.filter(|((_, frame), _)| frame[12..14] == [8, 0]);
    sent.map(|((to, frame), offload)| (to, frame, offload)).collect()
}

#[test]
fn a_super_frame_leaves_with_its_tail() {
    let mut rig = rig(TAKES_ALL);
    let build = super_frame(443);
    let sent = arrive(&mut rig, &build);
    assert_eq!(sent.len(), 1);
    let (to, frame, offload) = &sent[0];
    assert_eq!((*to, *offload), (PortId::Uplink, build.offload));
    assert_eq!(frame.len(), build.frame().len());
    assert!(frame[HEAD..] == build.frame()[HEAD..], "another payload");
    assert!(rig.has_line("fw: first packet forwarded"));
}

#[test]
fn a_super_frame_is_cut_up_for_an_uplink_that_does_not_take_it() {
    let mut rig = rig(PortCaps::PLAIN);
    let build = super_frame(443);
    let sent = arrive(&mut rig, &build);
    assert_eq!(sent.len(), 14);
    let mut payload: Vec<u8> = vec![];
    for (to, frame, offload) in &sent {
        assert_eq!(*to, PortId::Uplink);
        assert_eq!(*offload, Offload { checksum: Checksum::Validated, gso: None });
        assert!(frame.len() <= 1514);
        payload.extend(&frame[54..]);
    }
    assert!(payload == build.frame()[54..], "another stream");
    assert!(rig.has_line("fw: first packet forwarded"));
}

#[test]
fn an_answer_leaves_without_the_tail() {
    let mut rig = rig(TAKES_ALL);
    let sent = arrive(&mut rig, &super_frame(80));
    assert_eq!(sent.len(), 1);
    let (to, frame, _) = &sent[0];
    assert_eq!((*to, frame[23], &frame[34..36]), (PortId::Client(ID_A), 1, &[3u8, 13][..]));
    assert_eq!(frame.len(), 14 + 20 + 8 + HEAD - 14);
}

#[test]
fn segments_that_find_no_page_are_counted_and_the_next_frame_is_not_their_concern() {
    let mut rig = rig(PortCaps::PLAIN);
    rig.machine.pages = Some(5);
    assert_eq!(arrive(&mut rig, &super_frame(443)).len(), 5);
    assert!(rig.has_line("fw: drop reason=segments-lost origin=client new=9 count=9"));
    rig.machine.pages = None;
    assert_eq!(arrive(&mut rig, &super_frame(443)).len(), 14);
}

#[test]
fn frames_in_several_pages_that_are_no_super_frames_are_dropped() {
    let mut rig = rig(TAKES_ALL);
    let build = Build::udp((A, 5000), WEB).payload(3000);
    assert!(arrive(&mut rig, &build).is_empty());
    assert!(rig.has_line("fw: drop reason=scattered origin=client new=1 count=1"));
}
