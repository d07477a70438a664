//! The state of the firewall, and what the control plane does with it. `pipeline` uses it per packet.

use core::net::IpAddr;
use core::num::NonZeroU32;

use rules::DecidedBy;

use crate::arp;
use crate::clients::{
    ClientPort, Clients, Generation, RuleEditReport, RulesState, TooManyAddresses,
};
use crate::conntrack::index::HashKey;
use crate::conntrack::table::Table;
use crate::conntrack::tcp::Tracker;
use crate::dns::{self, Dns};
use crate::drops::Drops;
use crate::exposure::Exposure;
use crate::fast::Epoch;
use crate::fragments::Fragments;
use crate::frame::Frame;
use crate::icmp::TokenBucket;
use crate::limits::{Limits, OutOfMemory};
use crate::mss::MssClamp;
use crate::nat::Nat;
use crate::nat::ports::Random;
use crate::nd;
use crate::netvm::NetvmVifs;
use crate::packet::{Packet, Upper};
use crate::planted::{Defect, is_planted};
use crate::port::{ClientId, Origin, PortId};
use crate::segment::Segments;
use crate::stats::{Counter, Stats};
use crate::time::Instant;
use crate::uplink::{Announced, NetworkConfig, Redirect, Uplink, UplinkPort};
use crate::verdict::{Answer, DropReason, Refusal, Verdict};
use crate::wire::protocol;

/// Flows that one call of [`Firewall::on_timer`] reclaims.
const RECLAIM_PER_TIMER: usize = 256;
pub(crate) const DNS_PORT: u16 = 53;
/// DHCP client: what Windows and others broadcast for before they believe their configuration.
const DHCP_CLIENT_PORT: u16 = 68;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// Why a vif cannot be attached; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The id is not below [`Limits::clients`].
    #[error("no such client slot")]
    NoSuchSlot,
    /// The id is in use.
    #[error("the client slot is in use")]
    SlotTaken,
    /// No room for its addresses.
    #[error(transparent)]
    TooManyAddresses(#[from] TooManyAddresses),
}

/// The firewall: clients, uplink, flows.
#[derive(Debug)]
pub struct Firewall {
    pub(crate) clients: Clients,
    pub(crate) network: NetworkConfig,
    pub(crate) uplink: Option<Uplink>,
    /// Of a NetVM that is a client; the uplink is behind them then.
    pub(crate) netvm: NetvmVifs,
    pub(crate) table: Table,
    pub(crate) nat: Nat,
    pub(crate) exposure: Exposure,
    pub(crate) mss_clamp: Option<MssClamp>,
    pub(crate) names: Dns,
    pub(crate) names_left_out: usize,
    pub(crate) fragments: Fragments,
    pub(crate) stats: Stats,
    pub(crate) drops: Drops,
    /// What in the rules decided about the flow that the latest frame would open.
    pub(crate) decided_by: Option<DecidedBy>,
    pub(crate) epoch: Epoch,
    limits: Limits,
    pub(crate) uplink_answers: TokenBucket,
}

impl Firewall {
    /// A firewall without clients, uplink or rules: it forwards nothing. Takes all memory that packets will need.
    ///
    /// # Errors
    /// If the tables do not fit into memory.
    pub fn new(limits: Limits, entropy: [u8; 32]) -> Result<Self, OutOfMemory> {
        let (words, _) = entropy.as_chunks::<8>();
        let [k0, k1, k2, k3] =
            [0, 1, 2, 3].map(|n| words.get(n).map_or(0, |word| u64::from_le_bytes(*word)));
        let key = HashKey(k0, k1);
        let mut random = Random::new(k2, k3);
        let name_limits = dns::Limits::for_clients(limits.addresses);
        Ok(Self {
            clients: Clients::new(&limits, key)?,
            network: NetworkConfig::default(),
            uplink: None,
            netvm: NetvmVifs::default(),
            table: Table::new(&limits, key)?,
            names: Dns::new(name_limits, key, random.fork())?,
            names_left_out: 0,
            nat: Nat::new(&limits, key, random)?,
            exposure: Exposure::default(),
            mss_clamp: None,
            fragments: Fragments::new(limits.fragment_bytes as usize, limits.clients, key)?,
            stats: Stats::new(limits.clients)?,
            drops: Drops::new(limits.drops(), key)?,
            decided_by: None,
            epoch: Epoch::FIRST,
            limits,
            uplink_answers: TokenBucket::default(),
        })
    }

