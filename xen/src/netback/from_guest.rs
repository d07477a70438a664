//! The clients' TX rings: requests in, whole frames in private pages out.
//!
//! Each turn takes a bounded number of packets from the rings, by deficit round robin ([`Budget`]), reads every slot once, and gathers their
//! copies in the batch of the turn. A packet whose slots are malformed closes its device; one that is refused or whose copy
//! fails is answered with an error. Every slot is answered exactly once.
//!
//! What fits one page is in one. Of a longer packet each slot goes to a page of its own, so that it takes one copy and not
//! two (a copy costs far more than its bytes); only the first page gets enough for all headers.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::connect::Vifs;
use super::link::Link;
use super::{CloseReason, Frame, Tag};
use crate::grant::{CopyBatch, CopyStatus};
use crate::mem::{PAGE_SIZE, Page};
use crate::netif::{
    Assembled, Assembler, Chain, DropReason, Fragment, HEAD_BYTES, Limits, MAX_CHAIN_PAGES,
    MAX_FRAGMENTS, MAX_FRAME_BYTES, Moment, Piece, STATUS_ERROR, STATUS_NULL, STATUS_OKAY,
    TxPacket, TxRequest, TxResponse,
};
use crate::planted::{Defect, is_planted};

/// Most frames that wait to be taken by the event loop.
const MAX_FRAMES: usize = 128;
/// Copies of one packet: one slot may be divided.
const MAX_COPIES: usize = MAX_FRAGMENTS + 1;

/// How much one call of [`super::Backend::receive`] may take.
///
/// Vifs whose frames wait are served by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995): in each round one gets
/// `quantum` bytes of credit and sends while it has any; what its last frame took beyond, it owes. Rounds follow each other
/// until nothing waits or `total` is used up, so that nobody who is alone waits for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of one vif in one round; each frame costs [`FRAME_COST`] besides its own.
    pub quantum: u32,
    /// Slots in all, never exceeded: one for each page of a frame, one more for each super-frame. That is what a frame takes
    /// in the ring of the way out; not above what that can take, so that the rest stays with its senders. Nothing is taken
    /// while it is below [`super::Backend::least_budget`].
    pub total: usize,
}

/// What a frame costs besides its bytes, in bytes: whoever sends small ones takes our time with their number.
pub const FRAME_COST: u32 = 1024;

/// How a drain of one ring ended.
pub(super) enum Drained {
    /// Nothing more is published.
    Empty,
    /// The batch is full.
    Full,
    /// The budget ended, or too many frames wait.
    Spent,
    /// The client rests, or has sent what one may send at once.
    Rests,
    /// No page is free.
    NoPage,
}

struct Job {
    link: super::VifId,
    packet: TxPacket,
    /// Bytes in each of its pages.
    lens: [u16; MAX_CHAIN_PAGES],
    /// What has come back from the batch so far; nothing if a copy failed.
    chain: Option<Chain>,
    failed: bool,
}

/// Packets whose copies are in the batch, and the frames that came out of it.
pub(super) struct FromGuest {
    jobs: Vec<Job>,
    received: VecDeque<Frame>,
    /// Packets taken off the rings since [`FromGuest::begin`].
    taken: usize,
    assembler: Assembler,
    /// Pages for the packet in hand, beyond its first.
    pages: Vec<Page>,
    /// Pages and copies that the largest packet takes.
    largest: (usize, usize),
    least_budget: usize,
}

impl FromGuest {
    pub(super) fn new(config: &super::Config) -> FromGuest {
        let (gso_tcpv4, gso_tcpv6) = (config.offloads, config.offloads);
        let limits = Limits { max_frame_bytes: MAX_FRAME_BYTES, gso_tcpv4, gso_tcpv6 };
        let largest =
            if config.offloads { (MAX_CHAIN_PAGES, MAX_COPIES) } else { (1, MAX_FRAGMENTS) };
        FromGuest {
            jobs: Vec::with_capacity(MAX_FRAMES),
            received: VecDeque::with_capacity(MAX_FRAMES),
            taken: 0,
            assembler: Assembler::new(limits),
            pages: Vec::with_capacity(MAX_CHAIN_PAGES),
            largest,
            least_budget: config.least_budget(),
        }
    }

