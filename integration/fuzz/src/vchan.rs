//! Both ends of a byte pipe against a peer that writes anything into the shared pages: indices, live bytes, grants, data.
//!
//! A model of the pages goes along: what the peer writes it has as well, what we write it foretells. So every byte that
//! we read is the one at that place, and nothing else in any page changes.

use std::ops::Deref;

use xen::fake::{self, OWN_DOMAIN, Peer, PeerMapping};
use xen::grant::{self, Access};
use xen::shared::SharedPage;
use xen::vchan::{Connector, Link, LinkState, Outcome, Server, ServerOutcome, Sizes};
use xen::xenstore::{Owner, Request, StoreError, Token};
use xen::{DomId, EventPort, GrantRef, event};

use crate::source::Source;

/// Offsets of Xen public/io/libxenvchan.h.
const LEFT_ORDER: usize = 16;
const RIGHT_ORDER: usize = 18;
const CLIENT_LIVE: usize = 20;
const SERVER_LIVE: usize = 21;
const CLIENT_NOTIFY: usize = 22;
const SERVER_NOTIFY: usize = 23;
const GRANTS: usize = 24;
/// "Tell me when you wrote", "... when you consumed".
const NOTIFY_WRITE: u8 = 1;
const NOTIFY_READ: u8 = 2;

const PAGE: usize = 4096;
const PEER: DomId = DomId(9);
/// Data pages that the fake server has each way: up to order 14.
const DATA_PAGES: usize = 4;

std::thread_local! {
    /// The ring page and the data pages of the peer, for all inputs: the memory of the fake's peers is never given back.
    static REFS: Vec<GrantRef> =
        (0..=2 * DATA_PAGES).map(|_| fake::peer(PEER).grant_page(Access::ReadWrite).0).collect();
}

/// Which end is ours, how it comes into being, then a script.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    if source.flag() {
        client(&mut source);
    } else {
        server(&mut source);
    }
    grant::retry_quarantine();
    fake::assert_no_leaks();
}

/// A page as the peer sees it.
enum View {
    Own(SharedPage),
    Mapped(PeerMapping),
}

impl Deref for View {
    type Target = SharedPage;

    fn deref(&self) -> &SharedPage {
        match self {
            View::Own(page) => page,
            View::Mapped(page) => page,
        }
    }
}

fn client(source: &mut Source<'_>) {
    let peer = fake::peer(PEER);
    let refs = REFS.with(Clone::clone);
    let pages: Vec<SharedPage> = refs.iter().map(|gref| peer.page(*gref)).collect();
    pages.iter().for_each(SharedPage::clear);
    let orders = [0, 1].map(|_| source.pick(&[10_u16, 11, 12, 12, 13, 14, 9, 0, 19, 21, u16::MAX]));
    let counts = orders.map(|order| if order < 12 { 0 } else { 1_usize << (order - 12).min(2) });
    let ring = &pages[0];
    ring.write_u16(LEFT_ORDER, orders[0]);
    ring.write_u16(RIGHT_ORDER, orders[1]);
    let live = source.pick(&[[2, 1], [2, 1], [2, 1], [1, 1], [2, 0], [0, 1], [2, 2]]);
    ring.write_u8(CLIENT_LIVE, live[0]);
    ring.write_u8(SERVER_LIVE, live[1]);
    ring.write_u8(CLIENT_NOTIFY, source.byte());
    ring.write_u8(SERVER_NOTIFY, source.byte());
    let data: Vec<GrantRef> = refs[1..=counts[0]]
        .iter()
        .chain(&refs[1 + DATA_PAGES..1 + DATA_PAGES + counts[1]])
        .copied()
        .collect();
    let strange = source.pick(&[usize::MAX, usize::MAX, usize::MAX, 0, 1, 5]);
    for (at, gref) in data.iter().enumerate() {
        let gref = if at == strange { source.long() | 0x1000 } else { gref.0 };
        ring.write_u32(GRANTS + 4 * at, gref);
    }
    let base = source.long();
    for at in [0, 4, 8, 12] {
        ring.write_u32(at, base.wrapping_add(source.pick(&[0, 0, 0, 1, 1024, 4097, u32::MAX])));
    }
    let known = orders.iter().all(|order| (10..=14).contains(order));
    let fits = known && (orders[0] != orders[1] || orders[0] >= 12);
    let expected = fits && live == [2, 1] && strange >= data.len();

    let port = peer.alloc_unbound();
    let chosen: Vec<View> = core::iter::once(refs[0])
        .chain(data.iter().copied())
        .map(|gref| View::Own(peer.page(gref)))
        .collect();
    let shadow = chosen.iter().map(|view| bytes_of(view)).collect();
    match connect(source, refs[0], port) {
        Some(link) => {
            assert!(expected, "a link over {orders:?} {live:?}");
            let mut rig = Rig {
                end: End::Client(link),
                peer,
                port: Some(port),
                pages: chosen,
                shadow,
                reading: Half::new(ring, orders[1], 1 + counts[0], 8, 12),
                writing: Half::new(ring, orders[0], 1, 4, 0),
                own_live: CLIENT_LIVE,
                peer_live: SERVER_LIVE,
                own_notify: CLIENT_NOTIFY,
                peer_notify: SERVER_NOTIFY,
                state: LinkState::Open,
            };
            rig.shadow[0][CLIENT_LIVE] = 1;
            rig.shadow[0][SERVER_NOTIFY] |= NOTIFY_WRITE;
            rig.compare();
            assert_eq!(peer.take_notifications(), [port], "the server is told");
            rig.play(source);
        }
        None => {
            assert!(!expected, "no link over {orders:?} {live:?}");
            let now: Vec<_> = chosen.iter().map(|view| bytes_of(view)).collect();
            assert_eq!(now, shadow, "something was written before everything was checked");
            peer.close(port);
        }
    }
}

