//! The one call that we make: of a service in dom0, once, without input and without interest in its output. dom0's policy
//! decides whether it runs; we serve the data channel for it, and its exit code or its time ends it.
//!
//! Source: Qubes `qrexec.h` (`MSG_TRIGGER_SERVICE3`, `MSG_SERVICE_CONNECT`, `MSG_SERVICE_REFUSED`).

use super::agent::{CallId, PEER_TIMEOUT};
use super::channel::BadPeer;
use super::message::{
    DATA_EXIT_CODE, DATA_STDERR, DATA_STDIN, DATA_STDOUT, HEADER_BYTES, HELLO, Header, Item,
    LOWEST_VERSION, Reader, TRIGGER_SERVICE3, VERSION, number_message,
};
use crate::time::Instant;

/// Length of the name of the target, and of the identifier, bytes, both filled up with zeros.
const TARGET_BYTES: usize = 64;
pub(super) const IDENT_BYTES: usize = 32;
/// The target, and the identifier by which dom0 answers.
const TARGET: &[u8] = b"dom0";
const IDENT: &[u8] = b"features";
/// Longest message on the data channel, bytes (version 3).
const MAX_CHUNK_BYTES: u32 = 65536;
/// What we have to say on it: the hello, and that there is no input.
const SAID_BYTES: usize = 12 + HEADER_BYTES;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    /// The service ran, and this is its exit code; 0 is a success.
    Ran(u32),
    /// dom0's policy does not allow it, or there is no such service.
    Refused,
    /// No end was heard: the channel closed, took too long, or was none of this protocol.
    Lost,
}

#[derive(Debug)]
enum State {
    /// Not yet.
    Idle,
    /// dom0 has not answered.
    Asked,
    /// We serve its data channel.
    Served(Served),
    /// It is over.
    Over,
}

/// The data channel.
#[derive(Debug)]
struct Served {
    id: CallId,
    port: u32,
    /// The control channel that dom0 gave the port on is gone.
    is_orphan: bool,
    deadline: Instant,
    reader: Reader,
    header: Header,
    has_greeted: bool,
    /// The first bytes of a body: a number.
    number: u32,
    number_bytes: u32,
    sent: usize,
    exit: Option<u32>,
}

/// State machine of the call.
#[derive(Debug)]
pub(super) struct Request {
    state: State,
    said: [u8; SAID_BYTES],
}

/// A channel to be closed and told to dom0, and how the call ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) id: CallId,
    /// To be given back to dom0.
    pub(super) port: Option<u32>,
    pub(super) end: RequestEnd,
}

impl Request {
    pub(super) fn new() -> Self {
        let mut said = [0; SAID_BYTES];
        let hello = number_message(HELLO, VERSION);
        let no_input = Header { kind: DATA_STDIN, len: 0 }.encode();
        for (to, from) in said.iter_mut().zip(hello.into_iter().chain(no_input)) {
            *to = from;
        }
        Self { state: State::Idle, said }
    }

    /// The message that asks for `service`, the first time.
    pub(super) fn ask(&mut self, service: &str) -> Option<impl Iterator<Item = u8>> {
        if !matches!(self.state, State::Idle) {
            return None;
        }
        self.state = State::Asked;
        let len = TARGET_BYTES.saturating_add(IDENT_BYTES).saturating_add(service.len());
        let len = u32::try_from(len.saturating_add(1)).ok()?;
        let header = Header { kind: TRIGGER_SERVICE3, len }.encode();
        let body = filled::<TARGET_BYTES>(TARGET).into_iter().chain(filled::<IDENT_BYTES>(IDENT));
        Some(header.into_iter().chain(body).chain(service.bytes()).chain([0]))
    }

    /// dom0 refuses the call of this identifier; says whether it is ours.
    pub(super) fn refused(&mut self, ident: &[u8]) -> bool {
        let is_ours = matches!(self.state, State::Asked) && is_ident(ident);
        if is_ours {
            self.state = State::Over;
        }
        is_ours
    }

