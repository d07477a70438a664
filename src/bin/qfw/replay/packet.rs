//! Captured bytes to IP packets, and IP packets to what a flow is known by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pcap_parser::Linktype;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Extension headers that are followed, as the firewall does.
const MAX_EXTENSIONS: usize = 8;

/// Why a captured frame is not replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Skipped {
    /// Link layers that Qubes has not.
    LinkType,
    /// A vif has no VLANs.
    Vlan,
    /// ARP: the firewall answers it whatever the rules say.
    Arp,
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// Too short or contradicting itself.
    Malformed,
    /// Neither from the client nor to it.
    OfOthers,
    /// To the client, and part of no flow that was seen to begin.
    Unsolicited,
}

impl Skipped {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::LinkType => "link-type",
            Self::Vlan => "vlan",
            Self::Arp => "arp",
            Self::NotIp => "not-ip",
            Self::Malformed => "malformed",
            Self::OfOthers => "of-others",
            Self::Unsolicited => "unsolicited",
        }
    }
}

/// The IP packet in a captured frame.
pub(crate) fn ip(link: Linktype, bytes: &[u8]) -> Result<&[u8], Skipped> {
    let (protocol, packet) = match link {
        Linktype::ETHERNET => (word(bytes, 12), bytes.get(14..)),
        Linktype::LINUX_SLL => (word(bytes, 14), bytes.get(16..)),
        Linktype::LINUX_SLL2 => (word(bytes, 0), bytes.get(20..)),
        Linktype::RAW | Linktype::IPV4 | Linktype::IPV6 | Linktype(12 | 14) => {
            return first_byte(bytes).map(|_| bytes);
        }
        _ => return Err(Skipped::LinkType),
    };
    match protocol.ok_or(Skipped::Malformed)? {
        0x0800 | 0x86dd => {
            let packet = packet.ok_or(Skipped::Malformed)?;
            first_byte(packet).map(|_| packet)
        }
        0x0806 => Err(Skipped::Arp),
        0x8100 | 0x88a8 | 0x9100 => Err(Skipped::Vlan),
        _ => Err(Skipped::NotIp),
    }
}

fn first_byte(packet: &[u8]) -> Result<u8, Skipped> {
    match packet.first() {
        Some(byte) if matches!(byte >> 4, 4 | 6) => Ok(*byte),
        Some(_) => Err(Skipped::NotIp),
        None => Err(Skipped::Malformed),
    }
}

/// What a flow is known by, from the sender's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ends {
    pub(crate) protocol: u8,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Port, or identifier of an echo; 0 where there is none, fragments included.
    pub(crate) source_port: u16,
    /// Port, or type of an ICMP message.
    pub(crate) destination_port: u16,
}

/// An IP packet as far as it is looked at here; the firewall looks closer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) ends: Ends,
    /// Offset of the layer above IP, if all of its first eight bytes are there.
    pub(crate) upper: Option<usize>,
    /// Length in bytes that its header says; that of what is there if the header says nothing.
    pub(crate) total_len: usize,
}

/// Reads a packet that begins with its IP header.
pub(crate) fn look(packet: &[u8]) -> Option<Seen> {
    let (source, destination, protocol, at, is_fragment) = match first_byte(packet).ok()? >> 4 {
        4 => {
            let address = |at: usize| {
                address::<4>(packet, at).map(|octets| IpAddr::from(Ipv4Addr::from(octets)))
            };
            let header_len = usize::from(packet.first()? & 0xf).checked_mul(4)?;
            let is_fragment = word(packet, 6)? & 0x3fff != 0;
            (address(12)?, address(16)?, *packet.get(9)?, header_len.max(20), is_fragment)
        }
        _ => {
            let address = |at: usize| {
                address::<16>(packet, at).map(|octets| IpAddr::from(Ipv6Addr::from(octets)))
            };
            let (protocol, at, is_fragment) = follow(packet)?;
            (address(8)?, address(24)?, protocol, at, is_fragment)
        }
    };
    let upper = (!is_fragment && packet.len() >= at.saturating_add(8)).then_some(at);
    let word =
        |offset: usize| upper.and_then(|at| word(packet, at.checked_add(offset)?)).unwrap_or(0);
    let (source_port, destination_port) = match protocol {
        TCP | UDP => (word(0), word(2)),
        ICMP | ICMPV6 => (word(4), word(0) >> 8),
        _ => (0, 0),
    };
    let ends = Ends { protocol, source, destination, source_port, destination_port };
    let (said, header_len) = match source {
        IpAddr::V4(_) => (self::word(packet, 2)?, 0),
        IpAddr::V6(_) => (self::word(packet, 4)?, 40),
    };
    let total_len = match said {
        0 => packet.len(),
        said => usize::from(said).saturating_add(header_len),
    };
    Some(Seen { ends, upper, total_len })
}

/// Protocol and offset of the layer above IPv6, and whether it is a fragment.
fn follow(packet: &[u8]) -> Option<(u8, usize, bool)> {
    let (mut next, mut at, mut is_fragment) = (*packet.get(6)?, 40_usize, false);
    for _ in 0..MAX_EXTENSIONS {
        let units = usize::from(*packet.get(at.checked_add(1)?).unwrap_or(&0));
        let length = match next {
            0 | 43 | 60 => units.saturating_add(1).saturating_mul(8),
            44 => {
                is_fragment = true;
                8
            }
            51 => units.saturating_add(2).saturating_mul(4),
            _ => break,
        };
        let Some(number) = packet.get(at) else { break };
        (next, at) = (*number, at.saturating_add(length));
    }
    Some((next, at, is_fragment))
}

