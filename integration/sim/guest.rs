//! What a hostile guest does to its vif. The letters are those of the requirements that it tests.

use xen::fake;
use xen::fake::vif::{Guest, attach_client, detach_client};
use xen::netif::{RxFlags, RxResponse, TxFlags, TxRequest};
use xen::{DomId, GrantRef};

use crate::frames::{self, Ends};
use crate::world::{Effect, HOSTILE_ADDRESS, HOSTILE_MARK, World};

/// The name of a whole visit, from coming to going.
pub(crate) const VISIT: &str = "R13 a hostile guest comes and goes";

/// Turns in which a device closes.
const PATIENCE: usize = 40;

/// An act, and what it did.
pub(crate) type Act = fn(&mut World, &mut Visit) -> Effect;

pub(crate) const ACTS: &[(&str, Act)] = &[
    ("R1 a slot changes between check and copy", slot_changes),
    ("R2 an offset or a size out of range", bad_span),
    ("R2 a grant that there is not", no_grant),
    ("R3 the producer index jumps", index_jumps),
    ("R3 the producer index goes backwards", index_goes_back),
    ("R5 slots that do not add up", bad_slots),
    ("R6 extra infos that nobody knows", bad_extra),
    ("R6 a super-frame that was not negotiated", not_negotiated),
    ("R7 a partial checksum where there is none", blank_without_ports),
    ("R7 a wrong checksum that it vouches for", wrong_checksum),
    ("R8 a grant is revoked between check and copy", revoked_before_copy),
    ("R8 a receive buffer is revoked", revoked_buffer),
    ("R9 a storm of events", storm),
    ("R10 states in any order", states),
    ("R10 references that change while connected", other_references),
    ("R10 its directory vanishes", directory_vanishes),
    ("R10 its watches fire again and again", watch_flood),
    ("spoofed sources", spoofed),
];

/// A hostile guest while it is there.
pub(crate) struct Visit {
    guest: Guest,
    domain: DomId,
    /// What it has done so far.
    pub(crate) acts: Vec<&'static str>,
}

impl Visit {
    pub(crate) fn begin(world: &mut World, domain: DomId) -> Result<Self, String> {
        fake::peer(domain);
        let [a, b, c, d] = HOSTILE_ADDRESS;
        attach_client(&mut world.store, domain, 0, &format!("{a}.{b}.{c}.{d}"));
        world.turns(8)?;
        let mut guest = Guest::new(domain, 0);
        guest.publish(&mut world.store);
        world.turns(8)?;
        guest.post(8);
        let visit = Self { guest, domain, acts: vec![] };
        match visit.is_connected(world) {
            true => Ok(visit),
            false => Err(format!("a guest cannot connect: state {:?}", visit.state(world))),
        }
    }

    fn state(&self, world: &World) -> Option<String> {
        world.store.read(&format!("backend/vif/{}/0/state", self.domain.0))
    }

    pub(crate) fn is_connected(&self, world: &World) -> bool {
        self.state(world).as_deref() == Some("4")
    }

    /// Goes in one of several ways; nothing of it is left.
    pub(crate) fn end(self, world: &mut World) -> Result<(), String> {
        let front = format!("/local/domain/{}/device", self.domain.0);
        match world.random.u32(0..3) {
            0 => {
                self.guest.set(&mut world.store, "state", "6");
                detach_client(&mut world.store, self.domain, 0);
            }
            1 => {
                self.guest.peer.die();
                world.store.remove(&front);
                detach_client(&mut world.store, self.domain, 0);
            }
            _ => world.store.remove(&format!("backend/vif/{}", self.domain.0)),
        }
        world.pass(3000)?;
        world.store.remove(&front);
        world.store.remove(&format!("backend/vif/{}", self.domain.0));
        self.guest.peer.die();
        world.pass(100)
    }

    fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let ends = Ends {
            source: (HOSTILE_ADDRESS, 40_000),
            destination: (frames::SERVER, frames::SERVER_PORT),
        };
        frames::datagram((frames::GATEWAY_MAC, frames::CLIENT_MAC), ends, payload)
    }

    /// One slot, published.
    fn slot(&mut self, request: TxRequest) {
        self.guest.write_slot(&request.encode());
        self.publish();
    }

    fn publish(&mut self) {
        self.guest.push_tx();
        self.guest.peer.notify(self.guest.port);
    }

    /// Whether the vif is taken from it, in some turns.
    fn is_closed(&self, world: &mut World) -> Result<bool, String> {
        for _ in 0..PATIENCE {
            if !self.is_connected(world) {
                return Ok(true);
            }
            world.turns(1)?;
        }
        Ok(false)
    }

    /// Statuses of the answers since the last time.
    fn statuses(&mut self) -> Vec<i16> {
        self.guest.responses().iter().map(|response| response.status).collect()
    }
}

