//! The whole firewall on the in-memory hypervisor: event loop, packet core, drivers, QubesDB client, qrexec agent and resolver
//! as they are in the image, in virtual time. `cargo xtask sim --seed S --steps N` runs it.
//!
//! Seeds are of two kinds, in turns or as `--kind` says:
//! - *abuse* (odd): hostile clients and NetVMs do their worst to the drivers between honest ones, with rules that accept all.
//! - *whole* (even): dom0 edits rules, loses its daemons and has them back, changes the NetVM; clients come, go, talk, ask
//!   resolvers that answer, fail and are lied about; time jumps; hostile peers visit as well (`whole`). IPv4 only; of TCP
//!   no more than the packets that open connections.
//!
//! A step is one thing that reaches the appliance: a frame, a ring index, an event, a node, a word of dom0, time. After each
//! turn of the loop an oracle that knows the rules from what dom0 wrote (`whole::model`) judges every frame that left, to
//! the uplink and to a client; what must get through has to within some turns; after each visit of a hostile peer everything
//! that it cost must be back. A seed decides everything: a run that failed is replayed with it. What was done is printed in
//! lines of tab-separated fields: how often each act was tried, and how often it took effect.
//!
//! `--defect NAME` breaks the drivers as `xen::planted` says or the rest as `firewall::planted` does, to show that the run
//! fails then; `--defects` lists the names. `--soak-minutes N` has honest traffic for so long in place of acts (`soak`).

#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "a mistake of a test ends it, as it should")]

#[expect(dead_code, reason = "the memory tests ask other things of dom0")]
#[path = "../double/dom0.rs"]
mod dom0;
#[path = "../double/appliance.rs"]
mod double;
#[path = "../double/frames.rs"]
mod frames;
mod guest;
mod honest;
mod ledger;
mod netvm;
mod setup;
mod soak;
mod whole;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use firewall::planted as core_planted;
use world::World;
use xen::mem::Heap;
use xen::planted;

/// That of the image, so that the books are kept.
#[global_allocator]
static HEAP: Heap = Heap;

/// Steps under one seed, if nobody says otherwise.
const STEPS_PER_SEED: u64 = 500;
/// Packets a second each way of a soak, if nobody says otherwise.
const SOAK_RATE: u64 = 100;
/// After so many ms the log has told of all drops.
const SUMMARY_MS: u64 = 6000;
const USAGE: &str = "sim [--seed S] [--steps N] [--per-seed N] [--kind abuse|whole] [--defect NAME]
sim --soak-minutes N [--rate PACKETS-PER-SECOND] [--seed S] [--defect NAME]
sim --defects";

std::thread_local! {
    /// Steps of the seeds that are done, and of the present one: for who reads of a panic, even of one that ends all.
    static DONE: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// What happens under a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Hostile peers do their worst to the drivers.
    Abuse,
    /// The whole system at work.
    Whole,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Abuse => "abuse",
            Self::Whole => "whole",
        }
    }

    /// In turns, if nobody says which.
    fn of(seed: u64) -> Self {
        if seed.is_multiple_of(2) { Self::Whole } else { Self::Abuse }
    }
}

/// Something that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    Driver(planted::Defect),
    Core(core_planted::Defect),
}

impl Defect {
    fn all() -> impl Iterator<Item = Self> {
        let drivers = planted::Defect::ALL.iter().copied().map(Self::Driver);
        drivers.chain(core_planted::Defect::ALL.iter().copied().map(Self::Core))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Driver(defect) => defect.name(),
            Self::Core(defect) => defect.name(),
        }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Driver(defect) => defect.description(),
            Self::Core(defect) => defect.description(),
        }
    }

    /// Under which seeds it has to be found.
    fn kind(self) -> Kind {
        match self {
            Self::Driver(_) => Kind::Abuse,
            Self::Core(_) => Kind::Whole,
        }
    }

    fn plant(self) {
        match self {
            Self::Driver(defect) => planted::plant(Some(defect)),
            Self::Core(defect) => core_planted::plant(Some(defect)),
        }
    }
}

/// What the command line asks for.
struct Order {
    seed: u64,
    steps: u64,
    per_seed: u64,
    defect: Option<Defect>,
    kind: Option<Kind>,
    /// A soak of so many minutes in place of steps.
    soak_minutes: Option<u64>,
    rate: u64,
}

