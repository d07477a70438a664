//! How long the store is left alone with what it was asked.
//!
//! xenstored tells of each header and each payload that it writes by an event of its own. Woken by each of them, we run a turn for a
//! piece of an answer, twice for each answer; and much of what a start takes is such turns. So for about as long as the answers
//! will take, by how long they took before, we do not hear of them.
#![forbid(unsafe_code)]

/// An answer's time, in nanoseconds: at first, and its bounds.
const FIRST_NS: u64 = 300_000;
const LEAST_NS: u64 = 20_000;
const MOST_NS: u64 = 2_000_000;
/// Longest wait for all of them.
const MOST_IN_ALL_NS: u64 = 10_000_000;

/// What the store's answers take.
#[derive(Debug)]
pub(super) struct Patience {
    answer_ns: u64,
    /// When the wait that is on began, and when it is over; in ns of Xen's system time.
    wait: Option<(u64, u64)>,
}

impl Patience {
    pub(super) const fn new() -> Self {
        Self { answer_ns: FIRST_NS, wait: None }
    }

    /// `awaited` answers are due, and we are about to sleep at `now`: when to look for them.
    pub(super) fn begin(&mut self, awaited: usize, now: u64) -> Option<u64> {
        let all = self.answer_ns.saturating_mul(awaited as u64).min(MOST_IN_ALL_NS);
        self.wait = (awaited > 0).then(|| (now, now.saturating_add(all)));
        self.wait.map(|(_, end)| end)
    }

    /// Whether a wait was on; it is no longer, at `now`.
    pub(super) fn end(&mut self, now: u64) -> bool {
        let Some((_, end)) = self.wait else { return false };
        if now < end {
            // Something else woke us: that says nothing of the store.
            self.wait = None;
        }
        true
    }

    /// What a wait that went on to its end has brought: all of it, or not.
    pub(super) fn learn(&mut self, is_all_there: bool) {
        if self.wait.take().is_some() {
            let part = self.answer_ns / 4;
            let other = if is_all_there {
                self.answer_ns.saturating_sub(part / 2)
            } else {
                self.answer_ns.saturating_add(part)
            };
            self.answer_ns = other.clamp(LEAST_NS, MOST_NS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_waited_for_if_nothing_was_asked() {
        let mut patience = Patience::new();
        assert_eq!(patience.begin(0, 5), None);
        assert!(!patience.end(6));
    }

    #[test]
    fn it_follows_what_answers_take() {
        let mut patience = Patience::new();
        let mut wait = |is_all_there| {
            let end = patience.begin(4, 1000).unwrap();
            assert!(patience.end(end));
            patience.learn(is_all_there);
            end - 1000
        };
        assert_eq!(wait(false), 4 * FIRST_NS);
        assert!(wait(true) > 4 * FIRST_NS);
        let quick = (0..100).map(|_| wait(true)).last();
        assert_eq!(quick, Some(4 * LEAST_NS));
        let slow = (0..100).map(|_| wait(false)).last();
        assert_eq!(slow, Some(4 * MOST_NS));
        assert_eq!(patience.begin(20, 0), Some(MOST_IN_ALL_NS));
    }

    #[test]
    fn a_wait_that_something_else_ended_teaches_nothing() {
        let mut patience = Patience::new();
        let end = patience.begin(1, 0).unwrap();
        assert!(patience.end(end - 1));
        patience.learn(false);
        assert_eq!(patience.begin(1, 0), Some(end));
    }
}