fn request(gref: GrantRef, offset: u16, size: u16) -> TxRequest {
    TxRequest { gref, offset, flags: TxFlags(0), id: 7, size }
}

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

/// Payloads of its own that left.
fn left(world: &mut World) -> Result<Vec<Vec<u8>>, String> {
    let mut all = Vec::new();
    for _ in 0..4 {
        world.turns(1)?;
        all.extend(world.take_sent()?);
    }
    let payloads = all.iter().filter_map(|frame| frame.get(42..).map(<[u8]>::to_vec));
    Ok(payloads.filter(|payload| payload.starts_with(HOSTILE_MARK)).collect())
}

fn slot_changes(world: &mut World, visit: &mut Visit) -> Effect {
    let payload = world.payload(HOSTILE_MARK);
    let at = 64 + (producer(visit) as usize % 256) * 12;
    visit.guest.send(&visit.frame(&payload), TxFlags(0));
    let (ring, other) =
        (visit.guest.peer.page(visit.guest.tx_page.0), request(GrantRef(511), 4000, 4000).encode());
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

fn bad_span(world: &mut World, visit: &mut Visit) -> Effect {
    let gref = visit.guest.buffer(0, &visit.frame(b"x"));
    let spans = [(4096, 60), (4090, 60), (u16::MAX, 1), (0, 0), (1, u16::MAX)];
    let (offset, size) = spans[world.random.usize(0..spans.len())];
    visit.slot(request(gref, offset, size));
    match visit.is_closed(world)? {
        true => Ok(true),
        false => Err(format!("offset {offset}, size {size}, and the vif stays")),
    }
}

fn no_grant(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    let gref = [0, 7, 500, u32::MAX][world.random.usize(0..4)];
    visit.slot(request(GrantRef(gref), 0, 60));
    world.turns(6)?;
    if visit.is_closed(world)? {
        return Err(format!("reference {gref} costs it the vif"));
    }
    Ok(visit.statuses() == [-1])
}

fn index_jumps(world: &mut World, visit: &mut Visit) -> Effect {
    let by = world.random.u32(257..u32::MAX / 2);
    set_producer(visit, producer(visit).wrapping_add(by));
    match visit.is_closed(world)? {
        true => Ok(true),
        false => Err(format!("an index ahead by {by}, and the vif stays")),
    }
}

fn index_goes_back(world: &mut World, visit: &mut Visit) -> Effect {
    visit.guest.send(&visit.frame(HOSTILE_MARK), TxFlags(0));
    world.turns(6)?;
    set_producer(visit, producer(visit).wrapping_sub(1));
    match visit.is_closed(world)? {
        true => Ok(true),
        false => Err("an index that goes back, and the vif stays".into()),
    }
}

fn bad_slots(world: &mut World, visit: &mut Visit) -> Effect {
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
            let lens = [[1; 21].as_slice(), &[len - 21]].concat();
            let pieces = visit.guest.pieces(&frame, &lens);
            visit.guest.write_packet(7, 0, total, &[], &pieces);
        }
        // A packet that never ends.
        _ => {
            for _ in 0..40 {
                let gref = visit.guest.buffer(0, &[1]);
                let flags = TxFlags(TxFlags::MORE_DATA);
                visit.guest.write_slot(&TxRequest { flags, ..request(gref, 0, 1) }.encode());
            }
        }
    }
    visit.publish();
    let left = left(world)?;
    if !left.is_empty() {
        return Err(format!("case {which} left"));
    }
    visit.is_closed(world)
}

