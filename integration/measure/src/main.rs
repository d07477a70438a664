//! The first packets of flows through the whole core, against rule sets of several shapes and sizes.
//!
//! `cargo xtask test` runs it under callgrind, which counts the instructions in [`measured`] from one [`report`] to the
//! next. Each prints a line: shape, rules, what decides, packets. That the packets get what they are meant to get is
//! checked here.

#![forbid(unsafe_code)]

mod shapes;
mod wire;
mod world;

use std::process::ExitCode;

use firewall::{ClientId, Fate, Firewall, Frame, Instant, Offload, Origin, PortId};

use shapes::{End, SHAPES};
use world::World;

/// Sizes of the rule sets.
const SIZES: [usize; 2] = [10, 1000];
/// Packets of one call, each the first of a flow.
const PACKETS: u16 = 16;

fn main() -> ExitCode {
    for shape in SHAPES {
        for end in [End::LastRule, End::Policy] {
            for rules in SIZES {
                if let Err(problem) = one(shape, end, rules) {
                    eprintln!("{} {rules} {}: {problem}", shape.name, end.name());
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

fn one(shape: &shapes::Shape, end: End, rules: usize) -> Result<(), String> {
    let mut world = World::new(shape, end, rules)?;
    let mut frames = (0..PACKETS)
        .map(|number| world.first_packet(40_000 + number))
        .collect::<Result<Vec<_>, _>>()?;
    // The table and the code have been used before, and what the names' state costs once was paid.
    let mut before = world.first_packet(30_000)?;
    accepted(handle(&mut world.firewall, world.now, &mut before))?;
    let fates = measured(&mut world.firewall, world.now, &mut frames);
    fates.into_iter().try_for_each(accepted)?;
    report(shape, end, rules);
    Ok(())
}

/// Not inlined, so that it has a name in the program: here callgrind writes down its count and begins anew.
#[inline(never)]
fn report(shape: &shapes::Shape, end: End, rules: usize) {
    println!("{}\t{rules}\t{}\t{PACKETS}", shape.name, end.name());
}

/// A frame in a page, as the platform has it.
struct Page {
    bytes: Vec<u8>,
    len: usize,
}

/// What is counted. Not inlined either.
#[inline(never)]
fn measured(firewall: &mut Firewall, now: Instant, pages: &mut [Page]) -> Vec<Option<Fate>> {
    pages.iter_mut().map(|page| handle(firewall, now, page)).collect()
}

fn handle(firewall: &mut Firewall, now: Instant, page: &mut Page) -> Option<Fate> {
    let mut frame = Frame::new(&mut page.bytes, page.len, Offload::default())?;
    Some(firewall.handle(now, Origin::Client(ClientId(0)), &mut frame))
}

/// Every packet is accepted, by a rule or by the policy, so that all cost the same but for the rules.
fn accepted(fate: Option<Fate>) -> Result<(), String> {
    match fate {
        Some(Fate::Send(PortId::Uplink)) => Ok(()),
        other => Err(format!("not accepted: {other:?}")),
    }
}
