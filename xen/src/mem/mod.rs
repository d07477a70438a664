//! Pages and their pool, and the state cell that the modules around it use.
//!
//! A [`Page`] is private memory of ours. It becomes visible to another domain only by moving into `grant::grant`, or
//! for the time of one hypercall through `grant::CopyBatch`. The pool's memory comes from the start-info map in the
//! image and from the host's heap in the fake; allocation and release are O(1).
#![expect(unsafe_code, reason = "hands out page-sized pieces of raw memory")]

#[cfg(any(test, all(feature = "image", not(feature = "fake"))))]
mod functions;
mod global;
mod heap;
pub mod ledger;
mod pool;

use core::cell::RefCell;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use crate::abi::Gfn;
use crate::shared::SharedPage;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(crate) use global::Global;
pub(crate) use global::global;
pub use heap::Heap;
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub use heap::inject;
use pool::{FreePage, Pool};

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

global! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::empty());
}

/// One private page of 4096 bytes, page-aligned; goes back to the pool on drop.
///
/// Holding it proves that no other domain can reach the page. Bytes at and above the dirty mark are known to be zero,
/// so that [`Page::clear_from`] need not touch the whole page.
#[derive(Debug)]
pub struct Page {
    base: NonNull<u8>,
    dirty: u16,
}

impl Page {
    /// Takes a zeroed page; `None` when the pool is exhausted.
    pub fn alloc() -> Option<Page> {
        let mut page = Page::alloc_recycled()?;
        page.clear_from(0);
        Some(page)
    }

    /// Takes a page that still holds what its last owner wrote, with the dirty mark kept: for packet buffers,
    /// which are overwritten up to a length and then cleared from there (Xen Security Advisory 403).
    pub fn alloc_recycled() -> Option<Page> {
        let free = with_pool(|pool| pool.take())?;
        Some(Page { base: free.base(), dirty: free.dirty() })
    }

    /// The whole page.
    pub fn bytes(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: `base` is the start of a page that the pool gave to this value alone; it stays allocated until
        // drop, and only `&mut self` methods write it.
        unsafe { self.base.cast::<[u8; PAGE_SIZE]>().as_ref() }
    }

    /// The whole page, for writing; raises the dirty mark to the end. See [`Page::prefix_mut`].
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        self.dirty = PAGE_SIZE as u16;
        // SAFETY: as in `bytes`, and `&mut self` excludes any other reference.
        unsafe { self.base.cast::<[u8; PAGE_SIZE]>().as_mut() }
    }

    /// The first `len` bytes (at most 4096) for writing; the dirty mark rises to `len` only.
    pub fn prefix_mut(&mut self, len: usize) -> &mut [u8] {
        let mark = len.min(PAGE_SIZE);
        self.dirty = self.dirty.max(mark as u16);
        // SAFETY: as in `bytes_mut`, and `mark` is at most the page's length.
        unsafe { core::slice::from_raw_parts_mut(self.base.as_ptr(), mark) }
    }

    /// Zeroes everything from `offset` to the end that may not be zero yet.
    ///
    /// To be called with the packet's end before the page is granted: the peer sees all 4096 bytes.
    pub fn clear_from(&mut self, offset: usize) {
        let dirty = usize::from(self.dirty);
        if offset < dirty {
            if let Some(stale) = self.bytes_mut().get_mut(offset..dirty) {
                stale.fill(0);
            }
            self.dirty = offset as u16;
        }
    }

    /// Frame number, for grant entries and grant copies. Fits 32 bits, as entries of grant table version 1 need: the
    /// image's memory ends far below 16 TiB, and on the host only the pool's own frames are ever looked up.
    pub fn gfn(&self) -> Gfn {
        Gfn::of_address(self.base.addr().get())
    }

    /// Records that somebody else (Xen in a grant copy, a peer with write access) wrote up to `end`.
    pub(crate) fn mark_dirty_to(&mut self, end: usize) {
        self.dirty = self.dirty.max(end.min(PAGE_SIZE) as u16);
    }

    /// Makes the page shared memory; as long as it is, nothing can reach it as private memory.
    pub(crate) fn lend(self) -> Lent {
        // SAFETY: the page stays allocated and without references as long as `Lent` owns it.
        let view = unsafe { SharedPage::from_raw(self.base) };
        Lent { page: self, view }
    }
}

