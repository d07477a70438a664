//! Edits of rules and of what dom0 opens, at random: after each, a packet of every flow passes if and only if a fresh
//! evaluation says so. What says so is written here, from the meaning of the rules, and shares nothing with the core.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use crate::testing::v6::*;
use crate::testing::*;
use crate::*;

/// A rule as its author thinks of it.
#[derive(Clone, Debug)]
struct Line {
    accepts: bool,
    protocol: Option<u8>,
    prefix: Option<(Ipv4Addr, u8)>,
    ports: Option<(u16, u16)>,
    icmp_type: Option<u8>,
    is_dns: bool,
}

/// The same host in IPv6.
fn in_v6(address: Ipv4Addr) -> Ipv6Addr {
    let pairs = [
        (A, A6),
        (B, B6),
        (OWN, OWN6),
        (SERVER, SERVER6),
        (OTHER_SERVER, OTHER_SERVER6),
        (CLIENT_DNS[0], CLIENT_DNS6),
        (OWN_DNS[0], OWN_DNS6),
    ];
    pairs.into_iter().find(|(v4, _)| *v4 == address).map_or(NETVM6, |(_, v6)| v6)
}

impl Line {
    /// The line in the tree of a family, which has the numbers and addresses of that family.
    fn text(&self, is_v6: bool) -> String {
        let mut text = format!("action={}", if self.accepts { "accept" } else { "drop" });
        match self.prefix {
            Some((address, bits)) if is_v6 => {
                text += &format!(" dst6={}/{}", in_v6(address), u32::from(bits) * 4);
            }
            Some((address, bits)) => text += &format!(" dst4={address}/{bits}"),
            None => {}
        }
        if let Some(protocol) = self.protocol {
            let name = match protocol {
                1 => "icmp",
                6 => "tcp",
                _ => "udp",
            };
            text += &format!(" proto={name}");
        }
        if self.is_dns {
            text += " specialtarget=dns";
        }
        if let Some((low, high)) = self.ports {
            text += &format!(" dstports={low}-{high}");
        }
        if let Some(icmp_type) = self.icmp_type {
            let icmp_type = if is_v6 && icmp_type == 8 { 128 } else { icmp_type };
            text += &format!(" icmptype={icmp_type}");
        }
        text
    }

    fn covers(&self, to: Ipv4Addr, is_v6: bool) -> bool {
        let Some((net, bits)) = self.prefix else { return true };
        let shift = 32 - u32::from(bits);
        if is_v6 {
            let head = |address| u128::from(in_v6(address)).checked_shr(shift * 4).unwrap_or(0);
            return head(net) == head(to);
        }
        let head = |address| u32::from(address).checked_shr(shift).unwrap_or(0);
        head(net) == head(to)
    }

    /// `port` is the type of an ICMP query, as IPv4 numbers it.
    fn matches(&self, protocol: u8, (to, is_v6): (Ipv4Addr, bool), port: u16) -> bool {
        let has_ports = protocol == 6 || protocol == 17;
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.covers(to, is_v6)
            && self.ports.is_none_or(|(low, high)| has_ports && low <= port && port <= high)
            && self.icmp_type.is_none_or(|kind| protocol == 1 && port == u16::from(kind))
            && (!self.is_dns || has_ports && port == 53 && OWN_DNS.contains(&to))
    }
}

/// What dom0 says, and what it means.
#[derive(Clone, Debug, Default)]
struct Dom0 {
    /// Of A and of B; `None` is no tree at all, or one that is not understood.
    rules: [Option<Vec<Line>>; 2],
    is_allowed: bool,
    is_forwarded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Ping(u8),
    Gre,
    /// TCP from outside to a forwarded port.
    Forwarded,
}

/// A flow of a client. `port` is the far side's, or the identifier of a query. Hosts are named by their IPv4 address.
#[derive(Clone, Copy, Debug)]
struct Spec {
    kind: Kind,
    is_v6: bool,
    client: usize,
    own_port: u16,
    to: Ipv4Addr,
    port: u16,
}

const fn spec(kind: Kind, client: usize, own_port: u16, to: Ipv4Addr, port: u16) -> Spec {
    Spec { kind, is_v6: false, client, own_port, to, port }
}

const fn spec6(kind: Kind, client: usize, own_port: u16, to: Ipv4Addr, port: u16) -> Spec {
    Spec { kind, is_v6: true, client, own_port, to, port }
}

