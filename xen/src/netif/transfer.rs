//! A transfer to one client alone: its super-frames are taken some at a time, and so are the client's answers to them.
//!
//! A turn costs as much as copying some pages, whatever it brings. So while super-frames for one client alone follow each other
//! closely, an event is asked for when there are three more of them, or answers to three, and they are looked for when these
//! should have come. Single frames without a transfer, the first super-frames of one, and those of a slow one are told of at once.
#![forbid(unsafe_code)]

use crate::time::is_ahead;

/// Slots of which an event tells: three super-frames of 48 KiB, or more than the answers that they call for.
const GATHERED: u32 = 30;
/// Super-frames that follow each other closer, in nanoseconds, are a transfer: of 48 KiB, 12 MB in a second.
const APART_NS: u64 = 4_000_000;
/// Three more are waited for as long as so many took.
const PATIENCE: u64 = 4;
/// Longest time to wait for more frames, in nanoseconds.
pub(crate) const MOST_WAIT_NS: u64 = 8_000_000;

/// A time, in nanoseconds, and whether one client alone has had frames for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    pub(crate) is_one_alone: bool,
}

/// What a peer is left to do before its ring is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gather {
    /// Slots of which an event tells.
    pub(crate) slots: u32,
    /// When the ring is looked at without one, in nanoseconds.
    pub(crate) until: u64,
}

/// The transfer that is under way, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    /// Super-frames since the last turn's end.
    burst: u32,
    /// The last turn that had some, in ns.
    since: u64,
    /// When the wait for more of them is over, in ns.
    until: Option<u64>,
}

impl Transfer {
    /// A super-frame is on its way.
    pub(crate) fn note(&mut self) {
        self.burst = self.burst.saturating_add(1);
    }

    /// The turn that began at `when` ends: whether more of the transfer are waited for.
    pub(crate) fn gather(&mut self, when: Moment) -> Option<Gather> {
        let burst = core::mem::take(&mut self.burst);
        if burst > 0 {
            let passed = when.now.saturating_sub(core::mem::replace(&mut self.since, when.now));
            let apart = passed / u64::from(burst);
            let wait = apart.saturating_mul(PATIENCE).min(MOST_WAIT_NS);
            self.until = (apart <= APART_NS).then(|| when.now.saturating_add(wait));
        }
        if !when.is_one_alone {
            self.until = None;
        }
        // What a turn without any waits for is the same as before it.
        self.until = self.until.filter(|until| is_ahead(*until, when.now, MOST_WAIT_NS));
        self.until.map(|until| Gather { slots: GATHERED, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1 << 40;

    /// What is waited for after a turn with `burst` super-frames.
    fn turn(transfer: &mut Transfer, burst: u32, now: u64) -> Option<u64> {
        (0..burst).for_each(|_| transfer.note());
        let gather = transfer.gather(Moment { now, is_one_alone: true });
        assert!(gather.is_none_or(|gather| gather.slots == GATHERED));
        gather.map(|gather| gather.until)
    }

    #[test]
    fn three_more_super_frames_of_a_transfer_are_waited_for() {
        let mut transfer = Transfer::default();
        let mut now = START;
        assert_eq!(turn(&mut transfer, 3, now), None, "the first ones");
        now += 2_000_000;
        assert_eq!(turn(&mut transfer, 2, now), Some(now + 4_000_000));
        now += APART_NS;
        assert_eq!(turn(&mut transfer, 1, now), Some(now + MOST_WAIT_NS));
        now += APART_NS + 1;
        assert_eq!(turn(&mut transfer, 1, now), None, "a slow one");
    }

    #[test]
    fn a_turn_without_super_frames_waits_no_longer_than_the_one_before() {
        let mut transfer = Transfer::default();
        turn(&mut transfer, 1, START);
        let now = START + 1_000_000;
        let until = now + 4_000_000;
        assert_eq!(turn(&mut transfer, 1, now), Some(until));
        assert_eq!(turn(&mut transfer, 0, until - 1), Some(until));
        assert_eq!(turn(&mut transfer, 0, until), None);
        assert_eq!(turn(&mut transfer, 0, until - 1), None, "over");
        turn(&mut transfer, 1, until);
        turn(&mut transfer, 1, until + 1_000_000);
        assert_eq!(turn(&mut transfer, 0, START - 1_000_000_000), None, "the clock was set back");
    }

    #[test]
    fn without_a_transfer_or_beside_others_each_frame_is_told_of() {
        let mut transfer = Transfer::default();
        assert_eq!(turn(&mut transfer, 0, START), None);
        turn(&mut transfer, 1, START);
        transfer.note();
        let beside = Moment { now: START + 2000, is_one_alone: false };
        assert_eq!(transfer.gather(beside), None);
        assert!(turn(&mut transfer, 1, START + 3000).is_some(), "alone again");
    }
}
