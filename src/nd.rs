//! Neighbour discovery on both sides (RFC 4861): proxy answers to clients, our own address and the gateway's on the
//! uplink. `arp` does the same for IPv4.
//!
//! Qubes' own clients never ask: their neighbour entries are permanent. Routers are configured, never discovered, so
//! router discovery and redirects end here.

use core::net::{IpAddr, Ipv6Addr};

use etherparse::icmpv6::{NdpOptionSlice, NdpOptionsIterator};

use crate::clients::ClientPort;
use crate::evidence::Evidence;
use crate::frame::{Checksum, Frame, Offload};
use crate::icmp::icmp_sum;
use crate::ingress::{Header, L3};
use crate::packet::Place;
use crate::stats::Counter;
use crate::time::Instant;
use crate::uplink::{Announcement, NetworkConfig, Uplink};
use crate::verdict::{Answer, DropReason, Verdict};
use crate::wire::{
    ETHERTYPE_IPV6, Mac, ipv6, protocol, read as field, write, write_ethernet, write_u16,
};

/// What a hop limit has to be, so that the packet comes from the link itself.
const HOP_LIMIT: u8 = 255;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Bytes up to the options, and those of the one option that we send.
const FIXED_BYTES: usize = 24;
const OPTION_BYTES: usize = 8;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
/// Flags of an advertisement: from a router, solicited, may override what is known.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A neighbour solicitation or advertisement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    is_solicitation: bool,
    /// MAC address of the frame's sender.
    sender_mac: Mac,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    target: Ipv6Addr,
    /// MAC address that an advertisement gives for the target.
    target_mac: Option<Mac>,
}

/// Reads neighbour discovery; `None` for everything else.
pub(crate) fn read(
    frame: &Frame<'_>,
    header: &Header,
    place: &Place,
) -> Result<Option<Message>, DropReason> {
    const MALFORMED: DropReason = DropReason::NdMalformed;
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (header.source, header.destination) else {
        return Ok(None);
    };
    if place.protocol != protocol::ICMPV6 || place.is_fragment {
        return Ok(None);
    }
    let whole = frame.whole().ok_or(DropReason::Scattered)?;
    let l4 = whole.get(place.l4..).unwrap_or_default();
    match l4 {
        [SOLICITATION | ADVERTISEMENT, ..] => {}
        [ROUTER_SOLICITATION | ROUTER_ADVERTISEMENT | REDIRECT, ..] => {
            return Err(DropReason::IcmpForbidden);
        }
        _ => return Ok(None),
    }
    // RFC 4861, 7.1.1 and 7.1.2; extension headers have no use here (RFC 6980 forbids the one for fragments).
    let has_extensions = place.l4 != L3 + ipv6::HEADER_BYTES;
    if header.ttl != HOP_LIMIT || has_extensions || l4.len() < FIXED_BYTES {
        return Err(MALFORMED);
    }
    if icmp_sum(l4, (header.source, header.destination)).fold() != 0xffff {
        return Err(DropReason::IcmpChecksum);
    }
    let [kind, code] = field::<2>(l4, 0);
    let message = Message {
        is_solicitation: kind == SOLICITATION,
        sender_mac: Mac(field(whole, 6)),
        source,
        destination,
        target: Ipv6Addr::from(field::<16>(l4, 8)),
        target_mac: target_mac(l4.get(FIXED_BYTES..).unwrap_or_default())?,
    };
    if code != 0 || message.target.is_multicast() || !message.sender_mac.is_station() {
        return Err(MALFORMED);
    }
    Ok(Some(message))
}

/// Walks all options, each of which must be whole, for the target's MAC address.
fn target_mac(options: &[u8]) -> Result<Option<Mac>, DropReason> {
    let mut found = None;
    for option in NdpOptionsIterator::from_slice(options) {
        let option = option.map_err(|_| DropReason::NdMalformed)?;
        if let NdpOptionSlice::TargetLinkLayerAddress(address) = option {
            found = address.link_layer_address().try_into().ok().map(Mac).or(found);
        }
    }
    Ok(found)
}

