//! Fragments: collected until their datagram is complete, which then goes through the path like any other packet, and
//! cut again for the port that it leaves through. Both families.
//!
//! Nothing of a datagram leaves before all of it was accepted. Fragments that overlap, contradict each other or hide the
//! header that rules look at end their datagram (RFC 1858, RFC 3128, RFC 5722); only a fragment that repeats an earlier
//! one byte for byte is ignored. Everything is bounded: the constants and the shares are in [`store`].
//!
//! A datagram that has to be cut is kept until all its pieces have been fetched with `Firewall::poll_generate`; there is
//! place for one. Pieces are no larger than the largest fragment that came in was, as behind Linux: a sender that found
//! the MTU of the path by probing with fragments is not deceived.

mod cut;
mod datagram;
mod header;
mod identification;
mod piece;
mod pool;
mod store;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::conntrack::index::HashKey;
use crate::evidence::Evidence;
use crate::frame::{Frame, Offload};
use crate::ingress::L3;
use crate::limits::OutOfMemory;
use crate::port::{Origin, PortId};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::ETHERNET_BYTES;

pub(crate) use cut::Pieces;
pub(crate) use piece::Fragment;

use cut::Cut;
use identification::Identifications;
use store::{Step, Store};

/// The longest datagram with its Ethernet header. The payload length of IPv6 does not count the 40 bytes before it.
const WHOLE_BYTES: usize = ETHERNET_BYTES + 40 + 65_535;

/// Whose identification the pieces of a datagram carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// That of its sender.
    Kept,
    /// One of ours: several senders are behind one address.
    Ours,
}

/// What waits to become whole, and what is being sent in pieces.
#[derive(Debug)]
pub(crate) struct Fragments {
    store: Store,
    identifications: Identifications,
    /// Holds a datagram that has just become complete, or the one that is being sent.
    buffer: Box<[u8]>,
    outgoing: Option<Outgoing>,
}

/// A datagram that is being sent.
#[derive(Debug)]
struct Outgoing {
    to: PortId,
    evidence: Evidence,
    cut: Cut,
}

/// A datagram that has become complete, taken out so that the path can rewrite it. Goes back through
/// [`Fragments::give_back`].
#[derive(Debug)]
pub(crate) struct Whole {
    buffer: Box<[u8]>,
    len: usize,
    pieces: Pieces,
}

impl Whole {
    /// As a frame that has to leave in pieces.
    pub(crate) fn frame(&mut self) -> Option<Frame<'_>> {
        let mut frame = Frame::new(&mut self.buffer, self.len, Offload::default())?;
        frame.pieces = Some(self.pieces);
        Some(frame)
    }
}

impl Fragments {
    /// Room for `bytes` bytes of fragments from `clients` client slots and the uplink.
    pub(crate) fn new(bytes: usize, clients: u16, key: HashKey) -> Result<Self, OutOfMemory> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(WHOLE_BYTES).map_err(|_| OutOfMemory)?;
        buffer.resize(WHOLE_BYTES, 0);
        Ok(Self {
            store: Store::new(bytes, clients)?,
            identifications: Identifications::new(key),
            buffer: buffer.into_boxed_slice(),
            outgoing: None,
        })
    }

    /// Takes a fragment in; `link` is the Ethernet header that it came with. Gives the datagram if it is complete now.
    /// `lost` hears of datagrams that had to go, or whose time was over.
    pub(crate) fn collect(
        &mut self,
        now: Instant,
        link: &[u8],
        fragment: &Fragment<'_>,
        mut lost: impl FnMut(Origin, DropReason),
    ) -> Result<Option<Whole>, DropReason> {
        let Step::Complete(slot) = self.store.insert(now, fragment, &mut lost)? else {
            return Ok(None);
        };
        if self.outgoing.is_some() {
            self.store.discard(slot);
            return Err(DropReason::FragmentLimit);
        }
        let (to_link, to_datagram) = self.buffer.split_at_mut(L3.min(self.buffer.len()));
        let whole = self.store.take(slot, to_datagram)?;
        to_link.get_mut(..link.len()).ok_or(DropReason::FragmentLimit)?.copy_from_slice(link);
        Ok(Some(Whole {
            buffer: core::mem::take(&mut self.buffer),
            len: L3 + whole.len,
            pieces: Pieces { largest: whole.largest, v6: whole.v6 },
        }))
    }

    /// Takes the buffer of a datagram back; nothing of it is sent unless [`Self::send_returned`] follows.
    pub(crate) fn give_back(&mut self, whole: Whole) {
        self.buffer = whole.buffer;
    }

    /// Begins to send the `len` bytes that were given back.
    pub(crate) fn send_returned(
        &mut self,
        to: PortId,
        (len, evidence): (usize, Evidence),
        pieces: Pieces,
        naming: Naming,
    ) -> Result<(), DropReason> {
        let whole = self.buffer.get(..len).ok_or(DropReason::FragmentLimit)?;
        let identification = match (naming, pieces.v6) {
            (Naming::Kept, _) => cut::identification(whole, pieces),
            (Naming::Ours, None) => Some(u32::from(self.identifications.next_v4())),
            (Naming::Ours, Some(_)) => Some(self.identifications.next_v6()),
        };
        let cut = identification.and_then(|number| Cut::new(whole, pieces, number));
        self.outgoing = Some(Outgoing { to, evidence, cut: cut.ok_or(DropReason::TooBig)? });
        Ok(())
    }

    /// Begins to send a frame that came in one piece and is too large for the way on.
    pub(crate) fn send(
        &mut self,
        to: PortId,
        frame: &Frame<'_>,
        pieces: Pieces,
        naming: Naming,
    ) -> Result<(), DropReason> {
        if self.outgoing.is_some() {
            return Err(DropReason::FragmentLimit);
        }
        let evidence = frame.evidence.ok_or(DropReason::WithoutAccept)?;
        let whole = frame.whole().ok_or(DropReason::Scattered)?;
        let place = self.buffer.get_mut(..whole.len()).ok_or(DropReason::FragmentLimit)?;
        place.copy_from_slice(whole);
        self.send_returned(to, (whole.len(), evidence), pieces, naming)
    }

    /// Length in bytes of the next piece as a frame, if one waits to be sent.
    pub(crate) fn next_len(&self) -> Option<usize> {
        self.outgoing.as_ref().and_then(|outgoing| outgoing.cut.next_len())
    }

    /// Writes the next piece and says where it goes. `None` if there is none or `frame` is too small for it.
    pub(crate) fn next(&mut self, frame: &mut Frame<'_>) -> Option<PortId> {
        let Outgoing { to, evidence, cut } = self.outgoing.as_mut()?;
        cut.write(&self.buffer, frame)?;
        frame.evidence = Some(*evidence);
        let to = *to;
        if cut.next_len().is_none() {
            self.outgoing = None;
        }
        Some(to)
    }

    /// Forgets what came from a side and what was to go there: what is behind it is no longer the same.
    pub(crate) fn forget(&mut self, side: Origin) {
        self.store.forget(side);
        self.outgoing = self.outgoing.take().filter(|out| out.to != PortId::from(side));
    }

    /// Forgets what was accepted and waits to be fetched: what accepted it has changed.
    pub(crate) fn forget_accepted(&mut self) {
        self.outgoing = self.outgoing.take().filter(|out| out.evidence == Evidence::Own);
    }

    /// When [`Self::expire`] may have something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.store.next_deadline()
    }

    /// Forgets datagrams whose time is over.
    pub(crate) fn expire(&mut self, now: Instant, mut lost: impl FnMut(Origin, DropReason)) {
        self.store.expire(now, &mut lost);
    }
}
