//! Budgets of the heap, and what is told of memory.

use core::fmt;

use xen::mem::ledger::{self, Part, RESERVE_BYTES};
use xen::{event, grant, mem, xenstore};

use crate::event_loop::machine::{Effort, MAX_PARTS, MemoryUse, PartUse};

/// Of what the tables leave, in 64ths: 128 vifs, the store of QubesDB as large as it may become, twice, and rules. They add
/// up to less than the whole, for the gaps between blocks.
const SHARES: [(Part, usize); 7] = [
    (Part::Store, 2),
    (Part::Netback, 18),
    (Part::Netfront, 1),
    (Part::Links, 1),
    (Part::Database, 14),
    (Part::Rules, 20),
    (Part::Calls, 1),
];
const WHOLE: usize = 64;
/// So much is left for the gaps.
const MOST: usize = 60;
const _: () = assert!(sum(&SHARES) <= MOST);

const fn sum(shares: &[(Part, usize)]) -> usize {
    match shares {
        [] => 0,
        [(_, share), rest @ ..] => *share + sum(rest),
    }
}

/// Least budget, in bytes, however small the domain is.
const LEAST_BYTES: usize = 64 * 1024;

/// Sets the budgets, when all tables are there. Without a heap of a known size there are none.
pub(super) fn set_budgets() {
    let left = mem::heap_size().saturating_sub(mem::heap_used()).saturating_sub(RESERVE_BYTES);
    if mem::heap_size() == 0 {
        return;
    }
    for (part, share) in SHARES {
        let bytes = (left / WHOLE).saturating_mul(share).max(LEAST_BYTES);
        ledger::set_budget(part, bytes);
    }
}

/// The budgets in force, in KiB, as the console tells them at boot.
#[derive(Debug)]
pub struct Budgets;

impl fmt::Display for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in Part::ALL {
            let budget = ledger::usage(part).budget;
            if budget < usize::MAX {
                write!(f, "{}={} ", part.name(), budget / 1024)?;
            }
        }
        write!(f, "reserve={}", RESERVE_BYTES / 1024)
    }
}

/// What the hypervisor was asked for; `batches` as in [`Effort`].
pub(super) fn effort(batches: [u64; 4], store_refusals: u64) -> Effort {
    let counts = xen::counts::counts();
    Effort {
        hypercalls: counts.hypercalls,
        copies: counts.copies,
        copy_operations: counts.copy_operations,
        copied_bytes: counts.copied_bytes,
        notifications: counts.notifications,
        sleeps: counts.sleeps,
        timers: counts.timers,
        batches,
        allocations: ledger::usage(Part::Packets).count,
        store_refusals,
        limited_vifs: 0,
    }
}

/// What is in use.
pub(super) fn usage(store: &xenstore::Client) -> MemoryUse {
    let pages = mem::total_pages();
    let operations = ledger::operations();
    let mut parts = [PartUse::default(); MAX_PARTS];
    for (place, part) in parts.iter_mut().zip(Part::ALL) {
        let has = ledger::usage(part);
        *place = PartUse {
            name: part.name(),
            live: has.live,
            peak: has.peak,
            budget: has.budget,
            blocks: has.blocks,
            count: has.count,
            failures: has.failures,
        };
    }
    MemoryUse {
        heap_used: mem::heap_used(),
        heap_peak: mem::heap_peak(),
        heap_size: mem::heap_size(),
        pages_used: pages.saturating_sub(mem::free_pages()),
        pages,
        grants: grant::grants_in_use(),
        quarantined: grant::quarantined(),
        ports: event::open_channels(),
        watches: store.watches(),
        largest_operation: operations.largest,
        operations_refused: operations.refused,
        leaks: operations.leaks,
        parts,
    }
}

const _: () = assert!(ledger::PARTS <= MAX_PARTS);
