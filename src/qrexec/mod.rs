//! The qrexec agent: dom0's, and by its policy other domains', calls of services in this domain. Sans-I/O.
//!
//! dom0 connects to the *control channel* (a vchan of which we are the server) and asks there for calls; each call
//! runs over a *data channel* (a vchan of which the caller is the server). [`Agent`] takes received bytes, closed
//! links and the time, and returns bytes to be sent and [`Action`]s; the platform owns the links. What a service does
//! is behind [`Services`]; the one call that we make ourselves is a `request`; [`StandardServices`] has the ones that every Qubes VM is expected to answer.
//!
//! Source: Qubes qrexec protocol version 3 (`qrexec.h`) and recordings of the daemons, after whose rows the tests are
//! named.

mod action;
mod agent;
mod channel;
mod command;
mod control;
mod message;
mod request;
mod services;
mod shell;
#[cfg(test)]
mod tests;
mod waiting;

pub use action::Action;
pub use agent::{Agent, CallId, Counters};
pub use agent::{
    MAX_CHANNELS, MAX_FOREIGN_CALLS, MAX_LINKS, MAX_SERVED_CALLS, OPEN_TIMEOUT, PEER_TIMEOUT,
};
pub use command::{Command, CommandError, ServiceCall, Target};
pub use control::ControlError;
pub use request::RequestEnd;
pub use services::{
    ExitCode, NoSuchService, Progress, Services, StandardServices, StandardSession,
};
pub use shell::Ending;
