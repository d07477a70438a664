use super::*;
use crate::abi::DomId;
use crate::fake::vif::{NetVm, attach_uplink};
use crate::fake::xenstore::Store;
use crate::grant::Access;
use crate::mem::Page;
use crate::netif::{Checksum, RxFlags, RxResponse, STATUS_DROPPED, STATUS_ERROR, TxFlags};
use crate::xenstore::Client;
use crate::{event, fake, grant, mem, toolstack, xenstore};
use alloc::string::String;
use alloc::vec::Vec;
use proptest::prelude::*;

mod chains;
mod unheard;

const NETVM: DomId = DomId(2);
const OTHER: DomId = DomId(11);
const MS: u64 = 1_000_000;

/// The event loop, as far as it concerns the uplink.
struct Rig {
    store: Store,
    client: Client,
    front: Frontend,
    events: Vec<Event>,
    frames: Vec<Frame>,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(Config { rx_buffers: 32, tx_in_flight: 16, offloads: false })
    }

    fn with(config: Config) -> Rig {
        let store = Store::new();
        let (page, channel) = toolstack::xenstore().unwrap();
        let mut rig = Rig {
            store,
            client: Client::new(page, channel),
            front: Frontend::new(config),
            events: Vec::new(),
            frames: Vec::new(),
        };
        rig.front.start(&mut rig.client);
        rig.settle();
        rig
    }

    /// One turn of the loop; `true` if anything happened.
    fn turn(&mut self) -> bool {
        let now = fake::now_ns();
        let mut active = self.store.serve();
        let (front, port) = (&mut self.front, self.client.port());
        event::take_pending(|event| {
            active = true;
            assert!(event == port || front.on_event(event), "an event of nobody");
        });
        while let Some(event) = self.client.poll() {
            active = true;
            match event {
                xenstore::Event::Reply(reply) => {
                    self.front.on_reply(reply, &mut self.client, now);
                }
                xenstore::Event::Watch(event) => self.front.on_watch(&event),
            }
        }
        self.front.advance(&mut self.client, now);
        self.front.receive(64, now);
        self.frames.extend(core::iter::from_fn(|| self.front.next_frame()));
        self.front.flush(now);
        self.events.extend(core::iter::from_fn(|| self.front.next_event()));
        self.client.flush();
        active || self.store.serve() || self.front.has_work()
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            if !self.turn() && !self.turn() {
                return;
            }
        }
        panic!("the loop does not come to rest");
    }

    /// Sleeps as the loop does: until a deadline, and no longer than asked for.
    fn pass(&mut self, ms: u64) {
        self.settle();
        let end = fake::now_ns() + ms * MS;
        while fake::now_ns() < end {
            let now = fake::now_ns();
            let due = self.front.next_deadline().map_or(end, |due| due.clamp(now + 1, end));
            fake::advance_ns(due - now);
            self.settle();
        }
    }

    fn connect(&mut self, netvm: DomId, devid: u32) -> NetVm {
        attach_uplink(&mut self.store, netvm, devid);
        self.settle();
        self.join(netvm, devid)
    }

    /// The backend's half of a connection.
    fn join(&mut self, netvm: DomId, devid: u32) -> NetVm {
        fake::peer(netvm);
        NetVm::offer(&mut self.store, netvm, devid);
        self.settle();
        assert_eq!(self.state(devid).as_deref(), Some("4"), "published");
        let backend = NetVm::connect(&mut self.store, netvm, devid);
        self.settle();
        assert!(self.front.is_up());
        backend
    }

    fn state(&self, devid: u32) -> Option<String> {
        self.store.read(&alloc::format!("device/vif/{devid}/state"))
    }

    fn set_back(&mut self, backend: &str, name: &str, value: &str) {
        self.store.write(&alloc::format!("{backend}/{name}"), value);
        self.settle();
    }

    fn send(&mut self, len: usize, offload: Offload) -> Result<(), SendError> {
        let mut page = Page::alloc_recycled().unwrap();
        page.prefix_mut(len).copy_from_slice(&frame(len));
        self.front.send(Chain::new(page, len as u16), offload)
    }

    fn last_down(&self) -> Option<DownReason> {
        match self.events.last() {
            Some(Event::Down { reason, .. }) => Some(*reason),
            _ => None,
        }
    }
}

