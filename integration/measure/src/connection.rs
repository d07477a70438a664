//! A flow of a client to a server outside, and its packets.

use std::net::{IpAddr, SocketAddr};

use firewall::ClientId;

use crate::wire::{self, ACK, GATEWAY, ISN, SYN, Segment, UPLINK_MAC};
use crate::world::World;
use crate::{Page, accepted, by_client, by_uplink, delivered, through};

/// Sequence number of the server's answer to the SYN.
const SERVER_ISN: u32 = 0x2000_1000;

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP: three packets until it stands.
    Tcp,
    /// UDP: two.
    Udp,
}

/// A flow that was begun.
pub struct Connection {
    id: ClientId,
    protocol: Protocol,
    client: SocketAddr,
    /// The client as the server knows it.
    outside: SocketAddr,
    server: SocketAddr,
}

impl Connection {
    /// The packet that begins a flow of a client to the world's target.
    ///
    /// # Errors
    /// When the target has no port.
    pub fn first(
        world: &World,
        id: ClientId,
        protocol: Protocol,
        port: u16,
    ) -> Result<Page, String> {
        let ends = ends(world, id, port)?;
        let macs = (GATEWAY, wire::mac_of(id));
        let frame = match protocol {
            Protocol::Tcp => {
                Segment { ends, flags: SYN, sequence: ISN, acknowledgement: 0 }.frame(macs)
            }
            Protocol::Udp => wire::datagram(ends, macs),
        };
        Ok(Page::new(id, &frame))
    }

    /// The flow of such a packet, which was sent on as it is in `sent`.
    ///
    /// # Errors
    /// When it cannot be one.
    pub fn begun(
        world: &World,
        protocol: Protocol,
        port: u16,
        sent: &Page,
    ) -> Result<Self, String> {
        let (client, server) = ends(world, sent.client, port)?;
        let outside = wire::source_port(&sent.bytes).ok_or("no port outside")?;
        let outside = SocketAddr::new(world.own(), outside);
        Ok(Self { id: sent.client, protocol, client, outside, server })
    }

    /// A flow that stands.
    ///
    /// # Errors
    /// When one of its packets did not get through.
    pub fn open(
        world: &mut World,
        id: ClientId,
        protocol: Protocol,
        port: u16,
    ) -> Result<Self, String> {
        let mut pages = [Self::first(world, id, protocol, port)?];
        let fates = through(world, by_client, &mut pages);
        accepted(&pages, &fates)?;
        let [sent] = &pages;
        let connection = Self::begun(world, protocol, port, sent)?;
        connection.establish(world)?;
        Ok(connection)
    }

    /// Takes the packets behind the first one through.
    ///
    /// # Errors
    /// When one of them did not get through.
    pub fn establish(&self, world: &mut World) -> Result<(), String> {
        let mut answer = [self.answer()];
        let fates = through(world, by_uplink, &mut answer);
        delivered(&answer, &fates)?;
        if self.protocol == Protocol::Udp {
            return Ok(());
        }
        let mut third = [self.up()];
        let fates = through(world, by_client, &mut third);
        accepted(&third, &fates)
    }

    /// What the server answers to the first packet.
    #[must_use]
    pub fn answer(&self) -> Page {
        match self.protocol {
            Protocol::Tcp => self.segment_down(SYN | ACK, SERVER_ISN),
            Protocol::Udp => self.down(),
        }
    }

    /// A packet of the client once the flow stands: an acknowledgement without payload, or an empty datagram.
    #[must_use]
    pub fn up(&self) -> Page {
        let (ends, macs) = ((self.client, self.server), (GATEWAY, wire::mac_of(self.id)));
        let frame = match self.protocol {
            Protocol::Tcp => {
                let (sequence, acknowledgement) = (ISN + 1, SERVER_ISN + 1);
                Segment { ends, flags: ACK, sequence, acknowledgement }.frame(macs)
            }
            Protocol::Udp => wire::datagram(ends, macs),
        };
        Page::new(self.id, &frame)
    }

    /// One of the server, likewise.
    #[must_use]
    pub fn down(&self) -> Page {
        match self.protocol {
            Protocol::Tcp => self.segment_down(ACK, SERVER_ISN + 1),
            Protocol::Udp => {
                let ends = (self.server, self.outside);
                Page::new(self.id, &wire::datagram(ends, (UPLINK_MAC, GATEWAY)))
            }
        }
    }

    /// Whether the server sees the client's own port.
    #[must_use]
    pub fn keeps_port(&self) -> bool {
        self.client.port() == self.outside.port()
    }

    fn segment_down(&self, flags: u8, sequence: u32) -> Page {
        let ends = (self.server, self.outside);
        let segment = Segment { ends, flags, sequence, acknowledgement: ISN + 1 };
        Page::new(self.id, &segment.frame((UPLINK_MAC, GATEWAY)))
    }
}

/// The client's end and the server's.
fn ends(world: &World, id: ClientId, port: u16) -> Result<(SocketAddr, SocketAddr), String> {
    let Some(server) = world.target.port else { return Err("no port".into()) };
    let client: IpAddr = world.address(id);
    Ok((SocketAddr::new(client, port), SocketAddr::new(world.target.address, server)))
}
