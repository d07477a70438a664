//! Packets to frames, and what came out back to verdicts. A packet carries its number in the batch where every way of
//! coming back keeps it: IPv4 identification or IPv6 flow label, and the sequence number of an echo.

use std::net::IpAddr;

use super::model::{Family, Packet, Plan, SCTP, Side, Upper, Verdict};

/// MAC address of client A, of client B and of our uplink; peers have [`GATEWAY`].
pub(super) const MAC_A: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0a];
pub(super) const MAC_B: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0b];
pub(super) const MAC_UPLINK: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x06];
pub(super) const GATEWAY: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

const ETHERNET_BYTES: usize = 14;
const DONT_FRAGMENT: u8 = 0x40;
/// Of what the firewall makes itself; what is forwarded never has it when it leaves.
const FULL_TTL: u8 = 64;
const SYN_ACK: u8 = 0x12;
const RESET_ACK: u8 = 0x14;
/// Sequence number of a first segment, and of the answer to one.
const SEQUENCE: u32 = 0x1020_3040;
const SEQUENCE_BACK: u32 = 0x7000_0000;
/// GRE and ESP: nobody looks for a checksum in them. Linux expects one that covers everything, as that of an IPv4
/// header does, in protocols that it does not know.
const WITHOUT_CHECKSUM: [u8; 2] = [47, 50];

/// The Ethernet frame of a packet.
pub(super) fn frame(packet: &Packet, number: u16) -> Vec<u8> {
    let (protocol, l4) = upper(packet, number);
    frame_with(packet, number, protocol, &l4)
}

/// The Ethernet frame of a packet whose layer above IP is `l4`.
pub(super) fn frame_with(packet: &Packet, number: u16, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let (to, from) = match packet.side {
        Side::A => (GATEWAY, MAC_A),
        Side::B => (GATEWAY, MAC_B),
        Side::Uplink => (MAC_UPLINK, GATEWAY),
    };
    let flags = if packet.padding > 0 { DONT_FRAGMENT } else { 0 };
    let mut bytes = [to, from].concat();
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + l4.len() as u16).to_be_bytes());
            header.extend(number.to_be_bytes());
            header.extend([flags, 0, packet.ttl, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let checksum = checksum(&header);
            put(&mut header, 10, checksum);
            bytes.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0x00]);
            bytes.extend(number.to_be_bytes());
            bytes.extend((l4.len() as u16).to_be_bytes());
            bytes.extend([protocol, packet.ttl]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        // The generator never mixes families.
        _ => return Vec::new(),
    }
    bytes.extend(l4);
    bytes
}

fn upper(packet: &Packet, number: u16) -> (u8, Vec<u8>) {
    let family = Family::of(packet.source);
    let padding = vec![0; packet.padding.into()];
    let (protocol, l4, checksum_at) = match &packet.upper {
        Upper::Tcp { from, to, flags } => (6, tcp(*from, *to, *flags), Some(16)),
        Upper::Udp { from, to } => {
            let mut l4 = [from.to_be_bytes(), to.to_be_bytes()].concat();
            l4.extend((12 + packet.padding).to_be_bytes());
            l4.extend([0, 0]);
            l4.extend(b"test");
            (17, l4, Some(6))
        }
        Upper::Icmp { kind, code, id } => {
            let mut l4 = vec![*kind, *code, 0, 0];
            l4.extend(id.to_be_bytes());
            l4.extend(number.to_be_bytes());
            l4.extend([0; 12]);
            (family.icmp(), l4, Some(2))
        }
        Upper::Error { kind, code, mtu, about } => {
            let mut l4 = vec![*kind, *code, 0, 0, 0, 0];
            l4.extend(mtu.to_be_bytes());
            l4.extend(frame(about, 0).get(ETHERNET_BYTES..).unwrap_or_default());
            (family.icmp(), l4, Some(2))
        }
        Upper::Other { protocol: SCTP } => (SCTP, sctp(), None),
        Upper::Other { protocol } => {
            let l4 = vec![0x20, 0, 0x88, 0xbe, 0, 0, 0, 1, 9, 9, 0, 0];
            (*protocol, l4, (!WITHOUT_CHECKSUM.contains(protocol)).then_some(10))
        }
    };
    let mut l4 = [l4, padding].concat();
    if let Some(at) = checksum_at {
        let checksum = transport_checksum(packet, protocol, &l4);
        put(&mut l4, at, if checksum == 0 && protocol == 17 { 0xffff } else { checksum });
    }
    (protocol, l4)
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let is_back = flags & SYN_ACK == SYN_ACK || flags == RESET_ACK;
    let numbers = match is_back {
        true => [SEQUENCE_BACK, SEQUENCE + 1],
        false => [SEQUENCE, 0x5060_7001],
    };
    let mut l4 = [from.to_be_bytes(), to.to_be_bytes()].concat();
    l4.extend(numbers.map(u32::to_be_bytes).concat());
    l4.extend([0x50, flags, 0x20, 0x00, 0, 0, 0, 0]);
    l4
}

/// An INIT chunk (RFC 9260, 3.3.2), behind the CRC32c that covers everything.
fn sctp() -> Vec<u8> {
    let mut l4 = [5000_u16.to_be_bytes(), 6000_u16.to_be_bytes()].concat();
    l4.extend([0; 8]);
    l4.extend([1, 0, 0, 20, 0x11, 0x22, 0x33, 0x44, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let crc = l4.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    });
    if let Some(place) = l4.get_mut(8..12) {
        place.copy_from_slice(&(!crc).to_le_bytes());
    }
    l4
}

