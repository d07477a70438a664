//! The addresses: client - firewall - router - server.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// MAC address of the client.
pub(super) const CLIENT_MAC: [u8; 6] = [0, 0x16, 0x3e, 0x5e, 0x6c, 0x0a];
/// Ours towards the router.
pub(super) const UPLINK_MAC: [u8; 6] = [0, 0x16, 0x3e, 0x5e, 0x6c, 0x06];

/// The family that a check runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) family: Family,
    pub(super) client: IpAddr,
    /// The firewall as the client's gateway.
    pub(super) gateway: IpAddr,
    /// The firewall as the router sees it: what the client is masqueraded to.
    pub(super) own: IpAddr,
    pub(super) router: IpAddr,
    /// The router towards the server.
    pub(super) near: IpAddr,
    pub(super) server: IpAddr,
}

/// The addresses of `family`.
pub(super) fn plan(family: Family) -> Plan {
    let of = |v4: [u8; 4], v6: [u16; 8]| match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(v4)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(v6)),
    };
    Plan {
        family,
        client: of([10, 137, 0, 10], [0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 10]),
        gateway: of([10, 137, 0, 6], [0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, 6]),
        own: of([10, 138, 0, 2], [0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa8a, 2]),
        router: of([10, 138, 0, 1], [0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa8a, 1]),
        near: of([192, 0, 2, 254], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 0xfe]),
        server: of([192, 0, 2, 1], [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1]),
    }
}

impl Plan {
    /// `ip` with the family's option.
    pub(super) fn ip(&self) -> &'static str {
        match self.family {
            Family::V4 => "ip -4",
            Family::V6 => "ip -6",
        }
    }

    /// Prefix length of one host.
    pub(super) fn host(&self) -> u8 {
        match self.family {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// Bytes of the IP and TCP headers without options.
    pub(super) fn headers(&self) -> u16 {
        match self.family {
            Family::V4 => 40,
            Family::V6 => 60,
        }
    }
}
