//! Callers that mean harm: through the real agent, with the real services, in bounded memory, refused with a reason.

use serde_json::Value;

use super::{World, control, facts, kit};
use crate::control::Control;
use crate::qrexec::{Action, Agent, CallId, MAX_CHANNELS, MAX_SERVED_CALLS, PEER_TIMEOUT};
use crate::services::{Facts, Session};
use crate::testing::Kit;
use crate::*;

const HELLO: [u8; 12] = [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
const SERVICES: [&str; 8] = [
    "firewall.Version",
    "firewall.Stats",
    "firewall.Memory",
    "firewall.Flows",
    "firewall.Drops",
    "firewall.Rules",
    "firewall.Explain",
    "firewall.Health",
];

/// The agent, and what its services tell of.
struct Caller {
    kit: Kit,
    control: Control,
    facts: Facts,
    agent: Agent<Session>,
    now: Instant,
}

impl Caller {
    fn new() -> Self {
        let kit = kit();
        let facts = facts(&kit);
        let mut caller = Self {
            kit,
            control: control(),
            facts,
            agent: Agent::new(),
            now: Instant::from_nanos(5),
        };
        caller.agent.control_opened();
        caller.control_sent();
        caller.order_bytes(&HELLO);
        caller
    }

    fn order_bytes(&mut self, bytes: &[u8]) {
        let Self { kit, control, facts, agent, now } = self;
        let mut services = World { firewall: &kit.fw, control, facts }.services();
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = agent.control_bytes(*now, rest, &mut services);
            rest = &rest[taken..];
            while !agent.control_transmit().is_empty() {
                let sent = agent.control_transmit().len();
                agent.control_transmitted(sent);
            }
        }
    }

    fn control_sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        while !self.agent.control_transmit().is_empty() {
            let bytes = self.agent.control_transmit().to_vec();
            self.agent.control_transmitted(bytes.len());
            sent.extend(bytes);
        }
        sent
    }

    fn order(&mut self, port: u32, command: &[u8]) {
        let text = [b"user:QUBESRPC ", command, b" work\0"].concat();
        let length = (8 + text.len() as u32).to_le_bytes();
        let order = [&[0, 2, 0, 0], &length[..], &[0; 4], &port.to_le_bytes(), &text].concat();
        self.order_bytes(&order);
    }

    /// The data channel that is to be connected, connected.
    fn opened(&mut self) -> Option<CallId> {
        match self.agent.poll_action()? {
            Action::OpenData { call, .. } => {
                self.agent.data_opened(self.now, call);
                Some(call)
            }
            other => panic!("{other:?}"),
        }
    }

    fn input(&mut self, call: CallId, bytes: &[u8]) {
        let Self { kit, control, facts, agent, now } = self;
        let mut services = World { firewall: &kit.fw, control, facts }.services();
        agent.data_bytes(*now, call, bytes, &mut services);
    }

    /// Standard input in messages of at most `most` bytes.
    fn stdin(&mut self, call: CallId, bytes: &[u8], most: usize) {
        for piece in bytes.chunks(most) {
            let length = (piece.len() as u32).to_le_bytes();
            self.input(call, &[&[0x90, 1, 0, 0], &length[..], piece].concat());
        }
        self.input(call, &[0x90, 1, 0, 0, 0, 0, 0, 0]);
    }

    /// Everything that a caller gets who reads `most` bytes at once; how often the service wanted another turn.
    fn output(&mut self, call: CallId, most: usize) -> Vec<u8> {
        let Self { kit, control, facts, agent, now } = self;
        let mut services = World { firewall: &kit.fw, control, facts }.services();
        let mut out = Vec::new();
        loop {
            let bytes = agent.data_transmit(call, &mut services);
            let bytes = bytes[..bytes.len().min(most)].to_vec();
            agent.data_transmitted(*now, call, bytes.len());
            if bytes.is_empty() && !agent.wants_turn() {
                return out;
            }
            out.extend(bytes);
            assert!(out.len() < 1 << 20);
        }
    }

    /// Standard output, standard error and exit code.
    fn result(&mut self, call: CallId) -> (Vec<u8>, Vec<u8>, Option<u32>) {
        let bytes = self.output(call, usize::MAX);
        let (mut out, mut err, mut code) = (Vec::new(), Vec::new(), None);
        let mut rest = &bytes[..];
        while let Some((head, behind)) = rest.split_first_chunk::<8>() {
            let [kind, len] =
                [0, 4].map(|at| u32::from_le_bytes(*head[at..].first_chunk().unwrap()));
            let (body, next) = behind.split_at(len as usize);
            match kind {
                0x191 => out.extend_from_slice(body),
                0x192 => err.extend_from_slice(body),
                0x193 => code = Some(u32::from_le_bytes(*body.first_chunk().unwrap())),
                0x300 => {}
                other => panic!("{other:#x}"),
            }
            rest = next;
        }
        (out, err, code)
    }
}

