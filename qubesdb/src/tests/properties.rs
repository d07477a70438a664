//! Properties: nothing panics, fragmentation does not matter, dom0's daemon survives every use of the client and
//! both databases end up equal.

use super::dom0::{Dom0, exchange, transmit};
use super::{END_OF_DUMP, entries, feed, live_write, message, synchronised};
use crate::{Client, Event, HEADER_BYTES, Header, Limits, MAX_VALUE_BYTES, Path};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use proptest::collection::vec;
use proptest::prelude::*;

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        "/dns/[ab]/[xyz]",
        "/qubes-firewall/10[.]0[.]0[.][12]",
        "/qubes-firewall/10[.]0[.]0[.][12]/(policy|000[01])",
        "/qubes-firewall-handled/10[.]0[.]0[.][12]",
        "/[a-z0-9._:@-]{1,62}",
    ]
}

/// Any key but those of rules.
fn writable_key() -> impl Strategy<Value = String> {
    prop_oneof!["/dns/[0-9.]{1,15}/[a-z0-9.-]{1,40}", "/[a-zA-Z0-9._:@-]{1,62}"]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![8 => vec(1u8..=0x7f, 0..40), 1 => (1u8..=0x7f, 2900..=MAX_VALUE_BYTES).prop_map(|(byte, length)| alloc::vec![byte; length])]
}

#[derive(Clone, Debug)]
enum Step {
    Dom0Writes(String, Vec<u8>),
    Dom0Removes(String),
    WeWrite(String, Vec<u8>),
    WeRemove(String),
    Receive(usize),
    Send(usize),
    Settle,
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    // Each key has one writer: if both write at once, either side keeps the other's value.
    let is_ours = |key: &str| key.starts_with("/dns/") || key.contains("-handled/");
    let dom0_key = key().prop_filter("ours", move |key| !is_ours(key));
    let our_key = prop_oneof!["/dns/[ab]/[xyz]", "/qubes-firewall-handled/10[.]0[.]0[.][12]"];
    let prefix = prop_oneof![Just("/dns/a/"), Just("/dns/b/"), Just("/qubes-firewall/10.0.0.1/")];
    prop_oneof![
        4 => (dom0_key, value()).prop_map(|(key, value)| Step::Dom0Writes(key, value)),
        1 => "/qubes-firewall/10[.]0[.]0[.][12]/(policy|0000)?".prop_map(Step::Dom0Removes),
        4 => (our_key, value()).prop_map(|(key, value)| Step::WeWrite(key, value)),
        2 => prop_oneof![key(), prefix.prop_map(String::from)].prop_map(Step::WeRemove),
        4 => (1usize..5000).prop_map(Step::Receive),
        4 => (1usize..5000).prop_map(Step::Send),
        1 => Just(Step::Settle),
        1 => Just(Step::Reconnect),
    ]
}

/// Without the race that no client can exclude: dom0 filling the ring between our look at it and its look at our
/// removal. The client is given every other chance to go wrong.
fn perform(step: Step, dom0: &mut Dom0, client: &mut Client) {
    match step {
        Step::Dom0Writes(key, value) => dom0.local_write(&key, &value),
        Step::Dom0Removes(key) => dom0.local_remove(&key),
        Step::WeWrite(key, value) => drop(client.write(&key, &value)),
        Step::WeRemove(key) => drop(client.remove(&key)),
        Step::Receive(most) => {
            let bytes = dom0.take(most.min(client.input_room()));
            let taken = client.handle_bytes(&bytes);
            assert_eq!(taken, bytes.len());
            while client.poll_event().is_some() {}
        }
        Step::Send(most) => drop(transmit(dom0, client, most)),
        Step::Settle => exchange(dom0, client),
        Step::Reconnect if client.may_close() => {
            let entries = dom0.entries();
            let entries: Vec<_> = entries.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            *dom0 = Dom0::new(&entries);
            client.connected();
        }
        Step::Reconnect => {}
    }
}

/// All events, each with the rules of the tree it commits.
fn run(chunks: &[&[u8]]) -> (Vec<(Event, Vec<String>)>, Vec<u8>) {
    let mut client = Client::new(Limits { entries: 12, bytes: 20_000 });
    client.connected();
    let mut events = Vec::new();
    let mut transmitted = Vec::new();
    for chunk in chunks {
        let mut rest: &[u8] = chunk;
        loop {
            rest = &rest[client.handle_bytes(rest)..];
            while let Some(event) = client.poll_event() {
                let keys = client.store().iter().map(|(key, _)| String::from(key)).collect();
                events.push((event, keys));
            }
            loop {
                let bytes = client.poll_transmit(0, 4096).to_vec();
                client.transmitted(bytes.len());
                transmitted.extend_from_slice(&bytes);
                if bytes.is_empty() {
                    break;
                }
            }
            if rest.is_empty() {
                break;
            }
        }
    }
    (events, transmitted)
}

