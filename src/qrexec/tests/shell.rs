//! What dom0 asks a shell for.

use super::super::Ending;
use super::*;

/// The exit code of a call of domain `domain`, and what it led to.
fn run(domain: u8, kind: u8, text: &[u8], input: &[u8]) -> (u8, Option<Ending>) {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(kind, domain, [1, 2], text));
    bench.data(call, &HELLO_4);
    if !input.is_empty() {
        let len = u32::try_from(input.len()).unwrap().to_le_bytes();
        bench.data(call, &cat(&[&[0x90, 0x01, 0, 0], &len, input]));
    }
    bench.data(call, &STDIN_END);
    let sent = bench.data_sent(call);
    let code = sent[sent.len() - 4];
    assert_eq!(sent[sent.len() - 12..], exit_code(code));
    assert_eq!(bench.agent.poll_action(), Some(Action::CloseData { call }));
    assert_eq!(bench.control_sent(), terminated(domain, [1, 2]));
    let ending = match bench.agent.poll_action() {
        Some(Action::End(ending)) => Some(ending),
        None => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(bench.agent.poll_action(), None);
    (code, ending)
}

#[test]
fn dom0_ends_the_vm_by_each_way_of_a_call_once_it_is_answered() {
    let (off, again) = ((0, Some(Ending::Poweroff)), (0, Some(Ending::Reboot)));
    assert_eq!(run(0, 0, b"root:poweroff", b""), off);
    assert_eq!(run(0, 0, b"user:nogui:sudo poweroff", b""), off);
    assert_eq!(run(0, 1, b"root:shutdown -h now", b""), off);
    assert_eq!(run(0, 0, b"root:systemctl reboot", b""), again);
    assert_eq!(run(0, 0, b"root:QUBESRPC qubes.VMExec+reboot dom0", b""), again);
    assert_eq!(run(0, 1, b"root:QUBESRPC qubes.VMExec+halt dom0", b""), off);
    assert_eq!(run(0, 0, b"user:QUBESRPC qubes.VMShell dom0", b"poweroff; exit\n"), off);
    assert_eq!(run(0, 0, b"user:QUBESRPC qubes.VMShell+ dom0", b"sudo reboot"), again);
}

#[test]
fn nothing_else_does() {
    let no = (127, None);
    for text in
        ["u:", "u:uname -a", "u:poweroffs", "u:poweroff; id", "u:reboot -f", "u:QUBESRPCpoweroff"]
    {
        assert_eq!(run(0, 0, text.as_bytes(), b""), no, "{text}");
    }
    let shell = b"u:QUBESRPC qubes.VMShell dom0";
    for input in [&b""[..], b"id\npoweroff\n", b"poweroff; id\n", &[0xff; 9], &[b' '; 200]] {
        assert_eq!(run(0, 0, shell, input), no, "{input:?}");
    }
    let long = cat(&[b"poweroff", &[b' '; 60]]);
    assert_eq!(run(0, 0, shell, &long), no, "longer than what is looked at");
    // Who only starts something has no input.
    assert_eq!(run(0, 1, shell, b""), no);
    assert_eq!(run(0, 0, b"u:QUBESRPC qubes.VMExec dom0", b""), no);
}

#[test]
fn another_domain_cannot() {
    for (kind, text) in [
        (0, &b"root:poweroff"[..]),
        (1, b"root:reboot"),
        (0, b"root:QUBESRPC qubes.VMExec+poweroff mallory"),
    ] {
        assert_eq!(run(7, kind, text, b""), (127, None));
    }
    assert_eq!(run(7, 0, b"root:QUBESRPC qubes.VMShell m", b"poweroff\n"), (127, None));
}

#[test]
fn a_caller_who_goes_before_the_answer_has_asked_for_nothing() {
    let mut bench = Bench::ready();
    let call = bench.call(&execute(0, 0, [1, 2], b"root:poweroff"));
    bench.agent.data_closed(call);
    assert_eq!(bench.agent.poll_action(), None);
}
