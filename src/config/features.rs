//! The `fw-...` words: VM features (`/vm-config/fw-...`, Qubes R4.2 and later) and the same words on
//! the kernel command line. Where both name a word, the feature wins. The command line also has the
//! words of qubes-mirage-firewall for a NetVM that is a client of ours (`--ipv4=...`).
//!
//! A word that cannot be understood is reported by name and its feature stays off; an empty value is
//! "off". Other words of the command line belong to Linux guests and are ignored.
//!
//! A new word needs a field in [`Words`], a line in `Words::take`, a field in [`Features`] with a
//! line in [`Features::new`], and a parser in `words`.

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr};
use core::num::NonZeroU32;

use qubesdb::Store;
use rules::Excerpt;

use super::netvm::{self, ClientSideNetvm};
use super::{DebugMode, words};
use crate::exposure::{Allow, Exposure, Forward};
use crate::mss::MssClamp;

/// Keys of features begin with this; the word follows.
pub(crate) const KEY_PREFIX: &str = "/vm-config/";
/// Ours among them.
const WORD_PREFIX: &str = "fw-";
/// Words with a problem that are reported one by one; more are not.
const MAX_REPORTS: usize = 16;

/// How much is logged (`fw-log`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Events of the devices and of the configuration only.
    #[default]
    Off,
    /// Also refused traffic, in summaries.
    Drops,
    /// Everything.
    Debug,
}

/// What the words switch on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// `fw-log`; without the word `debug` if the VM is in debug mode.
    pub log: LogLevel,
    /// `fw-allow`, `fw-forward` and `fw-filtering-by-address`.
    pub exposure: Exposure,
    /// `fw-flows`, else `--nat-table-size`: flows of all clients together.
    pub flows: Option<NonZeroU32>,
    /// `fw-flows-per-client`.
    pub flows_per_client: Option<NonZeroU32>,
    /// `fw-mss-clamp`: `mtu` or a number of bytes.
    pub mss_clamp: Option<MssClamp>,
}

/// Where a word was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The kernel command line.
    CommandLine,
    /// A VM feature.
    Feature,
}

/// A word that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WordProblem {
    /// Where it was found.
    pub origin: Origin,
    /// The word with its value.
    pub word: Excerpt,
    /// What is wrong.
    pub reason: WordReason,
}

/// Why a word cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WordReason {
    /// There is no such feature.
    Unknown,
    /// The feature does not take this value.
    Bad {
        /// The value, or the entry of a list.
        part: Excerpt,
        /// What it has to be.
        wanted: &'static str,
    },
    /// The list has more entries than this.
    TooMany(usize),
    /// The command line names the word twice.
    Repeated,
    /// The word does nothing without this one.
    Without(&'static str),
}

impl fmt::Display for WordProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::CommandLine => "command line",
            Origin::Feature => "feature",
        };
        write!(f, "{origin} {}: ", self.word)?;
        match &self.reason {
            WordReason::Unknown => f.write_str("unknown word, ignored"),
            WordReason::Bad { part, wanted } => {
                write!(f, "{part} is not {wanted}, feature stays off")
            }
            WordReason::TooMany(most) => write!(f, "more than {most} entries, feature stays off"),
            WordReason::Repeated => f.write_str("word appears twice, feature stays off"),
            WordReason::Without(other) => write!(f, "without {other}, feature stays off"),
        }
    }
}

/// One word of one origin. "Off" is the default value of `T`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Word<T> {
    #[default]
    Absent,
    /// Not understood: off, and hides the same word of the command line.
    Bad,
    Set(T),
}

impl<T: Default + Clone> Word<T> {
    fn take(
        &mut self,
        value: &[u8],
        parse: impl FnOnce(&[u8]) -> Result<T, WordReason>,
    ) -> Option<WordReason> {
        let parsed = match self {
            Self::Absent if value.is_empty() => Ok(T::default()),
            Self::Absent => parse(value),
            Self::Bad | Self::Set(_) => Err(WordReason::Repeated),
        };
        match parsed {
            Ok(parsed) => {
                *self = Self::Set(parsed);
                None
            }
            Err(reason) => {
                *self = Self::Bad;
                Some(reason)
            }
        }
    }

    /// What the word says, off where it is not understood; nothing if it is absent.
    pub(super) fn value(&self) -> Option<T> {
        match self {
            Self::Absent => None,
            Self::Bad => Some(T::default()),
            Self::Set(value) => Some(value.clone()),
        }
    }
}

/// The words of one origin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    log: Word<LogLevel>,
    allow: Word<Vec<Allow>>,
    forward: Word<Vec<Forward>>,
    filtering_by_address: Word<Vec<IpAddr>>,
    flows: Word<Option<NonZeroU32>>,
    flows_per_client: Word<Option<NonZeroU32>>,
    mss_clamp: Word<Option<MssClamp>>,
    /// The words of qubes-mirage-firewall: command line only.
    nat_table_size: Word<Option<NonZeroU32>>,
    pub(super) ipv4: Word<Option<Ipv4Addr>>,
    pub(super) ipv4_gateway: Word<Option<Ipv4Addr>>,
    pub(super) ipv4_dns: [Word<Option<Ipv4Addr>>; 2],
}

