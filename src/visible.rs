//! Clients that are told other addresses than their real ones (Qubes `net.fake-ip`, `net.fake-gateway`).
//!
//! Their packets are translated one to one at the vif: the first thing after the source was checked, and the last thing
//! before a frame leaves. Everything between sees real addresses. No IPv6 on such a vif.

use core::net::{IpAddr, Ipv4Addr};

use crate::firewall::Firewall;
use crate::frame::Frame;
use crate::ingress;
use crate::nat::icmp_error;
use crate::nat::rewrite::{self, Ends};
use crate::packet::{Packet, Quote, Upper};
use crate::port::{Origin, PortId};
use crate::uplink::NetworkConfig;
use crate::verdict::{Answer, DropReason, Verdict};

/// How one client sees itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedIp {
    /// Its real address: that of its vif, its rules and its flows.
    pub real: Ipv4Addr,
    /// What it knows instead.
    pub visible: Visible,
}

/// What such a client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// It has this address and that gateway. No IPv6.
    As {
        /// `visible-ip`.
        address: Ipv4Addr,
        /// `visible-gateway`.
        gateway: Ipv4Addr,
    },
    /// dom0 said something that cannot be understood: nothing of the client is taken.
    Unknown,
}

/// Gives a packet of a client that is told `address` and `gateway` its `real` source, and ours where it means us.
pub(crate) fn reveal(
    frame: &mut Frame<'_>,
    packet: &mut Packet,
    real: IpAddr,
    gateway: Ipv4Addr,
    network: &NetworkConfig,
) -> Result<(), DropReason> {
    let own = network.v4.client_gateway.or(network.v4.address).map(IpAddr::V4);
    let address = packet.source;
    let replace = |known: IpAddr| match own {
        _ if known == address => real,
        Some(own) if known == IpAddr::V4(gateway) => own,
        _ => known,
    };
    translate(frame, packet, replace)
}

/// Replaces every address in a packet, those that an ICMP error quotes included.
fn translate(
    frame: &mut Frame<'_>,
    packet: &mut Packet,
    replace: impl Fn(IpAddr) -> IpAddr,
) -> Result<(), DropReason> {
    let (source, destination) = (replace(packet.source), replace(packet.destination));
    if let Upper::IcmpError(quote) = packet.upper {
        let quoted = Ends {
            source: replace(quote.source),
            source_port: quote.source_port,
            destination: replace(quote.destination),
            destination_port: quote.destination_port,
        };
        icmp_error::translate(frame, packet, &quote, source, destination, &quoted)?;
        let (source, destination) = (quoted.source, quoted.destination);
        packet.upper = Upper::IcmpError(Quote { source, destination, ..quote });
    } else {
        let (source_port, destination_port) = (packet.source_port, packet.destination_port);
        rewrite::apply(
            frame,
            packet,
            &Ends { source, source_port, destination, destination_port },
        )?;
    }
    (packet.source, packet.destination) = (source, destination);
    Ok(())
}

impl Firewall {
    /// The last step of a frame that goes to a client: what it must not know is replaced. A frame in which that cannot
    /// be done ends here.
    pub(crate) fn disguise(
        &self,
        origin: Origin,
        verdict: Verdict,
        frame: &mut Frame<'_>,
    ) -> Verdict {
        let port = match verdict {
            Verdict::Forward(port) => port,
            Verdict::Answer(Answer::Echo) | Verdict::Reject(..) => PortId::from(origin),
            Verdict::Answer(Answer::Arp | Answer::Neighbour)
            | Verdict::Consumed(_)
            | Verdict::Resolved
            | Verdict::Waits
            | Verdict::InPieces
            | Verdict::Drop(_) => return verdict,
        };
        let PortId::Client(id) = port else { return verdict };
        let Some(client) = self.clients.attached(id) else { return verdict };
        let Some(Visible::As { address, gateway }) = client.visible else { return verdict };
        let real = client.port.ip4.map(IpAddr::V4);
        let replace = |known: IpAddr| match known {
            known if Some(known) == real => IpAddr::V4(address),
            known if self.network.is_own(known) => IpAddr::V4(gateway),
            known => known,
        };
        let done =
            ingress::reread(frame).and_then(|mut packet| translate(frame, &mut packet, replace));
        match (done, verdict) {
            (Ok(()), _) => verdict,
            (Err(_), Verdict::Reject(reason, _)) => reason.into(),
            (Err(reason), _) => reason.into(),
        }
    }
}
