//! The whole frontend of the uplink against a hostile NetVM: any bytes in the rings, any indices, responses, extra infos
//! and states, buffers that it keeps mapped, at any time.
//!
//! Frames stay within their documented bounds and nobody can change them any more; the backend sees no old byte of ours
//! and writes to no frame that we send; a new NetVM is connected whatever the last one did; at the end nothing is held.

use std::collections::VecDeque;

use xen::fake::vif::{NetVm, attach_uplink};
use xen::fake::{self, PeerMapping, xenstore::Store};
use xen::grant::{self, Access};
use xen::mem::Page;
use xen::netfront::{Config, Frame, Frontend, SendError, UplinkId};
use xen::netif::{
    Chain, Checksum, ExtraInfo, Gso, GsoKind, HEAD_BYTES, MAX_CHAIN_PAGES, Offload, Piece, RxFlags,
    RxRequest, RxResponse, TxFlags, TxRequest, TxResponse,
};
use xen::shared::SharedPage;
use xen::xenstore::{self, Client};
use xen::{DomId, EventPort, GrantRef, event, toolstack};

use crate::source::Source;

const NETVM: DomId = DomId(2);
const NEXT: DomId = DomId(11);
const MS: u64 = 1_000_000;
const PAGE: usize = 4096;
const POOL: usize = 400;
const RX_BUFFERS: usize = 24;
const TX_IN_FLIGHT: u16 = 40;
const MAX_STEPS: usize = 48;
const REST_TURNS: usize = 200;
/// Frames that are kept, to see whether somebody changes them.
const KEPT: usize = 4;
/// Mappings that the backend keeps.
const HELD: usize = 6;

/// What the backend writes into buffers, and later into everything that it still reaches; what our frames and our freed
/// pages are full of.
const THEIRS: u8 = 0xa5;
const POISON: u8 = 0x11;
const SENT: u8 = 0x5a;
const OLD: u8 = 0xee;

/// Offsets of Xen public/io/ring.h.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 8;
const SLOTS: usize = 64;

/// A configuration, then a script.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    fake::reset_with_pages(POOL);
    old_bytes();
    let mut world = World::new(&mut source);
    let is_replaced = source.flag();
    for _ in 0..MAX_STEPS {
        if source.is_empty() {
            break;
        }
        world.step(&mut source);
    }
    if is_replaced {
        world.another_netvm();
    }
    drop(world);
    grant::retry_quarantine();
    fake::assert_no_leaks();
}

/// What earlier traffic left in the pages that come next.
fn old_bytes() {
    let pages: Vec<Page> = (0..128)
        .map(|_| {
            let mut page = Page::alloc_recycled().expect("a free page");
            page.bytes_mut().fill(OLD);
            page
        })
        .collect();
    drop(pages);
}

/// The backend's half of a connection.
struct Backend {
    tx: PeerMapping,
    rx: PeerMapping,
    port: EventPort,
    /// Requests taken, and the next response, on either ring.
    tx_cons: u32,
    rx_cons: u32,
    tx_prod: u32,
    rx_prod: u32,
    buffers: VecDeque<RxRequest>,
    requests: VecDeque<Sent>,
    /// The rings hold what we put there.
    is_clean: bool,
    /// The connection that they belong to.
    uplink: Option<UplinkId>,
}

/// A slot of the TX ring: a page with so many bytes, or an extra info.
#[derive(Clone, Copy)]
enum Sent {
    Page(TxRequest),
    Extra,
}

struct World {
    // In this order: what is mapped is let go last.
    front: Frontend,
    client: Client,
    store: Store,
    backend: Option<Backend>,
    held: Vec<(PeerMapping, Access)>,
    kept: Vec<(Frame, Vec<u8>)>,
    /// References that the backend has seen.
    seen: Vec<GrantRef>,
    offloads: bool,
    received: usize,
}