/// A page of ours while somebody else may access it.
#[derive(Debug)]
pub(crate) struct Lent {
    page: Page,
    view: SharedPage,
}

impl Lent {
    pub(crate) fn view(&self) -> &SharedPage {
        &self.view
    }

    pub(crate) fn gfn(&self) -> Gfn {
        self.page.gfn()
    }

    /// The page as private memory again, once nobody else can access it.
    pub(crate) fn reclaim(self) -> Page {
        self.page
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        with_pool(|pool| pool.give_back(FreePage::new(self.base, self.dirty)));
    }
}

/// A page that must never be used again: neither its memory nor its frame goes back to the pool.
pub(crate) fn leak(page: Lent) {
    let _leaked = ManuallyDrop::new(page);
}

/// Pages that can be allocated now.
pub fn free_pages() -> usize {
    with_pool(|pool| pool.free())
}

/// Pages that the pool manages.
pub fn total_pages() -> usize {
    with_pool(|pool| pool.total())
}

/// Bytes of the heap that are allocated now. On the host: those of programs that install [`Heap`], without what is booked
/// on the start.
pub fn heap_used() -> usize {
    heap::used()
}

/// Most bytes of the heap that were allocated at one time.
pub fn heap_peak() -> usize {
    heap::peak()
}

/// Bytes that the heap manages, overhead included; on the host its limit, or 0.
pub fn heap_size() -> usize {
    heap::size()
}

/// Gives the heap and then the pool their memory, once, at start. `false`: their bookkeeping did not fit.
///
/// # Safety
/// All ranges (address, bytes; whole pages) must be mapped writable memory that nothing else uses, ever.
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(crate) unsafe fn initialise(heap: (u64, u64), pool: impl Iterator<Item = (u64, u64)>) -> bool {
    let pointer = |address: u64| core::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: the caller's.
    if !unsafe { heap::claim(pointer(heap.0), heap.1 as usize) } {
        return false;
    }
    let mut ranges = pool.filter(|(_, bytes)| *bytes > 0);
    ranges.all(|(address, bytes)| {
        let base = NonNull::new(pointer(address));
        base.is_some_and(|base| with_pool(|pool| pool.add_range(base, bytes as usize / PAGE_SIZE)))
    })
}

fn with_pool<R>(action: impl FnOnce(&mut Pool) -> R) -> R {
    POOL.with(|pool| {
        // On the host the pool keeps books of its own.
        #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
        let _booked = ledger::enter(ledger::Part::Tables);
        let mut pool = pool.borrow_mut();
        #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
        host::ensure_backed(&mut pool);
        action(&mut pool)
    })
}

