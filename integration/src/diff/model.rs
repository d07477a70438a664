//! What is compared: typed rule sets and packets. Neither knows how our firewall reads rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address family of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// The number of ICMP in the IP header.
    pub(super) const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}

/// Upper-layer protocol that a rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proto {
    Tcp,
    Udp,
    Icmp,
}

/// What a rule says about the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// Address with a prefix length; host bits may be set.
    Net(IpAddr, u8),
    Name(HostName),
}

/// A host name in a rule, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostName(pub(super) u8);

impl HostName {
    /// Names are numbered from 0 to here.
    pub(super) const COUNT: u8 = 6;
    /// One that exists and has no address.
    pub(super) const WITHOUT_ADDRESS: Self = Self(255);
    /// The one of the measured table.
    const MEASURED: (Self, &str) = (Self(254), "www.example.org");

    /// All that the servers know.
    pub(super) fn known() -> impl Iterator<Item = Self> {
        let more = [Self::WITHOUT_ADDRESS, Self::MEASURED.0];
        (0..Self::COUNT).map(Self).chain(more)
    }

    /// A name of the measured table.
    pub(super) fn measured(text: &str) -> Option<Self> {
        let (name, known) = Self::MEASURED;
        (text == known).then_some(name)
    }

    pub(super) fn text(self) -> String {
        match self {
            name if name == Self::MEASURED.0 => Self::MEASURED.1.into(),
            Self(number) => format!("host-{number}.example.org"),
        }
    }

    /// One to three addresses of a family, among those that packets are sent to.
    pub(super) fn addresses(self, family: Family) -> Vec<IpAddr> {
        let number = u16::from(self.0);
        let numbers = match self {
            Self::WITHOUT_ADDRESS => 0..0,
            name if name == Self::MEASURED.0 => 6..8,
            _ => number * 2..number * 2 + number % 3 + 1,
        };
        numbers
            .map(|n| match family {
                Family::V4 => Ipv4Addr::new(198, 51, 100, n as u8).into(),
                Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into(),
            })
            .collect()
    }
}

/// One rule as dom0 means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) accept: bool,
    pub(super) proto: Option<Proto>,
    pub(super) to: Option<To>,
    pub(super) ports: Option<(u16, u16)>,
    pub(super) icmp_type: Option<u8>,
    pub(super) dns: bool,
    /// How it is spelled: bits that choose the order and the short forms.
    pub(super) spelling: u32,
}

impl Rule {
    /// The rule that matches everything.
    pub(super) const fn all(accept: bool) -> Self {
        Self {
            accept,
            proto: None,
            to: None,
            ports: None,
            icmp_type: None,
            dns: false,
            spelling: 0,
        }
    }
}

/// A fault for which both the Linux agent and we refuse all traffic of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    NoPolicy,
    PolicyWord,
    NoAction,
    ActionWord,
    UnknownKey,
    KeyOfFiveDigits,
    OtherFamily,
    LongPrefix,
    BadAddress,
    ReversedPorts,
    PortTooLarge,
    IcmpTypeTooLarge,
    PortsOfIcmp,
    IcmpTypeOfTcp,
    DnsOfIcmp,
}

impl Fault {
    pub(super) const ALL: [Self; 15] = [
        Self::NoPolicy,
        Self::PolicyWord,
        Self::NoAction,
        Self::ActionWord,
        Self::UnknownKey,
        Self::KeyOfFiveDigits,
        Self::OtherFamily,
        Self::LongPrefix,
        Self::BadAddress,
        Self::ReversedPorts,
        Self::PortTooLarge,
        Self::IcmpTypeTooLarge,
        Self::PortsOfIcmp,
        Self::IcmpTypeOfTcp,
        Self::DnsOfIcmp,
    ];
}

/// The rules of client A.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) family: Family,
    /// Ascending key numbers; gaps are normal.
    pub(super) rules: Vec<(u16, Rule)>,
    pub(super) policy_accepts: bool,
    pub(super) fault: Option<Fault>,
}

/// Where a packet enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    A,
    B,
    Uplink,
}

/// The layer above IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Upper {
    Tcp {
        from: u16,
        to: u16,
        flags: u8,
    },
    Udp {
        from: u16,
        to: u16,
    },
    Icmp {
        kind: u8,
        code: u8,
        id: u16,
    },
    /// An ICMP error about a packet.
    Error {
        kind: u8,
        code: u8,
        mtu: u16,
        about: Box<Packet>,
    },
    /// A protocol without ports; SCTP as an association begins.
    Other {
        protocol: u8,
    },
}

/// SCTP (RFC 9260).
pub(super) const SCTP: u8 = 132;

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) side: Side,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ttl: u8,
    pub(super) upper: Upper,
    /// Bytes behind its payload. A packet that has them must not be cut.
    pub(super) padding: u16,
}

/// What became of a packet. `Ours` and Linux' answers are compared by this and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Left through another port, with this destination and TTL; `masqueraded` with our address as its source. Of an
    /// ICMP error that is passed on destination and source port are those of the packet inside.
    Accept { out: Side, destination: IpAddr, port: u16, ttl: u8, masqueraded: bool },
    /// The firewall itself answered an echo or timestamp request.
    Answer,
    /// An ICMP error came back.
    Reject { kind: u8, code: u8, mtu: u16 },
    /// Silence.
    Drop,
}

/// The addresses of the network under test, the same on both sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) a: IpAddr,
    pub(super) b: IpAddr,
    /// Known to dom0, not connected.
    pub(super) absent: IpAddr,
    pub(super) own: IpAddr,
    pub(super) client_gateway: IpAddr,
    pub(super) netvm: IpAddr,
    /// What clients use, and what we use in their place.
    pub(super) client_dns: [IpAddr; 2],
    pub(super) own_dns: [IpAddr; 2],
}

impl Plan {
    /// Where DNS to `destination` goes.
    pub(super) fn redirected(&self, destination: IpAddr, port: u16) -> IpAddr {
        let mut pairs = self.client_dns.into_iter().zip(self.own_dns);
        let found = pairs.find(|(asked, _)| port == 53 && *asked == destination);
        found.map_or(destination, |(_, server)| server)
    }
}

/// What the uplink carries; the vifs carry 1500.
pub(super) const UPLINK_MTU: u16 = 1400;

/// The network of a family.
pub(super) const fn plan(family: Family) -> Plan {
    match family {
        Family::V4 => {
            const fn ip(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            Plan {
                a: ip(10, 137, 0, 10),
                b: ip(10, 137, 0, 11),
                absent: ip(10, 137, 0, 12),
                own: ip(10, 137, 0, 6),
                client_gateway: ip(10, 137, 0, 7),
                netvm: ip(10, 137, 0, 5),
                client_dns: [ip(10, 139, 1, 1), ip(10, 139, 1, 2)],
                own_dns: [ip(192, 0, 2, 1), ip(192, 0, 2, 2)],
            }
        }
        Family::V6 => {
            const fn ip(last: u16) -> IpAddr {
                IpAddr::V6(Ipv6Addr::new(0xfd09, 0x24ef, 0x4179, 0, 0, 0, 0xa89, last))
            }
            Plan {
                a: ip(0xa),
                b: ip(0xb),
                absent: ip(0xc),
                own: ip(6),
                client_gateway: ip(7),
                netvm: ip(5),
                client_dns: [ip(0x53), ip(0x54)],
                own_dns: [ip(0x153), ip(0x154)],
            }
        }
    }
}
