//! What a hostile guest does to its vif. The letters are those of the requirements that it tests. `tx` has what it does with
//! its TX ring, `rx` with its receive buffers, `life` with events and xenstore.

mod life;
mod rx;
mod tx;

use xen::fake;
use xen::fake::vif::{Guest, attach_client, detach_client};
use xen::netif::{TxFlags, TxRequest};
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
    ("R1 a slot changes between check and copy", tx::slot_changes),
    ("R2 an offset or a size out of range", tx::bad_span),
    ("R2 a frame shorter or longer than any frame", tx::bad_length),
    ("R2 a grant that there is not", tx::no_grant),
    ("R3 the producer index jumps", tx::index_jumps),
    ("R3 the producer index goes backwards", tx::index_goes_back),
    ("R5 slots that do not add up", tx::bad_slots),
    ("R6 extra infos that nobody knows", tx::bad_extra),
    ("R6 a super-frame that was not negotiated", tx::not_negotiated),
    ("R7 a partial checksum where there is none", tx::blank_without_ports),
    ("R7 a wrong checksum that it vouches for", tx::wrong_checksum),
    ("R8 a grant is revoked between check and copy", tx::revoked_before_copy),
    ("R8 a receive buffer is revoked", rx::revoked_buffer),
    ("R9 no receive buffers", rx::no_buffers),
    ("R9 a storm of events", life::storm),
    ("R9 a ring full of frames", tx::flood),
    ("R10 states in any order", life::states),
    ("R10 references that change while connected", life::other_references),
    ("R10 its directory vanishes", life::directory_vanishes),
    ("R10 its watches fire again and again", life::watch_flood),
    ("spoofed sources", tx::spoofed),
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
        attach_client(&mut world.unit.store, domain, 0, &format!("{a}.{b}.{c}.{d}"));
        world.turns(8)?;
        let mut guest = Guest::new(domain, 0);
        guest.publish(&mut world.unit.store);
        world.turns(8)?;
        guest.post(8);
        let visit = Self { guest, domain, acts: vec![] };
        match visit.is_connected(world) {
            true => Ok(visit),
            false => Err(format!("a guest cannot connect: state {:?}", visit.state(world))),
        }
    }

    fn state(&self, world: &World) -> Option<String> {
        world.unit.store.read(&format!("backend/vif/{}/0/state", self.domain.0))
    }

    pub(crate) fn is_connected(&self, world: &World) -> bool {
        self.state(world).as_deref() == Some("4")
    }

    /// Goes in one of several ways; nothing of it is left.
    pub(crate) fn end(self, world: &mut World) -> Result<(), String> {
        let front = format!("/local/domain/{}/device", self.domain.0);
        match world.random.u32(0..3) {
            0 => {
                self.guest.set(&mut world.unit.store, "state", "6");
                detach_client(&mut world.unit.store, self.domain, 0);
            }
            1 => {
                self.guest.peer.die();
                world.unit.store.remove(&front);
                detach_client(&mut world.unit.store, self.domain, 0);
            }
            _ => world.unit.store.remove(&format!("backend/vif/{}", self.domain.0)),
        }
        world.pass(3000)?;
        world.unit.store.remove(&front);
        world.unit.store.remove(&format!("backend/vif/{}", self.domain.0));
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

    /// What the protocol does not forgive: the vif is taken from it.
    fn must_close(&self, world: &mut World, why: &str) -> Effect {
        match self.is_closed(world)? {
            true => Ok(true),
            false => Err(format!("{why}, and the vif stays")),
        }
    }

    /// Sends a datagram of its own; the port on our address that stands for its own, if it left.
    pub(crate) fn outside(&mut self, world: &mut World) -> Result<Option<u16>, String> {
        let payload = world.payload(HOSTILE_MARK);
        self.guest.send(&self.frame(&payload), TxFlags(0));
        self.publish();
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
        self.statuses();
        Ok(port)
    }

    /// Statuses of the answers since the last time.
    fn statuses(&mut self) -> Vec<i16> {
        self.guest.responses().iter().map(|response| response.status).collect()
    }
}

fn request(gref: GrantRef, offset: u16, size: u16) -> TxRequest {
    TxRequest { gref, offset, flags: TxFlags(0), id: 7, size }
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