/// The backend unmaps our rings; what it held comes back by itself.
fn end(mut rig: Rig, backend: NetVm) {
    drop(backend);
    assert!(grant::quarantined() > 0);
    rig.pass(1000);
    assert_eq!(grant::quarantined(), 0);
}

fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
    frame[12] = 0x08;
    frame[13] = 0x00;
    frame
}

#[test]
fn handshake_with_a_linux_backend() {
    let mut rig = Rig::new();
    attach_uplink(&mut rig.store, NETVM, 3);
    rig.settle();
    assert!(rig.store.take_writes().is_empty(), "the backend speaks first");
    let backend = rig.join(NETVM, 3);
    let writes = rig.store.take_writes();
    let names: Vec<&str> =
        writes.iter().map(|(path, _)| path.rsplit_once('/').unwrap().1).collect();
    let expected =
        ["tx-ring-ref", "rx-ring-ref", "event-channel", "request-rx-copy", "feature-rx-notify"];
    assert_eq!(names[..5], expected);
    assert_eq!(writes[5..], [(alloc::format!("{}/device/vif/3/state", Store::home()), "4".into())]);
    let [Event::Up { mac, backend: dom, mtu, capabilities, .. }] = rig.events.as_slice() else {
        panic!("{:?}", rig.events)
    };
    assert_eq!((*mac, *dom, *mtu), ([0, 0x16, 0x3e, 0x5e, 0x6c, 7], NETVM, 1500));
    assert!(capabilities.blank_ipv4 && capabilities.blank_ipv6);
    assert_eq!(rig.front.status().unwrap().posted, 32);
    drop(backend);
}

#[test]
fn a_frame_to_the_backend_carries_its_bytes_and_flags() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    for offload in [Offload::NONE, Offload::BLANK, Offload::VALIDATED] {
        rig.send(100, offload).unwrap();
    }
    rig.settle();
    let sent = backend.sent();
    let flags: Vec<u16> = sent.iter().map(|(request, _)| request.flags.0).collect();
    let blank = TxFlags::CSUM_BLANK | TxFlags::DATA_VALIDATED;
    assert_eq!(flags, [0, blank, TxFlags::DATA_VALIDATED]);
    assert!(sent.iter().all(|(request, bytes)| request.offset == 0 && *bytes == frame(100)));
    rig.settle();
    assert_eq!(rig.front.status().unwrap().in_flight, 0);
    assert_eq!(rig.front.send_room(), 16);
    assert_eq!(rig.front.counters().sent_bytes, 300);
}

#[test]
fn a_backend_finds_empty_rings_when_it_binds_the_channel() {
    let mut rig = Rig::new();
    attach_uplink(&mut rig.store, NETVM, 0);
    rig.settle();
    fake::peer(NETVM);
    NetVm::offer(&mut rig.store, NETVM, 0);
    rig.settle();
    assert_eq!(rig.state(0).as_deref(), Some("4"), "published");
    let mut backend = NetVm::connect(&mut rig.store, NETVM, 0);
    // A Linux backend with work at this moment may lose the end of its first interrupt, and with it every later event.
    assert!(backend.take_buffer().is_none(), "a receive buffer before the backend was ready");
    assert!(backend.take_requests().is_empty());
    backend.peer.take_notifications();
    rig.settle();
    // In state 4 it has done its own part: buffers come, and the event that tells of them.
    assert!(rig.front.is_up());
    assert_eq!(backend.peer.take_notifications(), [backend.port]);
    assert!(backend.take_buffer().is_some());
    assert_eq!(rig.front.status().unwrap().posted, 32);
}

