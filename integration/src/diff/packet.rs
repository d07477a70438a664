//! Packets to frames, and what came out back to verdicts. A packet carries its number in the batch where every way of
//! coming back keeps it: IPv4 identification or IPv6 flow label, and the sequence number of an echo.

use std::net::IpAddr;

use super::model::{Packet, Plan, Side, Upper, Verdict};

/// MAC address of client A, of client B and of our uplink; peers have [`GATEWAY`].
pub(super) const MAC_A: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0a];
pub(super) const MAC_B: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0b];
pub(super) const MAC_UPLINK: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x06];
pub(super) const GATEWAY: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

/// The Ethernet frame of a packet.
pub(super) fn frame(packet: &Packet, number: u16) -> Vec<u8> {
    let (to, from) = match packet.side {
        Side::A => (GATEWAY, MAC_A),
        Side::B => (GATEWAY, MAC_B),
        Side::Uplink => (MAC_UPLINK, GATEWAY),
    };
    let (protocol, l4) = upper(packet, number);
    let mut bytes = [to, from].concat();
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + l4.len() as u16).to_be_bytes());
            header.extend(number.to_be_bytes());
            header.extend([0, 0, packet.ttl, protocol, 0, 0]);
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
    let is_v6 = packet.source.is_ipv6();
    let (protocol, mut l4, checksum_at) = match packet.upper {
        Upper::Tcp { from, to, flags } => {
            let mut l4 = [from.to_be_bytes(), to.to_be_bytes()].concat();
            l4.extend([0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x01]);
            l4.extend([0x50, flags, 0x20, 0x00, 0, 0, 0, 0]);
            (6, l4, Some(16))
        }
        Upper::Udp { from, to } => {
            let mut l4 = [from.to_be_bytes(), to.to_be_bytes()].concat();
            l4.extend([0, 12, 0, 0]);
            l4.extend(b"test");
            (17, l4, Some(6))
        }
        Upper::Icmp { kind, code, id } => {
            let mut l4 = vec![kind, code, 0, 0];
            l4.extend(id.to_be_bytes());
            l4.extend(number.to_be_bytes());
            l4.extend([0; 12]);
            (if is_v6 { 58 } else { 1 }, l4, Some(2))
        }
        Upper::Other { protocol } => {
            (protocol, vec![0x20, 0, 0x88, 0xbe, 0, 0, 0, 1, 9, 9, 9, 9], None)
        }
    };
    if let Some(at) = checksum_at {
        let pseudo = match (packet.source, packet.destination) {
            (IpAddr::V4(_), _) if protocol == 1 => Vec::new(),
            (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
            (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
            _ => Vec::new(),
        };
        let tail = if pseudo.is_empty() {
            [0; 4]
        } else {
            let [high, low] = (l4.len() as u16).to_be_bytes();
            [0, protocol, high, low]
        };
        let checksum = !sum(&[&pseudo, &tail, &l4]);
        put(&mut l4, at, if checksum == 0 && protocol == 17 { 0xffff } else { checksum });
    }
    (protocol, l4)
}

/// RFC 1071, section 2; every part has an even length.
fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words.map(|pair| u32::from(be(pair, 0))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of an IPv4 header whose checksum field is 0.
pub(super) fn checksum(header: &[u8]) -> u16 {
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
        return Some((quoted.number, Verdict::Reject { kind, code }));
    }
    if matches!((ip.protocol, kind), (1, 0) | (58, 129)) {
        return Some((be(ip.l4, 6), Verdict::Answer));
    }
    let port = if matches!(ip.protocol, 6 | 17) { be(ip.l4, 2) } else { 0 };
    let masqueraded = ip.source == plan.own;
    let verdict =
        Verdict::Accept { out, destination: ip.destination, port, ttl: ip.ttl, masqueraded };
    Some((ip.number, verdict))
}
