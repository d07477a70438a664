//! The xenstore client: requests pipelined over the shared page, replies and watch events as they come.
//!
//! Nothing here waits. [`Client::request`] queues, [`Client::flush`] moves bytes, [`Client::poll`] yields what has
//! arrived. Replies carry the [`ReqId`] of their request and the [`Owner`] who asked, so that the event loop can pass
//! them on without looking inside. At most [`MAX_OUTSTANDING`] requests are with the store at a time and at most
//! [`MAX_QUEUED`] wait behind them; a caller that makes many first asks [`Client::has_room`].
//!
//! Watch events are not stored: `poll` takes one message off the ring at a time, and the owners turn an event into a
//! mark, then read the state anew. A flood therefore costs time within the caller's budget for
//! `poll` and no memory.
#![forbid(unsafe_code)]

mod patience;
mod token;
mod transport;
mod wire;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use crate::event::Channel;
use crate::shared::SharedPage;

use patience::Patience;
pub use token::{Owner, Token};
use transport::{Corrupt, Transport};
pub use wire::{
    ABSOLUTE_PATH_MAX, EncodeError, HEADER_BYTES, Header, Op, PAYLOAD_MAX, Permission,
    PermissionMode, RELATIVE_PATH_MAX, Request, StoreError, TransactionEnd, TxId,
};

/// Requests that xenstored serves from one domain at a time.
pub const MAX_OUTSTANDING: usize = 20;
/// Requests that may wait here for a place among the outstanding ones.
pub const MAX_QUEUED: usize = 512;

/// Identifies a request until its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReqId(u32);

/// The request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// [`MAX_QUEUED`] requests wait already.
    #[error("too many xenstore requests are waiting")]
    Full,
    /// The request itself cannot be sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// Answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// As returned by [`Client::request`].
    pub id: ReqId,
    /// As given to [`Client::request`].
    pub owner: Owner,
    /// Payload (a value, child names, ...) or the store's error.
    pub result: Result<Vec<u8>, StoreError>,
}

/// Something below a watched node may have changed, or the node itself was removed.
#[derive(Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// As given to the watch.
    pub token: Token,
    /// The changed node; relative if the watch was set with a relative path.
    pub path: String,
}

/// A message of the store.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A request was answered.
    Reply(Reply),
    /// A watch fired.
    Watch(WatchEvent),
}

/// Whether the connection works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Good,
    /// The ring indices or a message length were impossible; nothing more is read or sent. The domain cannot be
    /// managed any more: stop it.
    Broken,
}

/// What the client has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests sent.
    pub requests: u64,
    /// Replies with an error.
    pub errors: u64,
    /// Watch events.
    pub watch_events: u64,
    /// Replies to nothing we asked, of the wrong type, or with an unreadable token: dropped.
    pub stray: u64,
}

struct Waiting {
    id: ReqId,
    owner: Owner,
    op: Op,
    message: Vec<u8>,
}

struct Outstanding {
    id: ReqId,
    owner: Owner,
    op: Op,
}

/// The connection of this domain to xenstored.
pub struct Client {
    transport: Transport,
    channel: Channel,
    queue: VecDeque<Waiting>,
    sending: Vec<u8>,
    sent: usize,
    outstanding: Vec<Outstanding>,
    incoming: Incoming,
    next_id: u32,
    notify: bool,
    /// The last `poll` returned a message; more may wait, and the port is masked.
    has_more: bool,
    watches: usize,
    health: Health,
    counters: Counters,
    patience: Patience,
}

impl Client {
    /// Takes over the connection that the toolstack prepared: the page and the event channel of the HVM parameters
    /// `STORE_PFN` and `STORE_EVTCHN`.
    ///
    /// The first request should be [`Request::ResetWatches`], whose error is to be ignored.
    pub fn new(page: SharedPage, channel: Channel) -> Client {
        Client {
            transport: Transport::new(page),
            channel,
            queue: VecDeque::with_capacity(MAX_QUEUED),
            sending: Vec::new(),
            sent: 0,
            outstanding: Vec::with_capacity(MAX_OUTSTANDING),
            incoming: Incoming::new(),
            next_id: 1,
            notify: false,
            has_more: false,
            watches: 0,
            health: Health::Good,
            counters: Counters::default(),
            patience: Patience::new(),
        }
    }

