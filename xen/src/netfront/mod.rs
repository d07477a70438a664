//! The frontend of the uplink: one network device whose backend is the NetVM.
//!
//! [`Frontend`] follows `device/vif` in xenstore, whatever the device's number, connects to the backend that dom0
//! names there, and starts again when the backend restarts, is replaced or goes away. No uplink is a normal state.
//!
//! * `device`: the device and what a look at its nodes found; `connect`: what leads to a look; `act`: decision
//!   (`xenbus::frontend_action`) and deed
//! * `link`: rings, event channel and every page that the backend may access
//! * `to_backend`, `from_backend`: the two directions
//! * `limit`: how many slots the backend may have; `slot_time`: how long it takes for one
//! * `unheard`: what is done about a backend that does not look at what it was told of
//!
//! The backend is not trusted. It sees a frame only between [`Frontend::send`] and its response, and a receive buffer
//! only until its response; a page that it does not let go is never used again, and the uplink is closed.
//!
//! # In the event loop
//! As for `netback` (whose documentation has the whole turn), with
//!
//! ```text
//! front.on_event(port); front.on_watch(&watch); front.on_reply(reply, &mut store, now);
//! front.advance(&mut store, now);
//! while let Some(event) = front.next_event() { ... }   // Up: read the addresses from QubesDB now
//! front.receive(64, now);                               // responses of sent frames, then received frames
//! while let Some(frame) = front.next_frame() { ... back.send(client, frame.chain, ...) }
//! ... front.send(chain, offload) ...                    // after the verdict, never before
//! front.flush(now);                                     // fresh buffers, push, notify
//! ```
#![forbid(unsafe_code)]

mod act;
mod connect;
mod device;
mod from_backend;
mod limit;
mod link;
mod slot_time;
mod to_backend;
mod types;
mod unheard;

use alloc::collections::{BTreeMap, VecDeque};

use crate::abi::EventPort;
use crate::grant;
use crate::mem::ledger;
use crate::netif::{Chain, Offload};
use crate::xenstore::ReqId;
use connect::Target;
use device::Device;
use link::Link;
pub use types::{Config, Counters, DownReason, Event, Frame, SendError, Status, Totals, UplinkId};

/// Most received frames that wait for the event loop.
const MAX_FRAMES: usize = 256;
/// Events of one turn, at most: it comes, is silent, goes and leaves something behind once.
const MAX_EVENTS: usize = 16;
/// Pages that are granted beside frames: rings, and connections to dom0.
const OTHER_GRANTS: usize = 128;
/// Pause between attempts to get pages back that a backend still uses, in ns.
const QUARANTINE_RETRY_NS: u64 = 500_000_000;

/// The uplink's network device.
pub struct Frontend {
    config: Config,
    device: Option<Device>,
    /// `device/vif` has to be listed.
    list: bool,
    /// A device that has just vanished and is not adopted again from a list that was under way.
    skip: Option<u32>,
    /// A device that takes the place of a closed one.
    successor: Option<u32>,
    /// The store's queue had no room for the last marks.
    store_full: bool,
    /// When to try again to get pages back from backends that still use them.
    retry_at: Option<u64>,
    asked: BTreeMap<ReqId, Target>,
    generation: u32,
    events: VecDeque<Event>,
    frames: VecDeque<Frame>,
    now: u64,
    totals: Totals,
}

impl Frontend {
    /// A frontend without a device; see [`Frontend::start`].
    pub fn new(config: Config) -> Frontend {
        crate::netif::prepare_tails(crate::mem::total_pages());
        let most = config.rx_buffers.saturating_add(config.tx_in_flight.into());
        grant::prepare(most.saturating_add(OTHER_GRANTS));
        let config = Config {
            rx_buffers: config.rx_buffers.min(256),
            tx_in_flight: config.tx_in_flight.min(256),
            offloads: config.offloads,
        };
        Frontend {
            config,
            device: None,
            list: false,
            skip: None,
            successor: None,
            store_full: false,
            retry_at: None,
            asked: BTreeMap::new(),
            generation: 0,
            events: VecDeque::with_capacity(MAX_EVENTS),
            frames: VecDeque::with_capacity(MAX_FRAMES),
            now: 0,
            totals: Totals::default(),
        }
    }

    fn link(&self) -> Option<&Link> {
        self.device.as_ref()?.link.as_ref()
    }

    fn link_mut(&mut self) -> Option<&mut Link> {
        self.device.as_mut()?.link.as_mut()
    }

    /// Takes note of an event; `false` if the port is not the uplink's.
    pub fn on_event(&mut self, port: EventPort) -> bool {
        let Some(link) = self.link_mut().filter(|link| link.port() == port) else { return false };
        link.ready = true;
        link.gate.note_event();
        link.counters.events = link.counters.events.saturating_add(1);
        true
    }

    /// Ups and downs since the last call.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether frames can flow.
    pub fn is_up(&self) -> bool {
        self.link().is_some_and(|link| link.up)
    }

    /// Slots that frames to [`Frontend::send`] may take now: one for each page, one more for each super-frame.
    pub fn send_room(&self) -> usize {
        self.link().filter(|link| link.up).map_or(0, Link::send_room)
    }

