//! Watch tokens, and the flags that watch events collapse into.

use alloc::string::String;
use alloc::vec::Vec;

/// The part of the program that a request or a watch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The event loop itself (shutdown requests and the like).
    Platform,
    /// `netback`.
    Netback,
    /// `netfront`.
    Netfront,
}

impl Owner {
    const ALL: [Owner; 3] = [Owner::Platform, Owner::Netback, Owner::Netfront];

    fn letter(self) -> char {
        match self {
            Owner::Platform => 'p',
            Owner::Netback => 'b',
            Owner::Netfront => 'f',
        }
    }
}

/// Identifies a watch; comes back with every event.
///
/// An event may still be under way when its watch ends and the number is used again: the generation tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Who gets the events.
    pub owner: Owner,
    /// Number of the owner's choice.
    pub id: u32,
    /// Changes whenever the owner gives the number a new meaning.
    pub generation: u32,
}

impl Token {
    /// The text on the wire: owner letter, id and generation in hexadecimal.
    pub fn encode(&self) -> String {
        alloc::format!("{}-{:x}-{:x}", self.owner.letter(), self.id, self.generation)
    }

    /// Parses what [`Token::encode`] wrote.
    pub fn parse(text: &str) -> Option<Token> {
        let mut parts = text.split('-');
        let letter = parts.next()?;
        let owner = Owner::ALL.into_iter().find(|owner| {
            let mut chars = letter.chars();
            chars.next() == Some(owner.letter()) && chars.next().is_none()
        })?;
        let id = u32::from_str_radix(parts.next()?, 16).ok()?;
        let generation = u32::from_str_radix(parts.next()?, 16).ok()?;
        let token = Token { owner, id, generation };
        // Signs and leading zeros would be taken by `from_str_radix`.
        (parts.next().is_none() && token.encode() == text).then_some(token)
    }
}

/// A set of numbers below a bound, each marked or not: any flood of events about one number costs one bit.
#[derive(Debug)]
pub struct DirtySet {
    words: Vec<u64>,
    next: usize,
}

impl DirtySet {
    /// An empty set for the numbers `0..bound`.
    pub fn new(bound: usize) -> DirtySet {
        DirtySet { words: alloc::vec![0; bound.div_ceil(64)], next: 0 }
    }

    /// Marks a number; one at or above the bound is ignored.
    pub fn mark(&mut self, number: usize) {
        if let Some(word) = self.words.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// Unmarks a number.
    pub fn clear(&mut self, number: usize) {
        if let Some(word) = self.words.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    /// Whether a number is marked.
    pub fn contains(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }

    /// Whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The next marked number at or after the one taken last, around the end, without unmarking it: everybody gets
    /// a turn. The search starts after `self.next`; see [`DirtySet::pop`].
    fn find(&self) -> Option<usize> {
        let bits = self.words.len().saturating_mul(64);
        let start = if self.next < bits { self.next } else { 0 };
        self.find_in(start, bits).or_else(|| self.find_in(0, start))
    }

    fn find_in(&self, from: usize, to: usize) -> Option<usize> {
        let mut at = from;
        while at < to {
            let word = self.words.get(at / 64).copied().unwrap_or(0) >> (at % 64);
            if word != 0 {
                let found = at.saturating_add(word.trailing_zeros() as usize);
                return (found < to).then_some(found);
            }
            at = (at / 64).saturating_add(1).saturating_mul(64);
        }
        None
    }

    /// Unmarks and returns one number, in round-robin order.
    pub fn pop(&mut self) -> Option<usize> {
        let found = self.find()?;
        self.clear(found);
        self.next = found.saturating_add(1);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_others_are_refused() {
        for owner in Owner::ALL {
            for (id, generation) in [(0, 0), (15, 255), (u32::MAX, u32::MAX)] {
                let token = Token { owner, id, generation };
                assert_eq!(Token::parse(&token.encode()), Some(token));
            }
        }
        assert_eq!(Token { owner: Owner::Netfront, id: 31, generation: 2 }.encode(), "f-1f-2");
        for bad in
            ["", "b", "b-1", "b-1-2-3", "x-1-2", "b-+1-2", "b-01-2", "bb-1-2", "b-1-100000000"]
        {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_flood_of_marks_is_one_entry_and_turns_are_fair() {
        let mut dirty = DirtySet::new(200);
        for _ in 0..100_000 {
            dirty.mark(3);
            dirty.mark(130);
            dirty.mark(199);
            dirty.mark(5000);
        }
        assert!(dirty.contains(130) && !dirty.contains(131) && !dirty.contains(5000));
        assert_eq!((dirty.pop(), dirty.pop()), (Some(3), Some(130)));
        dirty.mark(3);
        assert_eq!((dirty.pop(), dirty.pop(), dirty.pop()), (Some(199), Some(3), None));
        assert!(dirty.is_empty());
    }

    #[test]
    fn pop_agrees_with_a_simple_search() {
        for start in 0..130 {
            for marked in 0..130 {
                let mut dirty = DirtySet::new(130);
                dirty.next = start;
                dirty.mark(marked);
                assert_eq!(dirty.pop(), Some(marked));
                assert_eq!(dirty.pop(), None);
            }
        }
    }
}
