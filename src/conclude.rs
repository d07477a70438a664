//! How a packet's way ends: the answer to its sender, the gate that asks for the evidence, the counters, and its fate.

use core::convert::identity;
use core::net::IpAddr;

use crate::drops::{Decided, Dropped, Ends};
use crate::firewall::Firewall;
use crate::frame::Frame;
use crate::icmp::{self, Link, TokenBucket};
use crate::packet::Packet;
use crate::port::{Origin, PortId};
use crate::stats::Counter;
use crate::time::Instant;
use crate::verdict::{Answer, DropReason, Fate, Refusal, Verdict};
use crate::wire::Mac;

impl Firewall {
    /// Turns a packet that was refused, or that was for us, into the answer to its sender, as far as that is allowed.
    pub(crate) fn answer(
        &mut self,
        now: Instant,
        origin: Origin,
        packet: &Packet,
        outcome: Result<Verdict, Verdict>,
        frame: &mut Frame<'_>,
    ) -> Verdict {
        let verdict = outcome.unwrap_or_else(identity);
        let Some(link) = self.link_back(origin, packet.source) else { return verdict };
        match verdict {
            Verdict::Answer(Answer::Echo) => match icmp::echo_reply(frame, packet, link) {
                Some(()) => verdict,
                None => DropReason::LocalSilent.into(),
            },
            Verdict::Reject(reason, refusal) => {
                // The answer takes the place of the packet.
                self.drops.refused = Some(Ends::of(packet));
                let own = self.own_for(origin, packet, refusal);
                let is_sent = own.is_some_and(|own| {
                    packet.may_be_answered()
                        && self.answers_of(origin).is_some_and(|bucket| bucket.take(now))
                        && icmp::refuse(frame, packet, refusal, own, link).is_some()
                });
                if is_sent {
                    return verdict;
                }
                self.stats.count(origin.into(), Counter::AnswersSuppressed, 1);
                reason.into()
            }
            other => other,
        }
    }

    /// Counts how it ended, and says which port it goes to. Nothing leaves without the evidence for it.
    pub(crate) fn conclude(
        &mut self,
        origin: Origin,
        side: Origin,
        verdict: Verdict,
        frame: &Frame<'_>,
    ) -> Fate {
        let fate = self.count_verdict(side, verdict, frame);
        self.note_vif_of_netvm(origin, fate);
        match fate {
            Fate::Send(port) => Fate::Send(self.port_of(port)),
            Fate::Segments(port) => Fate::Segments(self.port_of(port)),
            other => other,
        }
    }

    fn count_verdict(&mut self, origin: Origin, verdict: Verdict, frame: &Frame<'_>) -> Fate {
        let back = PortId::from(origin);
        match verdict {
            Verdict::Forward(port) if frame.is_accepted() => {
                if let Some(segments) = frame.segments {
                    self.stats.count(port, Counter::SentFrames, segments.left() as u64);
                    self.stats.count(port, Counter::SentBytes, segments.bytes_left() as u64);
                    return Fate::Segments(port);
                }
                self.stats.count(port, Counter::SentFrames, 1);
                self.stats.count(port, Counter::SentBytes, frame.len() as u64);
                Fate::Send(port)
            }
            Verdict::Answer(answer) if frame.is_own() => {
                let counter = match answer {
                    Answer::Arp => Counter::ArpAnswers,
                    Answer::Neighbour => Counter::NdAnswers,
                    Answer::Echo => Counter::EchoAnswers,
                };
                self.stats.count(back, counter, 1);
                Fate::Send(back)
            }
            Verdict::Consumed(counter) => {
                self.stats.count(back, counter, 1);
                Fate::Consumed
            }
            Verdict::Resolved => {
                self.stats.count(back, Counter::ResolverAnswers, 1);
                Fate::Consumed
            }
            Verdict::Waits => {
                self.stats.count(back, Counter::FragmentsKept, 1);
                Fate::Consumed
            }
            // Each piece is counted when it leaves.
            Verdict::InPieces => Fate::Consumed,
            Verdict::Reject(reason, refusal) if frame.is_own() => {
                self.note_end(origin, reason, frame);
                let counter = match refusal {
                    Refusal::TcpReset => Counter::TcpResets,
                    _ => Counter::IcmpErrors,
                };
                self.stats.count(back, counter, 1);
                Fate::Send(back)
            }
            Verdict::Drop(reason) => self.count_end(origin, reason, frame),
            Verdict::Forward(_) | Verdict::Answer(_) | Verdict::Reject(..) => {
                self.count_end(origin, DropReason::WithoutAccept, frame)
            }
        }
    }

    fn count_end(&mut self, origin: Origin, reason: DropReason, frame: &Frame<'_>) -> Fate {
        self.note_end(origin, reason, frame);
        Fate::Drop(reason)
    }

    /// Counts a packet that ended here, and keeps what may be asked about it.
    fn note_end(&mut self, origin: Origin, reason: DropReason, frame: &Frame<'_>) {
        self.stats.count_drop(origin, reason);
        let ends = self.drops.refused.take().or_else(|| Ends::peek(frame));
        let client = self.clients.address_at(origin, ends.is_some_and(|ends| ends.is_ipv6()));
        let by_rules = matches!(reason, DropReason::RuleRejected | DropReason::NameUnresolved);
        let decided = self.decided_by.filter(|_| by_rules).map(|by| {
            let host = client.and_then(|client| self.clients.find(client));
            let host = host.and_then(|host| self.clients.host(host));
            Decided::new(by, host.map_or(0, |host| host.edition))
        });
        self.drops.note(Dropped { origin, client, reason, decided, ends });
    }

    fn link_back(&self, origin: Origin, family_of: IpAddr) -> Option<Link> {
        Some(match origin {
            Origin::Client(id) => {
                Link { ours: Mac::GATEWAY, theirs: self.clients.attached(id)?.port.mac }
            }
            Origin::Uplink => {
                let uplink = self.uplink.as_ref()?;
                Link { ours: uplink.port.mac, theirs: uplink.next_hop(family_of) }
            }
        })
    }

    /// The address that an error comes from.
    fn own_for(&self, origin: Origin, packet: &Packet, refusal: Refusal) -> Option<IpAddr> {
        let asked = packet.destination;
        match (origin, refusal) {
            (Origin::Client(_), Refusal::HostProhibited) => Some(asked),
            (Origin::Client(_), _) => self.network.client_gateway(asked),
            (Origin::Uplink, _) => self.network.own_address(asked),
        }
    }

    fn answers_of(&mut self, origin: Origin) -> Option<&mut TokenBucket> {
        match origin {
            Origin::Client(id) => self.clients.attached_mut(id).map(|client| &mut client.answers),
            Origin::Uplink => Some(&mut self.uplink_answers),
        }
    }
}
