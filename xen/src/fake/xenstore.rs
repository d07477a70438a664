//! A xenstored in memory, on the page that the code under test shares with it.
//!
//! The test writes nodes as dom0 or a peer does ([`Store::write`]); [`Store::serve`] answers what the code under test
//! has asked meanwhile. Watches fire as xenstored's do: at once when set, for the node and everything below, with a
//! relative path if they were set with one, and with the watched path when a parent goes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use super::{OWN_DOMAIN, STORE_PORT_DOM0, peer, store_page};
use crate::abi::DomId;
use crate::shared::SharedPage;

const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const RING: u32 = 1024;
/// Where the response ring begins.
const RSP: usize = 1024;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

struct Watch {
    path: String,
    token: String,
}

/// The store with its single connection, to the domain under test.
pub struct Store {
    page: SharedPage,
    nodes: BTreeMap<String, Vec<u8>>,
    watches: Vec<Watch>,
    max_watches: usize,
    max_nodes: usize,
    refused: Vec<(String, &'static str)>,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    writes: Vec<(String, String)>,
    transactions: u32,
    conflict: bool,
    requests: u64,
}

impl Default for Store {
    fn default() -> Store {
        Store::new()
    }
}

impl Store {
    /// The store at the other end of the present hypervisor's xenstore page.
    pub fn new() -> Store {
        Store {
            page: store_page(),
            nodes: BTreeMap::new(),
            watches: Vec::new(),
            max_watches: 128,
            max_nodes: usize::MAX,
            refused: Vec::new(),
            inbox: Vec::new(),
            outbox: VecDeque::new(),
            writes: Vec::new(),
            transactions: 0,
            conflict: false,
            requests: 0,
        }
    }

    /// Home of the domain under test.
    pub fn home() -> String {
        format!("/local/domain/{}", OWN_DOMAIN.0)
    }

    /// Sets a node, with its parents, as somebody else does. A relative path is below [`Store::home`].
    pub fn write(&mut self, path: &str, value: &str) {
        let path = absolute(path);
        self.set(&path, value.as_bytes());
    }

