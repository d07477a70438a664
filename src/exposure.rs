//! What dom0 opens on purpose, by the words `fw-allow`, `fw-forward` and `fw-filtering-by-address`. Nothing by default.
//!
//! Neighbours: `config` reads the words, `flows` asks here when a packet opens a flow that is closed otherwise.

use alloc::vec::Vec;
use core::net::IpAddr;
use core::num::NonZeroU16;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `tcp`.
    Tcp,
    /// `udp`.
    Udp,
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
