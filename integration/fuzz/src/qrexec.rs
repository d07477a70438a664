//! The qrexec agent against a dom0, and callers, that say anything, in pieces of any size.
//!
//! The services of the firewall itself are among those that are called. Calls stay bounded, every data channel is named once and ended once, and what we write on the control channel is a
//! sequence of whole messages that a daemon knows.

use std::collections::BTreeSet;
use std::time::Duration;

use firewall::control::{self, Control};
use firewall::event_loop::machine::{Effort, MemoryUse};
use firewall::qrexec::{
    Action, Agent, CallId, Command, ExitCode, MAX_CHANNELS, NoSuchService, Progress, ServiceCall,
    Services,
};
use firewall::services::{self, Facts, FirewallServices};
use firewall::{ClientId, ClientPort, Firewall, Instant, Limits, Mac, PortCaps, RulesState};
use rules::{CompiledSet, Family, RuleSet};

use crate::source::Source;

const HELLO: u32 = 0x300;
const EXECUTE: [u32; 3] = [0x200, 0x201, 0x202];
const TERMINATED: u32 = 0x211;
const STDIN: u32 = 0x190;
const SERVICE_CONNECT: u32 = 0x202;
const SERVICE_REFUSED: u32 = 0x203;
const TRIGGER_SERVICE3: u32 = 0x212;
/// What we call ourselves.
const SERVICE: &str = "qubes.FeaturesRequest";
const TEXTS: &[&[u8]] = &[
    b"user:QUBESRPC x.Echo dom0\0",
    b"user:QUBESRPC x.Flood work\0",
    b"DEFAULT:QUBESRPC qubes.SetDateTime+ dom0\0",
    b"user:QUBESRPC none dom0 name work\0",
    b"user:nogui:QUBESRPC x.Echo+arg dom0\0",
    b"user:date\0",
    b"user:QUBESRPC firewall.Explain dom0\0",
    b"user:QUBESRPC firewall.Explain+10.137.0.5+tcp+192.0.2.1+443 dom0\0",
    b"user:QUBESRPC firewall.Stats+openmetrics dom0\0",
    b"user:QUBESRPC firewall.Rules dom0\0",
    b"user:QUBESRPC firewall.Flows+10.137.0.5 work\0",
    b"user:QUBESRPC firewall.Drops+x dom0\0",
    b"user:QUBESRPC firewall.Health+ work\0",
    b"user:QUBESRPC x.Echo dom0",
    b"\0",
    b"",
];

const QUESTIONS: &[&[u8]] = &[
    b"10.137.0.5 tcp 192.0.2.1 443\n",
    b"10.137.0.5 icmp 192.0.2.1",
    b" 47 ",
    b"fd09::5 udp 2001:db8::1 53",
    b"\n",
];

/// A script of what arrives on which channel.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mut world = World::default();
    while !source.is_empty() {
        match source.below(12) {
            0 => world.control_opened(),
            1 => world.control(&hello(&mut source), &mut source),
            2..=4 => {
                let order = order(&mut source);
                world.control(&order, &mut source);
            }
            5 => world.control(source.piece(), &mut source),
            6 => {
                if let Some(call) = world.choose(&mut source) {
                    world.agent.data_opened(world.now, call);
                }
            }
            7 => {
                if let Some(call) = world.choose(&mut source) {
                    world.agent.data_closed(call);
                    world.open.retain(|known| *known != call);
                }
            }
            8 | 9 => {
                let bytes = data_bytes(&mut source);
                world.data(&bytes, &mut source);
            }
            10 => world.transmit(&mut source),
            _ => match source.word() {
                0xff00.. => {
                    world.agent.request(SERVICE);
                    let kind = source.pick(&[SERVICE_CONNECT, SERVICE_REFUSED]);
                    world.control(&answer(kind, &mut source), &mut source);
                }
                time => world.later(Duration::from_millis(u64::from(time) * 10)),
            },
        }
        world.settle();
    }
    // Whatever was left half done ends by time alone, except for a flood that is read on and on.
    for _ in 0..4 {
        world.later(Duration::from_secs(130));
        world.settle();
    }
    assert_eq!(world.agent.channels(), 0, "a call that nothing moves on ends");
    Command::parse(data).ok();
}

fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(payload.len() as u32).to_le_bytes(), payload].concat()
}

fn hello(source: &mut Source<'_>) -> Vec<u8> {
    message(HELLO, &source.pick(&[2_u32, 3, 4, 0, u32::MAX]).to_le_bytes())
}

fn order(source: &mut Source<'_>) -> Vec<u8> {
    let domain = source.pick(&[0_u32, 1, 5, 9, 0x7fef, 0x7ff0, 0x1_0000]);
    let port = u32::from(source.byte());
    let text = if source.flag() { source.pick(TEXTS) } else { source.piece() };
    let payload = [&domain.to_le_bytes()[..], &port.to_le_bytes(), text].concat();
    message(source.pick(&EXECUTE), &payload)
}

