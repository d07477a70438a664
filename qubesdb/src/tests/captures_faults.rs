//! Section 5 of the recordings: what ends dom0's daemon, and its answers. Each row becomes: our client can never
//! send this, or our client copes when this is the answer (or comes from dom0).

use super::{cat, dump_entry, feed, live_write, message, requesting, sent, synchronised};
use crate::{
    Client, Closing, CommandError, Event, Header, HeaderError, Kind, Limits, Path, PathError,
    ProtocolError, Refusal,
};
use alloc::vec::Vec;

/// Database of the recordings.
const NAME_AND_IP: &[(&str, &str)] = &[("/qubes-ip", "10.137.0.6"), ("/name", "fw")];

fn recorded() -> Client {
    synchronised(NAME_AND_IP)
}

/// A request that must be refused without anything being sent.
fn assert_not_written(path: &str, value: &[u8], error: CommandError) {
    let mut client = recorded();
    assert_eq!(client.write(path, value), Err(error));
    assert_eq!(sent(&mut client), []);
}

fn assert_not_removed(path: &str, error: CommandError) {
    let mut client = recorded();
    assert_eq!(client.remove(path), Err(error));
    assert_eq!(sent(&mut client), []);
}

/// Live bytes from dom0 that must end the connection.
fn assert_protocol_error(bytes: &[u8], reason: ProtocolError) {
    let mut client = recorded();
    assert_eq!(feed(&mut client, bytes), [Event::ProtocolError { reason }]);
    assert_eq!(client.closing(), Closing::Required);
    assert_eq!(sent(&mut client), []);
    assert_eq!(client.write("/a", b""), Err(CommandError::NotSynchronised));
    assert_eq!(client.store().len(), 2, "the last known database stays");
}

#[test]
fn captures_5_m01_second_multiread_is_never_sent() {
    let mut client = Client::new(Limits::default());
    client.connected();
    let mut bytes = sent(&mut client);
    feed(&mut client, &cat(&[&dump_entry("/name", "fw"), &message(0x0b, "")]));
    feed(&mut client, &live_write("/a", "1"));
    client.write("/b", b"2").unwrap();
    bytes.extend(sent(&mut client));
    let starts = [0, 72, 144].map(|at| bytes[at]);
    assert_eq!((starts, bytes.len()), ([0x02, 0x07, 0x01], 217));
    // The recorded answer to a second one: RESP_ERROR with empty path.
    assert!(matches!(feed(&mut client, &message(0x09, ""))[..], [Event::CommandRefused { .. }]));
}

#[test]
fn captures_5_m02_unknown_types() {
    for code in [0x0e, 0xff] {
        assert_protocol_error(&message(code, "/x"), HeaderError::Type(code).into());
    }
}

#[test]
fn captures_5_m03_read() {
    assert_protocol_error(&message(0x00, "/name"), HeaderError::Type(0x00).into());
}

#[test]
fn captures_5_m04_no_entry() {
    assert_protocol_error(&message(0x08, "/name"), ProtocolError::Unexpected(Kind::NoEntry));
}

#[test]
fn captures_5_m05_dump_entry_outside_the_dump() {
    assert_protocol_error(&dump_entry("/name", "x"), ProtocolError::Unexpected(Kind::DumpEntry));
}

#[test]
fn captures_5_m06_write_of_a_path_with_space_is_never_sent() {
    assert_not_written("/bad path", b"v", PathError::IllegalByte(b' ').into());
}

#[test]
fn captures_5_m07_write_of_unusable_paths_is_never_sent() {
    assert_not_written("noslash", b"v", PathError::NoLeadingSlash.into());
    assert_not_written("/trail/", b"v", PathError::TrailingSlash.into());
    assert_not_written("", b"v", PathError::Empty.into());
    // Answer of dom0: RESP_ERROR with that path.
    for path in ["noslash", "/trail/", ""] {
        let events = feed(&mut recorded(), &message(0x09, path));
        assert!(
            matches!(events[..], [Event::CommandRefused { path: p }] if p.as_bytes() == path.as_bytes())
        );
    }
}

#[test]
fn captures_5_m08_write_of_a_64_byte_path_is_never_sent() {
    let path = alloc::format!("/{}", "q".repeat(63));
    assert_not_written(&path, b"v", PathError::TooLong.into());
}

#[test]
fn captures_5_m09_write_of_a_63_byte_path() {
    let path = alloc::format!("/{}", "q".repeat(62));
    let mut client = recorded();
    client.write(&path, b"v").unwrap();
    let expected = cat(&[&[0x01], b"/", &[b'q'; 62], &[0], &[0; 3], &[1, 0, 0, 0], b"v"]);
    assert_eq!(sent(&mut client), expected);
    assert_eq!(feed(&mut client, &cat(&[&[0x07], b"/", &[b'q'; 62], &[0; 8]])), []);
    assert_eq!(client.counters().unexpected_answers, 0);
}

