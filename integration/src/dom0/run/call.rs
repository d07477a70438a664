//! The process of a caller: serves the data channel, passes standard input, output and exit status.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::Args;
use super::link::VchanLink;
use super::qubesdb::directory;
use super::xenstore::Xenstore;
use super::{Attempt, Failure, Result, clock, qrexec};
use crate::dom0::qrexec::call::{Call, NOBODY, State};
use crate::dom0::ring::{Link, Ring};

/// Smallest size of both rings, bytes.
const RING_LEN: usize = 65_536;
/// How long the agent may take to connect.
const PATIENCE: Duration = Duration::from_secs(10);
/// Standard input that is read ahead, bytes.
const AHEAD: usize = 65_536;

/// The command `call`.
pub(crate) fn run(args: &Args) -> Result {
    let command = args.at(0, "COMMAND")?;
    let command = match args.get("user") {
        Some(user) => format!("{user}:{command}"),
        None if has_user(command) => command.to_owned(),
        None => format!("DEFAULT:{command}"),
    };
    let is_just_exec = args.has("just-exec");
    let (domid, port) = qrexec::request_port(args.needed("socket")?, &command, is_just_exec)?;
    let parent = directory(0, domid);
    let hypervisor = clock::open()?;
    let mut link = VchanLink::server(&hypervisor, domid, &format!("{parent}/{port}"), RING_LEN)
        .doing("cannot serve the data channel")?;
    let mut call = Call::default();
    if is_just_exec {
        call.close_stdin();
    }
    let status = serve(&mut call, &mut link, is_just_exec, &parent, port)?;
    drop(link);
    if !call.remarks.is_empty() {
        eprint!("dom0d: {}", call.remarks);
    }
    if status == 0 { Ok(()) } else { Err(Failure::Code(status, String::new())) }
}

/// `user:` comes before the first space.
fn has_user(command: &str) -> bool {
    command.split(' ').next().is_some_and(|word| word.contains(':'))
}

fn serve(
    call: &mut Call,
    link: &mut VchanLink,
    is_just_exec: bool,
    parent: &str,
    port: u32,
) -> Result<u8> {
    let xenstore = Xenstore::open()?;
    let deadline = Instant::now() + PATIENCE;
    let mut is_announced = true;
    let mut is_stdin_open = !is_just_exec;
    loop {
        let state = call.on_event(link);
        pass_on(&mut std::io::stdout(), &mut call.stdout);
        pass_on(&mut std::io::stderr(), &mut call.stderr);
        if let State::Ended(status) = state {
            return Ok(status);
        }
        let is_waiting = link.link() == Link::Waiting;
        if is_waiting && Instant::now() > deadline {
            call.remarks.push_str("nobody connected to the data channel in 10 s\n");
            return Ok(NOBODY);
        }
        let timeout =
            if is_waiting { deadline.saturating_duration_since(Instant::now()) } else { PATIENCE };
        let timeout = Timespec::try_from(timeout + Duration::from_millis(1)).ok();
        let stdin = std::io::stdin();
        let (has_event, has_input) = {
            let mut fds = vec![PollFd::new(&*link, PollFlags::IN)];
            if is_stdin_open && call.stdin_waiting() < AHEAD {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            let _ = poll(&mut fds, timeout.as_ref());
            let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
            (ready(0), ready(1))
        };
        if has_event {
            link.take_event();
            if is_announced && link.link() == Link::Open {
                is_announced = false;
                let _ = xenstore.remove_announcement(parent, port);
            }
        }
        if has_input {
            let mut buffer = vec![0; AHEAD];
            // One read: it returns what is there.
            match stdin.lock().read(&mut buffer) {
                Ok(0) | Err(_) => {
                    is_stdin_open = false;
                    call.close_stdin();
                }
                Ok(n) => call.push_stdin(buffer.get(..n).unwrap_or_default()),
            }
        }
    }
}

/// Output of the service; nobody who wants it any more is no error.
fn pass_on(to: &mut impl Write, bytes: &mut Vec<u8>) {
    if !bytes.is_empty() {
        let _ = to.write_all(bytes).and_then(|()| to.flush());
        bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_before_the_first_space() {
        assert!(has_user("user:QUBESRPC qubes.Test+arg dom0"));
        assert!(!has_user("QUBESRPC qubes.Test+a:b dom0"));
    }
}
