//! Packets, put together byte by byte, with checksums as RFC 1071 prints them: nothing here uses the code under test.

use core::net::Ipv4Addr;

use super::*;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// RFC 1071, section 2.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = [src.octets(), dst.octets()].concat();
    bytes.extend([0, protocol]);
    bytes.extend((length as u16).to_be_bytes());
    bytes
}

/// An IPv4 packet under construction.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) link: (Mac, Mac),
    pub(crate) ether_type: u16,
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    /// Flags and fragment offset.
    pub(crate) fragment: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) protocol: u8,
    pub(crate) l4: Vec<u8>,
    pub(crate) offload: Offload,
}

impl Build {
    pub(crate) fn raw(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, l4: Vec<u8>) -> Self {
        Self {
            link: (Mac::GATEWAY, MAC_A),
            ether_type: 0x0800,
            src,
            dst,
            ttl: 64,
            id: 0x1234,
            fragment: 0x4000,
            options: vec![],
            protocol,
            l4,
            offload: Offload::default(),
        }
    }

    /// Sequence and acknowledgement numbers and payload can be set with [`Build::numbers`] and [`Build::payload`].
    pub(crate) fn tcp(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), flags: u8) -> Self {
        let mut l4 = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        l4.extend([0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::raw(src.0, dst.0, 6, l4).checksummed(16)
    }

    pub(crate) fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.l4[4..8].copy_from_slice(&sequence.to_be_bytes());
        self.l4[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        self.checksummed(16)
    }

    pub(crate) fn payload(mut self, bytes: usize) -> Self {
        self.l4.extend((0..bytes).map(|n| n as u8));
        let checksum_at = if self.protocol == 6 { 16 } else { 6 };
        if self.protocol == 17 {
            let length = (self.l4.len() as u16).to_be_bytes();
            self.l4[4..6].copy_from_slice(&length);
        }
        self.checksummed(checksum_at)
    }

    pub(crate) fn udp(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Self {
        let mut l4 = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        l4.extend([0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o']);
        Self::raw(src.0, dst.0, 17, l4).checksummed(6)
    }

    /// Eight header bytes, checksum filled in, and a body.
    pub(crate) fn icmp(
        src: Ipv4Addr,
        dst: Ipv4Addr,
        kind: u8,
        code: u8,
        rest: [u8; 4],
        body: &[u8],
    ) -> Self {
        let mut l4 = vec![kind, code, 0, 0];
        l4.extend(rest);
        l4.extend(body);
        let checksum = !sum(&[&l4]);
        l4[2..4].copy_from_slice(&checksum.to_be_bytes());
        Self::raw(src, dst, 1, l4)
    }

    pub(crate) fn query(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        Self::icmp(src, dst, kind, 0, [high, low, 0, 1], b"ping")
    }

    /// An error about `about`, quoting as many bytes of it as there are, at most 548.
    pub(crate) fn error(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, code: u8, about: &[u8]) -> Self {
        Self::icmp(src, dst, kind, code, [0; 4], &about[..about.len().min(548)])
    }

    /// Addressed to us on the uplink.
    pub(crate) fn up(mut self) -> Self {
        self.link = (MAC_UP, Mac::GATEWAY);
        self
    }

    pub(crate) fn blank(mut self) -> Self {
        let at = if self.protocol == 6 { 16 } else { 6 };
        let partial = sum(&[&pseudo(self.src, self.dst, self.protocol, self.l4.len())]);
        self.l4[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        self.offload.checksum = Checksum::Blank;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn checksummed(mut self, at: usize) -> Self {
        self.l4[at..at + 2].fill(0);
        let checksum = !sum(&[&pseudo(self.src, self.dst, self.protocol, self.l4.len()), &self.l4]);
        let field = if self.protocol == 17 && checksum == 0 { 0xffff } else { checksum };
        self.l4[at..at + 2].copy_from_slice(&field.to_be_bytes());
        self
    }

    /// From the IP header on.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut ip = vec![0x40 | (header_len / 4) as u8, 0];
        ip.extend(((header_len + self.l4.len()) as u16).to_be_bytes());
        ip.extend(self.id.to_be_bytes());
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, self.protocol, 0, 0]);
        ip.extend(self.src.octets());
        ip.extend(self.dst.octets());
        ip.extend(&self.options);
        let checksum = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        [ip, self.l4.clone()].concat()
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let ether_type = self.ether_type.to_be_bytes();
        [&self.link.0.0[..], &self.link.1.0, &ether_type, &self.packet()].concat()
    }
}

/// ARP for IPv4 over Ethernet.
pub(crate) fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let link_to = if operation == 1 { Mac::BROADCAST } else { target.0 };
    let mut bytes =
        [&link_to.0[..], &sender.0.0, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    for (mac, ip) in [sender, target] {
        bytes.extend(mac.0);
        bytes.extend(ip.octets());
    }
    bytes
}

/// What came out.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) fate: Fate,
    pub(crate) bytes: Vec<u8>,
    pub(crate) offload: Offload,
}

impl Out {
    pub(crate) fn src(&self) -> Ipv4Addr {
        <[u8; 4]>::try_from(&self.bytes[26..30]).unwrap().into()
    }

    pub(crate) fn dst(&self) -> Ipv4Addr {
        <[u8; 4]>::try_from(&self.bytes[30..34]).unwrap().into()
    }

    pub(crate) fn packet(&self) -> &[u8] {
        &self.bytes[14..]
    }

    pub(crate) fn l4(&self) -> &[u8] {
        let ip = self.packet();
        match ip[0] >> 4 {
            4 => &ip[usize::from(ip[0] & 0xf) * 4..],
            _ => &ip[v6::upper6(ip).1..],
        }
    }

    pub(crate) fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.l4()[at], self.l4()[at + 1]])
    }

    pub(crate) fn sport(&self) -> u16 {
        self.word(0)
    }

    pub(crate) fn dport(&self) -> u16 {
        self.word(2)
    }

    /// Identifier of an ICMP query or reply.
    pub(crate) fn icmp_id(&self) -> u16 {
        self.word(4)
    }

    /// Type and code, if it is ICMP.
    pub(crate) fn icmp(&self) -> Option<(u8, u8)> {
        let ip = self.packet();
        let is_icmp = if ip[0] >> 4 == 4 { ip[9] == 1 } else { v6::upper6(ip).0 == 58 };
        is_icmp.then(|| (self.l4()[0], self.l4()[1]))
    }

    #[track_caller]
    pub(crate) fn assert_sent(&self, port: PortId) -> &Self {
        assert_eq!(self.fate, Fate::Send(port));
        self.assert_sums()
    }

    #[track_caller]
    pub(crate) fn assert_dropped(&self, reason: DropReason) -> &Self {
        assert_eq!(self.fate, Fate::Drop(reason));
        self
    }

    /// An ICMP error to a client.
    #[track_caller]
    pub(crate) fn assert_refused(&self, id: ClientId, kind: u8, code: u8) -> &Self {
        self.assert_sent(PortId::Client(id));
        assert_eq!(self.icmp(), Some((kind, code)));
        self
    }

    /// Every checksum is right for its state, and the length fits the frame.
    #[track_caller]
    pub(crate) fn assert_sums(&self) -> &Self {
        let ip = self.packet();
        if ip[0] >> 4 == 6 {
            return self.assert_sums6();
        }
        let header_len = usize::from(ip[0] & 0xf) * 4;
        assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len(), "total length");
        assert_eq!(sum(&[&ip[..header_len]]), 0xffff, "IPv4 checksum");
        let (l4, protocol) = (self.l4(), ip[9]);
        let pseudo = pseudo(self.src(), self.dst(), protocol, l4.len());
        let at = match protocol {
            1 => {
                assert_eq!(sum(&[l4]), 0xffff, "ICMP checksum");
                return self;
            }
            6 => 16,
            17 => 6,
            _ => return self,
        };
        if self.offload.checksum == Checksum::Blank {
            assert_eq!(self.word(at), sum(&[&pseudo]), "partial checksum");
        } else if protocol != 17 || self.word(at) != 0 {
            assert_eq!(sum(&[&pseudo, l4]), 0xffff, "checksum");
        }
        self
    }
}
