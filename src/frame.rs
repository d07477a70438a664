//! One Ethernet frame in a private buffer, with its offload state.
//!
//! Holding a [`Frame`] proves that no peer can write its bytes any more: they were copied or un-granted before.
//!
//! The buffer holds all of an ordinary frame. Of a super-frame it may hold only the head, with every header in it; the
//! rest of its payload, the tail, stays where the platform has it, and the core passes it by. Who needs the payload asks
//! for [`Frame::whole`] and cannot mistake the head for it.

use crate::evidence::Evidence;
use crate::fragments::Pieces;
use crate::segment::Segments;
use crate::verdict::DropReason;

/// Bytes of a frame that are in its head at least, or all of it: more than the longest headers that pass (Ethernet, IPv4
/// and TCP with all options: 134).
pub const MIN_HEAD_BYTES: usize = 256;

/// How far the layer-4 checksum of a frame can be relied on (Xen public/io/netif.h, "Checksum offload").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Complete; nobody vouches for it (no flag).
    #[default]
    Full,
    /// Complete, and the sender vouches for it (`data_validated` alone), or we computed it ourselves.
    Validated,
    /// The field holds the folded sum of the pseudo header only, not inverted (`csum_blank`).
    Blank,
}

/// Kind of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
}

/// A frame that stands for several segments (`XEN_NETIF_EXTRA_TYPE_GSO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Protocol to segment.
    pub kind: GsoKind,
    /// TCP payload bytes per segment.
    pub size: u16,
}

/// What the flags beside a frame say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// State of the layer-4 checksum.
    pub checksum: Checksum,
    /// Set for a super-frame.
    pub gso: Option<Gso>,
}

/// An Ethernet frame at the start of a buffer that has room to grow.
#[derive(Debug)]
pub struct Frame<'b> {
    buf: &'b mut [u8],
    /// Bytes of it in `buf`: all, or the head of it.
    head: usize,
    /// Bytes of it in all.
    len: usize,
    /// Checksum and segmentation state. After [`crate::Firewall::handle`] it is what the port it goes to must be told.
    pub offload: Offload,
    /// Set if it must leave in pieces.
    pub(crate) pieces: Option<Pieces>,
    /// Set if it is a super-frame that must leave in segments.
    pub(crate) segments: Option<Segments>,
    /// What entitles it to leave; nothing when it comes in.
    pub(crate) evidence: Option<Evidence>,
}

impl<'b> Frame<'b> {
    /// The first `len_bytes` of `buf`; `None` if there are not that many.
    #[must_use]
    pub fn new(buf: &'b mut [u8], len_bytes: usize, offload: Offload) -> Option<Self> {
        Self::with_tail(buf, len_bytes, len_bytes, offload)
    }

    /// The first `head_bytes` of `buf` as the head of a frame of `len_bytes`; `None` if there are not that many, or if the
    /// head is longer than the frame.
    #[must_use]
    pub fn with_tail(
        buf: &'b mut [u8],
        head_bytes: usize,
        len_bytes: usize,
        offload: Offload,
    ) -> Option<Self> {
        let (head, len) = (head_bytes, len_bytes);
        let is_possible = head <= buf.len() && head <= len;
        let (pieces, segments, evidence) = (None, None, None);
        is_possible.then_some(Self { buf, head, len, offload, pieces, segments, evidence })
    }

