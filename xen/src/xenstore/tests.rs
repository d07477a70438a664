use super::*;
use crate::fake::xenstore::Store;
use crate::{fake, toolstack};

fn client() -> (Store, Client) {
    let store = Store::new();
    let (page, channel) = toolstack::xenstore().unwrap();
    (store, Client::new(page, channel))
}

const TOKEN: Token = Token { owner: Owner::Platform, id: 1, generation: 1 };

fn all(store: &mut Store, client: &mut Client) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        client.flush();
        store.serve();
        let before = events.len();
        events.extend(core::iter::from_fn(|| client.poll()));
        if events.len() == before && client.pending() == 0 {
            return events;
        }
    }
}

fn ask(
    store: &mut Store,
    client: &mut Client,
    request: Request<'_>,
) -> Result<Vec<u8>, StoreError> {
    let id = client.request(Owner::Platform, request).unwrap();
    let events = all(store, client);
    let mut replies = events.into_iter().filter_map(|event| match event {
        Event::Reply(reply) if reply.id == id => Some(reply.result),
        _ => None,
    });
    let result = replies.next().expect("a reply");
    assert!(replies.next().is_none());
    result
}

#[test]
fn reads_writes_and_errors() {
    let (mut store, mut client) = client();
    store.write("domid", "7");
    store.write("data", "");
    assert_eq!(ask(&mut store, &mut client, Request::Read { path: "domid" }), Ok(b"7".to_vec()));
    let missing = ask(&mut store, &mut client, Request::Read { path: "nothing" });
    assert_eq!(missing, Err(StoreError::NotFound));
    let write = Request::Write { path: "data/x", value: b"1 2" };
    assert_eq!(ask(&mut store, &mut client, write), Ok(b"OK\0".to_vec()));
    assert_eq!(store.read("data/x").as_deref(), Some("1 2"));
    let denied = Request::Write { path: "backend/vif/1", value: b"" };
    assert_eq!(ask(&mut store, &mut client, denied), Err(StoreError::Denied));
    store.write("data/y/z", "");
    let list = ask(&mut store, &mut client, Request::Directory { path: "data" }).unwrap();
    assert_eq!(children(&list).collect::<Vec<_>>(), ["x", "y"]);
    let empty = ask(&mut store, &mut client, Request::Directory { path: "domid" }).unwrap();
    assert_eq!(children(&empty).count(), 0);
    assert!(ask(&mut store, &mut client, Request::Rm { path: "data/x" }).is_ok());
    assert_eq!(store.read("data/x"), None);
    assert_eq!(client.counters().errors, 2);
}

#[test]
fn transactions_carry_their_id_and_report_conflicts() {
    let (mut store, mut client) = client();
    let reply = ask(&mut store, &mut client, Request::TransactionStart).unwrap();
    let tx = TxId::parse(&reply).unwrap();
    store.conflict_once();
    let end = Request::TransactionEnd(TransactionEnd::Commit);
    let id = client.request_in(tx, Owner::Netback, end).unwrap();
    let reply = Reply { id, owner: Owner::Netback, result: Err(StoreError::Again) };
    assert_eq!(all(&mut store, &mut client), [Event::Reply(reply)]);
}

#[test]
fn watches_fire_at_once_and_at_every_change_below() {
    let (mut store, mut client) = client();
    client.request(Owner::Platform, Request::Watch { path: "device/vif", token: TOKEN }).unwrap();
    let paths = |events: Vec<Event>| {
        let paths = events.into_iter().filter_map(|event| match event {
            Event::Watch(event) => {
                assert_eq!(event.token, TOKEN);
                Some(event.path)
            }
            Event::Reply(_) => None,
        });
        paths.collect::<Vec<_>>()
    };
    assert_eq!(paths(all(&mut store, &mut client)), ["device/vif"]);
    store.write("device/vif/0/state", "1");
    store.write("device/vifx", "1");
    assert_eq!(paths(all(&mut store, &mut client)), ["device/vif/0/state"]);
    store.remove("device");
    assert_eq!(paths(all(&mut store, &mut client)), ["device/vif"]);
    assert_eq!(client.watches(), 1);
    let unwatch = Request::Unwatch { path: "device/vif", token: TOKEN };
    ask(&mut store, &mut client, unwatch).unwrap();
    store.write("device/vif/0/state", "1");
    assert!(all(&mut store, &mut client).is_empty());
    assert_eq!((client.watches(), store.watches()), (0, 0));
}

#[test]
fn messages_longer_than_the_ring_cross_in_pieces() {
    let (mut store, mut client) = client();
    store.write("data", "");
    let long: Vec<u8> = (0..4000u32).map(|number| b'a' + (number % 23) as u8).collect();
    ask(&mut store, &mut client, Request::Write { path: "data/long", value: &long }).unwrap();
    let read = ask(&mut store, &mut client, Request::Read { path: "data/long" }).unwrap();
    assert_eq!(read, long);
}

#[test]
fn at_most_20_requests_are_with_the_store() {
    let (mut store, mut client) = client();
    for _ in 0..100 {
        client.request(Owner::Platform, Request::Read { path: "a" }).unwrap();
    }
    client.flush();
    assert_eq!(client.counters().requests, 20);
    let events = all(&mut store, &mut client);
    assert_eq!((events.len(), client.counters().requests), (100, 100));
}

