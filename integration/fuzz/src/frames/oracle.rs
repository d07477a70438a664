//! A second opinion about everything that leaves: what design section 3 promises, with a reading of the bytes (`view`)
//! and a memory of its own. Slow, and nothing here asks the code under test. `permits` says what is accepted as of now.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use firewall::visible::Visible;
use firewall::{Checksum, Mac, NetworkConfig, Offload, Origin, PortCaps, PortId};

use super::permits::{Goal, Permits};
use super::view::{self, Sense, Sum, View};
use super::world::{ABSENT, ADDRESSES, Family, MACS, REMOTES};

/// A flow that a client's packet left in, or that dom0 had forwarded to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    client: usize,
    /// As the world sees it.
    goal: Goal,
    /// Our port or identifier.
    ours: u16,
    /// The client's; nothing where it came in pieces, which do not tell it.
    port: Option<u16>,
    /// Where the client sent it, or whom it came from.
    asked: IpAddr,
}

/// A flow between clients: who opened it, its goal, and the port of who opened it.
type Between = (usize, Goal, u16);

pub(super) struct Oracle {
    pub(super) permits: Permits,
    pub(super) attached: [bool; 2],
    pub(super) caps: PortCaps,
    network: NetworkConfig,
    opened: BTreeSet<Seen>,
    /// From outside, where dom0 forwards a port.
    came: BTreeSet<Seen>,
    between: BTreeSet<Between>,
    /// What was forwarded last, and where it went.
    pub(super) recent: VecDeque<(PortId, View)>,
}

impl Oracle {
    pub(super) fn new(caps: PortCaps) -> Self {
        Self {
            permits: Permits::default(),
            attached: [false; 2],
            caps,
            network: NetworkConfig::default(),
            opened: BTreeSet::new(),
            came: BTreeSet::new(),
            between: BTreeSet::new(),
            recent: VecDeque::new(),
        }
    }

    /// Another own address ends all flows.
    pub(super) fn set_network(&mut self, config: NetworkConfig) {
        if self.network.v4.address != config.v4.address {
            self.opened.clear();
            self.came.clear();
            self.between.clear();
            self.recent.clear();
        }
        let (v4, v6) = (config.v4.dns.iter(), config.v6.dns.iter());
        self.permits.resolvers =
            v4.map(|a| IpAddr::V4(*a)).chain(v6.map(|a| IpAddr::V6(*a))).collect();
        self.network = config;
    }

    pub(super) fn detach(&mut self, client: usize) {
        self.attached[client] = false;
        self.opened.retain(|seen| seen.client != client);
        self.came.retain(|seen| seen.client != client);
        self.between.clear();
    }

    /// What the uplink sends to a forwarded port opens a flow, even if it is too large to get through itself.
    pub(super) fn arrives(&mut self, packet: &View) {
        let Some((from, to)) = packet.ports() else { return };
        let goal = Goal { protocol: packet.protocol, address: packet.src, port: from };
        for entry in &self.permits.forwarded {
            if (entry.protocol, entry.port) == (packet.protocol, to) {
                let (client, port, asked) = (entry.client, Some(entry.client_port), packet.src);
                self.came.insert(Seen { client, goal, ours: to, port, asked });
            }
        }
    }

    /// Whole frames: `before` is what came in.
    pub(super) fn frame(
        &mut self,
        (origin, length): (Origin, usize),
        port: PortId,
        before: Option<View>,
        after: &[u8],
        offload: Offload,
    ) {
        self.link(port, after);
        let Some(view) = View::new(after, offload.checksum) else {
            assert_eq!(
                &after[12..14],
                [0x08, 0x06],
                "neither IP nor ARP leaves: {origin:?} {port:?} {before:?} {after:02x?}"
            );
            assert!(before.is_none(), "IP became ARP");
            assert_eq!(PortId::from(origin), port, "ARP is answered and not forwarded");
            return;
        };
        assert!(view.header_is_right, "IP header: {view:?}");
        if offload.gso.is_none() {
            // An echo to its own sender is as long as what it sent, and it took that itself.
            let own = if PortId::from(origin) == port { length } else { 0 };
            let most = own.max(usize::from(self.caps.mtu) + 14);
            assert!(after.len() <= most, "{} bytes: {before:?}", after.len());
        }
        let takes_blank = match view.src {
            IpAddr::V4(_) => self.caps.accepts_blank_v4,
            IpAddr::V6(_) => self.caps.accepts_blank_v6,
        };
        assert!(offload.checksum != Checksum::Blank || takes_blank);
        if let Some(gso) = offload.gso {
            let takes_super_frames = match view.src {
                IpAddr::V4(_) => self.caps.accepts_gso_v4,
                IpAddr::V6(_) => self.caps.accepts_gso_v6,
            };
            assert!(takes_super_frames && offload.checksum == Checksum::Blank);
            let headers = after.len() - view.payload().len();
            let most = usize::from(self.caps.mtu) + 14;
            assert!(headers + usize::from(gso.size) <= most, "segments of {gso:?}: {before:?}");
        }
        self.packet(origin, port, &before.expect("what cannot be read is not sent on"), view);
    }

