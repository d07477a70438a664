//! An established pipe, either end.

use core::cell::Cell;

use super::index::Order;
use super::layout::{
    CLIENT_LIVE, CLIENT_NOTIFY, GONE, LEFT_CONSUMER, LEFT_PRODUCER, LIVE, Layout, NOT_CONNECTED,
    NOTIFY_READ, NOTIFY_WRITE, RIGHT_CONSUMER, RIGHT_PRODUCER, SERVER_LIVE, SERVER_NOTIFY,
};
use super::memory::{Direction, Memory};
use crate::abi::{DomId, EventPort};
use crate::event::Channel;
use crate::shared::{SharedPage, fence_full};

/// How the link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// We are the server and no client has come yet. What is written now waits for it.
    Waiting,
    /// Both ends are there.
    Open,
    /// The other end is gone. What it wrote can still be read; nothing more can be written.
    Closed,
    /// The other end broke the protocol: more bytes in the ring than fit. Nothing is read or written any more.
    Broken,
}

/// Offsets of the fields in the ring page, as this end sees them.
#[derive(Debug)]
struct Side {
    own_live: usize,
    peer_live: usize,
    /// Bits that we must signal.
    own_notify: usize,
    /// Bits that the peer must signal.
    peer_notify: usize,
}

const CLIENT: Side = Side {
    own_live: CLIENT_LIVE,
    peer_live: SERVER_LIVE,
    own_notify: CLIENT_NOTIFY,
    peer_notify: SERVER_NOTIFY,
};
const SERVER: Side = Side {
    own_live: SERVER_LIVE,
    peer_live: CLIENT_LIVE,
    own_notify: SERVER_NOTIFY,
    peer_notify: CLIENT_NOTIFY,
};

/// One direction: our index, kept privately so that the peer cannot change it, and where both are in the ring page.
#[derive(Debug)]
struct Half {
    direction: Direction,
    order: Order,
    own_index: u32,
    own_offset: usize,
    peer_offset: usize,
}

/// A pipe. Dropping it closes it: the peer is told and may still read what is buffered in pages of its own.
///
/// The two sizes were read once and checked; every index of the peer is checked at each use.
#[derive(Debug)]
pub struct Link {
    peer: DomId,
    channel: Channel,
    memory: Memory,
    side: &'static Side,
    reading: Half,
    writing: Half,
    /// A peer that was live once and is not now stays closed, whatever it writes later.
    state: Cell<LinkState>,
}

impl Link {
    /// The client's end over mapped and validated memory; tells the server.
    pub(super) fn client(peer: DomId, channel: Channel, memory: Memory, layout: Layout) -> Self {
        let ring = memory.ring();
        let reading = half(ring, Direction::Right, layout.right, RIGHT_CONSUMER, RIGHT_PRODUCER);
        let writing = half(ring, Direction::Left, layout.left, LEFT_PRODUCER, LEFT_CONSUMER);
        ring.write_u8(CLIENT_LIVE, LIVE);
        ring.fetch_or_u8(SERVER_NOTIFY, NOTIFY_WRITE);
        fence_full();
        channel.notify();
        let state = Cell::new(LinkState::Open);
        Self { peer, channel, memory, side: &CLIENT, reading, writing, state }
    }

    /// The server's end over a header that announces it.
    pub(super) fn server(peer: DomId, channel: Channel, memory: Memory, layout: Layout) -> Self {
        let ring = memory.ring();
        let reading = half(ring, Direction::Left, layout.left, LEFT_CONSUMER, LEFT_PRODUCER);
        let writing = half(ring, Direction::Right, layout.right, RIGHT_PRODUCER, RIGHT_CONSUMER);
        let state = Cell::new(LinkState::Waiting);
        Self { peer, channel, memory, side: &SERVER, reading, writing, state }
    }

    /// The domain at the other end.
    pub fn peer(&self) -> DomId {
        self.peer
    }

    /// Our event-channel port, by which `event::take_pending` names this link.
    pub fn port(&self) -> EventPort {
        self.channel.port()
    }

    /// Lets events through again, after this one has been acted upon.
    pub fn unmask(&self) {
        self.channel.unmask();
    }

    /// Size of the ring that we read from, in bytes.
    pub fn read_capacity(&self) -> usize {
        self.reading.order.size() as usize
    }

    /// Size of the ring that we write to, in bytes.
    pub fn write_capacity(&self) -> usize {
        self.writing.order.size() as usize
    }

