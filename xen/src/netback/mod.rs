//! The backend of any number of clients' network devices (vifs).
//!
//! [`Backend`] finds vifs in xenstore, follows each through its life, and moves frames between the clients' rings and
//! private pages. Vifs are independent: whatever one frontend does or omits, the others do not notice.
//!
//! * `identity`: who a vif belongs to (backend directory only), and what its frontend published
//! * `connect`: one vif and what a look at its nodes found; `lifecycle`: what leads to a look; `act`: decision
//!   (`xenbus::backend_action`) and deed
//! * `link`: the mapped rings and the event channel of one connection
//! * `from_guest`, `to_guest`: the two directions, which share a batch of grant copies
//! * `turn`: whose frames are taken, in rounds; `pace`: what single frames owe to others; `lone`: whether anybody else
//!   has any; `stream`: how many come together if not
//! * `owed`: when a client is told that its frames were taken
//! * `slot_set`: which vifs a turn has to do with, so that it costs nothing for all others
//!
//! # In the event loop
//! Nothing here waits. One turn of the loop is:
//!
//! ```text
//! event::take_pending(|port| { back.on_event(port); ... });
//! while let Some(event) = store.poll() {              // with a budget
//!     match event {                                    // each to its owner
//!         Event::Reply(reply) => back.on_reply(reply, &mut store, now),
//!         Event::Watch(watch) => back.on_watch(&watch),
//!     }
//! }
//! back.advance(&mut store, now);                       // timers, xenstore work
//! while let Some(event) = back.next_event() { ... }    // ports come and go
//! ... back.send(vif, chain, offload) ...               // what came from the uplink
//! back.receive(Budget { quantum: 16 << 10, total: uplink.send_room() }, now); // copies both ways
//! while let Some(frame) = back.next_frame() {          // verdict, then
//!     ... uplink.send(frame.chain, offload) ...        // or back.send(other, ...)
//! }
//! back.flush(now);                                     // copies to guests, push, notify, ask for events
//! back.end_turn(now, frame_ns);                        // whose frames take the others' time; who is done
//! store.flush();
//! if !back.has_work() { event::wait(back.next_deadline()) }
//! ```
//!
//! `receive` takes frames of at most `Budget::total` slots, so that a full uplink leaves the rest in the clients' rings,
//! whose TCP then slows down by itself. `has_work` says that requests are waiting: when the uplink is what limits (its
//! room is below `least_budget`), sleep anyway, its event ends the wait.
#![forbid(unsafe_code)]

mod act;
mod connect;
mod from_guest;
mod identity;
mod lifecycle;
mod link;
mod lone;
mod owed;
mod pace;
mod slot_set;
mod stream;
mod to_guest;
mod turn;
mod types;

use alloc::collections::{BTreeMap, VecDeque};

use crate::abi::EventPort;
use crate::grant::CopyBatch;
use crate::mem::ledger;
use crate::netif::{Chain, Moment, Offload};
use crate::planted::{Defect, is_planted};
use crate::postmortem::{self, What};
use crate::xenstore::ReqId;
use connect::Vifs;
use from_guest::FromGuest;
pub use from_guest::{Budget, FRAME_COST};
pub use identity::{Identity, IdentityError, Setting};
pub(crate) use identity::{parse_mac, parse_mtu};
use lifecycle::{Scan, Target};
use link::{Link, Queued};
use lone::Lone;
use pace::Ageing;
use slot_set::SlotSet;
use to_guest::ToGuest;
pub use types::{
    CloseReason, Config, Event, Frame, SendError, Totals, VifCounters, VifId, VifStatus,
};

/// Pages in one batch of copies.
const BATCH_PAGES: usize = 256;
/// Copies in one batch.
const BATCH_COPIES: usize = 2 * BATCH_PAGES;
/// Pages that may wait for one client even when many share the total.
const LEAST_QUOTA: usize = 8;
/// Pause before the next attempt when no page was free, in ns.
const NO_PAGE_PAUSE_NS: u64 = 1_000_000;

