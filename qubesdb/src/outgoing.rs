//! What goes to dom0: answers to its commands, and our own commands under flow control.

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use crate::message::{HEADER_BYTES, Kind, MAX_MESSAGE_BYTES, encode_header};
use crate::path::{Path, PathError};
use crate::store::{Refusal, Store};

/// Commands that may wait to be sent.
pub const MAX_COMMANDS: usize = 1024;
/// Bytes that waiting commands may take on the wire.
const MAX_COMMAND_BYTES: usize = 128 * 1024;
/// Commands that may be sent without having been answered. dom0 answers each with 72 bytes, so that its answers
/// take less than a third of a 4096-byte ring.
pub const MAX_UNANSWERED: usize = 16;
/// Bytes that are ready to be sent. Input is not processed while an answer to it would not fit.
const READY_BYTES: usize = 8192;

/// Why a command was not taken. Nothing is sent in these cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// dom0's daemon would end, or store another key.
    #[error(transparent)]
    Path(#[from] PathError),
    /// More than 3071 bytes: dom0's daemon would end.
    #[error("value longer than 3071 bytes")]
    ValueTooLong,
    /// dom0 would refuse it.
    #[error("value contains a NUL byte")]
    NulInValue,
    /// dom0 holds nothing to be removed: its daemon would end.
    #[error("nothing to remove")]
    Absent,
    /// The key is dom0's to write (rules) or to remove (all but `/dns/` and `/qubes-firewall-handled/`): a removal
    /// that crosses dom0's own would end its daemon.
    #[error("key belongs to dom0")]
    NotOurs,
    /// Too much is waiting already; try again after the next events.
    #[error("queue of commands is full")]
    QueueFull,
    /// The entry would not fit into this side's copy.
    #[error("store is full: {0}")]
    StoreFull(Refusal),
    /// There is no connection, or its dump has not ended.
    #[error("not synchronised")]
    NotSynchronised,
}

/// Fill of the two rings at the moment of sending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rings {
    /// Received bytes that nobody processed yet, in the ring or in the buffer.
    pub(crate) unread: usize,
    /// Free bytes in the ring towards dom0.
    pub(crate) space: usize,
}

#[derive(Debug)]
enum Command {
    Write { path: Path, value: Box<[u8]> },
    Remove { path: Path },
}

impl Command {
    fn wire_bytes(&self) -> usize {
        match self {
            Self::Write { value, .. } => HEADER_BYTES.saturating_add(value.len()),
            Self::Remove { .. } => HEADER_BYTES,
        }
    }
}

/// What an answer of dom0 settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Write,
    Remove,
    /// Nothing of ours was waiting for it.
    Nothing,
}

/// Queues towards dom0.
#[derive(Debug)]
pub(crate) struct Outgoing {
    ready: VecDeque<u8>,
    commands: VecDeque<Command>,
    command_bytes: usize,
    unanswered: VecDeque<(Path, Settled)>,
    /// Commands that became pointless or impossible while they waited.
    dropped: u64,
}

impl Outgoing {
    pub(crate) fn new() -> Self {
        Self {
            ready: VecDeque::with_capacity(READY_BYTES),
            commands: VecDeque::new(),
            command_bytes: 0,
            unanswered: VecDeque::with_capacity(MAX_UNANSWERED),
            dropped: 0,
        }
    }

    /// Forgets everything of a connection.
    pub(crate) fn clear(&mut self) {
        self.ready.clear();
        self.commands.clear();
        self.command_bytes = 0;
        self.unanswered.clear();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(crate) fn has_room_for_answer(&self) -> bool {
        self.ready.len().saturating_add(HEADER_BYTES) <= READY_BYTES
    }

    /// Queues a header that is not subject to flow control: the request for the dump, an answer.
    pub(crate) fn push_header(&mut self, header: &[u8; HEADER_BYTES]) {
        self.ready.extend(header);
    }

    pub(crate) fn queue_write(&mut self, path: Path, value: &[u8]) -> Result<(), CommandError> {
        self.queue(Command::Write { path, value: Box::from(value) })
    }

    pub(crate) fn queue_removal(&mut self, path: Path) -> Result<(), CommandError> {
        self.queue(Command::Remove { path })
    }

    fn queue(&mut self, command: Command) -> Result<(), CommandError> {
        let bytes = self.command_bytes.saturating_add(command.wire_bytes());
        if self.commands.len() >= MAX_COMMANDS || bytes > MAX_COMMAND_BYTES {
            return Err(CommandError::QueueFull);
        }
        self.command_bytes = bytes;
        self.commands.push_back(command);
        Ok(())
    }

    /// Does a write of something that `removal` covers wait to be sent?
    pub(crate) fn will_write_below(&self, removal: &Path) -> bool {
        self.commands.iter().any(|command| {
            matches!(command, Command::Write { path, .. } if removal.covers(path.as_str()))
        })
    }

    /// Moves commands that may go now to the bytes that are ready, and applies them to `store`, which thereby
    /// stays what dom0 will hold.
    pub(crate) fn admit(&mut self, store: &mut Store, rings: Rings) {
        while self.may_send_next(rings) {
            let Some(command) = self.commands.pop_front() else { break };
            self.command_bytes = self.command_bytes.saturating_sub(command.wire_bytes());
            self.send(&command, store);
        }
    }

    /// A write may go whenever there is room. A removal may go only if dom0 has room for its answer, because its
    /// daemon ends when there are less than 72 bytes free at that moment: all our commands answered, everything
    /// that dom0 sent read and processed, and the removal itself fits into the ring, so that it is not delayed
    /// until the state is another one.
    fn may_send_next(&self, rings: Rings) -> bool {
        let Some(command) = self.commands.front() else { return false };
        let queued = self.ready.len().saturating_add(command.wire_bytes());
        match command {
            Command::Write { .. } => {
                queued <= READY_BYTES && self.unanswered.len() < MAX_UNANSWERED
            }
            Command::Remove { .. } => {
                queued <= rings.space && rings.unread == 0 && self.unanswered.is_empty()
            }
        }
    }

    fn send(&mut self, command: &Command, store: &mut Store) {
        match command {
            Command::Write { path, value } if store.insert(*path, value).is_ok() => {
                // At most 3071 bytes, checked when it was queued.
                self.ready.extend(encode_header(Kind::Write, Some(path), value.len() as u16));
                self.ready.extend(value.iter());
                self.unanswered.push_back((*path, Settled::Write));
            }
            Command::Remove { path } if store.remove(path) => {
                self.ready.extend(encode_header(Kind::Remove, Some(path), 0));
                self.unanswered.push_back((*path, Settled::Remove));
            }
            Command::Write { .. } | Command::Remove { .. } => {
                self.dropped = self.dropped.saturating_add(1);
            }
        }
    }

    /// Bytes to be sent next; not necessarily all of them.
    pub(crate) fn ready(&self) -> &[u8] {
        let (front, back) = self.ready.as_slices();
        if front.is_empty() { back } else { front }
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.ready.drain(..bytes.min(self.ready.len()));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.commands.is_empty()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.is_idle() && self.unanswered.is_empty()
    }

    /// An answer with this path came.
    pub(crate) fn settle(&mut self, path: &Path) -> Settled {
        let Some(at) = self.unanswered.iter().position(|(waiting, _)| waiting == path) else {
            return Settled::Nothing;
        };
        self.unanswered.remove(at).map_or(Settled::Nothing, |(_, what)| what)
    }
}

const _: () = assert!(READY_BYTES >= MAX_MESSAGE_BYTES + HEADER_BYTES);