    pub(super) fn begin(&mut self) {
        self.taken = 0;
    }

    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    pub(super) fn frames(&self) -> usize {
        self.received.len()
    }

    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        self.received.pop_front()
    }

    /// Frames that can still be taken before the event loop has to fetch some.
    pub(super) fn room(&self) -> usize {
        MAX_FRAMES.saturating_sub(self.received.len().saturating_add(self.jobs.len()))
    }

    /// Takes packets from the link's TX ring into the batch; lowers `budget` accordingly.
    pub(super) fn drain(
        &mut self,
        link: &mut Link,
        budget: &mut Budget,
        batch: &mut CopyBatch,
        when: Moment,
    ) -> Result<Drained, CloseReason> {
        loop {
            let (ring, page) = link.tx();
            let waiting = ring.unconsumed(page).map_err(|_| CloseReason::TxRing)?;
            if waiting == 0 {
                link.is_drained = true;
                return Ok(Drained::Empty);
            }
            // What is left of a stream after a whole batch waits for more of it.
            if self.room() == 0 && link.wait_for_requests(when)? {
                return Ok(Drained::Empty);
            }
            link.note_work();
            if link.pace.rests() {
                return Ok(Drained::Rests);
            }
            let is_spent = link.credit <= 0 && !is_planted(Defect::ClientBudgetIgnored);
            if is_spent || budget.total < self.least_budget || self.room() == 0 {
                return Ok(Drained::Spent);
            }
            let (pages, copies) = self.largest;
            if batch.is_full_for(pages, copies) {
                return Ok(Drained::Full);
            }
            // First the page, then the request: without memory the requests stay where they are.
            let Some(buffer) = Page::alloc_recycled() else { return Ok(Drained::NoPage) };
            let slots = self.take_packet(link, buffer, batch)?;
            budget.total = budget.total.saturating_sub(slots);
        }
    }

    /// Returns the slots that the packet takes of the budget; what it costs its sender is booked.
    fn take_packet(
        &mut self,
        link: &mut Link,
        buffer: Page,
        batch: &mut CopyBatch,
    ) -> Result<usize, CloseReason> {
        let (ring, page) = link.tx();
        let Some(first) = ring.take(page) else { return Ok(1) };
        self.taken = self.taken.saturating_add(1);
        let assembled = self.assembler.assemble(&first, || ring.take(page));
        match assembled.map_err(CloseReason::Slots)? {
            Assembled::Drop(packet, reason) => {
                link.charge(packet.len());
                link.counters.count_refused(reason);
                answer(link, &packet, STATUS_ERROR);
                Ok(1)
            }
            Assembled::Packet(packet) => {
                link.charge(packet.len());
                let pages = pages(&packet);
                if pages > 1 && !self.collect_pages(pages.saturating_sub(1)) {
                    link.counters.no_page = link.counters.no_page.saturating_add(1);
                    answer(link, &packet, STATUS_ERROR);
                    return Ok(1);
                }
                let is_super = packet.offload().gso.is_some();
                let slots = pages.saturating_add(usize::from(is_super));
                if !is_super {
                    link.pace.note_single();
                }
                self.add_job(link, buffer, packet, batch);
                Ok(slots)
            }
        }
    }

    /// Takes so many pages at once, or none.
    fn collect_pages(&mut self, count: usize) -> bool {
        while self.pages.len() < count {
            let Some(page) = Page::alloc_recycled() else {
                self.pages.clear();
                return false;
            };
            self.pages.push(page);
        }
        true
    }

    fn add_job(&mut self, link: &mut Link, buffer: Page, packet: TxPacket, batch: &mut CopyBatch) {
        let tag = Tag::FromGuest(self.jobs.len()).encode();
        batch.begin(buffer, tag);
        let mut lens = [0; MAX_CHAIN_PAGES];
        place(&packet, |copy| {
            if copy.at == 0 && copy.page > 0 {
                let page = self.pages.pop().expect("pages were counted and collected");
                batch.begin(page, tag);
            }
            // Lengths and offsets were checked by the assembler, and the batch has room for the largest packet.
            batch
                .from_peer(link.peer, copy.piece.gref, copy.from, copy.at, copy.len)
                .expect("an assembled fragment fits in its page and the batch");
            if let Some(len) = lens.get_mut(copy.page) {
                *len = copy.at.saturating_add(copy.len);
            }
        });
        self.jobs.push(Job { link: link.id, packet, lens, chain: None, failed: false });
    }

    /// A page of a packet comes back from the batch.
    pub(super) fn take(&mut self, job: usize, page: Page, status: CopyStatus) {
        if let Some(job) = self.jobs.get_mut(job) {
            job.take(page, status);
        }
    }

    /// After the copies: answers every slot, keeps the good frames for [`FromGuest::next_frame`]. Frames of a link that is
    /// gone by now are dropped.
    pub(super) fn complete(&mut self, vifs: &mut Vifs) {
        for job in &mut self.jobs {
            let Some(link) = vifs.link_mut(job.link) else { continue };
            if is_planted(Defect::TxSlotReadTwice) {
                job.read_size_again(link);
            }
            match job.chain.take() {
                Some(chain) if !job.failed || is_planted(Defect::TxCopyFailureIgnored) => {
                    answer(link, &job.packet, STATUS_OKAY);
                    link.counters.count_from_guest(job.packet.len());
                    let offload = job.packet.offload();
                    self.received.push_back(Frame { vif: job.link, chain, offload });
                }
                _ => {
                    link.counters.copy_failed = link.counters.copy_failed.saturating_add(1);
                    answer(link, &job.packet, STATUS_ERROR);
                }
            }
        }
        self.jobs.clear();
    }
}

