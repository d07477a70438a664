//! The machine of the image: Xen's devices and links behind the loop's [`Machine`] trait. Adapters only, no policy.
//!
//! * `machine`: what the loop asks for; `frames`, `devices`: the drivers' words in those of the loop
//! * `links`: the vchans (QubesDB, qrexec); `client`, `control_channel` and `offered` are the three kinds
//! * `requests`: what dom0 asks for through xenstore (stop, suspend); `clock`: the time without pauses
//! * `memory`: the budgets, and what is told of them

mod client;
mod clock;
mod control_channel;
mod devices;
mod frames;
mod links;
mod machine;
mod memory;
mod offered;
mod requests;
#[cfg(test)]
#[cfg(feature = "fake")]
mod tests;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;

use xen::boot::BootInfo;
use xen::mem::Page;
use xen::mem::ledger::{self, Booked, Operation, Part};
use xen::netback::{self, Backend, VifId};
use xen::netfront::{self, Frontend};
use xen::netif::Chain;
use xen::postmortem::{self, What};
use xen::xenstore::{self, Owner};
use xen::{console, event, mem, netif, time};

use crate::event_loop::machine::{Change, Reason, Stop};
use crate::limits::Limits;
use crate::log::Sink;
use crate::port::ClientId;
use clock::Clock;
use devices::{client_id, client_port, on_frontend_event};
pub use frames::Tail;
use frames::Unsent;
use links::Links;
pub use memory::Budgets;
use requests::Requests;

/// Messages of xenstore handled in one turn.
const STORE_MESSAGES_PER_TURN: usize = 64;
/// Super-frames are negotiated with every peer that offers them.
const OFFLOADS: bool = true;
/// What happened to devices and links and is not handled yet, at most in one turn: two for each of their slots.
const CHANGES_PER_TURN: usize = 384;

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
    /// Packets that were taken from clients in this turn, those included that came to nothing.
    taken: usize,
    /// Frames that the uplink brought in this turn.
    brought: usize,
    /// Turns with frames of each kind, as [`Effort`] has them.
    batches: [u64; 4],
    /// Frames were sent to a client, to the uplink, in this turn.
    has_sent: [bool; 2],
    /// By [`Unsent`].
    unsent: [(&'static str, u64); Unsent::NAMES.len()],
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
            taken: 0,
            brought: 0,
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

/// Whose memory a message of xenstore is about.
const fn part_of(owner: Owner) -> Part {
    match owner {
        Owner::Netback => Part::Netback,
        Owner::Netfront => Part::Netfront,
        Owner::Platform => Part::Links,
    }
}
