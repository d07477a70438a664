//! One data channel: hello both ways, input to the service, its output under back-pressure, the ends, the exit code.

use alloc::vec::Vec;

use super::control::Mode;
use super::message::{
    DATA_EXIT_CODE, DATA_STDERR, DATA_STDIN, DATA_STDOUT, HEADER_BYTES, HELLO, Header, Item,
    LOWEST_VERSION, Reader, VERSION, number_message,
};
use super::services::{ExitCode, Progress, Services};
use super::shell::{Ending, Shell};

/// Bytes of output in one message: what version 2 allows, so that it is right whatever the caller speaks.
const CHUNK_BYTES: usize = 4096;
/// Longest message that a caller of version 2, and of a later one, may send.
const MAX_CHUNK_V2: u32 = 4096;
const MAX_CHUNK_V3: u32 = 65536;

/// Said of what there is not.
pub(super) const UNKNOWN: &[u8] = b"no such service\n";

/// The caller does not speak the protocol; the channel is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadPeer;

/// Who answers the call.
#[derive(Debug)]
pub(super) enum Answer<S> {
    /// A service.
    Session(S),
    /// We, with what dom0 asks a shell for.
    Shell(Shell),
    /// We, with a line on standard error and a code.
    Refusal { text: &'static [u8], code: ExitCode },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The caller's hello has not come.
    Greeting,
    /// The call runs. The largest message that the caller may send.
    Running { max_chunk: u32 },
    /// The exit code is queued; input is of no interest any more.
    Ended,
}

/// State machine of a data channel.
#[derive(Debug)]
pub(super) struct DataChannel<S> {
    phase: Phase,
    mode: Mode,
    answer: Answer<S>,
    reader: Reader,
    /// The caller has ended its input: what it still sends reaches no service.
    input_ended: bool,
    kind: u32,
    /// Body of the caller's hello.
    version: u32,
    version_bytes: u32,
    out: Vec<u8>,
    sent: usize,
    /// The service wants to be asked again.
    wants_turn: bool,
}

impl<S> DataChannel<S> {
    pub(super) fn new(mode: Mode, answer: Answer<S>) -> Self {
        let mut out = Vec::with_capacity(HEADER_BYTES + CHUNK_BYTES);
        out.extend_from_slice(&number_message(HELLO, VERSION));
        Self {
            phase: Phase::Greeting,
            mode,
            answer,
            reader: Reader::new(),
            input_ended: false,
            kind: 0,
            version: 0,
            version_bytes: 0,
            out,
            sent: 0,
            wants_turn: false,
        }
    }

    /// Takes bytes of the caller, all of them.
    pub(super) fn receive<V: Services<Session = S>>(
        &mut self,
        mut bytes: &[u8],
        services: &mut V,
    ) -> Result<(), BadPeer> {
        while self.phase != Phase::Ended {
            match self.reader.next(&mut bytes) {
                None => break,
                Some(Item::Begin(header)) => self.begin(header)?,
                Some(Item::Body(piece)) => self.body(piece, services),
                Some(Item::End) => self.end(services)?,
            }
        }
        Ok(())
    }

    /// Bytes to be sent next. Pulls from the service when there is nothing else.
    pub(super) fn transmit<V: Services<Session = S>>(&mut self, services: &mut V) -> &[u8] {
        if self.pending().is_empty() && matches!(self.phase, Phase::Running { .. }) {
            self.out.clear();
            self.sent = 0;
            self.wants_turn = false;
            self.produce(services);
        }
        self.pending()
    }

    pub(super) fn transmitted(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes).min(self.out.len());
    }

    /// Is everything sent, the exit code included?
    pub(super) fn is_finished(&self) -> bool {
        self.phase == Phase::Ended && self.pending().is_empty()
    }

    /// What the call has asked for, once it is answered.
    pub(super) fn ending(&self) -> Option<Ending> {
        match &self.answer {
            Answer::Shell(Shell::Asked(ending)) if self.is_finished() => *ending,
            _ => None,
        }
    }

    /// Is there more to be had without anything happening?
    pub(super) fn wants_turn(&self) -> bool {
        self.wants_turn
    }

    fn pending(&self) -> &[u8] {
        self.out.get(self.sent..).unwrap_or_default()
    }

    fn begin(&mut self, header: Header) -> Result<(), BadPeer> {
        self.kind = header.kind;
        let is_expected = match self.phase {
            Phase::Greeting => header.kind == HELLO && header.len == 4,
            Phase::Running { max_chunk } => header.kind == DATA_STDIN && header.len <= max_chunk,
            Phase::Ended => true,
        };
        if let (Phase::Running { .. }, DATA_STDIN, 0) = (self.phase, header.kind, header.len) {
            // The end of the input; told apart from an empty body here.
            self.kind = 0;
        }
        if is_expected { Ok(()) } else { Err(BadPeer) }
    }

