//! The whole backend between a hostile guest, an honest one and dom0: any bytes in the rings, any indices, any slots, any
//! states and settings, at any time, also between our check of a slot and its copy.
//!
//! Frames stay within their documented bounds and hold bytes of their sender only; no old byte of ours gets to a guest;
//! every published slot is answered; the honest guest's frames get through; and at the end nothing is held.

use xen::fake::vif::{Guest, attach_client, detach_client};
use xen::fake::{self, xenstore::Store};
use xen::grant::{Access, GrantStatus};
use xen::mem::Page;
use xen::netback::{Backend, Budget, Config, Frame, VifId};
use xen::netif::{
    Chain, Checksum, ExtraInfo, Gso, GsoKind, MAX_CHAIN_PAGES, Offload, Piece, RxFlags, RxRequest,
    TxFlags, TxRequest,
};
use xen::shared::SharedPage;
use xen::xenstore::{self, Client};
use xen::{DomId, GrantRef, event, toolstack};

use crate::source::Source;

const HOSTILE: DomId = DomId(5);
const HONEST: DomId = DomId(9);
const MS: u64 = 1_000_000;
const PAGE: usize = 4096;
const POOL: usize = 400;
/// Longest script: many short ones find more than few long ones.
const MAX_STEPS: usize = 48;
/// Turns in which the loop must come to rest with guests that do nothing.
const REST_TURNS: usize = 200;

/// What the pages of the hostile guest, frames to it, and our freed pages are full of.
const THEIRS: u8 = 0xa5;
const SENT: u8 = 0x5a;
const OLD: u8 = 0xee;

/// Offsets of Xen public/io/ring.h.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const SLOTS: usize = 64;

/// A configuration, then a script.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    fake::reset_with_pages(POOL);
    old_bytes();
    let mut world = World::new(&mut source);
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        world.step(&mut source);
    }
    world.end();
    fake::assert_no_leaks();
}

/// What earlier traffic left in the pages that come next.
fn old_bytes() {
    let pages: Vec<Page> = (0..64)
        .map(|_| {
            let mut page = Page::alloc_recycled().expect("a free page");
            page.bytes_mut().fill(OLD);
            page
        })
        .collect();
    drop(pages);
}

struct World {
    store: Store,
    client: Client,
    back: Backend,
    guest: Guest,
    /// Pages with data, and receive buffers, of the hostile guest.
    data: Vec<(GrantRef, SharedPage)>,
    buffers: Vec<(GrantRef, SharedPage)>,
    /// Its indices.
    tx_prod: u32,
    rx_prod: u32,
    /// Its TX ring holds what an honest guest's could: only whole slots were written and all are published.
    is_clean: bool,
    /// Data were taken from pages that are more than data.
    is_mixed: bool,
    /// A neighbour, in every other world.
    honest: Option<Guest>,
    received: Vec<Frame>,
    /// Frames were sent to the hostile guest since its buffers were looked at.
    has_sent: bool,
}

impl World {
    fn new(source: &mut Source<'_>) -> Self {
        let offloads = source.flag();
        let config = Config { max_vifs: 4, queue_per_vif: 24, queue_total: 64, offloads };
        let (page, channel) = toolstack::xenstore().expect("a store");
        let (store, mut client) = (Store::new(), Client::new(page, channel));
        let mut back = Backend::new(config);
        back.start(&mut client);
        let guest = Guest::new(HOSTILE, 0);
        let peer = guest.peer;
        let data: Vec<_> = (0..4)
            .map(|number| {
                let access = if number == 0 { Access::ReadWrite } else { Access::ReadOnly };
                let (gref, page) = peer.grant_page(access);
                page.copy_in(0, &[THEIRS; PAGE]);
                (gref, page)
            })
            .collect();
        let buffers = (0..6).map(|_| peer.grant_page(Access::ReadWrite)).collect();
        let mut world = Self {
            store,
            client,
            back,
            guest,
            data,
            buffers,
            tx_prod: 0,
            rx_prod: 0,
            is_clean: true,
            is_mixed: false,
            honest: None,
            received: Vec::new(),
            has_sent: false,
        };
        attach_client(&mut world.store, HOSTILE, 0, "10.137.0.11");
        if source.flag() {
            attach_client(&mut world.store, HONEST, 0, "10.137.0.12");
            world.settle();
            let honest = Guest::new(HONEST, 0);
            honest.publish(&mut world.store);
            world.honest = Some(honest);
        } else {
            world.settle();
        }
        world.rings(source);
        world.settle();
        world
    }

