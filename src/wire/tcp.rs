//! TCP resets of our own, written over the segment that they answer.

use core::net::Ipv4Addr;

use crate::conntrack::tcp::flags;
use crate::wire::checksum::Sum;
use crate::wire::{ETHERNET_BYTES, ipv4, protocol, read, write, write_u16};

/// Bytes of a TCP header without options.
const HEADER_BYTES: usize = 20;
/// Bytes of a reset from the Ethernet header on.
pub(crate) const RESET_BYTES: usize = ETHERNET_BYTES + ipv4::HEADER_BYTES + HEADER_BYTES;

/// Ends of the connection that is reset, as its sender sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reset {
    pub(crate) from: (Ipv4Addr, u16),
    pub(crate) to: (Ipv4Addr, u16),
    /// What the receiver acknowledged last: the sequence number that it takes a reset with (RFC 9293, 3.10.7.4).
    pub(crate) sequence: u32,
}

/// Writes the IPv4 and TCP headers; the frame is [`RESET_BYTES`] long.
pub(crate) fn write_reset(bytes: &mut [u8], reset: &Reset) {
    let at = ETHERNET_BYTES + ipv4::HEADER_BYTES;
    let total_len = (ipv4::HEADER_BYTES + HEADER_BYTES) as u16;
    let (from, to) = (reset.from.0, reset.to.0);
    ipv4::write_header(bytes, ETHERNET_BYTES, total_len, protocol::TCP, from, to);
    write(bytes, at, [0; HEADER_BYTES]);
    write_u16(bytes, at, reset.from.1);
    write_u16(bytes, at + 2, reset.to.1);
    write(bytes, at + 4, reset.sequence.to_be_bytes());
    write(bytes, at + 12, [0x50, flags::RST]);
    let sum = Sum::default()
        .pseudo_header(from.into(), to.into(), protocol::TCP, HEADER_BYTES as u16)
        .bytes(&read::<HEADER_BYTES>(bytes, at));
    write_u16(bytes, at + 16, sum.complete());
}