    /// dom0 has the data channel of the call of this identifier served by us, as `id`; false if that is not ours.
    pub(super) fn connected(&mut self, now: Instant, id: CallId, port: u32, ident: &[u8]) -> bool {
        if !matches!(self.state, State::Asked) || !is_ident(ident) {
            return false;
        }
        self.state = State::Served(Served {
            id,
            port,
            is_orphan: false,
            deadline: now.after(PEER_TIMEOUT),
            reader: Reader::new(),
            header: Header { kind: 0, len: 0 },
            has_greeted: false,
            number: 0,
            number_bytes: 0,
            sent: 0,
            exit: None,
        });
        true
    }

    /// The control channel is gone: who has not answered on it will not.
    pub(super) fn control_closed(&mut self) -> bool {
        let is_asked = matches!(self.state, State::Asked);
        if is_asked {
            self.state = State::Over;
        }
        if let State::Served(served) = &mut self.state {
            served.is_orphan = true;
        }
        is_asked
    }

    pub(super) fn is_served_as(&self, id: CallId) -> bool {
        matches!(&self.state, State::Served(served) if served.id == id)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Served(served) => Some(served.deadline),
            State::Idle | State::Asked | State::Over => None,
        }
    }

    /// Takes bytes of the data channel, all of them; the end, if it has come.
    pub(super) fn receive(&mut self, now: Instant, mut bytes: &[u8]) -> Option<Ended> {
        let State::Served(served) = &mut self.state else { return None };
        served.deadline = now.after(PEER_TIMEOUT);
        let result = served.receive(&mut bytes);
        match (result, served.exit) {
            (Err(BadPeer), _) => self.end(RequestEnd::Lost),
            (Ok(()), Some(code)) => self.end(RequestEnd::Ran(code)),
            (Ok(()), None) => None,
        }
    }

    /// Bytes for the data channel.
    pub(super) fn transmit(&self) -> &[u8] {
        match &self.state {
            State::Served(served) => self.said.get(served.sent..).unwrap_or_default(),
            State::Idle | State::Asked | State::Over => &[],
        }
    }

    pub(super) fn transmitted(&mut self, bytes: usize) {
        if let State::Served(served) = &mut self.state {
            served.sent = served.sent.saturating_add(bytes).min(SAID_BYTES);
        }
    }

    /// Ends the data channel.
    pub(super) fn end(&mut self, end: RequestEnd) -> Option<Ended> {
        match core::mem::replace(&mut self.state, State::Over) {
            State::Served(Served { id, port, is_orphan, .. }) => {
                Some(Ended { id, port: Some(port).filter(|_| !is_orphan), end })
            }
            State::Idle => {
                self.state = State::Idle;
                None
            }
            State::Asked | State::Over => None,
        }
    }
}

impl Served {
    fn receive(&mut self, bytes: &mut &[u8]) -> Result<(), BadPeer> {
        while self.exit.is_none() {
            match self.reader.next(bytes) {
                None => break,
                Some(Item::Begin(header)) => self.begin(header)?,
                Some(Item::Body(piece)) => {
                    for byte in piece.iter().take(4) {
                        if self.number_bytes < 4 {
                            self.number |= u32::from(*byte) << (8 * self.number_bytes);
                            self.number_bytes = self.number_bytes.saturating_add(1);
                        }
                    }
                }
                Some(Item::End) => self.complete()?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, header: Header) -> Result<(), BadPeer> {
        (self.header, self.number, self.number_bytes) = (header, 0, 0);
        let is_right = match header.kind {
            HELLO => !self.has_greeted && header.len == 4,
            DATA_STDOUT | DATA_STDERR => self.has_greeted && header.len <= MAX_CHUNK_BYTES,
            DATA_EXIT_CODE => self.has_greeted && header.len == 4,
            _ => false,
        };
        if is_right { Ok(()) } else { Err(BadPeer) }
    }

    fn complete(&mut self) -> Result<(), BadPeer> {
        match self.header.kind {
            HELLO if self.number < LOWEST_VERSION => return Err(BadPeer),
            HELLO => self.has_greeted = true,
            DATA_EXIT_CODE => self.exit = Some(self.number),
            // Nobody reads its output.
            _ => {}
        }
        Ok(())
    }
}

fn filled<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(text) {
        *to = *from;
    }
    bytes
}

fn is_ident(ident: &[u8]) -> bool {
    ident == filled::<IDENT_BYTES>(IDENT)
}
