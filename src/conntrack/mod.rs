//! Connection tracking: what a flow is, how long it lives, and the table of all flows.
//!
//! [`table::Table`] holds [`Flow`]s and finds them by their face towards the client (`inside`) or towards the world
//! (`outside`); [`tcp`] follows the handshake and the windows; `slab`, `index` and `list` are the bounded containers.

pub(crate) mod index;
pub(crate) mod list;
pub(crate) mod slab;
pub(crate) mod table;
pub(crate) mod tcp;

use core::net::IpAddr;
use core::time::Duration;

use crate::clients::{Generation, HostId};
use crate::dns::Held;
use crate::fast::Passed;
use crate::nat::MappingId;
use crate::nat::peers::PeerId;
use crate::time::Instant;

/// One face of a flow. `local` is the client's end, or our own address in its place; `remote` the far one.
///
/// Ports of ICMP queries: the identifier is the local one, the query's type the remote one. Protocols without ports
/// have zeros.
#[derive(Clone, Copy, Debug, Eq)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) local: IpAddr,
    pub(crate) local_port: u16,
    pub(crate) remote: IpAddr,
    pub(crate) remote_port: u16,
}

// Written out for its place in the fast path: as a function of its own it costs as much again.
impl PartialEq for Tuple {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ports = |one: &Self| (one.protocol, one.local_port, one.remote_port);
        ports(self) == ports(other) && self.local == other.local && self.remote == other.remote
    }
}

/// What the rules say about a flow, as of its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Accepted,
    Forbidden,
}

/// What permits a flow, always as of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// The rules of its client.
    Rules,
    /// The same, and an entry of `fw-allow` for the client that it goes to.
    Allowed { to: HostId },
    /// An entry of `fw-forward`; the far side opened it.
    Forwarded,
}

impl Basis {
    pub(crate) fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

/// Kind of a flow as far as its lifetime goes; each has a constant one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// TCP that is opening, closing or reset.
    TcpTransitory,
    TcpEstablished,
    /// UDP without an answer yet.
    UdpOneWay,
    UdpBothWays,
    /// DNS: the well-known port for which RFC 4787 REQ-5a allows a short life.
    UdpDns,
    IcmpQuery,
    /// Protocols without ports.
    Other,
}

impl Class {
    pub(crate) const COUNT: usize = 7;

    /// Life after the client's last packet.
    #[inline(always)]
    pub(crate) const fn lifetime(self) -> Duration {
        Duration::from_secs(match self {
            // RFC 5382 REQ-5.
            Self::TcpTransitory => 240,
            Self::TcpEstablished => 7440,
            // RFC 4787 REQ-5.
            Self::UdpOneWay => 120,
            Self::UdpBothWays => 300,
            Self::UdpDns => 60,
            // RFC 5508 REQ-2.
            Self::IcmpQuery => 60,
            Self::Other => 600,
        })
    }
}

/// Whether a flow may be evicted to make room for another one of the same client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nobody answered yet, or it is ending: may go.
    Loose,
    /// In use both ways: stays until it ends or times out.
    Firm,
}

/// One flow and both its faces.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Flow {
    /// As the client sees it, before any DNS redirection.
    pub(crate) inside: Tuple,
    /// As the world sees it.
    pub(crate) outside: Tuple,
    /// The client that opened it, or that it was forwarded to.
    pub(crate) host: HostId,
    pub(crate) basis: Basis,
    /// The port on our address; none for protocols without ports, and where there is no NAT or it is a forwarded one.
    pub(crate) mapping: Option<MappingId>,
    /// Noted for filtering by address.
    pub(crate) peer: Option<PeerId>,
    pub(crate) generation: Generation,
    pub(crate) standing: Standing,
    /// The name by which the rules accepted it, as of its generation.
    pub(crate) held: Option<Held>,
    pub(crate) class: Class,
    pub(crate) hold: Hold,
    /// Present for TCP.
    pub(crate) tcp: Option<tcp::Tracker>,
    /// Not usable from then on.
    pub(crate) deadline: Instant,
    /// Its deadline when it got its place in the list of its class.
    listed: Instant,
    /// For the fast path.
    pub(crate) passed: Passed,
    links: list::Links,
}

/// A flow that is renewed again and again moves in the list of its class at most once in this time, so that the head of a
/// list may be up to that much further from its end than one behind it.
const RELIST: Duration = Duration::from_secs(1);

impl Flow {
    /// Starts its lifetime anew; false if it has to move in the list of its class.
    #[inline(always)]
    pub(crate) fn prolong(&mut self, now: Instant) -> bool {
        self.deadline = now.after(self.class.lifetime());
        self.deadline.since(self.listed) < RELIST
    }
}

/// What a new flow starts with.
#[derive(Debug)]
pub(crate) struct NewFlow {
    pub(crate) inside: Tuple,
    pub(crate) outside: Tuple,
    pub(crate) host: HostId,
    pub(crate) basis: Basis,
    pub(crate) mapping: Option<MappingId>,
    pub(crate) peer: Option<PeerId>,
    pub(crate) permit: Permit,
    pub(crate) class: Class,
    pub(crate) tcp: Option<tcp::Tracker>,
}

/// What an accept of the rules rests on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permit {
    pub(crate) generation: Generation,
    pub(crate) held: Option<Held>,
}
