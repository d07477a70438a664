//! Connection tracking: what a flow is, how long it lives, and the table of all flows.
//!
//! [`table::Table`] holds [`Flow`]s and finds them by their face towards the client (`inside`) or towards the world
//! (`outside`); [`tcp`] follows the handshake and the windows; `slab`, `index` and `list` are the bounded containers.
//! `face` has the faces, `flow` what is kept of them and all else, `marks` its bits.

mod face;
mod flow;
pub(crate) mod index;
pub(crate) mod list;
mod marks;
pub(crate) mod slab;
pub(crate) mod table;
pub(crate) mod tcp;

use core::time::Duration;

use crate::clients::{Generation, HostId};
use crate::dns::Held;
use crate::time::Instant;

pub(crate) use face::{Own, Tuple};
pub(crate) use flow::{Flow, NewFlow};

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

/// Kind of a flow as far as its lifetime goes; each has a constant one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
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
    /// No class has a longer lifetime.
    pub(crate) const LONGEST: Duration = Self::TcpEstablished.lifetime();

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

impl Flow {
    /// How far it has come, for people.
    pub(crate) fn state_name(&self) -> &'static str {
        match (self.standing(), self.tcp, self.class) {
            (Standing::Forbidden, ..) => "forbidden",
            (_, Some(tracker), _) => tracker.state_name(),
            (_, None, Class::UdpOneWay) => "one-way",
            (_, None, Class::UdpBothWays) => "both-ways",
            (_, None, Class::UdpDns) if self.hold() == Hold::Firm => "both-ways",
            (_, None, Class::UdpDns) => "one-way",
            (_, None, Class::IcmpQuery) => "query",
            (_, None, Class::TcpTransitory | Class::TcpEstablished | Class::Other) => "open",
        }
    }

    /// Time since its lifetime began anew, which the client's packets make it do.
    pub(crate) fn idle(&self, now: Instant) -> Duration {
        self.class.lifetime().saturating_sub(self.deadline.since(now))
    }
}

/// What an accept of the rules rests on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permit {
    pub(crate) generation: Generation,
    pub(crate) held: Option<Held>,
}
