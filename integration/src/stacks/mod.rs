//! The packet core between real Linux stacks: a client's on one TAP device, a router's on the other, a server's behind it.
//!
//! Read in this order: `plan` (addresses), `wires` (the core and the cables as a thread), `world` (the stacks and what
//! runs in them), `checks` (what must
//! hold, for both families), `script` (a TCP peer that does what Linux does not). Neighbour: `diff` compares single verdicts with Linux;
//! here whole conversations have to work through the core's NAT.

mod checks;
mod plan;
mod script;
mod wires;
mod world;

use checks::{Check, Run};
use plan::Family;
use world::World;

use crate::error::Result;
use crate::netns::Place;
use crate::{apt, fail, netns, progress};

/// Debian packages with the programs that speak through the core.
const PROGRAMS: &[&str] = &["iputils-ping", "traceroute"];

/// Every check in both families.
///
/// # Errors
/// When one of them fails; all are named.
pub fn run() -> Result<()> {
    let packages = [netns::PACKAGES, PROGRAMS].concat();
    progress::step("packages for network namespaces", || apt::ensure(&packages))?;
    if netns::enter(&["test", "--long", "stacks"])? == Place::Elsewhere {
        return Ok(());
    }
    let mut failures = Vec::new();
    for family in [Family::V4, Family::V6] {
        for check in checks::ALL {
            // Each begins on stacks that remember nothing: no path MTU, no neighbour.
            match show(check, family) {
                Ok(text) => progress::say(format!("ok {family}: {}{text}", check.name)),
                Err(error) => {
                    progress::say(format!("FAILED {family}: {}: {error}", check.name));
                    failures.push(format!("{family}: {}", check.name));
                }
            }
        }
    }
    if !failures.is_empty() {
        fail!("{} checks between Linux stacks failed: {}", failures.len(), failures.join("; "));
    }
    Ok(())
}

fn show(check: &Check, family: Family) -> Result<String> {
    match check.run {
        Run::Linux(run) => {
            let world = World::new(family)?;
            run(&world).map_err(|error| world.explain(error))
        }
        Run::Scripted(run) => {
            let (world, mut peer) = World::with_peer(family)?;
            run(&world, &mut peer).map_err(|error| world.explain(error))
        }
    }
}
