//! One question on its way: how it is sent, and what a message says to it.

use core::net::IpAddr;
use core::time::Duration;

use super::{Problem, Server};
use crate::dns::message::{self, Echo, Kind, MAX_QUERY_BYTES, Outcome};
use crate::dns::name::WireName;
use crate::dns::packet;
use crate::dns::store::NameId;
use crate::dns::stream::Stream;
use crate::nat::Nat;
use crate::nat::ports::{Lease, Random};
use crate::planted::{Defect, is_planted};
use crate::time::Instant;
use crate::wire::protocol;

#[derive(Debug)]
pub(super) struct Query {
    pub(super) name: NameId,
    pub(super) kind: Kind,
    pub(super) question: WireName,
    pub(super) is_mixed: Mixing,
    pub(super) id: u16,
    pub(super) server: Server,
    pub(super) attempt: u8,
    pub(super) wrong_answers: u8,
    pub(super) lease: Option<Lease>,
    pub(super) phase: Phase,
    pub(super) problem: Problem,
}

impl Query {
    /// What its lease is for.
    pub(super) fn protocol(&self) -> u8 {
        if self.phase == Phase::Streaming { protocol::TCP } else { protocol::UDP }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mixing {
    Mixed,
    Plain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    ToSend,
    Sent {
        until: Instant,
    },
    /// Waits for the one TCP connection.
    ToStream,
    Streaming,
}

/// What to do with a question next.
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one call; a box would allocate on the data path"
)]
pub(super) enum Next {
    Stay,
    /// As another attempt.
    Retry(Problem),
    /// The same server, without mixed case.
    RetryPlain,
    Stream,
    Answered(Outcome),
}

/// Whether `payload` is the answer to `query`, and what follows from it.
pub(super) fn judge(query: &Query, from: IpAddr, payload: &[u8]) -> Next {
    let Ok(message) = message::read(payload) else { return Next::Stay };
    let is_from_server = from == query.server.address || is_planted(Defect::AnswerFromAnyone);
    let is_its_number = message.id() == query.id || is_planted(Defect::AnswerOfAnyNumber);
    if !is_from_server || !is_its_number {
        return Next::Stay;
    }
    match message.echoes(&query.question, query.kind) {
        Echo::Exact => {}
        Echo::Other if is_planted(Defect::AnswerToAnything) => {}
        Echo::OtherCase if query.phase == Phase::Streaming => {}
        Echo::OtherCase if query.is_mixed == Mixing::Mixed => return Next::RetryPlain,
        Echo::OtherCase | Echo::Other => return Next::Stay,
    }
    match message.outcome() {
        Ok(Outcome::Truncated) => Next::Stream,
        Ok(Outcome::Failed) | Err(_) => Next::Retry(Problem::ServerFailure),
        Ok(outcome) => Next::Answered(outcome),
    }
}

/// Sends a question from a new port, with a new number and new cases; `None` if there is no port.
pub(super) fn send(
    query: &mut Query,
    now: Instant,
    random: &mut Random,
    nat: &mut Nat,
    out: &mut [u8],
) -> Option<usize> {
    renew(query, random);
    let lease = nat.lease_own(protocol::UDP)?;
    let from = (query.server.own, lease.port());
    query.lease = Some(lease);
    let Query { id, question, kind, .. } = query;
    let write = |out: &mut [u8]| message::write_query(out, *id, question, *kind);
    let len = packet::datagram(out, from, query.server.address, write);
    query.phase = Phase::Sent { until: now.after(patience(query.attempt)) };
    len
}

/// Connects to the server, in order to ask over TCP.
pub(super) fn connect(
    query: &mut Query,
    now: Instant,
    random: &mut Random,
    stream: &mut Stream,
    nat: &mut Nat,
) -> Option<()> {
    renew(query, random);
    let mut bytes = [0; MAX_QUERY_BYTES];
    let len = message::write_query(&mut bytes, query.id, &query.question, query.kind)?;
    let lease = nat.lease_own(protocol::TCP)?;
    let from = (query.server.own, lease.port());
    (query.lease, query.phase) = (Some(lease), Phase::Streaming);
    stream.ask(now, random.next(), from, query.server.address, bytes.get(..len)?)
}

pub(super) fn renew(query: &mut Query, random: &mut Random) {
    query.id = random.next() as u16;
    match query.is_mixed {
        Mixing::Mixed => query.question.mix_case(|| random.next()),
        Mixing::Plain => query.question.mix_case(|| 0),
    }
}

pub(super) fn release(lease: Option<Lease>, phase: Phase, nat: &mut Nat) {
    let protocol = if phase == Phase::Streaming { protocol::TCP } else { protocol::UDP };
    if let Some(lease) = lease {
        nat.give_back_own(protocol, lease);
    }
}

/// How long an attempt waits: two seconds, then four.
pub(super) fn patience(attempt: u8) -> Duration {
    Duration::from_secs(if attempt < 2 { 2 } else { 4 })
}
