//! Packets through the whole core, and what else the core does, for `cargo xtask bench engine` to measure. The program has
//! callgrind count the instructions, or counts allocations itself; the benchmark `engine` takes times.
//!
//! Each module runs its cases under a [`Meter`]. That the packets get what they are meant to get is checked here.

#![forbid(unsafe_code)]

mod connection;
pub mod established;
pub mod first_packet;
pub mod flows;
pub mod marginal;
mod population;
pub mod rewrite;
pub mod shapes;
mod wire;
mod world;

use std::hint::black_box;

use firewall::{ClientId, Fate, Frame, Offload, Origin, PortId};

pub use connection::{Connection, Protocol};
pub use population::Population;
pub use world::World;

/// What became of frames, in their order; nothing of one that is none.
pub type Fates = Vec<Option<Fate>>;

/// Takes frames through the core and notes their fates, for which there is room.
pub type Side = fn(&mut World, &mut [Page], &mut Fates);

/// What measures.
pub trait Meter {
    /// Does the work and measures it. What is measured until the next report adds up.
    fn measure(&mut self, world: &mut World, work: &mut dyn FnMut(&mut World));

    /// Says what was measured: labels and at last the number of packets, with tabs between them.
    fn report(&mut self, line: &str);
}

/// A frame in a page, as the platform has it.
pub struct Page {
    /// The page.
    pub bytes: Vec<u8>,
    /// Length of the frame, which is at its beginning.
    pub len: usize,
    /// The client that sends it, or that is meant to get it.
    pub client: ClientId,
}

impl Page {
    /// A page with a frame.
    #[must_use]
    pub fn new(client: ClientId, frame: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(world::PAGE);
        bytes.extend_from_slice(frame);
        bytes.resize(world::PAGE, 0);
        Self { bytes, len: frame.len(), client }
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Puts a frame in the place of the one that it has.
    pub fn put(&mut self, frame: &[u8]) {
        if let Some(place) = self.bytes.get_mut(..frame.len()) {
            place.copy_from_slice(frame);
            self.len = frame.len();
        }
    }
}

/// Takes frames through the core, measured.
pub fn measure(meter: &mut dyn Meter, world: &mut World, side: Side, pages: &mut [Page]) -> Fates {
    let mut fates = Vec::with_capacity(pages.len());
    meter.measure(world, &mut |world| side(world, pages, &mut fates));
    fates
}

/// The same, not measured.
pub fn through(world: &mut World, side: Side, pages: &mut [Page]) -> Fates {
    let mut fates = Vec::with_capacity(pages.len());
    side(world, pages, &mut fates);
    fates
}

/// Frames of clients. Not inlined, so that it is the same code for whoever measures it; neither are the other two.
#[inline(never)]
pub fn by_client(world: &mut World, pages: &mut [Page], fates: &mut Fates) {
    fates.extend(pages.iter_mut().map(|page| handle(world, Origin::Client(page.client), page)));
}

/// Frames of the uplink.
#[inline(never)]
pub fn by_uplink(world: &mut World, pages: &mut [Page], fates: &mut Fates) {
    fates.extend(pages.iter_mut().map(|page| handle(world, Origin::Uplink, page)));
}

/// Frames that nobody looks at: what the measuring itself takes.
#[inline(never)]
pub fn by_nobody(_: &mut World, pages: &mut [Page], fates: &mut Fates) {
    let nothing = |page: &mut Page| {
        let mut frame = Frame::new(&mut page.bytes, page.len, Offload::default())?;
        Some(untouched(&mut frame))
    };
    fates.extend(pages.iter_mut().map(nothing));
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
///
/// # Errors
/// When one was not, or there are not as many as pages.
pub fn accepted(pages: &[Page], fates: &[Option<Fate>]) -> Result<(), String> {
    checked(pages, fates, |_| PortId::Uplink)
}

/// Every packet goes to the client that is meant to get it.
///
/// # Errors
/// When one did not, or there are not as many as pages.
pub fn delivered(pages: &[Page], fates: &[Option<Fate>]) -> Result<(), String> {
    checked(pages, fates, |page| PortId::Client(page.client))
}

fn checked(
    pages: &[Page],
    fates: &[Option<Fate>],
    port: impl Fn(&Page) -> PortId,
) -> Result<(), String> {
    if pages.len() != fates.len() {
        return Err(format!("{} fates of {} packets", fates.len(), pages.len()));
    }
    for (page, fate) in pages.iter().zip(fates) {
        let wanted = port(page);
        if *fate != Some(Fate::Send(wanted)) {
            return Err(format!("not sent to {wanted:?}: {fate:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures nothing.
    #[derive(Default)]
    struct Idle {
        measured: usize,
        lines: Vec<String>,
    }

    impl Meter for Idle {
        fn measure(&mut self, world: &mut World, work: &mut dyn FnMut(&mut World)) {
            work(world);
            self.measured += 1;
        }

        fn report(&mut self, line: &str) {
            assert!(self.measured > 0, "nothing was measured for {line:?}");
            let packets = line.rsplit('\t').next().unwrap();
            assert!(packets.parse::<usize>().unwrap() > 0, "{line:?}");
            self.measured = 0;
            self.lines.push(line.to_owned());
        }
    }

    #[test]
    fn established_packets_and_rewriting_can_be_measured() {
        let mut idle = Idle::default();
        established::run(&mut idle).unwrap();
        rewrite::run(&mut idle).unwrap();
        assert_eq!(idle.lines.len(), 5 + 9, "{:?}", idle.lines);
    }

    #[test]
    fn what_depends_on_the_number_of_flows_can_be_measured() {
        let mut idle = Idle::default();
        flows::run(&mut idle, &[1, 3, 600]).unwrap();
        assert_eq!(idle.lines.len(), 3 * 6, "{:?}", idle.lines);
    }

    #[test]
    fn first_packets_can_be_measured_without_rules() {
        let mut idle = Idle::default();
        first_packet::sizes(&mut idle, &[0, 10]).unwrap();
        assert_eq!(idle.lines.len(), 6, "{:?}", idle.lines);
    }

    #[test]
    fn a_packet_that_goes_elsewhere_is_noticed() {
        let pages = [Page::new(ClientId(1), &[0; 64])];
        let to = |port| [Some(Fate::Send(port))];
        accepted(&pages, &to(PortId::Uplink)).unwrap();
        delivered(&pages, &to(PortId::Client(ClientId(1)))).unwrap();
        assert!(accepted(&pages, &to(PortId::Client(ClientId(1)))).is_err());
        assert!(delivered(&pages, &to(PortId::Client(ClientId(0)))).is_err());
        assert!(accepted(&pages, &[None]).is_err() && accepted(&pages, &[]).is_err());
    }
}
