//! A firewall with two clients, an uplink and a clock. `oracle` has a second opinion about everything that comes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use firewall::visible::{MappedIp, Visible};
use firewall::{
    Checksum, ClientId, ClientPort, FamilyConfig, Fate, Firewall, Frame, Instant, Limits, Mac,
    NetworkConfig, Offload, Origin, PortCaps, PortId, RulesState, UplinkPort,
};
use rules::{CompiledSet, RuleSet};

use super::build::Shape;
use super::openings;
use super::oracle::Oracle;
use super::view::View;
use crate::source::Source;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A host with an address of each family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host(Ipv4Addr, Ipv6Addr);

impl Host {
    pub(super) fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.0.into(),
            Family::V6 => self.1.into(),
        }
    }
}

const fn qubes(last: u8) -> Host {
    let v6 = Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0x0a89, last as u16);
    Host(Ipv4Addr::new(10, 137, 0, last), v6)
}

const fn world(last: u8) -> Host {
    let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last as u16);
    Host(Ipv4Addr::new(198, 51, 100, last), v6)
}

pub(super) const OWN: Host = qubes(6);
/// What clients use as their gateway, and ours.
pub(super) const GATEWAYS: Host = Host(
    Ipv4Addr::new(10, 137, 0, 5),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0xfcff, 0xffff, 0xfeff, 0xffff),
);
/// Of both clients.
pub(super) const ADDRESSES: [Host; 2] = [qubes(10), qubes(11)];
/// In the network configuration, never attached.
pub(super) const ABSENT: Host = qubes(12);
const CLIENT_DNS: [Host; 2] = [
    Host(Ipv4Addr::new(10, 139, 1, 1), Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0x0a8b, 1)),
    Host(Ipv4Addr::new(10, 139, 1, 2), Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0x0a8b, 2)),
];
const OWN_DNS: [Host; 2] = [world(53), world(54)];
/// Where packets go to and come from.
pub(super) const REMOTES: &[Host] = &[
    world(7),
    world(7),
    world(9),
    OWN_DNS[0],
    OWN_DNS[1],
    CLIENT_DNS[0],
    CLIENT_DNS[1],
    ABSENT,
    GATEWAYS,
    Host(Ipv4Addr::new(224, 0, 0, 1), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
    Host(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
];

/// Of client A, client B, and of ours on the uplink.
pub(super) const MACS: [Mac; 3] = [
    Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0a]),
    Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0b]),
    Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x06]),
];

pub(super) const IDS: [ClientId; 2] = [ClientId(0), ClientId(1)];
pub(super) const FROM_A: Origin = Origin::Client(IDS[0]);
pub(super) const FROM_B: Origin = Origin::Client(IDS[1]);
pub(super) const FROM_NOBODY: Origin = Origin::Client(ClientId(2));

/// Small enough to be full now and then.
const LIMITS: Limits =
    Limits { clients: 3, addresses: 10, flows: 12, flows_per_client: 8, fragment_bytes: 64 << 10 };

const RULES: &[&str] = &[
    "action=accept",
    "action=drop",
    "action=accept proto=tcp",
    "action=accept proto=udp dstports=53-443",
    "action=accept proto=icmp",
    "action=drop icmptype=8",
    "action=accept specialtarget=dns",
    "action=drop proto=tcp dstports=80-80",
    "action=accept dsthost=www.example",
    "action=drop dsthost=www.example",
    "action=accept dst4=198.51.100.0/29",
    "action=drop dst4=198.51.100.7/32 proto=udp",
    "action=accept dst6=2001:db8::/125",
    "action=drop dst6=2001:db8::7/128 proto=udp",
];

/// What a client may be told instead of its address and gateway.
const VISIBLE: Visible =
    Visible::As { address: Ipv4Addr::new(192, 168, 1, 10), gateway: Ipv4Addr::new(192, 168, 1, 1) };
pub(super) const VISIBLE_GATEWAY: Host = Host(Ipv4Addr::new(192, 168, 1, 1), GATEWAYS.1);

/// Bytes of a super-frame that are in its first page: too few, as few as may be, many, all.
const HEADS: &[usize] = &[256, 256, 1000, 4096, usize::MAX, 100];

