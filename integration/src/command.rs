//! Running programs of the host: output captured, failures explained.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Attempt, Result};
use crate::fail;

/// `program` with `args`, nothing on its standard input.
pub fn new(program: impl AsRef<OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs to the end and returns what was written to standard output (lossy UTF-8).
///
/// # Errors
/// When the program is missing, or ends with a failure: then the last lines that it wrote are in the message.
pub fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output_bytes(command)?).into_owned())
}

/// Like [`output`], as bytes.
///
/// # Errors
/// As [`output`].
pub fn output_bytes(command: &mut Command) -> Result<Vec<u8>> {
    let name = describe(command);
    let out = command.output().doing(|| format!("cannot run {name}"))?;
    if !out.status.success() {
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        fail!("{name}: {}\n{}", out.status, last_lines(&text, 30));
    }
    Ok(out.stdout)
}

/// Runs with the terminal's output and error streams.
///
/// # Errors
/// When the program is missing or ends with a failure.
pub fn status(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command.status().doing(|| format!("cannot run {name}"))?;
    if !status.success() {
        fail!("{name}: {status}");
    }
    Ok(())
}

/// Whether a program of that name is on the search path.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian's mke2fs and friends live in sbin, which is not in everybody's PATH.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

/// The last `count` lines of `text`.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(count)).copied().collect::<Vec<_>>().join("\n")
}

/// `text`, or its first and last bytes with `...` between them where it is longer than 600 bytes.
pub fn shortened(text: &str) -> String {
    const HEAD: usize = 200;
    const TAIL: usize = 400;
    if text.len() <= HEAD + TAIL {
        return text.to_owned();
    }
    let (head, tail) = (text.floor_char_boundary(HEAD), text.ceil_char_boundary(text.len() - TAIL));
    let (head, tail) = (text.get(..head), text.get(tail..));
    format!("{} ... {}", head.unwrap_or_default(), tail.unwrap_or_default())
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    let mut line = format!("{program} {}", args.join(" "));
    if line.len() > 160 {
        line.truncate(line.floor_char_boundary(157));
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_carries_the_programs_last_words() {
        let error = output(&mut new("sh", &["-c", "echo out; echo oops >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("oops") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn a_long_text_keeps_both_ends() {
        let long = format!("reason {} end", "é".repeat(500));
        let short = shortened(&long);
        assert!(short.len() < 620 && short.starts_with("reason ") && short.ends_with("é end"));
        assert_eq!(shortened("all of it"), "all of it");
    }

    #[test]
    fn last_lines_keeps_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
    }
}
