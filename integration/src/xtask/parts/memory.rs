//! Memory: the appliance with dom0's daemons on the heap of the image. `integration/memory` is the program, this runs it.
//!
//! `cargo xtask memory cycles N | requests FROM STEP | operations FROM STEP | limits COUNT` runs one form of it.

use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::Record;
use crate::error::Result;
use crate::xtask::image::cargo;
use crate::{command, paths, progress};

/// Connects and disconnects, in every `test`.
const CYCLES: &str = "10000";
/// Of the operations of a day, in every `test` each of so many is put off, from one on that the clock chooses.
const SHORT_STEP: u64 = 23;
const SHORT_LIMITS: &str = "12";
const LONG_LIMITS: &str = "100";

/// `cargo xtask memory ...`.
///
/// # Errors
/// When something did not hold, or was left.
pub fn run(args: &[&str]) -> Result<()> {
    say(&command::output(Command::new(build()?).args(args))?);
    Ok(())
}

/// In `test`: all cycles, each request that may fail, some operations, some heaps.
///
/// # Errors
/// As [`run`].
pub fn short() -> Result<()> {
    let program = build()?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (from, step) = ((seconds % SHORT_STEP).to_string(), SHORT_STEP.to_string());
    for args in [
        &["cycles", CYCLES][..],
        &["requests", "0", "1"],
        &["operations", &from, &step],
        &["limits", SHORT_LIMITS],
    ] {
        one(&program, args)?;
    }
    Ok(())
}

/// `test --long memory`: everything.
///
/// # Errors
/// As [`run`].
pub fn long() -> Result<()> {
    let mut record = Record::open("memory")?;
    let program = build()?;
    for args in [
        &["cycles", CYCLES][..],
        &["requests", "0", "1"],
        &["operations", "0", "1"],
        &["limits", LONG_LIMITS],
    ] {
        let name = args.join(" ");
        if record.get(&name).is_none() {
            record.put(&name, serde_json::json!(one(&program, args)?))?;
        }
    }
    record.finish().map(drop)
}

fn one(program: &PathBuf, args: &[&str]) -> Result<String> {
    progress::step(&format!("memory: {}", args.join(" ")), || {
        let output = command::output(Command::new(program).args(args))?;
        say(&output);
        Ok(output)
    })
}

fn say(output: &str) {
    let lines = output.lines().map(|line| line.replace('\t', " "));
    progress::say(lines.collect::<Vec<_>>().join(", "));
}

fn build() -> Result<PathBuf> {
    let features = ["--no-default-features", "--features", "fake"];
    let mut line = cargo(&["build", "--quiet", "--profile", "sim", "--example", "memory"]);
    line.args(features);
    progress::step("building the program", || command::output(&mut line))?;
    Ok(paths::target().join("sim/examples/memory"))
}
