//! Bounds and time.

use super::{Bench, HELLO_3, HELLO_4, NOW, STDIN_END, cat, ends, execute, exit_code, terminated};
use crate::qrexec::{
    Action, MAX_CHANNELS, MAX_FOREIGN_CALLS, MAX_SERVED_CALLS, OPEN_TIMEOUT, PEER_TIMEOUT,
};
use crate::time::Instant;
use alloc::vec::Vec;
use core::time::Duration;

const TEST: &[u8] = b"user:QUBESRPC qubes.Test dom0";
const TOO_MANY: &[u8] = b"\x92\x01\0\0\x17\0\0\0too many calls at once\n";

#[test]
fn fifth_call_is_refused_fast_over_its_own_data_channel() {
    let mut bench = Bench::ready();
    for port in 1..=MAX_SERVED_CALLS as u8 {
        bench.call(&execute(0, 0, [port, 2], TEST));
    }
    let fifth = bench.call(&execute(0, 0, [5, 2], TEST));
    bench.data(fifth, &HELLO_4);
    assert_eq!(bench.data_sent(fifth), cat(&[&HELLO_3, TOO_MANY, &ends(126)]));
    bench.assert_closed(fifth, 0, [5, 2]);
    assert_eq!(bench.agent.counters().over_limit, 1);
}

#[test]
fn calls_beyond_all_channels_wait_for_one_and_are_refused_there() {
    let mut bench = Bench::ready();
    let mut calls = Vec::new();
    for port in 1..=MAX_CHANNELS as u8 {
        calls.push(bench.call(&execute(0, 0, [port, 2], TEST)));
    }
    let [first, second] = [1, 2].map(|more| MAX_CHANNELS as u8 + more);
    bench.control(&execute(1, 0, [first, 2], TEST));
    bench.control(&execute(0, 0, [second, 2], TEST));
    assert_eq!((bench.agent.poll_action(), bench.agent.channels()), (None, MAX_CHANNELS));
    // A place of those that are served is none for a refusal.
    let served = calls.remove(0);
    bench.data(served, &cat(&[&HELLO_4, &STDIN_END]));
    assert!(bench.data_sent(served).ends_with(&exit_code(7)));
    bench.assert_closed(served, 0, [1, 2]);
    bench.agent.on_timer(NOW);
    assert_eq!(bench.agent.poll_action(), None);
    for (refused, [port, after]) in calls.into_iter().skip(3).zip([[5, first], [6, second]]) {
        bench.data(refused, &HELLO_4);
        assert!(bench.data_sent(refused).ends_with(&exit_code(126)));
        bench.assert_closed(refused, 0, [port, 2]);
        assert_eq!(bench.agent.next_deadline(), Some(Instant::default()), "its turn is now");
        bench.agent.on_timer(NOW);
        let next = bench.opened(0, 512 + u32::from(after));
        bench.agent.data_opened(NOW, next);
        bench.data(next, &HELLO_4);
        let sent = bench.data_sent(next);
        let expected =
            if after == first { exit_code(126).to_vec() } else { cat(&[TOO_MANY, &ends(126)]) };
        assert_eq!(sent, cat(&[&HELLO_3, &expected]), "as it was ordered, with streams or without");
        bench.assert_closed(next, 0, [after, 2]);
    }
    let refused = (MAX_CHANNELS - MAX_SERVED_CALLS + 2) as u64;
    assert_eq!(bench.agent.counters().over_limit, refused);
}

#[test]
fn refusals_that_nobody_fetches_keep_no_call_out_and_those_that_wait_end_by_time() {
    let mut bench = Bench::ready();
    for port in 1..=200 {
        bench.control(&execute(0, 5, [port, 2], TEST));
    }
    assert_eq!(bench.agent.channels(), MAX_FOREIGN_CALLS + MAX_CHANNELS - MAX_SERVED_CALLS);
    while bench.agent.poll_action().is_some() {}
    let call = bench.call(&execute(0, 0, [201, 2], TEST));
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
    assert!(bench.data_sent(call).ends_with(&exit_code(7)), "dom0 is served");
    bench.assert_closed(call, 0, [201, 2]);
    bench.agent.on_timer(NOW.after(PEER_TIMEOUT));
    let ended = bench.control_sent().len() / 16;
    assert_eq!(ended, 200 - MAX_FOREIGN_CALLS, "all but those that are served");
    assert_eq!(bench.agent.channels(), MAX_FOREIGN_CALLS);
}

