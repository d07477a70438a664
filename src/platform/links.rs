//! The vchans of this domain: QubesDB (client of dom0), the qrexec control channel (server for dom0) and the data
//! channels of calls (client of the caller). Each has a state machine for its way through xenstore (`client`,
//! `control_channel`, `offered`); here their requests and replies, and the events of the links, find their way.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use xen::mem::ledger::{self, Part};
use xen::vchan::{Connector, Link};
use xen::xenstore::{self, Owner, Token, WatchEvent};
use xen::{DomId, EventPort};

use super::client::{Client, Step};
use super::control_channel::Agent;
use super::offered::Offered;
use super::requests;
use crate::event_loop::machine::{Change, Pipe, Reason};
use crate::qrexec::CallId;

/// vchan port of dom0's QubesDB daemon for this domain.
const QUBESDB_PORT: u32 = 111;
/// Numbers of our watches; those of calls follow.
const DATABASE_WATCH: u32 = requests::WATCH + 1;
const FIRST_CALL_WATCH: u32 = DATABASE_WATCH + 1;

pub(super) type Changes = VecDeque<Change>;

impl Pipe for Link {
    fn read(&mut self, buffer: &mut [u8]) -> usize {
        Link::read(self, buffer)
    }
    fn write(&mut self, bytes: &[u8]) -> usize {
        Link::write(self, bytes)
    }
    fn unread(&self) -> usize {
        self.data_ready()
    }
    fn space(&self) -> usize {
        Link::space(self)
    }
}

/// A data channel.
struct Call {
    /// Nothing: closed, only its watch has to end.
    id: Option<CallId>,
    watch: u32,
    generation: u32,
    client: Client,
}

impl Call {
    fn owner(&self) -> ledger::Owner {
        owner_of(self.watch)
    }
}

/// Where the memory of the call with this watch is booked.
fn owner_of(watch: u32) -> ledger::Owner {
    ledger::Owner::Link(watch.saturating_sub(FIRST_CALL_WATCH) as usize)
}

/// All links.
pub(super) struct Links {
    own: DomId,
    database: Client,
    /// The loop was told that the database's link ended.
    is_database_down: bool,
    agent: Agent,
    calls: Vec<Call>,
    offered: Offered,
    generation: u32,
}

impl Links {
    pub(super) fn new(own: DomId) -> Self {
        let token = Token { owner: Owner::Platform, id: DATABASE_WATCH, generation: 0 };
        Self {
            own,
            database: Client::new(Connector::new(DomId::DOM0, own, QUBESDB_PORT, token)),
            is_database_down: false,
            agent: Agent::default(),
            calls: Vec::new(),
            offered: Offered::default(),
            generation: 0,
        }
    }

    /// Offers the control channel and looks for QubesDB. The hello goes out before anything is waited for.
    pub(super) fn start(&mut self, store: &mut xenstore::Client, changes: &mut Changes) {
        self.agent.serve(self.own, changes);
        self.agent.ask(store);
        self.database.ask(store);
    }

    pub(super) fn on_event(&mut self, port: EventPort) {
        let links = self.calls.iter_mut().map(|call| &mut call.client);
        for client in core::iter::once(&mut self.database).chain(links) {
            if client.on_event(port) {
                return;
            }
        }
        self.agent.on_event(port);
        self.offered.on_event(port);
    }

    pub(super) fn on_watch(&mut self, watch: &WatchEvent, store: &mut xenstore::Client) {
        let Token { id, generation, .. } = watch.token;
        if id == DATABASE_WATCH {
            self.database.connector.on_watch();
            self.database.ask(store);
        }
        let is_same = |call: &&mut Call| call.watch == id && call.generation == generation;
        if let Some(call) = self.calls.iter_mut().find(is_same) {
            call.client.connector.on_watch();
            call.client.ask(store);
        }
    }

    pub(super) fn on_reply(
        &mut self,
        reply: &xenstore::Reply,
        store: &mut xenstore::Client,
        changes: &mut Changes,
    ) {
        match self.database.on_reply(reply) {
            None => {}
            Some(Step::Connected) => {
                self.is_database_down = false;
                changes.push_back(Change::DatabaseUp);
            }
            Some(Step::Unusable(why)) => changes.push_back(Change::Note(Reason::new(
                format_args!("qubesdb offer unusable: {why}"),
            ))),
            Some(Step::Refused(why)) => changes.push_back(Change::Note(Reason::new(format_args!(
                "qubesdb cannot be watched for, no rules can arrive: {why}"
            )))),
        }
        self.database.ask(store);
        for call in &mut self.calls {
            let booked = ledger::enter_for(Part::Links, call.owner());
            let step = call.client.on_reply(reply);
            drop(booked);
            call.client.ask(store);
            let (Some(step), Some(id)) = (step, call.id) else { continue };
            match step {
                Step::Connected => changes.push_back(Change::CallUp(id)),
                // The agent's time-out ends the wait for a better offer.
                Step::Unusable(why) => changes.push_back(Change::Note(Reason::new(format_args!(
                    "qrexec data channel unusable: {why}"
                )))),
                Step::Refused(_) => changes.push_back(Change::CallDown(id)),
            }
        }
        self.offered.on_reply(reply, store, changes);
        self.agent.on_reply(reply, store, changes);
    }

