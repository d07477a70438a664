//! What both families have, by the family of the addresses or the version of the header at hand.

use core::net::IpAddr;

use crate::wire::checksum::Sum;
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Side, ipv4, ipv6, protocol, read};

/// EtherType of the family of `address`.
pub(crate) fn ether_type(address: IpAddr) -> u16 {
    if address.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
}

/// Bytes of a header of our own.
pub(crate) fn header_bytes(address: IpAddr) -> usize {
    if address.is_ipv4() { ipv4::HEADER_BYTES } else { ipv6::HEADER_BYTES }
}

/// Protocol number of the ICMP of the family of `address`.
pub(crate) fn icmp(address: IpAddr) -> u8 {
    if address.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
}

/// Replaces an address by one of the same family and updates the header; returns what changed, for the pseudo header.
pub(crate) fn set_address(bytes: &mut [u8], header: usize, side: Side, address: IpAddr) -> Sum {
    match address {
        IpAddr::V4(v4) => ipv4::set_address(bytes, header, side, v4),
        IpAddr::V6(v6) => ipv6::set_address(bytes, header, side, v6),
    }
}

/// Takes one off the time to live. The caller knows that it is above one.
pub(crate) fn decrement_ttl(bytes: &mut [u8], header: usize) {
    if is_v4(bytes, header) {
        ipv4::decrement_ttl(bytes, header);
    } else {
        ipv6::decrement_hop_limit(bytes, header);
    }
}

/// Gives a packet the time to live of those that we make.
pub(crate) fn set_own_ttl(bytes: &mut [u8], header: usize) {
    if is_v4(bytes, header) {
        ipv4::set_ttl(bytes, header, ipv4::OWN_TTL);
    } else {
        ipv6::set_hop_limit(bytes, header, ipv6::OWN_HOP_LIMIT);
    }
}

/// Writes a header of our own in front of `payload_len` bytes; `None`, and no change, for two families or too many.
pub(crate) fn write_header(
    bytes: &mut [u8],
    header: usize,
    payload_len: usize,
    protocol: u8,
    (source, destination): (IpAddr, IpAddr),
) -> Option<()> {
    match (source, destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total_len = u16::try_from(payload_len + ipv4::HEADER_BYTES).ok()?;
            ipv4::write_header(bytes, header, total_len, protocol, from, to);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let payload_len = u16::try_from(payload_len).ok()?;
            ipv6::write_header(bytes, header, payload_len, protocol, from, to);
        }
        _ => return None,
    }
    Some(())
}

pub(crate) fn is_v4(bytes: &[u8], header: usize) -> bool {
    read::<1>(bytes, header)[0] >> 4 == 4
}