/// Whose a page in the batch of copies is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    /// Of the packet with this number.
    FromGuest(usize),
    /// Of the frame with this number.
    ToGuest(usize),
}

impl Tag {
    const fn encode(self) -> u64 {
        match self {
            Self::FromGuest(job) => (job as u64) << 1,
            Self::ToGuest(job) => (job as u64) << 1 | 1,
        }
    }

    const fn decode(tag: u64) -> Self {
        let job = (tag >> 1) as usize;
        if tag & 1 == 0 { Self::FromGuest(job) } else { Self::ToGuest(job) }
    }
}

/// All vifs of this domain, and the copies from and to their clients.
pub struct Backend {
    config: Config,
    vifs: Vifs,
    ports: BTreeMap<EventPort, usize>,
    /// Those whose nodes have changed.
    dirty: SlotSet,
    /// Those that a turn has to do with: had an event, may have requests, or frames on their way.
    busy: SlotSet,
    /// Those that wait for a time, or for the store.
    timed: SlotSet,
    asked: BTreeMap<ReqId, Target>,
    scan: Scan,
    generation: u32,
    events: VecDeque<Event>,
    copies: CopyBatch,
    from: FromGuest,
    to: ToGuest,
    /// Slot whose turn is next.
    turn: usize,
    /// The slot whose round the end of the last call has cut off.
    cut_off: Option<usize>,
    /// The store's queue had no room for the last marks.
    store_full: bool,
    /// The last drain ended for want of a page.
    starved: Option<u64>,
    now: u64,
    totals: Totals,
    /// The store had no room for another node; a vif that goes makes some.
    is_quota_used_up: bool,
    ageing: Ageing,
    lone: Lone,
}

impl Backend {
    /// A backend without vifs; see [`Backend::start`].
    pub fn new(config: Config) -> Backend {
        crate::netif::prepare_tails(crate::mem::total_pages());
        Backend {
            config,
            vifs: Vifs::new(config.max_vifs),
            ports: BTreeMap::new(),
            dirty: SlotSet::new(config.max_vifs),
            busy: SlotSet::new(config.max_vifs),
            timed: SlotSet::new(config.max_vifs),
            asked: BTreeMap::new(),
            scan: Scan::default(),
            generation: 0,
            // Taken each turn: a vif comes and goes once in it, and may leave something behind.
            events: VecDeque::with_capacity(config.max_vifs.saturating_mul(4)),
            copies: CopyBatch::with_capacity(BATCH_PAGES, BATCH_COPIES),
            from: FromGuest::new(&config),
            to: ToGuest::new(),
            turn: 0,
            cut_off: None,
            store_full: false,
            starved: None,
            now: 0,
            totals: Totals::default(),
            is_quota_used_up: false,
            ageing: Ageing::default(),
            lone: Lone::default(),
        }
    }

    /// Takes note of an event; `false` if the port belongs to none of the vifs.
    pub fn on_event(&mut self, port: EventPort) -> bool {
        let Some(slot) = self.ports.get(&port) else { return false };
        if let Some(link) = self.vifs.get_mut(*slot).and_then(|vif| vif.link.as_mut()) {
            link.note_event();
            // Of who was not at work it is not known how much others were meanwhile.
            link.pace.look_beside(self.ageing.all());
            self.busy.mark(*slot);
        }
        true
    }

    /// Connections that came, went or were refused since the last call.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Runs the copies that were gathered, and answers whose they are.
    fn complete(&mut self) {
        if self.copies.is_empty() {
            return;
        }
        self.copies.run();
        let (from, to) = (&mut self.from, &mut self.to);
        self.copies.finish(|page, tag, status| match Tag::decode(tag) {
            Tag::FromGuest(job) => from.take(job, page, status),
            Tag::ToGuest(job) => to.take(job, status),
        });
        self.from.complete(&mut self.vifs);
        self.to.complete(&mut self.vifs);
    }

