//! Domains of the lab.
//!
//! * `spec`: what is to be made, as `xl` reads it
//! * here: a handle to a running one, with its console
//! * `commands`: commands in a Linux guest, which the agent on its console answers

mod commands;
mod spec;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Lab;
use crate::error::{Attempt, Result};
use crate::fail;
use commands::Agent;
pub use commands::Background;
pub use spec::{DomainSpec, Vif};

/// A domain that was made. Dropping the handle does nothing to it.
#[derive(Debug)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its number.
    pub domid: u32,
    /// Seconds that its making took.
    pub create_seconds: f32,
    log: PathBuf,
    agent: Mutex<Agent>,
}

impl Domain {
    pub(super) fn new(lab: &Lab, name: &str, domid: u32, create_seconds: f32) -> Self {
        let log = lab.console_dir().join(format!("guest-{name}.log"));
        Self { name: name.into(), domid, create_seconds, log, agent: Mutex::default() }
    }

    /// What it wrote to its console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// File of its console log on the host.
    pub fn console_file(&self) -> PathBuf {
        self.log.clone()
    }

    /// Length of the console log in bytes: a mark for [`Domain::wait_console_after`].
    pub fn console_mark(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    /// Waits until a console line contains `needle`; returns the line.
    ///
    /// # Errors
    /// When it does not come in time, or the domain ends or crashes before.
    pub fn wait_console(&self, lab: &Lab, needle: &str, timeout: Duration) -> Result<String> {
        self.wait_console_after(lab, 0, needle, timeout)
    }

    /// Like [`Domain::wait_console`], looking only at what was written after `mark`.
    ///
    /// # Errors
    /// As [`Domain::wait_console`].
    pub fn wait_console_after(
        &self,
        lab: &Lab,
        mark: u64,
        needle: &str,
        timeout: Duration,
    ) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut polls = 0u32;
        loop {
            let text = self.console_from(mark)?;
            if let Some(line) = complete_lines(&text).find(|line| line.contains(needle)) {
                return Ok(line.to_owned());
            }
            polls += 1;
            let late = Instant::now() > deadline;
            // Asking costs emulated time: every five seconds, and at the end.
            if late || polls.is_multiple_of(200) {
                let state = lab.state(&self.name)?;
                if late || !state.is_running() {
                    fail!(
                        "{}: no console line with {needle:?} {} (domain: {state:?}); it ends with:\n{}",
                        self.name,
                        if late {
                            format!("in {} s", timeout.as_secs())
                        } else {
                            "before its end".into()
                        },
                        crate::command::last_lines(&self.console(), 12)
                    );
                }
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Waits until a Linux guest of the lab has booted.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_ready(&self, lab: &Lab) -> Result<()> {
        self.wait_console(lab, "GUEST-READY", Duration::from_secs(240)).map(drop)
    }

    /// What it wrote after `mark`, in complete lines.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn console_after(&self, mark: u64) -> Result<String> {
        Ok(complete_lines(&self.console_from(mark)?).collect::<Vec<_>>().join("\n"))
    }

    fn console_from(&self, mark: u64) -> Result<String> {
        let Ok(mut file) = fs::File::open(&self.log) else { return Ok(String::new()) };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(mark)).doing(|| "cannot seek in a console log")?;
        file.read_to_end(&mut bytes).doing(|| "cannot read a console log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// How a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Running, blocked or waiting for the CPU.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// Shut down or dying.
    ShutDown,
    /// Crashed, and kept as it is.
    Crashed,
    /// No such domain.
    Gone,
}

impl State {
    /// Whether it may still do something by itself.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// From the state letters of `xl list` (`-b----`).
    pub(super) fn parse(letters: &str) -> Self {
        match letters {
            "" => Self::Gone,
            s if s.contains('c') => Self::Crashed,
            s if s.contains('s') || s.contains('d') => Self::ShutDown,
            s if s.contains('p') => Self::Paused,
            _ => Self::Running,
        }
    }
}

/// The lines of `text` that are complete, without the carriage returns of a console.
fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    let end = text.rfind('\n').map_or(0, |at| at + 1);
    text.get(..end).unwrap_or("").lines().map(|line| line.trim_end_matches('\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_line_does_not_count() {
        let lines: Vec<_> = complete_lines("one\r\ntwo\nthr").collect();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn states_of_xl_list() {
        assert_eq!(State::parse("-b----"), State::Running);
        assert_eq!(State::parse("------"), State::Running);
        assert_eq!(State::parse("--p---"), State::Paused);
        assert_eq!(State::parse("---sc-"), State::Crashed);
        assert_eq!(State::parse("---s--"), State::ShutDown);
        assert_eq!(State::parse(""), State::Gone);
    }
}
