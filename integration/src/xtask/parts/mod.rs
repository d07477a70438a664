//! The parts of `cargo xtask test` that exist in two lengths: short in every `test`, long in `test --long PART`.
//! Each has a module of its own; [`ALL`] is the only place that lists them.

pub mod first_packet;
pub mod fuzz;
pub mod in_lab;
pub mod memory;
pub mod mutants;
pub mod record;
pub mod sim;
pub mod soak;

use crate::error::Result;
use crate::{fail, netns, progress};

/// One part. A form that is `None` does not exist yet, and nobody pretends that it ran.
pub struct Part {
    /// What `--long` calls it.
    pub name: &'static str,
    /// Its form in every `test`, within the budget of `test`; the message of an error says how to repeat it.
    pub short: Option<fn() -> Result<()>>,
    /// Its form in `test --long`: at most 60 minutes, resumable, results through [`record::Record`].
    pub long: Option<fn() -> Result<()>>,
    /// Why this machine cannot run it, though nothing is wrong with the project: `test` then names it as not run.
    pub refusal: fn() -> Result<Option<String>>,
    /// Whether its short form judges no time, so that `test` runs it on what the lab leaves of the processor.
    pub is_patient: bool,
}

impl Part {
    const fn new(
        name: &'static str,
        short: fn() -> Result<()>,
        long: fn() -> Result<()>,
        refusal: fn() -> Result<Option<String>>,
    ) -> Self {
        Self { name, short: Some(short), long: Some(long), refusal, is_patient: false }
    }

    const fn patient(self) -> Self {
        Self { is_patient: true, ..self }
    }
}

/// The parts, in the order in which `test` runs their short forms.
pub const ALL: &[Part] = &[
    Part::new("diff", crate::diff::short, crate::diff::long, netns::refusal),
    Part::new("stacks", crate::stacks::run, crate::stacks::run, netns::refusal),
    Part::new("first-packet", first_packet::run, first_packet::run, runs_anywhere).patient(),
    Part::new("fuzz", fuzz::short, fuzz::long, runs_anywhere).patient(),
    Part::new("sim", sim::short, sim::long, runs_anywhere).patient(),
    Part::new("memory", memory::short, memory::long, runs_anywhere).patient(),
    Part::new("mutants", mutants::short, mutants::long, runs_anywhere).patient(),
    Part { long: Some(in_lab::lifecycle), ..planned("lifecycle") },
    Part { long: Some(in_lab::abuse), ..planned("abuse") },
    Part { long: Some(soak::long), ..planned("soak") },
    Part { long: Some(crate::xtask::package::long), ..planned("package") },
];

/// A part that the design names and nobody has written, or not in this length.
const fn planned(name: &'static str) -> Part {
    Part { name, short: None, long: None, refusal: runs_anywhere, is_patient: false }
}

fn runs_anywhere() -> Result<Option<String>> {
    Ok(None)
}

/// `test --long PART`; without a name every long form that exists.
///
/// # Errors
/// When a part fails, or there is none to run: then nothing was tested.
pub fn long(name: Option<&str>) -> Result<()> {
    let names: Vec<&str> = ALL.iter().map(|part| part.name).collect();
    let chosen: Vec<&Part> = match name {
        Some(name) => ALL.iter().filter(|part| part.name == name).collect(),
        None => ALL.iter().filter(|part| part.long.is_some()).collect(),
    };
    if let (Some(name), []) = (name, chosen.as_slice()) {
        fail!("test --long knows no part {name:?} (planned: {})", names.join(", "));
    }
    let mut failures = Vec::new();
    let mut ran = 0_usize;
    for part in chosen {
        let Some(work) = part.long else {
            fail!("test --long {} does not exist yet; nothing was tested", part.name)
        };
        ran = ran.saturating_add(1);
        progress::say(format!("test --long {}", part.name));
        if let Err(error) = work() {
            progress::say(format!("FAILED {}: {error}", part.name));
            failures.push(part.name);
        }
    }
    match failures.as_slice() {
        [] if ran == 0 => fail!(
            "none of the parts of test --long exists yet ({}); nothing was tested",
            names.join(", ")
        ),
        [] => Ok(()),
        failures => fail!("long parts failed: {}", failures.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_part_is_an_error() {
        assert!(long(Some("nothing")).unwrap_err().to_string().contains("knows no part"));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|part| part.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
