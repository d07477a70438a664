//! A parsed packet: addresses, ports and whatever of the layer above IP the core looks at.
//!
//! A [`Packet`] is copied out of its frame, so that the frame can be rewritten with it at hand. Every offset in it lies
//! inside the head of the frame it was read from.

mod extensions;
mod icmp;

use core::net::IpAddr;

use etherparse::{TcpHeaderSlice, TcpOptionElement, UdpHeaderSlice};

use crate::conntrack::Tuple;
use crate::conntrack::tcp::{self, Segment};
use crate::frame::{Checksum, Frame, Gso, GsoKind, Offload};
use crate::ingress::{Header, L3};
use crate::verdict::DropReason;
use crate::wire::{self, ip, ipv4, ipv6, protocol};

/// The first type of ICMPv6 that is no error (RFC 4443, 2.1).
const FIRST_INFORMATIONAL: u8 = 128;

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
    /// Any other type, which is this.
    IcmpOther(u8),
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
    /// Its sequence number, if it is TCP.
    pub(crate) sequence: u32,
    /// What the error says the way on can carry, if it was too big for it.
    pub(crate) path_mtu: Option<u32>,
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

    /// Whether its sender may be told of an error: never about an ICMP error (RFC 1812, 4.3.2.7; RFC 4443, 2.4 e). What
    /// an unknown type is says only IPv6: an error below 128.
    pub(crate) fn may_be_answered(&self) -> bool {
        match self.upper {
            Upper::IcmpError(_) => false,
            Upper::IcmpOther(kind) => self.source.is_ipv6() && kind >= FIRST_INFORMATIONAL,
            _ => true,
        }
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

/// Where the layer above IP starts. Options and extension headers before it are checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) protocol: u8,
    /// Offset in the frame.
    pub(crate) l4: usize,
    /// Part of a datagram, so that what is there need not be what `protocol` says.
    pub(crate) is_fragment: bool,
}

/// Finds the layer above a checked IP header.
pub(crate) fn locate(frame: &Frame<'_>, header: &Header) -> Result<Place, DropReason> {
    let datagram = frame.bytes().get(L3..).unwrap_or_default();
    let l4 = L3 + header.header_len;
    match header.source {
        IpAddr::V4(_) => {
            let options = datagram.get(ipv4::HEADER_BYTES..header.header_len);
            extensions::check_options(options.ok_or(DropReason::Ipv4Header)?)?;
            Ok(Place { protocol: header.next, l4, is_fragment: header.is_fragment })
        }
        IpAddr::V6(_) => {
            let payload = datagram.get(header.header_len..).unwrap_or_default();
            let chain = extensions::follow(header.next, payload)?;
            let (protocol, is_fragment) = (chain.protocol, chain.is_fragment);
            Ok(Place { protocol, l4: l4 + chain.len, is_fragment })
        }
    }
}

/// A fragment has no checksum of its own that could be partial, and is no super-frame.
pub(crate) fn check_fragment_offload(offload: Offload) -> Result<(), DropReason> {
    match offload {
        Offload { checksum: Checksum::Blank, .. } => Err(DropReason::BlankIllegal),
        Offload { gso: Some(_), .. } => Err(DropReason::GsoIllegal),
        _ => Ok(()),
    }
}

/// The layer above IP of a packet that there is not, by its ICMP type.
pub(crate) fn upper_of_type(family_of: IpAddr, kind: u8) -> Result<Upper, DropReason> {
    icmp::upper_of_type(family_of, kind)
}

/// Reads a whole datagram, which may be one that was put together in another buffer.
pub(crate) fn read(
    frame: &Frame<'_>,
    header: &Header,
    place: &Place,
) -> Result<Packet, DropReason> {
    check_offload(frame.offload, header.source, place)?;
    let (upper, source_port, destination_port) = upper(frame, header, place)?;
    if let (Some(gso), Upper::Tcp(segment)) = (frame.offload.gso, upper) {
        check_super_frame(gso, &segment)?;
    }
    Ok(Packet {
        source: header.source,
        destination: header.destination,
        protocol: place.protocol,
        source_port,
        destination_port,
        ttl: header.ttl,
        is_dont_fragment: header.is_dont_fragment,
        total_len: header.total_len,
        l4: place.l4,
        upper,
    })
}

/// Xen's flags are claims of a peer: they must fit the packet they came with.
fn check_offload(offload: Offload, family_of: IpAddr, place: &Place) -> Result<(), DropReason> {
    let has_ports = matches!(place.protocol, protocol::TCP | protocol::UDP);
    if offload.checksum == Checksum::Blank && !has_ports {
        return Err(DropReason::BlankIllegal);
    }
    let Some(gso) = offload.gso else { return Ok(()) };
    let kind = if family_of.is_ipv4() { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    // Each segment has a checksum of its own. No stack that means well has extension headers repeated in each.
    let is_plain = offload.checksum == Checksum::Blank
        && (family_of.is_ipv4() || place.l4 == L3 + ipv6::HEADER_BYTES);
    if gso.kind != kind || gso.size == 0 || place.protocol != protocol::TCP || !is_plain {
        return Err(DropReason::GsoIllegal);
    }
    Ok(())
}

/// A super-frame stands for several segments, which neither open nor break off a connection.
fn check_super_frame(gso: Gso, segment: &Segment) -> Result<(), DropReason> {
    let is_several = segment.payload > gso.size;
    if !is_several || segment.flags & (tcp::flags::SYN | tcp::flags::RST) != 0 {
        return Err(DropReason::GsoIllegal);
    }
    Ok(())
}

fn upper(
    frame: &Frame<'_>,
    header: &Header,
    place: &Place,
) -> Result<(Upper, u16, u16), DropReason> {
    const TOO_SHORT: DropReason = DropReason::TransportHeader;
    if place.protocol == protocol::TCP {
        let head = frame.bytes().get(place.l4..).ok_or(TOO_SHORT)?;
        return tcp_header(head, frame.len().saturating_sub(place.l4));
    }
    let l4 = frame.whole().ok_or(DropReason::Scattered)?.get(place.l4..).ok_or(TOO_SHORT)?;
    match place.protocol {
        protocol::UDP => {
            let udp = UdpHeaderSlice::from_slice(l4).map_err(|_| TOO_SHORT)?;
            let length = usize::from(udp.length());
            if length < udp.slice().len() || length > l4.len() {
                return Err(TOO_SHORT);
            }
            // IPv6 knows no datagram without a checksum (RFC 8200, 8.1).
            let has_none = udp.checksum() == 0 && frame.offload.checksum != Checksum::Blank;
            if has_none && header.source.is_ipv6() {
                return Err(TOO_SHORT);
            }
            Ok((Upper::Udp, udp.source_port(), udp.destination_port()))
        }
        number if number == ip::icmp(header.source) => icmp::read_message(header, place, l4),
        _ => Ok((Upper::Other, 0, 0)),
    }
}

/// Reads the header at the start of `head`, which is as much of `len` bytes as is there.
fn tcp_header(head: &[u8], len: usize) -> Result<(Upper, u16, u16), DropReason> {
    let header = TcpHeaderSlice::from_slice(head).map_err(|_| DropReason::TransportHeader)?;
    let payload = len.saturating_sub(header.slice().len());
    let flags: u8 = wire::read::<1>(head, 13)[0];
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