impl World {
    fn new(source: &mut Source<'_>) -> Self {
        let offloads = source.flag();
        let (page, channel) = toolstack::xenstore().expect("a store");
        let (store, mut client) = (Store::new(), Client::new(page, channel));
        let config = Config { rx_buffers: RX_BUFFERS, tx_in_flight: TX_IN_FLIGHT, offloads };
        let mut front = Frontend::new(config);
        front.start(&mut client);
        let mut world = Self {
            front,
            client,
            store,
            backend: None,
            held: Vec::new(),
            kept: Vec::new(),
            seen: Vec::new(),
            offloads,
            received: 0,
        };
        attach_uplink(&mut world.store, NETVM, 0);
        world.settle();
        world.connect(NETVM, 0);
        assert!(world.front.is_up());
        world
    }

    /// The honest way to a connection; nothing if the frontend does not want one now.
    fn connect(&mut self, netvm: DomId, devid: u32) {
        fake::peer(netvm);
        self.store.take_writes();
        if self.offloads {
            NetVm::offer_offloads(&mut self.store, netvm, devid);
        }
        NetVm::offer(&mut self.store, netvm, devid);
        self.settle();
        let writes = self.store.take_writes();
        let is_fresh = writes.iter().any(|(path, _)| path.ends_with("/event-channel"));
        let state = self.store.read(&format!("device/vif/{devid}/state"));
        if !is_fresh || state.as_deref() != Some("4") {
            return;
        }
        let NetVm { tx_page, rx_page, port, .. } = NetVm::connect(&mut self.store, netvm, devid);
        self.backend = Some(Backend {
            tx: tx_page,
            rx: rx_page,
            port,
            tx_cons: 0,
            rx_cons: 0,
            tx_prod: 0,
            rx_prod: 0,
            buffers: VecDeque::new(),
            requests: VecDeque::new(),
            is_clean: true,
            uplink: None,
        });
        self.settle();
        let uplink = self.uplink();
        if let Some(backend) = &mut self.backend {
            backend.uplink = uplink;
        }
    }

    /// The connection that is up.
    fn uplink(&self) -> Option<UplinkId> {
        self.front.status().and_then(|status| status.uplink)
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(14) {
            0 => self.take_buffers(),
            1..=3 => self.deliver(source),
            4 => self.any_response(source),
            5 => self.take_requests(),
            6 => self.answer(source),
            7 => self.disturb(source),
            8 => self.hold(source),
            9 | 10 => self.send(source),
            11 => drop(self.turn()),
            12 => self.pass(source.pick(&[1, 20, 300, 1100, 6000])),
            _ => self.in_xenstore(source),
        }
    }

    fn peer(&self) -> fake::Peer {
        fake::peer(NETVM)
    }

    /// New receive buffers: clean ones.
    fn take_buffers(&mut self) {
        let peer = self.peer();
        let Some(backend) = &mut self.backend else { return };
        let posted = backend.rx.read_u32(REQ_PROD).wrapping_sub(backend.rx_cons);
        for _ in 0..posted.min(64) {
            let mut slot = [0; 8];
            backend.rx.copy_out(SLOTS + (backend.rx_cons % 256) as usize * 8, &mut slot);
            backend.rx_cons = backend.rx_cons.wrapping_add(1);
            let request = RxRequest::decode(&slot);
            let mut bytes = [0; PAGE];
            // Otherwise the request may be what the backend wrote itself. Some are enough: each takes its time.
            let is_looked_at = backend.is_clean && backend.rx_cons.is_multiple_of(4);
            if is_looked_at && peer.read(request.gref, 0, &mut bytes).is_ok() {
                assert!(!bytes.contains(&OLD) && !bytes.contains(&SENT), "old bytes of ours");
            }
            backend.buffers.push_back(request);
            self.seen.push(request.gref);
        }
    }

