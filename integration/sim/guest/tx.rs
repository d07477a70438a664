//! Its TX ring: requests, indices, extra infos, frames.

use xen::GrantRef;
use xen::fake;
use xen::netif::{TxFlags, TxRequest};
use xen::ring::RING_SLOTS;

use super::{Visit, left, request};
use crate::frames::{self, Ends};
use crate::honest;
use crate::world::{Effect, HOSTILE_MARK, World};

/// Where Xen's ring.h has the first slot.
const SLOTS: usize = 64;
/// Frames in one batch: more than that no client is given in a turn, however much is left of it.
const BATCH: usize = 128;
/// Frames of a flood: the ring has room for them, and the uplink.
const FLOOD: usize = 200;
/// For so long nobody reads the ring of a client that has just sent many frames, in milliseconds, at most.
const MOST_REST_MS: u64 = 50;

/// Where Xen's ring.h has the producer index of requests: at the start.
fn set_producer(visit: &Visit, value: u32) {
    visit.guest.tx_page.1.copy_in(0, &value.to_le_bytes());
    visit.guest.peer.notify(visit.guest.port);
}

fn producer(visit: &Visit) -> u32 {
    let mut bytes = [0; 4];
    visit.guest.tx_page.1.copy_out(0, &mut bytes);
    u32::from_le_bytes(bytes)
}

impl Visit {
    /// So many good requests, published.
    fn fill(&mut self, count: usize) {
        let frame = self.frame(HOSTILE_MARK);
        let gref = self.guest.buffer(0, &frame);
        for _ in 0..count {
            self.guest.write_slot(&request(gref, 0, frame.len() as u16).encode());
        }
        self.publish();
    }
}

/// That its one request was answered with an error.
fn expect_refusal(visit: &mut Visit) -> Effect {
    match visit.statuses().as_slice() {
        [-1] => Ok(true),
        other => Err(format!("its request is answered {other:?}")),
    }
}

pub(super) fn slot_changes(world: &mut World, visit: &mut Visit) -> Effect {
    let payload = world.payload(HOSTILE_MARK);
    let at = 64 + (producer(visit) as usize % 256) * 12;
    visit.guest.send(&visit.frame(&payload), TxFlags(0));
    let (offset, size) = [(4000, 4000), (0, 20), (1, 1)][world.random.usize(0..3)];
    let (ring, other) = (
        visit.guest.peer.page(visit.guest.tx_page.0),
        request(GrantRef(511), offset, size).encode(),
    );
    fake::before_copy(move || ring.copy_in(at, &other));
    visit.guest.peer.notify(visit.guest.port);
    let left = left(world)?;
    let was_changed = !fake::is_copy_awaited();
    if was_changed && left != [payload] {
        return Err(format!("what left is not what was checked: {} frames", left.len()));
    }
    visit.statuses();
    Ok(was_changed)
}

pub(super) fn bad_span(world: &mut World, visit: &mut Visit) -> Effect {
    let gref = visit.guest.buffer(0, &visit.frame(b"x"));
    let spans = [(4096, 60), (4090, 60), (u16::MAX, 1), (0, 0), (1, u16::MAX)];
    let (offset, size) = spans[world.random.usize(0..spans.len())];
    visit.slot(request(gref, offset, size));
    visit.must_close(world, &format!("offset {offset}, size {size}"))
}

pub(super) fn bad_length(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    let size = [1, 13, 1519, 4096][world.random.usize(0..4)];
    let gref = visit.guest.buffer(0, &visit.frame(HOSTILE_MARK));
    visit.slot(request(gref, 0, size));
    if !left(world)?.is_empty() || visit.is_closed(world)? {
        return Err(format!("a frame of {size} bytes leaves, or costs it the vif"));
    }
    expect_refusal(visit)
}

pub(super) fn no_grant(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    let gref = [0, 7, 500, u32::MAX][world.random.usize(0..4)];
    visit.slot(request(GrantRef(gref), 0, 60));
    world.turns(6)?;
    if visit.is_closed(world)? {
        return Err(format!("reference {gref} costs it the vif"));
    }
    expect_refusal(visit)
}

