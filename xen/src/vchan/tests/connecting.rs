//! Announcements: absent, empty, stale, replaced, malformed; both machines' requests.

use super::{FakeServer, OWN, PEER, TOKEN, announce, answer_reads, connect_to, link, served};
use crate::abi::{EventPort, GrantRef};
use crate::fake;
use crate::grant::{Access, GrantError, GrantStatus};
use crate::vchan::{
    ConnectError, Connector, LinkState, Outcome, Server, ServerError, ServerOutcome, Sizes,
};
use crate::xenstore::{Request, StoreError, TransactionEnd, TxId};
use alloc::string::ToString;

const EVENT_CHANNEL: &str = "/local/domain/3/data/vchan/23/513/event-channel";

/// A connector whose watch is set and whose first look found nothing.
fn waiting() -> Connector {
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    let watch = Request::Watch { path: EVENT_CHANNEL, token: TOKEN };
    assert_eq!(connector.next_request(), Some(watch));
    assert_eq!(connector.next_request(), None, "one request at a time");
    assert!(connector.on_reply(Ok(b"OK\0")).is_none());
    assert_eq!(connector.next_request(), Some(Request::Read { path: EVENT_CHANNEL }));
    assert!(connector.on_reply(Err(StoreError::NotFound)).is_none());
    assert_eq!(connector.next_request(), None);
    connector
}

