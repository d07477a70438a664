//! Ten minutes of everything at once: what the firewall holds stays what it is.

use std::time::{Duration, Instant};

use super::books::Books;
use super::many;
use super::steps::{self, ALICE, BOB, CAROL, need_both};
use super::witness::{Asks, Restless, SLACK_BYTES, Witness};
use crate::error::Result;
use crate::fail;
use crate::lab::world::{ACCEPT_ALL, World};

/// How long.
const LENGTH: Duration = Duration::from_secs(600);
/// The heap may hold so much more in the last third than in the first: a list that is longer for a moment.
const SLACK: u64 = 16 << 10;
/// The longest time that C's asking may be without an answer. Its machine is at its limit all the time.
const LONGEST_GAP_S: f64 = 10.0;
/// Samples of the heap without which nothing was seen.
const FEWEST_SAMPLES: usize = 12;
/// Rules of C in turn, each of which is another set for the firewall.
const RULES: [&[&str]; 3] = [
    ACCEPT_ALL,
    &["action=accept proto=udp", "action=accept"],
    &["action=accept proto=icmp", "action=accept"],
];

/// A and B download as fast as they can; C asks, gets pages and names, has its rules edited, and a vif of its own comes and
/// goes. The heap in use, sampled all the time, is flat.
///
/// # Errors
/// When it grows, somebody is without an answer for long, or something is left.
pub fn ten_minutes(world: &mut World) -> Result<String> {
    need_both(world)?;
    world.need_rules(CAROL, ACCEPT_ALL)?;
    world.need_client(CAROL)?;
    // The first of each makes what stays for good.
    many::cycle(world, CAROL, 1)?;
    edit(world, 1)?;
    edit(world, 0)?;
    steps::resolves(world, world.client(CAROL)?)?;
    let before = Books::read(world)?;
    let witness = Witness::start(world, CAROL, Asks::Server)?;
    let loads = [Restless::start(world, ALICE)?, Restless::start(world, BOB)?];
    let received = [ALICE, BOB].map(|client| bytes(world, client));
    let mut samples = Vec::new();
    let begun = Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < LENGTH {
        rounds += 1;
        edit(world, rounds)?;
        many::cycle(world, CAROL, 1)?;
        samples.push(Books::read(world)?.heap_bytes());
        steps::page(world, world.client(CAROL)?, 0)?;
        steps::resolves(world, world.client(CAROL)?)?;
        samples.push(Books::read(world)?.heap_bytes());
    }
    let mut megabytes = 0.0;
    for (client, before) in [ALICE, BOB].into_iter().zip(received) {
        megabytes += (bytes(world, client)? - before?) / 1e6;
    }
    loads.into_iter().try_for_each(|load| load.end(world))?;
    let seen = witness.end(world)?.judge(LONGEST_GAP_S)?;
    edit(world, 0)?;
    let heap = flat(&samples)?;
    let books = before.settle_with(world, SLACK_BYTES)?;
    Ok(format!(
        "{megabytes:.0} MB, {rounds} vifs and edits in {} s; {heap}; {seen}; {books}",
        begun.elapsed().as_secs()
    ))
}

fn edit(world: &mut World, number: usize) -> Result<()> {
    let rules = RULES.get(number % RULES.len()).copied().unwrap_or(ACCEPT_ALL);
    world.set_rules(CAROL, rules).map(drop)
}

fn bytes(world: &World, client: usize) -> Result<f64> {
    let text = world.sh(world.client(client)?, "cat /sys/class/net/eth0/statistics/rx_bytes")?;
    match text.trim().parse() {
        Ok(bytes) => Ok(bytes),
        Err(_) => fail!("received bytes: {text:?}"),
    }
}

/// Compares the last third with the first.
fn flat(samples: &[u64]) -> Result<String> {
    let third = samples.len() / 3;
    let most = |part: Option<&[u64]>| part.and_then(|part| part.iter().max()).copied();
    let first = most(samples.get(..third));
    let last = most(samples.get(samples.len().saturating_sub(third)..));
    let (Some(first), Some(last)) = (first, last) else { fail!("no samples of the heap") };
    if samples.len() < FEWEST_SAMPLES || last > first.saturating_add(SLACK) {
        fail!("the heap grows: {last} bytes in the last third, {first} in the first: {samples:?}");
    }
    Ok(format!(
        "heap in use at most {:.0} KiB in the first third and {:.0} KiB in the last ({} samples)",
        first as f64 / 1024.0,
        last as f64 / 1024.0,
        samples.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_from_noise() {
        let noise: Vec<u64> = (0..30).map(|n| 100_000 + n * 7919 % 5000).collect();
        assert!(flat(&noise).is_ok());
        let growth: Vec<u64> = (0..30).map(|n| 100_000 + n * 1500).collect();
        assert!(flat(&growth).is_err());
        assert!(flat(&noise[..9]).is_err(), "too few");
        assert!(flat(&[]).is_err());
    }
}
