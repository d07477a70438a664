//! Frames, put together byte by byte.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use firewall::ClientId;

use crate::shapes::Target;

pub(crate) const UPLINK_MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x06];
pub(crate) const GATEWAY: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];

/// Sequence number of a client's SYN.
pub(crate) const ISN: u32 = 0x1000_2000;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// A TCP segment without payload.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// Addresses and ports of sender and receiver.
    pub(crate) ends: (SocketAddr, SocketAddr),
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
}

impl Segment {
    /// The frame that takes it to `macs.0` from `macs.1`.
    pub(crate) fn frame(&self, macs: ([u8; 6], [u8; 6])) -> Vec<u8> {
        let (from, to) = self.ends;
        let mut l4 = [0; 20];
        put(&mut l4, 0, from.port());
        put(&mut l4, 2, to.port());
        put(&mut l4, 4, (self.sequence >> 16) as u16);
        put(&mut l4, 6, self.sequence as u16);
        put(&mut l4, 8, (self.acknowledgement >> 16) as u16);
        put(&mut l4, 10, self.acknowledgement as u16);
        put(&mut l4, 12, 0x5000 | u16::from(self.flags));
        put(&mut l4, 14, 0xffff);
        let sum = checksum(pseudo_header(from.ip(), to.ip(), 6, l4.len()), &l4);
        put(&mut l4, 16, sum);
        frame(macs, (from.ip(), to.ip()), 6, &l4)
    }
}

/// A client's card: each has its own.
pub(crate) fn mac_of(client: ClientId) -> [u8; 6] {
    let [high, low] = client.0.wrapping_add(10).to_be_bytes();
    [0x00, 0x16, 0x3e, 0x5e, 0x6c ^ high, low]
}

/// An empty UDP datagram.
pub(crate) fn datagram((from, to): (SocketAddr, SocketAddr), macs: ([u8; 6], [u8; 6])) -> Vec<u8> {
    let mut l4 = [0; UDP];
    put(&mut l4, 0, from.port());
    put(&mut l4, 2, to.port());
    put(&mut l4, 4, UDP as u16);
    let sum = checksum(pseudo_header(from.ip(), to.ip(), 17, l4.len()), &l4);
    put(&mut l4, 6, sum);
    frame(macs, (from.ip(), to.ip()), 17, &l4)
}

/// A client's SYN, or its echo request.
pub(crate) fn first(client: ClientId, source: IpAddr, number: u16, target: Target) -> Vec<u8> {
    let macs = (GATEWAY, mac_of(client));
    if let Some(port) = target.port {
        let ends = (SocketAddr::new(source, number), SocketAddr::new(target.address, port));
        return Segment { ends, flags: SYN, sequence: ISN, acknowledgement: 0 }.frame(macs);
    }
    let mut l4 = vec![8, 0, 0, 0];
    l4.extend(number.to_be_bytes());
    l4.extend([0, 1]);
    let sum = checksum(0, &l4);
    put(&mut l4, 2, sum);
    frame(macs, (source, target.address), 1, &l4)
}

/// Source port of a TCP frame.
pub(crate) fn source_port(frame: &[u8]) -> Option<u16> {
    let header = if frame.get(12..14)? == [0x86, 0xdd] { 40 } else { IPV4 };
    let at = ETHERNET + header;
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

/// The answer of a DNS server to the question in a frame, if it is one: `address_of` knows all names.
pub(crate) fn answer(
    question: &[u8],
    address_of: impl FnOnce(&str) -> Option<Ipv4Addr>,
) -> Option<Vec<u8>> {
    let ip = question.get(ETHERNET..)?;
    let udp = ip.get(IPV4..)?;
    if question.get(12..14)? != [8, 0] || ip.get(9)? != &17 || udp.get(2..4)? != [0, 53] {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        Some(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?.into())
    };
    let message = udp.get(UDP..)?;
    let mut reply = message.get(..2)?.to_vec();
    let known = address_of(&first_label(message.get(12..)?)?)?;
    reply.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    reply.extend(message.get(12..)?);
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4]);
    reply.extend(known.octets());
    let mut l4 = [&[0, 53], udp.get(..2)?].concat();
    // Without a checksum, as IPv4 allows.
    l4.extend([((UDP + reply.len()) as u16).to_be_bytes(), [0; 2]].concat());
    l4.extend(reply);
    Some(frame((UPLINK_MAC, GATEWAY), (address(16)?, address(12)?), 17, &l4))
}

/// The resolver draws the case of each letter.
fn first_label(name: &[u8]) -> Option<String> {
    let length = usize::from(*name.first()?);
    Some(String::from_utf8_lossy(name.get(1..=length)?).to_ascii_lowercase())
}

fn frame(
    (to, from): ([u8; 6], [u8; 6]),
    ends: (IpAddr, IpAddr),
    protocol: u8,
    l4: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ETHERNET + IPV6 + l4.len());
    bytes.extend_from_slice(&to);
    bytes.extend_from_slice(&from);
    match ends {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
            bytes.extend_from_slice(&((IPV4 + l4.len()) as u16).to_be_bytes());
            bytes.extend_from_slice(&[0, 1, 0x40, 0, 64, protocol, 0, 0]);
            bytes.extend_from_slice(&source.octets());
            bytes.extend_from_slice(&destination.octets());
            let sum = checksum(0, bytes.get(ETHERNET..).unwrap_or_default());
            put(&mut bytes, ETHERNET + 10, sum);
        }
        (source, destination) => {
            bytes.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend_from_slice(&(l4.len() as u16).to_be_bytes());
            bytes.extend_from_slice(&[protocol, 64]);
            for address in [source, destination] {
                match address {
                    IpAddr::V4(v4) => bytes.extend_from_slice(&v4.octets()),
                    IpAddr::V6(v6) => bytes.extend_from_slice(&v6.octets()),
                }
            }
        }
    }
    bytes.extend_from_slice(l4);
    bytes
}

/// The sum of the pseudo header's words.
fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u32 {
    let words = |address| match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    words(source) + words(destination) + u32::from(protocol) + length as u32
}

/// RFC 1071, section 2: of `bytes`, and of words that were summed before.
fn checksum(before: u32, bytes: &[u8]) -> u16 {
    let mut sum = before + sum(bytes);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn sum(bytes: &[u8]) -> u32 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let last = last.first().map_or(0, |byte| u32::from(*byte) << 8);
    pairs.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum::<u32>() + last
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
