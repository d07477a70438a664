//! The simulated Xen: the appliance between hostile peers, and the whole system with dom0. `integration/sim` is the
//! simulation, this runs it. That it notices what is wrong is shown by `mutants::planted`.
//!
//! `cargo xtask sim --seed S --steps N` runs one; `test` some under seeds of the day, `test --long sim` ten million steps
//! of each kind: 20,000 seeds of hostile peers, 1,000 of the whole system.

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
/// So often each act has to take effect.
const SHORT_LEAST: u64 = 1;
const LONG_LEAST: u64 = 1000;
/// What happens once at the end of some seeds only, and how much more seldom it may.
const SELDOM: &str = "W10 ";
const SELDOM_SHARE: u64 = 10;
/// Steps under one seed in the simulation, and of the whole system in its long form.
pub(super) const STEPS_PER_SEED: u64 = 500;
const WHOLE_STEPS_PER_SEED: u64 = 10_000;
/// The kinds of seeds, with the steps under each of them in the long form.
const KINDS: [(&str, u64); 2] = [("abuse", STEPS_PER_SEED), ("whole", WHOLE_STEPS_PER_SEED)];

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
            .filter(|(name, (_, effects))| {
                let share = if name.starts_with(SELDOM) { SELDOM_SHARE } else { 1 };
                *effects < least.div_ceil(share)
            })
            .map(|(name, _)| name.as_str())
            .collect();
        match (self.acts.is_empty(), idle.as_slice()) {
            (false, []) => Ok(()),
            (true, _) => fail!("the simulation knows no hostile act"),
            (_, idle) => fail!("less than {least} times in effect: {}", idle.join(", ")),
        }
    }
}

/// `cargo xtask sim [--seed S] [--steps N] [--per-seed N] [--kind abuse|whole] [--defect NAME]`, `--soak-minutes N [--rate P]`
/// or `--defects`. Without a kind even seeds are of the whole system.
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
        sum.add(&simulate(&program, seconds, SHORT_STEPS, &[])?)
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
    let count = LONG_STEPS / ITEM_STEPS;
    let items: Vec<Item> =
        KINDS.iter().flat_map(|kind| (0..count).map(|number| Item { kind, number })).collect();
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
        let Some(output) = record.get(&item.name()).and_then(Value::as_str) else {
            fail!("{} did not run", item.name())
        };
        sum.add(output)?;
    }
    sum.say();
    sum.judge(LONG_LEAST)?;
    record.finish().map(drop)
}

/// Some seeds of one kind.
#[derive(Clone, Copy, Debug)]
struct Item {
    kind: &'static (&'static str, u64),
    number: u64,
}

impl Item {
    fn first_seed(self) -> u64 {
        let seeds = ITEM_STEPS.checked_div(self.kind.1).unwrap_or(1);
        self.number.saturating_mul(seeds).saturating_add(1)
    }

    /// In the record.
    fn name(self) -> String {
        format!("{} {:06}", self.kind.0, self.first_seed())
    }
}

/// Runs one item, unless an earlier run has.
fn one(program: &PathBuf, item: Item, kept: &Mutex<(Record, Vec<String>)>) -> Result<()> {
    let lock = || kept.lock().map_err(|_| Error::Failed("a thread panicked".into()));
    if lock()?.0.get(&item.name()).is_some() {
        return Ok(());
    }
    let (kind, per_seed) = item.kind;
    let more = ["--kind", kind, "--per-seed", &per_seed.to_string()];
    let output = simulate(program, item.first_seed(), ITEM_STEPS, &more)?;
    lock()?.0.put(&item.name(), json!(output))?;
    progress::say(format!("{}: {ITEM_STEPS} steps", item.name()));
    Ok(())
}

fn simulate(program: &PathBuf, seed: u64, steps: u64, more: &[&str]) -> Result<String> {
    let (seed, steps) = (seed.to_string(), steps.to_string());
    let mut line = Command::new(program);
    command::output(line.args(["--seed", &seed, "--steps", &steps]).args(more))
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

    #[test]
    fn what_ends_a_seed_may_be_more_seldom() {
        let mut sum = Sum::default();
        sum.add("act\tW10 x\t4\t2\n").unwrap();
        assert!(sum.judge(20).is_ok() && sum.judge(21).is_err());
    }

    #[test]
    fn items_of_a_kind_do_not_share_seeds() {
        let first = |kind, number| Item { kind: &KINDS[kind], number }.first_seed();
        assert_eq!([first(0, 0), first(0, 1), first(1, 0), first(1, 1)], [1, 201, 1, 11]);
    }
}
