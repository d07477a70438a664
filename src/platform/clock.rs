//! Xen's system time without the pauses of this domain.
//!
//! System time goes on while the domain is paused or suspended (a laptop's lid, `qvm-pause`). Flows must not all expire
//! at once after that: a wake-up long after its deadline, or a turn that took seconds, was a pause and is taken out.

use crate::planted::{Defect, is_planted};
use crate::time::Instant;

/// Lateness that scheduling alone does not cause, in nanoseconds.
const PAUSE_NS: u64 = 2_000_000_000;

/// The clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// Time taken out so far.
    paused_ns: u64,
    /// Latest time at which the domain is known to have run.
    ran_at_ns: Option<u64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The loop's time at a system time.
    pub(super) fn instant(&self, system_ns: u64) -> Instant {
        Instant::from_nanos(system_ns.saturating_sub(self.paused_ns))
    }

    /// The system time of an instant; of one before a pause, too late by that pause.
    pub(super) fn shared_ns(&self, instant: Instant) -> u64 {
        instant.as_nanos().saturating_add(self.paused_ns)
    }

    /// A turn begins.
    pub(super) fn turn(&mut self, system_ns: u64) {
        if let Some(ran_at) = self.ran_at_ns {
            self.take_out(ran_at, system_ns);
        }
        self.ran_at_ns = Some(system_ns);
    }

    /// A sleep that was to end at `deadline` ended now. Without a deadline nothing can be said, and nothing is waiting.
    pub(super) fn woke(&mut self, deadline: Option<u64>, system_ns: u64) {
        if let (Some(deadline), Some(ran_at)) = (deadline, self.ran_at_ns) {
            self.take_out(deadline.max(ran_at), system_ns);
        }
        self.ran_at_ns = Some(system_ns);
    }

    fn take_out(&mut self, expected_ns: u64, system_ns: u64) {
        let late = system_ns.saturating_sub(expected_ns);
        if late > PAUSE_NS && !is_planted(Defect::PauseCounts) {
            self.paused_ns = self.paused_ns.saturating_add(late);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn a_long_sleep_until_its_deadline_is_no_pause() {
        let mut clock = Clock::new();
        clock.turn(10 * S);
        clock.woke(Some(100 * S), 100 * S + 5_000_000);
        clock.turn(100 * S + 5_000_000);
        assert_eq!(clock.instant(101 * S), Instant::from_nanos(101 * S));
    }

    #[test]
    fn a_wake_up_long_after_its_deadline_was_a_pause() {
        let mut clock = Clock::new();
        clock.turn(10 * S);
        clock.woke(Some(12 * S), 3612 * S);
        assert_eq!(clock.instant(3612 * S), Instant::from_nanos(12 * S));
        assert_eq!(clock.shared_ns(Instant::from_nanos(13 * S)), 3613 * S);
    }

    #[test]
    fn a_pause_within_a_turn_counts_as_well() {
        let mut clock = Clock::new();
        clock.turn(10 * S);
        clock.turn(70 * S);
        assert_eq!(clock.instant(70 * S), Instant::from_nanos(10 * S));
    }

    #[test]
    fn waking_early_changes_nothing() {
        let mut clock = Clock::new();
        clock.turn(10 * S);
        clock.woke(Some(50 * S), 20 * S);
        assert_eq!(clock.instant(20 * S), Instant::from_nanos(20 * S));
    }
}
