//! `qfw`: what firewall rules of Qubes mean, told on a Linux workstation by the code that the firewall runs.
//!
//! - [`eval`]: the verdict on each of many packets, a JSON line in and a JSON line out.
//!
//! All of it rests on [`engine`], the one place that asks a rule set; [`case`] reads JSON.
#![forbid(unsafe_code)]

mod answer;
mod case;
mod engine;
mod eval;

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
    /// Reads a JSON line for each packet and prints its verdict
    #[command(after_long_help = eval::HELP)]
    Eval,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Eval => eval::run(io::stdin().lock(), io::stdout().lock()),
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
