//! The loop on a scripted machine: what dom0 and the devices do goes in, frames, bytes and log lines come out.

mod announce;
mod calls;
mod fragments;
mod super_frames;

use core::net::Ipv4Addr;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use super::machine::{Arrival, Change, Effort, Machine, MemoryUse, Paged, Pipe, Reason, Stop};
use super::*;
use crate::frame::{Frame, Offload};
use crate::limits::Limits;
use crate::port::{ClientId, Origin, PortId};
use crate::segment::Payload;
use crate::testing::{self, A, Build, FROM_A, ID_A, MAC_A, MAC_UP, NETVM, OWN, SERVER};
use crate::uplink::UplinkPort;
use crate::verdict::{DropReason, Fate, Verdict};
use crate::{Instant, PortCaps};

const PAGE: usize = 4096;
const HEADER: usize = 72;

/// Both ends of a byte pipe. `room` bytes fit towards the peer.
#[derive(Default)]
struct TestPipe {
    inbound: VecDeque<u8>,
    outbound: Vec<u8>,
    room: usize,
}

impl Pipe for TestPipe {
    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.inbound.len());
        for (place, byte) in buffer.iter_mut().zip(self.inbound.drain(..count)) {
            *place = byte;
        }
        count
    }
    fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room);
        self.room -= count;
        self.outbound.extend(&bytes[..count]);
        count
    }
    fn unread(&self) -> usize {
        self.inbound.len()
    }
    fn space(&self) -> usize {
        self.room
    }
}

fn pipe() -> TestPipe {
    TestPipe { room: 1 << 20, ..TestPipe::default() }
}

#[derive(Default)]
struct TestMachine {
    now_ns: u64,
    changes: VecDeque<Change>,
    frames: VecDeque<(Origin, Vec<u8>)>,
    /// Super-frames, with the length of their head.
    supers: VecDeque<(Origin, Vec<u8>, usize, Offload)>,
    sent: Vec<(PortId, Vec<u8>)>,
    /// Of each that was sent.
    offloads: Vec<Offload>,
    database: Option<TestPipe>,
    closed_calls: Vec<TestPipe>,
    agent: Option<TestPipe>,
    calls: Vec<(CallId, TestPipe)>,
    opened: Vec<(u16, u32)>,
    /// Ports at which data channels are served for dom0.
    served: Vec<u32>,
    deadlines: Vec<Option<Instant>>,
    database_closes: usize,
    agent_resets: usize,
    has_no_pages: bool,
    /// Memory is short.
    is_short: bool,
    /// Spare pages of this turn; as many as are asked for if nothing is said.
    pages: Option<usize>,
    unsent: Vec<(&'static str, u64)>,
}

/// What is behind the head of a frame, in small pages.
struct TestTail(Vec<Vec<u8>>);

impl TestTail {
    fn of(bytes: &[u8]) -> Option<Self> {
        (!bytes.is_empty()).then(|| Self(bytes.chunks(1000).map(<[u8]>::to_vec).collect()))
    }
}

impl Payload for TestTail {
    fn copy(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let bytes = self.0.iter().flatten().skip(offset);
        let copied = to.iter_mut().zip(bytes).map(|(to, byte)| *to = *byte).count();
        (copied == to.len()).then_some(())
    }
}

impl Machine for TestMachine {
    type Page = Vec<u8>;
    type Tail = TestTail;
    type Scope = ();

