//! What dom0 opens on purpose, by the words `fw-allow`, `fw-forward` and `fw-filtering-by-address`. Nothing by default.
//!
//! Neighbours: `config` reads the words, `flows` asks here when a packet opens a flow that is closed otherwise.

use alloc::vec::Vec;
use core::net::IpAddr;
use core::num::NonZeroU16;

use crate::conntrack::Tuple;
use crate::wire::protocol;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `tcp`.
    Tcp,
    /// `udp`.
    Udp,
}

impl Transport {
    pub(crate) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
        }
    }
}

/// What of a pair of clients is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every protocol.
    All,
    /// ICMP or ICMPv6, whichever the addresses call for.
    Icmp,
    /// One protocol to every port, or to one.
    Ports(Transport, Option<NonZeroU16>),
}

/// One entry of `fw-allow`: `from` may open flows to `to`, as far as its rules accept them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allow {
    /// The client that opens the flow.
    pub from: IpAddr,
    /// The client that it goes to; of the same family, another one.
    pub to: IpAddr,
    /// Which flows.
    pub scope: Scope,
}

/// One entry of `fw-forward`: what arrives from the uplink for `port` of our address goes to `client`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The protocol.
    pub transport: Transport,
    /// Port on our address of the client's family.
    pub port: NonZeroU16,
    /// The client.
    pub client: IpAddr,
    /// Port of the client.
    pub client_port: NonZeroU16,
}

/// All that is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Client to client.
    pub allow: Vec<Allow>,
    /// Uplink to client. No two entries have the family, protocol and port in common.
    pub forward: Vec<Forward>,
    /// Clients whose mappings take what comes from an address they sent to, whatever its port (RFC 4787, section 5).
    pub filtering_by_address: Vec<IpAddr>,
}

impl Exposure {
    /// Whether a client may open this flow to another one, as far as its rules accept it too.
    pub(crate) fn allows(&self, flow: &Tuple) -> bool {
        self.allow.iter().any(|entry| {
            entry.from == flow.local && entry.to == flow.remote && entry.scope.covers(flow)
        })
    }

    /// Where a packet from the uplink for this port of our address goes; `to` is that address.
    pub(crate) fn forward(&self, protocol: u8, to: IpAddr, port: u16) -> Option<&Forward> {
        self.forward.iter().find(|entry| {
            (entry.transport.protocol(), entry.port.get()) == (protocol, port)
                && entry.client.is_ipv4() == to.is_ipv4()
        })
    }

    /// Whether a flow from the uplink is forwarded just so.
    pub(crate) fn forwards(&self, inside: &Tuple, outside: &Tuple) -> bool {
        let entry = self.forward(outside.protocol, outside.local, outside.local_port);
        entry.is_some_and(|entry| {
            (entry.client, entry.client_port.get()) == (inside.local, inside.local_port)
        })
    }

    /// Whether a client's mappings are filtered by address only.
    pub(crate) fn filters_by_address(&self, client: IpAddr) -> bool {
        self.filtering_by_address.contains(&client)
    }
}

impl Scope {
    fn covers(self, flow: &Tuple) -> bool {
        match self {
            Self::All => true,
            Self::Icmp => matches!(flow.protocol, protocol::ICMP | protocol::ICMPV6),
            Self::Ports(transport, port) => {
                transport.protocol() == flow.protocol
                    && port.is_none_or(|port| port.get() == flow.remote_port)
            }
        }
    }
}
