//! When clients' frames are taken: at once, together, or after a rest.

use super::chains::connect;
use super::*;
use crate::fake::chains::{full_chain, super_frame, super_offload};
use crate::netif::GsoKind;

/// A turn in which the loop says how long a frame took.
fn turn_with_rest(rig: &mut Rig, frame_ns: u64) -> usize {
    rig.turn();
    if rig.back.taken() > 0 {
        rig.back.end_turn(fake::now_ns(), Some(frame_ns));
    }
    core::mem::take(&mut rig.frames).len()
}

/// Frames that were taken in a turn after which the loop may sleep.
fn taken_at_once(rig: &mut Rig) -> usize {
    let taken = turn_with_rest(rig, 1000);
    assert_eq!(turn_with_rest(rig, 1000), 0);
    assert!(!rig.back.has_work());
    taken
}

#[test]
fn a_stream_of_one_client_alone_is_taken_in_batches() {
    let mut rig = Rig::new();
    let ((mut a, _), (mut b, _)) = (rig.connect(A), rig.connect(B));
    let send = |guest: &mut Guest, frames: usize| {
        for _ in 0..frames {
            guest.send(&frame(60), TxFlags(0));
        }
    };
    send(&mut b, 1);
    assert_eq!(taken_at_once(&mut rig), 1);
    for frames in [[1; 12].as_slice(), &[40]].concat() {
        send(&mut a, frames);
        assert_eq!(taken_at_once(&mut rig), frames, "not alone for long: no frame waits");
        fake::advance_ns(16 * MS);
        a.responses();
    }
    fake::advance_ns(1000 * MS);
    for frames in [1, 1, 40] {
        send(&mut a, frames);
        assert_eq!(taken_at_once(&mut rig), frames, "a lone frame does not wait");
        fake::advance_ns(MS);
        a.responses();
    }
    // 64 more are worth an event.
    send(&mut a, 63);
    assert_eq!(taken_at_once(&mut rig), 0);
    send(&mut a, 1);
    assert_eq!(taken_at_once(&mut rig), 64);
    a.responses();
    // What does not come in time is looked for, and then each frame has its event again.
    send(&mut a, 20);
    assert_eq!(taken_at_once(&mut rig), 0);
    let due = rig.back.next_deadline().unwrap() - fake::now_ns();
    assert!(due <= 8 * MS, "{due}");
    fake::advance_ns(due);
    assert_eq!(taken_at_once(&mut rig), 20);
    send(&mut a, 1);
    assert_eq!(taken_at_once(&mut rig), 1);
}

#[test]
fn requests_that_come_to_nothing_are_a_burst_as_well_and_stall_nobody() {
    let mut rig = Rig::new();
    let ((mut a, _), (mut b, vif_b)) = (rig.connect(A), rig.connect(B));
    b.post(8);
    for _ in 0..4 {
        rig.back.send(vif_b, Chain::new(Page::alloc().unwrap(), 1500), Offload::NONE).unwrap();
    }
    a.send(&frame(60), TxFlags(0));
    assert_eq!(turn_with_rest(&mut rig, MS / 10), 1, "beside another");
    a.responses();
    for id in 0..20 {
        let (gref, flags) = (GrantRef(600), TxFlags(0));
        a.write_slot(&TxRequest { gref, offset: 0, flags, id, size: 60 }.encode());
    }
    a.push_tx();
    assert_eq!(turn_with_rest(&mut rig, MS / 10), 0);
    assert_eq!(a.responses().len(), 16);
    fake::advance_ns(10 * MS);
    assert_eq!(turn_with_rest(&mut rig, MS / 10), 0);
    assert_eq!(a.responses(), [16, 17, 18, 19].map(|id| TxResponse { id, status: STATUS_ERROR }));
}

#[test]
fn who_floods_rests_while_others_have_work_and_they_do_not() {
    let mut rig = Rig::new();
    let ((mut a, vif_a), (mut b, vif_b)) = (rig.connect(A), rig.connect(B));
    let mut flood = |count| {
        for _ in 0..count {
            a.send(&frame(60), TxFlags(0));
        }
    };
    // Alone, no burst is followed by a rest.
    flood(40);
    assert_eq!(turn_with_rest(&mut rig, MS), 40);
    flood(40);
    assert_eq!(turn_with_rest(&mut rig, MS), 40);
    // What another one receives is work as well.
    b.post(8);
    for _ in 0..8 {
        rig.back.send(vif_b, Chain::new(Page::alloc().unwrap(), 1500), Offload::NONE).unwrap();
    }
    flood(20);
    assert_eq!(turn_with_rest(&mut rig, MS / 4), 20);
    flood(20);
    for _ in 0..3 {
        b.send(&frame(200), TxFlags(0));
    }
    rig.turn();
    let vifs: Vec<VifId> = rig.frames.drain(..).map(|frame| frame.vif).collect();
    assert_eq!(vifs, [vif_b; 3], "nothing is taken from who rests");
    assert!(!rig.back.has_work(), "so the loop can sleep");
    let end = fake::now_ns() + 20 * MS / 4 * 3;
    assert_eq!(rig.back.next_deadline(), Some(end));
    fake::advance_ns(end - fake::now_ns());
    rig.turn();
    assert!(rig.frames.iter().all(|frame| frame.vif == vif_a));
    assert_eq!(rig.frames.len(), 16, "no more at once than a burst");
    rig.frames.clear();
    rig.back.end_turn(fake::now_ns(), Some(0));
    assert_eq!(turn_with_rest(&mut rig, 0), 4, "and nothing is lost");
}