    fn begin(&mut self, work: Work) -> Option<()> {
        (work == Work::Packets || !self.is_short).then_some(())
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.now_ns)
    }
    fn shared_clock_ns(&self, instant: Instant) -> u64 {
        instant.as_nanos() + 1_000_000
    }
    fn uptime_us(&self) -> (u64, u64) {
        (self.now_ns / 1000, 42_000)
    }
    fn memory(&self) -> MemoryUse {
        let memory = MemoryUse::default();
        MemoryUse { heap_used: 1024, heap_size: 4096, pages_used: 3, pages: 9, ..memory }
    }
    fn effort(&self) -> Effort {
        Effort::default()
    }
    fn sleep(&mut self, until: Option<Instant>) {
        self.deadlines.push(until);
    }
    fn advance(&mut self) -> Instant {
        self.now()
    }
    fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }
    fn receive_from_uplink(&mut self) {}
    fn receive_from_clients(&mut self) {}
    fn next_frame(&mut self) -> Option<Arrival<Vec<u8>, TestTail>> {
        let (origin, bytes, head, offload) = self.supers.pop_front().or_else(|| {
            let (origin, bytes) = self.frames.pop_front()?;
            let head = bytes.len();
            Some((origin, bytes, head, Offload::default()))
        })?;
        let mut page = vec![0; PAGE];
        page[..head].copy_from_slice(&bytes[..head]);
        let tail = TestTail::of(&bytes[head..]);
        Some(Arrival { origin, frame: Paged { page, head, len: bytes.len(), tail, offload } })
    }
    fn spare_page(&mut self) -> Option<Vec<u8>> {
        if let Some(pages) = &mut self.pages {
            *pages = pages.checked_sub(1)?;
        }
        (!self.has_no_pages).then(|| vec![0; PAGE])
    }
    fn bytes(page: &mut Vec<u8>, len: usize) -> &mut [u8] {
        &mut page[..len.max(1024)]
    }
    fn send(&mut self, to: PortId, frame: Paged<Vec<u8>, TestTail>) {
        let Paged { page, head, len, tail, offload } = frame;
        assert_eq!(tail.is_some(), head < len, "a tail if and only if there is something in it");
        let mut bytes = page[..head].to_vec();
        bytes.extend(tail.into_iter().flat_map(|tail| tail.0.concat()));
        assert_eq!(bytes.len(), len);
        self.sent.push((to, bytes));
        self.offloads.push(offload);
    }
    fn unsent(&self) -> &[(&'static str, u64)] {
        &self.unsent
    }
    fn flush(&mut self) {}
    fn database(&mut self) -> Option<&mut dyn Pipe> {
        self.database.as_mut().map(|pipe| pipe as &mut dyn Pipe)
    }
    fn close_database(&mut self) {
        self.database = None;
        self.database_closes += 1;
    }
    fn agent(&mut self) -> Option<&mut dyn Pipe> {
        self.agent.as_mut().map(|pipe| pipe as &mut dyn Pipe)
    }
    fn reset_agent(&mut self) {
        self.agent = None;
        self.agent_resets += 1;
    }
    fn open_call(&mut self, call: CallId, domain: u16, port: u32) {
        self.opened.push((domain, port));
        self.calls.push((call, pipe()));
    }
    fn serve_call(&mut self, call: CallId, port: u32) {
        self.served.push(port);
        self.calls.push((call, pipe()));
        self.changes.push_back(Change::CallUp(call));
    }
    fn call(&mut self, call: CallId) -> Option<&mut dyn Pipe> {
        let found = self.calls.iter_mut().find(|(id, _)| *id == call)?;
        Some(&mut found.1)
    }
    fn close_call(&mut self, call: CallId) {
        let is_it = |(id, _): &mut (CallId, TestPipe)| *id == call;
        self.closed_calls.extend(self.calls.extract_if(.., is_it).map(|(_, pipe)| pipe));
    }
}

#[derive(Clone, Default)]
struct Lines(Rc<RefCell<Vec<String>>>);

impl Sink for Lines {
    fn line(&mut self, text: fmt::Arguments<'_>) {
        self.0.borrow_mut().push(text.to_string());
    }
}

struct Rig {
    machine: TestMachine,
    lines: Lines,
    event_loop: EventLoop<Lines>,
}

impl Rig {
    fn new(command_line: &str) -> Self {
        let lines = Lines::default();
        let firewall = Firewall::new(Limits::for_memory(16 << 20), [7; 32]).unwrap();
        let mut event_loop = EventLoop::new(firewall, 16 << 20, command_line, lines.clone());
        let mut machine = TestMachine { now_ns: 1_000_000_000, ..TestMachine::default() };
        event_loop.run_actions(&mut machine);
        Self { machine, lines, event_loop }
    }