#[test]
fn a_frame_from_the_backend_is_private_before_it_is_seen() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    let first = backend.take_buffer().unwrap();
    backend.peer.write(first.gref, 0, &frame(1514)).unwrap();
    let flags = RxFlags(RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED);
    backend.respond_rx(RxResponse { id: first.id, offset: 0, flags, status: 1514 });
    rig.settle();
    let got = rig.frames.pop().unwrap();
    assert_eq!((got.chain.len(), got.offload.checksum), (1514, Checksum::Blank));
    assert_eq!(*got.chain.head().bytes(), frame(1514));
    // The grant ended: the backend cannot reach that page any more, though it may reach a fresh one.
    let _ = backend.peer.write(first.gref, 0, &[0xff; 1514]);
    assert_eq!(*got.chain.head().bytes(), frame(1514));
    assert_eq!(rig.front.status().unwrap().posted, 32, "refilled");
}

#[test]
fn r7_data_validated_from_the_backend_is_not_passed_on() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    backend.deliver(&frame(60), RxFlags(RxFlags::DATA_VALIDATED));
    backend.deliver(&frame(60), RxFlags(0));
    rig.settle();
    assert!(rig.frames.iter().all(|frame| frame.offload == Offload::NONE));
    assert_eq!(rig.frames.len(), 2);
}

#[test]
fn data_at_an_offset_is_moved_to_the_start() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    let buffer = backend.take_buffer().unwrap();
    backend.peer.write(buffer.gref, 4036, &frame(60)).unwrap();
    let response = RxResponse { id: buffer.id, offset: 4036, flags: RxFlags(0), status: 60 };
    backend.respond_rx(response);
    rig.settle();
    assert_eq!(*rig.frames[0].chain.head().bytes(), frame(60));
}

#[test]
fn unusable_frames_are_counted_and_their_buffers_replaced() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    for status in [STATUS_ERROR, STATUS_DROPPED, 0, 13, 1519, 4096] {
        let id = backend.take_buffer().unwrap().id;
        backend.respond_rx(RxResponse { id, offset: 0, flags: RxFlags(0), status });
    }
    rig.settle();
    assert!(rig.frames.is_empty() && rig.front.is_up());
    assert_eq!(rig.front.counters().unusable, 6);
    assert_eq!(rig.front.status().unwrap().posted, 32);
}

#[test]
fn packets_in_several_slots_are_dropped_whole() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    let flags = [RxFlags::MORE_DATA | RxFlags::EXTRA_INFO, 0, RxFlags::MORE_DATA, 0];
    for (number, flags) in flags.into_iter().enumerate() {
        let id = backend.take_buffer().unwrap().id;
        if number == 1 {
            // A GSO extra info in the place of a response.
            backend.rx.respond(&backend.rx_page, &[1, 0, 0xa8, 5, 1, 0, 0, 0]);
        } else {
            let response = RxResponse { id, offset: 0, flags: RxFlags(flags), status: 1000 };
            backend.rx.respond(&backend.rx_page, &response.encode());
        }
    }
    // All published at once, as Linux does.
    backend.deliver(&frame(60), RxFlags(0));
    rig.settle();
    assert_eq!((rig.frames.len(), rig.front.counters().multi_slot), (1, 1));
    assert!(rig.front.is_up());
}

#[test]
fn r6_unusable_extra_infos_close_the_uplink() {
    for (extra, count) in [([0, 0], 1), ([6, 0], 1), ([1, 1], 5)] {
        fake::reset();
        let mut rig = Rig::new();
        let mut backend = rig.connect(NETVM, 0);
        let id = backend.take_buffer().unwrap().id;
        let flags = RxFlags(RxFlags::EXTRA_INFO);
        let response = RxResponse { id, offset: 0, flags, status: 60 };
        backend.rx.respond(&backend.rx_page, &response.encode());
        for _ in 0..count {
            backend.take_buffer().unwrap();
            let [kind, more] = extra;
            backend.rx.respond(&backend.rx_page, &[kind, more, 0xa8, 5, 1, 0, 0, 0]);
        }
        // All published at once.
        backend.deliver(&frame(60), RxFlags(0));
        rig.settle();
        assert_eq!(rig.last_down(), Some(DownReason::UnknownExtra), "type {}", extra[0]);
        assert!(rig.frames.is_empty());
        end(rig, backend);
    }
}

