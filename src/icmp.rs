//! ICMP of our own (RFC 792, RFC 1812 4.3): echo replies and errors, written over the packet they answer.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;

use crate::frame::{Checksum, Frame, Offload};
use crate::ingress::L3;
use crate::packet::{Packet, Upper};
use crate::time::Instant;
use crate::verdict::Refusal;
use crate::wire::checksum::{Sum, update_full};
use crate::wire::ipv4::{self, Side};
use crate::wire::tcp::{self, Reset};
use crate::wire::{ETHERTYPE_IPV4, Mac, protocol, read_u16, write, write_ethernet, write_u16};

/// Largest ICMP error as an IP packet (RFC 1812, 4.3.2.3).
const MAX_ERROR_BYTES: usize = 576;
const ICMP_HEADER_BYTES: usize = 8;
const COMPUTED: Offload = Offload { checksum: Checksum::Validated, gso: None };

/// Link addresses of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) ours: Mac,
    pub(crate) theirs: Mac,
}

/// Errors and resets that one port may cause: a burst, then a steady rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    tokens: u32,
    refilled_at: Instant,
}

impl TokenBucket {
    const BURST: u32 = 100;
    const INTERVAL: Duration = Duration::from_millis(5);

    /// Takes one token if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let interval = Self::INTERVAL.as_nanos() as u64;
        let earned = now.as_nanos().saturating_sub(self.refilled_at.as_nanos()) / interval;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).min(Self::BURST);
            self.refilled_at = now;
        }
        self.tokens.checked_sub(1).inspect(|left| self.tokens = *left).is_some()
    }
}

impl Default for TokenBucket {
    fn default() -> Self {
        Self { tokens: Self::BURST, refilled_at: Instant::default() }
    }
}

/// How the sender of a packet that its rules forbid is told.
pub(crate) fn prohibition(packet: &Packet, is_known_flow: bool) -> Refusal {
    match packet.upper {
        // A stack takes ICMP as a hint once a connection is established, a reset ends it at once.
        Upper::Tcp(segment) if is_known_flow && segment.is_resettable() => Refusal::TcpReset,
        _ => Refusal::Prohibited,
    }
}

/// Turns an echo request to us into the reply.
pub(crate) fn echo_reply(frame: &mut Frame<'_>, packet: &Packet, link: Link) -> Option<()> {
    let (IpAddr::V4(asker), IpAddr::V4(own)) = (packet.source, packet.destination) else {
        return None;
    };
    let bytes = frame.bytes_mut();
    write_ethernet(bytes, link.theirs, link.ours, ETHERTYPE_IPV4);
    ipv4::set_address(bytes, L3, Side::Source, own);
    ipv4::set_address(bytes, L3, Side::Destination, asker);
    ipv4::set_ttl(bytes, L3, ipv4::OWN_TTL);
    let old = read_u16(bytes, packet.l4);
    let new = old & 0x00ff;
    write_u16(bytes, packet.l4, new);
    let checksum = read_u16(bytes, packet.l4 + 2);
    let change = Sum::default().replace(old, new);
    write_u16(bytes, packet.l4 + 2, update_full(checksum, change));
    frame.offload = COMPUTED;
    Some(())
}

/// Turns a packet into the error about it; `None`, and no change, if there is no room or no legal answer.
pub(crate) fn refuse(
    frame: &mut Frame<'_>,
    packet: &Packet,
    refusal: Refusal,
    own: Ipv4Addr,
    link: Link,
) -> Option<()> {
    if !packet.may_be_answered() {
        return None;
    }
    let (IpAddr::V4(sender), IpAddr::V4(destination)) = (packet.source, packet.destination) else {
        return None;
    };
    match (refusal, packet.upper) {
        (Refusal::TcpReset, Upper::Tcp(segment)) => {
            frame.resize(tcp::RESET_BYTES)?;
            let from = (destination, packet.destination_port);
            let to = (sender, packet.source_port);
            let sequence = segment.acknowledgement;
            tcp::write_reset(frame.bytes_mut(), &Reset { from, to, sequence });
        }
        (Refusal::TcpReset, _) => return None,
        _ => error(frame, packet, refusal, own, sender)?,
    }
    write_ethernet(frame.bytes_mut(), link.theirs, link.ours, ETHERTYPE_IPV4);
    frame.offload = COMPUTED;
    Some(())
}

fn error(
    frame: &mut Frame<'_>,
    packet: &Packet,
    refusal: Refusal,
    own: Ipv4Addr,
    sender: Ipv4Addr,
) -> Option<()> {
    let (kind, code, mtu) = match refusal {
        Refusal::NetUnreachable => (3, 0, 0),
        Refusal::FragmentationNeeded(mtu) => (3, 4, mtu),
        Refusal::HostProhibited => (3, 10, 0),
        Refusal::Prohibited => (3, 13, 0),
        Refusal::TimeExceeded => (11, 0, 0),
        Refusal::TcpReset => return None,
    };
    let icmp = L3 + ipv4::HEADER_BYTES;
    let quote = icmp + ICMP_HEADER_BYTES;
    let room = frame.capacity().checked_sub(quote)?;
    let quoted = usize::from(packet.total_len).min(MAX_ERROR_BYTES - (quote - L3)).min(room);
    frame.resize(frame.len().max(quote + quoted))?;
    frame.bytes_mut().copy_within(L3..L3 + quoted, quote);
    frame.resize(quote + quoted)?;
    let bytes = frame.bytes_mut();
    let total_len = u16::try_from(bytes.len() - L3).ok()?;
    ipv4::write_header(bytes, L3, total_len, protocol::ICMP, own, sender);
    write(bytes, icmp, [kind, code, 0, 0, 0, 0]);
    write_u16(bytes, icmp + 6, mtu);
    let sum = Sum::default().bytes(bytes.get(icmp..)?);
    write_u16(bytes, icmp + 2, sum.complete());
    Some(())
}
