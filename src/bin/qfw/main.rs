//! `qfw`: what firewall rules of Qubes mean, told on a Linux workstation by the code that the firewall runs.
//!
//! - [`check`]: are they valid, and is there something odd about them ([`lint`])?
//! - [`eval`]: the verdict on each of many packets, a JSON line in and a JSON line out;
//! - [`explain`]: which rule decides about a flow, and why those before it do not;
//! - [`replay`]: what rules would have done with the traffic of a capture.
//!
//! All of it rests on [`engine`], the one place that asks a rule set; [`rulefile`] and [`case`] read files and JSON.
//! Exit status 2: wrong arguments, or a file that cannot be read.
#![forbid(unsafe_code)]

mod answer;
mod case;
mod check;
mod engine;
mod eval;
mod explain;
mod lint;
mod replay;
mod rulefile;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What firewall rules of Qubes mean, as qubes-rust-firewall understands them.
#[derive(Parser)]
#[command(name = "qfw", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says whether the firewall takes a rule set, and what is odd about it
    ///
    /// Exit status: 0 valid, 1 refused (with the text that the firewall's console shows), 2 wrong arguments or a file
    /// that cannot be read.
    #[command(after_long_help = rulefile::HELP)]
    Check(check::Arguments),
    /// Reads a JSON line for each packet and prints its verdict
    #[command(after_long_help = eval::HELP)]
    Eval,
    /// Says which rule decides about a flow, and why those before it do not
    #[command(after_long_help = format!("{}\n\n{}", explain::HELP, rulefile::HELP))]
    Explain(explain::Arguments),
    /// Says what rules would have done with the traffic of a capture
    #[command(after_long_help = format!("{}\n\n{}", replay::HELP, rulefile::HELP))]
    Replay(replay::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Check(arguments) => check::run(&arguments, io::stdout().lock()),
        Command::Eval => eval::run(io::stdin().lock(), io::stdout().lock()),
        Command::Explain(arguments) => explain::run(&arguments, io::stdout().lock()),
        Command::Replay(arguments) => replay::run(&arguments, io::stdout().lock()),
    };
    match done {
        Ok(code) => code,
        // Who reads what we print has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qfw: {error}");
            ExitCode::from(2)
        }
    }
}

/// A number of things, for people.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
