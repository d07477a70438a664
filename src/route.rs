//! Which way a client's packet goes, and the ports at the ends of the ways.

use core::net::IpAddr;

use crate::clients::HostId;
use crate::conntrack::table::FlowId;
use crate::conntrack::{Basis, Tuple};
use crate::egress::Exit;
use crate::firewall::{Firewall, local};
use crate::flows;
use crate::packet::{Packet, Upper};
use crate::port::PortId;
use crate::time::Instant;
use crate::verdict::{DropReason, Refusal, Verdict};
use crate::visible::Visible;
use crate::wire::Mac;

/// Where a client's packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Uplink,
    /// To another client, in a flow of the sender.
    Client(HostId),
    /// To another client, in a flow of that one.
    Back,
    /// Towards a client that is not attached: judged like what goes beyond the uplink, but it does not get there.
    Absent,
}

impl Way {
    /// What permits a flow that is opened this way.
    pub(crate) fn basis(self) -> Basis {
        match self {
            Self::Client(to) => Basis::Allowed { to },
            Self::Uplink | Self::Back | Self::Absent => Basis::Rules,
        }
    }
}

impl Firewall {
    /// Keeps clients away from the firewall and from each other, and all from a source without rules.
    pub(crate) fn route(
        &self,
        host: HostId,
        packet: &Packet,
        remote: IpAddr,
    ) -> Result<Way, Verdict> {
        if self.network.is_own(remote) {
            return Err(local(packet));
        }
        if self.clients.is_client(remote) {
            return self.route_to_client(host, packet, remote);
        }
        if self.clients.has_rules(host) || self.is_forwarded_answer(packet) {
            Ok(Way::Uplink)
        } else {
            Err(DropReason::NoRules.into())
        }
    }

    /// The way out. Without one a client hears so at once, as from a router without a route.
    pub(crate) fn exit_to_uplink(&self, family_of: IpAddr) -> Result<(PortId, Exit), Verdict> {
        let unreachable = Verdict::Reject(DropReason::NoUplink, Refusal::NetUnreachable);
        let uplink = self.uplink.as_ref().ok_or(unreachable)?;
        self.network.own_address(family_of).ok_or(unreachable)?;
        let (port, destination) = (uplink.port, uplink.next_hop(family_of));
        Ok((PortId::Uplink, Exit { source: port.mac, destination, caps: port.caps }))
    }

    pub(crate) fn exit_to_client(&self, host: HostId) -> Option<(PortId, Exit)> {
        let host = self.clients.host(host)?;
        let id = host.port?;
        let client = self.clients.attached(id)?;
        match client.visible {
            Some(Visible::As { .. }) if host.address.is_ipv4() => {}
            None => {}
            // Not understood, or IPv6, which there is none of where addresses are hidden.
            Some(_) => return None,
        }
        let (destination, caps) = (client.port.mac, client.port.caps);
        Some((PortId::Client(id), Exit { source: Mac::GATEWAY, destination, caps }))
    }

    /// The way of a packet from one client to another.
    pub(crate) fn route_to_client(
        &self,
        host: HostId,
        packet: &Packet,
        remote: IpAddr,
    ) -> Result<Way, Verdict> {
        if self.is_answer_to_client(packet) {
            return Ok(Way::Back);
        }
        let flow = Tuple { remote, ..packet.outbound() };
        if !self.exposure.allows(&flow) && self.flow_about(packet).is_none() {
            if !self.clients.has_rules(host) {
                return Err(DropReason::ClientIsolation.into());
            }
            return match self.clients.is_attached(remote) {
                true => Err(isolated(packet)),
                false => Ok(Way::Absent),
            };
        }
        if !self.clients.has_rules(host) {
            return Err(DropReason::NoRules.into());
        }
        let to = self.clients.find(remote).ok_or(DropReason::ClientIsolation)?;
        Ok(Way::Client(to))
    }

    /// How a packet to a client that is not attached ends: as the sender's rules say, in silence where they accept. Linux
    /// does the same, so that a refusal does tell a sender that this client is not attached: one that is meets silence.
    pub(crate) fn end_to_absent(
        &mut self,
        now: Instant,
        host: HostId,
        packet: &Packet,
        remote: IpAddr,
    ) -> Verdict {
        let inside = packet.outbound();
        let outside = Tuple { remote, ..inside };
        if !flows::can_begin(packet) {
            return DropReason::NotAFirstPacket.into();
        }
        match self.accept(now, host, packet, Basis::Rules, (&inside, &outside)) {
            Ok(_) => DropReason::ClientIsolation.into(),
            Err(verdict) => verdict,
        }
    }

    /// Whether a client without rules sends this in a flow that dom0 has forwarded to it.
    pub(crate) fn is_forwarded_answer(&self, packet: &Packet) -> bool {
        let flow = self.flow_about(packet).and_then(|id| self.table.get(id));
        flow.is_some_and(|flow| flow.basis() == Basis::Forwarded)
    }

    pub(crate) fn exit(&self, way: Way, family_of: IpAddr) -> Result<(PortId, Exit), Verdict> {
        match way {
            Way::Client(to) => self
                .exit_to_client(to)
                .ok_or(Verdict::Reject(DropReason::ClientAbsent, Refusal::NetUnreachable)),
            Way::Uplink | Way::Back | Way::Absent => self.exit_to_uplink(family_of),
        }
    }

    /// The way to the client of a flow.
    pub(crate) fn exit_of(&self, flow: FlowId) -> Result<(PortId, Exit), DropReason> {
        let host = self.table.get(flow).map(|flow| flow.host());
        host.and_then(|host| self.exit_to_client(host)).ok_or(DropReason::NoFlow)
    }

    /// The flow that a client's packet, or what its error is about, belongs to.
    fn flow_about(&self, packet: &Packet) -> Option<FlowId> {
        match packet.upper {
            Upper::IcmpError(quote) => self.table.find_inside(&quote.inbound()),
            _ => self.table.find_inside(&packet.outbound()),
        }
    }

    /// Whether a client sends this in a flow that the client it goes to has opened.
    fn is_answer_to_client(&self, packet: &Packet) -> bool {
        let flow = match packet.upper {
            Upper::Tcp(_) | Upper::Udp | Upper::IcmpReply | Upper::Other => packet.inbound(),
            // Only about what itself got: nobody stands between clients who could speak for it.
            Upper::IcmpError(quote) if quote.destination == packet.source => quote.outbound(),
            Upper::IcmpError(_) | Upper::IcmpQuery(_) | Upper::IcmpOther(_) => return false,
        };
        self.table.find_outside(&flow).is_some()
    }
}

/// The end of a packet to another client: silence. If it could not have gone on anyway, its sender hears that: traceroute
/// finds the same first hop on the way to every address, and learns of none whether it is there.
fn isolated(packet: &Packet) -> Verdict {
    match packet.ttl {
        0 | 1 => Verdict::Reject(DropReason::TtlExpired, Refusal::TimeExceeded),
        _ => DropReason::ClientIsolation.into(),
    }
}
