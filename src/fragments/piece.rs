//! One fragment as it came in: what it says, and whether a stack that means well could have sent it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::port::Origin;
use crate::verdict::DropReason;
use crate::wire::{protocol, read, read_u16};

/// Bytes of an IPv6 fragment header (RFC 8200, 4.5).
pub(crate) const FRAGMENT_HEADER_BYTES: usize = 8;
/// Bytes of an IPv6 header.
const IPV6_HEADER_BYTES: usize = 40;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
/// Extension headers that are followed behind a fragment header.
const MAX_EXTENSION_HEADERS: usize = 8;

/// What the fragments of one datagram have in common (RFC 791 3.2, RFC 8200 4.5), and the side they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) identification: u32,
    pub(crate) origin: Origin,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// IPv4 alone; zero for IPv6, where only the first fragment knows it.
    pub(crate) protocol: u8,
}

/// Where an IPv6 header names the one that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NextHeader {
    /// Offset from the IPv6 header.
    pub(crate) at: u16,
    /// What follows the fragment header.
    pub(crate) protocol: u8,
}

/// A fragment. Its source has been validated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment<'a> {
    pub(crate) key: Key,
    /// Every header that all fragments of the datagram carry, the IP header first; the fragment header not included.
    pub(crate) header: &'a [u8],
    /// IPv6 alone.
    pub(crate) next: Option<NextHeader>,
    /// Offset of the payload in the datagram's, in bytes.
    pub(crate) offset: u16,
    pub(crate) has_more: bool,
    pub(crate) payload: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Reads an IPv4 fragment: `datagram` is all of it, its header checked and `header_len` bytes long.
    pub(crate) fn of_ipv4(
        origin: Origin,
        datagram: &'a [u8],
        header_len: usize,
    ) -> Result<Self, DropReason> {
        let cut = datagram.split_at_checked(header_len).filter(|(header, _)| header.len() >= 20);
        let (header, payload) = cut.ok_or(DropReason::FragmentMalformed)?;
        let place = read_u16(header, 6);
        let [protocol] = read(header, 9);
        Ok(Self {
            key: Key {
                identification: u32::from(read_u16(header, 4)),
                origin,
                source: Ipv4Addr::from(read::<4>(header, 12)).into(),
                destination: Ipv4Addr::from(read::<4>(header, 16)).into(),
                protocol,
            },
            header,
            next: None,
            offset: (place & 0x1fff) << 3,
            has_more: place & 0x2000 != 0,
            payload,
        })
    }

    /// Reads an IPv6 fragment: `datagram` is all of it, its chain of headers checked up to the fragment header, which is
    /// at `fragment_at`. One that needs no other (RFC 6946) does not come here.
    pub(crate) fn of_ipv6(
        origin: Origin,
        datagram: &'a [u8],
        fragment_at: usize,
    ) -> Result<Self, DropReason> {
        const MALFORMED: DropReason = DropReason::FragmentMalformed;
        let (header, rest) = datagram.split_at_checked(fragment_at).ok_or(MALFORMED)?;
        let (own, payload) = rest.split_at_checked(FRAGMENT_HEADER_BYTES).ok_or(MALFORMED)?;
        let next_at = naming_byte(header).ok_or(MALFORMED)?;
        let place = read_u16(own, 2);
        let [protocol] = read(own, 0);
        Ok(Self {
            key: Key {
                identification: u32::from_be_bytes(read(own, 4)),
                origin,
                source: Ipv6Addr::from(read::<16>(header, 8)).into(),
                destination: Ipv6Addr::from(read::<16>(header, 24)).into(),
                protocol: 0,
            },
            header,
            next: Some(NextHeader { at: u16::try_from(next_at).map_err(|_| MALFORMED)?, protocol }),
            offset: place & 0xfff8,
            has_more: place & 1 != 0,
            payload,
        })
    }

    /// Offset of the first byte behind it.
    pub(crate) fn end(&self) -> u32 {
        u32::from(self.offset).saturating_add(u32::try_from(self.payload.len()).unwrap_or(u32::MAX))
    }

    /// Its length as an IP packet.
    pub(crate) fn packet_len(&self) -> u16 {
        let own = if self.next.is_some() { FRAGMENT_HEADER_BYTES } else { 0 };
        u16::try_from(self.header.len() + own + self.payload.len()).unwrap_or(u16::MAX)
    }

    /// Whether its sender forbids cutting it (IPv4; IPv6 always does).
    pub(crate) fn is_dont_fragment(&self) -> bool {
        self.next.is_some() || self.header.get(6).is_some_and(|flags| flags & 0x40 != 0)
    }

    /// The congestion mark as a bit of a set (RFC 3168, section 5).
    pub(crate) fn congestion_bit(&self) -> u8 {
        let second = self.header.get(1).copied().unwrap_or(0);
        let mark = if self.next.is_some() { second >> 4 & 3 } else { second & 3 };
        1 << mark
    }

    /// Checks what one fragment can be checked for: it carries something, ends on a border of eight bytes unless it is
    /// the last, stays within the longest datagram, and the first one holds the header that rules and NAT look at (RFC
    /// 1858, RFC 3128, RFC 7112).
    pub(crate) fn check(&self) -> Result<(), DropReason> {
        let is_on_border = !self.has_more || self.payload.len().is_multiple_of(8);
        // An IPv6 payload length does not count the IPv6 header.
        let counted = if self.next.is_some() {
            self.header.len().saturating_sub(IPV6_HEADER_BYTES)
        } else {
            self.header.len()
        };
        let is_within = self.end() as usize + counted <= usize::from(u16::MAX);
        let is_whole = self.offset != 0 || self.holds_transport_header();
        if self.payload.is_empty() || !is_on_border || !is_within || !is_whole {
            return Err(DropReason::FragmentMalformed);
        }
        Ok(())
    }

    fn holds_transport_header(&self) -> bool {
        match self.next {
            None => holds_header(self.key.protocol, self.payload),
            Some(next) => holds_chain(next.protocol, self.payload),
        }
    }
}