pub(super) struct World {
    firewall: Firewall,
    now: Instant,
    oracle: Oracle,
    /// What each client is told.
    visible: [Option<Visible>; 2],
    /// A full page, as the platform has it, or a tight buffer.
    page: Vec<u8>,
}

/// All segments of a super-frame, as the event loop sends them.
fn cut(frame: &Frame<'_>, tail: &[u8]) -> Vec<(Vec<u8>, Offload)> {
    let mut segments = frame.segments().expect("it is to leave in segments");
    let mut all = Vec::new();
    while let Some(length) = segments.next_len() {
        let mut page = vec![0xdd; length];
        let mut out = Frame::new(&mut page, 0, Offload::default()).expect("a page");
        segments.write_next(frame, tail, &mut out).expect("its payload is there");
        assert_eq!(out.len(), length, "another segment than announced");
        all.push((out.bytes().to_vec(), out.offload));
    }
    all
}

impl World {
    pub(super) fn new(choice: u8) -> Self {
        let caps = PortCaps {
            accepts_blank_v4: choice & 1 == 1,
            accepts_blank_v6: choice & 2 == 2,
            accepts_gso_v4: choice & 4 == 4,
            accepts_gso_v6: choice & 8 == 8,
            mtu: if choice & 16 == 16 { 1280 } else { 1500 },
        };
        let mut firewall = Firewall::new(LIMITS, [choice; 32]).expect("memory for a few flows");
        firewall.set_uplink(Instant::default(), Some(UplinkPort { mac: MACS[2], caps }));
        let mut world = Self {
            firewall,
            now: Instant::from_nanos(1_000_000_000),
            oracle: Oracle::new(caps),
            visible: [None; 2],
            page: Vec::new(),
        };
        world.set_network(&OWN_DNS, OWN);
        for client in 0..2 {
            world.attach(client);
            for family in [Family::V4, Family::V6] {
                world.set_rules(client, family, Some(vec!["action=accept"]));
            }
        }
        world
    }

    fn attach(&mut self, client: usize) {
        let Host(ip4, ip6) = ADDRESSES[client];
        let (domid, mac, caps) = (10 + client as u16, MACS[client], self.oracle.caps);
        let port = ClientPort { domid, mac, ip4: Some(ip4), ip6: Some(ip6), caps };
        self.firewall.attach_client(IDS[client], port).expect("room for two clients");
        self.oracle.attached[client] = true;
    }

    fn set_rules(&mut self, client: usize, family: Family, lines: Option<Vec<&str>>) {
        let address = ADDRESSES[client].of(family);
        let parsed = lines.map(|lines| {
            let keys: Vec<String> = (0..lines.len()).map(|n| format!("{n:04}")).collect();
            let lines =
                keys.iter().zip(&lines).map(|(key, line)| (key.as_bytes(), line.as_bytes()));
            let policy = (&b"policy"[..], &b"drop"[..]);
            RuleSet::parse(rules::Family::of(address), lines.chain([policy]))
        });
        let (state, set) = match parsed {
            None => (RulesState::None, None),
            Some(Err(_)) => (RulesState::Refused, None),
            Some(Ok(set)) => {
                let compiled = CompiledSet::new(set.clone()).expect("memory for a few rules");
                (RulesState::Active(compiled), Some(set))
            }
        };
        self.firewall.set_rules(self.now, address, state).expect("room for the address");
        self.oracle.permits.rules[client][usize::from(family == Family::V6)] = set;
    }

    pub(super) fn edit_rules(&mut self, source: &mut Source<'_>) {
        let client = source.below(2);
        let family = source.pick(&[Family::V4, Family::V6]);
        let count = source.below(6);
        let lines = (count != 5).then(|| (0..count).map(|_| source.pick(RULES)).collect());
        self.set_rules(client, family, lines);
    }

    fn set_network(&mut self, dns: &[Host], own: Host) {
        let all = [ADDRESSES[0], ADDRESSES[1], ABSENT];
        let connected =
            all.iter().flat_map(|host| [host.of(Family::V4), host.of(Family::V6)]).collect();
        let config = NetworkConfig {
            v4: FamilyConfig {
                address: Some(own.0),
                gateway: Some(GATEWAYS.0),
                client_gateway: Some(OWN.0),
                dns: dns.iter().map(|host| host.0).collect(),
                client_dns: CLIENT_DNS.map(|host| host.0).to_vec(),
            },
            v6: FamilyConfig {
                address: Some(own.1),
                gateway: Some(GATEWAYS.1),
                client_gateway: Some(GATEWAYS.1),
                dns: dns.iter().map(|host| host.1).collect(),
                client_dns: CLIENT_DNS.map(|host| host.1).to_vec(),
            },
            connected,
            mapped: self.mapped(),
        };
        self.firewall.set_network(config.clone()).expect("room for the addresses");
        self.oracle.set_network(config);
    }

