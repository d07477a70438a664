//! Packets of the modelled clients and of who is beyond the uplink, put together byte by byte. Each carries a mark: who
//! it belongs to, and its number.

use crate::frames::{self, Ends};
use crate::whole::rules::{DNS_PORT, Protocol};

const MAGIC: &[u8; 6] = b"\x9dmark\x07";
pub(crate) const MARK_BYTES: usize = MAGIC.len() + 5;
const ETHERNET: usize = 14;
const L4: usize = 34;
const SYN: u8 = 2;
const TTL: u8 = 64;

/// An owner and a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mark(pub(crate) u8, pub(crate) u32);

impl Mark {
    pub(crate) fn bytes(self) -> Vec<u8> {
        [&MAGIC[..], &[self.0], &self.1.to_be_bytes()].concat()
    }

    /// All marks in some bytes, wherever they are.
    pub(crate) fn all_in(bytes: &[u8]) -> Vec<Self> {
        let mut found = vec![];
        let mut at = 0;
        while let Some(next) = bytes[at..].iter().position(|byte| *byte == MAGIC[0]) {
            at += next;
            if let Some(mark) =
                bytes.get(at..at + MARK_BYTES).filter(|mark| mark.starts_with(MAGIC))
            {
                let number = [mark[7], mark[8], mark[9], mark[10]];
                found.push(Self(mark[6], u32::from_be_bytes(number)));
            }
            at += 1;
        }
        found
    }
}

/// A packet without options, with right checksums.
pub(crate) fn packet(
    protocol: Protocol,
    macs: ([u8; 6], [u8; 6]),
    ends: Ends,
    payload: &[u8],
) -> Vec<u8> {
    match protocol {
        Protocol::Udp => frames::datagram(macs, ends, payload),
        Protocol::Icmp => {
            // The port of the client's end is the identifier, that of the other end the type.
            let (kind, id) = match ends.destination.1 {
                8 => (8, ends.source.1),
                _ => (0, ends.destination.1),
            };
            let [high, low] = id.to_be_bytes();
            let mut message = [&[kind, 0, 0, 0, high, low, 0, 1][..], payload].concat();
            let sum = !frames::sum(&[&message]);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ip(macs, 1, ends, &message)
        }
        Protocol::Tcp => {
            let Some(number) = payload.get(7..11) else { return vec![] };
            let ports = [ends.source.1, ends.destination.1].map(u16::to_be_bytes).concat();
            // The number is the sequence number: a SYN has no payload.
            let rest = [0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0];
            let mut segment = [&ports[..], number, &rest].concat();
            let pseudo = [&ends.source.0[..], &ends.destination.0, &[0, 6, 0, 20]].concat();
            let sum = !frames::sum(&[&pseudo, &segment]);
            segment[16..18].copy_from_slice(&sum.to_be_bytes());
            ip(macs, 6, ends, &segment)
        }
    }
}

fn ip(macs: ([u8; 6], [u8; 6]), protocol: u8, ends: Ends, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, TTL, protocol, 0, 0]);
    header.extend(ends.source.0);
    header.extend(ends.destination.0);
    let sum = !frames::sum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&macs.0[..], &macs.1, &[8, 0], &header, payload].concat()
}

/// What the oracle reads of an IPv4 frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read<'f> {
    pub(crate) protocol: u8,
    /// With ports; for ICMP the type, and the identifier of an echo at the other end.
    pub(crate) ends: Ends,
    /// Behind the header of its protocol; of TCP the whole segment.
    pub(crate) payload: &'f [u8],
    /// From the protocol's header on.
    pub(crate) l4: &'f [u8],
}

/// `None`: not IPv4, or with options or cut off.
pub(crate) fn read(frame: &[u8]) -> Option<Read<'_>> {
    let header = frame.get(ETHERNET..L4)?;
    if frame.get(12..15)? != [8, 0, 0x45] {
        return None;
    }
    let address = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let l4 = frame.get(L4..ETHERNET + len)?;
    let word = |at: usize| Some(u16::from_be_bytes([*l4.get(at)?, *l4.get(at + 1)?]));
    let protocol = header[9];
    let (ports, skip) = match protocol {
        17 => ((word(0)?, word(2)?), 8),
        6 => ((word(0)?, word(2)?), 0),
        1 if l4.first() == Some(&8) => ((word(4)?, 8), 8),
        1 if l4.first() == Some(&0) => ((8, word(4)?), 8),
        1 => ((0, 0), 8),
        _ => ((0, 0), 0),
    };
    let ends = Ends { source: (address(12), ports.0), destination: (address(16), ports.1) };
    Some(Read { protocol, ends, payload: l4.get(skip..)?, l4 })
}

/// The sequence number of a SYN.
pub(crate) fn syn(read: &Read<'_>) -> Option<u32> {
    let is_syn = read.protocol == 6 && read.l4.get(13)? & 0x3f == SYN;
    let number = read.l4.get(4..8).filter(|_| is_syn)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

/// A DNS question for an A record, with a mark in a record that nobody asks for.
pub(crate) fn question(id: u16, name: &str, mark: Mark) -> Vec<u8> {
    let mut message = [id, 0x0100, 1, 0, 0, 1].map(u16::to_be_bytes).concat();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message.extend(text_record(&mark.bytes()));
    message
}

/// A TXT record of the root.
fn text_record(text: &[u8]) -> Vec<u8> {
    let len = text.len() as u8;
    [&[0, 0, 16, 0, 1, 0, 0, 0, 0, 0, len + 1, len][..], text].concat()
}

/// Id, name and the bytes of the question.
pub(crate) fn read_question(message: &[u8]) -> Option<(u16, String, &[u8])> {
    let id = u16::from_be_bytes(message.get(..2)?.try_into().ok()?);
    let (mut at, mut labels) = (12, vec![]);
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        let label = String::from_utf8_lossy(message.get(at..at + len)?);
        labels.push(label.to_lowercase());
        at += len;
    }
    Some((id, labels.join("."), message.get(12..at + 4)?))
}

/// An answer: its code, addresses and their TTL.
pub(crate) fn answer(
    (id, question): (u16, &[u8]),
    code: u16,
    (addresses, ttl): (&[[u8; 4]], u32),
    mark: Option<Mark>,
) -> Vec<u8> {
    let counts = [1, addresses.len() as u16, 0, u16::from(mark.is_some())];
    let mut message = [id, 0x8180 | code].map(u16::to_be_bytes).concat();
    message.extend(counts.map(u16::to_be_bytes).concat());
    message.extend(question);
    for address in addresses {
        message.extend([0xc0, 12, 0, 1, 0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend([0, 4]);
        message.extend(address);
    }
    if let Some(mark) = mark {
        message.extend(text_record(&mark.bytes()));
    }
    message
}

/// What comes from a resolver.
pub(crate) fn from_resolver(
    resolver: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    message: &[u8],
) -> Vec<u8> {
    let ends = Ends { source: resolver, destination };
    frames::datagram((frames::UPLINK_MAC, frames::GATEWAY_MAC), ends, message)
}

/// Whether a datagram goes to a resolver.
pub(crate) fn is_dns(read: &Read<'_>) -> bool {
    read.protocol == 17
        && read.ends.destination.1 == DNS_PORT
        && super::rules::RESOLVERS.contains(&read.ends.destination.0)
}

/// Whether a frame is a question of the appliance itself.
pub(crate) fn is_question(frame: &[u8]) -> bool {
    read(frame).is_some_and(|read| is_dns(&read)) && Mark::all_in(frame).is_empty()
}