pub(super) fn index_jumps(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    // Nothing but the index is wrong: each slot of the ring has a good request.
    let frame = visit.frame(HOSTILE_MARK);
    let good = request(visit.guest.buffer(0, &frame), 0, frame.len() as u16).encode();
    for slot in 0..RING_SLOTS as usize {
        visit.guest.tx_page.1.copy_in(SLOTS + slot * good.len(), &good);
    }
    let by = world.random.u32(RING_SLOTS + 1..u32::MAX / 2);
    set_producer(visit, producer(visit).wrapping_add(by));
    visit.must_close(world, &format!("an index ahead by {by}"))
}

/// Over what is done, or over what was seen and is not done.
pub(super) fn index_goes_back(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    let (count, turns, by) = if world.random.bool() {
        (1, 6, 1)
    } else {
        (FLOOD, 1, world.random.u32(1..(FLOOD - BATCH) as u32))
    };
    visit.fill(count);
    world.turns(turns)?;
    set_producer(visit, producer(visit).wrapping_sub(by));
    // While the guest rests nobody looks at its ring.
    world.pass(MOST_REST_MS)?;
    visit.must_close(world, &format!("an index that goes back by {by}"))
}

pub(super) fn bad_slots(world: &mut World, visit: &mut Visit) -> Effect {
    let frame = visit.frame(HOSTILE_MARK);
    let (total, len) = (frame.len() as u16, frame.len());
    let which = world.random.u32(0..4);
    match which {
        // Pieces that are more than the whole.
        0 => {
            let pieces = visit.guest.pieces(&frame, &[20, len - 20]);
            visit.guest.write_packet(7, 0, 19, &[], &pieces);
        }
        // A piece of nothing.
        1 => {
            let pieces = visit.guest.pieces(&frame, &[len, 0]);
            visit.guest.write_packet(7, 0, total, &[], &pieces);
        }
        // More slots than a packet has.
        2 => {
            let gref = visit.guest.buffer(0, &frame);
            for number in 0..22 {
                let flags = TxFlags(if number < 21 { TxFlags::MORE_DATA } else { 0 });
                let size = if number == 0 { total } else { 1 };
                visit.guest.write_slot(&TxRequest { flags, ..request(gref, 0, size) }.encode());
            }
        }
        // A packet that never ends.
        _ => {
            let gref = visit.guest.buffer(0, &[1]);
            for size in core::iter::once(total).chain([1; 39]) {
                let flags = TxFlags(TxFlags::MORE_DATA);
                visit.guest.write_slot(&TxRequest { flags, ..request(gref, 0, size) }.encode());
            }
        }
    }
    visit.publish();
    let left = left(world)?;
    if !left.is_empty() {
        return Err(format!("case {which} left"));
    }
    visit.must_close(world, &format!("case {which}"))
}

pub(super) fn bad_extra(world: &mut World, visit: &mut Visit) -> Effect {
    let frame = visit.frame(HOSTILE_MARK);
    let pieces = visit.guest.pieces(&frame, &[frame.len()]);
    let which = world.random.u32(0..3);
    let extras = match which {
        // A type that netif.h does not have.
        0 => vec![[9, 0, 0, 0, 0, 0, 0, 0]],
        // Each says that another one follows.
        1 => vec![[1, 1, 0, 0, 0, 0, 0, 0]; 30],
        // Segments of no byte, of a type that there is not.
        _ => vec![[1, 0, 0, 0, 9, 0, 0, 0]],
    };
    visit.guest.write_packet(7, TxFlags::CSUM_BLANK, frame.len() as u16, &extras, &pieces);
    visit.publish();
    let left = left(world)?;
    if !left.is_empty() {
        return Err("a frame with such extra infos left".into());
    }
    visit.must_close(world, &format!("case {which}"))
}

pub(super) fn not_negotiated(world: &mut World, visit: &mut Visit) -> Effect {
    let frame = visit.frame(HOSTILE_MARK);
    let pieces = visit.guest.pieces(&frame, &[frame.len()]);
    let size = [0, 1, 1448, u16::MAX][world.random.usize(0..4)].to_le_bytes();
    let kind = world.random.u8(1..3);
    let extras = [[1, 0, size[0], size[1], kind, 0, 0, 0]];
    visit.guest.write_packet(7, TxFlags::CSUM_BLANK, frame.len() as u16, &extras, &pieces);
    visit.publish();
    let left = left(world)?;
    match left.is_empty() {
        true => Ok(true),
        false => Err("a datagram left as a super-frame".into()),
    }
}

