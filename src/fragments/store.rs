//! Datagrams that wait for their fragments.
//!
//! All memory is taken at the start. Who uses it is counted per side (each client slot, and the uplink): a side that
//! needs more loses its own oldest datagram, and where all memory is in use the side that holds most gives way. So a
//! side that holds no more than its equal share never loses anything to another.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use super::datagram::{Datagram, Whole};
use super::piece::{Fragment, Key};
use super::pool::{Pool, chunks_for};
use crate::limits::OutOfMemory;
use crate::port::Origin;
use crate::time::Instant;
use crate::verdict::DropReason;

/// How long a datagram waits for its last fragment, counted from its first (RFC 1122 3.3.2 and RFC 8200 4.5 allow 60
/// seconds; Linux takes 30).
pub(crate) const WAIT: Duration = Duration::from_secs(30);
/// Chunks for each datagram that can wait.
const CHUNKS_PER_DATAGRAM: usize = 8;
/// Part of everything that one side may hold.
const SHARE_PER_SIDE: usize = 2;

/// Datagrams that wait.
#[derive(Debug)]
pub(super) struct Store {
    datagrams: Box<[Option<Datagram>]>,
    pool: Pool,
    /// By client slot; the uplink is the last.
    usage: Box<[Usage]>,
    /// Number of the next datagram: the lowest is the oldest.
    next_sequence: u64,
    /// Nothing expires before.
    deadline: Option<Instant>,
}

/// What one side holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    datagrams: usize,
    chunks: usize,
}

/// What became of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is kept, or is there already.
    Waits,
    /// It was the last one missing: [`Store::take`] has the datagram.
    Complete(Slot),
}

/// A complete datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(usize);

impl Store {
    /// Room for `bytes` bytes of payload from `clients` client slots and the uplink.
    pub(super) fn new(bytes: usize, clients: u16) -> Result<Self, OutOfMemory> {
        let pool = Pool::with_bytes(bytes)?;
        let slots = pool.chunks() / CHUNKS_PER_DATAGRAM;
        Ok(Self {
            datagrams: boxed(slots, || None)?,
            pool,
            usage: boxed(usize::from(clients) + 1, Usage::default)?,
            next_sequence: 0,
            deadline: None,
        })
    }

    /// Bytes of memory that a store for `bytes` takes, client slots not counted.
    #[cfg(test)]
    pub(super) fn cost(bytes: usize) -> usize {
        let chunks = bytes / super::pool::CHUNK_BYTES;
        bytes + 2 * chunks + chunks / CHUNKS_PER_DATAGRAM * size_of::<Option<Datagram>>()
    }

