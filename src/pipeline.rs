//! The path of one packet, top to bottom.

use crate::arp;
use crate::clients::HostId;
use crate::egress;
use crate::fast::Stages;
use crate::firewall::Firewall;
use crate::frame::Frame;
use crate::ingress::{self, Ingress};
use crate::nd;
use crate::packet::Packet;
use crate::port::{ClientId, Origin};
use crate::route::Way;
use crate::time::Instant;
use crate::verdict::{DropReason, Fate, Verdict};

impl Firewall {
    /// Decides about one frame and rewrites it in place to what has to be sent.
    ///
    /// One frame in, at most one out: forwarded, or turned into an answer to its sender. What has to leave in pieces is
    /// fetched with [`Firewall::poll_generate`] before the next frame comes; a super-frame that has to leave in segments is
    /// the caller's to cut up ([`Fate::Segments`]).
    pub fn handle(&mut self, now: Instant, origin: Origin, frame: &mut Frame<'_>) -> Fate {
        self.decided_by = None;
        self.fast_path::<Stages>(now, origin, frame)
    }

    /// The same for a frame that is not one for the fast path.
    #[inline(never)]
    pub(crate) fn handle_in_stages(
        &mut self,
        now: Instant,
        origin: Origin,
        frame: &mut Frame<'_>,
    ) -> Fate {
        // The fast path gives a frame evidence of its own, and cuts up none.
        (frame.evidence, frame.segments, frame.pieces) = (None, None, None);
        self.drops.begin(now);
        let Some(side) = self.side_of(origin) else { return self.no_such_port(origin) };
        self.count_received(side, frame);
        let verdict = match frame.check_head() {
            Ok(()) => self.frame(now, side, frame),
            Err(reason) => reason.into(),
        };
        self.emit(origin, side, verdict, frame)
    }

    /// The last stages, whatever the verdict: only here does a frame that came in go out again.
    pub(crate) fn emit(
        &mut self,
        origin: Origin,
        side: Origin,
        verdict: Verdict,
        frame: &mut Frame<'_>,
    ) -> Fate {
        let verdict = self.disguise(side, verdict, frame);
        let verdict = self.cut(verdict, frame);
        self.conclude(origin, side, verdict, frame)
    }

    /// The same for a datagram that has become whole, before it is cut again.
    pub(crate) fn frame(&mut self, now: Instant, side: Origin, frame: &mut Frame<'_>) -> Verdict {
        match side {
            Origin::Client(id) => self.client_frame(now, id, frame),
            Origin::Uplink => self.uplink_frame(now, frame),
        }
    }

    fn client_frame(&mut self, now: Instant, id: ClientId, frame: &mut Frame<'_>) -> Verdict {
        let ingress = match ingress::from_client(&mut self.clients, &self.network, id, frame) {
            Ok(Ingress::Packet(ingress)) => ingress,
            Ok(Ingress::Arp(message)) => return self.arp_from_client(id, message, frame),
            Ok(Ingress::Neighbour(message)) => return self.nd_from_client(id, message, frame),
            Ok(Ingress::Fragment(at)) => return self.collect(now, Origin::Client(id), at, frame),
            Err(reason) => return reason.into(),
        };
        let outcome = self.outbound(now, ingress.host, &ingress.packet, frame);
        self.answer(now, Origin::Client(id), &ingress.packet, outcome, frame)
    }

    /// Client to uplink, or to another client where dom0 opened that. Nothing is rewritten before every check has passed.
    fn outbound(
        &mut self,
        now: Instant,
        host: HostId,
        packet: &Packet,
        frame: &mut Frame<'_>,
    ) -> Result<Verdict, Verdict> {
        let remote = self.redirect_dns(packet)?;
        let way = self.route(host, packet, remote)?;
        if way == Way::Back {
            return self.inbound(now, packet, frame);
        }
        let (port, exit) = self.exit(way, remote)?;
        let manner = egress::check(frame, packet, &exit.caps)?;
        if way == Way::Absent {
            return Err(self.end_to_absent(now, host, packet, remote));
        }
        let flow = self.flow_of_client(now, host, packet, remote, way.basis())?;
        self.translate_outbound(flow, packet, frame)?;
        self.clamp_mss(packet, exit.caps.mtu, frame);
        egress::finish(frame, packet, &exit, manner);
        if way == Way::Uplink {
            self.note_passed_up(flow, packet);
        }
        Ok(Verdict::Forward(port))
    }

    fn uplink_frame(&mut self, now: Instant, frame: &mut Frame<'_>) -> Verdict {
        let Some(uplink) = &mut self.uplink else { return DropReason::UnknownPort.into() };
        let (clients, network, own_mac) = (&self.clients, &self.network, uplink.port.mac);
        let packet = match ingress::from_uplink(clients, network, own_mac, frame) {
            Ok(Ingress::Packet(ingress)) => ingress.packet,
            Ok(Ingress::Arp(message)) => {
                return arp::from_uplink(clients, network, uplink, now, message, frame);
            }
            Ok(Ingress::Neighbour(message)) => {
                return nd::from_uplink(network, uplink, now, message, frame);
            }
            Ok(Ingress::Fragment(at)) => return self.collect(now, Origin::Uplink, at, frame),
            Err(reason) => return reason.into(),
        };
        let outcome = self.inbound(now, &packet, frame);
        self.answer(now, Origin::Uplink, &packet, outcome, frame)
    }

    /// To a client: only as part of a flow that it opened, or that dom0 wants it to get.
    fn inbound(
        &mut self,
        now: Instant,
        packet: &Packet,
        frame: &mut Frame<'_>,
    ) -> Result<Verdict, Verdict> {
        if let Some(verdict) = self.take_answer(now, packet, frame) {
            return Ok(verdict);
        }
        let flow = self.flow_of_uplink(now, packet)?;
        self.learn_names(now, flow, packet, frame);
        let (port, exit) = self.exit_of(flow)?;
        let manner = egress::check(frame, packet, &exit.caps)?;
        self.translate_inbound(flow, packet, frame)?;
        self.clamp_mss(packet, exit.caps.mtu, frame);
        egress::finish(frame, packet, &exit, manner);
        self.note_passed_down(flow, packet);
        Ok(Verdict::Forward(port))
    }
}
