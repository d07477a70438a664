//! The machine of the image: Xen's devices and links behind the loop's [`Machine`] trait. Adapters only, no policy.
//!
//! `links` are the vchans (QubesDB, qrexec), `memory` the budgets and what is told of them, `requests` what dom0 asks for through xenstore (stop, suspend), `clock`
//! the time without pauses.

mod clock;
mod links;
mod memory;
mod offered;
mod requests;
#[cfg(test)]
#[cfg(feature = "fake")]
mod tests;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use xen::boot::BootInfo;
use xen::mem::ledger::{self, Booked, Operation, Part};
use xen::mem::{PAGE_SIZE, Page};
use xen::netback::{self, Backend, Budget, VifId};
use xen::netfront::{self, Frontend};
use xen::netif::{Chain, Piece};
use xen::planted::{Defect, is_planted};
use xen::postmortem::{self, What};
use xen::xenstore::{self, Owner};
use xen::{DomId, console, event, mem, netif, time};

use crate::clients::ClientPort;
use crate::event_loop::machine::{
    Arrival, Change, Effort, Machine, MemoryUse, Paged, Pipe, Reason, Stop, Work,
};
use crate::frame::{Checksum, Gso, GsoKind, Offload};
use crate::limits::Limits;
use crate::log::Sink;
use crate::port::{ClientId, Origin, PortCaps, PortId};
use crate::qrexec::CallId;
use crate::segment::Payload;
use crate::time::Instant;
use crate::uplink::UplinkPort;
use crate::wire::Mac;
use clock::Clock;
use links::Links;
pub use memory::Budgets;
use requests::Requests;

/// Messages of xenstore handled in one turn.
const STORE_MESSAGES_PER_TURN: usize = 64;
/// Super-frames are negotiated with every peer that offers them.
const OFFLOADS: bool = true;
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
/// What happened to devices and links and is not handled yet, at most in one turn: two for each of their slots.
const CHANGES_PER_TURN: usize = 384;
/// Pages that stay free for control: rings and links of devices to come.
const RESERVED_PAGES: usize = 64;

/// Lines on the Xen console.
#[derive(Debug, Default)]
pub struct ConsoleSink;

impl Sink for ConsoleSink {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        console::write_line(text);
    }
}

/// Why the machine cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The toolstack made no xenstore page.
    #[error("the toolstack gave no xenstore connection")]
    NoStore,
    /// Xen does not tell our domain number.
    #[error("Xen does not tell the number of this domain")]
    NoDomain,
}

/// A connected vif.
#[derive(Clone, Copy)]
struct Vif {
    id: VifId,
    domid: u16,
    devid: u32,
}

/// The pages of a frame behind its first one.
#[derive(Debug)]
pub struct Tail(netif::Tail);

impl Payload for Tail {
    fn copy(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let (mut skip, mut rest) = (offset, to);
        for piece in self.0.iter() {
            let Some(bytes) = piece.bytes().get(skip..) else {
                skip -= piece.bytes().len();
                continue;
            };
            let (now, later) = rest.split_at_mut(bytes.len().min(rest.len()));
            now.copy_from_slice(bytes.get(..now.len())?);
            (skip, rest) = (0, later);
        }
        rest.is_empty().then_some(())
    }
}

/// Work that has begun.
#[derive(Debug)]
pub enum Scope {
    /// Whose small blocks are sure.
    Operation(Operation),
    /// That is kept apart in the books only.
    Booked(Booked),
}