    /// Takes a fragment in. `lost` hears of each datagram that had to go for it, or whose time was over.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        fragment: &Fragment<'_>,
        lost: &mut impl FnMut(Origin, DropReason),
    ) -> Result<Step, DropReason> {
        self.expire(now, lost);
        let key = &fragment.key;
        let found = self.datagrams.iter().position(|slot| matches!(slot, Some(d) if d.key == *key));
        if let Some(reason) = found.and_then(|at| self.datagram(at)).and_then(|d| d.refused) {
            return Err(reason);
        }
        let at = match found {
            Some(at) => at,
            None => self.open(now, key, lost)?,
        };
        let placed = self.place(at, fragment, lost);
        if let Err(reason) = placed {
            self.refuse(at, reason);
        }
        placed
    }

    /// Writes a complete datagram to `out`, as one that was never cut, and forgets it.
    pub(super) fn take(&mut self, slot: Slot, out: &mut [u8]) -> Result<Whole, DropReason> {
        let written =
            self.datagram(slot.0).ok_or(DropReason::FragmentLimit)?.write(&self.pool, out);
        self.remove(slot.0);
        written
    }

    /// Forgets a complete datagram.
    pub(super) fn discard(&mut self, slot: Slot) {
        self.remove(slot.0);
    }

    /// Forgets everything that came from a side.
    pub(super) fn forget(&mut self, origin: Origin) {
        for at in 0..self.datagrams.len() {
            if self.datagram(at).is_some_and(|datagram| datagram.key.origin == origin) {
                self.remove(at);
            }
        }
    }

    /// When [`Self::expire`] may have something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Forgets datagrams whose time is over.
    pub(super) fn expire(&mut self, now: Instant, lost: &mut impl FnMut(Origin, DropReason)) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        for at in 0..self.datagrams.len() {
            let Some(datagram) = self.datagram(at).filter(|d| d.expires <= now) else { continue };
            // One that was refused has been counted.
            if datagram.refused.is_none() {
                lost(datagram.key.origin, DropReason::FragmentTimeout);
            }
            self.remove(at);
        }
        self.deadline = self.datagrams.iter().flatten().map(|datagram| datagram.expires).min();
    }

    fn datagram(&self, at: usize) -> Option<&Datagram> {
        self.datagrams.get(at)?.as_ref()
    }

    fn usage_of(&self, origin: Origin) -> Usage {
        self.usage.get(self.side(origin)).copied().unwrap_or_default()
    }

    fn side(&self, origin: Origin) -> usize {
        match origin {
            Origin::Client(id) => usize::from(id.0),
            Origin::Uplink => self.usage.len().saturating_sub(1),
        }
    }

    fn usage_mut(&mut self, origin: Origin) -> Option<&mut Usage> {
        let side = self.side(origin);
        self.usage.get_mut(side)
    }

    fn open(
        &mut self,
        now: Instant,
        key: &Key,
        lost: &mut impl FnMut(Origin, DropReason),
    ) -> Result<usize, DropReason> {
        let share = self.datagrams.len().div_ceil(SHARE_PER_SIDE);
        while self.usage_of(key.origin).datagrams >= share {
            self.evict(key.origin, None, lost).ok_or(DropReason::FragmentLimit)?;
        }
        let free = |store: &Self| store.datagrams.iter().position(Option::is_none);
        let at = loop {
            if let Some(at) = free(self) {
                break at;
            }
            let victim = self.yielding(key.origin, 1, |usage| usage.datagrams);
            self.evict(victim, None, lost).ok_or(DropReason::FragmentLimit)?;
        };
        let expires = now.after(WAIT);
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        *self.datagrams.get_mut(at).ok_or(DropReason::FragmentLimit)? =
            Some(Datagram::new(*key, sequence, expires));
        self.deadline = Some(self.deadline.map_or(expires, |deadline| deadline.min(expires)));
        if let Some(usage) = self.usage_mut(key.origin) {
            usage.datagrams += 1;
        }
        Ok(at)
    }

    fn place(
        &mut self,
        at: usize,
        fragment: &Fragment<'_>,
        lost: &mut impl FnMut(Origin, DropReason),
    ) -> Result<Step, DropReason> {
        fragment.check()?;
        let datagram = self.datagram(at).ok_or(DropReason::FragmentLimit)?;
        let Some(index) = datagram.position_of(fragment, &self.pool)? else {
            return Ok(Step::Waits);
        };
        self.make_room(at, fragment, lost)?;
        let run = self.pool.store(fragment.payload).ok_or(DropReason::FragmentLimit)?;
        let chunks = run.chunks();
        if let Some(usage) = self.usage_mut(fragment.key.origin) {
            usage.chunks += chunks;
        }
        let datagram = self.datagrams.get_mut(at).and_then(Option::as_mut);
        let datagram = datagram.ok_or(DropReason::FragmentLimit)?;
        datagram.add(index, fragment, run);
        Ok(if datagram.is_complete() { Step::Complete(Slot(at)) } else { Step::Waits })
    }

    /// Makes room for the payload of a fragment of the datagram at `at`, which itself stays.
    fn make_room(
        &mut self,
        at: usize,
        fragment: &Fragment<'_>,
        lost: &mut impl FnMut(Origin, DropReason),
    ) -> Result<(), DropReason> {
        let origin = fragment.key.origin;
        let needed = chunks_for(fragment.payload.len());
        let share = self.pool.chunks().div_ceil(SHARE_PER_SIDE);
        while self.usage_of(origin).chunks + needed > share {
            self.evict(origin, Some(at), lost).ok_or(DropReason::FragmentLimit)?;
        }
        while self.pool.free_chunks() < needed {
            let victim = self.yielding(origin, needed, |usage| usage.chunks);
            self.evict(victim, Some(at), lost).ok_or(DropReason::FragmentLimit)?;
        }
        Ok(())
    }

    /// The side that gives way when `origin` needs more of what is all in use: the one that holds most, if it would still
    /// hold no less than `origin` then; else `origin` itself.
    fn yielding(&self, origin: Origin, more: usize, held: impl Fn(Usage) -> usize) -> Origin {
        let holders = self.datagrams.iter().flatten().map(|datagram| datagram.key.origin);
        let most = holders.max_by_key(|holder| held(self.usage_of(*holder)));
        let wanted = held(self.usage_of(origin)) + more;
        most.filter(|holder| held(self.usage_of(*holder)) > wanted).unwrap_or(origin)
    }

    /// Forgets the oldest datagram of a side, save the one at `keep`; `None` if it has no other.
    fn evict(
        &mut self,
        origin: Origin,
        keep: Option<usize>,
        lost: &mut impl FnMut(Origin, DropReason),
    ) -> Option<()> {
        let all = self.datagrams.iter().enumerate();
        let own = all
            .filter_map(|(at, slot)| Some((at, slot.as_ref()?)))
            .filter(|(at, datagram)| datagram.key.origin == origin && Some(*at) != keep);
        let (at, datagram) = own.min_by_key(|(_, datagram)| datagram.sequence)?;
        if datagram.refused.is_none() {
            lost(origin, DropReason::FragmentLimit);
        }
        self.remove(at);
        Some(())
    }

    /// Frees the bytes of a datagram and drops what still comes of it.
    fn refuse(&mut self, at: usize, reason: DropReason) {
        self.free_runs(at);
        if let Some(datagram) = self.datagrams.get_mut(at).and_then(Option::as_mut) {
            datagram.refused = Some(reason);
        }
    }

    fn remove(&mut self, at: usize) {
        self.free_runs(at);
        let Some(datagram) = self.datagrams.get_mut(at).and_then(Option::take) else { return };
        if let Some(usage) = self.usage_mut(datagram.key.origin) {
            usage.datagrams = usage.datagrams.saturating_sub(1);
        }
    }

    fn free_runs(&mut self, at: usize) {
        let Some(datagram) = self.datagrams.get_mut(at).and_then(Option::as_mut) else { return };
        let origin = datagram.key.origin;
        let mut freed = 0usize;
        for placed in datagram.fragments.iter_mut().filter_map(Option::take) {
            freed += placed.run.chunks();
            self.pool.give_back(placed.run);
        }
        datagram.count = 0;
        if let Some(usage) = self.usage_mut(origin) {
            usage.chunks = usage.chunks.saturating_sub(freed);
        }
    }
}

fn boxed<T>(count: usize, fill: impl FnMut() -> T) -> Result<Box<[T]>, OutOfMemory> {
    let mut slots = Vec::new();
    slots.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    slots.resize_with(count, fill);
    Ok(slots.into_boxed_slice())
}

#[cfg(test)]
mod tests;
