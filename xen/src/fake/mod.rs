//! A strict Xen in memory, for tests on the host. One hypervisor per thread, so each `#[test]` has its own.
//!
//! The code under test runs as domain [`OWN_DOMAIN`] and uses the crate as it would on Xen. The test plays everybody
//! else:
//!
//! ```
//! use xen::fake;
//! use xen::grant::{self, Access};
//! use xen::mem::Page;
//! use xen::{DomId, event};
//!
//! let peer = fake::peer(DomId(3)); // a domain; made on first use, copyable handle
//!
//! // A grant of ours, seen from the peer: checked against our grant entry at every access.
//! let granted = grant::grant(Page::alloc().unwrap(), DomId(3), Access::ReadOnly).unwrap();
//! let mut byte = [0];
//! assert!(peer.read(granted.gref(), 0, &mut byte).is_ok());
//! assert!(peer.write(granted.gref(), 0, &byte).is_err());
//! let held = peer.map(granted.gref(), Access::ReadOnly).unwrap(); // "in use" until `held` is dropped
//! let granted = granted.revoke().unwrap_err();
//! drop(held);
//! granted.revoke().unwrap();
//!
//! // A grant of the peer, seen from us: `page` is the peer's own view, to be read and written at will.
//! let (gref, page) = peer.grant_page(Access::ReadWrite);
//! let mapping = grant::map(DomId(3), &[gref], Access::ReadWrite).unwrap();
//! page.write_u32(0, 7);
//! assert_eq!(mapping.page(0).read_u32(0), 7);
//!
//! // Events: ports of the peer are numbers of its own.
//! let channel = event::Channel::alloc_unbound(DomId(3)).unwrap();
//! let port = peer.bind(channel.port());
//! channel.notify();
//! assert_eq!(peer.take_notifications(), [port]);
//! peer.notify(port); // event::take_pending() reports channel.port()
//!
//! // Time stands still unless the test, or a sleeping `event::wait`, moves it.
//! fake::advance_ns(1_000_000);
//! ```
//!
//! [`at`] runs a closure at a virtual time, also while the code under test sleeps. [`reset`] starts anew (for property
//! tests, which run many cases on one thread) and panics if the last case leaked a page, a grant, a mapping or a port;
//! [`assert_no_leaks`] checks without starting anew. Misuse panics: a copy from a page that is not allocated, a second
//! mapping at one address, an operation on a port that is not ours, a sleep that nothing can end.
#![forbid(unsafe_code)]

pub mod chains;
pub(crate) mod hypercalls;
mod peer;
pub mod vchan;
pub mod vif;
pub mod xenstore;

use core::mem::ManuallyDrop;
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::vec::Vec;

pub use peer::{Peer, PeerMapping, peer};

use crate::abi::grant_table::GrantStatus;
use crate::abi::vcpu::{EVTCHN_MASK, EVTCHN_PENDING, PENDING_SEL, UPCALL_PENDING};
use crate::abi::{DomId, EventPort};
use crate::grant::Access;
use crate::mem::host;
use crate::shared::SharedPage;
use crate::{console, event, grant, mem, postmortem, time};

/// The domain that the code under test runs as.
pub const OWN_DOMAIN: DomId = DomId(7);

/// Port of ours that the toolstack has connected to xenstored.
pub const STORE_PORT: EventPort = EventPort(1);
/// Port of ours that the toolstack has connected to xenconsoled.
pub const CONSOLE_PORT: EventPort = EventPort(2);
/// dom0's port at the other end of [`STORE_PORT`].
pub const STORE_PORT_DOM0: EventPort = EventPort(30);
/// dom0's port at the other end of [`CONSOLE_PORT`].
pub const CONSOLE_PORT_DOM0: EventPort = EventPort(31);

const START_NS: u64 = 1_000_000_000;

std::thread_local! {
    // Never dropped: values of other thread-locals may use it while the thread ends.
    static XEN: ManuallyDrop<RefCell<Hypervisor>> = ManuallyDrop::new(RefCell::new(Hypervisor::new(Vec::new())));
}

struct Hypervisor {
    pages: Pages,
    shared_info: SharedPage,
    grant_frames: Vec<SharedPage>,
    max_grant_frames: u32,
    store: SharedPage,
    console: SharedPage,
    clock_ns: u64,
    timer_ns: Option<u64>,
    /// Events that became pending.
    raised: u64,
    agenda: BTreeMap<(u64, u64), Box<dyn FnOnce()>>,
    agenda_serial: u64,
    ports: BTreeMap<u32, Port>,
    peers: BTreeMap<DomId, PeerState>,
    mappings: BTreeMap<u64, ForeignMapping>,
    next_handle: u32,
    /// Readers and writers that peers have on our grants.
    pins: BTreeMap<u32, Pins>,
    shutdown: Option<u32>,
    before_copy: Option<Box<dyn FnOnce()>>,
}