    /// A rig with QubesDB, uplink, client A that may use tcp/443, and the qrexec control channel.
    fn up() -> Self {
        let mut rig = Self::new("fw-log=drops");
        rig.connect_database(&rules_of_a("action=accept proto=tcp dstports=443-443"));
        rig.machine.agent = Some(pipe());
        rig.machine.changes.push_back(Change::AgentUp);
        rig.machine.changes.push_back(Change::UplinkUp {
            port: UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN },
            backend: 1,
        });
        let port = testing::vif(5, MAC_A, A);
        rig.machine.changes.push_back(Change::ClientUp { id: ID_A, port, devid: 0 });
        rig.turn();
        rig
    }

    fn connect_database(&mut self, entries: &[(&str, &str)]) {
        let mut database = pipe();
        let mut sorted = entries.to_vec();
        sorted.sort_unstable();
        for (path, value) in sorted.iter().rev() {
            database.inbound.extend(message(11, path, value));
        }
        database.inbound.extend(message(11, "", ""));
        self.machine.database = Some(database);
        self.machine.changes.push_back(Change::DatabaseUp);
    }

    fn write(&mut self, path: &str, value: &str) {
        let database = self.machine.database.as_mut().unwrap();
        database.inbound.extend(message(1, path, value));
    }

    fn turn(&mut self) -> Option<Stop> {
        self.machine.now_ns += 1_000_000;
        self.event_loop.turn(&mut self.machine)
    }

    fn client_sends(&mut self, build: &Build) -> Vec<(PortId, Vec<u8>)> {
        self.machine.frames.push_back((FROM_A, build.frame()));
        self.machine.sent.clear();
        self.turn();
        // ARP requests of our own are not what the test is about.
        self.machine.sent.iter().filter(|(_, frame)| frame[12..14] == [8, 0]).cloned().collect()
    }

    fn has_line(&self, start: &str) -> bool {
        self.lines.0.borrow().iter().any(|line| line.starts_with(start))
    }
}

fn message(kind: u8, path: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[0] = kind;
    bytes[1..1 + path.len()].copy_from_slice(path.as_bytes());
    bytes[68..].copy_from_slice(&(value.len() as u32).to_le_bytes());
    bytes.extend(value.as_bytes());
    bytes
}

fn rules_of_a(rule: &str) -> Vec<(&'static str, &str)> {
    vec![
        ("/name", "fw"),
        ("/qubes-ip", "10.137.0.6"),
        ("/qubes-netmask", "255.255.255.255"),
        ("/qubes-gateway", "10.137.0.5"),
        ("/qubes-primary-dns", "10.139.1.1"),
        ("/qubes-secondary-dns", "10.139.1.2"),
        ("/qubes-netvm-gateway", "10.137.0.6"),
        ("/qubes-netvm-primary-dns", "10.139.1.1"),
        ("/qubes-netvm-secondary-dns", "10.139.1.2"),
        ("/connected-ips", "10.137.0.10"),
        ("/connected-ips6", ""),
        ("/qubes-firewall/10.137.0.10", ""),
        ("/qubes-firewall/10.137.0.10/policy", "drop"),
        ("/qubes-firewall/10.137.0.10/0000", rule),
    ]
}

fn syn(port: u16) -> Build {
    Build::tcp((A, 40_000 + port), (SERVER, port), testing::SYN)
}

#[test]
fn test_addresses_are_those_of_the_keys() {
    assert_eq!((A.to_string(), OWN.to_string(), NETVM.to_string()), {
        ("10.137.0.10".into(), "10.137.0.6".into(), "10.137.0.5".into())
    });
}

