//! The clients' RX rings: frames out of private pages into the buffers that the clients posted.
//!
//! A frame waits in its vif's bounded queue until [`ToGuest::pump`] finds posted requests for all of it: one for each
//! page's worth, and one that is used up to say how to segment it. Requests are consumed strictly in order and answered
//! in the slot that they came in. A client that posts too few loses its queue after a while: it must not hold our
//! memory (Xen Security Advisory 392).

use alloc::vec::Vec;

use super::connect::Vifs;
use super::identity::RxNotify;
use super::link::{Link, Queued};
use super::{BATCH_COPIES, BATCH_PAGES, CloseReason, SendError, Tag, VifId};
use crate::grant::{CopyBatch, CopyStatus};
use crate::mem::PAGE_SIZE;
use crate::netif::{
    ExtraInfo, MAX_CHAIN_PAGES, MAX_FRAME_SLOTS, Offload, RxFlags, RxRequest, RxResponse,
    STATUS_ERROR,
};
use crate::planted::{Defect, is_planted};

/// Copies of one frame: a page that reaches over the end of a buffer takes two.
const MAX_COPIES: usize = MAX_CHAIN_PAGES + MAX_FRAME_SLOTS;
/// How long frames wait for a client that posts no buffers, in ns; then its queue is dropped.
const DRAIN_NS: u64 = 10_000_000_000;
/// Period of the look at the ring of a client that does not announce its buffers, in ns.
const POLL_NS: u64 = 30_000_000;

struct Job {
    link: VifId,
    len: usize,
    offload: Offload,
    /// Answers of the jobs up to and including this one.
    slots_end: usize,
    good: bool,
}

/// A request that a frame has used up.
#[derive(Clone, Copy)]
struct Slot {
    id: u16,
    /// Bytes in its buffer; 0 for the one that the segmentation request takes.
    len: u16,
}

/// Frames whose copies are in the batch, and what they use up.
pub(super) struct ToGuest {
    jobs: Vec<Job>,
    slots: Vec<Slot>,
    /// Pages of frames that wait, over all vifs.
    queued: usize,
}

