//! Frames put together byte by byte, with checksums as RFC 1071 prints them; nothing here uses the code under test.

use std::net::IpAddr;

use firewall::Mac;

/// RFC 1071, section 2.
pub(super) fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The pseudo header of either family.
pub(super) fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let length = length as u32;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [_, _, high, low] = length.to_be_bytes();
            [&src.octets()[..], &dst.octets(), &[0, protocol, high, low]].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            [&src.octets()[..], &dst.octets(), &length.to_be_bytes(), &[0, 0, 0, protocol]].concat()
        }
        _ => Vec::new(),
    }
}

/// Offset of the checksum in the header of a protocol.
pub(super) fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        1 | 58 => Some(2),
        6 => Some(16),
        17 => Some(6),
        _ => None,
    }
}

/// A packet under construction. Both addresses are of one family.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) ttl: u8,
    pub(super) id: u16,
    /// IPv4: flags and fragment offset.
    pub(super) fragment: u16,
    /// IPv4: options, a multiple of 4. IPv6: extension headers, each with its own number in front.
    pub(super) options: Vec<u8>,
    pub(super) protocol: u8,
    pub(super) l4: Vec<u8>,
}

impl Shape {
    /// A datagram that is not fragmented.
    pub(super) fn new(src: IpAddr, dst: IpAddr, protocol: u8, l4: Vec<u8>) -> Self {
        let (ttl, id, fragment, options) = (64, 0x1234, 0x4000, Vec::new());
        Self { src, dst, ttl, id, fragment, options, protocol, l4 }
    }

    pub(super) fn tcp(
        from: (IpAddr, u16),
        to: (IpAddr, u16),
        flags: u8,
        numbers: [u32; 2],
    ) -> Self {
        let mut l4 = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        l4.extend(numbers.map(u32::to_be_bytes).concat());
        l4.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::new(from.0, to.0, 6, l4)
    }

    pub(super) fn udp(from: (IpAddr, u16), to: (IpAddr, u16)) -> Self {
        let mut l4 = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
        l4.extend([0, 8, 0, 0]);
        Self::new(from.0, to.0, 17, l4)
    }

    /// ICMP or ICMPv6, as the addresses are.
    pub(super) fn icmp(
        src: IpAddr,
        dst: IpAddr,
        kind: u8,
        code: u8,
        rest: [u8; 4],
        body: &[u8],
    ) -> Self {
        let l4 = [&[kind, code, 0, 0][..], &rest, body].concat();
        Self::new(src, dst, if src.is_ipv4() { 1 } else { 58 }, l4)
    }

    /// Bytes after the header; a UDP length is kept right.
    pub(super) fn payload(mut self, bytes: usize) -> Self {
        self.l4.extend((0..bytes).map(|n| n as u8));
        if self.protocol == 17 && self.l4.len() >= 8 {
            let length = (self.l4.len() as u16).to_be_bytes();
            self.l4[4..6].copy_from_slice(&length);
        }
        self
    }

    /// The layer-4 checksum, complete, or only the sum of the pseudo header when `is_blank`.
    pub(super) fn checksummed(mut self, is_blank: bool) -> Self {
        let Some(at) = checksum_at(self.protocol).filter(|at| at + 2 <= self.l4.len()) else {
            return self;
        };
        self.l4[at..at + 2].fill(0);
        let pseudo = match self.protocol {
            1 => Vec::new(),
            protocol => pseudo(self.src, self.dst, protocol, self.l4.len()),
        };
        let field = match (is_blank, !sum(&[&pseudo, &self.l4])) {
            (true, _) => sum(&[&pseudo]),
            (false, 0) if self.protocol == 17 => 0xffff,
            (false, checksum) => checksum,
        };
        self.l4[at..at + 2].copy_from_slice(&field.to_be_bytes());
        self
    }

    /// From the IP header on.
    pub(super) fn packet(&self) -> Vec<u8> {
        let mut bytes = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header_len = 20 + self.options.len();
                let mut ip = vec![0x40 | (header_len / 4) as u8 & 0xf, 0];
                ip.extend(((header_len + self.l4.len()) as u16).to_be_bytes());
                ip.extend(self.id.to_be_bytes());
                ip.extend(self.fragment.to_be_bytes());
                ip.extend([self.ttl, self.protocol, 0, 0]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(&self.options);
                repair_header(&mut ip);
                ip
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (first, chain) = match self.options.split_first() {
                    Some((first, chain)) => (*first, chain),
                    None => (self.protocol, &[][..]),
                };
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend(((chain.len() + self.l4.len()) as u16).to_be_bytes());
                ip.extend([first, self.ttl]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(chain);
                ip
            }
            _ => Vec::new(),
        };
        bytes.extend(&self.l4);
        bytes
    }

    pub(super) fn frame(&self, to: Mac, from: Mac) -> Vec<u8> {
        let ether_type = if self.src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        [&to.0[..], &from.0, &ether_type, &self.packet()].concat()
    }
}

/// Writes the IPv4 header checksum, where there is a header.
pub(super) fn repair_header(ip: &mut [u8]) {
    let header_len = ip.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    if ip.len() < 20 || header_len < 20 || header_len > ip.len() {
        return;
    }
    ip[10..12].fill(0);
    let checksum = !sum(&[&ip[..header_len]]);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// ARP for IPv4 over Ethernet.
pub(super) fn arp(
    operation: u8,
    link_to: Mac,
    sender: (Mac, [u8; 4]),
    target: (Mac, [u8; 4]),
) -> Vec<u8> {
    let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation];
    let mut bytes = [&link_to.0[..], &sender.0.0, &head].concat();
    for (mac, ip) in [sender, target] {
        bytes.extend(mac.0);
        bytes.extend(ip);
    }
    bytes
}
