//! Differential tests: generated rule sets and packets, judged by our core and by the nftables of the host's kernel.
//!
//! `model` is what is compared; `generate` and `packets` draw it; `text` writes rules as dom0 does, for our side (`ours`:
//! the whole pipeline, its questions of names answered by `names`); `nft` translates them for Linux (`linux`: a
//! namespace with TAP devices, whose flows `conntrack` empties between sets), after what Qubes documents about its agent.
//! `packet` makes frames and reads those that come out. Addresses, ports, TTL, ICMP codes and MTU of what comes out are
//! compared, not only the verdict.
//!
//! What is known to differ is not generated: `exclusions` has a test for each, with both sides. `vectors` compares the
//! translator with what the agent itself was measured to do.

mod conntrack;
mod exclusions;
mod generate;
mod linux;
mod model;
mod names;
mod nft;
mod ours;
mod packet;
mod packets;
mod text;
mod vectors;

use model::{Family, Set, Verdict};

use crate::error::Result;
use crate::netns::Place;
use crate::xtask::parts::record::Record;
use crate::{apt, command, fail, netns, progress};

/// Packets that meet one rule set.
const PACKETS: usize = 50;
const SHORT_CASES: u64 = 20_000;
const LONG_CASES: u64 = 1_000_000;
/// Cases between two notes of a long run.
const NOTE: u64 = 50_000;
const SEED: u64 = 20_260_117;

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    cases: u64,
    accept: u64,
    reject: u64,
    drop: u64,
    sets: u64,
    accepting: u64,
}

/// The short form: part of every `test`.
///
/// # Errors
/// At the first difference.
pub fn short() -> Result<()> {
    if prepare(&["diff"])? == Place::Elsewhere {
        return Ok(());
    }
    let measured = vectors::check()?;
    let excluded = exclusions::check()?;
    let counts = run_all(SEED, 0, SHORT_CASES)?;
    progress::say(format!(
        "{measured} verdicts measured with Qubes' agent: the same on both sides"
    ));
    report(SEED, &counts);
    progress::say(format!("excluded, each with its own test: {}", excluded.join("; ")));
    judge(&counts)
}

/// The long form, which goes on where it was stopped.
///
/// # Errors
/// At the first difference.
pub fn long() -> Result<()> {
    if prepare(&["test", "--long", "diff"])? == Place::Elsewhere {
        return Ok(());
    }
    let mut record = Record::open("diff")?;
    let excluded = exclusions::check()?;
    let seed = SEED ^ 0xffff;
    let mut total = Counts::default();
    for from in (0..LONG_CASES).step_by(NOTE as usize) {
        let item = format!("{from:07}");
        let counts = match record.get(&item).and_then(Counts::read) {
            Some(counts) => counts,
            None => {
                let counts = run_all(seed, from, NOTE)?;
                record.put(&item, counts.write())?;
                progress::say(format!("{} of {LONG_CASES} cases, no difference", from + NOTE));
                counts
            }
        };
        total.add(&counts);
    }
    report(seed, &total);
    judge(&total)?;
    let families: Vec<String> = Family::ALL.iter().map(|family| format!("{family:?}")).collect();
    record.put(
        "total",
        serde_json::json!({"seed": seed, "differences": 0, "families": families, "counts": total.write(), "exclusions": excluded}),
    )?;
    record.finish().map(drop)
}

/// One set again, with all that is known about it.
///
/// # Errors
/// When it differs, or the numbers cannot be read.
pub fn replay(family: &str, seed: &str, number: &str) -> Result<()> {
    if prepare(&["diff", family, seed, number])? == Place::Elsewhere {
        return Ok(());
    }
    let family = if family == "v6" { Family::V6 } else { Family::V4 };
    let (Ok(seed), Ok(number)) = (seed.parse(), number.parse()) else {
        fail!("usage: cargo xtask diff v4|v6 SEED SET");
    };
    let (set, packets) = generate::case(family, seed, number, PACKETS);
    describe(&set);
    let linux = linux::Linux::new(family)?;
    let verdicts = judged_by_linux(&linux, &set, &packets)?;
    let ours = judged_by_us(&set, &packets)?;
    for ((packet, ours), linux) in packets.iter().zip(&ours).zip(&verdicts) {
        let mark = if ours == linux { "  " } else { "! " };
        progress::say(format!("{mark}{packet:?}: ours {ours:?}, Linux {linux:?}"));
    }
    if ours == verdicts { Ok(()) } else { fail!("the set differs") }
}