#[test]
fn a_netvm_among_the_clients_is_the_uplink() {
    let mut rig = Rig::new("--ipv4=10.137.0.6 --ipv4-gw=10.137.0.5 --ipv4-dns=9.9.9.9");
    let mut entries = rules_of_a("action=accept");
    // Without a netvm of its own dom0 has nothing to say about the uplink.
    let uplink = ["/qubes-ip", "/qubes-gateway", "/qubes-netmask"];
    let dns = ["/qubes-primary-dns", "/qubes-secondary-dns"];
    entries.retain(|(key, _)| !uplink.contains(key) && !dns.contains(key));
    entries.iter_mut().filter(|(key, _)| *key == "/connected-ips").for_each(|entry| {
        entry.1 = "10.137.0.10 10.137.0.5";
    });
    rig.connect_database(&entries);
    let a = testing::vif(5, MAC_A, A);
    rig.machine.changes.push_back(Change::ClientUp { id: ID_A, port: a, devid: 0 });
    rig.turn();
    assert!(rig.client_sends(&syn(443)).iter().all(|(port, _)| *port == PortId::Client(ID_A)));

    let netvm = testing::vif(3, testing::MAC_B, NETVM);
    rig.machine.changes.push_back(Change::ClientUp { id: testing::ID_B, port: netvm, devid: 0 });
    rig.turn();
    let line = "fw: uplink connected client=3 devid=0 their_mac=00:16:3e:5e:6c:0b ip=10.137.0.6 \
                gateway=10.137.0.5";
    assert!(rig.has_line(line), "{:?}", rig.lines.0.borrow());
    let to_netvm = PortId::Client(testing::ID_B);
    let sent = rig.client_sends(&syn(443));
    assert_eq!((sent.len(), sent[0].0, &sent[0].1[26..30]), (1, to_netvm, &OWN.octets()[..]));
    let query = Build::udp((A, 5000), (testing::CLIENT_DNS[0], 53));
    let sent = rig.client_sends(&query);
    assert_eq!((sent[0].0, &sent[0].1[30..34]), (to_netvm, &[9, 9, 9, 9][..]));
    // Its own address is beyond the uplink, not that of a client.
    let sent = rig.client_sends(&Build::tcp((A, 1), (NETVM, 22), testing::SYN));
    assert_eq!(sent[0].0, to_netvm);

    let port = UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN };
    rig.machine.changes.push_back(Change::UplinkUp { port, backend: 9 });
    rig.turn();
    assert!(rig.has_line("fw: uplink ignored backend=9: --ipv4-gw names another NetVM"));
    let reason = Reason::new(format_args!("reason=\"test\""));
    rig.machine.changes.push_back(Change::ClientDown { id: testing::ID_B, reason });
    rig.turn();
    assert!(rig.has_line("fw: uplink gone"));
    assert!(rig.client_sends(&syn(443)).iter().all(|(port, _)| *port == PortId::Client(ID_A)));
}

#[test]
fn numbers_of_flows_are_live_and_told() {
    let mut rig = Rig::up();
    rig.write("/vm-config/fw-flows-per-client", "1");
    rig.turn();
    let most = Limits::for_memory(16 << 20).flows;
    let line = format!("fw: config flows={most} flows_per_client=1");
    assert!(rig.has_line(&line), "{:?}", rig.lines.0.borrow());
    rig.client_sends(&syn(443));
    rig.client_sends(&syn(443));
    assert_eq!(rig.event_loop.firewall.flows_of(A.into()), 1);
    rig.write("/vm-config/fw-flows", "4294967295");
    rig.turn();
    assert!(rig.has_line(&format!("{line} (no room for more; ask on the kernel command line)")));
}

#[test]
fn an_allowed_packet_leaves_and_a_forbidden_one_is_answered() {
    let mut rig = Rig::up();
    let sent = rig.client_sends(&syn(443));
    assert_eq!(sent.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [PortId::Uplink]);
    let sent = rig.client_sends(&syn(80));
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].0, PortId::Client(ID_A));
    // ICMP, type 3, code 13.
    assert_eq!((sent[0].1[23], &sent[0].1[34..36]), (1, &[3u8, 13][..]));
}

#[test]
fn nothing_passes_before_rules_arrive() {
    let mut rig = Rig::new("");
    rig.machine.changes.push_back(Change::UplinkUp {
        port: UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN },
        backend: 1,
    });
    let port = testing::vif(5, MAC_A, A);
    rig.machine.changes.push_back(Change::ClientUp { id: ID_A, port, devid: 0 });
    assert!(rig.client_sends(&syn(443)).is_empty());
}

#[test]
fn a_rule_edit_is_acknowledged_and_reported_with_its_first_packet() {
    let mut rig = Rig::up();
    rig.machine.database.as_mut().unwrap().outbound.clear();
    rig.write("/qubes-firewall/10.137.0.10/0000", "action=accept proto=tcp dstports=80-80");
    rig.turn();
    assert_eq!(rig.client_sends(&syn(443))[0].0, PortId::Uplink, "not committed yet");
    rig.write("/qubes-firewall/10.137.0.10", "");
    rig.turn();
    assert_eq!(rig.client_sends(&syn(443))[0].0, PortId::Client(ID_A), "flow ended");
    assert_eq!(rig.client_sends(&syn(80))[0].0, PortId::Uplink);

    let outbound = &rig.machine.database.as_ref().unwrap().outbound;
    let written: Vec<u8> = outbound.chunks(HEADER).map(|header| header[0]).take(2).collect();
    assert_eq!(written, [7, 7], "both writes are answered before ours");
    let handled = b"/qubes-firewall-handled/10.137.0.10\0";
    assert!(outbound.windows(handled.len()).any(|bytes| bytes == handled));
    assert_eq!(outbound.last(), Some(&b'2'), "second commit of this tree");
    assert!(rig.has_line("fw: rules ip=10.137.0.10 generation=3 rules=1 state=set spent_us="));
    assert!(rig.has_line("fw: rule edit ip=10.137.0.10 generation=3 committed_at_ns="));
}

