//! The byte vectors of the Qubes qubesdb wire protocol (section 9.2 of the vector list), positive and negative, and
//! the sequence vector.

use super::{
    END_OF_DUMP, cat, dump_entry, feed, live_write, message, requesting, sent, synchronised,
};
use crate::{
    Client, Event, Header, HeaderError, Kind, Limits, Path, PathError, ProtocolError, Refusal, Tree,
};
use alloc::vec::Vec;

const FIREWALL_0000: &[u8] = &[
    0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x66, 0x69, 0x72, 0x65, 0x77, 0x61, 0x6c, 0x6c, 0x2f,
    0x31, 0x30, 0x2e, 0x31, 0x33, 0x37, 0x2e, 0x30, 0x2e, 0x39, 0x2f, 0x30, 0x30, 0x30, 0x30,
];
const FIREWALL_MARK: &[u8] = &[
    0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x66, 0x69, 0x72, 0x65, 0x77, 0x61, 0x6c, 0x6c, 0x2f,
    0x31, 0x30, 0x2e, 0x31, 0x33, 0x37, 0x2e, 0x30, 0x2e, 0x39,
];
const ACTION_ACCEPT: &[u8] =
    &[0x61, 0x63, 0x74, 0x69, 0x6f, 0x6e, 0x3d, 0x61, 0x63, 0x63, 0x65, 0x70, 0x74];

#[test]
fn vector_9_2_multiread_all() {
    let mut client = Client::new(Limits::default());
    client.connected();
    assert_eq!(sent(&mut client), cat(&[&[0x02], &[0; 64], &[0, 0, 0], &[0, 0, 0, 0]]));
}

#[test]
fn vector_9_2_dump_entry_qubes_ip() {
    let bytes = cat(&[
        &[0x0b],
        &[0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x69, 0x70],
        &[0; 55],
        &[0, 0, 0],
        &[0x0a, 0, 0, 0],
        &[0x31, 0x30, 0x2e, 0x31, 0x33, 0x37, 0x2e, 0x30, 0x2e, 0x36],
    ]);
    let mut client = requesting();
    assert_eq!(feed(&mut client, &bytes), []);
    assert_eq!(feed(&mut client, &END_OF_DUMP), [Event::Dumped]);
    assert_eq!(client.store().get("/qubes-ip"), Some(b"10.137.0.6".as_slice()));
}

#[test]
fn vector_9_2_dump_entry_with_empty_value_is_not_the_end() {
    let bytes = cat(&[
        &[0x0b],
        &[
            0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x75, 0x73, 0x62, 0x2d, 0x64, 0x65, 0x76,
            0x69, 0x63, 0x65, 0x73,
        ],
        &[0; 46],
        &[0, 0, 0],
        &[0, 0, 0, 0],
    ]);
    let mut client = requesting();
    assert_eq!(feed(&mut client, &bytes), []);
    assert_eq!(feed(&mut client, &END_OF_DUMP), [Event::Dumped]);
    assert_eq!(client.store().get("/qubes-usb-devices"), Some(b"".as_slice()));
}

#[test]
fn vector_9_2_end_of_dump() {
    let bytes = cat(&[&[0x0b], &[0; 64], &[0, 0, 0], &[0, 0, 0, 0]]);
    assert_eq!(feed(&mut requesting(), &bytes), [Event::Dumped]);
}

#[test]
fn vector_9_2_write_of_a_rule() {
    let bytes = cat(&[&[0x01], FIREWALL_0000, &[0; 33], &[0; 3], &[0x0d, 0, 0, 0], ACTION_ACCEPT]);
    let mut client = synchronised(&[]);
    let path = Path::entry("/qubes-firewall/10.137.0.9/0000").unwrap();
    assert_eq!(feed(&mut client, &bytes), [Event::Changed { path }]);
    assert_eq!(client.store().get_str(path.as_str()), Some("action=accept"));
}