fn split<'b>(bytes: &'b [u8], cuts: &[usize]) -> Vec<&'b [u8]> {
    let mut rest = bytes;
    let mut chunks = Vec::new();
    for &cut in cuts {
        let (chunk, tail) = rest.split_at(cut.min(rest.len()));
        chunks.push(chunk);
        rest = tail;
    }
    chunks.push(rest);
    chunks
}

/// A stream that begins like a dump and then has messages of all kinds, broken ones among them.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let live = prop_oneof![
        6 => (key(), value()).prop_map(|(key, value)| {
            live_write(&key, core::str::from_utf8(&value).unwrap())
        }),
        2 => key().prop_map(|key| message(4, &key)),
        1 => (0u8..16, key()).prop_map(|(kind, key)| message(kind, &key)),
        1 => vec(any::<u8>(), 0..100),
    ];
    (vec((key(), value()), 0..6), vec(live, 0..12)).prop_map(|(dump, live)| {
        let mut bytes = Vec::new();
        for (key, value) in dump {
            let mut entry = live_write(&key, core::str::from_utf8(&value).unwrap());
            entry[0] = 11;
            bytes.extend(entry);
        }
        bytes.extend(END_OF_DUMP);
        bytes.extend(live.concat());
        bytes
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..2_000), live in any::<bool>()) {
        let mut client = synchronised(&[("/a", "b")]);
        if !live {
            client.connected();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let taken = client.handle_bytes(rest);
            rest = &rest[taken..];
            while client.poll_event().is_some() {}
            let sent = client.poll_transmit(0, 4096).len();
            client.transmitted(sent);
            prop_assert!(taken > 0 || sent > 0);
        }
    }

    #[test]
    fn fragmentation_does_not_matter(bytes in stream(), cuts in vec(1usize..3000, 0..40)) {
        prop_assert_eq!(run(&[&bytes]), run(&split(&bytes, &cuts)));
    }

    #[test]
    fn single_bytes_give_the_same_events(bytes in stream()) {
        let cuts: Vec<usize> = (0..bytes.len()).map(|_| 1).collect();
        prop_assert_eq!(run(&[&bytes]), run(&split(&bytes, &cuts)));
    }

    #[test]
    fn dom0_survives_and_agrees(steps in vec(step(), 0..80)) {
        let mut dom0 = Dom0::new(&[("/name", "fw"), ("/dns/a/x", "1")]);
        let mut client = Client::new(Limits::default());
        client.connected();
        for step in steps {
            perform(step, &mut dom0, &mut client);
            prop_assert_eq!(dom0.death(), None);
        }
        exchange(&mut dom0, &mut client);
        prop_assert_eq!(dom0.death(), None);
        prop_assert!(client.is_synchronised());
        prop_assert_eq!(entries(&client), dom0.entries());
        prop_assert_eq!(client.counters().unexpected_answers, 0);
        prop_assert!(client.is_idle());
    }

    #[test]
    fn only_harmless_types_are_ever_sent(bytes in stream(), cuts in vec(1usize..3000, 0..4)) {
        let (_, transmitted) = run(&split(&bytes, &cuts));
        prop_assert_eq!(transmitted.len() % HEADER_BYTES, 0, "answers have no value");
        for (index, header) in transmitted.chunks(HEADER_BYTES).enumerate() {
            let expected: &[u8] = if index == 0 { &[2] } else { &[7, 9] };
            prop_assert!(expected.contains(&header[0]));
        }
    }

    #[test]
    fn written_message_round_trips(key in writable_key(), value in value()) {
        let mut client = synchronised(&[]);
        prop_assert_eq!(client.write(&key, &value), Ok(()));
        let bytes = super::sent(&mut client);
        let header = Header::decode(bytes.first_chunk().unwrap()).unwrap();
        prop_assert_eq!(header.entry_path(), Path::entry(&key));
        prop_assert_eq!(header.data_len(), value.len());
        prop_assert_eq!(&bytes[HEADER_BYTES..], &value[..]);
    }

    #[test]
    fn store_is_a_bounded_map(
        operations in vec((key(), vec(1u8..=9, 0..20), any::<bool>()), 0..60),
    ) {
        let mut client = synchronised(&[]);
        let mut model = BTreeMap::new();
        for (key, value, remove) in operations {
            if remove {
                feed(&mut client, &message(4, &key));
                model.remove(&key);
            } else {
                feed(&mut client, &live_write(&key, core::str::from_utf8(&value).unwrap()));
                model.insert(key, value);
            }
            super::sent(&mut client);
        }
        let bytes: usize = model.iter().map(|(key, value)| key.len() + value.len()).sum();
        prop_assert_eq!(client.store().bytes(), bytes);
        let stored = client.store().iter().map(|(key, value)| (key.into(), value.to_vec()));
        prop_assert_eq!(stored.collect::<BTreeMap<String, Vec<u8>>>(), model);
    }
}
