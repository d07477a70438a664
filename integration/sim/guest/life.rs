//! Events, states and directories: how long it is there, and as what.

use xen::fake;
use xen::netif::TxFlags;

use super::{Visit, left};
use crate::world::{Effect, HOSTILE_MARK, World};

/// How long a storm of events lasts, one each microsecond.
const STORM_US: u64 = 3000;
/// Turns that it may cost once it was recognized.
const MOST_STORM_TURNS: u64 = 100;
/// Turns in which a watch fires.
const FLOOD_TURNS: usize = 160;
/// Requests to the store in that time: fifty looks of three nodes in each of two seconds that it touches, and some more.
const MOST_ASKED: u64 = 340;

pub(super) fn storm(world: &mut World, visit: &mut Visit) -> Effect {
    let (peer, port) = (visit.guest.peer, visit.guest.port);
    let start = fake::now_ns();
    // One each microsecond.
    for number in 0..STORM_US {
        fake::at(start + number * 1000, move || peer.notify(port));
    }
    world.honest_sends()?;
    let turns = world.unit.turns();
    world.pass((STORM_US / 1000).max(1))?;
    let turns = world.unit.turns() - turns;
    if turns > MOST_STORM_TURNS {
        return Err(format!("{turns} turns of the loop for events without work"));
    }
    // It ends before its domain may, and its vif is heard again.
    world.pass(1000)?;
    Ok(fake::now_ns() > start)
}

pub(super) fn states(world: &mut World, visit: &mut Visit) -> Effect {
    for _ in 0..world.random.usize(1..6) {
        let state = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "-1", "x", ""];
        let state = state[world.random.usize(0..state.len())];
        visit.guest.set(&mut world.unit.store, "state", state);
        let turns = world.random.usize(0..4);
        world.turns(turns)?;
    }
    visit.guest.set(&mut world.unit.store, "state", "6");
    world.turns(4)?;
    visit.must_close(world, "a frontend in state 6")
}

pub(super) fn other_references(world: &mut World, visit: &mut Visit) -> Effect {
    for name in ["tx-ring-ref", "rx-ring-ref", "event-channel"] {
        let value = world.random.u32(..).to_string();
        visit.guest.set(&mut world.unit.store, name, &value);
        world.turns(1)?;
    }
    let payload = world.payload(HOSTILE_MARK);
    visit.guest.send(&visit.frame(&payload), TxFlags(0));
    visit.publish();
    let left = left(world)?;
    visit.statuses();
    match left.as_slice() {
        [only] if *only == payload => Ok(true),
        _ => Err("the rings that were read at the start count no more".into()),
    }
}

pub(super) fn directory_vanishes(world: &mut World, visit: &mut Visit) -> Effect {
    world.unit.store.remove(&format!("/local/domain/{}/device/vif/0", visit.domain.0));
    visit.must_close(world, "a directory that is gone")
}

pub(super) fn watch_flood(world: &mut World, visit: &mut Visit) -> Effect {
    let before = world.unit.store.requests();
    for _ in 0..FLOOD_TURNS {
        let name = ["state", "mac", "feature-sg"][world.random.usize(0..3)];
        let value = world.random.u32(0..3).to_string();
        if name != "state" {
            visit.guest.set(&mut world.unit.store, name, &value);
        }
        world.unit.store.fire(&format!("backend/vif/{}/0/state", visit.domain.0));
        world.turns(1)?;
    }
    let asked = world.unit.store.requests() - before;
    if asked > MOST_ASKED {
        return Err(format!("{asked} requests to the store about one guest"));
    }
    world.honest_sends()?;
    // After a second it is looked at again.
    world.pass(1000)?;
    Ok(true)
}