fn bad_extra(world: &mut World, visit: &mut Visit) -> Effect {
    let frame = visit.frame(HOSTILE_MARK);
    let pieces = visit.guest.pieces(&frame, &[frame.len()]);
    let extras = match world.random.u32(0..3) {
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
    match left.is_empty() {
        true => Ok(true),
        false => Err("a frame with such extra infos left".into()),
    }
}

fn not_negotiated(world: &mut World, visit: &mut Visit) -> Effect {
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

fn blank_without_ports(world: &mut World, visit: &mut Visit) -> Effect {
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

fn wrong_checksum(world: &mut World, visit: &mut Visit) -> Effect {
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

fn revoked_before_copy(world: &mut World, visit: &mut Visit) -> Effect {
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
    Ok(!fake::is_copy_awaited() && visit.statuses() == [-1])
}

fn revoked_buffer(world: &mut World, visit: &mut Visit) -> Effect {
    // Its own datagram first, for an answer to come.
    let payload = world.payload(HOSTILE_MARK);
    visit.guest.send(&visit.frame(&payload), TxFlags(0));
    visit.publish();
    let mut port = None;
    for _ in 0..4 {
        world.turns(1)?;
        for frame in world.take_sent()? {
            port = frames::read(&frame)
                .filter(|(_, bytes)| *bytes == payload)
                .map(|(ends, _)| ends.source.1)
                .or(port);
        }
    }
    visit.statuses();
    let Some(port) = port else { return Ok(false) };
    for gref in visit.guest.posted_refs() {
        visit.guest.peer.revoke(gref);
    }
    let ends =
        Ends { source: (frames::SERVER, frames::SERVER_PORT), destination: (frames::OWN, port) };
    let frame = frames::datagram((frames::UPLINK_MAC, frames::GATEWAY_MAC), ends, b"answer");
    let Some(netvm) = &mut world.netvm else { return Ok(false) };
    netvm.deliver(&frame, RxFlags(0));
    world.turns(4)?;
    let ring = &visit.guest.rx_page.1;
    let waiting = visit.guest.rx.unconsumed(ring).map_err(|_| "its ring is broken")?;
    let answers = (0..waiting).filter_map(|_| visit.guest.rx.take(ring));
    let statuses: Vec<i16> = answers.map(|(_, slot)| RxResponse::decode(&slot).status).collect();
    // Its ring is of no use any more; it goes.
    visit.guest.set(&mut world.store, "state", "6");
    world.turns(4)?;
    Ok(!statuses.is_empty() && statuses.iter().all(|status| *status < 0))
}

fn storm(world: &mut World, visit: &mut Visit) -> Effect {
    let (peer, port) = (visit.guest.peer, visit.guest.port);
    let start = fake::now_ns();
    // One each microsecond.
    for number in 0..3000 {
        fake::at(start + number * 1000, move || peer.notify(port));
    }
    world.honest_sends()?;
    // It ends before its domain may, and its vif is heard again.
    world.pass(1000)?;
    Ok(fake::now_ns() > start)
}

fn states(world: &mut World, visit: &mut Visit) -> Effect {
    for _ in 0..world.random.usize(1..6) {
        let state = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "-1", "x", ""];
        let state = state[world.random.usize(0..state.len())];
        visit.guest.set(&mut world.store, "state", state);
        let turns = world.random.usize(0..4);
        world.turns(turns)?;
    }
    visit.guest.set(&mut world.store, "state", "6");
    world.turns(4)?;
    visit.is_closed(world)
}

fn other_references(world: &mut World, visit: &mut Visit) -> Effect {
    for name in ["tx-ring-ref", "rx-ring-ref", "event-channel"] {
        let value = world.random.u32(..).to_string();
        visit.guest.set(&mut world.store, name, &value);
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

fn directory_vanishes(world: &mut World, visit: &mut Visit) -> Effect {
    world.store.remove(&format!("/local/domain/{}/device/vif/0", visit.domain.0));
    visit.is_closed(world)
}

fn watch_flood(world: &mut World, visit: &mut Visit) -> Effect {
    for _ in 0..200 {
        let name = ["state", "mac", "feature-sg"][world.random.usize(0..3)];
        let value = world.random.u32(0..3).to_string();
        if name != "state" {
            visit.guest.set(&mut world.store, name, &value);
        }
        world.store.fire(&format!("backend/vif/{}/0/state", visit.domain.0));
    }
    world.honest_sends()?;
    Ok(true)
}

fn spoofed(world: &mut World, visit: &mut Visit) -> Effect {
    visit.statuses();
    let payload = world.payload(HOSTILE_MARK);
    let sources = [frames::HONEST, frames::OWN, frames::SERVER, [0, 0, 0, 0], [255; 4]];
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
