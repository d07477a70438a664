//! The whole appliance on the in-memory hypervisor: event loop, packet core and drivers as they are in the image, between an
//! honest client, hostile clients and NetVMs of both kinds. `cargo xtask sim --seed S --steps N` runs it.
//!
//! A step is one thing that reaches the appliance: a frame, a ring index, an event, a xenstore node, time. After each step
//! what must always hold is checked (`world`); after each visit of a hostile peer everything that it cost must be back. A
//! seed decides everything: a run that failed is replayed with it. What was done is printed in lines of tab-separated fields.

#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "a mistake of a test ends it, as it should")]

mod frames;
mod guest;
mod netvm;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use world::World;

/// Steps under one seed, if nobody says otherwise.
const STEPS_PER_SEED: u64 = 500;

/// What the command line asks for.
struct Order {
    seed: u64,
    steps: u64,
    per_seed: u64,
}

fn main() -> ExitCode {
    match order().and_then(|order| run(&order)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn order() -> Result<Order, String> {
    let mut order = Order { seed: 1, steps: 1000, per_seed: STEPS_PER_SEED };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let place = match word.as_str() {
            "--seed" => &mut order.seed,
            "--steps" => &mut order.steps,
            "--per-seed" => &mut order.per_seed,
            other => {
                return Err(format!("sim [--seed S] [--steps N] [--per-seed N], not {other:?}"));
            }
        };
        let number = words.next().and_then(|value| value.parse().ok());
        *place = number.ok_or_else(|| format!("{word} wants a number"))?;
    }
    Ok(order)
}

fn run(order: &Order) -> Result<(), String> {
    let (mut effects, mut tried) = (BTreeMap::new(), BTreeMap::new());
    let (mut steps, mut seed, mut told, mut answered) = (0, order.seed, 0, 0);
    while steps < order.steps {
        let count = order.per_seed.clamp(1, order.steps - steps);
        let done = catch_unwind(AssertUnwindSafe(|| one(seed, count)));
        let world = match done {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(problem)) => return Err(failed(seed, count, &problem)),
            Err(_) => return Err(failed(seed, count, "panicked")),
        };
        add(&mut effects, &world.effects);
        add(&mut tried, &world.tried);
        told += world.honest_sent;
        answered += world.honest_answered;
        steps += count;
        seed += 1;
    }
    println!("steps\t{steps}\nseeds\t{}", seed - order.seed);
    println!("honest packets\t{told}\nhonest answers\t{answered}");
    for act in world::acts() {
        let count = |counts: &BTreeMap<_, _>| counts.get(act).copied().unwrap_or(0);
        println!("act\t{act}\t{}\t{}", count(&tried), count(&effects));
    }
    Ok(())
}

/// What a run under one seed showed.
struct Outcome {
    effects: BTreeMap<&'static str, u64>,
    tried: BTreeMap<&'static str, u64>,
    honest_sent: u64,
    honest_answered: u64,
}

fn one(seed: u64, steps: u64) -> Result<Outcome, String> {
    let mut world = World::new(seed);
    for step in 0..steps {
        world.step().map_err(|problem| format!("{}\nstep {step}: {problem}", world.said()))?;
    }
    world.end()
}

fn add(sum: &mut BTreeMap<&'static str, u64>, part: &BTreeMap<&'static str, u64>) {
    for (act, count) in part {
        *sum.entry(act).or_insert(0) += count;
    }
}

fn failed(seed: u64, steps: u64, problem: &str) -> String {
    format!("{problem}\nreplay: cargo xtask sim --seed {seed} --steps {steps}")
}