fn main() -> ExitCode {
    if std::env::args().skip(1).eq(["--defects"]) {
        for defect in Defect::all() {
            println!("{}\t{}\t{}", defect.name(), defect.description(), defect.kind().name());
        }
        return ExitCode::SUCCESS;
    }
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        eprintln!("panic {}", after());
        default_hook(info);
    }));
    let done = order(std::env::args().skip(1)).and_then(|order| {
        order.defect.inspect(|defect| defect.plant());
        match order.soak_minutes {
            Some(minutes) => soak(&order, minutes),
            None => run(&order),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn order(mut words: impl Iterator<Item = String>) -> Result<Order, String> {
    let mut order = Order {
        seed: 1,
        steps: 1000,
        per_seed: STEPS_PER_SEED,
        defect: None,
        kind: None,
        soak_minutes: None,
        rate: SOAK_RATE,
    };
    while let Some(word) = words.next() {
        let value = words.next();
        let number = || value.as_deref().and_then(|value| value.parse::<u64>().ok());
        let place = match word.as_str() {
            "--seed" => &mut order.seed,
            "--steps" => &mut order.steps,
            "--per-seed" => &mut order.per_seed,
            "--rate" => &mut order.rate,
            "--soak-minutes" => order.soak_minutes.insert(0),
            "--kind" => {
                let mut kinds = [Kind::Abuse, Kind::Whole].into_iter();
                let kind = kinds.find(|kind| Some(kind.name()) == value.as_deref());
                order.kind = Some(kind.ok_or("--kind wants abuse or whole")?);
                continue;
            }
            "--defect" => {
                let is_it = |defect: &Defect| Some(defect.name()) == value.as_deref();
                let defect = Defect::all().find(is_it);
                order.defect = Some(defect.ok_or("--defect wants a name that --defects lists")?);
                continue;
            }
            other => return Err(format!("{other:?} is none of these:\n{USAGE}")),
        };
        *place = number().ok_or_else(|| format!("{word} wants a number"))?;
    }
    Ok(order)
}

fn run(order: &Order) -> Result<(), String> {
    let (mut effects, mut tried) = (BTreeMap::new(), BTreeMap::new());
    let (mut steps, mut seed, mut told, mut answered) = (0, order.seed, 0, 0);
    while steps < order.steps {
        let count = order.per_seed.clamp(1, order.steps - steps);
        DONE.set((steps, 0));
        let kind = order.kind.unwrap_or(Kind::of(seed));
        let world = guarded(|| one(seed, count, kind)).map_err(|problem| {
            let each = if order.per_seed == STEPS_PER_SEED {
                String::new()
            } else {
                format!(" --per-seed {count}")
            };
            let kind = match kind == Kind::of(seed) {
                true => String::new(),
                false => format!(" --kind {}", kind.name()),
            };
            let replay = format!("cargo xtask sim --seed {seed} --steps {count}{each}{kind}");
            failed(&problem, order, replay)
        })?;
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

fn soak(order: &Order, minutes: u64) -> Result<(), String> {
    let (seed, rate) = (order.seed, order.rate);
    let done = guarded(|| soak::run(seed, minutes, rate)).map_err(|problem| {
        let replay =
            format!("cargo xtask sim --soak-minutes {minutes} --rate {rate} --seed {seed}");
        failed(&problem, order, replay)
    })?;
    println!("minutes\t{minutes}\npackets out\t{}\npackets in\t{}", done.sent, done.received);
    println!("visits\t{}\nledgers compared\t{}", done.visits, done.compared);
    Ok(())
}

/// A panic is a failure like others.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// What a run under one seed showed.
struct Outcome {
    effects: BTreeMap<&'static str, u64>,
    tried: BTreeMap<&'static str, u64>,
    honest_sent: u64,
    honest_answered: u64,
}

fn one(seed: u64, steps: u64, kind: Kind) -> Result<Outcome, String> {
    let mut world = match kind {
        Kind::Abuse => World::new(seed),
        Kind::Whole => World::whole(seed).map_err(|problem| format!("step 0: {problem}"))?,
    };
    for step in 0..steps {
        DONE.set((DONE.get().0, step));
        let done = match kind {
            Kind::Abuse => world.step(),
            Kind::Whole => world.whole_step(),
        };
        if let Err(problem) = done {
            // What was dropped is told in summaries.
            let _ = world.pass(SUMMARY_MS);
            return Err(format!("{}\nstep {step}: {problem}", world.said()));
        }
    }
    DONE.set((DONE.get().0, steps));
    match kind {
        Kind::Abuse => world.end(),
        Kind::Whole => {
            let done = world.whole_end(seed);
            done.map_err(|problem| format!("{}\nstep {steps}: {problem}", world.said()))?;
            world.taken_down()
        }
    }
}

fn add(sum: &mut BTreeMap<&'static str, u64>, part: &BTreeMap<&'static str, u64>) {
    for (act, count) in part {
        *sum.entry(act).or_insert(0) += count;
    }
}

fn after() -> String {
    let (before, now) = DONE.get();
    format!("after {} steps", before + now)
}

/// The last two lines say when it was found, and how to see it again.
fn failed(problem: &str, order: &Order, mut replay: String) -> String {
    if let Some(defect) = order.defect {
        replay += &format!(" --defect {}", defect.name());
    }
    format!("{problem}\nfound {}\nreplay: {replay}", after())
}
