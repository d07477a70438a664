//! From a checked packet to its flow: found, judged again where the rules changed, or opened.

use core::net::IpAddr;

use crate::clients::{HostId, RulesState};
use crate::conntrack::table::{FlowId, NoRoom};
use crate::conntrack::tcp::{Sender, Step, Tracker};
use crate::conntrack::{Basis, Class, Flow, Hold, NewFlow, Permit, Standing, Tuple};
use crate::firewall::Firewall;
use crate::frame::Frame;
use crate::icmp;
use crate::judge::judge;
use crate::nat::rewrite::{self, Ends};
use crate::nat::{self, Endpoint, MappingId, icmp_error};
use crate::packet::{Packet, Quote, Quoted, Upper};
use crate::planted::{Defect, is_planted};
use crate::port::PortId;
use crate::stats::Counter;
use crate::time::Instant;
use crate::verdict::{DropReason, Refusal, Verdict};
use crate::wire::ipv6;

/// Smallest path MTU that an ICMP message can report for IPv4 (RFC 791: what every host takes).
const MIN_PATH_MTU_V4: u16 = 576;
/// Flows that are reclaimed on the way when a new one opens.
pub(crate) const RECLAIM_PER_NEW_FLOW: usize = 4;
/// DNS (RFC 1035), which gets a shorter life.
const DNS_PORT: u16 = 53;

impl Firewall {
    /// The flow that a client's packet belongs to, opened if the rules accept it.
    pub(crate) fn flow_of_client(
        &mut self,
        now: Instant,
        host: HostId,
        packet: &Packet,
        remote: IpAddr,
        basis: Basis,
    ) -> Result<FlowId, Verdict> {
        match packet.upper {
            Upper::IcmpError(quote) => return self.flow_of_client_error(now, packet, &quote),
            // The answer to a query is no part of a flow that its sender opened.
            Upper::IcmpReply => return Err(DropReason::NotAFirstPacket.into()),
            _ => {}
        }
        let inside = packet.outbound();
        let Some(id) = self.table.find_inside(&inside).and_then(|id| self.live(now, id)) else {
            return self.open(now, host, packet, remote, basis);
        };
        self.admit(now, id).map_err(|reason| forbidden(reason, packet, IsKnown::Yes))?;
        if self.follow(id, Sender::Client, packet) == Step::Reopen {
            self.end_flow(id);
            return self.open(now, host, packet, remote, basis);
        }
        let Some(flow) = self.table.get(id) else { return Err(DropReason::NoFlow.into()) };
        let tracker = flow.tcp;
        let class = tracker.map_or(flow.class, |tracker| tracker.class());
        self.table.renew(now, id, class);
        if let Some(tracker) = tracker {
            self.table.set_hold(id, tracker.hold());
        }
        Ok(id)
    }

    /// The flow that a packet to a client belongs to, from the uplink or, where clients may talk, from another client.
    /// Opened if dom0 said so.
    pub(crate) fn flow_of_uplink(
        &mut self,
        now: Instant,
        packet: &Packet,
    ) -> Result<FlowId, Verdict> {
        match packet.upper {
            Upper::IcmpError(quote) => return self.flow_of_uplink_error(now, packet, &quote),
            Upper::IcmpQuery(_) | Upper::IcmpOther(_) => return Err(DropReason::NoFlow.into()),
            Upper::Tcp(_) | Upper::Udp | Upper::IcmpReply | Upper::Other => {}
        }
        let found = self.table.find_outside(&packet.inbound());
        let Some(id) = found.and_then(|id| self.live(now, id)) else {
            return self.open_from_uplink(now, packet);
        };
        self.admit(now, id)?;
        match self.follow(id, Sender::Remote, packet) {
            Step::Pass => {}
            Step::Reopen if self.table.get(id).is_some_and(|f| f.basis() == Basis::Forwarded) => {
                self.end_flow(id);
                return self.open_from_uplink(now, packet);
            }
            Step::Reopen | Step::OutOfWindow => return Err(DropReason::TcpOutOfWindow.into()),
        }
        self.note_answer(now, id);
        Ok(id)
    }

    /// Gives a client's packet our address and the flow's port, and the evidence that the flow is accepted.
    pub(crate) fn translate_outbound(
        &self,
        id: FlowId,
        packet: &Packet,
        frame: &mut Frame<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.table.get(id).ok_or(DropReason::NoFlow)?;
        frame.evidence = self.evidence_of(flow);
        let to = self.table.outside_of(flow);
        if let Upper::IcmpError(quote) = packet.upper {
            return icmp_error::to_remote(frame, packet, &quote, &to);
        }
        let ends = Ends {
            source: to.local,
            source_port: to.local_port,
            destination: to.remote,
            destination_port: to.remote_port,
        };
        rewrite::apply(frame, packet, &ends)
    }

