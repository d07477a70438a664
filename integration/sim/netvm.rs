//! What a hostile NetVM does to our uplink. Each act ends with another NetVM in its place.

use xen::fake::vif::NetVm;
use xen::grant::Access;
use xen::netif::{RxFlags, RxResponse};

use crate::honest;
use crate::world::{Effect, World};

/// An act, and what it did.
pub(crate) type Act = fn(&mut World) -> Effect;

pub(crate) const ACTS: &[(&str, Act)] = &[
    ("R2 a response of a wrong length or offset", bad_response),
    ("R3 the uplink's response index jumps", index_jumps),
    ("R4 a response twice", twice),
    ("R4 a response to nothing", unknown),
    ("R4 a page is kept after its response", kept_page),
    ("R4 a receive response about another buffer", wrong_buffer),
    ("R6 an extra info that nobody knows", bad_extra),
    ("R8 our frame is answered with an error", refused),
    ("R10 states of the backend in any order", states),
    ("R11 the backend restarts with responses outstanding", restart),
    ("R12 all bytes of what we grant are read", reads_all),
];

/// Turns in which a device closes.
const PATIENCE: usize = 40;

fn is_up(world: &World) -> bool {
    world.unit.store.read("device/vif/0/state").as_deref() == Some("4")
}

/// Whether the uplink goes down, in some turns.
fn is_closed(world: &mut World) -> Effect {
    for _ in 0..PATIENCE {
        if !is_up(world) {
            return Ok(true);
        }
        world.turns(1)?;
    }
    Ok(false)
}

/// What the protocol does not forgive: the uplink goes down.
fn must_close(world: &mut World, why: &str) -> Effect {
    match is_closed(world)? {
        true => Ok(true),
        false => Err(format!("{why}, and the uplink stays")),
    }
}

fn netvm(world: &mut World) -> Result<&mut NetVm, String> {
    world.netvm.as_mut().ok_or_else(|| "no NetVM".into())
}

fn bad_response(world: &mut World) -> Effect {
    let values = [(4096, 60), (0, 5000), (4000, 200), (0, 0), (u16::MAX, 1)];
    let (offset, status) = values[world.random.usize(0..values.len())];
    let netvm = netvm(world)?;
    let Some(buffer) = netvm.take_buffer() else { return Ok(false) };
    netvm.respond_rx(RxResponse { id: buffer.id, offset, flags: RxFlags(0), status });
    if status == 0 {
        // No frame, and no harm.
        world.turns(6)?;
        return Ok(is_up(world));
    }
    must_close(world, &format!("{status} bytes at {offset}"))
}

fn index_jumps(world: &mut World) -> Effect {
    let by = world.random.u32(300..u32::MAX / 2);
    let is_tx = world.random.bool();
    let netvm = netvm(world)?;
    let page = if is_tx { &netvm.tx_page } else { &netvm.rx_page };
    // Where Xen's ring.h has the producer index of responses.
    page.copy_in(8, &by.to_le_bytes());
    let (peer, port) = (netvm.peer, netvm.port);
    peer.notify(port);
    must_close(world, &format!("an index of {by}"))
}

fn twice(world: &mut World) -> Effect {
    let id = outstanding(world)?;
    let Some(id) = id else { return Ok(false) };
    let netvm = netvm(world)?;
    netvm.respond(id, 0);
    netvm.respond(id, 0);
    must_close(world, "a response twice")
}

fn unknown(world: &mut World) -> Effect {
    let (id, status) = (world.random.u16(..), world.random.i16(-3..3));
    let known = all_outstanding(world)?;
    if known.len() < 2 || known.contains(&id) {
        return Ok(false);
    }
    netvm(world)?.respond(id, status);
    must_close(world, &format!("a response to {id}"))
}

fn kept_page(world: &mut World) -> Effect {
    let is_rx = world.random.bool();
    let held = if is_rx {
        let netvm = netvm(world)?;
        let Some(buffer) = netvm.take_buffer() else { return Ok(false) };
        let held = netvm.peer.map(buffer.gref, Access::ReadWrite);
        netvm.respond_rx(RxResponse { id: buffer.id, offset: 0, flags: RxFlags(0), status: 60 });
        held
    } else {
        send(world)?;
        let Some(request) = world.take_requests().first().copied() else { return Ok(false) };
        let netvm = netvm(world)?;
        let held = netvm.peer.map(request.gref, Access::ReadOnly);
        netvm.respond(request.id, 0);
        held
    };
    world.turns(6)?;
    let was_held = held.is_ok();
    drop(held);
    world.turns(6)?;
    Ok(was_held)
}