impl ToGuest {
    pub(super) fn new() -> ToGuest {
        ToGuest {
            jobs: Vec::with_capacity(BATCH_PAGES),
            // One for each copy at most, and one for each super-frame.
            slots: Vec::with_capacity(BATCH_PAGES.saturating_add(BATCH_COPIES)),
            queued: 0,
        }
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Queues a frame; `quota` is the number of pages that may wait for this client now, `total` for all of them. A client
    /// for which nothing waits gets a frame beyond its quota, as one super-frame may be, within the total.
    pub(super) fn enqueue(
        &mut self,
        link: &mut Link,
        quota: usize,
        total: usize,
        frame: Queued,
    ) -> Result<(), SendError> {
        let (chain, offload) = (&frame.chain, frame.offload);
        let pages = chain.pages();
        let waiting = link.queued.saturating_add(pages);
        let alone = link.queued == 0 && self.queued.saturating_add(pages) <= total;
        let refusal = if chain.fault(offload).is_some() {
            Some(SendError::BadLength)
        } else if !chain.suits(&link.capabilities, offload) {
            Some(SendError::Unsupported)
        } else if link.stalled {
            Some(SendError::Stalled)
        } else if waiting > quota && !alone && !is_planted(Defect::RxQueueUnbounded) {
            Some(SendError::QueueFull)
        } else {
            None
        };
        if let Some(error) = refusal {
            link.counters.count_refusal(error);
            return Err(error);
        }
        link.queue.push_back(frame);
        link.queued = waiting;
        self.queued = self.queued.saturating_add(pages);
        Ok(())
    }

    /// Moves waiting frames of one link into the batch while the client has buffers posted. `true`: the batch is
    /// full, complete it and call again.
    pub(super) fn pump(
        &mut self,
        link: &mut Link,
        now: u64,
        batch: &mut CopyBatch,
    ) -> Result<bool, CloseReason> {
        if link.queue.is_empty() && !link.stalled {
            return Ok(false);
        }
        loop {
            let needed = link.queue.front().map_or(1, Queued::slots);
            let (ring, page) = link.rx();
            let mut posted = ring.unconsumed(page).map_err(|_| CloseReason::RxRing)?;
            if posted < needed {
                posted = ring.arm_after(page, needed).map_err(|_| CloseReason::RxRing)?;
            }
            if posted < needed {
                self.wait_for_buffers(link, now);
                return Ok(false);
            }
            link.note_work();
            link.blocked_since = None;
            link.stalled = false;
            loop {
                let Some(next) = link.queue.front() else { return Ok(false) };
                let (pages, needed) = (next.chain.pages(), next.slots());
                if needed > posted {
                    break;
                }
                let copies = if pages > 1 { MAX_COPIES } else { needed as usize };
                if batch.is_full_for(pages, copies) {
                    return Ok(true);
                }
                let Some(frame) = link.queue.pop_front() else { return Ok(false) };
                posted = posted.saturating_sub(needed);
                link.queued = link.queued.saturating_sub(pages);
                self.queued = self.queued.saturating_sub(pages);
                self.add_job(link, frame, batch);
            }
        }
    }

    fn wait_for_buffers(&mut self, link: &mut Link, now: u64) {
        if link.queue.is_empty() {
            return;
        }
        let since = *link.blocked_since.get_or_insert(now);
        if now.saturating_sub(since) >= DRAIN_NS && !is_planted(Defect::RxQueueNeverDropped) {
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
        self.queued = self.queued.saturating_sub(core::mem::take(&mut link.queued));
        dropped
    }

    /// Takes the requests of a frame and adds its copies: page after page into buffer after buffer, each filled but for
    /// the last.
    fn add_job(&mut self, link: &mut Link, frame: Queued, batch: &mut CopyBatch) {
        let Queued { chain, offload } = frame;
        let (peer, len) = (link.peer, chain.len());
        let tag = Tag::ToGuest(self.jobs.len()).encode();
        let mut buffer = take_request(link);
        let mut at = 0u16;
        let mut has_extra = offload.gso.is_some();
        let (head, mut tail) = chain.into_parts();
        for piece in core::iter::once(head).chain(tail.take()) {
            let (page, mut left) = piece.into_page();
            let mut from = 0u16;
            batch.begin(page, tag);
            while left > 0 {
                if usize::from(at) == PAGE_SIZE {
                    self.end_buffer(link, buffer.id, at, &mut has_extra);
                    buffer = take_request(link);
                    at = 0;
                }
                let part = left.min((PAGE_SIZE as u16).saturating_sub(at));
                batch
                    .to_peer(peer, buffer.gref, at, from, part)
                    .expect("a piece fits in a page and the batch has room");
                from = from.saturating_add(part);
                at = at.saturating_add(part);
                left = left.saturating_sub(part);
            }
        }
        self.end_buffer(link, buffer.id, at, &mut has_extra);
        let slots_end = self.slots.len();
        self.jobs.push(Job { link: link.id, len, offload, slots_end, good: true });
    }

    /// A buffer of the frame in hand is full; behind the first goes what says how to segment.
    fn end_buffer(&mut self, link: &mut Link, id: u16, len: u16, has_extra: &mut bool) {
        self.slots.push(Slot { id, len });
        if core::mem::take(has_extra) {
            let id = take_request(link).id;
            self.slots.push(Slot { id, len: 0 });
        }
    }

    /// A page of a frame is copied.
    pub(super) fn take(&mut self, job: usize, status: CopyStatus) {
        if let Some(job) = self.jobs.get_mut(job) {
            job.good &= status == CopyStatus::Ok;
        }
    }

    /// After the copies: answers the requests, in the order they were taken.
    pub(super) fn complete(&mut self, vifs: &mut Vifs) {
        let mut first = 0;
        for job in self.jobs.drain(..) {
            let slots = self.slots.get(first..job.slots_end).unwrap_or_default();
            first = job.slots_end;
            if let Some(link) = vifs.link_mut(job.link) {
                answer(link, &job, slots);
            }
        }
        self.slots.clear();
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

/// The next request. That there is one was counted before.
fn take_request(link: &mut Link) -> RxRequest {
    let (ring, page) = link.rx();
    RxRequest::decode(&ring.take(page).expect("a request was counted"))
}

/// Answers all slots of a frame. Of a frame that could not be copied each buffer goes back by itself, as an error.
fn answer(link: &mut Link, job: &Job, slots: &[Slot]) {
    if !job.good && !is_planted(Defect::RxCopyFailureIgnored) {
        link.counters.copy_failed = link.counters.copy_failed.saturating_add(1);
        for slot in slots {
            let flags = RxFlags(0);
            let error = RxResponse { id: slot.id, offset: 0, flags, status: STATUS_ERROR };
            link.respond_rx(&error.encode());
        }
        return;
    }
    link.counters.to_guest_frames = link.counters.to_guest_frames.saturating_add(1);
    link.counters.to_guest_bytes = link.counters.to_guest_bytes.saturating_add(job.len as u64);
    let data = slots.iter().filter(|slot| slot.len > 0).count();
    let mut sent = 0usize;
    for slot in slots {
        match (slot.len, job.offload.gso) {
            (0, Some(gso)) => link.respond_rx(&ExtraInfo::encode_gso(gso)),
            (len, _) => {
                let mut flags = if sent == 0 { first_flags(job.offload) } else { RxFlags(0) };
                sent = sent.saturating_add(1);
                if sent < data {
                    flags.0 |= RxFlags::MORE_DATA;
                }
                // No more than a page.
                let response =
                    RxResponse { id: slot.id, offset: 0, flags, status: len.cast_signed() };
                link.respond_rx(&response.encode());
            }
        }
    }
}

fn first_flags(offload: Offload) -> RxFlags {
    let extra = if offload.gso.is_some() { RxFlags::EXTRA_INFO } else { 0 };
    RxFlags(RxFlags::for_frame(offload).0 | extra)
}

impl Queued {
    /// Requests that the frame uses up.
    fn slots(&self) -> u32 {
        u32::try_from(self.chain.packed_slots(self.offload)).unwrap_or(u32::MAX)
    }
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
