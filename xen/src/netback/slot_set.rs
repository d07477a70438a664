//! Which of the vifs have something about them, one bit for each: any flood of events about one costs no more, and what has to
//! be done for those that have is not asked of all others.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

/// Numbers in one word.
const BITS: usize = u128::BITS as usize;

/// A set of numbers below a bound, each marked or not.
#[derive(Debug)]
pub(super) struct SlotSet {
    words: Vec<u128>,
    next: usize,
}

impl SlotSet {
    /// An empty set for the numbers `0..bound`.
    pub(super) fn new(bound: usize) -> SlotSet {
        SlotSet { words: alloc::vec![0; bound.div_ceil(BITS)], next: 0 }
    }

    /// Marks a number; one at or above the bound is ignored.
    pub(super) fn mark(&mut self, number: usize) {
        if let Some(word) = self.words.get_mut(number / BITS) {
            *word |= 1 << (number % BITS);
        }
    }

    /// Unmarks a number.
    pub(super) fn clear(&mut self, number: usize) {
        if let Some(word) = self.words.get_mut(number / BITS) {
            *word &= !(1 << (number % BITS));
        }
    }

    /// Whether a number is marked.
    pub(super) fn contains(&self, number: usize) -> bool {
        self.words.get(number / BITS).is_some_and(|word| word & (1 << (number % BITS)) != 0)
    }

    /// Whether nothing is marked.
    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The first marked number of `from..to`.
    pub(super) fn next_in(&self, from: usize, to: usize) -> Option<usize> {
        let mut index = from / BITS;
        let mut word = self.words.get(index)? & (u128::MAX << (from % BITS));
        while word == 0 {
            index = index.saturating_add(1);
            word = *self.words.get(index)?;
        }
        let found = index.saturating_mul(BITS).saturating_add(word.trailing_zeros() as usize);
        (found < to).then_some(found)
    }

    /// Unmarks and returns one number, in round-robin order.
    pub(super) fn pop(&mut self) -> Option<usize> {
        // From the one after the last on, and around the end: everybody gets a turn.
        let found = self.next_in(self.next, usize::MAX).or_else(|| self.next_in(0, self.next))?;
        self.clear(found);
        self.next = found.saturating_add(1);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_marks_is_one_entry_and_turns_are_fair() {
        let mut set = SlotSet::new(200);
        for _ in 0..100_000 {
            set.mark(3);
            set.mark(130);
            set.mark(199);
            set.mark(5000);
        }
        assert!(set.contains(130) && !set.contains(131) && !set.contains(5000));
        assert_eq!((set.pop(), set.pop()), (Some(3), Some(130)));
        set.mark(3);
        assert_eq!((set.pop(), set.pop(), set.pop()), (Some(199), Some(3), None));
        assert!(set.is_empty());
    }

    #[test]
    fn pop_agrees_with_a_simple_search() {
        for start in 0..130 {
            for marked in 0..130 {
                let mut set = SlotSet::new(130);
                set.next = start;
                set.mark(marked);
                assert_eq!(set.pop(), Some(marked));
                assert_eq!(set.pop(), None);
            }
        }
    }

    #[test]
    fn a_range_has_its_own_numbers_only() {
        let mut set = SlotSet::new(200);
        [3, 63, 64, 199].into_iter().for_each(|number| set.mark(number));
        let all = |set: &SlotSet, from, to| {
            let mut at = from;
            core::iter::from_fn(|| {
                let found = set.next_in(at, to)?;
                at = found + 1;
                Some(found)
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(all(&set, 0, usize::MAX), [3, 63, 64, 199]);
        assert_eq!(all(&set, 3, 64), [3, 63]);
        assert_eq!(all(&set, 4, 63), []);
        assert_eq!(all(&set, 64, 199), [64]);
        assert_eq!(all(&set, 1000, usize::MAX), []);
        set.clear(64);
        assert_eq!(all(&set, 64, 200), [199]);
    }
}