    /// The event channel's port.
    pub fn port(&self) -> crate::abi::EventPort {
        self.channel.port()
    }

    /// Whether the connection works.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Counters since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Watches that the store holds for us.
    pub fn watches(&self) -> usize {
        self.watches
    }

    /// Whether `count` more requests fit.
    pub fn has_room(&self, count: usize) -> bool {
        self.queue.len().saturating_add(count) <= MAX_QUEUED
    }

    /// Requests without a reply, waiting ones included.
    pub fn pending(&self) -> usize {
        self.queue.len().saturating_add(self.outstanding.len())
    }

    /// Queues a request outside of any transaction.
    pub fn request(&mut self, owner: Owner, request: Request<'_>) -> Result<ReqId, RequestError> {
        self.request_in(TxId::NONE, owner, request)
    }

    /// Queues a request within a transaction.
    pub fn request_in(
        &mut self,
        tx: TxId,
        owner: Owner,
        request: Request<'_>,
    ) -> Result<ReqId, RequestError> {
        if !self.has_room(1) {
            return Err(RequestError::Full);
        }
        let id = ReqId(self.next_id);
        let message = request.encode(id.0, tx)?;
        // 0 is the id of watch events.
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.queue.push_back(Waiting { id, owner, op: request.op(), message });
        Ok(id)
    }

    /// Sends what fits and tells the store. Call once per turn of the event loop.
    pub fn flush(&mut self) {
        if self.health == Health::Good && self.try_send().is_err() {
            self.health = Health::Broken;
        }
        if self.notify {
            self.notify = false;
            self.channel.notify();
        }
    }

    /// The next message of the store, if one is complete. After `None` the port is open for the next event.
    ///
    /// Call it with a budget: a store that talks without pause must not keep the packets waiting. See
    /// [`Client::has_work`] for what the budget left over.
    pub fn poll(&mut self) -> Option<Event> {
        while self.health == Health::Good {
            match self.incoming.read(&mut self.transport, &mut self.notify) {
                Err(Corrupt) => self.health = Health::Broken,
                Ok(None) => break,
                Ok(Some((header, payload))) => {
                    if let Some(event) = self.accept(header, payload) {
                        self.has_more = true;
                        return Some(event);
                    }
                }
            }
        }
        self.has_more = false;
        self.patience.learn(self.outstanding.is_empty());
        self.flush();
        self.channel.unmask();
        None
    }

    /// To be called before a sleep at `now` (ns): while answers are due, their events wake nobody until the time that is
    /// returned, when most of them should be there. After the sleep [`Client::listen`].
    pub fn be_patient(&mut self, now: u64) -> Option<u64> {
        let until = self.patience.begin(self.outstanding.len(), now)?;
        self.channel.mute();
        Some(until)
    }

    /// Hears the store again, at `now` (ns). To be followed by [`Client::poll`] until it returns `None`.
    pub fn listen(&mut self, now: u64) {
        if self.patience.end(now) {
            self.channel.unmute();
        }
    }

    /// Whether [`Client::poll`] has to be called again before sleeping: it was left before it returned `None`, so that
    /// messages may wait for which no event will come.
    pub fn has_work(&self) -> bool {
        self.has_more
    }

    fn try_send(&mut self) -> Result<(), Corrupt> {
        loop {
            if self.sent == self.sending.len() {
                // Whoever asked has it back.
                self.sending = Vec::new();
                self.sent = 0;
                if self.outstanding.len() >= MAX_OUTSTANDING {
                    return Ok(());
                }
                let Some(next) = self.queue.pop_front() else { return Ok(()) };
                self.counters.requests = self.counters.requests.saturating_add(1);
                self.outstanding.push(Outstanding { id: next.id, owner: next.owner, op: next.op });
                self.sending = next.message;
            }
            let rest = self.sending.get(self.sent..).unwrap_or(&[]);
            let moved = self.transport.send(rest)?;
            if moved == 0 {
                return Ok(());
            }
            self.notify = true;
            self.sent = self.sent.saturating_add(moved);
        }
    }

