use super::*;
use crate::abi::grant_table::GrantStatus;
use crate::abi::{DomId, GrantRef};
use crate::fake::vif::{Guest, attach_client, detach_client};
use crate::fake::xenstore::Store;
use crate::grant::SHARED_PAGES;
use crate::mem::Page;
use crate::netif::{
    Checksum, Moment, RxFlags, RxResponse, STATUS_ERROR, STATUS_NULL, STATUS_OKAY, TxFlags,
    TxRequest, TxResponse,
};
use crate::xenstore::Client;
use crate::{counts, event, fake, grant, mem, toolstack, xenstore};
use alloc::string::String;
use alloc::vec::Vec;
use proptest::prelude::*;

mod chains;
mod waits;

const A: DomId = DomId(5);
const B: DomId = DomId(9);
const MS: u64 = 1_000_000;

/// The event loop, as far as it concerns the backend.
struct Rig {
    store: Store,
    client: Client,
    back: Backend,
    events: Vec<Event>,
    frames: Vec<Frame>,
    budget: Budget,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(Config { max_vifs: 16, queue_per_vif: 8, queue_total: 64, offloads: false })
    }

    fn with(config: Config) -> Rig {
        let store = Store::new();
        let (page, channel) = toolstack::xenstore().unwrap();
        let mut rig = Rig {
            store,
            client: Client::new(page, channel),
            back: Backend::new(config),
            events: Vec::new(),
            frames: Vec::new(),
            budget: Budget { quantum: 16 << 10, total: 64 },
        };
        rig.back.start(&mut rig.client);
        rig.settle();
        rig
    }

    /// One turn of the loop; `true` if anything happened.
    fn turn(&mut self) -> bool {
        let now = fake::now_ns();
        let mut active = self.store.serve();
        let (back, port) = (&mut self.back, self.client.port());
        event::take_pending(|event| {
            active = true;
            assert!(event == port || back.on_event(event), "an event of nobody");
        });
        while let Some(event) = self.client.poll() {
            active = true;
            match event {
                xenstore::Event::Reply(reply) => {
                    self.back.on_reply(reply, &mut self.client, now);
                }
                xenstore::Event::Watch(event) => self.back.on_watch(&event),
            }
        }
        self.back.advance(&mut self.client, now);
        self.events.extend(core::iter::from_fn(|| self.back.next_event()));
        self.back.receive(self.budget, now);
        self.frames.extend(core::iter::from_fn(|| self.back.next_frame()));
        self.back.flush(now);
        self.events.extend(core::iter::from_fn(|| self.back.next_event()));
        self.client.flush();
        active || self.store.serve() || self.back.has_work()
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
            let due = self.back.next_deadline().map_or(end, |due| due.clamp(now + 1, end));
            fake::advance_ns(due - now);
            self.settle();
        }
    }

    fn state(&self, dom: DomId) -> Option<String> {
        self.store.read(&alloc::format!("backend/vif/{}/0/state", dom.0))
    }

    /// A connected guest.
    fn connect(&mut self, dom: DomId) -> (Guest, VifId) {
        attach_client(&mut self.store, dom, 0, "10.137.0.11");
        self.settle();
        let guest = Guest::new(dom, 0);
        guest.publish(&mut self.store);
        self.settle();
        (guest, self.connected(dom))
    }

    fn connected(&self, dom: DomId) -> VifId {
        let status = self.back.vifs().find(|vif| vif.dom == dom).expect("a vif");
        status.vif.unwrap_or_else(|| panic!("not connected: {status:?}"))
    }

    fn is_connected(&self, dom: DomId) -> bool {
        self.back.vifs().any(|vif| vif.dom == dom && vif.vif.is_some())
    }

    fn reason(&self, dom: DomId) -> Option<CloseReason> {
        self.back.vifs().find(|vif| vif.dom == dom).expect("a vif").reason
    }

    /// A frame of one page to send.
    fn chain(bytes: &[u8], len: u16) -> Chain {
        let mut page = Page::alloc().unwrap();
        page.prefix_mut(bytes.len()).copy_from_slice(bytes);
        Chain::new(page, len)
    }

    fn vif(&self, dom: DomId) -> Option<VifStatus> {
        self.back.vifs().find(|vif| vif.dom == dom)
    }
}

fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
    frame[12] = 0x08;
    frame[13] = 0x00;
    frame
}

/// States that we wrote, in order, with the other nodes in between.
fn writes(rig: &mut Rig) -> Vec<(String, String)> {
    let writes = rig.store.take_writes();
    let name = |path: &str| path.rsplit_once('/').map(|(_, name)| String::from(name)).unwrap();
    writes.into_iter().map(|(path, value)| (name(&path), value)).collect()
}

fn states(rig: &mut Rig) -> Vec<String> {
    writes(rig).into_iter().filter(|(name, _)| name == "state").map(|(_, value)| value).collect()
}

