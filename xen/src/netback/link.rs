//! The connected half of a vif: mapped rings, event channel, and the frames that wait for the client.

use alloc::collections::VecDeque;

use super::identity::{RxNotify, Settings};
use super::owed::Owed;
use super::pace::Pace;
use super::to_guest::ToGuest;
use super::{CloseReason, FRAME_COST, VifCounters, VifId};
use crate::abi::DomId;
use crate::event::Channel;
use crate::grant::{self, Access, Mapping};
use crate::netif::{
    Capabilities, Chain, EventGate, MOST_WAIT_NS, Moment, Offload, RX_SLOT_BYTES, TX_SLOT_BYTES,
    Transfer,
};
use crate::planted::{Defect, is_planted};
use crate::ring::{BackRing, Notify};
use crate::shared::SharedPage;
use crate::time::is_ahead;

const TX: usize = 0;
const RX: usize = 1;

/// A frame that waits for a receive buffer of the client.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) chain: Chain,
    pub(super) offload: Offload,
}

/// Holding it proves that both rings are mapped and the event channel is bound. It proves nothing about the frontend,
/// which may write anything into the rings at any time.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: VifId,
    pub(super) peer: DomId,
    pub(super) mapping: Mapping,
    pub(super) channel: Channel,
    tx: BackRing<TX_SLOT_BYTES>,
    rx: BackRing<RX_SLOT_BYTES>,
    pub(super) capabilities: Capabilities,
    pub(super) rx_notify: RxNotify,
    /// Requests may wait in the TX ring.
    pub(super) ready: bool,
    /// The TX ring was drained in this turn; at its end the next event is asked for.
    pub(super) is_drained: bool,
    /// Bytes that it may send before the others' turn; below zero what it has sent beyond.
    pub(super) credit: i64,
    /// How much of our time and the uplink's it takes beside others.
    pub(super) pace: Pace,
    /// When a stream is looked at without an event, in ns.
    look_at: Option<u64>,
    /// The super-frames that are on their way to the client.
    transfer: Transfer,
    gate: EventGate,
    /// RX requests that were there at the last event.
    rx_seen: u32,
    /// Responses were written that are not pushed yet.
    touched: bool,
    owed: Owed,
    pub(super) queue: VecDeque<Queued>,
    /// Pages of the frames in the queue.
    pub(super) queued: usize,
    pub(super) blocked_since: Option<u64>,
    pub(super) stalled: bool,
    pub(super) counters: VifCounters,
}

impl Link {
    /// Maps the rings and binds the event channel. `queue` is the bound of the pages that may wait.
    pub(super) fn attach(
        id: VifId,
        peer: DomId,
        settings: Settings,
        queue: usize,
    ) -> Result<Link, CloseReason> {
        let refs = [settings.tx_ring, settings.rx_ring];
        let mapping = grant::map(peer, &refs, Access::ReadWrite).map_err(CloseReason::Map)?;
        let tx = BackRing::attach(mapping.page(TX)).map_err(|_| CloseReason::TxRing)?;
        let rx = BackRing::attach(mapping.page(RX)).map_err(|_| CloseReason::RxRing)?;
        let channel =
            Channel::bind_interdomain(peer, settings.port).map_err(CloseReason::EventChannel)?;
        let mut waiting = VecDeque::new();
        waiting.try_reserve_exact(queue).map_err(|_| CloseReason::NoMemory)?;
        Ok(Link {
            id,
            peer,
            mapping,
            channel,
            tx,
            rx,
            capabilities: settings.capabilities,
            rx_notify: settings.rx_notify,
            ready: true,
            is_drained: false,
            look_at: None,
            transfer: Transfer::default(),
            credit: 0,
            pace: Pace::default(),
            gate: EventGate::default(),
            rx_seen: 0,
            touched: false,
            owed: Owed::default(),
            queue: waiting,
            queued: 0,
            blocked_since: None,
            stalled: false,
            counters: VifCounters::default(),
        })
    }

    pub(super) fn port(&self) -> crate::abi::EventPort {
        self.channel.port()
    }

    /// The TX ring with its page.
    pub(super) fn tx(&mut self) -> (&mut BackRing<TX_SLOT_BYTES>, &SharedPage) {
        (&mut self.tx, self.mapping.page(TX))
    }

    /// The RX ring with its page.
    pub(super) fn rx(&mut self) -> (&mut BackRing<RX_SLOT_BYTES>, &SharedPage) {
        (&mut self.rx, self.mapping.page(RX))
    }

    /// Begins a round: more credit, but never more than that of one round.
    pub(super) fn begin_round(&mut self, quantum: u32) {
        self.credit = self.credit.saturating_add(quantum.into()).min(quantum.into());
    }

    /// Takes what a frame costs off the credit.
    pub(super) fn charge(&mut self, bytes: u16) {
        self.pace.note(bytes.into());
        self.credit =
            self.credit.saturating_sub(i64::from(bytes)).saturating_sub(FRAME_COST.into());
    }

