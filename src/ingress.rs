//! A frame and where it came from become a [`Packet`]: parsed, checked, its source validated.
//!
//! Holding a [`FromClient`] or [`FromUplink`] proves that every offset in it lies inside the frame, that checksums of
//! the IPv4 header and of ICMP are right, that the packet is whole, and that its source may be used where it came from.
//! It does not prove that its TCP or UDP checksum is right: that is the receiver's to check.

use core::net::{IpAddr, Ipv4Addr};

use etherparse::Ipv4HeaderSlice;

use crate::arp;
use crate::clients::{Clients, HostId};
use crate::frame::Frame;
use crate::packet::{self, Packet};
use crate::port::ClientId;
use crate::uplink::NetworkConfig;
use crate::verdict::DropReason;
use crate::visible::{self, Visible};
use crate::wire::checksum::Sum;
use crate::wire::{
    ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac, read, read_u16,
};

/// Offset of the IPv4 header in a frame.
pub(crate) const L3: usize = ETHERNET_BYTES;

/// What a frame turned out to be.
#[derive(Debug)]
pub(crate) enum Ingress<P> {
    Arp(arp::Message),
    Packet(P),
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
    let (host4, visible) = (client.host4, client.visible);
    let (real, address) = (client.port.ip4, client.known_ip4()?);
    let header = match link(frame, Mac::GATEWAY)? {
        Link::Arp => return arp::read(frame).map(Ingress::Arp),
        Link::Ipv4 => ipv4_header(frame)?,
    };
    let host = host4.ok_or(DropReason::SourceSpoofed)?;
    if Some(header.source) != address {
        return Err(DropReason::SourceSpoofed);
    }
    if is_martian(header.destination) {
        return Err(DropReason::DestinationMartian);
    }
    let mut packet = packet::read_ipv4(frame, &header)?;
    if let (Some(Visible::As { gateway, .. }), Some(real)) = (visible, real) {
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
    let header = match link(frame, own_mac)? {
        Link::Arp => return arp::read(frame).map(Ingress::Arp),
        Link::Ipv4 => ipv4_header(frame)?,
    };
    let source = IpAddr::V4(header.source);
    if clients.is_client(source) || network.is_own(source) {
        return Err(DropReason::SourceSpoofed);
    }
    if is_martian(header.source) {
        return Err(DropReason::SourceMartian);
    }
    if network.v4.address != Some(header.destination) {
        return Err(DropReason::NotOurAddress);
    }
    let packet = packet::read_ipv4(frame, &header)?;
    Ok(Ingress::Packet(FromUplink { packet }))
}

/// Reads a packet that was checked or made here once more.
pub(crate) fn reread(frame: &mut Frame<'_>) -> Result<Packet, DropReason> {
    let header = ipv4_header(frame)?;
    packet::read_ipv4(frame, &header)
}

enum Link {
    Arp,
    Ipv4,
}

fn link(frame: &Frame<'_>, own_mac: Mac) -> Result<Link, DropReason> {
    let bytes = frame.bytes();
    if bytes.len() < ETHERNET_BYTES {
        return Err(DropReason::FrameTooShort);
    }
    let destination = Mac(read(bytes, 0));
    let is_ours = destination == own_mac;
    match read_u16(bytes, 12) {
        ETHERTYPE_ARP if is_ours || destination == Mac::BROADCAST => Ok(Link::Arp),
        ETHERTYPE_IPV6 => Err(DropReason::Ipv6),
        ETHERTYPE_IPV4 if is_ours => Ok(Link::Ipv4),
        ETHERTYPE_IPV4 | ETHERTYPE_ARP => Err(DropReason::LinkDestination),
        _ => Err(DropReason::EtherType),
    }
}

/// A checked IPv4 header.
pub(crate) struct Header {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) is_dont_fragment: bool,
    pub(crate) is_fragment: bool,
    pub(crate) header_len: usize,
    pub(crate) total_len: u16,
}

/// Checks the IPv4 header itself, and cuts off what the link layer padded.
fn ipv4_header(frame: &mut Frame<'_>) -> Result<Header, DropReason> {
    let datagram = frame.bytes().get(L3..).ok_or(DropReason::FrameTooShort)?;
    let slice = Ipv4HeaderSlice::from_slice(datagram).map_err(|_| DropReason::Ipv4Header)?;
    let (header_len, total_len) = (slice.slice().len(), slice.total_len());
    if usize::from(total_len) < header_len || usize::from(total_len) > datagram.len() {
        return Err(DropReason::Ipv4Header);
    }
    if Sum::default().bytes(slice.slice()).fold() != 0xffff {
        return Err(DropReason::Ipv4Checksum);
    }
    let header = Header {
        source: slice.source_addr(),
        destination: slice.destination_addr(),
        protocol: slice.protocol().0,
        ttl: slice.ttl(),
        is_dont_fragment: slice.dont_fragment(),
        is_fragment: slice.is_fragmenting_payload(),
        header_len,
        total_len,
    };
    frame.resize(L3 + usize::from(total_len)).ok_or(DropReason::Ipv4Header)?;
    Ok(header)
}

/// Loopback, this network, multicast, reserved and broadcast: neither a source nor a destination to forward.
fn is_martian(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [0 | 127 | 224..=255, ..])
}
