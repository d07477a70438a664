//! The QubesDB client against a dom0 that says anything, in pieces of any size.
//!
//! Whatever comes, nothing is sent that ends dom0's daemon: it dies of a second request for the dump, of an illegal
//! path, of a value that is too long, of an answer with a value, of any other message type, and of the removal of
//! what it does not hold.

use std::collections::BTreeSet;

use qubesdb::{Client, Event, HEADER_BYTES, Limits, MAX_VALUE_BYTES, Refusal};

use crate::source::Source;

const RING_BYTES: usize = 4096;
const LIMITS: Limits = Limits { entries: 40, bytes: 20_000 };
const KEYS: &[&str] = &[
    "/name",
    "/qubes-ip",
    "/dns/10.0.0.1/a.example",
    "/dns/10.0.0.1/",
    "/qubes-firewall/10.0.0.1/policy",
    "/qubes-firewall/10.0.0.1/0000",
    "/qubes-firewall/10.0.0.1/",
    "/qubes-firewall/10.0.0.1",
    "/qubes-firewall-handled/10.0.0.1",
    "/qubes-firewall-handled/",
    "/",
    "",
];
const MULTI_READ_REPLY: u8 = 11;

/// A script of what dom0 sends and of what we ask of the client.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mut client = Client::new(LIMITS);
    let mut daemon = Daemon::default();
    while !source.is_empty() {
        match source.below(10) {
            0 => {
                client.connected();
                daemon = Daemon::default();
            }
            1 => {
                client.disconnected();
                daemon = Daemon::default();
            }
            2 => receive(&mut client, &mut daemon, source.piece(), &mut source),
            3 | 4 => {
                let message = message(&mut source);
                receive(&mut client, &mut daemon, &message, &mut source);
            }
            5 => {
                let end = field(0, b"", b"");
                let end = [&[MULTI_READ_REPLY][..], &end[1..]].concat();
                receive(&mut client, &mut daemon, &end, &mut source);
            }
            6 => {
                let key = source.pick(KEYS);
                let value = vec![source.byte(); usize::from(source.word()) % 3100];
                client.write(key, &value).ok();
            }
            7 => {
                client.remove(source.pick(KEYS)).ok();
            }
            8 => {
                client.write(&text(source.piece()), source.piece()).ok();
            }
            _ => transmit(&mut client, &mut daemon, &mut source),
        }
        let store = client.store();
        assert!(store.len() <= LIMITS.entries && store.bytes() <= LIMITS.bytes);
        assert_eq!(
            store.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>(),
            store.bytes()
        );
    }
}

/// A message with a good header, of any type.
fn message(source: &mut Source<'_>) -> Vec<u8> {
    let kind = source.pick(&[1, 1, 1, 4, 11, 11, 11, 7, 9, 0, 2, 12]);
    let path = if source.flag() { source.pick(KEYS).as_bytes() } else { source.piece() };
    let value = if kind == 4 || kind == 7 || kind == 9 { &[] } else { source.piece() };
    field(kind, path, value)
}

