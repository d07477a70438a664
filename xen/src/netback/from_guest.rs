//! The clients' TX rings: requests in, whole frames in private pages out.
//!
//! Each turn takes a bounded number of packets from each ring, in turns, reads every slot once, and gathers their
//! copies in one batch. A packet whose slots are malformed closes its device; one that is refused or whose copy
//! fails is answered with an error. Every slot is answered exactly once.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::connect::Vifs;
use super::link::Link;
use super::{CloseReason, Frame};
use crate::grant::{CopyBatch, CopyStatus};
use crate::mem::Page;
use crate::netif::{
    Assembled, Assembler, DropReason, Limits, MAX_FRAGMENTS, MAX_FRAME_BYTES, STATUS_ERROR,
    STATUS_NULL, STATUS_OKAY, TxPacket, TxResponse,
};

/// Frames in one copy batch, and most frames that wait to be taken by the event loop.
pub(super) const BATCH_FRAMES: usize = 128;

/// How much one call of [`super::Backend::receive`] may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Frames from one vif.
    pub per_vif: usize,
    /// Frames in all; not above what the way out can take, so that the rest stays with its senders.
    pub total: usize,
}

/// How a drain of one ring ended.
pub(super) enum Drained {
    /// Nothing more is published.
    Empty,
    /// The budget or the batch ended first.
    More,
    /// No page is free.
    NoPage,
}

struct Job {
    link: super::VifId,
    packet: TxPacket,
}

/// The copy batch and the frames that came out of it.
pub(super) struct FromGuest {
    batch: CopyBatch,
    jobs: Vec<Job>,
    received: VecDeque<Frame>,
    assembler: Assembler,
}

impl FromGuest {
    pub(super) fn new() -> FromGuest {
        let limits =
            Limits { max_frame_bytes: MAX_FRAME_BYTES, gso_tcpv4: false, gso_tcpv6: false };
        FromGuest {
            batch: CopyBatch::with_capacity(BATCH_FRAMES, BATCH_FRAMES.saturating_mul(2)),
            jobs: Vec::with_capacity(BATCH_FRAMES),
            received: VecDeque::with_capacity(BATCH_FRAMES),
            assembler: Assembler::new(limits),
        }
    }

    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        self.received.pop_front()
    }

    /// Frames that can still be taken before the event loop has to fetch some.
    pub(super) fn room(&self) -> usize {
        BATCH_FRAMES.saturating_sub(self.received.len().saturating_add(self.jobs.len()))
    }

    /// Takes up to `budget` packets from the link's TX ring into the batch; lowers `budget` accordingly.
    pub(super) fn drain(
        &mut self,
        link: &mut Link,
        budget: &mut usize,
    ) -> Result<Drained, CloseReason> {
        loop {
            let (ring, page) = link.tx();
            if ring.unconsumed(page).map_err(|_| CloseReason::TxRing)? == 0
                && ring.final_check(page).map_err(|_| CloseReason::TxRing)? == 0
            {
                return Ok(Drained::Empty);
            }
            link.note_work();
            if *budget == 0 || self.batch.is_full_for(1, MAX_FRAGMENTS) {
                return Ok(Drained::More);
            }
            // First the page, then the request: without memory the requests stay where they are.
            let Some(buffer) = Page::alloc_recycled() else { return Ok(Drained::NoPage) };
            *budget = budget.saturating_sub(1);
            self.take_packet(link, buffer)?;
        }
    }

    fn take_packet(&mut self, link: &mut Link, buffer: Page) -> Result<(), CloseReason> {
        let (ring, page) = link.tx();
        let Some(first) = ring.take(page) else { return Ok(()) };
        let assembled = self.assembler.assemble(&first, || ring.take(page));
        match assembled.map_err(CloseReason::Slots)? {
            Assembled::Drop(packet, reason) => {
                link.counters.count_refused(reason);
                answer(link, &packet, STATUS_ERROR);
            }
            Assembled::Packet(packet) => self.add_job(link, buffer, packet),
        }
        Ok(())
    }

    fn add_job(&mut self, link: &mut Link, buffer: Page, packet: TxPacket) {
        self.batch.begin(buffer, self.jobs.len() as u64);
        let mut at = 0u16;
        for piece in packet.fragments() {
            // Lengths and offsets were checked by the assembler, and the batch has room for the most fragments.
            self.batch
                .from_peer(link.peer, piece.gref, piece.offset, at, piece.len)
                .expect("an assembled fragment fits in its page and the batch");
            at = at.saturating_add(piece.len);
        }
        self.jobs.push(Job { link: link.id, packet });
    }

    /// Runs the copies, answers every slot, keeps the good frames for [`FromGuest::next_frame`]. Frames of a link that
    /// is gone by now are dropped.
    pub(super) fn complete(&mut self, vifs: &mut Vifs) {
        if self.jobs.is_empty() {
            return;
        }
        self.batch.run();
        let (jobs, received) = (&self.jobs, &mut self.received);
        self.batch.finish(|page, tag, status| {
            let Some(job) = usize::try_from(tag).ok().and_then(|tag| jobs.get(tag)) else {
                return;
            };
            let Some(link) = vifs.link_mut(job.link) else { return };
            let len = job.packet.len();
            if status != CopyStatus::Ok {
                link.counters.copy_failed = link.counters.copy_failed.saturating_add(1);
                return answer(link, &job.packet, STATUS_ERROR);
            }
            answer(link, &job.packet, STATUS_OKAY);
            link.counters.count_from_guest(len);
            received.push_back(Frame { vif: job.link, page, len, offload: job.packet.offload() });
        });
        self.jobs.clear();
    }
}

/// Answers every slot of a packet once.
fn answer(link: &mut Link, packet: &TxPacket, status: i16) {
    packet.for_each_slot(|id| {
        let response = match id {
            Some(id) => TxResponse { id, status },
            None => TxResponse { id: 0, status: STATUS_NULL },
        };
        link.respond_tx(&response.encode());
    });
}

impl super::VifCounters {
    fn count_from_guest(&mut self, len: u16) {
        self.from_guest_frames = self.from_guest_frames.saturating_add(1);
        self.from_guest_bytes = self.from_guest_bytes.saturating_add(u64::from(len));
    }

    fn count_refused(&mut self, reason: DropReason) {
        let counter = match reason {
            DropReason::TooShort => &mut self.too_short,
            DropReason::TooLong => &mut self.too_long,
            DropReason::TooManyFragments => &mut self.too_many_fragments,
            DropReason::GsoNotOffered => &mut self.gso_not_offered,
            DropReason::GsoUnusable => &mut self.gso_unusable,
        };
        *counter = counter.saturating_add(1);
    }
}