    /// Looks at the links that had an event, and goes on with what waits.
    pub(super) fn advance(&mut self, store: &mut xenstore::Client, changes: &mut Changes) {
        if self.database.has_ended() && !self.is_database_down {
            self.is_database_down = true;
            changes.push_back(Change::DatabaseDown);
        }
        self.database.ask(store);
        for call in &mut self.calls {
            if call.client.has_ended()
                && let Some(id) = call.id
            {
                changes.push_back(Change::CallDown(id));
            }
            call.client.ask(store);
        }
        self.offered.advance(store, changes);
        self.forget_ended_calls(changes);
        self.agent.advance(self.own, store, changes);
    }

    /// Calls whose last trace in xenstore is gone. What one leaves behind is a fault of ours.
    fn forget_ended_calls(&mut self, changes: &mut Changes) {
        let has_ended = |call: &Call| call.id.is_none() && call.client.connector.is_stopped();
        while let Some(at) = self.calls.iter().position(has_ended) {
            let call = self.calls.swap_remove(at);
            let (owner, watch) = (call.owner(), call.watch);
            drop(call);
            if let Some((part, bytes)) = ledger::take_leak(owner) {
                changes.push_back(Change::Note(Reason::new(format_args!(
                    "leak call={watch} part={} bytes={bytes}",
                    part.name()
                ))));
            }
        }
    }

    /// When a server is tried again.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.agent.next_deadline()
    }

    /// After everybody has read: lets the next events through.
    pub(super) fn rearm(&mut self) {
        self.database.rearm();
        self.calls.iter_mut().for_each(|call| call.client.rearm());
        self.offered.rearm();
        self.agent.rearm();
    }

    pub(super) fn database(&mut self) -> Option<&mut dyn Pipe> {
        self.database.link.as_mut().map(|link| link as &mut dyn Pipe)
    }

    pub(super) fn close_database(&mut self, store: &mut xenstore::Client) {
        self.database.link = None;
        self.database.has_event = false;
        self.database.connector.reconnect();
        self.database.ask(store);
    }

    pub(super) fn agent(&mut self) -> Option<&mut dyn Pipe> {
        self.agent.pipe()
    }

    /// Drops the control channel; `advance` offers the next one.
    pub(super) fn reset_agent(&mut self) {
        // A reply that is still under way belongs to nobody then.
        self.agent = Agent::default();
    }

    pub(super) fn open_call(
        &mut self,
        store: &mut xenstore::Client,
        id: CallId,
        domain: DomId,
        port: u32,
    ) {
        self.generation = self.generation.wrapping_add(1);
        let used = |watch| self.calls.iter().any(|call| call.watch == watch);
        // There are fewer calls than numbers.
        let watch = (FIRST_CALL_WATCH..).find(|watch| !used(*watch)).unwrap_or(FIRST_CALL_WATCH);
        let token = Token { owner: Owner::Platform, id: watch, generation: self.generation };
        let booked = ledger::enter_for(Part::Links, owner_of(watch));
        let connector = Connector::new(domain, self.own, port, token);
        let mut client = Client::new(connector);
        drop(booked);
        client.ask(store);
        self.calls.push(Call { id: Some(id), watch, generation: self.generation, client });
    }

    pub(super) fn serve_call(
        &mut self,
        store: &mut xenstore::Client,
        changes: &mut Changes,
        id: CallId,
        port: u32,
    ) {
        self.offered.serve(store, changes, self.own, id, port);
    }

    #[cfg(test)]
    pub(super) fn offers(&self) -> bool {
        self.offered.is_any()
    }

    pub(super) fn call(&mut self, id: CallId) -> Option<&mut dyn Pipe> {
        let Some(call) = self.calls.iter_mut().find(|call| call.id == Some(id)) else {
            return self.offered.pipe(id);
        };
        call.client.link.as_mut().map(|link| link as &mut dyn Pipe)
    }

    pub(super) fn close_call(&mut self, store: &mut xenstore::Client, id: CallId) {
        let Some(call) = self.calls.iter_mut().find(|call| call.id == Some(id)) else {
            return self.offered.close(store, id);
        };
        call.id = None;
        call.client.link = None;
        call.client.connector.stop();
        call.client.ask(store);
    }
}
