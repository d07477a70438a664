//! Super-frames from and to clients.

use super::*;
use crate::fake::chains::{bytes, chain, full_chain, super_frame, super_offload};
use crate::mem::PAGE_SIZE;
use crate::netif::{ExtraInfo, Gso, GsoKind, Violation};

const KINDS: [GsoKind; 2] = [GsoKind::TcpV4, GsoKind::TcpV6];
const CONFIG: Config =
    Config { max_vifs: 16, queue_per_vif: 128, queue_total: 256, offloads: true };
/// What Linux sends of a stream: headers, then full pages.
const STREAM: [usize; 16] =
    [66, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096];
const GSO4: [u8; 8] = [1, 0, 0xa8, 5, 1, 0, 0, 0];

fn rig() -> Rig {
    let mut rig = Rig::with(CONFIG);
    rig.budget = Budget { quantum: 16 << 10, total: 256 };
    rig
}

pub(super) fn connect(rig: &mut Rig, dom: DomId) -> (Guest, VifId) {
    attach_client(&mut rig.store, dom, 0, "10.137.0.11");
    rig.settle();
    let guest = Guest::new(dom, 0);
    guest.take_offloads(&mut rig.store);
    guest.publish(&mut rig.store);
    rig.settle();
    (guest, rig.connected(dom))
}

fn all_pages_are_back() -> bool {
    mem::free_pages() + SHARED_PAGES == mem::total_pages()
}

#[test]
fn what_is_offered_and_what_a_client_takes() {
    let mut rig = rig();
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    let names: Vec<String> = writes(&mut rig).into_iter().map(|(name, _)| name).collect();
    let expected = [
        "feature-rx-copy",
        "feature-ipv6-csum-offload",
        "feature-sg",
        "feature-gso-tcpv4",
        "feature-gso-tcpv6",
        "state",
    ];
    assert_eq!(names, expected);
    let (_guest, _) = connect(&mut rig, A);
    let Some(Event::Connected { capabilities, .. }) = rig.events.last() else { panic!() };
    assert!(capabilities.gso_tcpv4 && capabilities.gso_tcpv6);
    let (_plain, plain) = rig.connect(B);
    let Some(Event::Connected { capabilities, .. }) = rig.events.last() else { panic!() };
    assert!(!capabilities.gso_tcpv4 && !capabilities.gso_tcpv6);
    for kind in KINDS {
        let frame = full_chain(&super_frame(kind, 9000));
        assert_eq!(rig.back.send(plain, frame, super_offload(kind)), Err(SendError::Unsupported));
    }
}

#[test]
fn without_offloads_nothing_of_it_is_offered_or_used() {
    let mut rig = Rig::new();
    let (mut guest, vif) = connect(&mut rig, A);
    assert!(!writes(&mut rig).iter().any(|(name, _)| name.contains("gso")));
    let Some(Event::Connected { capabilities, .. }) = rig.events.last() else { panic!() };
    assert!(!capabilities.gso_tcpv4 && !capabilities.gso_tcpv6 && capabilities.blank_ipv6);
    let frame = super_frame(GsoKind::TcpV4, 9000);
    let offload = super_offload(GsoKind::TcpV4);
    assert_eq!(rig.back.send(vif, full_chain(&frame), offload), Err(SendError::Unsupported));
    guest.send_super(1, &frame, &[808, 4096, 4096], offload);
    rig.settle();
    assert!(rig.frames.is_empty() && rig.is_connected(A));
    assert_eq!(rig.back.counters(vif).unwrap().gso_not_offered, 1);
}

