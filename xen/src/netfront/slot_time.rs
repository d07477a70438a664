//! How long the backend takes for what it is sent.
#![forbid(unsafe_code)]

/// How long the backend takes for a slot, while it has any.
#[derive(Debug, Default)]
pub(super) struct SlotTime {
    /// Up to when its time is counted; nothing while it has no slots.
    looked: Option<u64>,
    /// Time in which it had slots, and how many it has answered in that.
    busy_ns: u64,
    answered: u32,
    slot_ns: u64,
}

/// Answers of which one measurement is made.
const MEASURED_ANSWERS: u32 = 64;
/// No slot takes longer than that, in nanoseconds: a backend that stands still is another matter.
const LONGEST_SLOT_NS: u64 = 1_000_000;

impl SlotTime {
    /// The backend has slots from now on, if it had none.
    pub(super) fn begin(&mut self, now: u64) {
        self.looked.get_or_insert(now);
    }

    /// The backend has answered `answered` requests, and has `left` more.
    pub(super) fn note(&mut self, answered: u32, left: u32, now: u64) {
        let Some(looked) = self.looked else { return };
        self.looked = (left > 0).then_some(now);
        self.busy_ns = self.busy_ns.saturating_add(now.saturating_sub(looked));
        self.answered = self.answered.saturating_add(answered);
        if self.answered >= MEASURED_ANSWERS {
            let slot_ns = (self.busy_ns / u64::from(self.answered)).min(LONGEST_SLOT_NS);
            // A quarter of each measurement counts.
            let known = if self.slot_ns == 0 { slot_ns } else { self.slot_ns };
            self.slot_ns = known.saturating_mul(3).saturating_add(slot_ns) / 4;
            (self.busy_ns, self.answered) = (0, 0);
        }
    }

    /// In nanoseconds; 0 if nothing was measured yet.
    pub(super) fn slot_ns(&self) -> u64 {
        self.slot_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn time_of_a_slot_is_that_in_which_there_are_some() {
        let mut time = SlotTime::default();
        let mut now = 0;
        for _ in 0..100 {
            // 10 slots in a millisecond, then nothing to do for nine.
            time.begin(now);
            time.begin(now + MS / 2);
            now += MS;
            time.note(10, 0, now);
            now += 9 * MS;
            time.note(0, 0, now);
        }
        assert_eq!(time.slot_ns(), MS / 10);
        // It becomes four times slower, which is believed by and by.
        for _ in 0..8 {
            time.begin(now);
            now += 256 * MS / 10;
            time.note(64, 1, now);
        }
        assert!((3 * MS / 10..=4 * MS / 10).contains(&time.slot_ns()), "{}", time.slot_ns());
        now += 1000 * MS;
        time.note(64, 0, now);
        assert!(time.slot_ns() <= LONGEST_SLOT_NS);
    }
}
