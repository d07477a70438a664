//! The whole appliance on the in-memory hypervisor: event loop, packet core and real drivers, with fake peers.

use std::cell::RefCell;
use std::rc::Rc;

use xen::fake::vchan::{ClientEnd, ServerEnd};
use xen::fake::vif::{Guest, NetVm, attach_client, attach_uplink, detach_client};
use xen::fake::{self, xenstore::Store};
use xen::netif::TxFlags;
use xen::{DomId, EventPort};

use super::*;
use crate::event_loop::EventLoop;
use crate::firewall::Firewall;

const NETVM: DomId = DomId(2);
const CLIENT: DomId = DomId(5);
const WAKER: DomId = DomId(9);
const MS: u64 = 1_000_000;

#[derive(Clone, Default)]
struct Lines(Rc<RefCell<Vec<String>>>);

impl Sink for Lines {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        self.0.borrow_mut().push(text.to_string());
    }
}

struct Rig {
    store: Store,
    machine: XenMachine,
    event_loop: EventLoop<Lines>,
    lines: Lines,
    /// End the sleep of a turn in which nothing happens. Several, used in turns: one that was delivered in a turn is
    /// masked when that turn sleeps.
    wakers: Vec<(event::Channel, EventPort)>,
}

impl Rig {
    fn new() -> Self {
        Self::with("fw-log=drops")
    }

    fn with(cmdline: &'static str) -> Self {
        let limits = Limits {
            clients: 8,
            addresses: 32,
            flows: 64,
            flows_per_client: 32,
            fragment_bytes: 65536,
        };
        let mut store = Store::new();
        // The toolstack makes these, ours to write.
        store.write("data", "");
        for name in ["shutdown", "feature-poweroff", "feature-reboot", "feature-suspend"] {
            store.write(&format!("control/{name}"), "");
        }
        let boot = BootInfo {
            cmdline,
            memory_bytes: 32 << 20,
            entry_ns: fake::now_ns(),
            entry_running_ns: 0,
            xen_version: (4, 17),
        };
        let machine = XenMachine::start(boot, &limits).unwrap();
        let lines = Lines::default();
        let firewall = Firewall::new(limits, [3; 32]).unwrap();
        let event_loop = EventLoop::new(firewall, 32 << 20, cmdline, lines.clone());
        let waker = |_| {
            let channel = event::Channel::alloc_unbound(WAKER).unwrap();
            let port = fake::peer(WAKER).bind(channel.port());
            (channel, port)
        };
        let wakers = (0..4).map(waker).collect();
        let mut rig = Self { store, machine, event_loop, lines, wakers };
        rig.settle();
        rig
    }

    /// Turns until nothing moves, without passing virtual time beyond what the turns sleep.
    fn settle(&mut self) -> Option<Stop> {
        for turn in 0..60 {
            self.store.serve();
            self.wakers.iter().for_each(|(channel, _)| channel.unmask());
            let port = self.wakers[turn % self.wakers.len()].1;
            fake::at(fake::now_ns() + MS, move || fake::peer(WAKER).notify(port));
            if let Some(stop) = self.event_loop.turn(&mut self.machine) {
                return Some(stop);
            }
            assert!(!self.has_line("fw: fault"), "about to leave without an accept");
        }
        None
    }

    fn has_line(&self, start: &str) -> bool {
        self.lines.0.borrow().iter().any(|line| line.starts_with(start))
    }

    fn connect_uplink(&mut self) -> NetVm {
        attach_uplink(&mut self.store, NETVM, 0);
        self.settle();
        NetVm::offer(&mut self.store, NETVM, 0);
        self.settle();
        let netvm = NetVm::connect(&mut self.store, NETVM, 0);
        self.settle();
        netvm
    }

    fn connect_client(&mut self) -> Guest {
        self.connect_client_of(CLIENT, "10.137.0.10")
    }

    fn connect_client_of(&mut self, domain: DomId, ip: &str) -> Guest {
        attach_client(&mut self.store, domain, 0, ip);
        self.settle();
        let guest = Guest::new(domain, 0);
        guest.publish(&mut self.store);
        self.settle();
        guest
    }

    fn node(&self, path: &str) -> Option<String> {
        self.store.read(path)
    }
}

#[test]
fn it_says_what_it_can_do_and_offers_qrexec_before_anything_else_is_there() {
    let rig = Rig::new();
    for feature in ["poweroff", "reboot", "suspend"] {
        assert_eq!(rig.node(&format!("control/feature-{feature}")).as_deref(), Some("1"));
    }
    assert!(rig.node("data/vchan/0/512/ring-ref").is_some());
    assert!(rig.node("data/vchan/0/512/event-channel").is_some());
}

