//! Why a frame may leave, and the gate that asks for it: a second look, apart from the way a verdict was reached.
//!
//! What is forwarded carries an [`Accept`], which only a flow in the table can give, and only while it stands as accepted
//! by its client's current generation of rules (or of what dom0 opened). What we wrote ourselves says so and goes back to
//! whom it answers, or is of `Firewall::poll_generate`. A frame without its evidence ends at the gate and is counted; the
//! count stays 0 unless a stage above lets something pass unjudged. Its neighbours: `flows` judges, `egress` attaches,
//! `fragments` carries the evidence of a datagram over to its pieces.

use crate::clients::Host;
use crate::conntrack::table::FlowId;
use crate::conntrack::{Flow, Standing};
use crate::firewall::Firewall;
use crate::frame::Frame;
use crate::port::PortId;
use crate::verdict::{DropReason, Verdict};

/// Proof that the flow of a frame was accepted, and that nothing has changed since. Not that the frame was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accept(());

/// What entitles a frame to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// It belongs to an accepted flow, or is an ICMP error about one.
    Accepted(Accept),
    /// We wrote it: ARP, neighbour discovery, ICMP, a reset, or a packet of our resolver.
    Own,
}

impl Accept {
    /// `host` is the flow's client.
    fn of(flow: &Flow, host: &Host) -> Option<Self> {
        let is_accepted = flow.standing == Standing::Accepted && flow.generation == host.generation;
        is_accepted.then_some(Self(()))
    }
}

impl Firewall {
    /// The evidence of what a flow sends now.
    pub(crate) fn evidence_of(&self, id: FlowId) -> Option<Evidence> {
        let flow = self.table.get(id)?;
        Accept::of(flow, self.clients.host(flow.host)?).map(Evidence::Accepted)
    }

    /// Has all flows judged again: no evidence of theirs counts any more.
    pub(crate) fn start_generation(&mut self) {
        self.clients.start_generation_for_all();
        self.fragments.forget_accepted();
    }

    /// The gate for a frame that nothing received caused, or a piece of what was cut; false if it must not leave.
    pub(crate) fn pass_generated(&mut self, to: PortId, frame: &Frame<'_>) -> bool {
        if frame.evidence.is_none() {
            self.stats.count_drop(to, DropReason::WithoutAccept);
        }
        frame.evidence.is_some()
    }
}

/// The gate before a frame is handed out or cut: forwarded only with an accept, sent back only if it is our own.
pub(crate) fn pass(verdict: Verdict, frame: &Frame<'_>) -> Verdict {
    let has_evidence = match verdict {
        Verdict::Forward(_) => matches!(frame.evidence, Some(Evidence::Accepted(_))),
        Verdict::Answer(_) | Verdict::Reject(..) => frame.evidence == Some(Evidence::Own),
        // No frame leaves; that of pieces was asked before they were cut.
        Verdict::Consumed(_)
        | Verdict::Resolved
        | Verdict::Waits
        | Verdict::InPieces
        | Verdict::Drop(_) => true,
    };
    if has_evidence { verdict } else { DropReason::WithoutAccept.into() }
}
