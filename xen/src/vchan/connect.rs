//! The client's way to a link: wait for the announcement, validate it, connect once.

use alloc::format;
use alloc::string::String;

use super::layout::{CLIENT_LIVE, LIVE, Layout, LayoutError, NOT_CONNECTED, SERVER_LIVE};
use super::link::Link;
use super::memory::Memory;
use crate::abi::{DomId, EventPort, GrantRef};
use crate::event::{Channel, EventError};
use crate::grant::{self, Access, GrantError, Mapping};
use crate::xenstore::{Request, StoreError, Token, decimal_u32};

/// Why an announcement could not be used. Not an error of the program: a dead server's announcement stays in
/// xenstore until the next one replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// `ring-ref` or `event-channel` is not a positive decimal number.
    #[error("announcement is not numeric")]
    NotNumeric,
    /// A page cannot be mapped: revoked, or our window is full.
    #[error("announced pages cannot be mapped: {0}")]
    Map(GrantError),
    /// The orders in the ring page.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The ring page is not one that waits for its first client: used before, or no ring page at all.
    #[error("announced ring is not waiting for a client")]
    NotWaiting,
    /// The event channel cannot be bound.
    #[error("announced event channel cannot be bound: {0}")]
    Bind(EventError),
}

/// What a reply of xenstore led to.
#[derive(Debug)]
pub enum Outcome {
    /// The pipe is there.
    Connected(Link),
    /// This announcement cannot be used; the machine waits for the next change of the node.
    Unusable(ConnectError),
    /// The store refuses the watch. Nothing more happens until [`Connector::reconnect`].
    WatchRefused(StoreError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Next: set the watch.
    Start,
    /// The watch is being set.
    Watching,
    /// Nothing to do until the node changes.
    Waiting,
    /// Next: read `event-channel`.
    ReadPort,
    /// Its value is on the way.
    ReadingPort,
    /// Next: read `ring-ref`.
    ReadRing(EventPort),
    /// Its value is on the way.
    ReadingRing(EventPort),
    /// A link was handed out.
    Connected,
    /// Next: end the watch.
    Unwatch,
    /// It is being ended, or never was set.
    Stopped,
}

/// State machine of one client end. At most one xenstore request of it is outstanding.
#[derive(Debug)]
pub struct Connector {
    server: DomId,
    token: Token,
    port_path: String,
    ring_path: String,
    state: State,
    is_watching: bool,
    /// The node changed since the reads began: their values may belong to two announcements.
    changed: bool,
    /// `stop` was called while a request was outstanding.
    stopping: bool,
}

impl Connector {
    /// Connects to `vchan_port` of domain `server`; `own` is our domain number, `token` names the watch.
    pub fn new(server: DomId, own: DomId, vchan_port: u32, token: Token) -> Self {
        let directory = format!("/local/domain/{}/data/vchan/{}/{vchan_port}", server.0, own.0);
        Self {
            server,
            token,
            // The leaf: the directories above may be unreadable for us.
            port_path: format!("{directory}/event-channel"),
            ring_path: format!("{directory}/ring-ref"),
            state: State::Start,
            is_watching: false,
            changed: false,
            stopping: false,
        }
    }

    /// The request to be sent now, if any. The next one comes after [`Self::on_reply`].
    pub fn next_request(&mut self) -> Option<Request<'_>> {
        let (next, request) = match self.state {
            State::Start => {
                (State::Watching, Request::Watch { path: &self.port_path, token: self.token })
            }
            State::ReadPort => {
                self.changed = false;
                (State::ReadingPort, Request::Read { path: &self.port_path })
            }
            State::ReadRing(port) => {
                (State::ReadingRing(port), Request::Read { path: &self.ring_path })
            }
            State::Unwatch => {
                (State::Stopped, Request::Unwatch { path: &self.port_path, token: self.token })
            }
            State::Watching
            | State::Waiting
            | State::ReadingPort
            | State::ReadingRing(_)
            | State::Connected
            | State::Stopped => return None,
        };
        self.state = next;
        Some(request)
    }

    /// The watch fired.
    pub fn on_watch(&mut self) {
        self.changed = true;
        if self.state == State::Waiting {
            self.state = State::ReadPort;
        }
    }