    fn accept(&mut self, header: Header, payload: Vec<u8>) -> Option<Event> {
        let event = if header.op == Op::WatchEvent as u32 {
            self.counters.watch_events = self.counters.watch_events.saturating_add(1);
            parse_watch_event(payload).map(Event::Watch)
        } else {
            self.accept_reply(header, payload).map(Event::Reply)
        };
        if event.is_none() {
            self.counters.stray = self.counters.stray.saturating_add(1);
        }
        event
    }

    fn accept_reply(&mut self, header: Header, payload: Vec<u8>) -> Option<Reply> {
        let place = self.outstanding.iter().position(|entry| entry.id.0 == header.req_id)?;
        let request = self.outstanding.swap_remove(place);
        let result = if header.op == request.op as u32 {
            self.count_watches(request.op);
            Ok(payload)
        } else if header.op == Op::Error as u32 {
            self.counters.errors = self.counters.errors.saturating_add(1);
            Err(StoreError::parse(&payload))
        } else {
            self.counters.stray = self.counters.stray.saturating_add(1);
            Err(StoreError::Other)
        };
        Some(Reply { id: request.id, owner: request.owner, result })
    }

    fn count_watches(&mut self, op: Op) {
        match op {
            Op::Watch => self.watches = self.watches.saturating_add(1),
            Op::Unwatch => self.watches = self.watches.saturating_sub(1),
            Op::ResetWatches => self.watches = 0,
            _ => {}
        }
    }
}

/// `path\0token\0`, possibly with more fields of a later protocol.
fn parse_watch_event(payload: Vec<u8>) -> Option<WatchEvent> {
    let mut fields = payload.split(|byte| *byte == 0);
    let path_len = fields.next()?.len();
    let token = Token::parse(core::str::from_utf8(fields.next()?).ok()?)?;
    let mut path = payload;
    path.truncate(path_len);
    Some(WatchEvent { token, path: String::from_utf8(path).ok()? })
}

/// The message that is being received; it may arrive in pieces and be longer than the ring.
struct Incoming {
    header: [u8; HEADER_BYTES],
    header_have: usize,
    payload: Vec<u8>,
    payload_have: usize,
}

impl Incoming {
    fn new() -> Incoming {
        Incoming { header: [0; HEADER_BYTES], header_have: 0, payload: Vec::new(), payload_have: 0 }
    }

    /// Continues; `Some` once a message is complete. Sets `consumed` when the store has got room on the ring.
    fn read(
        &mut self,
        transport: &mut Transport,
        consumed: &mut bool,
    ) -> Result<Option<(Header, Vec<u8>)>, Corrupt> {
        if self.header_have < HEADER_BYTES {
            let rest = self.header.get_mut(self.header_have..).unwrap_or_default();
            let got = transport.receive(rest)?;
            *consumed |= got > 0;
            self.header_have = self.header_have.saturating_add(got);
            if self.header_have < HEADER_BYTES {
                return Ok(None);
            }
            let len = Header::decode(&self.header).len as usize;
            if len > PAYLOAD_MAX {
                return Err(Corrupt);
            }
            self.payload = alloc::vec![0; len];
            self.payload_have = 0;
        }
        while self.payload_have < self.payload.len() {
            let rest = self.payload.get_mut(self.payload_have..).unwrap_or_default();
            let got = transport.receive(rest)?;
            *consumed |= got > 0;
            self.payload_have = self.payload_have.saturating_add(got);
            if got == 0 {
                return Ok(None);
            }
        }
        self.header_have = 0;
        Ok(Some((Header::decode(&self.header), core::mem::take(&mut self.payload))))
    }
}

/// Parses a decimal number as xenstore clients write it: digits only, no leading zero, at most `u32::MAX`.
pub fn decimal_u32(value: &[u8]) -> Option<u32> {
    let zero_led = value.len() > 1 && value.first() == Some(&b'0');
    if value.is_empty() || value.len() > 10 || zero_led {
        return None;
    }
    value.iter().try_fold(0u32, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte.wrapping_sub(b'0')))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// The child names in a reply to [`Request::Directory`]; names that are not text are left out.
pub fn children(payload: &[u8]) -> impl Iterator<Item = &str> {
    payload
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| core::str::from_utf8(name).ok())
}

#[cfg(test)]
mod tests;
