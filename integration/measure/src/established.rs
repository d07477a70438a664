//! Packets of connections that stand: acknowledgements without payload, both ways.

use firewall::ClientId;

use crate::shapes::{End, SHAPES};
use crate::world::World;
use crate::{
    Connection, Meter, Page, Protocol, accepted, by_client, by_nobody, by_uplink, delivered,
    measure,
};

/// Rules of the client.
const RULES: usize = 10;
/// Packets of one call.
const PACKETS: usize = 256;

/// Each line: direction, family, packets. The first is about packets that nobody looks at.
///
/// # Errors
/// When a packet did not get through.
pub fn run(meter: &mut dyn Meter) -> Result<(), String> {
    if let Some(shape) = SHAPES.first() {
        let mut world = World::new(shape, End::LastRule, RULES)?;
        let mut pages = copies(|| Page::new(ClientId(0), &[0; 64]));
        measure(meter, &mut world, by_nobody, &mut pages);
        meter.report(&format!("nothing\tat all\t{PACKETS}"));
    }
    for shape in [SHAPES.first(), SHAPES.iter().find(|shape| shape.is_v6)].into_iter().flatten() {
        let mut world = World::new(shape, End::LastRule, RULES)?;
        let connection = Connection::open(&mut world, ClientId(0), Protocol::Tcp, 40_000)?;
        let family = if shape.is_v6 { "IPv6" } else { "IPv4" };
        let mut pages = copies(|| connection.up());
        let fates = measure(meter, &mut world, by_client, &mut pages);
        accepted(&pages, &fates)?;
        meter.report(&format!("up\t{family}\t{PACKETS}"));
        let mut pages = copies(|| connection.down());
        let fates = measure(meter, &mut world, by_uplink, &mut pages);
        delivered(&pages, &fates)?;
        meter.report(&format!("down\t{family}\t{PACKETS}"));
    }
    Ok(())
}

fn copies(page: impl FnMut() -> Page) -> Vec<Page> {
    std::iter::repeat_with(page).take(PACKETS).collect()
}