    /// Mixes `seed` into the generator of ports and identifiers. The keys of the tables stay: they were drawn at boot.
    pub fn add_entropy(&mut self, seed: &[u8]) {
        self.nat.add_entropy(seed);
        self.names.add_entropy(seed);
    }

    /// Bounds the flows of all clients, and of one of them; the tables stay as large as they are. Without a number: all
    /// that there is room for, and a quarter for one client. Returns the bounds in force.
    pub fn set_flow_limits(
        &mut self,
        all: Option<NonZeroU32>,
        per_client: Option<NonZeroU32>,
    ) -> (u32, u32) {
        let most = all.map_or(self.limits.flows, NonZeroU32::get).min(self.limits.flows);
        let usual = all.map_or(self.limits.flows_per_client, |_| most / 4);
        let quota = per_client.map_or(usual, NonZeroU32::get).clamp(1, most);
        self.table.set_bounds(most, quota);
        (most, quota)
    }

    /// Attaches a vif: from now on its frames are handled and it can be sent to.
    ///
    /// # Errors
    /// If the slot does not exist or is in use, or the addresses do not fit.
    pub fn attach_client(&mut self, id: ClientId, port: ClientPort) -> Result<(), AttachError> {
        if !self.clients.has_slot(id) {
            return Err(AttachError::NoSuchSlot);
        }
        if self.clients.attached(id).is_some() || self.netvm.contains(id) {
            return Err(AttachError::SlotTaken);
        }
        self.epoch.advance();
        self.clients.attach(id, port)?;
        self.stats.retire(id);
        Ok(())
    }

    /// Detaches a vif. With the last vif of an address its flows end, those of other clients to it too. An id that is
    /// not attached has no effect.
    pub fn detach_client(&mut self, id: ClientId) {
        self.epoch.advance();
        if self.detach_netvm(id) {
            self.fragments.forget(Origin::Uplink);
            return;
        }
        self.fragments.forget(Origin::Client(id));
        for host in self.clients.detach(id).into_iter().flatten() {
            if is_planted(Defect::DetachedFlowsKept) {
                continue;
            }
            while let Some(flow) = self.table.any_of(host) {
                self.end_flow(flow);
            }
            self.end_allowed_to(host);
            self.clients.forget_unused(Some(host));
        }
    }

    /// Puts rules into force for a source address, attached or not. Flows are judged again at their next packet.
    ///
    /// # Errors
    /// If there is no room for the address.
    pub fn set_rules(
        &mut self,
        now: Instant,
        address: IpAddr,
        rules: RulesState,
    ) -> Result<Generation, TooManyAddresses> {
        self.epoch.advance();
        let generation = self.clients.set_rules(now, address, rules)?;
        if is_planted(Defect::EditEndsFlows)
            && let Some(host) = self.clients.find(address)
        {
            while let Some(flow) = self.table.any_of(host) {
                self.end_flow(flow);
            }
        }
        self.fragments.forget_accepted();
        self.register_names(now, address);
        Ok(generation)
    }

