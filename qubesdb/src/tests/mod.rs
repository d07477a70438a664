//! Tests of the whole client. Every row of the recordings and every vector is one test named after it; the bytes
//! are written out, the helpers only join them.

mod captures_dump;
mod captures_faults;
mod captures_live;
mod captures_reconnect;
mod dom0;
mod limits;
mod properties;
mod vectors;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::{Client, Event, Limits};

/// Plenty of room in both rings.
const UNREAD: usize = 0;
const SPACE: usize = 4096;

/// Joins literal pieces of a message.
fn cat(pieces: &[&[u8]]) -> Vec<u8> {
    pieces.concat()
}

/// A key or value as (text, text), for comparison with tables.
fn entries(client: &Client) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    client.store().iter().map(|(key, value)| (key.to_string(), text(value))).collect()
}

/// Offers bytes until all are taken; all events that come out.
fn feed(client: &mut Client, mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let taken = client.handle_bytes(bytes);
        bytes = &bytes[taken..];
        let before = events.len();
        while let Some(event) = client.poll_event() {
            events.push(event);
        }
        if bytes.is_empty() {
            return events;
        }
        assert!(taken > 0 || events.len() > before, "stuck: answers have to be sent first");
    }
}

/// Everything that waits to be sent and may be sent into an empty ring.
fn sent(client: &mut Client) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let piece = client.poll_transmit(UNREAD, SPACE).to_vec();
        if piece.is_empty() {
            return bytes;
        }
        client.transmitted(piece.len());
        bytes.extend(piece);
    }
}

/// A dump entry, whose message the tests of the dump check byte by byte.
fn dump_entry(path: &str, value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_le_bytes();
    cat(&[&[0x0b], path.as_bytes(), &[0; 67][path.len()..], &length, value.as_bytes()])
}

fn live_write(path: &str, value: &str) -> Vec<u8> {
    let mut message = dump_entry(path, value);
    message[0] = 0x01;
    message
}

fn message(kind: u8, path: &str) -> Vec<u8> {
    let mut message = dump_entry(path, "");
    message[0] = kind;
    message
}

const END_OF_DUMP: [u8; 72] = {
    let mut header = [0; 72];
    header[0] = 0x0b;
    header
};

/// A client whose request is sent.
fn requesting() -> Client {
    let mut client = Client::new(Limits::default());
    client.connected();
    assert_eq!(sent(&mut client).len(), 72);
    client
}

/// A client that has taken this dump and all events of it.
fn synchronised(dump: &[(&str, &str)]) -> Client {
    let mut client = requesting();
    for (path, value) in dump {
        assert_eq!(feed(&mut client, &dump_entry(path, value)), []);
    }
    let events = feed(&mut client, &END_OF_DUMP);
    assert_eq!(events[0], Event::Dumped);
    client
}
