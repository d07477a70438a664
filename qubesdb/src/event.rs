//! What the client tells its owner.

use crate::message::{HeaderError, Kind};
use crate::path::{Path, RawPath, Tree};
use crate::store::Refusal;

/// Something that happened. Messages behind the one that caused an event are not applied to the store before the
/// event has been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The dump is complete and has replaced the store. `Committed` for every tree in it follows. A tree that is
    /// not in the store any more is gone.
    Dumped,
    /// The rules of a client are to be read from the store now and take effect: dom0 wrote the commit mark (an
    /// empty value), or the tree was in the dump. Instead of `Changed`.
    Committed {
        /// Whose rules.
        tree: Tree,
        /// `Err` when an entry of the tree is missing because it was refused: the client gets no rules at all.
        complete: Result<(), Refusal>,
    },
    /// dom0 wrote this key, maybe with the value that it had.
    Changed {
        /// The key.
        path: Path,
    },
    /// dom0 removed this key.
    Removed {
        /// The key.
        path: Path,
    },
    /// dom0 removed everything that begins with this, and there was something.
    RemovedBelow {
        /// Ends in `/`.
        prefix: Path,
    },
    /// An entry (or removal) of dom0 was not taken. If it was to set a key, this key is absent now.
    Refused {
        /// What it was about.
        path: RawPath,
        /// Why.
        reason: Refusal,
    },
    /// dom0 refused a command of ours.
    CommandRefused {
        /// What it was about.
        path: RawPath,
    },
    /// dom0 does not speak the protocol. Nothing more will come out of this connection; see [`crate::Client::closing`].
    ProtocolError {
        /// Why.
        reason: ProtocolError,
    },
}

/// What dom0 did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not a header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// This type must not come now.
    #[error("unexpected message {0:?}")]
    Unexpected(Kind),
    /// An answer carries no value; the daemons do not agree on whether its bytes follow.
    #[error("answer with a value")]
    AnswerWithValue,
    /// A value without key in the dump.
    #[error("dump entry without path")]
    EntryWithoutPath,
}

/// May the vchan be closed? A client that closes between connecting and the end of the dump ends dom0's daemon for
/// the rest of this domain's life (rows P4 to P6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// No: the dump is under way. Go on reading.
    Forbidden,
    /// No reason to, but harmless.
    Allowed,
    /// The dump cannot be followed to its end. Close after nothing has come for 10 seconds; go on reading until
    /// then.
    AfterQuiet,
    /// Close and connect again: this connection is of no more use.
    Required,
}

/// Totals since the client was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Complete messages received.
    pub messages: u64,
    /// Events of type [`Event::Refused`].
    pub refused: u64,
    /// Answers that no command of ours was waiting for.
    pub unexpected_answers: u64,
    /// Own commands that had become pointless or impossible when their turn came.
    pub commands_dropped: u64,
}