    /// Gives a packet from the uplink the client's address, the sender that the client expects, and the evidence.
    pub(crate) fn translate_inbound(
        &self,
        id: FlowId,
        packet: &Packet,
        frame: &mut Frame<'_>,
    ) -> Result<(), DropReason> {
        let flow = self.table.get(id).ok_or(DropReason::NoFlow)?;
        frame.evidence = self.evidence_of(flow);
        let to = self.table.inside_of(flow);
        if let Upper::IcmpError(quote) = packet.upper {
            let faces = (&to, &self.table.outside_of(flow));
            return icmp_error::to_client(frame, packet, &quote, faces);
        }
        let ends = Ends {
            source: to.remote,
            source_port: to.remote_port,
            destination: to.local,
            destination_port: to.local_port,
        };
        rewrite::apply(frame, packet, &ends)
    }

    /// Removes a flow and gives its port back.
    pub(crate) fn end_flow(&mut self, id: FlowId) {
        let Some(flow) = self.table.remove(id) else { return };
        if let Some(mapping) = flow.mapping() {
            self.nat.release(mapping);
        }
        if flow.is_noted() {
            let (port, remote) = (flow.local_port_outside(), flow.remote_outside());
            self.nat.peers.release(flow.protocol(), port, remote);
        }
    }

    /// Removes up to `count` flows whose time is over.
    pub(crate) fn reclaim(&mut self, now: Instant, count: usize) {
        for _ in 0..count {
            let Some(id) = self.table.next_due(now) else { return };
            self.end_flow(id);
        }
    }

    /// An error of the client about a packet that a flow brought it (RFC 5508 REQ-5).
    fn flow_of_client_error(
        &mut self,
        now: Instant,
        packet: &Packet,
        quote: &Quote,
    ) -> Result<FlowId, Verdict> {
        let is_consistent = quote.source == packet.destination
            && quote.destination == packet.source
            && quote.upper != Quoted::IcmpQuery;
        let found = self.table.find_inside(&quote.inbound()).filter(|_| is_consistent);
        self.flow_of_error(now, found)
    }

    /// An error from anywhere about a packet that a flow sent (RFC 5508 REQ-4).
    fn flow_of_uplink_error(
        &mut self,
        now: Instant,
        packet: &Packet,
        quote: &Quote,
    ) -> Result<FlowId, Verdict> {
        // It goes to whom the quoted packet came from.
        let is_consistent = quote.source == packet.destination && quote.upper != Quoted::IcmpReply;
        let found = self.table.find_outside(&quote.outbound()).filter(|_| is_consistent);
        let id = self.flow_of_error(now, found)?;
        if !self.is_path_mtu_plausible(id, quote) {
            return Err(DropReason::PathMtu.into());
        }
        Ok(id)
    }

    /// Whether an error from outside may lower the path MTU of its flow, if it wants to (RFC 5927, 7.2): no link is that
    /// small, or the quoted segment is none that is on its way.
    fn is_path_mtu_plausible(&self, id: FlowId, quote: &Quote) -> bool {
        let Some(mtu) = quote.path_mtu else { return true };
        let least = if quote.source.is_ipv4() { MIN_PATH_MTU_V4 } else { ipv6::MIN_MTU };
        let tracker = self.table.get(id).and_then(|flow| flow.tcp);
        mtu >= u32::from(least)
            && tracker.is_none_or(|tracker| tracker.has_sent_lately(quote.sequence))
    }

    /// Errors neither end nor renew a flow (RFC 4787 REQ-12, RFC 5382 REQ-9).
    fn flow_of_error(&mut self, now: Instant, found: Option<FlowId>) -> Result<FlowId, Verdict> {
        let live = found.and_then(|id| self.live(now, id));
        let id = live.ok_or(DropReason::IcmpErrorUnrelated)?;
        self.admit(now, id)?;
        Ok(id)
    }

    /// The flow, unless its time is over; then it goes now, whatever its place in the lists.
    fn live(&mut self, now: Instant, id: FlowId) -> Option<FlowId> {
        if self.table.is_due(now, id) {
            self.end_flow(id);
            return None;
        }
        Some(id)
    }

