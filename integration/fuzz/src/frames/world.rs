//! A firewall with two clients, an uplink, a clock, and a second opinion about everything that comes out of it.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use firewall::{
    Checksum, ClientId, ClientPort, FamilyConfig, Fate, Firewall, Frame, Instant, Limits, Mac,
    NetworkConfig, Offload, Origin, PortCaps, PortId, RulesState, UplinkPort,
};
use rules::{CompiledSet, HostName, NameMatch, Names, RuleSet, Subject, Upper, Verdict};

use super::view::{Piece, Sum, View};
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
const ABSENT: Host = qubes(12);
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

const IDS: [ClientId; 2] = [ClientId(0), ClientId(1)];
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

/// What a flow is called outside: client, protocol, remote address and port, our port or identifier.
type Outside = (usize, u8, IpAddr, u16, u16);

pub(super) struct World {
    firewall: Firewall,
    now: Instant,
    /// Rules in force: of A and B, IPv4 and IPv6.
    rules: [[Option<RuleSet>; 2]; 2],
    attached: [bool; 2],
    caps: PortCaps,
    network: NetworkConfig,
    /// Every outside name that a client's packet left under.
    seen: BTreeSet<Outside>,
    /// What left through the uplink last.
    recent: VecDeque<View>,
    /// A full page, as the platform has it, or a tight buffer.
    page: Vec<u8>,
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
            rules: Default::default(),
            attached: [false; 2],
            caps,
            network: NetworkConfig::default(),
            seen: BTreeSet::new(),
            recent: VecDeque::new(),
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
        let (domid, mac, caps) = (10 + client as u16, MACS[client], self.caps);
        let port = ClientPort { domid, mac, ip4: Some(ip4), ip6: Some(ip6), caps };
        self.firewall.attach_client(IDS[client], port).expect("room for two clients");
        self.attached[client] = true;
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
        self.rules[client][usize::from(family == Family::V6)] = set;
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
            ..NetworkConfig::default()
        };
        self.firewall.set_network(config.clone()).expect("room for the addresses");
        if self.network.v4.address != config.v4.address {
            self.seen.clear();
            self.recent.clear();
        }
        self.network = config;
    }

    pub(super) fn change_network(&mut self, source: &mut Source<'_>) {
        let dns = &OWN_DNS[..source.below(3)];
        let own = source.pick(&[OWN, OWN, OWN, qubes(7)]);
        self.set_network(dns, own);
    }

    pub(super) fn change_devices(&mut self, source: &mut Source<'_>) {
        let client = source.below(3);
        let Some(is_attached) = self.attached.get(client).copied() else {
            let port = source.flag().then_some(UplinkPort { mac: MACS[2], caps: self.caps });
            return self.firewall.set_uplink(self.now, port);
        };
        if is_attached {
            self.firewall.detach_client(IDS[client]);
            self.attached[client] = false;
            self.seen.retain(|(owner, ..)| *owner != client);
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

    /// Frames of the firewall's own.
    pub(super) fn generate(&mut self) {
        self.page.clear();
        self.page.resize(4096, 0xdd);
        // The pieces of one datagram, then a few of its own.
        for _ in 0..160 {
            let mut frame = Frame::new(&mut self.page, 0, Offload::default()).expect("a page");
            if self.firewall.poll_generate(self.now, &mut frame).is_none() {
                return;
            }
            // The last piece of a datagram may be one byte behind an IPv4 header.
            assert!(frame.len() > 14 + 20, "a frame of our own of {} bytes", frame.len());
        }
        panic!("it goes on talking to itself");
    }

    /// Fetches the pieces of what was cut at once, as the event loop does. What leaves in pieces opens a flow as well.
    fn fetch_pieces(&mut self, origin: Origin) {
        while self.firewall.next_piece_len().is_some() {
            let mut page = [0xdd; 4096];
            let mut frame = Frame::new(&mut page, 0, Offload::default()).expect("a page");
            let port = self.firewall.poll_generate(self.now, &mut frame).expect("it was announced");
            let view = View::new(frame.bytes(), Checksum::Full).expect("a piece is IP");
            assert!(view.header_is_right, "IP header: {view:?}");
            assert!(
                frame.len() <= usize::from(self.caps.mtu) + 14,
                "{} bytes: {view:?}",
                frame.len()
            );
            let (Origin::Client(id), PortId::Uplink) = (origin, port) else { continue };
            let client = usize::from(id.0);
            assert_eq!(Some(view.src), self.own_address(view.src.is_ipv6()));
            if let Some(name) = outside(client, &view, view.dst, true) {
                self.seen.insert(name);
            }
        }
    }

    /// One of the packets that left last.
    pub(super) fn recent(&self, source: &mut Source<'_>) -> Option<View> {
        let count = self.recent.len();
        (count > 0).then(|| self.recent[source.below(count)].clone())
    }

    /// Hands in a frame and judges what becomes of it.
    pub(super) fn frame(
        &mut self,
        origin: Origin,
        bytes: &[u8],
        offload: Offload,
        source: &mut Source<'_>,
    ) {
        let capacity = source.pick(&[4096, 4096, 4096, bytes.len(), 600]).max(bytes.len());
        self.page.clear();
        self.page.resize(capacity, 0xdd);
        self.page[..bytes.len()].copy_from_slice(bytes);
        let before = View::new(bytes, offload.checksum);
        let mut frame = Frame::new(&mut self.page, bytes.len(), offload).expect("it fits");
        let fate = self.firewall.handle(self.now, origin, &mut frame);
        let (after, offload) = (frame.bytes().to_vec(), frame.offload);
        if let Fate::Send(port) = fate {
            self.judge((origin, bytes.len()), port, before, &after, offload);
        }
        self.fetch_pieces(origin);
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

    /// What is sent is whole, and goes where it may go.
    fn judge(
        &mut self,
        (origin, length): (Origin, usize),
        port: PortId,
        before: Option<View>,
        after: &[u8],
        offload: Offload,
    ) {
        let link = (Mac(after[..6].try_into().unwrap()), Mac(after[6..12].try_into().unwrap()));
        match port {
            PortId::Client(id) => {
                let client = usize::from(id.0);
                assert!(self.attached[client], "sent to a client that is not there");
                assert_eq!(link, (MACS[client], Mac::GATEWAY));
                if let Origin::Client(from) = origin {
                    assert_eq!(from, id, "from one client to the other");
                }
            }
            PortId::Uplink => assert_eq!(link.1, MACS[2]),
        }
        let Some(view) = View::new(after, offload.checksum) else {
            assert_eq!(
                &after[12..14],
                [0x08, 0x06],
                "neither IP nor ARP leaves: {origin:?} {port:?} {before:?} {after:02x?}"
            );
            assert!(before.is_none(), "IP became ARP");
            return;
        };
        assert!(view.header_is_right, "IP header: {view:?}");
        if offload.gso.is_none() {
            // An echo to its own sender is as long as what it sent, and it took that itself.
            let own = if PortId::from(origin) == port { length } else { 0 };
            let most = own.max(usize::from(self.caps.mtu) + 14);
            assert!(after.len() <= most, "{} bytes: {before:?}", after.len());
        }
        match view.src {
            IpAddr::V4(_) => {
                assert!(offload.checksum != Checksum::Blank || self.caps.accepts_blank_v4)
            }
            IpAddr::V6(_) => {
                assert!(offload.checksum != Checksum::Blank || self.caps.accepts_blank_v6)
            }
        }
        let before = before.expect("what cannot be read is not sent on");
        match (origin, port) {
            (Origin::Client(id), PortId::Uplink) => self.outbound(usize::from(id.0), &before, view),
            (Origin::Uplink, PortId::Client(id)) => self.inbound(usize::from(id.0), &before, &view),
            _ => answer(&before, &view),
        }
    }

    /// A client's packet that leaves: from our address, accepted by the rules in force, otherwise as it was.
    fn outbound(&mut self, client: usize, before: &View, after: View) {
        let is_v6 = after.src.is_ipv6();
        let own = self.own_address(is_v6);
        assert_eq!(before.src, ADDRESSES[client].of(Family::of(before.src)), "spoofed");
        assert_eq!(Some(after.src), own, "it leaves under our address");
        forwarded(before, &after);
        let set = self.rules[client][usize::from(is_v6)].as_ref();
        let set = set.expect("nothing leaves without rules");
        if !after.is_icmp_error() && after.piece != Piece::Later {
            let subject = self.subject(&after);
            let accepts =
                |names| set.evaluate(&subject, &AllNames(names)).verdict == Verdict::Accept;
            let accepted = [NameMatch::Has, NameMatch::HasNot, NameMatch::Unresolved];
            assert!(accepted.into_iter().any(accepts), "{subject:?} is not accepted by {set:?}");
            if let Some(name) = outside(client, &after, after.dst, true) {
                self.seen.insert(name);
            }
        }
        self.recent.push_front(after);
        self.recent.truncate(4);
    }

    fn subject(&self, packet: &View) -> Subject {
        let port = packet.ports().map_or(0, |(_, port)| port);
        let upper = match (packet.protocol, packet.icmp_type()) {
            (6, _) => Upper::Tcp { port },
            (17, _) => Upper::Udp { port },
            (_, Some(icmp_type)) => Upper::Icmp { icmp_type },
            (protocol, None) => Upper::Other { protocol },
        };
        let is_dns_server = match packet.dst {
            IpAddr::V4(v4) => self.network.v4.dns.contains(&v4),
            IpAddr::V6(v6) => self.network.v6.dns.contains(&v6),
        };
        Subject { destination: packet.dst, upper, is_dns_server }
    }

    /// A packet of the uplink that reaches a client: to our address, part of something that this client began.
    fn inbound(&mut self, client: usize, before: &View, after: &View) {
        assert_eq!(Some(before.dst), self.own_address(before.dst.is_ipv6()));
        assert_eq!(after.dst, ADDRESSES[client].of(Family::of(after.dst)), "another's address");
        if before.is_icmp_error() {
            assert!(self.seen.iter().any(|(owner, ..)| *owner == client), "about nothing");
            return;
        }
        forwarded(before, after);
        if let Some(name) = outside(client, before, before.src, false) {
            assert!(self.seen.contains(&name), "{name:?} was never opened from inside");
        }
    }

    fn own_address(&self, is_v6: bool) -> Option<IpAddr> {
        match is_v6 {
            false => self.network.v4.address.map(IpAddr::V4),
            true => self.network.v6.address.map(IpAddr::V6),
        }
    }

    /// The end: with the clients their flows go.
    pub(super) fn end(mut self) {
        for (client, id) in IDS.into_iter().enumerate() {
            if self.attached[client] {
                self.firewall.detach_client(id);
            }
        }
        assert_eq!(self.firewall.flow_count(), 0, "flows without a client");
    }
}

/// The flow's name outside, where the packet tells it.
fn outside(client: usize, packet: &View, remote: IpAddr, goes_out: bool) -> Option<Outside> {
    if packet.piece == Piece::Later {
        return None;
    }
    let (theirs, ours) = match (packet.ports(), packet.icmp_type()) {
        (Some((from, to)), _) if goes_out => (to, from),
        (Some((from, to)), _) => (from, to),
        (None, Some(_)) => (0, packet.icmp_id()?),
        (None, None) => (0, 0),
    };
    Some((client, packet.protocol, remote, theirs, ours))
}

/// Forwarding changes addresses, ports, TTL and sums, and nothing else.
fn forwarded(before: &View, after: &View) {
    assert_eq!(before.protocol, after.protocol);
    assert_eq!(before.piece, after.piece);
    assert_eq!(before.ttl.checked_sub(1), Some(after.ttl), "TTL");
    assert_eq!(before.has_df, after.has_df, "DF");
    if before.icmp_type().is_none() {
        assert!(before.payload() == after.payload(), "the payload was changed");
    }
    // A wrong sum stays wrong: nobody vouches for what nobody computed (R7).
    match (before.sum, after.sum) {
        (Sum::Right | Sum::Partial, Sum::Right | Sum::Partial) => {}
        (was, is) => assert_eq!(was, is, "checksum: {before:?} became {after:?}"),
    }
}

/// What the firewall answers itself goes back to who asked, with right sums.
fn answer(before: &View, after: &View) {
    assert_eq!(after.dst, before.src, "an answer to another");
    assert!(matches!(after.sum, Sum::Right | Sum::Partial), "checksum of an answer: {after:?}");
    assert_eq!(after.piece, Piece::Whole);
}

/// Every name has, or has not, every address.
struct AllNames(NameMatch);

impl Names for AllNames {
    fn lookup(&self, _: &HostName, _: IpAddr) -> NameMatch {
        self.0
    }

    fn each_at(&self, _: IpAddr, found: &mut dyn FnMut(&str)) {
        if self.0 == NameMatch::Has {
            found("www.example");
        }
    }

    fn is_known(&self, _: &HostName) -> bool {
        self.0 != NameMatch::Unresolved
    }
}