#[test]
fn calls_that_wait_are_bounded_and_go_with_the_control_channel() {
    let mut bench = Bench::ready();
    for _ in 0..MAX_CHANNELS + 1024 {
        bench.control(&execute(0, 0, [1, 2], TEST));
    }
    assert_eq!(bench.control_sent(), b"");
    bench.control(&execute(0, 0, [7, 2], TEST));
    assert_eq!(bench.control_sent(), terminated(0, [7, 2]), "no room: ended at once");
    // Not even the ends of all of them at once are more than there is room for.
    bench.agent.on_timer(NOW.after(PEER_TIMEOUT));
    assert_eq!(bench.control_sent().len() / 16, 513);
    bench.agent.control_closed();
    bench.agent.control_opened();
    assert_eq!(bench.control_sent(), HELLO_3);
    bench.agent.on_timer(NOW.after(PEER_TIMEOUT));
    assert_eq!(bench.control_sent(), b"");
}

#[test]
fn a_service_that_wants_another_turn_gets_it_and_ends() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC x.Later dom0"));
    bench.data(call, &HELLO_4);
    for _ in 0..3 {
        let _ = bench.data_sent(call);
        assert!(bench.agent.wants_turn());
    }
    assert!(bench.data_sent(call).ends_with(&exit_code(0)));
    assert!(!bench.agent.wants_turn());
    bench.assert_closed(call, 0, [1, 2]);
}

#[test]
fn other_domains_cannot_keep_dom0_out() {
    let mut bench = Bench::ready();
    for port in 1..=6 {
        let call = bench.call(&execute(0, 5, [port, 2], b"user:QUBESRPC qubes.Test work"));
        bench.data(call, &HELLO_4);
        let sent = bench.data_sent(call);
        if usize::from(port) <= MAX_FOREIGN_CALLS {
            assert_eq!(sent, HELLO_3, "served: waits for its input");
        } else {
            assert!(sent.ends_with(&exit_code(126)));
            bench.assert_closed(call, 5, [port, 2]);
        }
    }
    let call = bench.call(&execute(0, 0, [50, 2], TEST));
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
    assert!(bench.data_sent(call).ends_with(&exit_code(7)));
}

#[test]
fn place_is_free_again_after_a_call() {
    let mut bench = Bench::ready();
    for round in 0..100 {
        let call = bench.call(&execute(0, 0, [1, 2], TEST));
        bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
        assert!(bench.data_sent(call).ends_with(&exit_code(7)), "round {round}");
        bench.assert_closed(call, 0, [1, 2]);
    }
    assert_eq!(bench.agent.channels(), 0);
    assert_eq!(bench.agent.counters().calls, 100);
}

#[test]
fn number_that_is_no_domain_is_ended_at_once() {
    for domain in [[0xf0, 0x7f, 0, 0], [0xff, 0xff, 0, 0], [0, 0, 1, 0], [0xff; 4]] {
        let mut bench = Bench::ready();
        let order = cat(&[&[0, 2, 0, 0, 14, 0, 0, 0], &domain, &[1, 2, 0, 0], b"u:abc\0"]);
        bench.control(&order);
        assert_eq!(bench.agent.poll_action(), None);
        let expected = cat(&[&[0x11, 2, 0, 0, 8, 0, 0, 0], &domain, &[1, 2, 0, 0]]);
        assert_eq!(bench.control_sent(), expected);
    }
}

