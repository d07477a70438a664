//! Whether one client alone has frames: then nobody waits behind it, and more of its frames may come together.
#![forbid(unsafe_code)]

/// A client is alone when no other one has had a frame for so long, in nanoseconds.
const ALONE_NS: u64 = 1_000_000_000;

/// Which client had frames last, and since when no other one had.
#[derive(Debug, Default)]
pub(super) struct Lone {
    slot: usize,
    since: u64,
}

impl Lone {
    /// The client in `slot` has frames.
    pub(super) fn note(&mut self, slot: usize, now: u64) {
        if slot != self.slot {
            *self = Self { slot, since: now };
        }
    }

    pub(super) fn is_alone(&self, now: u64) -> bool {
        now.saturating_sub(self.since) >= ALONE_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_alone_when_no_other_one_had_a_frame_for_a_second() {
        let mut lone = Lone::default();
        for slot in [3, 4, 3] {
            lone.note(slot, 10);
            assert!(!lone.is_alone(9 + ALONE_NS));
        }
        lone.note(3, 9 + ALONE_NS);
        assert!(lone.is_alone(10 + ALONE_NS));
    }
}