#[test]
fn each_slot_of_a_super_frame_from_a_client_gets_a_page() {
    let mut rig = rig();
    let (mut guest, vif) = connect(&mut rig, A);
    let stream = [&[256, 3906][..], &[4096; STREAM.len() - 2]].concat();
    let cases: [(&[usize], &[usize]); 6] = [
        (&STREAM, &stream),
        (&[66, 4096, 10, 4096], &[256, 3916, 4096]),
        (&[3641; 18], &[3641; 18]),
        (&[4096, 4096], &[4096, 4096]),
        (&[14, 4083], &[256, 3841]),
        (&[66, 20, 20, 4090, 6, 4096], &[256, 3946, 4096]),
    ];
    for kind in KINDS {
        for (lens, pages) in cases {
            let frame = super_frame(kind, lens.iter().sum::<usize>().min(65535));
            let mut lens = lens.to_vec();
            let excess = lens.iter().sum::<usize>() - frame.len();
            *lens.last_mut().unwrap() -= excess;
            guest.send_super(100, &frame, &lens, super_offload(kind));
            rig.settle();
            let got = rig.frames.pop().expect("a frame");
            assert_eq!((got.vif, got.offload), (vif, super_offload(kind)));
            assert!(bytes(&got.chain) == frame, "{lens:?}");
            let mut expected = pages.to_vec();
            *expected.last_mut().unwrap() -= excess;
            let pages: Vec<usize> = got.chain.pieces().map(|piece| piece.len().into()).collect();
            assert_eq!(pages, expected);
            let statuses: Vec<i16> = guest.responses().iter().map(|r| r.status).collect();
            assert_eq!((statuses.len(), statuses[1]), (lens.len() + 1, STATUS_NULL));
            assert!(statuses.iter().filter(|status| **status == STATUS_OKAY).count() == lens.len());
        }
    }
    assert!(all_pages_are_back());
}

#[test]
fn what_fits_one_page_is_in_one() {
    let mut rig = rig();
    let (mut guest, _) = connect(&mut rig, A);
    for lens in [&[66, 3000, 1030][..], &[100, 1400], &[1500]] {
        let frame = super_frame(GsoKind::TcpV4, lens.iter().sum());
        guest.send_super(1, &frame, lens, super_offload(GsoKind::TcpV4));
        rig.settle();
        let got = rig.frames.pop().expect("a frame");
        assert_eq!((got.chain.pages(), bytes(&got.chain)), (1, frame));
    }
}

/// One packet of a client, and what has to become of it.
struct Case {
    name: &'static str,
    flags: u16,
    /// More than the sum of the lengths.
    excess: i32,
    extras: Vec<[u8; 8]>,
    lens: Vec<usize>,
    /// The counter that says so, or why the device was closed.
    outcome: Result<fn(&VifCounters) -> u64, Violation>,
}

fn malformed() -> Vec<Case> {
    let base = || Case {
        name: "",
        flags: TxFlags::CSUM_BLANK,
        excess: 0,
        extras: [GSO4].into(),
        lens: [100, 4096, 4096].into(),
        outcome: Err(Violation::BadGso),
    };
    let unusable: Result<fn(&VifCounters) -> u64, Violation> = Ok(|c| c.gso_unusable);
    [
        Case {
            name: "19 slots",
            lens: [1000; 19].into(),
            outcome: Ok(|c| c.too_many_fragments),
            ..base()
        },
        Case {
            name: "21 slots",
            lens: [1000; 21].into(),
            outcome: Err(Violation::TooManyFragments),
            ..base()
        },
        Case {
            name: "sizes above the total",
            excess: -200,
            outcome: Err(Violation::SizeMismatch),
            ..base()
        },
        Case {
            name: "a total above the sizes",
            excess: 4000,
            outcome: Err(Violation::CrossesPage),
            ..base()
        },
        Case {
            name: "gso twice",
            extras: [[1, 1, 0xa8, 5, 1, 0, 0, 0], GSO4].into(),
            outcome: unusable,
            ..base()
        },
        Case {
            name: "unknown extra",
            extras: [[1, 1, 0xa8, 5, 1, 0, 0, 0], [9, 0, 0, 0, 0, 0, 0, 0]].into(),
            outcome: Err(Violation::UnknownExtra),
            ..base()
        },
        Case { name: "gso size 0", extras: [[1, 0, 0, 0, 1, 0, 0, 0]].into(), ..base() },
        Case { name: "gso kind 3", extras: [[1, 0, 0xa8, 5, 3, 0, 0, 0]].into(), ..base() },
        Case {
            name: "gso larger than the frame",
            extras: [[1, 0, 0xff, 0xff, 1, 0, 0, 0]].into(),
            outcome: unusable,
            ..base()
        },
        Case { name: "no gso", extras: [].into(), outcome: Ok(|c| c.too_long), ..base() },
        Case { name: "full checksum", flags: 0, outcome: Ok(|c| c.gso_not_offered), ..base() },
        Case {
            name: "an extra info that is missing",
            flags: TxFlags::CSUM_BLANK | TxFlags::EXTRA_INFO,
            extras: [].into(),
            // The second request is taken for the extra info: its grant reference is no known type.
            outcome: Err(Violation::UnknownExtra),
            ..base()
        },
    ]
    .into()
}