fn unusable(outcome: Option<Outcome>) -> ConnectError {
    match outcome {
        Some(Outcome::Unusable(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn absent_node_is_waited_for() {
    let server = FakeServer::new(12, 12);
    let mut connector = waiting();
    connector.on_watch();
    let (ring, port) = (server.ring_ref.0.to_string(), server.port.0.to_string());
    assert!(link(answer_reads(&mut connector, &ring, &port).unwrap()).is_open());
}

#[test]
fn empty_or_unreadable_node_is_waited_for() {
    let mut connector = waiting();
    for reply in [Ok(b"".as_slice()), Err(StoreError::Denied)] {
        connector.on_watch();
        assert!(connector.next_request().is_some());
        assert!(connector.on_reply(reply).is_none());
        assert_eq!(connector.next_request(), None);
    }
    connector.on_watch();
    assert!(answer_reads(&mut connector, "", "7").is_none());
    assert_eq!(connector.next_request(), None);
}

#[test]
fn announcement_that_is_not_numeric_is_reported() {
    for (ring, port) in
        [("8", "x"), ("8", "0"), ("0", "26"), ("-1", "26"), ("4294967296", "26"), ("8", " 26")]
    {
        let mut connector = waiting();
        connector.on_watch();
        let outcome = answer_reads(&mut connector, ring, port);
        assert_eq!(unusable(outcome), ConnectError::NotNumeric);
        assert_eq!(connector.next_request(), None, "waits for the next change");
    }
}

#[test]
fn captures_6_stale_announcement_is_waited_out() {
    // The daemon died while it waited: nodes stay, grants are revoked, the port is dead.
    fake::peer(PEER);
    let mut connector = waiting();
    connector.on_watch();
    let outcome = answer_reads(&mut connector, "20", "26");
    let refused = GrantError::Refused(GrantStatus::GENERAL_ERROR);
    assert_eq!(unusable(outcome), ConnectError::Map(refused));
    assert_eq!(connector.next_request(), None);

    let server = FakeServer::new(12, 12);
    connector.on_watch();
    let (ring, port) = (server.ring_ref.0.to_string(), server.port.0.to_string());
    assert!(link(answer_reads(&mut connector, &ring, &port).unwrap()).is_open());
}

#[test]
fn captures_6_stale_event_channel_is_waited_out_and_nothing_was_written() {
    let server = FakeServer::new(12, 12);
    let before = server.header();
    let mut connector = waiting();
    connector.on_watch();
    let outcome = answer_reads(&mut connector, &server.ring_ref.0.to_string(), "99");
    assert!(matches!(unusable(outcome), ConnectError::Bind(_)));
    assert_eq!(server.header(), before);
    assert!(!server.peer.is_in_use(server.ring_ref));
    fake::assert_no_leaks();
}

#[test]
fn captures_6_grant_numbers_that_now_stand_for_another_page() {
    let server = FakeServer::new(12, 12);
    server.ring.clear();
    let mut connector = waiting();
    connector.on_watch();
    let outcome =
        answer_reads(&mut connector, &server.ring_ref.0.to_string(), &server.port.0.to_string());
    assert_eq!(unusable(outcome), ConnectError::NotWaiting);
    assert_eq!(server.header(), [0; 24], "not a byte of it was changed");
}

#[test]
fn captures_6_never_connects_twice_to_one_announcement() {
    let server = FakeServer::new(12, 12);
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    let first = link(connect_to(&mut connector, server.ring_ref, server.port));
    connector.on_watch();
    assert_eq!(connector.next_request(), None, "connected: the node does not matter");
    drop(first);
    connector.reconnect();
    let (ring, port) = (server.ring_ref.0.to_string(), server.port.0.to_string());
    let outcome = answer_reads(&mut connector, &ring, &port);
    assert_eq!(unusable(outcome), ConnectError::NotWaiting);
    assert_eq!(server.ring.read_u8(20), 0, "what the first connection left");
}

#[test]
fn captures_6_reconnect_to_a_new_announcement_with_the_same_numbers() {
    let server = FakeServer::new(12, 12);
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    let first = link(connect_to(&mut connector, server.ring_ref, server.port));
    server.ring.write_u8(21, 0);
    assert_eq!(first.state(), LinkState::Closed);
    drop(first);
    server.ring.clear();
    server.write_header(12, 12);
    connector.reconnect();
    let (ring, port) = (server.ring_ref.0.to_string(), server.port.0.to_string());
    assert!(link(answer_reads(&mut connector, &ring, &port).unwrap()).is_open());
}

#[test]
fn node_that_changes_between_the_two_reads_is_read_again() {
    let server = FakeServer::new(12, 12);
    let mut connector = waiting();
    connector.on_watch();
    connector.next_request();
    assert!(connector.on_reply(Ok(b"99")).is_none());
    assert!(connector.next_request().is_some());
    connector.on_watch();
    assert!(connector.on_reply(Ok(b"12")).is_none(), "a mixture of two announcements");
    let (ring, port) = (server.ring_ref.0.to_string(), server.port.0.to_string());
    assert!(link(answer_reads(&mut connector, &ring, &port).unwrap()).is_open());
}

#[test]
fn node_that_changes_during_a_fruitless_read_is_read_again() {
    let mut connector = waiting();
    connector.on_watch();
    connector.next_request();
    connector.on_watch();
    assert!(connector.on_reply(Err(StoreError::NotFound)).is_none());
    assert_eq!(connector.next_request(), Some(Request::Read { path: EVENT_CHANNEL }));
}

#[test]
fn refused_watch_is_reported_and_can_be_tried_again() {
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    connector.next_request();
    let outcome = connector.on_reply(Err(StoreError::Quota));
    assert!(matches!(outcome, Some(Outcome::WatchRefused(StoreError::Quota))));
    assert_eq!(connector.next_request(), None);
    connector.reconnect();
    assert!(matches!(connector.next_request(), Some(Request::Watch { .. })));
}

#[test]
fn stopping_ends_the_watch_in_every_state() {
    let unwatch = || Some(Request::Unwatch { path: EVENT_CHANNEL, token: TOKEN });
    let mut fresh = Connector::new(PEER, OWN, 513, TOKEN);
    fresh.stop();
    assert!(fresh.is_stopped() && fresh.next_request().is_none(), "no watch was set");

    let mut watching = Connector::new(PEER, OWN, 513, TOKEN);
    watching.next_request();
    watching.stop();
    assert_eq!(watching.next_request(), None, "its reply is awaited");
    assert!(watching.on_reply(Ok(b"OK\0")).is_none());
    assert_eq!(watching.next_request(), unwatch());
    assert!(watching.on_reply(Ok(b"OK\0")).is_none());
    assert!(watching.is_stopped());

    let mut refused = Connector::new(PEER, OWN, 513, TOKEN);
    refused.next_request();
    refused.stop();
    assert!(refused.on_reply(Err(StoreError::Quota)).is_none());
    assert!(refused.is_stopped() && refused.next_request().is_none());

    let mut reading = waiting();
    reading.on_watch();
    reading.next_request();
    reading.stop();
    assert!(reading.on_reply(Ok(b"26")).is_none(), "no connection any more");
    assert_eq!(reading.next_request(), unwatch());

    let mut idle = waiting();
    idle.stop();
    assert_eq!(idle.next_request(), unwatch());
    idle.on_watch();
    assert_eq!(idle.next_request(), None);
}

#[test]
fn local_shortage_can_be_retried() {
    let server = FakeServer::new(12, 12);
    server.peer.fail_grant(server.ring_ref, Some(GrantStatus(-13)));
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    let outcome = connect_to(&mut connector, server.ring_ref, server.port);
    assert!(matches!(outcome, Outcome::Unusable(ConnectError::Map(_))));
    server.peer.fail_grant(server.ring_ref, None);
    connector.reconnect();
    let (ring, port) = (server.ring_ref.0.to_string(), server.port.0.to_string());
    assert!(link(answer_reads(&mut connector, &ring, &port).unwrap()).is_open());
}

#[test]
fn data_page_that_cannot_be_mapped_undoes_everything() {
    let server = FakeServer::new(13, 12);
    assert!(server.peer.revoke(server.grants[2]));
    assert!(matches!(server.connect(), Outcome::Unusable(ConnectError::Map(_))));
    assert_eq!(server.ring.read_u8(20), 2);
    fake::assert_no_leaks();
}

#[test]
fn pages_that_the_client_only_reads_are_mapped_read_only() {
    let server = FakeServer::new(12, 12);
    // Granted read-only by a careful server: works, since we map it so.
    let (gref, page) = server.peer.grant_page(Access::ReadOnly);
    server.ring.write_u32(28, gref.0);
    let mut link = server.connected();
    page.copy_in(0, b"abc");
    server.ring.write_u32(12, 3);
    let mut bytes = [0; 3];
    assert_eq!(link.read(&mut bytes), 3);
    assert_eq!(&bytes, b"abc");
}

fn new_server() -> Server {
    fake::peer(PEER);
    Server::new(PEER, OWN, 512, Sizes::QREXEC_CONTROL).unwrap()
}

/// Answers this many requests well.
fn answer(server: &mut Server, count: usize) {
    for _ in 0..count {
        server.next_request().unwrap();
        assert_eq!(server.on_reply(Ok(b"5\0")), None);
    }
}

#[test]
fn conflicting_transaction_is_done_again() {
    let mut server = new_server();
    answer(&mut server, 5);
    let commit = Request::TransactionEnd(TransactionEnd::Commit);
    assert_eq!(server.next_request(), Some((TxId(5), commit)));
    assert_eq!(server.on_reply(Err(StoreError::Again)), None);
    assert!(announce(&mut server).ring_ref > 0);
}

#[test]
fn endless_conflicts_are_given_up() {
    let mut server = new_server();
    let mut refused = None;
    for _ in 0..17 {
        answer(&mut server, 5);
        server.next_request().unwrap();
        refused = server.on_reply(Err(StoreError::Again));
    }
    assert_eq!(refused, Some(ServerOutcome::Refused(StoreError::Again)));
    assert_eq!(server.next_request(), None);
}

#[test]
fn refused_write_aborts_the_transaction() {
    for accepted in 1..5 {
        let mut server = new_server();
        answer(&mut server, accepted);
        server.next_request().unwrap();
        let refused = Some(ServerOutcome::Refused(StoreError::Quota));
        assert_eq!(server.on_reply(Err(StoreError::Quota)), refused);
        let abort = Request::TransactionEnd(TransactionEnd::Abort);
        assert_eq!(server.next_request(), Some((TxId(5), abort)));
        assert_eq!(server.on_reply(Ok(b"OK\0")), None);
        assert_eq!(server.next_request(), None);
        assert!(server.is_removed());
    }
}

#[test]
fn refused_or_unreadable_transaction_is_reported() {
    for reply in [Err(StoreError::Quota), Ok(b"x\0".as_slice())] {
        let mut server = new_server();
        server.next_request().unwrap();
        assert!(matches!(server.on_reply(reply), Some(ServerOutcome::Refused(_))));
        assert_eq!(server.next_request(), None);
    }
}

#[test]
fn withdrawn_server_removes_its_announcement() {
    let mut early = new_server();
    early.withdraw();
    assert!(early.next_request().is_none() && early.is_removed());

    let mut server = new_server();
    announce(&mut server);
    server.withdraw();
    let rm = Request::Rm { path: "data/vchan/3/512" };
    assert_eq!(server.next_request(), Some((TxId::NONE, rm)));
}

#[test]
fn removal_goes_on_when_the_store_knows_better() {
    let (mut server, client) = served();
    server.next_request();
    server.on_reply(Err(StoreError::NotFound));
    server.next_request();
    server.on_reply(Err(StoreError::NotFound));
    assert!(server.is_removed() && server.link().is_open());
    drop(client);
}

#[test]
fn dropped_server_gives_everything_back_once_the_client_lets_go() {
    let (server, client) = served();
    drop(server);
    assert_eq!(client.ring.read_u8(21), 0, "srv_live");
    assert_eq!(client.peer.take_notifications(), [client.port]);
    assert_eq!(crate::grant::quarantined(), 3, "pages in use are not reused");
    drop(client);
    crate::grant::retry_quarantine();
    fake::assert_no_leaks();
}

#[test]
fn server_without_memory_leaves_nothing_behind() {
    fake::reset_with_pages(2);
    fake::peer(PEER);
    let result = Server::new(PEER, OWN, 512, Sizes::QREXEC_CONTROL);
    assert_eq!(result.err(), Some(ServerError::OutOfPages));
    fake::assert_no_leaks();
    let sizes = Sizes { read: 1 << 20, write: 4096 };
    assert_eq!(Server::new(PEER, OWN, 512, sizes).err(), Some(ServerError::TooLarge));
}

#[test]
fn dead_domain_is_unusable() {
    let server = FakeServer::new(12, 12);
    server.peer.die();
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    let outcome = connect_to(&mut connector, GrantRef(8), EventPort(10));
    assert!(matches!(outcome, Outcome::Unusable(ConnectError::Map(_))));
}

#[test]
fn captures_1_row_01_announcement_that_was_there_before_us() {
    let server = FakeServer::new(12, 12);
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    connector.next_request();
    assert!(connector.on_reply(Ok(b"OK\0")).is_none());
    // No watch event is needed for the first look.
    let (ring, port) = (server.ring_ref.0.to_string(), server.port.0.to_string());
    assert!(link(answer_reads(&mut connector, &ring, &port).unwrap()).is_open());
}

#[test]
fn captures_1_row_02_only_the_two_leaves_are_touched() {
    let server = FakeServer::new(12, 12);
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    let replies = ["OK\0".into(), server.port.0.to_string(), server.ring_ref.0.to_string()];
    let mut outcome = None;
    for reply in replies {
        let request = alloc::format!("{:?}", connector.next_request().unwrap());
        assert!(request.contains("/event-channel\"") || request.contains("/ring-ref\""));
        outcome = connector.on_reply(Ok(reply.as_bytes()));
    }
    connector.stop();
    let last = alloc::format!("{:?}", connector.next_request().unwrap());
    assert!(last.starts_with("Unwatch") && last.contains("/event-channel\""));
    assert!(matches!(outcome, Some(Outcome::Connected(_))));
}

#[test]
fn captures_1_row_05_nodes_vanish_after_the_connection_and_that_means_nothing() {
    let server = FakeServer::new(12, 12);
    let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
    let connected = link(connect_to(&mut connector, server.ring_ref, server.port));
    connector.on_watch();
    assert_eq!(connector.next_request(), None);
    assert!(connected.is_open());
    // After the link's end they are looked for, and their absence is waited out.
    drop(connected);
    connector.reconnect();
    assert_eq!(connector.next_request(), Some(Request::Read { path: EVENT_CHANNEL }));
    assert!(connector.on_reply(Err(StoreError::NotFound)).is_none());
    assert_eq!(connector.next_request(), None);
    connector.on_watch();
    assert!(connector.next_request().is_some());
}
