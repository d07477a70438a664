//! ARP on both sides (RFC 826): proxy replies to clients, our own address and the gateway's on the uplink.

use core::net::Ipv4Addr;

use etherparse::{ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType};

use crate::clients::{Attached, Clients};
use crate::evidence::Evidence;
use crate::frame::{Checksum, Frame, Offload};
use crate::ingress::L3;
use crate::stats::Counter;
use crate::time::Instant;
use crate::uplink::{Announcement, NetworkConfig, Uplink};
use crate::verdict::{Answer, DropReason, Verdict};
use crate::wire::{ETHERTYPE_ARP, Mac, write, write_ethernet, write_u16};

const ARP_BYTES: usize = 28;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    is_request: bool,
    sender_mac: Mac,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

/// Reads the ARP packet behind the Ethernet header.
pub(crate) fn read(frame: &Frame<'_>) -> Result<Message, DropReason> {
    const MALFORMED: DropReason = DropReason::ArpMalformed;
    let whole = frame.whole().ok_or(DropReason::Scattered)?;
    let bytes = whole.get(L3..).unwrap_or_default();
    let arp = ArpPacketSlice::from_slice(bytes).map_err(|_| MALFORMED)?;
    if arp.hw_addr_type() != ArpHardwareId::ETHERNET || arp.proto_addr_type() != EtherType::IPV4 {
        return Err(MALFORMED);
    }
    let mac = |bytes: &[u8]| bytes.try_into().map(Mac).map_err(|_| MALFORMED);
    let ip = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).map_err(|_| MALFORMED);
    mac(arp.target_hw_addr())?;
    let message = Message {
        is_request: arp.operation() == ArpOperation::REQUEST,
        sender_mac: mac(arp.sender_hw_addr())?,
        sender: ip(arp.sender_protocol_addr())?,
        target: ip(arp.target_protocol_addr())?,
    };
    let is_known = message.is_request || arp.operation() == ArpOperation::REPLY;
    if !is_known || !message.sender_mac.is_station() {
        return Err(MALFORMED);
    }
    Ok(message)
}

/// Answers a client: every address but its own is behind us, that of the gateway that it knows too. One that is told
/// other addresses has to use its own MAC address as well, as behind Linux.
pub(crate) fn from_client(client: &Attached, message: Message, frame: &mut Frame<'_>) -> Verdict {
    let own = match client.known_ip4() {
        Ok(own) => own,
        Err(reason) => return reason.into(),
    };
    let is_own = Some(message.target) == own;
    let is_probe = message.sender.is_unspecified() && is_own;
    let is_other_mac = client.visible.is_some() && message.sender_mac != client.port.mac;
    if Some(message.sender) != own && !is_probe || is_other_mac {
        return Verdict::Drop(DropReason::ArpSpoofed);
    }
    if is_own || !message.is_request {
        return Verdict::Drop(DropReason::ArpIgnored);
    }
    reply(frame, Mac::GATEWAY, &message)
}

/// Answers the uplink for our own address, and learns the gateway's MAC address while we ask for it.
pub(crate) fn from_uplink(
    clients: &Clients,
    network: &NetworkConfig,
    uplink: &mut Uplink,
    now: Instant,
    message: Message,
    frame: &mut Frame<'_>,
) -> Verdict {
    let sender = message.sender.into();
    if network.is_own(sender) || clients.is_client(sender) {
        return Verdict::Drop(DropReason::ArpSpoofed);
    }
    if network.v4.address != Some(message.target) || message.sender == message.target {
        return Verdict::Drop(DropReason::ArpIgnored);
    }
    if message.is_request {
        return reply(frame, uplink.port.mac, &message);
    }
    let is_gateway = network.v4.gateway == Some(message.sender);
    if is_gateway && uplink.v4.learn(now, message.sender_mac) {
        return Verdict::Consumed(Counter::ArpLearned);
    }
    Verdict::Drop(DropReason::ArpIgnored)
}

/// Writes a request of our own: gratuitous for our address, or for the gateway's. False if it cannot be.
pub(crate) fn announce(
    frame: &mut Frame<'_>,
    network: &NetworkConfig,
    own_mac: Mac,
    what: Announcement,
) -> Option<()> {
    let own = network.v4.address?;
    let target = match what {
        Announcement::Own => own,
        Announcement::Gateway => network.v4.gateway?,
    };
    emit(frame, REQUEST, (own_mac, own), (Mac([0; 6]), target), Mac::BROADCAST)
}

fn reply(frame: &mut Frame<'_>, own_mac: Mac, to: &Message) -> Verdict {
    let target = (to.sender_mac, to.sender);
    match emit(frame, REPLY, (own_mac, to.target), target, to.sender_mac) {
        Some(()) => Verdict::Answer(Answer::Arp),
        None => Verdict::Drop(DropReason::ArpMalformed),
    }
}

fn emit(
    frame: &mut Frame<'_>,
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
    link_destination: Mac,
) -> Option<()> {
    frame.resize(L3 + ARP_BYTES)?;
    frame.offload = Offload { checksum: Checksum::Full, gso: None };
    frame.evidence = Some(Evidence::Own);
    let bytes = frame.bytes_mut();
    write_ethernet(bytes, link_destination, sender.0, ETHERTYPE_ARP);
    // Ethernet, IPv4, address lengths 6 and 4.
    write(bytes, L3, [0, 1, 8, 0, 6, 4]);
    write_u16(bytes, L3 + 6, operation);
    write(bytes, L3 + 8, sender.0.0);
    write(bytes, L3 + 14, sender.1.octets());
    write(bytes, L3 + 18, target.0.0);
    write(bytes, L3 + 24, target.1.octets());
    Some(())
}
