//! One Ethernet frame in a private buffer, with its offload state.
//!
//! Holding a [`Frame`] proves that no peer can write its bytes any more: they were copied or un-granted before.

use crate::evidence::Evidence;
use crate::fragments::Pieces;

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
    len: usize,
    /// Checksum and segmentation state. After [`crate::Firewall::handle`] it is what the port it goes to must be told.
    pub offload: Offload,
    /// Set if it must leave in pieces.
    pub(crate) pieces: Option<Pieces>,
    /// What entitles it to leave; nothing when it comes in.
    pub(crate) evidence: Option<Evidence>,
}

impl<'b> Frame<'b> {
    /// The first `len_bytes` of `buf`; `None` if there are not that many.
    #[must_use]
    pub fn new(buf: &'b mut [u8], len_bytes: usize, offload: Offload) -> Option<Self> {
        let (len, pieces, evidence) = (len_bytes, None, None);
        (len <= buf.len()).then_some(Self { buf, len, offload, pieces, evidence })
    }

    /// The frame from the destination MAC address to the last byte of payload, without check sequence.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or_default()
    }

    /// The same bytes for rewriting.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buf.get_mut(..self.len).unwrap_or_default()
    }

    /// Length of the frame in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
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
        self.resize(other.len())?;
        self.bytes_mut().copy_from_slice(other.bytes());
        (self.offload, self.pieces, self.evidence) = (other.offload, None, other.evidence);
        Some(())
    }

    /// Makes the frame `len_bytes` long; bytes that come in are whatever the buffer held, the caller writes them all.
    /// `None`, and no change, if the buffer is smaller.
    pub(crate) fn resize(&mut self, len_bytes: usize) -> Option<()> {
        if len_bytes > self.buf.len() {
            return None;
        }
        self.len = len_bytes;
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
}