#[test]
fn captures_5_m10_rm_absent_is_never_sent() {
    assert_not_removed("/absent", CommandError::Absent);
    assert_not_removed("/absent/", CommandError::Absent);
    assert_not_removed("/dns/10.137.0.9/", CommandError::Absent);
    assert_not_removed("", PathError::Empty.into());
}

#[test]
fn captures_5_m10_rm_that_became_absent_while_it_waited_is_never_sent() {
    let mut client = synchronised(&[("/dns/a/x", "1")]);
    client.remove("/dns/a/").unwrap();
    client.remove("/dns/a/x").unwrap();
    assert_eq!(sent(&mut client), message(0x04, "/dns/a/"), "only one at a time");
    assert_eq!(feed(&mut client, &message(0x07, "/dns/a/")), []);
    assert_eq!(sent(&mut client), []);
    assert_eq!(client.counters().commands_dropped, 1);
}

#[test]
fn captures_5_m11_rm_of_a_present_entry() {
    let mut client = synchronised(&[("/qubes-firewall-handled/10.137.0.9", "4")]);
    client.remove("/qubes-firewall-handled/10.137.0.9").unwrap();
    assert_eq!(sent(&mut client), message(0x04, "/qubes-firewall-handled/10.137.0.9"));
    assert_eq!(feed(&mut client, &message(0x07, "/qubes-firewall-handled/10.137.0.9")), []);
    assert!(client.store().is_empty());
    // dom0's own keys are dom0's to remove: its removal could cross ours, which then is one of an absent entry.
    assert_not_removed("/name", CommandError::NotOurs);
    let mut root = recorded();
    assert_eq!(root.remove("/"), Err(CommandError::NotOurs));
}

#[test]
fn captures_5_m12_value_of_3072_bytes_is_never_sent() {
    assert_not_written("/big", &[b'x'; 3072], CommandError::ValueTooLong);
}

#[test]
fn captures_5_m13_value_of_3071_bytes() {
    let mut client = recorded();
    client.write("/big", &[b'x'; 3071]).unwrap();
    let expected = cat(&[&[0x01], b"/big", &[0; 60], &[0; 3], &[0xff, 0x0b, 0, 0], &[b'x'; 3071]]);
    assert_eq!(sent(&mut client), expected);
}

#[test]
fn captures_5_m14_length_ffffffff_is_refused_at_once() {
    let bytes = cat(&[&[0x01], b"/big", &[0; 60], &[0; 3], &[0xff; 4]]);
    assert_protocol_error(&bytes, HeaderError::ValueTooLong(u32::MAX).into());
}

#[test]
fn captures_5_m15_value_with_nul() {
    assert_not_written("/nul", &[0x61, 0x00, 0x62], CommandError::NulInValue);
    // From dom0: answered like dom0 does.
    let mut client = synchronised(&[("/nul", "old")]);
    let bytes = cat(&[&[0x01], b"/nul", &[0; 60], &[0; 3], &[3, 0, 0, 0], &[0x61, 0x00, 0x62]]);
    let events = feed(&mut client, &bytes);
    assert!(matches!(events[..], [Event::Refused { reason: Refusal::NulInValue, .. }]));
    assert_eq!(sent(&mut client), cat(&[&[0x09], b"/nul", &[0; 60], &[0; 3], &[0; 4]]));
    assert_eq!(client.store().get("/nul"), None, "not the stale value");
    assert!(client.is_synchronised());
}

#[test]
fn captures_5_m16_rm_with_a_value_keeps_the_entry() {
    let mut client = recorded();
    let bytes = cat(&[&[0x04], b"/name", &[0; 59], &[0; 3], &[1, 0, 0, 0], b"x"]);
    let events = feed(&mut client, &bytes);
    assert!(matches!(events[..], [Event::Refused { reason: Refusal::RemovalWithValue, .. }]));
    assert_eq!(sent(&mut client), cat(&[&[0x09], b"/name", &[0; 59], &[0; 3], &[0; 4]]));
    assert_eq!(client.store().get_str("/name"), Some("fw"));
    assert_eq!(feed(&mut client, &live_write("/next", "v")).len(), 1, "still in step");
}

#[test]
fn captures_5_m17_answer_with_a_value() {
    let bytes = cat(&[&[0x07], b"/name", &[0; 59], &[0; 3], &[4, 0, 0, 0], b"abcd"]);
    assert_protocol_error(&bytes, ProtocolError::AnswerWithValue);
    // Our own answers never have one, whatever the length of the command's value.
    let mut client = recorded();
    feed(&mut client, &live_write("/name", "abcd"));
    assert_eq!(sent(&mut client)[68..], [0; 4]);
}

