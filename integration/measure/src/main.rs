//! Packets through the whole core, for callgrind to count the instructions: `first-packet` or `established`. `marginal`
//! measures time.
//!
//! It counts those in [`measured`] from one [`report`] to the next. Each prints a line that says what was measured. That
//! the packets get what they are meant to get is checked here.

#![forbid(unsafe_code)]

mod established;
mod first_packet;
mod marginal;
mod shapes;
mod wire;
mod world;

use std::hint::black_box;
use std::process::ExitCode;

use firewall::{ClientId, Fate, Frame, Offload, Origin, PortId};

use world::World;

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let outcome = match what.as_str() {
        "first-packet" => first_packet::run(),
        "established" => established::run(),
        "marginal" => marginal::run(std::env::args().skip(2)),
        other => Err(format!("measure first-packet | established | marginal SIZES, not {other:?}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Not inlined, so that it has a name in the program: here callgrind writes down its count and begins anew.
#[inline(never)]
fn report(line: &str) {
    println!("{line}");
}

/// A frame in a page, as the platform has it.
struct Page {
    bytes: Vec<u8>,
    len: usize,
}

/// Takes frames through the core.
type Side = fn(&mut World, &mut [Page]) -> Vec<Option<Fate>>;

/// What is counted. Not inlined either.
#[inline(never)]
fn measured(world: &mut World, side: Side, pages: &mut [Page]) -> Vec<Option<Fate>> {
    side(world, pages)
}

/// Frames of the client.
fn by_client(world: &mut World, pages: &mut [Page]) -> Vec<Option<Fate>> {
    pages.iter_mut().map(|page| handle(world, Origin::Client(ClientId(0)), page)).collect()
}

/// Frames of the uplink.
fn by_uplink(world: &mut World, pages: &mut [Page]) -> Vec<Option<Fate>> {
    pages.iter_mut().map(|page| handle(world, Origin::Uplink, page)).collect()
}

/// Frames that nobody looks at: what the measuring itself takes.
fn by_nobody(_: &mut World, pages: &mut [Page]) -> Vec<Option<Fate>> {
    let nothing = |page: &mut Page| {
        let mut frame = Frame::new(&mut page.bytes, page.len, Offload::default())?;
        Some(untouched(&mut frame))
    };
    pages.iter_mut().map(nothing).collect()
}

#[inline(never)]
fn untouched(frame: &mut Frame<'_>) -> Fate {
    black_box(frame);
    Fate::Consumed
}

fn handle(world: &mut World, origin: Origin, page: &mut Page) -> Option<Fate> {
    let mut frame = Frame::new(&mut page.bytes, page.len, Offload::default())?;
    Some(world.firewall.handle(world.now, origin, &mut frame))
}

/// Every packet is accepted, by a rule or by the policy, so that all cost the same but for the rules.
fn accepted(fate: Option<Fate>) -> Result<(), String> {
    match fate {
        Some(Fate::Send(PortId::Uplink)) => Ok(()),
        other => Err(format!("not accepted: {other:?}")),
    }
}