    /// Value of a node.
    pub fn read(&self, path: &str) -> Option<String> {
        let value = self.nodes.get(&absolute(path))?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    /// Removes a node and everything below.
    pub fn remove(&mut self, path: &str) {
        let path = absolute(path);
        let below = format!("{path}/");
        self.nodes.retain(|node, _| *node != path && !node.starts_with(&below));
        let hit = |watch: &Watch| is_within(&path, &watch.path);
        let inner = |watch: &Watch| watch_target(watch).starts_with(&below);
        let mut events = Vec::new();
        for watch in &self.watches {
            if hit(watch) {
                events.push((relative_to(watch, &path), watch.token.clone()));
            } else if inner(watch) {
                events.push((watch.path.clone(), watch.token.clone()));
            }
        }
        for (path, token) in events {
            self.push_event(&path, &token);
        }
        self.pump_out();
    }

    /// Lets requests that change a node whose path ends so fail with an error name, until [`Store::refuse_nothing`].
    pub fn refuse(&mut self, suffix: &str, error: &'static str) {
        self.refused.push((suffix.to_string(), error));
    }

    /// Ends what [`Store::refuse`] began.
    pub fn refuse_nothing(&mut self) {
        self.refused.clear();
    }

    /// Lowers the quota of watches (128 at first).
    pub fn limit_watches(&mut self, most: usize) {
        self.max_watches = most;
    }

    /// Nodes that there may be when the domain under test makes another one, whose end the quota is.
    pub fn limit_nodes(&mut self, most: usize) {
        self.max_nodes = most;
    }

    /// Nodes that there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Watches that the domain under test has.
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Requests of the domain under test so far.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Lets the next end of a transaction fail with `EAGAIN`.
    pub fn conflict_once(&mut self) {
        self.conflict = true;
    }

    /// What the domain under test has written since the last call, in order.
    pub fn take_writes(&mut self) -> Vec<(String, String)> {
        core::mem::take(&mut self.writes)
    }

    /// Fires every watch of the node without a change, as xenstored may.
    pub fn fire(&mut self, path: &str) {
        self.fire_watches(&absolute(path));
        self.pump_out();
    }

    /// Answers all requests. `false` if there were none and nothing was waiting to be sent.
    pub fn serve(&mut self) -> bool {
        let mut active = self.pump_out();
        while self.pump_in() {
            active = true;
            while let Some((op, id, tx, payload)) = self.next_request() {
                self.answer(op, id, tx, &payload);
            }
            self.pump_out();
        }
        active
    }

    fn next_request(&mut self) -> Option<(u32, u32, u32, Vec<u8>)> {
        let word = |at: usize| {
            let bytes = self.inbox.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
        };
        let (op, id, tx, len) = (word(0)?, word(4)?, word(8)?, word(12)? as usize);
        assert!(len <= 4096, "the client sent a payload of {len} bytes");
        let payload = self.inbox.get(16..16 + len)?.to_vec();
        self.inbox.drain(..16 + len);
        Some((op, id, tx, payload))
    }

    fn answer(&mut self, op: u32, id: u32, tx: u32, payload: &[u8]) {
        self.requests += 1;
        let mut parts = payload.split(|byte| *byte == 0);
        let text =
            |part: Option<&[u8]>| String::from_utf8_lossy(part.unwrap_or_default()).into_owned();
        let first = text(parts.next());
        let second = text(parts.next());
        let path = absolute(&first);
        let result = match op {
            1 => self.directory(&path),
            2 => self.nodes.get(&path).cloned().ok_or("ENOENT"),
            4 => self.watch(first, second),
            5 => self.unwatch(&first, &second),
            6 => {
                self.transactions += 1;
                Ok(format!("{}\0", self.transactions).into_bytes())
            }
            7 if core::mem::take(&mut self.conflict) && tx != 0 => Err("EAGAIN"),
            7 => ok(),
            11 => self.client_write(&path, payload.get(first.len() + 1..).unwrap_or_default()),
            12 => self.client_write(&path, b""),
            13 => self.client_remove(&path),
            14 => ok(),
            21 => {
                self.watches.clear();
                ok()
            }
            _ => Err("ENOSYS"),
        };
        match result {
            Ok(value) => self.push(op, id, tx, &value),
            Err(name) => self.push(ERROR, id, tx, format!("{name}\0").as_bytes()),
        }
        if op == 4 {
            // The immediate event, after the reply.
            if let Some(watch) = self.watches.last() {
                let (path, token) = (watch.path.clone(), watch.token.clone());
                self.push_event(&path, &token);
            }
        }
    }

    fn directory(&self, path: &str) -> Result<Vec<u8>, &'static str> {
        if !self.nodes.contains_key(path) {
            return Err("ENOENT");
        }
        let below = format!("{path}/");
        let names = self.nodes.keys().filter_map(|node| node.strip_prefix(&below));
        let mut list = Vec::new();
        for name in names.filter(|name| !name.contains('/')) {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        Ok(list)
    }

    fn watch(&mut self, path: String, token: String) -> Result<Vec<u8>, &'static str> {
        if self.watches.iter().any(|watch| watch.path == path && watch.token == token) {
            return Err("EEXIST");
        }
        if self.watches.len() >= self.max_watches {
            return Err("E2BIG");
        }
        self.watches.push(Watch { path, token });
        ok()
    }

    fn unwatch(&mut self, path: &str, token: &str) -> Result<Vec<u8>, &'static str> {
        let before = self.watches.len();
        self.watches.retain(|watch| watch.path != path || watch.token != token);
        if self.watches.len() < before { ok() } else { Err("ENOENT") }
    }

