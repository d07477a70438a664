//! The simulated Xen: the appliance between hostile peers. `integration/sim` is the simulation, this runs it. That it
//! notices what is wrong is shown by `mutants::planted`.
//!
//! `cargo xtask sim --seed S --steps N` runs one; `test` some under seeds of the day, `test --long sim` ten million steps.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::mutants;
use super::record::Record;
use crate::error::{Error, Result};
use crate::xtask::image::cargo;
use crate::{command, fail, paths, progress};

/// Steps in every `test`, and in `test --long sim`.
const SHORT_STEPS: u64 = 100_000;
const LONG_STEPS: u64 = 10_000_000;
/// Processes at a time.
const AT_ONCE: usize = 2;
/// Steps of one item of the record.
const ITEM_STEPS: u64 = 100_000;
/// So often each hostile act has to take effect.
const SHORT_LEAST: u64 = 1;
const LONG_LEAST: u64 = 1000;
/// Steps under one seed in the simulation.
pub(super) const STEPS_PER_SEED: u64 = 500;

/// What simulations did, summed up.
#[derive(Debug, Default, PartialEq)]
struct Sum {
    /// Steps, seeds, packets of the honest client and answers to it, by name.
    figures: BTreeMap<String, u64>,
    /// How often each hostile act was tried, and took effect.
    acts: BTreeMap<String, (u64, u64)>,
}

impl Sum {
    /// Adds what one simulation printed.
    fn add(&mut self, output: &str) -> Result<()> {
        for line in output.lines() {
            let number = |text: &str| text.parse::<u64>().ok();
            match line.split('\t').collect::<Vec<_>>().as_slice() {
                ["act", name, tried, effects] => {
                    let (Some(tried), Some(effects)) = (number(tried), number(effects)) else {
                        fail!("what did the simulation count? {line:?}")
                    };
                    let sum = self.acts.entry((*name).to_owned()).or_default();
                    *sum = (sum.0.saturating_add(tried), sum.1.saturating_add(effects));
                }
                [name, value] => {
                    let Some(value) = number(value) else { fail!("no number: {line:?}") };
                    let sum = self.figures.entry((*name).to_owned()).or_default();
                    *sum = sum.saturating_add(value);
                }
                _ => fail!("what did the simulation print? {line:?}"),
            }
        }
        Ok(())
    }

    fn say(&self) {
        let figures = self.figures.iter().map(|(name, value)| format!("{value} {name}"));
        progress::say(figures.collect::<Vec<_>>().join(", "));
        for (name, (tried, effects)) in &self.acts {
            progress::say(format!("{name:<52} {tried:>8} tried {effects:>8} took effect"));
        }
    }

    /// That nothing was left out.
    fn judge(&self, least: u64) -> Result<()> {
        let idle: Vec<&str> = self
            .acts
            .iter()
            .filter(|(_, (_, effects))| *effects < least)
            .map(|(name, _)| name.as_str())
            .collect();
        match (self.acts.is_empty(), idle.as_slice()) {
            (false, []) => Ok(()),
            (true, _) => fail!("the simulation knows no hostile act"),
            (_, idle) => fail!("less than {least} times in effect: {}", idle.join(", ")),
        }
    }
}

/// `cargo xtask sim [--seed S] [--steps N] [--per-seed N] [--defect NAME]`, `--soak-minutes N [--rate P]` or `--defects`.
///
/// # Errors
/// When something did not hold; the message says how to replay it.
pub fn run(args: &[&str]) -> Result<()> {
    let mut line = Command::new(build()?);
    let output = command::output(line.args(args))?;
    if args == ["--defects"] {
        progress::say(output.trim_end());
        return Ok(());
    }
    let mut sum = Sum::default();
    sum.add(&output)?;
    sum.say();
    Ok(())
}

/// In `test`: under seeds that nobody has chosen, and with some defects, so that who reads "held" knows that it can fail.
///
/// # Errors
/// When something did not hold, an act never took effect, or a defect was not found.
pub fn short() -> Result<()> {
    let program = build()?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_secs());
    let mut sum = Sum::default();
    progress::step(&format!("sim: {SHORT_STEPS} steps from seed {seconds}"), || {
        sum.add(&simulate(&program, seconds, SHORT_STEPS)?)
    })?;
    sum.say();
    sum.judge(SHORT_LEAST)?;
    mutants::planted::short()
}