fn hello(caller: &mut Caller, call: CallId) {
    caller.input(call, &HELLO);
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(bytes as u64);
    (0..bytes).map(|_| random.u8(..)).collect()
}

#[test]
fn any_standard_input_of_any_size_is_taken_and_does_no_harm() {
    for service in SERVICES {
        for bytes in [0, 1, 511, 512, 513, 65_535, 65_536, 200_000] {
            for most in [4096, 65_536] {
                let mut caller = Caller::new();
                caller.order(513, service.as_bytes());
                let call = caller.opened().unwrap();
                hello(&mut caller, call);
                caller.stdin(call, &noise(bytes), most);
                let (out, err, code) = caller.result(call);
                let is_question = service == "firewall.Explain";
                assert_eq!(code, Some(u32::from(is_question)), "{service} {bytes}");
                assert!(err.is_empty() && !out.is_empty());
                for line in out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let line: Value = serde_json::from_slice(line).unwrap();
                    assert!(line.is_object());
                }
            }
        }
    }
}

#[test]
fn a_message_longer_than_the_protocol_allows_ends_the_call_and_nothing_else() {
    let mut caller = Caller::new();
    for (port, length) in [(513, 65_537u32), (514, u32::MAX)] {
        caller.order(port, b"firewall.Explain");
        let call = caller.opened().unwrap();
        hello(&mut caller, call);
        caller.input(call, &[&[0x90, 1, 0, 0], &length.to_le_bytes()[..]].concat());
        assert_eq!(caller.agent.poll_action(), Some(Action::CloseData { call }));
    }
    assert_eq!((caller.agent.counters().bad_peers, caller.agent.channels()), (2, 0));
}

#[test]
fn any_argument_is_answered_or_refused_with_a_reason() {
    let arguments: Vec<Vec<u8>> = [0usize, 1, 40, 511, 513, 3000, 4000, 5000, 60_000]
        .into_iter()
        .flat_map(|len| [vec![b'+'; len], vec![b'1'; len], vec![0xff; len], noise(len)])
        .chain([
            b"10.137.0.10".to_vec(),
            b"openmetrics".to_vec(),
            b"::".to_vec(),
            vec![0],
            vec![b' '],
        ])
        .collect();
    for service in SERVICES {
        for argument in &arguments {
            let mut caller = Caller::new();
            caller.order(513, &[service.as_bytes(), b"+", argument].concat());
            let call = caller.opened().unwrap();
            hello(&mut caller, call);
            let (out, err, code) = caller.result(call);
            let is_waiting = service == "firewall.Explain" && argument.is_empty();
            match code {
                Some(0) => assert!(!out.is_empty()),
                Some(1) => assert!(out.starts_with(b"{\"schema\":1,\"kind\":\"error\""), "{out:?}"),
                // Too long, no text, or a command of other words.
                Some(125) => assert!(err == b"bad command\n"),
                Some(127) => assert!(err == b"no such service\n"),
                other => assert!(is_waiting && other.is_none(), "{service} {argument:?} {other:?}"),
            }
        }
    }
}

