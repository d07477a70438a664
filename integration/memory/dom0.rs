//! What dom0 runs for this domain: the QubesDB daemon and the qrexec daemon with its calls.

use std::collections::BTreeMap;

use xen::DomId;
use xen::fake::vchan::{ClientEnd, ServerEnd};
use xen::fake::xenstore::Store;

const DOM0: DomId = DomId(0);
const DATABASE_PORT: u32 = 111;
const AGENT_PORT: u32 = 512;
const FIRST_CALL_PORT: u32 = 513;
const CALL_PORTS: u32 = 256;
/// Pages each way of QubesDB's vchan, and of a call's.
const DATABASE_PAGES: usize = 1;
const CALL_PAGES: usize = 16;

/// QubesDB: type, path and length of a message's head, and the types that go to us.
const PATH_AT: usize = 1;
const LENGTH_AT: usize = 68;
const HEAD_BYTES: usize = 72;
const WRITE: u8 = 1;
const DUMPED: u8 = 11;

/// qrexec.
const STDOUT: u32 = 0x191;
const EXIT_CODE: u32 = 0x193;
const EXEC: u32 = 0x200;
const HELLO: u32 = 0x300;
const VERSION: u32 = 3;

/// A call, and what it answered.
pub(crate) struct Call {
    server: ServerEnd,
    heard: Vec<u8>,
    has_greeted: bool,
    pub(crate) output: Vec<u8>,
    pub(crate) exit: Option<u32>,
}

/// Both daemons.
#[derive(Default)]
pub(crate) struct Dom0 {
    entries: BTreeMap<String, String>,
    database: Option<ServerEnd>,
    /// The whole database was sent on this connection.
    is_dumped: bool,
    to_database: Vec<u8>,
    agent: Option<ClientEnd>,
    /// There is a server that we have not connected to.
    is_agent_announced: bool,
    to_agent: Vec<u8>,
    pub(crate) call: Option<Call>,
    calls: u32,
    /// Closed, and not let go yet.
    ended: Vec<ServerEnd>,
}

impl Dom0 {
    pub(crate) fn start_database(&mut self, store: &mut Store) {
        self.to_database.clear();
        self.is_dumped = false;
        let server = ServerEnd::announce(store, DOM0, DATABASE_PORT, DATABASE_PAGES);
        self.database = Some(server);
    }

    pub(crate) fn stop_database(&mut self, store: &mut Store) {
        if let Some(mut server) = self.database.take() {
            server.close(store);
            self.ended.push(server);
        }
    }

    /// The whole database is on its way, or there.
    pub(crate) fn is_dumped(&self) -> bool {
        self.is_dumped && self.to_database.is_empty()
    }

    pub(crate) fn set(&mut self, path: &str, value: &str) {
        self.entries.insert(path.into(), value.into());
        if self.is_dumped {
            self.to_database.extend(message(WRITE, path, value));
        }
    }

    /// Replaces the rules of a client, as qubesd does: the rules, then the mark.
    pub(crate) fn set_rules(&mut self, ip: &str, policy: &str, rules: &[String]) {
        let tree = format!("/qubes-firewall/{ip}");
        for (number, rule) in rules.iter().enumerate() {
            self.set(&format!("{tree}/{number:04}"), rule);
        }
        self.set(&format!("{tree}/policy"), policy);
        self.set(&tree, "");
    }

    /// Ends the present call, and calls a service.
    pub(crate) fn start_call(&mut self, store: &mut Store, service: &str) {
        self.end_call(store);
        let port = FIRST_CALL_PORT + self.calls % CALL_PORTS;
        self.calls += 1;
        let server = ServerEnd::announce(store, DOM0, port, CALL_PAGES);
        let text = format!("root:QUBESRPC {service} dom0\0");
        let body = [&0_u32.to_le_bytes()[..], &port.to_le_bytes(), text.as_bytes()].concat();
        self.to_agent.extend(packet(EXEC, &body));
        self.call =
            Some(Call { server, heard: vec![], has_greeted: false, output: vec![], exit: None });
    }

    pub(crate) fn end_call(&mut self, store: &mut Store) {
        if let Some(Call { mut server, .. }) = self.call.take() {
            server.close(store);
            self.ended.push(server);
        }
    }

    pub(crate) fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// The qrexec daemon goes; the next turn starts another one.
    pub(crate) fn stop_agent(&mut self) {
        self.to_agent.clear();
        if let Some(agent) = self.agent.take() {
            agent.close();
        }
    }

    /// Whatever was closed has been let go.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ended.is_empty()
    }

    pub(crate) fn turn(&mut self, store: &mut Store) {
        self.serve_database();
        if self.agent.as_ref().is_some_and(|agent| !agent.is_open()) {
            self.stop_agent();
        }
        let is_node =
            |(path, _): &(String, String)| path.ends_with("data/vchan/0/512/event-channel");
        self.is_agent_announced |= store.take_writes().iter().any(is_node);
        if self.agent.is_none() && core::mem::take(&mut self.is_agent_announced) {
            self.agent = ClientEnd::connect(store, DOM0, AGENT_PORT);
            if self.agent.is_some() {
                self.to_agent.splice(0..0, packet(HELLO, &VERSION.to_le_bytes()));
            }
        }
        if let Some(agent) = &mut self.agent {
            agent.read();
            let written = agent.write(&self.to_agent);
            self.to_agent.drain(..written);
        }
        if let Some(call) = &mut self.call {
            call.turn();
        }
        self.ended.retain_mut(|server| !server.is_ended());
    }

    fn serve_database(&mut self) {
        let Some(server) = &mut self.database else { return };
        if !server.is_connected() {
            return;
        }
        if !self.is_dumped {
            self.is_dumped = true;
            for (path, value) in self.entries.iter().rev() {
                self.to_database.extend(message(DUMPED, path, value));
            }
            self.to_database.extend(message(DUMPED, "", ""));
        }
        server.read();
        let written = server.write(&self.to_database);
        self.to_database.drain(..written);
    }
}

impl Call {
    fn turn(&mut self) {
        // What it wrote before it closed can still be read.
        if !self.has_greeted && self.server.is_connected() {
            self.has_greeted = true;
            self.server.write(&packet(HELLO, &VERSION.to_le_bytes()));
        }
        self.heard.extend(self.server.read());
        while let Some((head, rest)) = self.heard.split_first_chunk::<8>() {
            let word = |at: usize| {
                u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let (kind, len) = (word(0), word(4) as usize);
            let Some(body) = rest.get(..len) else { return };
            match kind {
                STDOUT => self.output.extend(body),
                EXIT_CODE => self.exit = body.first_chunk().map(|code| u32::from_le_bytes(*code)),
                _ => {}
            }
            self.heard.drain(..8 + len);
        }
    }
}

fn message(kind: u8, path: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    bytes[0] = kind;
    bytes[PATH_AT..PATH_AT + path.len()].copy_from_slice(path.as_bytes());
    bytes[LENGTH_AT..].copy_from_slice(&(value.len() as u32).to_le_bytes());
    bytes.extend(value.as_bytes());
    bytes
}

fn packet(kind: u32, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(body.len() as u32).to_le_bytes(), body].concat()
}
