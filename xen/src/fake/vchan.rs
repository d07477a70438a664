//! The other ends of our vchans, as dom0's daemons and callers have them: honest, a page or more each way
//! (`struct vchan_interface` of Xen public/io/libxenvchan.h). Each polls, so that it asks for no events, and tells us
//! when it has read or written something.
#![forbid(unsafe_code)]

use std::format;
use std::vec::Vec;

use super::xenstore::Store;
use super::{OWN_DOMAIN, Peer, PeerMapping, peer};
use crate::abi::{DomId, EventPort, GrantRef};
use crate::grant::Access;
use crate::mem::PAGE_SIZE;
use crate::shared::SharedPage;

/// Offsets of consumer and producer: client to server, server to client.
const LEFT: (usize, usize) = (0, 4);
const RIGHT: (usize, usize) = (8, 12);
const ORDERS: usize = 16;
const CLIENT_LIVE: usize = 20;
const SERVER_LIVE: usize = 21;
const GRANTS: usize = 24;
const LIVE: u8 = 1;
const NOT_CONNECTED: u8 = 2;

/// Reads what there is out of one direction.
fn read(ring: &SharedPage, (consumer, producer): (usize, usize), pages: &[&SharedPage]) -> Vec<u8> {
    let (mut from, to) = (ring.read_u32(consumer), ring.read_u32(producer));
    let mut bytes = Vec::new();
    while from != to {
        bytes.push(place(pages, from, |page, at| page.read_u8(at)));
        from = from.wrapping_add(1);
    }
    ring.store_release_u32(consumer, from);
    bytes
}

/// Writes as much as fits; says how much.
fn write(
    ring: &SharedPage,
    (consumer, producer): (usize, usize),
    pages: &[&SharedPage],
    bytes: &[u8],
) -> usize {
    let mut to = ring.read_u32(producer);
    let room = (pages.len() * PAGE_SIZE) - to.wrapping_sub(ring.read_u32(consumer)) as usize;
    let count = bytes.len().min(room);
    for byte in bytes.iter().take(count) {
        place(pages, to, |page, at| page.write_u8(at, *byte));
        to = to.wrapping_add(1);
    }
    ring.store_release_u32(producer, to);
    count
}

fn place<R>(pages: &[&SharedPage], index: u32, action: impl FnOnce(&SharedPage, usize) -> R) -> R {
    let at = index as usize % (pages.len() * PAGE_SIZE);
    action(pages.get(at / PAGE_SIZE).expect("an index within the buffer"), at % PAGE_SIZE)
}

/// A server that we connect to.
pub struct ServerEnd {
    /// Its domain.
    pub peer: Peer,
    ring: (GrantRef, SharedPage),
    left: Vec<(GrantRef, SharedPage)>,
    right: Vec<(GrantRef, SharedPage)>,
    port: EventPort,
    directory: std::string::String,
}

impl ServerEnd {
    /// Listens at vchan port `number` of `dom`, with `pages` (a power of two) each way, and announces that.
    pub fn announce(store: &mut Store, dom: DomId, number: u32, pages: usize) -> ServerEnd {
        let peer = peer(dom);
        let data = || (0..pages).map(|_| peer.grant_page(Access::ReadWrite)).collect::<Vec<_>>();
        let (ring, left, right) = (peer.grant_page(Access::ReadWrite), data(), data());
        let order = 12 + pages.trailing_zeros() as u8;
        ring.1.copy_in(ORDERS, &[order, 0, order, 0, NOT_CONNECTED, LIVE, 0, 0]);
        for (index, (gref, _)) in left.iter().chain(&right).enumerate() {
            ring.1.copy_in(GRANTS + 4 * index, &gref.0.to_le_bytes());
        }
        let port = peer.alloc_unbound();
        let directory = format!("/local/domain/{}/data/vchan/{}/{number}", dom.0, OWN_DOMAIN.0);
        store.write(&format!("{directory}/event-channel"), &format!("{}", port.0));
        store.write(&format!("{directory}/ring-ref"), &format!("{}", ring.0.0));
        ServerEnd { peer, ring, left, right, port, directory }
    }

    /// Whether we have connected.
    pub fn is_connected(&self) -> bool {
        self.ring.1.read_u8(CLIENT_LIVE) == LIVE
    }

    /// What we wrote.
    pub fn read(&mut self) -> Vec<u8> {
        let pages: Vec<&SharedPage> = self.left.iter().map(|(_, page)| page).collect();
        let bytes = read(&self.ring.1, LEFT, &pages);
        if !bytes.is_empty() {
            self.peer.notify(self.port);
        }
        bytes
    }

    /// Writes to us as much as fits; says how much.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let pages: Vec<&SharedPage> = self.right.iter().map(|(_, page)| page).collect();
        let count = write(&self.ring.1, RIGHT, &pages, bytes);
        if count > 0 {
            self.peer.notify(self.port);
        }
        count
    }

    /// Closes the link and takes the announcement back.
    pub fn close(&mut self, store: &mut Store) {
        self.ring.1.write_u8(SERVER_LIVE, 0);
        self.peer.notify(self.port);
        store.remove(&self.directory);
    }

    /// Ends what is left of a closed one; `false` while we still have its pages.
    pub fn is_ended(&mut self) -> bool {
        let (peer, ring) = (self.peer, self.ring.0);
        for pages in [&mut self.left, &mut self.right] {
            pages.retain(|(gref, _)| !peer.revoke(*gref));
        }
        let is_ended = self.left.is_empty() && self.right.is_empty() && peer.revoke(ring);
        if is_ended {
            peer.close(self.port);
        }
        is_ended
    }
}

/// A client of a server of ours.
pub struct ClientEnd {
    /// Its domain.
    pub peer: Peer,
    ring: PeerMapping,
    left: PeerMapping,
    right: PeerMapping,
    port: EventPort,
}

impl ClientEnd {
    /// Connects to our vchan port `number`, which has one page each way; `None` while it is not announced.
    pub fn connect(store: &Store, dom: DomId, number: u32) -> Option<ClientEnd> {
        let node = |name| {
            let value = store.read(&format!("data/vchan/{}/{number}/{name}", dom.0))?;
            value.parse::<u32>().ok()
        };
        let (ring, port) = (node("ring-ref")?, node("event-channel")?);
        let peer = peer(dom);
        let map = |gref| peer.map(GrantRef(gref), Access::ReadWrite).ok();
        let ring = map(ring)?;
        let (left, right) = (map(ring.read_u32(GRANTS))?, map(ring.read_u32(GRANTS + 4))?);
        let port = peer.bind(EventPort(port));
        ring.write_u8(CLIENT_LIVE, LIVE);
        peer.notify(port);
        Some(ClientEnd { peer, ring, left, right, port })
    }

    /// What we wrote.
    pub fn read(&mut self) -> Vec<u8> {
        let bytes = read(&self.ring, RIGHT, &[&self.right]);
        if !bytes.is_empty() {
            self.peer.notify(self.port);
        }
        bytes
    }

    /// Writes to us as much as fits; says how much.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let count = write(&self.ring, LEFT, &[&self.left], bytes);
        if count > 0 {
            self.peer.notify(self.port);
        }
        count
    }

    /// Closes the link.
    pub fn close(self) {
        self.ring.write_u8(CLIENT_LIVE, 0);
        self.peer.notify(self.port);
        self.peer.close(self.port);
    }

    /// Whether we are still there.
    pub fn is_open(&self) -> bool {
        self.ring.read_u8(SERVER_LIVE) == LIVE
    }
}
