//! Its receive buffers.

use xen::mem;
use xen::netif::RxResponse;

use super::Visit;
use crate::honest::Checksum;
use crate::world::{Effect, World};

/// Frames for a guest that takes none; the uplink has receive buffers for them.
const UNTAKEN: usize = 220;
/// Frames that are sent to it in one turn.
const PER_TURN: usize = 55;
/// Pages that may wait for one client, and some that are in use elsewhere.
const MOST_WAITING: usize = 128 + 16;

pub(super) fn revoked_buffer(world: &mut World, visit: &mut Visit) -> Effect {
    // Its own datagram first, for an answer to come.
    let Some(port) = visit.outside(world)? else { return Ok(false) };
    for gref in visit.guest.posted_refs() {
        visit.guest.peer.revoke(gref);
    }
    world.server_sends_to(port, b"answer", 0, Checksum::Full)?;
    world.turns(4)?;
    let ring = &visit.guest.rx_page.1;
    let waiting = visit.guest.rx.unconsumed(ring).map_err(|_| "its ring is broken")?;
    let answers = (0..waiting).filter_map(|_| visit.guest.rx.take(ring));
    let statuses: Vec<i16> = answers.map(|(_, slot)| RxResponse::decode(&slot).status).collect();
    // Its ring is of no use any more; it goes.
    visit.guest.set(&mut world.unit.store, "state", "6");
    world.turns(4)?;
    match statuses.as_slice() {
        [-1] => Ok(true),
        other => Err(format!("a frame that cannot be copied to it is answered {other:?}")),
    }
}

/// It is sent more than waits for one client, and what waits is given up in the end.
pub(super) fn no_buffers(world: &mut World, visit: &mut Visit) -> Effect {
    let Some(port) = visit.outside(world)? else { return Ok(false) };
    let free = mem::free_pages();
    for _ in 0..UNTAKEN / PER_TURN {
        for _ in 0..PER_TURN {
            world.server_sends_to(port, b"answer", 0, Checksum::Full)?;
        }
        world.turns(2)?;
    }
    let waiting = free.saturating_sub(mem::free_pages());
    if waiting > MOST_WAITING {
        return Err(format!("{waiting} pages wait for one client"));
    }
    // Longer than a backend waits.
    world.pass(11_000)?;
    world.turns(4)?;
    let waiting = free.saturating_sub(mem::free_pages());
    // Nothing can be sent to it any more; it goes.
    visit.guest.set(&mut world.unit.store, "state", "6");
    world.turns(4)?;
    match waiting < MOST_WAITING / 4 {
        true => Ok(true),
        false => Err(format!("{waiting} pages wait for a client that takes nothing")),
    }
}
