//! How lines are written, and the parts that several of them have.
//!
//! A line is a list of keys and [`Value`]s, not a type of its own: one piece of code writes all of them, which keeps the
//! image small.

use core::fmt;
use core::net::IpAddr;

use rules::{DecidedBy, Rule, RuleSet};
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{FAULT, SCHEMA};
use crate::Firewall;
use crate::qrexec::Progress;
use crate::time::Instant;
use crate::wire::protocol;

/// A line that does not fit into what a message of qrexec can hold; tests show that none is so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Calls what it is given with each name and count.
pub(super) type EachCount<'a> = &'a dyn Fn(&mut dyn FnMut(&'static str, u64));

/// What a key can have.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Null,
    Is(bool),
    Number(u64),
    Word(&'a str),
    Address(IpAddr),
    /// What prints itself, as a string.
    Text(&'a dyn fmt::Display),
    Addresses(&'a [IpAddr]),
    /// Named counts as an object.
    Counts(EachCount<'a>),
}

/// A key with its value; one without is left out.
pub(super) type Entry<'a> = (&'static str, Option<Value<'a>>);

pub(super) fn word(word: &str) -> Option<Value<'_>> {
    Some(Value::Word(word))
}

pub(super) fn number<'a>(number: impl Into<u64>) -> Option<Value<'a>> {
    Some(Value::Number(number.into()))
}

pub(super) fn size<'a>(bytes: usize) -> Option<Value<'a>> {
    Some(Value::Number(bytes as u64))
}

pub(super) fn number_if<'a>(number: Option<impl Into<u64>>) -> Option<Value<'a>> {
    number.map(|number| Value::Number(number.into()))
}

pub(super) fn address<'a>(address: impl Into<IpAddr>) -> Option<Value<'a>> {
    Some(Value::Address(address.into()))
}

pub(super) fn text(text: &dyn fmt::Display) -> Option<Value<'_>> {
    Some(Value::Text(text))
}

/// The version of all keys.
pub(super) fn schema<'a>() -> Entry<'a> {
    ("schema", number(SCHEMA))
}

struct Line<'a>(&'a [Entry<'a>]);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.0 {
            if let Some(value) = value {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Is(is) => serializer.serialize_bool(*is),
            Self::Number(number) => serializer.serialize_u64(*number),
            Self::Word(word) => serializer.serialize_str(word),
            Self::Address(address) => serializer.collect_str(address),
            Self::Text(text) => serializer.collect_str(text),
            Self::Addresses(all) => serializer.collect_seq(all.iter().copied().map(Self::Address)),
            Self::Counts(each) => {
                let mut map = serializer.serialize_map(None)?;
                let mut written = Ok(());
                each(&mut |name, count| {
                    if written.is_ok() {
                        written = map.serialize_entry(name, &count);
                    }
                });
                written?;
                map.end()
            }
        }
    }
}

/// Bytes of the line, with its end.
pub(super) fn write(line: &[Entry<'_>], buffer: &mut [u8]) -> Result<usize, TooLong> {
    let length = serde_json_core::to_slice(&Line(line), buffer).map_err(|_| TooLong)?;
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
pub(super) fn misunderstood(wanted: &str, buffer: &mut [u8]) -> Progress {
    let line = [schema(), ("kind", word("error")), ("reason", word(wanted))];
    progress(write(&line, buffer))
}

/// What in a rule set decided: the place of a rule, `"policy"`, or null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decider(pub(super) Option<DecidedBy>);

impl Decider {
    /// The rule, which prints itself as dom0 would write it.
    pub(super) fn rule(self, rules: Option<&RuleSet>) -> Option<&Rule> {
        rules?.get(self.place()?).map(|(_, rule)| rule)
    }

    pub(super) fn value<'a>(self) -> Option<Value<'a>> {
        Some(match (self.place(), self.0) {
            (Some(place), _) => Value::Number(place as u64),
            (None, Some(DecidedBy::Policy)) => Value::Word("policy"),
            (None, _) => Value::Null,
        })
    }

    fn place(self) -> Option<usize> {
        match self.0? {
            DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. } => Some(index),
            DecidedBy::Policy | DecidedBy::OtherFamily => None,
        }
    }
}

/// An IP protocol by its name, or its number.
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

/// The first name of a client's rules that has an address.
pub(super) struct NameOf<'a> {
    pub(super) firewall: &'a Firewall,
    pub(super) now: Instant,
    pub(super) client: IpAddr,
    pub(super) address: IpAddr,
}

impl NameOf<'_> {
    /// Whether there is one.
    pub(super) fn is_any(&self) -> bool {
        self.firewall.has_name_of(self.now, self.client, self.address)
    }
}

impl fmt::Display for NameOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut written = None;
        self.firewall.each_name_of(self.now, self.client, self.address, &mut |name| {
            if written.is_none() {
                written = Some(f.write_str(name));
            }
        });
        written.unwrap_or(Ok(()))
    }
}