/// Pages of Xen and of the peers. The memory behind them is never freed, so that each reset hands them on: many thousand
/// cases must not take more of it each.
struct Pages {
    given: Vec<SharedPage>,
    /// Of earlier cases, whose views of them are of no use any more.
    spare: Vec<SharedPage>,
}

impl Pages {
    /// A zeroed page.
    fn take(&mut self) -> SharedPage {
        let page = self.spare.pop().unwrap_or_else(host::foreign_page);
        page.clear();
        self.given.push(page.alias());
        page
    }

    /// One of them, of which nobody has a view any more.
    fn give_back(&mut self, page: SharedPage) {
        if let Some(place) = self.given.iter().rposition(|given| given.is_same(&page)) {
            self.given.swap_remove(place);
            self.spare.push(page);
        }
    }

    /// All of them, for the next case.
    fn reclaim(&mut self) -> Vec<SharedPage> {
        let mut all = core::mem::take(&mut self.spare);
        all.append(&mut self.given);
        all
    }
}

/// A port of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Unbound { peer: DomId },
    Bound { peer: DomId, remote: EventPort },
    Timer,
}

#[derive(Default)]
struct PeerState {
    dead: bool,
    grants: BTreeMap<u32, PeerGrant>,
    ports: BTreeMap<u32, PeerPort>,
}

/// A page that a peer grants to us.
struct PeerGrant {
    page: SharedPage,
    access: Access,
    mappings: usize,
    failure: Option<GrantStatus>,
}

/// A port of a peer.
#[derive(Clone, Copy)]
struct PeerPort {
    /// Our port; `None` while unbound (reserved for us) or after we closed ours.
    local: Option<EventPort>,
    pending: bool,
}

struct ForeignMapping {
    peer: DomId,
    gref: u32,
    handle: u32,
    page: SharedPage,
}

#[derive(Clone, Copy, Default)]
struct Pins {
    readers: usize,
    writers: usize,
}

impl Hypervisor {
    fn new(spare: Vec<SharedPage>) -> Hypervisor {
        let mut pages = Pages { given: Vec::new(), spare };
        let shared_info = pages.take();
        // What start-up code does on Xen.
        for word in 0..64 {
            shared_info.write_u64(EVTCHN_MASK + word * 8, u64::MAX);
        }
        let bound = |remote| Port::Bound { peer: DomId::DOM0, remote };
        let mut dom0 = PeerState::default();
        for (theirs, ours) in [(STORE_PORT_DOM0, STORE_PORT), (CONSOLE_PORT_DOM0, CONSOLE_PORT)] {
            dom0.ports.insert(theirs.0, PeerPort { local: Some(ours), pending: false });
        }
        let (store, console) = (pages.take(), pages.take());
        Hypervisor {
            pages,
            shared_info,
            grant_frames: Vec::new(),
            max_grant_frames: 64,
            store,
            console,
            clock_ns: START_NS,
            timer_ns: None,
            raised: 0,
            agenda: BTreeMap::new(),
            agenda_serial: 0,
            ports: BTreeMap::from([
                (STORE_PORT.0, bound(STORE_PORT_DOM0)),
                (CONSOLE_PORT.0, bound(CONSOLE_PORT_DOM0)),
            ]),
            peers: BTreeMap::from([(DomId::DOM0, dom0)]),
            mappings: BTreeMap::new(),
            next_handle: 1,
            pins: BTreeMap::new(),
            shutdown: None,
            before_copy: None,
        }
    }

    /// Raises an event at a port of ours, in Xen's order (`evtchn_2l_set_pending`).
    fn raise(&mut self, port: EventPort) {
        let (word, bit) = ((port.0 / 64) as usize, 1_u64 << (port.0 % 64));
        let shared = &self.shared_info;
        if shared.fetch_or_u64(EVTCHN_PENDING + word * 8, bit) & bit != 0 {
            return;
        }
        // What sleeps wakes even if the port is masked (`evtchn_check_pollers`).
        self.raised += 1;
        if shared.load_u64(EVTCHN_MASK + word * 8) & bit != 0 {
            return;
        }
        if shared.fetch_or_u64(PENDING_SEL, 1 << word) & (1 << word) == 0 {
            shared.write_u8(UPCALL_PENDING, 1);
        }
    }

    fn raise_timer_if_due(&mut self) {
        if self.timer_ns.is_some_and(|due| due <= self.clock_ns) {
            self.timer_ns = None;
            let port = self.ports.iter().find(|(_, port)| **port == Port::Timer);
            if let Some((&port, _)) = port {
                self.raise(EventPort(port));
            }
        }
    }

