//! Our own bounds: each is hit, is reported, and harms nothing else.

use super::{END_OF_DUMP, dump_entry, feed, live_write, message, requesting, sent, synchronised};
use crate::{Client, CommandError, Event, Limits, MAX_COMMANDS, Path, Refusal, Store, Tree};
use alloc::format;

fn limited(entries: usize, bytes: usize) -> Client {
    let mut client = Client::new(Limits { entries, bytes });
    client.connected();
    sent(&mut client);
    feed(&mut client, &END_OF_DUMP);
    client
}

#[test]
fn entry_over_the_number_limit_is_refused_and_the_link_goes_on() {
    let mut client = limited(2, 10_000);
    feed(&mut client, &live_write("/a", "1"));
    feed(&mut client, &live_write("/b", "2"));
    sent(&mut client);
    let events = feed(&mut client, &live_write("/c", "3"));
    assert!(matches!(events[..], [Event::Refused { reason: Refusal::TooManyEntries, .. }]));
    assert_eq!(sent(&mut client), message(0x09, "/c"));
    assert_eq!(feed(&mut client, &live_write("/a", "4")).len(), 1, "replacing is possible");
    assert_eq!(client.counters().refused, 1);
}

#[test]
fn entry_over_the_byte_limit_is_refused_and_the_old_value_does_not_stay() {
    let mut client = limited(10, 10);
    feed(&mut client, &live_write("/a", "12345678"));
    assert_eq!(client.store().bytes(), 10);
    let events = feed(&mut client, &live_write("/a", "123456789"));
    assert!(matches!(events[..], [Event::Refused { reason: Refusal::TooManyBytes, .. }]));
    assert_eq!((client.store().get("/a"), client.store().bytes()), (None, 0));
}

#[test]
fn tree_with_a_refused_rule_is_committed_as_incomplete_until_it_is_written_anew() {
    let tree = Tree::new("10.0.0.1").unwrap();
    let mut client = synchronised(&[]);
    feed(&mut client, &live_write("/qubes-firewall/10.0.0.1/00 00", "action=drop"));
    feed(&mut client, &live_write("/qubes-firewall/10.0.0.1/policy", "accept"));
    let complete = Err(Refusal::Path(crate::PathError::IllegalByte(b' ')));
    let mark = message(0x01, "/qubes-firewall/10.0.0.1");
    assert_eq!(feed(&mut client, &mark), [Event::Committed { tree, complete }]);
    let other = Tree::new("10.0.0.10").unwrap();
    assert_eq!(
        feed(&mut client, &message(0x01, "/qubes-firewall/10.0.0.10")),
        [Event::Committed { tree: other, complete: Ok(()) }]
    );
    feed(&mut client, &message(0x04, "/qubes-firewall/10.0.0.1/"));
    assert_eq!(feed(&mut client, &mark), [Event::Committed { tree, complete: Ok(()) }]);
}

#[test]
fn refused_rule_in_the_dump_makes_its_tree_incomplete() {
    let mut client = Client::new(Limits { entries: 2, bytes: 10_000 });
    client.connected();
    sent(&mut client);
    feed(&mut client, &dump_entry("/qubes-firewall/10.0.0.2/policy", "accept"));
    feed(&mut client, &dump_entry("/qubes-firewall/10.0.0.1/policy", "accept"));
    let events = feed(&mut client, &dump_entry("/qubes-firewall/10.0.0.1/0000", "action=drop"));
    assert!(matches!(events[..], [Event::Refused { .. }]));
    let committed = |ip, complete| Event::Committed { tree: Tree::new(ip).unwrap(), complete };
    assert_eq!(
        feed(&mut client, &END_OF_DUMP),
        [
            Event::Dumped,
            committed("10.0.0.1", Err(Refusal::TooManyEntries)),
            committed("10.0.0.2", Ok(()))
        ]
    );
}

#[test]
fn too_many_incomplete_trees_make_all_trees_incomplete() {
    let mut client = limited(0, 0);
    for number in 0..65 {
        feed(&mut client, &live_write(&format!("/qubes-firewall/10.0.0.{number}/policy"), "drop"));
        sent(&mut client);
    }
    let unrelated = Tree::new("10.9.9.9").unwrap();
    assert_eq!(client.store().tree_is_complete(&unrelated), Err(Refusal::TooManyIncompleteTrees));
    assert_eq!(
        client.store().tree_is_complete(&Tree::new("10.0.0.3").unwrap()),
        Err(Refusal::TooManyEntries)
    );
}

#[test]
fn queue_of_commands_is_bounded_by_number() {
    let mut client = synchronised(&[]);
    for number in 0..MAX_COMMANDS {
        client.write(&format!("/dns/{number}"), b"").unwrap();
    }
    assert_eq!(client.write("/dns/x", b""), Err(CommandError::QueueFull));
    sent(&mut client);
    assert_eq!(client.write("/dns/x", b""), Ok(()));
}