    fn client_write(&mut self, path: &str, value: &[u8]) -> Result<Vec<u8>, &'static str> {
        self.check_change(path)?;
        // Missing parents come into being; the nearest one that exists decides who may write below it.
        let mut parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        while !self.nodes.contains_key(parent)
            && let Some((up, _)) = parent.rsplit_once('/')
        {
            parent = up;
        }
        if !self.nodes.contains_key(path) && !self.is_own_directory(parent) {
            return Err("EACCES");
        }
        if !self.nodes.contains_key(path) && self.nodes.len() >= self.max_nodes {
            return Err("ENOSPC");
        }
        self.writes.push((path.to_string(), String::from_utf8_lossy(value).into_owned()));
        self.set(path, value);
        ok()
    }

    fn client_remove(&mut self, path: &str) -> Result<Vec<u8>, &'static str> {
        self.check_change(path)?;
        if !self.nodes.contains_key(path) {
            return Err("ENOENT");
        }
        if !self.is_own_directory(path) {
            return Err("EACCES");
        }
        self.remove(path);
        ok()
    }

    fn check_change(&self, path: &str) -> Result<(), &'static str> {
        let refused = self.refused.iter().find(|(suffix, _)| path.ends_with(suffix.as_str()));
        refused.map_or(Ok(()), |(_, error)| Err(*error))
    }

    /// Whether the domain under test owns the directory: its device directories, not their parents.
    fn is_own_directory(&self, path: &str) -> bool {
        let home = format!("{}/", Store::home());
        let Some(rest) = path.strip_prefix(&home) else { return false };
        let names: Vec<&str> = rest.split('/').collect();
        let own = match names.as_slice() {
            ["backend", "vif", _, _, ..] | ["device", "vif", _, ..] => true,
            [top, ..] => ["data", "control"].contains(top),
            [] => false,
        };
        own && self.nodes.contains_key(path)
    }

    fn set(&mut self, path: &str, value: &[u8]) {
        let mut parent = path;
        while let Some((up, _)) = parent.rsplit_once('/') {
            parent = up;
            if !parent.is_empty() {
                self.nodes.entry(parent.to_string()).or_default();
            }
        }
        self.nodes.insert(path.to_string(), value.to_vec());
        self.fire_watches(path);
        self.pump_out();
    }

    fn fire_watches(&mut self, path: &str) {
        let hits: Vec<(String, String)> = self
            .watches
            .iter()
            .filter(|watch| is_within(path, &watch.path))
            .map(|watch| (relative_to(watch, path), watch.token.clone()))
            .collect();
        for (path, token) in hits {
            self.push_event(&path, &token);
        }
    }

    fn push_event(&mut self, path: &str, token: &str) {
        self.push(WATCH_EVENT, 0, 0, format!("{path}\0{token}\0").as_bytes());
    }

    fn push(&mut self, op: u32, id: u32, tx: u32, payload: &[u8]) {
        for word in [op, id, tx, payload.len() as u32] {
            self.outbox.extend(word.to_le_bytes());
        }
        self.outbox.extend(payload);
    }

    /// Takes what is on the request ring.
    fn pump_in(&mut self) -> bool {
        let (cons, prod) = (self.page.read_u32(REQ_CONS), self.page.load_acquire_u32(REQ_PROD));
        let count = prod.wrapping_sub(cons);
        assert!(count <= RING, "the client overran the request ring");
        let mut bytes = std::vec![0; count as usize];
        let (first, second) = bytes.split_at_mut((count.min(RING - cons % RING)) as usize);
        self.page.copy_out((cons % RING) as usize, first);
        self.page.copy_out(0, second);
        self.inbox.append(&mut bytes);
        self.page.store_release_u32(REQ_CONS, prod);
        count > 0
    }

    /// Puts what fits on the response ring and raises an event.
    fn pump_out(&mut self) -> bool {
        let (cons, prod) = (self.page.load_acquire_u32(RSP_CONS), self.page.read_u32(RSP_PROD));
        let room = RING - prod.wrapping_sub(cons);
        let count = self.outbox.len().min(room as usize);
        let bytes: Vec<u8> = self.outbox.drain(..count).collect();
        let (first, second) = bytes.split_at(count.min((RING - prod % RING) as usize));
        self.page.copy_in(RSP + (prod % RING) as usize, first);
        self.page.copy_in(RSP, second);
        self.page.store_release_u32(RSP_PROD, prod.wrapping_add(count as u32));
        if count > 0 {
            peer(DomId::DOM0).notify(STORE_PORT_DOM0);
        }
        count > 0
    }
}

fn ok() -> Result<Vec<u8>, &'static str> {
    Ok(b"OK\0".to_vec())
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_string() } else { format!("{}/{path}", Store::home()) }
}

fn watch_target(watch: &Watch) -> String {
    absolute(&watch.path)
}

/// Whether a change of `path` (absolute) concerns a watch on `watched`.
fn is_within(path: &str, watched: &str) -> bool {
    let watched = absolute(watched);
    path == watched || path.strip_prefix(&watched).is_some_and(|rest| rest.starts_with('/'))
}

/// `path` as an event of this watch names it.
fn relative_to(watch: &Watch, path: &str) -> String {
    if watch.path.starts_with('/') {
        return path.to_string();
    }
    let home = format!("{}/", Store::home());
    path.strip_prefix(&home).unwrap_or(path).to_string()
}
