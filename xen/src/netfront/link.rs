//! The rings towards the backend, with every page that it may access.

use alloc::vec::Vec;

use super::limit::QueueLimit;
use super::slot_time::SlotTime;
use super::unheard::{Progress, Remedy, Unheard};
use super::{Config, Counters, DownReason, UplinkId};
use crate::abi::{DomId, EventPort, GrantRef};
use crate::event::Channel;
use crate::grant::{self, Access, Granted};
use crate::mem::Page;
use crate::netif::{
    Capabilities, EventGate, MAX_CHAIN_PAGES, MOST_WAIT_NS, Moment, RX_SLOT_BYTES, TX_SLOT_BYTES,
    Transfer,
};
use crate::ring::{FrontRing, Notify, RING_SLOTS};
use crate::shared::SharedPage;
use crate::time::is_ahead;

/// Sent pages of which nobody waits for the return are looked for after so long, in nanoseconds.
const LOOK_AFTER_NS: u64 = 20_000_000;

/// A ring in a page that is granted to the backend.
#[derive(Debug)]
pub(super) struct GrantedRing<const E: usize> {
    page: Granted,
    ring: FrontRing<E>,
}

impl<const E: usize> GrantedRing<E> {
    fn new(peer: DomId) -> Option<GrantedRing<E>> {
        let page = grant::grant(Page::alloc()?, peer, Access::ReadWrite).ok()?;
        let ring = FrontRing::init(page.shared());
        Some(GrantedRing { page, ring })
    }

    /// The ring with its page.
    pub(super) fn parts(&mut self) -> (&mut FrontRing<E>, &SharedPage) {
        (&mut self.ring, self.page.shared())
    }

    pub(super) fn ring(&self) -> &FrontRing<E> {
        &self.ring
    }

    pub(super) fn gref(&self) -> GrantRef {
        self.page.gref()
    }
}

/// One connection to a backend. Dropping it takes everything back; what the backend still uses goes to the grant
/// quarantine and is never used again while it does.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: UplinkId,
    pub(super) peer: DomId,
    pub(super) channel: Channel,
    pub(super) tx: GrantedRing<TX_SLOT_BYTES>,
    pub(super) rx: GrantedRing<RX_SLOT_BYTES>,
    /// Pages that the backend has, by request id.
    pub(super) sent: Vec<Option<Granted>>,
    pub(super) free_ids: Vec<u16>,
    pub(super) limit: QueueLimit,
    pub(super) slot_time: SlotTime,
    /// Slots without a page that the backend has: each says how to segment the frame before it.
    pub(super) extras: u32,
    /// Pages of the frame in hand, beyond its first.
    pub(super) granting: Vec<(Granted, u16)>,
    /// Whether frames of several slots are taken.
    pub(super) offloads: bool,
    /// Receive buffers that the backend has, by ring slot.
    pub(super) posted: Vec<Option<Granted>>,
    pub(super) capabilities: Capabilities,
    /// The backend was seen in state 4.
    pub(super) up: bool,
    /// Responses may wait.
    pub(super) ready: bool,
    /// Both rings were drained in this turn; at its end the next events are asked for.
    pub(super) is_drained: bool,
    pub(super) gate: EventGate,
    /// When answers are looked for that no event tells of, in ns.
    look_at: Option<u64>,
    /// That time has passed: from now on an event tells.
    is_overdue: bool,
    unheard: Unheard,
    /// Super-frames from the backend that are under way.
    pub(super) transfer: Transfer,
    /// When more of it are looked for without an event, in ns.
    transfer_at: Option<u64>,
    pub(super) counters: Counters,
}

impl Link {
    /// Makes rings and an event channel for a backend; `None` when memory, grants or ports are short.
    pub(super) fn new(
        id: UplinkId,
        peer: DomId,
        capabilities: Capabilities,
        config: &Config,
    ) -> Option<Link> {
        let channel = Channel::alloc_unbound(peer).ok()?;
        let mut free_ids = list(usize::from(config.tx_in_flight))?;
        free_ids.extend((0..config.tx_in_flight).rev());
        Some(Link {
            id,
            peer,
            channel,
            tx: GrantedRing::new(peer)?,
            rx: GrantedRing::new(peer)?,
            sent: slots()?,
            free_ids,
            limit: QueueLimit::new(RING_SLOTS),
            slot_time: SlotTime::default(),
            extras: 0,
            granting: list(MAX_CHAIN_PAGES)?,
            offloads: config.offloads,
            posted: slots()?,
            capabilities,
            up: false,
            ready: false,
            is_drained: false,
            gate: EventGate::default(),
            look_at: None,
            is_overdue: false,
            unheard: Unheard::default(),
            transfer: Transfer::default(),
            transfer_at: None,
            counters: Counters::default(),
        })
    }

    pub(super) fn port(&self) -> EventPort {
        self.channel.port()
    }

    /// Slots that frames can take now: one for each page, one more for each super-frame.
    pub(super) fn send_room(&self) -> usize {
        let room = self.free_ids.len().min(self.tx.ring().free() as usize);
        room.min(self.limit.room(self.tx.ring().in_flight()))
    }