    /// A super-frame that leaves in segments. What its partial checksum says is nothing that a segment has.
    pub(super) fn segments(
        &mut self,
        origin: Origin,
        port: PortId,
        before: &View,
        segments: &[(Vec<u8>, Offload)],
    ) {
        assert!((2..=128).contains(&segments.len()), "{} segments", segments.len());
        let mut views = Vec::new();
        for (bytes, offload) in segments {
            self.link(port, bytes);
            let view = View::new(bytes, offload.checksum).expect("a segment is IP");
            assert!(view.header_is_right, "IP header: {view:?}");
            let most = usize::from(self.caps.mtu) + 14;
            assert!(bytes.len() <= most, "{} bytes: {view:?}", bytes.len());
            let takes_blank = match view.src {
                IpAddr::V4(_) => self.caps.accepts_blank_v4,
                IpAddr::V6(_) => self.caps.accepts_blank_v6,
            };
            assert!(offload.gso.is_none() && (offload.checksum != Checksum::Blank || takes_blank));
            assert!(matches!(view.sum, Sum::Right | Sum::Partial), "checksum: {view:?}");
            views.push(view);
        }
        let mut before = before.clone();
        before.sum = Sum::Partial;
        self.packet(origin, port, &before, View::joined(&views));
    }

    /// All pieces of a datagram that was cut; `before` is the frame that completed it.
    pub(super) fn pieces(&mut self, origin: Origin, before: &View, pieces: &[(PortId, Vec<u8>)]) {
        let Some((port, _)) = pieces.first() else { return };
        let mut views = Vec::new();
        for (to, bytes) in pieces {
            assert_eq!(to, port, "one datagram, two ways");
            self.link(*to, bytes);
            let view = View::new(bytes, Checksum::Full).expect("a piece is IP");
            assert!(view.header_is_right, "IP header: {view:?}");
            let most = usize::from(self.caps.mtu) + 14;
            assert!(bytes.len() <= most, "{} bytes: {view:?}", bytes.len());
            views.push(view);
        }
        self.packet(origin, *port, before, View::whole(&views));
    }

    /// What the firewall says by itself: ARP, neighbour discovery, or a question to a resolver, which is returned if it
    /// went by UDP.
    pub(super) fn own(&self, frame: &[u8]) -> Option<View> {
        self.link(PortId::Uplink, frame);
        let Some(view) = View::new(frame, Checksum::Full) else {
            assert_eq!(&frame[12..14], [0x08, 0x06], "neither IP nor ARP: {frame:02x?}");
            return None;
        };
        assert!(view.header_is_right && view.sum == Sum::Right, "{view:?}");
        assert_eq!(Some(view.src), self.own_address(Family::of(view.src)));
        if matches!(view.icmp_type(), Some(135 | 136)) && view.src.is_ipv6() {
            return None;
        }
        let is_question = matches!(view.ports(), Some((_, 53)));
        assert!(is_question && self.permits.resolvers.contains(&view.dst), "{view:?}");
        (view.protocol == 17).then_some(view)
    }

    fn link(&self, port: PortId, frame: &[u8]) {
        let link = (Mac(frame[..6].try_into().unwrap()), Mac(frame[6..12].try_into().unwrap()));
        match port {
            PortId::Client(id) => {
                let client = usize::from(id.0);
                assert!(self.attached[client], "sent to a client that is not there");
                assert_eq!(link, (MACS[client], Mac::GATEWAY));
            }
            PortId::Uplink => assert_eq!(link.1, MACS[2]),
        }
    }

    fn packet(&mut self, origin: Origin, port: PortId, before: &View, after: View) {
        if let PortId::Client(id) = port {
            self.hides(usize::from(id.0), &after);
        }
        match (origin, port) {
            (Origin::Client(id), PortId::Uplink) => {
                self.outbound(usize::from(id.0), before, &after)
            }
            (Origin::Uplink, PortId::Client(id)) => self.inbound(usize::from(id.0), before, &after),
            (Origin::Client(from), PortId::Client(to)) if from != to => {
                self.across(usize::from(from.0), usize::from(to.0), before, &after);
            }
            _ => return view::answer(before, &after),
        }
        self.recent.push_front((port, after));
        self.recent.truncate(4);
    }

