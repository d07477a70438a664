//! Super-frames to and from the uplink.

use super::*;
use crate::fake::chains::{OFFLOADS, RxSlot, bytes, chain, full_chain, super_frame, super_offload};
use crate::mem::PAGE_SIZE;
use crate::netif::{Gso, GsoKind, STATUS_NULL};

const KINDS: [GsoKind; 2] = [GsoKind::TcpV4, GsoKind::TcpV6];
const CONFIG: Config = Config { rx_buffers: 64, tx_in_flight: 64, offloads: true };
const GSO4: [u8; 8] = [1, 0, 0xa8, 5, 1, 0, 0, 0];
const BLANK: u16 = RxFlags::CSUM_BLANK;

fn connect(config: Config) -> (Rig, NetVm) {
    let mut rig = Rig::with(config);
    attach_uplink(&mut rig.store, NETVM, 0);
    rig.settle();
    fake::peer(NETVM);
    NetVm::offer_offloads(&mut rig.store, NETVM, 0);
    let backend = rig.join(NETVM, 0);
    (rig, backend)
}

/// Pages that neither the rings nor receive buffers take.
fn free_beside_buffers(rig: &Rig) -> usize {
    mem::free_pages() + rig.front.status().unwrap().posted + 2
}

#[test]
fn what_is_published_and_what_the_backend_takes() {
    let (mut rig, backend) = connect(CONFIG);
    let writes = rig.store.take_writes();
    let written = |name: &str| {
        let path = alloc::format!("{}/device/vif/0/{name}", Store::home());
        writes.contains(&(path, "1".into()))
    };
    assert!(OFFLOADS.iter().all(|name| written(name)));
    let Some(Event::Up { capabilities, .. }) = rig.events.last() else { panic!() };
    assert!(capabilities.gso_tcpv4 && capabilities.gso_tcpv6 && capabilities.blank_ipv6);
    drop((backend, rig));
    grant::retry_quarantine();
    for missing in OFFLOADS {
        fake::reset();
        let mut rig = Rig::with(CONFIG);
        attach_uplink(&mut rig.store, NETVM, 0);
        fake::peer(NETVM);
        NetVm::offer_offloads(&mut rig.store, NETVM, 0);
        NetVm::offer(&mut rig.store, NETVM, 0);
        rig.store.write(&alloc::format!("{}/{missing}", NetVm::directory(NETVM, 0)), "0");
        rig.settle();
        let backend = NetVm::connect(&mut rig.store, NETVM, 0);
        rig.settle();
        let Some(Event::Up { capabilities, .. }) = rig.events.last() else { panic!() };
        let v4 = !matches!(missing, "feature-sg" | "feature-gso-tcpv4");
        let v6 = matches!(missing, "feature-gso-tcpv4");
        assert_eq!((capabilities.gso_tcpv4, capabilities.gso_tcpv6), (v4, v6), "{missing}");
        drop((backend, rig));
        grant::retry_quarantine();
    }
}

#[test]
fn without_offloads_nothing_of_it_is_published_or_used() {
    let (mut rig, mut backend) = connect(Config { offloads: false, ..CONFIG });
    let writes = rig.store.take_writes();
    assert!(!writes.iter().any(|(path, _)| path.contains("device") && path.contains("gso")));
    let Some(Event::Up { capabilities, .. }) = rig.events.last() else { panic!() };
    assert!(!capabilities.gso_tcpv4 && !capabilities.gso_tcpv6);
    let frame = super_frame(GsoKind::TcpV4, 9000);
    let offload = super_offload(GsoKind::TcpV4);
    assert_eq!(rig.front.send(full_chain(&frame), offload), Err(SendError::Unsupported));
    backend.deliver_super(&frame, &[4096, 4096, 808], offload);
    rig.settle();
    assert!(rig.frames.is_empty());
    assert_eq!(rig.front.counters().multi_slot, 1);
}

