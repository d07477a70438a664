//! The one call that we make.

use super::*;
use crate::qrexec::{PEER_TIMEOUT, RequestEnd};

const SERVICE: &str = "qubes.FeaturesRequest";

/// The identifier of our call.
fn ident() -> Vec<u8> {
    cat(&[b"features", &[0; 24]])
}

/// SERVICE_CONNECT of a port of this domain for this call.
fn connect(domain: u8, port: u8, ident: &[u8]) -> Vec<u8> {
    let length = 8 + ident.len() as u8;
    cat(&[&[2, 2, 0, 0, length, 0, 0, 0, domain, 0, 0, 0, port, 2, 0, 0], ident])
}

/// SERVICE_REFUSED.
fn refuse(ident: &[u8]) -> Vec<u8> {
    cat(&[&[3, 2, 0, 0, ident.len() as u8, 0, 0, 0], ident])
}

/// An agent whose call has been sent.
fn asked() -> Bench {
    let mut bench = Bench::ready();
    assert!(bench.agent.request(SERVICE));
    bench.control_sent();
    bench
}

/// One whose data channel is offered.
fn served() -> (Bench, CallId) {
    let mut bench = asked();
    bench.control(&connect(0, 1, &ident()));
    let Some(Action::ServeData { call, port: 513 }) = bench.agent.poll_action() else { panic!() };
    bench.agent.data_opened(NOW, call);
    (bench, call)
}

#[test]
fn it_is_asked_for_once_and_in_the_form_of_version_3() {
    let mut bench = Bench::ready();
    assert!(bench.agent.request(SERVICE));
    let head = [0x12, 2, 0, 0, 118, 0, 0, 0];
    let target = cat(&[b"dom0", &[0; 60]]);
    let sent = bench.control_sent();
    assert_eq!(sent, cat(&[&head, &target, &ident(), SERVICE.as_bytes(), &[0]]));
    assert!(bench.agent.request(SERVICE));
    assert_eq!(bench.control_sent(), b"");
    assert_eq!(bench.agent.next_deadline(), None);
}

#[test]
fn dom0_of_version_2_and_one_that_has_not_come_are_not_asked() {
    let mut bench = Bench { agent: Agent::new(), services: TestServices::default() };
    assert!(!bench.agent.request(SERVICE));
    bench.agent.control_opened();
    bench.control_sent();
    assert!(!bench.agent.request(SERVICE));
    bench.control(&HELLO_2);
    assert!(!bench.agent.request(SERVICE));
    assert_eq!(bench.control_sent(), b"");
}

#[test]
fn a_refusal_is_told_once_and_one_of_another_call_is_nothing() {
    let mut bench = asked();
    bench.control(&refuse(&[b'x'; 32]));
    bench.control(&refuse(b"features"));
    assert_eq!(bench.agent.poll_action(), None);
    bench.control(&refuse(&ident()));
    assert_eq!(bench.agent.poll_action(), Some(Action::RequestEnded(RequestEnd::Refused)));
    bench.control(&refuse(&ident()));
    bench.control(&connect(0, 1, &ident()));
    assert_eq!(bench.agent.poll_action(), None);
    assert_eq!(bench.control_sent(), terminated(0, [1, 2]), "that connection is not wanted");
}

#[test]
fn its_data_channel_has_no_input_and_ends_with_the_exit_code() {
    for (code, end) in [(0, RequestEnd::Ran(0)), (7, RequestEnd::Ran(7))] {
        let (mut bench, call) = served();
        assert_eq!(bench.data_sent_in(call, 3), cat(&[&HELLO_3, &STDIN_END]));
        let output = [0x91, 1, 0, 0, 2, 0, 0, 0, b'o', b'k'];
        // In pieces of one byte.
        for byte in cat(&[&HELLO_4, &output, &ends(code)]) {
            assert_eq!(bench.agent.poll_action(), None);
            bench.data(call, &[byte]);
        }
        assert_eq!(bench.agent.poll_action(), Some(Action::CloseData { call }));
        assert_eq!(bench.agent.poll_action(), Some(Action::RequestEnded(end)));
        assert_eq!(bench.control_sent(), terminated(0, [1, 2]));
        bench.data(call, &HELLO_4);
        bench.agent.data_closed(call);
        assert_eq!((bench.agent.poll_action(), bench.control_sent()), (None, Vec::new()));
    }
}