#[test]
fn vector_9_2_trigger_and_its_answer() {
    let bytes = cat(&[&[0x01], FIREWALL_MARK, &[0; 38], &[0; 3], &[0; 4]]);
    let mut client = synchronised(&[]);
    let tree = Tree::new("10.137.0.9").unwrap();
    assert_eq!(feed(&mut client, &bytes), [Event::Committed { tree, complete: Ok(()) }]);
    assert_eq!(sent(&mut client), cat(&[&[0x07], FIREWALL_MARK, &[0; 38], &[0; 3], &[0; 4]]));
}

#[test]
fn vector_9_2_removal_of_a_subtree() {
    let bytes = cat(&[&[0x04], FIREWALL_MARK, &[0x2f], &[0; 37], &[0; 3], &[0; 4]]);
    let mut client = synchronised(&[
        ("/qubes-firewall/10.137.0.9/policy", "drop"),
        ("/qubes-firewall/10.137.0.9", ""),
        ("/qubes-firewall/10.137.0.90/policy", "drop"),
    ]);
    let prefix = Path::removal("/qubes-firewall/10.137.0.9/").unwrap();
    assert_eq!(feed(&mut client, &bytes), [Event::RemovedBelow { prefix }]);
    let keys: Vec<_> = client.store().iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["/qubes-firewall/10.137.0.9", "/qubes-firewall/10.137.0.90/policy"]);
    assert_eq!(
        sent(&mut client),
        cat(&[&[0x07], FIREWALL_MARK, &[0x2f], &[0; 37], &[0; 3], &[0; 4]])
    );
}

#[test]
fn vector_9_2_write_of_the_handled_counter() {
    let mut client = synchronised(&[]);
    client.write("/qubes-firewall-handled/10.137.0.9", b"1").unwrap();
    let expected = cat(&[
        &[0x01],
        &[
            0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x66, 0x69, 0x72, 0x65, 0x77, 0x61, 0x6c,
            0x6c, 0x2d, 0x68, 0x61, 0x6e, 0x64, 0x6c, 0x65, 0x64, 0x2f, 0x31, 0x30, 0x2e, 0x31,
            0x33, 0x37, 0x2e, 0x30, 0x2e, 0x39,
        ],
        &[0; 30],
        &[0; 3],
        &[1, 0, 0, 0],
        &[0x31],
    ]);
    assert_eq!(sent(&mut client), expected);
}

#[test]
fn vector_9_2_small_write_of_73_bytes() {
    let bytes = cat(&[&[0x01, 0x2f, 0x61], &[0; 62], &[0; 3], &[1, 0, 0, 0], &[0x62]]);
    assert_eq!(bytes.len(), 73);
    let mut client = synchronised(&[]);
    let path = Path::entry("/a").unwrap();
    assert_eq!(feed(&mut client, &bytes), [Event::Changed { path }]);
    let mut other = synchronised(&[]);
    other.write("/a", b"b").unwrap();
    assert_eq!(sent(&mut other), bytes, "we encode it the same way");
}

#[test]
fn vector_9_2_negative_type_0e_or_larger() {
    for code in 0x0e..=0xff {
        let bytes = message(code, "/x");
        let error = HeaderError::Type(code);
        assert_eq!(Header::decode(bytes.first_chunk().unwrap()), Err(error));
        let reason = ProtocolError::Header(error);
        assert_eq!(feed(&mut synchronised(&[]), &bytes), [Event::ProtocolError { reason }]);
    }
}

#[test]
fn vector_9_2_negative_types_of_local_sockets() {
    for code in [0x00, 0x03, 0x05, 0x06, 0x0a, 0x0c, 0x0d] {
        let bytes = message(code, "/x");
        assert_eq!(Header::decode(bytes.first_chunk().unwrap()), Err(HeaderError::Type(code)));
    }
}

