//! A second opinion about everything that leaves: what design section 3 promises, with a reading of the bytes (`view`)
//! and a memory of its own. Slow, and nothing here asks the code under test.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use firewall::{Checksum, Mac, NetworkConfig, Offload, Origin, PortCaps, PortId};
use rules::{HostName, NameMatch, Names, RuleSet, Subject, Upper, Verdict};

use super::view::{Piece, Sum, View};
use super::world::{ADDRESSES, Family, MACS};

/// What a flow is called outside: client, protocol, remote address and port, our port or identifier.
type Outside = (usize, u8, IpAddr, u16, u16);

pub(super) struct Oracle {
    /// Rules in force: of A and B, IPv4 and IPv6.
    pub(super) rules: [[Option<RuleSet>; 2]; 2],
    pub(super) attached: [bool; 2],
    pub(super) caps: PortCaps,
    network: NetworkConfig,
    /// Every outside name that a client's packet left under.
    seen: BTreeSet<Outside>,
    /// What left through the uplink last.
    pub(super) recent: VecDeque<View>,
}

impl Oracle {
    pub(super) fn new(caps: PortCaps) -> Self {
        Self {
            rules: Default::default(),
            attached: [false; 2],
            caps,
            network: NetworkConfig::default(),
            seen: BTreeSet::new(),
            recent: VecDeque::new(),
        }
    }

    /// Another own address ends all flows.
    pub(super) fn set_network(&mut self, config: NetworkConfig) {
        if self.network.v4.address != config.v4.address {
            self.seen.clear();
            self.recent.clear();
        }
        self.network = config;
    }

    pub(super) fn detach(&mut self, client: usize) {
        self.attached[client] = false;
        self.seen.retain(|(owner, ..)| *owner != client);
    }

    /// A piece of what was cut. What leaves in pieces opens a flow as well.
    pub(super) fn piece(&mut self, origin: Origin, port: PortId, bytes: &[u8]) {
        let view = View::new(bytes, Checksum::Full).expect("a piece is IP");
        assert!(view.header_is_right, "IP header: {view:?}");
        let most = usize::from(self.caps.mtu) + 14;
        assert!(bytes.len() <= most, "{} bytes: {view:?}", bytes.len());
        let (Origin::Client(id), PortId::Uplink) = (origin, port) else { return };
        let client = usize::from(id.0);
        assert_eq!(Some(view.src), self.own_address(view.src.is_ipv6()));
        if let Some(name) = outside(client, &view, view.dst, true) {
            self.seen.insert(name);
        }
    }

    /// What is sent is whole, and goes where it may go.
    pub(super) fn judge(
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
