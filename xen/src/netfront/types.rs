//! What the frontend tells the rest of the program: ids, events, frames, counters.

use crate::abi::DomId;
use crate::mem::ledger::Part;
use crate::netif::{Capabilities, Chain, Offload};
use crate::xenbus::State;

/// Bounds, fixed at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Receive buffers that the backend gets, at most 256.
    pub rx_buffers: usize,
    /// Pages of frames that may be with the backend at a time, at most 256.
    pub tx_in_flight: u16,
    /// Whether scatter-gather and TCP segmentation are offered to the backend and used where it offers them.
    pub offloads: bool,
}

impl Config {
    /// Bounds for a pool of `pages` pages: an eighth each way, within the size of the rings. Without offloads.
    pub fn for_pages(pages: usize) -> Config {
        let share = (pages / 8).clamp(32, 256);
        let tx_in_flight = u16::try_from(share).unwrap_or(256);
        Config { rx_buffers: share, tx_in_flight, offloads: false }
    }
}

/// One connection of the uplink; a reconnected uplink has a new id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UplinkId(pub(super) u32);

/// Why the uplink is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownReason {
    /// The backend closes or restarts.
    #[error("closed by the backend")]
    Backend,
    /// The device's directory is gone.
    #[error("the device is gone")]
    Vanished,
    /// Dom0 gave the device another backend.
    #[error("the backend was replaced")]
    Replaced,
    /// A node in the device's directory is missing or malformed.
    #[error("the device's nodes are malformed")]
    Malformed,
    /// The backend lacks `feature-rx-copy`.
    #[error("the backend cannot copy")]
    NoRxCopy,
    /// Memory, grants or ports are short, or the store refuses our nodes.
    #[error("out of resources")]
    Resources,
    /// The backend's index in the TX ring is impossible.
    #[error("the TX ring is corrupt")]
    TxRing,
    /// The backend's index in the RX ring is impossible.
    #[error("the RX ring is corrupt")]
    RxRing,
    /// A response to a request that we do not have.
    #[error("a response to nothing")]
    UnknownResponse,
    /// A TX status that does not exist.
    #[error("a response of unknown status")]
    BadStatus,
    /// A received frame reaches beyond its page.
    #[error("a received frame crosses the end of its page")]
    BadLength,
    /// A packet in several slots ends without its last slot.
    #[error("a received packet ends without its last slot")]
    TruncatedPacket,
    /// An extra info of unknown type, or an endless chain of them.
    #[error("an unusable extra info")]
    UnknownExtra,
    /// The backend answered but still uses the page.
    #[error("the backend still uses a page that it gave back")]
    StillInUse,
    /// The backend does not look at the TX ring, however often it is told to.
    #[error("the backend does not react to events")]
    Deaf,
}

/// What happened to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Frames can flow. Addresses are to be read from QubesDB now.
    Up {
        /// The connection.
        uplink: UplinkId,
        /// Our MAC address.
        mac: [u8; 6],
        /// The backend's domain.
        backend: DomId,
        /// Largest IP packet, in bytes; at most 1500.
        mtu: u16,
        /// What the backend accepts.
        capabilities: Capabilities,
    },
    /// The backend does not look at our requests. It is told again, a few times; then the connection is made anew.
    Silent {
        /// The connection.
        uplink: UplinkId,
    },
    /// A connection that is over has left memory behind: a fault of ours, which costs no more than that memory.
    Leak {
        /// Where.
        part: Part,
        /// How much, in bytes.
        bytes: usize,
    },
    /// The connection is over.
    Down {
        /// The connection.
        uplink: UplinkId,
        /// Why.
        reason: DownReason,
    },
}

/// A frame from the uplink, in a private page: nobody else can change it any more.
#[derive(Debug)]
pub struct Frame {
    /// Where it came from.
    pub uplink: UplinkId,
    /// The frame: one page of 14 to 1518 bytes; with a segmentation request 14 to 65553 bytes, the first 256 of them in
    /// the first page. What follows it in a page was written by the backend or is zero.
    pub chain: Chain,
    /// What the sender left to us.
    pub offload: Offload,
}

/// A frame was not taken for sending; its page is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection.
    #[error("the uplink is down")]
    Down,
    /// As many pages as allowed are with the backend, or too many for this frame.
    #[error("the uplink's ring is full")]
    Full,
    /// The backend did not offer to complete such a frame.
    #[error("the backend does not accept this offload")]
    Unsupported,
    /// Shorter than 14 or longer than 1518 bytes, or a super-frame that cannot be one.
    #[error("not the length of a frame")]
    BadLength,
    /// The grant table is full.
    #[error("no grant is free")]
    NoGrant,
}

/// What was counted on the present connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames handed to the backend.
    pub sent_frames: u64,
    /// Bytes in them.
    pub sent_bytes: u64,
    /// Requests that the backend answered with an error: one for each page of a frame.
    pub refused: u64,
    /// Frames received.
    pub received_frames: u64,
    /// Bytes in them.
    pub received_bytes: u64,
    /// Received: an error status, not the length of a frame, or segmentation that means nothing.
    pub unusable: u64,
    /// Received: packets in several slots, which we did not offer to take, or in more than 18.
    pub multi_slot: u64,
    /// Receive buffers not posted, and frames of several pages not taken, for want of memory.
    pub no_page: u64,
    /// Events of the channel.
    pub events: u64,
    /// Events sent again because the backend did not react.
    pub repeated_events: u64,
}

/// The uplink as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The device's number.
    pub devid: u32,
    /// The backend's domain, once known.
    pub backend: Option<DomId>,
    /// Our state node, as last seen or written.
    pub own: State,
    /// The backend's state node, as last seen.
    pub back: State,
    /// The connection, if frames can flow.
    pub uplink: Option<UplinkId>,
    /// Slots of frames that the backend has.
    pub in_flight: usize,
    /// Receive buffers that the backend has.
    pub posted: usize,
    /// Why it went down last.
    pub reason: Option<DownReason>,
}

/// Counters over all connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Times that the uplink came up.
    pub up: u64,
    /// Connections given up, also before they came up.
    pub down: u64,
    /// Those for which the backend broke the protocol.
    pub violations: u64,
    /// Writes that the store refused.
    pub write_errors: u64,
}
