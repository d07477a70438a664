//! `cargo xtask bench`: what the firewall costs. `engine` counts instructions and allocations of the core and takes its
//! times, `nft` compares rules with nftables, `lab` measures our image and a Linux firewall VM in turns on real Xen, `scale` our image with one client at work and with 32. Results
//! with the machine and the commit: `integration/bench/RESULTS.md`.

mod engine;
mod lab;
mod nft;
mod report;
mod scale;
mod times;

use std::path::Path;

use crate::error::Result;
use crate::fail;
use report::Report;

/// Measures what `args` choose: all, or one part; `--quick` in the lab with fewer turns, `--only` some of its
/// workloads, `--json FILE` writes the figures as one flat object.
///
/// # Errors
/// When the words are unknown, or something cannot be measured.
pub fn run(args: &[&str]) -> Result<()> {
    if let ["nft-here", file] = args {
        return nft::here(Path::new(file));
    }
    let (mut part, mut json, mut only, mut is_quick) = (None, None, None, false);
    let mut words = args.iter().copied();
    while let Some(word) = words.next() {
        match word {
            "--quick" => is_quick = true,
            "--only" => only = Some(words.next().map_or_else(|| fail!("--only wants names"), Ok)?),
            "--json" => json = Some(words.next().map_or_else(|| fail!("--json wants a file"), Ok)?),
            "engine" | "nft" | "lab" | "scale" if part.is_none() => part = Some(word),
            _ => fail!(
                "cargo xtask bench [--quick] [--json FILE] [engine|nft|scale|lab [--only KEY,KEY]], not {word:?}"
            ),
        }
    }
    let mut report = Report::new()?;
    let wants = |name| part.is_none_or(|part| part == name);
    let mut failed = Vec::new();
    let mut done = |report: &mut Report, name, result: Result<()>| {
        if let Err(error) = result {
            report.table(format!("Failed: {name}"), vec![error.to_string()]);
            failed.push(name);
        }
    };
    // What one part does not measure does not cost the others.
    if wants("engine") {
        let result = engine::run(&mut report);
        done(&mut report, "engine", result);
    }
    if wants("nft") {
        let result = nft::run(&mut report);
        done(&mut report, "nft", result);
    }
    if wants("lab") {
        let result = lab::run(&mut report, is_quick, only);
        done(&mut report, "lab", result);
    }
    if wants("scale") {
        let result = scale::run(&mut report);
        done(&mut report, "scale", result);
    }
    if part.is_none() && only.is_none() && !is_quick {
        report.write()?;
    }
    if let Some(file) = json {
        report.write_json(Path::new(file))?;
    }
    if !failed.is_empty() {
        fail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