#[test]
fn channel_that_is_never_offered_is_given_up_after_120_seconds() {
    let mut bench = Bench::ready();
    bench.control(&execute(0, 0, [1, 2], TEST));
    let call = bench.opened(0, 513);
    let deadline = NOW.after(Duration::from_secs(120));
    assert_eq!((bench.agent.next_deadline(), OPEN_TIMEOUT), (Some(deadline), deadline.since(NOW)));
    bench.agent.on_timer(NOW.after(Duration::from_secs(119)));
    assert_eq!(bench.agent.poll_action(), None);
    bench.agent.on_timer(deadline);
    bench.assert_closed(call, 0, [1, 2]);
    assert_eq!((bench.agent.next_deadline(), bench.agent.counters().timeouts), (None, 1));
}

#[test]
fn caller_that_is_silent_for_10_seconds_is_closed() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], TEST));
    assert_eq!(bench.agent.next_deadline(), Some(NOW.after(PEER_TIMEOUT)));
    bench.agent.on_timer(NOW.after(Duration::from_secs(10)));
    bench.assert_closed(call, 0, [1, 2]);
}

#[test]
fn every_movement_of_the_caller_gives_it_new_time() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC x.Flood dom0"));
    let second = |n| NOW.after(Duration::from_secs(n));
    bench.agent.data_bytes(second(9), call, &HELLO_4, &mut bench.services);
    assert_eq!(bench.agent.next_deadline(), Some(second(19)));
    let pending = bench.agent.data_transmit(call, &mut bench.services).len();
    bench.agent.data_transmitted(second(18), call, pending);
    assert_eq!(bench.agent.next_deadline(), Some(second(28)));
    bench.agent.data_transmit(call, &mut bench.services);
    bench.agent.data_transmitted(second(27), call, 0);
    bench.agent.on_timer(second(28));
    assert_eq!(bench.agent.poll_action(), Some(Action::CloseData { call }), "it reads nothing");
}

#[test]
fn refusal_waits_only_10_seconds_for_its_channel() {
    let mut bench = Bench::ready();
    for port in 1..=5 {
        bench.control(&execute(0, 0, [port, 2], TEST));
    }
    assert_eq!(bench.agent.next_deadline(), Some(NOW.after(PEER_TIMEOUT)));
    bench.agent.on_timer(NOW.after(PEER_TIMEOUT));
    assert_eq!(bench.agent.channels(), 4);
    assert_eq!(bench.control_sent(), terminated(0, [5, 2]));
}

#[test]
fn output_is_pulled_only_as_far_as_it_is_taken() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC x.Echo dom0"));
    bench.data(call, &HELLO_4);
    assert_eq!(bench.data_sent(call), HELLO_3);
    let input = cat(&[&[0x90, 0x01, 0, 0, 0x10, 0x27, 0, 0], &[b'e'; 10_000]]);
    bench.data(call, &input);
    let first = bench.agent.data_transmit(call, &mut bench.services).to_vec();
    assert_eq!(first.len(), 8 + 4096);
    let again = bench.agent.data_transmit(call, &mut bench.services).to_vec();
    assert_eq!(again, first, "the same bytes until they are taken");
    bench.agent.data_transmitted(NOW, call, 100);
    assert_eq!(bench.agent.data_transmit(call, &mut bench.services), &first[100..]);
    bench.data(call, &STDIN_END);
    let rest = bench.data_sent(call);
    assert_eq!(rest.len(), 8 + 4096 - 100 + 8 + 4096 + 8 + 1808 + 28);
}

#[test]
fn orders_wait_while_answers_are_not_taken() {
    let mut bench = Bench::ready();
    let order = cat(&[&[2, 2, 0, 0, 8, 0, 0, 0], &[5, 0, 0, 0, 1, 2, 0, 0]]);
    let flood = order.repeat(1000);
    let taken = bench.agent.control_bytes(NOW, &flood, &mut bench.services);
    assert!(taken < flood.len());
    let answers = bench.control_sent().len() / 16;
    assert_eq!(answers, 513, "bounded");
    let taken_later = bench.agent.control_bytes(NOW, &flood[taken..], &mut bench.services);
    assert_eq!(taken + taken_later, flood.len());
    assert_eq!(bench.control_sent().len() / 16, 1000 - answers);
}
