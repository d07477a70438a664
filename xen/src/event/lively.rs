//! The ports that a short sleep names: those that were at work since the last long one.
#![forbid(unsafe_code)]

use core::cell::Cell;

use super::{LISTED_PORTS, position};
use crate::abi::EventPort;
use crate::abi::vcpu::EVTCHN_MASK;
use crate::shared::SharedPage;

/// Most ports that are told of in a nap.
const MAX_LIVELY: usize = 6;
/// Ports that had an event since the last sleep that was not a nap.
///
/// Xen reads the numbers of the ports of a sleep one by one, each time through our page tables: on the emulated machine that was
/// a fifth of what it did for us. It needs them only for events that come between our last look and the sleep; once we
/// sleep, an event of any port wakes us. So a firewall at work sleeps a moment with those ports alone that are at work, too:
/// an event of another one that comes in just that instant is heard of when the nap is over.
pub(super) struct Lively {
    count: Cell<usize>,
    /// Whose place the next one takes when there is none left.
    next: Cell<usize>,
    ports: [Cell<EventPort>; MAX_LIVELY],
}

impl Lively {
    pub(super) const fn new() -> Self {
        Self {
            count: Cell::new(0),
            next: Cell::new(0),
            ports: [const { Cell::new(EventPort(0)) }; MAX_LIVELY],
        }
    }

    /// None had an event.
    pub(super) fn forget(&self) {
        self.count.set(0);
    }

    pub(super) fn note(&self, port: EventPort) {
        let count = self.count.get();
        let known = self.ports.get(..count).unwrap_or_default();
        if known.iter().any(|one| one.get() == port) {
            return;
        }
        let at = if count < MAX_LIVELY {
            self.count.set(count.saturating_add(1));
            count
        } else {
            let at = self.next.get();
            self.next.set(at.saturating_add(1) % MAX_LIVELY);
            at
        };
        if let Some(place) = self.ports.get(at) {
            place.set(port);
        }
    }

    /// Those that are not masked.
    pub(super) fn open<'a>(
        &self,
        shared: &SharedPage,
        list: &'a mut [u32; LISTED_PORTS],
    ) -> &'a [u32] {
        let mut count = 0;
        for port in self.ports.iter().take(self.count.get()).map(Cell::get) {
            let (word, bit) = position(port);
            if shared.load_u64(EVTCHN_MASK + word * 8) & bit == 0
                && let Some(place) = list.get_mut(count)
            {
                *place = port.0;
                count += 1;
            }
        }
        list.get(..count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::mask;
    use crate::mem::host;

    #[test]
    fn of_many_ports_at_work_some_are_known() {
        let lively = Lively::new();
        let shared = host::foreign_page();
        for port in (0..9).chain([8]) {
            lively.note(EventPort(port));
        }
        mask(&shared, EventPort(4));
        let mut list = [0; LISTED_PORTS];
        assert_eq!(lively.open(&shared, &mut list), [6, 7, 8, 3, 5]);
    }
}