#[test]
fn a_malformed_rule_is_named_and_rejects_everything() {
    let mut rig = Rig::up();
    rig.write("/qubes-firewall/10.137.0.10/0001", "action=accept proto=sctp");
    rig.write("/qubes-firewall/10.137.0.10", "");
    rig.turn();
    assert!(
        rig.has_line("fw: rules ip=10.137.0.10 generation=3 rules=0 state=refused reason="),
        "{:?}",
        rig.lines.0.borrow()
    );
    assert_eq!(rig.client_sends(&syn(443))[0].0, PortId::Client(ID_A));
}

#[test]
fn ready_is_said_once_with_times_and_memory() {
    let mut rig = Rig::up();
    rig.turn();
    let lines = rig.lines.0.borrow();
    let ready: Vec<_> = lines.iter().filter(|line| line.starts_with("fw: ready")).collect();
    assert_eq!(ready, ["fw: ready wall_ms=1001.0 vcpu_ms=42.0 heap_kib=1/4 pages=3/9"]);
}

#[test]
fn the_first_forwarded_packet_is_reported_once() {
    let mut rig = Rig::up();
    rig.client_sends(&syn(80));
    assert!(!rig.has_line("fw: first packet forwarded"), "an answer is not forwarded");
    rig.client_sends(&syn(443));
    rig.client_sends(&syn(443));
    let lines = rig.lines.0.borrow();
    assert_eq!(lines.iter().filter(|line| line.starts_with("fw: first packet")).count(), 1);
}

#[test]
fn drops_are_summarised_and_not_one_by_one() {
    let mut rig = Rig::up();
    for port in 0..50 {
        let forged = Build::udp((SERVER, 1000 + port), (NETVM, 9)).frame();
        rig.machine.frames.push_back((FROM_A, forged));
    }
    rig.turn();
    let lines = rig.lines.0.borrow();
    let drops: Vec<_> = lines.iter().filter(|line| line.starts_with("fw: drop")).collect();
    assert_eq!(drops, ["fw: drop reason=source-spoofed origin=client new=50 count=50"]);
}

#[test]
fn a_frame_that_ended_at_the_gate_is_told_even_where_drops_are_not() {
    let mut rig = Rig::new("");
    rig.turn();
    assert!(!rig.has_line("fw: fault"));
    let (mut bytes, forwarded) = (syn(443).frame(), Verdict::Forward(PortId::Uplink));
    let len = bytes.len();
    let mut frame = Frame::new(&mut bytes, len, Offload::default()).unwrap();
    let fate = rig.event_loop.firewall.emit(FROM_A, FROM_A, forwarded, &mut frame);
    assert_eq!(fate, Fate::Drop(DropReason::WithoutAccept));
    rig.turn();
    rig.turn();
    let lines = rig.lines.0.borrow();
    let told: Vec<_> = lines.iter().filter(|line| line.starts_with("fw: fault")).collect();
    assert_eq!(told, ["fw: fault reason=without-accept new=1 count=1 (none left)"]);
}

#[test]
fn frames_that_a_port_did_not_take_are_told() {
    let mut rig = Rig::up();
    rig.machine.unsent = vec![("uplink-full", 0), ("client-stalled", 7)];
    rig.turn();
    rig.machine.now_ns += 5_000_000_000;
    rig.machine.unsent[1].1 = 9;
    rig.turn();
    let lines = rig.lines.0.borrow();
    let told: Vec<_> = lines.iter().filter(|line| line.starts_with("fw: unsent")).collect();
    assert_eq!(
        told,
        [
            "fw: unsent reason=client-stalled new=7 count=7",
            "fw: unsent reason=client-stalled new=2 count=9"
        ]
    );
}

#[test]
fn a_client_that_goes_loses_its_port() {
    let mut rig = Rig::up();
    let reason = Reason::new(format_args!("slot=0 reason=\"gone\""));
    rig.machine.changes.push_back(Change::ClientDown { id: ClientId(0), reason });
    assert!(rig.client_sends(&syn(443)).is_empty());
    assert!(rig.has_line("fw: client gone slot=0"));
}

