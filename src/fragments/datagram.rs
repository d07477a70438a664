//! One datagram that waits for its fragments, and what it becomes.

use super::header;
use super::piece::{Fragment, Key, NextHeader};
use super::pool::{Pool, Run};
use crate::time::Instant;
use crate::verdict::DropReason;

/// Fragments of one datagram: enough for 65,535 bytes over a link with an MTU of 1280.
pub(super) const MAX_FRAGMENTS: usize = 64;
/// Headers that all fragments carry: an IPv4 header with options, or an IPv6 header with some extension headers.
const MAX_HEADER_BYTES: usize = 128;

/// A datagram, as far as it is there.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) key: Key,
    pub(super) sequence: u64,
    pub(super) expires: Instant,
    /// Set once it contradicted itself: what still comes of it is dropped (RFC 5722).
    pub(super) refused: Option<DropReason>,
    header: [u8; MAX_HEADER_BYTES],
    /// 0 until the first fragment is there.
    header_len: usize,
    next: Option<NextHeader>,
    /// In order, without overlap.
    pub(super) fragments: [Option<Placed>; MAX_FRAGMENTS],
    pub(super) count: usize,
    /// Payload bytes that are there.
    bytes: u32,
    /// Payload bytes of the whole, once the last fragment is there.
    total: Option<u32>,
    /// Largest fragment, as an IP packet.
    largest: u16,
    congestion_bits: u8,
    is_dont_fragment: bool,
}

#[derive(Debug)]
pub(super) struct Placed {
    offset: u16,
    pub(super) run: Run,
}

impl Placed {
    fn end(&self) -> u32 {
        u32::from(self.offset) + u32::from(self.run.len())
    }
}

/// What [`Datagram::write`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    /// Length as an IP packet.
    pub(crate) len: usize,
    /// Length of its largest fragment as an IP packet.
    pub(crate) largest: u16,
    /// What an IPv6 datagram needs to be cut again.
    pub(crate) v6: Option<Cut6>,
}

/// Where an IPv6 datagram is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut6 {
    /// Bytes of the headers that each fragment carries.
    pub(crate) header_len: u16,
    /// Offset of the byte in them that names what follows.
    pub(crate) next_at: u16,
    /// Identification that the fragments had.
    pub(crate) identification: u32,
}

impl Datagram {
    pub(super) fn new(key: Key, sequence: u64, expires: Instant) -> Self {
        Self {
            key,
            sequence,
            expires,
            refused: None,
            header: [0; MAX_HEADER_BYTES],
            header_len: 0,
            next: None,
            fragments: [const { None }; MAX_FRAGMENTS],
            count: 0,
            bytes: 0,
            total: None,
            largest: 0,
            congestion_bits: 0,
            is_dont_fragment: false,
        }
    }

    /// Where a fragment belongs; `None` if the very same one is there. Anything else that overlaps, or that disagrees
    /// about the end, ends the datagram.
    pub(super) fn position_of(
        &self,
        fragment: &Fragment<'_>,
        pool: &Pool,
    ) -> Result<Option<usize>, DropReason> {
        const CONTRADICTS: DropReason = DropReason::FragmentOverlap;
        let placed = || self.fragments.iter().flatten();
        let index = placed().take_while(|other| other.offset < fragment.offset).count();
        if let Some(same) = placed().nth(index).filter(|other| other.offset == fragment.offset) {
            let is_same_end = same.end() == fragment.end()
                && fragment.has_more != (self.total == Some(fragment.end()));
            return if is_same_end && is_equal(pool.read(&same.run), fragment.payload) {
                Ok(None)
            } else {
                Err(CONTRADICTS)
            };
        }
        let before = index.checked_sub(1).and_then(|index| placed().nth(index));
        let overlaps_before = before.is_some_and(|other| other.end() > u32::from(fragment.offset));
        let after = placed().nth(index);
        let overlaps_after = after.is_some_and(|other| u32::from(other.offset) < fragment.end());
        let is_behind_end = self.total.is_some_and(|total| fragment.end() > total);
        let is_second_end = !fragment.has_more && (self.total.is_some() || after.is_some());
        // A fragment with more to come that ends where the last one ended would overlap it.
        if overlaps_before || overlaps_after || is_behind_end || is_second_end {
            return Err(CONTRADICTS);
        }
        if self.count >= MAX_FRAGMENTS {
            return Err(DropReason::FragmentLimit);
        }
        if fragment.offset == 0 && fragment.header.len() > MAX_HEADER_BYTES {
            return Err(DropReason::FragmentMalformed);
        }
        Ok(Some(index))
    }

