//! What the control plane wants done, by value.

use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use qubesdb::{Path, PathError, ProtocolError, RawPath, Refusal, Tree};
use rules::{CompiledSet, RuleSetError};
use thiserror::Error;

use crate::clients::RulesState;
use crate::config::features::{Features, WordProblem};
use crate::config::{ConfigError, RandomSeed, VmName};
use crate::uplink::NetworkConfig;

/// Something to be done, in the order in which it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Put these rules in force for this source, instead of those that it has.
    SetRules {
        /// The source.
        ip: IpAddr,
        /// Its rules.
        rules: SourceRules,
    },
    /// Use these addresses. Those of the uplink are absent until its device appeared for the first
    /// time, and stay when it goes.
    SetNetwork(NetworkConfig),
    /// These features are on.
    SetFeatures(Features),
    /// Mix this into the random generator.
    AddEntropy(RandomSeed),
    /// Write this key of dom0's database.
    WriteDb {
        /// The key.
        path: Path,
        /// The value.
        value: Vec<u8>,
    },
    /// Remove this key of dom0's database or, with a slash at its end, all below it; if there is none, nothing.
    RemoveDb {
        /// The key or prefix.
        path: Path,
    },
    /// Say this in the log.
    Log(Notice),
}

/// The rules of one source, as far as there are any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceRules {
    /// dom0 has no rules for the source: drop everything, silently.
    None,
    /// There are rules that must not be used: reject everything.
    Refused(RulesRefusal),
    /// Judge by these.
    Active(CompiledSet),
}

/// For the packet path the reason of a refusal does not matter.
impl From<SourceRules> for RulesState {
    fn from(rules: SourceRules) -> Self {
        match rules {
            SourceRules::None => Self::None,
            SourceRules::Refused(_) => Self::Refused,
            SourceRules::Active(set) => Self::Active(set),
        }
    }
}

/// As fields of a log line: `rules=N state=set`, `rules=0 state=none` or
/// `rules=0 state=refused reason="..."`.
impl fmt::Display for SourceRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("rules=0 state=none"),
            Self::Refused(reason) => write!(f, "rules=0 state=refused reason=\"{reason}\""),
            Self::Active(set) => write!(f, "rules={} state=set", set.rules().rules().len()),
        }
    }
}

/// Why rules must not be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RulesRefusal {
    /// The text is not understood, or there is no memory for what it says.
    #[error(transparent)]
    Parse(RuleSetError),
    /// An entry of the tree could not be stored.
    #[error("an entry is missing: {0}")]
    Incomplete(Refusal),
    /// Our limit: sources with rules.
    #[error("more than {0} sources with rules")]
    TooManySources(usize),
    /// Our limit: memory for the rules of all sources.
    #[error("more than {0} bytes of rules of all sources")]
    TooManyBytes(usize),
}

/// Something to be said in the log. Each displays as one line of printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A key is missing or cannot be used; what depends on it is off.
    Config(ConfigError),
    /// A `fw-...` word cannot be understood; its feature is off.
    Word(WordProblem),
    /// The name of this VM.
    Name(VmName),
    /// Rules for something that is not an address.
    BadTree {
        /// The tree.
        tree: Tree,
    },
    /// The commit of a tree cannot be counted in dom0's database.
    NotAcknowledged {
        /// The tree.
        tree: Tree,
        /// Why its key cannot be written.
        reason: PathError,
    },
    /// An entry that dom0 wrote was not taken.
    EntryRefused {
        /// Its key.
        path: RawPath,
        /// Why.
        reason: Refusal,
    },
    /// dom0 refused a write or removal of ours.
    CommandRefused {
        /// Its key.
        path: RawPath,
    },
    /// dom0 does not speak the QubesDB protocol.
    ProtocolError(ProtocolError),
    /// The link to QubesDB is gone; what is in force stays.
    LinkLost {
        /// Sources with a rule tree.
        sources: usize,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "config {error}"),
            Self::Word(problem) => write!(f, "config {problem}"),
            Self::Name(name) => write!(f, "config name={}", name.as_str()),
            Self::BadTree { tree } => {
                write!(f, "rules of {} ignored: not an address", tree.ip_text())
            }
            Self::NotAcknowledged { tree, reason } => {
                write!(f, "rules of {} not acknowledged: {reason}", tree.ip_text())
            }
            Self::EntryRefused { path, reason } => {
                write!(f, "qubesdb entry {path} refused: {reason}")
            }
            Self::CommandRefused { path } => write!(f, "qubesdb write of {path} refused by dom0"),
            Self::ProtocolError(reason) => write!(f, "qubesdb protocol error: {reason}"),
            Self::LinkLost { sources } => {
                write!(f, "qubesdb link lost, rules of {sources} sources stay in force")
            }
        }
    }
}
