//! The first packets of flows, against rule sets of several shapes and sizes.

use firewall::Limits;

use crate::shapes::{End, SHAPES, SIZED, Shape};
use crate::world::{self, World};
use crate::{Meter, accepted, by_client, measure, through};

/// Sizes of the rule sets that are compared for every shape.
const FEW_AND_MANY: [usize; 2] = [10, 1000];
/// Those for the shapes that are measured over the whole range.
pub const SIZES: [usize; 4] = [0, 10, 1000, 10_000];
/// Packets of one call, each the first of a flow.
const PACKETS: u16 = 16;

/// Each line: shape, rules, what decides, packets.
///
/// # Errors
/// When a packet was not accepted.
pub fn run(meter: &mut dyn Meter) -> Result<(), String> {
    for shape in SHAPES {
        for end in [End::LastRule, End::Policy] {
            for rules in FEW_AND_MANY {
                one(meter, world::LIMITS, shape, end, rules)?;
            }
        }
    }
    Ok(())
}

/// Lines likewise. No rule matches: without rules the policy alone can accept.
///
/// # Errors
/// When a packet was not accepted.
pub fn sizes(meter: &mut dyn Meter, sizes: &[usize]) -> Result<(), String> {
    for shape in SIZED {
        for rules in sizes {
            one(meter, WITH_MANY_NAMES, shape, End::Policy, *rules)?;
        }
    }
    Ok(())
}

/// Room for two thousand names of one client, which ten thousand mixed rules have.
pub const WITH_MANY_NAMES: Limits = Limits { addresses: 4096, ..world::LIMITS };

fn one(
    meter: &mut dyn Meter,
    limits: Limits,
    shape: &Shape,
    end: End,
    rules: usize,
) -> Result<(), String> {
    let case = format!("{}\t{rules}\t{}\t{PACKETS}", shape.name, end.name());
    measure_one(meter, limits, shape, end, rules)
        .map_err(|problem| format!("{case}: {problem}"))?;
    meter.report(&case);
    Ok(())
}

fn measure_one(
    meter: &mut dyn Meter,
    limits: Limits,
    shape: &Shape,
    end: End,
    rules: usize,
) -> Result<(), String> {
    let mut world = World::with(limits, 1, shape, end, rules)?;
    let mut pages: Vec<_> =
        (0..PACKETS).map(|number| world.first_packet(40_000 + number)).collect();
    // The table and the code have been used before, and what the names' state costs once was paid.
    let mut before = [world.first_packet(30_000)];
    let fates = through(&mut world, by_client, &mut before);
    accepted(&before, &fates)?;
    let fates = measure(meter, &mut world, by_client, &mut pages);
    accepted(&pages, &fates)
}