    /// Replaces the network configuration. Another own address ends all flows; other resolvers have them judged again.
    ///
    /// # Errors
    /// If there is no room for the connected addresses; the configuration stays what it was.
    pub fn set_network(&mut self, config: NetworkConfig) -> Result<(), TooManyAddresses> {
        self.epoch.advance();
        self.clients.set_connected(&config.connected)?;
        self.clients.set_mapped(&config.mapped);
        let old = core::mem::replace(&mut self.network, config);
        let new = &self.network;
        let is_moved = old.v4.address != new.v4.address || old.v6.address != new.v6.address;
        if let Some(uplink) = &mut self.uplink {
            if (old.v4.address, old.v4.gateway) != (new.v4.address, new.v4.gateway) {
                uplink.v4.restart();
            }
            if (old.v6.address, old.v6.gateway) != (new.v6.address, new.v6.gateway) {
                uplink.v6.restart();
            }
        }
        if old.v4.dns != new.v4.dns || old.v6.dns != new.v6.dns {
            self.start_generation();
        }
        if is_moved {
            self.fragments.forget(Origin::Uplink);
            while let Some(flow) = self.table.any() {
                self.end_flow(flow);
            }
            self.table.set_own(self.network.own());
        }
        Ok(())
    }

    /// Attaches or detaches the uplink. Flows stay: a NetVM that restarts finds them again.
    pub fn set_uplink(&mut self, now: Instant, uplink: Option<UplinkPort>) {
        self.epoch.advance();
        self.uplink = uplink.map(|port| Uplink::new(now, port));
        self.fragments.forget(Origin::Uplink);
    }

    /// When a rule change met its first packet; each change is reported once.
    pub fn take_rule_edit_report(&mut self) -> Option<RuleEditReport> {
        self.clients.take_report()
    }

    /// Writes the next frame of our own that is due, if any, and says where it goes.
    pub fn poll_generate(&mut self, now: Instant, frame: &mut Frame<'_>) -> Option<PortId> {
        frame.evidence = None;
        if let Some(port) = self.next_piece(frame) {
            return Some(port);
        }
        let port = self.announce(now, frame).or_else(|| self.ask_for_names(now, frame))?;
        self.pass_generated(port, frame).then(|| self.port_of(port))
    }

    fn announce(&mut self, now: Instant, frame: &mut Frame<'_>) -> Option<PortId> {
        loop {
            let uplink = self.uplink.as_mut()?;
            let own_mac = uplink.port.mac;
            let written = match uplink.announce(now, &self.network)? {
                Announced::V4(what) => arp::announce(frame, &self.network, own_mac, what),
                Announced::V6(what) => nd::announce(frame, &self.network, own_mac, what),
            };
            if written.is_some() {
                self.stats.count(PortId::Uplink, Counter::OwnFrames, 1);
                return Some(PortId::Uplink);
            }
        }
    }

    /// Counts segments of a frame from `origin` that could not be written ([`crate::verdict::Fate::Segments`]).
    pub fn lose_segments(&mut self, origin: Origin, segments: Segments) {
        let side = self.side_of(origin).unwrap_or(origin);
        for _ in 0..segments.left() {
            self.stats.count_drop(side, DropReason::SegmentsLost);
            self.drops.note_bare(&self.clients, side, DropReason::SegmentsLost);
        }
    }

    /// Whether [`Firewall::poll_generate`] may have a frame: where it has none, nobody needs a page for it.
    #[must_use]
    pub fn may_generate(&self, now: Instant) -> bool {
        self.next_piece_len().is_some() || self.own_deadline().is_some_and(|due| due <= now)
    }