    fn mapped(&self) -> Vec<MappedIp> {
        let both = ADDRESSES.iter().zip(self.visible);
        both.filter_map(|(host, told)| Some(MappedIp { real: host.0, visible: told? })).collect()
    }

    pub(super) fn change_network(&mut self, source: &mut Source<'_>) {
        let dns = &OWN_DNS[..source.below(3)];
        let choice = source.byte();
        match choice >> 2 & 3 {
            1 => self.open(source),
            2 => {
                let told = [None, Some(VISIBLE), Some(VISIBLE), Some(Visible::Unknown)];
                self.visible = [source.pick(&told), source.pick(&told)];
            }
            _ => {}
        }
        let own = [OWN, OWN, OWN, qubes(7)][usize::from(choice & 3)];
        self.set_network(dns, own);
    }

    /// Replaces what dom0 opens.
    fn open(&mut self, source: &mut Source<'_>) {
        let exposure = openings::replace(&mut self.oracle.permits, source.array());
        self.firewall.set_exposure(exposure);
    }

    /// The address that a client uses.
    pub(super) fn known(&self, client: usize, family: Family) -> IpAddr {
        self.oracle.known(client, family).unwrap_or(ADDRESSES[client].of(family))
    }

    pub(super) fn change_devices(&mut self, source: &mut Source<'_>) {
        let client = source.below(3);
        let Some(is_attached) = self.oracle.attached.get(client).copied() else {
            let port = source.flag().then_some(UplinkPort { mac: MACS[2], caps: self.oracle.caps });
            return self.firewall.set_uplink(self.now, port);
        };
        if is_attached {
            self.firewall.detach_client(IDS[client]);
            self.oracle.detach(client);
        } else {
            self.attach(client);
        }
    }

    pub(super) fn pass_time(&mut self, source: &mut Source<'_>) {
        let seconds = source.pick(&[0, 1, 10, 61, 130, 301, 8_000]);
        let step = Duration::from_secs(seconds) + Duration::from_millis(source.word().into());
        self.now = self.now.after(step);
        self.firewall.on_timer(self.now);
    }

    /// Frames of the firewall's own. Its questions get an answer, or none.
    pub(super) fn generate(&mut self, source: &mut Source<'_>) {
        self.firewall.on_timer(self.now);
        self.page.clear();
        self.page.resize(4096, 0xdd);
        let mut questions = Vec::new();
        // The pieces of one datagram, then a few of its own.
        for _ in 0..160 {
            let mut frame = Frame::new(&mut self.page, 0, Offload::default()).expect("a page");
            if self.firewall.poll_generate(self.now, &mut frame).is_none() {
                for question in questions {
                    self.answer(&question, source);
                }
                return;
            }
            // The last piece of a datagram may be one byte behind an IPv4 header.
            assert!(frame.len() > 14 + 20, "a frame of our own of {} bytes", frame.len());
            questions.extend(self.oracle.own(frame.bytes()));
        }
        panic!("it goes on talking to itself");
    }