/// The devices and links of this domain.
pub struct XenMachine {
    boot: BootInfo,
    clock: Clock,
    /// System time of this turn, in nanoseconds. Looking at the clock is an exit where Xen emulates it.
    now_ns: u64,
    /// The deadline of a sleep that has just ended.
    slept_until: Option<Option<u64>>,
    store: xenstore::Client,
    back: Backend,
    front: Frontend,
    /// The connection in each slot, to turn a `ClientId` back into the driver's id.
    vifs: Vec<Option<Vif>>,
    links: Links,
    requests: Requests,
    changes: VecDeque<Change>,
    /// No page was free for clients' frames in this turn.
    is_starved: bool,
    /// Work could not begin for want of memory in this turn.
    is_short: bool,
    /// Turns with frames of each kind, as [`Effort`] has them.
    batches: [u64; 4],
    /// Frames were sent to a client, to the uplink, in this turn.
    has_sent: [bool; 2],
    /// By [`Unsent`].
    unsent: [(&'static str, u64); Unsent::NAMES.len()],
}

/// Why a frame was not sent although the packet path wanted it.
#[derive(Clone, Copy)]
enum Unsent {
    UplinkDown,
    UplinkFull,
    UplinkNoGrant,
    UplinkUnsendable,
    ClientGone,
    ClientQueueFull,
    ClientStalled,
    ClientUnsendable,
}

impl Unsent {
    /// In the order of the variants.
    const NAMES: [&str; 8] = [
        "uplink-down",
        "uplink-full",
        "uplink-no-grant",
        "uplink-unsendable",
        "client-gone",
        "client-queue-full",
        "client-stalled",
        "client-unsendable",
    ];

    fn of_uplink(error: netfront::SendError) -> Self {
        match error {
            netfront::SendError::Down => Self::UplinkDown,
            netfront::SendError::Full => Self::UplinkFull,
            netfront::SendError::NoGrant => Self::UplinkNoGrant,
            netfront::SendError::Unsupported | netfront::SendError::BadLength => {
                Self::UplinkUnsendable
            }
        }
    }

    fn of_client(error: netback::SendError) -> Self {
        match error {
            netback::SendError::Gone => Self::ClientGone,
            netback::SendError::QueueFull => Self::ClientQueueFull,
            netback::SendError::Stalled => Self::ClientStalled,
            netback::SendError::Unsupported | netback::SendError::BadLength => {
                Self::ClientUnsendable
            }
        }
    }
}

impl XenMachine {
    /// Takes over the devices; the first turn of the loop begins to talk to xenstore.
    ///
    /// # Errors
    /// If the toolstack left something out.
    pub fn start(boot: BootInfo, limits: &Limits) -> Result<Self, StartError> {
        let (page, channel) = xen::toolstack::xenstore().ok_or(StartError::NoStore)?;
        let own = xen::toolstack::own_domain().ok_or(StartError::NoDomain)?;
        let mut store = xenstore::Client::new(page, channel);
        // Watches of an earlier kernel in this domain; a store that knows no such request has none.
        let _ = store.request(Owner::Platform, xenstore::Request::ResetWatches);
        let pages = mem::total_pages();
        let slots = usize::from(limits.clients);
        let back = netback::Config::for_pages(pages);
        let back = netback::Config { max_vifs: slots, offloads: OFFLOADS, ..back };
        let front = netfront::Config { offloads: OFFLOADS, ..netfront::Config::for_pages(pages) };
        let mut machine = Self {
            boot,
            clock: Clock::new(),
            now_ns: time::system_time_ns(),
            slept_until: None,
            back: Backend::new(back),
            front: Frontend::new(front),
            vifs: alloc::vec![None; slots],
            links: Links::new(own),
            requests: Requests::new(),
            changes: VecDeque::with_capacity(CHANGES_PER_TURN),
            is_starved: false,
            is_short: false,
            batches: [0; 4],
            has_sent: [false; 2],
            unsent: Unsent::NAMES.map(|name| (name, 0)),
            store,
        };
        machine.requests.start(&mut machine.store);
        machine.links.start(&mut machine.store, &mut machine.changes);
        machine.front.start(&mut machine.store);
        machine.back.start(&mut machine.store);
        machine.store.flush();
        memory::set_budgets();
        Ok(machine)
    }

    /// Begins work of a part, and remembers if it may not.
    fn operation(&mut self, part: Part) -> Option<Operation> {
        let operation = ledger::begin(part);
        self.is_short |= operation.is_none();
        operation
    }

    fn take_port_events(&mut self) {
        let Self { store, back, front, links, .. } = self;
        event::take_pending(|port| {
            if port == store.port() || back.on_event(port) || front.on_event(port) {
                return;
            }
            links.on_event(port);
        });
    }

    fn take_store_messages(&mut self, now: u64) {
        for _ in 0..STORE_MESSAGES_PER_TURN {
            let Some(_operation) = self.operation(Part::Store) else { return };
            let Some(event) = self.store.poll() else { return };
            let owner = match &event {
                xenstore::Event::Reply(reply) => reply.owner,
                xenstore::Event::Watch(watch) => watch.token.owner,
            };
            let part = part_of(owner);
            let _booked = ledger::enter(part);
            let what = match event {
                xenstore::Event::Reply(_) => What::StoreReply,
                xenstore::Event::Watch(_) => What::StoreWatch,
            };
            postmortem::note(what, [part as u64, 0]);
            match event {
                xenstore::Event::Reply(reply) => match owner {
                    Owner::Netback => self.back.on_reply(reply, &mut self.store, now),
                    Owner::Netfront => self.front.on_reply(reply, &mut self.store, now),
                    Owner::Platform => self.on_reply(&reply),
                },
                xenstore::Event::Watch(watch) => match owner {
                    Owner::Netback => self.back.on_watch(&watch),
                    Owner::Netfront => self.front.on_watch(&watch),
                    Owner::Platform => {
                        self.requests.on_watch(&watch, &mut self.store);
                        self.links.on_watch(&watch, &mut self.store);
                    }
                },
            }
        }
    }

    fn on_reply(&mut self, reply: &xenstore::Reply) {
        if let Some(change) = self.requests.on_reply(reply, &mut self.store) {
            self.changes.push_back(change);
        }
        self.links.on_reply(reply, &mut self.store, &mut self.changes);
    }

    fn take_device_events(&mut self) {
        while let Some(event) = self.back.next_event() {
            let change = self.on_backend_event(event);
            self.changes.push_back(change);
        }
        while let Some(event) = self.front.next_event() {
            self.changes.push_back(on_frontend_event(event));
        }
    }

    fn on_backend_event(&mut self, event: netback::Event) -> Change {
        match event {
            netback::Event::Connected { vif, identity, capabilities } => {
                if let Some(slot) = self.vifs.get_mut(vif.slot()) {
                    let (domid, devid) = (identity.dom.0, identity.devid);
                    *slot = Some(Vif { id: vif, domid, devid });
                }
                let port = client_port(&identity, capabilities);
                Change::ClientUp { id: client_id(vif), port, devid: identity.devid }
            }
            netback::Event::Disconnected { vif, reason } => {
                let gone = self.vifs.get_mut(vif.slot()).and_then(Option::take);
                let (domid, devid) = gone.map_or((0, 0), |gone| (gone.domid, gone.devid));
                let text = format_args!("domid={domid} devid={devid} reason=\"{reason}\"");
                let (id, status) = (client_id(vif), Reason::new(text));
                Change::ClientDown { id, reason: status }
            }
            netback::Event::Leak { vif, part, bytes } => Change::Note(Reason::new(format_args!(
                "leak client={} part={} bytes={bytes}",
                vif.slot(),
                part.name()
            ))),
            netback::Event::Limited { dom, devid } => Change::Note(Reason::new(format_args!(
                "client limited domid={} devid={devid} reason=\"xenstore has no room for the nodes of all features\"",
                dom.0
            ))),
            netback::Event::Refused { dom, devid, reason } => Change::Note(Reason::new(
                format_args!("client refused domid={} devid={devid} reason=\"{reason}\"", dom.0),
            )),
        }
    }

    /// What [`Defect::GrantedBeforeVerdict`] does.
    fn grant_unjudged(&mut self, chain: &Chain) {
        let Some(mut page) = Page::alloc() else { return };
        let (bytes, len) = (chain.head().bytes(), chain.head().len());
        page.prefix_mut(bytes.len()).copy_from_slice(bytes);
        let _ = self.front.send(Chain::new(page, len), netif::Offload::NONE);
    }

    /// The next client that is there, for a defect that takes one for another; the same one if it is alone.
    fn another_client(&self, id: ClientId) -> ClientId {
        let slots = self.vifs.iter().enumerate().cycle().skip(usize::from(id.0).saturating_add(1));
        let next = slots.take(self.vifs.len()).find(|(_, vif)| vif.is_some());
        next.and_then(|(slot, _)| u16::try_from(slot).ok()).map_or(id, ClientId)
    }

    fn count_unsent(&mut self, reason: Unsent) {
        if let Some((_, count)) = self.unsent.get_mut(reason as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Work that an event will not announce again.
    fn has_work(&self) -> bool {
        let is_uplink_bound =
            self.front.is_up() && self.front.send_room() < self.back.least_budget();
        let is_bound = is_uplink_bound || self.is_starved;
        self.store.has_work() || self.front.has_work() || (self.back.has_work() && !is_bound)
    }
}

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

impl XenMachine {
    /// Stops the domain as dom0 asked.
    pub fn stop(self, stop: Stop) -> ! {
        console::drain();
        match stop {
            Stop::Poweroff | Stop::Halt => xen::power::poweroff(),
            Stop::Reboot => xen::power::reboot(),
        }
    }
}

/// Notes a change for the case that this domain comes to an unexpected end.
fn note(change: &Change) {
    let (what, numbers) = match change {
        Change::ClientUp { id, port, .. } => (What::ClientUp, [id.0.into(), port.domid.into()]),
        Change::ClientDown { id, .. } => (What::ClientDown, [id.0.into(), 0]),
        Change::UplinkUp { backend, .. } => (What::UplinkUp, [(*backend).into(), 0]),
        Change::UplinkDown { .. } => (What::UplinkDown, [0, 0]),
        Change::DatabaseUp => (What::Database, [1, 0]),
        Change::DatabaseDown => (What::Database, [0, 0]),
        Change::AgentUp => (What::Agent, [1, 0]),
        Change::AgentDown => (What::Agent, [0, 0]),
        Change::CallUp(_) => (What::Call, [1, 0]),
        Change::CallDown(_) => (What::Call, [0, 0]),
        Change::Resumed => (What::Resumed, [0, 0]),
        Change::Stop(_) => (What::Stop, [0, 0]),
        // It has a line in the log.
        Change::Note(_) => return,
    };
    postmortem::note(what, numbers);
}

/// Whose memory a message of xenstore is about.
const fn part_of(owner: Owner) -> Part {
    match owner {
        Owner::Netback => Part::Netback,
        Owner::Netfront => Part::Netfront,
        Owner::Platform => Part::Links,
    }
}

fn on_frontend_event(event: netfront::Event) -> Change {
    match event {
        netfront::Event::Up { mac, backend, mtu, capabilities, .. } => Change::UplinkUp {
            port: UplinkPort { mac: Mac(mac), caps: caps(capabilities, mtu) },
            backend: backend.0,
        },
        netfront::Event::Leak { part, bytes } => Change::Note(Reason::new(format_args!(
            "leak uplink part={} bytes={bytes}",
            part.name()
        ))),
        netfront::Event::Silent { .. } => Change::Note(Reason::new(format_args!(
            "uplink does not react to what it was sent: telling it again"
        ))),
        netfront::Event::Down { reason, .. } => {
            Change::UplinkDown { reason: Reason::new(format_args!("{reason}")) }
        }
    }
}

/// The vif's slot; `netback` is given no more slots than fit.
fn client_id(vif: VifId) -> ClientId {
    ClientId(u16::try_from(vif.slot()).unwrap_or(u16::MAX))
}

/// The first address of each family counts: dom0 writes one of each.
fn client_port(identity: &netback::Identity, capabilities: netif::Capabilities) -> ClientPort {
    ClientPort {
        domid: identity.dom.0,
        mac: Mac(identity.mac),
        ip4: identity.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        }),
        ip6: identity.addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        }),
        caps: caps(capabilities, identity.mtu),
    }
}