    /// Whether the flow's faces are not free: one that is over or forbidden goes, so that another one can have them.
    fn is_in_use(&mut self, now: Instant, id: FlowId) -> bool {
        let Some(id) = self.live(now, id) else { return false };
        let is_in_use = self.admit(now, id).is_ok();
        if !is_in_use {
            self.end_flow(id);
        }
        is_in_use
    }

    /// Whether the current rules accept the flow. Judged once per generation.
    fn admit(&mut self, now: Instant, id: FlowId) -> Result<(), DropReason> {
        let Some(flow) = self.table.get(id) else { return Err(DropReason::NoFlow) };
        let owner = flow.host();
        let Some(host) = self.clients.host(owner) else { return Err(DropReason::NoRules) };
        if flow.generation != host.generation {
            let (inside, outside) = (self.table.inside_of(flow), self.table.outside_of(flow));
            let held = flow.held.map(|held| (held, outside.remote));
            let names = self.names.view(now, host.address, held);
            let (basis, faces) = (flow.basis(), (&inside, &outside));
            let judged = judge(host, &self.network, &self.exposure, names, basis, faces);
            let (standing, held) = match judged.outcome {
                Ok(held) => (Standing::Accepted, held),
                Err(_) => (Standing::Forbidden, flow.held),
            };
            let (generation, is_tcp) = (host.generation, flow.tcp.is_some());
            let Some(flow) = self.table.get_mut(id) else { return Err(DropReason::NoFlow) };
            (flow.generation, flow.held) = (generation, held);
            flow.set_standing(standing);
            self.clients.judged(now, owner);
            if standing == Standing::Forbidden {
                self.table.set_hold(id, Hold::Loose);
                if is_tcp {
                    self.table.renew(now, id, Class::TcpTransitory);
                }
            }
        }
        match self.table.get(id).map(Flow::standing) {
            Some(Standing::Accepted) => Ok(()),
            Some(_) if is_planted(Defect::ForbiddenFlowPasses) => Ok(()),
            _ => Err(DropReason::FlowForbidden),
        }
    }

    fn follow(&mut self, id: FlowId, sender: Sender, packet: &Packet) -> Step {
        let Upper::Tcp(segment) = packet.upper else { return Step::Pass };
        let tracker = self.table.get_mut(id).and_then(|flow| flow.tcp.as_mut());
        tracker.map_or(Step::OutOfWindow, |tracker| tracker.step(sender, &segment))
    }

    /// A packet from outside makes a flow firm; it never prolongs it (RFC 4787 REQ-6), save that a TCP connection that
    /// ends starts its last four minutes.
    fn note_answer(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.table.get(id) else { return };
        let (old, tracker) = (flow.class, flow.tcp);
        match tracker {
            Some(tracker) => {
                if old == Class::TcpEstablished && tracker.class() == Class::TcpTransitory {
                    self.table.renew(now, id, Class::TcpTransitory);
                    self.table.set_hold(id, Hold::Loose);
                }
            }
            None => {
                self.table.set_hold(id, Hold::Firm);
                if old == Class::UdpOneWay {
                    self.table.reclassify(id, Class::UdpBothWays);
                }
            }
        }
    }

    fn open(
        &mut self,
        now: Instant,
        host: HostId,
        packet: &Packet,
        remote: IpAddr,
        basis: Basis,
    ) -> Result<FlowId, Verdict> {
        let (class, tcp) = beginning(packet).ok_or(DropReason::NotAFirstPacket)?;
        let inside = packet.outbound();
        let masquerades = basis == Basis::Rules;
        let local = match masquerades {
            true => self.network.own_address(packet.source).ok_or(DropReason::NoUplink)?,
            false => packet.source,
        };
        // The local port follows once the rules have accepted the flow.
        let outside = Tuple { local, remote, ..inside };
        let permit = self.accept(now, host, packet, basis, (&inside, &outside))?;
        self.reclaim(now, RECLAIM_PER_NEW_FLOW);
        self.make_room(host)?;
        let (mapping, local_port) = match masquerades {
            true => self.lease(packet, remote)?,
            false => (None, inside.local_port),
        };
        let outside = Tuple { local_port, ..outside };
        let new =
            NewFlow { inside, outside, host, basis, mapping, is_noted: false, permit, class, tcp };
        self.insert(now, new).ok_or(Verdict::Reject(DropReason::NatAmbiguous, Refusal::Prohibited))
    }