#[test]
fn malformed_packets_cost_themselves_or_one_device() {
    for case in malformed() {
        fake::reset();
        let mut rig = rig();
        let (mut other, _) = connect(&mut rig, B);
        let (mut guest, vif) = connect(&mut rig, A);
        let total: usize = case.lens.iter().sum();
        let frame = super_frame(GsoKind::TcpV4, total);
        let pieces = guest.pieces(&frame, &case.lens);
        let size = u16::try_from(total as i32 + case.excess).unwrap();
        guest.write_packet(1, case.flags, size, &case.extras, &pieces);
        guest.push_tx();
        let good = super_frame(GsoKind::TcpV6, 20000);
        other.send_super(1, &good, &[3616, 4096, 4096, 4096, 4096], super_offload(GsoKind::TcpV6));
        rig.settle();
        assert_eq!(rig.frames.len(), 1, "{}", case.name);
        assert!(bytes(&rig.frames[0].chain) == good, "{}", case.name);
        match case.outcome {
            Ok(counter) => {
                assert_eq!(counter(&rig.back.counters(vif).unwrap()), 1, "{}", case.name);
                let answered = guest.responses();
                assert_eq!(answered.len(), case.lens.len() + case.extras.len());
                assert!(!answered.iter().any(|answer| answer.status == STATUS_OKAY));
                let frame = super_frame(GsoKind::TcpV4, 5000);
                guest.send_super(90, &frame, &[904, 4096], super_offload(GsoKind::TcpV4));
                rig.settle();
                assert_eq!(rig.frames.len(), 2, "{}: the device goes on", case.name);
            }
            Err(violation) => {
                let reason = Some(CloseReason::Slots(violation));
                assert_eq!((rig.reason(A), rig.is_connected(B)), (reason, true), "{}", case.name);
            }
        }
        rig.frames.clear();
        assert!(all_pages_are_back(), "{}", case.name);
    }
}

#[test]
fn an_extra_info_that_is_announced_behind_the_head_is_none() {
    let mut rig = rig();
    let (mut guest, _) = connect(&mut rig, A);
    let frame = super_frame(GsoKind::TcpV4, 4196);
    let pieces = guest.pieces(&frame, &[100, 4096]);
    for (number, (gref, offset, len)) in pieces.iter().enumerate() {
        let (flags, size) = [(TxFlags::MORE_DATA | TxFlags::CSUM_BLANK, 4196), (8, *len)][number];
        let (flags, id) = (TxFlags(flags), number as u16);
        let request = TxRequest { gref: *gref, offset: *offset, flags, id, size };
        guest.write_slot(&request.encode());
    }
    guest.write_slot(&[1, 0, 0xa8, 5, 1, 0, 0, 0, 0, 0, 0, 0]);
    guest.push_tx();
    rig.settle();
    // The packet ends with the second slot; what follows is a request of no bytes.
    assert_eq!(rig.reason(A), Some(CloseReason::Slots(Violation::EmptyFragment)));
    assert!(rig.frames.is_empty() && all_pages_are_back());
}