#[test]
fn the_queue_is_bounded() {
    let (_store, mut client) = client();
    for _ in 0..MAX_QUEUED {
        client.request(Owner::Platform, Request::Read { path: "a" }).unwrap();
    }
    assert!(!client.has_room(1));
    let more = client.request(Owner::Platform, Request::Read { path: "a" });
    assert_eq!(more, Err(RequestError::Full));
}

#[test]
fn a_flood_of_watch_events_is_taken_one_by_one() {
    let (mut store, mut client) = client();
    client.request(Owner::Platform, Request::Watch { path: "data", token: TOKEN }).unwrap();
    all(&mut store, &mut client);
    for _ in 0..1000 {
        store.fire("data/x");
    }
    let mut seen = 0;
    for _ in 0..10 {
        // A budget of 20 per turn; the rest waits at the store, not here.
        seen += (0..20).map_while(|_| client.poll()).count();
        assert!(client.has_work(), "the port stays masked until nothing is left");
        store.serve();
    }
    assert_eq!(seen, 200);
    seen += all(&mut store, &mut client).len();
    assert_eq!(seen, 1000);
    assert!(!client.has_work());
}

#[test]
fn stray_replies_and_foreign_tokens_are_dropped() {
    let (_store, mut client) = client();
    let page = fake::store_page();
    let mut message = Header { op: 2, req_id: 77, tx_id: 0, len: 1 }.encode().to_vec();
    message.push(b'x');
    let event = b"path\0their-token\0";
    message.extend(Header { op: 15, req_id: 0, tx_id: 0, len: event.len() as u32 }.encode());
    message.extend(event);
    page.copy_in(1024, &message);
    page.store_release_u32(2060, message.len() as u32);
    assert_eq!(client.poll(), None);
    assert_eq!((client.counters().stray, client.health()), (2, Health::Good));
}

#[test]
fn impossible_indices_and_lengths_end_the_connection() {
    for case in 0..3 {
        fake::reset();
        let (_store, mut client) = client();
        let page = fake::store_page();
        match case {
            0 => page.store_release_u32(2060, 1025),
            1 => page.store_release_u32(2048, 1),
            _ => {
                page.copy_in(1024, &Header { op: 2, req_id: 1, tx_id: 0, len: 4097 }.encode());
                page.store_release_u32(2060, 16);
            }
        }
        client.request(Owner::Platform, Request::Read { path: "a" }).unwrap();
        client.flush();
        assert_eq!(client.poll(), None);
        assert_eq!(client.health(), Health::Broken, "case {case}");
    }
}

#[test]
fn indices_of_an_earlier_kernel_are_taken_over() {
    let page = fake::store_page();
    for at in [2048, 2052, 2056, 2060] {
        page.write_u32(at, u32::MAX - 5);
    }
    let (mut store, mut client) = client();
    store.write("domid", "7");
    assert_eq!(ask(&mut store, &mut client, Request::Read { path: "domid" }), Ok(b"7".to_vec()));
}

#[test]
fn decimal_numbers_are_strict() {
    let good = [("0", 0), ("7", 7), ("4294967295", u32::MAX)];
    for (text, number) in good {
        assert_eq!(decimal_u32(text.as_bytes()), Some(number));
    }
    for bad in ["", "-1", "+1", " 1", "1 ", "01", "1a", "4294967296", "99999999999", "1\0"] {
        assert_eq!(decimal_u32(bad.as_bytes()), None, "{bad:?}");
    }
}

/// A client that has asked for a node, whose answer comes (and is told of) 10 us after `asked`; when it was asked.
fn answer_on_its_way() -> (Client, u64) {
    let (mut store, mut client) = client();
    store.write("domid", "7");
    while client.poll().is_some() {}
    crate::event::take_pending(|_| {});
    client.request(Owner::Platform, Request::Read { path: "domid" }).unwrap();
    client.flush();
    let asked = fake::now_ns();
    fake::at(asked + 10_000, move || {
        store.serve();
    });
    (client, asked)
}

#[test]
fn answers_that_are_awaited_wake_nobody() {
    let (mut client, asked) = answer_on_its_way();
    let until = client.be_patient(asked).unwrap();
    crate::event::wait(Some(until));
    assert_eq!(fake::now_ns(), until);
    client.listen(until);
    assert!(matches!(client.poll(), Some(Event::Reply(_))));
    assert_eq!(client.poll(), None);
    assert_eq!(client.be_patient(until), None, "nothing is due");
}

#[test]
fn others_wake_us_while_answers_are_awaited_and_the_store_is_heard_again() {
    let (mut client, asked) = answer_on_its_way();
    let peer = fake::peer(crate::DomId(9));
    let other = crate::event::Channel::alloc_unbound(peer.domain()).unwrap();
    let remote = peer.bind(other.port());
    fake::at(asked + 5_000, move || peer.notify(remote));
    let until = client.be_patient(asked).unwrap();
    crate::event::wait(Some(until));
    assert_eq!(fake::now_ns(), asked + 5_000);
    client.listen(fake::now_ns());
    crate::event::take_pending(|port| assert_eq!(port, other.port()));
    assert_eq!(client.poll(), None);
    // Without patience the answer wakes us.
    crate::event::wait(Some(until));
    assert_eq!(fake::now_ns(), asked + 10_000);
    assert!(matches!(client.poll(), Some(Event::Reply(_))));
}