/// Backing of the pool on the host, and the fake hypervisor's view of our pages.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) mod host {
    use super::*;
    use core::cell::Cell;
    use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

    /// Pages per thread unless the test asks for another number.
    const DEFAULT_PAGES: usize = 8192;

    pub(super) fn ensure_backed(pool: &mut Pool) {
        if pool.total() == 0 {
            pool.add_range(backing(DEFAULT_PAGES), DEFAULT_PAGES);
        }
    }

    /// Memory for `count` zeroed pages that is never freed: values in thread-local storage may outlive any owner
    /// we could give it. Untouched pages cost address space only.
    pub(crate) fn allocate_pages(count: usize) -> NonNull<u8> {
        let layout = Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE).expect("a valid layout");
        // SAFETY: the layout has a non-zero size (callers ask for at least one page; from 0 the
        // allocation would be a zero-sized request, which the assertion excludes).
        let base = unsafe {
            assert!(count > 0, "no pages asked for");
            alloc_zeroed(layout)
        };
        NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout))
    }

    std::thread_local! {
        /// The largest area that this thread's pools were made of.
        static BACKING: Cell<Option<(NonNull<u8>, usize)>> = const { Cell::new(None) };
    }

    /// Memory for a pool of `pages`. Only one pool of a thread lives at a time, so that the next one may have the same
    /// area: thousands of cases would else take gigabytes. A pool takes what it is given for dirty.
    fn backing(pages: usize) -> NonNull<u8> {
        match BACKING.get() {
            Some((base, count)) if count >= pages => base,
            _ => {
                let base = allocate_pages(pages);
                BACKING.set(Some((base, pages)));
                base
            }
        }
    }

    /// A pool of `pages` instead of the default; every page must have been returned.
    pub(crate) fn reset(pages: usize) {
        POOL.with(|pool| {
            let mut pool = pool.borrow_mut();
            assert_eq!(pool.free(), pool.total(), "pages are still in use at reset");
            *pool = Pool::empty();
            pool.add_range(backing(pages), pages);
        });
    }

    /// A view of one of *our* pages for a copy by the hypervisor or a peer; `None` when the frame is not an
    /// allocated page of the pool.
    pub(crate) fn live_page(gfn: Gfn) -> Option<SharedPage> {
        let base = with_pool(|pool| pool.live(gfn))?;
        // SAFETY: the pool's memory is never freed and `base` is the start of a whole page of it. Accesses are
        // volatile; the code under test holds no reference into a page while the hypervisor works on it.
        Some(unsafe { SharedPage::from_raw(base) })
    }

    /// A new zeroed page of a peer (or of the hypervisor) as shared memory.
    pub(crate) fn foreign_page() -> SharedPage {
        // SAFETY: a fresh page that is never freed and to which no reference exists.
        unsafe { SharedPage::from_raw(allocate_pages(1)) }
    }
}

/// Also the crate's own tests run on the heap of the image, as far as that is the host's.
#[cfg(test)]
#[global_allocator]
static HEAP: Heap = Heap;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_aligned_zeroed_and_counted() {
        let total = total_pages();
        let page = Page::alloc().unwrap();
        assert_eq!(page.bytes().as_ptr().addr() % PAGE_SIZE, 0);
        assert_eq!(page.bytes(), &[0; PAGE_SIZE]);
        assert_eq!(free_pages(), total - 1);
        drop(page);
        assert_eq!(free_pages(), total);
    }

    #[test]
    fn a_recycled_page_is_zero_when_allocated_again() {
        let mut page = Page::alloc().unwrap();
        page.bytes_mut().fill(0xaa);
        let gfn = page.gfn();
        drop(page);
        let again = Page::alloc().unwrap();
        assert_eq!(again.gfn(), gfn, "the free list is last in, first out");
        assert_eq!(again.bytes(), &[0; PAGE_SIZE]);
    }

    #[test]
    fn clearing_keeps_the_prefix_and_removes_the_rest() {
        let mut page = Page::alloc().unwrap();
        page.bytes_mut().fill(0xaa);
        page.clear_from(100);
        assert!(page.bytes()[..100].iter().all(|&byte| byte == 0xaa));
        assert!(page.bytes()[100..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_prefix_write_raises_the_mark_only_to_its_end() {
        let mut page = Page::alloc().unwrap();
        page.prefix_mut(60).fill(0xbb);
        assert_eq!(page.dirty, 60);
        page.prefix_mut(10).fill(0xcc);
        assert_eq!(page.dirty, 60, "the mark never falls by writing");
        page.clear_from(20);
        assert_eq!(page.dirty, 20);
        assert!(page.bytes()[20..].iter().all(|&byte| byte == 0));
        assert_eq!(page.prefix_mut(PAGE_SIZE + 1).len(), PAGE_SIZE);
    }

    #[test]
    fn exhaustion_is_none_and_ends_when_a_page_returns() {
        host::reset(3);
        let mut pages: alloc::vec::Vec<Page> = core::iter::from_fn(Page::alloc).collect();
        assert_eq!(pages.len(), 3);
        assert_eq!(free_pages(), 0);
        pages.pop();
        assert!(Page::alloc().is_some());
    }

    #[test]
    fn only_allocated_frames_are_visible_to_the_hypervisor() {
        let page = Page::alloc().unwrap();
        let gfn = page.gfn();
        assert!(host::live_page(gfn).is_some());
        drop(page);
        assert!(host::live_page(gfn).is_none());
        assert!(host::live_page(Gfn(1)).is_none());
    }
}
