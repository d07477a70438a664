//! The appliance as it boots in the image, on the in-memory hypervisor, with xenstore and dom0's daemons: what the
//! simulation and the memory tests have in common.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use firewall::event_loop::EventLoop;
use firewall::event_loop::machine::Stop;
use firewall::log::Sink;
use firewall::platform::XenMachine;
use firewall::{Firewall, Limits};
use xen::boot::BootInfo;
use xen::fake::{self, xenstore::Store};
use xen::mem::ledger::{self, Part};
use xen::{DomId, EventPort, event};

use crate::dom0::Dom0;
use crate::frames;

const COMMAND_LINE: &str = "fw-log=drops";
const MEMORY_BYTES: u64 = 32 << 20;
const WAKER: DomId = DomId(9);
/// Lines of the log that are kept.
const RECENT_LINES: usize = 20;

/// Keeps what the appliance says.
#[derive(Clone, Default)]
pub(crate) struct Lines(Rc<RefCell<Vec<String>>>);

impl Sink for Lines {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        // The console of the image keeps nothing.
        let _booked = ledger::enter(Part::Tables);
        self.0.borrow_mut().push(text.to_string());
    }
}

pub(crate) struct Appliance {
    pub(crate) store: Store,
    pub(crate) dom0: Dom0,
    pub(crate) event_loop: EventLoop<Lines>,
    machine: XenMachine,
    lines: Lines,
    /// End the sleep of a turn in which nothing happens, in turns: what one has ended is delivered in the next turn, and
    /// masked until the one after that.
    wakers: [(event::Channel, EventPort); 2],
    turn: Rc<Cell<u64>>,
}

impl Appliance {
    /// With all tables, before anything has happened; dom0 knows who we are, and its QubesDB is not there yet.
    pub(crate) fn boot(limits: Limits) -> Self {
        fake::reset();
        let mut store = Store::new();
        store.write("data", "");
        for name in ["shutdown", "feature-poweroff", "feature-reboot", "feature-suspend"] {
            store.write(&format!("control/{name}"), "");
        }
        let boot = BootInfo {
            cmdline: COMMAND_LINE,
            memory_bytes: MEMORY_BYTES,
            entry_ns: fake::now_ns(),
            entry_running_ns: 0,
            xen_version: (4, 17),
        };
        let machine = XenMachine::start(boot, &limits).expect("a toolstack that left nothing out");
        let firewall = Firewall::new(limits, [3; 32]).expect("memory");
        let lines = Lines::default();
        let event_loop = EventLoop::new(firewall, MEMORY_BYTES, COMMAND_LINE, lines.clone());
        let wakers = [(), ()].map(|()| {
            let channel = event::Channel::alloc_unbound(WAKER).expect("a port");
            let port = fake::peer(WAKER).bind(channel.port());
            (channel, port)
        });
        let mut dom0 = Dom0::default();
        dom0.set("/name", "fw");
        for (path, value) in network(frames::OWN) {
            dom0.set(path, &value);
        }
        Self { store, dom0, event_loop, machine, lines, wakers, turn: Rc::default() }
    }

    /// A turn of the loop that sleeps at most so long, in ns, after everybody in dom0 had one.
    pub(crate) fn turn(&mut self, at_most_ns: u64) -> Result<Option<Stop>, String> {
        self.store.serve();
        self.dom0.turn(&mut self.store);
        self.wakers.iter().for_each(|(channel, _)| channel.unmask());
        let (this, turn) = (self.turn.get() + 1, Rc::clone(&self.turn));
        turn.set(this);
        let port = self.wakers[(this % 2) as usize].1;
        fake::at(fake::now_ns() + at_most_ns, move || {
            if turn.get() == this {
                fake::peer(WAKER).notify(port);
            }
        });
        let stop = self.event_loop.turn(&mut self.machine);
        if ledger::usage(Part::Packets).count > 0 {
            return Err("a frame allocated".into());
        }
        let mut lines = self.lines.0.borrow_mut();
        if let Some(fault) = lines.iter().find(|line| line.starts_with("fw: fault")) {
            return Err(fault.clone());
        }
        let too_many = lines.len().saturating_sub(RECENT_LINES);
        lines.drain(..too_many);
        match self.dom0.problem() {
            Some(problem) => Err(problem.into()),
            None => Ok(stop),
        }
    }

    /// Turns so far.
    pub(crate) fn turns(&self) -> u64 {
        self.turn.get()
    }

    /// What the appliance said last.
    pub(crate) fn said(&self) -> String {
        self.lines.0.borrow().join("\n")
    }

    /// Takes it down, dom0's daemons first.
    pub(crate) fn end(mut self) {
        self.dom0.stop_database(&mut self.store);
        self.dom0.end_call(&mut self.store);
        self.dom0.stop_agent();
    }
}

/// That an appliance which was taken down, with its neighbours, has left nothing.
pub(crate) fn nothing_is_left() -> Result<(), String> {
    fake::assert_no_leaks();
    let left = |part: Part| {
        let live = ledger::usage(part).live;
        (live > 0).then(|| format!("{live} bytes of {}", part.name()))
    };
    let left: Vec<String> = Part::ALL.into_iter().skip(1).filter_map(left).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left at the end: {}", left.join(", "))) }
}

/// The addresses that dom0 writes for a firewall at `own`.
pub(crate) fn network([a, b, c, d]: [u8; 4]) -> [(&'static str, String); 8] {
    let own = format!("{a}.{b}.{c}.{d}");
    [
        ("/qubes-ip", own.clone()),
        ("/qubes-netmask", "255.255.255.255".into()),
        ("/qubes-gateway", "10.137.0.5".into()),
        ("/qubes-primary-dns", "10.139.1.1".into()),
        ("/qubes-secondary-dns", "10.139.1.2".into()),
        ("/qubes-netvm-gateway", own),
        ("/qubes-netvm-primary-dns", "10.139.1.1".into()),
        ("/qubes-netvm-secondary-dns", "10.139.1.2".into()),
    ]
}
