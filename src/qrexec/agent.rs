//! The agent: the control channel and the data channels of the calls that it led to.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::action::Action;
use super::channel::{Answer, DataChannel, UNKNOWN};
use super::command::Command;
use super::control::{Control, Mode, Order};
use super::request::{IDENT_BYTES, Request, RequestEnd};
use super::services::{ExitCode, NoSuchService, Services};
use super::shell::Shell;
use super::waiting::{Waiter, Waiting};
use crate::time::Instant;

mod own;

/// Calls that are served at once.
pub const MAX_SERVED_CALLS: usize = 4;
/// Of these, calls of other domains than dom0, so that they cannot keep dom0's out.
pub const MAX_FOREIGN_CALLS: usize = 2;
/// Data channels at once. Those beyond the served ones only exist to tell the caller that it is refused: without a
/// data channel it would wait for 10 seconds.
pub const MAX_CHANNELS: usize = 12;
/// With that of our own call.
pub const MAX_LINKS: usize = MAX_CHANNELS + 1;
/// Of these, for refusals: a caller that does not fetch its own keeps nobody out who is to be served.
const MAX_REFUSALS: usize = MAX_CHANNELS - MAX_SERVED_CALLS;

/// How long the caller may take to offer the data channel (upstream's agent waits as long).
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long nothing may move on a data channel, or a channel for a mere refusal may take to open.
pub const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// Numbers from here on are not domains (`DOMID_FIRST_RESERVED` of Xen public/xen.h).
const FIRST_RESERVED_DOMAIN: u16 = 0x7ff0;

/// Names a data channel between agent and platform; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(u32);

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Orders to run something.
    pub calls: u64,
    /// Of those, refused: unknown service, shell command, unusable text.
    pub refused: u64,
    /// Of those, refused because too many ran.
    pub over_limit: u64,
    /// Data channels that ended because of time.
    pub timeouts: u64,
    /// Data channels that ended because the caller broke the protocol.
    pub bad_peers: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    Served,
    OverLimit,
}

#[derive(Debug)]
struct Slot<S> {
    id: CallId,
    domain: u16,
    port: u32,
    rank: Rank,
    /// The control channel that ordered the call is gone: nobody there waits for its end.
    is_orphan: bool,
    is_open: bool,
    deadline: Instant,
    channel: DataChannel<S>,
}

/// The agent. `S` is the session type of its services.
#[derive(Debug)]
pub struct Agent<S> {
    control: Control,
    slots: Vec<Slot<S>>,
    waiting: Waiting,
    request: Request,
    actions: VecDeque<Action>,
    next_id: u32,
    counters: Counters,
}

impl<S> Default for Agent<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Agent<S> {
    /// An agent without channels.
    pub fn new() -> Self {
        Self {
            control: Control::new(),
            slots: Vec::with_capacity(MAX_CHANNELS),
            waiting: Waiting::new(),
            request: Request::new(),
            actions: VecDeque::new(),
            next_id: 0,
            counters: Counters::default(),
        }
    }

    /// A control channel is offered to dom0: queues our hello, which may go out before dom0 has connected.
    pub fn control_opened(&mut self) {
        self.control_closed();
        self.control.opened();
    }

    /// The control channel is gone. Calls under way go on.
    pub fn control_closed(&mut self) {
        self.control.closed();
        self.waiting.clear();
        self.slots.iter_mut().for_each(|slot| slot.is_orphan = true);
        if self.request.control_closed() {
            self.actions.push_back(Action::RequestEnded(RequestEnd::Lost));
        }
    }

    /// Have both hellos been exchanged?
    pub fn is_ready(&self) -> bool {
        self.control.is_ready()
    }

    /// Takes bytes of the control channel, in pieces of any size, and says how many: fewer than offered only if
    /// [`Self::control_transmit`] has answers to be sent first.
    #[must_use = "bytes that were not taken must be offered again"]
    pub fn control_bytes<V: Services<Session = S>>(
        &mut self,
        now: Instant,
        bytes: &[u8],
        services: &mut V,
    ) -> usize {
        let mut rest = bytes;
        loop {
            let plan = match self.control.next_order(&mut rest) {
                Ok(None) => return bytes.len().saturating_sub(rest.len()),
                Ok(Some(Order::ServiceRefused { ident })) => {
                    if self.request.refused(ident) {
                        self.actions.push_back(Action::RequestEnded(RequestEnd::Refused));
                    }
                    continue;
                }
                Ok(Some(Order::ServiceConnect { domain, port, ident })) => {
                    // Of another length, it is none of ours.
                    let ident = <[u8; IDENT_BYTES]>::try_from(ident).unwrap_or_default();
                    self.connected(now, domain, port, &ident);
                    continue;
                }
                Ok(Some(Order::Execute { mode, domain, port, text })) => {
                    Plan { domain, port, mode, answer: answer(domain, text, services) }
                }
                Err(reason) => {
                    self.actions.push_back(Action::ResetControl { reason });
                    return bytes.len();
                }
            };
            self.follow(now, plan);
        }
    }

