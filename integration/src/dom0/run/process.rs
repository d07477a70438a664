//! Life of a daemon's process: start in the background, and an end that says why.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Signal, WaitOptions, kill_process, setpgid, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use serde_json::{Value, json};

use super::{Attempt, Failure, Result};
use crate::ffi;

fn exit_file(socket: &str) -> String {
    format!("{socket}.exit")
}

/// Ends the process as the real daemon's end looks to the other side: the kernel takes the ring away, nothing is
/// cleaned up in xenstore. The reason stays beside the socket.
pub(crate) fn end(socket: &str, code: u8, reason: &str) -> ! {
    let text = json!({"code": code, "reason": reason}).to_string();
    let _ = fs::write(exit_file(socket), text);
    let _ = fs::remove_file(socket);
    if code != 0 {
        eprintln!("dom0d: {reason}");
    }
    std::process::exit(i32::from(code))
}

/// Forgets the end of an earlier process.
pub(crate) fn forget_end(socket: &str) {
    let _ = fs::remove_file(exit_file(socket));
}

/// Why the server of this socket has ended, if it has.
pub(crate) fn reason_of_end(socket: &str) -> Option<Failure> {
    let value: Value = serde_json::from_slice(&fs::read(exit_file(socket)).ok()?).ok()?;
    let code = value.get("code")?.as_u64().and_then(|code| u8::try_from(code).ok())?;
    let reason = value.get("reason").and_then(Value::as_str).unwrap_or_default();
    Some(Failure::Code(code.max(1), format!("{socket}: the server has ended: {reason}")))
}

/// Goes on as a process in the background, and ends this one when the socket answers. Not by a start of the same program, whose
/// libraries would have to be loaded once more while a firewall waits for its start. To be called before there is a second thread.
pub(crate) fn detach(socket: &str, patience: Duration) -> Result {
    forget_end(socket);
    let _ = fs::remove_file(socket);
    let errors = fs::File::create(format!("{socket}.err")).doing(socket)?;
    let Some(child) = ffi::fork().doing("cannot start")? else {
        return become_daemon(&errors).doing("cannot leave the terminal");
    };
    let deadline = Instant::now() + patience;
    loop {
        if UnixStream::connect(socket).is_ok() {
            std::process::exit(0);
        }
        if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG).doing("child")? {
            let said = fs::read_to_string(format!("{socket}.err")).unwrap_or_default();
            let code = status.exit_status().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Err(Failure::Code(
                code.max(1),
                format!("the server ended at once: {}", said.trim()),
            ));
        }
        if Instant::now() > deadline {
            let _ = kill_process(child, Signal::KILL);
            return Err(Failure::Code(3, "nothing was ready in time".into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Divides a daemon: true in the new process, which is to serve `socket`.
pub(crate) fn divide(socket: &str) -> Result<bool> {
    forget_end(socket);
    let _ = fs::remove_file(socket);
    let errors = fs::File::create(format!("{socket}.err")).doing(socket)?;
    if ffi::fork().doing("cannot start")?.is_some() {
        return Ok(false);
    }
    become_daemon(&errors).doing("cannot leave the terminal")?;
    Ok(true)
}

fn become_daemon(errors: &fs::File) -> rustix::io::Result<()> {
    setpgid(None, None)?;
    let nothing = open("/dev/null", OFlags::RDWR, Mode::empty())?;
    dup2_stdin(&nothing)?;
    dup2_stdout(&nothing)?;
    dup2_stderr(errors)
}
