//! IPv6 packets for tests, put together as in the parent module: nothing here uses the code under test.

use core::net::{IpAddr, Ipv6Addr};

use rules::{CompiledSet, Family, RuleSet};

use super::*;

const fn client(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0x0a89, last)
}

pub(crate) const A6: Ipv6Addr = client(10);
pub(crate) const B6: Ipv6Addr = client(11);
/// In `/connected-ips6`, never attached.
pub(crate) const ABSENT6: Ipv6Addr = client(12);
pub(crate) const OWN6: Ipv6Addr = client(6);
pub(crate) const NETVM6: Ipv6Addr = client(5);
pub(crate) const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
pub(crate) const OTHER_SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9);
pub(crate) const CLIENT_DNS6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x53);
pub(crate) const OWN_DNS6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x53, 0, 0, 0, 0, 1);

pub(crate) fn network6() -> NetworkConfig {
    let v6 = FamilyConfig {
        address: Some(OWN6),
        gateway: Some(NETVM6),
        client_gateway: Some(OWN6),
        dns: vec![OWN_DNS6],
        client_dns: vec![CLIENT_DNS6],
    };
    let connected6 = [A6, B6, ABSENT6].map(IpAddr::V6);
    let mut network = NetworkConfig { v6, ..network() };
    network.connected.extend(connected6);
    network
}

pub(crate) fn rules6(lines: &[&str]) -> RulesState {
    let keys: Vec<String> = (0..lines.len()).map(|n| format!("{n:04}")).collect();
    let lines = keys.iter().zip(lines).map(|(key, line)| (key.as_bytes(), line.as_bytes()));
    let entries = [(&b"policy"[..], &b"drop"[..])].into_iter().chain(lines);
    let set = RuleSet::parse(Family::V6, entries).unwrap();
    RulesState::Active(CompiledSet::new(set).unwrap())
}