    /// Bytes for the control channel; maybe not all that wait.
    pub fn control_transmit(&self) -> &[u8] {
        self.control.ready_bytes()
    }

    /// So many of them were written.
    pub fn control_transmitted(&mut self, bytes: usize) {
        self.control.sent(bytes);
    }

    /// What the platform is to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The data channel is connected.
    pub fn data_opened(&mut self, now: Instant, call: CallId) {
        if let Some(slot) = self.slot(call) {
            slot.is_open = true;
            slot.deadline = now.after(PEER_TIMEOUT);
        }
    }

    /// The data channel is gone, or could not be connected.
    pub fn data_closed(&mut self, call: CallId) {
        if self.request.is_served_as(call) {
            let ended = self.request.end(RequestEnd::Lost);
            return self.request_over(ended, false);
        }
        self.end(call);
    }

    /// Takes bytes of a data channel, all of them.
    pub fn data_bytes<V: Services<Session = S>>(
        &mut self,
        now: Instant,
        call: CallId,
        bytes: &[u8],
        services: &mut V,
    ) {
        if self.request.is_served_as(call) {
            let ended = self.request.receive(now, bytes);
            return self.request_over(ended, true);
        }
        let Some(slot) = self.slot(call) else { return };
        slot.deadline = now.after(PEER_TIMEOUT);
        if slot.channel.receive(bytes, services).is_err() {
            self.counters.bad_peers = self.counters.bad_peers.saturating_add(1);
            self.close(call);
        }
    }

    /// Bytes for a data channel. To be called after input, after the channel had space again, and until it is empty.
    pub fn data_transmit<V: Services<Session = S>>(
        &mut self,
        call: CallId,
        services: &mut V,
    ) -> &[u8] {
        if self.request.is_served_as(call) {
            return self.request.transmit();
        }
        match self.slot(call) {
            Some(slot) if slot.is_open => slot.channel.transmit(services),
            _ => &[],
        }
    }

    /// So many of them were written.
    pub fn data_transmitted(&mut self, now: Instant, call: CallId, bytes: usize) {
        if self.request.is_served_as(call) {
            return self.request.transmitted(bytes);
        }
        let Some(slot) = self.slot(call) else { return };
        slot.channel.transmitted(bytes);
        if bytes > 0 {
            slot.deadline = now.after(PEER_TIMEOUT);
        }
        if slot.channel.is_finished() {
            let ending = slot.channel.ending();
            self.close(call);
            self.actions.extend(ending.map(Action::End));
        }
    }

