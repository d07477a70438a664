//! Rewriting of addresses, ports and checksums, as the stages do it: all packets that go through them are in a line, so
//! that the function alone can be counted.

use firewall::ClientId;

use crate::shapes::{End, SHAPES, Shape};
use crate::world::{self, World};
use crate::{
    Connection, Meter, Page, Protocol, accepted, by_client, by_uplink, delivered, measure,
};

/// Packets of one call, each of a flow of its own.
const PACKETS: u16 = 16;
/// Rules of each client.
const RULES: usize = 10;

/// Each line: direction, what, family, packets.
///
/// # Errors
/// When a packet did not get through, or its port is not what it is meant to be.
pub fn run(meter: &mut dyn Meter) -> Result<(), String> {
    let plain = SHAPES.first();
    for shape in [plain, SHAPES.iter().find(|shape| shape.is_v6)].into_iter().flatten() {
        let family = if shape.is_v6 { "IPv6" } else { "IPv4" };
        let mut world = World::with(world::LIMITS, 2, shape, End::LastRule, RULES)?;
        // The second client wants the ports that the first one got.
        for (client, what) in [(0, "port kept"), (1, "port changed")] {
            handshakes(meter, &mut world, ClientId(client), (what, family))?;
        }
    }
    match SHAPES.iter().find(|shape| shape.miss.port.is_none()) {
        Some(shape) => echoes(meter, shape),
        None => Err("no shape asks for echo".into()),
    }
}

/// The first two packets of connections: up and down.
fn handshakes(
    meter: &mut dyn Meter,
    world: &mut World,
    client: ClientId,
    (what, family): (&str, &str),
) -> Result<(), String> {
    let ports = || (0..PACKETS).map(|number| 40_000 + number);
    let mut pages: Vec<Page> = ports()
        .map(|port| Connection::first(world, client, Protocol::Tcp, port))
        .collect::<Result<_, _>>()?;
    let fates = measure(meter, world, by_client, &mut pages);
    accepted(&pages, &fates)?;
    meter.report(&format!("up\tTCP, {what}\t{family}\t{PACKETS}"));
    let begun = |(port, page)| Connection::begun(world, Protocol::Tcp, port, page);
    let connections: Vec<Connection> = ports().zip(&pages).map(begun).collect::<Result<_, _>>()?;
    let is_kept = what == "port kept";
    if connections.iter().any(|connection| connection.keeps_port() != is_kept) {
        return Err(format!("not every {what}"));
    }
    let mut pages: Vec<Page> = connections.iter().map(Connection::answer).collect();
    let fates = measure(meter, world, by_uplink, &mut pages);
    delivered(&pages, &fates)?;
    meter.report(&format!("down\tTCP, {what}\t{family}\t{PACKETS}"));
    Ok(())
}

/// Echo requests.
fn echoes(meter: &mut dyn Meter, shape: &Shape) -> Result<(), String> {
    let mut world = World::new(shape, End::Policy, RULES)?;
    let mut pages: Vec<Page> =
        (0..PACKETS).map(|number| world.first_packet(40_000 + number)).collect();
    let fates = measure(meter, &mut world, by_client, &mut pages);
    accepted(&pages, &fates)?;
    meter.report(&format!("up\techo\tIPv4\t{PACKETS}"));
    Ok(())
}
