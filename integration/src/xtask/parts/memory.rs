//! Memory: the appliance with dom0's daemons on the heap of the image. `integration/memory` is the program, this runs it.
//!
//! `cargo xtask memory cycles N | requests FROM STEP | operations FROM STEP | limits COUNT` runs one form of it;
//! `cargo xtask memory overhead` counts what the books cost.

use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::Record;
use crate::error::Result;
use crate::xtask::callgrind;
use crate::xtask::image::cargo;
use crate::{command, fail, paths, progress};

/// Connects and disconnects, in every `test`.
const CYCLES: &str = "10000";
/// Of the operations of a day, in every `test` each of so many is put off, from one on that the clock chooses.
const SHORT_STEP: u64 = 23;
/// What the books may cost, in percent of what is done without them.
const MOST_OVERHEAD: f64 = 5.0;
/// Where the control plane takes in what QubesDB says.
const SERVING: &str = "*EventLoop*serve_database*";
/// Functions that keep the books; those of the host's allocator have their own names.
const BOOKS: &[&str] =
    &["xen::mem::heap", "xen::mem::ledger", "__rust_alloc", "__rust_dealloc", "__rust_realloc"];
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

/// What the books about the heap cost the control plane while it takes rules from QubesDB, by instructions.
///
/// # Errors
/// When it is more than a twentieth.
pub fn overhead() -> Result<()> {
    let program = build_for("measured")?;
    let mut line = Command::new(program);
    // A day in which nothing fails, once.
    let counts = progress::step("counting instructions", || {
        callgrind::by_function(line.args(["requests", "1000000", "1"]), SERVING)
    })?;
    let is_books = |name: &str| BOOKS.iter().any(|part| name.contains(part));
    let sum = |wanted: bool| -> u64 {
        counts.iter().filter(|(name, _)| is_books(name) == wanted).map(|(_, count)| count).sum()
    };
    let (books, rest) = (sum(true), sum(false));
    let percent = books as f64 * 100.0 / rest.max(1) as f64;
    progress::say(format!(
        "books about the heap: {books} instructions beside {rest} of the rest, {percent:.2} % (at most {MOST_OVERHEAD} %)"
    ));
    if books == 0 || percent > MOST_OVERHEAD {
        fail!("the books about the heap cost {percent:.2} %");
    }
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
    overhead()?;
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
    build_for("sim")
}

fn build_for(profile: &str) -> Result<PathBuf> {
    let features = ["--no-default-features", "--features", "fake"];
    let mut line = cargo(&["build", "--quiet", "--profile", profile, "--example", "memory"]);
    line.args(features);
    progress::step("building the program", || command::output(&mut line))?;
    Ok(paths::target().join(profile).join("examples/memory"))
}
