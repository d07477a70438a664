//! Runs the scenarios: one line for each, with its time and what it measured.

use std::time::Instant;

use serde_json::json;

use super::image::{self, Image};
use super::parts::record::Record;
use crate::error::{Error, Result};
use crate::lab::cache::{self, Images};
use crate::lab::world::{Kind, World};
use crate::lab::{Lab, dom0d};
use crate::scenarios::{GROUPS, Group, LONG_ONLY, NOT_SHOWN_YET, Scenario};
use crate::{command, fail, paths, progress};

/// Lines of a firewall's console that are shown after a failure.
const LAST_LINES: usize = 40;
/// How often a scenario is repeated on a fresh boot because the emulator failed.
const EMULATOR_TRIES: u32 = 3;

/// Counts of a run.
#[derive(Default)]
struct Tally<'a> {
    passed: u32,
    /// Names and reasons.
    failed: Vec<String>,
    emulator_faults: u32,
    /// Number of the run, when there are several.
    run: Option<u32>,
    /// Where those that hold are kept.
    record: Option<&'a mut Record>,
}

impl Tally<'_> {
    /// What a scenario is called in this run's report and logs.
    fn label(&self, scenario: &Scenario) -> String {
        match self.run {
            Some(run) => format!("{run}: {}", scenario.name),
            None => scenario.name.to_owned(),
        }
    }

    /// Keeps what a scenario measured. One that cannot be kept is run again next time.
    fn keep(&mut self, scenario: &Scenario, note: &str, begun: Instant) {
        let Some(record) = &mut self.record else { return };
        let value = json!({"measured": note, "seconds": begun.elapsed().as_secs()});
        if let Err(error) = record.put(scenario.name, value) {
            progress::say(format!("{} is not kept: {error}", scenario.name));
        }
    }

    /// Says how the run went.
    fn judge(self) -> Result<()> {
        let faults = match self.emulator_faults {
            0 => String::new(),
            count => format!(" (repeated because of emulator faults: {count})"),
        };
        progress::say(format!("{} passed, {} failed{faults}", self.passed, self.failed.len()));
        if !self.failed.is_empty() {
            fail!("scenarios that did not hold: {}", self.failed.join("; "));
        }
        Ok(())
    }
}

/// Builds what the scenarios need beside the firewall's image.
///
/// # Errors
/// When something does not build or cannot be had.
pub fn prepare() -> Result<Images> {
    build_dom0d()?;
    cache::images(false)
}

/// Runs every scenario on `image`.
///
/// # Errors
/// When one does not hold; the logs of all domains are kept.
pub fn run_all(images: &Images, image: &Image) -> Result<()> {
    repeat_matching(images, image, "", 1)
}

/// Runs the scenarios that `filter` chooses (a part of the name, a group, or several of them with `|` between) `times`
/// times, each time on a fresh boot. Goes on after a failure.
///
/// # Errors
/// As [`run_all`], each failure with the number of its run; also when the filter matches nothing.
pub fn repeat_matching(images: &Images, image: &Image, filter: &str, times: u32) -> Result<()> {
    let mut tally = Tally::default();
    for run in 1..=times {
        if times > 1 {
            tally.run = Some(run);
            progress::say(format!("run {run} of {times}"));
        }
        if filter.is_empty() {
            if !NOT_SHOWN_YET.is_empty() {
                progress::say(format!("left out, not shown yet: {}", NOT_SHOWN_YET.join("; ")));
            }
            progress::say(format!(
                "left out for their time, variants of others: {}",
                LONG_ONLY.join("; ")
            ));
        }
        let mut booted = None;
        for group in GROUPS {
            let chosen: Vec<&Scenario> = group
                .scenarios
                .iter()
                .filter(|scenario| is_chosen(group, scenario, filter))
                .filter(|scenario| !filter.is_empty() || is_shown(group, scenario))
                .collect();
            if !chosen.is_empty() {
                run_group(images, image, group, &chosen, &mut booted, &mut tally);
            }
        }
    }
    if tally.passed == 0 && tally.failed.is_empty() {
        fail!("no scenario is named like {filter:?}");
    }
    tally.judge()
}

/// Runs the scenarios of these groups that `record` does not have yet, and keeps what each one measured there.
///
/// # Errors
/// As [`run_all`].
pub fn run_recorded(
    images: &Images,
    image: &Image,
    groups: &[&str],
    record: &mut Record,
) -> Result<()> {
    let mut tally = Tally::default();
    let mut booted = None;
    for group in GROUPS.iter().filter(|group| groups.contains(&group.name)) {
        let is_left = |scenario: &&Scenario| record.get(scenario.name).is_none();
        let chosen: Vec<&Scenario> = group.scenarios.iter().filter(is_left).collect();
        tally.record = Some(&mut *record);
        if !chosen.is_empty() {
            run_group(images, image, group, &chosen, &mut booted, &mut tally);
        }
        let Tally { passed, failed, emulator_faults, .. } = tally;
        tally = Tally { passed, failed, emulator_faults, ..Tally::default() };
    }
    tally.judge()
}

/// Whether `test` runs the scenario.
fn is_shown(group: &Group, scenario: &Scenario) -> bool {
    ![group.name, scenario.name]
        .iter()
        .any(|name| NOT_SHOWN_YET.contains(name) || LONG_ONLY.contains(name))
}