#[test]
fn a_refused_grant_in_mid_chain_loses_the_packet_alone() {
    let mut rig = rig();
    let (mut guest, vif) = connect(&mut rig, A);
    let frame = super_frame(GsoKind::TcpV4, 20000);
    let lens = [3616, 4096, 4096, 4096, 4096];
    for broken in 0..lens.len() {
        let pieces = guest.pieces(&frame, &lens);
        guest.peer.fail_grant(pieces[broken].0, Some(GrantStatus::GENERAL_ERROR));
        guest.write_packet(0, TxFlags::CSUM_BLANK, 20000, &[GSO4], &pieces);
        guest.send_super(50, &frame, &lens, super_offload(GsoKind::TcpV4));
        rig.settle();
        let statuses: Vec<i16> = guest.responses().iter().map(|r| r.status).collect();
        let (bad, good) = (STATUS_ERROR, STATUS_OKAY);
        assert_eq!(statuses[..6], [bad, STATUS_NULL, bad, bad, bad, bad]);
        assert_eq!(statuses[6..], [good, STATUS_NULL, good, good, good, good]);
        let got = rig.frames.pop().expect("the second");
        assert!(rig.frames.is_empty() && bytes(&got.chain) == frame);
    }
    assert_eq!(rig.back.counters(vif).unwrap().copy_failed, 5);
    assert!(all_pages_are_back());
}

#[test]
fn when_pages_are_short_super_frames_are_refused_and_others_go_on() {
    fake::reset_with_pages(64);
    let mut rig = rig();
    let (mut guest, vif) = connect(&mut rig, A);
    let mut held: Vec<Page> = core::iter::from_fn(Page::alloc).collect();
    held.truncate(held.len() - 5);
    let long = super_frame(GsoKind::TcpV4, 30000);
    guest.send_super(
        1,
        &long,
        &[1328, 4096, 4096, 4096, 4096, 4096, 4096, 4096],
        super_offload(GsoKind::TcpV4),
    );
    guest.send(&frame(60), TxFlags(0));
    let short = super_frame(GsoKind::TcpV4, 9000);
    guest.send_super(20, &short, &[808, 4096, 4096], super_offload(GsoKind::TcpV4));
    rig.settle();
    let lens: Vec<usize> = rig.frames.iter().map(|frame| frame.chain.len()).collect();
    assert_eq!((lens, rig.back.counters(vif).unwrap().no_page), ([60, 9000].into(), 1));
    assert_eq!(guest.responses().len(), 9 + 1 + 4);
    rig.frames.clear();
    drop(held);
    assert!(all_pages_are_back());
}

#[test]
fn super_frames_count_in_slots_against_the_budget() {
    let mut rig = rig();
    let (mut guest, _) = connect(&mut rig, A);
    let frame = super_frame(GsoKind::TcpV4, 20000);
    for id in 0..6 {
        let offload = super_offload(GsoKind::TcpV4);
        guest.send_super(id * 10, &frame, &[3616, 4096, 4096, 4096, 4096], offload);
    }
    let least = rig.back.least_budget();
    for (total, taken) in [(least - 1, 0), (least, 1), (least + 6, 2), (least + 1, 1)] {
        rig.budget = Budget { quantum: 16 << 10, total };
        rig.turn();
        assert_eq!(rig.frames.drain(..).count(), taken, "{total}");
        assert!(rig.back.has_work());
    }
    rig.budget = Budget { quantum: 16 << 10, total: 256 };
    rig.settle();
    assert_eq!(rig.frames.len(), 2);
}

