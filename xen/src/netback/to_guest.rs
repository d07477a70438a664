//! The clients' RX rings: frames out of private pages into the buffers that the clients posted.
//!
//! A frame waits in its vif's bounded queue until [`ToGuest::pump`] finds a posted request for it. Requests are
//! consumed strictly in order and answered in the slot that they came in. A client that posts nothing loses its
//! queue after a while: it must not hold our memory (Xen Security Advisory 392).

use alloc::vec::Vec;

use super::connect::Vifs;
use super::identity::RxNotify;
use super::link::{Link, Queued};
use super::{CloseReason, SendError, VifId};
use crate::grant::{CopyBatch, CopyStatus};
use crate::mem::Page;
use crate::netif::{
    MAX_FRAME_BYTES, MIN_FRAME_BYTES, Offload, RxFlags, RxRequest, RxResponse, STATUS_ERROR,
};

/// Frames in one copy batch.
const BATCH_FRAMES: usize = 128;
/// How long frames wait for a client that posts no buffers, in ns; then its queue is dropped.
const DRAIN_NS: u64 = 10_000_000_000;
/// Period of the look at the ring of a client that does not announce its buffers, in ns.
const POLL_NS: u64 = 30_000_000;

struct Job {
    link: VifId,
    id: u16,
    len: u16,
    flags: RxFlags,
    good: bool,
}

/// The copy batch towards the clients.
pub(super) struct ToGuest {
    batch: CopyBatch,
    jobs: Vec<Job>,
    /// Frames that wait, over all vifs.
    queued: usize,
}

impl ToGuest {
    pub(super) fn new() -> ToGuest {
        ToGuest {
            batch: CopyBatch::with_capacity(BATCH_FRAMES, BATCH_FRAMES),
            jobs: Vec::with_capacity(BATCH_FRAMES),
            queued: 0,
        }
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Queues a frame; `quota` is the number that may wait for this client now.
    pub(super) fn enqueue(
        &mut self,
        link: &mut Link,
        quota: usize,
        page: Page,
        len: u16,
        offload: Offload,
    ) -> Result<(), SendError> {
        let refusal = if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&len) {
            Some(SendError::BadLength)
        } else if !accepts(link, &page, len, offload) {
            Some(SendError::Unsupported)
        } else if link.stalled {
            Some(SendError::Stalled)
        } else if link.queue.len() >= quota {
            Some(SendError::QueueFull)
        } else {
            None
        };
        if let Some(error) = refusal {
            link.counters.count_refusal(error);
            return Err(error);
        }
        link.queue.push_back(Queued { page, len, offload });
        self.queued = self.queued.saturating_add(1);
        Ok(())
    }

    /// Moves waiting frames of one link into the batch while the client has buffers posted. `true`: the batch is
    /// full, complete it and call again.
    pub(super) fn pump(&mut self, link: &mut Link, now: u64) -> Result<bool, CloseReason> {
        if link.queue.is_empty() && !link.stalled {
            return Ok(false);
        }
        loop {
            let (ring, page) = link.rx();
            let mut posted = ring.unconsumed(page).map_err(|_| CloseReason::RxRing)?;
            if posted == 0 {
                posted = ring.final_check(page).map_err(|_| CloseReason::RxRing)?;
            }
            if posted == 0 {
                self.wait_for_buffers(link, now);
                return Ok(false);
            }
            link.note_work();
            link.blocked_since = None;
            link.stalled = false;
            for _ in 0..posted {
                if self.batch.is_full_for(1, 1) {
                    return Ok(true);
                }
                let Some(frame) = link.queue.pop_front() else { return Ok(false) };
                self.queued = self.queued.saturating_sub(1);
                self.add_job(link, frame);
            }
        }
    }

    fn wait_for_buffers(&mut self, link: &mut Link, now: u64) {
        if link.queue.is_empty() {
            return;
        }
        let since = *link.blocked_since.get_or_insert(now);
        if now.saturating_sub(since) >= DRAIN_NS {
            let dropped = self.drop_queue(link);
            link.counters.stalled = link.counters.stalled.saturating_add(dropped as u64);
            link.stalled = true;
            link.blocked_since = None;
        }
    }

    /// Frees all waiting frames of a link; returns how many.
    pub(super) fn drop_queue(&mut self, link: &mut Link) -> usize {
        let dropped = link.queue.len();
        link.queue.clear();
        self.queued = self.queued.saturating_sub(dropped);
        dropped
    }

    fn add_job(&mut self, link: &mut Link, frame: Queued) {
        let (ring, page) = link.rx();
        let slot = ring.take(page).expect("a request was counted");
        let request = RxRequest::decode(&slot);
        let flags = RxFlags::for_frame(frame.offload);
        self.batch.begin(frame.page, self.jobs.len() as u64);
        self.batch
            .to_peer(link.peer, request.gref, 0, 0, frame.len)
            .expect("a frame fits in a page and the batch has room");
        let (id, len) = (request.id, frame.len);
        self.jobs.push(Job { link: link.id, id, len, flags, good: false });
    }

    /// Runs the copies and answers the requests, in the order they were taken.
    pub(super) fn complete(&mut self, vifs: &mut Vifs) {
        if self.jobs.is_empty() {
            return;
        }
        self.batch.run();
        let jobs = &mut self.jobs;
        self.batch.finish(|_, tag, status| {
            if let Some(job) = usize::try_from(tag).ok().and_then(|tag| jobs.get_mut(tag)) {
                job.good = status == CopyStatus::Ok;
            }
        });
        for job in self.jobs.drain(..) {
            if let Some(link) = vifs.link_mut(job.link) {
                answer(link, &job);
            }
        }
    }

    /// When `pump` has to be called again without an event.
    pub(super) fn deadline(link: &Link, now: u64) -> Option<u64> {
        let since = link.blocked_since?;
        let drop_at = since.saturating_add(DRAIN_NS);
        Some(match link.rx_notify {
            RxNotify::Yes => drop_at,
            RxNotify::No => drop_at.min(now.saturating_add(POLL_NS)),
        })
    }
}

fn accepts(link: &Link, page: &Page, len: u16, offload: Offload) -> bool {
    let frame = page.bytes().get(..usize::from(len)).unwrap_or(&[]);
    link.capabilities.accepts(frame, offload)
}

fn answer(link: &mut Link, job: &Job) {
    let response = if job.good {
        link.counters.to_guest_frames = link.counters.to_guest_frames.saturating_add(1);
        link.counters.to_guest_bytes =
            link.counters.to_guest_bytes.saturating_add(u64::from(job.len));
        // A frame is at most 1518 bytes long.
        RxResponse { id: job.id, offset: 0, flags: job.flags, status: job.len.cast_signed() }
    } else {
        link.counters.copy_failed = link.counters.copy_failed.saturating_add(1);
        RxResponse { id: job.id, offset: 0, flags: RxFlags(0), status: STATUS_ERROR }
    };
    link.respond_rx(&response.encode());
}

impl super::VifCounters {
    fn count_refusal(&mut self, error: SendError) {
        let counter = match error {
            SendError::Gone => return,
            SendError::QueueFull => &mut self.queue_full,
            SendError::Stalled => &mut self.stalled,
            SendError::Unsupported => &mut self.unsupported,
            SendError::BadLength => &mut self.bad_length,
        };
        *counter = counter.saturating_add(1);
    }
}
