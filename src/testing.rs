//! Packets and a small network for tests.
//!
//! Packets are put together byte by byte, with checksums as RFC 1071 prints them: nothing here uses the code under test.

pub(crate) mod v6;

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::sync::LazyLock;

use rules::{CompiledSet, Family, RuleSet};

use crate::config::DebugMode;
use crate::config::features::{Features, Words};
use crate::dns::testing::{self as dns_testing, Asked, Reply};
use crate::stats::PortStats;
use crate::*;

/// Payload words among which one alone makes the checksum of a packet vanish, the field that the packet has with a word of 0:
/// that one, its neighbours, and some from everywhere. (All would take minutes.)
pub(crate) fn words_about(vanishing: u16) -> impl Iterator<Item = u16> {
    let mut words: Vec<u16> =
        (0..=300).map(|near| vanishing.wrapping_sub(150).wrapping_add(near)).collect();
    words.extend((0..=u16::MAX).step_by(251));
    words.sort_unstable();
    words.dedup();
    words.into_iter()
}

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 10);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 11);
/// In `/connected-ips`, never attached.
pub(crate) const ABSENT: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 12);
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 6);
pub(crate) const NETVM: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 5);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(crate) const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Resolvers that clients know, and those that we use.
pub(crate) const CLIENT_DNS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 139, 1, 1), Ipv4Addr::new(10, 139, 1, 2)];
pub(crate) const OWN_DNS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

pub(crate) const ID_A: ClientId = ClientId(0);
pub(crate) const ID_B: ClientId = ClientId(1);
pub(crate) const FROM_A: Origin = Origin::Client(ID_A);
pub(crate) const FROM_B: Origin = Origin::Client(ID_B);
pub(crate) const MAC_A: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0a]);
pub(crate) const MAC_B: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0b]);
pub(crate) const MAC_UP: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x06]);

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// Whether the fast path is to stay closed: `cargo xtask test` sets this where it breaks one of the stages, whose tests have
/// to notice.
pub(crate) fn is_fast_path_closed() -> bool {
    static IS_CLOSED: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("FIREWALL_TESTS_STAGES_ALONE").is_some());
    *IS_CLOSED
}

/// What the fast path does not take is left as it is.
struct OrNothing;

impl crate::fast::Ending for OrNothing {
    type Out = Option<Fate>;

    fn taken(fate: Fate) -> Option<Fate> {
        Some(fate)
    }

    fn not_taken(_: &mut Firewall, _: Instant, _: Origin, _: &mut Frame<'_>) -> Option<Fate> {
        None
    }
}

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

/// A firewall with two clients, an uplink, and a clock.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) fw: Firewall,
    pub(crate) now: Instant,
    page: Vec<u8>,
    /// Frames that took the fast path.
    pub(crate) fast: u32,
    /// Whether the state behind a frame that did not take it is compared, too.
    pub(crate) is_thorough: bool,
}

pub(crate) const CAPS: PortCaps =
    PortCaps { accepts_blank_v4: true, accepts_blank_v6: true, ..PortCaps::PLAIN };
pub(crate) const LIMITS: Limits = Limits {
    clients: 4,
    addresses: 16,
    flows: 64,
    flows_per_client: 32,
    fragment_bytes: 512 << 10,
};

pub(crate) fn vif(domid: u16, mac: Mac, ip: Ipv4Addr) -> ClientPort {
    ClientPort { domid, mac, ip4: Some(ip), ip6: None, caps: CAPS }
}

pub(crate) fn network() -> NetworkConfig {
    let v4 = FamilyConfig {
        address: Some(OWN),
        gateway: Some(NETVM),
        client_gateway: Some(OWN),
        dns: OWN_DNS.to_vec(),
        client_dns: CLIENT_DNS.to_vec(),
    };
    NetworkConfig {
        v4,
        connected: vec![A.into(), B.into(), ABSENT.into()],
        ..NetworkConfig::default()
    }
}

