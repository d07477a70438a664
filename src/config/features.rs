//! The `fw-...` words: VM features (`/vm-config/fw-...`, Qubes R4.2 and later) and the same words on
//! the kernel command line. Where both name a word, the feature wins.
//!
//! A word that cannot be understood is reported by name and its feature stays off. Words of the
//! command line that do not begin with `fw-` belong to Linux guests and are ignored.

use core::fmt;

use qubesdb::Store;
use rules::Excerpt;

use super::DebugMode;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// `fw-log`; without the word `debug` if the VM is in debug mode.
    pub log: LogLevel,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordReason {
    /// There is no such feature.
    Unknown,
    /// The feature does not take this value.
    BadValue,
    /// The command line names the word twice.
    Repeated,
}

impl fmt::Display for WordProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::CommandLine => "command line",
            Origin::Feature => "feature",
        };
        let reason = match self.reason {
            WordReason::Unknown => "unknown word, ignored",
            WordReason::BadValue => "value not understood, feature stays off",
            WordReason::Repeated => "word appears twice, feature stays off",
        };
        write!(f, "{origin} {}: {reason}", self.word)
    }
}

/// The words of one origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Words {
    log: Option<LogLevel>,
}

impl Words {
    /// The words of a kernel command line.
    pub fn of_command_line(line: &str, report: &mut dyn FnMut(WordProblem)) -> Self {
        let mut words = Self::default();
        let mut report = limited(report);
        for word in line.split_ascii_whitespace().filter(|word| word.starts_with(WORD_PREFIX)) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let repeated = name == "fw-log" && words.log.is_some();
            let reason = words.take(name, value.as_bytes());
            let reason = if repeated { Some(WordReason::Repeated) } else { reason };
            if repeated {
                words.log = Some(LogLevel::Off);
            }
            if let Some(reason) = reason {
                let word = Excerpt::new(word.as_bytes());
                report(WordProblem { origin: Origin::CommandLine, word, reason });
            }
        }
        words
    }

    /// The features of the VM.
    pub fn of_features(store: &Store, report: &mut dyn FnMut(WordProblem)) -> Self {
        let mut words = Self::default();
        let mut report = limited(report);
        for (key, value) in store.iter_prefix(KEY_PREFIX) {
            let name = key.strip_prefix(KEY_PREFIX).unwrap_or_default();
            if !name.starts_with(WORD_PREFIX) {
                continue;
            }
            if let Some(reason) = words.take(name, value) {
                let word = Excerpt::new(&[name.as_bytes(), b"=", value].concat());
                report(WordProblem { origin: Origin::Feature, word, reason });
            }
        }
        words
    }

    /// Notes one word. A value that is not understood counts as "off", so that it also hides the
    /// same word of the command line.
    fn take(&mut self, name: &str, value: &[u8]) -> Option<WordReason> {
        if name != "fw-log" {
            return Some(WordReason::Unknown);
        }
        let level = match value {
            b"off" => Some(LogLevel::Off),
            b"drops" => Some(LogLevel::Drops),
            b"debug" => Some(LogLevel::Debug),
            _ => None,
        };
        self.log = Some(level.unwrap_or_default());
        if level.is_none() { Some(WordReason::BadValue) } else { None }
    }
}

impl Features {
    /// What holds, from strongest to weakest: features, command line, debug mode of the VM.
    #[must_use]
    pub fn new(features: &Words, command_line: &Words, debug: DebugMode) -> Self {
        let default = match debug {
            DebugMode::Off => LogLevel::Off,
            DebugMode::On => LogLevel::Debug,
        };
        Self { log: features.log.or(command_line.log).unwrap_or(default) }
    }
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
