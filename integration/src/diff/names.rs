//! Answers to the questions that our resolver has about the names in rules (RFC 1035).

use super::model::{Family, HostName, Packet, Side, Upper};
use super::packet;

const ETHERNET_BYTES: usize = 14;
const UDP_BYTES: usize = 8;
const DNS_HEADER_BYTES: usize = 12;
const TTL_S: u32 = 3600;

/// The answer to a frame that is a question; nothing for other frames. Names that nobody knows stay without one.
pub(super) fn answer(frame: &[u8], family: Family) -> Option<Vec<u8>> {
    let asked = packet::endpoints(frame).filter(|asked| asked.destination_port == 53)?;
    let header_bytes = if family == Family::V4 { 20 } else { 40 };
    let message = frame.get(ETHERNET_BYTES + header_bytes + UDP_BYTES..)?;
    let question = message.get(DNS_HEADER_BYTES..)?;
    // The resolver draws the case of each letter, and wants it back.
    let lower = question.to_ascii_lowercase();
    let name = HostName::known().find(|name| lower.starts_with(&wire(*name)))?;
    let question = question.get(..wire(name).len() + 4)?;
    // A question of the other family has no answer.
    let kind = question.get(wire(name).len() + 1).copied()?;
    let addresses = match (family, kind) {
        (Family::V4, 1) | (Family::V6, 28) => name.addresses(family),
        _ => Vec::new(),
    };
    let mut reply = message.get(..2)?.to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    reply.extend(question);
    for address in addresses {
        let octets = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        reply.extend([0xc0, DNS_HEADER_BYTES as u8, 0, kind, 0, 1]);
        reply.extend(TTL_S.to_be_bytes());
        reply.extend((octets.len() as u16).to_be_bytes());
        reply.extend(octets);
    }
    let mut l4 = [53_u16.to_be_bytes(), asked.source_port.to_be_bytes()].concat();
    l4.extend(((UDP_BYTES + reply.len()) as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(reply);
    let upper = Upper::Udp { from: 53, to: asked.source_port };
    let (source, destination) = (asked.destination, asked.source);
    let packet = Packet { side: Side::Uplink, source, destination, ttl: 64, upper, padding: 0 };
    let checksum = packet::transport_checksum(&packet, 17, &l4).to_be_bytes();
    l4.get_mut(6..8)?.copy_from_slice(&checksum);
    Some(packet::frame_with(&packet, 0, 17, &l4))
}

/// A name as DNS writes it.
fn wire(name: HostName) -> Vec<u8> {
    let text = name.text();
    let labels =
        text.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    labels.chain([0]).collect()
}