/// What a client alone answers to a transfer waits for the next super-frames, or a moment.
#[test]
fn answers_to_a_transfer_are_taken_with_its_next_super_frames() {
    let mut rig = Rig::with(Config { offloads: true, ..Config::for_pages(mem::total_pages()) });
    let (mut a, vif) = connect(&mut rig, A);
    let feed = |rig: &mut Rig| {
        let frame = full_chain(&super_frame(GsoKind::TcpV4, 4000));
        rig.back.send(vif, frame, super_offload(GsoKind::TcpV4)).unwrap();
    };
    a.post(8);
    fake::advance_ns(1000 * MS);
    a.send(&frame(60), TxFlags(0));
    assert_eq!(taken_at_once(&mut rig), 1, "nothing goes to it yet");
    feed(&mut rig);
    a.send(&frame(60), TxFlags(0));
    assert_eq!(turn_with_rest(&mut rig, 1000), 1);
    a.send(&frame(60), TxFlags(0));
    assert_eq!(taken_at_once(&mut rig), 1, "one super-frame is no transfer");
    for _ in 0..3 {
        fake::advance_ns(MS);
        feed(&mut rig);
        a.send(&frame(60), TxFlags(0));
        assert_eq!(turn_with_rest(&mut rig, 1000), 1, "with a super-frame");
        a.send(&frame(60), TxFlags(0));
        assert_eq!(taken_at_once(&mut rig), 0, "an answer that waits");
        fake::advance_ns(MS);
        feed(&mut rig);
        assert_eq!(turn_with_rest(&mut rig, 1000), 1);
        a.responses();
    }
    // No further one comes.
    a.send(&frame(60), TxFlags(0));
    assert_eq!(taken_at_once(&mut rig), 0);
    let due = rig.back.next_deadline().unwrap() - fake::now_ns();
    assert!(due <= 4 * MS, "{due}");
    fake::advance_ns(due);
    assert_eq!(taken_at_once(&mut rig), 1);
    a.send(&frame(60), TxFlags(0));
    assert_eq!(taken_at_once(&mut rig), 1, "over");
}

/// While we are at work nobody needs to call us: the next event is asked for at the end of the turn, after another look.
#[test]
fn no_event_is_asked_for_in_the_middle_of_a_turn() {
    let mut rig = Rig::new();
    let (mut a, _) = rig.connect(A);
    let now = fake::now_ns();
    a.send(&frame(60), TxFlags(0));
    let mut events = 0;
    event::take_pending(|port| events += usize::from(rig.back.on_event(port)));
    rig.back.receive(rig.budget, now);
    a.send(&frame(60), TxFlags(0));
    event::take_pending(|_| panic!("an event that nobody asked for"));
    rig.back.flush(now);
    assert_eq!((events, rig.back.frames(), rig.back.has_work()), (1, 1, true));
    rig.settle();
    assert!(!rig.back.has_work());
    a.send(&frame(60), TxFlags(0));
    event::take_pending(|port| events += usize::from(rig.back.on_event(port)));
    assert_eq!(events, 2, "asked for before a sleep");
}

#[test]
fn who_sends_small_frames_is_told_with_the_next_frame_for_it_or_after_a_moment() {
    let mut rig = Rig::new();
    let (mut a, vif) = rig.connect(A);
    a.post(8);
    rig.settle();
    let told = |a: &mut Guest| a.peer.take_notifications() == [a.port];
    told(&mut a);
    a.send(&frame(66), TxFlags(0));
    rig.settle();
    assert_eq!((a.responses().len(), told(&mut a)), (1, false), "taken, answered, not told of");
    rig.back.send(vif, Chain::new(Page::alloc().unwrap(), 1500), Offload::NONE).unwrap();
    rig.settle();
    assert!(told(&mut a), "for the frame");
    rig.pass(100);
    assert!(!told(&mut a), "once");

    a.send(&frame(66), TxFlags(0));
    rig.settle();
    let begun = fake::now_ns();
    a.responses();
    assert_eq!(rig.back.next_deadline(), Some(begun + 10 * MS));
    rig.pass(9);
    assert!(!told(&mut a));
    rig.pass(1);
    assert!(told(&mut a), "by itself");
    assert_eq!(rig.back.next_deadline(), None);

    a.send(&frame(1514), TxFlags(0));
    rig.settle();
    assert!(told(&mut a), "it may wait for it");
}
