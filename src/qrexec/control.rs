//! The control channel: hello, then orders of dom0; answers of one kind.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::message::{
    EXEC_CMDLINE, HELLO, Header, Item, JUST_EXEC, LOWEST_VERSION, Reader, SERVICE_CONNECT,
    SERVICE_REFUSED, VERSION, number_message, terminated_message,
};

/// Domain and port in front of a command.
const PARAMS_BYTES: usize = 8;
/// Longest body that dom0's daemon allows: 65535 bytes of text behind the parameters. It can only send what fits into
/// the ring, and ends if it tries more.
const MAX_BODY_BYTES: u32 = 65535 + PARAMS_BYTES as u32;
/// What is kept of a body; longer texts are read to their end and refused.
const KEPT_BYTES: usize = PARAMS_BYTES + 4096;
/// Answers that may wait; orders are not read while there are more.
const MAX_WAITING_BYTES: usize = 512 * 16;
/// What may come on top of it: the ends of all calls that there are, and a call of ours.
const LAST_BYTES: usize = 32 * 16 + 256;

/// dom0 does not speak the protocol; the channel has to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Anything before the hello, or a second one.
    #[error("message {0:#x} out of order")]
    OutOfOrder(u32),
    /// A type that dom0 does not send.
    #[error("message type {0:#x}")]
    Type(u32),
    /// A length that does not belong to the type.
    #[error("message {kind:#x} of {len} bytes")]
    Length {
        /// Type.
        kind: u32,
        /// Length of the body.
        len: u32,
    },
    /// A version below 2.
    #[error("protocol version {0}")]
    Version(u32),
}

