//! A frame and where it came from become a [`Packet`]: parsed, checked, its source validated.
//!
//! Holding a [`FromClient`] or [`FromUplink`] proves that every offset in it lies inside the frame's head, that checksums of
//! the IPv4 header and of ICMP are right, that the packet is whole, and that its source may be used where it came from.
//! It does not prove that its TCP or UDP checksum is right: that is the receiver's to check.

mod ipv4;
mod ipv6;

use core::net::IpAddr;

use crate::arp;
use crate::clients::{Clients, HostId};
use crate::frame::Frame;
use crate::nd;
use crate::packet::{self, Packet, Place};
use crate::planted::{Defect, is_planted};
use crate::port::ClientId;
use crate::uplink::NetworkConfig;
use crate::verdict::DropReason;
use crate::visible::{self, Visible};
use crate::wire::{
    ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac, read, read_u16,
};

/// Offset of the IP header in a frame.
pub(crate) const L3: usize = ETHERNET_BYTES;

/// What a frame turned out to be.
#[derive(Debug)]
pub(crate) enum Ingress<P> {
    Arp(arp::Message),
    /// Neighbour discovery; its source is validated.
    Neighbour(nd::Message),
    Packet(P),
    Fragment(FragmentAt),
}

/// Where a fragment begins in its frame. Its source and its headers are checked, up to the payload or fragment header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FragmentAt {
    /// Behind an IPv4 header of this length.
    V4 { header_len: usize },
    /// With a fragment header at this offset from the IPv6 header.
    V6 { fragment_at: usize },
}

/// A packet that its client may send.
#[derive(Debug)]
pub(crate) struct FromClient {
    pub(crate) packet: Packet,
    pub(crate) host: HostId,
}

/// A packet from the uplink, to our address, from none of ours.
#[derive(Debug)]
pub(crate) struct FromUplink {
    pub(crate) packet: Packet,
}

/// Reads a client's frame. One that is told other addresses has its real ones from here on.
pub(crate) fn from_client(
    clients: &mut Clients,
    network: &NetworkConfig,
    id: ClientId,
    frame: &mut Frame<'_>,
) -> Result<Ingress<FromClient>, DropReason> {
    let client = clients.attached(id).ok_or(DropReason::UnknownPort)?;
    let (port, visible) = (client.port, client.visible);
    let (known4, hosts) = (client.known_ip4()?, (client.host4, client.host6));
    let (receiver, header) = match link(frame, Mac::GATEWAY, network)? {
        Link::Arp => return arp::read(frame).map(Ingress::Arp),
        Link::Ip(receiver, header) => (receiver, header),
    };
    let (host, address) = match header.source {
        IpAddr::V4(_) => (hosts.0, known4.map(IpAddr::V4)),
        // Its IPv6 address would tell it where it is.
        IpAddr::V6(_) if visible.is_some() => return Err(DropReason::SourceSpoofed),
        IpAddr::V6(_) => (hosts.1, port.ip6.map(IpAddr::V6)),
    };
    let host = host.ok_or(DropReason::SourceSpoofed)?;
    if address != Some(header.source) && !is_planted(Defect::SourceUnchecked) {
        return Err(DropReason::SourceSpoofed);
    }
    let place = packet::locate(frame, &header)?;
    if let Some(message) = nd::read(frame, &header, &place)? {
        return Ok(Ingress::Neighbour(message));
    }
    // The gateway's address may be link-local.
    if is_martian_destination(header.destination) && !network.is_own(header.destination) {
        return Err(DropReason::DestinationMartian);
    }
    if let Some(at) = fragment(frame, receiver, &header, &place)? {
        return Ok(Ingress::Fragment(at));
    }
    let mut packet = whole(frame, receiver, &header, &place)?;
    if let (Some(Visible::As { gateway, .. }), Some(real)) = (visible, port.ip4) {
        visible::reveal(frame, &mut packet, real.into(), gateway, network)?;
    }
    clients.heard(id, host);
    Ok(Ingress::Packet(FromClient { packet, host }))
}

/// Reads a frame from the uplink.
pub(crate) fn from_uplink(
    clients: &Clients,
    network: &NetworkConfig,
    own_mac: Mac,
    frame: &mut Frame<'_>,
) -> Result<Ingress<FromUplink>, DropReason> {
    let (receiver, header) = match link(frame, own_mac, network)? {
        Link::Arp => return arp::read(frame).map(Ingress::Arp),
        Link::Ip(receiver, header) => (receiver, header),
    };
    if clients.is_client(header.source) || network.is_own(header.source) {
        return Err(DropReason::SourceSpoofed);
    }
    let place = packet::locate(frame, &header)?;
    // Neighbours speak from their link-local addresses, too.
    if let Some(message) = nd::read(frame, &header, &place)? {
        return Ok(Ingress::Neighbour(message));
    }
    if is_martian(header.source) {
        return Err(DropReason::SourceMartian);
    }
    if network.own_address(header.source) != Some(header.destination) {
        return Err(DropReason::NotOurAddress);
    }
    if let Some(at) = fragment(frame, receiver, &header, &place)? {
        return Ok(Ingress::Fragment(at));
    }
    let packet = whole(frame, receiver, &header, &place)?;
    Ok(Ingress::Packet(FromUplink { packet }))
}

