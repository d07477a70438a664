//! The appliance, its neighbours, and what must always hold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use fastrand::Rng;
use firewall::event_loop::EventLoop;
use firewall::log::Sink;
use firewall::platform::XenMachine;
use firewall::{FamilyConfig, Firewall, Instant, Limits, NetworkConfig, RulesState};
use rules::{CompiledSet, Family, RuleSet};
use xen::boot::BootInfo;
use xen::fake::vif::{Guest, NetVm, attach_client, attach_uplink};
use xen::fake::{self, xenstore::Store};
use xen::netif::{RxFlags, TxFlags};
use xen::{DomId, EventPort, event, grant, mem};

use crate::Outcome;
use crate::frames::{self, Ends};
use crate::guest::{self, Visit};
use crate::netvm;

const NETVM: DomId = DomId(2);
const HONEST: DomId = DomId(5);
const WAKER: DomId = DomId(9);
/// Domains of hostile guests: one after the other.
const HOSTILE: DomId = DomId(20);
pub(crate) const HOSTILE_ADDRESS: [u8; 4] = [10, 137, 0, 20];
const COMMAND_LINE: &str = "fw-log=drops";
const MS: u64 = 1_000_000;
/// First bytes of what the honest client sends and gets, and of what a hostile one sends.
pub(crate) const HONEST_MARK: &[u8] = b"honest";
pub(crate) const HOSTILE_MARK: &[u8] = b"hostile";
/// Receive buffers that the honest client keeps posted.
const BUFFERS: usize = 64;
/// Turns in which a frame has to get through.
const PATIENCE: usize = 12;

/// Lines of the appliance that are shown when something fails.
const RECENT_LINES: usize = 20;

/// Keeps what the appliance says.
#[derive(Clone, Default)]
struct Lines(Rc<RefCell<Vec<String>>>);

impl Sink for Lines {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        self.0.borrow_mut().push(text.to_string());
    }
}

/// What the hypervisor and xenstored count for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ledger {
    grants: usize,
    quarantined: usize,
    free_pages: usize,
    watches: usize,
    /// Ports are numbered from the lowest free one.
    next_port: u32,
}

/// What a hostile act did.
pub(crate) type Effect = Result<bool, String>;

pub(crate) struct World {
    pub(crate) random: Rng,
    pub(crate) store: Store,
    machine: XenMachine,
    event_loop: EventLoop<Lines>,
    lines: Lines,
    /// End the sleep of a turn in which nothing happens, in turns: what one has ended is delivered in the next turn, and
    /// masked until the one after that.
    wakers: [(event::Channel, EventPort); 2],
    turn: Rc<Cell<u64>>,
    pub(crate) netvm: Option<NetVm>,
    honest: Guest,
    /// The port on our address that stands for the honest client's.
    outside: Option<u16>,
    number: u64,
    visit: Option<Visit>,
    /// With no hostile peer around.
    quiet: Ledger,
    pub(crate) effects: BTreeMap<&'static str, u64>,
    pub(crate) tried: BTreeMap<&'static str, u64>,
    honest_sent: u64,
    honest_answered: u64,
}

/// Names of all hostile acts.
pub(crate) fn acts() -> impl Iterator<Item = &'static str> {
    let guests = guest::ACTS.iter().map(|act| act.0);
    guests.chain(netvm::ACTS.iter().map(|act| act.0)).chain([guest::VISIT, SUSPEND])
}

