//! Where the arguments of frequent hypercalls lie.
//!
//! Xen reads and writes each piece of them (an operation of a batch, a port number, a result) by a walk through our page tables
//! and its own: some 3,700 instructions for four levels, two in three of what it did for us (counted in the emulated
//! processor). One large page of 1 GiB ends the walk two tables earlier. So the arguments have pages of their own, at a
//! guest-physical address beyond all memory, where nothing else is: a page that large over ordinary memory would make text
//! writable. Where the processor or Xen does not have it, they stay where they were.

use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicUsize, Ordering};

use super::cpu;
use super::real::move_page;
use crate::abi::event_channel::PortOnly;
use crate::abi::grant_table::GrantCopy;
use crate::abi::platform::{MAX_POLLED_PORTS, MulticallEntry, Poll};
use crate::mem::PAGE_SIZE;

/// Events in one hypercall.
pub(super) const MAX_SENDS: usize = 16;
/// Copies in one hypercall.
pub(super) const MAX_COPIES: usize = 512;

/// The arguments. Each is used by one function at a time, which has no reference to it: what ends the domain in the midst of
/// another hypercall may use them again.
#[repr(C)]
pub(super) struct Arguments {
    pub(super) copies: [GrantCopy; MAX_COPIES],
    pub(super) entries: [MulticallEntry; MAX_SENDS + 1],
    pub(super) sends: [PortOnly; MAX_SENDS],
    pub(super) poll: Poll,
    pub(super) ports: [u32; MAX_POLLED_PORTS],
}

/// Pages that they take.
pub(crate) const ARGUMENT_PAGES: usize = size_of::<Arguments>().div_ceil(PAGE_SIZE);

/// Address of the arguments; 0 before there is one.
static PLACE: AtomicUsize = AtomicUsize::new(0);

/// The arguments: mapped for reading and writing, and nobody else's.
///
/// # Panics
/// Before [`settle`].
pub(super) fn place() -> *mut Arguments {
    let address = PLACE.load(Ordering::Relaxed);
    assert!(address != 0, "a hypercall before there is room for its arguments");
    with_exposed_provenance_mut(address)
}

/// Whether pages of 1 GiB can be used (CPUID.80000001:EDX.Page1GB; AMD64 Architecture Programmer's Manual volume 2,
/// section 5.3.5).
pub(crate) fn has_gib_pages() -> bool {
    const PAGE_1GB: u32 = 26;
    let [_, _, _, edx] = cpu::cpuid(0x8000_0001);
    edx & (1 << PAGE_1GB) != 0
}

/// Takes the [`ARGUMENT_PAGES`] pages at `start` for the arguments, and moves them to `gib`, which the page tables map by one
/// large page, if there is one.
///
/// # Safety
/// The pages at `start` are mapped for reading and writing where they are, and nobody else's; so is what is at `gib`.
pub(crate) unsafe fn settle(start: u64, gib: Option<u64>) {
    let offsets = || (0..ARGUMENT_PAGES).map(|page| (page * PAGE_SIZE) as u64);
    let is_moved = |gib: &u64| {
        let moved = offsets().take_while(|at| move_page(start + at, gib + at).is_ok()).count();
        if moved < ARGUMENT_PAGES {
            offsets().take(moved).for_each(|at| {
                let _ = move_page(gib + at, start + at);
            });
        }
        moved == ARGUMENT_PAGES
    };
    let place = gib.filter(is_moved).unwrap_or(start);
    PLACE.store(place as usize, Ordering::Relaxed);
}