const FLOWS: &[Spec] = &[
    spec(Kind::Tcp, 0, 4001, SERVER, 443),
    spec(Kind::Tcp, 0, 4001, OTHER_SERVER, 443),
    spec(Kind::Tcp, 0, 4002, SERVER, 80),
    spec(Kind::Tcp, 1, 4001, SERVER, 443),
    spec(Kind::Udp, 0, 4001, SERVER, 443),
    spec(Kind::Udp, 0, 4003, OTHER_SERVER, 5000),
    spec(Kind::Udp, 1, 4001, SERVER, 443),
    spec(Kind::Udp, 0, 4004, CLIENT_DNS[0], 53),
    spec(Kind::Udp, 1, 4004, OWN_DNS[1], 53),
    spec(Kind::Tcp, 0, 4005, CLIENT_DNS[1], 53),
    spec(Kind::Ping(8), 0, 7, SERVER, 0),
    spec(Kind::Ping(13), 0, 7, SERVER, 0),
    spec(Kind::Ping(8), 1, 8, OTHER_SERVER, 0),
    spec(Kind::Gre, 0, 0, SERVER, 0),
    spec(Kind::Tcp, 0, 4006, B, 22),
    spec(Kind::Udp, 0, 4006, B, 53),
    spec(Kind::Ping(8), 0, 9, B, 0),
    spec(Kind::Udp, 1, 53, A, 4007),
    spec(Kind::Forwarded, 0, 80, SERVER, 5555),
    spec6(Kind::Tcp, 0, 4001, SERVER, 443),
    spec6(Kind::Tcp, 1, 4001, OTHER_SERVER, 80),
    spec6(Kind::Udp, 0, 4003, OTHER_SERVER, 5000),
    spec6(Kind::Udp, 0, 4004, CLIENT_DNS[0], 53),
    spec6(Kind::Ping(8), 0, 7, SERVER, 0),
    spec6(Kind::Gre, 0, 0, SERVER, 0),
    spec6(Kind::Tcp, 0, 4006, B, 22),
    spec6(Kind::Ping(8), 0, 9, B, 0),
    spec6(Kind::Udp, 1, 53, A, 4007),
    spec6(Kind::Forwarded, 0, 80, SERVER, 5555),
];

const CLIENTS: [(Ipv4Addr, Mac, ClientId); 2] = [(A, MAC_A, ID_A), (B, MAC_B, ID_B)];
const PUBLIC_PORT: u16 = 8080;

impl Spec {
    fn client(&self) -> (Ipv4Addr, Mac, ClientId) {
        CLIENTS[self.client]
    }

    fn is_between_clients(&self) -> bool {
        self.to == A || self.to == B
    }

    fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp | Kind::Forwarded => 6,
            Kind::Udp => 17,
            Kind::Ping(_) => 1,
            Kind::Gre => 47,
        }
    }

    /// Who gets it: DNS to the resolvers that clients know goes to ours.
    fn far_side(&self) -> Ipv4Addr {
        let resolver = CLIENT_DNS.iter().position(|known| *known == self.to && self.port == 53);
        resolver.map_or(self.to, |nth| OWN_DNS[nth])
    }

    /// The fresh evaluation.
    fn may_pass(&self, dom0: &Dom0) -> bool {
        if self.kind == Kind::Forwarded {
            return dom0.is_forwarded;
        }
        // The words of this test allow A to B only.
        if self.is_between_clients() && !(dom0.is_allowed && self.to == B) {
            return false;
        }
        let to = self.far_side();
        let port = if let Kind::Ping(kind) = self.kind { kind.into() } else { self.port };
        let rules = dom0.rules[self.client].iter().flatten();
        let mut matching =
            rules.filter(|line| line.matches(self.protocol(), (to, self.is_v6), port));
        matching.next().is_some_and(|line| line.accepts)
    }

    /// A packet of the client.
    fn forth(&self, flags: u8) -> Any {
        let (ip, mac, _) = self.client();
        let numbers = if flags == SYN { (0x1000, 0) } else { (0x1001, 0x7001) };
        self.build((ip, self.own_port), (self.to, self.port), flags, numbers).from(mac)
    }

    /// A packet of the far side to what it sees of the client.
    fn back(&self, port: u16, flags: u8) -> Any {
        let numbers = if flags & SYN == 0 { (0x7001, 0x1001) } else { (0x7000, 0x1001) };
        let client = if self.is_between_clients() { self.client().0 } else { OWN };
        let far = (self.far_side(), self.port);
        let build = self.build(far, (client, port), flags, numbers);
        if let Kind::Ping(kind) = self.kind {
            let (ends, ends6) = ((far.0, client), (in_v6(far.0), in_v6(client)));
            let reply = if kind == 8 { 0 } else { kind + 1 };
            return match build {
                Any::V4(_) => Any::V4(Build::query(ends.0, ends.1, reply, port)),
                Any::V6(_) => Any::V6(Build6::echo(ends6.0, ends6.1, 129, port)),
            };
        }
        build
    }

    fn build(
        &self,
        from: (Ipv4Addr, u16),
        to: (Ipv4Addr, u16),
        flags: u8,
        (sequence, acknowledgement): (u32, u32),
    ) -> Any {
        let payload = usize::from(flags & SYN == 0);
        if self.is_v6 {
            let (from, to) = ((in_v6(from.0), from.1), (in_v6(to.0), to.1));
            return Any::V6(match self.kind {
                Kind::Tcp | Kind::Forwarded => {
                    Build6::tcp(from, to, flags).numbers(sequence, acknowledgement).payload(payload)
                }
                Kind::Udp => Build6::udp(from, to),
                Kind::Ping(_) => Build6::echo(from.0, to.0, 128, from.1),
                Kind::Gre => Build6::raw(from.0, to.0, 47, vec![0; 8]),
            });
        }
        Any::V4(match self.kind {
            Kind::Tcp | Kind::Forwarded => {
                Build::tcp(from, to, flags).numbers(sequence, acknowledgement).payload(payload)
            }
            Kind::Udp => Build::udp(from, to),
            Kind::Ping(kind) => Build::query(from.0, to.0, kind, from.1),
            Kind::Gre => Build::raw(from.0, to.0, 47, vec![0; 8]),
        })
    }
}

/// A packet of either family.
#[derive(Clone)]
enum Any {
    V4(Build),
    V6(Build6),
}

impl Any {
    fn from(self, mac: Mac) -> Self {
        match self {
            Self::V4(build) => Self::V4(build.with(|b| b.link = (Mac::GATEWAY, mac))),
            Self::V6(build) => Self::V6(build.with(|b| b.link = (Mac::GATEWAY, mac))),
        }
    }

    fn up(self) -> Self {
        match self {
            Self::V4(build) => Self::V4(build.up()),
            Self::V6(build) => Self::V6(build.up()),
        }
    }

    fn send(&self, kit: &mut Kit, origin: Origin) -> Out {
        match self {
            Self::V4(build) => kit.send(origin, build),
            Self::V6(build) => kit.send6(origin, build),
        }
    }
}

/// The firewall, what dom0 told it, and the port by which the world knows each flow.
struct World {
    kit: Kit,
    dom0: Dom0,
    seen: Vec<Option<u16>>,
    /// Packets that left towards the uplink, or reached another client, without an accept.
    unaccepted: u32,
    passed: u32,
}

impl World {
    fn new() -> Self {
        let limits = Limits { flows: 256, flows_per_client: 128, ..LIMITS };
        let mut kit = Kit::with_limits6(limits);
        for ip in [IpAddr::from(A), B.into(), A6.into(), B6.into()] {
            kit.fw.set_rules(kit.now, ip, RulesState::None).unwrap();
        }
        let seen = vec![None; FLOWS.len()];
        Self { kit, dom0: Dom0::default(), seen, unaccepted: 0, passed: 0 }
    }

    /// Sends what a client sends, and keeps the books about what left.
    fn client_sends(&mut self, flow: &Spec, build: &Any) -> Option<Out> {
        let origin = Origin::Client(flow.client().2);
        let out = build.send(&mut self.kit, origin);
        let has_left = matches!(out.fate, Fate::Send(port) if port != PortId::from(origin));
        self.unaccepted += u32::from(has_left && !flow.may_pass(&self.dom0));
        self.passed += u32::from(has_left);
        has_left.then_some(out)
    }

