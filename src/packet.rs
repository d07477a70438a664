//! A parsed packet: addresses, ports and whatever of the layer above IP the core looks at.
//!
//! A [`Packet`] is copied out of its frame, so that the frame can be rewritten with it at hand. Every offset in it lies
//! inside the frame it was read from.

use core::net::IpAddr;

use etherparse::{IpNumber, Ipv4HeaderSlice, TcpHeaderSlice, TcpOptionElement, UdpHeaderSlice};

use crate::conntrack::Tuple;
use crate::conntrack::tcp::{self, Segment};
use crate::frame::{Checksum, Frame, GsoKind, Offload};
use crate::ingress::{Header, L3};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::{ipv4, protocol, read, read_u16};

/// Bytes of an ICMP header, and of what an ICMP error must quote behind the inner header (RFC 792).
const ICMP_HEADER_BYTES: usize = 8;

/// A parsed packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// For an ICMP query its identifier, for the answer to one the type of the query; 0 where there are no ports.
    pub(crate) source_port: u16,
    /// The other way round.
    pub(crate) destination_port: u16,
    pub(crate) ttl: u8,
    pub(crate) is_dont_fragment: bool,
    /// Bytes from the IP header to the end of the payload.
    pub(crate) total_len: u16,
    /// Offset of the layer above IP in the frame.
    pub(crate) l4: usize,
    pub(crate) upper: Upper,
}

/// The layer above IP.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Upper {
    Tcp(Segment),
    Udp,
    /// Echo, timestamp, information or mask request, with its type.
    IcmpQuery(u8),
    /// The answer to one.
    IcmpReply,
    /// Destination unreachable, time exceeded or parameter problem.
    IcmpError(Quote),
    IcmpOther,
    Other,
}

/// The packet inside an ICMP error. Same meaning of ports as in [`Packet`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quote {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) upper: Quoted,
    /// Offset of its IP header in the frame.
    pub(crate) l3: usize,
    /// Offset of its next layer in the frame.
    pub(crate) l4: usize,
}

/// The layer above IP of a quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quoted {
    Tcp,
    Udp,
    IcmpQuery,
    IcmpReply,
    Other,
}

impl Packet {
    /// The flow it belongs to if its sender is the local end.
    pub(crate) fn outbound(&self) -> Tuple {
        Tuple {
            protocol: self.protocol,
            local: self.source,
            local_port: self.source_port,
            remote: self.destination,
            remote_port: self.destination_port,
        }
    }

    /// The flow it belongs to if its receiver is the local end.
    pub(crate) fn inbound(&self) -> Tuple {
        Tuple {
            protocol: self.protocol,
            local: self.destination,
            local_port: self.destination_port,
            remote: self.source,
            remote_port: self.source_port,
        }
    }

    /// Whether its sender may be told of an error: never about ICMP that is not a query (RFC 1812, 4.3.2.7).
    pub(crate) fn may_be_answered(&self) -> bool {
        !matches!(self.upper, Upper::IcmpReply | Upper::IcmpError(_) | Upper::IcmpOther)
    }
}

impl Quote {
    /// The flow that the quoted packet belongs to if its sender is the local end.
    pub(crate) fn outbound(&self) -> Tuple {
        Tuple {
            protocol: self.protocol,
            local: self.source,
            local_port: self.source_port,
            remote: self.destination,
            remote_port: self.destination_port,
        }
    }

    /// The flow that the quoted packet belongs to if its receiver is the local end.
    pub(crate) fn inbound(&self) -> Tuple {
        Tuple {
            protocol: self.protocol,
            local: self.destination,
            local_port: self.destination_port,
            remote: self.source,
            remote_port: self.source_port,
        }
    }
}

/// Reads what follows a checked IPv4 header.
pub(crate) fn read_ipv4(frame: &Frame<'_>, header: &Header) -> Result<Packet, DropReason> {
    let datagram = frame.bytes().get(L3..).unwrap_or_default();
    let (ip, l4) = datagram.split_at_checked(header.header_len).ok_or(DropReason::Ipv4Header)?;
    check_options(ip.get(ipv4::HEADER_BYTES..).unwrap_or_default())?;
    if header.is_fragment {
        return Err(DropReason::Fragment);
    }
    check_offload(frame.offload, header.protocol)?;
    let l4_at = L3 + header.header_len;
    let (upper, source_port, destination_port) = upper(header.protocol, l4, l4_at)?;
    Ok(Packet {
        source: header.source.into(),
        destination: header.destination.into(),
        protocol: header.protocol,
        source_port,
        destination_port,
        ttl: header.ttl,
        is_dont_fragment: header.is_dont_fragment,
        total_len: header.total_len,
        l4: l4_at,
        upper,
    })
}

/// Walks the options (RFC 791, 3.1): source routes and options that overrun the header end the packet.
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    loop {
        options = match options {
            [] | [END, ..] => return Ok(()),
            [NO_OPERATION, rest @ ..] => rest,
            [LOOSE_ROUTE | STRICT_ROUTE, ..] => return Err(DropReason::SourceRoute),
            [_, len, ..] if *len >= 2 => {
                options.get(usize::from(*len)..).ok_or(DropReason::SourceRoute)?
            }
            _ => return Err(DropReason::SourceRoute),
        };
    }
}