#[test]
fn a_super_frame_to_the_backend_is_a_chain_of_requests() {
    let (mut rig, mut backend) = connect(CONFIG);
    let before = mem::free_pages();
    let flags = TxFlags::CSUM_BLANK | TxFlags::DATA_VALIDATED | TxFlags::EXTRA_INFO;
    for kind in KINDS {
        for lens in [&[4096; 15][..], &[4096, 904], &[300, 4096, 7, 200], &[3000]] {
            let frame = super_frame(kind, lens.iter().sum());
            let room = rig.front.send_room();
            rig.front.send(chain(&frame, lens), super_offload(kind)).unwrap();
            assert!(room - rig.front.send_room() >= lens.len());
            rig.settle();
            let packets = backend.take_packets();
            let [(packet, requests)] = packets.as_slice() else { panic!("{packets:?}") };
            let more = if lens.len() > 1 { TxFlags::MORE_DATA } else { 0 };
            assert_eq!((packet.flags, packet.gso), (flags | more, super_offload(kind).gso));
            assert_eq!(packet.lens, *lens);
            assert!(packet.bytes == frame);
            // Nothing else of any page can be seen, and nothing written.
            for request in requests {
                let mut page = [0; PAGE_SIZE];
                backend.peer.read(request.gref, 0, &mut page).unwrap();
                assert!(page[usize::from(request.size)..].iter().all(|byte| *byte == 0));
                assert!(backend.peer.write(request.gref, 0, &[1]).is_err());
            }
            backend.answer(packet, requests, 0);
            rig.settle();
            assert!(requests.iter().all(|r| backend.peer.read(r.gref, 0, &mut [0]).is_err()));
            assert_eq!((mem::free_pages(), rig.front.send_room()), (before, 64));
        }
    }
    assert_eq!((rig.front.counters().sent_frames, rig.front.status().unwrap().in_flight), (8, 0));
}

#[test]
fn an_answer_to_an_extra_info_that_was_not_sent_closes_the_uplink() {
    for extra in [0, 1] {
        fake::reset();
        let (mut rig, mut backend) = connect(CONFIG);
        let frame = super_frame(GsoKind::TcpV4, 9000);
        if extra == 1 {
            rig.front.send(full_chain(&frame), super_offload(GsoKind::TcpV4)).unwrap();
        } else {
            rig.send(60, Offload::NONE).unwrap();
        }
        rig.settle();
        backend.take_requests();
        for _ in 0..=extra {
            backend.respond(0, STATUS_NULL);
        }
        rig.settle();
        assert_eq!(rig.last_down(), Some(DownReason::BadStatus));
        end(rig, backend);
        assert_eq!((grant::grants_in_use(), mem::free_pages()), (0, mem::total_pages()));
    }
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let (mut rig, mut backend) = connect(Config { tx_in_flight: 16, ..CONFIG });
    let free = mem::free_pages();
    let frame = super_frame(GsoKind::TcpV4, 40000);
    let v4 = super_offload(GsoKind::TcpV4);
    assert_eq!(rig.front.send(full_chain(&frame), v4), Ok(()));
    assert_eq!(rig.front.send(full_chain(&frame), v4), Err(SendError::Full));
    assert_eq!((rig.front.send_room(), mem::free_pages()), (6, free - 10));
    let long = super_frame(GsoKind::TcpV4, 65536);
    assert_eq!(rig.front.send(full_chain(&long), v4), Err(SendError::BadLength), "16 bits of size");
    let medium = &frame[..9000];
    assert_eq!(rig.front.send(full_chain(medium), Offload::BLANK), Err(SendError::BadLength));
    let v6 = super_offload(GsoKind::TcpV6);
    assert_eq!(rig.front.send(full_chain(medium), v6), Err(SendError::Unsupported));
    assert_eq!(rig.front.send(full_chain(medium), v4), Ok(()));
    rig.settle();
    for (packet, requests) in backend.take_packets() {
        backend.answer(&packet, &requests, STATUS_ERROR);
    }
    rig.settle();
    assert_eq!((mem::free_pages(), rig.front.counters().refused), (free, 13));
}

#[test]
fn without_grants_for_all_pages_none_is_given() {
    fake::limit_grant_frames(1);
    let (mut rig, mut backend) =
        connect(Config { rx_buffers: 200, tx_in_flight: 256, offloads: true });
    let (free, in_use) = (mem::free_pages(), grant::grants_in_use());
    // All but five of the table are used.
    let room = 512 - 8 - in_use;
    let page = || grant::grant(Page::alloc().unwrap(), NETVM, Access::ReadOnly).unwrap();
    let held: Vec<_> = (5..room).map(|_| page()).collect();
    let frame = super_frame(GsoKind::TcpV4, 40000);
    let v4 = super_offload(GsoKind::TcpV4);
    assert_eq!(rig.front.send(full_chain(&frame), v4), Err(SendError::NoGrant));
    assert_eq!(rig.front.send(full_chain(&frame[..20000]), v4), Ok(()));
    drop(held);
    rig.settle();
    let packets = backend.take_packets();
    assert_eq!((packets.len(), packets[0].0.bytes == frame[..20000]), (1, true));
    backend.answer(&packets[0].0, &packets[0].1, 0);
    rig.settle();
    assert_eq!((mem::free_pages(), grant::grants_in_use()), (free, in_use));
}

