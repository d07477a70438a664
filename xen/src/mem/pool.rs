//! The page pool: a stack of returned pages in front of ranges that were never used.

use alloc::vec::Vec;
use core::ptr::NonNull;

use super::PAGE_SIZE;
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
use crate::abi::Gfn;

/// Memory ranges that the pool can be made of; the start-info map of a PVH guest has one or two of RAM.
const RANGES: usize = 8;

/// A page in the pool: its address with the dirty mark, in units of two bytes, in the low twelve bits.
#[derive(Clone, Copy)]
pub(super) struct FreePage(NonNull<u8>);

impl FreePage {
    pub(super) fn new(base: NonNull<u8>, dirty: u16) -> FreePage {
        debug_assert!(
            base.addr().get().is_multiple_of(PAGE_SIZE) && usize::from(dirty) <= PAGE_SIZE
        );
        FreePage(base.map_addr(|address| address | usize::from(dirty.div_ceil(2))))
    }

    pub(super) fn base(self) -> NonNull<u8> {
        let mark = self.mark();
        self.0.map_addr(|address| {
            core::num::NonZero::new(address.get() - mark).expect("page 0 is never in the pool")
        })
    }

    pub(super) fn dirty(self) -> u16 {
        (self.mark() * 2) as u16
    }

    fn mark(self) -> usize {
        self.0.addr().get() % PAGE_SIZE
    }
}

#[derive(Clone, Copy)]
struct Range {
    next: NonNull<u8>,
    pages: usize,
}

pub(super) struct Pool {
    returned: Vec<FreePage>,
    fresh: [Option<Range>; RANGES],
    total: usize,
    free: usize,
    #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
    live: std::collections::BTreeMap<Gfn, NonNull<u8>>,
}

impl Pool {
    pub(super) const fn empty() -> Pool {
        Pool {
            returned: Vec::new(),
            fresh: [None; RANGES],
            total: 0,
            free: 0,
            #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
            live: std::collections::BTreeMap::new(),
        }
    }

    /// Adds `pages` of memory that nobody else uses. The content is taken for dirty. Returns whether there was room
    /// for one more range and for the bookkeeping.
    pub(super) fn add_range(&mut self, base: NonNull<u8>, pages: usize) -> bool {
        if self.returned.try_reserve_exact(self.total + pages - self.returned.len()).is_err() {
            return false;
        }
        let Some(slot) = self.fresh.iter_mut().find(|slot| slot.is_none()) else {
            return false;
        };
        *slot = Some(Range { next: base, pages });
        self.total += pages;
        self.free += pages;
        true
    }

    pub(super) fn take(&mut self) -> Option<FreePage> {
        let page = match self.returned.pop() {
            Some(page) => page,
            None => self.take_fresh()?,
        };
        self.free -= 1;
        #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
        self.live.insert(Gfn::of_address(page.base().addr().get()), page.base());
        Some(page)
    }

    pub(super) fn give_back(&mut self, page: FreePage) {
        assert!(self.returned.len() < self.returned.capacity(), "a page was returned twice");
        #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
        self.live
            .remove(&Gfn::of_address(page.base().addr().get()))
            .expect("a page was returned twice");
        self.returned.push(page);
        self.free += 1;
    }

    pub(super) fn free(&self) -> usize {
        self.free
    }

    pub(super) fn total(&self) -> usize {
        self.total
    }

    #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
    pub(super) fn live(&self, gfn: Gfn) -> Option<NonNull<u8>> {
        self.live.get(&gfn).copied()
    }

    fn take_fresh(&mut self) -> Option<FreePage> {
        let slot = self.fresh.iter_mut().find(|slot| slot.is_some())?;
        let range = slot.as_mut()?;
        let page = FreePage::new(range.next, PAGE_SIZE as u16);
        range.pages -= 1;
        if range.pages == 0 {
            *slot = None;
        } else {
            range.next = range.next.map_addr(|address| {
                address.checked_add(PAGE_SIZE).expect("a range does not wrap around")
            });
        }
        Some(page)
    }
}
