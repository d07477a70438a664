//! What dom0 wrote that is not in force, for whoever asks.

use core::net::IpAddr;

use super::{Control, RulesRefusal};
use crate::config::ConfigError;
use crate::config::features::WordProblem;

impl Control {
    /// The `fw-...` words that were not understood: of the command line, then of the features as they are now.
    pub fn word_problems(&self) -> impl Iterator<Item = &WordProblem> {
        self.line_problems.iter().chain(self.feature_words.problems())
    }

    /// The keys that are missing or were not understood when they were read last.
    pub fn config_problems(&self) -> impl Iterator<Item = &ConfigError> {
        let groups = [
            self.uplink.problems(),
            self.downlink.problems(),
            self.connected.problems(),
            self.mapped.problems(),
            self.name.problems(),
            self.debug.problems(),
        ];
        groups.into_iter().flatten()
    }

    /// Why the rules of a source are refused. Nothing is kept of sources beyond the bound on them.
    #[must_use]
    pub fn refusal(&self, ip: IpAddr) -> Option<&RulesRefusal> {
        self.sources.get(&ip)?.refusal.as_deref()
    }

    /// The sources that have a rule tree, ascending.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> {
        self.sources.keys().copied()
    }
}