#[test]
fn vector_9_2_negative_path_without_nul() {
    let bytes = cat(&[&[0x01], b"/", &[b'q'; 63], &[0; 3], &[0; 4]]);
    let error = HeaderError::PathNotTerminated;
    assert_eq!(Header::decode(bytes.first_chunk().unwrap()), Err(error));
    let reason = ProtocolError::Header(error);
    assert_eq!(feed(&mut synchronised(&[]), &bytes), [Event::ProtocolError { reason }]);
}

#[test]
fn vector_9_2_negative_illegal_paths() {
    for (path, error) in [
        ("a/b", PathError::NoLeadingSlash),
        ("-a", PathError::NoLeadingSlash),
        ("/a b", PathError::IllegalByte(b' ')),
        ("/-ü", PathError::IllegalByte(0xc3)),
        ("/a/", PathError::TrailingSlash),
        ("", PathError::Empty),
    ] {
        assert_eq!(Path::entry(path), Err(error));
        let mut client = synchronised(&[]);
        let events = feed(&mut client, &live_write(path, "v"));
        assert!(
            matches!(events[..], [Event::Refused { reason: Refusal::Path(e), .. }] if e == error)
        );
        assert!(client.store().is_empty());
        assert_eq!(sent(&mut client), [], "dom0 waits for no answer");
        assert!(client.is_synchronised(), "the bad entry harms nothing else");
    }
}

#[test]
fn vector_9_2_positive_paths_with_dashes() {
    for path in ["/-a", "/a-b", "/a_b.c:d@e/F9"] {
        let mut client = synchronised(&[]);
        let event = Event::Changed { path: Path::entry(path).unwrap() };
        assert_eq!(feed(&mut client, &live_write(path, "v")), [event]);
    }
}

#[test]
fn vector_9_2_negative_value_of_3072_bytes() {
    let bytes = cat(&[&[0x01], b"/a", &[0; 62], &[0; 3], &[0x00, 0x0c, 0, 0]]);
    let error = HeaderError::ValueTooLong(3072);
    assert_eq!(Header::decode(bytes.first_chunk().unwrap()), Err(error));
    let reason = ProtocolError::Header(error);
    assert_eq!(feed(&mut synchronised(&[]), &bytes), [Event::ProtocolError { reason }]);
}

#[test]
fn vector_9_2_positive_value_of_3071_bytes() {
    let bytes = cat(&[&[0x01], b"/a", &[0; 62], &[0; 3], &[0xff, 0x0b, 0, 0], &[b'x'; 3071]]);
    let mut client = synchronised(&[]);
    assert_eq!(feed(&mut client, &bytes).len(), 1);
    assert_eq!(client.store().get("/a"), Some([b'x'; 3071].as_slice()));
}

#[test]
fn vector_9_2_garbage_after_nul_and_padding_is_ignored() {
    let mut path = [0xee; 64];
    path[..3].copy_from_slice(b"/a\0");
    let bytes = cat(&[&[0x01], &path, &[0xaa, 0xbb, 0xcc], &[1, 0, 0, 0], b"v"]);
    let mut client = synchronised(&[]);
    let event = Event::Changed { path: Path::entry("/a").unwrap() };
    assert_eq!(feed(&mut client, &bytes), [event]);
}

#[test]
fn vector_9_2_split_header_waits() {
    let bytes = live_write("/a", "");
    let mut client = synchronised(&[]);
    assert_eq!(feed(&mut client, &bytes[..71]), []);
    assert_eq!(feed(&mut client, &bytes[71..]).len(), 1);
}

#[test]
fn vector_9_2_split_value_waits() {
    let bytes = live_write("/a", "abc");
    let mut client = synchronised(&[]);
    assert_eq!(feed(&mut client, &bytes[..74]), []);
    assert_eq!(client.store().get("/a"), None);
    assert_eq!(feed(&mut client, &bytes[74..]).len(), 1);
    assert_eq!(client.store().get_str("/a"), Some("abc"));
}

