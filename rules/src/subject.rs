//! What rules look at: the facts about a packet, and what is known about host names.

use core::fmt;
use core::net::IpAddr;

use crate::rule::HostName;

/// Address family of a source, and so of its rule tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`. An IPv4-mapped IPv6 address is IPv6: that is how it travels.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The first packet of a flow, as rules see it.
///
/// The source is not part of it: each source has its own [`crate::RuleSet`], and the source address
/// was validated before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Destination after the DNS redirection (what the packet will carry on the uplink).
    pub destination: IpAddr,
    /// Upper-layer protocol and the number in it that rules can match.
    pub upper: Upper,
    /// `destination` is one of the firewall's own resolvers (`/qubes-primary-dns`, ...).
    pub is_dns_server: bool,
}

/// Upper-layer protocol of a packet: for IPv6 the one after the extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Upper {
    /// TCP (protocol 6) to this port.
    Tcp {
        /// Destination port.
        port: u16,
    },
    /// UDP (protocol 17) to this port.
    Udp {
        /// Destination port.
        port: u16,
    },
    /// ICMP in an IPv4 packet (protocol 1), ICMPv6 in an IPv6 packet (protocol 58).
    Icmp {
        /// Type byte of the message.
        icmp_type: u8,
    },
    /// Everything else (also protocol 58 over IPv4 and protocol 1 over IPv6).
    Other {
        /// IP protocol number.
        protocol: u8,
    },
}

/// Answer of [`Names`] for one name and one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameMatch {
    /// The name is known and has this address.
    Has,
    /// The name is known and does not have this address, or is known not to exist.
    HasNot,
    /// Nothing is known about the name: not asked yet, time-out, server failure.
    Unresolved,
}

/// Addresses of the host names in rules (`dsthost=`), resolved ahead of matching, as one source sees them.
///
/// The questions are views of one state, and must agree: [`Names::each_at`] reports a name if and only if
/// [`Names::lookup`] says [`NameMatch::Has`] for it, also where a single flow alone has the address. For an address that
/// a name does not have, `lookup` says [`NameMatch::HasNot`] if [`Names::is_known`], else [`NameMatch::Unresolved`].
/// The interpreter ([`crate::RuleSet`]) asks the first question, [`crate::CompiledSet`] the others, so that its cost
/// does not grow with the number of names.
///
/// [`NoNames`] is the implementation that knows no name at all.
pub trait Names {
    /// Whether `address` belongs to `name`. Does no I/O: it looks into what is known now.
    fn lookup(&self, name: &HostName, address: IpAddr) -> NameMatch;

    /// Calls `found` with each name that is known to have `address`. Names that the set does not use may be among them,
    /// the order is free, and a name may come twice.
    fn each_at(&self, address: IpAddr, found: &mut dyn FnMut(&str));

    /// Whether all addresses of a name are known: it has none but those that [`Names::each_at`] would report. Says nothing
    /// about a single address: a name that is not known may have some all the same, which a client or a flow learned.
    fn is_known(&self, name: &HostName) -> bool;

    /// Stands for *which names are known*: equal stamps promise that [`Names::is_known`] says the same of every name
    /// (addresses may have changed). A counter that moves with each such change will do. A set remembers what it found
    /// out under a stamp, so one set must never see one stamp for two states.
    ///
    /// `None`, which is always right, makes the set ask for the name of each drop rule.
    fn stamp(&self) -> Option<u64> {
        None
    }
}

/// No name is resolved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NoNames;

impl Names for NoNames {
    fn lookup(&self, _: &HostName, _: IpAddr) -> NameMatch {
        NameMatch::Unresolved
    }

    fn each_at(&self, _: IpAddr, _: &mut dyn FnMut(&str)) {}

    fn is_known(&self, _: &HostName) -> bool {
        false
    }
}
