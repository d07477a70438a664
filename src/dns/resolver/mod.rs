//! Asking: which question goes to which server when, and which datagram is its answer.
//!
//! Somebody who does not see the question has to guess the port it came from (leased at random for each attempt), its
//! number and the case of each letter (0x20), and has few attempts: after [`MAX_WRONG_ANSWERS`] the question is asked
//! anew. A server that gives the question back in other cases is asked once more without that trick.
//!
//! A question goes to the servers in turn, [`ATTEMPTS`] times, with more patience each time; over TCP where the answer
//! did not fit. Then the name waits, longer after each failure.

use core::fmt;
use core::net::IpAddr;
use core::time::Duration;

use super::message::{Kind, Outcome};
use super::name::WireName;
use super::store::{Answer, Store};
use super::stream::{Progress, Stream};
use crate::limits::OutOfMemory;
use crate::nat::Nat;
use crate::nat::ports::Random;
use crate::time::Instant;

mod query;
mod route;

pub(crate) use route::Route;
use route::Server;

use query::{Mixing, Next, Phase, Query, connect, judge, release, send};

/// Questions on their way at one time.
pub(crate) const MAX_QUERIES: usize = 8;
/// Times that a question is asked before it counts as failed.
const ATTEMPTS: u8 = 4;
/// Answers to a question that are not its answer, before it is asked from another port.
const MAX_WRONG_ANSWERS: u8 = 8;
/// Time after a first failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// For an absence that does not say how long it lasts.
const DEFAULT_NEGATIVE_LIFE: Duration = Duration::from_secs(60);

/// Why a name could not be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No server answered.
    NoAnswer,
    /// A server said that it cannot say, or nothing that can be understood.
    ServerFailure,
    /// The text is no name that DNS can carry.
    NoDnsName,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no answer from any server",
            Self::ServerFailure => "the servers cannot resolve it",
            Self::NoDnsName => "not a name that DNS can carry",
        })
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The port is none of ours.
    NotOurs,
    /// It answered a question.
    Used,
    /// It came to a port of ours, and is not the answer that is awaited there.
    Wrong,
}

/// The questions on their way.
#[derive(Debug)]
pub(crate) struct Resolver {
    route: Option<Route>,
    queries: [Option<Query>; MAX_QUERIES],
    stream: Stream,
    random: Random,
}

impl Resolver {
    pub(crate) fn new(random: Random) -> Result<Self, OutOfMemory> {
        Ok(Self {
            route: None,
            queries: [const { None }; MAX_QUERIES],
            stream: Stream::new()?,
            random,
        })
    }

    pub(crate) fn add_entropy(&mut self, seed: &[u8]) {
        self.random.mix(seed);
    }

    /// Changes the way to the servers; `None`: there is none. Every name is asked for anew on a new way.
    pub(crate) fn set_route(
        &mut self,
        now: Instant,
        route: Option<Route>,
        nat: &mut Nat,
        store: &mut Store,
    ) {
        let route = route.filter(|route| route.nth(0).is_some());
        if route == self.route {
            return;
        }
        self.stream.close(now);
        self.abort(nat);
        self.route = route;
        store.ask_all(now);
    }

    /// Takes every question back, and with them the way: when there is one again, all are asked anew.
    pub(crate) fn abort(&mut self, nat: &mut Nat) {
        self.route = None;
        self.stream.abort();
        for query in self.queries.iter_mut().filter_map(Option::take) {
            release(query.lease, query.phase, nat);
        }
    }

    /// Whether a question is on its way from this port of our address.
    pub(crate) fn owns_port(&self, protocol: u8, port: u16) -> bool {
        self.queries.iter().flatten().any(|query| {
            query.protocol() == protocol
                && query.lease.as_ref().is_some_and(|lease| lease.port() == port)
        })
    }

    /// Writes the next packet of our own, from its IP header on, and says how long it is.
    pub(crate) fn transmit(
        &mut self,
        now: Instant,
        nat: &mut Nat,
        store: &mut Store,
        out: &mut [u8],
    ) -> Option<usize> {
        let route = self.route?;
        self.begin(now, route, nat, store);
        self.begin_stream(now, nat, store);
        if let Some(len) = self.stream.transmit(out) {
            return Some(len);
        }
        for index in 0..MAX_QUERIES {
            while let Some(Some(query)) = self.queries.get_mut(index)
                && query.phase == Phase::ToSend
            {
                if let Some(len) = send(query, now, &mut self.random, nat, out) {
                    return Some(len);
                }
                // No port is free: as if nobody had answered.
                self.proceed(now, index, Next::Retry(Problem::NoAnswer), nat, store);
            }
        }
        None
    }

