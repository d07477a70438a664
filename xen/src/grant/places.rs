//! Places of 256 bytes in private pages, for the first bytes of many copies.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::copy::local_side;
use crate::abi::grant_table::CopySide;
use crate::mem::{PAGE_SIZE, Page};

/// Most bytes in a place.
const PLACE_BYTES: usize = 256;
const PLACES_OF_A_PAGE: usize = PAGE_SIZE / PLACE_BYTES;
/// Most pages; what finds no place goes the direct way.
pub(crate) const MAX_PAGES: usize = 8;

/// A place that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    page: usize,
    offset: usize,
    len: usize,
}

/// The places of one batch. Nobody else ever sees their pages; Xen reads and writes them as operations say.
#[derive(Debug)]
pub(super) struct Places {
    pages: Vec<Page>,
    used: usize,
}

impl Places {
    /// One for each of `jobs`, as far as there is memory for them.
    pub(super) fn for_jobs(jobs: usize) -> Places {
        let count = jobs.div_ceil(PLACES_OF_A_PAGE).min(MAX_PAGES);
        Places { pages: (0..count).map_while(|_| Page::alloc_recycled()).collect(), used: 0 }
    }

    /// A place for `len` bytes; `None` if all are taken, or that is too much for one.
    pub(super) fn take(&mut self, len: u16) -> Option<Place> {
        let (page, number) = (self.used / PLACES_OF_A_PAGE, self.used % PLACES_OF_A_PAGE);
        let len = usize::from(len);
        if len > PLACE_BYTES || page >= self.pages.len() {
            return None;
        }
        self.used = self.used.saturating_add(1);
        Some(Place { page, offset: number.saturating_mul(PLACE_BYTES), len })
    }

    /// A place as one side of a copy.
    pub(super) fn side(&self, place: Place) -> Option<CopySide> {
        let offset = u16::try_from(place.offset).ok()?;
        self.pages.get(place.page).map(|page| local_side(page, offset))
    }

    /// What is in a place; `None`: there is no such place.
    pub(super) fn bytes(&self, place: Place) -> Option<&[u8]> {
        let end = place.offset.saturating_add(place.len);
        self.pages.get(place.page)?.bytes().get(place.offset..end)
    }

    /// Fills a place with as many of `bytes` as it was taken for. `None`: there are not so many, and the place holds what others
    /// left there.
    pub(super) fn put(&mut self, place: Place, bytes: &[u8]) -> Option<()> {
        let end = place.offset.saturating_add(place.len);
        let from = bytes.get(..place.len)?;
        let page = self.pages.get_mut(place.page)?;
        page.prefix_mut(end).get_mut(place.offset..)?.copy_from_slice(from);
        Some(())
    }

    /// All are free again.
    pub(super) fn free(&mut self) {
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap_and_end_with_the_pages() {
        let mut places = Places::for_jobs(20);
        let taken: Vec<Place> = core::iter::from_fn(|| places.take(256)).collect();
        assert_eq!(taken.len(), 2 * PLACES_OF_A_PAGE);
        for (at, place) in taken.iter().enumerate() {
            assert_eq!(places.put(*place, &[at as u8; 300]), Some(()));
        }
        for (at, place) in taken.iter().enumerate() {
            assert_eq!(places.bytes(*place), Some([at as u8; 256].as_slice()));
        }
        let (first, nowhere) = (taken[0], Place { page: MAX_PAGES, ..taken[0] });
        assert_eq!(places.put(first, &[9; 255]), None, "too few for it");
        assert_eq!(places.bytes(first), Some([0; 256].as_slice()), "nor are some of them there");
        assert_eq!((places.put(nowhere, &[9; 256]), places.bytes(nowhere)), (None, None));
        places.free();
        assert_eq!(places.take(257), None);
        assert_eq!(places.take(1).map(|place| (place.page, place.offset)), Some((0, 0)));
    }

    #[test]
    fn without_memory_there_are_none() {
        let held: Vec<Page> = core::iter::from_fn(Page::alloc_recycled).collect();
        assert_eq!(Places::for_jobs(20).take(1), None);
        drop(held);
        assert_eq!(crate::mem::free_pages(), crate::mem::total_pages());
    }
}