/// The checksum over a message, and over the pseudo header where the protocol has one; those that nobody knows have one
/// with IPv6, as Linux checks them.
pub(super) fn transport_checksum(packet: &Packet, protocol: u8, l4: &[u8]) -> u16 {
    let pseudo = match (packet.source, packet.destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) if matches!(protocol, 6 | 17) => {
            [a.octets(), b.octets()].concat()
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
        _ => Vec::new(),
    };
    let [high, low] = (l4.len() as u16).to_be_bytes();
    let tail = if pseudo.is_empty() { [0; 4] } else { [0, protocol, high, low] };
    !sum(&[&pseudo, &tail, l4])
}

/// RFC 1071, section 2; every part but the last has an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let word = |pair: &[u8]| {
        let byte = |at| pair.get(at).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([byte(0), byte(1)]))
    };
    let mut sum: u32 = words.map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A frame with options and another fragment word in its IPv4 header, and the checksum to it.
pub(super) fn with_ipv4(frame: &[u8], options: &[u8], fragment: u16) -> Vec<u8> {
    let (head, payload) = frame.split_at_checked(34).unwrap_or_default();
    let mut bytes = [head, options, payload].concat();
    let total = (bytes.len() - ETHERNET_BYTES) as u16;
    put(&mut bytes, 14, u16::from_be_bytes([0x45 + (options.len() / 4) as u8, 0]));
    put(&mut bytes, 16, total);
    put(&mut bytes, 20, fragment);
    put(&mut bytes, 24, 0);
    let checksum = checksum(bytes.get(14..34 + options.len()).unwrap_or_default());
    put(&mut bytes, 24, checksum);
    bytes
}

/// The checksum of an IPv4 header whose checksum field is 0.
fn checksum(header: &[u8]) -> u16 {
    !sum(&[header])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

fn be(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |pair| u16::from_be_bytes(*pair))
}

/// An IP header, as far as it is looked at.
struct Ip<'b> {
    number: u16,
    protocol: u8,
    ttl: u8,
    source: IpAddr,
    destination: IpAddr,
    l4: &'b [u8],
}

fn read(bytes: &[u8]) -> Option<Ip<'_>> {
    let address4 = |at: usize| Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<4>()?));
    let address6 = |at: usize| Some(IpAddr::from(*bytes.get(at..)?.first_chunk::<16>()?));
    match bytes.first()? >> 4 {
        4 => Some(Ip {
            number: be(bytes, 4),
            protocol: *bytes.get(9)?,
            ttl: *bytes.get(8)?,
            source: address4(12)?,
            destination: address4(16)?,
            l4: bytes.get(20..)?,
        }),
        6 => Some(Ip {
            number: be(bytes, 2),
            protocol: *bytes.get(6)?,
            ttl: *bytes.get(7)?,
            source: address6(8)?,
            destination: address6(24)?,
            l4: bytes.get(40..)?,
        }),
        _ => None,
    }
}

/// Addresses and ports of a UDP datagram.
pub(super) struct Endpoints {
    pub(super) source: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination: IpAddr,
    pub(super) destination_port: u16,
}

/// The ends of a frame that is a UDP datagram.
pub(super) fn endpoints(frame: &[u8]) -> Option<Endpoints> {
    let ip = read(frame.get(ETHERNET_BYTES..)?).filter(|ip| ip.protocol == 17)?;
    Some(Endpoints {
        source: ip.source,
        source_port: be(ip.l4, 0),
        destination: ip.destination,
        destination_port: be(ip.l4, 2),
    })
}

/// Number and verdict of the packet that made the firewall send `frame` through `out`; nothing for other frames.
pub(super) fn observe(frame: &[u8], out: Side, plan: &Plan) -> Option<(u16, Verdict)> {
    if !matches!(frame.get(12..14)?, [0x08, 0x00] | [0x86, 0xdd]) {
        return None;
    }
    let ip = read(frame.get(14..)?)?;
    let (kind, code) = (*ip.l4.first()?, *ip.l4.get(1)?);
    let is_error = match ip.protocol {
        1 => matches!(kind, 3 | 11 | 12),
        58 => kind < 128,
        _ => false,
    };
    if let Some(quoted) = ip.l4.get(8..).filter(|_| is_error).and_then(read) {
        // It is one of its own; those that are passed on have come some way.
        if ip.ttl == FULL_TTL {
            let tells_mtu = matches!((ip.protocol, kind, code), (1, 3, 4) | (58, 2, _));
            let mtu = if tells_mtu { be(ip.l4, 6) } else { 0 };
            return Some((quoted.number, Verdict::Reject { kind, code, mtu }));
        }
        let (destination, port) = (quoted.destination, be(quoted.l4, 0));
        let masqueraded = quoted.source == plan.own;
        let verdict = Verdict::Accept { out, destination, port, ttl: ip.ttl, masqueraded };
        return Some((ip.number, verdict));
    }
    let is_answer = matches!((ip.protocol, kind), (1, 0 | 14) | (58, 129));
    if is_answer && [plan.own, plan.client_gateway].contains(&ip.source) {
        return Some((be(ip.l4, 6), Verdict::Answer));
    }
    let port = if matches!(ip.protocol, 6 | 17) { be(ip.l4, 2) } else { 0 };
    let masqueraded = ip.source == plan.own;
    let verdict =
        Verdict::Accept { out, destination: ip.destination, port, ttl: ip.ttl, masqueraded };
    Some((ip.number, verdict))
}
