//! `cargo xtask bench`: what the firewall costs. `engine` counts instructions of the core, `lab` measures our image and a
//! Linux firewall VM in turns on real Xen. Results with the machine and the commit: `integration/bench/RESULTS.md`.

mod engine;
mod lab;
mod report;

use std::path::Path;

use crate::error::Result;
use crate::fail;
use report::Report;

/// Measures what `args` choose: all, or one part; `--quick` in the lab with fewer turns, `--json FILE` writes the figures
/// as one flat object.
///
/// # Errors
/// When the words are unknown, or something cannot be measured.
pub fn run(args: &[&str]) -> Result<()> {
    let (mut part, mut json, mut is_quick) = (None, None, false);
    let mut words = args.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--quick" => is_quick = true,
            "--json" => json = Some(words.next().map_or_else(|| fail!("--json wants a file"), Ok)?),
            "engine" | "lab" if part.is_none() => part = Some(word),
            _ => fail!("cargo xtask bench [--quick] [--json FILE] [engine|lab], not {word:?}"),
        }
    }
    let mut report = Report::new()?;
    if part != Some("lab") {
        engine::run(&mut report)?;
    }
    if part != Some("engine") {
        lab::run(&mut report, is_quick)?;
    }
    report.write()?;
    match json {
        Some(file) => report.write_json(Path::new(file)),
        None => Ok(()),
    }
}
