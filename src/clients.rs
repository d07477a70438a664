//! Clients: vif slots, and what is known about each client address.
//!
//! Two tables: a slot per vif ([`ClientId`], chosen by the platform) and a host per address, which holds the rules and
//! owns the flows. Several vifs may carry one address (an HVM and its stub domain); an address may have rules before its
//! vif appears, or be known from `/connected-ips` only.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rules::CompiledSet;

use crate::conntrack::index::{HashKey, Index};
use crate::conntrack::slab::Slab;
use crate::icmp::TokenBucket;
use crate::limits::{Limits, OutOfMemory};
use crate::planted::{Defect, is_planted};
use crate::port::{ClientId, Origin, PortCaps};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::visible::{MappedIp, Visible};
use crate::wire::Mac;

/// Rule edits whose report nobody has taken yet; older ones are overwritten.
const REPORTS: usize = 16;

/// A connected client vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPort {
    /// Domain behind it; of several vifs with one address the highest is preferred.
    pub domid: u16,
    /// MAC address of the client (`mac` node).
    pub mac: Mac,
    /// Its only legal IPv4 source (`ip` node).
    pub ip4: Option<Ipv4Addr>,
    /// Its only legal IPv6 source (`ip` node).
    pub ip6: Option<Ipv6Addr>,
    /// What the frontend can receive.
    pub caps: PortCaps,
}

/// Rules of one client address.
#[derive(Clone, Debug, Default)]
pub enum RulesState {
    /// None committed: everything is dropped in silence.
    #[default]
    None,
    /// Committed but not understood: everything is rejected.
    Refused,
    /// In force.
    Active(CompiledSet),
}

/// Number of a rule change of one address. Flows of an older generation are judged again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

/// When a rule change met its first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleEditReport {
    /// Source whose rules changed.
    pub address: IpAddr,
    /// The change.
    pub generation: Generation,
    /// `now` of [`crate::Firewall::set_rules`].
    pub committed_at: Instant,
    /// `now` of the first packet that was judged by the new rules.
    pub first_judged_at: Instant,
}

/// More addresses than [`Limits::addresses`]: nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more client addresses than the firewall has room for")]
pub struct TooManyAddresses;

/// Slot of a [`Host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostId(pub(crate) u32);

/// What is known about one client address.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) address: IpAddr,
    pub(crate) rules: RulesState,
    pub(crate) generation: Generation,
    /// Which commit of rules is in force: no two of them, of whatever address, have the same number.
    pub(crate) edition: u32,
    /// Vif that packets for the address go to; set while at least one is attached.
    pub(crate) port: Option<ClientId>,
    /// The vif that sent the latest valid packet.
    last_sender: Option<ClientId>,
    is_connected: bool,
    /// Commit time of rules that no packet has met yet.
    edited_at: Option<Instant>,
}

/// An attached vif.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) port: ClientPort,
    pub(crate) host4: Option<HostId>,
    pub(crate) host6: Option<HostId>,
    /// Set if the client is told other addresses than its real ones.
    pub(crate) visible: Option<Visible>,
    pub(crate) answers: TokenBucket,
}

impl Attached {
    /// The IPv4 address that the client takes for its own.
    pub(crate) fn known_ip4(&self) -> Result<Option<Ipv4Addr>, DropReason> {
        match self.visible {
            None => Ok(self.port.ip4),
            Some(Visible::As { address, .. }) => Ok(Some(address)),
            Some(Visible::Unknown) => Err(DropReason::MappingUnknown),
        }
    }
}

impl Host {
    /// Notes that a vif sent a packet from this address.
    #[inline]
    pub(crate) fn heard(&mut self, id: ClientId) {
        self.last_sender = Some(id);
        self.port = Some(id);
    }
}

/// The two tables.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Clients {
    slots: Box<[Option<Attached>]>,
    hosts: Slab<Host>,
    by_address: Index,
    /// Clients that are told other addresses, ascending.
    mapped: Vec<MappedIp>,
    key: HashKey,
    reports: [Option<RuleEditReport>; REPORTS],
    next_report: usize,
    /// Commits of rules so far.
    editions: u32,
}