    /// Puts a flow that was accepted into the table; nothing, and its mapping given back, if it would be mixed up with
    /// another one.
    pub(crate) fn insert(&mut self, now: Instant, new: NewFlow) -> Option<FlowId> {
        let (host, mapping) = (new.host, new.mapping);
        let known = [self.table.find_outside(&new.outside), self.table.find_inside(&new.inside)];
        let is_ambiguous = known.into_iter().flatten().any(|id| self.is_in_use(now, id));
        let is_noted = !is_ambiguous && self.note_peer(&new);
        let new = NewFlow { is_noted, ..new };
        let opened = if is_ambiguous { None } else { self.table.insert(now, &new) };
        if opened.is_none() {
            mapping.into_iter().for_each(|mapping| self.nat.release(mapping));
            if is_noted {
                let Tuple { protocol, local_port, remote, .. } = new.outside;
                self.nat.peers.release(protocol, local_port, remote);
            }
            return None;
        }
        self.count_opened(host);
        opened
    }

    /// Asks the rules about a new flow.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        host: HostId,
        packet: &Packet,
        basis: Basis,
        faces: (&Tuple, &Tuple),
    ) -> Result<Permit, Verdict> {
        let owner = self.clients.host(host).ok_or(DropReason::NoRules)?;
        let names = self.names.view(now, owner.address, None);
        let judged = judge(owner, &self.network, &self.exposure, names, basis, faces);
        let generation = owner.generation;
        self.decided_by = judged.by;
        if let (Some(by), RulesState::Active(rules)) = (judged.by, &owner.rules) {
            rules.count(by);
        }
        self.clients.judged(now, host);
        let held = judged.outcome.map_err(|reason| forbidden(reason, packet, IsKnown::No))?;
        Ok(Permit { generation, held })
    }

    /// A client over its quota loses its own oldest flow that nobody answered; another one's flow is never touched.
    pub(crate) fn make_room(&mut self, host: HostId) -> Result<(), Verdict> {
        let refused = |reason| Err(Verdict::Reject(reason, Refusal::Prohibited));
        match self.table.room_for(host) {
            Ok(()) => Ok(()),
            Err(NoRoom::Quota { oldest_loose: Some(oldest) }) => {
                self.end_flow(oldest);
                Ok(())
            }
            Err(NoRoom::Quota { oldest_loose: None }) => refused(DropReason::QuotaExceeded),
            Err(NoRoom::Table) => refused(DropReason::FlowTableFull),
        }
    }

    /// The port that the flow gets on our address, if its protocol has ports.
    fn lease(
        &mut self,
        packet: &Packet,
        remote: IpAddr,
    ) -> Result<(Option<MappingId>, u16), Verdict> {
        if !nat::has_ports(packet.source, packet.protocol) {
            return Ok((None, 0));
        }
        let endpoint = Endpoint {
            protocol: packet.protocol,
            address: packet.source,
            port: packet.source_port,
            redirected_from: (remote != packet.destination).then_some(packet.destination),
        };
        match self.nat.acquire(endpoint) {
            Ok((id, port)) => Ok((Some(id), port)),
            Err(nat::PortsExhausted) => {
                Err(Verdict::Reject(DropReason::PortsExhausted, Refusal::Prohibited))
            }
        }
    }

    fn count_opened(&mut self, host: HostId) {
        if let Some(port) = self.clients.host(host).and_then(|host| host.port) {
            self.stats.count(PortId::Client(port), Counter::FlowsOpened, 1);
        }
    }
}

/// Whether a packet belongs to a flow that was accepted once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsKnown {
    Yes,
    No,
}

/// How a client learns that its rules forbid a packet: silence only where it has no rules at all.
pub(crate) fn forbidden(reason: DropReason, packet: &Packet, known: IsKnown) -> Verdict {
    match reason {
        DropReason::NoRules => Verdict::Drop(reason),
        _ => Verdict::Reject(reason, icmp::prohibition(packet, known == IsKnown::Yes)),
    }
}

/// Whether a packet can start a flow.
pub(crate) fn can_begin(packet: &Packet) -> bool {
    beginning(packet).is_some()
}

/// What a flow starts as; `None` if such a packet cannot start one (as Linux calls it: invalid).
fn beginning(packet: &Packet) -> Option<(Class, Option<Tracker>)> {
    match packet.upper {
        Upper::Tcp(segment) => {
            Tracker::first(&segment).map(|tracker| (tracker.class(), Some(tracker)))
        }
        Upper::Udp if packet.destination_port == DNS_PORT => Some((Class::UdpDns, None)),
        Upper::Udp => Some((Class::UdpOneWay, None)),
        Upper::IcmpQuery(_) => Some((Class::IcmpQuery, None)),
        Upper::Other => Some((Class::Other, None)),
        Upper::IcmpReply | Upper::IcmpError(_) | Upper::IcmpOther(_) => None,
    }
}
