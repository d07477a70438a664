//! The steps of `pipeline` for what comes or leaves in fragments; `fragments` holds them meanwhile.

use crate::firewall::Firewall;
use crate::fragments::{Fragment, Naming, Whole};
use crate::frame::Frame;
use crate::ingress::{FragmentAt, L3};
use crate::port::{Origin, PortId};
use crate::stats::Counter;
use crate::time::Instant;
use crate::verdict::{Answer, DropReason, Verdict};

impl Firewall {
    /// Length in bytes of the frame that [`Firewall::poll_generate`] writes next, if it is a piece of a datagram that
    /// was cut. The next frame that has to be cut is dropped while one waits, so they are fetched at once.
    #[must_use]
    pub fn next_piece_len(&self) -> Option<usize> {
        self.fragments.next_len()
    }

    /// Keeps a fragment. With the last one its datagram goes through the path as one packet.
    pub(crate) fn collect(
        &mut self,
        now: Instant,
        side: Origin,
        at: FragmentAt,
        frame: &mut Frame<'_>,
    ) -> Verdict {
        let Some(whole) = frame.whole() else { return DropReason::Scattered.into() };
        let Some((link, datagram)) = whole.split_at_checked(L3) else {
            return DropReason::FrameTooShort.into();
        };
        let fragment = match at {
            FragmentAt::V4 { header_len } => Fragment::of_ipv4(side, datagram, header_len),
            FragmentAt::V6 { fragment_at } => Fragment::of_ipv6(side, datagram, fragment_at),
        };
        let (stats, drops, clients) = (&mut self.stats, &mut self.drops, &self.clients);
        let collected = fragment.and_then(|fragment| {
            let lost = |side, reason| {
                stats.count_drop(side, reason);
                drops.note_bare(clients, side, reason);
            };
            self.fragments.collect(now, link, &fragment, lost)
        });
        match collected {
            Ok(Some(whole)) => self.whole(now, side, whole, frame),
            Ok(None) => Verdict::Waits,
            Err(reason) => reason.into(),
        }
    }

    /// The path of a datagram that has become whole. An error about it replaces the fragment in `last`.
    fn whole(
        &mut self,
        now: Instant,
        side: Origin,
        mut whole: Whole,
        last: &mut Frame<'_>,
    ) -> Verdict {
        let Some(mut frame) = whole.frame() else {
            self.fragments.give_back(whole);
            return DropReason::FragmentLimit.into();
        };
        let verdict = match self.frame(now, side, &mut frame) {
            // Disguised in its new place, with the other answers.
            verdict @ Verdict::Reject(..) => verdict,
            verdict => self.disguise(side, verdict, &mut frame),
        };
        let (len, pieces, evidence) = (frame.len(), frame.pieces, frame.evidence);
        let to = match verdict {
            Verdict::Forward(port) if frame.is_accepted() => Some(port),
            Verdict::Answer(Answer::Echo) if frame.is_own() => Some(PortId::from(side)),
            // Without its evidence it ends with the fragment in `last`, which has none either.
            _ => None,
        };
        let is_answered = matches!(verdict, Verdict::Reject(..)).then(|| last.replace_by(&frame));
        self.fragments.give_back(whole);
        match (to, pieces.zip(evidence)) {
            (Some(to), Some((pieces, evidence))) => {
                let naming = naming(verdict);
                match self.fragments.send_returned(to, (len, evidence), pieces, naming) {
                    Ok(()) => {
                        self.count_answer(side, verdict);
                        Verdict::InPieces
                    }
                    Err(reason) => reason.into(),
                }
            }
            _ if is_answered == Some(None) => DropReason::FragmentLimit.into(),
            _ => verdict,
        }
    }

    /// Takes a frame that is too large for the way on out of the caller's hands.
    pub(crate) fn cut(&mut self, verdict: Verdict, frame: &Frame<'_>) -> Verdict {
        match (verdict, frame.pieces) {
            (Verdict::Forward(to), Some(pieces)) if frame.is_accepted() => {
                match self.fragments.send(to, frame, pieces, naming(verdict)) {
                    Ok(()) => Verdict::InPieces,
                    Err(reason) => reason.into(),
                }
            }
            _ => verdict,
        }
    }

    /// Writes the next piece of what was cut, and says where it goes.
    pub(crate) fn next_piece(&mut self, frame: &mut Frame<'_>) -> Option<PortId> {
        let to = self.fragments.next(frame)?;
        if !self.pass_generated(to, frame) {
            return None;
        }
        self.stats.count(to, Counter::SentFrames, 1);
        self.stats.count(to, Counter::SentBytes, frame.len() as u64);
        Some(self.port_of(to))
    }

    /// Forgets datagrams whose time is over.
    pub(crate) fn expire_fragments(&mut self, now: Instant) {
        self.drops.begin(now);
        let (stats, drops, clients) = (&mut self.stats, &mut self.drops, &self.clients);
        self.fragments.expire(now, |side, reason| {
            stats.count_drop(side, reason);
            drops.note_bare(clients, side, reason);
        });
    }

    fn count_answer(&mut self, side: Origin, verdict: Verdict) {
        if matches!(verdict, Verdict::Answer(_)) {
            self.stats.count(side.into(), Counter::EchoAnswers, 1);
        }
    }
}

/// Towards a client the sender's own identification is as unique as it was; towards the world, and in answers of our
/// own, several senders share our address.
fn naming(verdict: Verdict) -> Naming {
    match verdict {
        Verdict::Forward(PortId::Client(_)) => Naming::Kept,
        _ => Naming::Ours,
    }
}