/// Xen's flags are claims of a peer: they must fit the packet they came with.
fn check_offload(offload: Offload, ip_protocol: u8) -> Result<(), DropReason> {
    let has_ports = matches!(ip_protocol, protocol::TCP | protocol::UDP);
    if offload.checksum == Checksum::Blank && !has_ports {
        return Err(DropReason::BlankIllegal);
    }
    match offload.gso {
        Some(gso)
            if gso.kind != GsoKind::TcpV4 || gso.size == 0 || ip_protocol != protocol::TCP =>
        {
            Err(DropReason::GsoIllegal)
        }
        _ => Ok(()),
    }
}

fn upper(ip_protocol: u8, l4: &[u8], l4_at: usize) -> Result<(Upper, u16, u16), DropReason> {
    match ip_protocol {
        protocol::TCP => tcp_header(l4),
        protocol::UDP => {
            let udp = UdpHeaderSlice::from_slice(l4).map_err(|_| DropReason::TransportHeader)?;
            let length = usize::from(udp.length());
            if length < udp.slice().len() || length > l4.len() {
                return Err(DropReason::TransportHeader);
            }
            Ok((Upper::Udp, udp.source_port(), udp.destination_port()))
        }
        protocol::ICMP => icmp_header(l4, l4_at),
        _ => Ok((Upper::Other, 0, 0)),
    }
}

fn tcp_header(l4: &[u8]) -> Result<(Upper, u16, u16), DropReason> {
    let header = TcpHeaderSlice::from_slice(l4).map_err(|_| DropReason::TransportHeader)?;
    let payload = l4.len().saturating_sub(header.slice().len());
    let flags: u8 = read::<1>(l4, 13)[0];
    let scale = (flags & tcp::flags::SYN != 0)
        .then(|| {
            header.options_iterator().find_map(|option| match option {
                Ok(TcpOptionElement::WindowScale(scale)) => Some(scale),
                _ => None,
            })
        })
        .flatten();
    let segment = Segment {
        flags,
        sequence: header.sequence_number(),
        acknowledgement: header.acknowledgment_number(),
        window: header.window_size(),
        payload: u16::try_from(payload).map_err(|_| DropReason::TransportHeader)?,
        scale,
    };
    if !segment.has_legal_flags() {
        return Err(DropReason::TcpFlags);
    }
    Ok((Upper::Tcp(segment), header.source_port(), header.destination_port()))
}

fn icmp_header(l4: &[u8], l4_at: usize) -> Result<(Upper, u16, u16), DropReason> {
    if l4.len() < ICMP_HEADER_BYTES {
        return Err(DropReason::TransportHeader);
    }
    if Sum::default().bytes(l4).fold() != 0xffff {
        return Err(DropReason::IcmpChecksum);
    }
    let [kind] = read::<1>(l4, 0);
    let identifier = read_u16(l4, 4);
    Ok(match IcmpKind::of(kind) {
        IcmpKind::Query => (Upper::IcmpQuery(kind), identifier, u16::from(kind)),
        IcmpKind::ReplyTo(query) => (Upper::IcmpReply, u16::from(query), identifier),
        IcmpKind::Error => (Upper::IcmpError(quote(l4, l4_at)?), 0, 0),
        IcmpKind::Forbidden => return Err(DropReason::IcmpForbidden),
        IcmpKind::Other => (Upper::IcmpOther, 0, 0),
    })
}

/// Roles of ICMP types (IANA "ICMP Type Numbers").
enum IcmpKind {
    Query,
    ReplyTo(u8),
    Error,
    /// Source quench (RFC 6633) and redirect.
    Forbidden,
    Other,
}

impl IcmpKind {
    fn of(kind: u8) -> Self {
        match kind {
            8 | 13 | 15 | 17 => Self::Query,
            0 => Self::ReplyTo(8),
            14 | 16 | 18 => Self::ReplyTo(kind.saturating_sub(1)),
            3 | 11 | 12 => Self::Error,
            4 | 5 => Self::Forbidden,
            _ => Self::Other,
        }
    }
}

/// Reads the packet that an ICMP error quotes. Its total length and checksums describe what was quoted, not the quote,
/// so they are not checked (RFC 5508 REQ-3).
fn quote(l4: &[u8], l4_at: usize) -> Result<Quote, DropReason> {
    const UNREADABLE: DropReason = DropReason::IcmpErrorUnrelated;
    let inner = l4.get(ICMP_HEADER_BYTES..).unwrap_or_default();
    let header = Ipv4HeaderSlice::from_slice(inner).map_err(|_| UNREADABLE)?;
    let next = inner.get(header.slice().len()..).unwrap_or_default();
    if next.len() < ICMP_HEADER_BYTES || header.fragments_offset().value() != 0 {
        return Err(UNREADABLE);
    }
    let (upper, source_port, destination_port) = match header.protocol() {
        IpNumber::TCP => (Quoted::Tcp, read_u16(next, 0), read_u16(next, 2)),
        IpNumber::UDP => (Quoted::Udp, read_u16(next, 0), read_u16(next, 2)),
        IpNumber::ICMP => {
            let [kind] = read::<1>(next, 0);
            match IcmpKind::of(kind) {
                IcmpKind::Query => (Quoted::IcmpQuery, read_u16(next, 4), u16::from(kind)),
                IcmpKind::ReplyTo(query) => {
                    (Quoted::IcmpReply, u16::from(query), read_u16(next, 4))
                }
                _ => return Err(UNREADABLE),
            }
        }
        _ => (Quoted::Other, 0, 0),
    };
    let l3 = l4_at + ICMP_HEADER_BYTES;
    Ok(Quote {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.protocol().0,
        source_port,
        destination_port,
        upper,
        l3,
        l4: l3 + header.slice().len(),
    })
}
