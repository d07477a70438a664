//! What dom0 runs for this domain: the QubesDB daemon and the qrexec daemon with its calls. As strict as the real daemons:
//! what would end one of them is a problem of ours (the protocol reference, 3.1 to 3.4).

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

/// QubesDB: type, path and length of a message's head, and the types that there are on the link.
const PATH_AT: usize = 1;
const PADDING_AT: usize = 65;
const LENGTH_AT: usize = 68;
const HEAD_BYTES: usize = 72;
const MOST_VALUE_BYTES: usize = 3071;
const WRITE: u8 = 1;
const MULTIREAD: u8 = 2;
const REMOVE: u8 = 4;
const OK: u8 = 7;
const ERROR: u8 = 9;
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
    from_database: Vec<u8>,
    /// Dumps so far.
    pub(crate) dumps: u64,
    /// What was written since somebody looked.
    written: Vec<(String, String)>,
    /// What would have ended a daemon.
    problem: Option<String>,
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
        self.from_database.clear();
        self.is_dumped = false;
        let server = ServerEnd::announce(store, DOM0, DATABASE_PORT, DATABASE_PAGES);
        self.database = Some(server);
    }

    pub(crate) fn stop_database(&mut self, store: &mut Store) {
        self.is_dumped = false;
        if let Some(mut server) = self.database.take() {
            server.close(store);
            self.ended.push(server);
        }
    }

    /// The whole database is on its way, or there.
    pub(crate) fn is_dumped(&self) -> bool {
        self.is_dumped && self.to_database.is_empty()
    }

    /// What is written now goes to the appliance at once; before, it is part of the dump.
    pub(crate) fn is_live(&self) -> bool {
        self.is_dumped
    }

    pub(crate) fn has_database(&self) -> bool {
        self.database.is_some()
    }

    pub(crate) fn set(&mut self, path: &str, value: &str) {
        self.entries.insert(path.into(), value.into());
        if self.is_dumped {
            self.to_database.extend(message(WRITE, path, value));
        }
    }

    /// Removes an entry or, with a slash at its end, all below it. What is not there is not told.
    pub(crate) fn remove(&mut self, path: &str) {
        if self.forget(path) && self.is_dumped {
            self.to_database.extend(message(REMOVE, path, ""));
        }
    }

    fn forget(&mut self, path: &str) -> bool {
        let before = self.entries.len();
        let is_meant = |key: &str| key == path || (path.ends_with('/') && key.starts_with(path));
        self.entries.retain(|key, _| !is_meant(key));
        self.entries.len() < before
    }

    /// What the appliance wrote since the last call: paths and values, in order.
    pub(crate) fn take_written(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.written)
    }

    /// What would have ended a daemon of dom0, if anything.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Says something on the control channel that no daemon says.
    pub(crate) fn garble_agent(&mut self, bytes: &[u8]) {
        self.to_agent.extend(bytes);
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
        self.from_database.extend(server.read());
        while let Some((kind, path, value)) = next_message(&mut self.from_database) {
            self.on_message(kind, path, value);
        }
        let Some(server) = &mut self.database else { return };
        let written = server.write(&self.to_database);
        self.to_database.drain(..written);
    }

    fn on_message(&mut self, kind: u8, path: String, value: String) {
        let is_entry = path.starts_with('/') && path.len() < PADDING_AT - PATH_AT;
        let is_fine = match kind {
            MULTIREAD if path.is_empty() && !self.is_dumped => {
                self.is_dumped = true;
                self.dumps += 1;
                for (path, value) in self.entries.iter().rev() {
                    self.to_database.extend(message(DUMPED, path, value));
                }
                self.to_database.extend(message(DUMPED, "", ""));
                true
            }
            WRITE if is_entry && !path.ends_with('/') && self.is_dumped => {
                self.entries.insert(path.clone(), value.clone());
                self.to_database.extend(message(OK, &path, ""));
                self.written.push((path.clone(), value));
                true
            }
            REMOVE if is_entry && self.is_dumped => {
                self.to_database.extend(message(OK, &path, ""));
                self.forget(&path)
            }
            OK | ERROR => value.is_empty(),
            _ => false,
        };
        if !is_fine && self.problem.is_none() {
            self.problem = Some(format!("the QubesDB daemon ends at type {kind} of {path:?}"));
        }
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

/// The next whole message: type, path and value.
fn next_message(bytes: &mut Vec<u8>) -> Option<(u8, String, String)> {
    let head = bytes.get(..HEAD_BYTES)?;
    let len = u32::from_le_bytes(head[LENGTH_AT..].try_into().ok()?) as usize;
    let path = head[PATH_AT..PADDING_AT].split(|byte| *byte == 0).next()?;
    let (kind, path) = (head[0], String::from_utf8_lossy(path).into_owned());
    if len > MOST_VALUE_BYTES {
        // Nobody waits for the rest of it.
        bytes.clear();
        return Some((0, path, String::new()));
    }
    let value = bytes.get(HEAD_BYTES..HEAD_BYTES + len)?;
    let value = String::from_utf8_lossy(value).into_owned();
    bytes.drain(..HEAD_BYTES + len);
    Some((kind, path, value))
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