    /// Answers a question for an address of the name as a resolver does.
    fn answer(&mut self, question: &View, source: &mut Source<'_>) {
        let Some(host) = source.pick(&[None, Some(world(7)), Some(world(9)), Some(ABSENT)]) else {
            return;
        };
        let Some(message) = question.l4.get(8..).filter(|message| message.len() > 16) else {
            return;
        };
        let is_v4 = message.ends_with(&[0, 1, 0, 1]);
        let address = if is_v4 { IpAddr::from(host.0) } else { host.1.into() };
        let octets = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let kind = if is_v4 { 1 } else { 28 };
        let head = [0xc0, 0x0c, 0, kind, 0, 1, 0, 0, 0, source.byte(), 0, octets.len() as u8];
        let header = [&message[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
        let reply = [&header, &message[12..], &head, &octets].concat();
        let (ours, theirs) = question.ports().unwrap_or_default();
        let mut shape = Shape::udp((question.dst, theirs), (question.src, ours));
        shape.l4.extend(reply);
        let shape = shape.payload(0).checksummed(false);
        self.oracle.permits.answered.insert(address);
        let frame = shape.frame(MACS[2], Mac::GATEWAY);
        self.frame(Origin::Uplink, &frame, Offload::default(), source);
    }

    /// Fetches the pieces of what was cut at once, as the event loop does.
    fn fetch_pieces(&mut self) -> Vec<(PortId, Vec<u8>)> {
        let mut pieces = Vec::new();
        while let Some(length) = self.firewall.next_piece_len() {
            let mut page = [0xdd; 4096];
            let mut frame = Frame::new(&mut page, 0, Offload::default()).expect("a page");
            let port = self.firewall.poll_generate(self.now, &mut frame).expect("it was announced");
            assert_eq!(frame.len(), length, "another piece than announced");
            pieces.push((port, frame.bytes().to_vec()));
        }
        pieces
    }

    /// One of the packets that left last.
    pub(super) fn recent(&self, source: &mut Source<'_>) -> Option<(PortId, View)> {
        let recent = &self.oracle.recent;
        let count = recent.len();
        (count > 0).then(|| recent[source.below(count)].clone())
    }

    /// Hands in a frame and judges what becomes of it.
    pub(super) fn frame(
        &mut self,
        origin: Origin,
        bytes: &[u8],
        offload: Offload,
        source: &mut Source<'_>,
    ) {
        // Of a super-frame no more than a head may be there.
        let has_tail = offload.gso.is_some() && offload.checksum == Checksum::Blank;
        let head = if has_tail { source.pick(HEADS).min(bytes.len()) } else { bytes.len() };
        let (first, tail) = bytes.split_at(head);
        let capacity = source.pick(&[4096, 4096, 4096, head, 600]).max(head);
        self.page.clear();
        self.page.resize(capacity, 0xdd);
        self.page[..head].copy_from_slice(first);
        let before = View::new(bytes, offload.checksum);
        if let (Origin::Uplink, Some(before)) = (origin, &before) {
            self.oracle.arrives(before);
        }
        let frame = Frame::with_tail(&mut self.page, head, bytes.len(), offload);
        let mut frame = frame.expect("it fits");
        let fate = self.firewall.handle(self.now, origin, &mut frame);
        let after = [frame.bytes(), &tail[..frame.tail_len()]].concat();
        let offload = frame.offload;
        let segments = if matches!(fate, Fate::Segments(_)) { cut(&frame, tail) } else { vec![] };
        let pieces = self.fetch_pieces();
        assert_eq!(self.firewall.stats().without_accept(), 0, "about to leave without an accept");
        if let Some(before) = &before {
            self.oracle.pieces(origin, before, &pieces);
        }
        assert!(before.is_some() || pieces.is_empty(), "what cannot be read left in pieces");
        if let Fate::Send(port) = fate {
            assert!(pieces.is_empty(), "it left twice");
            self.oracle.frame((origin, bytes.len()), port, before, &after, offload);
        } else if let Fate::Segments(port) = fate {
            assert!(pieces.is_empty(), "it left twice");
            let before = before.expect("what cannot be read is not sent on");
            self.oracle.segments(origin, port, &before, &segments);
        }
        assert!(self.firewall.flow_count() <= LIMITS.flows as usize);
        for host in ADDRESSES {
            let flows: usize = [Family::V4, Family::V6]
                .into_iter()
                .map(|family| self.firewall.flows_of(host.of(family)))
                .max()
                .unwrap_or(0);
            assert!(flows <= LIMITS.flows_per_client as usize, "{flows} flows of one client");
        }
    }

    /// The end: with the clients their flows go.
    pub(super) fn end(mut self) {
        for (client, id) in IDS.into_iter().enumerate() {
            if self.oracle.attached[client] {
                self.firewall.detach_client(id);
            }
        }
        assert_eq!(self.firewall.flow_count(), 0, "flows without a client");
        assert_eq!(self.firewall.port_use().leaked, 0, "ports without a flow");
    }
}
