//! When a client is told that its frames were taken.
//!
//! An event costs a hypercall here and an interrupt there. A client that receives sends an acknowledgement for every other
//! frame, and asks to be told of each one's answer. Nobody waits for that: so it goes with the next event for the client, which
//! its next frame calls for, or with the answers to some more of them. What a sender may wait for, the answer to a longer frame,
//! is told at once if it asks; and all of it after a moment.
#![forbid(unsafe_code)]

use crate::time::is_ahead;

/// Longest frame whose answer nobody waits for, in bytes: an acknowledgement with all options that TCP has room for.
const SMALL: u16 = 14 + 40 + 60;
/// Answers to so many of them are told of at once: a socket's buffer, or the ring, may be full of such frames.
const MOST: u32 = 16;
/// Longest time to wait for another reason, in nanoseconds.
const MOST_WAIT_NS: u64 = 10_000_000;

/// The event that is owed to a client.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Answers since the last event.
    small: u32,
    has_large: bool,
    /// An event was asked for; it comes then, in nanoseconds, at the latest.
    until: Option<u64>,
}

impl Owed {
    /// A frame of so many bytes was answered.
    pub(super) fn note_answer(&mut self, len: u16) {
        self.has_large |= len > SMALL;
        self.small = self.small.saturating_add(1);
    }

    /// Answers were published, and the client asked for an event for those to its frames (`is_sent`), for frames to it
    /// (`is_received`): whether it gets one now.
    pub(super) fn settle(&mut self, is_sent: bool, is_received: bool, now: u64) -> bool {
        let is_asked = is_sent || self.until.is_some();
        let is_told =
            is_received || (is_asked && (self.has_large || self.small >= MOST || self.is_due(now)));
        if is_told {
            *self = Self::default();
        } else if is_asked {
            self.until.get_or_insert(now.saturating_add(MOST_WAIT_NS));
        }
        is_told
    }

    /// Whether the event has waited long enough, or the clock was set back.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.until.is_some_and(|until| !is_ahead(until, now, MOST_WAIT_NS))
    }

    /// When it comes at the latest.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1 << 40;

    fn answered(lens: &[u16]) -> Owed {
        let mut owed = Owed::default();
        lens.iter().for_each(|len| owed.note_answer(*len));
        owed
    }

    #[test]
    fn answers_to_small_frames_go_with_the_next_event() {
        let mut owed = answered(&[66, 66]);
        assert!(!owed.settle(true, false, NOW));
        assert_eq!(owed.deadline(), Some(NOW + MOST_WAIT_NS));
        owed.note_answer(SMALL);
        assert!(!owed.settle(false, false, NOW + 1), "its ring does not ask twice");
        assert_eq!(owed.deadline(), Some(NOW + MOST_WAIT_NS), "no longer than from the first on");
        assert!(owed.settle(false, true, NOW + 2));
        assert_eq!((owed.deadline(), owed.is_due(u64::MAX)), (None, false));
    }

    #[test]
    fn after_a_moment_it_comes_by_itself() {
        let mut owed = answered(&[60]);
        assert!(!owed.settle(true, false, NOW));
        for (now, is_due) in [(NOW + 1, false), (NOW + MOST_WAIT_NS, true), (NOW - 1, true)] {
            assert_eq!(owed.is_due(now), is_due, "{now}");
        }
        assert!(owed.settle(false, false, NOW + MOST_WAIT_NS));
        assert_eq!(owed.deadline(), None);
    }

    #[test]
    fn payload_and_many_answers_are_told_of_at_once() {
        assert!(answered(&[SMALL + 1]).settle(true, false, NOW));
        assert!(answered(&[60; MOST as usize]).settle(true, false, NOW));
        let mut owed = answered(&[60; MOST as usize - 1]);
        assert!(!owed.settle(true, false, NOW));
        owed.note_answer(1514);
        assert!(owed.settle(false, false, NOW), "what is owed goes with it");
    }

    #[test]
    fn who_does_not_ask_is_not_told_and_who_asks_later_hears_of_all() {
        let mut owed = answered(&[60, 1514]);
        assert!(!owed.settle(false, false, NOW));
        assert_eq!(owed.deadline(), None);
        owed.note_answer(60);
        assert!(owed.settle(true, false, NOW), "a ring asks once for several answers");
        owed.note_answer(60);
        assert!(!owed.settle(true, false, NOW), "told of them before");
    }
}