impl Words {
    /// The words of a kernel command line.
    pub fn of_command_line(line: &str, report: &mut dyn FnMut(WordProblem)) -> Self {
        let mut found = Self::default();
        let mut report = limited(report);
        for word in line.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let reason = if name.starts_with(WORD_PREFIX) {
                found.take(name, value.as_bytes())
            } else {
                found.take_of_mirage(name, value.as_bytes())
            };
            if let Some(reason) = reason {
                let word = Excerpt::new(word.as_bytes());
                report(WordProblem { origin: Origin::CommandLine, word, reason });
            }
        }
        if let Err(problem) = netvm::client_side(&found) {
            report(problem);
        }
        found
    }

    /// The features of the VM.
    pub fn of_features(store: &Store, report: &mut dyn FnMut(WordProblem)) -> Self {
        let mut found = Self::default();
        let mut report = limited(report);
        for (key, value) in store.iter_prefix(KEY_PREFIX) {
            let name = key.strip_prefix(KEY_PREFIX).unwrap_or_default();
            if !name.starts_with(WORD_PREFIX) {
                continue;
            }
            if let Some(reason) = found.take(name, value) {
                let word = Excerpt::new(&[name.as_bytes(), b"=", value].concat());
                report(WordProblem { origin: Origin::Feature, word, reason });
            }
        }
        found
    }

    /// The NetVM that is a client of ours, if the command line describes one.
    #[must_use]
    pub fn client_side_netvm(&self) -> Option<ClientSideNetvm> {
        netvm::client_side(self).ok().flatten()
    }

    /// Notes one word.
    fn take(&mut self, name: &str, value: &[u8]) -> Option<WordReason> {
        match name {
            "fw-log" => self.log.take(value, words::log_level),
            "fw-allow" => self.allow.take(value, words::allow),
            "fw-forward" => self.forward.take(value, words::forward),
            "fw-filtering-by-address" => self.filtering_by_address.take(value, words::addresses),
            "fw-flows" => self.flows.take(value, words::count),
            "fw-flows-per-client" => self.flows_per_client.take(value, words::count),
            "fw-mss-clamp" => self.mss_clamp.take(value, words::mss_clamp),
            _ => Some(WordReason::Unknown),
        }
    }

    /// Notes a word that qubes-mirage-firewall has too; all others are somebody else's.
    fn take_of_mirage(&mut self, name: &str, value: &[u8]) -> Option<WordReason> {
        let [first, second] = &mut self.ipv4_dns;
        match name {
            "--nat-table-size" => self.nat_table_size.take(value, words::count),
            netvm::ADDRESS => self.ipv4.take(value, words::ipv4),
            netvm::GATEWAY => self.ipv4_gateway.take(value, words::ipv4),
            netvm::DNS => first.take(value, words::ipv4),
            netvm::DNS2 => second.take(value, words::ipv4),
            _ => None,
        }
    }
}

impl Features {
    /// What holds, from strongest to weakest: features, command line, debug mode of the VM.
    #[must_use]
    pub fn new(features: &Words, command_line: &Words, debug: DebugMode) -> Self {
        let default_log = match debug {
            DebugMode::Off => LogLevel::Off,
            DebugMode::On => LogLevel::Debug,
        };
        let [strong, weak] = [features, command_line];
        let exposure = Exposure {
            allow: stronger(&strong.allow, &weak.allow).unwrap_or_default(),
            forward: stronger(&strong.forward, &weak.forward).unwrap_or_default(),
            filtering_by_address: stronger(
                &strong.filtering_by_address,
                &weak.filtering_by_address,
            )
            .unwrap_or_default(),
        };
        let flows = stronger(&strong.flows, &weak.flows).or_else(|| weak.nat_table_size.value());
        let flows_per_client = stronger(&strong.flows_per_client, &weak.flows_per_client);
        Self {
            log: stronger(&strong.log, &weak.log).unwrap_or(default_log),
            exposure,
            flows: flows.flatten(),
            flows_per_client: flows_per_client.flatten(),
            mss_clamp: stronger(&strong.mss_clamp, &weak.mss_clamp).flatten(),
        }
    }
}

fn stronger<T: Default + Clone>(feature: &Word<T>, command_line: &Word<T>) -> Option<T> {
    feature.value().or_else(|| command_line.value())
}

fn limited(report: &mut dyn FnMut(WordProblem)) -> impl FnMut(WordProblem) {
    let mut left = MAX_REPORTS;
    move |problem| {
        if left > 0 {
            left -= 1;
            report(problem);
        }
    }
}