    /// The answer to the last request: the value, or why there is none.
    pub fn on_reply(&mut self, reply: Result<&[u8], StoreError>) -> Option<Outcome> {
        if self.stopping {
            self.is_watching |= self.state == State::Watching && reply.is_ok();
            self.state = if self.is_watching { State::Unwatch } else { State::Stopped };
            self.stopping = false;
            return None;
        }
        match self.state {
            State::Watching => self.on_watch_reply(reply),
            State::ReadingPort => self.on_port(reply),
            State::ReadingRing(port) => self.on_ring(port, reply),
            State::Start
            | State::Waiting
            | State::ReadPort
            | State::ReadRing(_)
            | State::Connected
            | State::Unwatch
            | State::Stopped => None,
        }
    }

    /// The link is gone, or the last failure was ours: look for an announcement again. One that a client has used
    /// before is recognised by its ring page and left alone.
    pub fn reconnect(&mut self) {
        if matches!(self.state, State::Connected | State::Waiting | State::Stopped) {
            self.state = if self.is_watching { State::ReadPort } else { State::Start };
        }
    }

    /// Ends the watch; [`Self::next_request`] may yield one more request for that.
    pub fn stop(&mut self) {
        match self.state {
            State::Watching | State::ReadingPort | State::ReadingRing(_) => self.stopping = true,
            State::Unwatch | State::Stopped => {}
            _ if self.is_watching => self.state = State::Unwatch,
            _ => self.state = State::Stopped,
        }
    }

    /// Is there nothing left to do after [`Self::stop`]?
    pub fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    fn on_watch_reply(&mut self, reply: Result<&[u8], StoreError>) -> Option<Outcome> {
        match reply {
            Ok(_) => {
                self.is_watching = true;
                self.state = State::ReadPort;
                None
            }
            Err(error) => {
                self.state = State::Stopped;
                Some(Outcome::WatchRefused(error))
            }
        }
    }

    /// An absent or empty node: nobody serves yet, or not completely.
    fn on_port(&mut self, reply: Result<&[u8], StoreError>) -> Option<Outcome> {
        let Some(value) = reply.ok().filter(|value| !value.is_empty()) else {
            self.wait();
            return None;
        };
        let Some(port) = positive(value) else { return self.unusable(ConnectError::NotNumeric) };
        self.state = State::ReadRing(EventPort(port));
        None
    }

    fn on_ring(&mut self, port: EventPort, reply: Result<&[u8], StoreError>) -> Option<Outcome> {
        if self.changed {
            self.state = State::ReadPort;
            return None;
        }
        let Some(value) = reply.ok().filter(|value| !value.is_empty()) else {
            self.wait();
            return None;
        };
        let Some(ring) = positive(value) else { return self.unusable(ConnectError::NotNumeric) };
        match connect(self.server, GrantRef(ring), port) {
            Ok(link) => {
                self.state = State::Connected;
                Some(Outcome::Connected(link))
            }
            Err(error) => self.unusable(error),
        }
    }

    fn unusable(&mut self, error: ConnectError) -> Option<Outcome> {
        self.wait();
        Some(Outcome::Unusable(error))
    }

    fn wait(&mut self) {
        self.state = if self.changed { State::ReadPort } else { State::Waiting };
    }
}

/// Maps and checks everything before anything is written or bound: the numbers of a dead announcement may by now
/// stand for other pages of the same server.
fn connect(server: DomId, ring_ref: GrantRef, port: EventPort) -> Result<Link, ConnectError> {
    let ring = grant::map(server, &[ring_ref], Access::ReadWrite).map_err(ConnectError::Map)?;
    let page = ring.page(0);
    let is_waiting =
        page.read_u8(CLIENT_LIVE) == NOT_CONNECTED && page.read_u8(SERVER_LIVE) == LIVE;
    if !is_waiting {
        return Err(ConnectError::NotWaiting);
    }
    let layout = Layout::read(page)?;
    let [left, right] = layout.read_grants(page);
    let left = map_data(server, &left, Access::ReadWrite)?;
    let right = map_data(server, &right, Access::ReadOnly)?;
    let channel = Channel::bind_interdomain(server, port).map_err(ConnectError::Bind)?;
    Ok(Link::client(server, channel, Memory::Client { ring, left, right }, layout))
}

fn map_data(
    server: DomId,
    grefs: &[GrantRef],
    access: Access,
) -> Result<Option<Mapping>, ConnectError> {
    if grefs.is_empty() {
        return Ok(None);
    }
    grant::map(server, grefs, access).map(Some).map_err(ConnectError::Map)
}

/// Number of a grant or port; 0 is never valid.
fn positive(value: &[u8]) -> Option<u32> {
    decimal_u32(value).filter(|number| *number != 0)
}