#[test]
fn handshake_with_a_linux_frontend() {
    let mut rig = Rig::new();
    attach_client(&mut rig.store, A, 0, "10.137.0.11 fd09::b");
    rig.settle();
    let expected = [("feature-rx-copy", "1"), ("feature-ipv6-csum-offload", "1"), ("state", "2")];
    let expected = expected.map(|(name, value)| (String::from(name), String::from(value)));
    assert_eq!(writes(&mut rig), expected);
    let guest = Guest::new(A, 0);
    guest.publish(&mut rig.store);
    rig.settle();
    let expected = [("hotplug-status", "connected"), ("state", "4")];
    let expected = expected.map(|(name, value)| (String::from(name), String::from(value)));
    assert_eq!(writes(&mut rig), expected);
    let [Event::Connected { vif, identity, capabilities }] = rig.events.as_slice() else {
        panic!("{:?}", rig.events)
    };
    assert_eq!(*vif, rig.connected(A));
    assert_eq!((identity.dom, identity.devid, identity.addresses.len()), (A, 0, 2));
    assert_eq!(identity.mac, [0, 0x16, 0x3e, 0x5e, 0x6c, 0]);
    assert!(capabilities.blank_ipv4 && capabilities.blank_ipv6);
    assert_eq!((rig.store.watches(), rig.client.watches()), (2, 2));
}

#[test]
fn a_frame_from_the_guest_arrives_with_its_bytes_and_flags() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    for (flags, checksum) in
        [(0, Checksum::Full), (2, Checksum::Full), (1, Checksum::Blank), (3, Checksum::Blank)]
    {
        let id = guest.send(&frame(60), TxFlags(flags));
        rig.settle();
        let got = rig.frames.pop().unwrap();
        assert_eq!((got.vif, got.chain.len(), got.offload.checksum), (vif, 60, checksum));
        assert_eq!(*got.chain.head().bytes(), frame(60));
        assert_eq!(guest.responses(), [TxResponse { id, status: STATUS_OKAY }]);
    }
    let counters = rig.back.counters(vif).unwrap();
    assert_eq!((counters.from_guest_frames, counters.from_guest_bytes), (4, 240));
}

#[test]
fn a_frame_in_several_slots_is_joined_and_every_slot_answered_once() {
    let mut rig = Rig::new();
    let (mut guest, _) = rig.connect(A);
    let data = frame(300);
    let parts = [(&data[..5], 4091), (&data[5..100], 0), (&data[100..], 7)];
    for (number, (bytes, offset)) in parts.iter().enumerate() {
        let gref = guest.buffer(*offset, bytes);
        let size = if number == 0 { 300 } else { bytes.len() as u16 };
        let flags = TxFlags(
            if number == 2 { 0 } else { TxFlags::MORE_DATA }
                | if number == 0 { TxFlags::EXTRA_INFO } else { 0 },
        );
        let id = number as u16;
        guest.write_slot(&TxRequest { gref, offset: *offset as u16, flags, id, size }.encode());
        if number == 0 {
            // A multicast entry, which is ignored.
            guest.write_slot(&[2, 0, 1, 0, 0x5e, 0, 0, 1, 0, 0, 0, 0]);
        }
    }
    guest.push_tx();
    rig.settle();
    assert_eq!(*rig.frames[0].chain.head().bytes(), data);
    let statuses: Vec<(u16, i16)> = guest.responses().iter().map(|r| (r.id, r.status)).collect();
    assert_eq!(statuses, [(0, STATUS_OKAY), (0, STATUS_NULL), (1, STATUS_OKAY), (2, STATUS_OKAY)]);
}

#[test]
fn frames_to_the_guest_arrive_in_order_with_bytes_and_flags() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    guest.post(16);
    for (len, offload) in [(60, Offload::NONE), (1514, Offload::BLANK), (61, Offload::VALIDATED)] {
        rig.back.send(vif, Rig::chain(&frame(len), len as u16), offload).unwrap();
    }
    rig.settle();
    let got = guest.received();
    let summary: Vec<(i16, u16)> =
        got.iter().map(|(response, _)| (response.status, response.flags.0)).collect();
    let blank = RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED;
    assert_eq!(summary, [(60, 0), (1514, blank), (61, RxFlags::DATA_VALIDATED)]);
    for (response, bytes) in got {
        assert_eq!((response.offset, bytes), (0, frame(response.status as usize)));
    }
    assert_eq!(mem::free_pages() + SHARED_PAGES, mem::total_pages());
}

#[test]
fn frames_wait_for_buffers_and_the_newest_is_dropped_when_the_queue_is_full() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    let send = |rig: &mut Rig, len: usize| {
        rig.back.send(vif, Rig::chain(&frame(len), len as u16), Offload::NONE)
    };
    for len in 60..68 {
        assert_eq!(send(&mut rig, len), Ok(()));
    }
    assert_eq!(send(&mut rig, 70), Err(SendError::QueueFull));
    rig.settle();
    assert_eq!((guest.received().len(), rig.back.queued()), (0, 8));
    // Each time the event index asks for the very next buffer: the loop may be asleep.
    for (buffers, waiting) in [(3, 5), (4, 1), (1, 0)] {
        let events = rig.back.counters(vif).unwrap().events;
        guest.post(buffers);
        rig.settle();
        assert_eq!(rig.back.counters(vif).unwrap().events, events + 1);
        assert_eq!(rig.back.queued(), waiting);
    }
    let lens: Vec<i16> = guest.received().iter().map(|(response, _)| response.status).collect();
    assert_eq!(lens, [60, 61, 62, 63, 64, 65, 66, 67]);
    assert_eq!(rig.back.counters(vif).unwrap().queue_full, 1);
}

#[test]
fn a_guest_that_takes_nothing_loses_its_queue_and_gets_frames_again_later() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    let free = mem::free_pages();
    for _ in 0..8 {
        rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE).unwrap();
    }
    rig.settle();
    assert!(rig.back.next_deadline().is_some_and(|due| due <= fake::now_ns() + 10_000 * MS));
    fake::advance_ns(10_000 * MS);
    rig.settle();
    assert_eq!((mem::free_pages(), rig.back.queued()), (free, 0));
    let stalled = rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE);
    assert_eq!(stalled, Err(SendError::Stalled));
    guest.post(4);
    rig.settle();
    rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE).unwrap();
    rig.settle();
    assert_eq!(guest.received().len(), 1);
}