#[test]
fn a_connection_that_was_not_asked_for_is_ended_at_once() {
    let long = cat(&[&ident(), &[0]]);
    for order in [
        connect(0, 1, &[b'R'; 32]),
        connect(0, 1, b"features"),
        connect(0, 1, &long),
        connect(0, 1, &[]),
    ] {
        let mut bench = asked();
        bench.control(&order);
        assert_eq!(bench.agent.poll_action(), None);
        assert_eq!(bench.control_sent(), terminated(0, [1, 2]));
    }
    // Another domain than dom0 has nothing to do with it.
    let mut bench = asked();
    bench.control(&connect(5, 1, &ident()));
    assert_eq!(
        (bench.agent.poll_action(), bench.control_sent()),
        (None, terminated(5, [1, 2]).to_vec())
    );
    // A second one neither.
    let (mut bench, _) = served();
    bench.control(&connect(0, 2, &ident()));
    assert_eq!(
        (bench.agent.poll_action(), bench.control_sent()),
        (None, terminated(0, [2, 2]).to_vec())
    );
    // Before anything was asked for.
    let mut bench = Bench::ready();
    bench.control(&connect(0, 1, &ident()));
    assert_eq!(
        (bench.agent.poll_action(), bench.control_sent()),
        (None, terminated(0, [1, 2]).to_vec())
    );
}

#[test]
fn who_breaks_the_protocol_there_is_cut_off() {
    let too_long = [0x91, 1, 0, 0, 1, 0, 1, 0];
    for bytes in [
        STDOUT_END.to_vec(),
        cat(&[&HELLO_3, &HELLO_3]),
        cat(&[&HELLO_3, &STDIN_END]),
        cat(&[&HELLO_3, &too_long]),
        cat(&[&HELLO_3, &[0x93, 1, 0, 0, 5, 0, 0, 0]]),
        vec![0, 3, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0],
    ] {
        let (mut bench, call) = served();
        bench.data(call, &bytes);
        assert_eq!(bench.agent.poll_action(), Some(Action::CloseData { call }), "{bytes:?}");
        assert_eq!(bench.agent.poll_action(), Some(Action::RequestEnded(RequestEnd::Lost)));
        assert_eq!(bench.control_sent(), terminated(0, [1, 2]));
    }
}

#[test]
fn who_does_not_come_or_goes_or_says_nothing_ends_it() {
    let (mut bench, call) = served();
    assert_eq!(bench.agent.next_deadline(), Some(NOW.after(PEER_TIMEOUT)));
    bench.agent.on_timer(NOW.after(PEER_TIMEOUT));
    assert_eq!(bench.agent.poll_action(), Some(Action::CloseData { call }));
    assert_eq!(bench.agent.poll_action(), Some(Action::RequestEnded(RequestEnd::Lost)));
    assert_eq!(
        (bench.control_sent(), bench.agent.next_deadline()),
        (terminated(0, [1, 2]).to_vec(), None)
    );

    let (mut bench, call) = served();
    bench.agent.data_closed(call);
    assert_eq!(bench.agent.poll_action(), Some(Action::RequestEnded(RequestEnd::Lost)));
    assert_eq!(
        (bench.agent.poll_action(), bench.control_sent()),
        (None, terminated(0, [1, 2]).to_vec())
    );

    let mut bench = asked();
    bench.agent.control_closed();
    assert_eq!(bench.agent.poll_action(), Some(Action::RequestEnded(RequestEnd::Lost)));
    bench.agent.control_opened();
    bench.control_sent();
    bench.control(&HELLO_3);
    assert!(bench.agent.request(SERVICE), "not again");
    assert_eq!(bench.control_sent(), b"");
}

#[test]
fn the_port_of_a_daemon_that_is_gone_is_not_given_back_to_the_next() {
    let (mut bench, call) = served();
    bench.agent.control_opened();
    bench.control_sent();
    bench.control(&HELLO_3);
    bench.data(call, &cat(&[&HELLO_3, &ends(0)]));
    assert_eq!(bench.agent.poll_action(), Some(Action::CloseData { call }));
    assert_eq!(bench.agent.poll_action(), Some(Action::RequestEnded(RequestEnd::Ran(0))));
    assert_eq!(bench.control_sent(), b"");
}
