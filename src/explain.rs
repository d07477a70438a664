//! What would become of the first packet of a flow, for who asks (`firewall.Explain`): the questions of `pipeline`, put to
//! the same code, of a packet that there is not. Nothing is counted or changed.

use core::net::IpAddr;

use rules::DecidedBy;

use crate::clients::Host;
use crate::conntrack::table::NoRoom;
use crate::conntrack::tcp::{Segment, flags};
use crate::conntrack::{Basis, Flow, Tuple};
use crate::firewall::Firewall;
use crate::flows::{self, IsKnown};
use crate::ingress;
use crate::judge::{Judgement, judge};
use crate::packet::{self, Packet, Upper};
use crate::route::Way;
use crate::time::Instant;
use crate::verdict::{DropReason, Verdict};
use crate::wire::{ip, protocol};

/// The first packet of a flow, as its client would send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) client: IpAddr,
    pub(crate) protocol: u8,
    /// Of the family of the client.
    pub(crate) destination: IpAddr,
    /// Destination port, or type of the ICMP message; 0 where there is neither.
    pub(crate) port: u16,
}

/// How it would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It opens a flow.
    Accepted,
    /// The firewall answers it itself.
    Answered,
    /// It ends here, and its client is told.
    Rejected(DropReason),
    /// It ends here in silence.
    Dropped(DropReason),
    /// No client has this address.
    NoSuchClient,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Explanation {
    pub(crate) outcome: Outcome,
    /// What in the rules decided, if they did.
    pub(crate) by: Option<DecidedBy>,
    /// The resolver that it goes to instead of its destination.
    pub(crate) redirected_to: Option<IpAddr>,
    /// The client is attached now.
    pub(crate) is_attached: bool,
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Forward(_) => Self::Accepted,
            Verdict::Answer(_) | Verdict::Consumed(_) | Verdict::Resolved => Self::Answered,
            Verdict::Reject(reason, _) => Self::Rejected(reason),
            Verdict::Drop(reason) => Self::Dropped(reason),
            // Nothing of a fragment is asked.
            Verdict::Waits | Verdict::InPieces => Self::Accepted,
        }
    }
}

impl Firewall {
    /// What would become of a packet now.
    pub(crate) fn explain(&self, now: Instant, question: &Question) -> Explanation {
        let mut answer = Explanation {
            outcome: Outcome::NoSuchClient,
            by: None,
            redirected_to: None,
            is_attached: self.clients.is_attached(question.client),
        };
        if self.clients.find(question.client).is_some() {
            answer.outcome = match self.try_explain(now, question, &mut answer) {
                Ok(()) => Outcome::Accepted,
                Err(verdict) => verdict.into(),
            };
        }
        answer
    }

    fn try_explain(
        &self,
        now: Instant,
        question: &Question,
        answer: &mut Explanation,
    ) -> Result<(), Verdict> {
        let host = self.clients.find(question.client).ok_or(DropReason::NoRules)?;
        let owner = self.clients.host(host).ok_or(DropReason::NoRules)?;
        self.check_source(owner)?;
        let destination = question.destination;
        if ingress::is_martian_destination(destination) && !self.network.is_own(destination) {
            return Err(DropReason::DestinationMartian.into());
        }
        let packet = first_packet(question)?;
        let remote = self.redirect_dns(&packet)?;
        answer.redirected_to = Some(remote).filter(|remote| *remote != destination);
        let way = self.route(host, &packet, remote)?;
        self.exit(way, remote)?;
        if way == Way::Back {
            return Ok(());
        }
        if !flows::can_begin(&packet) {
            return Err(DropReason::NotAFirstPacket.into());
        }
        let inside = packet.outbound();
        let local = match way {
            Way::Uplink => self.network.own_address(packet.source).ok_or(DropReason::NoUplink)?,
            _ => packet.source,
        };
        let outside = Tuple { local, remote, ..inside };
        let judged = self.judge_now(now, owner, way.basis(), (&inside, &outside));
        answer.by = judged.by;
        judged.outcome.map_err(|reason| flows::forbidden(reason, &packet, IsKnown::No))?;
        if way == Way::Absent {
            return Err(DropReason::ClientIsolation.into());
        }
        // A client at its quota loses a flow that nobody answered, if it has one.
        let refused = match self.table.room_for(host) {
            Ok(()) | Err(NoRoom::Quota { oldest_loose: Some(_) }) => return Ok(()),
            Err(NoRoom::Quota { oldest_loose: None }) => DropReason::QuotaExceeded,
            Err(NoRoom::Table) => DropReason::FlowTableFull,
        };
        answer.by = None;
        Err(flows::forbidden(refused, &packet, IsKnown::No))
    }

    /// Whether anything of the client would be taken.
    fn check_source(&self, owner: &Host) -> Result<(), DropReason> {
        if owner.address.is_ipv6() && !self.network.has_ipv6() {
            return Err(DropReason::Ipv6);
        }
        let Some(attached) = owner.port.and_then(|port| self.clients.attached(port)) else {
            return Ok(());
        };
        attached.known_ip4()?;
        match owner.address.is_ipv6() && attached.visible.is_some() {
            true => Err(DropReason::SourceSpoofed),
            false => Ok(()),
        }
    }

    fn judge_now(
        &self,
        now: Instant,
        owner: &Host,
        basis: Basis,
        faces: (&Tuple, &Tuple),
    ) -> Judgement {
        let names = self.names.view(now, owner.address, None);
        judge(owner, &self.network, &self.exposure, names, basis, faces)
    }

    /// What in the rules of its client decides about a flow as they are now.
    pub(crate) fn decider_of(&self, now: Instant, flow: &Flow) -> Option<DecidedBy> {
        let owner = self.clients.host(flow.host())?;
        let (inside, outside) = (self.table.inside_of(flow), self.table.outside_of(flow));
        let held = flow.held.map(|held| (held, outside.remote));
        let names = self.names.view(now, owner.address, held);
        let faces = (&inside, &outside);
        judge(owner, &self.network, &self.exposure, names, flow.basis(), faces).by
    }
}

/// A packet that begins a flow, from no port in particular.
fn first_packet(question: &Question) -> Result<Packet, DropReason> {
    let Question { client, protocol, destination, port } = *question;
    let syn = Segment {
        flags: flags::SYN,
        sequence: 0,
        acknowledgement: 0,
        window: u16::MAX,
        payload: 0,
        scale: None,
    };
    let upper = match protocol {
        protocol::TCP => Upper::Tcp(syn),
        protocol::UDP => Upper::Udp,
        icmp if icmp == ip::icmp(destination) => {
            packet::upper_of_type(destination, u8::try_from(port).unwrap_or(u8::MAX))?
        }
        _ => Upper::Other,
    };
    Ok(Packet {
        source: client,
        destination,
        protocol,
        source_port: 0,
        destination_port: port,
        ttl: 64,
        is_dont_fragment: true,
        total_len: 0,
        l4: 0,
        upper,
    })
}
