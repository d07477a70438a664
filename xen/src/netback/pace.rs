//! What a client that sends single frames may take of the busiest place, beside others who have something to do.
//!
//! Round robin is fair between clients that want to send at the same time. It is no help to who receives: frames for him come
//! from a NetVM that is busy with taking frames, and wait for a firewall that is. What such a client takes of both is their
//! time, by the number of its frames. So it owes others some times as long as its frames take; passing time pays that off,
//! and while it owes more than for a few frames its ring is left alone. Super-frames count for nothing here: whoever sends
//! those is slowed down by its own congestion control.
#![forbid(unsafe_code)]

use super::FRAME_COST;
use super::stream::Stream;
use crate::netif::{Gather, Moment};
use crate::time::is_ahead;

/// Single frames that may be taken at once beside others, and for which nobody rests: a call, a game or acknowledgements
/// need no more.
const BURST: u32 = 16;
/// Others are at work if they have so much of what the client itself has, as a part: beside tiny datagrams without end a ping is
/// work for some 100 ms. A queue in the NetVM that those fill while nobody is at work is what the next ping waits behind.
const OTHERS_SHARE: u64 = 4096;
/// The part of the time that single frames of one client may take: one of so many. Others pay more for them than the busiest
/// place shows, as a NetVM is not done with a frame when it has answered it.
const PART: u64 = 3;
/// Work counts half after so long, in nanoseconds.
const HALF_LIFE_NS: u64 = 16_000_000;
/// Longest rest, in nanoseconds.
const MOST_REST_NS: u64 = 50_000_000;
/// The most that a client owes, in nanoseconds.
const MOST_OWED_NS: u64 = 2 * MOST_REST_NS;

/// The work of one client, as far as it is recent.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Single frames taken in this turn.
    burst: u32,
    stream: Stream,
    /// Bytes in both directions, each frame for some more.
    recent: u64,
    /// Others are at work, too.
    is_beside: bool,
    /// What is owed to others, in nanoseconds, at the time `looked`.
    owed: u64,
    looked: u64,
    rests_until: Option<u64>,
}

impl Pace {
    /// A frame of so many bytes was taken from the client, or is on its way to it.
    pub(super) fn note(&mut self, bytes: u64) {
        self.recent = self.recent.saturating_add(bytes).saturating_add(FRAME_COST.into());
    }

    /// The frame that was taken is a single one.
    pub(super) fn note_single(&mut self) {
        self.burst = self.burst.saturating_add(1);
    }

    pub(super) fn recent(&self) -> u64 {
        self.recent
    }

    /// Whether nothing more is taken from the client for now.
    pub(super) fn rests(&self) -> bool {
        self.rests_until.is_some() || (self.is_beside && self.burst >= BURST)
    }

    /// Whether more frames of a stream are waited for.
    pub(super) fn gather(&mut self, when: Moment) -> Option<Gather> {
        self.stream.gather(self.burst, when.now.saturating_sub(self.looked), when)
    }

    /// They did not come in time.
    pub(super) fn note_late(&mut self) {
        self.stream.note_late();
    }

    /// Ends a rest that is over at `now`, or that is too long for one: then the clock was set back.
    pub(super) fn wake_if_due(&mut self, now: u64) {
        self.rests_until = self.rests_until.filter(|until| is_ahead(*until, now, MOST_REST_NS));
    }

    /// End of its rest.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.rests_until
    }

    /// Whether others, which had `all` of the recent work together with this one, are at work, too.
    pub(super) fn look_beside(&mut self, all: u64) {
        let others = all.saturating_sub(self.recent);
        self.is_beside = others > 0 && others >= self.recent / OTHERS_SHARE;
    }

    /// At the end of a turn that began at `begun`, in which a frame took `frame_ns`: what the client sent is owed if others have
    /// work, too; `all` is everybody's recent work.
    pub(super) fn end_turn(&mut self, begun: u64, frame_ns: u64, all: u64) {
        let burst = core::mem::take(&mut self.burst);
        let passed = begun.saturating_sub(core::mem::replace(&mut self.looked, begun));
        self.owed = self.owed.saturating_sub(passed);
        self.look_beside(all);
        if !self.is_beside {
            self.owed = 0;
            return;
        }
        if burst == 0 {
            return;
        }
        let price = frame_ns.saturating_mul(PART);
        let owed = self.owed.saturating_add(price.saturating_mul(burst.into()));
        self.owed = owed.min(MOST_OWED_NS);
        let most = price.saturating_mul(BURST.into()).min(MOST_REST_NS);
        if price > 0 && self.owed >= most {
            self.rests_until = Some(begun.saturating_add(self.owed.min(MOST_REST_NS)));
        }
    }

    fn age(&mut self) {
        self.recent /= 2;
    }
}

/// The recent work of all clients together.
#[derive(Debug, Default)]
pub(super) struct Ageing {
    /// When it was counted half last.
    since: u64,
    all: u64,
}

impl Ageing {
    /// So much more of it.
    pub(super) fn note(&mut self, work: u64) {
        self.all = self.all.saturating_add(work);
    }

    pub(super) fn all(&self) -> u64 {
        self.all
    }

