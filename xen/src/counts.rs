//! How often Xen was called, and how many bytes it copied for us: what a packet costs besides instructions of our own.
#![forbid(unsafe_code)]

use core::cell::Cell;

use crate::mem::global;

/// A kind of hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Copy,
    Map,
    Unmap,
    Notify,
    Sleep,
    Timer,
    Port,
    Running,
}

const CALLS: usize = 8;

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Hypercalls of all kinds; several may go together in one (`__HYPERVISOR_multicall`).
    pub hypercalls: u64,
    /// Batches of grant copies (`GNTTABOP_copy`), one hypercall each.
    pub copies: u64,
    /// Copies in them.
    pub copy_operations: u64,
    /// Bytes that they were to copy.
    pub copied_bytes: u64,
    /// Calls that map peers' pages: rings and links of devices that come.
    pub maps: u64,
    /// Calls that unmap them.
    pub unmaps: u64,
    /// Events sent to peers (`EVTCHNOP_send`).
    pub notifications: u64,
    /// Times that the domain went to sleep (`SCHEDOP_poll`).
    pub sleeps: u64,
    /// Times that the timer was set.
    pub timers: u64,
    /// Other calls about event channels: opened, closed, asked for.
    pub ports: u64,
    /// Questions for the time that we were running.
    pub running: u64,
}

global! {
    static CALLED: [Cell<u64>; CALLS] = [const { Cell::new(0) }; CALLS];
}
global! {
    static HYPERCALLS: Cell<u64> = Cell::new(0);
}
global! {
    /// Copy operations, and bytes.
    static COPIED: [Cell<u64>; 2] = [const { Cell::new(0) }; 2];
}

/// Counts a hypercall.
pub(crate) fn call(kind: Call) {
    several();
    part(kind);
}

/// Counts a hypercall that does several things.
pub(crate) fn several() {
    HYPERCALLS.with(|count| count.set(count.get().wrapping_add(1)));
}

/// Counts one of the things.
pub(crate) fn part(kind: Call) {
    CALLED.with(|called| {
        if let Some(count) = called.get(kind as usize) {
            count.set(count.get().wrapping_add(1));
        }
    });
}

/// Counts a batch of copies.
pub(crate) fn copy(operations: usize, bytes: u64) {
    call(Call::Copy);
    COPIED.with(|copied| {
        for (sum, more) in copied.iter().zip([operations as u64, bytes]) {
            sum.set(sum.get().wrapping_add(more));
        }
    });
}

/// What was counted.
#[must_use]
pub fn counts() -> Counts {
    let copied = |at: usize| COPIED.with(|copied| copied.get(at).map_or(0, Cell::get));
    let called = |kind: Call| CALLED.with(|called| called.get(kind as usize).map_or(0, Cell::get));
    Counts {
        hypercalls: HYPERCALLS.with(|count| count.get()),
        copies: called(Call::Copy),
        copy_operations: copied(0),
        copied_bytes: copied(1),
        maps: called(Call::Map),
        unmaps: called(Call::Unmap),
        notifications: called(Call::Notify),
        sleeps: called(Call::Sleep),
        timers: called(Call::Timer),
        ports: called(Call::Port),
        running: called(Call::Running),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DomId;
    use crate::event::Channel;
    use crate::fake;
    use crate::grant::{Access, CopyBatch};
    use crate::mem::Page;

    #[test]
    fn a_batch_is_one_call_however_many_copies_it_has() {
        let before = counts();
        let (gref, _) = fake::peer(DomId(3)).grant_page(Access::ReadOnly);
        let mut batch = CopyBatch::with_capacity(2, 2);
        for tag in 0..2 {
            batch.begin(Page::alloc().unwrap(), tag);
            batch.from_peer(DomId(3), gref, 0, 0, 100).unwrap();
        }
        batch.run();
        batch.finish(|_, _, _| {});
        batch.run();
        let after = counts();
        assert_eq!(after.copies - before.copies, 1);
        assert_eq!(after.copy_operations - before.copy_operations, 2);
        assert_eq!(after.copied_bytes - before.copied_bytes, 200);
        assert_eq!(after.hypercalls - before.hypercalls, 1);
    }

    #[test]
    fn events_are_counted() {
        let before = counts();
        let channel = Channel::alloc_unbound(DomId(3)).unwrap();
        channel.notify();
        channel.notify();
        drop(channel);
        let after = counts();
        assert_eq!(after.notifications - before.notifications, 2);
        assert_eq!(after.ports - before.ports, 2);
    }
}
