//! Entries of our own table: allocation, granting, revoking, quarantine.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::cell::RefCell;

use super::{Access, GrantError};
use crate::abi::grant_table::{
    ENTRIES_PER_FRAME, ENTRY_BYTES, ENTRY_DOMID, ENTRY_FRAME, GTF_PERMIT_ACCESS, GTF_READING,
    GTF_READONLY, GTF_WRITING, RESERVED_ENTRIES,
};
use crate::abi::{DomId, GrantRef};
use crate::hypercall;
use crate::mem::{self, Lent, PAGE_SIZE, Page, global};
use crate::planted::{Defect, is_planted};
use crate::shared::SharedPage;

global! {
    static TABLE: RefCell<Table> = RefCell::new(Table::empty());
}

struct Table {
    frames: Vec<SharedPage>,
    /// Entries that are neither granted nor in quarantine. Capacity for every entry is reserved as frames are added,
    /// here and below, so that giving back never allocates.
    free: Vec<GrantRef>,
    quarantine: Vec<(GrantRef, Lent)>,
    in_use: usize,
    /// Grants lost for good because the quarantine could not grow.
    lost: usize,
}

/// Where the entry of a reference is.
struct Entry<'a> {
    frame: &'a SharedPage,
    offset: usize,
}

impl Table {
    const fn empty() -> Table {
        Table { frames: Vec::new(), free: Vec::new(), quarantine: Vec::new(), in_use: 0, lost: 0 }
    }

    fn entry(&self, gref: GrantRef) -> Entry<'_> {
        let frame = self
            .frames
            .get((gref.0 / ENTRIES_PER_FRAME) as usize)
            .expect("own references have a frame");
        Entry { frame, offset: (gref.0 % ENTRIES_PER_FRAME) as usize * ENTRY_BYTES }
    }

    fn take_ref(&mut self) -> Option<GrantRef> {
        if self.free.is_empty() {
            self.grow()?;
        }
        self.free.pop()
    }

    /// Adds one frame to the table.
    fn grow(&mut self) -> Option<()> {
        let first = self.frames.len() as u32 * ENTRIES_PER_FRAME;
        let entries = (self.frames.len() + 1) * ENTRIES_PER_FRAME as usize;
        self.frames.try_reserve(1).ok()?;
        self.free.try_reserve(entries - self.free.len()).ok()?;
        self.quarantine.try_reserve(entries - self.quarantine.len()).ok()?;
        self.frames.push(hypercall::grant_frame(self.frames.len() as u32)?);
        // The last pushed is handed out first: ascending numbers.
        let usable = first.max(RESERVED_ENTRIES)..first + ENTRIES_PER_FRAME;
        self.free.extend(usable.rev().map(GrantRef));
        Some(())
    }

    /// Makes the entry free again; `false` if the peer uses it now.
    fn release(&mut self, gref: GrantRef) -> bool {
        let cleared = self.entry(gref).try_clear();
        if cleared {
            self.free.push(gref);
            self.in_use -= 1;
        }
        cleared
    }

    fn quarantine(&mut self, gref: GrantRef, page: Lent) {
        if self.quarantine.len() < self.quarantine.capacity() {
            self.quarantine.push((gref, page));
        } else {
            self.lost += 1;
            mem::leak(page);
        }
    }
}

impl Entry<'_> {
    fn is_free(&self) -> bool {
        self.frame.load_u16(self.offset) == 0
    }

    fn fill(&self, peer: DomId, page: &Lent, access: Access) {
        let frame = u32::try_from(page.gfn().0).expect("frame numbers of own pages fit 32 bits");
        self.frame.write_u16(self.offset + ENTRY_DOMID, peer.0);
        self.frame.write_u32(self.offset + ENTRY_FRAME, frame);
        let flags = match access {
            Access::ReadOnly => GTF_PERMIT_ACCESS | GTF_READONLY,
            Access::ReadWrite => GTF_PERMIT_ACCESS,
        };
        self.frame.store_release_u16(self.offset, flags);
    }

    /// Takes the permission back unless the peer uses the page now.
    fn try_clear(&self) -> bool {
        let mut flags = self.frame.load_u16(self.offset);
        while flags & (GTF_READING | GTF_WRITING) == 0 || is_planted(Defect::BusyPageReused) {
            match self.frame.compare_exchange_u16(self.offset, flags, 0) {
                Ok(_) => return true,
                Err(now) => flags = now,
            }
        }
        false
    }
}

