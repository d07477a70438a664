//! Replaces the ends of a packet in place and keeps its checksums right (RFC 1624).

use core::net::IpAddr;

use crate::frame::{Checksum, Frame};
use crate::ingress::L3;
use crate::packet::{Packet, Upper};
use crate::verdict::DropReason;
use crate::wire::checksum::{Sum, udp_field, update_icmp, update_transport};
use crate::wire::{Side, ip, read, read_u16, write_u16};

/// Both ends that a packet is to have. For ICMP the port of the side that asked is the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination: IpAddr,
    pub(crate) destination_port: u16,
}

/// Gives `packet`, which is in `frame`, other ends.
pub(crate) fn apply(frame: &mut Frame<'_>, packet: &Packet, ends: &Ends) -> Result<(), DropReason> {
    let state = frame.offload.checksum;
    let bytes = frame.bytes_mut();
    let addresses = set_addresses(bytes, L3, ends.source, ends.destination)?;
    match packet.upper {
        Upper::Tcp(_) => {
            let ports = set_ports(bytes, packet.l4, ends);
            update_field(bytes, packet.l4 + 16, |field| {
                update_transport(field, state, addresses, ports)
            });
        }
        Upper::Udp => {
            let ports = set_ports(bytes, packet.l4, ends);
            update_field(bytes, packet.l4 + 6, |field| update_udp(field, state, addresses, ports));
        }
        Upper::IcmpQuery(_) => {
            set_identifier(bytes, packet.l4, ends.source_port, covered(ends.source, addresses));
        }
        Upper::IcmpReply => {
            let addresses = covered(ends.source, addresses);
            set_identifier(bytes, packet.l4, ends.destination_port, addresses);
        }
        Upper::IcmpError(_) | Upper::IcmpOther(_) | Upper::Other => {}
    }
    Ok(())
}

/// Replaces both addresses of the IP header at `header` by others of its family; returns what changed for the pseudo header.
pub(super) fn set_addresses(
    bytes: &mut [u8],
    header: usize,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Sum, DropReason> {
    let is_v4 = read::<1>(bytes, header)[0] >> 4 == 4;
    // A flow has one family: nothing else finds it.
    if [source, destination].iter().any(|address| address.is_ipv4() != is_v4) {
        return Err(DropReason::NoFlow);
    }
    let change = ip::set_address(bytes, header, Side::Source, source);
    Ok(change.plus(ip::set_address(bytes, header, Side::Destination, destination)))
}

/// Replaces both ports of TCP or UDP; returns what changed.
pub(super) fn set_ports(bytes: &mut [u8], l4: usize, ends: &Ends) -> Sum {
    let source = set_word(bytes, l4, ends.source_port);
    source.plus(set_word(bytes, l4 + 2, ends.destination_port))
}

/// The part of a change of addresses that the ICMP checksum covers: ICMPv6 has a pseudo header, ICMP has none.
pub(super) fn covered(family_of: IpAddr, addresses: Sum) -> Sum {
    if family_of.is_ipv4() { Sum::default() } else { addresses }
}

/// Replaces the identifier of an ICMP query or reply, checksum included.
pub(super) fn set_identifier(bytes: &mut [u8], l4: usize, identifier: u16, addresses: Sum) {
    let change = set_word(bytes, l4 + 4, identifier).plus(addresses);
    if let Some(message) = bytes.get_mut(l4..) {
        update_icmp(message, change);
    }
}

/// A complete UDP checksum of zero means that there is none, and stays so (RFC 768).
#[inline(always)]
pub(crate) fn update_udp(field: u16, state: Checksum, addresses: Sum, ports: Sum) -> u16 {
    match state {
        Checksum::Blank => update_transport(field, state, addresses, ports),
        Checksum::Full | Checksum::Validated if field == 0 => 0,
        Checksum::Full | Checksum::Validated => {
            udp_field(update_transport(field, state, addresses, ports))
        }
    }
}

pub(super) fn update_field(bytes: &mut [u8], at: usize, update: impl FnOnce(u16) -> u16) {
    let field = read_u16(bytes, at);
    write_u16(bytes, at, update(field));
}

/// Replaces a word; returns what changed.
#[inline(always)]
pub(crate) fn set_word(bytes: &mut [u8], at: usize, new: u16) -> Sum {
    let old = read_u16(bytes, at);
    if old == new {
        return Sum::default();
    }
    write_u16(bytes, at, new);
    Sum::default().replace(old, new)
}