#[test]
fn a_request_to_stop_is_acknowledged_and_obeyed_without_uplink_or_qubesdb() {
    for (word, stop) in
        [("poweroff", Stop::Poweroff), ("halt", Stop::Halt), ("reboot", Stop::Reboot)]
    {
        fake::reset();
        let mut rig = Rig::new();
        rig.store.write("control/shutdown", word);
        assert_eq!(rig.settle(), Some(stop));
        assert_eq!(rig.node("control/shutdown").as_deref(), Some(""));
        drop(rig);
    }
}

#[test]
fn a_stop_is_obeyed_even_if_it_cannot_be_acknowledged() {
    let mut rig = Rig::new();
    rig.store.refuse("control/shutdown", "EACCES");
    rig.store.write("control/shutdown", "poweroff");
    assert_eq!(rig.settle(), Some(Stop::Poweroff));
}

#[test]
fn other_words_and_empty_values_are_no_request() {
    let mut rig = Rig::new();
    for word in ["", "crash", "poweroff now", "POWEROFF"] {
        rig.store.write("control/shutdown", word);
        assert_eq!(rig.settle(), None, "{word:?}");
    }
}

#[test]
fn a_suspend_is_acknowledged_and_everything_goes_on() {
    let mut rig = Rig::new();
    let _netvm = rig.connect_uplink();
    rig.store.write("control/shutdown", "suspend");
    assert_eq!(rig.settle(), None);
    assert_eq!(rig.node("control/shutdown").as_deref(), Some(""));
    // SHUTDOWN_suspend of Xen public/sched.h.
    assert_eq!(fake::shutdown_reason(), Some(2));
    assert!(rig.has_line("fw: resumed after a suspend"));
    assert!(rig.machine.front.is_up());
}

#[test]
fn a_client_without_rules_gets_nothing_out() {
    let mut rig = Rig::new();
    let mut netvm = rig.connect_uplink();
    let mut guest = rig.connect_client();
    assert!(rig.has_line("fw: client connected domid=5 devid=0 ip=10.137.0.10"));
    netvm.take_requests();
    let frame = udp_frame();
    guest.post(8);
    guest.send(&frame, TxFlags::for_frame(netif::Offload::NONE));
    guest.peer.notify(guest.port);
    rig.settle();
    assert_eq!(guest.responses().len(), 1, "the slot is answered");
    let sent = netvm.take_requests();
    let is_ipv4 = |request: &xen::netif::TxRequest| netvm.bytes(request)[12..14] == [8, 0];
    assert!(!sent.iter().any(is_ipv4), "nothing was granted to the uplink");
    assert!(rig.has_line("fw: drop reason=no-rules origin=client new=1 count=1"));
}

#[test]
fn an_arp_request_for_the_gateway_is_answered_to_the_client() {
    let mut rig = Rig::new();
    let mut guest = rig.connect_client();
    guest.post(4);
    let mut frame = vec![0xff; 6];
    frame.extend([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x00, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x00, 10, 137, 0, 10]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 137, 0, 6]);
    guest.send(&frame, TxFlags::for_frame(netif::Offload::NONE));
    guest.peer.notify(guest.port);
    rig.settle();
    let received = guest.received();
    assert_eq!(received.len(), 1);
    let answer = &received[0].1;
    // A reply whose sender is the gateway's fixed address.
    assert_eq!(answer[20..22], [0, 2]);
    assert_eq!(answer[22..32], [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 10, 137, 0, 6]);
}

#[test]
fn a_netvm_among_the_clients_is_the_uplink() {
    let mut rig = Rig::with("--ipv4=10.137.0.6 --ipv4-gw=10.137.0.5");
    let mut guest = rig.connect_client_of(NETVM, "10.137.0.5");
    assert!(rig.has_line("fw: uplink connected client=2 devid=0"), "{:?}", rig.lines.0.borrow());
    guest.post(8);
    for _ in 0..20 {
        rig.settle();
    }
    let received = guest.received();
    // ARP requests that ask for the NetVM, from our address on its vif.
    let is_ours = |frame: &[u8]| {
        frame[12..14] == [8, 6]
            && frame[22..32] == [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 10, 137, 0, 6]
    };
    assert!(!received.is_empty() && received.iter().all(|(_, frame)| is_ours(frame)));
    assert!(received.iter().any(|(_, frame)| frame[38..42] == [10, 137, 0, 5]));
    detach_client(&mut rig.store, NETVM, 0);
    rig.settle();
    guest.set(&mut rig.store, "state", "6");
    for _ in 0..20 {
        rig.settle();
    }
    assert!(rig.has_line("fw: uplink gone"));
}

#[test]
fn a_detached_client_is_forgotten_and_its_directory_removed() {
    let mut rig = Rig::new();
    let guest = rig.connect_client();
    detach_client(&mut rig.store, CLIENT, 0);
    rig.settle();
    guest.set(&mut rig.store, "state", "6");
    for _ in 0..80 {
        rig.settle();
    }
    assert!(rig.has_line("fw: client gone domid=5 devid=0 reason="));
    assert_eq!(rig.node("backend/vif/5/0/state"), None);
}

