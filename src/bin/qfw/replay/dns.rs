//! The resolver behind the firewall of a replay: it answers the firewall's questions about names in rules.

use std::net::IpAddr;

use super::packet::sum;
use crate::engine::KnownNames;

const UDP: u8 = 17;
const PORT: u16 = 53;
const A: u16 = 1;
const AAAA: u16 = 28;
/// A standard answer, recursion available.
const ANSWER: u16 = 0x8180;
const NO_SUCH_NAME: u16 = 3;
/// As long as an address can count.
const TTL_S: u32 = 86_400;
/// More of one name are not kept anyway.
const MAX_ADDRESSES: usize = 64;

/// The answer to an IP packet with a question, as an IP packet; nothing for other packets, and for names that cannot be
/// resolved.
pub(crate) fn answer(packet: &[u8], names: &KnownNames) -> Option<Vec<u8>> {
    let seen = super::packet::look(packet)?;
    if seen.ends.protocol != UDP || seen.ends.destination_port != PORT {
        return None;
    }
    let message = packet.get(seen.upper?.checked_add(8)?..)?;
    let reply = reply(message, names)?;
    let asker = (seen.ends.source, seen.ends.source_port);
    Some(datagram((seen.ends.destination, PORT), asker, &reply))
}

fn reply(message: &[u8], names: &KnownNames) -> Option<Vec<u8>> {
    let (name, question) = question(message)?;
    let addresses = names.addresses(&name)?;
    let kind = question.get(question.len().checked_sub(4)?..)?.first_chunk()?;
    let kind = u16::from_be_bytes(*kind);
    let fitting: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(v4), A) => Some(v4.octets().to_vec()),
            (IpAddr::V6(v6), AAAA) => Some(v6.octets().to_vec()),
            _ => None,
        })
        .take(MAX_ADDRESSES)
        .collect();
    let code = if addresses.is_empty() { NO_SUCH_NAME } else { 0 };
    let mut reply = message.get(..2)?.to_vec();
    for number in [ANSWER | code, 1, u16::try_from(fitting.len()).ok()?, 0, 0] {
        reply.extend(number.to_be_bytes());
    }
    reply.extend(question);
    for data in fitting {
        // The name is that of the question.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1]);
        reply.extend(TTL_S.to_be_bytes());
        reply.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        reply.extend(data);
    }
    Some(reply)
}

/// The name in text, and the question as it stands in the message.
fn question(message: &[u8]) -> Option<(String, &[u8])> {
    let start = message.get(12..)?;
    let (mut at, mut labels) = (0_usize, Vec::new());
    loop {
        let length = usize::from(*start.get(at)?);
        at = at.checked_add(1)?;
        if length == 0 {
            break;
        }
        let end = at.checked_add(length)?;
        labels.push(String::from_utf8_lossy(start.get(at..end)?).to_ascii_lowercase());
        at = end;
    }
    Some((labels.join("."), start.get(..at.checked_add(4)?)?))
}

fn datagram(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len().saturating_add(8)).unwrap_or(u16::MAX);
    let mut udp = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let mut pseudo = Vec::new();
    let mut packet = match (from.0, to.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            pseudo.extend([source.octets(), destination.octets()].concat());
            let mut header = vec![0x45, 0];
            header.extend(length.saturating_add(20).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
            header.extend(&pseudo);
            let checksum = (!sum(&header)).to_be_bytes();
            if let Some(place) = header.get_mut(10..12) {
                place.copy_from_slice(&checksum);
            }
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            pseudo.extend([source.octets(), destination.octets()].concat());
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([UDP, 64]);
            header.extend(&pseudo);
            header
        }
        _ => return Vec::new(),
    };
    pseudo.extend([0, UDP]);
    pseudo.extend(length.to_be_bytes());
    pseudo.extend(&udp);
    let checksum = match !sum(&pseudo) {
        0 => 0xffff,
        checksum => checksum,
    };
    if let Some(place) = udp.get_mut(6..8) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    packet.extend(udp);
    packet
}