/// As many as the bound on those that wait allows, all ordered before one is answered.
#[test]
fn of_a_thousand_calls_at_once_those_beyond_the_bound_are_refused_with_a_reason() {
    let mut caller = Caller::new();
    let (mut served, mut refused) = (0, 0);
    let mut open = Vec::new();
    for port in 0..1000 {
        caller.order(513 + port, SERVICES[port as usize % SERVICES.len()].as_bytes());
        open.extend(caller.opened());
        assert!(caller.agent.channels() <= MAX_CHANNELS);
    }
    assert_eq!(open.len(), MAX_CHANNELS);
    while let Some(call) = open.pop() {
        hello(&mut caller, call);
        caller.stdin(call, b"", 1);
        match caller.result(call) {
            (out, err, Some(126)) => {
                assert!(out.is_empty() && err == b"too many calls at once\n");
                refused += 1;
            }
            (out, err, Some(0 | 1)) => {
                assert!(err.is_empty() && !out.is_empty());
                served += 1;
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(caller.agent.poll_action(), Some(Action::CloseData { call }));
        assert!(open.is_empty() || caller.agent.next_deadline().is_some());
        caller.agent.on_timer(caller.now);
        while let Some(next) = caller.opened() {
            open.push(next);
        }
        assert!(caller.agent.channels() <= MAX_CHANNELS);
    }
    assert_eq!((served, refused), (MAX_SERVED_CALLS, 1000 - MAX_SERVED_CALLS));
    let counters = caller.agent.counters();
    assert_eq!((counters.calls, counters.over_limit), (1000, refused as u64));
    assert_eq!(caller.control_sent().len(), 1000 * 16, "each port is freed");
}

#[test]
fn a_caller_that_stops_reading_costs_its_channel_and_ends_by_time() {
    let mut caller = Caller::new();
    let mut calls = Vec::new();
    for port in 0..MAX_SERVED_CALLS as u32 {
        caller.order(513 + port, b"firewall.Stats+openmetrics");
        let call = caller.opened().unwrap();
        hello(&mut caller, call);
        calls.push(call);
    }
    // Each has a buffer's worth for the caller, and asks the service for nothing more.
    for call in &calls {
        let Caller { kit, control, facts, agent, now } = &mut caller;
        let mut services = World { firewall: &kit.fw, control, facts }.services();
        let first = agent.data_transmit(*call, &mut services).to_vec();
        assert!(first.len() <= 4096 + 8);
        for _ in 0..100 {
            assert_eq!(agent.data_transmit(*call, &mut services), first);
            agent.data_transmitted(*now, *call, 0);
        }
    }
    // A fifth caller hears why it gets nothing, however long these sleep.
    caller.order(600, b"firewall.Version");
    let fifth = caller.opened().unwrap();
    hello(&mut caller, fifth);
    assert_eq!(caller.result(fifth).2, Some(126));
    assert_eq!(caller.agent.poll_action(), Some(Action::CloseData { call: fifth }));
    caller.now = caller.now.after(PEER_TIMEOUT);
    caller.agent.on_timer(caller.now);
    let closed = core::iter::from_fn(|| caller.agent.poll_action()).count();
    assert_eq!((closed, caller.agent.channels()), (MAX_SERVED_CALLS, 0));
    caller.order(700, b"firewall.Version");
    let next = caller.opened().unwrap();
    hello(&mut caller, next);
    assert_eq!(caller.result(next).2, Some(0));
}

#[test]
fn a_caller_that_reads_byte_by_byte_gets_the_same() {
    for service in SERVICES.iter().filter(|service| **service != "firewall.Explain") {
        let mut answers = Vec::new();
        for most in [usize::MAX, 1, 7] {
            let mut caller = Caller::new();
            caller.order(513, service.as_bytes());
            let call = caller.opened().unwrap();
            hello(&mut caller, call);
            answers.push(caller.output(call, most));
        }
        assert!(answers.array_windows().all(|[one, next]| one == next), "{service}");
    }
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<Session>() <= 80, "{}", size_of::<Session>());
}
