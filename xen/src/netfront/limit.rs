//! How many slots of the TX ring are used: no more than keep the backend at work.
//!
//! What waits in the ring is a queue that all clients share, first come first served, behind the round robin that is fair to
//! them: with a flooding client it is full, and each frame of another one waits until the backend has taken 256 before it.
//! The limit follows the same idea as Linux' dynamic queue limits: what never left the ring empty was too much, and what left
//! it empty although clients had more was too little.
#![forbid(unsafe_code)]

/// Least limit, in slots: two of the largest frames, and some.
const LEAST: u32 = 48;
/// The limit falls by what was there all this time, in nanoseconds.
const HOLD_NS: u64 = 20_000_000;

/// The limit of one connection.
#[derive(Debug)]
pub(super) struct QueueLimit {
    /// Slots that may be in flight.
    limit: u32,
    most: u32,
    /// Least number of slots that were left in the ring when answers were taken, since `since`.
    standing: u32,
    /// Start of the time that `standing` is about, in nanoseconds.
    since: Option<u64>,
    /// Frames waited for room at the end of the last turn.
    is_short: bool,
    /// Nobody waits behind anybody else.
    is_alone: bool,
}

impl QueueLimit {
    /// All of the ring at first.
    pub(super) fn new(most: u32) -> QueueLimit {
        QueueLimit {
            limit: most,
            most,
            standing: u32::MAX,
            since: None,
            is_short: false,
            is_alone: false,
        }
    }

    /// Slots that may be taken beside `in_flight`.
    pub(super) fn room(&self, in_flight: u32) -> usize {
        let limit = if self.is_alone { self.most } else { self.limit };
        limit.saturating_sub(in_flight) as usize
    }

    /// Whether all frames are those of one client.
    pub(super) fn alone(&mut self, is_alone: bool) {
        self.is_alone = is_alone;
    }

    pub(super) fn is_alone(&self) -> bool {
        self.is_alone
    }

    /// Answers that are worth an event, of so many slots in flight; none if nobody waits for any.
    pub(super) fn batch(&self, in_flight: u32) -> Option<u32> {
        if !self.is_alone {
            return Some((in_flight / 2).max(1));
        }
        self.is_short.then_some((in_flight - in_flight / 4).max(1))
    }

    /// Whether frames wait for room.
    pub(super) fn demand(&mut self, is_short: bool) {
        self.is_short = is_short;
    }

    /// The backend has answered `answered` requests, and has `left` more.
    pub(super) fn note(&mut self, answered: u32, left: u32, now: u64) {
        if answered == 0 {
            return;
        }
        if left == 0 {
            if self.is_short {
                let more = answered.max(self.limit / 2);
                self.limit = self.limit.saturating_add(more).min(self.most);
            }
            self.standing = u32::MAX;
            self.since = None;
            return;
        }
        self.standing = self.standing.min(left);
        let since = *self.since.get_or_insert(now);
        if now.saturating_sub(since) >= HOLD_NS {
            self.limit = self.limit.saturating_sub(self.standing).max(LEAST.min(self.most));
            self.standing = u32::MAX;
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A backend that takes `rate` slots in a millisecond, and a firewall that looks each `period` ms; the slots in flight just
    /// after each look of the last 100, and how many slots the backend could have taken more.
    fn run(limit: &mut QueueLimit, rate: u32, period: u64) -> (u32, u32) {
        let (mut in_flight, mut missed, mut most) = (0_u32, 0, 0);
        for turn in 0..2000 {
            let can = rate * period as u32;
            let answered = can.min(in_flight);
            in_flight -= answered;
            limit.note(answered, in_flight, turn * period * MS);
            in_flight += limit.room(in_flight) as u32;
            limit.demand(true);
            if turn > 1900 {
                most = most.max(in_flight);
                missed += can - answered;
            }
        }
        (most, missed)
    }

    #[test]
    fn a_standing_queue_goes_and_the_backend_stays_at_work() {
        for (rate, period) in [(2, 1), (10, 1), (30, 2), (3, 20), (1, 60)] {
            let mut limit = QueueLimit::new(256);
            let (most, missed) = run(&mut limit, rate, period);
            let taken = rate * period as u32;
            assert!(most <= LEAST.max(3 * taken), "{most} in flight where {taken} are taken");
            assert!(missed <= 100 * taken / 10, "{missed} of {} not taken", 100 * taken);
        }
    }

    #[test]
    fn a_backend_that_becomes_faster_gets_more() {
        let mut limit = QueueLimit::new(256);
        run(&mut limit, 2, 1);
        assert_eq!(limit.room(0), LEAST as usize);
        let (most, missed) = run(&mut limit, 100, 1);
        assert!((100..=256).contains(&most), "{most}");
        assert!(missed <= 1000, "{missed}");
    }

    #[test]
    fn without_demand_an_empty_ring_says_nothing() {
        let mut limit = QueueLimit::new(256);
        run(&mut limit, 2, 1);
        limit.demand(false);
        for turn in 0..100 {
            limit.note(5, 0, turn * MS);
            limit.note(0, 0, turn * MS);
        }
        assert_eq!(limit.room(0), LEAST as usize);
    }

    #[test]
    fn one_client_alone_has_all_of_the_ring_and_waits_for_answers_only_when_it_is_full() {
        let mut limit = QueueLimit::new(256);
        run(&mut limit, 2, 1);
        assert_eq!((limit.room(40), limit.batch(40), limit.batch(0)), (8, Some(20), Some(1)));
        limit.alone(true);
        limit.demand(false);
        assert_eq!((limit.room(40), limit.batch(40)), (216, None));
        limit.demand(true);
        assert_eq!((limit.batch(256), limit.batch(1)), (Some(192), Some(1)));
        limit.alone(false);
        assert_eq!(limit.room(40), 8);
    }

    #[test]
    fn a_small_ring_is_used_whole() {
        let mut limit = QueueLimit::new(16);
        run(&mut limit, 1, 1);
        assert_eq!((limit.room(0), limit.room(20)), (16, 0));
    }
}
