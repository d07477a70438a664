//! Frames in the words of the packet path, and in those of the drivers.

use xen::mem::{PAGE_SIZE, Page};
use xen::netif::{self, Chain, Piece};
use xen::{netback, netfront};

use crate::event_loop::machine::Paged;
use crate::frame::{Checksum, Gso, GsoKind, Offload};
use crate::segment::Payload;

/// The pages of a frame behind its first one.
#[derive(Debug)]
pub struct Tail(pub(super) netif::Tail);

impl Payload for Tail {
    fn copy(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let (mut skip, mut rest) = (offset, to);
        for piece in self.0.iter() {
            let Some(bytes) = piece.bytes().get(skip..) else {
                skip -= piece.bytes().len();
                continue;
            };
            let (now, later) = rest.split_at_mut(bytes.len().min(rest.len()));
            now.copy_from_slice(bytes.get(..now.len())?);
            (skip, rest) = (0, later);
        }
        rest.is_empty().then_some(())
    }
}

/// Why a frame was not sent although the packet path wanted it.
#[derive(Clone, Copy)]
pub(super) enum Unsent {
    UplinkDown,
    UplinkFull,
    UplinkNoGrant,
    UplinkUnsendable,
    ClientGone,
    ClientQueueFull,
    ClientStalled,
    ClientUnsendable,
}

impl Unsent {
    /// In the order of the variants.
    pub(super) const NAMES: [&str; 8] = [
        "uplink-down",
        "uplink-full",
        "uplink-no-grant",
        "uplink-unsendable",
        "client-gone",
        "client-queue-full",
        "client-stalled",
        "client-unsendable",
    ];

    pub(super) fn of_uplink(error: netfront::SendError) -> Self {
        match error {
            netfront::SendError::Down => Self::UplinkDown,
            netfront::SendError::Full => Self::UplinkFull,
            netfront::SendError::NoGrant => Self::UplinkNoGrant,
            netfront::SendError::Unsupported | netfront::SendError::BadLength => {
                Self::UplinkUnsendable
            }
        }
    }

    pub(super) fn of_client(error: netback::SendError) -> Self {
        match error {
            netback::SendError::Gone => Self::ClientGone,
            netback::SendError::QueueFull => Self::ClientQueueFull,
            netback::SendError::Stalled => Self::ClientStalled,
            netback::SendError::Unsupported | netback::SendError::BadLength => {
                Self::ClientUnsendable
            }
        }
    }
}

/// The driver's form of a frame; `None` for one whose lengths contradict each other.
pub(super) fn chained(frame: Paged<Page, Tail>) -> Option<Chain> {
    let Paged { page, head, len, tail, .. } = frame;
    let head = u16::try_from(head).ok().filter(|head| usize::from(*head) <= PAGE_SIZE)?;
    let tail = tail.map_or(netif::Tail::EMPTY, |tail| tail.0);
    Some(Chain::from_parts(Piece::new(page, head), tail)).filter(|chain| chain.len() == len)
}

pub(super) fn from_driver(offload: netif::Offload) -> Offload {
    Offload {
        checksum: match offload.checksum {
            netif::Checksum::Full => Checksum::Full,
            netif::Checksum::Validated => Checksum::Validated,
            netif::Checksum::Blank => Checksum::Blank,
        },
        gso: offload.gso.map(|gso| Gso {
            kind: match gso.kind {
                netif::GsoKind::TcpV4 => GsoKind::TcpV4,
                netif::GsoKind::TcpV6 => GsoKind::TcpV6,
            },
            size: gso.size,
        }),
    }
}

pub(super) fn to_driver(offload: Offload) -> netif::Offload {
    netif::Offload {
        checksum: match offload.checksum {
            Checksum::Full => netif::Checksum::Full,
            Checksum::Validated => netif::Checksum::Validated,
            Checksum::Blank => netif::Checksum::Blank,
        },
        gso: offload.gso.map(|gso| netif::Gso {
            kind: match gso.kind {
                GsoKind::TcpV4 => netif::GsoKind::TcpV4,
                GsoKind::TcpV6 => netif::GsoKind::TcpV6,
            },
            size: gso.size,
        }),
    }
}