    /// Grants a frame to the backend; [`Frontend::flush`] tells it. To be called only for a frame that may leave: from
    /// here on the backend can read it.
    pub fn send(&mut self, chain: Chain, offload: Offload) -> Result<(), SendError> {
        let link = self.link_mut().filter(|link| link.up).ok_or(SendError::Down)?;
        to_backend::send(link, chain, offload)
    }

    /// Whether frames wait that [`Frontend::send_room`] did not suffice for.
    pub fn demand(&mut self, is_short: bool) {
        if let Some(link) = self.link_mut() {
            link.limit.demand(is_short);
        }
    }

    /// Whether all frames are those of one client: nobody waits behind another one's.
    pub fn alone(&mut self, is_alone: bool) {
        if let Some(link) = self.link_mut() {
            link.limit.alone(is_alone);
        }
    }

    /// How long the backend takes for a slot while it has any, in nanoseconds; 0 if that is not known.
    pub fn slot_ns(&self) -> u64 {
        self.link().map_or(0, |link| link.slot_time.slot_ns())
    }

    /// Takes back sent pages, then takes up to `budget` received frames for [`Frontend::next_frame`].
    pub fn receive(&mut self, budget: usize, now: u64) {
        self.now = now;
        let room = MAX_FRAMES.saturating_sub(self.frames.len());
        let frames = &mut self.frames;
        let Some(link) = self.device.as_mut().and_then(|device| device.link.as_mut()) else {
            return;
        };
        if !link.up {
            return;
        }
        link.look(now);
        if !link.ready {
            return;
        }
        if let Err(reason) = serve(link, budget.min(room), frames, now) {
            self.break_link(reason);
        }
    }

    /// Frames that wait for [`Frontend::next_frame`].
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// The next frame that [`Frontend::receive`] took.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Posts fresh receive buffers, publishes requests, notifies where asked, and asks for the next events.
    pub fn flush(&mut self, now: u64) {
        self.now = now;
        let target = self.config.rx_buffers;
        if let Some(link) = self.link_mut().filter(|link| link.up) {
            from_backend::refill(link, target);
            link.push(now);
            // What arrives meanwhile leaves the link ready for the next turn.
            if let Err(reason) = link.settle(now) {
                self.break_link(reason);
            }
        }
    }

    /// Whether responses wait that could be taken now.
    pub fn has_work(&self) -> bool {
        self.link().is_some_and(|link| link.up && link.ready)
    }

    /// Counters of the present connection.
    pub fn counters(&self) -> Counters {
        self.link().map_or_else(Counters::default, |link| link.counters)
    }

    /// Counters over all connections.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The device, if there is one.
    pub fn status(&self) -> Option<Status> {
        let device = self.device.as_ref()?;
        let link = device.link.as_ref();
        Some(Status {
            devid: device.devid,
            backend: device.backend_dom(),
            own: device.own,
            back: device.back,
            uplink: link.filter(|link| link.up).map(|link| link.id),
            in_flight: link.map_or(0, |link| link.tx.ring().in_flight() as usize),
            posted: link.map_or(0, Link::posted),
            reason: device.reason,
        })
    }

    /// Gives up a connection whose backend broke the protocol; xenstore follows with the next `advance`.
    fn break_link(&mut self, reason: DownReason) {
        self.totals.violations = self.totals.violations.saturating_add(1);
        self.give_up(reason);
    }

    /// Ends a connection of our own accord; xenstore follows with the next `advance`, and the backend may start again.
    fn give_up(&mut self, reason: DownReason) {
        self.disconnect(reason);
        if let Some(device) = &mut self.device {
            device.dirty = true;
        }
    }

    /// Takes every page back from the backend and closes the event channel.
    fn disconnect(&mut self, reason: DownReason) {
        let Some(device) = &mut self.device else { return };
        let Some(link) = device.link.take() else { return };
        device.reason = Some(reason);
        self.totals.down = self.totals.down.saturating_add(1);
        self.frames.clear();
        // An honest backend, too, unmaps our rings only after we have closed.
        self.retry_at = Some(self.now.saturating_add(QUARANTINE_RETRY_NS));
        let (uplink, was_up) = (link.id, link.up);
        drop(link);
        if let Some((part, bytes)) = ledger::take_leak(ledger::Owner::Uplink) {
            self.events.push_back(Event::Leak { part, bytes });
        }
        if was_up {
            self.events.push_back(Event::Down { uplink, reason });
        }
    }
}

/// Tries to get quarantined pages back when it is time; returns when to try again.
fn retry_quarantine(due: Option<u64>, now: u64) -> Option<u64> {
    if due.is_some_and(|due| due > now) {
        return due;
    }
    if due.is_some() {
        grant::retry_quarantine();
    }
    (grant::quarantined() > 0).then(|| now.saturating_add(QUARANTINE_RETRY_NS))
}

/// One drain of both rings.
fn serve(
    link: &mut Link,
    budget: usize,
    frames: &mut VecDeque<Frame>,
    now: u64,
) -> Result<(), DownReason> {
    let before = link.tx.ring().in_flight();
    to_backend::complete(link)?;
    let left = link.tx.ring().in_flight();
    link.limit.note(before.saturating_sub(left), left, now);
    link.slot_time.note(before.saturating_sub(left), left, now);
    link.is_drained = !from_backend::receive(link, budget, frames)?;
    Ok(())
}

#[cfg(test)]
mod tests;
