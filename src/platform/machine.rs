//! What the event loop asks of the machine.

use core::num::NonZero;

use xen::mem::Page;
use xen::mem::ledger::{self, Part};
use xen::netback::Budget;
use xen::planted::{Defect, is_planted};
use xen::postmortem::{self, What};
use xen::{DomId, event, mem, time, xenstore};

use super::devices::{client_id, note};
use super::frames::{Tail, Unsent, chained, from_driver, to_driver};
use super::{Scope, XenMachine, memory};
use crate::event_loop::machine::{Arrival, Change, Effort, Machine, MemoryUse, Paged, Pipe, Work};
use crate::port::{Origin, PortId};
use crate::qrexec::CallId;
use crate::time::Instant;

/// Frames taken from the uplink in one turn.
const UPLINK_FRAMES_PER_TURN: usize = 128;
/// Bytes that a client may send before the next one's turn.
const CLIENT_QUANTUM: u32 = 16 << 10;
/// Frames taken from all clients in one turn while there is no uplink: they are only answered or dropped.
const FRAMES_WITHOUT_UPLINK: usize = 64;
/// Longest frame that the packet path makes in place of one that it got: an ICMP error of 576 bytes (RFC 1812).
const ANSWER_BYTES: usize = 14 + 576;
/// Pause until memory is looked for again when clients' frames wait for want of it, in nanoseconds.
const NO_PAGES_PAUSE_NS: u64 = 1_000_000;
/// Pause until work is tried again that could not begin for want of memory, in nanoseconds.
const SHORT_PAUSE_NS: u64 = 10_000_000;
/// Pages that stay free for control: rings and links of devices to come.
const RESERVED_PAGES: usize = 64;

impl Machine for XenMachine {
    type Page = Page;
    type Tail = Tail;
    type Scope = Scope;

    fn now(&self) -> Instant {
        self.clock.instant(time::system_time_ns())
    }

    fn shared_clock_ns(&self, instant: Instant) -> u64 {
        self.clock.shared_ns(instant)
    }

    fn uptime_us(&self) -> (u64, u64) {
        self.boot.uptime_us()
    }

    fn memory(&self) -> MemoryUse {
        memory::usage(&self.store)
    }

    fn effort(&self) -> Effort {
        let totals = self.back.totals();
        let effort = memory::effort(self.batches, totals.write_errors);
        Effort { limited_vifs: totals.limited, ..effort }
    }

    fn begin(&mut self, work: Work) -> Option<Scope> {
        let part = match work {
            Work::Packets => return Some(Scope::Booked(ledger::enter(Part::Packets))),
            Work::Database => Part::Database,
            Work::Rules => Part::Rules,
            Work::Calls => Part::Calls,
        };
        self.operation(part).map(Scope::Operation)
    }

    fn sleep(&mut self, until: Option<Instant>) {
        let is_short = core::mem::take(&mut self.is_short);
        if !is_short && (!self.changes.is_empty() || self.has_work()) {
            return event::send_held();
        }
        let before = time::system_time_ns();
        self.clock.turn(before);
        let loop_deadline = until.map(|instant| self.clock.shared_ns(instant));
        let pages_deadline = (self.is_starved && self.back.has_work())
            .then(|| before.saturating_add(NO_PAGES_PAUSE_NS));
        let deadlines = [
            loop_deadline,
            pages_deadline,
            self.back.next_deadline(),
            self.front.next_deadline(),
            self.requests.next_deadline(),
            self.links.next_deadline(),
            self.store.be_patient(before),
        ];
        // What could not begin is due all the time.
        let least = if is_short { before.saturating_add(SHORT_PAUSE_NS) } else { 0 };
        let deadline = deadlines.into_iter().flatten().min().map(|due| due.max(least));
        let deadline = if is_short { deadline.or(Some(least)) } else { deadline };
        event::wait_from(deadline, before);
        self.slept_until = Some(deadline);
    }

    fn advance(&mut self) -> Instant {
        let now = time::system_time_ns();
        match self.slept_until.take() {
            Some(deadline) => self.clock.woke(deadline, now),
            None => self.clock.turn(now),
        }
        self.now_ns = now;
        // Whoever is to be told anything in this turn is told at its end: one exit for all of them.
        event::hold();
        self.store.listen(now);
        self.take_port_events();
        self.take_store_messages(now);
        if let Some(_operation) = self.operation(Part::Netback) {
            self.back.advance(&mut self.store, now);
        }
        if let Some(_operation) = self.operation(Part::Netfront) {
            self.front.advance(&mut self.store, now);
        }
        if let Some(_operation) = self.operation(Part::Links) {
            self.take_device_events();
            self.links.advance(&mut self.store, &mut self.changes);
            if let Some(change) = self.requests.advance(&mut self.store, now) {
                self.changes.push_back(change);
            }
        }
        if let Some(_operation) = self.operation(Part::Store) {
            self.store.flush();
        }
        assert!(
            self.store.health() == xenstore::Health::Good,
            "the xenstore ring is corrupt: this domain can no longer be managed"
        );
        self.clock.instant(now)
    }

    fn next_change(&mut self) -> Option<Change> {
        let change = self.changes.pop_front()?;
        note(&change);
        Some(change)
    }

    fn receive_from_uplink(&mut self) {
        self.front.receive(UPLINK_FRAMES_PER_TURN, self.now_ns);
        let [_, from_uplink, ..] = &mut self.batches;
        let frames = self.front.frames();
        self.brought = frames;
        if frames > 0 {
            *from_uplink += 1;
            postmortem::note(What::FromUplink, [frames as u64, 0]);
        }
    }

