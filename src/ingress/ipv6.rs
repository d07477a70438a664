//! The IPv6 header of a frame (RFC 8200).

use core::net::{IpAddr, Ipv6Addr};

use etherparse::Ipv6HeaderSlice;

use super::{Header, L3, cut_padding};
use crate::frame::Frame;
use crate::verdict::DropReason;
use crate::wire::ipv6;

/// Checks the fixed header, and cuts off what the link layer padded. What it says of extension headers is checked
/// once the source is known to be right.
///
/// A jumbogram (RFC 2675) states no length, so that everything behind its header is padding; no such packet goes on.
pub(super) fn header(frame: &mut Frame<'_>) -> Result<Header, DropReason> {
    const BAD: DropReason = DropReason::Ipv6Header;
    let datagram = frame.bytes().get(L3..).ok_or(DropReason::FrameTooShort)?;
    let slice = Ipv6HeaderSlice::from_slice(datagram).map_err(|_| BAD)?;
    let total_len = slice.payload_length().checked_add(ipv6::HEADER_BYTES as u16).ok_or(BAD)?;
    if L3 + usize::from(total_len) > frame.len() {
        return Err(BAD);
    }
    let header = Header {
        source: IpAddr::V6(slice.source_addr()),
        destination: IpAddr::V6(slice.destination_addr()),
        next: slice.next_header().0,
        ttl: slice.hop_limit(),
        is_dont_fragment: true,
        is_fragment: false,
        header_len: ipv6::HEADER_BYTES,
        total_len,
    };
    cut_padding(frame, total_len).map(|()| header)
}

/// No destination to forward to: loopback, link-local, multicast. What else is reserved is left to the rules, as Linux
/// does.
pub(super) fn is_martian_destination(address: Ipv6Addr) -> bool {
    address.is_loopback() || address.is_unicast_link_local() || address.is_multicast()
}

/// No source to forward from: unspecified, loopback and the IPv4-compatible rest of their prefix, IPv4-mapped (RFC 4291,
/// 2.5.5), link-local, multicast. Site-local addresses are ordinary ones today (RFC 3879).
pub(super) fn is_martian(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, _, _] => true,
        [first, ..] => first & 0xffc0 == 0xfe80 || first & 0xff00 == 0xff00,
    }
}
