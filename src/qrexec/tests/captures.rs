//! Sections 7 and 8 of the recordings: the control channel and the data channel of real calls.

use super::{
    Bench, HELLO_2, HELLO_3, HELLO_4, NOW, STDERR_END, STDIN_END, STDOUT_END, cat, ends, execute,
    exit_code, terminated,
};
use crate::qrexec::{Action, Agent};
use alloc::vec::Vec;

/// `user:QUBESRPC qubes.Test+arg dom0` NUL, as recorded.
const TEST_TEXT: [u8; 34] = [
    0x75, 0x73, 0x65, 0x72, 0x3a, 0x51, 0x55, 0x42, 0x45, 0x53, 0x52, 0x50, 0x43, 0x20, 0x71, 0x75,
    0x62, 0x65, 0x73, 0x2e, 0x54, 0x65, 0x73, 0x74, 0x2b, 0x61, 0x72, 0x67, 0x20, 0x64, 0x6f, 0x6d,
    0x30, 0x00,
];
const EXEC_TEST_HEADER: [u8; 8] = [0x00, 0x02, 0x00, 0x00, 0x2a, 0x00, 0x00, 0x00];
const PORT_513: [u8; 8] = [0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x00, 0x00];

#[test]
fn captures_7_hello_before_dom0_connects_and_its_answer_in_two_writes() {
    let mut bench = Bench::ready();
    bench.agent.control_opened();
    assert_eq!(bench.control_sent(), HELLO_3);
    bench.control(&HELLO_3[..8]);
    assert!(!bench.agent.is_ready());
    bench.control(&HELLO_3[8..]);
    assert!(bench.agent.is_ready());
    assert_eq!(bench.agent.poll_action(), None);
}

#[test]
fn captures_7_version_3_and_no_other_is_announced() {
    let mut agent = Agent::<()>::new();
    for _ in 0..2 {
        agent.control_opened();
        assert_eq!(agent.control_transmit(), HELLO_3);
    }
}

#[test]
fn captures_7_version_test_echo_of_other_numbers() {
    for version in [2, 3, 4, 99] {
        let mut bench = Bench::ready();
        bench.agent.control_opened();
        let hello = cat(&[&HELLO_3[..8], &[version, 0, 0, 0]]);
        bench.control(&hello);
        assert!(bench.agent.is_ready());
    }
}

#[test]
fn captures_7_version_1_ends_the_daemon_and_we_serve_anew() {
    let mut bench = Bench::ready();
    // What the agent of version 1 saw: cli_live 0.
    bench.agent.control_closed();
    assert!(!bench.agent.is_ready());
    assert_eq!(bench.control_sent(), b"");
    bench.agent.control_opened();
    assert_eq!(bench.control_sent(), HELLO_3, "hello again on the new server");
}

#[test]
fn captures_7_exec_cmdline_in_two_writes_and_its_termination() {
    assert_eq!(
        execute(0, 0, [1, 2], b"user:QUBESRPC qubes.Test+arg dom0"),
        cat(&[&EXEC_TEST_HEADER, &PORT_513, &TEST_TEXT])
    );
    let mut bench = Bench::ready();
    bench.control(&EXEC_TEST_HEADER);
    assert_eq!(bench.agent.poll_action(), None);
    bench.control(&cat(&[&PORT_513, &TEST_TEXT]));
    let call = bench.opened(0, 513);
    bench.agent.data_closed(call);
    assert_eq!(
        bench.control_sent(),
        [0x11, 0x02, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0x01, 0x02, 0, 0]
    );
    // The port is given out again.
    bench.control(&cat(&[&EXEC_TEST_HEADER, &PORT_513, &TEST_TEXT]));
    assert_ne!(bench.opened(0, 513), call, "but is another call");
}

#[test]
fn captures_7_just_exec_with_its_body_in_three_writes() {
    let mut bench = Bench::ready();
    bench.control(&[0x01, 0x02, 0x00, 0x00, 0x16, 0x00, 0x00, 0x00]);
    bench.control(&PORT_513);
    bench.control(&[0x75, 0x73, 0x65, 0x72]);
    assert_eq!(bench.agent.poll_action(), None);
    bench.control(&[0x3a, 0x74, 0x6f, 0x75, 0x63, 0x68, 0x20, 0x2f, 0x78, 0x00]);
    let call = bench.opened(0, 513);
    bench.agent.data_opened(NOW, call);
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
    assert_eq!(bench.data_sent(call), cat(&[&HELLO_3, &exit_code(127)]));
}

#[test]
fn captures_7_faults_only_known_messages_of_known_length_are_sent() {
    // dom0's daemon exits on type 0x999 and on a termination of 4 bytes: whatever is asked for, what we write to the
    // control channel is one hello and then terminations of 8 bytes. Ports that are not in use do no harm.
    let mut bench = Bench::ready();
    for port in 1..=255 {
        bench.control(&execute(0, 0, [port, 2], b"user:date"));
        while let Some(action) = bench.agent.poll_action() {
            if let Action::OpenData { call, .. } = action {
                bench.agent.data_closed(call);
            }
        }
    }
    let sent = bench.control_sent();
    assert_eq!(sent.len(), 255 * 16);
    for (port, message) in (1..=255).zip(sent.chunks(16)) {
        assert_eq!(message, terminated(0, [port, 2]));
    }
}