    /// A packet in some slots, as Linux does it or nearly so.
    fn deliver(&mut self, source: &mut Source<'_>) {
        self.take_buffers();
        let peer = self.peer();
        let Some(backend) = &mut self.backend else { return };
        let slots = source.pick(&[1, 1, 1, 2, 3, 5, 17, 18, 19, 20]);
        let gso = source.pick(&[0_u8, 0, 1, 2, 3]);
        let extras = if gso > 0 { source.pick(&[1, 1, 1, 2, 5, 6]) } else { 0 };
        let len = source.pick(&[60, 14, 13, 1, 1514, 1518, 1519, 4096, 66, 0, -1, 300]);
        let offset = source.pick(&[0_u16, 0, 0, 2, 4000]);
        let checksum = source.pick(&[0_u16, 1, 2, 3]);
        for number in 0..slots {
            let Some(buffer) = backend.buffers.pop_front() else { break };
            let len = if number == 0 { len } else { source.pick(&[len, 4096, 1448, 1]) };
            let room = PAGE.saturating_sub(offset.into());
            let bytes = vec![THEIRS; usize::try_from(len).unwrap_or(0).min(room)];
            // A buffer that was taken back cannot be written any more.
            let _ = peer.write(buffer.gref, offset.into(), &bytes);
            let mut flags = if number == 0 { checksum } else { 0 };
            if number + 1 < slots {
                flags |= RxFlags::MORE_DATA;
            }
            if number == 0 && extras > 0 {
                flags |= RxFlags::EXTRA_INFO;
            }
            let flags = RxFlags(flags);
            let response = RxResponse { id: buffer.id, offset, flags, status: len };
            backend.rx_slot(response.encode());
            for extra in 0..if number == 0 { extras } else { 0 } {
                backend.buffers.pop_front();
                let kind = if gso == 1 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
                let size = source.pick(&[1448, 1, 0]);
                let mut slot = ExtraInfo::encode_gso(Gso { kind, size });
                slot[0] = source.pick(&[1, 1, 1, 2, 4, 6]);
                slot[1] = u8::from(extra + 1 < extras);
                slot[4] = gso;
                backend.rx_slot(slot);
            }
        }
        backend.publish();
        self.notify();
    }

    /// A single response of any content.
    fn any_response(&mut self, source: &mut Source<'_>) {
        let Some(backend) = &mut self.backend else { return };
        if source.flag() {
            let any = source.byte().into();
            let id = source.pick(&[backend.rx_prod as u16 % 256, any]);
            let response = RxResponse {
                id,
                offset: source.pick(&[0, 4095, 4096, u16::MAX]),
                flags: RxFlags(u16::from(source.byte() & 0x1f)),
                status: source.pick(&[0, 60, 4096, 4097, i16::MAX, i16::MIN, -1]),
            };
            backend.rx_slot(response.encode());
        } else {
            let id = u16::from(source.byte());
            let status = source.pick(&[0, 1, -1, -2, -3, 2]);
            backend.is_clean = false;
            backend.tx_slot(TxResponse { id, status });
        }
        backend.publish();
        self.notify();
    }

    /// Frames of ours: all of the page is what we sent, and cannot be written.
    fn take_requests(&mut self) {
        let (peer, uplink) = (self.peer(), self.uplink());
        let Some(backend) = &mut self.backend else { return };
        let is_clean = backend.is_clean && uplink.is_some() && uplink == backend.uplink;
        let published = backend.tx.read_u32(REQ_PROD).wrapping_sub(backend.tx_cons);
        let mut follows_extra = false;
        for _ in 0..published.min(256) {
            let mut slot = [0; 12];
            backend.tx.copy_out(SLOTS + (backend.tx_cons % 256) as usize * 12, &mut slot);
            backend.tx_cons = backend.tx_cons.wrapping_add(1);
            if core::mem::take(&mut follows_extra) {
                backend.requests.push_back(Sent::Extra);
                continue;
            }
            let request = TxRequest::decode(&slot);
            follows_extra = request.flags.has(TxFlags::EXTRA_INFO);
            let mut bytes = [0; PAGE];
            if peer.read(request.gref, 0, &mut bytes).is_ok() {
                assert!(!is_clean || !bytes.contains(&OLD), "old bytes behind a frame");
            } else {
                assert!(!is_clean, "a frame that cannot be read");
            }
            if is_clean {
                assert!(peer.write(request.gref, 0, &[1]).is_err(), "a frame can be changed");
            }
            backend.requests.push_back(Sent::Page(request));
            self.seen.push(request.gref);
        }
    }

    fn answer(&mut self, source: &mut Source<'_>) {
        self.take_requests();
        let Some(backend) = &mut self.backend else { return };
        let status = source.pick(&[0, 0, 0, -1, -2, 1, 7]);
        for _ in 0..=source.below(48) {
            let number =
                if source.below(8) == 7 { source.below(backend.requests.len()) } else { 0 };
            match backend.requests.remove(number) {
                Some(Sent::Page(request)) => {
                    backend.tx_slot(TxResponse { id: request.id, status });
                }
                Some(Sent::Extra) => backend.tx_slot(TxResponse { id: 0, status: 1 }),
                None => break,
            }
        }
        backend.publish();
        self.notify();
    }

