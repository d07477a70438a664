//! Requests of programs in dom0 to the server, one JSON object per line; the place of the daemon's local socket.

use serde_json::{Value, json};

use super::server::{Done, Server};
use super::store::{Author, Entry, LocalError};
use crate::dom0::hex;
use crate::dom0::ring::Ring;

/// What a requester waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The dump of the present connection is in the ring.
    Synchronised,
    /// An entry exists, with this value if one is given.
    Entry(Vec<u8>, Option<Vec<u8>>),
    /// `/qubes-firewall-handled/<ip>` holds at least this number.
    Handled(Vec<u8>, u64),
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Answered now.
    Reply(Value),
    /// Answered when the condition holds or after so many milliseconds.
    Wait(Condition, u64),
    /// Answered now, and the server ends.
    Quit,
}

/// Carries out a request.
pub fn handle(server: &mut Server, ring: Option<&mut dyn Ring>, line: &str) -> Outcome {
    let Ok(request) = serde_json::from_str::<Value>(line) else { return error("not JSON") };
    match request.get("cmd").and_then(Value::as_str) {
        Some("write") => match (bytes(&request, "key"), value(&request)) {
            (Some(key), Some(value)) => {
                Outcome::Reply(done(server.local_write(ring, &key, &value)))
            }
            _ => error("write needs key and value"),
        },
        Some("rm") => match bytes(&request, "key") {
            Some(key) => Outcome::Reply(removed(server.local_rm(ring, &key))),
            None => error("rm needs key"),
        },
        Some("batch") => batch(server, ring, &request),
        Some("read") => read(server, &request),
        Some("list") => list(server, &request),
        Some("stats") => stats(server),
        Some("log") => log(server, &request),
        Some("quit") => Outcome::Quit,
        Some(wait) if wait.starts_with("wait-") => condition(wait, &request),
        _ => error("unknown cmd"),
    }
}

/// The answer to a waiting requester, if its condition holds.
pub fn check(server: &Server, condition: &Condition) -> Option<Value> {
    let found = |entry: &Entry| Some(entry_json(entry));
    match condition {
        Condition::Synchronised => server.is_synchronised().then(|| json!({"ok": true})),
        Condition::Entry(key, value) => {
            let entry = server.store().get(key)?;
            value.as_ref().is_none_or(|value| *value == entry.value).then(|| found(entry)).flatten()
        }
        Condition::Handled(key, count) => {
            let entry = server.store().get(key)?;
            let handled: u64 = std::str::from_utf8(&entry.value).ok()?.parse().ok()?;
            (handled >= *count).then(|| found(entry)).flatten()
        }
    }
}

/// The answer to a requester whose time is over.
pub fn timed_out() -> Value {
    json!({"ok": false, "error": "timed out"})
}

fn error(text: &str) -> Outcome {
    Outcome::Reply(json!({"ok": false, "error": text}))
}

fn bytes(request: &Value, member: &str) -> Option<Vec<u8>> {
    Some(request.get(member)?.as_str()?.as_bytes().to_vec())
}

fn value(request: &Value) -> Option<Vec<u8>> {
    match request.get("value_hex") {
        Some(digits) => hex::decode(digits.as_str()?),
        None => bytes(request, "value"),
    }
}

fn done(result: Result<Done, LocalError>) -> Value {
    match result {
        Ok(done) => json!({"ok": true, "xen_ns": done.at_ns, "forwarded": done.is_forwarded}),
        Err(error) => json!({"ok": false, "error": error.to_string()}),
    }
}

fn removed(result: Result<Done, LocalError>) -> Value {
    let removed = result.map(|done| done.entries);
    let mut value = done(result);
    if let (Some(object), Ok(entries)) = (value.as_object_mut(), removed) {
        object.insert("removed".into(), json!(entries));
    }
    value
}

/// Several changes one after the other, as a program that makes one call after the other. All are tried.
fn batch(server: &mut Server, mut ring: Option<&mut dyn Ring>, request: &Value) -> Outcome {
    let Some(ops) = request.get("ops").and_then(Value::as_array) else {
        return error("batch needs ops");
    };
    let mut replies = Vec::new();
    for op in ops {
        let ring: Option<&mut dyn Ring> = match &mut ring {
            Some(ring) => Some(&mut **ring),
            None => None,
        };
        let write = op.get("write").and_then(Value::as_array).map(Vec::as_slice);
        replies.push(match (write, op.get("rm")) {
            (Some([Value::String(key), Value::String(value)]), None) => {
                done(server.local_write(ring, key.as_bytes(), value.as_bytes()))
            }
            (None, Some(Value::String(key))) => removed(server.local_rm(ring, key.as_bytes())),
            _ => json!({"ok": false, "error": "an op is {\"write\":[KEY,VALUE]} or {\"rm\":KEY}"}),
        });
    }
    Outcome::Reply(json!({"ok": true, "replies": replies}))
}

fn entry_json(entry: &Entry) -> Value {
    let author = match entry.author {
        Author::Dom0 => "dom0",
        Author::Vm => "vm",
    };
    let mut value = json!({"ok": true, "xen_ns": entry.set_ns, "author": author});
    if let Some(object) = value.as_object_mut() {
        match std::str::from_utf8(&entry.value) {
            Ok(text) => object.insert("value".into(), json!(text)),
            Err(_) => object.insert("value_hex".into(), json!(hex::encode(&entry.value))),
        };
    }
    value
}

fn read(server: &Server, request: &Value) -> Outcome {
    let Some(key) = bytes(request, "key") else { return error("read needs key") };
    match server.store().get(&key) {
        Some(entry) => Outcome::Reply(entry_json(entry)),
        None => error("no such entry"),
    }
}

