//! A stream of single frames of a client that is alone: more of them are left to come together before the next turn.
//!
//! Each turn costs as much as some frames: a sleep, a hypercall that copies, and events. While one client has had all frames for
//! a while, nobody else waits behind them; so instead of an event for the next frame one is asked for when there are some
//! dozens. A client that sends fewer at a time has an event for each: a lone frame does not wait.
#![forbid(unsafe_code)]

use crate::netif::{Gather, MOST_WAIT_NS, Moment};

/// So many single frames in one turn are a stream of them, if the last turn was not longer ago than so many nanoseconds. Each
/// turn costs as much as some frames, so it is worth while to let more of them come together.
const STREAM: u32 = 32;
const STREAM_NS: u64 = 20_000_000;
/// Frames that are waited for at first.
const FIRST_GATHERED: u32 = 64;
/// Most frames that are waited for: less than half of what the ring holds, so that the sender never has to wait for room.
const MOST_GATHERED: u32 = 112;

/// How many frames of a client's stream are waited for.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Those that were waited for last; 0 if there is no stream.
    gathered: u32,
    is_late: bool,
}

impl Stream {
    /// Whether more frames are waited for, after `burst` of them in this turn, `passed` ns after the last one: only if their sender
    /// is alone, as those of others would wait behind them.
    pub(super) fn gather(&mut self, burst: u32, passed: u64, when: Moment) -> Option<Gather> {
        let is_late = core::mem::take(&mut self.is_late);
        // More each time, until they do not come in time.
        self.gathered = match self.gathered {
            0 if burst >= STREAM => FIRST_GATHERED,
            before if is_late && burst < before => burst / 4 * 3,
            before if burst >= before => before.saturating_add(before / 8).min(MOST_GATHERED),
            before => before,
        };
        if !when.is_one_alone || passed > STREAM_NS || self.gathered < STREAM {
            self.gathered = 0;
            return None;
        }
        let until = when.now.saturating_add(passed.saturating_mul(2).min(MOST_WAIT_NS));
        Some(Gather { slots: self.gathered, until })
    }

    /// They did not come in time.
    pub(super) fn note_late(&mut self) {
        self.is_late = true;
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const TURN_NS: u64 = 3_000_000;

    /// What is waited for after each of `bursts`, a turn apart.
    fn waited(stream: &mut Stream, bursts: &[u32], is_one_alone: bool) -> Vec<Option<u32>> {
        let when = Moment { now: 7, is_one_alone };
        let each = bursts.iter().map(|burst| {
            let gather = stream.gather(*burst, TURN_NS, when);
            assert!(gather.is_none_or(|gather| gather.until == 7 + 2 * TURN_NS));
            gather.map(|gather| gather.slots)
        });
        each.collect()
    }

    #[test]
    fn more_of_a_stream_is_waited_for_each_time() {
        let mut stream = Stream::default();
        assert_eq!(waited(&mut stream, &[STREAM - 1], true), [None], "a burst");
        let frames = waited(&mut stream, &[STREAM, 64, 72, 12, 90, 200, 200, 200, 200], true);
        let wanted = [64, 72, 81, 81, 91, 102, 112, 112, 112];
        assert_eq!(frames, wanted.map(Some), "a rest of a burst changes nothing");
    }

    #[test]
    fn a_stream_that_does_not_come_in_time_is_waited_for_less_and_ends() {
        let mut stream = Stream::default();
        waited(&mut stream, &[100], true);
        stream.note_late();
        assert_eq!(waited(&mut stream, &[60, 45], true), [Some(45), Some(50)]);
        stream.note_late();
        assert_eq!(waited(&mut stream, &[5, 5], true), [None, None]);
    }

    #[test]
    fn who_is_not_alone_or_sends_now_and_then_is_looked_at_for_each_frame() {
        let mut stream = Stream::default();
        waited(&mut stream, &[100], true);
        assert_eq!(waited(&mut stream, &[100], false), [None]);
        let when = Moment { now: 7, is_one_alone: true };
        assert_eq!(stream.gather(100, STREAM_NS + 1, when), None);
        let most = stream.gather(100, STREAM_NS, when).map(|gather| gather.until);
        assert_eq!(most, Some(7 + MOST_WAIT_NS));
    }
}