    /// Any bytes, or any index.
    fn disturb(&mut self, source: &mut Source<'_>) {
        let Some(backend) = &mut self.backend else { return };
        backend.is_clean = false;
        let page: &SharedPage = if source.flag() { &backend.tx } else { &backend.rx };
        if source.flag() {
            let at = source.pick(&[0, 4, 8, 12]);
            let by = source.pick(&[1, 40, 256, 257, 0x8000_0000, u32::MAX]);
            page.write_u32(at, page.read_u32(at).wrapping_add(by));
        } else {
            let at = usize::from(source.word()) % PAGE;
            let bytes = source.piece();
            page.copy_in(at, &bytes[..bytes.len().min(PAGE - at)]);
        }
        self.notify();
    }

    /// The backend maps a page that it was given, lets all go, or writes to all that it reaches.
    fn hold(&mut self, source: &mut Source<'_>) {
        let peer = self.peer();
        match source.below(4) {
            0 => self.held.clear(),
            1 => {
                // A reference may by now be that of a ring.
                if let Some(backend) = &mut self.backend {
                    backend.is_clean = false;
                }
                let bytes = [POISON; PAGE];
                for gref in &self.seen {
                    let _ = peer.write(*gref, 0, &bytes);
                }
                for (page, _) in self.held.iter().filter(|held| held.1 == Access::ReadWrite) {
                    page.copy_in(0, &bytes);
                }
                for (frame, copy) in self.kept.drain(..) {
                    assert!(bytes_of(&frame) == copy, "a frame changed");
                }
            }
            _ if self.seen.is_empty() || self.held.len() >= HELD => {}
            _ => {
                let gref = self.seen[source.below(self.seen.len())];
                let access = source.pick(&[Access::ReadOnly, Access::ReadWrite]);
                self.held.extend(peer.map(gref, access).map(|page| (page, access)));
            }
        }
    }