    /// When [`Firewall::on_timer`] and [`Firewall::poll_generate`] have something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let others = [self.fragments.next_deadline(), self.table.next_deadline()];
        others.into_iter().chain([self.own_deadline()]).flatten().min()
    }

    /// When there are frames of our own.
    fn own_deadline(&self) -> Option<Instant> {
        let announcement = self.uplink.and_then(|uplink| uplink.next_deadline(&self.network));
        [announcement, self.names.next_deadline()].into_iter().flatten().min()
    }

    /// Reclaims a bounded number of expired flows, and keeps the names in rules resolved.
    pub fn on_timer(&mut self, now: Instant) {
        self.resolve_names(now);
        self.reclaim(now, RECLAIM_PER_TIMER);
        self.expire_fragments(now);
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What in the rules of its client decided about the frame that was handled last. Nothing if they were not asked: it
    /// was part of a known flow, or ended before.
    #[must_use]
    pub fn decided_by(&self) -> Option<DecidedBy> {
        self.decided_by
    }

    /// The network configuration in force.
    #[must_use]
    pub fn network(&self) -> &NetworkConfig {
        &self.network
    }

    /// Flows in the table; expired ones count until they are reclaimed.
    #[must_use]
    pub fn flow_count(&self) -> usize {
        self.table.len()
    }

    /// Flows that all clients, and one of them, may have now.
    #[must_use]
    pub fn flow_limits(&self) -> (u32, u32) {
        self.table.bounds()
    }

    /// What the tables were made for.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The vif in a slot.
    #[must_use]
    pub fn client_port(&self, id: ClientId) -> Option<&ClientPort> {
        self.clients.attached(id).map(|client| &client.port)
    }

    /// Flows of one client address.
    #[must_use]
    pub fn flows_of(&self, address: IpAddr) -> usize {
        self.clients.find(address).map_or(0, |host| self.table.owned_by(host) as usize)
    }
}

/// Steps of `pipeline` that are no stage of their own.
impl Firewall {
    pub(crate) fn count_received(&mut self, origin: Origin, frame: &Frame<'_>) {
        self.stats.count(origin.into(), Counter::ReceivedFrames, 1);
        self.stats.count(origin.into(), Counter::ReceivedBytes, frame.len() as u64);
    }

    pub(crate) fn arp_from_client(
        &self,
        id: ClientId,
        message: arp::Message,
        frame: &mut Frame<'_>,
    ) -> Verdict {
        match self.clients.attached(id) {
            Some(client) => arp::from_client(client, message, frame),
            None => DropReason::UnknownPort.into(),
        }
    }

    pub(crate) fn nd_from_client(
        &self,
        id: ClientId,
        message: nd::Message,
        frame: &mut Frame<'_>,
    ) -> Verdict {
        match self.clients.attached(id) {
            Some(client) => nd::from_client(&client.port, message, frame),
            None => DropReason::UnknownPort.into(),
        }
    }

    /// The destination of a packet once DNS to the clients' resolvers goes to ours.
    pub(crate) fn redirect_dns(&self, packet: &Packet) -> Result<IpAddr, DropReason> {
        let has_ports = matches!(packet.protocol, protocol::TCP | protocol::UDP);
        if !has_ports || packet.destination_port != DNS_PORT {
            return Ok(packet.destination);
        }
        match self.network.redirect_dns(packet.destination) {
            Redirect::Unchanged => Ok(packet.destination),
            Redirect::To(resolver) => Ok(resolver),
            Redirect::Nowhere => Err(DropReason::NoResolver),
        }
    }
}

/// What the firewall itself does with a client's packet to it (as Qubes' `custom-input` chain is empty: echo only).
pub(crate) fn local(packet: &Packet) -> Verdict {
    let service = Verdict::Reject(DropReason::LocalService, Refusal::HostProhibited);
    match packet.upper {
        Upper::IcmpQuery(ECHO_REQUEST | ECHO_REQUEST_V6) => Verdict::Answer(Answer::Echo),
        Upper::Udp
            if packet.destination_port == DHCP_CLIENT_PORT && packet.destination.is_ipv4() =>
        {
            DropReason::LocalSilent.into()
        }
        Upper::Tcp(segment) if Tracker::first(&segment).is_none() => {
            DropReason::NotAFirstPacket.into()
        }
        Upper::Tcp(_) | Upper::Udp | Upper::Other => service,
        Upper::IcmpQuery(_) | Upper::IcmpReply | Upper::IcmpError(_) | Upper::IcmpOther(_) => {
            DropReason::LocalSilent.into()
        }
    }
}