/// A page of ours that one peer may access until [`Granted::revoke`] succeeds.
///
/// Holding it proves that the grant entry exists. Dropping it revokes; if the peer still uses the page then, page and
/// reference go to quarantine until [`retry_quarantine`] finds them unused.
#[derive(Debug)]
pub struct Granted {
    /// `None` only while a successful revocation is under way.
    page: Option<Lent>,
    gref: GrantRef,
    access: Access,
}

/// Lets `peer` access `page`. The peer sees all 4096 bytes: clear what it must not see first.
///
/// On failure the page comes back with the reason.
pub fn grant(page: Page, peer: DomId, access: Access) -> Result<Granted, (GrantError, Page)> {
    TABLE.with(|table| {
        let mut table = table.borrow_mut();
        let Some(gref) = table.take_ref() else {
            return Err((GrantError::TableFull, page));
        };
        let page = page.lend();
        let entry = table.entry(gref);
        assert!(entry.is_free(), "a free grant reference has a granted entry");
        entry.fill(peer, &page, access);
        table.in_use += 1;
        Ok(Granted { page: Some(page), gref, access })
    })
}

impl Granted {
    /// The number to tell the peer.
    pub fn gref(&self) -> GrantRef {
        self.gref
    }

    /// The page, which the peer may be changing.
    pub fn shared(&self) -> &SharedPage {
        self.page.as_ref().expect("the page is there until revoked").view()
    }

    /// Takes the page back. `Err`: the peer still has it mapped or a copy is going on; nothing has changed.
    pub fn revoke(mut self) -> Result<Page, Granted> {
        let is_kept =
            self.access == Access::ReadWrite && is_planted(Defect::ReceivedPageStillGranted);
        if !is_kept && !TABLE.with(|table| table.borrow_mut().release(self.gref)) {
            return Err(self);
        }
        let mut page = self.page.take().expect("the page is there until revoked").reclaim();
        if self.access == Access::ReadWrite {
            page.mark_dirty_to(PAGE_SIZE);
        }
        Ok(page)
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        let Some(page) = self.page.take() else { return };
        TABLE.with(|table| {
            let mut table = table.borrow_mut();
            if table.release(self.gref) {
                return_page(page);
            } else {
                table.quarantine(self.gref, page);
            }
        });
    }
}

/// Back to the pool; whatever the access was, the content counts as dirty.
fn return_page(page: Lent) {
    page.reclaim().mark_dirty_to(PAGE_SIZE);
}

/// Makes the table large enough for `count` grants at a time, as far as Xen and memory allow: at the start, so that no
/// frame has to wait for it.
pub fn prepare(count: usize) {
    TABLE.with(|table| {
        let mut table = table.borrow_mut();
        while table.free.len() < count && table.grow().is_some() {}
    });
}

/// Frees what the peers have let go of since. To be called now and then while [`quarantined`] is not zero.
pub fn retry_quarantine() {
    if is_planted(Defect::QuarantineForgotten) {
        return;
    }
    TABLE.with(|table| {
        let mut table = table.borrow_mut();
        let mut index = 0;
        while let Some(&(gref, _)) = table.quarantine.get(index) {
            if table.release(gref) {
                let (_, page) = table.quarantine.swap_remove(index);
                return_page(page);
            } else {
                index += 1;
            }
        }
    });
}

/// Pages that peers hold on to after we dropped the grant.
pub fn quarantined() -> usize {
    TABLE.with(|table| {
        let table = table.borrow();
        table.quarantine.len() + table.lost
    })
}

/// Entries of our table that permit an access now, those in quarantine included.
pub fn grants_in_use() -> usize {
    TABLE.with(|table| table.borrow().in_use)
}

/// Forgets the table; every grant must be gone.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) fn reset() {
    TABLE.with(|table| {
        let mut table = table.borrow_mut();
        assert_eq!(table.in_use, 0, "grants are still in use at reset");
        *table = Table::empty();
    });
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