const SUSPEND: &str = "R11 suspend and resume";

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        fake::reset();
        let limits = Limits {
            clients: 8,
            addresses: 32,
            flows: 256,
            flows_per_client: 64,
            fragment_bytes: 65536,
        };
        let mut store = Store::new();
        store.write("data", "");
        for name in ["shutdown", "feature-poweroff", "feature-reboot", "feature-suspend"] {
            store.write(&format!("control/{name}"), "");
        }
        let boot = BootInfo {
            cmdline: COMMAND_LINE,
            memory_bytes: 32 << 20,
            entry_ns: fake::now_ns(),
            entry_running_ns: 0,
            xen_version: (4, 17),
        };
        let machine = XenMachine::start(boot, &limits).expect("a toolstack that left nothing out");
        let mut firewall = Firewall::new(limits, [3; 32]).expect("memory");
        for address in [frames::HONEST, HOSTILE_ADDRESS] {
            let rules = RuleSet::parse(Family::V4, [(&b"policy"[..], &b"accept"[..])]);
            let rules = CompiledSet::new(rules.expect("a policy")).expect("memory");
            let now = Instant::from_nanos(fake::now_ns());
            firewall
                .set_rules(now, IpAddr::from(address), RulesState::Active(rules))
                .expect("room for two addresses");
        }
        // What dom0 would say through QubesDB.
        let v4 = FamilyConfig {
            address: Some(frames::OWN.into()),
            gateway: Some(Ipv4Addr::new(10, 137, 0, 5)),
            client_gateway: Some(frames::OWN.into()),
            ..FamilyConfig::default()
        };
        let connected = [frames::HONEST, HOSTILE_ADDRESS].map(IpAddr::from).to_vec();
        let network = NetworkConfig { v4, connected, ..NetworkConfig::default() };
        firewall.set_network(network).expect("room for two addresses");
        let lines = Lines::default();
        let event_loop = EventLoop::new(firewall, 32 << 20, COMMAND_LINE, lines.clone());
        let wakers = [(), ()].map(|()| {
            let channel = event::Channel::alloc_unbound(WAKER).expect("a port");
            let port = fake::peer(WAKER).bind(channel.port());
            (channel, port)
        });
        attach_client(&mut store, HONEST, 0, "10.137.0.10");
        let honest = Guest::new(HONEST, 0);
        honest.publish(&mut store);
        let quiet = Ledger { grants: 0, quarantined: 0, free_pages: 0, watches: 0, next_port: 0 };
        let mut world = Self {
            random: Rng::with_seed(seed),
            store,
            machine,
            event_loop,
            lines,
            wakers,
            turn: Rc::default(),
            netvm: None,
            honest,
            outside: None,
            number: 0,
            visit: None,
            quiet,
            effects: BTreeMap::new(),
            tried: BTreeMap::new(),
            honest_sent: 0,
            honest_answered: 0,
        };
        world.turns(20).expect("a start without a fault");
        world.connect_uplink().expect("an uplink");
        world.honest.post(BUFFERS);
        // The uplink says who it is, and asks for its gateway for five seconds.
        world.settle().expect("an honest client");
        world.quiet = world.ledger();
        world
    }

    /// One thing happens.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        match self.random.u32(0..100) {
            0..35 => self.honest_sends(),
            35..55 => self.honest_gets(),
            55..92 => self.hostile_guest(),
            92..96 => self.hostile_netvm(),
            96..98 => self.suspend(),
            _ => {
                let ms = self.random.u64(1..3000);
                self.pass(ms)
            }
        }
    }

    /// Ends the last visit, looks once more, and takes everything down.
    pub(crate) fn end(mut self) -> Result<Outcome, String> {
        self.end_visit()?;
        self.honest_sends()?;
        self.honest_gets()?;
        let (effects, tried) = (self.effects, self.tried);
        let (honest_sent, honest_answered) = (self.honest_sent, self.honest_answered);
        drop((self.netvm, self.machine, self.wakers, self.event_loop));
        drop((self.honest, self.store));
        fake::assert_no_leaks();
        Ok(Outcome { effects, tried, honest_sent, honest_answered })
    }

    /// Turns of the loop, a millisecond each at most.
    pub(crate) fn turns(&mut self, count: usize) -> Result<(), String> {
        (0..count).try_for_each(|_| self.turn(MS))
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, ms: u64) -> Result<(), String> {
        let end = fake::now_ns() + ms * MS;
        while fake::now_ns() < end {
            self.turn((end - fake::now_ns()).min(100 * MS))?;
        }
        Ok(())
    }

    fn turn(&mut self, at_most_ns: u64) -> Result<(), String> {
        self.store.serve();
        self.wakers.iter().for_each(|(channel, _)| channel.unmask());
        let (this, turn) = (self.turn.get() + 1, Rc::clone(&self.turn));
        turn.set(this);
        let port = self.wakers[(this % 2) as usize].1;
        fake::at(fake::now_ns() + at_most_ns, move || {
            if turn.get() == this {
                fake::peer(WAKER).notify(port);
            }
        });
        if let Some(stop) = self.event_loop.turn(&mut self.machine) {
            return Err(format!("it stops: {stop:?}"));
        }
        let mut lines = self.lines.0.borrow_mut();
        match lines.iter().find(|line| line.starts_with("fw: fault")) {
            Some(line) => Err(line.clone()),
            None => {
                let too_many = lines.len().saturating_sub(RECENT_LINES);
                lines.drain(..too_many);
                Ok(())
            }
        }
    }

    /// What the appliance said last.
    pub(crate) fn said(&self) -> String {
        self.lines.0.borrow().join("\n")
    }

    fn ledger(&mut self) -> Ledger {
        fake::peer(DomId(3));
        let port = event::Channel::alloc_unbound(DomId(3)).expect("a port").port();
        Ledger {
            grants: grant::grants_in_use(),
            quarantined: grant::quarantined(),
            free_pages: mem::free_pages(),
            watches: self.store.watches(),
            next_port: port.0,
        }
    }

    fn connect_uplink(&mut self) -> Result<(), String> {
        attach_uplink(&mut self.store, NETVM, 0);
        self.turns(8)?;
        fake::peer(NETVM);
        NetVm::offer(&mut self.store, NETVM, 0);
        self.turns(8)?;
        let state = self.store.read("device/vif/0/state");
        if state.as_deref() != Some("4") {
            return Err(format!("the uplink does not come: state {state:?}"));
        }
        self.netvm = Some(NetVm::connect(&mut self.store, NETVM, 0));
        self.outside = None;
        self.turns(8)
    }

    /// The NetVM goes, whatever it has done, and an honest one comes.
    pub(crate) fn replace_netvm(&mut self) -> Result<(), String> {
        if let Some(netvm) = self.netvm.take() {
            let directory = netvm.directory.clone();
            netvm.peer.die();
            drop(netvm);
            self.store.remove(&directory);
        }
        self.store.remove("device/vif/0");
        self.turns(8)?;
        self.pass(3000)?;
        self.connect_uplink()
    }

    /// What we have sent to the uplink: each frame is ours, and its page holds nothing else.
    pub(crate) fn take_sent(&mut self) -> Result<Vec<Vec<u8>>, String> {
        let Some(netvm) = &mut self.netvm else { return Ok(vec![]) };
        let sent = netvm.sent();
        for (request, frame) in &sent {
            let is_neighbour = frame.get(12..14) == Some(&[8, 6][..])
                || frame.get(12..14) == Some(&[0x86, 0xdd][..]);
            if frame.get(26..30) != Some(&frames::OWN[..]) && !is_neighbour {
                return Err(format!("a frame left with a source that is not ours: {frame:02x?}"));
            }
            if request.flags.has(TxFlags::DATA_VALIDATED) && !request.flags.has(TxFlags::CSUM_BLANK)
            {
                return Err("the uplink is told to trust a checksum".into());
            }
        }
        Ok(sent.into_iter().map(|(_, frame)| frame).collect())
    }

    /// The honest client sends a datagram, which has to leave once.
    pub(crate) fn honest_sends(&mut self) -> Result<(), String> {
        self.take_sent()?;
        self.number += 1;
        let payload = self.payload(HONEST_MARK);
        self.honest_sends_only(&payload)?;
        let mut found = Vec::new();
        for _ in 0..PATIENCE {
            self.turns(1)?;
            for sent in self.take_sent()? {
                found.extend(
                    frames::read(&sent).filter(|(_, bytes)| *bytes == payload).map(|(e, _)| e),
                );
            }
            if !found.is_empty() {
                break;
            }
        }
        let [ends] = found.as_slice() else {
            return Err(format!("of a packet of the honest client {} left", found.len()));
        };
        if ends.destination != (frames::SERVER, frames::SERVER_PORT) {
            return Err(format!("the honest client's packet went to {:?}", ends.destination));
        }
        self.outside = Some(ends.source.1);
        let answered = self.honest.responses();
        if answered.len() != 1 || answered[0].status != 0 {
            return Err(format!("the honest client's slot: {answered:?}"));
        }
        self.honest_sent += 1;
        Ok(())
    }

    /// The honest client sends, and nobody looks what becomes of it.
    pub(crate) fn honest_sends_only(&mut self, payload: &[u8]) -> Result<(), String> {
        let ends = Ends {
            source: (frames::HONEST, 40_000),
            destination: (frames::SERVER, frames::SERVER_PORT),
        };
        let frame = frames::datagram((frames::GATEWAY_MAC, frames::CLIENT_MAC), ends, payload);
        self.honest.responses();
        self.honest.send(&frame, TxFlags(0));
        self.honest.peer.notify(self.honest.port);
        Ok(())
    }

    /// The server answers the honest client, which has to get it, and nothing else.
    fn honest_gets(&mut self) -> Result<(), String> {
        let Some(outside) = self.outside else { return Ok(()) };
        self.take_sent()?;
        self.number += 1;
        let payload = self.payload(HONEST_MARK);
        let ends = Ends {
            source: (frames::SERVER, frames::SERVER_PORT),
            destination: (frames::OWN, outside),
        };
        let frame = frames::datagram((frames::UPLINK_MAC, frames::GATEWAY_MAC), ends, &payload);
        let Some(netvm) = &mut self.netvm else { return Ok(()) };
        netvm.deliver(&frame, RxFlags(0));
        let mut got = Vec::new();
        for _ in 0..PATIENCE {
            self.turns(1)?;
            got.extend(self.honest.received());
            if !got.is_empty() {
                break;
            }
        }
        self.honest.post(got.len());
        let [(response, frame)] = got.as_slice() else {
            return Err(format!("the honest client got {} frames", got.len()));
        };
        let read = frames::read(frame).map(|(ends, bytes)| (ends.destination, bytes));
        if read != Some(((frames::HONEST, 40_000), payload.as_slice())) {
            return Err(format!("the honest client got {frame:02x?}"));
        }
        if response.flags.has(RxFlags::DATA_VALIDATED) {
            return Err("the honest client is told to trust a checksum".into());
        }
        self.honest_answered += 1;
        Ok(())
    }

    pub(crate) fn payload(&mut self, mark: &[u8]) -> Vec<u8> {
        let filler = vec![0x55; self.random.usize(0..1200)];
        [mark, &self.number.to_be_bytes(), &filler].concat()
    }

    /// A hostile guest comes, does something, or goes.
    fn hostile_guest(&mut self) -> Result<(), String> {
        let Some(mut visit) = self.visit.take() else {
            self.visit = Some(Visit::begin(self, HOSTILE)?);
            return Ok(());
        };
        if self.random.u32(0..6) == 0 || !visit.is_connected(self) {
            self.visit = Some(visit);
            return self.end_visit();
        }
        self.number += 1;
        let (name, act) = guest::ACTS[self.random.usize(0..guest::ACTS.len())];
        let before = format!("{:?}", visit.acts);
        visit.acts.push(name);
        let effect = act(self, &mut visit)
            .map_err(|problem| format!("{name}: {problem}; before it: {before}"))?;
        self.note(name, effect);
        // What closes its device does so before the next act.
        self.turns(16)?;
        self.visit = Some(visit);
        Ok(())
    }

    fn end_visit(&mut self) -> Result<(), String> {
        let Some(visit) = self.visit.take() else { return Ok(()) };
        visit.end(self)?;
        self.note(guest::VISIT, true);
        self.expect_quiet("a hostile guest")
    }

    /// The NetVM turns hostile; after that another one takes its place.
    fn hostile_netvm(&mut self) -> Result<(), String> {
        self.end_visit()?;
        self.number += 1;
        let (name, act) = netvm::ACTS[self.random.usize(0..netvm::ACTS.len())];
        let effect = act(self).map_err(|problem| format!("{name}: {problem}"))?;
        self.note(name, effect);
        self.replace_netvm()?;
        self.expect_quiet("a hostile NetVM")?;
        self.honest_sends()
    }

    fn suspend(&mut self) -> Result<(), String> {
        self.end_visit()?;
        self.store.write("control/shutdown", "suspend");
        self.turns(6)?;
        let is_done = self.store.read("control/shutdown").as_deref() == Some("");
        self.note(SUSPEND, is_done);
        self.honest_sends()
    }

    pub(crate) fn note(&mut self, name: &'static str, took_effect: bool) {
        *self.tried.entry(name).or_insert(0) += 1;
        *self.effects.entry(name).or_insert(0) += u64::from(took_effect);
    }

    /// Until nothing is on its way any more.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..8 {
            self.pass(1000)?;
            self.take_sent()?;
        }
        self.turns(2)
    }

    fn expect_quiet(&mut self, after: &str) -> Result<(), String> {
        self.settle()?;
        let now = self.ledger();
        if now == self.quiet {
            Ok(())
        } else {
            Err(format!("after {after}: {now:?}, before {:?}", self.quiet))
        }
    }
}