#[test]
fn a_guest_without_rx_notify_is_polled() {
    let mut rig = Rig::new();
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    let mut guest = Guest::new(A, 0);
    guest.publish(&mut rig.store);
    guest.set(&mut rig.store, "feature-rx-notify", "0");
    rig.settle();
    let vif = rig.connected(A);
    rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE).unwrap();
    rig.settle();
    assert!(rig.back.next_deadline().is_some_and(|due| due <= fake::now_ns() + 30 * MS));
    guest.post(1);
    // Its event is ignored on purpose: only time passes.
    event::take_pending(|_| {});
    fake::advance_ns(30 * MS);
    rig.settle();
    assert_eq!(guest.received().len(), 1);
}

#[test]
fn offloads_that_a_guest_did_not_offer_are_not_sent_to_it() {
    let mut rig = Rig::new();
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    let guest = Guest::new(A, 0);
    guest.set(&mut rig.store, "feature-no-csum-offload", "1");
    guest.publish(&mut rig.store);
    rig.settle();
    let vif = rig.connected(A);
    let send =
        |rig: &mut Rig, len, offload| rig.back.send(vif, Rig::chain(&frame(60), len), offload);
    assert_eq!(send(&mut rig, 60, Offload::BLANK), Err(SendError::Unsupported));
    assert_eq!(send(&mut rig, 13, Offload::NONE), Err(SendError::BadLength));
    assert_eq!(send(&mut rig, 1519, Offload::NONE), Err(SendError::BadLength));
    assert_eq!(send(&mut rig, 60, Offload::NONE), Ok(()));
}

#[test]
fn r1_every_slot_is_read_once() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    let id = guest.send(&frame(60), TxFlags(0));
    // Between the check and the copy the guest rewrites the slot.
    let link = rig.back.vifs.link_mut(vif).unwrap();
    link.begin_round(1);
    let mut budget = Budget { quantum: 1, total: 1 };
    assert!(
        rig.back.from.drain(link, &mut budget, &mut rig.back.copies, Moment::default()).is_ok()
    );
    let (gref, page) = guest.peer.grant_page(crate::grant::Access::ReadOnly);
    page.copy_in(0, &[0xee; 4096]);
    let flags = TxFlags(TxFlags::CSUM_BLANK);
    let other = TxRequest { gref, offset: 1, flags, id: 0xdead, size: 4000 };
    guest.tx_page.1.copy_in(64, &other.encode());
    rig.back.complete();
    rig.back.flush(fake::now_ns());
    let got = rig.back.next_frame().unwrap();
    assert_eq!((got.chain.len(), got.offload), (60, Offload::NONE));
    assert_eq!(*got.chain.head().bytes(), frame(60));
    assert_eq!(guest.responses(), [TxResponse { id, status: STATUS_OKAY }]);
}

#[test]
fn r2_values_out_of_range_close_the_device_and_a_refused_grant_only_the_packet() {
    let mut rig = Rig::new();
    let (_, other) = rig.connect(B);
    for (offset, size) in [(4096, 60), (4090, 60), (u16::MAX, 1), (0, 0)] {
        let (mut guest, _) = rig.connect(A);
        let gref = guest.buffer(0, &frame(60));
        let flags = TxFlags(0);
        guest.write_slot(&TxRequest { gref, offset, flags, id: 1, size }.encode());
        guest.push_tx();
        rig.settle();
        assert!(!rig.is_connected(A), "offset {offset}, size {size}");
        assert!(matches!(rig.reason(A), Some(CloseReason::Slots(_))));
        assert_eq!(rig.state(A).as_deref(), Some("6"));
        rig.store.remove("/local/domain/5/device/vif/0");
        detach_client(&mut rig.store, A, 0);
        rig.pass(1000);
        assert_eq!(rig.state(A), None);
    }
    let (mut guest, vif) = rig.connect(A);
    for gref in [0, 7, 511, 0xffff_ffff] {
        let request =
            TxRequest { gref: GrantRef(gref), offset: 0, flags: TxFlags(0), id: 0xbeef, size: 60 };
        guest.write_slot(&request.encode());
        guest.push_tx();
        rig.settle();
        assert_eq!(guest.responses(), [TxResponse { id: 0xbeef, status: STATUS_ERROR }]);
    }
    assert!(rig.is_connected(A) && rig.connected(B) == other && rig.frames.is_empty());
    assert_eq!(rig.back.counters(vif).unwrap().copy_failed, 4);
}

#[test]
fn r3_producer_index_jump_closes_the_device() {
    for (ring, claim, reason) in [
        (0, 257, CloseReason::TxRing),
        (0, u32::MAX, CloseReason::TxRing),
        (0, 0x8000_0000, CloseReason::TxRing),
        (1, 257, CloseReason::RxRing),
        (1, u32::MAX, CloseReason::RxRing),
    ] {
        fake::reset();
        let mut rig = Rig::new();
        let (_, other) = rig.connect(B);
        let (guest, vif) = rig.connect(A);
        let page = if ring == 0 { &guest.tx_page.1 } else { &guest.rx_page.1 };
        page.store_release_u32(0, claim);
        guest.peer.notify(guest.port);
        rig.settle();
        assert_eq!(rig.events.last(), Some(&Event::Disconnected { vif, reason }));
        assert_eq!(rig.connected(B), other);
        assert!(!guest.peer.is_in_use(guest.tx_page.0), "unmapped");
        // Nothing more happens until the guest starts anew.
        assert_eq!(rig.state(A).as_deref(), Some("6"));
        guest.set(&mut rig.store, "state", "1");
        rig.settle();
        assert_eq!(rig.state(A).as_deref(), Some("2"));
    }
}

