//! The qrexec control channel, which dom0's daemon connects to: offered at the start, and anew when it has ended.

use alloc::vec::Vec;

use xen::vchan::{LinkState, Server, ServerOutcome, Sizes};
use xen::xenstore::{self, Owner, ReqId};
use xen::{DomId, EventPort, time};

use super::links::Changes;
use crate::event_loop::machine::{Change, Pipe, Reason};

/// vchan port of the qrexec control channel.
const QREXEC_PORT: u32 = 512;
/// Pause before another server is tried, in nanoseconds.
const RETRY_NS: u64 = 1_000_000_000;

/// The control channel.
#[derive(Default)]
pub(super) struct Agent {
    server: Option<Server>,
    request: Option<ReqId>,
    has_event: bool,
    /// A link that ended is reported once.
    is_down: bool,
    retry_at: Option<u64>,
}

impl Agent {
    /// Offers a channel to dom0.
    pub(super) fn serve(&mut self, own: DomId, changes: &mut Changes) {
        match Server::new(DomId::DOM0, own, QREXEC_PORT, Sizes::QREXEC_CONTROL) {
            Ok(server) => {
                server.link().unmask();
                *self = Self { server: Some(server), ..Self::default() };
                changes.push_back(Change::AgentUp);
            }
            Err(error) => {
                self.retry_at = Some(time::system_time_ns().saturating_add(RETRY_NS));
                changes.push_back(Change::Note(Reason::new(format_args!(
                    "qrexec control channel cannot be offered: {error}"
                ))));
            }
        }
    }

    /// Sends the next request that announces it, if there is one and the store has room.
    pub(super) fn ask(&mut self, store: &mut xenstore::Client) {
        let Self { server: Some(server), request, .. } = self else { return };
        if request.is_none()
            && store.has_room(1)
            && let Some((transaction, next)) = server.next_request()
        {
            *request = store.request_in(transaction, Owner::Platform, next).ok();
        }
    }

    pub(super) fn on_event(&mut self, port: EventPort) {
        if self.server.as_ref().is_some_and(|server| server.link().port() == port) {
            self.has_event = true;
        }
    }

    pub(super) fn on_reply(
        &mut self,
        reply: &xenstore::Reply,
        store: &mut xenstore::Client,
        changes: &mut Changes,
    ) {
        if self.request != Some(reply.id) {
            return;
        }
        self.request = None;
        let Some(server) = &mut self.server else { return };
        let result = reply.result.as_ref().map(Vec::as_slice).map_err(Clone::clone);
        if let Some(ServerOutcome::Refused(error)) = server.on_reply(result) {
            changes.push_back(Change::Note(Reason::new(format_args!(
                "qrexec control channel cannot be announced: {error}"
            ))));
            self.server = None;
            self.retry_at = Some(time::system_time_ns().saturating_add(RETRY_NS));
        }
        self.ask(store);
    }

    /// Looks whether dom0 has ended it, and goes on with what waits.
    pub(super) fn advance(
        &mut self,
        own: DomId,
        store: &mut xenstore::Client,
        changes: &mut Changes,
    ) {
        if self.has_event
            && let Some(server) = &self.server
            && matches!(server.link().state(), LinkState::Closed | LinkState::Broken)
            && !core::mem::replace(&mut self.is_down, true)
        {
            changes.push_back(Change::AgentDown);
        }
        if self.retry_at.is_some_and(|at| at <= time::system_time_ns()) {
            self.retry_at = None;
        }
        if self.server.is_none() && self.retry_at.is_none() {
            self.serve(own, changes);
        }
        self.ask(store);
    }

    /// When a server is tried again.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.retry_at
    }

    /// Lets the next event through.
    pub(super) fn rearm(&mut self) {
        if core::mem::take(&mut self.has_event)
            && let Some(server) = &self.server
        {
            server.link().unmask();
        }
    }

    pub(super) fn pipe(&mut self) -> Option<&mut dyn Pipe> {
        self.server.as_mut().map(|server| server.link_mut() as &mut dyn Pipe)
    }
}
