//! TCP resets of our own, written over the segment that they answer.

use core::net::IpAddr;

use crate::conntrack::tcp::flags;
use crate::wire::checksum::Sum;
use crate::wire::{ETHERNET_BYTES, ip, protocol, read, write, write_u16};

/// Bytes of a TCP header without options.
const HEADER_BYTES: usize = 20;

/// Ends of the connection that is reset, as its sender sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reset {
    pub(crate) from: (IpAddr, u16),
    pub(crate) to: (IpAddr, u16),
    /// What the receiver acknowledged last: the sequence number that it takes a reset with (RFC 9293, 3.10.7.4).
    pub(crate) sequence: u32,
}

impl Reset {
    /// Bytes of the frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        ETHERNET_BYTES + ip::header_bytes(self.to.0) + HEADER_BYTES
    }
}

/// Writes the IP and TCP headers; the frame is [`Reset::frame_bytes`] long.
pub(crate) fn write_reset(bytes: &mut [u8], reset: &Reset) -> Option<()> {
    let at = ETHERNET_BYTES + ip::header_bytes(reset.to.0);
    let (from, to) = (reset.from.0, reset.to.0);
    ip::write_header(bytes, ETHERNET_BYTES, HEADER_BYTES, protocol::TCP, (from, to))?;
    write(bytes, at, [0; HEADER_BYTES]);
    write_u16(bytes, at, reset.from.1);
    write_u16(bytes, at + 2, reset.to.1);
    write(bytes, at + 4, reset.sequence.to_be_bytes());
    write(bytes, at + 12, [0x50, flags::RST]);
    let sum = Sum::default()
        .pseudo_header(from, to, protocol::TCP, HEADER_BYTES as u16)
        .bytes(&read::<HEADER_BYTES>(bytes, at));
    write_u16(bytes, at + 16, sum.complete());
    Some(())
}