    fn far_side_sends(&mut self, flow: &Spec, build: Any) -> bool {
        let (_, mac, id) = CLIENTS[1 - flow.client];
        let (build, origin) = match flow.is_between_clients() {
            true => (build.from(mac), Origin::Client(id)),
            false => (build.up(), Origin::Uplink),
        };
        let out = build.send(&mut self.kit, origin);
        out.fate == Fate::Send(PortId::Client(flow.client().2))
    }

    /// One packet of the client's end; opens the flow if it is not open. Whether it passed.
    fn forth(&mut self, at: usize) -> bool {
        let flow = FLOWS[at];
        let is_known = self.seen[at].is_some();
        let is_opening = flow.kind == Kind::Tcp && !is_known;
        let flags = if is_opening { SYN } else { ACK };
        let Some(out) = self.client_sends(&flow, &flow.forth(flags)) else { return false };
        let port = match flow.kind {
            Kind::Ping(_) => out.icmp_id(),
            Kind::Gre => 0,
            _ => out.sport(),
        };
        self.seen[at] = Some(port);
        if is_opening {
            assert!(self.far_side_sends(&flow, flow.back(port, SYN | ACK)));
            assert!(self.client_sends(&flow, &flow.forth(ACK)).is_some());
        }
        true
    }

    /// One packet of the far end; opens a forwarded flow. Whether it passed.
    fn back(&mut self, at: usize) -> bool {
        let flow = FLOWS[at];
        if flow.kind != Kind::Forwarded {
            let Some(seen) = self.seen[at] else { return false };
            return self.far_side_sends(&flow, flow.back(seen, ACK));
        }
        let public = PUBLIC_PORT;
        if self.seen[at].is_some() {
            return self.far_side_sends(&flow, flow.back(public, ACK));
        }
        if !self.far_side_sends(&flow, flow.back(public, SYN)) {
            return false;
        }
        self.seen[at] = Some(public);
        let (ip, mac, _) = flow.client();
        let ends = ((ip, flow.own_port), (flow.to, flow.port));
        let answer = flow.build(ends.0, ends.1, SYN | ACK, (0x1000, 0x7001)).from(mac);
        assert!(self.client_sends(&flow, &answer).is_some());
        assert!(self.far_side_sends(&flow, flow.back(public, ACK)));
        assert!(self.client_sends(&flow, &flow.forth(ACK)).is_some());
        true
    }

    /// Every flow, either end first: what passes is what may.
    fn check(&mut self, far_end_first: bool) -> Result<(), TestCaseError> {
        for (at, flow) in FLOWS.iter().enumerate() {
            let (may_pass, was_open) = (flow.may_pass(&self.dom0), self.seen[at].is_some());
            let opens_from_outside = flow.kind == Kind::Forwarded;
            if far_end_first {
                let expected = may_pass && (was_open || opens_from_outside);
                prop_assert_eq!(self.back(at), expected, "back {:?} {:?}", flow, self.dom0);
            }
            // A client's packet that belongs to no forwarded flow is one of its own.
            if !opens_from_outside || self.seen[at].is_some() {
                prop_assert_eq!(self.forth(at), may_pass, "forth {:?} {:?}", flow, self.dom0);
            }
            if !far_end_first {
                let expected = may_pass && (self.seen[at].is_some() || opens_from_outside);
                prop_assert_eq!(self.back(at), expected, "back {:?} {:?}", flow, self.dom0);
            }
        }
        Ok(())
    }

    fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::Rules(client, lines) => {
                for is_v6 in [false, true] {
                    let texts: Vec<String> = lines.iter().map(|line| line.text(is_v6)).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let ip = CLIENTS[client].0;
                    match is_v6 {
                        true => self.kit.set_rules6(in_v6(ip), rules6(&texts)),
                        false => self.kit.set_rules(ip, rules(&texts)),
                    };
                }
                self.dom0.rules[client] = Some(lines);
            }
            Edit::NoRules(client, state) => {
                self.kit.set_rules(CLIENTS[client].0, state.clone());
                self.kit.set_rules6(in_v6(CLIENTS[client].0), state);
                self.dom0.rules[client] = None;
            }
            Edit::Open { is_allowed, is_forwarded } => {
                let allow = format!("fw-allow={A}>{B},{A6}>{B6}");
                let forward = format!("fw-forward=tcp/{0}>{A}/80,tcp/{0}>{A6}/80", PUBLIC_PORT);
                let words = [(is_allowed, allow), (is_forwarded, forward)];
                let words = words.into_iter().filter(|(is_on, _)| *is_on).map(|(_, word)| word);
                self.kit.expose(&words.collect::<Vec<_>>().join(" "));
                (self.dom0.is_allowed, self.dom0.is_forwarded) = (is_allowed, is_forwarded);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Edit {
    Rules(usize, Vec<Line>),
    NoRules(usize, RulesState),
    Open { is_allowed: bool, is_forwarded: bool },
}

fn line() -> impl Strategy<Value = Line> {
    const NETS: &[Ipv4Addr] = &[SERVER, OTHER_SERVER, OWN_DNS[0], OWN_DNS[1], B];
    let prefix = (prop::sample::select(NETS), prop::sample::select(&[0u8, 8, 31, 32][..]));
    let ports =
        prop::sample::select(&[(443, 443), (53, 80), (0, 65535), (444, 5000), (22, 22)][..]);
    let match_of = prop_oneof![
        Just((None, None, None, false)),
        Just((Some(1), None, None, false)),
        Just((Some(1), None, Some(8), false)),
        Just((None, None, Some(13), false)),
        Just((Some(6), None, None, false)),
        Just((Some(17), None, None, false)),
        Just((None, None, None, true)),
        Just((Some(17), None, None, true)),
        (prop::sample::select(&[None, Some(6), Some(17)][..]), ports)
            .prop_map(|(protocol, ports)| (protocol, Some(ports), None, false)),
    ];
    (any::<bool>(), prop::option::of(prefix), match_of).prop_map(
        |(accepts, prefix, (protocol, ports, icmp_type, is_dns))| Line {
            accepts,
            protocol,
            prefix,
            ports,
            icmp_type,
            is_dns,
        },
    )
}

fn edit() -> impl Strategy<Value = Edit> {
    let client = 0usize..2;
    prop_oneof![
        8 => (client.clone(), prop::collection::vec(line(), 0..6))
            .prop_map(|(client, lines)| Edit::Rules(client, lines)),
        1 => client.clone().prop_map(|client| Edit::NoRules(client, RulesState::None)),
        1 => client.prop_map(|client| Edit::NoRules(client, RulesState::Refused)),
        3 => any::<(bool, bool)>().prop_map(|(is_allowed, is_forwarded)| Edit::Open {
            is_allowed,
            is_forwarded,
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn rule_edits_never_leave_a_forbidden_flow_alive(
        edits in prop::collection::vec((edit(), any::<bool>()), 1..20)
    ) {
        let mut world = World::new();
        for (edit, far_end_first) in edits {
            world.edit(edit);
            world.check(far_end_first)?;
            prop_assert_eq!(world.unaccepted, 0);
        }
    }

    /// The same without the check of what should pass: packets and edits in any order, and nothing leaves unaccepted.
    #[test]
    fn no_packet_leaves_without_an_accept(
        steps in prop::collection::vec(
            prop_oneof![
                1 => edit().prop_map(Ok),
                9 => (0..FLOWS.len(), any::<bool>()).prop_map(Err),
            ],
            1..120,
        )
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Ok(edit) => world.edit(edit),
                Err((at, true)) if FLOWS[at].kind != Kind::Forwarded || world.seen[at].is_some() => {
                    _ = world.forth(at);
                }
                Err((at, _)) => _ = world.back(at),
            }
            prop_assert_eq!(world.unaccepted, 0);
        }
    }
}

#[test]
fn the_harness_sees_both_outcomes() {
    let mut world = World::new();
    let everything = Line {
        accepts: true,
        protocol: None,
        prefix: None,
        ports: None,
        icmp_type: None,
        is_dns: false,
    };
    for client in [0, 1] {
        world.edit(Edit::Rules(client, vec![everything.clone()]));
    }
    world.edit(Edit::Open { is_allowed: true, is_forwarded: true });
    world.check(true).unwrap();
    world.check(false).unwrap();
    // All but what B would open to A.
    assert_eq!(world.seen.iter().filter(|seen| seen.is_some()).count(), FLOWS.len() - 2);
    assert_eq!((world.unaccepted, world.kit.fw.flow_count()), (0, FLOWS.len() - 2));
    // If the core's rules and those of the harness part ways, it tells.
    world.dom0.rules[0] = None;
    assert!(world.check(true).is_err());
    assert!(world.forth(0));
    assert!(world.unaccepted > 0);
    assert!(world.passed > 0);
}
