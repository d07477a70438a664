//! Super-frames for a port that cannot take them: cut into the segments that they stand for (RFC 9293; as Linux'
//! `tcp_gso_segment` does it).
//!
//! `egress` decides that a super-frame leaves like that and gives it its [`Segments`]. The event loop has each written
//! into a page of its own and sent before it takes the next frame. The payload is read where it is, through [`Payload`]:
//! it is copied once, and nothing is allocated.

use core::convert::Infallible;

use crate::conntrack::tcp::flags::{CWR, FIN, PSH, URG};
use crate::frame::{Checksum, Frame, Offload};
use crate::ingress::L3;
use crate::packet::Packet;
use crate::wire::checksum::Sum;
use crate::wire::{ip, ipv6, protocol, read, read_u16, write, write_u16};

/// Segments of one super-frame. More would be a flood made of one frame; the longest one has fewer with the smallest
/// segment size that every host takes, which is 536 bytes.
pub(crate) const MAX_SEGMENTS: u16 = 128;

/// Bytes of a frame behind its head, wherever they are.
pub trait Payload {
    /// Fills `to` with the bytes from `offset` on, counted from the first one behind the head. `None` if there are not
    /// that many; what is in `to` then does not matter.
    fn copy(&self, offset: usize, to: &mut [u8]) -> Option<()>;
}

impl Payload for [u8] {
    fn copy(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        to.copy_from_slice(self.get(offset..)?.get(..to.len())?);
        Some(())
    }
}

/// Of a machine that has whole frames only.
impl Payload for Infallible {
    fn copy(&self, _: usize, _: &mut [u8]) -> Option<()> {
        match *self {}
    }
}

/// `None` is a frame without a tail.
impl<P: Payload> Payload for Option<P> {
    fn copy(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        match self {
            Some(payload) => payload.copy(offset, to),
            None => to.is_empty().then_some(()),
        }
    }
}

/// How a super-frame leaves in segments, and how far that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Offset of the TCP header in the frame.
    l4: u16,
    /// Bytes of all headers, which each segment carries.
    headers: u16,
    /// Bytes of payload in all.
    payload: u16,
    /// Bytes of payload of a segment; the last may have less.
    size: u16,
    /// Bytes of payload that have been written.
    written: u16,
    /// What the segments have: a partial checksum, or one that we computed.
    checksum: Checksum,
}

impl Segments {
    /// `packet`, which has `payload` bytes of TCP payload, in segments of `size` bytes, which is not zero.
    pub(crate) fn new(packet: &Packet, payload: u16, size: u16, checksum: Checksum) -> Self {
        let headers = packet.total_len.saturating_sub(payload).saturating_add(L3 as u16);
        // The IP header has no more than 60 bytes.
        let l4 = u16::try_from(packet.l4).unwrap_or(headers);
        Self { l4, headers, payload, size, written: 0, checksum }
    }

    /// Segments that are still to be written.
    #[must_use]
    pub fn left(&self) -> usize {
        usize::from(self.unwritten().div_ceil(self.size))
    }

    /// Bytes of those as frames.
    pub(crate) fn bytes_left(&self) -> usize {
        usize::from(self.unwritten()) + self.left() * usize::from(self.headers)
    }

    /// Length in bytes of the next one as a frame; `None` if all are written.
    #[must_use]
    pub fn next_len(&self) -> Option<usize> {
        let payload = self.unwritten().min(self.size);
        (payload > 0).then(|| usize::from(self.headers) + usize::from(payload))
    }

    /// Writes the next one; `frame` is the super-frame after [`crate::Firewall::handle`], `tail` what is behind its head.
    /// `None` if all are written, if `out` is too small for it, or if the payload ends too early; no more than what `out`
    /// holds has changed then.
    pub fn write_next<P: Payload + ?Sized>(
        &mut self,
        frame: &Frame<'_>,
        tail: &P,
        out: &mut Frame<'_>,
    ) -> Option<()> {
        out.resize(self.next_len()?)?;
        let len = usize::from(self.headers);
        let (headers, payload) = out.bytes_mut().split_at_mut_checked(len)?;
        headers.copy_from_slice(frame.bytes().get(..len)?);
        copy(frame.bytes(), tail, len + usize::from(self.written), payload)?;
        self.fit_ip(out.bytes_mut());
        self.fit_tcp(out.bytes_mut());
        out.offload = Offload { checksum: self.checksum, gso: None };
        (out.pieces, out.segments, out.evidence) = (None, None, frame.evidence);
        self.written += self.size.min(self.unwritten());
        Some(())
    }

