//! The names in rules, between the packet path and [`crate::dns`]: our questions leave through the uplink, what comes
//! back to their ports is taken before any flow, and answers to clients are read as they pass.

use core::net::IpAddr;

use rules::{Family, HostName, Names};

use crate::clients::RulesState;
use crate::conntrack::table::FlowId;
use crate::dns::{self, DNS_PORT, Route, Taken};
use crate::egress;
use crate::evidence::Evidence;
use crate::firewall::Firewall;
use crate::frame::{Checksum, Frame, Offload};
use crate::ingress::L3;
use crate::packet::{Packet, Upper};
use crate::port::{ClientId, PortId};
use crate::stats::Counter;
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::checksum::Sum;
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, protocol, read_u16, write_ethernet};

const UDP_HEADER_BYTES: usize = 8;

/// A name of a client's rules that cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameProblem {
    /// A client that uses it.
    pub client: IpAddr,
    /// Its vif, if it has one.
    pub port: Option<ClientId>,
    /// The name.
    pub name: HostName,
    /// Why.
    pub problem: dns::Problem,
}

impl Firewall {
    /// A name of a client's rules that cannot be resolved; each is told once until it can.
    pub fn take_name_problem(&mut self) -> Option<NameProblem> {
        let (client, name, problem) = self.names.take_problem()?;
        let host = self.clients.find(client).and_then(|host| self.clients.host(host));
        Some(NameProblem { client, port: host.and_then(|host| host.port), name, problem })
    }

    /// Whether [`Firewall::take_name_change`] has something.
    #[must_use]
    pub fn has_name_changes(&self) -> bool {
        self.names.has_changes()
    }

    /// A client and a name of its rules whose addresses have changed since that was taken, or whose rules have.
    pub fn take_name_change(&mut self) -> Option<(IpAddr, HostName)> {
        self.names.take_change()
    }

    /// The addresses that a name of a client's rules has now; one may come twice.
    pub fn addresses_of(
        &self,
        now: Instant,
        client: IpAddr,
        name: &HostName,
    ) -> impl Iterator<Item = IpAddr> {
        self.names.addresses_of(now, client, name)
    }

    /// Whether a name of a client's rules has this address.
    pub(crate) fn has_name_of(&self, now: Instant, client: IpAddr, address: IpAddr) -> bool {
        let mut has_any = false;
        self.each_name_of(now, client, address, &mut |_| has_any = true);
        has_any
    }

    /// Calls `found` with each name of a client's rules that has this address.
    pub(crate) fn each_name_of(
        &self,
        now: Instant,
        client: IpAddr,
        address: IpAddr,
        found: &mut dyn FnMut(&str),
    ) {
        self.names.view(now, client, None).each_at(address, found);
    }

    /// Whether all addresses of a name of a client's rules are known.
    pub(crate) fn is_name_known(&self, client: IpAddr, name: &HostName) -> bool {
        self.names.view(Instant::default(), client, None).is_known(name)
    }

    /// Names of rules that could not be resolved when they were asked for last, those included for which there was no room.
    pub(crate) fn unresolved_names(&self) -> usize {
        self.names.troubled().saturating_add(self.names_left_out)
    }

    /// Names of the rules that were set last for which there was no room: they stay unresolved.
    #[must_use]
    pub fn names_left_out(&self) -> usize {
        self.names_left_out
    }

    /// Has the names of a client's rules resolved, and forgets those that they no longer have.
    pub(crate) fn register_names(&mut self, now: Instant, client: IpAddr) {
        let host = self.clients.find(client).and_then(|host| self.clients.host(host));
        self.names_left_out = match host.map(|host| &host.rules) {
            Some(RulesState::Active(rules)) => {
                self.names.set_names(now, client, rules.rules().names())
            }
            _ => self.names.set_names(now, client, core::iter::empty()),
        };
    }

    /// The resolver's part of [`Firewall::on_timer`]. Also notices that the way to the servers has changed.
    pub(crate) fn resolve_names(&mut self, now: Instant) {
        if self.names.is_quiet() {
            return;
        }
        let (v4, v6) = (&self.network.v4, &self.network.v6);
        let route = Route::default().with(v4.address, &v4.dns).with(v6.address, &v6.dns);
        self.names.set_route(now, self.uplink.map(|_| route), &mut self.nat);
        self.names.on_timer(now, &mut self.nat);
    }