impl Clients {
    pub(crate) fn new(limits: &Limits, key: HashKey) -> Result<Self, OutOfMemory> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(usize::from(limits.clients)).map_err(|_| OutOfMemory)?;
        slots.resize_with(usize::from(limits.clients), || None);
        Ok(Self {
            slots: slots.into_boxed_slice(),
            hosts: Slab::with_capacity(u32::from(limits.addresses))?,
            by_address: Index::with_capacity(u32::from(limits.addresses))?,
            mapped: Vec::new(),
            key,
            reports: [None; REPORTS],
            next_report: 0,
            editions: 0,
        })
    }

    /// The vif in a slot.
    pub(crate) fn attached(&self, id: ClientId) -> Option<&Attached> {
        self.slots.get(usize::from(id.0))?.as_ref()
    }

    pub(crate) fn attached_mut(&mut self, id: ClientId) -> Option<&mut Attached> {
        self.slots.get_mut(usize::from(id.0))?.as_mut()
    }

    /// Whether the slot exists.
    pub(crate) fn has_slot(&self, id: ClientId) -> bool {
        usize::from(id.0) < self.slots.len()
    }

    /// Whether `address` is one of a client, attached or merely known to dom0.
    pub(crate) fn is_client(&self, address: IpAddr) -> bool {
        let host = self.find(address).and_then(|id| self.host(id));
        host.is_some_and(|host| host.is_connected || host.port.is_some())
    }

    /// Whether a vif is attached for `address`.
    pub(crate) fn is_attached(&self, address: IpAddr) -> bool {
        let host = self.find(address).and_then(|id| self.host(id));
        host.is_some_and(|host| host.port.is_some())
    }

    pub(crate) fn host(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(id.0)
    }

    #[inline]
    pub(crate) fn host_mut(&mut self, id: HostId) -> Option<&mut Host> {
        self.hosts.get_mut(id.0)
    }

    /// The address of who sent something, of a family if it has one.
    pub(crate) fn address_at(&self, origin: Origin, is_ipv6: bool) -> Option<IpAddr> {
        let Origin::Client(id) = origin else { return None };
        let port = &self.attached(id)?.port;
        let (v4, v6) = (port.ip4.map(IpAddr::V4), port.ip6.map(IpAddr::V6));
        if is_ipv6 { v6.or(v4) } else { v4.or(v6) }
    }

    /// The first address at or behind a place, with its place.
    pub(crate) fn host_from(&self, place: u32) -> Option<(HostId, &Host)> {
        let mut places = place..self.hosts.slots();
        places.find_map(|place| Some((HostId(place), self.hosts.get(place)?)))
    }

    /// All addresses that something is known about.
    pub(crate) fn all_hosts(&self) -> impl Iterator<Item = (HostId, &Host)> {
        let places = 0..self.hosts.slots();
        places.filter_map(|place| Some((HostId(place), self.hosts.get(place)?)))
    }

    /// Whether rules were committed for the address, understood or not.
    pub(crate) fn has_rules(&self, id: HostId) -> bool {
        self.host(id).is_some_and(|host| !matches!(host.rules, RulesState::None))
    }

    pub(crate) fn find(&self, address: IpAddr) -> Option<HostId> {
        let is_match = |slot| self.hosts.get(slot).is_some_and(|host| host.address == address);
        self.by_address.find(self.hash(address), is_match).map(HostId)
    }

    /// Puts a vif into an empty slot.
    pub(crate) fn attach(
        &mut self,
        id: ClientId,
        port: ClientPort,
    ) -> Result<(), TooManyAddresses> {
        let host4 = port.ip4.map(|ip| self.find_or_add(ip.into())).transpose()?;
        let host6 = match port.ip6.map(|ip| self.find_or_add(ip.into())).transpose() {
            Ok(host6) => host6,
            Err(error) => {
                self.forget_unused(host4);
                return Err(error);
            }
        };
        let visible = visible_of(&self.mapped, port.ip4);
        if let Some(slot) = self.slots.get_mut(usize::from(id.0)) {
            *slot = Some(Attached { port, host4, host6, visible, answers: TokenBucket::default() });
        }
        [host4, host6].into_iter().flatten().for_each(|host| self.choose_port(host));
        Ok(())
    }

    /// Empties a slot. Returns the addresses that have no vif any more: their flows have to go.
    pub(crate) fn detach(&mut self, id: ClientId) -> [Option<HostId>; 2] {
        let Some(gone) = self.slots.get_mut(usize::from(id.0)).and_then(Option::take) else {
            return [None; 2];
        };
        [gone.host4, gone.host6].map(|host| {
            let host = host?;
            if let Some(state) = self.hosts.get_mut(host.0)
                && state.last_sender == Some(id)
            {
                state.last_sender = None;
            }
            self.choose_port(host);
            self.host(host)?.port.is_none().then_some(host)
        })
    }

    /// Notes that the vif sent a packet from its own address, so answers go there.
    pub(crate) fn heard(&mut self, id: ClientId, host: HostId) {
        if let Some(host) = self.host_mut(host) {
            host.heard(id);
        }
    }

    /// Replaces the rules of an address and starts a new generation.
    pub(crate) fn set_rules(
        &mut self,
        now: Instant,
        address: IpAddr,
        rules: RulesState,
    ) -> Result<Generation, TooManyAddresses> {
        let id = self.find_or_add(address)?;
        let Some(host) = self.hosts.get_mut(id.0) else { return Err(TooManyAddresses) };
        self.editions = self.editions.wrapping_add(1);
        host.edition = self.editions;
        host.rules = rules;
        if !is_planted(Defect::GenerationKept) {
            host.generation = Generation(host.generation.0.wrapping_add(1));
        }
        host.edited_at = Some(now);
        let generation = host.generation;
        self.forget_unused(Some(id));
        Ok(generation)
    }

    /// Has every flow judged again, after something changed that all rules depend on.
    pub(crate) fn start_generation_for_all(&mut self) {
        self.hosts.for_each_mut(|host| {
            host.generation = Generation(host.generation.0.wrapping_add(1));
        });
    }

    /// Replaces the list of addresses that dom0 knows.
    pub(crate) fn set_connected(&mut self, connected: &[IpAddr]) -> Result<(), TooManyAddresses> {
        let result = connected.iter().try_for_each(|ip| self.find_or_add(*ip).map(drop));
        if result.is_ok() {
            self.hosts.for_each_mut(|host| host.is_connected = connected.contains(&host.address));
        }
        self.forget_all_unused();
        result
    }

    /// Replaces what clients are told, attached ones too.
    pub(crate) fn set_mapped(&mut self, mapped: &[MappedIp]) {
        self.mapped = mapped.to_vec();
        for attached in self.slots.iter_mut().flatten() {
            attached.visible = visible_of(&self.mapped, attached.port.ip4);
        }
    }

    /// Notes that a packet of `host` was judged by its current rules.
    pub(crate) fn judged(&mut self, now: Instant, host: HostId) {
        let Some(host) = self.hosts.get_mut(host.0) else { return };
        let Some(committed_at) = host.edited_at.take() else { return };
        let report = RuleEditReport {
            address: host.address,
            generation: host.generation,
            committed_at,
            first_judged_at: now,
        };
        if let Some(place) = self.reports.get_mut(self.next_report % REPORTS) {
            *place = Some(report);
        }
        self.next_report = self.next_report.wrapping_add(1);
    }

    /// The oldest report that was not taken yet.
    pub(crate) fn take_report(&mut self) -> Option<RuleEditReport> {
        let (older, newer) = (self.next_report % REPORTS..REPORTS, 0..self.next_report % REPORTS);
        older.chain(newer).find_map(|at| self.reports.get_mut(at)?.take())
    }

    fn hash(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(v4) => self.key.hash(&[u64::from(u32::from(v4))]),
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                self.key.hash(&[(bits >> 64) as u64, bits as u64])
            }
        }
    }

    fn find_or_add(&mut self, address: IpAddr) -> Result<HostId, TooManyAddresses> {
        if let Some(id) = self.find(address) {
            return Ok(id);
        }
        let host = Host {
            address,
            rules: RulesState::None,
            generation: Generation::default(),
            edition: 0,
            port: None,
            last_sender: None,
            is_connected: false,
            edited_at: None,
        };
        let slot = self.hosts.insert(host).ok_or(TooManyAddresses)?;
        self.by_address.insert(self.hash(address), slot);
        Ok(HostId(slot))
    }

    /// The vif that sent last, else the one of the highest domain, as Linux' route metric does.
    fn choose_port(&mut self, id: HostId) {
        let candidates = (0u16..).map(ClientId).zip(self.slots.iter());
        let highest = candidates
            .filter_map(|(slot, attached)| Some((slot, attached.as_ref()?)))
            .filter(|(_, attached)| attached.host4 == Some(id) || attached.host6 == Some(id))
            .max_by_key(|(_, attached)| attached.port.domid)
            .map(|(slot, _)| slot);
        if let Some(host) = self.hosts.get_mut(id.0) {
            host.port = host.last_sender.or(highest);
        }
    }

    /// Frees a host that nothing is known about any more. Called for hosts without flows only: those have a vif.
    pub(crate) fn forget_unused(&mut self, id: Option<HostId>) {
        let Some(id) = id else { return };
        let Some(host) = self.hosts.get(id.0) else { return };
        if host.is_connected || host.port.is_some() || !matches!(host.rules, RulesState::None) {
            return;
        }
        let hash = self.hash(host.address);
        self.by_address.remove(hash, id.0);
        self.hosts.remove(id.0);
    }

    fn forget_all_unused(&mut self) {
        for slot in 0..self.hosts.slots() {
            self.forget_unused(Some(HostId(slot)));
        }
    }
}