    /// A frame of ours, in pages whose other bytes are old.
    fn send(&mut self, source: &mut Source<'_>) {
        let gso = source.pick(&[0_u8, 0, 1, 2]);
        let pieces = if gso > 0 { 1 + source.below(MAX_CHAIN_PAGES) } else { 1 };
        let mut chain: Option<Chain> = None;
        for _ in 0..pieces {
            let len = source.pick(&[14, 60, 1514, 4096, 300, 1519, 1]);
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
        let gso = (gso > 0).then_some(Gso { kind, size: source.pick(&[1448, 1, 0]) });
        let checksum = source.pick(&[Checksum::Blank, Checksum::Full, Checksum::Validated]);
        let room = self.front.send_room();
        let chain = chain.expect("a piece");
        let pages = chain.pages();
        let result = self.front.send(chain, Offload { checksum, gso });
        // What is said to fit does; an extra info may fit beside the pages that do.
        let fits = pages + usize::from(gso.is_some()) <= room;
        assert!(!fits || result != Err(SendError::Full), "no room where there was said to be");
        assert!(result.is_err() || pages <= room, "more than there was room for");
    }

    fn in_xenstore(&mut self, source: &mut Source<'_>) {
        let back = NetVm::directory(NETVM, 0);
        match source.below(6) {
            0 | 1 => {
                let state = source.below(10).to_string();
                self.store.write(&format!("{back}/state"), &state);
            }
            2 => {
                let name = source.pick(&["online", "feature-rx-copy", "feature-sg", "state"]);
                let value = String::from_utf8_lossy(source.piece()).into_owned();
                self.store.write(&format!("{back}/{name}"), &value);
            }
            3 => {
                let name = source.pick(&["state", "mac", "mtu", "backend", "backend-id"]);
                let value = String::from_utf8_lossy(source.piece()).into_owned();
                self.store.write(&format!("device/vif/0/{name}"), &value);
            }
            4 => {
                self.store.remove("device/vif/0");
                self.settle();
                attach_uplink(&mut self.store, NETVM, 0);
            }
            _ => {
                // The backend lets go of everything and starts again.
                self.store.write(&format!("{back}/state"), "6");
                self.settle();
                self.backend = None;
                self.held.clear();
                self.pass(1500);
                self.connect(NETVM, 0);
            }
        }
    }

    fn notify(&self) {
        if let Some(backend) = &self.backend {
            self.peer().notify(backend.port);
        }
    }

    /// One turn of the event loop; `true` if anything happened.
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
        while let Some(frame) = self.front.next_frame() {
            self.check_frame(frame);
        }
        self.front.flush(now);
        while self.front.next_event().is_some() {}
        self.client.flush();
        assert!(self.front.send_room() <= TX_IN_FLIGHT.into());
        if let Some(status) = self.front.status() {
            assert!(status.posted <= RX_BUFFERS && status.in_flight <= 256);
        }
        active || self.store.serve() || self.front.has_work()
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
            let due = self.front.next_deadline().map_or(end, |due| due.clamp(now + 1, end));
            fake::advance_ns(due - now);
            self.settle();
        }
    }

    /// The bounds of the frame's documentation; and whose bytes they are.
    fn check_frame(&mut self, frame: Frame) {
        let (chain, offload) = (&frame.chain, frame.offload);
        let len = chain.len();
        assert!(chain.pages() <= MAX_CHAIN_PAGES);
        match offload.gso {
            None => assert!((14..=1518).contains(&len) && chain.pages() == 1),
            Some(gso) => {
                assert!(self.offloads, "a super-frame that nobody asked for");
                assert!((14..=65_553).contains(&len) && gso.size > 0);
                assert!(usize::from(gso.size) < len && offload.checksum == Checksum::Blank);
                assert!(usize::from(chain.head().len()) >= len.min(HEAD_BYTES));
            }
        }
        assert!(chain.pieces().all(|piece| !piece.is_empty()));
        assert_ne!(offload.checksum, Checksum::Validated, "nobody's word is taken for it");
        let bytes = bytes_of(&frame);
        assert!(!bytes.contains(&OLD) && !bytes.contains(&SENT), "bytes of somebody else");
        self.received += 1;
        if self.kept.len() < KEPT {
            self.kept.push((frame, bytes));
        }
    }

    /// Dom0 gives the firewall another NetVM, which behaves.
    fn another_netvm(&mut self) {
        self.kept.clear();
        self.store.remove("device/vif/0");
        self.settle();
        self.backend = None;
        self.held.clear();
        self.pass(1100);
        assert_eq!(grant::quarantined(), 0, "what the old one let go of has come back");
        attach_uplink(&mut self.store, NEXT, 1);
        self.settle();
        fake::peer(NEXT);
        NetVm::offer(&mut self.store, NEXT, 1);
        self.settle();
        let mut netvm = NetVm::connect(&mut self.store, NEXT, 1);
        self.settle();
        assert!(self.front.is_up());
        let before = self.received;
        netvm.deliver(&[THEIRS; 60], RxFlags(0));
        let mut page = Page::alloc().expect("a free page");
        page.prefix_mut(60).fill(SENT);
        self.front.send(Chain::new(page, 60), Offload::NONE).expect("a frame is taken");
        self.settle();
        assert_eq!(self.received, before + 1);
        let sent = netvm.sent();
        assert!(matches!(sent.as_slice(), [(_, bytes)] if *bytes == [SENT; 60]));
    }
}

impl Backend {
    fn rx_slot(&mut self, slot: [u8; 8]) {
        self.rx.copy_in(SLOTS + (self.rx_prod % 256) as usize * 8, &slot);
        self.rx_prod = self.rx_prod.wrapping_add(1);
    }

    fn tx_slot(&mut self, response: TxResponse) {
        self.tx.copy_in(SLOTS + (self.tx_prod % 256) as usize * 12, &response.encode());
        self.tx_prod = self.tx_prod.wrapping_add(1);
    }

    fn publish(&self) {
        self.rx.store_release_u32(RSP_PROD, self.rx_prod);
        self.tx.store_release_u32(RSP_PROD, self.tx_prod);
    }
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    frame.chain.pieces().flat_map(|piece| piece.bytes().iter().copied()).collect()
}
