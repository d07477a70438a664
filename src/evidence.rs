//! Why a frame may leave, and the gate that asks for it: a second look, apart from the way a verdict was reached.
//!
//! What is forwarded carries an [`Accept`], which only a flow in the table can give, and only while it stands as accepted
//! by its client's current generation of rules (or of what dom0 opened). What we wrote ourselves says so and goes back to
//! whom it answers, or is of `Firewall::poll_generate`. A frame without its evidence ends where a verdict becomes a fate
//! (`Firewall::conclude`; before it is cut, in `defragment`) and is counted; the count stays 0 unless a stage lets
//! something pass unjudged. Its neighbours: `flows` judges, and attaches the evidence as it rewrites the addresses;
//! `fragments` carries that of a datagram over to its pieces.

use crate::clients::Host;
use crate::conntrack::{Flow, Standing};
use crate::firewall::Firewall;
use crate::frame::Frame;
use crate::port::PortId;
use crate::verdict::DropReason;

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
        let is_accepted =
            flow.standing() == Standing::Accepted && flow.generation == host.generation;
        is_accepted.then_some(Self(()))
    }
}

/// The evidence of what `flow` sends now; `host` is its client.
pub(crate) fn of(flow: &Flow, host: &Host) -> Option<Evidence> {
    Accept::of(flow, host).map(Evidence::Accepted)
}

impl Frame<'_> {
    /// Whether it may be forwarded.
    pub(crate) fn is_accepted(&self) -> bool {
        matches!(self.evidence, Some(Evidence::Accepted(_)))
    }

    /// Whether it may go back to where what it answers came from.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self.evidence, Some(Evidence::Own))
    }
}

impl Firewall {
    /// The evidence of what `flow` sends now.
    pub(crate) fn evidence_of(&self, flow: &Flow) -> Option<Evidence> {
        of(flow, self.clients.host(flow.host())?)
    }

    /// Has all flows judged again: no evidence of theirs counts any more.
    pub(crate) fn start_generation(&mut self) {
        self.epoch.advance();
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