#[test]
fn events_without_work_are_taken_at_a_bounded_rate() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    for _ in 0..1000 {
        backend.peer.notify(backend.port);
        rig.settle();
    }
    let events = rig.front.counters().events;
    assert!(events < 20, "{events} events taken without time passing");
    backend.deliver(&frame(60), RxFlags(0));
    rig.pass(20);
    assert_eq!(rig.frames.len(), 1);
}

#[test]
fn an_unfinished_chain_closes_the_uplink() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    let id = backend.take_buffer().unwrap().id;
    let flags = RxFlags(RxFlags::MORE_DATA);
    backend.respond_rx(RxResponse { id, offset: 0, flags, status: 60 });
    rig.settle();
    assert_eq!(rig.last_down(), Some(DownReason::TruncatedPacket));
}

/// Of one client that is alone nobody waits for answers: no event tells of them, and their pages are looked for.
#[test]
fn pages_come_back_without_an_event_while_one_client_is_alone() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    rig.front.alone(true);
    let free = mem::free_pages();
    for round in 0..3 {
        for _ in 0..4 {
            rig.send(600, Offload::NONE).unwrap();
        }
        rig.settle();
        let asked =
            backend.tx_page.load_acquire_u32(12).wrapping_sub(backend.tx_page.load_acquire_u32(8));
        assert_eq!(asked, 5, "one more than there will be");
        backend.sent();
        if round == 0 {
            // Something else wakes the loop.
            rig.settle();
        } else {
            assert_eq!(rig.front.status().unwrap().in_flight, 4);
            rig.pass(30);
        }
        assert_eq!((rig.front.status().unwrap().in_flight, mem::free_pages()), (0, free));
    }
    // A backend that takes its time is not looked at over and over: it tells by an event.
    rig.send(600, Offload::NONE).unwrap();
    rig.settle();
    rig.pass(30);
    assert!(rig.front.next_deadline().is_none_or(|due| due > fake::now_ns() + 30 * MS));
    backend.sent();
    rig.settle();
    assert_eq!((rig.front.status().unwrap().in_flight, mem::free_pages()), (0, free));
    drop((rig, backend));
}

#[test]
fn offloads_and_lengths_that_do_not_fit_are_refused() {
    let mut rig = Rig::new();
    assert_eq!(rig.send(60, Offload::NONE), Err(SendError::Down));
    let _backend = rig.connect(NETVM, 0);
    let free = mem::free_pages();
    let chain = |len| Chain::new(Page::alloc().unwrap(), len);
    assert_eq!(rig.front.send(chain(13), Offload::NONE), Err(SendError::BadLength));
    assert_eq!(rig.front.send(chain(1519), Offload::NONE), Err(SendError::BadLength));
    assert_eq!(rig.front.send(chain(60), Offload::BLANK), Err(SendError::Unsupported), "not IP");
    for _ in 0..16 {
        assert_eq!(rig.send(60, Offload::NONE), Ok(()));
    }
    assert_eq!(rig.front.send_room(), 0);
    assert_eq!(rig.send(60, Offload::NONE), Err(SendError::Full));
    assert_eq!(mem::free_pages(), free - 16);
}

#[test]
fn r12_a_granted_page_holds_no_old_bytes() {
    let mut rig = Rig::new();
    // Every page of the pool has been used for something secret.
    let mut pages: Vec<Page> = core::iter::from_fn(Page::alloc).collect();
    pages.iter_mut().for_each(|page| page.bytes_mut().fill(0xaa));
    drop(pages);
    let mut backend = rig.connect(NETVM, 0);
    rig.send(60, Offload::NONE).unwrap();
    rig.settle();
    let mut all = [0; 4096];
    let request = backend.take_requests()[0];
    backend.peer.read(request.gref, 0, &mut all).unwrap();
    assert_eq!(all[..60], frame(60));
    assert!(all[60..].iter().all(|byte| *byte == 0), "old bytes after the frame");
    let mut buffers = 0;
    while let Some(buffer) = backend.take_buffer() {
        backend.peer.read(buffer.gref, 0, &mut all).unwrap();
        assert!(all.iter().all(|byte| *byte == 0), "old bytes in a receive buffer");
        buffers += 1;
    }
    assert_eq!(buffers, 32);
    let rings = [(&backend.tx_page, 64 + 12, 64 + 256 * 12), (&backend.rx_page, 64 + 32 * 8, 4096)];
    for (page, from, to) in rings {
        let mut ring = [0; 4096];
        page.copy_out(0, &mut ring);
        assert!(ring[from..to].iter().all(|byte| *byte == 0), "old bytes in a ring");
    }
}

