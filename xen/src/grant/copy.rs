//! Batched grant copies between private pages and peers' grants (`GNTTABOP_copy`).
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use thiserror::Error;

use super::places::{Place, Places};
use crate::abi::grant_table::{COPY_DEST_GREF, COPY_SOURCE_GREF, CopySide, GrantCopy, GrantStatus};
use crate::abi::{DomId, GrantRef};
use crate::counts;
use crate::hypercall;
use crate::mem::{PAGE_SIZE, Page};
use crate::planted::{Defect, is_planted};
use crate::postmortem::{self, What};

/// Why an operation was not taken into the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CopyRejected {
    /// Length 0: what Xen does with it depends on its version, so it is refused here.
    #[error("copy of zero bytes")]
    Empty,
    /// Offset and length reach past the end of one of the two pages.
    #[error("copy crosses the end of a page")]
    CrossesPage,
    /// The batch was created for fewer operations; see [`CopyBatch::is_full_for`].
    #[error("copy batch full")]
    Full,
    /// No job has begun.
    #[error("copy without a page")]
    NoJob,
}

/// How the operations of one job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyStatus {
    /// All of them copied. A job without operations is `Ok`.
    Ok,
    /// The first failure; the page's content is not to be used.
    Failed(GrantStatus),
}

/// Many copies in one hypercall. Owns the pages while they wait.
///
/// Xen looks each page up that an operation names, unless the one before named the same. So the first bytes of a job, if they
/// are few, come or go by way of a page that many jobs share (`places`), and are moved between it and their own here.
///
/// Capacity is fixed at creation; nothing is allocated afterwards. Use: `begin` a job with its page, add operations,
/// repeat, `run`, `finish`.
#[derive(Debug)]
pub struct CopyBatch {
    jobs: Vec<Job>,
    ops: Vec<GrantCopy>,
    places: Places,
    max_jobs: usize,
    max_ops: usize,
}

#[derive(Debug)]
struct Job {
    page: Page,
    tag: u64,
    /// Operations of the jobs up to and including this one.
    ops_end: usize,
    /// Where its first bytes arrive, if not in its page.
    arrives: Option<Place>,
}

impl CopyBatch {
    /// An empty batch for at most `jobs` pages and `ops` operations.
    pub fn with_capacity(jobs: usize, ops: usize) -> CopyBatch {
        CopyBatch {
            jobs: Vec::with_capacity(jobs),
            ops: Vec::with_capacity(ops),
            places: Places::for_jobs(jobs),
            max_jobs: jobs,
            max_ops: ops,
        }
    }

