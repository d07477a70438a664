//! A backend that misses events, or that will never take one again.

use super::*;

/// Whether the backend's port was raised since the last call: a pending one is raised once.
fn told(backend: &NetVm) -> usize {
    backend.peer.take_notifications().len()
}

fn silences(rig: &Rig) -> usize {
    rig.events.iter().filter(|event| matches!(event, Event::Silent { .. })).count()
}

/// A connection with one request that the backend was told of, once.
fn with_a_request() -> (Rig, NetVm) {
    let mut rig = Rig::new();
    let backend = rig.connect(NETVM, 0);
    told(&backend);
    rig.send(60, Offload::NONE).unwrap();
    rig.settle();
    assert_eq!(told(&backend), 1);
    (rig, backend)
}

#[test]
fn an_event_that_the_backend_missed_is_sent_again() {
    let (mut rig, mut backend) = with_a_request();
    rig.pass(240);
    assert_eq!(told(&backend), 0, "it has a quarter of a second");
    rig.pass(20);
    assert_eq!((told(&backend), silences(&rig), rig.front.counters().repeated_events), (1, 1, 1));
    assert_eq!(backend.sent().len(), 1);
    rig.pass(10_000);
    assert_eq!((told(&backend), rig.front.counters().repeated_events), (0, 1), "heard");
    assert!(rig.front.is_up());
    // The next one is told of once, as ever.
    rig.send(60, Offload::NONE).unwrap();
    rig.settle();
    assert_eq!(told(&backend), 1);
}

#[test]
fn a_deaf_backend_gets_a_new_connection() {
    let (mut rig, backend) = with_a_request();
    rig.pass(4_900);
    assert!(rig.front.is_up() && rig.front.counters().repeated_events >= 15);
    // More requests do not begin the wait anew.
    rig.send(60, Offload::NONE).unwrap();
    rig.pass(200);
    assert_eq!((rig.last_down(), silences(&rig)), (Some(DownReason::Deaf), 1));
    assert_eq!(rig.front.totals().violations, 0, "that is no breach of the protocol");
    assert_eq!(rig.state(0).as_deref(), Some("6"));
    let directory = backend.directory.clone();
    drop(backend);
    rig.set_back(&directory, "state", "6");
    assert_eq!(rig.state(0).as_deref(), Some("1"), "starts again");
    let mut backend = rig.join(NETVM, 0);
    rig.send(60, Offload::NONE).unwrap();
    rig.settle();
    assert_eq!(backend.sent().len(), 1);
    rig.pass(1000);
    assert_eq!(grant::quarantined(), 0);
}

#[test]
fn a_backend_that_keeps_a_page_has_heard() {
    let (mut rig, mut backend) = with_a_request();
    let kept = backend.take_requests();
    rig.pass(60_000);
    assert_eq!((kept.len(), told(&backend), silences(&rig)), (1, 0, 0));
    assert!(rig.front.is_up());
}

#[test]
fn a_backend_that_answers_without_asking_for_events_is_left_alone() {
    let (mut rig, mut backend) = with_a_request();
    for _ in 0..100 {
        rig.send(60, Offload::NONE).unwrap();
        rig.settle();
        // It polls: the index at which it wants an event stays where it was.
        backend.tx.unconsumed(&backend.tx_page).unwrap();
        let slot = backend.tx.take(&backend.tx_page).unwrap();
        let id = u16::from_le_bytes([slot[8], slot[9]]);
        backend.respond(id, 0);
        rig.pass(200);
    }
    assert!(rig.front.is_up());
    assert_eq!((told(&backend), silences(&rig)), (0, 0));
}

#[test]
fn nobody_wakes_up_for_an_idle_uplink() {
    let (mut rig, mut backend) = with_a_request();
    backend.sent();
    rig.pass(1000);
    assert_eq!(rig.front.next_deadline(), None);
}