fn bad_extra(world: &mut World) -> Effect {
    let netvm = netvm(world)?;
    let Some(buffer) = netvm.take_buffer() else { return Ok(false) };
    let flags = RxFlags(RxFlags::EXTRA_INFO);
    netvm.respond_rx(RxResponse { id: buffer.id, offset: 0, flags, status: 60 });
    if netvm.take_buffer().is_none() {
        return Ok(false);
    }
    netvm.rx.respond(&netvm.rx_page, &[9, 0, 0, 0, 0, 0, 0, 0]);
    let _ = netvm.rx.push(&netvm.rx_page);
    let (peer, port) = (netvm.peer, netvm.port);
    peer.notify(port);
    must_close(world, "an unknown extra info")
}

/// Two buffers are answered, each in the place of the other.
fn wrong_buffer(world: &mut World) -> Effect {
    let netvm = netvm(world)?;
    let (Some(one), Some(other)) = (netvm.take_buffer(), netvm.take_buffer()) else {
        return Ok(false);
    };
    for id in [other.id, one.id] {
        netvm.respond_rx(RxResponse { id, offset: 0, flags: RxFlags(0), status: 60 });
    }
    must_close(world, "a response about another buffer")
}

fn refused(world: &mut World) -> Effect {
    let id = outstanding(world)?;
    let Some(id) = id else { return Ok(false) };
    netvm(world)?.respond(id, -1);
    world.turns(6)?;
    match is_up(world) {
        true => Ok(true),
        false => Err("a refused frame costs us the uplink".into()),
    }
}

fn states(world: &mut World) -> Effect {
    let directory = netvm(world)?.directory.clone();
    for _ in 0..world.random.usize(1..6) {
        let states = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "x", ""];
        let state = states[world.random.usize(0..states.len())];
        world.unit.store.write(&format!("{directory}/state"), state);
        let turns = world.random.usize(0..4);
        world.turns(turns)?;
    }
    world.unit.store.write(&format!("{directory}/state"), "6");
    must_close(world, "a backend in state 6")
}

fn restart(world: &mut World) -> Effect {
    let id = outstanding(world)?;
    let _ = send(world);
    world.turns(2)?;
    Ok(id.is_some())
}

/// Nothing but the frame, and nothing at all in a receive buffer.
fn reads_all(world: &mut World) -> Effect {
    send(world)?;
    let mut all = [0; 4096];
    let requests = world.take_requests();
    let netvm = netvm(world)?;
    for request in &requests {
        netvm.peer.read(request.gref, 0, &mut all).map_err(|status| format!("{status:?}"))?;
        let (from, to) = (usize::from(request.offset), usize::from(request.offset + request.size));
        let rest = all[..from].iter().chain(&all[to..]);
        if rest.into_iter().any(|byte| *byte != 0) {
            return Err("old bytes beside a frame".into());
        }
    }
    let mut buffers = 0;
    while let Some(buffer) = netvm.take_buffer() {
        netvm.peer.read(buffer.gref, 0, &mut all).map_err(|status| format!("{status:?}"))?;
        if all.iter().any(|byte| *byte != 0) {
            return Err("old bytes in a receive buffer".into());
        }
        buffers += 1;
    }
    Ok(!requests.is_empty() && buffers > 0)
}

/// The honest client sends; nobody answers the slot.
fn send(world: &mut World) -> Result<(), String> {
    let (which, payload) = (world.any_honest(), world.payload(honest::MARK));
    world.honest_sends_only(which, &payload);
    world.turns(4)
}

/// The id of a frame of ours that waits for its answer.
fn outstanding(world: &mut World) -> Result<Option<u16>, String> {
    let ids = all_outstanding(world)?;
    Ok(ids.first().copied().filter(|_| ids.len() > 1))
}

/// The ids of all frames of ours that wait for their answers: those of two packets at least, if they have left.
fn all_outstanding(world: &mut World) -> Result<Vec<u16>, String> {
    send(world)?;
    send(world)?;
    let requests = world.take_requests();
    Ok(requests.iter().map(|request| request.id).collect())
}
