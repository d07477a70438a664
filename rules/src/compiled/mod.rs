//! A [`RuleSet`] compiled for lookup: what its rules say about a packet, at a cost that hardly depends on their number.
//!
//! The first rule that matches decides, so that the set looks for the least number among the rules that match. Rules are
//! put together by their destination, and for each destination the first matching rule of every protocol, port and type
//! is found ahead. A packet then asks, and keeps the least:
//! - the rules for any destination;
//! - those for each prefix around its destination (`nets`): a path of at most 33 or 129 nodes;
//! - those for each name that has its destination (`named`);
//! - each by one binary search (`segments`) on one `axis` of protocols, ports, types and the DNS target;
//! - at last the drop rules before all these whose name is not known (`named`).
//!
//! What it answers is what [`RuleSet::evaluate`] answers, always: the tests and the fuzzer compare the two.
//!
//! Memory: a rule costs at most [`CompiledSet::MAX_RULE_BYTES`] besides the [`RuleSet`] itself, and as much again while
//! it is compiled. Looking up does not allocate.

mod axis;
mod hits;
mod named;
mod nets;
mod segments;

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use crate::error::RuleSetError;
use crate::rule::{Action, Destination, Rule};
use crate::set::{DecidedBy, Decision, RuleSet, Verdict};
use crate::subject::{Family, Names, Subject};
use hits::Hits;
use named::NamedRules;
use nets::Nets;
use segments::{Bucket, Cutter, Segments};

/// Behind all rules: four digits number fewer.
const NO_RULE: u16 = u16::MAX;

/// A rule set and the tables by which packets are judged.
#[derive(Debug, Clone)]
pub struct CompiledSet {
    set: RuleSet,
    segments: Segments,
    anywhere: Bucket,
    nets: Nets,
    named: NamedRules,
    /// In a place of its own, which keeps the set small.
    hits: Box<Hits>,
}

/// The tables follow from the rules, and what was counted does not matter.
impl PartialEq for CompiledSet {
    fn eq(&self, other: &Self) -> bool {
        self.set == other.set
    }
}

impl Eq for CompiledSet {}

impl CompiledSet {
    /// Heap bytes of the tables for one rule at most: for 10,000 rules half a MiB.
    pub const MAX_RULE_BYTES: usize = Segments::MAX_RULE_BYTES
        + Hits::MAX_RULE_BYTES
        + if Nets::MAX_RULE_BYTES > NamedRules::MAX_RULE_BYTES {
            Nets::MAX_RULE_BYTES
        } else {
            NamedRules::MAX_RULE_BYTES
        };

    /// Compiles a set.
    ///
    /// # Errors
    /// [`RuleSetError::OutOfMemory`]. Then everything of the source is to be denied.
    pub fn new(set: RuleSet) -> Result<Self, RuleSetError> {
        Self::build(set).map_err(|_| RuleSetError::OutOfMemory)
    }

    fn build(set: RuleSet) -> Result<Self, TryReserveError> {
        let order = by_destination(&set)?;
        let groups =
            || order.chunk_by(|one, next| destination(&set, *one) == destination(&set, *next));
        let first_of = |group: &[u16]| group.first().and_then(|rule| destination(&set, *rule));
        let is_net = |group: &&[u16]| matches!(first_of(group), Some(Destination::Net(_)));
        let mut nets = Nets::with_capacity(groups().filter(is_net).count())?;
        let mut named = NamedRules::with_capacity(set.names().count())?;
        let (mut anywhere, mut cutter) = (Bucket::EMPTY, Cutter::default());
        for group in groups() {
            let bucket =
                cutter.bucket(group.iter().filter_map(|&at| Some((at, rule(&set, at)?))))?;
            let (Some(&first), Some(destination)) = (group.first(), first_of(group)) else {
                continue;
            };
            match destination {
                Destination::Any => anywhere = bucket,
                Destination::Net(_) => nets.push(&set, first, bucket),
                Destination::Host(_) => named.push(first, bucket, first_drop(&set, group)),
            }
        }
        named.finish();
        let segments = cutter.finish()?;
        let hits = Box::new(Hits::for_rules(set.rules().len())?);
        Ok(Self { set, segments, anywhere, nets, named, hits })
    }