#[test]
fn captures_7_faults_header_of_4239_bytes_without_body() {
    let mut bench = Bench::ready();
    bench.control(&[0x00, 0x02, 0x00, 0x00, 0x8f, 0x10, 0x00, 0x00]);
    assert_eq!(bench.agent.poll_action(), None);
    bench.agent.control_closed();
    bench.agent.control_opened();
    bench.control(&HELLO_3);
    assert!(bench.agent.is_ready(), "the half message is forgotten");
    assert_eq!(bench.agent.poll_action(), None);
}

#[test]
fn captures_7_faults_no_call_is_ended_by_a_termination_alone() {
    // The caller would wait for 10 seconds: a refused service gets its data channel.
    let mut bench = Bench::ready();
    bench.control(&execute(0, 0, [1, 2], b"user:QUBESRPC no.Such dom0"));
    let call = bench.opened(0, 513);
    assert_eq!(bench.control_sent(), b"");
    bench.agent.data_opened(NOW, call);
    bench.data(call, &HELLO_4);
    let sent = bench.data_sent(call);
    assert_eq!(sent[sent.len() - 12..], exit_code(127));
    bench.assert_closed(call, 0, [1, 2]);
}

#[test]
fn captures_7_faults_agent_restarted_calls_of_before_are_not_reported_to_the_new_daemon() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC qubes.Test dom0"));
    bench.agent.control_closed();
    bench.agent.control_opened();
    bench.control_sent();
    bench.control(&HELLO_3);
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
    assert!(bench.data_sent(call).ends_with(&exit_code(7)), "the call goes on");
    assert_eq!(bench.agent.poll_action(), Some(Action::CloseData { call }));
    assert_eq!(bench.control_sent(), b"", "its port may belong to another call by now");
}

/// The data channel of a call of `qubes.Test`.
fn test_call() -> (Bench, crate::qrexec::CallId) {
    let mut bench = Bench::ready();
    let call = bench.call(&cat(&[&EXEC_TEST_HEADER, &PORT_513, &TEST_TEXT]));
    (bench, call)
}

#[test]
fn captures_8_exec_cmdline_sequence() {
    let (mut bench, call) = test_call();
    bench.data(call, &[0x00, 0x03, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00]);
    assert_eq!(
        bench.data_sent(call),
        [0x00, 0x03, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00]
    );
    bench.data(
        call,
        &[0x90, 0x01, 0x00, 0x00, 0x06, 0x00, 0x00, 0x00, 0x69, 0x6e, 0x20, 0x70, 0x75, 0x74],
    );
    assert_eq!(bench.data_sent(call), b"", "the service waits for the end");
    bench.data(call, &[0x90, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00]);
    assert_eq!(bench.services.input, b"in put");
    assert_eq!(
        bench.data_sent(call),
        cat(&[
            &[0x91, 0x01, 0x00, 0x00, 0x06, 0x00, 0x00, 0x00, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x0a],
            &[0x92, 0x01, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x77, 0x61, 0x72, 0x6e, 0x0a],
            // The recorded agent ended standard output first; the order of the ends is free.
            &[0x92, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00],
            &[0x91, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00],
            &[0x93, 0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00],
        ])
    );
    // Closed right after the last write.
    bench.assert_closed(call, 0, [0x01, 0x02]);
}

#[test]
fn captures_8_hello_may_come_before_or_after_ours() {
    for ours_first in [true, false] {
        let (mut bench, call) = test_call();
        let mut sent = Vec::new();
        if ours_first {
            sent.extend(bench.data_sent(call));
        }
        bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
        sent.extend(bench.data_sent(call));
        assert!(sent.starts_with(&HELLO_3) && sent.ends_with(&exit_code(7)));
    }
}

#[test]
fn captures_8_when_dom0_closes_first_nothing_is_left() {
    let (mut bench, call) = test_call();
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
    let part = bench.agent.data_transmit(call, &mut bench.services).len();
    assert!(part > 0);
    bench.agent.data_closed(call);
    assert_eq!(bench.agent.channels(), 0);
    assert_eq!(bench.control_sent(), terminated(0, [1, 2]));
    assert_eq!(bench.agent.data_transmit(call, &mut bench.services), b"");
}

#[test]
fn captures_8_just_exec_of_a_service_has_no_streams() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(1, 0, [1, 2], b"user:QUBESRPC qubes.WaitForSession dom0"));
    bench.data(call, &cat(&[&HELLO_4, &[0x90, 0x01, 0, 0, 0, 0, 0, 0]]));
    assert_eq!(
        bench.data_sent(call),
        cat(&[&HELLO_3, &[0x93, 0x01, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]])
    );
    bench.assert_closed(call, 0, [1, 2]);
}