/// What the store answers until there is a link, or an announcement that is of no use.
fn connect(source: &mut Source<'_>, ring: GrantRef, port: EventPort) -> Option<Link> {
    let token = Token { owner: Owner::Platform, id: 1, generation: 1 };
    let mut connector = Connector::new(PEER, OWN_DOMAIN, 512, token);
    let mut odd = source.below(8);
    let (ring, port) = (ring.0.to_string(), port.0.to_string());
    for _ in 0..100 {
        let Some(request) = connector.next_request() else {
            connector.on_watch();
            continue;
        };
        let value = match request {
            Request::Watch { path, token: with } => {
                assert!(path.ends_with("/event-channel") && with == token);
                b"OK\0".to_vec()
            }
            Request::Read { path } if path.ends_with("/event-channel") => port.clone().into_bytes(),
            Request::Read { path } => {
                assert!(path.ends_with("/ring-ref"));
                ring.clone().into_bytes()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(connector.next_request(), None, "one request at a time");
        let is_odd = odd > 0 && value != b"OK\0";
        let outcome = if is_odd {
            odd -= 1;
            match source.below(4) {
                0 => connector.on_reply(Err(StoreError::NotFound)),
                1 => {
                    connector.on_watch();
                    connector.on_reply(Ok(&value))
                }
                2 => connector.on_reply(Ok(b"")),
                _ => {
                    // No number that names anything.
                    let junk = source.piece();
                    let is_number = junk.iter().all(u8::is_ascii_digit);
                    connector.on_reply(Ok(if is_number { b"x" } else { junk }))
                }
            }
        } else {
            connector.on_reply(Ok(&value))
        };
        match outcome {
            None => {}
            Some(Outcome::Connected(link)) => return Some(link),
            Some(Outcome::Unusable(_)) if is_odd => {}
            Some(Outcome::Unusable(_)) => return None,
            Some(Outcome::WatchRefused(error)) => panic!("{error:?}"),
        }
    }
    panic!("the connector asks and asks");
}

fn server(source: &mut Source<'_>) {
    let peer = fake::peer(PEER);
    let sizes = [0, 1].map(|_| source.pick(&[1024, 2048, 4096, 4097, 16_384, 1 << 19]));
    let made = Server::new(PEER, OWN_DOMAIN, 512, Sizes { read: sizes[0], write: sizes[1] });
    assert_eq!(made.is_ok(), sizes.iter().all(|size| *size <= 1 << 18));
    let Ok(mut server) = made else { return };
    let Some((ring, port)) = announce(&mut server, source) else { return };
    let mapped = |gref| View::Mapped(peer.map(gref, Access::ReadWrite).expect("granted"));
    let mut pages = vec![mapped(ring)];
    let orders = [LEFT_ORDER, RIGHT_ORDER].map(|at| pages[0].read_u16(at));
    let counts = orders.map(|order| if order < 12 { 0 } else { 1_usize << (order - 12) });
    for at in 0..counts[0] + counts[1] {
        let gref = GrantRef(pages[0].read_u32(GRANTS + 4 * at));
        pages.push(mapped(gref));
    }
    for (order, size) in orders.iter().zip(sizes) {
        assert!(1 << order >= size, "a ring smaller than asked for");
    }
    assert!(pages[1..].iter().all(|page| bytes_of(page).iter().all(|byte| *byte == 0)));
    let reading = Half::new(&pages[0], orders[0], 1, 0, 4);
    let writing = Half::new(&pages[0], orders[1], 1 + counts[0], 12, 8);
    let shadow = pages.iter().map(|view| bytes_of(view)).collect();
    let rig = Rig {
        end: End::Server(Box::new(server)),
        peer,
        port: Some(peer.bind(port)),
        pages,
        shadow,
        reading,
        writing,
        own_live: SERVER_LIVE,
        peer_live: CLIENT_LIVE,
        own_notify: SERVER_NOTIFY,
        peer_notify: CLIENT_NOTIFY,
        state: LinkState::Waiting,
    };
    rig.play(source);
}

/// The server's requests until it is announced; `None` if the store refused.
fn announce(server: &mut Server, source: &mut Source<'_>) -> Option<(GrantRef, EventPort)> {
    let fails_at = source.below(40);
    let (mut ring, mut port) = (None, None);
    for step in 0..40 {
        let (_, request) = server.next_request()?;
        let reply: &[u8] = match request {
            Request::TransactionStart => b"7\0",
            Request::Write { path, value } => {
                let number = core::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                let place = if path.ends_with("/ring-ref") { &mut ring } else { &mut port };
                *place = Some(number.expect("a number"));
                b"OK\0"
            }
            _ => b"OK\0",
        };
        assert!(server.next_request().is_none(), "one request at a time");
        let error = source.pick(&[StoreError::Again, StoreError::Denied, StoreError::Other]);
        let reply = if step == fails_at { Err(error) } else { Ok(reply) };
        match server.on_reply(reply) {
            Some(ServerOutcome::Announced) => {
                return Some((GrantRef(ring.unwrap()), EventPort(port.unwrap())));
            }
            Some(ServerOutcome::Refused(_)) => return None,
            None => {}
        }
    }
    panic!("neither announced nor refused");
}

fn bytes_of(page: &SharedPage) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    page.copy_out(0, &mut bytes);
    bytes
}

/// One direction in the model.
struct Half {
    size: u32,
    /// First page, and first byte in it.
    first: usize,
    base: usize,
    /// Our index, and where both are in the ring page.
    index: u32,
    own_at: usize,
    peer_at: usize,
}

impl Half {
    fn new(ring: &SharedPage, order: u16, first: usize, own_at: usize, peer_at: usize) -> Self {
        let size = 1_u32 << order;
        let (first, base) = if order < 12 { (0, size as usize) } else { (first, 0) };
        Self { size, first, base, index: ring.read_u32(own_at), own_at, peer_at }
    }

    /// Page and offset of the byte with this index.
    fn place(&self, index: u32) -> (usize, usize) {
        let position = (index % self.size) as usize;
        (self.first + position / PAGE, self.base + position % PAGE)
    }
}

enum End {
    Client(Link),
    Server(Box<Server>),
}

struct Rig {
    end: End,
    peer: Peer,
    /// The peer's port, until it closes it.
    port: Option<EventPort>,
    /// The ring page, then the data pages, as the peer sees them; and what must be in them.
    pages: Vec<View>,
    shadow: Vec<Vec<u8>>,
    reading: Half,
    writing: Half,
    own_live: usize,
    peer_live: usize,
    own_notify: usize,
    peer_notify: usize,
    state: LinkState,
}

impl Rig {
    fn link(&mut self) -> &mut Link {
        match &mut self.end {
            End::Client(link) => link,
            End::Server(server) => server.link_mut(),
        }
    }

    fn play(mut self, source: &mut Source<'_>) {
        while !source.is_empty() {
            self.step(source);
            self.compare_heads();
        }
        self.compare();
        let Self { end, peer, port, pages, mut shadow, own_live, .. } = self;
        peer.take_notifications();
        drop(end);
        shadow[0][own_live] = 0;
        for (page, expected) in pages.iter().zip(&shadow) {
            assert!(bytes_of(page) == *expected, "a page changed when the link closed");
        }
        if let Some(port) = port {
            assert_eq!(peer.take_notifications(), [port], "the peer is told of the end");
            peer.close(port);
        }
    }

    fn step(&mut self, source: &mut Source<'_>) {
        self.peer.take_notifications();
        match source.below(13) {
            0 | 1 => self.peer_writes(source.piece()),
            2 => self.peer_reads(source.word().into()),
            3 => {
                let at = source.pick(&[self.reading.peer_at, self.writing.peer_at]);
                let by = source.pick(&[1, 1024, 4096, 4097, 0x8000_0000, u32::MAX]);
                let index = self.pages[0].read_u32(at).wrapping_add(by);
                self.poke(0, at, &index.to_le_bytes());
            }
            4 => {
                let page = source.below(self.pages.len());
                let at = usize::from(source.word()) % PAGE;
                let bytes = source.piece();
                self.poke(page, at, &bytes[..bytes.len().min(PAGE - at)]);
            }
            5 => {
                let live = source.pick(&[1, 1, 1, 1, 0, 2, 255]);
                self.poke(0, self.peer_live, &[live]);
            }
            6 => {
                let bits = source.byte();
                self.poke(0, self.own_notify, &[bits]);
            }
            7 => self.read(source),
            8 | 9 => self.write(source),
            10 => self.look(),
            11 => self.events(source),
            _ => self.store(source),
        }
        self.check_state();
    }

    /// The peer writes to a page.
    fn poke(&mut self, page: usize, at: usize, bytes: &[u8]) {
        self.pages[page].copy_in(at, bytes);
        self.shadow[page][at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// An honest peer puts into the ring what fits.
    fn peer_writes(&mut self, bytes: &[u8]) {
        let half = &self.reading;
        let producer = self.pages[0].read_u32(half.peer_at);
        let fill = producer.wrapping_sub(half.index);
        let room = half.size.saturating_sub(fill) as usize;
        let at = half.peer_at;
        let count = bytes.len().min(room);
        for (step, byte) in bytes[..count].iter().enumerate() {
            let (page, at) = self.reading.place(producer.wrapping_add(step as u32));
            self.poke(page, at, &[*byte]);
        }
        self.poke(0, at, &producer.wrapping_add(count as u32).to_le_bytes());
    }

    /// An honest peer takes some of what we wrote.
    fn peer_reads(&mut self, most: u32) {
        let half = &self.writing;
        let consumer = self.pages[0].read_u32(half.peer_at);
        let fill = half.index.wrapping_sub(consumer);
        if fill <= half.size {
            let consumer = consumer.wrapping_add(fill.min(most));
            self.poke(0, half.peer_at, &consumer.to_le_bytes());
        }
    }

    /// Bytes that the model finds to read; breaks the link where there cannot be so many.
    fn readable(&mut self) -> usize {
        let half = &self.reading;
        let fill = self.pages[0].read_u32(half.peer_at).wrapping_sub(half.index);
        self.checked(fill, self.reading.size) as usize
    }

    fn writable(&mut self) -> usize {
        let half = &self.writing;
        let fill = half.index.wrapping_sub(self.pages[0].read_u32(half.peer_at));
        let size = half.size;
        match self.checked(fill, size) {
            _ if self.state == LinkState::Broken => 0,
            fill => (size - fill) as usize,
        }
    }

    fn checked(&mut self, fill: u32, size: u32) -> u32 {
        if fill > size {
            self.state = LinkState::Broken;
        }
        if self.state == LinkState::Broken { 0 } else { fill }
    }

    fn read(&mut self, source: &mut Source<'_>) {
        let most = source.pick(&[0, 1, 100, 5000, 20_000]);
        let asked = self.pages[0].read_u8(self.own_notify);
        let length = self.readable().min(most);
        let mut buffer = vec![0xee; most];
        assert_eq!(self.link().read(&mut buffer), length);
        for (step, byte) in buffer[..length].iter().enumerate() {
            let (page, at) = self.reading.place(self.reading.index.wrapping_add(step as u32));
            assert_eq!(*byte, self.shadow[page][at], "byte {step} of {length}");
        }
        assert!(buffer[length..].iter().all(|byte| *byte == 0xee), "more than was said");
        if length > 0 {
            self.reading.index = self.reading.index.wrapping_add(length as u32);
            let (at, index) = (self.reading.own_at, self.reading.index);
            self.shadow[0][at..at + 4].copy_from_slice(&index.to_le_bytes());
            self.told(asked, NOTIFY_READ);
        }
        if self.readable() == 0 && most > 0 && self.state != LinkState::Broken {
            self.asks(NOTIFY_WRITE);
        }
    }

    fn write(&mut self, source: &mut Source<'_>) {
        let most = source.pick(&[0, 1, 100, 1024, 5000, 20_000]);
        let bytes: Vec<u8> = (0..most).map(|at| (at as u8) ^ source_byte(source, at)).collect();
        let asked = self.pages[0].read_u8(self.own_notify);
        self.expect_state();
        let may = matches!(self.state, LinkState::Open | LinkState::Waiting);
        let length = if may { self.writable().min(most) } else { 0 };
        assert_eq!(self.link().write(&bytes), length);
        for (step, byte) in bytes[..length].iter().enumerate() {
            let (page, at) = self.writing.place(self.writing.index.wrapping_add(step as u32));
            self.shadow[page][at] = *byte;
        }
        if length > 0 {
            self.writing.index = self.writing.index.wrapping_add(length as u32);
            let (at, index) = (self.writing.own_at, self.writing.index);
            self.shadow[0][at..at + 4].copy_from_slice(&index.to_le_bytes());
            self.told(asked, NOTIFY_WRITE);
        }
        if may && length < most {
            self.asks(NOTIFY_READ);
        }
    }

    fn look(&mut self) {
        let (readable, writable) = (self.readable(), self.writable());
        // The order matters where one of the two breaks the link.
        let broken = self.state == LinkState::Broken;
        let (ready, space) = (self.link().data_ready(), self.link().space());
        assert!(broken || ready == readable);
        assert_eq!(space, if broken { 0 } else { writable });
        if !broken && readable == 0 {
            self.asks(NOTIFY_WRITE);
        }
    }

    /// The peer raises an event, or closes its port.
    fn events(&mut self, source: &mut Source<'_>) {
        let Some(port) = self.port else { return };
        if source.below(4) == 0 {
            self.peer.close(port);
            self.port = None;
            return;
        }
        self.peer.notify(port);
        let ours = self.link().port();
        let mut seen = false;
        event::take_pending(|port| seen |= port == ours);
        assert!(seen, "an event of the peer is lost");
        self.link().unmask();
    }

    /// What goes on in xenstore beside the link.
    fn store(&mut self, source: &mut Source<'_>) {
        let End::Server(server) = &mut self.end else { return };
        if source.below(4) == 0 {
            server.withdraw();
        }
        let Some((_, request)) = server.next_request() else { return };
        let reply: Result<&[u8], _> = match request {
            Request::Rm { .. } => source.pick(&[Ok(b"OK\0".as_slice()), Err(StoreError::NotFound)]),
            Request::Directory { .. } => Ok(source.pick(&[b"".as_slice(), b"513\0"])),
            other => panic!("{other:?} after the announcement"),
        };
        assert_eq!(server.on_reply(reply), None);
    }

    /// What the documentation of the states says of now.
    fn expect_state(&mut self) {
        let live = self.pages[0].read_u8(self.peer_live);
        self.state = match self.state {
            fixed @ (LinkState::Closed | LinkState::Broken) => fixed,
            LinkState::Waiting if live == 2 => LinkState::Waiting,
            _ if live == 1 && self.port.is_some() => LinkState::Open,
            _ => LinkState::Closed,
        };
    }

    fn check_state(&mut self) {
        self.expect_state();
        let expected = self.state;
        assert_eq!(self.link().state(), expected);
        assert_eq!(self.link().is_open(), expected == LinkState::Open);
    }

    /// The peer got an event exactly if it had asked for this kind.
    fn told(&mut self, asked: u8, bit: u8) {
        let told = self.peer.take_notifications();
        let expected: Vec<_> = self.port.filter(|_| asked & bit != 0).into_iter().collect();
        assert_eq!(told, expected);
        assert_eq!(self.pages[0].read_u8(self.own_notify), asked & !bit);
    }

    /// We asked the peer for an event of this kind.
    fn asks(&self, bit: u8) {
        assert_ne!(self.pages[0].read_u8(self.peer_notify) & bit, 0);
    }

    /// The ring page's header; both sides change the notify bytes.
    fn compare_heads(&mut self) {
        let mut head = [0; GRANTS];
        self.pages[0].copy_out(0, &mut head);
        for at in [CLIENT_NOTIFY, SERVER_NOTIFY] {
            self.shadow[0][at] = head[at];
        }
        assert_eq!(head, self.shadow[0][..GRANTS], "the ring page's header");
    }

    fn compare(&mut self) {
        self.compare_heads();
        for (page, expected) in self.pages.iter().zip(&self.shadow) {
            assert!(bytes_of(page) == *expected, "a page changed that nobody wrote to");
        }
    }
}

/// Few bytes of the input for many of the data.
fn source_byte(source: &mut Source<'_>, at: usize) -> u8 {
    if at.is_multiple_of(1024) { source.byte() } else { (at >> 8) as u8 }
}