    /// Adds a fragment where [`Self::position_of`] said.
    pub(super) fn add(&mut self, index: usize, fragment: &Fragment<'_>, run: Run) {
        if let Some(moved) = self.fragments.get_mut(index..=self.count) {
            moved.rotate_right(1);
        }
        if let Some(place) = self.fragments.get_mut(index) {
            *place = Some(Placed { offset: fragment.offset, run });
        }
        self.count += 1;
        self.bytes += fragment.end() - u32::from(fragment.offset);
        self.largest = self.largest.max(fragment.packet_len());
        self.congestion_bits |= fragment.congestion_bit();
        self.is_dont_fragment |= fragment.is_dont_fragment();
        if !fragment.has_more {
            self.total = Some(fragment.end());
        }
        if fragment.offset == 0
            && let Some(header) = self.header.get_mut(..fragment.header.len())
        {
            header.copy_from_slice(fragment.header);
            self.header_len = fragment.header.len();
            self.next = fragment.next;
        }
    }

    /// Without overlap, enough bytes are all bytes.
    pub(super) fn is_complete(&self) -> bool {
        self.total == Some(self.bytes)
    }

    pub(super) fn write(&self, pool: &Pool, out: &mut [u8]) -> Result<Whole, DropReason> {
        const NO_ROOM: DropReason = DropReason::FragmentLimit;
        let len = self.header_len + self.bytes as usize;
        let (header, payload) = out
            .get_mut(..len)
            .and_then(|out| out.split_at_mut_checked(self.header_len))
            .ok_or(NO_ROOM)?;
        header.copy_from_slice(self.header.get(..self.header_len).ok_or(NO_ROOM)?);
        let parts = self.fragments.iter().flatten().flat_map(|placed| pool.read(&placed.run));
        let mut rest = payload;
        for part in parts {
            let (place, after) = rest.split_at_mut_checked(part.len()).ok_or(NO_ROOM)?;
            place.copy_from_slice(part);
            rest = after;
        }
        let second = header.get(1).copied().unwrap_or(0);
        let v6 = match self.next {
            None => {
                let mark = self.congestion_mark(second & 3)?;
                header::make_whole_v4(header, len, mark, self.is_dont_fragment)?;
                None
            }
            Some(next) => {
                let mark = self.congestion_mark(second >> 4 & 3)?;
                header::make_whole_v6(header, len, mark, next)?;
                Some(Cut6 {
                    header_len: u16::try_from(self.header_len).map_err(|_| NO_ROOM)?,
                    next_at: next.at,
                    identification: self.key.identification,
                })
            }
        };
        Ok(Whole { len, largest: self.largest, v6 })
    }

    /// The congestion mark of the whole (RFC 3168, 5.3): experienced if one fragment says so; fragments that take part
    /// and fragments that do not are no datagram that a stack has sent.
    fn congestion_mark(&self, first: u8) -> Result<u8, DropReason> {
        const NOT_CAPABLE: u8 = 1 << 0;
        const EXPERIENCED: u8 = 1 << 3;
        let bits = self.congestion_bits;
        if bits & NOT_CAPABLE != 0 && bits != NOT_CAPABLE {
            return Err(DropReason::FragmentOverlap);
        }
        Ok(if bits & EXPERIENCED != 0 { 3 } else { first })
    }
}

fn is_equal<'a>(parts: impl Iterator<Item = &'a [u8]>, mut bytes: &[u8]) -> bool {
    for part in parts {
        match bytes.split_at_checked(part.len()) {
            Some((same, rest)) if same == part => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}
