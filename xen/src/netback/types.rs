//! What the backend tells the rest of the program: ids, events, frames, counters.

use super::identity::{Identity, IdentityError, Setting};
use crate::abi::DomId;
use crate::event::EventError;
use crate::grant::GrantError;
use crate::mem::ledger::Part;
use crate::netif::{Capabilities, Chain, MAX_FRAME_SLOTS, Offload, Violation};
use crate::xenbus::State;

/// Bounds, fixed at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most vif directories that are served; further ones are left in state 1.
    pub max_vifs: usize,
    /// Most pages of frames that wait for one client.
    pub queue_per_vif: usize,
    /// Pages of frames that wait for all clients together. Each may have its even share; beyond it one may have as many as are left,
    /// so that a few with long queues leave a part for the others, whose shares may go beyond the total.
    pub queue_total: usize,
    /// Whether scatter-gather and TCP segmentation are offered to clients and used where they offer them.
    pub offloads: bool,
}

impl Config {
    /// Bounds for a pool of `pages` pages: an eighth of it may wait for slow clients, beside the even shares of those that come
    /// when it is used up. Without offloads.
    pub fn for_pages(pages: usize) -> Config {
        let queue_total = (pages / 8).max(64);
        Config { max_vifs: 256, queue_per_vif: 128, queue_total, offloads: false }
    }

    /// What a budget must hold for another frame to be taken: the largest one.
    pub(super) fn least_budget(&self) -> usize {
        if self.offloads { MAX_FRAME_SLOTS } else { 1 }
    }
}

/// One connection of one vif. A reconnected vif has a new id, so that frames and events of the old connection cannot
/// be taken for the new one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VifId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl VifId {
    /// A number below [`Config::max_vifs`], used by one connection at a time.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Why a vif is not, or no longer, connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The frontend closed, or its driver started again.
    #[error("closed by the frontend")]
    Frontend,
    /// Dom0 removes the device.
    #[error("removed by dom0")]
    Removed,
    /// The directory is gone.
    #[error("its directory is gone")]
    Vanished,
    /// There is no room for its queue.
    #[error("out of memory")]
    NoMemory,
    /// Dom0's nodes are unusable.
    #[error("{0}")]
    Identity(IdentityError),
    /// The frontend published a missing, malformed or unsupported value.
    #[error("the frontend's {} is missing, malformed or unsupported", .0.name())]
    Setting(Setting),
    /// The rings cannot be mapped.
    #[error("mapping the rings failed: {0:?}")]
    Map(GrantError),
    /// The event channel cannot be bound.
    #[error("{0}")]
    EventChannel(EventError),
    /// The frontend's index in the TX ring is impossible.
    #[error("the TX ring is corrupt")]
    TxRing,
    /// The frontend's index in the RX ring is impossible.
    #[error("the RX ring is corrupt")]
    RxRing,
    /// The frontend's TX slots break the protocol.
    #[error("{0}")]
    Slots(Violation),
}

/// What happened to a vif.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Frames can flow.
    Connected {
        /// The connection.
        vif: VifId,
        /// Who it is, as dom0 says.
        identity: Identity,
        /// What the frontend accepts.
        capabilities: Capabilities,
    },
    /// The connection is over; the id means nothing any more.
    Disconnected {
        /// The connection.
        vif: VifId,
        /// Why.
        reason: CloseReason,
    },
    /// A connection that is over has left memory behind: a fault of ours, which costs no more than that memory.
    Leak {
        /// The connection.
        vif: VifId,
        /// Where.
        part: Part,
        /// How much, in bytes.
        bytes: usize,
    },
    /// xenstore has no room for all that a vif is usually offered: it gets what it needs, and nothing beyond.
    Limited {
        /// The client's domain.
        dom: DomId,
        /// The client's device number.
        devid: u32,
    },
    /// A vif could not be connected.
    Refused {
        /// The client's domain.
        dom: DomId,
        /// The client's device number.
        devid: u32,
        /// Why.
        reason: CloseReason,
    },
}

/// A frame from a client, in a private page: nobody else can change it any more.
#[derive(Debug)]
pub struct Frame {
    /// Where it came from.
    pub vif: VifId,
    /// The frame: one page of 14 to 1518 bytes; with a segmentation request 14 to 65535 bytes, all pages but the last
    /// full. What follows it in a page is old and must not be shown to anybody.
    pub chain: Chain,
    /// What the sender left to us.
    pub offload: Offload,
}

/// A frame was not taken for sending; its page is free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// That connection is over.
    #[error("the vif is not connected")]
    Gone,
    /// Too many frames wait for this client.
    #[error("the client's queue is full")]
    QueueFull,
    /// The client has posted no buffer for a long time.
    #[error("the client takes no frames")]
    Stalled,
    /// The client did not offer to complete such a frame.
    #[error("the client does not accept this offload")]
    Unsupported,
    /// Shorter than 14 or longer than 1518 bytes, or a super-frame that cannot be one.
    #[error("not the length of a frame")]
    BadLength,
}

/// What was counted on one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VifCounters {
    /// Frames taken from the client.
    pub from_guest_frames: u64,
    /// Bytes in them.
    pub from_guest_bytes: u64,
    /// Frames copied to the client.
    pub to_guest_frames: u64,
    /// Bytes in them.
    pub to_guest_bytes: u64,
    /// Events of the client's channel.
    pub events: u64,
    /// Grant copies that Xen refused, in either direction.
    pub copy_failed: u64,
    /// From the client: shorter than an Ethernet header.
    pub too_short: u64,
    /// From the client: longer than 1518 bytes, without segmentation.
    pub too_long: u64,
    /// From the client: more than 18 data slots.
    pub too_many_fragments: u64,
    /// From the client: segmentation that we did not offer, or without a blank checksum.
    pub gso_not_offered: u64,
    /// From the client: segmentation that means nothing.
    pub gso_unusable: u64,
    /// From the client: larger than one page when pages were short.
    pub no_page: u64,
    /// To the client: queue full.
    pub queue_full: u64,
    /// To the client: dropped because it takes nothing.
    pub stalled: u64,
    /// To the client: offload that it did not offer.
    pub unsupported: u64,
    /// To the client: impossible length.
    pub bad_length: u64,
}

/// Counters over all vifs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections made.
    pub connected: u64,
    /// Connections ended.
    pub disconnected: u64,
    /// Connections ended because the frontend broke the protocol.
    pub violations: u64,
    /// Devices not connected for a malformed value.
    pub refused: u64,
    /// Directories beyond [`Config::max_vifs`].
    pub too_many: u64,
    /// Vifs that were offered fewer features than usual: the quota of xenstore allows no more.
    pub limited: u64,
    /// Writes that the store refused (quotas among them).
    pub write_errors: u64,
}

/// One vif as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VifStatus {
    /// The client's domain.
    pub dom: DomId,
    /// The client's device number.
    pub devid: u32,
    /// Our state node, as last seen or written.
    pub state: State,
    /// The connection, if there is one.
    pub vif: Option<VifId>,
    /// Pages of frames that wait for the client.
    pub queued: usize,
    /// Why it was closed or refused last.
    pub reason: Option<CloseReason>,
}
