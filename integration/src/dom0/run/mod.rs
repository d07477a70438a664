//! The processes around the state machines: `dom0d`. It runs in the lab's dom0; the probes run in guests.
#![forbid(unsafe_code)]

mod args;
mod call;
mod clock;
mod db;
mod flood;
mod hostile;
mod lines;
mod link;
mod probe;
mod probe_qrexec;
mod process;
mod qrexec;
mod qubesdb;
pub mod start;
mod xenstore;

use std::process::ExitCode;

use self::args::Args;

const USAGE: &str = "\
usage: dom0d qubesdb --domid N --socket PATH [--load KEYS.json] [--vm VM.json] [--log FILE] [--detach]
                     [--unpause MS]     (lets the domain run, so many milliseconds after all is there for it)
       dom0d db --socket PATH write KEY VALUE | rm KEY | read KEY | list PREFIX | multi | stats | log [AFTER] | quit
       dom0d db --socket PATH firewall-reload IP [--policy drop]          (rules on standard input)
       dom0d db --socket PATH wait-synced [S] | wait-handled IP COUNT S | wait-key KEY S [VALUE]
       dom0d netvm-change --socket PATH VM.json
       dom0d client-start --socket PATH [--after] VM.json IP
       dom0d keys VM.json
       dom0d xentime [--json]
       dom0d qrexec --domid N --socket PATH [--default-user USER] [--log FILE] [--detach [--timeout S]]
       dom0d qrexec-stats --socket PATH
       dom0d call --socket PATH [--just-exec] [--user USER] COMMAND
       dom0d hostile --domid N --devid N --kind KIND --seconds S   (a network frontend in dom0 that breaks the rules)
       dom0d flood --socket PATH --domid N [--stalled N --stall COMMAND] --calls N --seconds S COMMAND
       dom0d probe-qubesdb [--server-domid 0] --domid ME --list | --row NAME | --dump | --sleep S | --serve S
       dom0d probe-qrexec --domid ME --serve S";

/// How a command ends when it does not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The arguments make no sense.
    Usage(String),
    /// Something did not work.
    Failed(String),
    /// With this exit code and, if not empty, this message.
    Code(u8, String),
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

pub(crate) type Result<T = (), E = Failure> = std::result::Result<T, E>;

/// Adds what was attempted to an error.
pub(crate) trait Attempt<T> {
    fn doing(self, what: &str) -> Result<T>;
}

impl<T, E: std::fmt::Display> Attempt<T> for std::result::Result<T, E> {
    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|error| Failure::Failed(format!("{what}: {error}")))
    }
}

/// Entry point of `dom0d`.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    report(run(&words), USAGE)
}

/// Tells how a command has ended.
fn report(result: Result, usage: &str) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("dom0d: {text}\n{usage}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(text)) => {
            eprintln!("dom0d: {text}");
            ExitCode::from(1)
        }
        Err(Failure::Code(code, text)) => {
            if !text.is_empty() {
                eprintln!("dom0d: {text}");
            }
            ExitCode::from(code)
        }
    }
}

fn run(words: &[String]) -> Result {
    let Some((command, rest)) = words.split_first() else {
        return Err(Failure::Usage("no command".into()));
    };
    let args = Args::parse(rest)?;
    match command.as_str() {
        "qubesdb" => qubesdb::run(&args),
        "db" => db::run(&args),
        "netvm-change" => db::netvm_change(&args),
        "client-start" => db::client_start(&args),
        "keys" => db::print_keys(&args),
        "xentime" => clock::print(&args),
        "qrexec" => qrexec::run(&args),
        "qrexec-stats" => qrexec::print_stats(&args),
        "call" => call::run(&args),
        "hostile" => hostile::run(&args),
        "flood" => flood::run(&args),
        "probe-qubesdb" => probe::run(&args),
        "probe-qrexec" => probe_qrexec::run(&args),
        other => Err(Failure::Usage(format!("no command {other}"))),
    }
}