/// An order of dom0.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order<'b> {
    /// Run a command; `text` is `None` if it was longer than what is kept.
    Execute { mode: Mode, domain: u32, port: u32, text: Option<&'b [u8]> },
    /// A call that we are said to have asked for.
    ServiceConnect { domain: u32, port: u32, ident: &'b [u8] },
    /// One that we are said to have asked for is refused.
    ServiceRefused { ident: &'b [u8] },
}

/// How much of a command's life the caller follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Input, output and exit code.
    WithStreams,
    /// Only whether it could be started.
    StartOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No channel.
    Closed,
    /// Our hello is queued, dom0's has not come.
    Greeting,
    /// Orders may come.
    Ready,
    /// An error was reported.
    Broken,
}

/// State machine of the control channel.
#[derive(Debug)]
pub(super) struct Control {
    state: State,
    reader: Reader,
    header: Header,
    body: Vec<u8>,
    is_cut: bool,
    /// What dom0 speaks.
    version: u32,
    out: VecDeque<u8>,
}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            state: State::Closed,
            reader: Reader::new(),
            header: Header { kind: 0, len: 0 },
            body: Vec::with_capacity(KEPT_BYTES),
            is_cut: false,
            version: 0,
            out: VecDeque::with_capacity(MAX_WAITING_BYTES + LAST_BYTES),
        }
    }

    /// A server was made: our hello goes first, also before dom0 has connected.
    pub(super) fn opened(&mut self) {
        self.closed();
        self.state = State::Greeting;
        self.out.extend(number_message(HELLO, VERSION));
    }

    pub(super) fn closed(&mut self) {
        // The buffers stay: they were made when there was memory for them.
        self.body.clear();
        self.out.clear();
        (self.state, self.reader) = (State::Closed, Reader::new());
        (self.header, self.is_cut, self.version) = (Header { kind: 0, len: 0 }, false, 0);
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Reads up to the next order. `bytes` is advanced over what was taken; `None`: all taken, or answers have to be
    /// sent first.
    pub(super) fn next_order(
        &mut self,
        bytes: &mut &[u8],
    ) -> Result<Option<Order<'_>>, ControlError> {
        loop {
            if matches!(self.state, State::Closed | State::Broken) {
                *bytes = &[];
                return Ok(None);
            }
            if !self.has_room() {
                return Ok(None);
            }
            let is_order = match self.reader.next(bytes) {
                None => return Ok(None),
                Some(Item::Begin(header)) => self.begin(header).map(|()| false),
                Some(Item::Body(piece)) => {
                    self.keep(piece);
                    Ok(false)
                }
                Some(Item::End) => self.end(),
            };
            match is_order {
                Ok(false) => {}
                Ok(true) => return Ok(self.order()),
                Err(error) => {
                    self.state = State::Broken;
                    return Err(error);
                }
            }
        }
    }

    /// Queues the message that frees the port in dom0.
    pub(super) fn terminate(&mut self, domain: u32, port: u32) {
        if matches!(self.state, State::Ready) {
            self.out.extend(terminated_message(domain, port));
        }
    }

    /// Does dom0 know the message of a call of ours (version 3), and is there room for it?
    pub(super) fn can_trigger(&self) -> bool {
        self.state == State::Ready && self.version >= VERSION && self.has_room()
    }

    /// Queues a message of ours.
    pub(super) fn queue(&mut self, message: impl Iterator<Item = u8>) {
        self.out.extend(message);
    }

    /// Is there room for more ends of calls than those that there are?
    pub(super) fn has_room(&self) -> bool {
        self.out.len() <= MAX_WAITING_BYTES
    }

    /// Bytes to be sent next; not necessarily all.
    pub(super) fn ready_bytes(&self) -> &[u8] {
        let (front, back) = self.out.as_slices();
        if front.is_empty() { back } else { front }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.out.drain(..bytes.min(self.out.len()));
    }

    /// Judges a header before its body is waited for.
    fn begin(&mut self, header: Header) -> Result<(), ControlError> {
        let Header { kind, len } = header;
        let is_in_order = (kind == HELLO) == (self.state == State::Greeting);
        let is_length_possible = match kind {
            HELLO => len == 4,
            EXEC_CMDLINE | JUST_EXEC | SERVICE_CONNECT => {
                (PARAMS_BYTES as u32..=MAX_BODY_BYTES).contains(&len)
            }
            SERVICE_REFUSED => len <= MAX_BODY_BYTES,
            _ => return Err(ControlError::Type(kind)),
        };
        if !is_in_order {
            return Err(ControlError::OutOfOrder(kind));
        }
        if !is_length_possible {
            return Err(ControlError::Length { kind, len });
        }
        self.header = header;
        self.body.clear();
        self.is_cut = false;
        Ok(())
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = KEPT_BYTES.saturating_sub(self.body.len());
        self.is_cut |= piece.len() > room;
        self.body.extend_from_slice(piece.get(..room).unwrap_or(piece));
    }

    /// A message is complete; is it an order?
    fn end(&mut self) -> Result<bool, ControlError> {
        if self.header.kind != HELLO {
            return Ok(true);
        }
        let version = number(&self.body, 0).unwrap_or_default();
        if version < LOWEST_VERSION {
            return Err(ControlError::Version(version));
        }
        (self.state, self.version) = (State::Ready, version);
        Ok(false)
    }

    fn order(&self) -> Option<Order<'_>> {
        let behind = |at: usize| self.body.get(at..).filter(|_| !self.is_cut);
        if self.header.kind == SERVICE_REFUSED {
            return Some(Order::ServiceRefused { ident: behind(0).unwrap_or_default() });
        }
        let (domain, port) = (number(&self.body, 0)?, number(&self.body, 4)?);
        let mode = match self.header.kind {
            SERVICE_CONNECT => {
                let ident = behind(PARAMS_BYTES).unwrap_or_default();
                return Some(Order::ServiceConnect { domain, port, ident });
            }
            JUST_EXEC => Mode::StartOnly,
            _ => Mode::WithStreams,
        };
        Some(Order::Execute { mode, domain, port, text: behind(PARAMS_BYTES) })
    }
}

fn number(body: &[u8], offset: usize) -> Option<u32> {
    let bytes = body.get(offset..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}