/// Whether the scenario's name contains one of the parts of `filter`, which `|` separates, or its group is called so.
fn is_chosen(group: &Group, scenario: &Scenario, filter: &str) -> bool {
    filter.split('|').any(|part| scenario.name.contains(part) || group.name == part)
}

/// Builds the dom0 side of the lab, which links what apt has just installed.
///
/// # Errors
/// When it does not build.
pub fn build_dom0d() -> Result<()> {
    progress::step("building dom0d", || {
        // Optimised, as the daemons are that it stands for: each start of a firewall runs it.
        let args =
            ["build", "--profile", "sim", "-p", "integration", "--features", "lab", "--bins"];
        command::output(&mut image::cargo(&args))?;
        // dom0 has little room.
        for name in dom0d::PROGRAMS {
            let mut strip = command::new("strip", &["-o"]);
            strip.arg(dom0d::binary(name)).arg(paths::target().join("sim").join(name));
            command::output(&mut strip)?;
        }
        Ok(())
    })
}

/// A booted world of a group.
///
/// # Errors
/// When dom0 does not come up.
pub fn boot(images: &Images, image: &Image, group: &Group) -> Result<World> {
    populate(Lab::boot(images, &group.machine())?, image, group)
}

fn populate(lab: Lab, image: &Image, group: &Group) -> Result<World> {
    World::new(lab, (group.plan)(), Kind::Image(image.path.clone()))
}

/// A machine that stays for the group that comes next, if that wants the same: everything in it has ended.
struct Booted {
    lab: Lab,
    xenstored: &'static str,
    memory_mib: u32,
}

fn run_group(
    images: &Images,
    image: &Image,
    group: &Group,
    chosen: &[&Scenario],
    booted: &mut Option<Booted>,
    tally: &mut Tally<'_>,
) {
    let same = booted.take().filter(|booted| {
        booted.xenstored == group.xenstored && booted.memory_mib >= group.memory_mib
    });
    let memory_mib = same.as_ref().map_or(group.memory_mib, |booted| booted.memory_mib);
    let mut world = same.and_then(|booted| match populate(booted.lab, image, group) {
        Ok(world) => Some(world),
        Err(error) => {
            progress::say(format!("a fresh boot, for the old one fails: {error}"));
            None
        }
    });
    for scenario in chosen {
        let begun = Instant::now();
        match run_scenario(images, image, group, scenario, &mut world, tally) {
            Ok(note) => {
                tally.passed += 1;
                tally.keep(scenario, &note, begun);
                let note = if note.is_empty() { note } else { format!(": {note}") };
                progress::say(format!(
                    "ok     {} ({:.0} s){note}",
                    scenario.name,
                    begun.elapsed().as_secs_f32()
                ));
            }
            Err(error) => {
                let label = tally.label(scenario);
                progress::say(format!(
                    "FAILED {} ({:.0} s): {error}",
                    scenario.name,
                    begun.elapsed().as_secs_f32()
                ));
                save_logs(world.as_ref(), &label);
                tally.failed.push(format!("{label} ({})", command::shortened(&error.to_string())));
                // The next one finds an empty world; a dom0 that does not answer is replaced.
                if world.as_mut().is_some_and(|world| world.clear().is_err()) {
                    world = None;
                }
            }
        }
    }
    *booted = world.and_then(|world| match world.end() {
        Ok(lab) => Some(Booted { lab, xenstored: group.xenstored, memory_mib }),
        Err(error) => {
            progress::say(format!("the next group gets a fresh boot: {error}"));
            None
        }
    });
}

fn run_scenario(
    images: &Images,
    image: &Image,
    group: &Group,
    scenario: &Scenario,
    world: &mut Option<World>,
    tally: &mut Tally<'_>,
) -> Result<String> {
    let mut tries = 1;
    loop {
        let current = match world {
            Some(world) => world,
            None => world.insert(boot(images, image, group)?),
        };
        let result = (scenario.run)(current).and_then(|note| current.check_dom0().map(|()| note));
        let Err(error) = result else { return result };
        let Some(fault) = current.lab.fault() else { return Err(error) };
        tally.emulator_faults += 1;
        progress::say(format!(
            "emulator fault {} during \"{}\": {fault}",
            tally.emulator_faults, scenario.name
        ));
        save_logs(Some(current), &format!("emulator-fault-{}", tally.emulator_faults));
        *world = None;
        if tries == EMULATOR_TRIES {
            return Err(Error::EmulatorFault(fault));
        }
        tries += 1;
        progress::say("booting anew and repeating it");
    }
}

/// Keeps the logs and says where.
pub fn save_logs(world: Option<&World>, label: &str) {
    let label: String =
        label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
    let saved = world.map(|world| world.lab.save_logs(&label));
    match saved {
        Some(Ok(dir)) => {
            if let Some(world) = world {
                world.save_network_state(&dir);
                for line in world.last_words(LAST_LINES) {
                    progress::say(line);
                }
            }
            progress::say(format!("console logs of all domains: {}", dir.display()));
        }
        Some(Err(error)) => progress::say(format!("the logs could not be saved: {error}")),
        None => progress::say(format!(
            "the lab did not boot; see {}",
            paths::target().join("lab/run").display()
        )),
    }
}
