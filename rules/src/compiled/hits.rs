//! How often each rule, and the policy, decided about a packet.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::cell::Cell;

use crate::set::DecidedBy;

/// A counter for each rule, and one for the policy.
#[derive(Debug, Clone, Default)]
pub(super) struct Hits {
    rules: Vec<Cell<u64>>,
    policy: Cell<u64>,
}

impl Hits {
    /// What a rule costs.
    pub(super) const MAX_RULE_BYTES: usize = size_of::<Cell<u64>>();

    pub(super) fn for_rules(rules: usize) -> Result<Self, TryReserveError> {
        let mut all = Self::default();
        all.rules.try_reserve_exact(rules)?;
        all.rules.resize(rules, Cell::new(0));
        Ok(all)
    }

    /// Counts a decision.
    pub(super) fn count(&self, by: DecidedBy) {
        let counter = match by {
            DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. } => {
                self.rules.get(index)
            }
            DecidedBy::Policy => Some(&self.policy),
            DecidedBy::OtherFamily => None,
        };
        if let Some(counter) = counter {
            counter.set(counter.get().saturating_add(1));
        }
    }

    pub(super) fn of_rule(&self, index: usize) -> u64 {
        self.rules.get(index).map_or(0, Cell::get)
    }

    pub(super) fn of_policy(&self) -> u64 {
        self.policy.get()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let rules = self.rules.capacity().saturating_mul(Self::MAX_RULE_BYTES);
        rules.saturating_add(size_of::<Self>())
    }
}