fn visible_of(mapped: &[MappedIp], real: Option<Ipv4Addr>) -> Option<Visible> {
    let at = mapped.binary_search_by_key(&real?, |one| one.real).ok()?;
    mapped.get(at).map(|one| one.visible)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(addresses: u16) -> Clients {
        let limits =
            Limits { clients: 4, addresses, flows: 8, flows_per_client: 8, fragment_bytes: 0 };
        Clients::new(&limits, HashKey(1, 2)).unwrap()
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 137, 0, last)
    }

    fn vif(domid: u16, last: u8) -> ClientPort {
        let mac = Mac([0, 0x16, 0x3e, 0, 0, last]);
        ClientPort { domid, mac, ip4: Some(ip(last)), ip6: None, caps: PortCaps::PLAIN }
    }

    fn port_of(clients: &Clients, last: u8) -> Option<ClientId> {
        clients.host(clients.find(ip(last).into())?)?.port
    }

    #[test]
    fn of_two_vifs_with_one_address_the_highest_domain_is_used_until_one_sends() {
        let mut clients = clients(4);
        clients.attach(ClientId(0), vif(9, 10)).unwrap();
        clients.attach(ClientId(1), vif(7, 10)).unwrap();
        assert_eq!(port_of(&clients, 10), Some(ClientId(0)));
        let host = clients.find(ip(10).into()).unwrap();
        clients.heard(ClientId(1), host);
        assert_eq!(port_of(&clients, 10), Some(ClientId(1)));
        assert_eq!(clients.detach(ClientId(1)), [None, None]);
        assert_eq!(port_of(&clients, 10), Some(ClientId(0)));
        assert_eq!(clients.detach(ClientId(0)), [Some(host), None]);
        assert_eq!(port_of(&clients, 10), None);
    }

    #[test]
    fn addresses_are_bounded_and_freed() {
        let mut clients = clients(2);
        let accept = || RulesState::Refused;
        clients.set_rules(Instant::default(), ip(1).into(), accept()).unwrap();
        clients.attach(ClientId(0), vif(1, 2)).unwrap();
        assert_eq!(clients.attach(ClientId(1), vif(2, 3)), Err(TooManyAddresses));
        let connected = [IpAddr::from(ip(4))];
        assert_eq!(clients.set_connected(&connected), Err(TooManyAddresses));
        clients.set_rules(Instant::default(), ip(1).into(), RulesState::None).unwrap();
        assert_eq!(clients.set_connected(&connected), Ok(()));
        assert!(clients.is_client(ip(4).into()));
        assert_eq!(clients.set_connected(&[]), Ok(()));
        assert!(!clients.is_client(ip(4).into()));
        assert_eq!(clients.attach(ClientId(1), vif(2, 3)), Ok(()));
    }

    #[test]
    fn reports_come_oldest_first_and_are_bounded() {
        let mut clients = clients(1);
        let address = ip(1).into();
        for nanos in 0..20 {
            let at = Instant::from_nanos(nanos);
            clients.set_rules(at, address, RulesState::Refused).unwrap();
            let host = clients.find(address).unwrap();
            clients.judged(at.after(core::time::Duration::from_nanos(1)), host);
            clients.judged(Instant::from_nanos(99), host);
        }
        let mut taken = core::iter::from_fn(|| clients.take_report());
        let first = taken.next().unwrap();
        assert_eq!((first.generation, first.committed_at), (Generation(5), Instant::from_nanos(4)));
        assert_eq!(first.first_judged_at, Instant::from_nanos(5));
        assert_eq!(taken.count(), REPORTS - 1);
    }
}
