//! The byte vectors of the Qubes qrexec protocol (section 9.3 of the vector list) and its parse vectors.

use super::{
    Bench, HELLO_3, HELLO_4, STDERR_END, STDOUT_END, cat, ends, execute, exit_code, terminated,
};
use crate::qrexec::{Agent, Command, CommandError, ServiceCall, Target};

/// EXEC_CMDLINE dom0 port 513 `root:QUBESRPC qubes.SuspendPreAll dom0`.
const SUSPEND_PRE_ALL: [u8; 55] = [
    0x00, 0x02, 0x00, 0x00, 0x2f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x02, 0x00, 0x00,
    0x72, 0x6f, 0x6f, 0x74, 0x3a, 0x51, 0x55, 0x42, 0x45, 0x53, 0x52, 0x50, 0x43, 0x20, 0x71, 0x75,
    0x62, 0x65, 0x73, 0x2e, 0x53, 0x75, 0x73, 0x70, 0x65, 0x6e, 0x64, 0x50, 0x72, 0x65, 0x41, 0x6c,
    0x6c, 0x20, 0x64, 0x6f, 0x6d, 0x30, 0x00,
];

#[test]
fn vector_9_3_hello_v3_is_sent_first() {
    let mut agent = Agent::<()>::new();
    agent.control_opened();
    assert_eq!(agent.control_transmit(), [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0]);
    assert!(!agent.is_ready());
}

#[test]
fn vector_9_3_hello_v4_of_dom0_is_accepted() {
    let mut bench = Bench::ready();
    bench.agent.control_opened();
    bench.control(&HELLO_4);
    assert!(bench.agent.is_ready());
}

#[test]
fn vector_9_3_exec_cmdline_suspend_pre_all() {
    assert_eq!(execute(0, 0, [1, 2], b"root:QUBESRPC qubes.SuspendPreAll dom0"), SUSPEND_PRE_ALL);
    let mut bench = Bench::ready();
    bench.control(&SUSPEND_PRE_ALL);
    let call = bench.opened(0, 513);
    assert_eq!(bench.control_sent(), b"", "not before the end");
    bench.agent.data_opened(super::NOW, call);
    assert_eq!(bench.data_sent(call), HELLO_3);
    bench.data(call, &HELLO_4);
    assert_eq!(
        bench.data_sent(call),
        [
            0x92, 0x01, 0, 0, 0, 0, 0, 0, 0x91, 0x01, 0, 0, 0, 0, 0, 0, 0x93, 0x01, 0, 0, 4, 0, 0,
            0, 0, 0, 0, 0
        ]
    );
    bench.assert_closed(call, 0, [0x01, 0x02]);
}

#[test]
fn vector_9_3_connection_terminated() {
    assert_eq!(terminated(0, [1, 2]), [0x11, 0x02, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x02, 0, 0]);
    let mut bench = Bench::ready();
    bench.control(&SUSPEND_PRE_ALL);
    let call = bench.opened(0, 513);
    bench.agent.data_closed(call);
    assert_eq!(bench.control_sent(), terminated(0, [1, 2]), "also if it never connected");
    assert_eq!(bench.agent.poll_action(), None, "it is closed already");
}

#[test]
fn vector_9_3_just_exec_of_a_shell_command_ends_with_127_only() {
    let order = [
        0x01, 0x02, 0x00, 0x00, 0x12, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x02, 0x00,
        0x00, 0x75, 0x73, 0x65, 0x72, 0x3a, 0x64, 0x61, 0x74, 0x65, 0x00,
    ];
    let mut bench = Bench::ready();
    let call = bench.call(&order);
    bench.data(call, &HELLO_4);
    let expected = [0x93, 0x01, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x7f, 0x00, 0x00, 0x00];
    assert_eq!(bench.data_sent(call), cat(&[&HELLO_3, &expected]));
    bench.assert_closed(call, 0, [0x02, 0x02]);
}

#[test]
fn vector_9_3_stderr_text_of_an_unknown_service() {
    let text = [
        0x92, 0x01, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x6e, 0x6f, 0x20, 0x73, 0x75, 0x63, 0x68,
        0x20, 0x73, 0x65, 0x72, 0x76, 0x69, 0x63, 0x65, 0x0a,
    ];
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"user:QUBESRPC qubes.NoShell dom0"));
    bench.data(call, &HELLO_4);
    let expected = cat(&[&HELLO_3, &text, &STDERR_END, &STDOUT_END, &exit_code(127)]);
    assert_eq!(bench.data_sent(call), expected);
    bench.assert_closed(call, 0, [1, 2]);
}

#[test]
fn vector_9_3_service_refused_is_ignored() {
    let message = cat(&[&[0x03, 0x02, 0, 0, 0x20, 0, 0, 0], b"REQ1", &[0; 28]]);
    let mut bench = Bench::ready();
    bench.control(&message);
    assert_eq!(bench.control_sent(), b"");
    assert_eq!(bench.agent.poll_action(), None);
    bench.control(&SUSPEND_PRE_ALL);
    bench.opened(0, 513);
}

#[test]
fn vector_9_3_service_connect_for_an_unknown_id_is_terminated() {
    let message =
        cat(&[&[0x02, 0x02, 0, 0, 0x28, 0, 0, 0, 5, 0, 0, 0, 0x03, 0x02, 0, 0], b"REQ1", &[0; 28]]);
    let mut bench = Bench::ready();
    bench.control(&message);
    assert_eq!(bench.agent.poll_action(), None);
    assert_eq!(bench.control_sent(), terminated(5, [0x03, 0x02]));
}