    fn body<V: Services<Session = S>>(&mut self, piece: &[u8], services: &mut V) {
        if self.kind == HELLO {
            for byte in piece {
                let shift = self.version_bytes.saturating_mul(8);
                self.version |= u32::from(*byte).checked_shl(shift).unwrap_or_default();
                self.version_bytes = self.version_bytes.saturating_add(1);
            }
        } else if !self.input_ended {
            match &mut self.answer {
                Answer::Session(session) => services.stdin(session, piece),
                Answer::Shell(shell) => shell.stdin(piece),
                Answer::Refusal { .. } => {}
            }
        }
    }

    fn end<V: Services<Session = S>>(&mut self, services: &mut V) -> Result<(), BadPeer> {
        match (self.kind, &mut self.answer) {
            (HELLO, _) if self.version < LOWEST_VERSION => return Err(BadPeer),
            (HELLO, _) => {
                let is_old = self.version == LOWEST_VERSION;
                let max_chunk = if is_old { MAX_CHUNK_V2 } else { MAX_CHUNK_V3 };
                self.phase = Phase::Running { max_chunk };
            }
            (DATA_STDIN, _) | (_, Answer::Refusal { .. }) => {}
            (_, Answer::Shell(shell)) => {
                self.input_ended = true;
                shell.stdin_end();
            }
            (_, Answer::Session(session)) => {
                if !core::mem::replace(&mut self.input_ended, true) {
                    services.stdin_end(session);
                }
            }
        }
        Ok(())
    }

    /// Fills the empty buffer with the next message or messages.
    fn produce<V: Services<Session = S>>(&mut self, services: &mut V) {
        match (self.mode, &mut self.answer) {
            (_, Answer::Shell(Shell::Asked(Some(_)))) => self.exit(ExitCode::SUCCESS),
            // Who only starts something has no input for it.
            (Mode::StartOnly, Answer::Shell(_)) => self.exit(ExitCode::NOT_FOUND),
            (Mode::WithStreams, Answer::Shell(Shell::Reading(_))) => {}
            (Mode::WithStreams, Answer::Shell(Shell::Asked(None))) => {
                self.refuse(UNKNOWN, ExitCode::NOT_FOUND);
            }
            (Mode::StartOnly, Answer::Session(_)) => self.exit(ExitCode::SUCCESS),
            (Mode::StartOnly, &mut Answer::Refusal { code, .. }) => self.exit(code),
            (Mode::WithStreams, &mut Answer::Refusal { text, code }) => self.refuse(text, code),
            (Mode::WithStreams, Answer::Session(session)) => {
                self.out.resize(HEADER_BYTES + CHUNK_BYTES, 0);
                let room = self.out.get_mut(HEADER_BYTES..).unwrap_or_default();
                match services.poll(session, room) {
                    Progress::Stdout(bytes) => self.finish_chunk(DATA_STDOUT, bytes),
                    Progress::Stderr(bytes) => self.finish_chunk(DATA_STDERR, bytes),
                    Progress::Waiting => self.out.clear(),
                    Progress::Later => {
                        self.out.clear();
                        self.wants_turn = true;
                    }
                    Progress::Exit(code) => {
                        self.out.clear();
                        self.exit(code);
                    }
                }
            }
        }
    }

    fn refuse(&mut self, text: &[u8], code: ExitCode) {
        self.out.extend_from_slice(&data_header(DATA_STDERR, text.len()));
        self.out.extend_from_slice(text);
        self.exit(code);
    }

    /// The buffer holds `bytes` of output behind the room for the header. None at all would mean the stream's end.
    fn finish_chunk(&mut self, kind: u32, bytes: usize) {
        let bytes = bytes.min(CHUNK_BYTES);
        if bytes == 0 {
            self.out.clear();
            return;
        }
        self.out.truncate(HEADER_BYTES.saturating_add(bytes));
        for (to, from) in self.out.iter_mut().zip(data_header(kind, bytes)) {
            *to = from;
        }
    }

    /// Both ends and the code; the code alone where nobody follows the streams.
    fn exit(&mut self, code: ExitCode) {
        if self.mode == Mode::WithStreams {
            self.out.extend_from_slice(&data_header(DATA_STDERR, 0));
            self.out.extend_from_slice(&data_header(DATA_STDOUT, 0));
        }
        self.out.extend_from_slice(&number_message(DATA_EXIT_CODE, code.0.cast_unsigned()));
        self.phase = Phase::Ended;
    }
}

/// `len` is at most [`CHUNK_BYTES`].
fn data_header(kind: u32, len: usize) -> [u8; HEADER_BYTES] {
    Header { kind, len: len as u32 }.encode()
}