#[test]
fn captures_5_m18_resp_error_is_an_event() {
    let mut client = recorded();
    let events = feed(&mut client, &message(0x09, "/name"));
    assert!(matches!(events[..], [Event::CommandRefused { path }] if path.as_bytes() == b"/name"));
    assert!(client.is_synchronised());
    assert_eq!(client.store().get_str("/name"), Some("fw"), "it was not ours");
}

#[test]
fn captures_5_m18_a_refused_write_is_not_taken_for_stored() {
    let mut client = recorded();
    client.write("/dns/a/x", b"1").unwrap();
    sent(&mut client);
    feed(&mut client, &message(0x09, "/dns/a/x"));
    assert_eq!(client.store().get("/dns/a/x"), None);
    assert_eq!(client.remove("/dns/a/x"), Err(CommandError::Absent));
}

#[test]
fn captures_5_m19_resp_error_with_a_value() {
    let bytes = cat(&[&[0x09], b"/name", &[0; 59], &[0; 3], &[1, 0, 0, 0], b"x"]);
    assert_protocol_error(&bytes, ProtocolError::AnswerWithValue);
}

#[test]
fn captures_5_m20_garbage_and_padding_come_back() {
    let head = [b"/g\0".as_slice(), b"garbage", &[0; 54], &[0xaa, 0xbb, 0xcc]].concat();
    let mut client = recorded();
    let event = Event::Changed { path: Path::entry("/g").unwrap() };
    let command = cat(&[&[0x01], &head, &[1, 0, 0, 0], b"v"]);
    assert_eq!(feed(&mut client, &command), [event]);
    assert_eq!(sent(&mut client), cat(&[&[0x07], &head, &[0; 4]]));
    // dom0's answers return what we sent, which is zeros; others are understood as well.
    client.write("/g", b"w").unwrap();
    assert_eq!(sent(&mut client)[3..68], [0; 65]);
    assert_eq!(feed(&mut client, &cat(&[&[0x07], &head, &[0; 4]])), []);
    assert_eq!(client.counters().unexpected_answers, 0);
}

#[test]
fn captures_5_m21_header_in_pieces() {
    let bytes = live_write("/m21", "abcd");
    let mut client = recorded();
    assert_eq!(feed(&mut client, &bytes[..30]), []);
    assert_eq!(feed(&mut client, &bytes[30..75]), []);
    assert_eq!(sent(&mut client), [], "no answer before the last piece");
    assert_eq!(feed(&mut client, &bytes[75..]).len(), 1);
    assert_eq!(sent(&mut client), message(0x07, "/m21"));
}

#[test]
fn captures_5_m22_three_commands_in_one_write() {
    let bytes = cat(&[&live_write("/t1", "1"), &live_write("/t2", "2"), &message(0x04, "/t1")]);
    assert_eq!(bytes.len(), 218);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &bytes).len(), 3);
    assert_eq!(
        sent(&mut client),
        cat(&[&message(0x07, "/t1"), &message(0x07, "/t2"), &message(0x07, "/t1")])
    );
}

#[test]
fn captures_5_m22_our_own_removal_waits_for_the_answers_to_our_writes() {
    let mut client = recorded();
    client.write("/dns/t1", b"1").unwrap();
    client.write("/dns/t2", b"2").unwrap();
    client.remove("/dns/t1").unwrap();
    assert_eq!(sent(&mut client), cat(&[&live_write("/dns/t1", "1"), &live_write("/dns/t2", "2")]));
    feed(&mut client, &cat(&[&message(0x07, "/dns/t1"), &message(0x07, "/dns/t2")]));
    assert_eq!(sent(&mut client), message(0x04, "/dns/t1"));
}

#[test]
fn captures_5_p1_nothing_is_written_before_the_dump() {
    let mut client = requesting();
    assert_eq!(client.write("/early", b"v"), Err(CommandError::NotSynchronised));
    assert_eq!(client.remove("/early"), Err(CommandError::NotSynchronised));
    assert_eq!(sent(&mut client), []);
    let mut idle = Client::new(Limits::default());
    assert_eq!(idle.write("/early", b"v"), Err(CommandError::NotSynchronised));
}

#[test]
fn captures_5_p2_late_answer_to_the_request() {
    let mut client = requesting();
    assert_eq!(client.poll_event(), None);
    let dump = cat(&[&dump_entry("/live", "v"), &message(0x0b, "")]);
    assert_eq!(feed(&mut client, &dump), [Event::Dumped]);
    assert_eq!(client.store().get_str("/live"), Some("v"));
}

