//! Why a rule or a rule set was refused: which key, which element, which reason.

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
    #[error("key policy is missing")]
    PolicyMissing,
    /// The value of `policy` is neither `accept` nor `drop`.
    #[error("key policy: {0} is neither accept nor drop")]
    PolicyValue(Excerpt),
    /// A key is neither `policy` nor exactly four digits.
    #[error("key {0} is neither policy nor four digits")]
    BadKey(Excerpt),
    /// The key `policy` came twice.
    #[error("key policy appears twice")]
    DuplicatePolicy,
    /// The same rule number came twice.
    #[error("rule {0} appears twice")]
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
    #[error("more than {0} rules")]
    TooManyRules(usize),
    /// Our limit: more text than a set may have.
    #[error("more than {0} bytes of rule text")]
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
    #[error("the line is empty")]
    EmptyLine,
    #[error("the line is not ASCII text")]
    NotText,
    #[error("empty element (a space too many)")]
    EmptyElement,
    #[error("no = in it")]
    NoEquals,
    #[error("more than one = in it")]
    SecondEquals,
    #[error("unknown option")]
    UnknownOption,
    #[error("the option appears twice")]
    DuplicateOption,
    #[error("no value")]
    EmptyValue,
    #[error("there is no action")]
    ActionMissing,
    #[error("the action is neither accept nor drop")]
    UnknownAction,
    #[error("the protocol is none of tcp, udp, icmp")]
    UnknownProtocol,
    #[error("the special target is not dns")]
    UnknownTarget,
    #[error("not an {0} address in full form without leading zeros")]
    BadAddress(Family),
    #[error("not a prefix length from 0 to {0}")]
    BadPrefixLength(u8),
    #[error("an {0} destination in an {1} tree")]
    WrongFamily(Family, Family),
    #[error("a second destination")]
    SecondDestination,
    #[error("a name has only a-z, 0-9, dash, dot and underscore")]
    BadName,
    #[error("not a port or a range of two ports from 0 to 65535 without leading zeros")]
    BadPorts,
    #[error("the port range is reversed")]
    ReversedPorts,
    #[error("not a type from 0 to 255 without leading zeros")]
    BadIcmpType,
    #[error("ports do not go with ICMP")]
    PortsWithIcmp,
    #[error("an ICMP type does not go with TCP, UDP or ports")]
    TypeWithoutIcmp,
    #[error("the special target dns does not go with ICMP")]
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
