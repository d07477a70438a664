//! Properties: nothing panics, fragmentation does not matter, every order is answered exactly once.

use super::{Bench, HELLO_4, NOW, STDIN_END, TestServices, cat, execute};
use crate::qrexec::{Action, Agent, Command};
use alloc::vec::Vec;
use proptest::collection::vec;
use proptest::prelude::*;

fn order() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        Just(b"user:QUBESRPC qubes.Test dom0".to_vec()),
        Just(b"user:QUBESRPC qubes.WaitForSession+ dom0".to_vec()),
        Just(b"user:QUBESRPC no.Such work".to_vec()),
        Just(b"user:date".to_vec()),
        vec(any::<u8>(), 0..40),
    ];
    (0u8..2, 0u8..3, any::<[u8; 2]>(), text)
        .prop_map(|(kind, domain, port, text)| execute(kind, domain, port, &text))
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let message = prop_oneof![
        8 => order(),
        1 => Just(cat(&[&[3, 2, 0, 0, 0x20, 0, 0, 0], &[b'R'; 32]])),
        1 => Just(cat(&[&[2, 2, 0, 0, 0x28, 0, 0, 0, 5, 0, 0, 0, 3, 2, 0, 0], &[b'R'; 32]])),
        1 => vec(any::<u8>(), 0..60),
    ];
    vec(message, 0..12).prop_map(|messages| messages.concat())
}

/// What comes out of the control channel for this input; data channels are offered and closed at once by the caller.
fn run(chunks: &[&[u8]]) -> (Vec<Action>, Vec<u8>) {
    let mut bench = Bench::ready();
    let (mut actions, mut sent) = (Vec::new(), Vec::new());
    for chunk in chunks {
        bench.control(chunk);
        while let Some(action) = bench.agent.poll_action() {
            actions.push(action);
        }
        sent.extend(bench.control_sent());
    }
    (actions, sent)
}

fn split<'b>(bytes: &'b [u8], cuts: &[usize]) -> Vec<&'b [u8]> {
    let mut rest = bytes;
    let mut chunks = Vec::new();
    for &cut in cuts {
        let (chunk, tail) = rest.split_at(cut.min(rest.len()));
        chunks.push(chunk);
        rest = tail;
    }
    chunks.push(rest);
    chunks
}

proptest! {
    #[test]
    fn arbitrary_control_bytes_never_panic(bytes in vec(any::<u8>(), 0..500), ready: bool) {
        let mut agent = Agent::new();
        let mut services = TestServices::default();
        agent.control_opened();
        if ready {
            let taken = agent.control_bytes(NOW, &HELLO_4, &mut services);
            prop_assert_eq!(taken, 12);
        }
        prop_assert_eq!(agent.control_bytes(NOW, &bytes, &mut services), bytes.len());
    }

    #[test]
    fn arbitrary_data_bytes_never_panic(
        bytes in vec(any::<u8>(), 0..500), greeted: bool, service in 0usize..4,
    ) {
        let mut bench = Bench::ready();
        let text = [b"u:QUBESRPC x.Echo a".as_slice(), b"u:QUBESRPC qubes.Test a", b"u:ls", b""];
        let call = bench.call(&execute(0, 5, [1, 2], text[service]));
        if greeted {
            bench.data(call, &HELLO_4);
        }
        bench.data(call, &bytes);
        bench.data_sent(call);
        bench.data(call, &bytes);
    }

    #[test]
    fn fragmentation_of_the_control_channel_does_not_matter(
        bytes in stream(), cuts in vec(1usize..60, 0..40),
    ) {
        prop_assert_eq!(run(&[&bytes]), run(&split(&bytes, &cuts)));
    }

    #[test]
    fn fragmentation_of_a_data_channel_does_not_matter(
        input in vec(any::<u8>(), 1..3000), cuts in vec(1usize..400, 0..20), most in 1usize..5000,
    ) {
        let length = u32::try_from(input.len()).unwrap().to_le_bytes();
        let bytes = cat(&[&HELLO_4, &[0x90, 1, 0, 0], &length, &input, &STDIN_END]);
        let result = |chunks: &[&[u8]], most| {
            let mut bench = Bench::ready();
            let call = bench.call(&execute(0, 5, [1, 2], b"u:QUBESRPC qubes.Test a"));
            for chunk in chunks {
                bench.data(call, chunk);
            }
            let sent = bench.data_sent_in(call, most);
            (sent, bench.services.input.clone(), bench.services.inputs_ended)
        };
        let whole = result(&[&bytes], usize::MAX);
        prop_assert_eq!(&whole.1, &input);
        prop_assert_eq!(whole.2, 1);
        prop_assert_eq!(whole, result(&split(&bytes, &cuts), most));
    }

    #[test]
    fn every_order_is_terminated_exactly_once(
        orders in vec(order(), 0..30), ends in vec(0u8..4, 0..60),
    ) {
        let mut bench = Bench::ready();
        let mut open = Vec::new();
        let mut ends = ends.into_iter();
        let mut terminated = 0;
        for order in &orders {
            bench.control(order);
            while let Some(action) = bench.agent.poll_action() {
                match action {
                    Action::OpenData { call, .. } => open.push(call),
                    Action::CloseData { call } => open.retain(|c| *c != call),
                    Action::ResetControl { .. } => prop_assert!(false, "orders are well formed"),
                    Action::ServeData { .. } | Action::RequestEnded(_) | Action::End(_) => {
                        prop_assert!(false, "nothing was asked for");
                    }
                }
            }
            if let Some(call) = open.first().copied() {
                match ends.next() {
                    Some(0) => {
                        bench.agent.data_closed(call);
                        open.remove(0);
                    }
                    Some(1) => {
                        bench.agent.data_opened(NOW, call);
                        bench.data(call, &cat(&[&HELLO_4, &STDIN_END]));
                        bench.data_sent(call);
                    }
                    Some(2) => bench.agent.data_opened(NOW, call),
                    _ => {}
                }
            }
            terminated += bench.control_sent().len();
        }
        bench.agent.on_timer(NOW.after(crate::qrexec::OPEN_TIMEOUT));
        terminated += bench.control_sent().len();
        prop_assert_eq!(terminated, orders.len() * 16);
        prop_assert_eq!(bench.agent.channels(), 0);
    }

    #[test]
    fn command_parser_never_panics_and_services_have_names(text in vec(any::<u8>(), 0..60)) {
        if let Ok(Command::Service(call)) = Command::parse(&text) {
            prop_assert!(!call.service.is_empty() && !call.source.is_empty());
        }
    }

    #[test]
    fn command_parser_finds_the_words(
        user in "[a-z]{0,8}", service in "[a-zA-Z.]{1,12}", argument in "[a-zA-Z0-9_.+-]{0,12}",
        source in "[a-z0-9-]{1,9}",
    ) {
        let text = alloc::format!("{user}:QUBESRPC {service}+{argument} {source}\0");
        let Ok(Command::Service(call)) = Command::parse(text.as_bytes()) else {
            return Err(TestCaseError::fail("not a service"));
        };
        prop_assert_eq!(call.user, &user);
        prop_assert_eq!(call.service, &service);
        prop_assert_eq!(call.argument, Some(argument.as_str()));
        prop_assert_eq!(call.source, &source);
    }
}
