//! Super-frames for a port that does not take them: compared with a slow cutter that shares no code with the core.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super_frames::{ALL, gso4, gso6, kit};
use crate::segment::Payload;
use crate::testing::v6::*;
use crate::testing::*;
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const WEB6: (Ipv6Addr, u16) = (SERVER6, 443);
const HERE: (Ipv4Addr, u16) = (A, 40_000);
const HERE6: (Ipv6Addr, u16) = (A6, 40_000);
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

/// Cuts a super-frame as RFC 9293 would have its sender send it, with complete checksums.
fn cut_slowly(whole: &Out, size: usize) -> Vec<Vec<u8>> {
    let ip = whole.packet();
    let is_v4 = ip[0] >> 4 == 4;
    let l4 = if is_v4 { usize::from(ip[0] & 15) * 4 } else { 40 };
    let headers = l4 + usize::from(ip[l4 + 12] >> 4) * 4;
    let word = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]);
    let (first, urgent) =
        (u32::from_be_bytes(ip[l4 + 4..l4 + 8].try_into().unwrap()), word(l4 + 18));
    let count = ip[headers..].chunks(size).count();
    let cut = |(n, payload): (usize, &[u8])| {
        let mut segment = [&ip[..headers], payload].concat();
        let offset = (n * size) as u32;
        let sequence = first.wrapping_add(offset);
        segment[l4 + 4..l4 + 8].copy_from_slice(&sequence.to_be_bytes());
        if n > 0 {
            segment[l4 + 13] &= !CWR;
        }
        if n + 1 < count {
            segment[l4 + 13] &= !(FIN | PSH);
        }
        if segment[l4 + 13] & URG != 0 {
            let left = u32::from(urgent).saturating_sub(offset) as u16;
            segment[l4 + 18..l4 + 20].copy_from_slice(&left.to_be_bytes());
            segment[l4 + 13] &= if left == 0 { !URG } else { 0xff };
        }
        let len = segment.len();
        if is_v4 {
            segment[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            segment[4..6].copy_from_slice(&word(4).wrapping_add(n as u16).to_be_bytes());
            segment[10..12].fill(0);
            let checksum = !sum(&[&segment[..l4]]);
            segment[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            segment[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
        segment[l4 + 16..l4 + 18].fill(0);
        let mut pseudo = segment[if is_v4 { 12..20 } else { 8..40 }].to_vec();
        pseudo.extend([0, 6]);
        pseudo.extend(((len - l4) as u16).to_be_bytes());
        let checksum = !sum(&[&pseudo, &segment[l4..]]);
        segment[l4 + 16..l4 + 18].copy_from_slice(&checksum.to_be_bytes());
        segment
    };
    ip[headers..].chunks(size).enumerate().map(cut).collect()
}

/// The payload of TCP.
fn payload(out: &Out) -> &[u8] {
    let l4 = out.l4();
    &l4[usize::from(l4[12] >> 4) * 4..]
}

fn connected(caps: PortCaps) -> Kit {
    let mut kit = kit(caps);
    kit.connect(HERE, WEB);
    kit.connect6(HERE6, WEB6);
    kit
}

/// What leaves in segments, compared with what leaves whole.
fn check(frame: &[u8], offload: Offload, head: usize, takes_blank: bool) {
    let size = usize::from(offload.gso.unwrap().size);
    let blank = PortCaps { accepts_blank_v4: takes_blank, accepts_blank_v6: takes_blank, ..CAPS };
    let whole = connected(ALL).scattered(FROM_A, frame, head, offload).remove(0);
    assert_eq!(whole.fate, Fate::Send(PortId::Uplink));
    let segments = connected(blank).scattered(FROM_A, frame, head, offload);
    let slowly = cut_slowly(&whole, size);
    assert_eq!(segments.len(), slowly.len());
    let state = if takes_blank { Checksum::Blank } else { Checksum::Validated };
    for (segment, expected) in segments.iter().zip(&slowly) {
        segment.assert_sent(PortId::Uplink);
        assert_eq!(segment.offload, Offload { checksum: state, gso: None });
        assert_eq!(segment.bytes[..14], whole.bytes[..14], "the same link");
        let (mut ours, mut theirs) = (segment.packet().to_vec(), expected.clone());
        if takes_blank {
            // `assert_sent` has looked at the partial one.
            let at = segment.packet().len() - segment.l4().len() + 16;
            ours[at..at + 2].fill(0);
            theirs[at..at + 2].fill(0);
        }
        assert!(ours == theirs, "{:02x?} is not {:02x?}", &ours[..60], &theirs[..60]);
        assert!(ours.len() <= 1500);
    }
    let joined: Vec<u8> = segments.iter().flat_map(|out| payload(out).to_vec()).collect();
    assert!(joined == payload(&whole), "another stream");
}

/// Random bytes: a payload that looks the same everywhere would hide a mistake.
fn noise(len: usize, mut seed: u32) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn segments_are_those_of_a_slow_cutter(
        len in 2usize..20_000,
        size in 200u16..1400,
        head in 256usize..4096,
        numbers: (u32, u16, u16),
        flags in prop_oneof![
            Just(ACK), Just(ACK | PSH), Just(ACK | FIN | PSH), Just(ACK | CWR), Just(ACK | URG | PSH)
        ],
        options in 0usize..10,
        ip_options in 0usize..4,
        is_v6: bool,
        takes_blank: bool,
    ) {
        let size = size.min(len as u16 - 1);
        prop_assume!(len.div_ceil(usize::from(size)) <= 128);
        let (sequence, id, urgent) = numbers;
        let tcp = |l4: &mut Vec<u8>| {
            l4.extend(vec![1; options * 4]);
            l4[12] = ((5 + options) << 4) as u8;
            l4[18..20].copy_from_slice(&urgent.to_be_bytes());
            l4.extend(noise(len, sequence));
        };
        let (frame, offload) = if is_v6 {
            let build = Build6::tcp(HERE6, WEB6, flags).numbers(sequence, 7).with(|b| tcp(&mut b.l4));
            let build = gso6(build, size);
            (build.frame(), build.offload)
        } else {
            let build = Build::tcp(HERE, WEB, flags).numbers(sequence, 7).with(|b| {
                tcp(&mut b.l4);
                b.options = vec![1; ip_options * 4];
                b.id = id;
            });
            let build = gso4(build, size);
            (build.frame(), build.offload)
        };
        check(&frame, offload, head.min(frame.len()), takes_blank);
    }
}

#[test]
fn the_longest_super_frame_is_cut() {
    let build = Build::tcp(HERE, WEB, ACK).payload(65_495);
    check(&gso4(build.clone(), 1460).frame(), gso4(build.clone(), 1460).offload, 256, false);
    // The smallest segments that every host takes.
    check(&gso4(build.clone(), 536).frame(), gso4(build.clone(), 536).offload, 256, true);
    let many = gso4(build, 400);
    let out = kit(CAPS).scattered(FROM_A, &many.frame(), 256, many.offload).remove(0);
    out.assert_dropped(DropReason::GsoUnsupported);
}

#[test]
fn a_port_that_takes_super_frames_but_completes_no_checksum_gets_segments() {
    let build = gso4(Build::tcp(HERE, WEB, ACK).payload(4000), 1448);
    let caps = PortCaps { accepts_blank_v4: false, ..ALL };
    let outs = kit(caps).scattered(FROM_A, &build.frame(), 300, build.offload);
    assert_eq!(outs.len(), 3);
    for out in outs {
        assert_eq!(out.assert_sent(PortId::Uplink).offload.checksum, Checksum::Validated);
    }
}

#[test]
fn segments_to_a_client_are_counted_as_they_leave() {
    let mut kit = kit(CAPS);
    let port = kit.connect(HERE, WEB);
    let back = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, 0x1000_2001).payload(3000);
    let back = gso4(back, 1448).up();
    let before = kit.counters();
    let outs = kit.scattered(Origin::Uplink, &back.frame(), 256, back.offload);
    let bytes: usize =
        outs.iter().map(|out| out.assert_sent(PortId::Client(ID_A)).bytes.len()).sum();
    let mut moved = kit.moved(&before);
    moved.sort();
    let expected = [
        ("a/sent-bytes", bytes),
        ("a/sent-frames", 3),
        ("uplink/received-bytes", 3054),
        ("uplink/received-frames", 1),
    ];
    assert_eq!(moved, expected.map(|(name, n)| (name.to_owned(), n as u64)));
}

#[test]
fn a_payload_that_ends_too_early_or_a_page_that_is_too_small_gives_no_segment() {
    let mut kit = kit(CAPS);
    let build = gso4(Build::tcp(HERE, WEB, ACK).payload(3000), 1448);
    let mut page = build.frame();
    page.truncate(300);
    let mut frame = Frame::with_tail(&mut page, 300, 3054, build.offload).unwrap();
    let fate = kit.fw.handle(kit.now, FROM_A, &mut frame);
    assert_eq!(fate, Fate::Segments(PortId::Uplink));
    let mut segments = frame.segments().unwrap();
    let mut write = |tail: &[u8], room: usize| {
        let mut page = vec![0; room];
        let mut out = Frame::new(&mut page, 0, Offload::default()).unwrap();
        segments.write_next(&frame, tail, &mut out)
    };
    assert_eq!(write(&[0; 2754], 1501), None);
    assert_eq!(write(&[0; 1201], 1502), None);
    assert_eq!(write(&[0; 1202], 1502), Some(()));
    assert_eq!(segments.left(), 2);
    kit.fw.lose_segments(FROM_A, segments);
    let client = kit.fw.stats().client(ID_A).unwrap();
    assert_eq!(client.dropped(DropReason::SegmentsLost), 2);
}

#[test]
fn a_tail_is_read_where_it_is() {
    let mut to = [0; 2];
    assert_eq!([1, 2, 3][..].copy(1, &mut to), Some(()));
    assert_eq!(to, [2, 3]);
    assert_eq!([1, 2, 3][..].copy(2, &mut to), None);
    assert_eq!([1, 2, 3][..].copy(usize::MAX, &mut to), None);
    let none: Option<core::convert::Infallible> = None;
    assert_eq!((none.copy(0, &mut []), none.copy(0, &mut to)), (Some(()), None));
}