    /// Looks at the peer's live byte and, because a crashed peer does not clear it, at the event channel.
    pub fn state(&self) -> LinkState {
        let now = match (self.state.get(), self.memory.ring().read_u8(self.side.peer_live)) {
            (fixed @ (LinkState::Closed | LinkState::Broken), _) => fixed,
            (LinkState::Waiting, NOT_CONNECTED) => LinkState::Waiting,
            (_, LIVE) if self.channel.is_connected() => LinkState::Open,
            (_, _) => LinkState::Closed,
        };
        self.state.set(now);
        now
    }

    /// Are both ends there?
    pub fn is_open(&self) -> bool {
        self.state() == LinkState::Open
    }

    /// Bytes that can be read now. At 0 an event will come when there are more.
    pub fn data_ready(&self) -> usize {
        match self.readable() {
            0 => {
                self.request_notify(NOTIFY_WRITE);
                self.readable() as usize
            }
            bytes => bytes as usize,
        }
    }

    /// Bytes that can be written now. When it is less than half of the ring, an event will come when there is more.
    pub fn space(&self) -> usize {
        if self.writable() < self.writing.order.size() / 2 {
            self.request_notify(NOTIFY_READ);
        }
        self.writable() as usize
    }

    /// Reads what is there, up to the length of `buffer`. Also after the peer has closed. When the ring is drained,
    /// an event will come for the next bytes.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let length = self.data_ready().min(buffer.len());
        let Some(target) = buffer.get_mut(..length).filter(|target| !target.is_empty()) else {
            return 0;
        };
        let half = &mut self.reading;
        self.memory.copy_out((half.direction, half.order), half.own_index, target);
        // `length` is at most the size of the ring, 2^18.
        half.own_index = half.own_index.wrapping_add(length as u32);
        fence_full();
        self.memory.ring().store_release_u32(half.own_offset, half.own_index);
        self.send_notify(NOTIFY_READ);
        if self.readable() == 0 {
            self.request_notify(NOTIFY_WRITE);
        }
        length
    }

    /// Writes as much as fits and says how much. When that is not all, an event will come when there is space.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        if !matches!(self.state(), LinkState::Open | LinkState::Waiting) {
            return 0;
        }
        let mut length = (self.writable() as usize).min(bytes.len());
        if length < bytes.len() {
            self.request_notify(NOTIFY_READ);
            length = (self.writable() as usize).min(bytes.len());
        }
        let Some(source) = bytes.get(..length).filter(|source| !source.is_empty()) else {
            return 0;
        };
        let half = &mut self.writing;
        fence_full();
        self.memory.copy_in((half.direction, half.order), half.own_index, source);
        half.own_index = half.own_index.wrapping_add(length as u32);
        self.memory.ring().store_release_u32(half.own_offset, half.own_index);
        self.send_notify(NOTIFY_WRITE);
        length
    }

    /// Bytes between the peer's producer and our consumer; 0 and `Broken` if that cannot be.
    fn readable(&self) -> u32 {
        let half = &self.reading;
        let producer = self.memory.ring().load_acquire_u32(half.peer_offset);
        self.checked(half.order.fill(producer, half.own_index))
    }

    fn writable(&self) -> u32 {
        let half = &self.writing;
        let consumer = self.memory.ring().load_acquire_u32(half.peer_offset);
        let unused = |fill: u32| half.order.size().saturating_sub(fill);
        self.checked(half.order.fill(half.own_index, consumer).map(unused))
    }

    fn checked(&self, bytes: Option<u32>) -> u32 {
        if bytes.is_none() {
            self.state.set(LinkState::Broken);
        }
        if self.state.get() == LinkState::Broken { 0 } else { bytes.unwrap_or(0) }
    }

    /// Raises an event if the peer asked for this kind since the last one.
    fn send_notify(&self, bit: u8) {
        fence_full();
        if self.memory.ring().fetch_and_u8(self.side.own_notify, !bit) & bit != 0 {
            self.channel.notify();
        }
    }

    /// Asks the peer for an event; the caller looks at the ring once more afterwards.
    fn request_notify(&self, bit: u8) {
        self.memory.ring().fetch_or_u8(self.side.peer_notify, bit);
        fence_full();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.memory.ring().write_u8(self.side.own_live, GONE);
        fence_full();
        self.channel.notify();
    }
}

fn half(
    ring: &SharedPage,
    direction: Direction,
    order: Order,
    own_offset: usize,
    peer_offset: usize,
) -> Half {
    Half { direction, order, own_index: ring.read_u32(own_offset), own_offset, peer_offset }
}
