//! A vchan that another domain offers: the way to it through xenstore, and its events.

use alloc::vec::Vec;

use xen::EventPort;
use xen::vchan::{Connector, Link, Outcome};
use xen::xenstore::{self, Owner, ReqId};

use crate::event_loop::machine::Reason;

/// A link as client, and the way to it.
pub(super) struct Client {
    pub(super) connector: Connector,
    request: Option<ReqId>,
    pub(super) link: Option<Link>,
    pub(super) has_event: bool,
}

/// What became of a client's way to its link.
pub(super) enum Step {
    Connected,
    Unusable(Reason),
    Refused(Reason),
}

impl Client {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector, request: None, link: None, has_event: false }
    }

    /// Sends the next request of the connector, if there is one and the store has room.
    pub(super) fn ask(&mut self, store: &mut xenstore::Client) {
        if self.request.is_none()
            && store.has_room(1)
            && let Some(request) = self.connector.next_request()
        {
            self.request = store.request(Owner::Platform, request).ok();
        }
    }

    pub(super) fn on_reply(&mut self, reply: &xenstore::Reply) -> Option<Step> {
        if self.request != Some(reply.id) {
            return None;
        }
        self.request = None;
        let result = reply.result.as_ref().map(Vec::as_slice).map_err(Clone::clone);
        match self.connector.on_reply(result)? {
            Outcome::Connected(link) => {
                self.link = Some(link);
                // What the server wrote before we came has no event of its own.
                self.has_event = true;
                Some(Step::Connected)
            }
            Outcome::Unusable(error) => Some(Step::Unusable(Reason::new(format_args!("{error}")))),
            Outcome::WatchRefused(error) => {
                Some(Step::Refused(Reason::new(format_args!("{error}"))))
            }
        }
    }

    /// Takes note of an event of this link.
    pub(super) fn on_event(&mut self, port: EventPort) -> bool {
        let is_ours = self.link.as_ref().is_some_and(|link| link.port() == port);
        self.has_event |= is_ours;
        is_ours
    }

    /// Whether the peer has gone since the last look.
    pub(super) fn has_ended(&self) -> bool {
        self.has_event && self.link.as_ref().is_some_and(|link| !link.is_open())
    }

    /// Lets the next event through.
    pub(super) fn rearm(&mut self) {
        if core::mem::take(&mut self.has_event)
            && let Some(link) = &self.link
        {
            link.unmask();
        }
    }
}