/// Whether the transport header of `ip_protocol` is all there.
fn holds_header(ip_protocol: u8, payload: &[u8]) -> bool {
    const TCP_HEADER_BYTES: usize = 20;
    match ip_protocol {
        protocol::TCP => {
            let data_offset = payload.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
            payload.len() >= data_offset.max(TCP_HEADER_BYTES)
        }
        // UDP and both ICMP need eight bytes; of others the first eight are what an ICMP error would quote.
        _ => payload.len() >= 8,
    }
}

/// Offset of the byte that names what follows all of `headers`, an IPv6 header and whole extension headers.
fn naming_byte(headers: &[u8]) -> Option<usize> {
    let (mut named_at, mut at) = (6, IPV6_HEADER_BYTES);
    while at < headers.len() {
        let protocol = *headers.get(named_at)?;
        let len = match protocol {
            FRAGMENT => FRAGMENT_HEADER_BYTES,
            AUTHENTICATION => (usize::from(*headers.get(at + 1)?) + 2) * 4,
            _ => (usize::from(*headers.get(at + 1)?) + 1) * 8,
        };
        (named_at, at) = (at, at + len);
    }
    (at == headers.len()).then_some(named_at)
}

/// Follows the extension headers that the first fragment carries to the transport header (RFC 7112).
fn holds_chain(mut protocol: u8, mut payload: &[u8]) -> bool {
    const ROUTING: u8 = 43;
    const NONE: u8 = 59;
    const OPTIONS: u8 = 60;
    const MOBILITY: u8 = 135;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        let unit = match protocol {
            // Neither belongs behind a fragment header.
            0 | FRAGMENT => return false,
            ROUTING | OPTIONS | MOBILITY => 8,
            AUTHENTICATION => 4,
            NONE => return true,
            _ => return holds_header(protocol, payload),
        };
        let [next, len, ..] = payload else { return false };
        // RFC 4302 2.2: the length of an authentication header counts words of four bytes and leaves two out.
        let units = usize::from(*len) + if unit == 4 { 2 } else { 1 };
        let Some(rest) = payload.get(units * unit..) else { return false };
        (protocol, payload) = (*next, rest);
    }
    false
}