#[test]
fn r3_producer_index_going_backwards_closes_the_device() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    rig.budget = Budget { quantum: 1, total: 1 };
    for _ in 0..3 {
        guest.send(&frame(60), TxFlags(0));
    }
    let now = fake::now_ns();
    event::take_pending(|port| assert!(rig.back.on_event(port)));
    rig.back.receive(rig.budget, now);
    guest.tx_page.1.store_release_u32(0, 2);
    rig.back.receive(rig.budget, now);
    assert_eq!(
        core::iter::from_fn(|| rig.back.next_event()).last(),
        Some(Event::Disconnected { vif, reason: CloseReason::TxRing })
    );
}

#[test]
fn r5_malformed_fragments_close_the_device_and_others_do_not_notice() {
    let mut rig = Rig::new();
    let (mut other, _) = rig.connect(B);
    let (mut guest, _) = rig.connect(A);
    let gref = guest.buffer(0, &frame(100));
    for (id, flags, size) in [(0, TxFlags::MORE_DATA, 100), (1, 0, 0)] {
        let flags = TxFlags(flags);
        guest.write_slot(&TxRequest { gref, offset: 0, flags, id, size }.encode());
    }
    guest.push_tx();
    other.send(&frame(60), TxFlags(0));
    rig.settle();
    assert!(!rig.is_connected(A) && rig.is_connected(B));
    assert_eq!(rig.frames.len(), 1);
}

#[test]
fn r6_gso_that_was_not_negotiated_drops_the_packet_only() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    let gref = guest.buffer(0, &frame(100));
    let flags = TxFlags(TxFlags::EXTRA_INFO | TxFlags::CSUM_BLANK);
    guest.write_slot(&TxRequest { gref, offset: 0, flags, id: 3, size: 100 }.encode());
    guest.write_slot(&[1, 0, 0xa8, 5, 1, 0, 0, 0, 0, 0, 0, 0]);
    guest.push_tx();
    rig.settle();
    let statuses: Vec<i16> = guest.responses().iter().map(|response| response.status).collect();
    assert_eq!(statuses, [STATUS_ERROR, STATUS_NULL]);
    assert!(rig.frames.is_empty());
    assert_eq!(rig.back.counters(vif).unwrap().gso_not_offered, 1);
}

#[test]
fn r8_a_revoked_grant_fails_that_packet_and_the_device_stays() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    let good = guest.send(&frame(60), TxFlags(0));
    let gref = guest.buffer(0, &frame(60));
    let request = TxRequest { gref, offset: 0, flags: TxFlags(0), id: 7, size: 60 };
    guest.write_slot(&request.encode());
    guest.push_tx();
    guest.peer.fail_grant(gref, Some(GrantStatus::GENERAL_ERROR));
    // The same on the way to the guest: its first buffer is gone, its second is not.
    guest.post(2);
    assert!(guest.peer.revoke(guest.posted_refs()[0]));
    for _ in 0..2 {
        rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE).unwrap();
    }
    rig.settle();
    let statuses: Vec<(u16, i16)> = guest.responses().iter().map(|r| (r.id, r.status)).collect();
    assert_eq!(statuses, [(good, STATUS_OKAY), (7, STATUS_ERROR)]);
    assert_eq!(rig.frames.len(), 1);
    guest.rx.unconsumed(&guest.rx_page.1).unwrap();
    let statuses = [0; 2].map(|_| {
        let (_, slot) = guest.rx.take(&guest.rx_page.1).unwrap();
        RxResponse::decode(&slot).status
    });
    assert_eq!(statuses, [STATUS_ERROR, 60]);
    assert_eq!(rig.back.counters(vif).unwrap().copy_failed, 2);
}

#[test]
fn events_without_work_are_taken_at_a_bounded_rate() {
    let mut rig = Rig::new();
    let (guest, vif) = rig.connect(A);
    for _ in 0..1000 {
        guest.peer.notify(guest.port);
        rig.settle();
    }
    let events = rig.back.counters(vif).unwrap().events;
    assert!(events < 20, "{events} events taken without time passing");
    // Its frames are taken after the pause.
    let mut guest = guest;
    guest.send(&frame(60), TxFlags(0));
    rig.pass(20);
    assert_eq!(rig.frames.len(), 1);
}

#[test]
fn budgets_are_kept_and_nobody_is_starved() {
    let mut rig = Rig::new();
    let (mut a, vif_a) = rig.connect(A);
    let (mut b, vif_b) = rig.connect(B);
    for _ in 0..100 {
        a.send(&frame(60), TxFlags(0));
    }
    for _ in 0..10 {
        b.send(&frame(60), TxFlags(0));
    }
    rig.budget = Budget { quantum: 8 * (60 + FRAME_COST), total: 12 };
    let mut order = Vec::new();
    for _ in 0..4 {
        rig.turn();
        assert!(rig.frames.len() <= 12);
        order.extend(rig.frames.drain(..).map(|frame| frame.vif));
    }
    let of = |vif| order.iter().filter(|other| **other == vif).count();
    assert_eq!((order.len(), of(vif_b)), (of(vif_a) + 10, 10));
    rig.settle();
    assert_eq!(rig.frames.len() + order.len(), 110);
}