fn list(server: &Server, request: &Value) -> Outcome {
    let prefix = bytes(request, "prefix").unwrap_or_default();
    let entries: Vec<_> = server
        .store()
        .below(&prefix)
        .map(|(key, entry)| {
            let mut value = entry_json(entry);
            if let Some(object) = value.as_object_mut() {
                object.remove("ok");
                object.insert("key".into(), json!(String::from_utf8_lossy(key)));
            }
            value
        })
        .collect();
    Outcome::Reply(json!({"ok": true, "entries": entries}))
}

fn stats(server: &mut Server) -> Outcome {
    let mut value = json!({
        "ok": true,
        "xen_ns": server.now_ns(),
        "synchronised": server.is_synchronised(),
        "pending_bytes": server.pending_bytes(),
        "unanswered": server.unanswered(),
        "entries": server.store().len(),
    });
    if let Some(object) = value.as_object_mut() {
        // So that a reader finds a zero, not nothing.
        for name in [
            "acks_matched",
            "acks_unmatched",
            "errors_from_vm",
            "announcements",
            "connections",
            "dumps",
            "closed",
        ] {
            object.insert(name.into(), json!(0));
        }
        for (name, count) in server.journal().counters() {
            object.insert(name.clone(), json!(count));
        }
    }
    Outcome::Reply(value)
}

fn log(server: &Server, request: &Value) -> Outcome {
    let after = request.get("after").and_then(Value::as_u64).unwrap_or(0);
    let events: Vec<_> =
        server.journal().after(after).into_iter().map(|(_, event)| event).collect();
    Outcome::Reply(json!({"ok": true, "events": events}))
}

fn condition(name: &str, request: &Value) -> Outcome {
    let timeout_ms = request.get("timeout_ms").and_then(Value::as_u64).unwrap_or(30_000);
    let condition = match name {
        "wait-synced" => Some(Condition::Synchronised),
        "wait-key" => bytes(request, "key").map(|key| Condition::Entry(key, value(request))),
        "wait-handled" => request.get("ip").and_then(Value::as_str).and_then(|ip| {
            let count = request.get("count").and_then(Value::as_u64)?;
            Some(Condition::Handled(format!("/qubes-firewall-handled/{ip}").into_bytes(), count))
        }),
        _ => None,
    };
    condition.map_or_else(|| error("bad wait"), |condition| Outcome::Wait(condition, timeout_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::qdb::rows::message;
    use crate::dom0::qdb::wire::kind;
    use crate::dom0::ring::fake::FakeRing;

    fn reply(outcome: Outcome) -> Value {
        match outcome {
            Outcome::Reply(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn write_read_list_rm() {
        let mut server = Server::new(Box::new(|| 42));
        let mut ask = |line: &str| reply(handle(&mut server, None, line));
        let written = ask(r#"{"cmd":"write","key":"/a/b","value":"x y"}"#);
        assert_eq!(written, json!({"ok": true, "xen_ns": 42, "forwarded": false}));
        assert_eq!(ask(r#"{"cmd":"read","key":"/a/b"}"#)["value"], "x y");
        assert_eq!(ask(r#"{"cmd":"write","key":"/a/c","value_hex":"ff"}"#)["ok"], true);
        assert_eq!(ask(r#"{"cmd":"read","key":"/a/c"}"#)["value_hex"], "ff");
        assert_eq!(ask(r#"{"cmd":"list","prefix":"/a/"}"#)["entries"].as_array().unwrap().len(), 2);
        assert_eq!(ask(r#"{"cmd":"rm","key":"/a/"}"#)["removed"], 2);
        assert_eq!(ask(r#"{"cmd":"rm","key":"/a/"}"#)["error"], "no such entry");
        assert_eq!(ask(r#"{"cmd":"stats"}"#)["acks_unmatched"], 0);
        assert_eq!(ask("nonsense")["ok"], false);
    }

    #[test]
    fn batch_reports_every_operation() {
        let mut server = Server::new(Box::new(|| 1));
        let line = r#"{"cmd":"batch","ops":[{"rm":"/t/"},{"write":["/t","v"]},{"write":["bad","v"]},{"rm":"/t"}]}"#;
        let value = reply(handle(&mut server, None, line));
        let ok: Vec<_> =
            value["replies"].as_array().unwrap().iter().map(|reply| reply["ok"] == true).collect();
        assert_eq!(ok, [false, true, false, true]);
    }

    #[test]
    fn handled_is_reported_with_the_time_of_its_arrival() {
        let mut time = 100;
        let mut server = Server::new(Box::new(move || {
            time += 1;
            time
        }));
        let wait = r#"{"cmd":"wait-handled","ip":"10.137.0.11","count":2,"timeout_ms":5}"#;
        let Outcome::Wait(condition, 5) = handle(&mut server, None, wait) else {
            panic!("not waiting")
        };
        let mut ring = FakeRing::new(4096);
        ring.vm_connects();
        for (value, holds) in [("1", false), ("x", false), ("2", true), ("10", true)] {
            ring.vm_writes(&message(
                kind::WRITE,
                b"/qubes-firewall-handled/10.137.0.11",
                value.as_bytes(),
            ));
            server.on_event(&mut ring).unwrap();
            let answer = check(&server, &condition);
            assert_eq!(answer.is_some(), holds, "{value}");
            if let Some(answer) = answer {
                assert_eq!((&answer["value"], &answer["author"]), (&json!(value), &json!("vm")));
                assert!(answer["xen_ns"].as_u64().unwrap() > 100);
            }
        }
    }
}
