//! The heap: blocks with a head that says who has them, out of one arena.
//!
//! In the image the arena is the crate `talc` over one range of memory. On the host it is the standard allocator behind a
//! limit, for programs that install [`Heap`] to test what happens when memory runs out; others do without.

use core::alloc::{GlobalAlloc, Layout};

use super::ledger::{self, Account, Admission};
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
use host as arena;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
use image as arena;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(super) use image::claim;

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub mod inject;

pub(super) use arena::{peak, size, used};

/// Bytes of a block's head: part and owner, right before what the program gets. A larger alignment makes it longer.
const HEAD_BYTES: usize = 8;

/// The global allocator of the image, which `xen::entry!` installs. Returns null when the heap, or the budget of who
/// asks, is used up: what can be refused is allocated with `try_reserve`; for the rest see [`ledger`](super::ledger).
#[derive(Debug)]
pub struct Heap;

/// Where a block's head is, and the block with it.
fn with_head(layout: Layout) -> Option<(Layout, usize)> {
    let align = layout.align().max(HEAD_BYTES);
    let size = layout.size().checked_add(align)?;
    Some((Layout::from_size_align(size, align).ok()?, align))
}

/// Writes the head.
///
/// # Safety
/// `base` must be the start of a block of at least `head` writable bytes; `head` is at least [`HEAD_BYTES`].
unsafe fn sign(base: *mut u8, head: usize, account: Account) -> *mut u8 {
    // SAFETY: the two bytes lie within the head, which is at least eight bytes long; the result is within the block or
    // one past its end.
    unsafe {
        let block = base.add(head);
        block.sub(HEAD_BYTES).write(account.part);
        block.sub(HEAD_BYTES - 1).write(account.owner);
        block
    }
}

/// Reads the head.
///
/// # Safety
/// `block` must come from [`sign`].
unsafe fn signed(block: *mut u8) -> Account {
    // SAFETY: `sign` wrote both bytes, and nobody else writes before a block.
    unsafe {
        Account { part: block.sub(HEAD_BYTES).read(), owner: block.sub(HEAD_BYTES - 1).read() }
    }
}

/// Whether the reserve is held back for operations; tries to get it back if it was used.
pub(super) fn reserve() -> bool {
    arena::hold_reserve()
}

/// Judges a request, and gives up the reserve where it has to be met.
fn admitted(account: Account, bytes: usize, mut take: impl FnMut() -> *mut u8) -> *mut u8 {
    let admission = ledger::admit(account, bytes);
    let mut base = core::ptr::null_mut();
    if admission != Admission::Refused && !arena::is_to_fail(account, admission) {
        base = take();
    }
    if base.is_null() && admission == Admission::Sure && arena::release_reserve() {
        ledger::note_reserve_used();
        base = take();
    }
    if base.is_null() {
        ledger::note_failure(account);
    }
    base
}

// SAFETY: every block lies behind its head within memory that the arena gave out for both, at a multiple of its
// alignment (the head is as long as the alignment); the arena upholds the contract for the whole. There is one thread in
// the image, state of the host is its thread's own, and nothing here allocates on the way.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((whole, head)) = with_head(layout) else { return core::ptr::null_mut() };
        let account = ledger::current();
        // SAFETY: the layout has a size above zero.
        let base = admitted(account, whole.size(), || unsafe { arena::take(account, whole) });
        if base.is_null() {
            return base;
        }
        ledger::book(account, whole.size());
        // SAFETY: the arena's block is `head` bytes longer than what was asked for.
        unsafe { sign(base, head, account) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((whole, head)) = with_head(layout) else { return };
        // SAFETY: the caller hands back what `alloc` gave out with this layout, so the head is there, and the whole was
        // the arena's.
        unsafe {
            let account = signed(block);
            ledger::unbook(account, whole.size());
            arena::give(account, block.sub(head), whole);
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let new = Layout::from_size_align(new_size, layout.align()).ok().and_then(with_head);
        let (Some((old, head)), Some((new, _))) = (with_head(layout), new) else {
            return core::ptr::null_mut();
        };
        // SAFETY: as in `dealloc`.
        let (account, base) = unsafe { (signed(block), block.sub(head)) };
        // What it has already is no longer counted against it.
        ledger::unbook_for_resize(account, old.size());
        // SAFETY: the whole was the arena's; the new size is above zero.
        let moved = admitted(account, new.size(), || unsafe {
            arena::resize(account, base, old, new.size())
        });
        ledger::book_resized(account, if moved.is_null() { old.size() } else { new.size() });
        if moved.is_null() {
            return moved;
        }
        // SAFETY: the head moved with the block, whose alignment and so whose head's length is the same.
        unsafe { moved.add(head) }
    }
}

/// The standard allocator behind a limit, of this thread. What is booked on the start is not ours and has none.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
mod host {
    use core::alloc::{GlobalAlloc, Layout};
    use std::alloc::System;

    use super::{Account, Admission, inject};
    use crate::mem::ledger::Part;

