//! Peers' pages mapped here: rings of clients, vchan rings that a peer offers.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::cell::RefCell;

use super::{Access, GrantError};
use crate::abi::grant_table::{GrantStatus, MAP_HOST, MAP_READONLY, MapGrantRef, UnmapGrantRef};
use crate::abi::{DomId, GrantRef};
use crate::counts::{self, Call};
use crate::hypercall;
use crate::mem::global;
use crate::shared::SharedPage;

/// Most pages in one mapping.
pub const MAX_MAPPING_PAGES: usize = 64;
/// Pages of one hypercall at the end of a mapping.
const UNMAPPED_AT_ONCE: usize = 8;

/// Pages of the window that mappings are placed in: address space, not memory.
pub(crate) const WINDOW_PAGES: usize = 1536;
const WORDS: usize = WINDOW_PAGES / 64;

global! {
    static WINDOW: RefCell<Window> = RefCell::new(Window { used: [0; WORDS] });
}

/// Which pages of the window are taken, one bit each.
struct Window {
    used: [u64; WORDS],
}

impl Window {
    /// First fit for `count` consecutive pages.
    fn take(&mut self, count: usize) -> Option<usize> {
        let mut run = 0;
        for page in 0..WINDOW_PAGES {
            run = if self.is_used(page) { 0 } else { run + 1 };
            if run == count {
                let first = page + 1 - count;
                (first..=page).for_each(|page| self.set(page, true));
                return Some(first);
            }
        }
        None
    }

    fn is_used(&self, page: usize) -> bool {
        self.used.get(page / 64).is_none_or(|word| word & (1 << (page % 64)) != 0)
    }

    fn set(&mut self, page: usize, used: bool) {
        if let Some(word) = self.used.get_mut(page / 64) {
            let bit = 1 << (page % 64);
            *word = if used { *word | bit } else { *word & !bit };
        }
    }
}

/// Consecutive pages of one peer, mapped until drop.
///
/// Holding it proves that the pages are reachable here, even if the peer dies; the peer can write them at any time.
#[derive(Debug)]
pub struct Mapping {
    pages: Vec<MappedPage>,
}

#[derive(Debug)]
struct MappedPage {
    window_page: usize,
    handle: u32,
    view: SharedPage,
}

/// Maps the pages that `peer` granted us under `grefs`, all or none.
pub fn map(peer: DomId, grefs: &[GrantRef], access: Access) -> Result<Mapping, GrantError> {
    if grefs.is_empty() || grefs.len() > MAX_MAPPING_PAGES {
        return Err(GrantError::BadCount);
    }
    let first = WINDOW.with(|window| window.borrow_mut().take(grefs.len()));
    let first = first.ok_or(GrantError::WindowFull)?;
    let mut ops: Vec<MapGrantRef> =
        (first..).zip(grefs).map(|(page, gref)| map_operation(peer, *gref, access, page)).collect();
    counts::call(Call::Map);
    hypercall::grant_map(&mut ops);
    finish_map(first, &ops)
}

fn map_operation(peer: DomId, gref: GrantRef, access: Access, window_page: usize) -> MapGrantRef {
    let flags = match access {
        Access::ReadOnly => MAP_HOST | MAP_READONLY,
        Access::ReadWrite => MAP_HOST,
    };
    MapGrantRef {
        host_addr: hypercall::window_address(window_page),
        flags,
        gref: gref.0,
        dom: peer.0,
        // Stays if the hypercall as a whole fails.
        status: GrantStatus::GENERAL_ERROR,
        handle: 0,
        dev_bus_addr: 0,
    }
}

/// Keeps what was mapped if all was; else the drop of the partial mapping undoes it.
fn finish_map(first: usize, ops: &[MapGrantRef]) -> Result<Mapping, GrantError> {
    let mut mapping = Mapping { pages: Vec::with_capacity(ops.len()) };
    let mut refused = None;
    for (window_page, op) in (first..).zip(ops) {
        if op.status == GrantStatus::OKAY {
            let view = hypercall::mapped_page(op.host_addr);
            mapping.pages.push(MappedPage { window_page, handle: op.handle, view });
        } else {
            WINDOW.with(|window| window.borrow_mut().set(window_page, false));
            refused = refused.or(Some(op.status));
        }
    }
    refused.map_or(Ok(mapping), |status| Err(GrantError::Refused(status)))
}