/// Input in messages of these sizes.
fn stdin_chunks(version: [u8; 12], sizes: &[u32]) -> (Bench, crate::qrexec::CallId, usize) {
    let (mut bench, call) = test_call();
    bench.data(call, &version);
    let mut total = 0;
    for &size in sizes {
        bench.data(call, &cat(&[&[0x90, 0x01, 0, 0], &size.to_le_bytes()]));
        let body = alloc::vec![b'i'; size as usize];
        body.chunks(10_000).for_each(|piece| bench.data(call, piece));
        total += body.len();
    }
    bench.data(call, &STDIN_END);
    (bench, call, total)
}

#[test]
fn captures_8_chunks_of_version_3() {
    let (mut bench, call, total) = stdin_chunks(HELLO_4, &[65528, 61448, 65528, 7496]);
    assert_eq!((bench.services.input.len(), total), (200_000, 200_000));
    assert!(bench.data_sent(call).ends_with(&exit_code(7)));
}

#[test]
fn captures_8_chunks_of_version_3_up_to_65536_are_accepted() {
    let (mut bench, call, _) = stdin_chunks(HELLO_4, &[65536]);
    assert!(bench.data_sent(call).ends_with(&exit_code(7)));
}

#[test]
fn captures_8_chunks_of_version_2() {
    let mut sizes = alloc::vec![4096; 48];
    sizes.push(3392);
    let (mut bench, call, total) = stdin_chunks(HELLO_2, &sizes);
    assert_eq!((bench.services.input.len(), total), (200_000, 200_000));
    assert!(bench.data_sent(call).ends_with(&exit_code(7)));
}

#[test]
fn captures_8_our_output_fits_every_version() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC x.Flood dom0"));
    bench.data(call, &HELLO_2);
    bench.agent.data_transmitted(NOW, call, 12);
    let message = bench.agent.data_transmit(call, &mut bench.services);
    assert_eq!(message.len(), 8 + 4096);
    assert_eq!(message[..8], [0x91, 0x01, 0, 0, 0x00, 0x10, 0, 0]);
}

#[test]
fn captures_8_ends_exit_code_while_the_input_is_still_open() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC qubes.WaitForSession dom0"));
    bench.data(call, &HELLO_4);
    assert_eq!(bench.data_sent(call), cat(&[&HELLO_3, &ends(0)]), "at once");
    bench.assert_closed(call, 0, [1, 2]);
    bench.data(call, b"\x90\x01\0\0\x01\0\0\0x");
    assert_eq!(bench.agent.poll_action(), None, "late input of an ended call is nothing");
}

#[test]
fn captures_8_ends_each_stream_is_ended_once() {
    let (mut bench, call) = test_call();
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
    let sent = bench.data_sent(call);
    let count = |end: [u8; 8]| sent.windows(8).filter(|window| *window == end).count();
    assert_eq!((count(STDOUT_END), count(STDERR_END)), (1, 1));
}

#[test]
fn captures_8_ends_output_survives_a_slow_caller() {
    let (mut bench, call) = test_call();
    bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
    let sent = bench.data_sent_in(call, 1);
    assert!(sent.starts_with(&HELLO_3) && sent.ends_with(&ends(7)));
    assert!(sent.windows(6).any(|window| window == b"hello\n"));
    bench.assert_closed(call, 0, [1, 2]);
}

#[test]
fn captures_8_ends_only_known_messages_of_legal_length_are_sent() {
    // The recorded caller gives up on type 0x1ff and on a header of 65537 bytes; an exit code has four.
    for text in ["x.Echo", "qubes.Test", "qubes.WaitForSession", "no.Such"] {
        let mut bench = Bench::ready();
        let text = alloc::format!("user:QUBESRPC {text} dom0");
        let call = bench.call(&execute(0, 0, [1, 2], text.as_bytes()));
        bench.data(call, &cat(&[&HELLO_4, &[0x90, 0x01, 0, 0, 0x10, 0x27, 0, 0], &[1; 10_000]]));
        bench.data(call, &STDIN_END);
        let sent = bench.data_sent(call);
        let mut rest = sent.as_slice();
        let mut kinds = Vec::new();
        while let Some((header, tail)) = rest.split_at_checked(8) {
            let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
            let len = u32::from_le_bytes(header[4..].try_into().unwrap()) as usize;
            match kind {
                0x300 | 0x193 => assert_eq!(len, 4),
                0x191 | 0x192 => assert!(len <= 4096),
                _ => panic!("type {kind:#x}"),
            }
            kinds.push(kind);
            rest = &tail[len..];
        }
        assert_eq!(rest, b"", "whole messages");
        assert_eq!((kinds[0], *kinds.last().unwrap()), (0x300, 0x193));
    }
}

#[test]
fn captures_8_ends_nothing_is_what_a_caller_gets_that_broke_the_protocol() {
    // The caller sees status 255.
    let (mut bench, call) = test_call();
    bench.data_sent(call);
    bench.data(call, &cat(&[&HELLO_4, &[0xff, 0x01, 0, 0, 0, 0, 0, 0]]));
    assert_eq!(bench.data_sent(call), b"");
    bench.assert_closed(call, 0, [1, 2]);
}
