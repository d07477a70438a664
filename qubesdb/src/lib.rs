//! QubesDB: the key-value store through which dom0 configures this domain, seen from the domain.
//!
//! Without I/O: the owner of the vchan gives received bytes to [`Client::handle_bytes`], sends what
//! [`Client::poll_transmit`] returns and takes [`Event`]s from [`Client::poll_event`]. Neighbours: `config`
//! of the core reads typed values out of the [`Store`]; the platform moves the bytes.
//!
//! Source of every protocol fact: the Qubes qubesdb wire protocol (`qubesdb.h`) and recordings of the
//! daemons; the tests are named after the rows of those recordings.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod client;
mod event;
mod input;
mod message;
mod outgoing;
mod path;
mod store;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use event::{Closing, Counters, Event, ProtocolError};
pub use message::{HEADER_BYTES, Header, HeaderError, Kind, MAX_MESSAGE_BYTES, MAX_VALUE_BYTES};
pub use outgoing::{CommandError, MAX_COMMANDS, MAX_UNANSWERED};
pub use path::{MAX_PATH_BYTES, Path, PathError, RawPath, Tree};
pub use store::{Limits, Refusal, Store};