    /// Writes the next packet of our resolver.
    pub(crate) fn ask_for_names(&mut self, now: Instant, frame: &mut Frame<'_>) -> Option<PortId> {
        let uplink = self.uplink?;
        frame.resize(frame.capacity())?;
        let packet = frame.bytes_mut().get_mut(L3..)?;
        let len = self.names.transmit(now, &mut self.nat, packet)?;
        let (ether_type, next_hop) = match packet.first().map(|first| first >> 4) {
            Some(6) => (ETHERTYPE_IPV6, uplink.v6.mac()),
            _ => (ETHERTYPE_IPV4, uplink.v4.mac()),
        };
        frame.resize(L3 + len)?;
        write_ethernet(frame.bytes_mut(), next_hop, uplink.port.mac, ether_type);
        frame.offload = Offload { checksum: Checksum::Validated, gso: None };
        frame.evidence = Some(Evidence::Own);
        self.stats.count(PortId::Uplink, Counter::ResolverPackets, 1);
        Some(PortId::Uplink)
    }

    /// Takes a packet from outside if it came to a port of our resolver.
    pub(crate) fn take_answer(
        &mut self,
        now: Instant,
        packet: &Packet,
        frame: &mut Frame<'_>,
    ) -> Option<Verdict> {
        let is_from_server =
            packet.source_port == DNS_PORT && self.network.is_resolver(packet.source);
        if !is_from_server
            || self.network.own_address(packet.destination) != Some(packet.destination)
        {
            return None;
        }
        let (from, port) = (packet.source, packet.destination_port);
        let taken = match packet.upper {
            Upper::Udp if self.names.owns_port(protocol::UDP, port) => {
                let payload = udp_payload(packet, frame)?;
                self.names.receive(now, from, port, payload, &mut self.nat)
            }
            Upper::Tcp(_) if self.names.owns_port(protocol::TCP, port) => {
                if frame.whole().is_none() {
                    return Some(DropReason::Scattered.into());
                }
                egress::complete_checksum(frame, packet);
                let packet = frame.whole()?.get(L3..)?;
                self.names.receive_segment(now, from, port, packet, &mut self.nat)
            }
            _ => return None,
        };
        match taken {
            Taken::NotOurs => None,
            Taken::Used => Some(Verdict::Resolved),
            Taken::Wrong => Some(DropReason::DnsAnswer.into()),
        }
    }

    /// Reads a DNS answer on its way to the client of a flow, for the names in that client's own rules.
    pub(crate) fn learn_names(
        &mut self,
        now: Instant,
        flow: FlowId,
        packet: &Packet,
        frame: &Frame<'_>,
    ) {
        let is_from_server =
            packet.source_port == DNS_PORT && self.network.is_resolver(packet.source);
        if !is_from_server || !matches!(packet.upper, Upper::Udp) {
            return;
        }
        let Some(payload) = udp_payload(packet, frame) else { return };
        let host = self.table.get(flow).and_then(|flow| self.clients.host(flow.host()));
        let port = host.and_then(|host| host.port).and_then(|id| self.clients.attached(id));
        let Some(client) = port.map(|attached| attached.port) else { return };
        self.names.learn(now, payload, |family| match family {
            Family::V4 => client.ip4.map(IpAddr::V4),
            Family::V6 => client.ip6.map(IpAddr::V6),
        });
    }
}

/// The payload of a UDP datagram, if its checksum does not contradict it.
fn udp_payload<'f>(packet: &Packet, frame: &'f Frame<'_>) -> Option<&'f [u8]> {
    let bytes = frame.whole()?.get(packet.l4..)?;
    if bytes.len() < UDP_HEADER_BYTES {
        return None;
    }
    let (length, checksum) = (read_u16(bytes, 4), read_u16(bytes, 6));
    let datagram = bytes.get(..usize::from(length))?;
    // Over IPv6 a checksum is never left out (RFC 8200, 8.1).
    let is_left_out = checksum == 0 && packet.source.is_ipv4();
    let is_checked = frame.offload.checksum != Checksum::Blank && !is_left_out;
    if is_checked {
        let pseudo =
            Sum::default().pseudo_header(packet.source, packet.destination, protocol::UDP, length);
        if pseudo.bytes(datagram).fold() != 0xffff {
            return None;
        }
    }
    datagram.get(UDP_HEADER_BYTES..)
}