/// Installs what is missing, and finds a place for the work.
fn prepare(args: &[&str]) -> Result<Place> {
    let has_names = std::path::Path::new("/etc/protocols").exists();
    if !command::exists("nft") || !command::exists("ip") || !has_names {
        apt::ensure(netns::PACKAGES)?;
    }
    netns::enter(args)
}

fn run_all(seed: u64, from: u64, cases: u64) -> Result<Counts> {
    let mut counts = Counts::default();
    let per_family = cases / Family::ALL.len() as u64 / PACKETS as u64;
    let first = from / Family::ALL.len() as u64 / PACKETS as u64;
    for family in Family::ALL {
        let linux = linux::Linux::new(family)?;
        for number in first..first + per_family {
            compare(&linux, family, seed, number, &mut counts)?;
        }
    }
    Ok(counts)
}

fn compare(
    linux: &linux::Linux,
    family: Family,
    seed: u64,
    number: u64,
    counts: &mut Counts,
) -> Result<()> {
    let (set, packets) = generate::case(family, seed, number, PACKETS);
    let theirs = judged_by_linux(linux, &set, &packets)?;
    let ours = judged_by_us(&set, &packets)?;
    let before = counts.accept;
    for ((packet, ours), theirs) in packets.iter().zip(&ours).zip(&theirs) {
        if ours != theirs {
            describe(&set);
            let word = family.word();
            fail!(
                "{packet:?}: our firewall {ours:?}, Linux {theirs:?}\nagain: cargo xtask diff {word} {seed} {number}"
            );
        }
        counts.count(*ours);
    }
    counts.sets += 1;
    counts.accepting += u64::from(counts.accept > before);
    Ok(())
}

fn judged_by_linux(
    linux: &linux::Linux,
    set: &Set,
    packets: &[model::Packet],
) -> Result<Vec<Verdict>> {
    linux.load(nft::replace(set))?;
    linux.verdicts(packets)
}

fn judged_by_us(set: &Set, packets: &[model::Packet]) -> Result<Vec<Verdict>> {
    let mut ours = ours::Ours::new(set.family, &text::entries(set))?;
    packets.iter().map(|packet| ours.verdict(packet)).collect()
}

fn describe(set: &Set) {
    progress::say("the rules as dom0 writes them:");
    for (key, value) in text::entries(set) {
        progress::say(format!("  {key} {value}"));
    }
    progress::say("as nftables:");
    for line in nft::chain(set) {
        progress::say(format!("  {line}"));
    }
}

fn report(seed: u64, counts: &Counts) {
    let Counts { cases, accept, reject, drop, sets, accepting } = counts;
    progress::say(format!(
        "seed {seed}: {cases} cases in {sets} rule sets, no difference; accept {accept}, reject {reject}, drop {drop}; {accepting} sets accept something"
    ));
}

fn judge(counts: &Counts) -> Result<()> {
    let share = |part: u64, whole: u64| part.saturating_mul(100) / whole.max(1);
    for (name, count) in
        [("accept", counts.accept), ("reject", counts.reject), ("drop", counts.drop)]
    {
        if share(count, counts.cases) < 15 {
            fail!("only {count} of {} cases ended with {name}: less than 15 %", counts.cases);
        }
    }
    if share(counts.accepting, counts.sets) < 30 {
        fail!("only {} of {} sets accept something: less than 30 %", counts.accepting, counts.sets);
    }
    Ok(())
}

impl Counts {
    fn count(&mut self, verdict: Verdict) {
        self.cases += 1;
        match verdict {
            Verdict::Accept { .. } => self.accept += 1,
            // Pings of the gateway pass whatever the rules say: they are no merit of a set.
            Verdict::Answer => {}
            Verdict::Reject { .. } => self.reject += 1,
            Verdict::Drop => self.drop += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.cases += other.cases;
        self.accept += other.accept;
        self.reject += other.reject;
        self.drop += other.drop;
        self.sets += other.sets;
        self.accepting += other.accepting;
    }

    fn write(&self) -> serde_json::Value {
        serde_json::json!({
            "cases": self.cases, "accept": self.accept, "reject": self.reject, "drop": self.drop,
            "sets": self.sets, "accepting_sets": self.accepting,
        })
    }

    fn read(value: &serde_json::Value) -> Option<Self> {
        let number = |name: &str| value.get(name)?.as_u64();
        Some(Self {
            cases: number("cases")?,
            accept: number("accept")?,
            reject: number("reject")?,
            drop: number("drop")?,
            sets: number("sets")?,
            accepting: number("accepting_sets")?,
        })
    }
}
