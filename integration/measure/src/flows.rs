//! What depends on how many flows the table has, if anything does: packets of flows that stand, new flows, and the timer.

use std::time::Duration;

use crate::{Meter, Population, accepted, by_client, by_uplink, delivered, measure};

/// Flows in the table.
pub const SIZES: [usize; 3] = [1, 1000, 65_536];
/// Packets of flows that stand.
const PACKETS: usize = 1024;
/// New flows: the last ones until the table has as many as it is to have.
const NEW: usize = 64;
/// Calls of the timer when nothing is due.
const CALLS: usize = 256;
/// A flow whose next packet comes after this time moves in the list of its class, for which a second is enough.
const PAUSE: Duration = Duration::from_secs(2);
/// Longer than any flow lives without packets.
const LIFE: Duration = Duration::from_secs(3 * 3600);

/// Each line: what, flows in the table, packets (or flows, or calls).
///
/// # Errors
/// When a packet did not get what it is meant to get, or the table has not the flows that it is meant to have.
pub fn run(meter: &mut dyn Meter, sizes: &[usize]) -> Result<(), String> {
    let one =
        |size| one(meter, size).map_err(|problem| format!("{size} flows in the table: {problem}"));
    sizes.iter().copied().try_for_each(one)
}

fn one(meter: &mut dyn Meter, size: usize) -> Result<(), String> {
    let new = size.min(NEW);
    let mut population = Population::new(size)?;
    population.grow(size - new)?;

    let mut pages = population.first_packets(size - new..size)?;
    let fates = measure(meter, &mut population.world, by_client, &mut pages);
    accepted(&pages, &fates)?;
    meter.report(&format!("new\t{size}\t{new}"));
    population.establish(&pages)?;
    population.has(size)?;

    let mut pages: Vec<_> = population.spread(PACKETS).map(|flow| flow.up()).collect();
    let fates = measure(meter, &mut population.world, by_client, &mut pages);
    accepted(&pages, &fates)?;
    meter.report(&format!("up\t{size}\t{}", pages.len()));
    let mut pages: Vec<_> = population.spread(PACKETS).map(|flow| flow.down()).collect();
    let fates = measure(meter, &mut population.world, by_uplink, &mut pages);
    delivered(&pages, &fates)?;
    meter.report(&format!("down\t{size}\t{}", pages.len()));

    population.world.now = population.world.now.after(PAUSE);
    let turns = PACKETS.min(population.tcp().len());
    let mut pages: Vec<_> = population.spread(turns).map(|flow| flow.up()).collect();
    let fates = measure(meter, &mut population.world, by_client, &mut pages);
    accepted(&pages, &fates)?;
    meter.report(&format!("up after a pause\t{size}\t{}", pages.len()));

    meter.measure(&mut population.world, &mut |world| {
        (0..CALLS).for_each(|_| world.firewall.on_timer(world.now));
    });
    population.has(size)?;
    meter.report(&format!("idle timer\t{size}\t{CALLS}"));

    population.world.now = population.world.now.after(LIFE);
    let mut calls = 0;
    meter.measure(&mut population.world, &mut |world| {
        while world.firewall.flow_count() > 0 && calls < size {
            world.firewall.on_timer(world.now);
            calls += 1;
        }
    });
    population.has(0)?;
    meter.report(&format!("expiry\t{size}\t{size}"));
    Ok(())
}