/// What dom0 says to a call of ours, with its identifier or another.
fn answer(kind: u32, source: &mut Source<'_>) -> Vec<u8> {
    let mut ident = [0; 32];
    ident[..8].copy_from_slice(source.pick(&[b"features", b"REQUEST1"]));
    let target = [source.pick(&[0_u32, 5]), u32::from(source.byte())].map(u32::to_le_bytes);
    let payload = if kind == SERVICE_CONNECT {
        [target.concat(), ident.to_vec()].concat()
    } else {
        ident.to_vec()
    };
    message(kind, &payload)
}

fn data_bytes(source: &mut Source<'_>) -> Vec<u8> {
    match source.below(6) {
        0 => hello(source),
        4 => message(STDIN, source.pick(QUESTIONS)),
        1 => message(STDIN, &[]),
        2 => message(source.pick(&[STDIN, STDIN, 0x191, 0x193, 0]), source.piece()),
        3 => message(STDIN, &vec![b'x'; usize::from(source.word())]),
        _ => source.piece().to_vec(),
    }
}

struct World {
    agent: Agent<Session>,
    now: Instant,
    control_is_open: bool,
    /// Control output that is no whole message yet.
    control_out: Vec<u8>,
    named: BTreeSet<String>,
    open: Vec<CallId>,
    /// Our own call's channel, which counts for none of the others' limits.
    own: Option<CallId>,
    requests_ended: u32,
}

impl Default for World {
    fn default() -> Self {
        let mut world = Self {
            agent: Agent::new(),
            now: Instant::from_nanos(1),
            control_is_open: false,
            control_out: Vec::new(),
            named: BTreeSet::new(),
            open: Vec::new(),
            own: None,
            requests_ended: 0,
        };
        world.control_opened();
        world
    }
}

impl World {
    fn control_opened(&mut self) {
        self.agent.control_opened();
        self.control_out.clear();
        self.control_is_open = true;
    }

    fn later(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.agent.on_timer(self.now);
    }

    fn choose(&self, source: &mut Source<'_>) -> Option<CallId> {
        (!self.open.is_empty()).then(|| source.pick(&self.open))
    }

    fn control(&mut self, mut bytes: &[u8], source: &mut Source<'_>) {
        let most = source.pick(&[4096, 1, 7, 8, 9, 100]);
        while self.control_is_open && !bytes.is_empty() {
            let piece = &bytes[..bytes.len().min(most)];
            let taken = self.agent.control_bytes(self.now, piece, &mut Test);
            let sent = self.drain_control();
            assert!(taken > 0 || sent > 0, "neither reads nor writes");
            bytes = &bytes[taken..];
            self.settle();
        }
    }

    /// Takes all output of the control channel; it must be whole messages.
    fn drain_control(&mut self) -> usize {
        let mut sent = 0;
        loop {
            let bytes = self.agent.control_transmit().to_vec();
            if bytes.is_empty() {
                break;
            }
            self.agent.control_transmitted(bytes.len());
            sent += bytes.len();
            self.control_out.extend(bytes);
        }
        while let Some(head) = self.control_out.first_chunk::<8>() {
            let [kind, length] =
                [0, 4].map(|at| u32::from_le_bytes(*head[at..].first_chunk().unwrap()));
            let trigger = (TRIGGER_SERVICE3, 97 + SERVICE.len() as u32);
            let known = [(HELLO, 4), (TERMINATED, 8), trigger].contains(&(kind, length));
            assert!(known, "message {kind:#x} of {length} bytes on the control channel");
            let whole = 8 + length as usize;
            if self.control_out.len() < whole {
                break;
            }
            self.control_out.drain(..whole);
        }
        sent
    }

    fn data(&mut self, bytes: &[u8], source: &mut Source<'_>) {
        let Some(call) = self.choose(source) else { return };
        let most = source.pick(&[4096, 1, 8, 100]);
        for piece in bytes.chunks(most) {
            self.agent.data_bytes(self.now, call, piece, &mut Test);
        }
    }

    fn transmit(&mut self, source: &mut Source<'_>) {
        let Some(call) = self.choose(source) else { return };
        let most = usize::from(source.word());
        let bytes = self.agent.data_transmit(call, &mut Test).len();
        self.agent.data_transmitted(self.now, call, bytes.min(most));
    }

