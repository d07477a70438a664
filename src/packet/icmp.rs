//! ICMP of both families: which messages are questions, answers or errors, and the packets that errors quote.

use core::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::{Place, Quote, Quoted, Upper, extensions};
use crate::icmp::icmp_sum;
use crate::ingress::Header;
use crate::verdict::DropReason;
use crate::wire::{ip, protocol, read, read_u16};

/// Bytes of an ICMP header, and of what an ICMP error must quote behind the inner header (RFC 792).
const HEADER_BYTES: usize = 8;

/// Roles of ICMP types (IANA "ICMP Type Numbers", "ICMPv6 type Numbers").
enum Kind {
    Query,
    ReplyTo(u8),
    Error,
    /// Must not pass (RFC 6633; RFC 4890, 4.3: what is meant for one link or one site).
    Forbidden,
    /// May pass in a flow that knows it, of which there is none.
    Other,
}

impl Kind {
    fn of(family_of: IpAddr, kind: u8) -> Self {
        if family_of.is_ipv4() { Self::of_v4(kind) } else { Self::of_v6(kind) }
    }

    fn of_v4(kind: u8) -> Self {
        match kind {
            8 | 13 | 15 | 17 => Self::Query,
            0 => Self::ReplyTo(8),
            14 | 16 | 18 => Self::ReplyTo(kind.saturating_sub(1)),
            3 | 11 | 12 => Self::Error,
            // Source quench, redirect.
            4 | 5 => Self::Forbidden,
            _ => Self::Other,
        }
    }

    fn of_v6(kind: u8) -> Self {
        match kind {
            128 => Self::Query,
            129 => Self::ReplyTo(128),
            // Unreachable, too big, time exceeded, parameter problem.
            1..=4 => Self::Error,
            // Multicast listeners, neighbour discovery, router renumbering, node information, inverse and secure
            // neighbour discovery, multicast routers.
            130..=143 | 148 | 149 | 151..=153 => Self::Forbidden,
            _ => Self::Other,
        }
    }
}

/// What a message of a type is that has nothing behind its header: no error, which would quote a packet.
pub(super) fn upper_of_type(family_of: IpAddr, kind: u8) -> Result<Upper, DropReason> {
    match Kind::of(family_of, kind) {
        Kind::Query => Ok(Upper::IcmpQuery(kind)),
        Kind::ReplyTo(_) => Ok(Upper::IcmpReply),
        Kind::Error => Err(DropReason::IcmpErrorUnrelated),
        Kind::Forbidden => Err(DropReason::IcmpForbidden),
        Kind::Other => Ok(Upper::IcmpOther(kind)),
    }
}

pub(super) fn read_message(
    header: &Header,
    place: &Place,
    l4: &[u8],
) -> Result<(Upper, u16, u16), DropReason> {
    if l4.len() < HEADER_BYTES {
        return Err(DropReason::TransportHeader);
    }
    if icmp_sum(l4, (header.source, header.destination)).fold() != 0xffff {
        return Err(DropReason::IcmpChecksum);
    }
    let [kind] = read::<1>(l4, 0);
    let identifier = read_u16(l4, 4);
    Ok(match Kind::of(header.source, kind) {
        Kind::Query => (Upper::IcmpQuery(kind), identifier, u16::from(kind)),
        Kind::ReplyTo(query) => (Upper::IcmpReply, u16::from(query), identifier),
        Kind::Error => (Upper::IcmpError(quote(header.source, l4, place.l4)?), 0, 0),
        Kind::Forbidden => return Err(DropReason::IcmpForbidden),
        Kind::Other => (Upper::IcmpOther(kind), 0, 0),
    })
}

/// Reads the packet that an ICMP error quotes. Its total length and checksums describe what was quoted, not the quote,
/// so they are not checked (RFC 5508 REQ-3).
fn quote(family_of: IpAddr, l4: &[u8], l4_at: usize) -> Result<Quote, DropReason> {
    const UNREADABLE: DropReason = DropReason::IcmpErrorUnrelated;
    let inner = l4.get(HEADER_BYTES..).unwrap_or_default();
    let inside = if family_of.is_ipv4() { inside_v4(inner) } else { inside_v6(inner) };
    let inside = inside.ok_or(UNREADABLE)?;
    let next = inner.get(inside.len..).unwrap_or_default();
    if next.len() < HEADER_BYTES {
        return Err(UNREADABLE);
    }
    let ports = (read_u16(next, 0), read_u16(next, 2));
    let (upper, source_port, destination_port) = match inside.protocol {
        protocol::TCP => (Quoted::Tcp, ports.0, ports.1),
        protocol::UDP => (Quoted::Udp, ports.0, ports.1),
        number if number == ip::icmp(family_of) => {
            let [kind] = read::<1>(next, 0);
            match Kind::of(family_of, kind) {
                Kind::Query => (Quoted::IcmpQuery, read_u16(next, 4), u16::from(kind)),
                Kind::ReplyTo(query) => (Quoted::IcmpReply, u16::from(query), read_u16(next, 4)),
                _ => return Err(UNREADABLE),
            }
        }
        _ => (Quoted::Other, 0, 0),
    };
    let l3 = l4_at + HEADER_BYTES;
    Ok(Quote {
        source: inside.source,
        destination: inside.destination,
        protocol: inside.protocol,
        source_port,
        destination_port,
        upper,
        sequence: u32::from_be_bytes(read(next, 4)),
        path_mtu: path_mtu(family_of, l4),
        l3,
        l4: l3 + inside.len,
    })
}

/// "Fragmentation needed" (RFC 1191) and "packet too big" (RFC 4443, 3.2).
fn path_mtu(family_of: IpAddr, l4: &[u8]) -> Option<u32> {
    match (family_of, read::<2>(l4, 0)) {
        (IpAddr::V4(_), [3, 4]) => Some(u32::from(read_u16(l4, 6))),
        (IpAddr::V6(_), [2, _]) => Some(u32::from_be_bytes(read(l4, 4))),
        _ => None,
    }
}

/// A quoted IP header.
struct Inside {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Bytes of all headers before the layer above.
    len: usize,
}

fn inside_v4(inner: &[u8]) -> Option<Inside> {
    let header = Ipv4HeaderSlice::from_slice(inner).ok()?;
    (header.fragments_offset().value() == 0).then(|| Inside {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.protocol().0,
        len: header.slice().len(),
    })
}

fn inside_v6(inner: &[u8]) -> Option<Inside> {
    let header = Ipv6HeaderSlice::from_slice(inner).ok()?;
    let fixed = header.slice().len();
    let chain = extensions::follow(header.next_header().0, inner.get(fixed..)?).ok()?;
    (!chain.is_fragment).then(|| Inside {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: chain.protocol,
        len: fixed + chain.len,
    })
}