#[test]
fn more_than_one_batch_of_copies_is_taken_in_one_turn() {
    let mut rig = Rig::new();
    let (mut a, _) = rig.connect(A);
    let (mut b, _) = rig.connect(B);
    let (mut c, _) = rig.connect(DomId(10));
    let data = frame(17 + 40);
    for guest in [&mut a, &mut b, &mut c] {
        let gref = guest.buffer(0, &data);
        for packet in 0..14u16 {
            for piece in 0..18u16 {
                let (offset, size) = if piece == 0 { (0, 57) } else { (39 + piece, 1) };
                let flags = TxFlags(if piece == 17 { 0 } else { TxFlags::MORE_DATA });
                let id = packet * 18 + piece;
                guest.write_slot(&TxRequest { gref, offset, flags, id, size }.encode());
            }
        }
        guest.push_tx();
    }
    let before = counts::counts().copies;
    rig.turn();
    assert_eq!(rig.frames.len(), 42);
    assert_eq!(counts::counts().copies - before, 2);
    assert!(rig.frames.iter().all(|frame| frame.chain.head().bytes() == data));
    for guest in [&mut a, &mut b, &mut c] {
        let ids: Vec<u16> = guest.responses().iter().map(|response| response.id).collect();
        assert_eq!(ids, (0..14 * 18).collect::<Vec<u16>>());
    }
}

#[test]
fn what_goes_to_clients_and_what_comes_from_them_share_one_copying_call() {
    let mut rig = Rig::new();
    let (mut a, vif) = rig.connect(A);
    let (mut b, _) = rig.connect(B);
    a.post(4);
    rig.back.send(vif, Rig::chain(&frame(70), 70), Offload::NONE).unwrap();
    for guest in [&mut a, &mut b] {
        guest.send(&frame(60), TxFlags(0));
    }
    let before = counts::counts().copies;
    rig.turn();
    assert_eq!(counts::counts().copies - before, 1);
    assert_eq!(rig.frames.len(), 2);
    assert!(rig.frames.iter().all(|frame| *frame.chain.head().bytes() == self::frame(60)));
    let got = a.received();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].1, frame(70));
    for guest in [&mut a, &mut b] {
        assert!(guest.responses().iter().all(|response| response.status == STATUS_OKAY));
    }
    assert_eq!(rig.back.queued(), 0);
}

#[test]
fn queues_longer_than_one_batch_are_copied_in_one_flush() {
    let mut rig = Rig::new();
    rig.back.config.queue_per_vif = 150;
    rig.back.config.queue_total = 1000;
    let (mut a, vif_a) = rig.connect(A);
    let (mut b, vif_b) = rig.connect(B);
    a.post(150);
    b.post(150);
    for len in 60..210 {
        for vif in [vif_a, vif_b] {
            rig.back.send(vif, Rig::chain(&frame(len), len as u16), Offload::NONE).unwrap();
        }
    }
    let before = counts::counts().copies;
    rig.back.flush(fake::now_ns());
    assert_eq!(counts::counts().copies - before, 2);
    for guest in [&mut a, &mut b] {
        let got = guest.received();
        assert!(got.iter().map(|(_, bytes)| bytes.len()).eq(60..210));
    }
    assert_eq!(mem::free_pages() + SHARED_PAGES, mem::total_pages());
}

#[test]
fn slow_clients_share_the_memory_for_waiting_frames() {
    let mut rig = Rig::new();
    rig.back.config = Config { queue_per_vif: 100, queue_total: 40, ..rig.back.config };
    let (_a, vif_a) = rig.connect(A);
    let (_b, vif_b) = rig.connect(B);
    let fill = |rig: &mut Rig, vif| {
        let send = || rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE);
        core::iter::repeat_with(send).take_while(Result::is_ok).count()
    };
    assert_eq!((fill(&mut rig, vif_a), fill(&mut rig, vif_b)), (20, 20));
    // Two more: what was free was for whoever came first, and a share is left for each.
    let (_c, vif_c) = rig.connect(DomId(10));
    let (_d, vif_d) = rig.connect(DomId(12));
    assert_eq!((fill(&mut rig, vif_c), fill(&mut rig, vif_d)), (10, 10));
}

#[test]
fn one_slow_client_among_many_may_use_half_of_that_memory() {
    let mut rig = Rig::new();
    rig.back.config = Config { queue_per_vif: 100, queue_total: 80, ..rig.back.config };
    let vifs: Vec<_> = (20..28).map(|dom| rig.connect(DomId(dom))).collect();
    let fill = |rig: &mut Rig, vif| {
        let send = || rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE);
        core::iter::repeat_with(send).take_while(Result::is_ok).count()
    };
    let filled: Vec<usize> = vifs.iter().map(|(_, vif)| fill(&mut rig, *vif)).collect();
    assert_eq!(filled, [40, 20, 10, 10, 10, 10, 10, 10]);
}

#[test]
fn vifs_beyond_the_bound_are_left_alone() {
    let mut rig = Rig::new();
    for number in 0..18 {
        attach_client(&mut rig.store, DomId(20 + number), 0, "10.137.0.11");
        rig.settle();
    }
    let offered = (20..38).filter(|dom| rig.state(DomId(*dom)).as_deref() == Some("2")).count();
    assert_eq!((offered, rig.back.vifs().count()), (16, 16));
    assert!(rig.back.totals().too_many > 0);
    for dom in [20, 21] {
        detach_client(&mut rig.store, DomId(dom), 0);
    }
    rig.pass(700);
    let offered = (22..38).filter(|dom| rig.state(DomId(*dom)).as_deref() == Some("2")).count();
    assert_eq!(offered, 16, "they get the slots that became free");
}