/// Of two clients that always have something to send, whatever the size of their frames, each gets its half of the bytes,
/// with what frames cost besides; one alone gets all.
#[test]
fn deficit_round_robin_is_fair_in_bytes() {
    let mut rig = rig();
    let (mut bulk, vif_bulk) = connect(&mut rig, A);
    let (mut small, vif_small) = connect(&mut rig, B);
    let long = super_frame(GsoKind::TcpV4, 60_000);
    let pieces: Vec<usize> = [&[long.len() % 4096][..], &vec![4096; long.len() / 4096]].concat();
    let pieces = bulk.pieces(&long, &pieces);
    let (offload, total) = (super_offload(GsoKind::TcpV4), u16::try_from(long.len()).unwrap());
    let extras: Vec<[u8; 8]> = offload.gso.into_iter().map(ExtraInfo::encode_gso).collect();
    let short = vec![0; 500];
    rig.budget = Budget { quantum: 16 << 10, total: 40 };
    let (mut cost_bulk, mut cost_small) = (0u64, 0u64);
    let (mut bulk_waits, mut small_wait) = (0, 0);
    let mut id = 0u16;
    for _ in 0..400 {
        while bulk_waits < 3 {
            bulk.write_packet(id, TxFlags::for_frame(offload).0, total, &extras, &pieces);
            bulk.push_tx();
            (id, bulk_waits) = (id.wrapping_add(20), bulk_waits + 1);
        }
        while small_wait < 100 {
            small.send(&short, TxFlags(0));
            small_wait += 1;
        }
        rig.turn();
        bulk.responses();
        small.responses();
        for frame in rig.frames.drain(..) {
            let cost = frame.chain.len() as u64 + u64::from(FRAME_COST);
            match frame.vif {
                vif if vif == vif_bulk => {
                    (cost_bulk, bulk_waits) = (cost_bulk + cost, bulk_waits - 1)
                }
                vif if vif == vif_small => {
                    (cost_small, small_wait) = (cost_small + cost, small_wait - 1);
                }
                _ => panic!("a third client"),
            }
        }
    }
    let apart = cost_bulk.abs_diff(cost_small);
    assert!(cost_bulk > 1_000_000 && apart <= 2 * 65_536, "{cost_bulk} {cost_small}");
}

#[test]
fn a_super_frame_to_a_client_fills_buffer_after_buffer() {
    let mut rig = rig();
    let (mut guest, vif) = connect(&mut rig, A);
    let blank = RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED | RxFlags::EXTRA_INFO;
    for kind in KINDS {
        for lens in
            [&STREAM[..], &[256, 100, 4096, 4000], &[4096; 16], &[1400, 1400, 1400], &[1500]]
        {
            let frame = super_frame(kind, lens.iter().sum());
            guest.post(24);
            rig.back.send(vif, chain(&frame, lens), super_offload(kind)).unwrap();
            rig.settle();
            let got = guest.received_packets();
            let full: Vec<usize> = frame.chunks(PAGE_SIZE).map(<[u8]>::len).collect();
            let more = if full.len() > 1 { RxFlags::MORE_DATA } else { 0 };
            assert_eq!((got.len(), got[0].flags), (1, blank | more));
            assert_eq!((&got[0].lens, got[0].gso), (&full, super_offload(kind).gso));
            assert!(got[0].bytes == frame);
        }
    }
    assert!(all_pages_are_back());
    assert_eq!(rig.back.counters(vif).unwrap().to_guest_frames, 10);
}

#[test]
fn a_super_frame_waits_for_all_its_buffers() {
    let mut rig = rig();
    let (mut guest, vif) = connect(&mut rig, A);
    let frame = super_frame(GsoKind::TcpV4, 20000);
    guest.post(5);
    rig.back.send(vif, full_chain(&frame), super_offload(GsoKind::TcpV4)).unwrap();
    rig.back.send(vif, Rig::chain(&super::frame(60), 60), Offload::NONE).unwrap();
    rig.settle();
    assert!(guest.received_packets().is_empty(), "nothing is begun");
    assert_eq!(rig.back.queued(), 6);
    guest.post(1);
    rig.settle();
    let got = guest.received_packets();
    assert!(got.len() == 1 && got[0].bytes == frame && got[0].lens.len() == 5);
    guest.post(1);
    rig.settle();
    assert_eq!(guest.received_packets()[0].bytes, super::frame(60));
}

