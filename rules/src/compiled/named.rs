//! The host names of a set: what is known of them changes from packet to packet.
//!
//! Names that have the packet's address are asked for by the address, so that the others cost nothing. A drop rule whose
//! name is not known refuses all that reaches it: which ones these are changes rarely, and is remembered.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::cell::Cell;
use core::net::IpAddr;

use super::segments::{Bucket, Segments};
use crate::rule::HostName;
use crate::set::RuleSet;
use crate::subject::{NameMatch, Names};

/// A name.
#[derive(Debug, Clone, Copy)]
struct Named {
    bucket: Bucket,
    /// A rule that has it, and so its text.
    rule: u16,
}

/// The names and those of drop rules once more.
#[derive(Debug, Clone, Default)]
pub(super) struct NamedRules {
    /// Ascending by text.
    names: Vec<Named>,
    /// The first drop rule of each name that has one, ascending.
    drops: Vec<u16>,
    known: KnownDrops,
}

/// How many of the first drops have known names, and the stamp under which that was found out.
#[derive(Debug, Default)]
struct KnownDrops(Cell<Option<(u64, usize)>>);

/// A copy may meet other names with the same stamps.
impl Clone for KnownDrops {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl NamedRules {
    /// What a rule costs at most.
    pub(super) const MAX_RULE_BYTES: usize = size_of::<Named>() + size_of::<u16>();

    pub(super) fn with_capacity(names: usize) -> Result<Self, TryReserveError> {
        let mut all = Self::default();
        all.names.try_reserve_exact(names)?;
        all.drops.try_reserve_exact(names)?;
        Ok(all)
    }

    /// Adds a name, which is that of `rule`; they come ascending.
    pub(super) fn push(&mut self, rule: u16, bucket: Bucket, first_drop: Option<u16>) {
        self.names.push(Named { bucket, rule });
        self.drops.extend(first_drop);
    }

    /// After the last name.
    pub(super) fn finish(&mut self) {
        self.drops.sort_unstable();
    }

    /// The first rule with a name of `destination` that matches a place on the axis.
    pub(super) fn first_rule(
        &self,
        set: &RuleSet,
        segments: &Segments,
        (destination, place): (IpAddr, u32),
        names: &(impl Names + ?Sized),
        mut best: u16,
    ) -> u16 {
        if self.names.is_empty() {
            return best;
        }
        names.each_at(destination, &mut |text| {
            let text_of = |named: &Named| name_of(set, named.rule).map(HostName::as_str);
            let found = self.names.binary_search_by(|named| text_of(named).cmp(&Some(text)));
            if let Some(named) = found.ok().and_then(|at| self.names.get(at)) {
                best = segments.first_rule(named.bucket, place, best);
            }
        });
        best
    }

    /// The first drop rule before `best` whose name might have `destination`: it is not known whether it does.
    pub(super) fn first_unresolved(
        &self,
        set: &RuleSet,
        destination: IpAddr,
        names: &(impl Names + ?Sized),
        best: u16,
    ) -> Option<u16> {
        let known = self.known_drops(set, names, best);
        let unsure = self.drops.get(known..).unwrap_or_default();
        let mut before = unsure.iter().copied().take_while(|rule| *rule < best);
        // One that is not known may have this address all the same, where somebody learned it.
        before.find(|rule| {
            name_of(set, *rule)
                .is_none_or(|name| names.lookup(name, destination) == NameMatch::Unresolved)
        })
    }

    /// How many of the first drops have names that are known, as far as rules before `best` need to know.
    fn known_drops(&self, set: &RuleSet, names: &(impl Names + ?Sized), best: u16) -> usize {
        let stamp = names.stamp();
        let remembered = self.known.0.get().filter(|(then, _)| Some(*then) == stamp);
        let before = remembered.map_or(0, |(_, known)| known);
        let coming = self.drops.iter().skip(before).take_while(|rule| **rule < best);
        let is_known = |rule: &&u16| name_of(set, **rule).is_some_and(|name| names.is_known(name));
        let known = before.saturating_add(coming.take_while(is_known).count());
        self.known.0.set(stamp.map(|stamp| (stamp, known)));
        known
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let names = self.names.capacity().saturating_mul(size_of::<Named>());
        names.saturating_add(self.drops.capacity().saturating_mul(size_of::<u16>()))
    }
}

fn name_of(set: &RuleSet, rule: u16) -> Option<&HostName> {
    set.get(rule.into())?.1.host_name()
}