#[test]
fn without_a_free_page_requests_stay_with_the_guest() {
    fake::reset_with_pages(4 + SHARED_PAGES);
    let mut rig = Rig::new();
    let (mut guest, _) = rig.connect(A);
    let held: Vec<Page> = core::iter::from_fn(Page::alloc).collect();
    guest.send(&frame(60), TxFlags(0));
    rig.turn();
    assert!(rig.frames.is_empty() && guest.responses().is_empty());
    assert!(!rig.back.has_work() && rig.back.next_deadline().is_some(), "sleeps a little");
    drop(held);
    fake::advance_ns(MS);
    rig.settle();
    assert_eq!((rig.frames.len(), guest.responses().len()), (1, 1));
}

#[test]
fn detach_with_a_polite_frontend_closes_and_removes_the_directory() {
    let mut rig = Rig::new();
    let (guest, vif) = rig.connect(A);
    states(&mut rig);
    detach_client(&mut rig.store, A, 0);
    rig.settle();
    assert!(rig.is_connected(A), "the frontend gets a moment");
    guest.set(&mut rig.store, "state", "6");
    rig.settle();
    assert_eq!(states(&mut rig), ["6"]);
    assert!(!guest.peer.is_in_use(guest.tx_page.0));
    let reason = CloseReason::Removed;
    assert_eq!(rig.events.last(), Some(&Event::Disconnected { vif, reason }));
    rig.pass(400);
    assert_eq!(rig.state(A).as_deref(), Some("6"), "state 6 stays visible for a while");
    rig.pass(200);
    assert_eq!(rig.store.read("backend/vif/5/0"), None);
    assert_eq!((rig.vif(A), rig.store.watches()), (None, 1));
}

#[test]
fn detach_with_an_unresponsive_frontend_is_over_within_two_seconds() {
    let mut rig = Rig::new();
    let (_guest, _) = rig.connect(A);
    detach_client(&mut rig.store, A, 0);
    rig.settle();
    rig.pass(900);
    assert!(rig.is_connected(A));
    rig.pass(1100);
    assert_eq!(rig.store.read("backend/vif/5/0"), None);
    assert_eq!(rig.store.watches(), 1);
}

#[test]
fn a_detach_before_the_frontend_connected_removes_the_directory() {
    let mut rig = Rig::new();
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    states(&mut rig);
    detach_client(&mut rig.store, A, 0);
    rig.pass(700);
    assert_eq!(states(&mut rig), ["6"]);
    assert_eq!(rig.store.read("backend/vif/5/0"), None);
}

#[test]
fn a_windows_frontend_closes_before_it_connects() {
    let mut rig = Rig::new();
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    let guest = Guest::new(A, 0);
    for (front, back) in [("5", "5"), ("6", "6"), ("1", "2")] {
        guest.set(&mut rig.store, "state", front);
        rig.settle();
        assert_eq!(rig.state(A).as_deref(), Some(back));
    }
    guest.publish(&mut rig.store);
    rig.settle();
    assert!(rig.is_connected(A));
}

#[test]
fn a_restarted_driver_is_offered_the_device_again() {
    let mut rig = Rig::new();
    let (guest, old) = rig.connect(A);
    states(&mut rig);
    guest.set(&mut rig.store, "state", "1");
    rig.settle();
    assert_eq!(states(&mut rig), ["5", "6", "2"]);
    let guest = Guest::new(A, 0);
    guest.publish(&mut rig.store);
    rig.settle();
    let new = rig.connected(A);
    assert_ne!(new, old);
    assert_eq!(rig.back.send(old, Rig::chain(&frame(60), 60), Offload::NONE), Err(SendError::Gone));
    assert_eq!(rig.back.send(new, Rig::chain(&frame(60), 60), Offload::NONE), Ok(()));
}

#[test]
fn a_destroyed_client_is_let_go_at_once() {
    let mut rig = Rig::new();
    let (guest, _) = rig.connect(A);
    guest.peer.die();
    rig.store.remove("/local/domain/5");
    rig.settle();
    assert!(!rig.is_connected(A), "its rings would keep it a zombie");
    detach_client(&mut rig.store, A, 0);
    rig.pass(600);
    assert_eq!(rig.store.read("backend/vif/5/0"), None);
}

#[test]
fn a_frontend_that_flips_its_state_is_slowed_down() {
    let mut rig = Rig::new();
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    states(&mut rig);
    for _ in 0..100 {
        for state in ["6", "1"] {
            rig.store.write("/local/domain/5/device/vif/0/state", state);
            rig.settle();
        }
    }
    let offers = states(&mut rig).iter().filter(|state| *state == "2").count();
    assert!(offers <= 6, "{offers} offers in no time");
    rig.pass(5000);
    assert_eq!(rig.state(A).as_deref(), Some("2"), "it is served in the end");
}

#[test]
fn quota_errors_do_not_keep_a_client_from_starting() {
    let mut rig = Rig::new();
    rig.store.refuse("/feature-rx-copy", "EQUOTA");
    rig.store.refuse("/feature-ipv6-csum-offload", "ENOSPC");
    rig.store.refuse("/hotplug-status", "EACCES");
    let (_guest, _) = rig.connect(A);
    assert_eq!(rig.state(A).as_deref(), Some("4"));
    // What it may do without is not even tried.
    assert_eq!((rig.back.totals().write_errors, rig.back.totals().limited), (2, 1));
}

