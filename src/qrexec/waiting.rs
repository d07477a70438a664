//! Calls that are refused and wait for a channel on which to hear so.

use alloc::collections::VecDeque;

use super::control::Mode;
use crate::time::Instant;

/// Calls that wait at most. dom0's daemon has 256 ports, so that it cannot have more under way.
const MAX_WAITING: usize = 1024;

/// A call as dom0 ordered it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub(super) domain: u16,
    pub(super) port: u32,
    pub(super) mode: Mode,
    /// The caller has given up by then.
    pub(super) deadline: Instant,
}

/// Those that wait, the oldest first. All memory is taken at the start.
#[derive(Debug)]
pub(super) struct Waiting(VecDeque<Waiter>);

impl Waiting {
    pub(super) fn new() -> Self {
        Self(VecDeque::with_capacity(MAX_WAITING))
    }

    /// Adds a call; false if there is no room.
    pub(super) fn add(&mut self, waiter: Waiter) -> bool {
        let has_room = self.0.len() < MAX_WAITING;
        if has_room {
            self.0.push_back(waiter);
        }
        has_room
    }

    /// The next one.
    pub(super) fn take(&mut self) -> Option<Waiter> {
        self.0.pop_front()
    }

    /// The next one, if its time is over.
    pub(super) fn take_late(&mut self, now: Instant) -> Option<Waiter> {
        self.0.pop_front_if(|waiter| waiter.deadline <= now)
    }

    /// When [`Waiting::take`] has something: at once, or never.
    pub(super) fn next_turn(&self) -> Option<Instant> {
        self.0.front().map(|_| Instant::default())
    }

    /// When [`Waiting::take_late`] has something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.front().map(|waiter| waiter.deadline)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