pub(super) fn blank_without_ports(world: &mut World, visit: &mut Visit) -> Effect {
    let mut frame = visit.frame(HOSTILE_MARK);
    // ICMP of no known type, with a header checksum that is right.
    let (old, new) = (17u16, 1u16);
    frame[23] = 1;
    let sum =
        u32::from(!u16::from_be_bytes([frame[24], frame[25]])) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    visit.guest.send(&frame, TxFlags(TxFlags::CSUM_BLANK | TxFlags::DATA_VALIDATED));
    visit.publish();
    let left = left(world)?;
    visit.statuses();
    match left.is_empty() {
        true => Ok(true),
        false => Err("it left".into()),
    }
}

pub(super) fn wrong_checksum(world: &mut World, visit: &mut Visit) -> Effect {
    let payload = world.payload(HOSTILE_MARK);
    let mut frame = visit.frame(&payload);
    frame[40] ^= 0x10;
    visit.guest.send(&frame, TxFlags(TxFlags::DATA_VALIDATED));
    visit.publish();
    let mut sent = Vec::new();
    for _ in 0..4 {
        world.turns(1)?;
        sent.extend(world.take_sent()?);
    }
    let own: Vec<_> = sent.iter().filter(|frame| frame.get(42..) == Some(&payload[..])).collect();
    visit.statuses();
    if own.iter().any(|frame| frames::read(frame).is_some()) {
        return Err("a wrong checksum became a right one".into());
    }
    Ok(own.len() == 1)
}

pub(super) fn revoked_before_copy(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    let gref = visit.guest.buffer(0, &visit.frame(HOSTILE_MARK));
    let peer = visit.guest.peer;
    visit.slot(request(gref, 0, 60));
    fake::before_copy(move || {
        peer.revoke(gref);
    });
    let left = left(world)?;
    if !left.is_empty() || visit.is_closed(world)? {
        return Err("more than the packet was lost, or less".into());
    }
    match fake::is_copy_awaited() {
        true => Ok(false),
        false => expect_refusal(visit),
    }
}

pub(super) fn spoofed(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    let payload = world.payload(HOSTILE_MARK);
    let [one, other] = frames::HONEST;
    let sources = [one, other, frames::OWN, frames::SERVER, [0, 0, 0, 0], [255; 4]];
    let ends = Ends {
        source: (sources[world.random.usize(0..sources.len())], 40_000),
        destination: (frames::SERVER, frames::SERVER_PORT),
    };
    let macs = (frames::GATEWAY_MAC, frames::CLIENT_MAC);
    visit.guest.send(&frames::datagram(macs, ends, &payload), TxFlags(0));
    visit.publish();
    let left = left(world)?;
    let statuses = visit.statuses();
    match left.is_empty() && statuses.len() == 1 {
        true => Ok(true),
        false => {
            Err(format!("{} left of a forged source, slots answered {statuses:?}", left.len()))
        }
    }
}

/// An honest client gets its turn all the same. The flood's last frames may be followed by a rest: what comes next begins after it.
pub(super) fn flood(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    world.take_sent()?;
    visit.fill(FLOOD);
    let (which, payload) = (world.any_honest(), world.payload(honest::MARK));
    world.honest_sends_only(which, &payload);
    world.turns(1)?;
    let taken = visit.statuses().len();
    if taken > BATCH {
        return Err(format!("{taken} frames of one client in one turn"));
    }
    let is_out = |frame: &Vec<u8>| frames::read(frame).is_some_and(|read| read.1 == payload);
    if !world.take_sent()?.iter().any(is_out) {
        return Err("a flood of one client holds up the frame of another".into());
    }
    let mut answered = taken;
    for _ in 0..FLOOD {
        world.pass(MOST_REST_MS)?;
        world.take_sent()?;
        answered += visit.statuses().len();
        if answered >= FLOOD {
            // What it still owes is two rests at most.
            world.pass(2 * MOST_REST_MS)?;
            return Ok(true);
        }
    }
    Err(format!("{answered} of {FLOOD} requests are answered"))
}
