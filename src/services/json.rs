//! What the lines have in common: how they are written, and the parts that several of them have.

use core::fmt;
use core::net::IpAddr;

use rules::{DecidedBy, RuleSet};
use serde::ser::{Serialize, Serializer};

use super::{FAULT, SCHEMA};
use crate::qrexec::Progress;
use crate::wire::protocol;

/// A line that does not fit into what a message of qrexec can hold; tests show that none is so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Bytes of the line, with its end.
pub(super) fn write(line: &impl Serialize, buffer: &mut [u8]) -> Result<usize, TooLong> {
    let length = serde_json_core::to_slice(line, buffer).map_err(|_| TooLong)?;
    *buffer.get_mut(length).ok_or(TooLong)? = b'\n';
    Ok(length.saturating_add(1))
}

/// A line on its way, or the end of the call.
pub(super) fn progress(written: Result<usize, TooLong>) -> Progress {
    match written {
        Ok(bytes) => Progress::Stdout(bytes),
        Err(TooLong) => Progress::Exit(FAULT),
    }
}

/// The answer to what was not understood.
#[derive(serde::Serialize)]
pub(super) struct Error {
    schema: u32,
    kind: &'static str,
    reason: Text<&'static str>,
}

impl Error {
    pub(super) fn wanted(wanted: &'static str) -> Self {
        Self { schema: SCHEMA, kind: "error", reason: Text(wanted) }
    }
}

/// What prints itself, as a string.
pub(super) struct Text<T>(pub(super) T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Named counts as an object.
pub(super) struct Counts<F>(pub(super) F);

impl<F, I> Serialize for Counts<F>
where
    F: Fn() -> I,
    I: Iterator<Item = (&'static str, u64)>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map((self.0)())
    }
}

/// Several of what prints itself.
pub(super) struct Texts<F>(pub(super) F);

impl<F, I> Serialize for Texts<F>
where
    F: Fn() -> I,
    I: Iterator<Item: fmt::Display>,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)().map(Text))
    }
}

/// What in a rule set decided: the place of a rule, `"policy"`, or null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decider(pub(super) Option<DecidedBy>);

impl Decider {
    /// The rule as dom0 would write it.
    pub(super) fn text(self, rules: Option<&RuleSet>) -> Option<Text<impl fmt::Display>> {
        let (_, rule) = rules?.get(self.place()?)?;
        Some(Text(rule))
    }

    pub(super) fn place(self) -> Option<usize> {
        match self.0? {
            DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. } => Some(index),
            DecidedBy::Policy | DecidedBy::OtherFamily => None,
        }
    }
}

impl Serialize for Decider {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.place(), self.0) {
            (Some(place), _) => serializer.serialize_u32(place as u32),
            (None, Some(DecidedBy::Policy)) => serializer.serialize_str("policy"),
            (None, _) => serializer.serialize_unit(),
        }
    }
}

/// An IP protocol by its name, or its number as a string.
pub(super) struct Protocol(pub(super) u8);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            protocol::TCP => f.write_str("tcp"),
            protocol::UDP => f.write_str("udp"),
            protocol::ICMP => f.write_str("icmp"),
            protocol::ICMPV6 => f.write_str("icmpv6"),
            number => number.fmt(f),
        }
    }
}

/// Calls `found` with the first name of a client's rules that has an address.
pub(super) struct NameOf<'a> {
    pub(super) firewall: &'a crate::Firewall,
    pub(super) now: crate::Instant,
    pub(super) client: IpAddr,
    pub(super) address: IpAddr,
}

impl NameOf<'_> {
    /// This, if there is such a name.
    pub(super) fn if_any(self) -> Option<Self> {
        self.firewall.has_name_of(self.now, self.client, self.address).then_some(self)
    }
}

impl Serialize for NameOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct First<'a>(&'a NameOf<'a>);
        impl fmt::Display for First<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let NameOf { firewall, now, client, address } = *self.0;
                let mut result = None;
                firewall.each_name_of(now, client, address, &mut |name| {
                    if result.is_none() {
                        result = Some(f.write_str(name));
                    }
                });
                result.unwrap_or(Ok(()))
            }
        }
        serializer.collect_str(&First(self))
    }
}