    /// A client's packet that leaves: from our address, accepted by the rules in force, otherwise as it was.
    fn outbound(&mut self, client: usize, before: &View, after: &View) {
        let family = Family::of(after.src);
        let own = self.own_address(family);
        assert_eq!(Some(before.src), self.known(client, family), "spoofed");
        assert_eq!(Some(after.src), own, "it leaves under our address");
        let hosts = [ADDRESSES[0], ADDRESSES[1], ABSENT].map(|host| host.of(family));
        assert!(!hosts.contains(&after.dst), "to a client, through the uplink: {after:?}");
        assert_ne!(Some(after.dst), own, "to ourselves");
        view::forwarded(before, after);
        if after.is_icmp_error() {
            let about = |seen: &Seen| (seen.client, seen.goal.address) == (client, after.dst);
            assert!(self.opened.iter().chain(&self.came).any(about), "about nothing: {after:?}");
            return;
        }
        assert!(!after.is_icmp_reply(), "nobody asked a client: {after:?}");
        // A flow keeps the resolver that it began with.
        let is_begun = |seen: &Seen| {
            (seen.client, seen.asked, seen.goal.address) == (client, before.dst, after.dst)
        };
        let is_right = self.redirected(before.dst, after) == Some(after.dst);
        assert!(is_right || self.opened.iter().any(is_begun), "to {before:?} went {after:?}");
        let (goal, ours) = (Goal::of(after, Sense::Asks), after.near(Sense::Asks));
        let port = before.whole_near(Sense::Asks);
        let is_answer = |seen: &Seen| {
            (seen.client, seen.goal, seen.ours) == (client, goal, ours)
                && may_be(seen.port, port)
                && self.permits.forwards(goal.protocol, ours, client, seen.port)
        };
        if self.permits.accept(client, &goal) {
            self.opened.insert(Seen { client, goal, ours, port, asked: before.dst });
        } else {
            let is_forwarded = self.came.iter().any(is_answer);
            assert!(is_forwarded, "{goal:?} of client {client} is not accepted");
        }
    }

    /// A packet of the uplink that reaches a client: to our address, part of something that this client began and its
    /// rules still accept, or what dom0 opened.
    fn inbound(&mut self, client: usize, before: &View, after: &View) {
        let family = Family::of(after.dst);
        assert_eq!(Some(before.dst), self.own_address(family), "not for us");
        assert_eq!(Some(after.dst), self.known(client, family), "another's address");
        view::forwarded(before, after);
        if after.is_icmp_error() {
            let mut all = self.opened.iter().chain(&self.came);
            assert!(all.any(|seen| seen.client == client), "about nothing");
            return;
        }
        assert_eq!(after.icmp_type().is_some(), after.is_icmp_reply(), "asked: {after:?}");
        let from = Goal { address: before.src, ..Goal::of(after, Sense::Answers) };
        let (ours, port) = (before.whole_near(Sense::Answers), after.near(Sense::Answers));
        let is_same = |seen: &&Seen| {
            let remote = (seen.goal.protocol, seen.goal.address);
            (seen.client, remote) == (client, (from.protocol, from.address))
                && may_be(ours, Some(seen.ours))
                && may_be(seen.port, Some(port))
        };
        let ports = self.permits.forwarded_ports(from.protocol, client, port);
        let came: Vec<u16> = ports.filter(|entry| may_be(ours, Some(*entry))).collect();
        let is_forwarded = before.src == after.src && !came.is_empty();
        self.came.extend(came.into_iter().map(|ours| {
            let (port, asked) = (Some(port), before.src);
            Seen { client, goal: from, ours, port, asked }
        }));
        let mine: Vec<Seen> = self.opened.iter().filter(is_same).copied().collect();
        let is_accepted = |seen: &Seen| {
            let is_end = seen.goal.port == from.port || after.is_icmp_reply();
            is_end && seen.asked == after.src && self.permits.accept(client, &seen.goal)
        };
        if mine.iter().any(is_accepted) {
            return self.hears(&from, after);
        }
        // From another port of an address that the client has sent to.
        let is_peer = |seen: &&Seen| seen.asked == seen.goal.address && seen.asked == after.src;
        let peer = mine.iter().find(is_peer).filter(|_| {
            self.permits.by_address.contains(&client)
                && after.icmp_type().is_none()
                && self.permits.accept(client, &from)
        });
        match peer {
            Some(peer) => drop(self.opened.insert(Seen { goal: from, ..*peer })),
            None => assert!(is_forwarded, "{from:?} to port {port} of client {client}: closed"),
        }
    }