    fn receive_from_clients(&mut self) {
        let room = if self.front.is_up() { self.front.send_room() } else { FRAMES_WITHOUT_UPLINK };
        let spare = mem::free_pages().saturating_sub(RESERVED_PAGES);
        self.is_starved = spare < self.back.least_budget();
        let budget = Budget { quantum: CLIENT_QUANTUM, total: room.min(spare) };
        self.back.receive(budget, self.now_ns);
        self.front.demand(self.back.has_work());
        let [from_clients, ..] = &mut self.batches;
        let frames = self.back.frames();
        self.taken = self.back.taken();
        if frames > 0 {
            *from_clients += 1;
            postmortem::note(What::FromClients, [frames as u64, 0]);
        }
    }

    fn next_frame(&mut self) -> Option<Arrival<Page, Tail>> {
        let (origin, chain, offload) = match self.front.next_frame() {
            Some(frame) => (Origin::Uplink, frame.chain, frame.offload),
            None => {
                let frame = self.back.next_frame()?;
                if is_planted(Defect::GrantedBeforeVerdict) {
                    self.grant_unjudged(&frame.chain);
                }
                let mut id = client_id(frame.vif);
                if is_planted(Defect::OriginConfused) {
                    id = self.another_client(id);
                }
                (Origin::Client(id), frame.chain, frame.offload)
            }
        };
        let len = chain.len();
        let (head, tail) = chain.into_parts();
        let (page, head) = head.into_page();
        let tail = (!tail.is_empty()).then_some(Tail(tail));
        let (head, offload) = (usize::from(head), from_driver(offload));
        Some(Arrival { origin, frame: Paged { page, head, len, tail, offload } })
    }

    fn spare_page(&mut self) -> Option<Page> {
        Page::alloc()
    }

    fn bytes(page: &mut Page, len: usize) -> &mut [u8] {
        // No more than needed: what was handed out is cleared before another domain may see the page.
        page.prefix_mut(len.max(ANSWER_BYTES))
    }

    fn send(&mut self, to: PortId, frame: Paged<Page, Tail>) {
        let to = match to {
            PortId::Client(id) if is_planted(Defect::DeliveredToAnother) => {
                PortId::Client(self.another_client(id))
            }
            to => to,
        };
        let offload = to_driver(frame.offload);
        let Some(chain) = chained(frame) else {
            return self.count_unsent(match to {
                PortId::Uplink => Unsent::UplinkUnsendable,
                PortId::Client(_) => Unsent::ClientUnsendable,
            });
        };
        // The page of a refused frame is free again.
        let [has_client, has_uplink] = &mut self.has_sent;
        match to {
            PortId::Client(_) => *has_client = true,
            PortId::Uplink => *has_uplink = true,
        }
        let refused = match to {
            PortId::Uplink => self.front.send(chain, offload).err().map(Unsent::of_uplink),
            PortId::Client(id) => match self.vifs.get(usize::from(id.0)).copied().flatten() {
                Some(vif) => self.back.send(vif.id, chain, offload).err().map(Unsent::of_client),
                None => Some(Unsent::ClientGone),
            },
        };
        if let Some(reason) = refused {
            self.count_unsent(reason);
        }
    }

    fn unsent(&self) -> &[(&'static str, u64)] {
        &self.unsent
    }

    fn flush(&mut self) {
        let now = self.now_ns;
        let [.., to_clients, to_uplink] = &mut self.batches;
        let [has_client, has_uplink] = core::mem::take(&mut self.has_sent);
        *to_clients += u64::from(has_client);
        *to_uplink += u64::from(has_uplink);
        self.back.flush(now);
        self.front.flush(now);
        // What a client's frame takes: its part of our time in this turn, or the NetVM's.
        let (taken, brought) =
            (core::mem::take(&mut self.taken), core::mem::take(&mut self.brought));
        let frame_ns = NonZero::new(taken as u64).map(|taken| {
            let frames = taken.saturating_add(brought as u64);
            let own_ns = time::system_time_ns().saturating_sub(now) / frames;
            own_ns.max(self.front.slot_ns())
        });
        self.back.end_turn(now, frame_ns);
        if frame_ns.is_some() {
            self.front.alone(self.back.is_one_alone(now));
        }
        if let Some(_operation) = self.operation(Part::Links) {
            self.take_device_events();
        }
        // While work waits for memory, so do the events that called for it: the next turn looks at them again.
        if !self.is_short {
            self.links.rearm();
        }
        self.store.flush();
    }

    fn database(&mut self) -> Option<&mut dyn Pipe> {
        self.links.database()
    }

    fn close_database(&mut self) {
        self.links.close_database(&mut self.store);
    }

    fn agent(&mut self) -> Option<&mut dyn Pipe> {
        self.links.agent()
    }

    fn reset_agent(&mut self) {
        self.links.reset_agent();
    }

    fn open_call(&mut self, call: CallId, domain: u16, port: u32) {
        self.links.open_call(&mut self.store, call, DomId(domain), port);
    }

    fn serve_call(&mut self, call: CallId, port: u32) {
        self.links.serve_call(&mut self.store, &mut self.changes, call, port);
    }

    fn call(&mut self, call: CallId) -> Option<&mut dyn Pipe> {
        self.links.call(call)
    }

    fn close_call(&mut self, call: CallId) {
        self.links.close_call(&mut self.store, call);
    }
}