    fn is_ours(account: Account) -> bool {
        account.part != Part::Tables as u8
    }

    pub(in crate::mem) fn used() -> usize {
        inject::used()
    }

    pub(in crate::mem) fn peak() -> usize {
        inject::peak()
    }

    pub(in crate::mem) fn size() -> usize {
        inject::limit().unwrap_or(0)
    }

    pub(super) fn is_to_fail(account: Account, admission: Admission) -> bool {
        is_ours(account) && admission == Admission::Fallible && inject::fails_request()
    }

    /// # Safety
    /// As [`GlobalAlloc::alloc`].
    pub(super) unsafe fn take(account: Account, layout: Layout) -> *mut u8 {
        if is_ours(account) && !inject::take(layout.size()) {
            return core::ptr::null_mut();
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    /// # Safety
    /// As [`GlobalAlloc::dealloc`].
    pub(super) unsafe fn give(account: Account, base: *mut u8, layout: Layout) {
        if is_ours(account) {
            inject::give(layout.size());
        }
        // SAFETY: the caller's.
        unsafe { System.dealloc(base, layout) }
    }

    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    pub(super) unsafe fn resize(
        account: Account,
        base: *mut u8,
        old: Layout,
        new_size: usize,
    ) -> *mut u8 {
        if is_ours(account) {
            inject::give(old.size());
            if !inject::take(new_size) {
                // It stays as it is, whatever the limit.
                inject::keep(old.size());
                return core::ptr::null_mut();
            }
        }
        // SAFETY: the caller's.
        unsafe { System.realloc(base, old, new_size) }
    }

    pub(super) fn hold_reserve() -> bool {
        inject::hold_reserve()
    }

    pub(super) fn release_reserve() -> bool {
        inject::release_reserve()
    }
}

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod image {
    use core::alloc::{GlobalAlloc, Layout};
    use core::cell::Cell;
    use core::ptr::NonNull;

    use talc::TalcCell;
    use talc::source::Manual;

    use super::{Account, Admission};
    use crate::mem::Global;
    use crate::mem::ledger::RESERVE_BYTES;

    static TALC: Global<TalcCell<Manual>> = Global::new(TalcCell::new(Manual));
    static PEAK: Global<Cell<usize>> = Global::new(Cell::new(0));
    /// The block that is held back.
    static RESERVE: Global<Cell<Option<NonNull<u8>>>> = Global::new(Cell::new(None));

    const RESERVE_LAYOUT: Layout = match Layout::from_size_align(RESERVE_BYTES, 16) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    };

    /// Gives the heap its memory.
    ///
    /// # Safety
    /// The range must be mapped writable memory that nothing else uses, ever.
    pub(in crate::mem) unsafe fn claim(base: *mut u8, bytes: usize) -> bool {
        // SAFETY: the caller's.
        TALC.with(|talc| unsafe { talc.claim(base, bytes) }.is_some())
    }

    pub(in crate::mem) fn used() -> usize {
        TALC.with(|talc| talc.counters().allocated_bytes)
    }

    pub(in crate::mem) fn peak() -> usize {
        PEAK.with(Cell::get)
    }

    pub(in crate::mem) fn size() -> usize {
        TALC.with(|talc| talc.counters().claimed_bytes)
    }

    fn note_peak() {
        PEAK.with(|peak| peak.set(peak.get().max(used())));
    }

    pub(super) const fn is_to_fail(_: Account, _: Admission) -> bool {
        false
    }

    /// # Safety
    /// As [`GlobalAlloc::alloc`].
    pub(super) unsafe fn take(_: Account, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        let base = TALC.with(|talc| unsafe { talc.alloc(layout) });
        note_peak();
        base
    }

    /// # Safety
    /// As [`GlobalAlloc::dealloc`].
    pub(super) unsafe fn give(_: Account, base: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        TALC.with(|talc| unsafe { talc.dealloc(base, layout) });
    }

    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    pub(super) unsafe fn resize(
        _: Account,
        base: *mut u8,
        old: Layout,
        new_size: usize,
    ) -> *mut u8 {
        // SAFETY: the caller's.
        let moved = TALC.with(|talc| unsafe { talc.realloc(base, old, new_size) });
        note_peak();
        moved
    }

    pub(super) fn hold_reserve() -> bool {
        RESERVE.with(|reserve| {
            if reserve.get().is_none() {
                // SAFETY: the layout has a size above zero.
                let block = TALC.with(|talc| unsafe { talc.alloc(RESERVE_LAYOUT) });
                reserve.set(NonNull::new(block));
            }
            reserve.get().is_some()
        })
    }

    pub(super) fn release_reserve() -> bool {
        let Some(block) = RESERVE.with(Cell::take) else { return false };
        // SAFETY: `hold_reserve` took it with this layout, and nobody has used it.
        TALC.with(|talc| unsafe { talc.dealloc(block.as_ptr(), RESERVE_LAYOUT) });
        true
    }
}
