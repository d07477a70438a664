//! Events that wait for the end of a turn, so that one hypercall sends all of them.
#![forbid(unsafe_code)]

use core::cell::Cell;

use crate::abi::EventPort;

/// Most events that wait for each other.
const MAX_HELD: usize = 16;

/// Events that wait for each other, each port once.
pub(super) struct Held {
    is_on: Cell<bool>,
    count: Cell<usize>,
    ports: [Cell<EventPort>; MAX_HELD],
}

impl Held {
    pub(super) const fn new() -> Self {
        Self {
            is_on: Cell::new(false),
            count: Cell::new(0),
            ports: [const { Cell::new(EventPort(0)) }; MAX_HELD],
        }
    }

    /// From now on events are taken up.
    pub(super) fn begin(&self) {
        self.is_on.set(true);
    }

    /// Whether the event was taken: it is sent later.
    pub(super) fn take_up(&self, port: EventPort) -> bool {
        let count = self.count.get();
        let known = self.ports.get(..count).unwrap_or_default();
        if !self.is_on.get() || known.iter().any(|held| held.get() == port) {
            return self.is_on.get();
        }
        let Some(place) = self.ports.get(count) else { return false };
        place.set(port);
        self.count.set(count.saturating_add(1));
        true
    }

    /// Lets go of the port. Whether its event was held.
    pub(super) fn take(&self, port: EventPort) -> bool {
        let last = self.count.get().saturating_sub(1);
        let known = self.ports.get(..self.count.get()).unwrap_or_default();
        if let Some(place) = known.iter().find(|held| held.get() == port)
            && let Some(moved) = self.ports.get(last)
        {
            place.set(moved.get());
            self.count.set(last);
            return true;
        }
        false
    }

    /// Ends it: the ports, and how many they are.
    pub(super) fn end(&self) -> ([EventPort; MAX_HELD], usize) {
        self.is_on.set(false);
        (
            core::array::from_fn(|at| self.ports.get(at).map_or(EventPort(0), Cell::get)),
            self.count.take(),
        )
    }
}
