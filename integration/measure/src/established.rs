//! Packets of connections that stand: acknowledgements without payload, both ways.

use std::net::{IpAddr, SocketAddr};

use firewall::{ClientId, Fate, PortId};

use crate::shapes::{End, SHAPES};
use crate::wire::{self, ACK, CLIENT_MAC, GATEWAY, ISN, SYN, Segment, UPLINK_MAC};
use crate::world::{self, OWN, OWN6, World};
use crate::{Page, accepted, by_client, by_nobody, by_uplink, measured, report};

/// Sequence number of the server's answer to the SYN.
const SERVER_ISN: u32 = 0x2000_1000;
/// Rules of the client.
const RULES: usize = 10;
/// Packets of one call.
const PACKETS: usize = 256;

/// Each line: direction, family, packets. The first is about packets that nobody looks at.
pub(crate) fn run() -> Result<(), String> {
    if let Some(shape) = SHAPES.first() {
        let mut world = World::new(shape, End::LastRule, RULES)?;
        measured(&mut world, by_nobody, &mut copies(&[0; 64])?);
        report(&format!("nothing\tat all\t{PACKETS}"));
    }
    for shape in [SHAPES.first(), SHAPES.iter().find(|shape| shape.is_v6)].into_iter().flatten() {
        let mut world = World::new(shape, End::LastRule, RULES)?;
        let connection = Connection::open(&mut world)?;
        let family = if shape.is_v6 { "IPv6" } else { "IPv4" };
        let mut pages = copies(&connection.up(ACK, ISN + 1, SERVER_ISN + 1))?;
        let fates = measured(&mut world, by_client, &mut pages);
        fates.into_iter().try_for_each(accepted)?;
        report(&format!("up\t{family}\t{PACKETS}"));
        let mut pages = copies(&connection.down(ACK, SERVER_ISN + 1, ISN + 1))?;
        let fates = measured(&mut world, by_uplink, &mut pages);
        fates.into_iter().try_for_each(delivered)?;
        report(&format!("down\t{family}\t{PACKETS}"));
    }
    Ok(())
}

fn copies(frame: &[u8]) -> Result<Vec<Page>, String> {
    (0..PACKETS).map(|_| world::page(frame)).collect()
}

fn delivered(fate: Option<Fate>) -> Result<(), String> {
    match fate {
        Some(Fate::Send(PortId::Client(ClientId(0)))) => Ok(()),
        other => Err(format!("not delivered: {other:?}")),
    }
}

/// A connection of the client.
struct Connection {
    client: SocketAddr,
    /// The client as the server knows it.
    outside: SocketAddr,
    server: SocketAddr,
}

impl Connection {
    fn open(world: &mut World) -> Result<Self, String> {
        let Some(port) = world.target.port else { return Err("no port".into()) };
        let (client, server) =
            (SocketAddr::new(world.client, 40_000), SocketAddr::new(world.target.address, port));
        let own = if client.is_ipv6() { IpAddr::V6(OWN6) } else { IpAddr::V4(OWN) };
        let mut pages = [world.first_packet(client.port())?];
        by_client(world, &mut pages).into_iter().try_for_each(accepted)?;
        let [sent] = &pages;
        let outside = wire::source_port(&sent.bytes).ok_or("no port outside")?;
        let connection = Self { client, outside: SocketAddr::new(own, outside), server };
        let mut answer = [world::page(&connection.down(SYN | ACK, SERVER_ISN, ISN + 1))?];
        by_uplink(world, &mut answer).into_iter().try_for_each(delivered)?;
        let mut third = [world::page(&connection.up(ACK, ISN + 1, SERVER_ISN + 1))?];
        by_client(world, &mut third).into_iter().try_for_each(accepted)?;
        Ok(connection)
    }

    fn up(&self, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
        let ends = (self.client, self.server);
        Segment { ends, flags, sequence, acknowledgement }.frame((GATEWAY, CLIENT_MAC))
    }

    fn down(&self, flags: u8, sequence: u32, acknowledgement: u32) -> Vec<u8> {
        let ends = (self.server, self.outside);
        Segment { ends, flags, sequence, acknowledgement }.frame((UPLINK_MAC, GATEWAY))
    }
}
