//! What callers read. `kit` has a firewall with traffic; each file asks it something else.

mod book;
mod explain;
mod health;
mod hostile;
mod metrics;
mod reports;
mod tables;

use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde_json::Value;

use super::{Facts, FirewallServices};
use crate::control::{self, Control};
use crate::event_loop::machine::{Effort, MemoryUse};
use crate::firewall::Firewall;
use crate::qrexec::{ExitCode, Progress, ServiceCall, Services};
use crate::testing::{A, B, Build, Kit, SERVER, SYN};

/// What a message of qrexec holds.
const MESSAGE_BYTES: usize = 4096;

fn call<'a>(service: &'a str, argument: Option<&'a str>) -> ServiceCall<'a> {
    ServiceCall { user: "user", is_nogui: false, service, argument, source: "dom0", target: None }
}

/// What the services tell of.
struct World<'a> {
    firewall: &'a Firewall,
    control: &'a Control,
    facts: &'a Facts,
}

impl<'a> World<'a> {
    fn services(&self) -> FirewallServices<'a> {
        FirewallServices::new(self.firewall, self.control, self.facts)
    }

    /// All that a call says with this standard input, and its exit status.
    fn said(&self, service: &str, argument: Option<&str>, stdin: &[u8]) -> (String, ExitCode) {
        let mut services = self.services();
        let mut session = services.start(&call(service, argument)).unwrap();
        services.stdin(&mut session, stdin);
        services.stdin_end(&mut session);
        let mut text = String::new();
        loop {
            let mut buffer = [0; MESSAGE_BYTES];
            match services.poll(&mut session, &mut buffer) {
                Progress::Stdout(bytes) => {
                    text.push_str(core::str::from_utf8(&buffer[..bytes]).unwrap());
                }
                Progress::Later => {}
                Progress::Exit(code) => return (text, code),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The lines of a call that succeeds.
    fn lines(&self, service: &str, argument: Option<&str>) -> Vec<Value> {
        let (text, code) = self.said(service, argument, b"");
        assert_eq!(code, ExitCode::SUCCESS, "{text}");
        parsed(&text)
    }
}

fn parsed(text: &str) -> Vec<Value> {
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn control() -> Control {
    Control::new("", control::Limits::default())
}

/// The lines of a call, with a firewall between two clients and an uplink.
fn ask(kit: &Kit, service: &str, argument: Option<&str>) -> Vec<Value> {
    let facts = facts(kit);
    World { firewall: &kit.fw, control: &control(), facts: &facts }.lines(service, argument)
}

fn facts(kit: &Kit) -> Facts {
    Facts::new(77, MemoryUse::default(), Effort::default(), &[]).at(kit.now, true)
}

/// What of the lines is of this kind.
fn of_kind(lines: &[Value], kind: &str) -> Vec<Value> {
    lines.iter().filter(|line| line["kind"] == kind).cloned().collect()
}

/// A client's TCP connection that is open, and one of the other that was refused.
fn kit() -> Kit {
    let mut kit = Kit::new()
        .rules(A, &["action=accept dst4=198.51.100.7/32 proto=tcp dstports=443-443", "action=drop"])
        .rules(B, &["action=accept proto=icmp", "action=accept dsthost=www.example.org"]);
    kit.connect((A, 40_000), (SERVER, 443));
    let _ = kit.a(&Build::tcp((A, 40_001), (SERVER, 80), SYN));
    kit
}

fn text_of(ip: impl Into<IpAddr>) -> String {
    alloc::format!("{}", ip.into())
}