#[test]
fn queue_of_commands_is_bounded_by_bytes() {
    let mut client = synchronised(&[]);
    let value = [b'x'; 3071];
    let taken = (0..100).take_while(|n| client.write(&format!("/dns/{n}"), &value).is_ok()).count();
    assert_eq!(taken, 128 * 1024 / 3143);
}

#[test]
fn write_that_does_not_fit_the_store_is_refused_before_it_is_sent() {
    let mut client = limited(1, 100);
    client.write("/a", b"1").unwrap();
    sent(&mut client);
    assert_eq!(client.write("/b", b"1"), Err(CommandError::StoreFull(Refusal::TooManyEntries)));
    assert_eq!(sent(&mut client), []);
}

#[test]
fn write_that_no_longer_fits_when_its_turn_comes_is_dropped() {
    let mut client = limited(1, 100);
    client.write("/a", b"1").unwrap();
    feed(&mut client, &live_write("/b", "1"));
    assert_eq!(sent(&mut client), message(0x07, "/b"));
    assert_eq!(client.counters().commands_dropped, 1);
}

#[test]
fn rules_are_not_ours_to_write() {
    let mut client = synchronised(&[]);
    for path in ["/qubes-firewall/10.0.0.1", "/qubes-firewall/10.0.0.1/0000"] {
        assert_eq!(client.write(path, b""), Err(CommandError::NotOurs));
    }
}

#[test]
fn input_waits_while_answers_have_no_room() {
    let mut client = synchronised(&[]);
    let command = live_write("/a", "");
    let mut answered = 0;
    loop {
        assert_eq!(client.handle_bytes(&command), 72);
        if client.poll_event().is_none() {
            break;
        }
        answered += 1;
    }
    assert_eq!(answered, 8192 / 72);
    assert_eq!(sent(&mut client).len(), answered * 72);
    assert!(client.poll_event().is_some(), "goes on where it stopped");
}

#[test]
fn input_takes_no_more_than_its_room() {
    let mut client = requesting();
    let many = [0x0b; 20_000];
    assert_eq!(client.handle_bytes(&many), 8192);
    assert_eq!((client.handle_bytes(&many), client.input_room()), (0, 0));
}

#[test]
fn trees_are_found_by_mark_or_by_entry_each_once() {
    let mut store = Store::new(Limits::default());
    for key in [
        "/qubes-firewall/10.0.0.1",
        "/qubes-firewall/10.0.0.1.x/policy",
        "/qubes-firewall/10.0.0.1.x/0000",
        "/qubes-firewall/10.0.0.1/0000",
        "/qubes-firewall/10.0.0.1/policy",
        "/qubes-firewall/fd09:24ef:4179::a89:9/0000",
        "/qubes-firewall/only-mark",
        "/qubes-firewall-handled/10.0.0.7",
    ] {
        store.insert(Path::entry(key).unwrap(), b"").unwrap();
    }
    let mut names: alloc::vec::Vec<_> =
        store.trees().map(|tree| alloc::string::String::from(tree.ip_text())).collect();
    names.sort();
    assert_eq!(names, ["10.0.0.1", "10.0.0.1.x", "fd09:24ef:4179::a89:9", "only-mark"]);
    let tree = Tree::new("10.0.0.1").unwrap();
    let keys: alloc::vec::Vec<_> = store.tree_entries(&tree).map(|(key, _)| key).collect();
    assert_eq!(keys, ["0000", "policy"]);
}

#[test]
fn longest_tree_name_has_no_entries() {
    let name = "a".repeat(47);
    let tree = Tree::new(&name).unwrap();
    assert_eq!(tree.mark().as_str().len(), 63);
    let mut store = Store::new(Limits::default());
    store.insert(*tree.mark(), b"").unwrap();
    assert_eq!(store.tree_entries(&tree).count(), 0);
    assert_eq!(store.trees().count(), 1);
    assert!(Tree::new(&"a".repeat(48)).is_err());
    assert!(Tree::new("").is_err());
    assert!(Tree::new("10.0.0.1/x").is_err());
}

#[test]
fn write_with_a_value_to_the_mark_is_no_commit() {
    let mut client = synchronised(&[]);
    let path = Path::entry("/qubes-firewall/10.0.0.1").unwrap();
    assert_eq!(feed(&mut client, &live_write(path.as_str(), "x")), [Event::Changed { path }]);
    assert_eq!(
        feed(&mut client, &message(0x04, path.as_str())),
        [Event::Removed { path }],
        "nor is its removal"
    );
}

#[test]
fn limits_follow_the_memory() {
    let small = Limits::for_memory(32 << 20);
    assert_eq!((small.entries, small.bytes), (4096, 393_216));
    assert_eq!(Limits::default(), small);
    assert_eq!(Limits::for_memory(u64::MAX).entries, 65536);
    assert_eq!(Limits::for_memory(0), Limits { entries: 0, bytes: 0 });
}