#[test]
fn a_sent_page_is_granted_read_only_and_only_until_its_response() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    let free = mem::free_pages();
    rig.send(60, Offload::NONE).unwrap();
    rig.settle();
    let request = backend.take_requests()[0];
    assert!(backend.peer.write(request.gref, 0, &[1]).is_err(), "read-only");
    backend.respond(request.id, 0);
    rig.settle();
    assert!(backend.peer.read(request.gref, 0, &mut [0]).is_err(), "revoked");
    assert_eq!(mem::free_pages(), free);
}

#[test]
fn r2_an_id_out_of_range_in_a_response_closes_the_uplink() {
    for id in [16, 255, 256, u16::MAX] {
        fake::reset();
        let mut rig = Rig::new();
        let mut backend = rig.connect(NETVM, 0);
        rig.send(60, Offload::NONE).unwrap();
        rig.settle();
        backend.take_requests();
        backend.respond(id, 0);
        rig.settle();
        assert_eq!(rig.last_down(), Some(DownReason::UnknownResponse), "id {id}");
        assert_eq!(rig.state(0).as_deref(), Some("6"));
        end(rig, backend);
    }
}

#[test]
fn r2_lengths_and_offsets_out_of_range_close_the_uplink() {
    for (offset, status) in [(4090, 60), (1, 4096), (u16::MAX, 1), (0, i16::MAX)] {
        fake::reset();
        let mut rig = Rig::new();
        let mut backend = rig.connect(NETVM, 0);
        let id = backend.take_buffer().unwrap().id;
        backend.respond_rx(RxResponse { id, offset, flags: RxFlags(0), status });
        rig.settle();
        assert_eq!(rig.last_down(), Some(DownReason::BadLength), "{offset} {status}");
        end(rig, backend);
    }
}

#[test]
fn r3_response_index_jump_closes_the_uplink() {
    for (rx, claim, reason) in [
        (false, 1, DownReason::TxRing),
        (false, u32::MAX, DownReason::TxRing),
        (true, 33, DownReason::RxRing),
        (true, 0x8000_0000, DownReason::RxRing),
    ] {
        fake::reset();
        let mut rig = Rig::new();
        let backend = rig.connect(NETVM, 0);
        let page = if rx { &backend.rx_page } else { &backend.tx_page };
        page.store_release_u32(8, claim);
        backend.peer.notify(backend.port);
        rig.settle();
        assert_eq!(rig.last_down(), Some(reason), "claim {claim}");
        end(rig, backend);
    }
}

#[test]
fn r4_duplicate_responses_never_touch_a_page_of_ours() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    rig.send(60, Offload::NONE).unwrap();
    rig.send(61, Offload::NONE).unwrap();
    rig.settle();
    let first = backend.take_requests()[0];
    backend.respond(first.id, 0);
    rig.settle();
    let free = mem::free_pages();
    backend.respond(first.id, 0);
    rig.turn();
    rig.turn();
    assert_eq!(rig.last_down(), Some(DownReason::UnknownResponse));
    assert!(mem::free_pages() > free, "everything else came back as well");
    assert!(!rig.front.is_up());
}

#[test]
fn r4_a_response_with_the_id_of_another_buffer_closes_the_uplink() {
    let mut rig = Rig::new();
    let mut backend = rig.connect(NETVM, 0);
    let id = backend.take_buffer().unwrap().id;
    let response = RxResponse { id: id + 1, offset: 0, flags: RxFlags(0), status: 60 };
    backend.respond_rx(response);
    rig.settle();
    assert_eq!(rig.last_down(), Some(DownReason::UnknownResponse));
    assert!(rig.frames.is_empty());
}