#[test]
fn a_super_frame_from_the_backend_stays_in_its_buffers() {
    let (mut rig, mut backend) = connect(CONFIG);
    let total = free_beside_buffers(&rig);
    for kind in KINDS {
        for (lens, pages) in [
            (&[4096; 15][..], &[4096; 15][..]),
            (&[4096, 4096, 17], &[4096, 4096, 17]),
            (&[256, 4096, 700], &[256, 4096, 700]),
            (&[3000, 2000], &[3000, 2000]),
            // Headers in pieces are put together.
            (&[66, 4096, 4096], &[256, 3906, 4096]),
            (&[14, 10, 4096, 4096], &[256, 3864, 4096]),
            (&[1, 1, 253, 4096], &[256, 4095]),
            // One page is enough.
            (&[66, 1448, 1448], &[2962]),
            (&[2000, 2096], &[4096]),
        ] {
            let frame = super_frame(kind, lens.iter().sum());
            backend.deliver_super(&frame, lens, super_offload(kind));
            rig.settle();
            let got = rig.frames.pop().expect("a frame");
            assert_eq!(got.offload, super_offload(kind));
            let lens: Vec<usize> = got.chain.pieces().map(|piece| piece.len().into()).collect();
            assert_eq!(lens, pages);
            assert!(bytes(&got.chain) == frame);
        }
    }
    assert_eq!((free_beside_buffers(&rig), rig.front.status().unwrap().posted), (total, 64));
    assert_eq!(rig.front.counters().received_frames, 18);
}

#[test]
fn data_at_offsets_are_moved_to_the_start_of_their_pages() {
    let (mut rig, mut backend) = connect(CONFIG);
    let frame = super_frame(GsoKind::TcpV4, 6000);
    let mut slots = RxSlot::cut(&frame, &[2000, 4000]);
    (slots[0].offset, slots[1].offset) = (2096, 96);
    backend.write_packet(BLANK, &[GSO4], &slots);
    backend.push_rx();
    rig.settle();
    assert!(bytes(&rig.frames[0].chain) == frame);
}

#[test]
fn a_short_frame_in_two_slots_is_taken() {
    let (mut rig, mut backend) = connect(CONFIG);
    let frame = frame(1514);
    backend.write_packet(0, &[], &RxSlot::cut(&frame, &[66, 1448]));
    backend.push_rx();
    rig.settle();
    let got = &rig.frames[0];
    assert_eq!((got.chain.pages(), got.offload), (1, Offload::NONE));
    assert_eq!(bytes(&got.chain), frame);
}

/// What is counted: frames that mean nothing, and those of too many slots.
fn counted(rig: &Rig) -> (u64, u64) {
    (rig.front.counters().unusable, rig.front.counters().multi_slot)
}

#[test]
fn malformed_packets_cost_themselves_alone() {
    let frame = super_frame(GsoKind::TcpV4, 20000);
    let plain = [4096, 4096, 4096, 4096, 3616];
    let twice = [[1, 1, 0xa8, 5, 1, 0, 0, 0], GSO4];
    let zero = [[1, 0, 0, 0, 1, 0, 0, 0]];
    let large = [[1, 0, 0xff, 0xff, 1, 0, 0, 0]];
    let kind = [[1, 0, 0xa8, 5, 9, 0, 0, 0]];
    let hash = [[4, 0, 0, 0, 0, 0, 0, 0]];
    let many = [1000; 19];
    type Case<'a> = (&'a str, u16, &'a [[u8; 8]], &'a [usize], (u64, u64));
    let cases: [Case<'_>; 9] = [
        ("gso twice", BLANK, &twice, &plain, (1, 0)),
        ("gso of size 0", BLANK, &zero, &plain, (1, 0)),
        ("gso larger than the frame", BLANK, &large, &plain, (1, 0)),
        ("gso of another kind", BLANK, &kind, &plain, (1, 0)),
        ("no gso", BLANK, &[], &plain, (1, 0)),
        ("another extra info", BLANK, &hash, &plain, (1, 0)),
        ("full checksum", 0, &[GSO4], &plain, (1, 0)),
        ("19 slots", BLANK, &[GSO4], &many, (0, 1)),
        ("shorter than an Ethernet header", BLANK, &[GSO4], &[7, 6], (1, 0)),
    ];
    for (name, flags, extras, lens, counts) in cases {
        fake::reset();
        let (mut rig, mut backend) = connect(CONFIG);
        let total = free_beside_buffers(&rig);
        let lens: Vec<usize> = lens.into();
        let used = lens.iter().sum::<usize>();
        backend.write_packet(flags, extras, &RxSlot::cut(&frame[..used], &lens));
        backend.deliver_super(&frame, &plain, super_offload(GsoKind::TcpV4));
        rig.settle();
        assert_eq!((counted(&rig), rig.frames.len()), (counts, 1), "{name}");
        assert!(bytes(&rig.frames[0].chain) == frame, "{name}");
        rig.frames.clear();
        assert_eq!(free_beside_buffers(&rig), total, "{name}");
        drop((rig, backend));
        grant::retry_quarantine();
    }
}