/// Whether a vif's directory has a feature.
fn offers(rig: &Rig, dom: DomId, feature: &str) -> bool {
    rig.store.read(&alloc::format!("backend/vif/{}/0/feature-{feature}", dom.0)).is_some()
}

#[test]
fn beyond_the_node_quota_a_vif_gets_what_it_needs_and_is_told() {
    let mut rig =
        Rig::with(Config { max_vifs: 16, queue_per_vif: 8, queue_total: 64, offloads: true });
    let (_guest, _) = rig.connect(A);
    assert!(offers(&rig, A, "gso-tcpv6"));
    // Dom0 makes its own nodes whatever the quota; after them there is no room for one of ours.
    attach_client(&mut rig.store, B, 0, "10.137.0.12");
    rig.store.limit_nodes(rig.store.nodes());
    rig.pass(2000);
    assert_eq!(rig.state(B).as_deref(), Some("2"));
    assert!(offers(&rig, B, "rx-copy"), "A's features have made room");
    assert!(!offers(&rig, B, "sg") && !offers(&rig, A, "sg"));
    Guest::new(B, 0).publish(&mut rig.store);
    rig.settle();
    assert!(rig.is_connected(A) && rig.is_connected(B));
    let limited = |event: &&Event| matches!(event, Event::Limited { .. });
    let told: Vec<&Event> = rig.events.iter().filter(limited).collect();
    assert_eq!(told, [&Event::Limited { dom: B, devid: 0 }], "A has connected with all features");
    assert_eq!(rig.back.totals().limited, 1);
    // A vif that goes makes room: the next one gets everything again.
    detach_client(&mut rig.store, A, 0);
    rig.pass(3000);
    rig.store.limit_nodes(usize::MAX);
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    assert!(offers(&rig, A, "gso-tcpv6"));
}

#[test]
fn a_feature_that_finds_no_room_takes_the_others_of_its_vif_with_it() {
    let mut rig =
        Rig::with(Config { max_vifs: 16, queue_per_vif: 8, queue_total: 64, offloads: true });
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.store.limit_nodes(rig.store.nodes() + 3);
    rig.settle();
    assert_eq!(rig.state(A).as_deref(), Some("2"));
    assert!(offers(&rig, A, "rx-copy"));
    for feature in ["ipv6-csum-offload", "sg", "gso-tcpv4", "gso-tcpv6"] {
        assert!(!offers(&rig, A, feature), "{feature}");
    }
    assert_eq!(rig.back.totals().limited, 1);
}

#[test]
fn without_a_watch_the_frontend_is_looked_at_regularly() {
    let mut rig = Rig::new();
    rig.store.limit_watches(1);
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    rig.settle();
    let guest = Guest::new(A, 0);
    guest.publish(&mut rig.store);
    rig.settle();
    assert!(!rig.is_connected(A));
    rig.pass(600);
    assert!(rig.is_connected(A));
}

#[test]
fn vifs_of_one_address_progress_independently() {
    let mut rig = Rig::new();
    // The guest's own vif, which stays in state 2 for ever, and its stub domain's.
    attach_client(&mut rig.store, A, 0, "10.137.0.11");
    let (_stub, _) = rig.connect(B);
    assert_eq!((rig.state(A).as_deref(), rig.state(B).as_deref()), (Some("2"), Some("4")));
    assert!(rig.is_connected(B));
}

#[test]
fn malformed_nodes_close_one_vif_with_a_reason() {
    for (node, value, error) in [
        ("frontend-id", "6", IdentityError::FrontendId),
        ("frontend", "/local/domain/6/device/vif/0", IdentityError::Frontend),
        ("mac", "nonsense", IdentityError::Mac),
        ("ip", "", IdentityError::Ip),
    ] {
        fake::reset();
        let mut rig = Rig::new();
        let (_other, _) = rig.connect(B);
        attach_client(&mut rig.store, A, 0, "10.137.0.11");
        rig.store.write(&alloc::format!("backend/vif/5/0/{node}"), value);
        rig.settle();
        let reason = CloseReason::Identity(error);
        assert_eq!(rig.events.last(), Some(&Event::Refused { dom: A, devid: 0, reason }));
        assert_eq!(rig.state(A).as_deref(), Some("6"), "{node}");
        assert!(rig.is_connected(B));
    }
}

#[test]
fn malformed_settings_close_one_vif_with_a_reason() {
    for (node, value, setting) in [
        ("tx-ring-ref", "x", Setting::TxRingRef),
        ("rx-ring-ref", "-1", Setting::RxRingRef),
        ("event-channel", "", Setting::EventChannel),
        ("request-rx-copy", "0", Setting::RequestRxCopy),
        ("multi-queue-num-queues", "2", Setting::NumQueues),
        ("feature-rx-notify", "7", Setting::RxNotify),
    ] {
        fake::reset();
        let mut rig = Rig::new();
        attach_client(&mut rig.store, A, 0, "10.137.0.11");
        rig.settle();
        let guest = Guest::new(A, 0);
        guest.publish(&mut rig.store);
        guest.set(&mut rig.store, node, value);
        rig.settle();
        assert_eq!(rig.reason(A), Some(CloseReason::Setting(setting)));
        assert_eq!(rig.state(A).as_deref(), Some("6"));
    }
}