#[test]
fn r4_a_page_still_in_use_after_its_response_is_quarantined() {
    for rx in [false, true] {
        fake::reset();
        let mut rig = Rig::new();
        let mut backend = rig.connect(NETVM, 0);
        let held = if rx {
            let buffer = backend.take_buffer().unwrap();
            let held = backend.peer.map(buffer.gref, Access::ReadWrite).unwrap();
            let response = RxResponse { id: buffer.id, offset: 0, flags: RxFlags(0), status: 60 };
            backend.respond_rx(response);
            held
        } else {
            rig.send(60, Offload::NONE).unwrap();
            rig.settle();
            let request = backend.take_requests()[0];
            let held = backend.peer.map(request.gref, Access::ReadOnly).unwrap();
            backend.respond(request.id, 0);
            held
        };
        rig.settle();
        assert_eq!(rig.last_down(), Some(DownReason::StillInUse));
        assert!(rig.frames.is_empty());
        // The page, and the two rings that this backend has mapped.
        assert_eq!(grant::quarantined(), 3);
        drop(held);
        end(rig, backend);
    }
}

#[test]
fn a_closing_backend_is_followed_and_a_returning_one_connected_again() {
    let mut rig = Rig::new();
    let backend = rig.connect(NETVM, 0);
    let directory = backend.directory.clone();
    rig.send(60, Offload::NONE).unwrap();
    rig.store.write(&alloc::format!("{directory}/state"), "5");
    drop(backend);
    rig.settle();
    assert_eq!(rig.last_down(), Some(DownReason::Backend));
    assert_eq!(rig.state(0).as_deref(), Some("6"));
    assert_eq!(grant::grants_in_use(), 0);
    rig.set_back(&directory, "state", "6");
    assert_eq!(rig.state(0).as_deref(), Some("1"), "online: we start over");
    let mut backend = rig.join(NETVM, 0);
    rig.send(60, Offload::NONE).unwrap();
    rig.settle();
    assert_eq!(backend.sent().len(), 1);
}

#[test]
fn a_backend_that_goes_back_to_state_2_is_connected_again() {
    let mut rig = Rig::new();
    let backend = rig.connect(NETVM, 0);
    let directory = backend.directory.clone();
    drop(backend);
    rig.set_back(&directory, "state", "2");
    assert_eq!(rig.last_down(), Some(DownReason::Backend));
    let backend = NetVm::connect(&mut rig.store, NETVM, 0);
    rig.settle();
    assert!(rig.front.is_up());
    drop(backend);
}

#[test]
fn a_detached_uplink_is_gone_and_another_backend_takes_its_place() {
    let mut rig = Rig::new();
    for (netvm, devid) in [(NETVM, 0), (OTHER, 0), (NETVM, 1), (OTHER, 4)] {
        let backend = rig.connect(netvm, devid);
        assert!(matches!(rig.events.last(), Some(Event::Up { backend, .. }) if *backend == netvm));
        let directory = backend.directory.clone();
        drop(backend);
        rig.store.write(&alloc::format!("{directory}/online"), "0");
        rig.set_back(&directory, "state", "5");
        rig.set_back(&directory, "state", "6");
        assert_eq!(rig.state(devid).as_deref(), Some("6"), "offline: we stay closed");
        rig.store.remove(&directory);
        rig.store.remove(&alloc::format!("device/vif/{devid}"));
        rig.settle();
        assert_eq!((rig.front.status(), rig.store.watches()), (None, 1));
        assert_eq!((grant::grants_in_use(), mem::free_pages()), (0, mem::total_pages()));
    }
}

#[test]
fn a_directory_that_vanishes_takes_the_uplink_down() {
    let mut rig = Rig::new();
    let backend = rig.connect(NETVM, 0);
    drop(backend);
    rig.store.remove("device/vif");
    rig.settle();
    assert_eq!(rig.last_down(), Some(DownReason::Vanished));
    let _again = rig.connect(OTHER, 0);
}

