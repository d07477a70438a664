//! The process of a qrexec daemon: waits for the agent's link, serves callers over a local socket.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::args::Args;
use super::clock::{self, SharedHypervisor, XenClock};
use super::lines::{Lines, ask};
use super::link::VchanLink;
use super::qubesdb::directory;
use super::xenstore::Xenstore;
use super::{Attempt, Failure, Result, process};
use crate::dom0::exit::Exit;
use crate::dom0::qrexec::control::{Control, Mode, Next};
use crate::dom0::ring::{Link, Ring};

/// The control channel's port.
const PORT: u32 = 512;
/// How often the agent's node is looked for: while a start waits for it, and later.
const LOOK: Duration = Duration::from_millis(20);
const CALM_LOOK: Duration = Duration::from_millis(200);
const START: Duration = Duration::from_secs(10);
/// How often a quiet link is looked at.
const TICK: Duration = Duration::from_secs(10);
/// Exit code when the domain is gone.
const DOMAIN_GONE: u8 = 3;

struct Daemon {
    domid: u32,
    socket: String,
    hypervisor: SharedHypervisor,
    xenstore: Xenstore,
    clock: XenClock,
    control: Control,
    link: Option<VchanLink>,
    begun: Instant,
    /// Callers are served from the first hello on.
    lines: Option<Lines>,
    log: File,
}

/// The command `qrexec`.
pub(crate) fn run(args: &Args) -> Result {
    let socket = args.needed("socket")?.to_owned();
    let domid = args.needed_number("domid")?;
    if args.has("detach") {
        let patience = args.number("timeout")?.unwrap_or(60);
        process::detach(&socket, Duration::from_secs(patience.into()))?;
    }
    let log = args.get("log").map_or_else(|| format!("{socket}.log"), str::to_owned);
    serve(domid, socket, &log, args.get("default-user").unwrap_or("user"))
}

/// Waits for a domain's agent, and serves callers for ever.
pub(crate) fn serve(domid: u32, socket: String, log: &str, default_user: &str) -> Result {
    process::forget_end(&socket);
    let log = File::create(log).doing(log)?;
    let hypervisor = clock::open()?;
    let mut daemon = Daemon {
        domid,
        socket,
        xenstore: Xenstore::open()?,
        clock: XenClock::of_daemon(hypervisor.clone())?,
        hypervisor,
        control: Control::new(default_user),
        link: None,
        begun: Instant::now(),
        lines: None,
        log,
    };
    loop {
        daemon.turn()?;
    }
}

/// The command `qrexec-stats`.
pub(crate) fn print_stats(args: &Args) -> Result {
    println!("{}", ask(args.needed("socket")?, &json!({"cmd": "stats"}))?);
    Ok(())
}

impl Daemon {
    fn turn(&mut self) -> Result {
        if self.link.is_none() {
            self.connect();
        }
        if let Some(link) = &mut self.link {
            match self.control.on_event(link) {
                Ok(Next::Wait) => {}
                Ok(Next::Reconnect) => {
                    self.link = None;
                    self.note(json!({"event": "agent-lost"}));
                }
                Err(exit) => self.end_as_the_real_one(exit),
            }
        }
        if self.lines.is_none() && self.control.version().is_some() {
            self.note(json!({"event": "hello", "version": self.control.version()}));
            self.lines = Some(Lines::bind(&self.socket)?);
        }
        let due = self.clock.improve()?;
        self.wait(due);
        let requests = self.lines.as_mut().map(Lines::service).unwrap_or_default();
        for (id, line) in requests {
            let answer = self.answer(&line);
            if let Some(lines) = &mut self.lines {
                lines.reply(id, &answer);
            }
        }
        Ok(())
    }

    /// An announcement that cannot be used is one of an agent that has died: wait for the next.
    fn connect(&mut self) {
        let path = format!("{}/{PORT}", directory(self.domid, 0));
        if !self.xenstore.is_announced(&path) {
            let domain = format!("/local/domain/{}", self.domid);
            if !self.is_starting() && self.xenstore.exists(&domain).is_ok_and(|exists| !exists) {
                process::end(&self.socket, DOMAIN_GONE, "the domain is gone");
            }
            return;
        }
        if let Ok(mut link) = VchanLink::client(&self.hypervisor, self.domid, &path)
            && link.link() == Link::Open
        {
            self.link = Some(link);
            self.note(json!({"event": "connected"}));
        }
    }