impl Job {
    /// What [`Defect::TxSlotReadTwice`] does.
    fn read_size_again(&mut self, link: &mut Link) {
        let (ring, page) = link.tx();
        let size = TxRequest::decode(&ring.read_again(page)).size;
        let (page, _) = match self.chain.take().map(Chain::into_parts) {
            Some((head, _)) => head.into_page(),
            None => return,
        };
        self.chain = Some(Chain::new(page, size.min(PAGE_SIZE as u16)));
    }

    /// Takes the next page of the packet out of the batch.
    fn take(&mut self, page: Page, status: CopyStatus) {
        let number = self.chain.as_ref().map_or(0, Chain::pages);
        let piece = Piece::new(page, self.lens.get(number).copied().unwrap_or(0));
        // Without heap for the list of pages the packet is as good as not copied.
        let kept = match &mut self.chain {
            Some(chain) => chain.push(piece),
            None => {
                self.chain = Some(Chain::of(piece));
                true
            }
        };
        self.failed |= !kept || status != CopyStatus::Ok;
    }
}

/// A copy of a packet: `len` bytes from offset `from` of a slot's page to offset `at` of our page number `page`.
struct Placed<'a> {
    piece: &'a Fragment,
    from: u16,
    page: usize,
    at: u16,
    len: u16,
}

/// Puts a packet into pages: a slot that does not fit into what is left of a page begins a new one, but of the first page
/// so much is filled that it holds all headers. At most one slot is divided, and there are no more pages than slots.
fn place<'a>(packet: &'a TxPacket, mut each: impl FnMut(Placed<'a>)) {
    const PAGE: u16 = PAGE_SIZE as u16;
    const HEAD: u16 = HEAD_BYTES as u16;
    let (mut page, mut at) = (0usize, 0u16);
    for piece in packet.fragments() {
        let (mut from, mut left) = (piece.offset, piece.len);
        while left > 0 {
            let len = match left <= PAGE.saturating_sub(at) {
                true => left,
                false if page == 0 && at < HEAD => HEAD.saturating_sub(at),
                false => {
                    (page, at) = (page.saturating_add(1), 0);
                    left
                }
            };
            each(Placed { piece, from, page, at, len });
            from = from.saturating_add(len);
            at = at.saturating_add(len);
            left = left.saturating_sub(len);
        }
    }
}

fn pages(packet: &TxPacket) -> usize {
    let mut last = 0;
    place(packet, |copy| last = copy.page);
    last.saturating_add(1)
}

/// Answers every slot of a packet once.
fn answer(link: &mut Link, packet: &TxPacket, status: i16) {
    if status == STATUS_ERROR && is_planted(Defect::TxErrorUnanswered) {
        return;
    }
    link.note_answer(packet.len());
    packet.for_each_slot(|id| {
        let response = match id {
            Some(id) => TxResponse { id, status },
            None => TxResponse { id: 0, status: STATUS_NULL },
        };
        link.respond_tx(&response.encode());
        if is_planted(Defect::TxAnsweredTwice) {
            link.respond_tx(&response.encode());
        }
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
