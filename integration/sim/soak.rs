//! Honest traffic for hours of virtual time, with a client that visits now and then. Each hour, and at the end, nothing may
//! be left of it once it is quiet: no page, grant, mapping, port or watch, no flow, and no byte of the heap.

use xen::fake;

use crate::frames;
use crate::guest::Visit;
use crate::honest::{self, Checksum};
use crate::world::{HOSTILE, MS, World};

/// Packets that travel together, each way: within what clients and the uplink have posted.
const BURST: u64 = 10;
const MINUTE_NS: u64 = 60_000 * MS;
/// A client visits each so many minutes, and the ledger is compared.
const VISIT_MINUTES: u64 = 10;
const COMPARE_MINUTES: u64 = 60;
/// Pause before the ledger is compared, in ms: longer than flows of UDP live (RFC 4787: five minutes here).
const QUIET_MS: u64 = 400_000;
/// Visits before anything is compared.
const WARM_UP_VISITS: u64 = 5;
/// Turns in which a burst has to get through.
const PATIENCE: usize = 12;

/// What a soak did.
#[derive(Default)]
pub(crate) struct Soaked {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) visits: u64,
    pub(crate) compared: u64,
}

/// Runs `minutes` of virtual time with `rate` packets a second each way.
pub(crate) fn run(seed: u64, minutes: u64, rate: u64) -> Result<Soaked, String> {
    let tick_ns = (BURST * 1000 * MS).checked_div(rate).filter(|tick| *tick > MS);
    let tick_ns = tick_ns.ok_or("a rate is 1 to 9999 packets a second")?;
    let mut world = World::new(seed);
    let mut soaked = Soaked::default();
    // The first traffic and the first visits make what stays for good: neighbour entries, buffers that have grown.
    soaked.burst(&mut world)?;
    for _ in 0..WARM_UP_VISITS {
        soaked.visit(&mut world)?;
    }
    quiet(&mut world)?;
    world.note_quiet()?;
    for minute in 1..=minutes {
        let end = fake::now_ns() + MINUTE_NS;
        while fake::now_ns() < end {
            let next = fake::now_ns() + tick_ns;
            soaked.burst(&mut world)?;
            world.pass_until(next)?;
        }
        if minute % VISIT_MINUTES == 0 {
            soaked.visit(&mut world)?;
        }
        if minute % COMPARE_MINUTES == 0 || minute == minutes {
            quiet(&mut world)?;
            world.expect_all_back(&format!("{minute} minutes of traffic"))?;
            soaked.compared += 1;
        }
    }
    world.end()?;
    Ok(soaked)
}

fn quiet(world: &mut World) -> Result<(), String> {
    world.pass(QUIET_MS)
}

impl Soaked {
    /// A burst each way, of which nothing is lost.
    fn burst(&mut self, world: &mut World) -> Result<(), String> {
        let clients = world.honest.len();
        let mut sent = Vec::new();
        for which in 0..clients {
            world.honest[which].begin();
        }
        for number in 0..BURST {
            world.number += 1;
            let which = number as usize % clients;
            let payload = world.payload(honest::MARK);
            world.honest[which].send(&payload, Checksum::Full);
            sent.push((which, payload));
        }
        let mut left = Vec::new();
        for _ in 0..PATIENCE {
            world.turns(1)?;
            left.extend(world.take_sent()?);
            if left.len() >= sent.len() {
                break;
            }
        }
        for (which, payload) in &sent {
            let out = left.iter().filter_map(|frame| frames::read(frame));
            let out: Vec<_> = out.filter(|(_, bytes)| bytes == payload).collect();
            let [(ends, _)] = out.as_slice() else {
                return Err(format!("of a packet {} left in a soak", out.len()));
            };
            world.honest[*which].outside = Some((ends.source.1, fake::now_ns()));
            self.sent += 1;
        }
        for which in 0..clients {
            let count = sent.iter().filter(|(of, _)| *of == which).count();
            world.honest[which].expect_answers(count)?;
        }
        self.answers(world, &sent)?;
        // With what they got at the latest.
        match (0..clients).all(|which| world.honest[which].is_told()) {
            true => Ok(()),
            false => Err(honest::NOT_TOLD.into()),
        }
    }

    /// The server sends back what came.
    fn answers(&mut self, world: &mut World, sent: &[(usize, Vec<u8>)]) -> Result<(), String> {
        for (which, payload) in sent {
            world.server_sends(*which, payload, 0, Checksum::Full)?;
        }
        let mut got = vec![Vec::new(); world.honest.len()];
        for _ in 0..PATIENCE {
            world.turns(1)?;
            for (which, got) in got.iter_mut().enumerate() {
                got.extend(world.honest[which].take_received()?);
            }
            if got.iter().map(Vec::len).sum::<usize>() >= sent.len() {
                break;
            }
        }
        for (which, got) in got.into_iter().enumerate() {
            let wanted = sent.iter().filter(|(of, _)| *of == which).map(|(_, payload)| payload);
            if !got.iter().eq(wanted) {
                return Err(format!("client {which} got {} frames, not its own", got.len()));
            }
            self.received += got.len() as u64;
        }
        Ok(())
    }

    /// Another client comes, sends, and goes.
    fn visit(&mut self, world: &mut World) -> Result<(), String> {
        let mut visit = Visit::begin(world, HOSTILE)?;
        if visit.outside(world)?.is_none() {
            return Err("a datagram of a visiting client did not leave".into());
        }
        visit.end(world)?;
        self.visits += 1;
        Ok(())
    }
}
