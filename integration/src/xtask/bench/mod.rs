//! `cargo xtask bench`: what the firewall costs. `engine` counts instructions of the core, `lab` measures our image and a
//! Linux firewall VM in turns on real Xen. Results with the machine and the commit: `integration/bench/RESULTS.md`.

mod engine;
mod lab;
mod report;

use crate::error::Result;
use crate::fail;
use report::Report;

/// Measures what `args` choose: all, or one part; `--json` prints one flat object at the end.
///
/// # Errors
/// When the words are unknown, or something cannot be measured.
pub fn run(args: &[&str]) -> Result<()> {
    let is_json = args.contains(&"--json");
    let parts: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--json").collect();
    let (engine, lab) = match parts.as_slice() {
        [] => (true, true),
        ["engine"] => (true, false),
        ["lab"] => (false, true),
        other => fail!("cargo xtask bench [--json] [engine|lab], not {:?}", other.join(" ")),
    };
    let mut report = Report::new()?;
    if engine {
        engine::run(&mut report)?;
    }
    if lab {
        lab::run(&mut report)?;
    }
    report.write()?;
    if is_json {
        report.print_json();
    }
    Ok(())
}
