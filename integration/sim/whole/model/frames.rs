//! The oracle looks at frames: those that left to the uplink, and those that a modelled client got.

use super::{Flow, Model, Question, Reply, Source, UNMARKED};
use crate::whole::names::text;
use crate::whole::packets::{self, Mark, Read};
use crate::whole::rules::{Meaning, Protocol, Rule, Target};

impl Model {
    /// A frame that left to the uplink.
    pub(crate) fn check_out(&mut self, frame: &[u8]) -> Result<(), String> {
        let is_ours = |at: usize| self.own.iter().any(|own| frame.get(at..at + 4) == Some(own));
        let checked = match frame.get(12..14) {
            Some([8, 6]) if is_ours(28) => Ok(()),
            Some([0x86, 0xdd]) => Ok(()),
            Some([8, 0]) if is_ours(26) => self.check_packet_out(frame),
            Some([8, 0 | 6]) => Err("a frame left with a source that is not ours".into()),
            _ => Err("a frame of an unknown kind left".into()),
        };
        checked.map_err(|problem: String| format!("{problem}: {frame:02x?}"))
    }

    fn check_packet_out(&mut self, frame: &[u8]) -> Result<(), String> {
        let read = packets::read(frame);
        let marks = Mark::all_in(frame);
        let number = match (marks.as_slice(), &read) {
            ([], Some(read)) => {
                packets::syn(read).filter(|number| self.flights.contains_key(number))
            }
            ([], None) => None,
            ([mark, ..], _) => {
                let key = self.flights.get(&mark.1).filter(|key| key.owner == mark.0);
                key.ok_or_else(|| format!("{mark:?} left, and nobody sent it"))?;
                Some(mark.1)
            }
        };
        match (number, read) {
            (Some(number), Some(read)) => self.check_marked(number, &read, marks.first()),
            (Some(_), None) => Err("a marked packet left in another form".into()),
            (None, Some(read)) if packets::is_dns(&read) => {
                let Some((_, name, _)) = packets::read_question(read.payload) else {
                    return Err("no question to a resolver".into());
                };
                self.note_question(&read, None);
                let mut known = (0..self.names.len()).filter(|known| text(*known) == name);
                let known = known.next().ok_or_else(|| format!("who asked for {name}?"))?;
                self.names[known].asked_at = self.slow();
                Ok(())
            }
            (None, read) => self.check_unmarked(read.as_ref()),
        }
    }

    fn note_question(&mut self, read: &Read<'_>, mark: Option<Mark>) {
        self.questions.push(Question {
            resolver: read.ends.destination.0,
            to: read.ends.source,
            message: read.payload.to_vec(),
            mark,
        });
    }

    /// Something of an honest client or a hostile one.
    fn check_unmarked(&self, read: Option<&Read<'_>>) -> Result<(), String> {
        let everything = Meaning::Rules(vec![Rule::all(true)]);
        let protocol = match read.map(|read| read.protocol) {
            Some(17) => Some(Protocol::Udp),
            Some(6) => Some(Protocol::Tcp),
            Some(1) => Some(Protocol::Icmp),
            _ => None,
        };
        let target = protocol.zip(read).map(|(protocol, read)| {
            let (address, port) = read.ends.destination;
            Target { protocol, address, port }
        });
        let is_accepted =
            self.sources.iter().take(UNMARKED).flat_map(Source::window).any(|rules| {
                *rules == everything || target.is_some_and(|target| rules.must(&target))
            });
        if is_accepted { Ok(()) } else { Err(format!("no rule lets this leave: {target:?}")) }
    }

    fn check_marked(
        &mut self,
        number: u32,
        read: &Read<'_>,
        mark: Option<&Mark>,
    ) -> Result<(), String> {
        let Some(key) = self.flights.get(&number).copied() else { return Err("no flight".into()) };
        let (port, ends) = (read.ends.source.1, read.ends);
        let is_kind = read.protocol
            == match key.target().protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
                Protocol::Icmp => 1,
            };
        if !is_kind || ends.destination != (key.address, key.remote_port) {
            return Err(format!("a packet of {key:?} went to {:?}", ends.destination));
        }
        if !self.may(&key) {
            let rules = self.rules_of(key.owner);
            return Err(format!("a packet of {key:?} left, which none of these permits: {rules}"));
        }
        let flow = self.flows.get(&key).copied();
        if let Some(flow) = flow.filter(|flow| flow.is_answered && self.stands(&key))
            && flow.port != port
        {
            return Err(format!("{key:?} had port {} and has {port}", flow.port));
        }
        let place = (read.protocol, port);
        if let Some(other) = self.ports.get(&place)
            && (other.owner, other.port) != (key.owner, key.port)
            && let Some(flow) = self.flows.get(other)
            && flow.is_answered
            && flow.port == port
            && self.stands(other)
        {
            return Err(format!("port {port} of {other:?} stands for {key:?} as well"));
        }
        let at = self.fast();
        let is_answered = flow.is_some_and(|flow| flow.is_answered && self.is_alive(&key, &flow));
        let is_sure = self.must(&key);
        self.flows.insert(key, Flow { port, at, is_answered, is_sure });
        self.ports.insert(place, key);
        self.left.push(number);
        if packets::is_dns(read) {
            self.note_question(read, mark.copied());
        }
        Ok(())
    }

    /// A frame that a modelled client got.
    pub(crate) fn check_in(&mut self, owner: u8, frame: &[u8]) -> Result<(), String> {
        let address = self.sources[usize::from(owner)].address;
        let marks = Mark::all_in(frame);
        if let Some(mark) = marks.iter().find(|mark| mark.0 != owner) {
            return Err(format!("client {owner} got bytes of {mark:?}: {frame:02x?}"));
        }
        let checked = match (frame.get(12..14), packets::read(frame)) {
            (Some([8, 6]), _) => Ok(()),
            (Some([8, 0]), Some(read)) if read.ends.destination.0 == address => {
                self.check_packet_in(owner, &read, &marks)
            }
            _ => Err("a frame that is none of its business".into()),
        };
        checked.map_err(|problem| format!("client {owner}: {problem}: {frame:02x?}"))
    }

    fn check_packet_in(
        &mut self,
        owner: u8,
        read: &Read<'_>,
        marks: &[Mark],
    ) -> Result<(), String> {
        let is_error = read.protocol == 1 && matches!(read.l4.first(), Some(3 | 11 | 12));
        if is_error {
            // It quotes what the client sent.
            let quoted = read.l4.get(20..24) == Some(&self.sources[usize::from(owner)].address[..]);
            return if quoted { Ok(()) } else { Err("an error about somebody else".into()) };
        }
        if read.protocol == 6 && read.l4.get(13).is_some_and(|flags| flags & 4 != 0) {
            return Ok(());
        }
        let [mark] = marks else { return Err("a packet that nobody answered with".into()) };
        let reply = self.replies.iter().find(|reply| reply.number == mark.1).copied();
        let Some(Reply { key, .. }) = reply else { return Err("a mark that nobody sent".into()) };
        let is_right = read.ends.source == (key.address, key.remote_port)
            && read.ends.destination.1 == key.port;
        if !is_right {
            return Err(format!("an answer to {key:?}"));
        }
        if !self.flows.contains_key(&key) {
            return Err(format!("an answer to {key:?}, which has ended"));
        }
        if !self.may(&key) {
            return Err(format!("an answer to {key:?}, which no rules permit"));
        }
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.is_answered = true;
        }
        self.arrived.push(mark.1);
        Ok(())
    }
}