#[test]
fn a_slot_that_failed_or_shrank_loses_its_frame_alone() {
    let frame = super_frame(GsoKind::TcpV4, 20000);
    let plain = [4096, 4096, 4096, 4096, 3616];
    let (mut rig, mut backend) = connect(CONFIG);
    let total = free_beside_buffers(&rig);
    let mut count = 0;
    for at in 0..plain.len() {
        for status in [STATUS_ERROR, STATUS_DROPPED, 0] {
            let mut slots = RxSlot::cut(&frame, &plain);
            slots[at].status = Some(status);
            backend.write_packet(BLANK, &[GSO4], &slots);
            backend.push_rx();
            rig.settle();
            count += 1;
            assert_eq!((counted(&rig).0, rig.frames.len()), (count, 0), "{at} {status}");
        }
    }
    // Less than was there is a shorter frame: whether it is one is the packet path's to say.
    let mut slots = RxSlot::cut(&frame, &plain);
    slots[2].status = Some(100);
    backend.write_packet(BLANK, &[GSO4], &slots);
    backend.push_rx();
    rig.settle();
    assert_eq!(rig.frames.pop().unwrap().chain.len(), 20000 - 3996);
    assert_eq!((rig.front.is_up(), free_beside_buffers(&rig)), (true, total));
}

#[test]
fn what_only_a_broken_backend_writes_closes_the_uplink() {
    let frame = super_frame(GsoKind::TcpV4, 20000);
    let unknown = [[1, 1, 0xa8, 5, 1, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0, 0]];
    for (number, reason) in [
        DownReason::TruncatedPacket,
        DownReason::TruncatedPacket,
        DownReason::TruncatedPacket,
        DownReason::UnknownExtra,
        DownReason::BadLength,
        DownReason::UnknownResponse,
        DownReason::StillInUse,
    ]
    .into_iter()
    .enumerate()
    {
        fake::reset();
        let (mut rig, mut backend) = connect(CONFIG);
        let mut slots = RxSlot::cut(&frame, &[4096, 4096, 1000]);
        let mut held = None;
        match number {
            0 => slots[2].flags = RxFlags::MORE_DATA,
            1 => slots = RxSlot::cut(&frame, &[500; 20]),
            2 => slots[0].flags = RxFlags::EXTRA_INFO,
            4 => slots[1].status = Some(4097),
            _ => {}
        }
        match number {
            2 => backend.write_packet(BLANK, &[], &slots[..1]),
            3 => backend.write_packet(BLANK, &unknown, &slots),
            5 => {
                // The second slot names the buffer of another.
                let head = backend.take_buffer().unwrap();
                let flags = RxFlags(RxFlags::MORE_DATA);
                for id in [head.id, head.id + 7] {
                    let response = RxResponse { id, offset: 0, flags, status: 4096 };
                    backend.rx.respond(&backend.rx_page, &response.encode());
                    backend.take_buffer();
                }
            }
            6 => {
                let head = backend.take_buffer().unwrap();
                let second = backend.take_buffer().unwrap();
                held = Some(backend.peer.map(second.gref, Access::ReadWrite).unwrap());
                let flags = RxFlags(RxFlags::MORE_DATA);
                for id in [head.id, second.id] {
                    let response = RxResponse { id, offset: 0, flags, status: 4096 };
                    backend.rx.respond(&backend.rx_page, &response.encode());
                }
            }
            _ => backend.write_packet(BLANK, &[GSO4], &slots),
        }
        backend.push_rx();
        rig.settle();
        assert_eq!((rig.last_down(), rig.frames.len()), (Some(reason), 0), "case {number}");
        drop(held);
        end(rig, backend);
        assert_eq!((grant::grants_in_use(), mem::free_pages()), (0, mem::total_pages()));
    }
}