#[test]
fn another_backend_in_the_same_directory_is_noticed() {
    let mut rig = Rig::new();
    let backend = rig.connect(NETVM, 0);
    drop(backend);
    attach_uplink(&mut rig.store, OTHER, 0);
    rig.settle();
    assert_eq!(rig.last_down(), Some(DownReason::Replaced));
    let _backend = rig.join(OTHER, 0);
    assert_eq!(rig.store.watches(), 2);
}

#[test]
fn a_new_device_takes_the_place_of_a_closed_one() {
    let mut rig = Rig::new();
    let backend = rig.connect(NETVM, 0);
    let directory = backend.directory.clone();
    drop(backend);
    // The old NetVM crashed: its directory is gone, ours stays.
    rig.store.remove(&directory);
    rig.settle();
    assert_eq!(rig.state(0).as_deref(), Some("6"));
    let _backend = rig.connect(OTHER, 1);
    assert_eq!(rig.front.status().unwrap().devid, 1);
}

#[test]
fn leftovers_of_an_earlier_driver_are_cleared() {
    for (own, back) in [("4", "4"), ("6", "6"), ("5", "5"), ("6", "2"), ("4", "2"), ("3", "1")] {
        fake::reset();
        let mut rig = Rig::new();
        attach_uplink(&mut rig.store, NETVM, 0);
        let directory = NetVm::directory(NETVM, 0);
        rig.store.write(&alloc::format!("{directory}/feature-rx-copy"), "1");
        rig.store.write(&alloc::format!("{directory}/state"), back);
        rig.store.write("device/vif/0/state", own);
        rig.settle();
        // The backend follows as Linux' does.
        for _ in 0..3 {
            match rig.state(0).as_deref() {
                Some("6") => rig.set_back(&directory, "state", "6"),
                Some("1") => rig.set_back(&directory, "state", "2"),
                _ => {}
            }
        }
        assert_eq!(rig.state(0).as_deref(), Some("4"), "own {own} back {back}");
        let _backend = NetVm::connect(&mut rig.store, NETVM, 0);
        rig.settle();
        assert!(rig.front.is_up());
    }
}

#[test]
fn a_hostile_backend_is_reconnected_at_a_bounded_rate() {
    let mut rig = Rig::new();
    attach_uplink(&mut rig.store, NETVM, 0);
    rig.settle();
    let mut downs = 0;
    let directory = NetVm::directory(NETVM, 0);
    for _ in 0..30 {
        NetVm::offer(&mut rig.store, NETVM, 0);
        rig.settle();
        if rig.state(0).as_deref() == Some("4") {
            let backend = NetVm::connect(&mut rig.store, NETVM, 0);
            rig.settle();
            backend.tx_page.store_release_u32(8, 999);
            backend.peer.notify(backend.port);
            rig.settle();
            downs += 1;
        }
        rig.set_back(&directory, "state", "6");
    }
    assert!((5..=7).contains(&downs), "{downs} connections in no time");
    rig.pass(5000);
    rig.join(NETVM, 0);
}

#[test]
fn a_backend_without_rx_copy_is_not_connected() {
    let mut rig = Rig::new();
    attach_uplink(&mut rig.store, NETVM, 0);
    rig.set_back(&NetVm::directory(NETVM, 0), "state", "2");
    assert_eq!(rig.front.status().unwrap().reason, Some(DownReason::NoRxCopy));
    assert_eq!((rig.state(0).as_deref(), grant::grants_in_use()), (Some("1"), 0));
}

#[test]
fn malformed_nodes_leave_the_uplink_down() {
    for (node, value) in [
        ("backend-id", "x"),
        ("backend-id", "32752"),
        ("backend-id", "3"),
        ("backend", "relative/path"),
        ("backend", "/local/domain/2"),
        ("mac", "00:16"),
        ("mtu", "10"),
    ] {
        fake::reset();
        let mut rig = Rig::new();
        attach_uplink(&mut rig.store, NETVM, 0);
        rig.store.write(&alloc::format!("device/vif/0/{node}"), value);
        fake::peer(NETVM);
        NetVm::offer(&mut rig.store, NETVM, 0);
        rig.settle();
        let status = rig.front.status().unwrap();
        assert_eq!((status.reason, status.uplink), (Some(DownReason::Malformed), None), "{node}");
    }
}