/// Reads a packet that was checked or made here once more.
pub(crate) fn reread(frame: &mut Frame<'_>) -> Result<Packet, DropReason> {
    let header = match read_u16(frame.bytes(), 12) {
        ETHERTYPE_IPV6 => ipv6::header(frame)?,
        _ => ipv4::header(frame)?,
    };
    let place = packet::locate(frame, &header)?;
    whole(frame, Receiver::Us, &header, &place)
}

/// The place where fragments leave the path, for both families and both sides: the source is checked, nothing above IP
/// was read. They come back as the whole of their datagram.
fn fragment(
    frame: &Frame<'_>,
    receiver: Receiver,
    header: &Header,
    place: &Place,
) -> Result<Option<FragmentAt>, DropReason> {
    if !place.is_fragment || receiver == Receiver::Group {
        return Ok(None);
    }
    packet::check_fragment_offload(frame.offload)?;
    Ok(Some(match header.source {
        IpAddr::V4(_) => FragmentAt::V4 { header_len: header.header_len },
        IpAddr::V6(_) => FragmentAt::V6 { fragment_at: place.l4 - L3 },
    }))
}

/// Reads what is no fragment.
fn whole(
    frame: &Frame<'_>,
    receiver: Receiver,
    header: &Header,
    place: &Place,
) -> Result<Packet, DropReason> {
    if receiver == Receiver::Group {
        return Err(DropReason::LinkDestination);
    }
    if place.is_fragment {
        return Err(DropReason::FragmentMalformed);
    }
    packet::read(frame, header, place)
}

enum Link {
    Arp,
    Ip(Receiver, Header),
}

/// Who the link layer says a frame is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiver {
    Us,
    /// A group of IPv6 receivers (RFC 2464, 7), for neighbour discovery.
    Group,
}

fn link(frame: &mut Frame<'_>, own_mac: Mac, network: &NetworkConfig) -> Result<Link, DropReason> {
    let bytes = frame.bytes();
    if bytes.len() < ETHERNET_BYTES {
        return Err(DropReason::FrameTooShort);
    }
    let destination = Mac(read(bytes, 0));
    let is_ours = destination == own_mac;
    let receiver = if is_ours { Receiver::Us } else { Receiver::Group };
    match read_u16(bytes, 12) {
        ETHERTYPE_ARP if is_ours || destination == Mac::BROADCAST => Ok(Link::Arp),
        ETHERTYPE_IPV6 if !network.has_ipv6() => Err(DropReason::Ipv6),
        ETHERTYPE_IPV6 if is_ours || matches!(destination.0, [0x33, 0x33, ..]) => {
            Ok(Link::Ip(receiver, ipv6::header(frame)?))
        }
        ETHERTYPE_IPV4 if is_ours => Ok(Link::Ip(receiver, ipv4::header(frame)?)),
        ETHERTYPE_IPV4 | ETHERTYPE_ARP | ETHERTYPE_IPV6 => Err(DropReason::LinkDestination),
        _ => Err(DropReason::EtherType),
    }
}

/// A checked IP header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// What follows: the layer above IP, or the first extension header.
    pub(crate) next: u8,
    pub(crate) ttl: u8,
    pub(crate) is_dont_fragment: bool,
    /// As IPv4 says it; IPv6 says it in an extension header.
    pub(crate) is_fragment: bool,
    pub(crate) header_len: usize,
    pub(crate) total_len: u16,
}

/// Cuts off what the link layer padded. A super-frame is longer than any frame that is padded: one with more bytes than
/// its header says contradicts itself.
fn cut_padding(frame: &mut Frame<'_>, total_len: u16) -> Result<(), DropReason> {
    let len = L3 + usize::from(total_len);
    if len == frame.len() {
        return Ok(());
    }
    if frame.offload.gso.is_some() {
        return Err(DropReason::GsoIllegal);
    }
    frame.resize(len).ok_or(DropReason::FrameTooShort)
}

pub(crate) fn is_martian_destination(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => ipv4::is_martian(v4),
        IpAddr::V6(v6) => ipv6::is_martian_destination(v6),
    }
}

fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => ipv4::is_martian(v4),
        IpAddr::V6(v6) => ipv6::is_martian(v6),
    }
}
