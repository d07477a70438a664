//! Planted defects: the drivers (`xen::planted`), the core and the control plane (`firewall::planted`) are broken at run
//! time, and the simulation must notice: the first under seeds of hostile peers, the others under those of the whole system.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::super::record::Record;
use super::super::sim;
use crate::error::{Attempt, Result};
use crate::{command, fail, progress};

/// A defect has to be found within so many steps: of the drivers under 200 seeds, of the others under 20.
const STEPS: u64 = 100_000;
const WHOLE_STEPS: u64 = 40_000;
/// Steps under one seed of the whole system.
const WHOLE_PER_SEED: u64 = 2_000;
/// Every run begins with this seed.
const SEED: u64 = 1;
/// Time for them: unbroken they take half a minute. What never ends is not found.
const SECONDS: &str = "600";
/// A program that `timeout` had to end.
const TIMED_OUT: i32 = 124;

/// Those that every `test` runs, with the steps in which they are found: what a client sends is seen by the uplink before
/// its verdict, an index goes back, a port stays open; dom0's daemon is not heard again, an edit is without effect.
const QUICK: &[&str] = &["granted-before-verdict", "ring-back-accepted", "port-leaked"];
const QUICK_STEPS: u64 = 500;
const QUICK_WHOLE: &[&str] = &["database-not-reopened", "generation-kept"];
const QUICK_WHOLE_STEPS: u64 = 2_000;

/// A kind of seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    per_seed: u64,
}

impl Kind {
    const ABUSE: Self = Self { name: "abuse", per_seed: sim::STEPS_PER_SEED };
    const WHOLE: Self = Self { name: "whole", per_seed: WHOLE_PER_SEED };
}

/// How a defect was found.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    steps: u64,
    seed: u64,
    message: String,
}

/// In `test`: that the simulation can fail.
///
/// # Errors
/// When a quick defect is not found, or something is without any.
pub fn short() -> Result<()> {
    let program = sim::build()?;
    for (kind, names, steps) in
        [(Kind::ABUSE, QUICK, QUICK_STEPS), (Kind::WHOLE, QUICK_WHOLE, QUICK_WHOLE_STEPS)]
    {
        runs_unbroken(&program, kind, steps)?;
        for name in names {
            progress::say(line(name, &find(&program, kind, name, steps)?));
        }
    }
    Ok(())
}

/// In `test --long mutants`: all of them. Returns the faults.
///
/// # Errors
/// When the simulation cannot run, or fails without a defect.
pub(super) fn long(record: &mut Record) -> Result<Vec<String>> {
    let program = sim::build()?;
    runs_unbroken(&program, Kind::ABUSE, STEPS)?;
    runs_unbroken(&program, Kind::WHOLE, WHOLE_STEPS)?;
    let list = command::output(&mut command::new(&program, &["--defects"]))?;
    let mut faults = Vec::new();
    for (name, kind) in names(&list) {
        let item = format!("defect {name}");
        if record.get(&item).is_some() {
            continue;
        }
        let steps = if kind == Kind::ABUSE { STEPS } else { WHOLE_STEPS };
        match find(&program, kind, name, steps) {
            Ok(finding) => {
                progress::say(line(name, &finding));
                record.put(&item, value(&finding))?;
            }
            Err(error) => {
                progress::say(format!("FAILED {error}"));
                faults.push(error.to_string());
            }
        }
    }
    Ok(faults)
}

/// The defects that the simulation knows: a name, what it does and the kind of seeds that find it, in each line.
fn names(list: &str) -> impl Iterator<Item = (&str, Kind)> {
    list.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let is_whole = fields.nth(1) == Some(Kind::WHOLE.name);
        Some((name, if is_whole { Kind::WHOLE } else { Kind::ABUSE }))
    })
}

/// What fails without a defect proves nothing with one.
fn runs_unbroken(program: &Path, kind: Kind, steps: u64) -> Result<()> {
    progress::step(&format!("planted defects: unbroken, {}", kind.name), || {
        command::output(&mut simulation(program, kind, steps)).map(drop)
    })
}