    /// From one client to another: dom0 lets it, and the rules of who opened the flow.
    fn across(&mut self, from: usize, to: usize, before: &View, after: &View) {
        let family = Family::of(after.dst);
        assert_eq!(Some(before.src), self.known(from, family), "spoofed");
        assert_eq!(after.src, ADDRESSES[from].of(family), "under its own address");
        assert_eq!(before.dst, ADDRESSES[to].of(family));
        assert_eq!(Some(after.dst), self.known(to, family), "another's address");
        view::forwarded(before, after);
        if after.is_icmp_error() {
            assert!(!self.between.is_empty(), "about nothing: {after:?}");
            return;
        }
        let goal = Goal { address: before.dst, ..Goal::of(after, Sense::Asks) };
        if !after.is_icmp_reply() && self.permits.accept_between(from, to, &goal) {
            self.between.insert((from, goal, after.near(Sense::Asks)));
            return;
        }
        let answered = Goal { address: after.src, ..Goal::of(after, Sense::Answers) };
        let is_accepted = |(opener, goal, port): &Between| {
            let is_end = after.is_icmp_reply() || goal.port == answered.port;
            let ends = (goal.protocol, goal.address, *port);
            (*opener, ends)
                == (to, (answered.protocol, answered.address, after.near(Sense::Answers)))
                && is_end
                && self.permits.accept_between(to, from, goal)
        };
        assert!(self.between.iter().any(is_accepted), "{after:?} from client {from} to {to}");
    }

    /// What a client that is told other addresses must not read in a header.
    fn hides(&self, client: usize, after: &View) {
        let Some(visible) = self.visible(client) else { return };
        assert!(after.src.is_ipv4(), "IPv6 to a client with a hidden address");
        assert!(matches!(visible, Visible::As { .. }), "dom0's word is not understood");
        let secret = [Some(ADDRESSES[client].of(Family::V4)), self.own_address(Family::V4)];
        let ends = [after.src, after.dst].into_iter().chain(after.quoted_ends());
        for address in ends {
            assert!(!secret.contains(&Some(address)), "{address} is told: {after:?}");
        }
    }

    /// An answer from the DNS port of a resolver may teach what address the name has.
    fn hears(&mut self, from: &Goal, after: &View) {
        if from.port != 53 || !self.permits.resolvers.contains(&from.address) {
            return;
        }
        for host in REMOTES {
            for address in [host.of(Family::V4), host.of(Family::V6)] {
                let octets = match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                if after.l4.windows(octets.len()).any(|bytes| bytes == octets) {
                    self.permits.answered.insert(address);
                }
            }
        }
    }

    /// Where a packet that was sent to `address` goes: DNS to the n-th resolver that clients know to the n-th of ours,
    /// cyclically; without one, nowhere.
    fn redirected(&self, address: IpAddr, packet: &View) -> Option<IpAddr> {
        let (v4, v6) = (&self.network.v4, &self.network.v6);
        let theirs: Vec<IpAddr> = match address {
            IpAddr::V4(_) => v4.client_dns.iter().map(|known| IpAddr::V4(*known)).collect(),
            IpAddr::V6(_) => v6.client_dns.iter().map(|known| IpAddr::V6(*known)).collect(),
        };
        let is_dns = matches!(packet.ports(), Some((_, 53)));
        let Some(nth) = theirs.iter().position(|known| is_dns && *known == address) else {
            return Some(address);
        };
        let ours = self.permits.resolvers.iter().filter(|own| own.is_ipv4() == address.is_ipv4());
        ours.cycle().nth(nth).copied()
    }

    fn visible(&self, client: usize) -> Option<Visible> {
        let real = ADDRESSES[client].of(Family::V4);
        let found = self.network.mapped.iter().find(|one| IpAddr::V4(one.real) == real);
        found.map(|one| one.visible)
    }

    /// The address that a client knows as its own.
    pub(super) fn known(&self, client: usize, family: Family) -> Option<IpAddr> {
        match (self.visible(client), family) {
            (None, family) => Some(ADDRESSES[client].of(family)),
            (Some(Visible::As { address, .. }), Family::V4) => Some(address.into()),
            (Some(_), _) => None,
        }
    }

    fn own_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.network.v4.address.map(IpAddr::V4),
            Family::V6 => self.network.v6.address.map(IpAddr::V6),
        }
    }
}

/// Whether two ports are the same, as far as they are known.
fn may_be(one: Option<u16>, other: Option<u16>) -> bool {
    one.is_none() || other.is_none() || one == other
}