/// `test --long sim`.
///
/// # Errors
/// When something did not hold, or an act took effect too seldom.
pub fn long() -> Result<()> {
    let record = Record::open("sim")?;
    // The build takes longer than that of `test`, and the steps less.
    let program = build_for("sim-long")?;
    let items: Vec<u64> = (0..LONG_STEPS / ITEM_STEPS).collect();
    let (queue, kept) = (Mutex::new(items.iter()), Mutex::new((record, Vec::new())));
    let worker = || {
        while let Some(item) = queue.lock().ok().and_then(|mut queue| queue.next()) {
            if let Err(error) = one(&program, *item, &kept)
                && let Ok(mut kept) = kept.lock()
            {
                kept.1.push(error.to_string());
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(worker);
        }
    });
    let Ok((record, errors)) = kept.into_inner() else { fail!("a thread panicked") };
    if !errors.is_empty() {
        fail!("{}", errors.join("\n"));
    }
    let mut sum = Sum::default();
    for item in items {
        let Some(output) = record.get(&name(item)).and_then(Value::as_str) else {
            fail!("{} did not run", name(item))
        };
        sum.add(output)?;
    }
    sum.say();
    sum.judge(LONG_LEAST)?;
    record.finish().map(drop)
}

/// Runs one item, unless an earlier run has.
fn one(program: &PathBuf, item: u64, kept: &Mutex<(Record, Vec<String>)>) -> Result<()> {
    let lock = || kept.lock().map_err(|_| Error::Failed("a thread panicked".into()));
    if lock()?.0.get(&name(item)).is_some() {
        return Ok(());
    }
    let output = simulate(program, first_seed(item), ITEM_STEPS)?;
    lock()?.0.put(&name(item), json!(output))?;
    progress::say(format!("item {item} of {}: {ITEM_STEPS} steps", LONG_STEPS / ITEM_STEPS));
    Ok(())
}

fn first_seed(item: u64) -> u64 {
    item.saturating_mul(ITEM_STEPS / STEPS_PER_SEED).saturating_add(1)
}

/// Of an item in the record.
fn name(item: u64) -> String {
    format!("{:06}", first_seed(item))
}

fn simulate(program: &PathBuf, seed: u64, steps: u64) -> Result<String> {
    let (seed, steps) = (seed.to_string(), steps.to_string());
    command::output(Command::new(program).args(["--seed", &seed, "--steps", &steps]))
}

/// Builds the simulation; where it is.
pub(super) fn build() -> Result<PathBuf> {
    build_for("sim")
}

fn build_for(profile: &str) -> Result<PathBuf> {
    let features = ["--no-default-features", "--features", "fake"];
    let mut line = cargo(&["build", "--quiet", "--profile", profile, "--example", "sim"]);
    line.args(features);
    progress::step("building the simulation", || command::output(&mut line))?;
    Ok(paths::target().join(profile).join("examples/sim"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "steps\t10\nact\tR1 x\t4\t2\nact\tR2 y\t3\t0\n";

    #[test]
    fn what_simulations_did_is_summed_up() {
        let mut sum = Sum::default();
        sum.add(OUTPUT).unwrap();
        sum.add(OUTPUT).unwrap();
        assert_eq!(sum.figures["steps"], 20);
        assert_eq!((sum.acts["R1 x"], sum.acts["R2 y"]), ((8, 4), (6, 0)));
        assert!(sum.add("act\tR1 x\t4").is_err());
        assert!(sum.add("steps\tmany").is_err());
    }

    #[test]
    fn an_act_without_effect_is_an_error() {
        let mut sum = Sum::default();
        assert!(sum.judge(0).is_err(), "no acts at all");
        sum.add(OUTPUT).unwrap();
        assert!(sum.judge(0).is_ok());
        assert!(sum.judge(1).unwrap_err().to_string().contains("R2 y"));
    }
}
