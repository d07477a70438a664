//! A transfer to one client alone: its super-frames are taken some at a time.
//!
//! A turn costs as much as copying some pages, whatever it brings. So while super-frames of one client alone follow each other
//! closely, an event is asked for when there are two more of them, and they are looked for when two should have come. Single
//! frames without a transfer, the first super-frames of one, and those of a slow one are told of at once.
#![forbid(unsafe_code)]

/// Slots of which an event tells: two super-frames of 48 KiB.
const GATHERED: u32 = 24;
/// Super-frames that follow each other closer, in nanoseconds, are a transfer: of 48 KiB, 12 MB in a second.
const APART_NS: u64 = 4_000_000;
/// Longest time to wait for more of them, in nanoseconds.
const MOST_WAIT_NS: u64 = 5_000_000;

/// The transfer that is under way, if there is one.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    /// Super-frames of this turn.
    burst: u32,
    /// The last turn that had some, in ns.
    since: u64,
    /// When they are looked for without an event, in ns.
    look_at: Option<u64>,
}

impl Transfer {
    /// A super-frame was taken.
    pub(super) fn note(&mut self) {
        self.burst = self.burst.saturating_add(1);
    }

    /// The turn that began at `now` ends: the slots of which an event is to tell.
    pub(super) fn wanted(&mut self, now: u64, is_one_alone: bool) -> u32 {
        self.look_at = None;
        let burst = core::mem::take(&mut self.burst);
        if burst == 0 {
            return 1;
        }
        let passed = now.saturating_sub(core::mem::replace(&mut self.since, now));
        let apart = passed / u64::from(burst);
        if !is_one_alone || apart > APART_NS {
            return 1;
        }
        let wait = apart.saturating_mul(2).min(MOST_WAIT_NS);
        self.look_at = Some(now.saturating_add(wait));
        GATHERED
    }

    /// When more of it are looked for.
    pub(super) fn look_deadline(&self) -> Option<u64> {
        self.look_at
    }

    /// Whether it is time to look, or the clock was set back.
    pub(super) fn is_due(&mut self, now: u64) -> bool {
        let is_due = |at: &mut u64| !(1..=MOST_WAIT_NS).contains(&at.saturating_sub(now));
        self.look_at.take_if(is_due).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(transfer: &mut Transfer, burst: u32, now: u64) -> (u32, Option<u64>) {
        (0..burst).for_each(|_| transfer.note());
        (transfer.wanted(now, true), transfer.look_deadline())
    }

    #[test]
    fn two_more_super_frames_of_a_transfer_are_waited_for_as_long_as_the_last_ones_took() {
        let mut transfer = Transfer::default();
        let mut now = 1 << 40;
        assert_eq!(wanted(&mut transfer, 3, now), (1, None), "the first ones");
        now += 2_000_000;
        assert_eq!(wanted(&mut transfer, 2, now), (GATHERED, Some(now + 2_000_000)));
        assert!(!transfer.is_due(now + 1_999_999));
        assert!(transfer.is_due(now + 2_000_000));
        assert_eq!(transfer.look_deadline(), None, "once");
        now += APART_NS;
        assert_eq!(wanted(&mut transfer, 1, now), (GATHERED, Some(now + MOST_WAIT_NS)));
        assert!(transfer.is_due(now - 1), "the clock was set back");
        now += APART_NS + 1;
        assert_eq!(wanted(&mut transfer, 1, now), (1, None), "a slow one");
    }

    #[test]
    fn without_super_frames_or_beside_others_each_frame_is_told_of() {
        let mut transfer = Transfer::default();
        let now = 1 << 40;
        wanted(&mut transfer, 1, now);
        assert_eq!(wanted(&mut transfer, 0, now + 1000), (1, None));
        transfer.note();
        assert_eq!(transfer.wanted(now + 2000, false), 1);
        assert_eq!(transfer.look_deadline(), None);
        assert_eq!(wanted(&mut transfer, 1, now + 3000).0, GATHERED, "alone again");
    }
}
