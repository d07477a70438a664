//! Why a rule or a rule set was refused: which key, which element, what is wrong with it and what was expected.

use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;

use thiserror::Error;

use crate::set::RuleKey;
use crate::subject::Family;

/// A set was refused as a whole: everything of its source must be denied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleSetError {
    /// There is no `policy` key.
    #[error("key policy is missing, expected accept or drop")]
    PolicyMissing,
    /// The value of `policy` is neither `accept` nor `drop`.
    #[error("key policy: unknown value {0}, expected accept or drop")]
    PolicyValue(Excerpt),
    /// A key is neither `policy` nor exactly four digits.
    #[error("unknown key {0}, expected policy or four digits")]
    BadKey(Excerpt),
    /// The key `policy` came twice.
    #[error("key policy appears twice, expected once")]
    DuplicatePolicy,
    /// The same rule number came twice.
    #[error("rule {0} appears twice, expected once")]
    DuplicateRule(RuleKey),
    /// A rule line was refused.
    #[error("rule {key}: {error}")]
    Rule {
        /// Its key.
        key: RuleKey,
        /// What is wrong in the line.
        error: RuleError,
    },
    /// Our limit: more rules than a set may have.
    #[error("more rules than expected: at most {0}")]
    TooManyRules(usize),
    /// Our limit: more text than a set may have.
    #[error("more rule text than expected: at most {0} bytes")]
    TooMuchText(usize),
    /// Our limit: no memory for the set.
    #[error("out of memory for the rules")]
    OutOfMemory,
}

/// A rule line was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    /// The element at fault, or nothing if the line as a whole is.
    pub element: Option<Element>,
    /// What is wrong with it.
    pub reason: Reason,
}

/// Where in a line: the position of an element, counted from 1, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Position, counted from 1.
    pub position: usize,
    /// Its text, shortened.
    pub text: Excerpt,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(element) = &self.element {
            write!(f, "element {} {}: ", element.position, element.text)?;
        }
        self.reason.fmt(f)
    }
}

impl core::error::Error for RuleError {}

/// What is wrong with a rule line or one of its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the message of each variant says it")]
pub enum Reason {
    #[error("the line is empty, expected action=accept or action=drop at least")]
    EmptyLine,
    #[error("not text, expected ASCII")]
    NotText,
    #[error("empty element, expected one space between options and none at the ends")]
    EmptyElement,
    #[error("no = in it, expected OPTION=VALUE")]
    NoEquals,
    #[error("more than one = in it, expected OPTION=VALUE")]
    SecondEquals,
    #[error(
        "unknown option, expected action, dst4, dst6, dsthost, proto, specialtarget, dstports or icmptype"
    )]
    UnknownOption,
    #[error("the option appears twice, expected once")]
    DuplicateOption,
    #[error("no value, expected OPTION=VALUE")]
    EmptyValue,
    #[error("no action, expected action=accept or action=drop")]
    ActionMissing,
    #[error("unknown action, expected accept or drop")]
    UnknownAction,
    #[error("unknown protocol, expected tcp, udp or icmp")]
    UnknownProtocol,
    #[error("unknown special target, expected dns")]
    UnknownTarget,
    #[error("bad address, expected {0} in full form without leading zeros")]
    BadAddress(Family),
    #[error("bad prefix length, expected 0 to {0} without leading zeros")]
    BadPrefixLength(u8),
    #[error("{0} destination in the tree of an {1} address, expected {1} or a name")]
    WrongFamily(Family, Family),
    #[error("second destination, expected one of dst4, dst6 and dsthost")]
    SecondDestination,
    #[error("bad name, expected only a-z, 0-9, dash, dot and underscore")]
    BadName,
    #[error("bad ports, expected one or a range of two from 0 to 65535 without leading zeros")]
    BadPorts,
    #[error("reversed port range, expected the lower port first")]
    ReversedPorts,
    #[error("bad ICMP type, expected 0 to 255 without leading zeros")]
    BadIcmpType,
    #[error("ports with ICMP, expected them with TCP or UDP only")]
    PortsWithIcmp,
    #[error("ICMP type with TCP, UDP or ports, expected it with ICMP only")]
    TypeWithoutIcmp,
    #[error("special target dns with ICMP, expected it with TCP or UDP only")]
    DnsWithIcmp,
    #[error("out of memory")]
    OutOfMemory,
}

/// A short quotation of foreign text for messages: printable ASCII in single quotes, cut at
/// [`Excerpt::MAX`] bytes of the original.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(Box<str>);

impl Excerpt {
    /// Bytes of the original that are quoted at most.
    pub const MAX: usize = 48;

    /// Quotes `bytes`: other than printable ASCII is escaped, what is too long ends in `...`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let shown = bytes.get(..Self::MAX).unwrap_or(bytes);
        let mut text = String::new();
        text.push('\'');
        shown
            .iter()
            .for_each(|&byte| text.extend(core::ascii::escape_default(byte).map(char::from)));
        text.push_str(if shown.len() < bytes.len() { "...'" } else { "'" });
        Self(text.into_boxed_str())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