impl Ends {
    /// The flow of which this is an answer, seen from its client.
    pub(crate) fn asked(&self) -> Self {
        let asked = Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        };
        match (self.protocol, self.destination_port) {
            (ICMP, answer @ (0 | 14 | 16 | 18)) => {
                let query = if answer == 0 { 8 } else { answer.saturating_sub(1) };
                Self { source_port: self.source_port, destination_port: query, ..asked }
            }
            (ICMPV6, 129) => Self { source_port: self.source_port, destination_port: 128, ..asked },
            _ => asked,
        }
    }

    /// For people: `tcp 10.137.0.5:40000 > 1.2.3.4:443`.
    pub(crate) fn text(&self) -> String {
        let Self { source, destination, source_port, destination_port, .. } = *self;
        match self.protocol {
            TCP | UDP => format!(
                "{} {} > {}",
                self.name(),
                std::net::SocketAddr::new(source, source_port),
                std::net::SocketAddr::new(destination, destination_port)
            ),
            ICMP | ICMPV6 => format!("icmp {source} > {destination} type {destination_port}"),
            _ => format!("{} {source} > {destination}", self.name()),
        }
    }

    /// Name or number of the protocol.
    pub(crate) fn name(&self) -> String {
        match self.protocol {
            TCP => "tcp".to_owned(),
            UDP => "udp".to_owned(),
            ICMP | ICMPV6 => "icmp".to_owned(),
            number => number.to_string(),
        }
    }

    /// Whether its ports are ports.
    pub(crate) fn has_ports(&self) -> bool {
        matches!(self.protocol, TCP | UDP)
    }

    /// Whether it is ICMP of either family.
    pub(crate) fn is_icmp(&self) -> bool {
        matches!(self.protocol, ICMP | ICMPV6)
    }
}

/// Sends an answer to another receiver: our address and the port that the flow has there, as it comes from the uplink.
/// Checksums are kept as right or as wrong as they were. Nothing where that cannot be done.
pub(crate) fn readdress(packet: &mut [u8], seen: &Seen, to: IpAddr, port: u16) -> Option<()> {
    let at = seen.upper?;
    let (field, octets) = match to {
        IpAddr::V4(v4) => (16, v4.octets().to_vec()),
        IpAddr::V6(v6) => (24, v6.octets().to_vec()),
    };
    let (port_at, sum_at, has_pseudo) = match seen.ends.protocol {
        TCP => (2, 16, true),
        UDP => (2, 6, true),
        ICMP => (4, 2, false),
        ICMPV6 => (4, 2, true),
        _ => return put(packet, field, &octets, None).and_then(|()| finish(packet, to)),
    };
    let sum_at = at.checked_add(sum_at)?;
    packet.get(sum_at..sum_at.checked_add(2)?)?;
    // No checksum at all stays none.
    let has_sum = seen.ends.protocol != UDP || word(packet, sum_at)? != 0;
    put(packet, field, &octets, Some(sum_at).filter(|_| has_pseudo && has_sum))?;
    put(packet, at.checked_add(port_at)?, &port.to_be_bytes(), Some(sum_at).filter(|_| has_sum))?;
    finish(packet, to)
}

/// Writes over bytes; the checksum at `sum_at` goes along (RFC 1624, equation 3).
fn put(packet: &mut [u8], at: usize, bytes: &[u8], sum_at: Option<usize>) -> Option<()> {
    let place = packet.get_mut(at..at.checked_add(bytes.len())?)?;
    let words = |bytes: &[u8]| -> Vec<u16> {
        bytes
            .chunks_exact(2)
            .filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?)))
            .collect()
    };
    let (old, new) = (words(place), words(bytes));
    place.copy_from_slice(bytes);
    let Some(sum_at) = sum_at else { return Some(()) };
    let mut sum = u32::from(!word(packet, sum_at)?);
    for (old, new) in old.into_iter().zip(new) {
        sum = sum.saturating_add(u32::from(!old)).saturating_add(u32::from(new));
    }
    let sum = !fold(sum);
    packet.get_mut(sum_at..sum_at.checked_add(2)?)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// The checksum of an IPv4 header, after its addresses have changed.
fn finish(packet: &mut [u8], family_of: IpAddr) -> Option<()> {
    if family_of.is_ipv6() {
        return Some(());
    }
    let header_len = usize::from(packet.first()? & 0xf).checked_mul(4)?;
    packet.get_mut(10..12)?.fill(0);
    let sum = !sum(packet.get(..header_len)?);
    packet.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// RFC 1071, section 2.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let byte = |at: usize| u32::from(pair.get(at).copied().unwrap_or(0));
        byte(0) << 8 | byte(1)
    });
    fold(words.fold(0, u32::saturating_add))
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff).saturating_add(sum >> 16);
    }
    u16::try_from(sum).unwrap_or(u16::MAX)
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

fn address<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