#[test]
fn our_addresses_are_told_when_they_come_after_the_uplink() {
    let mut rig = Rig::new("");
    let port = UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN };
    rig.machine.changes.push_back(Change::UplinkUp { port, backend: 1 });
    rig.turn();
    assert!(rig.has_line("fw: uplink connected backend=1"));
    assert!(!rig.has_line("fw: config ip="));
    rig.connect_database(&rules_of_a("action=accept"));
    rig.turn();
    assert!(rig.has_line("fw: config ip=10.137.0.6 gateway=10.137.0.5 ip6=none gateway6=none"));
}

#[test]
fn without_an_uplink_the_client_is_told_and_with_a_new_one_it_goes_on() {
    let mut rig = Rig::up();
    let reason = Reason::new(format_args!("closed by the backend"));
    rig.machine.changes.push_back(Change::UplinkDown { reason });
    // ICMP, type 3: destination unreachable.
    let sent = rig.client_sends(&syn(443));
    assert_eq!((sent[0].0, sent[0].1[34]), (PortId::Client(ID_A), 3));
    rig.machine.changes.push_back(Change::UplinkUp {
        port: UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN },
        backend: 9,
    });
    assert_eq!(rig.client_sends(&syn(443))[0].0, PortId::Uplink);
    assert!(rig.has_line("fw: uplink connected backend=9"));
}

#[test]
fn rules_stay_when_qubesdb_goes_and_are_replaced_when_it_comes_back() {
    let mut rig = Rig::up();
    rig.machine.changes.push_back(Change::DatabaseDown);
    rig.turn();
    assert_eq!(rig.machine.database_closes, 1);
    assert_eq!(rig.client_sends(&syn(443))[0].0, PortId::Uplink);
    rig.connect_database(&rules_of_a("action=accept proto=tcp dstports=80-80"));
    rig.turn();
    assert_eq!(rig.client_sends(&syn(443))[0].0, PortId::Client(ID_A));
    assert_eq!(rig.client_sends(&syn(80))[0].0, PortId::Uplink);
}

#[test]
fn what_qubesdb_sent_before_it_closed_still_counts() {
    let mut rig = Rig::up();
    rig.write("/qubes-firewall/10.137.0.10/0000", "action=accept proto=tcp dstports=80-80");
    rig.write("/qubes-firewall/10.137.0.10", "");
    rig.machine.changes.push_back(Change::DatabaseDown);
    rig.turn();
    assert_eq!(rig.client_sends(&syn(80))[0].0, PortId::Uplink);
}

#[test]
fn a_long_dump_does_not_keep_frames_waiting() {
    let mut rig = Rig::up();
    let big = "x".repeat(3000);
    for number in 0..60 {
        rig.write(&format!("/vm-config/big{number}"), &big);
    }
    assert_eq!(rig.client_sends(&syn(443))[0].0, PortId::Uplink);
    assert!(!rig.machine.database.as_ref().unwrap().inbound.is_empty(), "one turn is not enough");
    let deadline = rig.machine.deadlines.last().copied().flatten();
    assert!(deadline.is_some_and(|at| at.as_nanos() <= rig.machine.now_ns), "no sleep");
    rig.turn();
    rig.turn();
    assert!(rig.machine.database.as_ref().unwrap().inbound.is_empty());
}

