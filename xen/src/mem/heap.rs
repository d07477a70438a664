//! The heap of the image: the crate `talc` over one range of memory, with counters.

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub use image::Heap;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(super) use image::claim;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(super) use image::{peak, size, used};

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(super) use host::{peak, size, used};

/// On the host the standard allocator serves everybody, so there is nothing of ours to count.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
mod host {
    pub(in crate::mem) const fn used() -> usize {
        0
    }

    pub(in crate::mem) const fn peak() -> usize {
        0
    }

    pub(in crate::mem) const fn size() -> usize {
        0
    }
}

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod image {
    use core::alloc::{GlobalAlloc, Layout};
    use core::cell::Cell;

    use talc::TalcCell;
    use talc::source::Manual;

    use crate::mem::Global;

    static TALC: Global<TalcCell<Manual>> = Global::new(TalcCell::new(Manual));
    static PEAK: Global<Cell<usize>> = Global::new(Cell::new(0));

    /// The global allocator of the image; `xen::entry!` installs it. Returns null when the heap is full: what can be
    /// refused is allocated with `try_reserve`, everything else ends in a panic that names the size.
    #[derive(Debug)]
    pub struct Heap;

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

    // SAFETY: `TalcCell` implements the contract for the memory it was given; there is one thread (see `Global`), and
    // nothing here is called from within an allocation.
    unsafe impl GlobalAlloc for Heap {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's.
            let pointer = TALC.with(|talc| unsafe { talc.alloc(layout) });
            note_peak();
            pointer
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: the caller's.
            TALC.with(|talc| unsafe { talc.dealloc(pointer, layout) });
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
            // SAFETY: the caller's.
            let pointer = TALC.with(|talc| unsafe { talc.realloc(pointer, layout, new_size) });
            note_peak();
            pointer
        }
    }
}
