//! After each turn: what dom0 was told, what left, what came to the clients, and what the resolvers say to it.

use xen::fake;
use xen::netif::RxResponse;

use super::model::{Key, Question};
use super::names::{Mood, text};
use super::packets::{self, Mark};
use super::rules::{DNS_PORT, RESOLVERS};
use crate::world::World;

/// No server of any name has these: whoever believes a liar sends there.
pub(crate) const LIARS: [[u8; 4]; 2] = [[198, 18, 0, 1], [198, 18, 0, 2]];
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;

/// A frame from beyond the uplink, and when it comes.
pub(crate) struct Later {
    at: u64,
    frame: Vec<u8>,
    /// The client's flow that it is for.
    flow: Option<Key>,
    /// The name that our resolver asked for, and when.
    asked: Option<(usize, u64)>,
}

impl World {
    /// Everybody looks.
    pub(crate) fn watch(&mut self) -> Result<(), String> {
        self.model.dumped(self.unit.dom0.dumps);
        for (path, value) in self.unit.dom0.take_written() {
            self.model.written(&path, &value)?;
        }
        self.model.check_patience(self.unit.dom0.is_live())?;
        self.look_at_uplink()?;
        for client in &mut self.clients {
            client.look(&mut self.model)?;
        }
        self.resolve();
        Ok(())
    }

    /// The resolvers answer, each as it is in the mood to.
    fn resolve(&mut self) {
        for question in std::mem::take(&mut self.model.questions) {
            let Some((id, name, asked)) = packets::read_question(&question.message) else {
                continue;
            };
            let known = (0..self.model.names.len()).find(|known| text(*known) == name);
            let Some(index) = known else { continue };
            let (only, now) = (question.mark.map(|mark| mark.0), self.model.slow());
            let is_lied_about = self.random.u32(0..3) == 0;
            if is_lied_about {
                self.lie(&question, (id, asked));
            }
            let known = &mut self.model.names[index];
            let (code, addresses, delay) = match known.mood {
                Mood::Silent => continue,
                Mood::Answers => (0, known.addresses.as_slice(), 0),
                Mood::Late(delay) => (0, known.addresses.as_slice(), delay),
                Mood::Fails => (SERVER_FAILURE, &[][..], 0),
                Mood::NoSuchName => (NO_SUCH_NAME, &[][..], 0),
            };
            let (addresses, ttl) = (addresses.to_vec(), known.ttl);
            if code != SERVER_FAILURE {
                // What comes late lives from then on.
                known.tell(now + delay, only, &addresses);
            }
            // A client's answer is marked as its own.
            let mark = question.mark.map(|mark| {
                self.number += 1;
                self.model.answers(self.number as u32, mark)
            });
            let message = packets::answer((id, asked), code, (&addresses, ttl), mark);
            let frame =
                packets::from_resolver((question.resolver, DNS_PORT), question.to, &message);
            let flow = question.mark.and_then(|mark| self.model.flight(mark.1));
            let is_said = only.is_none() && code != SERVER_FAILURE;
            let asked = is_said.then(|| (index, fake::now_ns()));
            self.later.push(Later { at: fake::now_ns() + delay, frame, flow, asked });
        }
        self.deliver_due();
    }

    /// Somebody else says something before: with another number, from another place, to another question.
    fn lie(&mut self, question: &Question, (id, asked): (u16, &[u8])) {
        let other = RESOLVERS.into_iter().find(|one| *one != question.resolver).unwrap_or([0; 4]);
        let own = (question.resolver, DNS_PORT);
        let mut renamed = asked.to_vec();
        renamed[1] ^= 1;
        let (from, id, asked) = match self.random.u32(0..5) {
            0 => ((other, DNS_PORT), id, asked),
            1 => ((LIARS[0], DNS_PORT), id, asked),
            2 => ((question.resolver, DNS_PORT + 1), id, asked),
            3 => (own, id ^ 0x55, asked),
            _ => (own, id, renamed.as_slice()),
        };
        // What comes from a resolver that the client asks is the client's to believe.
        if question.mark.is_some() && from.1 == DNS_PORT && RESOLVERS.contains(&from.0) {
            return;
        }
        let message = packets::answer((id, asked), 0, (&LIARS, 300), None);
        let frame = packets::from_resolver(from, question.to, &message);
        self.later.push(Later { at: fake::now_ns(), frame, flow: None, asked: None });
    }

    fn deliver_due(&mut self) {
        // While a hostile NetVM is at work nobody else uses its rings.
        if !self.is_prompt {
            return;
        }
        let now = fake::now_ns();
        let is_due = |later: &mut Later| later.at <= now;
        let due: Vec<Later> = self.later.extract_if(.., is_due).collect();
        for Later { frame, flow, asked, .. } in due {
            // A port that is another one's by now is his.
            if flow.is_none_or(|flow| self.model.has_port(&flow))
                && self.deliver(&frame)
                && let Some((name, asked_at)) = asked
            {
                self.model.names[name].is_delivered(asked_at, now);
            }
        }
    }

    /// A frame comes from beyond the uplink, if there is a way and a buffer.
    pub(crate) fn deliver(&mut self, frame: &[u8]) -> bool {
        let Some(netvm) = &mut self.netvm else { return false };
        let Some(buffer) = netvm.take_buffer() else { return false };
        if netvm.peer.write(buffer.gref, 0, frame).is_err() {
            return false;
        }
        let (flags, status) = (xen::netif::RxFlags(0), frame.len() as i16);
        netvm.respond_rx(RxResponse { id: buffer.id, offset: 0, flags, status });
        true
    }
}

impl super::model::Model {
    /// A resolver answers a client's question; returns the mark of the answer.
    fn answers(&mut self, number: u32, question: Mark) -> Mark {
        if let Some(key) = self.flight(question.1) {
            self.returns(number, key);
        }
        Mark(question.0, number)
    }
}