pub(crate) fn rules(lines: &[&str]) -> RulesState {
    let keys: Vec<String> = (0..lines.len()).map(|n| format!("{n:04}")).collect();
    let lines = keys.iter().zip(lines).map(|(key, line)| (key.as_bytes(), line.as_bytes()));
    let entries = [(&b"policy"[..], &b"drop"[..])].into_iter().chain(lines);
    let set = RuleSet::parse(Family::V4, entries).unwrap();
    RulesState::Active(CompiledSet::new(set).unwrap())
}

impl Kit {
    pub(crate) fn with_limits(limits: Limits) -> Self {
        let mut fw = Firewall::new(limits, *b"0123456789abcdef0123456789abcdef").unwrap();
        fw.set_network(network()).unwrap();
        fw.set_uplink(Instant::from_nanos(0), Some(UplinkPort { mac: MAC_UP, caps: CAPS }));
        fw.attach_client(ID_A, vif(10, MAC_A, A)).unwrap();
        fw.attach_client(ID_B, vif(11, MAC_B, B)).unwrap();
        let now = Instant::from_nanos(1_000_000_000);
        Self { fw, now, page: vec![0; 4096], fast: 0, is_thorough: false }
    }

    /// Both clients may do everything.
    pub(crate) fn new() -> Self {
        Self::with_limits(LIMITS).rules(A, &["action=accept"]).rules(B, &["action=accept"])
    }

    pub(crate) fn rules(mut self, ip: Ipv4Addr, lines: &[&str]) -> Self {
        self.set_rules(ip, rules(lines));
        self
    }

    pub(crate) fn set_rules(&mut self, ip: Ipv4Addr, state: RulesState) -> Generation {
        self.fw.set_rules(self.now, IpAddr::V4(ip), state).unwrap()
    }

    pub(crate) fn set_network(&mut self, change: impl FnOnce(&mut NetworkConfig)) {
        let mut config = self.fw.network().clone();
        change(&mut config);
        self.fw.set_network(config).unwrap();
    }

    /// Opens what the words `fw-allow`, `fw-forward` and `fw-filtering-by-address` say, given as on the command line.
    #[track_caller]
    pub(crate) fn expose(&mut self, words: &str) {
        let words = Words::of_command_line(words, &mut |problem| panic!("{problem}"));
        let features = Features::new(&Words::default(), &words, DebugMode::Off);
        self.fw.set_exposure(features.exposure);
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }

    pub(crate) fn bytes(&mut self, origin: Origin, bytes: &[u8], offload: Offload) -> Out {
        self.page[..bytes.len()].copy_from_slice(bytes);
        self.page[bytes.len()..].fill(0xdd);
        self.check_fast_path(origin, bytes, bytes.len(), offload);
        let mut frame = Frame::new(&mut self.page, bytes.len(), offload).unwrap();
        let fate = self.fw.handle(self.now, origin, &mut frame);
        assert_accepted(&self.fw);
        Out { fate, bytes: frame.bytes().to_vec(), offload: frame.offload }
    }

    /// Hands in a frame of which only the first `head` bytes are in its page. Gives what comes out: one frame, its tail
    /// included, or all segments of it.
    pub(crate) fn scattered(
        &mut self,
        origin: Origin,
        bytes: &[u8],
        head: usize,
        offload: Offload,
    ) -> Vec<Out> {
        self.check_fast_path(origin, &bytes[..head], bytes.len(), offload);
        let (mut page, tail) = (vec![0xdd; 4096.max(head)], &bytes[head..]);
        page[..head].copy_from_slice(&bytes[..head]);
        let mut frame = Frame::with_tail(&mut page, head, bytes.len(), offload).unwrap();
        let fate = self.fw.handle(self.now, origin, &mut frame);
        assert_accepted(&self.fw);
        let Fate::Segments(port) = fate else {
            let tail = &tail[..frame.tail_len()];
            let bytes = [frame.bytes(), tail].concat();
            return vec![Out { fate, bytes, offload: frame.offload }];
        };
        let (mut segments, fate) = (frame.segments().unwrap(), Fate::Send(port));
        let mut all = vec![];
        while let Some(len) = segments.next_len() {
            let (left, mut page) = (segments.left(), vec![0xdd; len]);
            let mut out = Frame::new(&mut page, 0, Offload::default()).unwrap();
            segments.write_next(&frame, tail, &mut out).unwrap();
            assert_eq!((out.len(), segments.left()), (len, left - 1));
            all.push(Out { fate, bytes: out.whole().unwrap().to_vec(), offload: out.offload });
        }
        all
    }