/// Answers a client: every address but its own is behind us. Its source is known to be its own address.
pub(crate) fn from_client(client: &ClientPort, message: Message, frame: &mut Frame<'_>) -> Verdict {
    if Some(message.target) == client.ip6 || !message.is_solicitation {
        return Verdict::Drop(DropReason::NdIgnored);
    }
    // A proxy does not override (RFC 4861, 7.2.8).
    advertise(frame, (Mac::GATEWAY, client.mac), message, ROUTER | SOLICITED)
}

/// Answers the uplink for our own address, and learns the gateway's MAC address while we ask for it. The source is
/// known to be none of ours and no client's.
pub(crate) fn from_uplink(
    network: &NetworkConfig,
    uplink: &mut Uplink,
    now: Instant,
    message: Message,
    frame: &mut Frame<'_>,
) -> Verdict {
    let ignored = Verdict::Drop(DropReason::NdIgnored);
    let own = network.v6.address;
    if message.is_solicitation {
        // Somebody who checks whether our address is free has no address to answer to.
        if own != Some(message.target) || message.source.is_unspecified() {
            return ignored;
        }
        let macs = (uplink.port.mac, message.sender_mac);
        return advertise(frame, macs, message, SOLICITED | OVERRIDE);
    }
    let is_gateway = network.v6.gateway == Some(message.target);
    let is_to_us = own == Some(message.destination);
    match message.target_mac.filter(|_| is_gateway && is_to_us) {
        Some(mac) if uplink.v6.learn(now, mac) => Verdict::Consumed(Counter::NdLearned),
        _ => ignored,
    }
}

/// Writes a message of our own: an advertisement of our address to all, or a solicitation of the gateway's.
pub(crate) fn announce(
    frame: &mut Frame<'_>,
    network: &NetworkConfig,
    own_mac: Mac,
    what: Announcement,
) -> Option<()> {
    let own = network.v6.address?;
    let (kind, flags, target, destination) = match what {
        Announcement::Own => (ADVERTISEMENT, OVERRIDE, own, ALL_NODES),
        Announcement::Gateway => {
            let gateway = network.v6.gateway?;
            (SOLICITATION, 0, gateway, solicited_node(gateway))
        }
    };
    let [.., a, b, c, d] = destination.octets();
    let macs = (own_mac, Mac([0x33, 0x33, a, b, c, d]));
    emit(frame, macs, (own, destination), (kind, flags, target))
}

/// The group in which the owner of an address listens (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0x00ff, low)
}

fn advertise(frame: &mut Frame<'_>, macs: (Mac, Mac), asked: Message, flags: u8) -> Verdict {
    let ends = (asked.target, asked.source);
    match emit(frame, macs, ends, (ADVERTISEMENT, flags, asked.target)) {
        Some(()) => Verdict::Answer(Answer::Neighbour),
        None => Verdict::Drop(DropReason::NdMalformed),
    }
}

fn emit(
    frame: &mut Frame<'_>,
    (own_mac, link_destination): (Mac, Mac),
    (source, destination): (Ipv6Addr, Ipv6Addr),
    (kind, flags, target): (u8, u8, Ipv6Addr),
) -> Option<()> {
    const LENGTH: usize = FIXED_BYTES + OPTION_BYTES;
    let l4 = L3 + ipv6::HEADER_BYTES;
    frame.resize(l4 + LENGTH)?;
    frame.offload = Offload { checksum: Checksum::Full, gso: None };
    frame.evidence = Some(Evidence::Own);
    let bytes = frame.bytes_mut();
    write_ethernet(bytes, link_destination, own_mac, ETHERTYPE_IPV6);
    ipv6::write_header(bytes, L3, LENGTH as u16, protocol::ICMPV6, source, destination);
    ipv6::set_hop_limit(bytes, L3, HOP_LIMIT);
    write(bytes, l4, [kind, 0, 0, 0, flags, 0, 0, 0]);
    write(bytes, l4 + 8, target.octets());
    let option = if kind == SOLICITATION { SOURCE_LINK_ADDRESS } else { TARGET_LINK_ADDRESS };
    write(bytes, l4 + FIXED_BYTES, [option, 1]);
    write(bytes, l4 + FIXED_BYTES + 2, own_mac.0);
    let sum = icmp_sum(bytes.get(l4..)?, (source.into(), destination.into()));
    write_u16(bytes, l4 + 2, sum.complete());
    Some(())
}