    /// Fresh rings, published.
    fn rings(&mut self, source: &mut Source<'_>) {
        let start = source.pick(&[0, 0, u32::MAX - 3, u32::MAX - 200, 0x7fff_fffe]);
        for page in [&self.guest.tx_page.1, &self.guest.rx_page.1] {
            page.clear();
            page.write_u32(REQ_PROD, start);
            page.write_u32(REQ_PROD + 4, start.wrapping_add(1));
            page.write_u32(RSP_PROD, start);
            page.write_u32(RSP_EVENT, start.wrapping_add(1));
        }
        (self.tx_prod, self.rx_prod) = (start, start);
        self.is_clean = true;
        if source.flag() {
            self.guest.take_offloads(&mut self.store);
        }
        self.guest.publish(&mut self.store);
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(14) {
            0 => self.write_slot(source),
            1 | 2 => self.write_packet(source),
            3 | 4 => self.publish(),
            5 => self.post(source),
            6 => self.disturb(source),
            7 | 8 => self.send(source),
            9 => drop(self.turn()),
            10 => self.pass(source.pick(&[1, 20, 200, 1100, 11_000])),
            11 => self.in_xenstore(source),
            12 => self.between_check_and_copy(source),
            _ => self.fail(source),
        }
    }

    /// Any slot.
    fn write_slot(&mut self, source: &mut Source<'_>) {
        let request = TxRequest {
            gref: self.some_ref(source),
            offset: source.pick(&[0, 0, 1, 4000, 4095, 4096, u16::MAX]),
            flags: TxFlags(source.pick(&[0, 1, 3, 4, 4, 8, 9, 12, 0xffff])),
            id: u16::from(source.byte()),
            size: source.pick(&[0, 1, 13, 14, 60, 96, 1500, 1518, 1519, 4096, 9000, u16::MAX]),
        };
        self.tx_slot(request.encode());
    }

    fn tx_slot(&mut self, slot: [u8; 12]) {
        let at = SLOTS + (self.tx_prod % 256) as usize * 12;
        self.guest.tx_page.1.copy_in(at, &slot);
        self.tx_prod = self.tx_prod.wrapping_add(1);
    }

    fn some_ref(&mut self, source: &mut Source<'_>) -> GrantRef {
        let choice = source.below(9);
        let (gref, is_mixed) = match choice {
            0..4 => (self.data[choice].0, false),
            4 => (self.buffers[0].0, true),
            5 => (self.guest.tx_page.0, true),
            6 => (self.guest.rx_page.0, true),
            7 => (GrantRef(500), false),
            _ => (GrantRef(source.long()), true),
        };
        self.is_mixed |= is_mixed;
        gref
    }

    /// A packet as a guest may send it, a super-frame if it likes.
    fn write_packet(&mut self, source: &mut Source<'_>) {
        let lens: Vec<u16> = (0..=source.below(20))
            .map(|_| source.pick(&[14, 60, 1, 700, 1400, 4096, 4095, 200]))
            .collect();
        let total = lens.iter().fold(0_u16, |sum, len| sum.saturating_add(*len));
        let gso = source.pick(&[0_u8, 0, 1, 2]);
        let mut flags = source.pick(&[0, 1, 3]) | if gso > 0 { 9 } else { 0 };
        for (number, len) in lens.iter().enumerate() {
            let more = if number + 1 < lens.len() { TxFlags::MORE_DATA } else { 0 };
            let request = TxRequest {
                gref: self.data[number % 4].0,
                offset: (PAGE as u16 - len).min(source.byte().into()),
                flags: TxFlags(flags | more),
                id: number as u16,
                size: if number == 0 { total } else { *len },
            };
            self.tx_slot(request.encode());
            if number == 0 && gso > 0 {
                let kind = if gso == 1 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
                let extra = ExtraInfo::encode_gso(Gso { kind, size: source.pick(&[1448, 1]) });
                let mut slot = [0; 12];
                slot[..8].copy_from_slice(&extra);
                self.tx_slot(slot);
            }
            flags = 0;
        }
    }

    fn publish(&mut self) {
        self.guest.tx_page.1.store_release_u32(REQ_PROD, self.tx_prod);
        self.guest.peer.notify(self.guest.port);
    }

    fn post(&mut self, source: &mut Source<'_>) {
        for _ in 0..=source.below(40) {
            let number = source.below(self.buffers.len() + 1);
            let gref = self.buffers.get(number).map_or(GrantRef(501), |(gref, _)| *gref);
            let request = RxRequest { id: self.rx_prod as u16, gref };
            let at = SLOTS + (self.rx_prod % 256) as usize * 8;
            self.guest.rx_page.1.copy_in(at, &request.encode());
            self.rx_prod = self.rx_prod.wrapping_add(1);
        }
        self.guest.rx_page.1.store_release_u32(REQ_PROD, self.rx_prod);
        self.guest.peer.notify(self.guest.port);
    }