fn caps(capabilities: netif::Capabilities, mtu: u16) -> PortCaps {
    PortCaps {
        accepts_blank_v4: capabilities.blank_ipv4,
        accepts_blank_v6: capabilities.blank_ipv6,
        accepts_gso_v4: capabilities.gso_tcpv4,
        accepts_gso_v6: capabilities.gso_tcpv6,
        mtu,
    }
}

/// The driver's form of a frame; `None` for one whose lengths contradict each other.
fn chained(frame: Paged<Page, Tail>) -> Option<Chain> {
    let Paged { page, head, len, tail, .. } = frame;
    let head = u16::try_from(head).ok().filter(|head| usize::from(*head) <= PAGE_SIZE)?;
    let tail = tail.map_or(netif::Tail::EMPTY, |tail| tail.0);
    Some(Chain::from_parts(Piece::new(page, head), tail)).filter(|chain| chain.len() == len)
}

fn from_driver(offload: netif::Offload) -> Offload {
    Offload {
        checksum: match offload.checksum {
            netif::Checksum::Full => Checksum::Full,
            netif::Checksum::Validated => Checksum::Validated,
            netif::Checksum::Blank => Checksum::Blank,
        },
        gso: offload.gso.map(|gso| Gso {
            kind: match gso.kind {
                netif::GsoKind::TcpV4 => GsoKind::TcpV4,
                netif::GsoKind::TcpV6 => GsoKind::TcpV6,
            },
            size: gso.size,
        }),
    }
}

fn to_driver(offload: Offload) -> netif::Offload {
    netif::Offload {
        checksum: match offload.checksum {
            Checksum::Full => netif::Checksum::Full,
            Checksum::Validated => netif::Checksum::Validated,
            Checksum::Blank => netif::Checksum::Blank,
        },
        gso: offload.gso.map(|gso| netif::Gso {
            kind: match gso.kind {
                GsoKind::TcpV4 => netif::GsoKind::TcpV4,
                GsoKind::TcpV6 => netif::GsoKind::TcpV6,
            },
            size: gso.size,
        }),
    }
}
