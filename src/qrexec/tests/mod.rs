//! Tests of the whole agent; bytes are written out, helpers only join and move them.

mod captures;
mod faults;
mod limits;
mod properties;
mod request;
mod shell;
mod vectors;

use alloc::vec::Vec;

use super::{Action, Agent, CallId, ExitCode, NoSuchService, Progress, ServiceCall, Services};
use super::{StandardServices, StandardSession};
use crate::time::Instant;

const NOW: Instant = Instant::from_nanos(1_000_000_000);

const HELLO_2: [u8; 12] = [0x00, 0x03, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0];
const HELLO_3: [u8; 12] = [0x00, 0x03, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
const HELLO_4: [u8; 12] = [0x00, 0x03, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0];
const STDIN_END: [u8; 8] = [0x90, 0x01, 0, 0, 0, 0, 0, 0];
const STDOUT_END: [u8; 8] = [0x91, 0x01, 0, 0, 0, 0, 0, 0];
const STDERR_END: [u8; 8] = [0x92, 0x01, 0, 0, 0, 0, 0, 0];

fn cat(pieces: &[&[u8]]) -> Vec<u8> {
    pieces.concat()
}

const fn exit_code(code: u8) -> [u8; 12] {
    [0x93, 0x01, 0, 0, 4, 0, 0, 0, code, 0, 0, 0]
}

/// Ends and code, as every call with streams ends.
fn ends(code: u8) -> Vec<u8> {
    cat(&[&STDERR_END, &STDOUT_END, &exit_code(code)])
}

/// An order with this command.
fn execute(kind: u8, domain: u8, port: [u8; 2], text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + text.len() + 1).unwrap().to_le_bytes();
    let [port_0, port_1] = port;
    cat(&[&[kind, 2, 0, 0], &length, &[0, 0, domain, 0, 0, 0, port_0, port_1, 0, 0], text, &[0]])
}

fn terminated(domain: u8, port: [u8; 2]) -> [u8; 16] {
    let [port_0, port_1] = port;
    [0x11, 0x02, 0, 0, 8, 0, 0, 0, domain, 0, 0, 0, port_0, port_1, 0, 0]
}

/// Services of the tests: the standard ones and `qubes.Test`, which reads its input to the end and then says
/// "hello" and "warn" and ends with 7; `x.Echo` returns its input; `x.Flood` never stops, `x.Later` wants
/// three more turns.
#[derive(Default)]
struct TestServices {
    standard: StandardServices,
    input: Vec<u8>,
    inputs_ended: usize,
}

enum TestSession {
    Standard(StandardSession),
    Test { ended: bool, step: usize },
    Echo { kept: Vec<u8>, ended: bool },
    Flood,
    Later(usize),
}

fn put(buffer: &mut [u8], text: &[u8]) -> usize {
    buffer[..text.len()].copy_from_slice(text);
    text.len()
}

impl Services for TestServices {
    type Session = TestSession;

    fn start(&mut self, call: &ServiceCall<'_>) -> Result<TestSession, NoSuchService> {
        match call.service {
            "qubes.Test" => Ok(TestSession::Test { ended: false, step: 0 }),
            "x.Echo" => Ok(TestSession::Echo { kept: Vec::new(), ended: false }),
            "x.Flood" => Ok(TestSession::Flood),
            "x.Later" => Ok(TestSession::Later(0)),
            _ => self.standard.start(call).map(TestSession::Standard),
        }
    }

    fn stdin(&mut self, session: &mut TestSession, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        match session {
            TestSession::Standard(session) => self.standard.stdin(session, bytes),
            TestSession::Echo { kept, .. } => kept.extend_from_slice(bytes),
            TestSession::Test { .. } | TestSession::Flood | TestSession::Later(_) => {}
        }
    }

    fn stdin_end(&mut self, session: &mut TestSession) {
        self.inputs_ended += 1;
        match session {
            TestSession::Standard(session) => self.standard.stdin_end(session),
            TestSession::Test { ended, .. } | TestSession::Echo { ended, .. } => *ended = true,
            TestSession::Flood | TestSession::Later(_) => {}
        }
    }