#[test]
fn the_uplink_comes_and_goes_with_its_backend() {
    let mut rig = Rig::new();
    let netvm = rig.connect_uplink();
    assert!(rig.has_line("fw: uplink connected backend=2"));
    rig.store.write(&format!("{}/state", netvm.directory), "5");
    rig.settle();
    assert!(rig.has_line("fw: uplink gone reason="));
    assert!(!rig.machine.front.is_up());
}

/// A message of QubesDB without a value.
fn database_message(kind: u8, path: &str) -> Vec<u8> {
    let mut bytes = vec![0; 72];
    bytes[0] = kind;
    bytes[1..1 + path.len()].copy_from_slice(path.as_bytes());
    bytes
}

/// A rig whose QubesDB is empty and whose call for a feature dom0 has connected to port 513; dom0's control channel.
fn rig_with_a_call_of_its_own() -> (Rig, ServerEnd, ClientEnd) {
    const KEY: &str = "/features-request/qubes-firewall";
    let mut rig = Rig::new();
    let mut database = ServerEnd::announce(&mut rig.store, DomId::DOM0, 111, 1);
    rig.settle();
    database.read();
    database.write(&database_message(11, ""));
    rig.settle();
    let mut agent = ClientEnd::connect(&rig.store, DomId::DOM0, 512).unwrap();
    agent.write(&HELLO);
    rig.settle();
    let written = database_message(1, KEY)[..65].to_vec();
    assert!(database.read().windows(65).any(|bytes| bytes == written));
    database.write(&database_message(7, KEY));
    rig.settle();
    assert!(agent.read().ends_with(b"qubes.FeaturesRequest\0"));
    let order = [2, 2, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0];
    agent.write(&[&order[..], b"features", &[0; 24]].concat());
    rig.settle();
    assert!(rig.node("data/vchan/0/513/ring-ref").is_some());
    (rig, database, agent)
}

const HELLO: [u8; 12] = [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
const TERMINATED: [u8; 16] = [0x11, 2, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0];

#[test]
fn a_call_of_our_own_is_served_to_its_end_and_nothing_of_it_is_left() {
    let (mut rig, _database, mut agent) = rig_with_a_call_of_its_own();
    let mut data = ClientEnd::connect(&rig.store, DomId::DOM0, 513).unwrap();
    rig.settle();
    assert_eq!(data.read(), [&HELLO[..], &[0x90, 1, 0, 0, 0, 0, 0, 0]].concat());
    assert_eq!(rig.node("data/vchan/0/513/ring-ref"), None, "nobody else is to find it");
    data.write(&[&HELLO[..], &[0x93, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]].concat());
    rig.settle();
    assert!(rig.has_line("fw: qubes.FeaturesRequest: done"), "{:?}", rig.lines.0.borrow());
    assert_eq!(agent.read(), TERMINATED);
    assert!(!data.is_open());
    data.close();
    rig.settle();
    assert!(!rig.machine.links.offers());
}

#[test]
fn a_call_of_our_own_to_which_nobody_comes_is_withdrawn() {
    let (mut rig, _database, mut agent) = rig_with_a_call_of_its_own();
    let asked_ns = fake::now_ns();
    while !rig.has_line("fw: qubes.FeaturesRequest") {
        assert!(fake::now_ns() < asked_ns + 20_000 * MS, "it is not given up");
        rig.settle();
    }
    assert!(fake::now_ns() > asked_ns + 9_000 * MS, "it is given up early");
    rig.settle();
    assert!(rig.has_line("fw: qubes.FeaturesRequest: no answer of dom0"));
    assert_eq!(agent.read(), TERMINATED);
    assert_eq!(rig.node("data/vchan/0/513/ring-ref"), None);
    assert!(!rig.machine.links.offers());
}

#[test]
fn a_caller_that_goes_ends_our_call() {
    let (mut rig, _database, mut agent) = rig_with_a_call_of_its_own();
    let data = ClientEnd::connect(&rig.store, DomId::DOM0, 513).unwrap();
    rig.settle();
    data.close();
    rig.settle();
    assert!(rig.has_line("fw: qubes.FeaturesRequest: no answer of dom0"));
    assert_eq!(agent.read(), TERMINATED);
    assert!(!rig.machine.links.offers());
}

/// UDP from the client to a server outside, with a valid header checksum.
fn udp_frame() -> Vec<u8> {
    let mut frame = vec![0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
    frame.extend([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x00, 8, 0]);
    let mut header =
        vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 137, 0, 10, 198, 51, 100, 7];
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend([0x9c, 0x40, 0, 9, 0, 8, 0, 0]);
    frame
}
