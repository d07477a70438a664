//! ICMP of our own (RFC 792, RFC 1812 4.3; RFC 4443): echo replies and errors, written over the packet they answer.

use core::net::IpAddr;
use core::time::Duration;

use crate::evidence::Evidence;
use crate::frame::{Checksum, Frame, Offload};
use crate::ingress::L3;
use crate::packet::{Packet, Upper};
use crate::time::Instant;
use crate::verdict::Refusal;
use crate::wire::checksum::{Sum, update_icmp};
use crate::wire::tcp::{self, Reset};
use crate::wire::{Mac, Side, ip, ipv6, read_u16, write, write_ethernet, write_u16};

/// Largest ICMP error as an IP packet (RFC 1812, 4.3.2.3; that of IPv6 is its smallest MTU: RFC 4443, 2.4).
const MAX_ERROR_BYTES: usize = 576;
const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;
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
    let (asker, own) = (packet.source, packet.destination);
    let kind = if own.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 };
    // Extension headers are the asker's word on the way here; they do not belong into an answer.
    if own.is_ipv6() && packet.l4 != L3 + ipv6::HEADER_BYTES {
        return None;
    }
    let bytes = frame.bytes_mut();
    write_ethernet(bytes, link.theirs, link.ours, ip::ether_type(own));
    // The same addresses in the other order: the pseudo header of ICMPv6 has the same sum.
    ip::set_address(bytes, L3, Side::Source, own);
    ip::set_address(bytes, L3, Side::Destination, asker);
    ip::set_own_ttl(bytes, L3);
    let old = read_u16(bytes, packet.l4);
    let new = u16::from(kind) << 8 | old & 0x00ff;
    write_u16(bytes, packet.l4, new);
    update_icmp(bytes.get_mut(packet.l4..)?, Sum::default().replace(old, new));
    (frame.offload, frame.evidence) = (COMPUTED, Some(Evidence::Own));
    Some(())
}

/// Turns a packet into the error about it; `None`, and no change, if there is no room or no legal answer.
pub(crate) fn refuse(
    frame: &mut Frame<'_>,
    packet: &Packet,
    refusal: Refusal,
    own: IpAddr,
    link: Link,
) -> Option<()> {
    if !packet.may_be_answered() {
        return None;
    }
    match (refusal, packet.upper) {
        (Refusal::TcpReset, Upper::Tcp(segment)) => {
            let from = (packet.destination, packet.destination_port);
            let to = (packet.source, packet.source_port);
            let reset = Reset { from, to, sequence: segment.acknowledgement };
            frame.resize(reset.frame_bytes())?;
            tcp::write_reset(frame.bytes_mut(), &reset)?;
        }
        (Refusal::TcpReset, _) => return None,
        _ => error(frame, packet, refusal, own)?,
    }
    write_ethernet(frame.bytes_mut(), link.theirs, link.ours, ip::ether_type(own));
    (frame.offload, frame.evidence) = (COMPUTED, Some(Evidence::Own));
    Some(())
}

fn error(frame: &mut Frame<'_>, packet: &Packet, refusal: Refusal, own: IpAddr) -> Option<()> {
    let (kind, code, mtu) = match own {
        IpAddr::V4(_) => kind_v4(refusal)?,
        IpAddr::V6(_) => kind_v6(refusal)?,
    };
    let limit = if own.is_ipv4() { MAX_ERROR_BYTES } else { usize::from(ipv6::MIN_MTU) };
    let icmp = L3 + ip::header_bytes(own);
    let quote = icmp + ICMP_HEADER_BYTES;
    let room = frame.capacity().checked_sub(quote)?;
    // Of a super-frame there may be no more than its head.
    let held = frame.bytes().len();
    let most = held.saturating_sub(L3).min(limit - (quote - L3)).min(room);
    let quoted = usize::from(packet.total_len).min(most);
    frame.resize(held.max(quote + quoted))?;
    frame.bytes_mut().copy_within(L3..L3 + quoted, quote);
    frame.resize(quote + quoted)?;
    let bytes = frame.bytes_mut();
    let length = bytes.len() - icmp;
    let ends = (own, packet.source);
    ip::write_header(bytes, L3, length, ip::icmp(own), ends)?;
    write(bytes, icmp, [kind, code, 0, 0]);
    write(bytes, icmp + 4, u32::from(mtu).to_be_bytes());
    let sum = icmp_sum(bytes.get(icmp..)?, ends);
    write_u16(bytes, icmp + 2, sum.complete());
    Some(())
}

/// The sum over an ICMP message; that of IPv6 includes a pseudo header (RFC 4443, 2.3).
pub(crate) fn icmp_sum(message: &[u8], (source, destination): (IpAddr, IpAddr)) -> Sum {
    let sum = Sum::default().bytes(message);
    if source.is_ipv4() {
        return sum;
    }
    // A message is never longer than its packet, whose length is a 16-bit number.
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    sum.pseudo_header(source, destination, ip::icmp(source), length)
}

/// Type, code and MTU (RFC 792, RFC 1191, RFC 1812).
fn kind_v4(refusal: Refusal) -> Option<(u8, u8, u16)> {
    Some(match refusal {
        Refusal::NetUnreachable => (3, 0, 0),
        Refusal::FragmentationNeeded(mtu) => (3, 4, mtu),
        Refusal::HostProhibited => (3, 10, 0),
        Refusal::Prohibited => (3, 13, 0),
        Refusal::TimeExceeded => (11, 0, 0),
        Refusal::TcpReset => return None,
    })
}

/// The same for IPv6 (RFC 4443, section 3).
fn kind_v6(refusal: Refusal) -> Option<(u8, u8, u16)> {
    Some(match refusal {
        Refusal::NetUnreachable => (1, 0, 0),
        Refusal::HostProhibited | Refusal::Prohibited => (1, 1, 0),
        Refusal::FragmentationNeeded(mtu) => (2, 0, mtu),
        Refusal::TimeExceeded => (3, 0, 0),
        Refusal::TcpReset => return None,
    })
}
