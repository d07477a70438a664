//! Ways that are closed unless dom0 opens them: from one client to another, and from the uplink to a client.
//!
//! Neighbours: `exposure` holds what dom0 opened, `route` sends packets these ways, `flows` has the flows that come of it, `judge` asks again when it changes.

use crate::clients::HostId;
use crate::conntrack::table::FlowId;
use crate::conntrack::tcp::Tracker;
use crate::conntrack::{Basis, Class, Flow, NewFlow, Tuple};
use crate::exposure::Exposure;
use crate::firewall::Firewall;
use crate::flows::RECLAIM_PER_NEW_FLOW;
use crate::packet::{Packet, Upper};
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::protocol;

impl Firewall {
    /// Replaces what is open. Flows are judged again at their next packet. A port that is forwarded from now on belongs
    /// to nobody else: flows of a client that has it as its mapping end, and open anew with another one.
    pub fn set_exposure(&mut self, exposure: Exposure) {
        if self.exposure == exposure {
            return;
        }
        // A port that our resolver has in use is to be reserved as well; it asks again from another one.
        self.names.abort(&mut self.nat);
        self.nat.unreserve_all();
        for entry in &exposure.forward {
            let (protocol, port) = (entry.transport.protocol(), entry.port.get());
            if !self.nat.reserve(entry.client, protocol, port) {
                self.end_flows(|flow| {
                    flow.mapping().is_some()
                        && flow.is_ipv4() == entry.client.is_ipv4()
                        && (flow.protocol(), flow.local_port_outside()) == (protocol, port)
                });
                // Its mapping went with the last of its flows.
                let _ = self.nat.reserve(entry.client, protocol, port);
            }
        }
        self.exposure = exposure;
        self.start_generation();
    }

    /// Ends the flows of other clients to one that is gone.
    pub(crate) fn end_allowed_to(&mut self, gone: HostId) {
        if self.table.has_allowed() {
            self.end_flows(|flow| flow.basis() == Basis::Allowed { to: gone });
        }
    }

    fn end_flows(&mut self, is_match: impl Fn(&Flow) -> bool) {
        let mut last = None;
        while let Some(flow) = self.table.find_after(last, &is_match) {
            self.end_flow(flow);
            last = Some(flow);
        }
    }

    /// A packet from outside that belongs to no flow opens one where a port is forwarded, or where a client's mappings
    /// are filtered by address and it has sent to that one. In the latter case its rules have to accept the flow as if
    /// it had opened it itself.
    pub(crate) fn open_from_uplink(
        &mut self,
        now: Instant,
        packet: &Packet,
    ) -> Result<FlowId, Verdict> {
        const NO_FLOW: DropReason = DropReason::NoFlow;
        let outside = packet.inbound();
        if self.network.own_address(packet.source) != Some(outside.local) {
            // From a client to another one, in a flow whose time is over.
            return Err(NO_FLOW.into());
        }
        let (class, tcp) = match packet.upper {
            Upper::Tcp(segment) => {
                let tracker = Tracker::first_of_remote(&segment).ok_or(NO_FLOW)?;
                (tracker.class(), Some(tracker))
            }
            Upper::Udp => (Class::UdpOneWay, None),
            _ => return Err(NO_FLOW.into()),
        };
        let (inside, basis) =
            self.forwarded(&outside).or_else(|| self.of_peer(&outside)).ok_or(NO_FLOW)?;
        let host = self.clients.find(inside.local).ok_or(NO_FLOW)?;
        self.exit_to_client(host).ok_or(NO_FLOW)?;
        let faces = (&inside, &outside);
        let permit = self.accept(now, host, packet, basis, faces).map_err(Verdict::silently)?;
        self.reclaim(now, RECLAIM_PER_NEW_FLOW);
        self.make_room(host).map_err(Verdict::silently)?;
        let mapping = match basis {
            Basis::Rules => {
                self.nat.acquire_of_peer(outside.protocol, outside.local_port, outside.remote)
            }
            Basis::Forwarded | Basis::Allowed { .. } => None,
        };
        let new =
            NewFlow { inside, outside, host, basis, mapping, is_noted: false, permit, class, tcp };
        self.insert(now, new).ok_or(DropReason::NatAmbiguous.into())
    }

    /// Notes a new flow of a client that is filtered by address; false if it is none, or there is no room.
    pub(crate) fn note_peer(&mut self, flow: &NewFlow) -> bool {
        let Some(mapping) = flow.mapping else { return false };
        let has_ports = matches!(flow.outside.protocol, protocol::TCP | protocol::UDP);
        if !has_ports || !self.exposure.filters_by_address(flow.inside.local) {
            return false;
        }
        let outside = &flow.outside;
        self.nat.peers.add(mapping, outside.protocol, outside.local_port, outside.remote)
    }

    /// The inside face of a flow to a forwarded port.
    fn forwarded(&self, outside: &Tuple) -> Option<(Tuple, Basis)> {
        let entry = self.exposure.forward(outside.protocol, outside.local, outside.local_port)?;
        let (local, local_port) = (entry.client, entry.client_port.get());
        Some((Tuple { local, local_port, ..*outside }, Basis::Forwarded))
    }

    /// The inside face of a flow from an address that a client filtered by address sends to. Mappings of redirected DNS
    /// stay out: what comes from the resolver's other ports is not what the client asked for.
    fn of_peer(&self, outside: &Tuple) -> Option<(Tuple, Basis)> {
        let mapping =
            self.nat.peers.mapping(outside.protocol, outside.local_port, outside.remote)?;
        let endpoint = self.nat.endpoint(mapping)?;
        let is_open = self.exposure.filters_by_address(endpoint.address)
            && endpoint.redirected_from.is_none();
        let (local, local_port) = (endpoint.address, endpoint.port);
        is_open.then_some((Tuple { local, local_port, ..*outside }, Basis::Rules))
    }
}
