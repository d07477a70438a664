//! Qubes firewall rules: text to typed [`Rule`], rules to a [`RuleSet`], a packet to a [`Decision`].
//!
//! Read in this order:
//! - [`rule`]: what a rule line can say, and how it is printed;
//! - `parse`: one line of text to one [`Rule`], strictly;
//! - [`set`]: the keys below `/qubes-firewall/<ip>/` to one [`RuleSet`], and its evaluation rule by rule: what it says
//!   is what the rules mean;
//! - [`compiled`]: the same answers by lookup, for packets;
//! - [`subject`]: the facts about a packet that rules look at, and what is known about host names;
//! - `mismatch`: why a rule does not decide about a packet;
//! - [`error`]: why a text was refused: which key, which element, which reason.
//!
//! Nothing here does I/O, knows the time or panics on any text. A refused set is an error value:
//! its user must deny everything of that source, there is no partial set.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod compiled;
pub mod error;
mod mismatch;
mod parse;
pub mod rule;
pub mod set;
pub mod subject;

#[cfg(test)]
mod tests;

pub use compiled::CompiledSet;
pub use error::{Excerpt, Reason, RuleError, RuleSetError};
pub use mismatch::Mismatch;
pub use rule::{Action, Destination, HostName, PortRange, Rule, SpecialTarget, UpperMatch};
pub use set::{DecidedBy, Decision, Limits, RuleKey, RuleSet, Verdict};
pub use subject::{Family, NameMatch, Names, NoNames, Subject, Upper};