    /// Whether a start may be waiting for the agent.
    fn is_starting(&self) -> bool {
        self.begun.elapsed() < START
    }

    fn wait(&mut self, clock_due: Option<Instant>) {
        let timeout = match self.link {
            Some(_) => TICK,
            None if self.is_starting() => LOOK,
            None => CALM_LOOK,
        };
        let to_look = clock_due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = Timespec::try_from(to_look.map_or(timeout, |due| due.min(timeout))).ok();
        let has_event = {
            let mut fds: Vec<_> =
                self.link.iter().map(|link| PollFd::new(link, PollFlags::IN)).collect();
            fds.extend(self.lines.iter().flat_map(Lines::poll_fds));
            let _ = poll(&mut fds, timeout.as_ref());
            self.link.is_some()
                && fds.first().is_some_and(|fd| fd.revents().contains(PollFlags::IN))
        };
        if has_event && let Some(link) = &mut self.link {
            link.take_event();
        }
    }

    fn answer(&mut self, line: &str) -> Value {
        let request: Value = serde_json::from_str(line).unwrap_or_default();
        match request.get("cmd").and_then(Value::as_str) {
            Some("call") => self.call(&request),
            Some("calls") => self.calls(&request),
            Some("stats") => {
                let mut value = json!({
                    "ok": true, "version": self.control.version(), "ports_in_use": self.control.ports_in_use(),
                    "connected": self.link.is_some(),
                });
                if let Some(object) = value.as_object_mut() {
                    object.extend(
                        self.control
                            .counters()
                            .iter()
                            .map(|(name, n)| ((*name).to_owned(), json!(n))),
                    );
                }
                value
            }
            Some("quit") => process::end(&self.socket, 0, "asked to"),
            _ => json!({"ok": false, "error": "unknown cmd"}),
        }
    }

    fn call(&mut self, request: &Value) -> Value {
        let Some(command) = request.get("command").and_then(Value::as_str) else {
            return json!({"ok": false, "error": "call needs command"});
        };
        let is_just_exec = request.get("just_exec") == Some(&Value::Bool(true));
        let mode = if is_just_exec { Mode::JustExec } else { Mode::Command };
        match self.control.call(mode, command) {
            Ok(port) => {
                self.note(json!({"event": "call", "port": port, "command": command}));
                // The caller gets its port before the agent gets the command; it serves it within milliseconds.
                json!({"ok": true, "domid": self.domid, "port": port})
            }
            Err(error) => json!({"ok": false, "error": error.to_string()}),
        }
    }

    /// The same call many times at once: their ports.
    fn calls(&mut self, request: &Value) -> Value {
        let command = request.get("command").and_then(Value::as_str).unwrap_or_default();
        let count = request.get("count").and_then(Value::as_u64).unwrap_or(0);
        let ports: Result<Vec<u32>, _> =
            (0..count).map(|_| self.control.call(Mode::Command, command)).collect();
        self.note(json!({"event": "calls", "count": count, "command": command}));
        match ports {
            Ok(ports) => json!({"ok": true, "ports": ports}),
            Err(error) => json!({"ok": false, "error": error.to_string()}),
        }
    }

    fn note(&mut self, mut event: Value) {
        if let Some(object) = event.as_object_mut() {
            object.insert("xen_ns".into(), json!(self.clock.now_ns()));
        }
        let _ = writeln!(self.log, "{event}");
    }

    fn end_as_the_real_one(&mut self, exit: Exit) -> ! {
        self.note(json!({"event": "fatal", "reason": exit.to_string()}));
        process::end(&self.socket, exit.code(), &exit.to_string())
    }
}

/// Asks a daemon for a port; for callers.
pub(crate) fn request_port(socket: &str, command: &str, is_just_exec: bool) -> Result<(u32, u32)> {
    let request = json!({"cmd": "call", "command": command, "just_exec": is_just_exec});
    let answer = ask(socket, &request)?;
    let number =
        |name| answer.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    match (number("domid"), number("port")) {
        (Some(domid), Some(port)) => Ok((domid, port)),
        _ => Err(Failure::Code(125, format!("call refused: {answer}"))),
    }
}