#[test]
fn a_client_that_posts_too_few_buffers_loses_its_queue_and_others_do_not_notice() {
    let mut rig = rig();
    let (mut other, vif_other) = connect(&mut rig, B);
    let (mut guest, vif) = connect(&mut rig, A);
    guest.post(4);
    let frame = super_frame(GsoKind::TcpV6, 60000);
    let send =
        |rig: &mut Rig, vif| rig.back.send(vif, full_chain(&frame), super_offload(GsoKind::TcpV6));
    let mut queued = 0;
    while send(&mut rig, vif).is_ok() {
        queued += 1;
    }
    assert_eq!((queued, rig.back.counters(vif).unwrap().queue_full), (128 / 15, 1));
    other.post(32);
    send(&mut rig, vif_other).unwrap();
    rig.pass(10_001);
    assert_eq!(rig.back.counters(vif).unwrap().stalled, queued);
    assert!(all_pages_are_back());
    assert!(other.received_packets()[0].bytes == frame);
    rig.back.send(vif, Rig::chain(&super::frame(60), 60), Offload::NONE).unwrap();
    rig.settle();
    assert_eq!(guest.received_packets()[0].bytes, super::frame(60));
}

#[test]
fn the_total_bounds_super_frames_beyond_a_small_quota() {
    let mut rig = rig();
    rig.back.config.queue_total = 30;
    let (_a, vif_a) = connect(&mut rig, A);
    let (_b, vif_b) = connect(&mut rig, B);
    let (_c, vif_c) = connect(&mut rig, DomId(10));
    let frame = super_frame(GsoKind::TcpV4, 60000);
    let send =
        |rig: &mut Rig, vif| rig.back.send(vif, full_chain(&frame), super_offload(GsoKind::TcpV4));
    assert_eq!(send(&mut rig, vif_a), Ok(()), "more than its share of 10, but nothing else waits");
    assert_eq!(send(&mut rig, vif_a), Err(SendError::QueueFull));
    assert_eq!(send(&mut rig, vif_b), Ok(()));
    assert_eq!(send(&mut rig, vif_c), Err(SendError::QueueFull), "the total is used up");
    let small = rig.back.send(vif_c, Rig::chain(&super::frame(60), 60), Offload::NONE);
    assert_eq!((small, rig.back.queued()), (Ok(()), 31));
}

#[test]
fn a_revoked_buffer_in_mid_chain_loses_the_frame_alone() {
    let mut rig = rig();
    let (mut guest, vif) = connect(&mut rig, A);
    let frame = super_frame(GsoKind::TcpV4, 12000);
    for broken in [0, 2, 3] {
        guest.post(8);
        assert!(guest.peer.revoke(guest.posted_refs()[broken]));
        for _ in 0..2 {
            rig.back.send(vif, full_chain(&frame), super_offload(GsoKind::TcpV4)).unwrap();
        }
        rig.settle();
        let got = guest.received_packets();
        assert_eq!(got.len(), 4 + 1, "each buffer of the first by itself");
        assert!(got[..4].iter().all(|error| error.flags == 0 && error.bytes.is_empty()));
        assert!(got[4].bytes == frame);
    }
    assert_eq!(rig.back.counters(vif).unwrap().copy_failed, 3);
    assert!(all_pages_are_back());
}