    /// Receive buffers that the backend has.
    pub(super) fn posted(&self) -> usize {
        self.rx.ring().in_flight() as usize
    }

    /// Publishes new requests of both rings, and tells the backend if it asked for it.
    pub(super) fn push(&mut self, now: u64) {
        let (ring, page) = self.tx.parts();
        let pushed = ring.has_unpublished();
        let tx = ring.push(page);
        self.is_overdue &= !pushed;
        if ring.in_flight() > 0 {
            self.slot_time.begin(now);
        }
        let (ring, page) = self.rx.parts();
        let rx = ring.push(page);
        if tx == Notify::Needed || rx == Notify::Needed {
            self.channel.notify();
        }
        // An event that was asked for before these requests may come too soon.
        if pushed && self.limit.is_alone() && !self.is_drained {
            self.ready |= self.arm_tx(now) != Ok(false);
        }
        let progress = self.progress();
        self.unheard.note(progress, now);
    }

    fn progress(&mut self) -> Progress {
        let (ring, page) = self.tx.parts();
        let event = ring.event_wanted(page);
        Progress { is_due: ring.is_unheard(event), event, answered: ring.answered() }
    }

    /// When [`Link::listen`] is due, in ns.
    pub(super) fn unheard_deadline(&self) -> Option<u64> {
        self.unheard.deadline().filter(|_| self.up)
    }

    /// Tells the backend again of what it does not look at.
    pub(super) fn listen(&mut self, now: u64) -> Remedy {
        if self.unheard_deadline().is_none_or(|due| due > now) {
            return Remedy::None;
        }
        let progress = self.progress();
        let remedy = self.unheard.check(progress, now);
        if let Remedy::Repeat { .. } = remedy {
            self.counters.repeated_events = self.counters.repeated_events.saturating_add(1);
            self.channel.notify();
        }
        remedy
    }

    /// Asks for an event when enough sent pages have come back. `true`: they have meanwhile.
    fn arm_tx(&mut self, now: u64) -> Result<bool, DownReason> {
        let in_flight = self.tx.ring().in_flight();
        let overdue = self.is_overdue.then_some((in_flight / 2).max(1));
        let batch = self.limit.batch(in_flight).or(overdue);
        self.look_at = match batch {
            None if in_flight > 0 => self.look_at.or(Some(now.saturating_add(LOOK_AFTER_NS))),
            _ => None,
        };
        let wanted = batch.unwrap_or(in_flight.saturating_add(1));
        let (ring, page) = self.tx.parts();
        let count = ring.arm_after(page, wanted).map_err(|_| DownReason::TxRing)?;
        Ok(count >= wanted)
    }

    /// When [`Link::look`] is due, in ns.
    pub(super) fn look_deadline(&self) -> Option<u64> {
        [self.look_at, self.transfer_at].into_iter().flatten().min()
    }

    /// Whether there is something on the rings that no event tells of.
    pub(super) fn look(&mut self, now: u64) {
        self.ready |=
            self.transfer_at.take_if(|until| !is_ahead(*until, now, MOST_WAIT_NS)).is_some();
        let Some(due) = self.look_at else { return };
        self.is_overdue = due <= now;
        let (ring, page) = self.tx.parts();
        self.ready |= self.is_overdue || ring.unconsumed(page) != Ok(0);
    }

    /// The turn ends. If both rings were drained in it, looks once more, and if nothing has come meanwhile asks for the next
    /// events: while we are at work nobody needs to call us.
    pub(super) fn settle(&mut self, now: u64) -> Result<(), DownReason> {
        if !core::mem::take(&mut self.is_drained) {
            return Ok(());
        }
        let when = Moment { now, is_one_alone: self.limit.is_alone() };
        let gather = self.transfer.gather(when);
        self.transfer_at = gather.map(|gather| gather.until);
        let wanted = gather.map_or(1, |gather| gather.slots);
        let (ring, page) = self.rx.parts();
        if ring.unconsumed(page).map_err(|_| DownReason::RxRing)? >= wanted {
            return Ok(());
        }
        // Sent pages may come back in batches; a received frame should not wait.
        let has_answers = self.arm_tx(now)?;
        let (ring, page) = self.rx.parts();
        let rx = ring.arm_after(page, wanted).map_err(|_| DownReason::RxRing)?;
        if !has_answers && rx < wanted {
            self.ready = false;
            self.gate.settle(&self.channel, now);
        }
        Ok(())
    }
}

/// An empty list with room for `count`; `None` without memory for it.
fn list<T>(count: usize) -> Option<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).ok()?;
    Some(list)
}

/// A place for every slot of a ring.
fn slots() -> Option<Vec<Option<Granted>>> {
    let mut slots = list(RING_SLOTS as usize)?;
    slots.resize_with(RING_SLOTS as usize, || None);
    Some(slots)
}

/// Takes a page back from the backend after its response; a backend that still uses it is broken or hostile
/// (Xen Security Advisory 396), and the page is kept from any further use.
pub(super) fn take_back(granted: Granted) -> Result<Page, DownReason> {
    granted.revoke().map_err(|in_use| {
        drop(in_use);
        DownReason::StillInUse
    })
}