    /// Takes a UDP datagram that a server sent from its DNS port; `payload` is what follows the header.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        from: IpAddr,
        to_port: u16,
        payload: &[u8],
        nat: &mut Nat,
        store: &mut Store,
    ) -> Taken {
        let is_its_port = |query: &Query| {
            matches!(query.phase, Phase::Sent { .. })
                && query.lease.as_ref().is_some_and(|lease| lease.port() == to_port)
        };
        let found = self.queries.iter().position(|query| query.as_ref().is_some_and(is_its_port));
        let Some(index) = found else { return Taken::NotOurs };
        let Some(query) = self.queries.get_mut(index).and_then(Option::as_mut) else {
            return Taken::NotOurs;
        };
        let next = judge(query, from, payload);
        let taken = match next {
            Next::Stay => Taken::Wrong,
            _ => Taken::Used,
        };
        if taken == Taken::Wrong {
            query.wrong_answers = query.wrong_answers.saturating_add(1);
        }
        let is_attacked = query.wrong_answers >= MAX_WRONG_ANSWERS;
        let next = if taken == Taken::Wrong && is_attacked {
            Next::Retry(Problem::NoAnswer)
        } else {
            next
        };
        self.proceed(now, index, next, nat, store);
        taken
    }

    /// Takes a TCP segment that a server sent from its DNS port, from its IP header on.
    pub(crate) fn receive_segment(
        &mut self,
        now: Instant,
        from: IpAddr,
        to_port: u16,
        packet: &[u8],
        nat: &mut Nat,
        store: &mut Store,
    ) -> Taken {
        let is_streaming = |query: &Query| {
            query.phase == Phase::Streaming
                && query.server.address == from
                && query.lease.as_ref().is_some_and(|lease| lease.port() == to_port)
        };
        if !self.queries.iter().flatten().any(is_streaming) {
            return Taken::NotOurs;
        }
        if !self.stream.receive(packet) {
            return Taken::Wrong;
        }
        self.poll_stream(now, nat, store);
        Taken::Used
    }

    /// Gives up what has waited long enough.
    pub(crate) fn on_timer(&mut self, now: Instant, nat: &mut Nat, store: &mut Store) {
        for index in 0..MAX_QUERIES {
            let phase =
                self.queries.get(index).and_then(|query| query.as_ref().map(|query| query.phase));
            if matches!(phase, Some(Phase::Sent { until }) if until <= now) {
                self.proceed(now, index, Next::Retry(Problem::NoAnswer), nat, store);
            }
        }
        self.poll_stream(now, nat, store);
    }

    /// Whether no question is there, nor a connection.
    pub(crate) fn is_idle(&self) -> bool {
        self.queries.iter().all(Option::is_none) && self.stream.is_idle()
    }

    /// When [`Resolver::on_timer`] or [`Resolver::transmit`] has something to do.
    pub(crate) fn next_deadline(&self, store: &Store) -> Option<Instant> {
        self.route?;
        let is_full = || self.queries.iter().all(|place| is_held(place.as_ref(), store));
        let ask = store.next_ask().filter(|_| !is_full());
        let is_stream_idle = self.stream.is_idle();
        let queries = self.queries.iter().flatten().filter_map(|query| match query.phase {
            Phase::ToSend => Some(Instant::default()),
            Phase::Sent { until } => Some(until),
            Phase::ToStream => is_stream_idle.then(Instant::default),
            Phase::Streaming => None,
        });
        let queries = queries.min();
        [ask, queries, self.stream.next_deadline()].into_iter().flatten().min()
    }

    #[cfg(test)]
    pub(crate) fn is_past_first_attempt(&self) -> bool {
        self.queries.iter().flatten().any(|query| query.attempt > 0)
    }

    /// Starts questions for names that are due. What asks for a name that is gone gives its place up.
    fn begin(&mut self, now: Instant, route: Route, nat: &mut Nat, store: &mut Store) {
        if store.next_ask().is_none_or(|at| at > now) {
            return;
        }
        for place in &mut self.queries {
            if !is_held(place.as_ref(), store)
                && let Some(query) = place.take()
            {
                release(query.lease, query.phase, nat);
            }
        }
        for place in self.queries.iter_mut().filter(|place| place.is_none()) {
            let (name, known) = loop {
                let Some(name) = store.take_due(now) else { return };
                match store
                    .name(name)
                    .map(|known| (WireName::of(known.host_name.as_str()), known.family))
                {
                    Some((Some(question), family)) => break (name, (question, family)),
                    // Such a name does not get better: it is asked for again only when the way changes.
                    _ => store.failed(name, None, Problem::NoDnsName),
                }
            };
            let Some(server) = route.nth(0) else { return };
            *place = Some(Query {
                name,
                kind: Kind::of(known.1),
                question: known.0,
                is_mixed: Mixing::Mixed,
                id: 0,
                server,
                attempt: 0,
                wrong_answers: 0,
                lease: None,
                phase: Phase::ToSend,
                problem: Problem::NoAnswer,
            });
        }
    }

    /// Gives the connection to a question that waits for it.
    fn begin_stream(&mut self, now: Instant, nat: &mut Nat, store: &mut Store) {
        for index in 0..MAX_QUERIES {
            if !self.stream.is_idle() {
                return;
            }
            let Some(Some(query)) = self.queries.get_mut(index) else { continue };
            if query.phase != Phase::ToStream {
                continue;
            }
            let started = connect(query, now, &mut self.random, &mut self.stream, nat);
            if started.is_none() {
                self.proceed(now, index, Next::Retry(Problem::NoAnswer), nat, store);
            } else {
                self.poll_stream(now, nat, store);
            }
        }
    }

    fn poll_stream(&mut self, now: Instant, nat: &mut Nat, store: &mut Store) {
        let is_streaming = |query: &Option<Query>| {
            query.as_ref().is_some_and(|query| query.phase == Phase::Streaming)
        };
        let Some(index) = self.queries.iter().position(is_streaming) else { return };
        let Some(Some(query)) = self.queries.get(index) else { return };
        let next = match self.stream.poll(now) {
            Progress::Waiting => return,
            Progress::Failed => Next::Retry(Problem::NoAnswer),
            Progress::Answered => match judge(query, query.server.address, self.stream.answer()) {
                Next::Answered(outcome) => Next::Answered(outcome),
                // Case does not matter on a connection, and there is no way beyond it.
                _ => Next::Retry(Problem::ServerFailure),
            },
        };
        self.stream.close(now);
        self.proceed(now, index, next, nat, store);
    }

    /// Moves a question on.
    fn proceed(
        &mut self,
        now: Instant,
        index: usize,
        next: Next,
        nat: &mut Nat,
        store: &mut Store,
    ) {
        let Some(place) = self.queries.get_mut(index) else { return };
        let Some(query) = place else { return };
        if matches!(next, Next::Stay) {
            return;
        }
        release(query.lease.take(), query.phase, nat);
        query.wrong_answers = 0;
        match next {
            Next::Stay => {}
            Next::RetryPlain => {
                query.is_mixed = Mixing::Plain;
                query.phase = Phase::ToSend;
            }
            Next::Stream => query.phase = Phase::ToStream,
            Next::Retry(problem) => {
                // A server that says something counts for more than one that is silent.
                if problem != Problem::NoAnswer || query.attempt == 0 {
                    query.problem = problem;
                }
                query.attempt += 1;
                let server = self.route.and_then(|route| route.nth(usize::from(query.attempt)));
                match server.filter(|_| query.attempt < ATTEMPTS) {
                    Some(server) => {
                        query.server = server;
                        query.is_mixed = Mixing::Mixed;
                        query.phase = Phase::ToSend;
                    }
                    None => {
                        let (name, problem) = (query.name, query.problem);
                        *place = None;
                        let failures = store.name(name).map_or(0, |name| name.failures);
                        store.failed(name, Some(now.after(pause(failures))), problem);
                    }
                }
            }
            Next::Answered(outcome) => {
                let name = query.name;
                *place = None;
                let negative = |ttl_s: Option<u32>| {
                    ttl_s.map_or(DEFAULT_NEGATIVE_LIFE, |ttl_s| Duration::from_secs(ttl_s.into()))
                };
                match outcome {
                    Outcome::Addresses { addresses, ttl_s } => {
                        let ttl = Duration::from_secs(ttl_s.into());
                        store.answered(now, name, Answer::Addresses(&addresses, ttl));
                    }
                    Outcome::NoSuchName { ttl_s } | Outcome::NoAddress { ttl_s } => {
                        store.answered(now, name, Answer::Nothing(negative(ttl_s)));
                    }
                    // `judge` gives neither of them as an answer.
                    Outcome::Truncated | Outcome::Failed => {}
                }
            }
        }
    }
}

/// Whether a question has the place that nobody takes from it: that of a name that rules have, or the one on the connection.
fn is_held(place: Option<&Query>, store: &Store) -> bool {
    place.is_some_and(|query| query.phase == Phase::Streaming || store.name(query.name).is_some())
}

fn pause(failures: u8) -> Duration {
    let factor = 1u32.checked_shl(failures.into()).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
}
