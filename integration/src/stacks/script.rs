//! A TCP peer in the server's place that does what no Linux server does, segment by segment.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader};

use super::plan::Plan;
use crate::error::{Attempt, Error, Result};
use crate::fail;

const OWN_MAC: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 1];
const NEAR_MAC: [u8; 6] = [0, 0x16, 0x3e, 0, 0, 0xfe];
/// Where the peer's sequence numbers begin.
pub(super) const FIRST: u32 = 0xffff_fff0;
const WINDOW: u16 = 8000;
const PATIENCE: Duration = Duration::from_secs(10);

/// The peer: one connection, which the client opens.
pub(super) struct Peer {
    wire: UnixDatagram,
    plan: Plan,
    port: u16,
    /// The client as the peer sees it: our address and the port that NAT gave it.
    client: Option<SocketAddr>,
}

/// A segment that arrived.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) tcp: TcpHeader,
    pub(super) payload: Vec<u8>,
}

/// Flags and numbers of a segment to send.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Say<'b> {
    pub(super) sequence: u32,
    pub(super) acknowledges: Option<u32>,
    pub(super) syn: bool,
    pub(super) rst: bool,
    pub(super) payload: &'b [u8],
}

impl Peer {
    /// A peer on `port`, and the far end of its cable.
    pub(super) fn new(plan: Plan, port: u16) -> Result<(Self, File)> {
        let (wire, far) = UnixDatagram::pair().doing(|| "cannot make a pair of sockets")?;
        far.set_nonblocking(true).doing(|| "cannot configure a socket")?;
        wire.set_read_timeout(Some(Duration::from_millis(100))).doing(|| "no time-out")?;
        Ok((Self { wire, plan, port, client: None }, File::from(OwnedFd::from(far))))
    }

    /// The next segment for this port that `wanted` holds for; others are passed over.
    pub(super) fn hear(
        &mut self,
        what: &str,
        wanted: impl Fn(&Segment) -> bool,
    ) -> Result<Segment> {
        let (begun, mut buffer) = (Instant::now(), [0; 2048]);
        let mut others = Vec::new();
        while begun.elapsed() < PATIENCE {
            let Ok(length) = self.wire.recv(&mut buffer) else { continue };
            let bytes = buffer.get(..length).unwrap_or_default();
            let Some((client, segment)) = read(bytes, self.port) else { continue };
            if wanted(&segment) {
                self.client = Some(client);
                return Ok(segment);
            }
            others.push(format!("{:?}", segment.tcp));
        }
        fail!("{what} did not come, but {others:?}");
    }

    /// Sends a segment to the client.
    pub(super) fn say(&self, say: Say<'_>) -> Result<()> {
        let Some(client) = self.client else { fail!("the client has not spoken yet") };
        let link = PacketBuilder::ethernet2(OWN_MAC, NEAR_MAC);
        let ip = match (self.plan.server, client.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            pair => fail!("two families: {pair:?}"),
        };
        let mut packet = ip.tcp(self.port, client.port(), say.sequence, WINDOW);
        if say.syn {
            packet = packet.syn();
        }
        if say.rst {
            packet = packet.rst();
        }
        if let Some(number) = say.acknowledges {
            packet = packet.ack(number);
        }
        let mut bytes = Vec::new();
        packet
            .write(&mut bytes, say.payload)
            .map_err(|error| Error::Failed(format!("cannot build a segment: {error}")))?;
        self.wire.send(&bytes).doing(|| "cannot send a segment").map(drop)
    }
}

fn read(bytes: &[u8], port: u16) -> Option<(SocketAddr, Segment)> {
    let headers = PacketHeaders::from_ethernet_slice(bytes).ok()?;
    let source = match headers.net? {
        NetHeaders::Ipv4(ip, _) => IpAddr::from(ip.source),
        NetHeaders::Ipv6(ip, _) => IpAddr::from(ip.source),
        NetHeaders::Arp(_) => return None,
    };
    let Some(TransportHeader::Tcp(tcp)) = headers.transport else { return None };
    let client = SocketAddr::new(source, tcp.source_port);
    let payload = headers.payload.slice().to_vec();
    (tcp.destination_port == port).then_some((client, Segment { tcp, payload }))
}