#[test]
fn the_hello_goes_out_before_anything_is_received_and_calls_are_answered() {
    let mut rig = Rig::new("");
    rig.machine.agent = Some(pipe());
    rig.machine.changes.push_back(Change::AgentUp);
    rig.turn();
    let hello = [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
    assert_eq!(rig.machine.agent.as_ref().unwrap().outbound, hello);

    let agent = rig.machine.agent.as_mut().unwrap();
    agent.outbound.clear();
    agent.inbound.extend(hello);
    let text = b"user:QUBESRPC qubes.WaitForSession dom0\0";
    agent.inbound.extend([0, 2, 0, 0, 8 + text.len() as u8, 0, 0, 0]);
    agent.inbound.extend([0, 0, 0, 0, 1, 2, 0, 0]);
    agent.inbound.extend(text);
    rig.turn();
    assert!(rig.has_line("fw: qrexec ready version=3"));
    assert_eq!(rig.machine.opened, [(0, 513)]);

    let call = rig.machine.calls[0].0;
    rig.machine.changes.push_back(Change::CallUp(call));
    rig.turn();
    rig.machine.calls[0].1.inbound.extend([0, 3, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]);
    // End of standard input.
    rig.machine.calls[0].1.inbound.extend([0x90, 1, 0, 0, 0, 0, 0, 0]);
    rig.turn();
    rig.turn();
    assert!(rig.machine.calls.is_empty(), "the call is over");
    let terminated = [0x11, 2, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0];
    assert_eq!(rig.machine.agent.as_ref().unwrap().outbound, terminated);
}

#[test]
fn a_call_whose_caller_never_comes_is_ended_on_the_control_channel() {
    let mut rig = Rig::new("");
    rig.machine.agent = Some(pipe());
    rig.machine.changes.push_back(Change::AgentUp);
    let agent = rig.machine.agent.as_mut().unwrap();
    agent.inbound.extend([0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0]);
    let text = b"user:QUBESRPC qubes.Nothing dom0\0";
    agent.inbound.extend([0, 2, 0, 0, 8 + text.len() as u8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
    agent.inbound.extend(text);
    rig.turn();
    let call = rig.machine.calls[0].0;
    rig.machine.changes.push_back(Change::CallDown(call));
    rig.machine.agent.as_mut().unwrap().outbound.clear();
    rig.turn();
    assert!(rig.machine.calls.is_empty());
    assert_eq!(rig.machine.agent.as_ref().unwrap().outbound[..4], [0x11, 2, 0, 0]);
}

#[test]
fn a_daemon_that_breaks_the_protocol_gets_a_new_control_channel() {
    let mut rig = Rig::new("");
    rig.machine.agent = Some(pipe());
    rig.machine.changes.push_back(Change::AgentUp);
    rig.machine.agent.as_mut().unwrap().inbound.extend([0x99, 9, 0, 0, 0, 0, 0, 0]);
    rig.turn();
    assert_eq!(rig.machine.agent_resets, 1);
    assert!(rig.has_line("fw: qrexec control channel reset"));
}

#[test]
fn a_request_to_stop_ends_the_loop_with_statistics() {
    for stop in [Stop::Poweroff, Stop::Halt, Stop::Reboot] {
        let mut rig = Rig::up();
        rig.machine.changes.push_back(Change::Stop(stop));
        assert_eq!(rig.event_loop.run(&mut rig.machine), stop);
        assert!(rig.has_line("fw: stats wall_ms="));
        let stays_zero = |line: &String| line.ends_with(" without_accept=0");
        assert!(rig.lines.0.borrow().iter().any(stays_zero));
        assert!(rig.has_line("fw: stats clients"));
        assert!(rig.has_line(&format!("fw: shutdown reason={}", stop.name())));
    }
}

#[test]
fn without_memory_for_it_an_edit_waits_and_packets_do_not() {
    let mut rig = Rig::up();
    rig.machine.is_short = true;
    rig.write("/qubes-firewall/10.137.0.10/0000", "action=drop");
    rig.write("/qubes-firewall/10.137.0.10", "");
    rig.machine.changes.push_back(Change::Note(Reason::new(format_args!("a note"))));
    assert_eq!(rig.client_sends(&syn(443)).len(), 1, "the rules that are in force");
    let unread = rig.machine.database.as_ref().unwrap().unread();
    assert!(unread > 0 && rig.machine.changes.len() == 1, "nothing was taken");
    rig.machine.is_short = false;
    rig.turn();
    assert!(rig.machine.changes.is_empty());
    assert!(rig.has_line("fw: rules ip=10.137.0.10 generation=3"));
    let sent = rig.client_sends(&syn(443));
    assert!(sent.iter().all(|(to, _)| *to != PortId::Uplink), "and then the new ones");
}

#[test]
fn short_memory_delays_own_frames_only() {
    let mut rig = Rig::new("");
    rig.machine.has_no_pages = true;
    rig.connect_database(&rules_of_a("action=accept"));
    rig.machine.changes.push_back(Change::UplinkUp {
        port: UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN },
        backend: 1,
    });
    rig.turn();
    rig.turn();
    assert!(rig.machine.sent.is_empty());
    rig.machine.has_no_pages = false;
    rig.turn();
    // An ARP request for the gateway.
    assert!(
        rig.machine
            .sent
            .iter()
            .any(|(to, frame)| { *to == PortId::Uplink && frame[12..14] == [8, 6] })
    );
}

/// What was written to dom0 since the last time: type, path and value of each message.
fn to_dom0(rig: &mut Rig) -> Vec<(u8, String, String)> {
    let mut bytes = std::mem::take(&mut rig.machine.database.as_mut().unwrap().outbound);
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let len = u32::from_le_bytes(bytes[68..HEADER].try_into().unwrap()) as usize;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let path = bytes[1..65].split(|byte| *byte == 0).next().unwrap();
        messages.push((bytes[0], text(path), text(&bytes[HEADER..HEADER + len])));
        bytes.drain(..HEADER + len);
    }
    messages
}

/// The question of the resolver among the frames that were sent, and the answer to it.
fn answer_to_question(rig: &mut Rig, addresses: &[Ipv4Addr]) -> Build {
    use crate::dns::testing::{Asked, Reply};

    let is_udp = |frame: &&(PortId, Vec<u8>)| frame.1[12..14] == [8, 0] && frame.1[23] == 17;
    let (port, frame) = rig.machine.sent.iter().find(is_udp).cloned().unwrap();
    assert_eq!((port, &frame[36..38]), (PortId::Uplink, &53u16.to_be_bytes()[..]));
    let server = Ipv4Addr::from(<[u8; 4]>::try_from(&frame[30..34]).unwrap());
    let port = u16::from_be_bytes([frame[34], frame[35]]);
    let id = u16::from_be_bytes([frame[42], frame[43]]);
    let asked = Asked { server: server.into(), port, id, question: frame[54..].to_vec() };
    let reply = addresses.iter().fold(Reply::to(&asked), |reply, address| reply.a(60, *address));
    let message = if addresses.is_empty() { reply.rcode(2) } else { reply }.bytes();
    let mut l4 = [53, port, (8 + message.len()) as u16, 0].map(u16::to_be_bytes).concat();
    l4.extend(message);
    Build::raw(server, OWN, 17, l4).checksummed(6).up()
}

#[test]
fn dom0_is_told_the_addresses_of_names() {
    let mut rig = Rig::new("");
    let mut entries = rules_of_a("action=accept dsthost=www.example.org");
    entries.push(("/dns/10.137.0.10/old.example.org", "{'192.0.2.1/32'}"));
    rig.connect_database(&entries);
    rig.machine.changes.push_back(Change::UplinkUp {
        port: UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN },
        backend: 1,
    });
    rig.turn();
    let answer = answer_to_question(&mut rig, &[SERVER, Ipv4Addr::new(198, 51, 100, 6)]);
    // A removal waits until dom0 has answered everything.
    let confirm = |rig: &mut Rig, path| {
        rig.machine.database.as_mut().unwrap().inbound.extend(message(7, path, ""));
        rig.turn();
    };
    confirm(&mut rig, "/qubes-firewall-handled/10.137.0.10");
    let before = to_dom0(&mut rig);
    confirm(&mut rig, "/dns/10.137.0.10/");
    assert!(before.contains(&(4, "/dns/10.137.0.10/".into(), String::new())), "{before:?}");
    rig.machine.frames.push_back((Origin::Uplink, answer.frame()));
    rig.machine.now_ns += 300_000_000;
    rig.turn();
    rig.turn();
    let value = "{'198.51.100.6/32', '198.51.100.7/32'}".to_owned();
    let expected = [(1, "/dns/10.137.0.10/www.example.org".to_owned(), value)];
    assert_eq!(to_dom0(&mut rig), expected);
    // Nothing more to say, and no turn for it.
    rig.turn();
    assert_eq!(to_dom0(&mut rig), []);
    let wake = rig.machine.deadlines.last().unwrap().unwrap();
    assert!(wake > Instant::from_nanos(rig.machine.now_ns), "{wake:?}");
}

#[test]
fn a_name_that_cannot_be_resolved_is_logged_with_its_client() {
    let mut rig = Rig::new("");
    rig.connect_database(&rules_of_a("action=accept dsthost=www.example.org"));
    rig.machine.changes.push_back(Change::UplinkUp {
        port: UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN },
        backend: 1,
    });
    rig.turn();
    for _ in 0..4 {
        let answer = answer_to_question(&mut rig, &[]);
        rig.machine.frames.push_back((Origin::Uplink, answer.frame()));
        rig.machine.sent.clear();
        rig.turn();
    }
    let line = "fw: name not resolved client=10.137.0.10 name=www.example.org \
                reason=\"the servers cannot resolve it\"";
    assert!(rig.has_line(line), "{:?}", rig.lines.0.borrow());
}
