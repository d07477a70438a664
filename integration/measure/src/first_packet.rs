//! The first packets of flows, against rule sets of several shapes and sizes.

use crate::shapes::{End, SHAPES, Shape};
use crate::world::World;
use crate::{accepted, by_client, measured, report};

/// Sizes of the rule sets.
const SIZES: [usize; 2] = [10, 1000];
/// Packets of one call, each the first of a flow.
const PACKETS: u16 = 16;

/// Each line: shape, rules, what decides, packets.
pub(crate) fn run() -> Result<(), String> {
    for shape in SHAPES {
        for end in [End::LastRule, End::Policy] {
            for rules in SIZES {
                one(shape, end, rules).map_err(|problem| {
                    format!("{} {rules} {}: {problem}", shape.name, end.name())
                })?;
            }
        }
    }
    Ok(())
}

fn one(shape: &Shape, end: End, rules: usize) -> Result<(), String> {
    let mut world = World::new(shape, end, rules)?;
    let mut frames = (0..PACKETS)
        .map(|number| world.first_packet(40_000 + number))
        .collect::<Result<Vec<_>, _>>()?;
    // The table and the code have been used before, and what the names' state costs once was paid.
    let mut before = [world.first_packet(30_000)?];
    let fates = by_client(&mut world, &mut before);
    fates.into_iter().try_for_each(accepted)?;
    let fates = measured(&mut world, by_client, &mut frames);
    fates.into_iter().try_for_each(accepted)?;
    report(&format!("{}\t{rules}\t{}\t{PACKETS}", shape.name, end.name()));
    Ok(())
}