pub(crate) fn pseudo6(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = [src.octets(), dst.octets()].concat();
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// An IPv6 packet under construction.
#[derive(Clone, Debug)]
pub(crate) struct Build6 {
    pub(crate) link: (Mac, Mac),
    pub(crate) src: Ipv6Addr,
    pub(crate) dst: Ipv6Addr,
    pub(crate) hop_limit: u8,
    /// Extension headers: number and content; the first byte of each is filled in.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) protocol: u8,
    pub(crate) l4: Vec<u8>,
    pub(crate) offload: Offload,
}

impl Build6 {
    pub(crate) fn raw(src: Ipv6Addr, dst: Ipv6Addr, protocol: u8, l4: Vec<u8>) -> Self {
        let link = (Mac::GATEWAY, MAC_A);
        let offload = Offload::default();
        Self { link, src, dst, hop_limit: 64, extensions: vec![], protocol, l4, offload }
    }

    pub(crate) fn tcp(src: (Ipv6Addr, u16), dst: (Ipv6Addr, u16), flags: u8) -> Self {
        let mut l4 = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        l4.extend([0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::raw(src.0, dst.0, 6, l4).checksummed()
    }

    pub(crate) fn numbers(mut self, sequence: u32, acknowledgement: u32) -> Self {
        self.l4[4..8].copy_from_slice(&sequence.to_be_bytes());
        self.l4[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        self.checksummed()
    }

    pub(crate) fn payload(mut self, bytes: usize) -> Self {
        self.l4.extend((0..bytes).map(|n| n as u8));
        if self.protocol == 17 {
            let length = (self.l4.len() as u16).to_be_bytes();
            self.l4[4..6].copy_from_slice(&length);
        }
        self.checksummed()
    }

    pub(crate) fn udp(src: (Ipv6Addr, u16), dst: (Ipv6Addr, u16)) -> Self {
        let mut l4 = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        l4.extend([0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o']);
        Self::raw(src.0, dst.0, 17, l4).checksummed()
    }

    /// Eight header bytes, checksum filled in, and a body.
    pub(crate) fn icmp(
        (src, dst): (Ipv6Addr, Ipv6Addr),
        (kind, code): (u8, u8),
        rest: [u8; 4],
        body: &[u8],
    ) -> Self {
        let l4 = [&[kind, code, 0, 0], &rest[..], body].concat();
        Self::raw(src, dst, 58, l4).checksummed()
    }

    pub(crate) fn echo(src: Ipv6Addr, dst: Ipv6Addr, kind: u8, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        Self::icmp((src, dst), (kind, 0), [high, low, 0, 1], b"ping")
    }

    /// An error about `about`, quoting as much of it as fits.
    pub(crate) fn error(
        ends: (Ipv6Addr, Ipv6Addr),
        kind: (u8, u8),
        rest: u32,
        about: &[u8],
    ) -> Self {
        Self::icmp(ends, kind, rest.to_be_bytes(), &about[..about.len().min(1232)])
    }

    /// Neighbour discovery: solicitation (135) or advertisement (136) with one option.
    pub(crate) fn nd(
        ends: (Ipv6Addr, Ipv6Addr),
        kind: u8,
        flags: u8,
        target: Ipv6Addr,
        option: (u8, Mac),
    ) -> Self {
        let body = [&target.octets()[..], &[option.0, 1], &option.1.0].concat();
        Self::icmp(ends, (kind, 0), [flags, 0, 0, 0], &body).with(|b| b.hop_limit = 255)
    }

    /// Addressed to us on the uplink.
    pub(crate) fn up(mut self) -> Self {
        self.link = (MAC_UP, Mac::GATEWAY);
        self
    }

    pub(crate) fn by_b(mut self) -> Self {
        self.link.1 = MAC_B;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn extended(mut self, number: u8, content: &[u8]) -> Self {
        self.extensions.push((number, content.to_vec()));
        self
    }

    fn checksum_at(&self) -> usize {
        match self.protocol {
            6 => 16,
            17 => 6,
            _ => 2,
        }
    }

    pub(crate) fn blank(mut self) -> Self {
        let at = self.checksum_at();
        let partial = sum(&[&pseudo6(self.src, self.dst, self.protocol, self.l4.len())]);
        self.l4[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        self.offload.checksum = Checksum::Blank;
        self
    }

    pub(crate) fn checksummed(mut self) -> Self {
        let at = self.checksum_at();
        self.l4[at..at + 2].fill(0);
        let pseudo = pseudo6(self.src, self.dst, self.protocol, self.l4.len());
        let checksum = !sum(&[&pseudo, &self.l4]);
        let field = if self.protocol == 17 && checksum == 0 { 0xffff } else { checksum };
        self.l4[at..at + 2].copy_from_slice(&field.to_be_bytes());
        self
    }

    /// From the IP header on.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut numbers: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).collect();
        numbers.push(self.protocol);
        let mut payload = vec![];
        for ((_, content), next) in self.extensions.iter().zip(&numbers[1..]) {
            let start = payload.len();
            payload.extend(content);
            payload[start] = *next;
        }
        payload.extend(&self.l4);
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend((payload.len() as u16).to_be_bytes());
        ip.extend([numbers[0], self.hop_limit]);
        ip.extend(self.src.octets());
        ip.extend(self.dst.octets());
        [ip, payload].concat()
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        [&self.link.0.0[..], &self.link.1.0, &[0x86, 0xdd], &self.packet()].concat()
    }
}

/// Number and offset of the layer above in an IPv6 packet.
pub(crate) fn upper6(ip: &[u8]) -> (u8, usize) {
    let (mut next, mut at) = (ip[6], 40);
    while [0, 43, 44, 51, 60].contains(&next) {
        let len = match next {
            44 => 8,
            51 => (usize::from(ip[at + 1]) + 2) * 4,
            _ => (usize::from(ip[at + 1]) + 1) * 8,
        };
        next = ip[at];
        at += len;
    }
    (next, at)
}

impl Out {
    pub(crate) fn src6(&self) -> Ipv6Addr {
        <[u8; 16]>::try_from(&self.bytes[22..38]).unwrap().into()
    }

    pub(crate) fn dst6(&self) -> Ipv6Addr {
        <[u8; 16]>::try_from(&self.bytes[38..54]).unwrap().into()
    }

    pub(crate) fn ends6(&self) -> (Ipv6Addr, Ipv6Addr) {
        (self.src6(), self.dst6())
    }

    /// Every checksum is right for its state, and the length fits the frame.
    #[track_caller]
    pub(crate) fn assert_sums6(&self) -> &Self {
        let ip = self.packet();
        assert_eq!(self.bytes[12..14], [0x86, 0xdd]);
        assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])) + 40, ip.len(), "length");
        let ((protocol, _), l4) = (upper6(ip), self.l4());
        let pseudo = pseudo6(self.src6(), self.dst6(), protocol, l4.len());
        let at = match protocol {
            6 => 16,
            17 => 6,
            58 => 2,
            _ => return self,
        };
        if self.offload.checksum == Checksum::Blank {
            assert_eq!(self.word(at), sum(&[&pseudo]), "partial checksum");
        } else {
            assert_eq!(sum(&[&pseudo, l4]), 0xffff, "checksum");
            assert!(protocol != 17 || self.word(at) != 0, "no UDP without a checksum");
        }
        self
    }
}

impl Kit {
    /// Both clients have both families and may do everything.
    pub(crate) fn new6() -> Self {
        Self::with_limits6(LIMITS)
    }

    pub(crate) fn with_limits6(limits: Limits) -> Self {
        let mut kit = Self::with_limits(limits).rules(A, &["action=accept"]);
        kit.set_rules(B, rules(&["action=accept"]));
        kit.fw.set_network(network6()).unwrap();
        for (id, port, ip6) in [(ID_A, vif(10, MAC_A, A), A6), (ID_B, vif(11, MAC_B, B), B6)] {
            kit.fw.detach_client(id);
            kit.fw.attach_client(id, ClientPort { ip6: Some(ip6), ..port }).unwrap();
        }
        kit.rules6(A6, &["action=accept"]).rules6(B6, &["action=accept"])
    }

    pub(crate) fn rules6(mut self, ip: Ipv6Addr, lines: &[&str]) -> Self {
        self.set_rules6(ip, rules6(lines));
        self
    }

    pub(crate) fn set_rules6(&mut self, ip: Ipv6Addr, state: RulesState) -> Generation {
        self.fw.set_rules(self.now, IpAddr::V6(ip), state).unwrap()
    }

    pub(crate) fn send6(&mut self, origin: Origin, build: &Build6) -> Out {
        self.bytes(origin, &build.frame(), build.offload)
    }

    pub(crate) fn a6(&mut self, build: &Build6) -> Out {
        self.send6(FROM_A, build)
    }

    pub(crate) fn b6(&mut self, build: &Build6) -> Out {
        self.send6(FROM_B, &build.clone().by_b())
    }

    pub(crate) fn up6(&mut self, build: Build6) -> Out {
        self.send6(Origin::Uplink, &build.up())
    }

    /// Opens a TCP connection; returns the port on our address. Next numbers: 0x1000_2001 and 0x7001.
    pub(crate) fn connect6(&mut self, from: (Ipv6Addr, u16), to: (Ipv6Addr, u16)) -> u16 {
        let origin = if from.0 == A6 { FROM_A } else { FROM_B };
        let syn = self.send6(origin, &Build6::tcp(from, to, SYN).numbers(0x1000_2000, 0));
        let port = syn.assert_sent(PortId::Uplink).sport();
        let syn_ack = Build6::tcp(to, (OWN6, port), SYN | ACK).numbers(0x7000, 0x1000_2001);
        self.up6(syn_ack).assert_sent(PortId::from(origin));
        let ack = Build6::tcp(from, to, ACK).numbers(0x1000_2001, 0x7001);
        self.send6(origin, &ack).assert_sent(PortId::Uplink);
        port
    }
}