impl Mapping {
    /// Number of pages, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// The page of the reference at position `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Mapping::len`].
    pub fn page(&self, index: usize) -> &SharedPage {
        &self.pages.get(index).expect("index within the mapping").view
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // A mapping goes also when there is no memory, or in the middle of packets.
        for pages in self.pages.chunks(UNMAPPED_AT_ONCE) {
            let Some(first) = pages.first() else { continue };
            let mut ops = [unmap_operation(first); UNMAPPED_AT_ONCE];
            for (op, page) in ops.iter_mut().zip(pages) {
                *op = unmap_operation(page);
            }
            let ops = ops.get_mut(..pages.len()).unwrap_or_default();
            counts::call(Call::Unmap);
            hypercall::grant_unmap(ops);
            for (page, op) in pages.iter().zip(ops) {
                // A page that Xen did not unmap keeps its place: mapping there again would end the domain.
                if op.status == GrantStatus::OKAY {
                    WINDOW.with(|window| window.borrow_mut().set(page.window_page, false));
                }
            }
        }
    }
}

fn unmap_operation(page: &MappedPage) -> UnmapGrantRef {
    UnmapGrantRef {
        host_addr: hypercall::window_address(page.window_page),
        dev_bus_addr: 0,
        handle: page.handle,
        status: GrantStatus::GENERAL_ERROR,
        pad: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    const PEER: DomId = DomId(3);

    #[test]
    fn a_mapped_page_is_the_peers_page() {
        let peer = fake::peer(PEER);
        let (gref, page) = peer.grant_page(Access::ReadWrite);
        page.write_u32(16, 77);
        let mapping = map(PEER, &[gref], Access::ReadWrite).unwrap();
        assert_eq!(mapping.len(), 1);
        assert_eq!(mapping.page(0).read_u32(16), 77);
        mapping.page(0).write_u32(20, 88);
        assert_eq!(page.read_u32(20), 88);
        assert!(peer.is_in_use(gref));
        drop(mapping);
        assert!(!peer.is_in_use(gref));
    }

    #[test]
    fn one_bad_reference_undoes_the_whole_mapping() {
        let peer = fake::peer(PEER);
        let (good, _) = peer.grant_page(Access::ReadWrite);
        let refused = map(PEER, &[good, GrantRef(999)], Access::ReadWrite).unwrap_err();
        assert_eq!(refused, GrantError::Refused(GrantStatus::BAD_GNTREF));
        assert!(!peer.is_in_use(good));
        let window_is_free =
            WINDOW.with(|window| window.borrow().used.iter().all(|&word| word == 0));
        assert!(window_is_free);
    }

    #[test]
    fn a_read_only_grant_cannot_be_mapped_for_writing() {
        let peer = fake::peer(PEER);
        let (gref, _) = peer.grant_page(Access::ReadOnly);
        let refused = map(PEER, &[gref], Access::ReadWrite).unwrap_err();
        assert_eq!(refused, GrantError::Refused(GrantStatus::GENERAL_ERROR));
        assert!(map(PEER, &[gref], Access::ReadOnly).is_ok());
    }

    #[test]
    fn counts_outside_of_the_bounds_are_refused() {
        assert_eq!(map(PEER, &[], Access::ReadOnly).unwrap_err(), GrantError::BadCount);
        let many = [GrantRef(8); MAX_MAPPING_PAGES + 1];
        assert_eq!(map(PEER, &many, Access::ReadOnly).unwrap_err(), GrantError::BadCount);
    }

    #[test]
    fn a_dead_peer_is_refused_and_a_mapping_outlives_its_peer() {
        let peer = fake::peer(PEER);
        let (gref, page) = peer.grant_page(Access::ReadWrite);
        page.write_u8(0, 5);
        let mapping = map(PEER, &[gref], Access::ReadWrite).unwrap();
        peer.die();
        assert_eq!(mapping.page(0).read_u8(0), 5);
        let refused = map(PEER, &[gref], Access::ReadWrite).unwrap_err();
        assert_eq!(refused, GrantError::Refused(GrantStatus::BAD_DOMAIN));
    }

    #[test]
    fn the_window_is_first_fit_and_bounded() {
        let mut window = Window { used: [0; WORDS] };
        assert_eq!(window.take(64), Some(0));
        assert_eq!(window.take(3), Some(64));
        (0..64).for_each(|page| window.set(page, false));
        assert_eq!(window.take(65), Some(67), "a hole that is too small is skipped");
        assert_eq!(window.take(64), Some(0));
        while window.take(1).is_some() {}
        assert!(window.used.iter().all(|&word| word == u64::MAX));
    }
}