    /// Any bytes, or any index.
    fn disturb(&mut self, source: &mut Source<'_>) {
        let is_tx = source.flag();
        self.is_clean &= !is_tx;
        let page = if is_tx { &self.guest.tx_page.1 } else { &self.guest.rx_page.1 };
        if source.flag() {
            let at = source.pick(&[0, 4, 8, 12]);
            let by = source.pick(&[1, 100, 256, 257, 0x8000_0000, u32::MAX]);
            page.write_u32(at, page.read_u32(at).wrapping_add(by));
        } else {
            let at = usize::from(source.word()) % PAGE;
            let bytes = source.piece();
            page.copy_in(at, &bytes[..bytes.len().min(PAGE - at)]);
        }
        self.guest.peer.notify(self.guest.port);
    }

    /// A frame of ours to a guest, in pages whose other bytes are old.
    fn send(&mut self, source: &mut Source<'_>) {
        let Some(vif) = self.connected(HOSTILE) else { return };
        let gso = source.pick(&[0_u8, 0, 1, 2]);
        let size = source.pick(&[1448, 1, 0]);
        let mut chain: Option<Chain> = None;
        let pieces = if gso > 0 { 1 + source.below(MAX_CHAIN_PAGES) } else { 1 };
        for _ in 0..pieces {
            let len = source.pick(&[14, 60, 1514, 4096, 300, 1518, 1519, 1]);
            let Some(mut page) = Page::alloc_recycled() else { return };
            page.prefix_mut(len).fill(SENT);
            if chain.is_none() && len >= 14 {
                let ethertype = if gso == 2 { [0x86, 0xdd] } else { [0x08, 0x00] };
                page.prefix_mut(len)[12..14].copy_from_slice(&ethertype);
            }
            let piece = Piece::new(page, len as u16);
            match &mut chain {
                None => chain = Some(Chain::of(piece)),
                Some(chain) => assert!(chain.push(piece)),
            }
        }
        let kind = if gso == 1 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
        let gso = (gso > 0).then_some(Gso { kind, size });
        let checksum = source.pick(&[Checksum::Blank, Checksum::Full, Checksum::Validated]);
        let chain = chain.expect("a piece");
        self.has_sent |= self.back.send(vif, chain, Offload { checksum, gso }).is_ok();
    }

    fn in_xenstore(&mut self, source: &mut Source<'_>) {
        match source.below(6) {
            0 => {
                let state = source.below(10).to_string();
                self.guest.set(&mut self.store, "state", &state);
            }
            1 => {
                let name = source.pick(&[
                    "tx-ring-ref",
                    "rx-ring-ref",
                    "event-channel",
                    "request-rx-copy",
                    "feature-sg",
                    "state",
                    "multi-queue-num-queues",
                ]);
                let value = String::from_utf8_lossy(source.piece()).into_owned();
                self.guest.set(&mut self.store, name, &value);
            }
            2 => detach_client(&mut self.store, HOSTILE, 0),
            3 => attach_client(&mut self.store, HOSTILE, 0, "10.137.0.11"),
            4 => {
                let name = source.pick(&["mac", "ip", "mtu", "online", "state", "frontend"]);
                let value = String::from_utf8_lossy(source.piece()).into_owned();
                self.store.write(&format!("backend/vif/{}/0/{name}", HOSTILE.0), &value);
            }
            _ => {
                // The driver of the guest starts again.
                self.guest.set(&mut self.store, "state", "6");
                self.pass(600);
                self.guest.set(&mut self.store, "state", "1");
                self.pass(20);
                self.rings(source);
                self.settle();
            }
        }
    }

    /// What a guest can do between our check and the copy.
    fn between_check_and_copy(&mut self, source: &mut Source<'_>) {
        let page = self.guest.peer.page(self.guest.tx_page.0);
        let rx = self.guest.peer.page(self.guest.rx_page.0);
        let (byte, jump) = (source.byte(), source.long());
        self.is_clean = false;
        fake::before_copy(move || {
            for at in SLOTS..PAGE {
                page.write_u8(at, byte);
                rx.write_u8(at, byte);
            }
            page.write_u32(REQ_PROD, page.read_u32(REQ_PROD).wrapping_add(jump));
        });
    }

