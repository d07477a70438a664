//! What is said about a packet.

use std::fmt;

use serde::{Serialize, Serializer};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Forwarded.
    Accept,
    /// Refused by the rules, with an ICMP error.
    Reject,
    /// Dropped in silence.
    Drop,
    /// The whole set was refused; then everything of the client is rejected.
    ParseError,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
            Self::Drop => "drop",
            Self::ParseError => "parse-error",
        })
    }
}

/// What in a rule set decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RuleRef {
    /// A rule, by its place in key order, counted from 0.
    Index(usize),
    /// The policy.
    Policy,
}

impl Serialize for RuleRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Index(index) => index.serialize(serializer),
            Self::Policy => serializer.serialize_str("policy"),
        }
    }
}

/// A verdict, what decided, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    pub(crate) rule: Option<RuleRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

impl Answer {
    /// One that no rule is the reason of.
    pub(crate) fn without_rule(verdict: Verdict, reason: String) -> Self {
        Self { verdict, rule: None, reason: Some(reason) }
    }
}