#[test]
fn rings_that_cannot_be_mapped_or_bound_close_one_vif() {
    for (node, value) in [("tx-ring-ref", "500"), ("rx-ring-ref", "99999"), ("event-channel", "99")]
    {
        fake::reset();
        let mut rig = Rig::new();
        attach_client(&mut rig.store, A, 0, "10.137.0.11");
        rig.settle();
        let guest = Guest::new(A, 0);
        guest.publish(&mut rig.store);
        guest.set(&mut rig.store, node, value);
        rig.settle();
        let reason = rig.reason(A);
        let expected = matches!(reason, Some(CloseReason::Map(_) | CloseReason::EventChannel(_)));
        assert!(expected, "{node}: {reason:?}");
        assert!(!guest.peer.is_in_use(guest.tx_page.0));
    }
}

#[test]
fn r10_ring_references_that_change_while_connected_are_ignored() {
    let mut rig = Rig::new();
    let (mut guest, vif) = rig.connect(A);
    guest.set(&mut rig.store, "tx-ring-ref", "1");
    guest.set(&mut rig.store, "event-channel", "nonsense");
    guest.set(&mut rig.store, "state", "4");
    rig.settle();
    guest.send(&frame(60), TxFlags(0));
    rig.settle();
    assert_eq!((rig.connected(A), rig.frames.len()), (vif, 1));
}

#[test]
fn r10_a_directory_that_vanishes_is_forgotten() {
    let mut rig = Rig::new();
    let (guest, vif) = rig.connect(A);
    rig.store.remove("backend/vif/5");
    rig.settle();
    let reason = CloseReason::Vanished;
    assert_eq!(rig.events.last(), Some(&Event::Disconnected { vif, reason }));
    assert!(rig.vif(A).is_none() && !guest.peer.is_in_use(guest.tx_page.0));
    assert_eq!(rig.store.watches(), 1);
    // The same name again is a new device.
    let (_guest, again) = rig.connect(A);
    assert_ne!(again, vif);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the frontend and dom0 write, in whatever order: once the frontend behaves, it gets connected, or the
    /// device is gone because dom0 wanted that.
    #[test]
    fn r10_state_jumps_never_wedge_a_vif(
        steps in proptest::collection::vec((0..5u8, 0..9u8, proptest::bool::ANY), 1..20)
    ) {
        fake::reset();
        let mut rig = Rig::new();
        attach_client(&mut rig.store, A, 0, "10.137.0.11");
        for (what, state, settle) in steps {
            let state = alloc::format!("{state}");
            let guest = (what == 0).then(|| Guest::new(A, 0));
            match (what, guest) {
                (_, Some(guest)) => guest.publish(&mut rig.store),
                (1, _) => rig.store.remove("/local/domain/5/device/vif/0"),
                (2, _) => rig.store.write("backend/vif/5/0/state", &state),
                _ => rig.store.write("/local/domain/5/device/vif/0/state", &state),
            }
            if settle {
                rig.settle();
            }
        }
        rig.pass(2000);
        detach_client(&mut rig.store, A, 0);
        rig.pass(3000);
        prop_assert_eq!(rig.store.read("backend/vif/5/0/state"), None, "dom0 can always remove it");
        attach_client(&mut rig.store, A, 0, "10.137.0.11");
        rig.pass(4000);
        let guest = Guest::new(A, 0);
        guest.publish(&mut rig.store);
        rig.pass(100);
        prop_assert!(rig.is_connected(A), "{:?}", rig.vif(A));
        detach_client(&mut rig.store, A, 0);
        rig.pass(3000);
        prop_assert_eq!(rig.store.watches(), 1);
        drop(rig);
    }
}

#[test]
fn r13_a_hundred_connects_and_disconnects_leave_everything_as_it_was() {
    let mut rig = Rig::new();
    // Ports are numbered from the lowest free one.
    let ports = || event::Channel::alloc_unbound(DomId(3)).unwrap().port();
    fake::peer(DomId(3));
    let start = (grant::grants_in_use(), mem::free_pages(), ports(), rig.store.watches());
    for cycle in 0..100u32 {
        let dom = if cycle % 2 == 0 { A } else { B };
        let (mut guest, vif) = rig.connect(dom);
        guest.post(2);
        guest.send(&frame(60), TxFlags(0));
        // More than there are buffers for: some are still queued at the end.
        for _ in 0..4 {
            rig.back.send(vif, Rig::chain(&frame(60), 60), Offload::NONE).unwrap();
        }
        rig.settle();
        assert_eq!(rig.frames.drain(..).count(), 1);
        match cycle % 4 {
            0 => {
                guest.set(&mut rig.store, "state", "6");
                detach_client(&mut rig.store, dom, 0);
            }
            1 => detach_client(&mut rig.store, dom, 0),
            2 => {
                guest.peer.die();
                rig.store.remove(&alloc::format!("/local/domain/{}/device", dom.0));
                detach_client(&mut rig.store, dom, 0);
            }
            _ => rig.store.remove(&alloc::format!("backend/vif/{}", dom.0)),
        }
        rig.pass(2500);
        assert_eq!(rig.back.vifs().count(), 0, "cycle {cycle}");
        if cycle % 4 != 2 {
            guest.peer.die();
        }
        let end = (grant::grants_in_use(), mem::free_pages(), ports(), rig.store.watches());
        assert_eq!(end, start, "cycle {cycle}");
        assert_eq!(rig.client.watches(), 1);
    }
    assert_eq!((rig.back.queued(), rig.back.next_deadline()), (0, None));
    assert_eq!(rig.back.totals().connected, 100);
    drop(rig);
    fake::assert_no_leaks();
}