    /// Whether there is no room for `jobs` more jobs with `ops` operations in all.
    pub fn is_full_for(&self, jobs: usize, ops: usize) -> bool {
        self.jobs.len().saturating_add(jobs) > self.max_jobs
            || self.ops.len().saturating_add(ops) > self.max_ops
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Starts a job: the following operations copy to or from `page`.
    ///
    /// # Panics
    /// If the batch has as many jobs as it was made for.
    pub fn begin(&mut self, page: Page, tag: u64) {
        assert!(self.jobs.len() < self.max_jobs, "more jobs than the copy batch was made for");
        self.jobs.push(Job { page, tag, ops_end: self.ops.len(), arrives: None });
    }

    /// Adds a copy of `len` bytes from the peer's page to the job's page.
    pub fn from_peer(
        &mut self,
        peer: DomId,
        gref: GrantRef,
        peer_offset: u16,
        page_offset: u16,
        len: u16,
    ) -> Result<(), CopyRejected> {
        let (job, places) = self.checked_job(peer_offset, page_offset, len)?;
        let is_first = page_offset == 0 && job.arrives.is_none();
        let place = if is_first { places.take(len) } else { None };
        let dest = match place.and_then(|place| places.side(place)) {
            Some(side) => {
                job.arrives = place;
                side
            }
            None => {
                job.page.mark_dirty_to(usize::from(page_offset) + usize::from(len));
                local_side(&job.page, page_offset)
            }
        };
        self.push(peer_side(peer, gref, peer_offset), dest, len, COPY_SOURCE_GREF);
        Ok(())
    }

    /// Adds a copy of `len` bytes from the job's page to the peer's page.
    pub fn to_peer(
        &mut self,
        peer: DomId,
        gref: GrantRef,
        peer_offset: u16,
        page_offset: u16,
        len: u16,
    ) -> Result<(), CopyRejected> {
        let (job, places) = self.checked_job(peer_offset, page_offset, len)?;
        let place = if page_offset == 0 { places.take(len) } else { None };
        // A place is used when the bytes are in it, and no sooner.
        let filled = place.and_then(|place| {
            places.put(place, job.page.bytes())?;
            places.side(place)
        });
        let source = filled.unwrap_or_else(|| local_side(&job.page, page_offset));
        self.push(source, peer_side(peer, gref, peer_offset), len, COPY_DEST_GREF);
        Ok(())
    }

    /// Executes all operations.
    pub fn run(&mut self) {
        if !self.ops.is_empty() {
            let bytes = self.ops.iter().map(|op| u64::from(op.len)).sum();
            postmortem::note(What::Copy, [self.ops.len() as u64, bytes]);
            counts::copy(self.ops.len(), bytes);
            hypercall::grant_copy(&mut self.ops);
        }
    }

    /// Gives every page back, in the order of `begin`, and empties the batch. Without a [`CopyBatch::run`] before,
    /// every job with operations has failed.
    pub fn finish(&mut self, mut done: impl FnMut(Page, u64, CopyStatus)) {
        let mut first = 0;
        for mut job in self.jobs.drain(..) {
            let ops = self.ops.get(first..job.ops_end).unwrap_or_default();
            first = job.ops_end;
            let failed = ops.iter().map(|op| op.status).find(|status| *status != GrantStatus::OKAY);
            let failed = match job.arrives.filter(|_| failed.is_none()) {
                None => failed,
                Some(place) => match self.places.bytes(place) {
                    Some(bytes) => {
                        job.page.prefix_mut(bytes.len()).copy_from_slice(bytes);
                        None
                    }
                    None => Some(GrantStatus::GENERAL_ERROR),
                },
            };
            done(job.page, job.tag, failed.map_or(CopyStatus::Ok, CopyStatus::Failed));
        }
        self.ops.clear();
        self.places.free();
    }

    fn checked_job(
        &mut self,
        peer_offset: u16,
        page_offset: u16,
        len: u16,
    ) -> Result<(&mut Job, &mut Places), CopyRejected> {
        if len == 0 {
            return Err(CopyRejected::Empty);
        }
        let furthest = usize::from(peer_offset.max(page_offset)) + usize::from(len);
        if furthest > PAGE_SIZE && !is_planted(Defect::TxSpanUnchecked) {
            return Err(CopyRejected::CrossesPage);
        }
        if self.ops.len() >= self.max_ops {
            return Err(CopyRejected::Full);
        }
        let job = self.jobs.last_mut().ok_or(CopyRejected::NoJob)?;
        Ok((job, &mut self.places))
    }

    fn push(&mut self, source: CopySide, dest: CopySide, len: u16, flags: u16) {
        // Xen overwrites the status of every operation that it gets to.
        let status = GrantStatus::GENERAL_ERROR;
        self.ops.push(GrantCopy { source, dest, len, flags, status, pad: 0 });
        if let Some(job) = self.jobs.last_mut() {
            job.ops_end = self.ops.len();
        }
    }
}

pub(super) fn local_side(page: &Page, offset: u16) -> CopySide {
    CopySide { ref_or_gfn: page.gfn().0, dom: DomId::SELF.0, offset, pad: 0 }
}

fn peer_side(peer: DomId, gref: GrantRef, offset: u16) -> CopySide {
    CopySide { ref_or_gfn: u64::from(gref.0), dom: peer.0, offset, pad: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::grant::Access;

    const PEER: DomId = DomId(3);

    fn finished(batch: &mut CopyBatch) -> Vec<(Page, u64, CopyStatus)> {
        let mut jobs = Vec::new();
        batch.finish(|page, tag, status| jobs.push((page, tag, status)));
        jobs
    }

    #[test]
    fn bytes_come_from_the_peer_at_the_given_offsets() {
        let peer = fake::peer(PEER);
        let (gref, theirs) = peer.grant_page(Access::ReadOnly);
        theirs.copy_in(100, b"payload");
        let mut batch = CopyBatch::with_capacity(1, 1);
        batch.begin(Page::alloc().unwrap(), 42);
        batch.from_peer(PEER, gref, 100, 4089, 7).unwrap();
        batch.run();
        let jobs = finished(&mut batch);
        assert_eq!((jobs[0].1, jobs[0].2), (42, CopyStatus::Ok));
        assert_eq!(&jobs[0].0.bytes()[4089..], b"payload");
        assert!(batch.is_empty());
    }

    #[test]
    fn bytes_go_to_the_peer_only_into_a_writable_grant() {
        let peer = fake::peer(PEER);
        let (writable, theirs) = peer.grant_page(Access::ReadWrite);
        let (readable, untouched) = peer.grant_page(Access::ReadOnly);
        let mut batch = CopyBatch::with_capacity(2, 2);
        for gref in [writable, readable] {
            let mut page = Page::alloc().unwrap();
            page.prefix_mut(3).copy_from_slice(b"abc");
            batch.begin(page, u64::from(gref.0));
            batch.to_peer(PEER, gref, 8, 0, 3).unwrap();
        }
        batch.run();
        let jobs = finished(&mut batch);
        assert_eq!(jobs[0].2, CopyStatus::Ok);
        assert_eq!(jobs[1].2, CopyStatus::Failed(GrantStatus::GENERAL_ERROR));
        assert_eq!((theirs.read_u8(8), untouched.read_u8(8)), (b'a', 0));
    }

    #[test]
    fn a_failure_belongs_to_its_own_job_and_later_jobs_go_on() {
        let peer = fake::peer(PEER);
        let (good, _) = peer.grant_page(Access::ReadOnly);
        let mut batch = CopyBatch::with_capacity(3, 4);
        batch.begin(Page::alloc().unwrap(), 0);
        batch.from_peer(PEER, good, 0, 0, 1).unwrap();
        batch.begin(Page::alloc().unwrap(), 1);
        batch.from_peer(PEER, good, 0, 0, 1).unwrap();
        batch.from_peer(PEER, GrantRef(600), 0, 1, 1).unwrap();
        batch.begin(Page::alloc().unwrap(), 2);
        batch.from_peer(PEER, good, 0, 0, 1).unwrap();
        batch.run();
        let statuses: Vec<CopyStatus> = finished(&mut batch).iter().map(|job| job.2).collect();
        let failed = CopyStatus::Failed(GrantStatus::BAD_GNTREF);
        assert_eq!(statuses, [CopyStatus::Ok, failed, CopyStatus::Ok]);
    }

    #[test]
    fn every_status_of_xen_reaches_the_job() {
        let peer = fake::peer(PEER);
        let (gref, _) = peer.grant_page(Access::ReadOnly);
        for code in -13..=-1 {
            peer.fail_grant(gref, Some(GrantStatus(code)));
            let mut batch = CopyBatch::with_capacity(1, 1);
            batch.begin(Page::alloc().unwrap(), 0);
            batch.from_peer(PEER, gref, 0, 0, 1).unwrap();
            batch.run();
            assert_eq!(finished(&mut batch)[0].2, CopyStatus::Failed(GrantStatus(code)));
        }
    }

    #[test]
    fn bounds_are_checked_on_both_sides() {
        let mut batch = CopyBatch::with_capacity(1, 2);
        assert_eq!(batch.from_peer(PEER, GrantRef(8), 0, 0, 1), Err(CopyRejected::NoJob));
        batch.begin(Page::alloc().unwrap(), 0);
        assert_eq!(batch.from_peer(PEER, GrantRef(8), 0, 0, 0), Err(CopyRejected::Empty));
        for (peer_offset, page_offset, len) in
            [(4096, 0, 1), (0, 4096, 1), (1, 0, 4096), (0, 1, 4096), (65535, 0, 65535)]
        {
            let crosses = Err(CopyRejected::CrossesPage);
            assert_eq!(batch.from_peer(PEER, GrantRef(8), peer_offset, page_offset, len), crosses);
            assert_eq!(batch.to_peer(PEER, GrantRef(8), peer_offset, page_offset, len), crosses);
        }
        assert_eq!(batch.from_peer(PEER, GrantRef(8), 0, 0, 4096), Ok(()));
        assert_eq!(batch.from_peer(PEER, GrantRef(8), 4095, 4095, 1), Ok(()));
        assert_eq!(batch.to_peer(PEER, GrantRef(8), 0, 0, 1), Err(CopyRejected::Full));
    }

    #[test]
    fn fullness_counts_jobs_and_operations() {
        let mut batch = CopyBatch::with_capacity(2, 3);
        assert!(!batch.is_full_for(1, 3) && batch.is_full_for(1, 4));
        assert!(!batch.is_full_for(2, 3) && batch.is_full_for(3, 3));
        assert!(batch.is_full_for(1, usize::MAX) && batch.is_full_for(usize::MAX, 0));
        batch.begin(Page::alloc().unwrap(), 0);
        batch.from_peer(PEER, GrantRef(8), 0, 0, 1).unwrap();
        assert!(!batch.is_full_for(1, 2) && batch.is_full_for(1, 3));
        batch.begin(Page::alloc().unwrap(), 1);
        assert!(batch.is_full_for(1, 0));
    }

    #[test]
    fn what_was_not_run_has_failed_and_dropping_the_batch_returns_the_pages() {
        let before = crate::mem::free_pages();
        let mut batch = CopyBatch::with_capacity(1, 1);
        batch.begin(Page::alloc().unwrap(), 0);
        batch.from_peer(PEER, GrantRef(8), 0, 0, 1).unwrap();
        assert!(matches!(finished(&mut batch)[0].2, CopyStatus::Failed(_)));
        batch.begin(Page::alloc().unwrap(), 0);
        drop(batch);
        assert_eq!(crate::mem::free_pages(), before);
    }
}