#[test]
fn frames_that_cannot_be_are_not_sent() {
    let mut rig = rig();
    let (_guest, vif) = connect(&mut rig, A);
    let v4 = super_offload(GsoKind::TcpV4);
    let long = super_frame(GsoKind::TcpV4, 9000);
    let mut send = |chain, offload| rig.back.send(vif, chain, offload);
    assert_eq!(send(full_chain(&long), Offload::BLANK), Err(SendError::BadLength));
    let full = Offload { checksum: Checksum::Full, ..v4 };
    assert_eq!(send(full_chain(&long), full), Err(SendError::BadLength));
    let v6 = super_offload(GsoKind::TcpV6);
    assert_eq!(send(full_chain(&long), v6), Err(SendError::Unsupported), "an IPv4 frame");
    for size in [0, 9000] {
        let gso = Some(Gso { kind: GsoKind::TcpV4, size });
        assert_eq!(send(full_chain(&long), Offload { gso, ..v4 }), Err(SendError::BadLength));
    }
    let huge = super_frame(GsoKind::TcpV4, 65536 + 18);
    assert_eq!(send(full_chain(&huge), v4), Err(SendError::BadLength));
    assert_eq!(send(full_chain(&huge[..65535 + 18]), v4), Ok(()));
}

#[test]
fn a_closed_device_gives_back_super_frames_on_both_ways() {
    let mut rig = rig();
    for _ in 0..20 {
        let (mut guest, vif) = connect(&mut rig, A);
        let frame = super_frame(GsoKind::TcpV4, 40000);
        for _ in 0..3 {
            rig.back.send(vif, full_chain(&frame), super_offload(GsoKind::TcpV4)).unwrap();
        }
        let lens: Vec<usize> = frame.chunks(PAGE_SIZE).map(<[u8]>::len).collect();
        guest.send_super(1, &frame, &lens, super_offload(GsoKind::TcpV4));
        // An extra info that does not exist, in the same batch.
        let pieces = guest.pieces(&frame, &lens);
        guest.write_packet(30, TxFlags::CSUM_BLANK, 40000, &[[7; 8]], &pieces);
        guest.push_tx();
        rig.settle();
        assert!(!rig.is_connected(A));
        rig.frames.clear();
        rig.store.remove("/local/domain/5/device/vif/0");
        detach_client(&mut rig.store, A, 0);
        rig.pass(1000);
        assert!(all_pages_are_back() && rig.back.queued() == 0);
    }
    drop(rig);
    fake::assert_no_leaks();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever slots a super-frame comes in: the same bytes come out at another client, and every page comes back.
    #[test]
    fn super_frames_cross_from_client_to_client(
        packets in proptest::collection::vec(
            (proptest::collection::vec(1..4097usize, 1..18), proptest::bool::ANY),
            1..6,
        )
    ) {
        fake::reset();
        let mut rig = rig();
        let (mut a, _) = connect(&mut rig, A);
        let (mut b, vif_b) = connect(&mut rig, B);
        b.post(128);
        let mut expected = Vec::new();
        for (mut lens, is_v6) in packets {
            let kind = if is_v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
            lens[0] = lens[0].max(14);
            while lens.iter().sum::<usize>() > 65535 {
                lens.pop();
            }
            let frame = super_frame(kind, lens.iter().sum());
            a.send_super(0, &frame, &lens, super_offload(kind));
            rig.settle();
            a.responses();
            if frame.len() <= usize::from(super_offload(kind).gso.unwrap().size) {
                prop_assert!(rig.frames.is_empty(), "nothing to segment");
                continue;
            }
            prop_assert_eq!(rig.frames.len(), 1);
            let got = rig.frames.remove(0);
            rig.back.send(vif_b, got.chain, got.offload).unwrap();
            rig.settle();
            expected.push(frame);
        }
        let got: Vec<Vec<u8>> = b.received_packets().into_iter().map(|packet| packet.bytes).collect();
        prop_assert!(got == expected);
        prop_assert!(all_pages_are_back());
        drop((a, b, rig));
    }
}

#[test]
fn an_encoded_extra_info_is_what_linux_writes() {
    let gso = super_offload(GsoKind::TcpV4).gso.unwrap();
    assert_eq!(ExtraInfo::encode_gso(gso), GSO4);
}
