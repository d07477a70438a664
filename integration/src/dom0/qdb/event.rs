//! What the server did and saw, with the time: its log, and what its counters are made of.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Value, json};

use super::wire::kind;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server waits for a client at the xenstore directory.
    Announced,
    /// The VM has connected.
    Connected,
    /// The announcement was taken away.
    NodesRemoved,
    /// The VM's MULTIREAD was read.
    Multiread {
        /// Its path.
        prefix: Vec<u8>,
    },
    /// The whole dump is in the ring.
    DumpWritten {
        /// Entries in it.
        entries: usize,
        /// Bytes of it, end mark included.
        bytes: usize,
    },
    /// A message went out (into the ring or the memory behind it).
    Sent {
        /// Message type.
        kind: u8,
        /// Path.
        path: Vec<u8>,
        /// Length of the value, bytes.
        len: usize,
    },
    /// A message came in.
    Received {
        /// Message type.
        kind: u8,
        /// Path.
        path: Vec<u8>,
        /// Length of the value, bytes.
        len: usize,
    },
    /// The link is gone.
    Closed,
    /// What ends the server.
    Fatal(String),
}

impl Event {
    fn to_json(&self) -> Value {
        let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        match self {
            Self::Announced => json!({"event": "announced"}),
            Self::Connected => json!({"event": "connected"}),
            Self::NodesRemoved => json!({"event": "nodes-removed"}),
            Self::Multiread { prefix } => json!({"event": "multiread", "prefix": text(prefix)}),
            Self::DumpWritten { entries, bytes } => {
                json!({"event": "dump-written", "entries": entries, "bytes": bytes})
            }
            Self::Sent { kind, path, len } => {
                json!({"event": "sent", "type": kind::name(*kind), "path": text(path), "len": len})
            }
            Self::Received { kind, path, len } => {
                json!({"event": "received", "type": kind::name(*kind), "path": text(path), "len": len})
            }
            Self::Closed => json!({"event": "closed"}),
            Self::Fatal(reason) => json!({"event": "fatal", "reason": reason}),
        }
    }
}

/// The events kept in memory.
const KEPT: usize = 4096;

/// A bounded log of events with running numbers, and counters over all of them.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    events: VecDeque<(u64, u64, Event)>,
    next: u64,
    counters: BTreeMap<String, u64>,
}

impl Journal {
    /// Adds an event that happened at `now_ns` (Xen system time, nanoseconds).
    pub fn push(&mut self, now_ns: u64, event: Event) {
        self.next += 1;
        let name = match &event {
            Event::Sent { kind, .. } => format!("sent_{}", kind::name(*kind).to_lowercase()),
            Event::Received { kind, .. } => {
                format!("received_{}", kind::name(*kind).to_lowercase())
            }
            Event::Announced => "announcements".into(),
            Event::Connected => "connections".into(),
            Event::DumpWritten { .. } => "dumps".into(),
            Event::Closed => "closed".into(),
            Event::NodesRemoved | Event::Multiread { .. } | Event::Fatal(_) => String::new(),
        };
        if !name.is_empty() {
            self.count(&name);
        }
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back((self.next, now_ns, event));
    }

    /// Adds one to a counter.
    pub fn count(&mut self, name: &str) {
        *self.counters.entry(name.to_owned()).or_insert(0) += 1;
    }

    /// The kept events after number `after`, each as a JSON object, with their numbers.
    pub fn after(&self, after: u64) -> Vec<(u64, Value)> {
        let newer = self.events.iter().filter(|(number, ..)| *number > after);
        newer
            .map(|(number, now_ns, event)| {
                let mut value = event.to_json();
                if let Some(object) = value.as_object_mut() {
                    object.insert("seq".into(), json!(number));
                    object.insert("xen_ns".into(), json!(now_ns));
                }
                (*number, value)
            })
            .collect()
    }

    /// All counters.
    pub fn counters(&self) -> &BTreeMap<String, u64> {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_is_bounded_and_numbered() {
        let mut journal = Journal::default();
        for ns in 0..5000 {
            journal.push(ns, Event::Connected);
        }
        let all = journal.after(0);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all[0].0, 5000 - 4096 + 1);
        assert_eq!(journal.after(4999).len(), 1);
        assert_eq!(journal.after(4999)[0].1["xen_ns"], 4999);
        assert_eq!(journal.counters()["connections"], 5000);
    }
}
