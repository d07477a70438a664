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
    if wants("engine") {
        engine::run(&mut report)?;
    }
    if wants("nft") {
        nft::run(&mut report)?;
    }
    if wants("lab") {
        lab::run(&mut report, is_quick, only)?;
    }
    if wants("scale") {
        scale::run(&mut report)?;
    }
    if part.is_none() && only.is_none() && !is_quick {
        report.write()?;
    }
    match json {
        Some(file) => report.write_json(Path::new(file)),
        None => Ok(()),
    }
}
