//! Sections 4 and 6 of the recordings: flow control with a full ring, loss of the link and what follows.

use super::dom0::{Dom0, RING_BYTES, exchange};
use super::{END_OF_DUMP, cat, dump_entry, entries, feed, message, requesting, sent, synchronised};
use crate::{Client, CommandError, Event, Limits, MAX_UNANSWERED, Tree};

#[test]
fn captures_4_full_ring_and_messages_cut_anywhere() {
    // dom0 writes 4 x (72 + 3000) while we do not read; its second message goes out as 72 + 952.
    let mut dom0 = Dom0::new(&[("/name", "fw")]);
    let mut client = Client::new(Limits::default());
    client.connected();
    exchange(&mut dom0, &mut client);
    for key in ["/big1", "/big2", "/big3", "/big4"] {
        dom0.local_write(key, &[b'x'; 3000]);
    }
    assert_eq!(dom0.unread(), RING_BYTES, "ring full, the rest waits in dom0");
    exchange(&mut dom0, &mut client);
    assert_eq!(dom0.bytes_to_client(), 146 + 4 * 3072);
    for key in ["/big1", "/big2", "/big3", "/big4"] {
        assert_eq!(client.store().get(key), Some([b'x'; 3000].as_slice()));
    }
    assert!(dom0.is_alive());
}

#[test]
fn captures_4_3071_byte_value_as_2588_and_483() {
    let bytes = cat(&[&[0x0b], b"/big", &[0; 63], &[0xff, 0x0b, 0, 0], &[b'x'; 3071]]);
    let mut client = requesting();
    feed(&mut client, &bytes[..72]);
    feed(&mut client, &bytes[72..72 + 2588]);
    assert_eq!(client.handle_bytes(&bytes[72 + 2588..]), 483);
    assert_eq!(client.poll_event(), None);
    feed(&mut client, &END_OF_DUMP);
    assert_eq!(client.store().get("/big"), Some([b'x'; 3071].as_slice()));
}

#[test]
fn captures_4_write_into_a_full_ring_is_stored_and_answered_later() {
    let mut dom0 = Dom0::new(&[("/name", "fw")]);
    let mut client = Client::new(Limits::default());
    client.connected();
    exchange(&mut dom0, &mut client);
    dom0.local_write("/big1", &[b'x'; 3000]);
    dom0.local_write("/big2", &[b'x'; 3000]);
    client.write("/w1", b"v").unwrap();
    let bytes = client.poll_transmit(dom0.unread(), 4096).to_vec();
    assert_eq!(bytes.len(), 73, "a write may go at any time");
    client.transmitted(bytes.len());
    dom0.receive(&bytes);
    assert!(dom0.is_alive());
    assert_eq!(dom0.get("/w1"), Some(b"v".as_slice()));
    exchange(&mut dom0, &mut client);
    assert_eq!(client.counters().unexpected_answers, 0);
    assert_eq!(entries(&client), dom0.entries());
}

#[test]
fn captures_4_rm_into_a_full_ring_is_never_sent() {
    let mut dom0 = Dom0::new(&[("/dns/a/x", "1")]);
    let mut client = Client::new(Limits::default());
    client.connected();
    exchange(&mut dom0, &mut client);
    dom0.local_write("/big1", &[b'x'; 3000]);
    dom0.local_write("/big2", &[b'x'; 3000]);
    client.remove("/dns/a/").unwrap();
    assert_eq!(client.poll_transmit(dom0.unread(), 4096), [], "dom0 could not answer");
    assert_eq!(client.poll_transmit(1, 4096), [], "nor is one unread byte risked");
    exchange(&mut dom0, &mut client);
    assert!(dom0.is_alive());
    assert_eq!(dom0.get("/dns/a/x"), None);
    assert_eq!(entries(&client), dom0.entries());
}

#[test]
fn captures_4_rm_waits_for_the_rest_of_a_message() {
    let mut client = synchronised(&[("/dns/a", "1")]);
    client.remove("/dns/a").unwrap();
    let bytes = message(0x01, "/x");
    feed(&mut client, &bytes[..40]);
    assert_eq!(client.poll_transmit(0, 4096), [], "half a message is in the buffer");
    feed(&mut client, &bytes[40..]);
    let expected = cat(&[&message(0x07, "/x"), &message(0x04, "/dns/a")]);
    assert_eq!(sent(&mut client), expected, "first the answer");
}

