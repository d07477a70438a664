//! Life of a daemon's process: start in the background, and an end that says why.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Attempt, Failure, Result};

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

/// Starts this program again with the same words but `--detach`, and waits until its socket answers.
pub(crate) fn detach(words: &[String], socket: &str, patience: Duration) -> Result {
    forget_end(socket);
    let _ = fs::remove_file(socket);
    let program = std::env::current_exe().doing("own program")?;
    let errors = fs::File::create(format!("{socket}.err")).doing(socket)?;
    let mut child = Command::new(program)
        .args(words.iter().filter(|word| *word != "--detach"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .spawn()
        .doing("cannot start")?;
    let deadline = Instant::now() + patience;
    loop {
        if UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        if let Some(status) = child.try_wait().doing("child")? {
            let said = fs::read_to_string(format!("{socket}.err")).unwrap_or_default();
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Err(Failure::Code(
                code.max(1),
                format!("the server ended at once: {}", said.trim()),
            ));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            return Err(Failure::Code(3, "nothing was ready in time".into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