#[test]
fn nodes_that_the_store_refuses_leave_nothing_behind() {
    let mut rig = Rig::new();
    rig.store.refuse("/event-channel", "ENOSPC");
    attach_uplink(&mut rig.store, NETVM, 0);
    fake::peer(NETVM);
    NetVm::offer(&mut rig.store, NETVM, 0);
    rig.settle();
    assert_eq!((rig.state(0).as_deref(), grant::grants_in_use()), (Some("1"), 0));
    assert_eq!(rig.front.status().unwrap().reason, Some(DownReason::Resources));
    rig.store.refuse_nothing();
    rig.pass(1100);
    assert_eq!(rig.state(0).as_deref(), Some("4"));
}

#[test]
fn without_memory_buffers_are_posted_later() {
    fake::reset_with_pages(40);
    let mut rig = Rig::new();
    let mut held: Vec<Page> = (0..20).filter_map(|_| Page::alloc()).collect();
    let mut backend = rig.connect(NETVM, 0);
    assert_eq!(rig.front.status().unwrap().posted, 18, "two pages are rings");
    held.clear();
    rig.settle();
    assert_eq!(rig.front.status().unwrap().posted, 32);
    backend.deliver(&frame(60), RxFlags(0));
    rig.settle();
    assert_eq!(rig.frames.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the backend and dom0 write, in whatever order: with a fresh device we are connected again.
    #[test]
    fn r10_state_jumps_never_wedge_the_uplink(
        steps in proptest::collection::vec((0..4u8, 0..9u8, proptest::bool::ANY), 1..20)
    ) {
        fake::reset();
        let mut rig = Rig::new();
        attach_uplink(&mut rig.store, NETVM, 0);
        fake::peer(NETVM);
        let directory = NetVm::directory(NETVM, 0);
        for (what, state, settle) in steps {
            let state = alloc::format!("{state}");
            match what {
                0 => NetVm::offer(&mut rig.store, NETVM, 0),
                1 => rig.store.write("device/vif/0/state", &state),
                2 => rig.store.remove(&directory),
                _ => rig.store.write(&alloc::format!("{directory}/state"), &state),
            }
            if settle {
                rig.settle();
            }
        }
        rig.pass(4000);
        rig.store.remove("device/vif/0");
        rig.pass(100);
        prop_assert_eq!(grant::grants_in_use(), 0);
        let backend = rig.connect(OTHER, 0);
        drop((backend, rig));
    }
}

#[test]
fn r13_a_hundred_backend_changes_leave_everything_as_it_was() {
    let mut rig = Rig::new();
    let start = (grant::grants_in_use(), mem::free_pages(), rig.store.watches());
    for cycle in 0..100u32 {
        let netvm = if cycle % 2 == 0 { NETVM } else { OTHER };
        let mut backend = rig.connect(netvm, cycle % 3);
        rig.send(60, Offload::NONE).unwrap();
        rig.settle();
        if cycle % 5 != 0 {
            assert_eq!(backend.sent().len(), 1);
        }
        backend.deliver(&frame(60), RxFlags(0));
        rig.settle();
        assert_eq!(rig.frames.drain(..).count(), 1);
        let directory = backend.directory.clone();
        if cycle % 4 == 0 {
            backend.peer.die();
        }
        drop(backend);
        rig.store.remove(&directory);
        rig.store.remove(&alloc::format!("device/vif/{}", cycle % 3));
        rig.settle();
        let end = (grant::grants_in_use(), mem::free_pages(), rig.store.watches());
        assert_eq!(end, start, "cycle {cycle}");
    }
    assert_eq!((rig.client.watches(), rig.front.totals().up), (1, 100));
    drop(rig);
    fake::assert_no_leaks();
}