#[test]
fn captures_5_p3_request_names_no_prefix_and_end_mark_may_hold_one() {
    let mut client = Client::new(Limits::default());
    client.connected();
    assert_eq!(sent(&mut client)[1..65], [0; 64], "everything is asked for");
    let end = cat(&[&[0x0b, 0x00], b"qubes-ip", &[0; 55], &[0; 3], &[0; 4]]);
    assert_eq!(end.len(), 72);
    assert_eq!(feed(&mut client, &end), [Event::Dumped]);
}

#[test]
fn captures_5_p4_no_close_before_the_request_is_sent() {
    let mut client = Client::new(Limits::default());
    assert!(client.may_close());
    client.connected();
    assert_eq!(client.closing(), Closing::Forbidden);
    assert!(!client.may_close());
}

#[test]
fn captures_5_p5_no_close_before_the_dump_begins() {
    assert_eq!(requesting().closing(), Closing::Forbidden);
}

#[test]
fn captures_5_p6_no_close_before_the_dump_ends() {
    let mut client = requesting();
    let bytes = cat(&[&dump_entry("/name", "fw"), &message(0x0b, "")]);
    for byte in &bytes[..bytes.len() - 1] {
        feed(&mut client, &[*byte]);
        assert_eq!(client.closing(), Closing::Forbidden);
    }
    feed(&mut client, &bytes[bytes.len() - 1..]);
    assert_eq!(client.closing(), Closing::Allowed);
}

#[test]
fn captures_5_p6_an_error_inside_the_dump_still_waits_for_its_end() {
    for (bad, reason) in [
        (live_write("/a", "b"), ProtocolError::Unexpected(Kind::Write)),
        (message(0x07, "/a"), ProtocolError::Unexpected(Kind::Ok)),
        (cat(&[&[0x0b], &[0; 67], &[1, 0, 0, 0], b"v"]), ProtocolError::EntryWithoutPath),
    ] {
        let mut client = recorded();
        client.connected();
        sent(&mut client);
        assert_eq!(feed(&mut client, &dump_entry("/x", "1")), []);
        assert_eq!(feed(&mut client, &bad), [Event::ProtocolError { reason }]);
        assert_eq!(client.closing(), Closing::Forbidden);
        assert_eq!(feed(&mut client, &bad), [], "reported once");
        assert_eq!(feed(&mut client, &message(0x0b, "")), [], "a spoiled dump is not taken");
        assert_eq!(client.closing(), Closing::Required);
        assert_eq!(client.store().get("/x"), None);
        assert_eq!(client.store().len(), 2, "the database of before stays");
    }
}

#[test]
fn captures_5_p6_lost_framing_inside_the_dump_waits_for_silence() {
    let mut client = requesting();
    let events = feed(&mut client, &message(0xff, "/x"));
    let reason = HeaderError::Type(0xff).into();
    assert_eq!(events, [Event::ProtocolError { reason }]);
    assert_eq!(client.closing(), Closing::AfterQuiet);
    assert_eq!(feed(&mut client, &[0x0b; 10_000]), [], "everything is swallowed");
    assert_eq!(client.closing(), Closing::AfterQuiet);
    client.disconnected();
    assert_eq!(client.closing(), Closing::Allowed);
}

#[test]
fn captures_5_p7_close_after_the_dump_and_connect_again() {
    let mut client = recorded();
    assert!(client.may_close());
    client.disconnected();
    assert_eq!(client.store().len(), 2);
    client.connected();
    assert_eq!(sent(&mut client), cat(&[&[0x02], &[0; 71]]), "one request per connection");
    assert_eq!(client.closing(), Closing::Forbidden);
}

/// The answers of section 5 as raw headers decode to what they are.
#[test]
fn captures_5_first_dump_of_228_bytes() {
    let bytes = cat(&[
        &[0x0b],
        &[0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x69, 0x70],
        &[0; 58],
        &[0x0a, 0x00, 0x00, 0x00],
        &[0x31, 0x30, 0x2e, 0x31, 0x33, 0x37, 0x2e, 0x30, 0x2e, 0x36],
        &[0x0b, 0x2f, 0x6e, 0x61, 0x6d, 0x65],
        &[0; 62],
        &[0x02, 0x00, 0x00, 0x00],
        &[0x66, 0x77],
        &[0x0b, 0x00, 0x6e, 0x61, 0x6d, 0x65],
        &[0; 66],
    ]);
    assert_eq!(bytes.len(), 228);
    let mut client = requesting();
    assert_eq!(feed(&mut client, &bytes), [Event::Dumped]);
    let keys: Vec<_> = client.store().iter().collect();
    assert_eq!(keys, [("/name", b"fw".as_slice()), ("/qubes-ip", b"10.137.0.6".as_slice())]);
    let end: &[u8; 72] = bytes[156..].first_chunk().unwrap();
    assert!(Header::decode(end).unwrap().is_end_of_dump());
}