    fn free_port(&self) -> EventPort {
        let port = (1..).find(|port| !self.ports.contains_key(port));
        EventPort(port.expect("some number is free"))
    }
}

fn with<R>(action: impl FnOnce(&mut Hypervisor) -> R) -> R {
    // What the double allocates is not the code's under test, which may call it.
    let _booked = mem::ledger::enter(mem::ledger::Part::Tables);
    XEN.with(|xen| action(&mut xen.borrow_mut()))
}

/// A fresh hypervisor, clock and page pool, once nothing of the last one is in use. Views of its peers' pages must not be
/// used any more: the pages are handed out again.
pub fn reset() {
    reset_with_pages(mem::total_pages());
}

/// The same with a pool of `pages` pages.
pub fn reset_with_pages(pages: usize) {
    assert_no_leaks();
    grant::reset();
    console::reset();
    postmortem::reset();
    event::reset();
    time::reset();
    host::reset(pages);
    XEN.with(|xen| {
        let mut xen = xen.borrow_mut();
        let spare = xen.pages.reclaim();
        *xen = Hypervisor::new(spare);
    });
}

/// Panics if the code under test still has a page, a grant (quarantine included), a mapping, or an event channel
/// other than the toolstack's two and the timer.
pub fn assert_no_leaks() {
    assert_eq!(grant::quarantined(), 0, "grants in quarantine");
    assert_eq!(grant::grants_in_use(), 0, "grants not revoked");
    assert_eq!(mem::total_pages() - mem::free_pages(), 0, "pages not returned");
    with(|xen| {
        assert!(xen.mappings.is_empty(), "{} mappings of peers' pages left", xen.mappings.len());
        let toolstack = [STORE_PORT.0, CONSOLE_PORT.0];
        let left =
            |(number, port): (&u32, &Port)| *port != Port::Timer && !toolstack.contains(number);
        let left = xen.ports.iter().filter(|entry| left(*entry)).count();
        assert_eq!(left, 0, "event channels left open");
    });
}

/// Pages of peers that the code under test has mapped.
pub fn mappings() -> usize {
    with(|xen| xen.mappings.len())
}

/// Virtual system time, ns.
pub fn now_ns() -> u64 {
    with(|xen| xen.clock_ns)
}

/// Lets virtual time pass; runs what [`at`] has planned for it and raises the timer.
pub fn advance_ns(ns: u64) {
    let end = now_ns() + ns;
    while run_next_until(end) {}
    set_clock_ns(end);
}

/// Sets the virtual clock, also backwards, as a host may.
pub fn set_clock_ns(ns: u64) {
    with(|xen| {
        xen.clock_ns = ns;
        xen.raise_timer_if_due();
    });
}

/// Plans `action` for the virtual time `ns`. It runs from [`advance_ns`] or while the code under test sleeps.
pub fn at(ns: u64, action: impl FnOnce() + 'static) {
    with(|xen| {
        xen.agenda_serial += 1;
        xen.agenda.insert((ns, xen.agenda_serial), Box::new(action));
    });
}

/// Runs `action` when the code under test asks for its next grant copies, before Xen looks at any: what a peer can do between
/// our check and the copy.
pub fn before_copy(action: impl FnOnce() + 'static) {
    with(|xen| xen.before_copy = Some(Box::new(action)));
}

/// Whether what [`before_copy`] has planned is still to come.
pub fn is_copy_awaited() -> bool {
    with(|xen| xen.before_copy.is_some())
}

/// Lowers the number of frames that our grant table may grow to (512 grants each; 64 at first).
pub fn limit_grant_frames(frames: u32) {
    with(|xen| xen.max_grant_frames = frames);
}

/// The reason of the `SCHEDOP_shutdown` that the code under test has made, if it has.
pub fn shutdown_reason() -> Option<u32> {
    with(|xen| xen.shutdown)
}

/// The page that we share with xenstored, as xenstored sees it; its events are [`STORE_PORT_DOM0`] of domain 0.
pub fn store_page() -> SharedPage {
    with(|xen| xen.store.alias())
}

/// The page that we share with xenconsoled, as xenconsoled sees it; its events are [`CONSOLE_PORT_DOM0`] of domain 0.
pub fn console_page() -> SharedPage {
    with(|xen| xen.console.alias())
}

/// Runs the earliest planned action if it is due by `end`, with the clock at its time.
fn run_next_until(end: u64) -> bool {
    let next = with(|xen| {
        let (&key, _) = xen.agenda.first_key_value()?;
        let due = key.0.max(xen.clock_ns);
        if due > end {
            return None;
        }
        xen.clock_ns = due;
        xen.raise_timer_if_due();
        xen.agenda.remove(&key)
    });
    // It belongs to the test, not to the code that sleeps.
    let _booked = mem::ledger::enter(mem::ledger::Part::Tables);
    next.map(|action| action()).is_some()
}