    /// What [`Budget::total`] must hold for frames to be taken: the largest frame that a client may send.
    pub fn least_budget(&self) -> usize {
        self.config.least_budget()
    }

    /// Frames that wait for [`Backend::next_frame`].
    pub fn frames(&self) -> usize {
        self.from.frames()
    }

    /// The next frame that [`Backend::receive`] took.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.from.next_frame()
    }

    /// Queues a frame for a client; [`Backend::flush`] copies it. The newest frame is the one that is dropped when the
    /// queue is full.
    pub fn send(&mut self, vif: VifId, chain: Chain, offload: Offload) -> Result<(), SendError> {
        let total = self.config.queue_total;
        let share = (total / self.ports.len().max(1)).max(LEAST_QUOTA);
        // Who has more than its share leaves as much to others as it has itself, however few have anything waiting.
        let free = total.saturating_sub(self.to.queued());
        let quota = share.max(free).min(self.config.queue_per_vif);
        let link = self.vifs.link_mut(vif).ok_or(SendError::Gone)?;
        self.busy.mark(vif.slot());
        self.lone.note(vif.slot(), self.now);
        let recent = link.pace.recent();
        link.pace.note(chain.len() as u64);
        self.ageing.note(link.pace.recent().saturating_sub(recent));
        if offload.gso.is_some() {
            link.note_super_frame();
        }
        self.to.enqueue(link, quota, total, Queued { chain, offload })
    }

    /// Copies waiting frames to the clients that have buffers, answers requests, notifies where asked, and asks for the next
    /// events.
    pub fn flush(&mut self, now: u64) {
        self.now = now;
        self.pump_all(now);
        self.complete();
        let when = Moment { now, is_one_alone: self.is_one_alone(now) };
        let mut at = 0;
        while let Some(slot) = self.busy.next_in(at, usize::MAX) {
            at = slot.saturating_add(1);
            if let Some(link) = self.vifs.get_mut(slot).and_then(|vif| vif.link.as_mut()) {
                link.push(now);
                if let Err(reason) = link.end_turn(when) {
                    self.break_link(slot, reason);
                }
            }
        }
    }

    /// Gathers the copies of what waits for clients that have buffers.
    fn pump_all(&mut self, now: u64) {
        let mut at = 0;
        while let Some(slot) = self.busy.next_in(at, usize::MAX) {
            at = slot.saturating_add(1);
            self.pump(slot, now);
        }
    }

    fn pump(&mut self, slot: usize, now: u64) {
        while let Some(link) = self.vifs.get_mut(slot).and_then(|vif| vif.link.as_mut()) {
            match self.to.pump(link, now, &mut self.copies) {
                Ok(false) => return,
                Ok(true) => self.complete(),
                Err(reason) => return self.break_link(slot, reason),
            }
        }
    }

    /// Whether requests of clients wait that could be taken now.
    pub fn has_work(&self) -> bool {
        let has_work = |slot: usize| {
            let link = self.vifs.get(slot).and_then(|vif| vif.link.as_ref());
            link.is_some_and(Link::has_work)
        };
        debug_assert!(
            (0..self.vifs.bound()).all(|slot| !has_work(slot) || self.busy.contains(slot)),
            "a vif with work is not among those that have some"
        );
        let busy = |from: usize| self.busy.next_in(from, usize::MAX);
        let mut all = core::iter::successors(busy(0), |slot| busy(slot.saturating_add(1)));
        self.starved.is_none() && all.any(has_work)
    }

    /// When [`Backend::advance`] has to be called at the latest, in ns.
    pub fn next_deadline(&self) -> Option<u64> {
        let marked = self.scan.is_pending() || !self.dirty.is_empty();
        // Without room in the store's queue its next reply is what we wait for.
        let at_once = (marked && !self.store_full).then_some(self.now);
        let of_vif = |slot: usize| {
            let vif = self.vifs.get(slot)?;
            let look = vif.deadline().filter(|_| !self.dirty.contains(slot));
            let link = vif.link.as_ref().and_then(|link| link.deadline(self.now));
            [look, link].into_iter().flatten().min()
        };
        let next = |from: usize| self.next_awaited(from);
        let all = core::iter::successors(next(0), |slot| next(slot.saturating_add(1)));
        let vifs = all.filter_map(of_vif).min();
        debug_assert_eq!(
            vifs,
            (0..self.vifs.bound()).filter_map(of_vif).min(),
            "a vif with a deadline is not among those that have one"
        );
        [vifs, self.starved, at_once].into_iter().flatten().min()
    }

    /// Counters of one connection.
    pub fn counters(&self, vif: VifId) -> Option<VifCounters> {
        self.vifs.link(vif).map(|link| link.counters)
    }

    /// Counters over all vifs.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Pages of frames that wait for clients.
    pub fn queued(&self) -> usize {
        self.to.queued()
    }

    /// All vifs that are known.
    pub fn vifs(&self) -> impl Iterator<Item = VifStatus> {
        self.vifs.iter().map(|(_, vif)| VifStatus {
            dom: vif.dom,
            devid: vif.devid,
            state: vif.state,
            vif: vif.link.as_ref().map(|link| link.id),
            queued: vif.link.as_ref().map_or(0, |link| link.queued),
            reason: vif.reason,
        })
    }

    /// Closes a connection whose frontend broke the protocol; xenstore follows with the next `advance`.
    fn break_link(&mut self, slot: usize, reason: CloseReason) {
        self.totals.violations = self.totals.violations.saturating_add(1);
        postmortem::note(What::Violation, [slot as u64, 0]);
        self.detach(slot, reason);
        self.dirty.mark(slot);
    }

    /// Gives up the rings, the event channel and the waiting frames of a vif, if it has them.
    fn detach(&mut self, slot: usize, reason: CloseReason) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let Some(mut link) = vif.link.take() else { return };
        self.timed.mark(slot);
        vif.reason = Some(reason);
        self.to.drop_queue(&mut link);
        self.ports.remove(&link.port());
        self.totals.disconnected = self.totals.disconnected.saturating_add(1);
        let vif = link.id;
        let_go(link);
        if let Some((part, bytes)) = ledger::take_leak(ledger::Owner::Vif(slot)) {
            self.events.push_back(Event::Leak { vif, part, bytes });
        }
        self.events.push_back(Event::Disconnected { vif, reason });
    }

    /// Makes a link of what the frontend published.
    fn attach(
        &mut self,
        slot: usize,
        settings: identity::Settings,
        identity: Identity,
    ) -> Result<(), CloseReason> {
        self.generation = self.generation.wrapping_add(1);
        let id =
            VifId { slot: u32::try_from(slot).unwrap_or(u32::MAX), generation: self.generation };
        let booked = ledger::enter_for(ledger::Part::Netback, ledger::Owner::Vif(slot));
        let link = Link::attach(id, identity.dom, settings, self.config.queue_per_vif);
        drop(booked);
        let link = link?;
        let Some(vif) = self.vifs.get_mut(slot) else { return Ok(()) };
        let capabilities = link.capabilities;
        self.ports.insert(link.port(), slot);
        vif.link = Some(link);
        vif.reason = None;
        self.busy.mark(slot);
        self.totals.connected = self.totals.connected.saturating_add(1);
        self.events.push_back(Event::Connected { vif: id, identity, capabilities });
        Ok(())
    }
}

/// Gives back the rings and the event channel.
fn let_go(link: Link) {
    if is_planted(Defect::PortLeaked) {
        core::mem::forget(link.channel);
    } else if is_planted(Defect::MappingLeaked) {
        core::mem::forget(link.mapping);
    }
}

#[cfg(test)]
mod tests;