    /// When [`Self::on_timer`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let turn = match self.refusals() < MAX_REFUSALS {
            true => self.waiting.next_turn(),
            false => self.waiting.next_deadline().filter(|_| self.control.has_room()),
        };
        let own = self.request.deadline();
        self.slots.iter().map(|slot| slot.deadline).chain(turn).chain(own).min()
    }

    /// Has a service more to say without anything happening? Then the next turn is to come at once.
    pub fn wants_turn(&self) -> bool {
        self.slots.iter().any(|slot| slot.is_open && slot.channel.wants_turn())
    }

    /// Ends the data channels on which nothing moved for too long, and gives those that were refused their turns.
    pub fn on_timer(&mut self, now: Instant) {
        if self.request.deadline().is_some_and(|deadline| deadline <= now) {
            self.counters.timeouts = self.counters.timeouts.saturating_add(1);
            let ended = self.request.end(RequestEnd::Lost);
            self.request_over(ended, true);
        }
        while let Some(late) = self.slots.iter().find(|slot| slot.deadline <= now) {
            let call = late.id;
            self.counters.timeouts = self.counters.timeouts.saturating_add(1);
            self.close(call);
        }
        while self.control.has_room()
            && let Some(late) = self.waiting.take_late(now)
        {
            self.counters.timeouts = self.counters.timeouts.saturating_add(1);
            self.control.terminate(u32::from(late.domain), late.port);
        }
        while self.refusals() < MAX_REFUSALS
            && let Some(waiter) = self.waiting.take()
        {
            self.open(now, waiter, Rank::OverLimit, too_many());
        }
    }

    /// Data channels that are open or being opened.
    pub fn channels(&self) -> usize {
        self.slots.len()
    }

    /// Totals.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn slot(&mut self, call: CallId) -> Option<&mut Slot<S>> {
        self.slots.iter_mut().find(|slot| slot.id == call)
    }

    fn follow(&mut self, now: Instant, plan: Plan<S>) {
        let Plan { domain, port, mode, answer } = plan;
        self.counters.calls = self.counters.calls.saturating_add(1);
        let number = u16::try_from(domain).ok().filter(|number| *number < FIRST_RESERVED_DOMAIN);
        let Some(number) = number else {
            self.counters.over_limit = self.counters.over_limit.saturating_add(1);
            return self.control.terminate(domain, port);
        };
        let waiter = Waiter { domain: number, port, mode, deadline: now.after(PEER_TIMEOUT) };
        let (rank, answer) = self.admit(number, answer);
        if rank == Rank::OverLimit && self.refusals() >= MAX_REFUSALS {
            if !self.waiting.add(waiter) {
                self.control.terminate(domain, port);
            }
            return;
        }
        self.open(now, waiter, rank, answer);
    }

    /// Has the data channel of a call connected.
    fn open(&mut self, now: Instant, call: Waiter, rank: Rank, answer: Answer<S>) {
        let Waiter { domain, port, mode, .. } = call;
        let patience = if rank == Rank::Served { OPEN_TIMEOUT } else { PEER_TIMEOUT };
        let id = CallId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.slots.push(Slot {
            id,
            domain,
            port,
            rank,
            is_orphan: false,
            is_open: false,
            deadline: now.after(patience),
            channel: DataChannel::new(mode, answer),
        });
        self.actions.push_back(Action::OpenData { call: id, domain, port });
    }

    /// Within the limits the call gets its answer, else a refusal.
    fn admit(&mut self, domain: u16, answer: Answer<S>) -> (Rank, Answer<S>) {
        let is_served = |slot: &&Slot<S>| slot.rank == Rank::Served;
        let served = self.slots.iter().filter(is_served).count();
        let foreign = self.slots.iter().filter(is_served).filter(|slot| slot.domain != 0).count();
        if served < MAX_SERVED_CALLS && (domain == 0 || foreign < MAX_FOREIGN_CALLS) {
            if matches!(answer, Answer::Refusal { .. }) {
                self.counters.refused = self.counters.refused.saturating_add(1);
            }
            return (Rank::Served, answer);
        }
        self.counters.over_limit = self.counters.over_limit.saturating_add(1);
        (Rank::OverLimit, too_many())
    }

    fn refusals(&self) -> usize {
        self.slots.iter().filter(|slot| slot.rank == Rank::OverLimit).count()
    }

    /// Ends a call from our side.
    fn close(&mut self, call: CallId) {
        if self.end(call) {
            self.actions.push_back(Action::CloseData { call });
        }
    }

    /// Forgets a call and tells dom0, which otherwise never frees the port. Says whether there was such a call.
    fn end(&mut self, call: CallId) -> bool {
        let Some(at) = self.slots.iter().position(|slot| slot.id == call) else { return false };
        let slot = self.slots.swap_remove(at);
        if !slot.is_orphan {
            self.control.terminate(u32::from(slot.domain), slot.port);
        }
        true
    }
}

fn too_many<S>() -> Answer<S> {
    Answer::Refusal { text: b"too many calls at once\n", code: ExitCode::REFUSED }
}

/// What an order leads to.
struct Plan<S> {
    domain: u32,
    port: u32,
    mode: Mode,
    answer: Answer<S>,
}

fn answer<V: Services>(domain: u32, text: Option<&[u8]>, services: &mut V) -> Answer<V::Session> {
    let unusable = Answer::Refusal { text: b"bad command\n", code: ExitCode::QREXEC_PROBLEM };
    let unknown = Answer::Refusal { text: UNKNOWN, code: ExitCode::NOT_FOUND };
    let command = match text.map(Command::parse) {
        None | Some(Err(_)) => return unusable,
        Some(Ok(command)) => command,
    };
    // Of dom0 alone: what other VMs call comes with their own numbers.
    if domain == 0
        && let Some(shell) = Shell::of(&command)
    {
        return Answer::Shell(shell);
    }
    match command {
        Command::Shell(_) => unknown,
        Command::Service(call) => match services.start(&call) {
            Ok(session) => Answer::Session(session),
            Err(NoSuchService) => unknown,
        },
    }
}
