//! A datagram on its way out, piece by piece.

use super::datagram::Cut6;
use super::header::{Place, write_piece_v4, write_piece_v6};
use super::piece::FRAGMENT_HEADER_BYTES;

use crate::frame::{Checksum, Frame, Offload};
use crate::ingress::L3;
use crate::wire::{ETHERNET_BYTES, read_u16};

/// Pieces of one datagram. More would be a flood made of one packet; 65,535 bytes need this many with an MTU of 576.
const MAX_PIECES: usize = 128;

/// How a frame has to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// Largest piece, as an IP packet.
    pub(crate) largest: u16,
    /// What IPv6 needs for it; IPv4 has it in its header.
    pub(crate) v6: Option<Cut6>,
}

impl Pieces {
    /// Pieces of IPv4 that fit `mtu`.
    pub(crate) fn of_ipv4(mtu: u16) -> Self {
        Self { largest: mtu, v6: None }
    }

    /// The same, but no piece larger than `mtu`.
    pub(crate) fn within(self, mtu: u16) -> Self {
        Self { largest: self.largest.min(mtu), ..self }
    }
}

/// A datagram that is being sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Bytes of the whole, the Ethernet header included.
    frame_len: usize,
    /// Bytes of headers that every piece carries.
    header_len: usize,
    /// Payload bytes of a piece at most.
    room: usize,
    v6: Option<Cut6>,
    identification: u32,
    /// Payload bytes that have been sent.
    sent: usize,
}

impl Cut {
    /// Begins to cut `whole`. `None` if it cannot be cut like that, or into too many pieces.
    pub(super) fn new(whole: &[u8], pieces: Pieces, identification: u32) -> Option<Self> {
        let (header_len, own) = match pieces.v6 {
            None => (usize::from(whole.get(L3)? & 0xf) * 4, 0),
            Some(v6) => (usize::from(v6.header_len), FRAGMENT_HEADER_BYTES),
        };
        let payload = whole.len().checked_sub(L3 + header_len)?;
        let room = usize::from(pieces.largest).checked_sub(header_len + own)?;
        if room < 8 || payload == 0 || payload.div_ceil(room & !7) > MAX_PIECES {
            return None;
        }
        let frame_len = whole.len();
        Some(Self { frame_len, header_len, room, v6: pieces.v6, identification, sent: 0 })
    }

    /// Bytes of the next piece as a frame; `None` if all are sent.
    pub(super) fn next_len(&self) -> Option<usize> {
        let len = self.next_payload();
        (len > 0).then(|| L3 + self.headers() + len)
    }

    /// Writes the next piece. `None`, and no change, if all are sent or `frame` is too small.
    pub(super) fn write(&mut self, whole: &[u8], frame: &mut Frame<'_>) -> Option<()> {
        let len = self.next_payload();
        frame.resize(self.next_len()?)?;
        let (link, datagram) = whole.get(..self.frame_len)?.split_at_checked(ETHERNET_BYTES)?;
        let (header, payload) = datagram.split_at_checked(self.header_len)?;
        let end = self.sent + len;
        let place = Place {
            offset: self.sent,
            has_more: end < payload.len(),
            identification: self.identification,
            len,
        };
        let (out_link, out) = frame.bytes_mut().split_at_mut_checked(ETHERNET_BYTES)?;
        let (out_headers, out_payload) = out.split_at_mut_checked(self.headers())?;
        out_link.copy_from_slice(link);
        match self.v6 {
            None => write_piece_v4(out_headers, header, &place)?,
            Some(v6) => write_piece_v6(out_headers, header, usize::from(v6.next_at), &place)?,
        }
        out_payload.copy_from_slice(payload.get(self.sent..end)?);
        // The transport checksum is complete, and not ours to vouch for.
        frame.offload = Offload { checksum: Checksum::Full, gso: None };
        self.sent = end;
        Some(())
    }

    fn headers(&self) -> usize {
        self.header_len + if self.v6.is_some() { FRAGMENT_HEADER_BYTES } else { 0 }
    }

    /// A piece that is not the last ends on a border of eight bytes.
    fn next_payload(&self) -> usize {
        let left = self.frame_len.saturating_sub(L3 + self.header_len + self.sent);
        if left > self.room { self.room & !7 } else { left }
    }
}

/// The identification that the sender gave.
pub(super) fn identification(whole: &[u8], pieces: Pieces) -> Option<u32> {
    match pieces.v6 {
        Some(v6) => Some(v6.identification),
        None => whole.get(L3..)?.first_chunk::<20>().map(|header| u32::from(read_u16(header, 4))),
    }
}