    /// The head: from the destination MAC address on, without check sequence, as far as the buffer holds it. Of an
    /// ordinary frame that is all of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buf.get(..self.head).unwrap_or_default()
    }

    /// The same bytes for rewriting.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buf.get_mut(..self.head).unwrap_or_default()
    }

    /// The frame to its last byte of payload; `None` if part of it is elsewhere.
    #[must_use]
    pub fn whole(&self) -> Option<&[u8]> {
        (self.head == self.len).then(|| self.bytes())
    }

    /// Length of the frame in bytes, with what is elsewhere.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that are elsewhere. After [`crate::Firewall::handle`] none are, if the frame was turned into an answer.
    #[must_use]
    pub fn tail_len(&self) -> usize {
        self.len.saturating_sub(self.head)
    }

    /// How it leaves if [`crate::Firewall::handle`] said [`crate::Fate::Segments`].
    #[must_use]
    pub fn segments(&self) -> Option<Segments> {
        self.segments
    }

    /// Whether there is no byte at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that the buffer can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.buf.len()
    }

    /// Makes the frame a copy of `other`. `None`, and no change, if the buffer is smaller.
    pub(crate) fn replace_by(&mut self, other: &Frame<'_>) -> Option<()> {
        let whole = other.whole()?;
        self.resize(whole.len())?;
        self.bytes_mut().copy_from_slice(whole);
        (self.offload, self.pieces, self.evidence) = (other.offload, None, other.evidence);
        Some(())
    }

    /// Whether the core can take it as it is: whole, or a super-frame with enough of a head whose checksum is the
    /// receiver's to complete. Anything else would need bytes that are not there.
    #[inline]
    pub(crate) fn check_head(&self) -> Result<(), DropReason> {
        let is_super = self.offload.gso.is_some() && self.offload.checksum == Checksum::Blank;
        let is_usable = self.head == self.len || is_super && self.head >= MIN_HEAD_BYTES;
        if is_usable { Ok(()) } else { Err(DropReason::Scattered) }
    }

    /// Makes the frame `len_bytes` long, all of them in the buffer; bytes that come in are whatever the buffer held, the
    /// caller writes them all. `None`, and no change, if the buffer is smaller.
    pub(crate) fn resize(&mut self, len_bytes: usize) -> Option<()> {
        if len_bytes > self.buf.len() {
            return None;
        }
        (self.head, self.len) = (len_bytes, len_bytes);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_never_reaches_past_its_buffer() {
        let mut buf = [0u8; 64];
        assert!(Frame::new(&mut buf, 65, Offload::default()).is_none());
        let mut frame = Frame::new(&mut buf, 64, Offload::default()).unwrap();
        assert_eq!(frame.resize(65), None);
        assert_eq!((frame.len(), frame.capacity()), (64, 64));
        frame.resize(10).unwrap();
        assert_eq!(frame.bytes().len(), 10);
    }

    #[test]
    fn a_head_is_never_taken_for_the_whole() {
        let mut buf = [0u8; 300];
        assert!(Frame::with_tail(&mut buf, 301, 400, Offload::default()).is_none());
        assert!(Frame::with_tail(&mut buf, 300, 299, Offload::default()).is_none());
        let mut frame = Frame::with_tail(&mut buf, 256, 1000, Offload::default()).unwrap();
        assert_eq!((frame.len(), frame.bytes().len(), frame.tail_len()), (1000, 256, 744));
        assert_eq!(frame.whole(), None);
        assert!(frame.check_head().is_err(), "no super-frame");
        frame.resize(300).unwrap();
        assert_eq!((frame.whole().map(<[u8]>::len), frame.tail_len()), (Some(300), 0));
        assert!(frame.check_head().is_ok());
    }

    #[test]
    fn a_super_frame_needs_its_headers_and_a_partial_checksum() {
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: 1448 });
        let usable = |head, checksum| {
            let mut buf = [0u8; 300];
            let frame = Frame::with_tail(&mut buf, head, 9000, Offload { checksum, gso });
            frame.unwrap().check_head().is_ok()
        };
        assert!(usable(MIN_HEAD_BYTES, Checksum::Blank));
        assert!(!usable(MIN_HEAD_BYTES - 1, Checksum::Blank));
        assert!(!usable(MIN_HEAD_BYTES, Checksum::Full));
        assert!(!usable(MIN_HEAD_BYTES, Checksum::Validated));
    }
}