    /// Copies from, or to, a page fail from now on, or work again.
    fn fail(&mut self, source: &mut Source<'_>) {
        let number = source.below(self.data.len() + self.buffers.len());
        let gref = self.data.iter().chain(&self.buffers).nth(number).expect("a page").0;
        let status = source.pick(&[None, Some(GrantStatus::GENERAL_ERROR)]);
        self.guest.peer.fail_grant(gref, status);
    }

    fn connected(&self, dom: DomId) -> Option<VifId> {
        self.back.vifs().find(|vif| vif.dom == dom).and_then(|vif| vif.vif)
    }

    /// One turn of the event loop; `true` if anything happened.
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
        let budget = Budget { quantum: 16 << 10, total: 64 };
        self.back.receive(budget, now);
        let mut slots = 0;
        while let Some(frame) = self.back.next_frame() {
            slots += frame.chain.pages() + usize::from(frame.offload.gso.is_some());
            self.check_frame(frame);
        }
        assert!(slots <= budget.total, "{slots} slots of frames");
        self.back.flush(now);
        assert!(self.back.queued() <= 64);
        while self.back.next_event().is_some() {}
        self.client.flush();
        self.check_secrets();
        active || self.store.serve() || self.back.has_work()
    }

    fn settle(&mut self) {
        let rests = (0..REST_TURNS).any(|_| !self.turn() && !self.turn());
        assert!(rests, "the loop does not come to rest");
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

    /// The bounds of the frame's documentation; and whose bytes they are.
    fn check_frame(&mut self, frame: Frame) {
        let (chain, offload) = (&frame.chain, frame.offload);
        let len = chain.len();
        assert!(chain.pages() <= MAX_CHAIN_PAGES && (len > PAGE || chain.pages() == 1));
        assert!(chain.head().len() >= 256 || chain.pages() == 1, "headers are all in the head");
        assert!(!chain.pieces().any(Piece::is_empty), "a page with nothing in it");
        match offload.gso {
            None => assert!((14..=1518).contains(&len) && chain.pages() == 1),
            Some(gso) => {
                assert!((14..=65_535).contains(&len) && gso.size > 0);
                assert!(usize::from(gso.size) < len && offload.checksum == Checksum::Blank);
            }
        }
        assert_ne!(offload.checksum, Checksum::Validated, "nobody's word is taken for it");
        if Some(frame.vif) == self.connected(HONEST) {
            self.received.push(frame);
        } else if !self.is_mixed {
            let is_theirs = |piece: &Piece| piece.bytes().iter().all(|byte| *byte == THEIRS);
            assert!(chain.pieces().all(is_theirs), "bytes of somebody else");
        }
    }

    /// Nobody gets old bytes of ours.
    fn check_secrets(&mut self) {
        if !self.has_sent || self.back.queued() > 0 {
            return;
        }
        self.has_sent = false;
        let mut bytes = [0; PAGE];
        for (_, page) in &self.buffers {
            page.copy_out(0, &mut bytes);
            assert!(!bytes.contains(&OLD), "old bytes of ours in a guest's page");
        }
    }

    fn end(mut self) {
        self.check_secrets();
        self.pass(50);
        if self.is_clean && self.connected(HOSTILE).is_some() {
            self.publish();
            self.pass(50);
            if self.connected(HOSTILE).is_some() {
                let answered = self.guest.tx_page.1.read_u32(RSP_PROD);
                assert_eq!(answered, self.tx_prod, "a slot without an answer");
            }
        }
        if let Some(honest) = self.honest.take() {
            self.others_do_not_notice(honest);
        }
        let peer = self.guest.peer;
        let pages = self.data.iter().chain(&self.buffers).map(|page| page.0);
        let refs: Vec<_> = pages.chain([self.guest.tx_page.0, self.guest.rx_page.0]).collect();
        drop(self);
        assert!(!refs.into_iter().any(|gref| peer.is_in_use(gref)), "a page of a guest is held");
    }

    fn others_do_not_notice(&mut self, mut honest: Guest) {
        let vif = self.connected(HONEST).expect("the honest guest is connected");
        self.received.clear();
        honest.received();
        honest.post(2);
        honest.send(&[7; 60], TxFlags(0));
        let mut page = Page::alloc().expect("a free page");
        page.prefix_mut(60).fill(8);
        self.back.send(vif, Chain::new(page, 60), Offload::NONE).expect("a frame is taken");
        self.settle();
        let [frame] = self.received.as_slice() else { panic!("its frame did not come") };
        assert_eq!(*frame.chain.head().bytes(), [7; 60]);
        self.received.clear();
        let got = honest.received();
        assert!(matches!(got.as_slice(), [(response, bytes)]
            if *bytes == [8; 60] && response.flags == RxFlags(0)));
        assert_eq!(honest.responses().len(), 1);
    }
}