#[test]
fn captures_4_rm_waits_for_room_in_the_ring_to_dom0() {
    let mut client = synchronised(&[("/dns/a", "1")]);
    client.remove("/dns/a").unwrap();
    assert_eq!(client.poll_transmit(0, 71), []);
    assert_eq!(client.poll_transmit(0, 72), message(0x04, "/dns/a"));
}

#[test]
fn captures_4_answers_to_our_writes_cannot_fill_the_ring() {
    let mut client = synchronised(&[]);
    for number in 0..100 {
        client.write(&alloc::format!("/dns/{number}"), b"v").unwrap();
    }
    assert_eq!(sent(&mut client).len(), MAX_UNANSWERED * 73);
    feed(&mut client, &message(0x07, "/dns/0"));
    assert_eq!(sent(&mut client).len(), 73, "one answer, one more command");
}

#[test]
fn captures_6_reconnect_replaces_the_store_by_the_dump() {
    let mut client = synchronised(&[
        ("/qubes-debug-mode", "0"),
        ("/gone", "1"),
        ("/qubes-firewall-handled/10.137.0.11", "1"),
    ]);
    client.disconnected();
    assert_eq!(client.store().len(), 3, "the old database rules until the new one is complete");
    client.connected();
    assert_eq!(sent(&mut client).len(), 72);
    feed(&mut client, &dump_entry("/qubes-firewall-handled/10.137.0.11", "1"));
    feed(&mut client, &dump_entry("/qubes-debug-mode", "1"));
    assert_eq!(client.store().get_str("/qubes-debug-mode"), Some("0"));
    assert_eq!(feed(&mut client, &END_OF_DUMP), [Event::Dumped]);
    assert_eq!(
        entries(&client),
        [
            ("/qubes-debug-mode".into(), "1".into()),
            ("/qubes-firewall-handled/10.137.0.11".into(), "1".into())
        ]
    );
}

#[test]
fn captures_6_new_dom0_daemon_with_an_empty_database() {
    let mut client = synchronised(&[("/qubes-firewall/10.137.0.11", ""), ("/name", "fw")]);
    client.disconnected();
    client.connected();
    assert_eq!(sent(&mut client).len(), 72);
    assert_eq!(feed(&mut client, &END_OF_DUMP), [Event::Dumped]);
    assert!(client.store().is_empty(), "upstream keeps the old keys, we do not");
    assert_eq!(client.store().trees().count(), 0);
}

#[test]
fn captures_6_buffered_bytes_can_be_processed_after_the_peer_closed() {
    let mut client = synchronised(&[]);
    let bytes = message(0x01, "/qubes-firewall/10.137.0.11");
    assert_eq!(client.handle_bytes(&bytes), 72);
    let tree = Tree::new("10.137.0.11").unwrap();
    assert_eq!(client.poll_event(), Some(Event::Committed { tree, complete: Ok(()) }));
    client.disconnected();
    assert_eq!(client.poll_event(), None);
}

#[test]
fn captures_6_commands_do_not_survive_the_connection() {
    let mut client = synchronised(&[("/dns/a", "1")]);
    client.write("/dns/b", b"2").unwrap();
    client.remove("/dns/a").unwrap();
    client.disconnected();
    assert_eq!(client.write("/dns/c", b"3"), Err(CommandError::NotSynchronised));
    client.connected();
    assert_eq!(sent(&mut client).len(), 72, "the request alone");
    feed(&mut client, &END_OF_DUMP);
    assert_eq!(sent(&mut client), [], "a removal of what the new daemon may not hold is not sent");
}

#[test]
fn captures_6_half_a_message_of_the_old_connection_is_forgotten() {
    let mut client = synchronised(&[]);
    feed(&mut client, &message(0x01, "/a")[..50]);
    client.disconnected();
    client.connected();
    sent(&mut client);
    assert_eq!(feed(&mut client, &END_OF_DUMP), [Event::Dumped]);
}