    /// Lets the work of all clients age if it is time, and forgets that of those who are gone.
    pub(super) fn apply<'a>(&mut self, now: u64, paces: impl Iterator<Item = &'a mut Pace>) {
        if now.saturating_sub(self.since) < HALF_LIFE_NS {
            return;
        }
        (self.since, self.all) = (now, 0);
        for pace in paces {
            pace.age();
            self.all = self.all.saturating_add(pace.recent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_NS: u64 = 100_000;

    fn burst(frames: u32) -> Pace {
        let mut pace = Pace::default();
        for _ in 0..frames {
            pace.note(60);
            pace.note_single();
        }
        pace
    }

    #[test]
    fn a_burst_beside_others_is_followed_by_a_rest() {
        let mut pace = burst(40);
        let all = 2 * pace.recent();
        pace.end_turn(1_000, FRAME_NS, all);
        let end = 1_000 + 40 * FRAME_NS * PART;
        assert_eq!(pace.deadline(), Some(end));
        pace.wake_if_due(end - 1);
        assert!(pace.rests());
        pace.wake_if_due(end);
        assert_eq!((pace.rests(), pace.deadline()), (false, None));
    }

    #[test]
    fn who_is_alone_or_sends_little_does_not_rest() {
        for (frames, others) in
            [(40, 0), (40, 40 * (60 + 1024) / OTHERS_SHARE - 1), (15, 1 << 40), (0, 1 << 40)]
        {
            let mut pace = burst(frames);
            let all = others + pace.recent();
            pace.end_turn(0, FRAME_NS, all);
            assert!(!pace.rests(), "{frames} beside {others}");
        }
    }

    #[test]
    fn beside_others_no_more_is_taken_at_once_than_a_burst() {
        let mut pace = burst(1);
        pace.end_turn(0, FRAME_NS, 1 << 40);
        for _ in 1..BURST {
            pace.note_single();
            assert!(!pace.rests());
        }
        pace.note_single();
        assert!(pace.rests());
        pace.end_turn(0, FRAME_NS, 0);
        assert!(!pace.rests(), "alone again, nothing is owed");
        pace.burst = 256;
        assert!(!pace.rests());
    }

    /// Whatever the size of its bursts, a client with single frames has its part of the time and no more.
    #[test]
    fn who_sends_a_little_less_than_a_burst_each_time_owes_it_as_well() {
        for burst in 1..=BURST {
            let (mut pace, mut now, mut taken) = (Pace::default(), 0, 0);
            while now < 10_000_000_000 {
                pace.wake_if_due(now);
                if !pace.rests() {
                    pace.burst = burst;
                    taken += u64::from(burst);
                    pace.end_turn(now, FRAME_NS, 1 << 40);
                }
                now += FRAME_NS;
            }
            let most = now / (PART * FRAME_NS);
            assert!(
                (most - 1..=most + u64::from(2 * BURST)).contains(&taken),
                "{burst}: {taken} of {most}"
            );
        }
    }

    #[test]
    fn who_pings_now_and_then_is_at_work_all_the_time() {
        let (mut flood, mut other) = (Pace::default(), Pace::default());
        let mut ageing = Ageing::default();
        for ms in 0..2000 {
            // A question and its answer, 20 of each in a second; 5,000 datagrams.
            if ms % 50 < 2 {
                other.note(98);
            }
            (0..5).for_each(|_| flood.note(64));
            ageing.all = flood.recent() + other.recent();
            flood.look_beside(ageing.all());
            assert!(flood.is_beside, "{ms}");
            ageing.apply(ms * 1_000_000, [&mut flood, &mut other].into_iter());
        }
        for ms in 2000..2500 {
            (0..5).for_each(|_| flood.note(64));
            ageing.all = flood.recent() + other.recent();
            ageing.apply(ms * 1_000_000, [&mut flood, &mut other].into_iter());
        }
        flood.look_beside(ageing.all());
        assert!(!flood.is_beside, "no longer than that");
    }

    #[test]
    fn what_is_owed_is_paid_off_by_time() {
        let mut pace = Pace::default();
        for turn in 1..100 {
            pace.burst = 10;
            pace.end_turn(turn * 10 * FRAME_NS * PART, FRAME_NS, 1 << 40);
            assert!(!pace.rests());
        }
    }

    #[test]
    fn a_rest_has_an_end_whatever_a_frame_takes() {
        let mut pace = burst(256);
        pace.end_turn(5, u64::MAX, u64::MAX);
        assert_eq!(pace.deadline(), Some(5 + MOST_REST_NS));
    }

    #[test]
    fn a_clock_that_is_set_back_wakes_everybody() {
        let mut pace = burst(40);
        pace.end_turn(1 << 40, FRAME_NS, u64::MAX);
        pace.wake_if_due(1 << 40);
        assert!(pace.rests());
        pace.wake_if_due(5);
        assert!(!pace.rests());
    }

    #[test]
    fn work_is_forgotten() {
        let mut paces = [burst(40), burst(20)];
        let mut ageing = Ageing::default();
        ageing.note(paces.iter().map(Pace::recent).sum());
        for turn in 1..=40 {
            let before = ageing.all();
            ageing.apply(turn * HALF_LIFE_NS, paces.iter_mut());
            ageing.apply(turn * HALF_LIFE_NS + 1, paces.iter_mut());
            assert_eq!(ageing.all(), paces.iter().map(Pace::recent).sum());
            assert!(before / 2 - ageing.all() <= 1);
        }
        assert_eq!(ageing.all(), 0);
    }
}
