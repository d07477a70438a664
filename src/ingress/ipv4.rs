//! The IPv4 header of a frame (RFC 791).

use core::net::{IpAddr, Ipv4Addr};

use etherparse::Ipv4HeaderSlice;

use super::{Header, L3, cut_padding};
use crate::frame::Frame;
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;

/// Checks the IPv4 header itself, and cuts off what the link layer padded.
pub(super) fn header(frame: &mut Frame<'_>) -> Result<Header, DropReason> {
    let datagram = frame.bytes().get(L3..).ok_or(DropReason::FrameTooShort)?;
    let slice = Ipv4HeaderSlice::from_slice(datagram).map_err(|_| DropReason::Ipv4Header)?;
    let (header_len, total_len) = (slice.slice().len(), slice.total_len());
    if usize::from(total_len) < header_len || L3 + usize::from(total_len) > frame.len() {
        return Err(DropReason::Ipv4Header);
    }
    if Sum::default().bytes(slice.slice()).fold() != 0xffff {
        return Err(DropReason::Ipv4Checksum);
    }
    let header = Header {
        source: IpAddr::V4(slice.source_addr()),
        destination: IpAddr::V4(slice.destination_addr()),
        next: slice.protocol().0,
        ttl: slice.ttl(),
        is_dont_fragment: slice.dont_fragment(),
        is_fragment: slice.is_fragmenting_payload(),
        header_len,
        total_len,
    };
    cut_padding(frame, total_len).map(|()| header)
}

/// Unspecified, loopback, multicast and broadcast: neither a source nor a destination to forward. The rest of 0.0.0.0/8
/// and 240.0.0.0/4 lies beyond the uplink like any other address, for the rules to govern: networks use it, and Linux
/// forwards it.
pub(super) fn is_martian(address: Ipv4Addr) -> bool {
    address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
}