fn find(program: &Path, kind: Kind, name: &str, steps: u64) -> Result<Finding> {
    let mut line = simulation(program, kind, steps);
    let out = line.args(["--defect", name]).output().doing(|| "cannot run the simulation")?;
    if out.status.success() {
        fail!("defect {name}: not found in {steps} steps");
    }
    let text = String::from_utf8_lossy(&out.stderr);
    match finding(&text, kind.per_seed).filter(|_| out.status.code() != Some(TIMED_OUT)) {
        Some(finding) => Ok(finding),
        None => fail!("defect {name}: {}\n{}", out.status, command::last_lines(&text, 20)),
    }
}

fn simulation(program: &Path, kind: Kind, steps: u64) -> Command {
    let mut line = command::new("timeout", &[SECONDS]);
    line.arg(program).args(["--seed", &SEED.to_string(), "--steps", &steps.to_string()]);
    line.args(["--kind", kind.name, "--per-seed", &kind.per_seed.to_string()]);
    line
}

/// What a simulation that failed said. One that a second panic ended says less: where the first was, and of what.
fn finding(text: &str, per_seed: u64) -> Option<Finding> {
    let after = |line: &str, before: &str| -> Option<u64> {
        line.strip_prefix(before)?.strip_suffix(" steps")?.parse().ok()
    };
    let mut lines = text.lines();
    let steps = text.lines().find_map(|line| after(line, "found after "));
    let steps = steps.or_else(|| text.lines().find_map(|line| after(line, "panic after ")))?;
    let replay = text.lines().find(|line| line.starts_with("replay: "));
    let seed = replay.and_then(|line| line.split_once("--seed ")?.1.split(' ').next());
    let seed = seed.and_then(|seed| seed.parse().ok());
    let first = SEED.saturating_add(steps.checked_div(per_seed)?);
    let told =
        text.lines().find(|line| line.starts_with("step ") || line.starts_with("panicked: "));
    let message = match told {
        Some(told) => told,
        None => {
            lines.find(|line| line.contains(" panicked at "))?;
            lines.next()?
        }
    };
    let message = message.chars().take(300).collect();
    Some(Finding { steps, seed: seed.unwrap_or(first), message })
}

fn line(name: &str, Finding { steps, seed, message }: &Finding) -> String {
    format!("defect {name}: found after {steps} steps, seed {seed}: {message}")
}

fn value(Finding { steps, seed, message }: &Finding) -> Value {
    json!({"steps": steps, "seed": seed, "message": message})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_when_where_and_what() {
        let text = "fw: resumed\nstep 13: case 0, and the vif stays\nfound after 513 steps\n\
                    replay: cargo xtask sim --seed 2 --steps 500 --defect tx-sizes-unchecked\n";
        let message = "step 13: case 0, and the vif stays".into();
        assert_eq!(finding(text, 500), Some(Finding { steps: 513, seed: 2, message }));
    }

    #[test]
    fn a_panic_counts_even_if_it_ends_the_program() {
        let text = "panic after 1048 steps\n\nthread 'main' panicked at a.rs:1:2:\nin use\n\
                    panic after 1048 steps\nthread caused non-unwinding panic. aborting.\n";
        let message = "in use".into();
        assert_eq!(finding(text, 500), Some(Finding { steps: 1048, seed: 3, message }));
    }

    #[test]
    fn a_program_that_does_not_start_finds_nothing() {
        assert_eq!(finding("\"--defekt\" is none of these:\nsim [--seed S]", 500), None);
        assert_eq!(finding("", 500), None);
    }

    #[test]
    fn the_list_is_read_by_its_names() {
        let list = "port-leaked\tIt stays open.\tabuse\nttl-ignored\tIt stays.\twhole\n\n";
        let wanted = [("port-leaked", Kind::ABUSE), ("ttl-ignored", Kind::WHOLE)];
        assert_eq!(names(list).collect::<Vec<_>>(), wanted);
    }
}
