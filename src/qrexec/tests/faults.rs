//! What breaks the protocol, on either channel, and what it costs: that channel.

use super::{Bench, HELLO_2, HELLO_3, HELLO_4, NOW, STDIN_END, cat, execute, exit_code};
use crate::qrexec::{Action, ControlError};

fn assert_reset(bytes: &[u8], reason: ControlError) {
    let mut bench = Bench::ready();
    bench.control(bytes);
    assert_eq!(bench.agent.poll_action(), Some(Action::ResetControl { reason }));
    bench.control(&execute(0, 0, [1, 2], b"user:date"));
    assert_eq!(bench.agent.poll_action(), None, "nothing is read any more");
    assert!(!bench.agent.is_ready());
    bench.agent.control_opened();
    bench.control(&HELLO_3);
    assert!(bench.agent.is_ready());
}

#[test]
fn unknown_types_reset_the_control_channel() {
    for kind in [0u32, 0x190, 0x193, 0x1ff, 0x204, 0x210, 0x211, 0x213, 0x999, u32::MAX] {
        let header = cat(&[&kind.to_le_bytes(), &[0; 4]]);
        assert_reset(&header, ControlError::Type(kind));
    }
}

#[test]
fn impossible_lengths_reset_the_control_channel_without_waiting_for_a_body() {
    for (kind, len) in [
        (0x200u32, 7u32),
        (0x200, 65544),
        (0x201, 0),
        (0x201, u32::MAX),
        (0x202, 4),
        (0x203, 65544),
    ] {
        let header = cat(&[&kind.to_le_bytes(), &len.to_le_bytes()]);
        assert_reset(&header, ControlError::Length { kind, len });
    }
}

#[test]
fn second_hello_resets_the_control_channel() {
    assert_reset(&HELLO_3, ControlError::OutOfOrder(0x300));
}

#[test]
fn order_before_the_hello_resets_the_control_channel() {
    let mut bench = Bench::ready();
    bench.agent.control_opened();
    bench.control(&execute(0, 0, [1, 2], b"user:date"));
    let reason = ControlError::OutOfOrder(0x200);
    assert_eq!(bench.agent.poll_action(), Some(Action::ResetControl { reason }));
}

#[test]
fn bad_hello_resets_the_control_channel() {
    for (hello, reason) in [
        (cat(&[&HELLO_3[..8], &[1, 0, 0, 0]]), ControlError::Version(1)),
        (cat(&[&[0, 3, 0, 0, 5, 0, 0, 0]]), ControlError::Length { kind: 0x300, len: 5 }),
    ] {
        let mut bench = Bench::ready();
        bench.agent.control_opened();
        bench.control(&hello);
        assert_eq!(bench.agent.poll_action(), Some(Action::ResetControl { reason }));
    }
}

#[test]
fn command_longer_than_what_is_kept_ends_with_125_and_the_channel_stays_in_step() {
    let mut bench = Bench::ready();
    let text = [b"u:QUBESRPC qubes.WaitForSession+".as_slice(), &[b'a'; 60_000], b" dom0"].concat();
    let call = bench.call(&execute(0, 0, [1, 2], &text));
    bench.data(call, &HELLO_4);
    assert!(bench.data_sent(call).ends_with(&exit_code(125)));
    bench.control(&execute(0, 0, [3, 2], b"user:QUBESRPC qubes.WaitForSession dom0"));
    bench.agent.poll_action();
    bench.opened(0, 515);
}

#[test]
fn command_that_just_fits_is_kept() {
    let mut bench = Bench::ready();
    let argument = [b'a'; 4096 - 32 - 5 - 1];
    let text = [b"u:QUBESRPC qubes.WaitForSession+".as_slice(), &argument, b" dom0"].concat();
    assert_eq!(text.len() + 1, 4096);
    let call = bench.call(&execute(0, 0, [1, 2], &text));
    bench.data(call, &HELLO_4);
    assert!(bench.data_sent(call).ends_with(&exit_code(0)));
}

#[test]
fn order_without_text_ends_with_125() {
    let mut bench = Bench::ready();
    let call = bench.call(&[0, 2, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
    bench.data(call, &HELLO_4);
    assert!(bench.data_sent(call).ends_with(&exit_code(125)));
}

/// The caller's bytes after the connection must end the call without an exit code.
fn assert_bad_peer(bytes: &[u8]) {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC qubes.Test dom0"));
    bench.data(call, bytes);
    assert_eq!(bench.data_sent(call), b"");
    bench.assert_closed(call, 0, [1, 2]);
    assert_eq!(bench.agent.counters().bad_peers, 1);
    assert!(bench.agent.is_ready(), "nothing else is affected");
}

#[test]
fn caller_that_does_not_say_hello_is_closed() {
    assert_bad_peer(&STDIN_END);
    assert_bad_peer(&[0, 3, 0, 0, 0, 0, 0, 0]);
    assert_bad_peer(&[0, 3, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_bad_peer(&cat(&[&HELLO_3[..8], &[1, 0, 0, 0]]));
    assert_bad_peer(&cat(&[&HELLO_3[..8], &[0, 0, 0, 0]]));
}

#[test]
fn caller_that_says_hello_twice_is_closed() {
    assert_bad_peer(&cat(&[&HELLO_4, &HELLO_4]));
}

#[test]
fn unknown_data_types_close_the_channel() {
    for kind in [0x191u16, 0x192, 0x193, 0x1ff, 0x200] {
        assert_bad_peer(&cat(&[&HELLO_4, &kind.to_le_bytes(), &[0; 6]]));
    }
}

#[test]
fn input_message_over_the_limit_of_the_version_is_refused_on_its_header() {
    assert_bad_peer(&cat(&[&HELLO_4, &[0x90, 0x01, 0, 0, 0x01, 0x00, 0x01, 0x00]]));
    assert_bad_peer(&cat(&[&HELLO_2, &[0x90, 0x01, 0, 0, 0x01, 0x10, 0x00, 0x00]]));
}

#[test]
fn input_after_the_end_of_input_is_harmless() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC qubes.SetDateTime dom0"));
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END, b"\x90\x01\0\0\x01\0\0\0x", &STDIN_END]));
    assert!(bench.data_sent(call).ends_with(&exit_code(0)));
}

#[test]
fn date_is_read_to_its_end() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"root:QUBESRPC qubes.SetDateTime dom0"));
    bench.data(call, &cat(&[&HELLO_4, b"\x90\x01\0\0\x1a\0\0\0", b"2026-11-24T02:00:00+00:00\n"]));
    assert_eq!(bench.data_sent(call), HELLO_3);
    bench.data(call, &STDIN_END);
    assert!(bench.data_sent(call).ends_with(&exit_code(0)));
}

#[test]
fn events_of_unknown_calls_are_nothing() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:date"));
    bench.agent.data_closed(call);
    bench.control_sent();
    bench.agent.data_closed(call);
    bench.agent.data_opened(NOW, call);
    bench.data(call, &HELLO_4);
    bench.agent.data_transmitted(NOW, call, 5);
    assert_eq!((bench.control_sent().len(), bench.agent.poll_action()), (0, None));
}

#[test]
fn input_after_its_end_reaches_no_service() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 5, [1, 2], b"u:QUBESRPC x.Flood a"));
    let late = cat(&[&[0x90, 1, 0, 0, 3, 0, 0, 0], b"abc", &STDIN_END]);
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END, &late]));
    assert_eq!((bench.services.input.len(), bench.services.inputs_ended), (0, 1));
}