    /// Hands a frame to the fast path and to the stages, and leaves the firewall as it was: what comes out is the same, the
    /// state behind it too. What the fast path leaves to the stages it has not touched; of the state that is looked at only
    /// where [`Kit::is_thorough`] is set, as it takes long. Not with large tables: the tests that fill them would take minutes.
    #[track_caller]
    fn check_fast_path(&mut self, origin: Origin, head: &[u8], len: usize, offload: Offload) {
        if self.fw.limits().flows > LIMITS.flows || is_fast_path_closed() {
            return;
        }
        let before = self.fw.packet_state();
        let original = self.fw.replace_packet_state(before.clone());
        let mut after = |is_fast: bool| {
            let mut page = [head, &vec![0xdd; 4096_usize.saturating_sub(head.len())]].concat();
            let mut frame = Frame::with_tail(&mut page, head.len(), len, offload).unwrap();
            let fate = match is_fast {
                true => self.fw.fast_path::<OrNothing>(self.now, origin, &mut frame),
                false => Some(self.fw.handle_in_stages(self.now, origin, &mut frame)),
            };
            let of_frame = (frame.offload, frame.len(), frame.evidence, frame.segments());
            let accepted = frame.is_accepted();
            if fate.is_none() && !self.is_thorough {
                return (fate, accepted, String::new(), page);
            }
            let state = self.fw.replace_packet_state(before.clone());
            (fate, accepted, format!("{of_frame:?} {state:?}"), page)
        };
        let fast = after(true);
        if let (Some(_), is_accepted, ..) = fast {
            assert!(is_accepted, "the fast path sends what was not accepted");
            assert!(fast == after(false), "the fast path and the stages differ: {fast:?}");
            self.fast += 1;
        } else {
            let (_, _, state, page) = fast;
            assert_eq!(page[..head.len()], *head, "the fast path wrote into a frame and left it");
            let is_same = !self.is_thorough || state.ends_with(&format!("{before:?}"));
            assert!(is_same, "the fast path left traces");
        }
        self.fw.replace_packet_state(original);
    }

    pub(crate) fn send(&mut self, origin: Origin, build: &Build) -> Out {
        self.bytes(origin, &build.frame(), build.offload)
    }

    pub(crate) fn a(&mut self, build: &Build) -> Out {
        self.send(FROM_A, build)
    }

    pub(crate) fn b(&mut self, build: &Build) -> Out {
        self.send(FROM_B, build)
    }

    pub(crate) fn up(&mut self, build: Build) -> Out {
        self.send(Origin::Uplink, &build.up())
    }

    /// The next question of the resolver; ARP and ND before it are passed over.
    #[track_caller]
    pub(crate) fn asked(&mut self) -> Asked {
        self.try_asked().expect("a question")
    }

    pub(crate) fn try_asked(&mut self) -> Option<Asked> {
        self.fw.on_timer(self.now);
        loop {
            let (port, frame) = self.generated()?;
            assert_eq!(port, PortId::Uplink);
            let is_neighbour = frame[12..14] == [0x86, 0xdd] && frame[20] == 58;
            if is_neighbour || frame[12..14] == [8, 6] {
                continue;
            }
            let out = Out { fate: Fate::Send(port), bytes: frame, offload: Offload::default() };
            out.assert_sums();
            assert_eq!((out.src(), out.bytes[23], out.dport()), (OWN, 17, 53));
            let message = out.l4()[8..].to_vec();
            let id = u16::from_be_bytes([message[0], message[1]]);
            let (server, port) = (out.dst().into(), out.sport());
            return Some(Asked { server, port, id, question: message[12..].to_vec() });
        }
    }