    /// Judges the first packet of a flow, as [`RuleSet::evaluate`] does.
    #[must_use]
    pub fn evaluate(&self, subject: &Subject, names: &(impl Names + ?Sized)) -> Decision {
        if Family::of(subject.destination) != self.set.family() {
            return Decision { verdict: Verdict::Reject, by: DecidedBy::OtherFamily };
        }
        let at = (subject.destination, axis::place(subject));
        let (set, segments) = (&self.set, &self.segments);
        let best = segments.first_rule(self.anywhere, at.1, NO_RULE);
        let best = self.nets.first_rule(set, segments, at, best);
        let best = self.named.first_rule(set, segments, at, names, best);
        match self.named.first_unresolved(set, subject.destination, names, best) {
            Some(unresolved) => self.refused_at(unresolved),
            None => self.decided_by(best),
        }
    }

    /// The rules themselves.
    #[must_use]
    pub const fn rules(&self) -> &RuleSet {
        &self.set
    }

    /// Counts that a packet's fate was decided so.
    pub fn count(&self, by: DecidedBy) {
        self.hits.count(by);
    }

    /// How often the rule at a place in the order of evaluation has decided, as far as [`CompiledSet::count`] was told.
    #[must_use]
    pub fn hits(&self, index: usize) -> u64 {
        self.hits.of_rule(index)
    }

    /// How often the policy has decided, likewise.
    #[must_use]
    pub fn policy_hits(&self) -> u64 {
        self.hits.of_policy()
    }

    /// Heap bytes that the set and its tables hold, for budgets.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let parts = [
            self.segments.heap_bytes(),
            self.nets.heap_bytes(),
            self.named.heap_bytes(),
            self.hits.heap_bytes(),
        ];
        parts.into_iter().fold(self.set.heap_bytes(), usize::saturating_add)
    }

    fn decided_by(&self, place: u16) -> Decision {
        let index = usize::from(place);
        match self.set.get(index) {
            Some((key, rule)) => {
                Decision { verdict: rule.action().into(), by: DecidedBy::Rule { index, key } }
            }
            None => Decision { verdict: self.set.policy().into(), by: DecidedBy::Policy },
        }
    }

    fn refused_at(&self, place: u16) -> Decision {
        let index = usize::from(place);
        let by = match self.set.get(index) {
            Some((key, _)) => DecidedBy::UnresolvedName { index, key },
            None => DecidedBy::Policy,
        };
        Decision { verdict: Verdict::Reject, by }
    }
}

/// The places of all rules, ascending by destination, and of one destination in their order.
fn by_destination(set: &RuleSet) -> Result<Vec<u16>, TryReserveError> {
    let mut order = Vec::new();
    order.try_reserve_exact(set.rules().len())?;
    order.extend((0_u16..).zip(set.rules()).map(|(place, _)| place));
    order.sort_unstable_by(|one, other| {
        let destinations = destination(set, *one).cmp(&destination(set, *other));
        destinations.then(one.cmp(other))
    });
    Ok(order)
}

fn rule(set: &RuleSet, place: u16) -> Option<&Rule> {
    set.get(place.into()).map(|(_, rule)| rule)
}

fn destination(set: &RuleSet, place: u16) -> Option<&Destination> {
    rule(set, place).map(Rule::destination)
}

fn first_drop(set: &RuleSet, group: &[u16]) -> Option<u16> {
    let is_drop = |place: &u16| rule(set, *place).is_some_and(|rule| rule.action() == Action::Drop);
    group.iter().copied().find(is_drop)
}
