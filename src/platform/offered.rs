//! The data channel that we serve: of our own call to dom0.

use xen::vchan::{LinkState, Server, ServerOutcome, Sizes};
use xen::xenstore::{self, Owner, ReqId};
use xen::{DomId, EventPort};

use crate::event_loop::machine::{Change, Pipe, Reason};
use crate::qrexec::CallId;

use super::links::Changes;

/// One channel at most: there is one such call.
#[derive(Default)]
pub(super) struct Offered {
    channel: Option<Channel>,
}

struct Channel {
    /// Nothing: closed, only its announcement has to go.
    id: Option<CallId>,
    server: Server,
    request: Option<ReqId>,
    has_event: bool,
    /// An end is reported once.
    is_down: bool,
}

impl Offered {
    /// Offers `port` to dom0. A second channel is refused.
    pub(super) fn serve(
        &mut self,
        store: &mut xenstore::Client,
        changes: &mut Changes,
        own: DomId,
        id: CallId,
        port: u32,
    ) {
        // dom0 sends the ends of two outputs and a number: the smallest rings will do.
        let server =
            match (&self.channel, Server::new(DomId::DOM0, own, port, Sizes::QREXEC_CONTROL)) {
                (None, Ok(server)) => server,
                (Some(_), _) => return changes.push_back(Change::CallDown(id)),
                (None, Err(error)) => {
                    changes.push_back(Change::Note(Reason::new(format_args!(
                        "qrexec data channel cannot be offered: {error}"
                    ))));
                    return changes.push_back(Change::CallDown(id));
                }
            };
        server.link().unmask();
        self.channel =
            Some(Channel { id: Some(id), server, request: None, has_event: false, is_down: false });
        // What is written before dom0 has come waits for it in the ring.
        changes.push_back(Change::CallUp(id));
        self.ask(store);
    }

    pub(super) fn on_event(&mut self, port: EventPort) {
        if let Some(channel) = &mut self.channel
            && channel.server.link().port() == port
        {
            channel.has_event = true;
        }
    }

    pub(super) fn on_reply(
        &mut self,
        reply: &xenstore::Reply,
        store: &mut xenstore::Client,
        changes: &mut Changes,
    ) {
        let Some(channel) = &mut self.channel else { return };
        if channel.request != Some(reply.id) {
            return;
        }
        channel.request = None;
        let result = reply.result.as_ref().map(alloc::vec::Vec::as_slice).map_err(Clone::clone);
        if let Some(ServerOutcome::Refused(error)) = channel.server.on_reply(result) {
            changes.push_back(Change::Note(Reason::new(format_args!(
                "qrexec data channel cannot be announced: {error}"
            ))));
            changes.extend(channel.id.map(Change::CallDown));
        }
        self.ask(store);
    }

    /// Looks whether dom0 has gone, and goes on with what waits.
    pub(super) fn advance(&mut self, store: &mut xenstore::Client, changes: &mut Changes) {
        let Some(channel) = &mut self.channel else { return };
        let is_gone =
            matches!(channel.server.link().state(), LinkState::Closed | LinkState::Broken);
        if channel.has_event && is_gone && !channel.is_down {
            channel.is_down = true;
            changes.extend(channel.id.map(Change::CallDown));
        }
        self.ask(store);
        // Its pages stay until nothing in xenstore names them, and what dom0 has mapped of them until it lets go.
        if self.channel.as_ref().is_some_and(|one| one.id.is_none() && one.server.is_removed()) {
            self.channel = None;
        }
    }

    /// Lets the next event through.
    pub(super) fn rearm(&mut self) {
        if let Some(channel) = &mut self.channel
            && core::mem::take(&mut channel.has_event)
        {
            channel.server.link().unmask();
        }
    }

    pub(super) fn pipe(&mut self, id: CallId) -> Option<&mut dyn Pipe> {
        let channel = self.channel.as_mut().filter(|channel| channel.id == Some(id))?;
        Some(channel.server.link_mut())
    }

    /// Closes the channel of this call.
    pub(super) fn close(&mut self, store: &mut xenstore::Client, id: CallId) {
        if let Some(channel) = self.channel.as_mut().filter(|channel| channel.id == Some(id)) {
            channel.id = None;
            channel.server.withdraw();
            self.ask(store);
        }
    }

    #[cfg(test)]
    pub(super) fn is_any(&self) -> bool {
        self.channel.is_some()
    }

    fn ask(&mut self, store: &mut xenstore::Client) {
        let Some(Channel { server, request, .. }) = &mut self.channel else { return };
        if request.is_none()
            && store.has_room(1)
            && let Some((transaction, next)) = server.next_request()
        {
            *request = store.request_in(transaction, Owner::Platform, next).ok();
        }
    }
}