    /// A datagram from a DNS server to one of our ports.
    pub(crate) fn dns(&mut self, from: IpAddr, port: u16, message: &[u8]) -> Out {
        let IpAddr::V4(from) = from else { panic!("an IPv4 server") };
        let mut l4 = [53u16, port, (8 + message.len()) as u16, 0].map(u16::to_be_bytes).concat();
        l4.extend(message);
        self.up(Build::raw(from, OWN, 17, l4).checksummed(6))
    }

    /// Answers the questions that are due as a DNS server that knows these names, and no others.
    pub(crate) fn serve_dns(&mut self, zone: &[(&str, &[Ipv4Addr])]) {
        while let Some(asked) = self.try_asked() {
            let known = zone
                .iter()
                .find(|(name, _)| asked.name().eq_ignore_ascii_case(&dns_testing::wire(name)));
            let reply = match known {
                Some((_, addresses)) => {
                    addresses.iter().fold(Reply::to(&asked), |reply, address| reply.a(60, *address))
                }
                None => Reply::to(&asked).rcode(3),
            };
            let out = self.dns(asked.server, asked.port, &reply.bytes());
            assert_eq!(out.fate, Fate::Consumed);
        }
    }

    /// The next frame that the firewall sends by itself.
    pub(crate) fn generated(&mut self) -> Option<(PortId, Vec<u8>)> {
        let mut frame = Frame::new(&mut self.page, 0, Offload::default()).unwrap();
        let port = self.fw.poll_generate(self.now, &mut frame);
        assert_accepted(&self.fw);
        Some((port?, frame.bytes().to_vec()))
    }

    /// Opens a TCP connection from A; returns the port on our address. Next numbers: 0x1000_2001 and 0x7001.
    pub(crate) fn connect(&mut self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> u16 {
        let origin = if from.0 == A { FROM_A } else { FROM_B };
        let syn = self.send(origin, &Build::tcp(from, to, SYN).numbers(0x1000_2000, 0));
        let port = syn.assert_sent(PortId::Uplink).sport();
        let syn_ack = Build::tcp(to, (OWN, port), SYN | ACK).numbers(0x7000, 0x1000_2001);
        self.up(syn_ack).assert_sent(PortId::from(origin));
        let ack = Build::tcp(from, to, ACK).numbers(0x1000_2001, 0x7001);
        self.send(origin, &ack).assert_sent(PortId::Uplink);
        port
    }

    /// Every counter of every port that is not zero, as `port/name`.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let stats = self.fw.stats();
        let mut all = named("uplink", stats.uplink());
        for (slot, name) in ["a", "b", "slot2", "slot3"].into_iter().enumerate() {
            all.extend(named(name, stats.client(ClientId(slot as u16)).unwrap()));
        }
        all.extend(named("departed", stats.departed()));
        all
    }

    /// The counters that differ from `before`, with their difference.
    pub(crate) fn moved(&self, before: &[(String, u64)]) -> Vec<(String, u64)> {
        let old =
            |name: &str| before.iter().find(|(known, _)| known == name).map_or(0, |(_, n)| *n);
        let changes = self.counters().into_iter().map(|(name, n)| (name.clone(), n - old(&name)));
        changes.filter(|(_, difference)| *difference > 0).collect()
    }
}

/// Checked after each step: the gate had nothing to stop.
#[track_caller]
pub(crate) fn assert_accepted(firewall: &Firewall) {
    assert_eq!(firewall.stats().without_accept(), 0, "about to leave without an accept");
}

fn named(port: &str, stats: &PortStats) -> Vec<(String, u64)> {
    let drops = stats.drops().map(|(reason, n)| (format!("{port}/drop:{}", reason.name()), n));
    let counters = stats.counters().map(|(name, n)| (format!("{port}/{name}"), n));
    drops.chain(counters).filter(|(_, n)| *n > 0).collect()
}