#[test]
fn vector_9_3_trigger_service3_is_refused_from_dom0() {
    let message = cat(&[
        &[0x12, 0x02, 0, 0, 0x6e, 0, 0, 0],
        b"dom0",
        &[0; 60],
        b"REQ1",
        &[0; 28],
        b"qubes.GetDate\0",
    ]);
    assert_eq!(message.len(), 8 + 0x6e);
    let mut bench = Bench::ready();
    bench.control(&message);
    let reason = crate::qrexec::ControlError::Type(0x212);
    assert_eq!(bench.agent.poll_action(), Some(crate::qrexec::Action::ResetControl { reason }));
}

fn service<'t>(user: &'t str, service: &'t str, source: &'t str) -> ServiceCall<'t> {
    ServiceCall { user, is_nogui: false, service, argument: None, source, target: None }
}

#[test]
fn vector_9_3_parse_plain_service() {
    assert_eq!(
        Command::parse(b"user:QUBESRPC qubes.WaitForSession dom0\0"),
        Ok(Command::Service(service("user", "qubes.WaitForSession", "dom0")))
    );
}

#[test]
fn vector_9_3_parse_argument_with_plus_signs() {
    assert_eq!(
        Command::parse(b"user:QUBESRPC qubes.VMExec+ls+--a work\0"),
        Ok(Command::Service(ServiceCall {
            argument: Some("ls+--a"),
            ..service("user", "qubes.VMExec", "work")
        }))
    );
}

#[test]
fn vector_9_3_parse_nogui_empty_argument_and_target() {
    assert_eq!(
        Command::parse(b"root:nogui:QUBESRPC x.Y+ dom0 keyword adminvm\0"),
        Ok(Command::Service(ServiceCall {
            is_nogui: true,
            argument: Some(""),
            target: Some(Target { kind: "keyword", name: "adminvm" }),
            ..service("root", "x.Y", "dom0")
        }))
    );
}

#[test]
fn vector_9_3_parse_errors_end_with_125() {
    for (text, error) in [
        (b"no-colon\0".as_slice(), CommandError::NoUser),
        (b"u:QUBESRPC \0", CommandError::NoService),
        (b"u:QUBESRPC\0", CommandError::NoService),
        (b"u:QUBESRPC  x dom0\0", CommandError::NoService),
        (b"u:QUBESRPC x\0", CommandError::NoSource),
        (b"u:QUBESRPC x \0", CommandError::NoSource),
        (b"u:QUBESRPC +arg dom0\0", CommandError::NoService),
        (b"u:QUBESRPC x dom0 name\0", CommandError::BadTarget),
        (b"u:QUBESRPC x dom0 name a b\0", CommandError::BadTarget),
        (b"u:QUBESRPC x dom0 \0", CommandError::BadTarget),
        (b"u:QUBESRPC x dom0", CommandError::NotTerminated),
        (b"u:QUBESRPC x\0 dom0\0", CommandError::NotTerminated),
        (b"", CommandError::NotTerminated),
        (b"\0", CommandError::NoUser),
        (b"u:\xff\0", CommandError::NotText),
    ] {
        assert_eq!(Command::parse(text), Err(error), "{}", text.escape_ascii());
        let Some(text) = text.strip_suffix(b"\0") else { continue };
        let mut bench = Bench::ready();
        let call = bench.call(&execute(0, 0, [1, 2], text));
        bench.data(call, &HELLO_4);
        let message = b"\x92\x01\0\0\x0c\0\0\0bad command\n";
        assert_eq!(bench.data_sent(call), cat(&[&HELLO_3, message, &ends(125)]));
        bench.assert_closed(call, 0, [1, 2]);
    }
}

#[test]
fn vector_9_3_parse_shell_command_is_refused() {
    assert_eq!(Command::parse(b"u:uname -a\0"), Ok(Command::Shell("uname -a")));
    assert_eq!(Command::parse(b"u:nogui:uname -a\0"), Ok(Command::Shell("uname -a")));
    assert_eq!(Command::parse(b"u:\0"), Ok(Command::Shell("")));
    assert_eq!(Command::parse(b"u:QUBESRPCx y dom0\0"), Ok(Command::Shell("QUBESRPCx y dom0")));
}

#[test]
fn service_and_service_with_plus_are_alike() {
    for name in ["qubes.WaitForSession", "qubes.WaitForSession+"] {
        let mut bench = Bench::ready();
        let text = alloc::format!("user:QUBESRPC {name} dom0");
        let call = bench.call(&execute(0, 0, [1, 2], text.as_bytes()));
        bench.data(call, &HELLO_4);
        assert_eq!(bench.data_sent(call), cat(&[&HELLO_3, &ends(0)]));
    }
}

#[test]
fn every_standard_service_ends_with_0_and_nothing_else_does() {
    for (name, code) in [
        ("qubes.SuspendPreAll", 0),
        ("qubes.SuspendPre", 0),
        ("qubes.SuspendPost", 0),
        ("qubes.SuspendPostAll", 0),
        ("qubes.WaitForSession", 0),
        ("qubes.WaitForNetworkUplink", 0),
        ("qubes.WaitForRunningSystem", 0),
        ("qubes.SetDateTime", 0),
        ("qubes.SetMonitorLayout", 127),
        ("qubes.GetAppmenus", 127),
        ("qubes.VMShell", 127),
        ("qubes.VMExec", 127),
        ("qubes.suspendpre", 127),
        ("qubes.SuspendPre2", 127),
    ] {
        let mut bench = Bench::ready();
        let text = alloc::format!("root:QUBESRPC {name} dom0");
        let call = bench.call(&execute(0, 0, [1, 2], text.as_bytes()));
        bench.data(call, &cat(&[&HELLO_4, &super::STDIN_END]));
        let sent = bench.data_sent(call);
        assert_eq!(sent[sent.len() - 12..], exit_code(code), "{name}");
        bench.assert_closed(call, 0, [1, 2]);
    }
}