    fn settle(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            match action {
                Action::OpenData { call, domain, .. } => {
                    assert!(self.named.insert(format!("{call:?}")), "{call:?} is named twice");
                    assert!(domain < 0x7ff0);
                    self.open.push(call);
                }
                Action::ServeData { call, .. } => {
                    assert!(self.named.insert(format!("{call:?}")), "{call:?} is named twice");
                    assert!(self.own.replace(call).is_none(), "a second call of our own");
                    self.open.push(call);
                }
                // The call that asks for it was answered and is over.
                Action::End(_) => assert!(self.named.len() > self.open.len()),
                Action::RequestEnded(_) => {
                    self.own = None;
                    self.requests_ended += 1;
                    assert_eq!(self.requests_ended, 1, "it is made once, and ends once");
                }
                Action::CloseData { call } => {
                    let before = self.open.len();
                    self.open.retain(|known| *known != call);
                    assert_eq!(self.open.len() + 1, before, "{call:?} is not open");
                }
                Action::ResetControl { .. } => {
                    self.agent.control_closed();
                    self.control_is_open = false;
                }
            }
        }
        if self.control_is_open {
            self.drain_control();
        }
        assert!(self.agent.channels() <= MAX_CHANNELS);
        let own = usize::from(self.own.is_some());
        assert_eq!(self.agent.channels(), self.open.len() - own);
    }
}

/// `x.Echo` returns what it gets, `x.Flood` never ends, `qubes.SetDateTime` reads to the end.
struct Test;

enum Session {
    Echo { kept: Vec<u8>, ended: bool },
    Flood,
    Reading { ended: bool },
    Real(services::Session),
}

impl Services for Test {
    type Session = Session;

    fn start(&mut self, call: &ServiceCall<'_>) -> Result<Session, NoSuchService> {
        match call.service {
            "x.Echo" => Ok(Session::Echo { kept: Vec::new(), ended: false }),
            "x.Flood" => Ok(Session::Flood),
            "qubes.SetDateTime" => Ok(Session::Reading { ended: false }),
            _ => real(|services| services.start(call)).map(Session::Real),
        }
    }

    fn stdin(&mut self, session: &mut Session, bytes: &[u8]) {
        match session {
            Session::Echo { kept, ended } => {
                assert!(!*ended, "input after its end");
                kept.extend(bytes);
            }
            Session::Reading { ended } => assert!(!*ended, "input after its end"),
            Session::Flood => {}
            Session::Real(session) => real(|services| services.stdin(session, bytes)),
        }
    }

    fn stdin_end(&mut self, session: &mut Session) {
        match session {
            Session::Echo { ended, .. } | Session::Reading { ended } => {
                assert!(!core::mem::replace(ended, true), "two ends of input");
            }
            Session::Flood => {}
            Session::Real(session) => real(|services| services.stdin_end(session)),
        }
    }

    fn poll(&mut self, session: &mut Session, buffer: &mut [u8]) -> Progress {
        match session {
            Session::Echo { kept, ended } if kept.is_empty() => match ended {
                true => Progress::Exit(ExitCode::SUCCESS),
                false => Progress::Waiting,
            },
            Session::Echo { kept, .. } => {
                let count = kept.len().min(buffer.len());
                buffer[..count].copy_from_slice(&kept[..count]);
                kept.drain(..count);
                Progress::Stdout(count)
            }
            Session::Flood => {
                buffer.fill(b'f');
                Progress::Stderr(buffer.len())
            }
            Session::Real(session) => {
                let progress = real(|services| services.poll(session, buffer));
                if let Progress::Stdout(bytes) = progress {
                    assert!(buffer[..bytes].ends_with(b"\n"), "a piece of a line");
                }
                progress
            }
            Session::Reading { ended: true } => Progress::Exit(ExitCode(3)),
            Session::Reading { ended: false } => Progress::Waiting,
        }
    }
}

thread_local! {
    static FIREWALL: (Firewall, Control, Facts) = firewall();
}

/// Asks the services of a firewall with a client that has rules.
fn real<R>(ask: impl FnOnce(&mut FirewallServices<'_>) -> R) -> R {
    FIREWALL.with(|(firewall, control, facts)| {
        ask(&mut FirewallServices::new(firewall, control, facts))
    })
}

fn firewall() -> (Firewall, Control, Facts) {
    let limits =
        Limits { clients: 2, addresses: 4, flows: 64, flows_per_client: 16, fragment_bytes: 4096 };
    let mut firewall = Firewall::new(limits, [5; 32]).expect("small tables");
    let client = [10, 137, 0, 5].into();
    let mac = Mac([0, 0x16, 0x3e, 0, 0, 5]);
    let port = ClientPort { domid: 5, mac, ip4: Some(client), ip6: None, caps: PortCaps::PLAIN };
    firewall.attach_client(ClientId(0), port).expect("an empty slot");
    let entries: [(&[u8], &[u8]); 3] = [
        (b"policy", b"drop"),
        (b"0000", b"action=accept proto=tcp dst4=192.0.2.0/24"),
        (b"0001", b"action=drop dsthost=www.example.org"),
    ];
    let set = RuleSet::parse(Family::V4, entries).and_then(CompiledSet::new).expect("good rules");
    let rules = RulesState::Active(set);
    firewall.set_rules(Instant::from_nanos(1), client.into(), rules).expect("room for a client");
    let facts = Facts::new(1, MemoryUse::default(), Effort::default(), &[("uplink-full", 1)]);
    (firewall, Control::new("fw-nonsense", control::Limits::default()), facts)
}