    /// Something useful was found or done.
    pub(super) fn note_work(&mut self) {
        self.gate.note_work();
    }

    pub(super) fn note_event(&mut self) {
        self.ready = true;
        self.look_at = None;
        self.gate.note_event();
        self.counters.events = self.counters.events.saturating_add(1);
    }

    /// The TX ring seems to be drained: asks for an event at the next request, or, of a stream, when it has some more. `false`: so
    /// many are there meanwhile.
    pub(super) fn wait_for_requests(&mut self, when: Moment) -> Result<bool, CloseReason> {
        // What the client answers to some super-frames waits for the next ones, which begin a turn anyway.
        let transfer = self.transfer.gather(when);
        let gather = self.pace.gather(when).or(transfer);
        let (ring, page) = self.tx();
        let (count, wanted) = match gather {
            None => (ring.final_check(page), 1),
            Some(gather) => (ring.arm_after(page, gather.slots), gather.slots),
        };
        let waits = count.map_err(|_| CloseReason::TxRing)? < wanted;
        self.look_at = gather.filter(|_| waits).map(|gather| gather.until);
        Ok(waits)
    }

    /// The turn ends. If the TX ring was drained in it, looks once more, and asks for an event: while we are at work nobody needs
    /// to call us.
    pub(super) fn end_turn(&mut self, when: Moment) -> Result<(), CloseReason> {
        if core::mem::take(&mut self.is_drained) {
            self.ready |= !self.wait_for_requests(when)?;
        }
        Ok(())
    }

    /// A super-frame is on its way to the client.
    pub(super) fn note_super_frame(&mut self) {
        self.transfer.note();
        self.ready |= self.look_at.is_some();
    }

    /// Whether requests may wait that could be taken now.
    pub(super) fn has_work(&self) -> bool {
        self.ready && !self.pace.rests()
    }

    /// Whether frames wait for buffers that the client does not tell of.
    pub(super) fn is_looked_at(&self) -> bool {
        self.rx_notify == RxNotify::No && (self.stalled || !self.queue.is_empty())
    }

    /// When something has to be done about it without an event.
    pub(super) fn deadline(&self, now: u64) -> Option<u64> {
        let queue = ToGuest::deadline(self, now);
        let (rest, event) = (self.pace.deadline(), self.owed.deadline());
        [self.gate.deadline(), queue, rest, self.look_at, event].into_iter().flatten().min()
    }

    /// Whether frames that wait for it, or the event that it is owed, have waited long enough.
    pub(super) fn is_due(&self, now: u64) -> bool {
        self.owed.is_due(now) || ToGuest::deadline(self, now).is_some_and(|due| due <= now)
    }

    /// Looks at a stream if it is time, or at once if the clock was set back.
    pub(super) fn look_if_due(&mut self, now: u64) {
        if self.look_at.take_if(|until| !is_ahead(*until, now, MOST_WAIT_NS)).is_some() {
            self.ready = true;
            self.pace.note_late();
        }
    }

    /// The TX ring is drained: let events through again, later if the frontend sends them for nothing.
    pub(super) fn settle(&mut self, now: u64) -> Result<(), CloseReason> {
        self.ready = false;
        self.rx.unconsumed(self.mapping.page(RX)).map_err(|_| CloseReason::RxRing)?;
        let rx_seen = self.rx.requests_seen();
        if rx_seen != core::mem::replace(&mut self.rx_seen, rx_seen) {
            self.gate.note_work();
        }
        self.gate.settle(&self.channel, now);
        Ok(())
    }

    /// Ends the pause of a frontend that was slowed down, when it is over.
    pub(super) fn open_if_due(&mut self, now: u64) {
        self.ready |= self.gate.open_if_due(&self.channel, now);
    }

    /// Writes one TX response.
    pub(super) fn respond_tx(&mut self, response: &[u8]) {
        self.tx.respond(self.mapping.page(TX), response);
        self.touched = true;
    }

    /// Writes one RX response.
    pub(super) fn respond_rx(&mut self, response: &[u8]) {
        self.rx.respond(self.mapping.page(RX), response);
        self.touched = true;
    }

    /// All slots of a frame of so many bytes are answered.
    pub(super) fn note_answer(&mut self, len: u16) {
        self.owed.note_answer(len);
    }

    /// Publishes what was written since the last push, and tells the frontend if it asked for it.
    pub(super) fn push(&mut self, now: u64) {
        if !core::mem::take(&mut self.touched) && !self.owed.is_due(now) {
            return;
        }
        let is_sent = self.tx.push(self.mapping.page(TX)) == Notify::Needed;
        let is_received = self.rx.push(self.mapping.page(RX)) == Notify::Needed;
        if self.owed.settle(is_sent, is_received, now) && !is_planted(Defect::NotifyForgotten) {
            self.channel.notify();
        }
    }
}