#[test]
fn a_backend_that_goes_with_super_frames_in_its_hands_leaves_nothing() {
    for _ in 0..10 {
        let (mut rig, mut backend) = connect(CONFIG);
        let frame = super_frame(GsoKind::TcpV6, 50000);
        for _ in 0..4 {
            rig.front.send(full_chain(&frame), super_offload(GsoKind::TcpV6)).unwrap();
        }
        backend.deliver_super(&frame, &[4096; 12], super_offload(GsoKind::TcpV6));
        rig.settle();
        backend.take_requests();
        backend.respond(0xffff, STATUS_NULL);
        drop(backend);
        rig.store.remove("device/vif");
        rig.settle();
        assert_eq!(rig.last_down(), Some(DownReason::Vanished));
        drop(rig);
        fake::reset();
    }
}

#[test]
fn segment_sizes_beyond_any_link_are_passed_on_as_they_are() {
    let (mut rig, mut backend) = connect(CONFIG);
    let frame = super_frame(GsoKind::TcpV4, 20000);
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 19999 });
    let offload = Offload { gso, ..super_offload(GsoKind::TcpV4) };
    backend.deliver_super(&frame, &[4096, 4096, 4096, 4096, 3616], offload);
    rig.settle();
    assert_eq!(rig.frames.pop().unwrap().offload, offload);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever slots the backend uses: either the bytes arrive with their headers in the head, or the frame is counted;
    /// no page is lost.
    #[test]
    fn whatever_slots_a_backend_uses(
        packets in proptest::collection::vec(proptest::collection::vec(1..4097usize, 1..21), 1..6)
    ) {
        fake::reset();
        let (mut rig, mut backend) = connect(CONFIG);
        let total = free_beside_buffers(&rig);
        let v4 = super_offload(GsoKind::TcpV4);
        for mut lens in packets {
            lens.truncate(19);
            let frame = super_frame(GsoKind::TcpV4, lens.iter().sum());
            let before = counted(&rig);
            backend.deliver_super(&frame, &lens, v4);
            rig.settle();
            let counted = counted(&rig);
            let fits = frame.len() > 1448 && frame.len() <= 65535 + 18;
            if let Some(got) = rig.frames.pop() {
                prop_assert!(fits && lens.len() <= 18 && bytes(&got.chain) == frame);
                prop_assert!(usize::from(got.chain.head().len()) >= frame.len().min(256));
                prop_assert!(frame.len() > PAGE_SIZE || got.chain.pages() == 1);
            } else {
                prop_assert!(!fits || lens.len() > 18);
                prop_assert_eq!(counted.0 + counted.1, before.0 + before.1 + 1);
            }
        }
        prop_assert_eq!(free_beside_buffers(&rig), total);
        drop((backend, rig));
        grant::retry_quarantine();
    }
}

/// A transfer to one client alone: three more super-frames are worth an event, and they are looked for in time.
#[test]
fn super_frames_of_a_transfer_to_one_client_alone_come_three_at_a_time() {
    for is_alone in [false, true] {
        fake::reset();
        let (mut rig, mut backend) = connect(CONFIG);
        rig.front.alone(is_alone);
        let frame = super_frame(GsoKind::TcpV4, 12 * PAGE_SIZE);
        let mut taken_after = |rig: &mut Rig, passed: u64| {
            fake::advance_ns(passed);
            backend.deliver_super(&frame, &[PAGE_SIZE; 12], super_offload(GsoKind::TcpV4));
            rig.settle();
            core::mem::take(&mut rig.frames).len()
        };
        assert_eq!(taken_after(&mut rig, 20 * MS), 1, "the first one");
        assert_eq!(taken_after(&mut rig, MS), 1, "the second one, which makes a transfer");
        let taken: Vec<usize> = (0..4).map(|_| taken_after(&mut rig, MS)).collect();
        assert_eq!(taken, if is_alone { [0, 0, 3, 0] } else { [1; 4] });
        // What does not come in time is looked for.
        assert_eq!(taken_after(&mut rig, MS), usize::from(!is_alone));
        rig.pass(2);
        assert_eq!(rig.frames.len(), 2 * usize::from(is_alone));
        rig.frames.clear();
        assert_eq!(taken_after(&mut rig, 20 * MS), 1, "that was the end of it");
        assert!(rig.front.next_deadline().is_none_or(|due| due > fake::now_ns() + 5 * MS));
        drop((rig, backend));
        grant::retry_quarantine();
    }
}