fn field(kind: u8, path: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(&path[..path.len().min(67)]);
    bytes.resize(68, 0);
    bytes.extend((value.len() as u32).to_le_bytes());
    bytes.extend(value);
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn receive(client: &mut Client, daemon: &mut Daemon, mut bytes: &[u8], source: &mut Source<'_>) {
    let most = source.pick(&[4096, 1, 71, 72, 73, 1000]);
    daemon.says(bytes);
    while !bytes.is_empty() {
        let piece = &bytes[..bytes.len().min(most)];
        let taken = client.handle_bytes(piece);
        assert!(taken <= piece.len());
        bytes = &bytes[taken..];
        let mut moved = taken > 0;
        while let Some(event) = client.poll_event() {
            moved = true;
            check(&event, client);
        }
        // What it did not take waits for its answers to be sent.
        if taken < piece.len() {
            let sent = send(client, daemon, RING_BYTES, RING_BYTES);
            assert!(moved || sent > 0, "neither reads nor writes");
        }
    }
}

fn check(event: &Event, client: &Client) {
    match event {
        Event::Committed { tree, complete: Ok(()) } => {
            assert_eq!(client.store().tree_is_complete(tree), Ok(()));
            assert!(!tree.ip_text().is_empty());
            for (key, _) in client.store().tree_entries(tree) {
                assert!(!key.is_empty());
            }
        }
        Event::Refused { path, reason } if !matches!(reason, Refusal::Path(_)) => {
            // During a dump the store is still the old one.
            if let Ok(key) = core::str::from_utf8(path.as_bytes())
                && client.is_synchronised()
            {
                assert!(client.store().get(key).is_none(), "{key} was refused: {event:?}");
            }
        }
        Event::Changed { path } => assert!(client.store().get(path.as_str()).is_some()),
        Event::Removed { path } => assert!(client.store().get(path.as_str()).is_none()),
        _ => {}
    }
}

fn transmit(client: &mut Client, daemon: &mut Daemon, source: &mut Source<'_>) {
    let (unread, space) = (usize::from(source.word()) % 5000, usize::from(source.word()) % 5000);
    let most = source.pick(&[usize::MAX, 0, 1, 72, 100]);
    send(client, daemon, unread, space.min(most));
}

/// Writes at most `space` bytes; returns how many.
fn send(client: &mut Client, daemon: &mut Daemon, unread: usize, space: usize) -> usize {
    let bytes = client.poll_transmit(unread, space);
    let bytes = bytes[..bytes.len().min(space)].to_vec();
    client.transmitted(bytes.len());
    daemon.receive(&bytes);
    bytes.len()
}

/// dom0's daemon, as far as it can die.
#[derive(Default)]
struct Daemon {
    said: Vec<u8>,
    received: Vec<u8>,
    has_dumped: bool,
    /// What it holds: it said so, or took it from us.
    keys: BTreeSet<Vec<u8>>,
    /// It removed one of our keys, or said what no daemon says: what it holds is not known any more.
    is_strange: bool,
}

impl Daemon {
    /// It writes this to the client; pieces need not be whole messages.
    fn says(&mut self, bytes: &[u8]) {
        self.said.extend(bytes);
        while let Some(header) = self.said.first_chunk::<HEADER_BYTES>() {
            let length = u32::from_le_bytes(*header.last_chunk().unwrap()) as usize;
            if length > MAX_VALUE_BYTES {
                self.is_strange = true;
                return;
            }
            if self.said.len() < HEADER_BYTES + length {
                return;
            }
            let message: Vec<u8> = self.said.drain(..HEADER_BYTES + length).collect();
            let path = path_of(&message);
            match message[0] {
                1 | MULTI_READ_REPLY => drop(self.keys.insert(path)),
                4 => {
                    let ours = [&b"/dns/"[..], b"/qubes-firewall-handled/"];
                    self.is_strange |=
                        ours.iter().any(|own| path.starts_with(own) || own.starts_with(&path));
                    self.remove(&path);
                }
                _ => {}
            }
        }
    }

    fn remove(&mut self, path: &[u8]) {
        let below = path.ends_with(b"/");
        self.keys.retain(|key| if below { !key.starts_with(path) } else { key != path });
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        while let Some(header) = self.received.first_chunk::<HEADER_BYTES>() {
            let length = u32::from_le_bytes(*header.last_chunk().unwrap()) as usize;
            assert!(length <= MAX_VALUE_BYTES, "the daemon dies of a value of {length} bytes");
            if self.received.len() < HEADER_BYTES + length {
                return;
            }
            let message: Vec<u8> = self.received.drain(..HEADER_BYTES + length).collect();
            self.handle(&message, &message[HEADER_BYTES..]);
        }
    }

    fn handle(&mut self, message: &[u8], value: &[u8]) {
        let path = path_of(message);
        match message[0] {
            2 => {
                assert!(!self.has_dumped, "the daemon dies of a second request for the dump");
                self.has_dumped = true;
            }
            1 => {
                let legal = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/.:@";
                let is_legal = path.starts_with(b"/")
                    && !path.ends_with(b"/")
                    && path.iter().all(|byte| legal.contains(byte));
                assert!(is_legal, "the daemon dies of the path {:?}", text(&path));
                assert!(!value.contains(&0));
                self.keys.insert(path);
            }
            4 => {
                let below = path.ends_with(b"/");
                let is_there = self.is_strange
                    || self.keys.iter().any(|key| *key == path || below && key.starts_with(&path));
                assert!(is_there, "the daemon dies of the removal of {:?}", text(&path));
                assert!(value.is_empty());
                self.remove(&path);
            }
            7 | 9 => assert!(value.is_empty(), "the daemon dies of an answer with a value"),
            other => panic!("the daemon dies of a message of type {other}"),
        }
    }
}

fn path_of(message: &[u8]) -> Vec<u8> {
    message[1..65].iter().copied().take_while(|byte| *byte != 0).collect()
}
