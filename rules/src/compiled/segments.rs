//! The axis of each destination, cut where its first matching rule changes.
//!
//! Rules may overlap as they like: the sweep that cuts keeps all that are open at a place and writes down the first.

use alloc::collections::{BinaryHeap, TryReserveError};
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::NO_RULE;
use super::axis::{self, PLACES, Span};
use crate::rule::Rule;

/// Places from one on, up to the next segment, and the first rule that matches them or [`NO_RULE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    first: u32,
    rule: u16,
}

/// The segments of all destinations.
#[derive(Debug, Clone, Default)]
pub(super) struct Segments(Vec<Segment>);

/// Those of one destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    from: u32,
    to: u32,
    /// The first of its rules that can match at all, or [`NO_RULE`].
    first_rule: u16,
}

impl Bucket {
    pub(super) const EMPTY: Self = Self { from: 0, to: 0, first_rule: NO_RULE };
}

impl Segments {
    /// What a rule costs at most: two spans with two ends.
    pub(super) const MAX_RULE_BYTES: usize = 4 * size_of::<Segment>();

    /// The first rule of a bucket that matches a place, if it comes before `best`; else `best`.
    pub(super) fn first_rule(&self, bucket: Bucket, place: u32, best: u16) -> u16 {
        if bucket.first_rule >= best {
            return best;
        }
        let range = bucket.from as usize..bucket.to as usize;
        let segments = self.0.get(range).unwrap_or_default();
        let behind = segments.partition_point(|segment| segment.first <= place);
        let found = behind.checked_sub(1).and_then(|at| segments.get(at));
        found.map_or(best, |segment| segment.rule.min(best))
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.0.capacity().saturating_mul(size_of::<Segment>())
    }
}

/// Makes the segments of one destination after the other.
#[derive(Default)]
pub(super) struct Cutter {
    segments: Vec<Segment>,
    /// The spans of the rules of this destination.
    spans: Vec<(Span, u16)>,
    /// Where the first matching rule may change.
    edges: Vec<u32>,
    /// Rules that are open at the place of the sweep and their last places; some that have ended.
    open: BinaryHeap<Reverse<(u16, u32)>>,
}

impl Cutter {
    /// Cuts the axis of a destination that has these rules.
    pub(super) fn bucket<'a>(
        &mut self,
        rules: impl Iterator<Item = (u16, &'a Rule)>,
    ) -> Result<Bucket, TryReserveError> {
        let from = self.segments.len() as u32;
        self.collect(rules)?;
        self.sweep()?;
        let first_rule = self.spans.iter().map(|(_, rule)| *rule).min().unwrap_or(NO_RULE);
        Ok(Bucket { from, to: self.segments.len() as u32, first_rule })
    }

    /// The segments in a vector as large as they are.
    pub(super) fn finish(self) -> Result<Segments, TryReserveError> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.segments.len())?;
        all.extend_from_slice(&self.segments);
        Ok(Segments(all))
    }

    fn collect<'a>(
        &mut self,
        rules: impl Iterator<Item = (u16, &'a Rule)>,
    ) -> Result<(), TryReserveError> {
        self.spans.clear();
        self.edges.clear();
        for (place, rule) in rules {
            for span in axis::spans(rule) {
                self.spans.try_reserve(1)?;
                self.spans.push((span, place));
                self.edges.try_reserve(2)?;
                self.edges.push(span.first);
                self.edges.extend((span.last + 1 < PLACES).then_some(span.last + 1));
            }
        }
        self.spans.sort_unstable_by_key(|(span, _)| span.first);
        self.edges.sort_unstable();
        self.edges.dedup();
        Ok(())
    }

    fn sweep(&mut self) -> Result<(), TryReserveError> {
        self.open.clear();
        self.open.try_reserve(self.spans.len())?;
        self.segments.try_reserve(self.edges.len())?;
        let mut coming = self.spans.iter().peekable();
        let mut before = NO_RULE;
        for &edge in &self.edges {
            while let Some((span, rule)) = coming.next_if(|(span, _)| span.first <= edge) {
                self.open.push(Reverse((*rule, span.last)));
            }
            while self.open.peek().is_some_and(|Reverse((_, last))| *last < edge) {
                self.open.pop();
            }
            let rule = self.open.peek().map_or(NO_RULE, |Reverse((rule, _))| *rule);
            if rule != before {
                self.segments.push(Segment { first: edge, rule });
                before = rule;
            }
        }
        Ok(())
    }
}