/// Reads the rules of a tree as the consumer of `Committed` does.
fn rules(client: &Client, tree: &Tree) -> Vec<(Vec<u8>, Vec<u8>)> {
    let own = |(key, value): (&str, &[u8])| (key.as_bytes().to_vec(), value.to_vec());
    client.store().tree_entries(tree).map(own).collect()
}

fn table(rows: &[(&str, &str)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    rows.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

#[test]
fn vector_9_2_sequence() {
    let tree = Tree::new("10.137.0.9").unwrap();
    let committed = Event::Committed { tree, complete: Ok(()) };
    let below = "/qubes-firewall/10.137.0.9/";

    // Step 1: the dump makes the rules active.
    let mut client = requesting();
    for (path, value) in [
        ("/type", "StandaloneVM"),
        ("/qubes-ip", "10.137.0.6"),
        ("/qubes-firewall/10.137.0.9/policy", "drop"),
        ("/qubes-firewall/10.137.0.9/0000", "action=accept"),
        ("/qubes-firewall/10.137.0.9", ""),
        ("/connected-ips", "10.137.0.9"),
    ] {
        assert_eq!(feed(&mut client, &dump_entry(path, value)), []);
    }
    assert_eq!(feed(&mut client, &END_OF_DUMP), [Event::Dumped, committed]);
    assert_eq!(rules(&client, &tree), table(&[("0000", "action=accept"), ("policy", "drop")]));

    // Step 2: no commit, so that the active rules stay.
    let prefix = Path::removal(below).unwrap();
    assert_eq!(feed(&mut client, &message(0x04, below)), [Event::RemovedBelow { prefix }]);
    assert_eq!(sent(&mut client), message(0x07, below));

    // Step 3: likewise.
    for (key, value) in
        [("policy", "drop"), ("0000", "action=accept proto=icmp"), ("0002", "action=drop")]
    {
        let path = alloc::format!("{below}{key}");
        let event = Event::Changed { path: Path::entry(&path).unwrap() };
        assert_eq!(feed(&mut client, &live_write(&path, value)), [event]);
        assert_eq!(sent(&mut client), message(0x07, &path));
    }

    // Step 4: the trigger; what comes behind it is not applied before the event has been taken.
    let trigger = message(0x01, "/qubes-firewall/10.137.0.9");
    let next_edit = message(0x04, below);
    let bytes = cat(&[&trigger, &next_edit]);
    assert_eq!(client.handle_bytes(&bytes), bytes.len());
    assert_eq!(client.poll_event(), Some(committed));
    assert_eq!(
        rules(&client, &tree),
        table(&[("0000", "action=accept proto=icmp"), ("0002", "action=drop"), ("policy", "drop")])
    );
    assert_eq!(client.poll_event(), Some(Event::RemovedBelow { prefix }));
    assert_eq!(client.poll_event(), None);
    assert_eq!(
        sent(&mut client),
        cat(&[&message(0x07, "/qubes-firewall/10.137.0.9"), &message(0x07, below)])
    );
    client.write("/qubes-firewall-handled/10.137.0.9", b"1").unwrap();
    assert_eq!(sent(&mut client), live_write("/qubes-firewall-handled/10.137.0.9", "1"));
    assert_eq!(feed(&mut client, &message(0x07, "/qubes-firewall-handled/10.137.0.9")), []);
    assert_eq!(client.counters().unexpected_answers, 0);
}

#[test]
fn answer_kinds_survive_decoding() {
    for (code, kind) in [
        (1, Kind::Write),
        (2, Kind::MultiRead),
        (4, Kind::Remove),
        (7, Kind::Ok),
        (8, Kind::NoEntry),
        (9, Kind::Error),
        (11, Kind::DumpEntry),
    ] {
        let bytes = message(code, "/x");
        assert_eq!(Header::decode(bytes.first_chunk().unwrap()).unwrap().kind(), kind);
    }
}