    fn poll(&mut self, session: &mut TestSession, buffer: &mut [u8]) -> Progress {
        match session {
            TestSession::Standard(session) => self.standard.poll(session, buffer),
            TestSession::Test { ended: false, .. } => Progress::Waiting,
            TestSession::Test { step, .. } => {
                *step += 1;
                match *step {
                    1 => Progress::Stdout(put(buffer, b"hello\n")),
                    2 => Progress::Stderr(put(buffer, b"warn\n")),
                    _ => Progress::Exit(ExitCode(7)),
                }
            }
            TestSession::Echo { kept, ended } if kept.is_empty() => {
                if *ended {
                    Progress::Exit(ExitCode::SUCCESS)
                } else {
                    Progress::Waiting
                }
            }
            TestSession::Echo { kept, .. } => {
                let piece: Vec<u8> = kept.drain(..kept.len().min(buffer.len())).collect();
                Progress::Stdout(put(buffer, &piece))
            }
            TestSession::Later(turns) => {
                *turns += 1;
                if *turns < 4 { Progress::Later } else { Progress::Exit(ExitCode::SUCCESS) }
            }
            TestSession::Flood => {
                buffer.fill(b'f');
                Progress::Stdout(buffer.len())
            }
        }
    }
}

/// The agent with its services, and dom0 as the test plays it.
struct Bench {
    agent: Agent<TestSession>,
    services: TestServices,
}

impl Bench {
    /// Both hellos of the control channel are done.
    fn ready() -> Self {
        let mut bench = Self { agent: Agent::new(), services: TestServices::default() };
        bench.agent.control_opened();
        assert_eq!(bench.control_sent(), HELLO_3);
        bench.control(&HELLO_3);
        assert!(bench.agent.is_ready());
        bench
    }

    /// dom0 writes to the control channel.
    fn control(&mut self, bytes: &[u8]) {
        let taken = self.agent.control_bytes(NOW, bytes, &mut self.services);
        assert_eq!(taken, bytes.len());
    }

    /// Everything that waits for the control channel.
    fn control_sent(&mut self) -> Vec<u8> {
        let mut sent = Vec::new();
        loop {
            let bytes = self.agent.control_transmit().to_vec();
            self.agent.control_transmitted(bytes.len());
            if bytes.is_empty() {
                return sent;
            }
            sent.extend(bytes);
        }
    }

    /// The action that must be there: connect.
    fn opened(&mut self, domain: u16, port: u32) -> CallId {
        match self.agent.poll_action() {
            Some(Action::OpenData { call, domain: d, port: p }) if (d, p) == (domain, port) => call,
            other => panic!("{other:?}"),
        }
    }

    /// An order whose data channel gets connected.
    fn call(&mut self, order: &[u8]) -> CallId {
        self.control(order);
        let Some(Action::OpenData { call, .. }) = self.agent.poll_action() else {
            panic!("no data channel")
        };
        self.agent.data_opened(NOW, call);
        call
    }

    fn data(&mut self, call: CallId, bytes: &[u8]) {
        self.agent.data_bytes(NOW, call, bytes, &mut self.services);
    }

    /// Everything that the data channel gets if it takes `most` bytes at a time.
    fn data_sent_in(&mut self, call: CallId, most: usize) -> Vec<u8> {
        let mut sent = Vec::new();
        loop {
            let bytes = self.agent.data_transmit(call, &mut self.services);
            let bytes = bytes[..bytes.len().min(most)].to_vec();
            self.agent.data_transmitted(NOW, call, bytes.len());
            if bytes.is_empty() {
                return sent;
            }
            sent.extend(bytes);
        }
    }

    fn data_sent(&mut self, call: CallId) -> Vec<u8> {
        self.data_sent_in(call, usize::MAX)
    }

    /// The call was ended by us: close, and the termination on the control channel.
    fn assert_closed(&mut self, call: CallId, domain: u8, port: [u8; 2]) {
        assert_eq!(self.agent.poll_action(), Some(Action::CloseData { call }));
        assert_eq!(self.agent.poll_action(), None);
        assert_eq!(self.control_sent(), terminated(domain, port));
    }
}