    fn unwritten(&self) -> u16 {
        self.payload.saturating_sub(self.written)
    }

    fn is_last(&self) -> bool {
        self.unwritten() <= self.size
    }

    /// The length, and in IPv4 what depends on it. The identification goes up by one with each segment, as if the sender
    /// had cut it up itself (RFC 6864 wants it unique where a router may fragment).
    fn fit_ip(&self, bytes: &mut [u8]) {
        const IDENTIFICATION: usize = L3 + 4;
        const CHECKSUM: usize = L3 + 10;
        let len = bytes.len().saturating_sub(L3);
        let number = |value: usize| u16::try_from(value).unwrap_or(u16::MAX);
        if !ip::is_v4(bytes, L3) {
            write_u16(bytes, L3 + 4, number(len.saturating_sub(ipv6::HEADER_BYTES)));
            return;
        }
        write_u16(bytes, L3 + 2, number(len));
        let index = self.written.div_ceil(self.size);
        let identification = read_u16(bytes, IDENTIFICATION).wrapping_add(index);
        write_u16(bytes, IDENTIFICATION, identification);
        write_u16(bytes, CHECKSUM, 0);
        let sum = Sum::default().bytes(bytes.get(L3..usize::from(self.l4)).unwrap_or_default());
        write_u16(bytes, CHECKSUM, sum.complete());
    }

    /// What is not the same in each segment: the sequence number; FIN and PSH, which belong to the end; CWR, which is said
    /// once (RFC 3168, 6.1.2); the urgent pointer, which counts from the sequence number; and the checksum.
    fn fit_tcp(&self, bytes: &mut [u8]) {
        const CHECKSUM: usize = 16;
        const URGENT: usize = 18;
        let l4 = usize::from(self.l4);
        let sequence = u32::from_be_bytes(read(bytes, l4 + 4));
        let sequence = sequence.wrapping_add(u32::from(self.written));
        write(bytes, l4 + 4, sequence.to_be_bytes());
        let [mut flags] = read(bytes, l4 + 13);
        if self.written > 0 {
            flags &= !CWR;
        }
        if !self.is_last() {
            flags &= !(FIN | PSH);
        }
        if flags & URG != 0 {
            let urgent = read_u16(bytes, l4 + URGENT).saturating_sub(self.written);
            write_u16(bytes, l4 + URGENT, urgent);
            if urgent == 0 {
                flags &= !URG;
            }
        }
        write(bytes, l4 + 13, [flags]);
        write_u16(bytes, l4 + CHECKSUM, 0);
        let segment = bytes.get(l4..).unwrap_or_default();
        let pseudo = pseudo_header(bytes, segment.len());
        let field = match self.checksum {
            Checksum::Blank => pseudo.fold(),
            Checksum::Full | Checksum::Validated => pseudo.bytes(segment).complete(),
        };
        write_u16(bytes, l4 + CHECKSUM, field);
    }
}

/// The bytes of a frame from `offset` on, of which `head` holds the first.
fn copy<P: Payload + ?Sized>(head: &[u8], tail: &P, offset: usize, to: &mut [u8]) -> Option<()> {
    let held = head.get(offset..).unwrap_or_default();
    let (first, rest) = to.split_at_mut(held.len().min(to.len()));
    first.copy_from_slice(held.get(..first.len())?);
    if rest.is_empty() {
        return Some(());
    }
    tail.copy(offset.saturating_sub(head.len()), rest)
}

/// The sum over the pseudo header of a segment of `len` bytes, read from the addresses in its IP header.
fn pseudo_header(bytes: &[u8], len: usize) -> Sum {
    let addresses = if ip::is_v4(bytes, L3) { L3 + 12..L3 + 20 } else { L3 + 8..L3 + 40 };
    // A segment is never longer than its super-frame, whose length is a 16-bit number.
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    let sum = Sum::default().bytes(bytes.get(addresses).unwrap_or_default());
    sum.word(u16::from(protocol::TCP)).word(len)
}
