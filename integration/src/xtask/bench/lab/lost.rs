//! Whether the emulator has lost a guest: now and then a Linux guest of the lab is busy from one moment on and never answers
//! again, whatever its neighbours do. What it took part in says nothing then and is measured again, on a fresh machine.
//!
//! Only guests of Linux count, never our firewall; and only one that is busy: who waits for something may wait for us.

use std::time::Duration;

use super::LinuxSide;
use crate::lab::domain::Domain;
use crate::lab::world::World;
use crate::scenarios::steps::{ALICE, BOB};

/// In which a guest that is there says so, beside others' load.
const ANSWER: Duration = Duration::from_secs(90);
/// Seconds over which processor time is looked at, and those of them that make a guest busy.
const WATCHED: u32 = 10;
const BUSY: f64 = 6.0;

/// A sentence about the first guest that was lost, if one was.
pub(super) fn guest(world: &World, linux: Option<&LinuxSide>) -> Option<String> {
    let ours = [world.netvm(0), world.client(ALICE), world.client(BOB)];
    let others = linux.map(|linux| [&linux.firewall, &linux.client, &linux.other]);
    let guests = ours.into_iter().flatten().chain(others.into_iter().flatten());
    guests.filter(|guest| guest.exec_for(&world.lab, "true", ANSWER).is_err()).find_map(|guest| {
        let busy = busy_seconds(world, guest)?;
        let text = format!("{} does not answer and ran {busy:.1} of {WATCHED} s", guest.name);
        (busy >= BUSY).then_some(text)
    })
}

/// Processor time of a guest in the next seconds, from the column of `xl list`.
fn busy_seconds(world: &World, guest: &Domain) -> Option<f64> {
    let line = format!("xl list {0} && sleep {WATCHED} && xl list {0}", guest.name);
    let text = world.lab.sh(&line).ok()?;
    let times: Vec<f64> =
        text.lines().filter_map(|line| line.split_whitespace().last()?.parse().ok()).collect();
    match times.as_slice() {
        [before, after] => Some(after - before),
        _ => None,
    }
}
