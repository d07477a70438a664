//! One rule: what a line below `/qubes-firewall/<ip>/` can say, and how it is printed.
//!
//! A [`Rule`] exists only as the result of parsing, so that holding one proves that its parts agree
//! with each other (no ports with ICMP, no DNS target with ICMP) and with the family of its tree.

use alloc::boxed::Box;
use core::fmt;

use ipnet::IpNet;

use crate::error::RuleError;
use crate::parse;
use crate::subject::{Family, NameMatch, Names, Subject, Upper};

/// Port of DNS over UDP (RFC 1035 4.2.1) and TCP (RFC 7766).
pub(crate) const DNS_PORT: u16 = 53;

/// What happens to a packet that a rule or the policy matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// `accept`: forward.
    Accept,
    /// `drop`: refuse, with an ICMP error (as the Qubes agent for Linux does).
    Drop,
}

impl Action {
    /// The word in rule lines and in the `policy` key. Case sensitive.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        }
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        match word {
            "accept" => Some(Self::Accept),
            "drop" => Some(Self::Drop),
            _ => None,
        }
    }
}

/// `dst4=`, `dst6=` or `dsthost=`: at most one of the three in a rule.
///
/// The order serves to bring rules with equal destinations together: prefixes by address, the larger of two first, then
/// names as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// No such element: every destination.
    Any,
    /// Addresses of this prefix, host bits cleared, of the family of the tree.
    Net(IpNet),
    /// Addresses of this name, as far as they are known when a packet is judged.
    Host(HostName),
}

/// Name of a `dsthost=` element: at least one of `a-z 0-9 - . _`, nothing else.
///
/// DNS syntax (length of labels, empty labels) is not checked: dom0 does not check it either and
/// writes malformed addresses such as `300.1.1.1` in this form. Such a name simply never resolves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(pub(crate) Box<str>);

impl HostName {
    /// The name as text, lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Inclusive range of destination ports; the first is never above the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The range, or nothing if it is reversed.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// Lowest port of the range.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Highest port of the range, part of it.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` lies in the range, both bounds included.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// `proto=`, `dstports=` and `icmptype=` together: only combinations that can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpperMatch {
    /// None of the three: every protocol, also those that no rule can name.
    Any,
    /// `proto=tcp`, perhaps with ports.
    Tcp(Option<PortRange>),
    /// `proto=udp`, perhaps with ports.
    Udp(Option<PortRange>),
    /// `dstports=` without `proto=`: TCP and UDP.
    TcpOrUdp(PortRange),
    /// `proto=icmp`, perhaps with a type, or a type alone. ICMPv6 in an IPv6 tree.
    Icmp(Option<u8>),
}

impl UpperMatch {
    pub(crate) fn matches(self, upper: Upper) -> bool {
        match (self, upper) {
            (Self::Any, _) => true,
            (Self::Tcp(ports), Upper::Tcp { port }) | (Self::Udp(ports), Upper::Udp { port }) => {
                ports.is_none_or(|range| range.contains(port))
            }
            (Self::TcpOrUdp(range), Upper::Tcp { port } | Upper::Udp { port }) => {
                range.contains(port)
            }
            (Self::Icmp(wanted), Upper::Icmp { icmp_type }) => {
                wanted.is_none_or(|wanted| wanted == icmp_type)
            }
            _ => false,
        }
    }

    /// The ports that it asks for, if it does.
    #[must_use]
    pub const fn ports(self) -> Option<PortRange> {
        match self {
            Self::Tcp(ports) | Self::Udp(ports) => ports,
            Self::TcpOrUdp(range) => Some(range),
            Self::Any | Self::Icmp(_) => None,
        }
    }
}

/// `specialtarget=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecialTarget {
    /// `dns`: UDP and TCP port 53 of the firewall's own resolvers. Combines with the other matches.
    Dns,
}

impl SpecialTarget {
    pub(crate) fn matches(self, ports: Option<PortRange>, subject: &Subject) -> bool {
        let Self::Dns = self;
        let to_port_53 =
            matches!(subject.upper, Upper::Tcp { port: DNS_PORT } | Upper::Udp { port: DNS_PORT });
        // The reference skips a rule whose ports are anything but 53, also a wider range.
        let names_port_53 =
            ports.is_none_or(|range| range.first == DNS_PORT && range.last == DNS_PORT);
        subject.is_dns_server && to_port_53 && names_port_53
    }
}

/// One rule. All its matches must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub(crate) action: Action,
    pub(crate) destination: Destination,
    pub(crate) upper: UpperMatch,
    pub(crate) target: Option<SpecialTarget>,
}

/// Whether a rule applies to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleMatch {
    Yes,
    No,
    /// A drop rule whose name is not known: it might apply, so that nothing may pass it.
    Unknown,
}

impl Rule {
    /// Parses the value of one `NNNN` key of a tree of this family.
    ///
    /// # Errors
    /// The element that cannot be accepted, and why. Stricter than the Qubes agent for Linux, which
    /// lets for instance the last of two `action=` win and ignores an unknown `specialtarget=`.
    pub fn parse(family: Family, value: &[u8]) -> Result<Self, RuleError> {
        parse::rule(family, value)
    }

    /// What the rule does with the packets that it matches.
    #[must_use]
    pub const fn action(&self) -> Action {
        self.action
    }

    /// The destinations that it matches.
    #[must_use]
    pub const fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The protocols, ports and ICMP types that it matches.
    #[must_use]
    pub const fn upper(&self) -> UpperMatch {
        self.upper
    }

    /// The special target, if it has one.
    #[must_use]
    pub const fn target(&self) -> Option<SpecialTarget> {
        self.target
    }

    /// The name that the rule depends on, if it has one.
    #[must_use]
    pub const fn host_name(&self) -> Option<&HostName> {
        match &self.destination {
            Destination::Host(name) => Some(name),
            Destination::Any | Destination::Net(_) => None,
        }
    }

    pub(crate) fn matches(&self, subject: &Subject, names: &(impl Names + ?Sized)) -> RuleMatch {
        let in_destination = match &self.destination {
            Destination::Any => true,
            Destination::Net(net) => net.contains(&subject.destination),
            Destination::Host(name) => match names.lookup(name, subject.destination) {
                NameMatch::Has => true,
                NameMatch::HasNot => false,
                // Fail closed: everything that reaches a drop rule whose name is not known is
                // refused, whatever its other matches say; an accept rule matches nothing.
                NameMatch::Unresolved => {
                    return match self.action {
                        Action::Accept => RuleMatch::No,
                        Action::Drop => RuleMatch::Unknown,
                    };
                }
            },
        };
        let all_hold = in_destination
            && self.upper.matches(subject.upper)
            && self.target.is_none_or(|target| target.matches(self.upper.ports(), subject));
        if all_hold { RuleMatch::Yes } else { RuleMatch::No }
    }
}

/// The canonical line, in the order and spelling in which dom0 writes rules.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "action={}", self.action.word())?;
        match &self.destination {
            Destination::Any => {}
            Destination::Net(IpNet::V4(net)) => write!(f, " dst4={net}")?,
            Destination::Net(IpNet::V6(net)) => write!(f, " dst6={net}")?,
            Destination::Host(name) => write!(f, " dsthost={name}")?,
        }
        match self.upper {
            UpperMatch::Any | UpperMatch::TcpOrUdp(_) => {}
            UpperMatch::Tcp(_) => f.write_str(" proto=tcp")?,
            UpperMatch::Udp(_) => f.write_str(" proto=udp")?,
            UpperMatch::Icmp(_) => f.write_str(" proto=icmp")?,
        }
        if let Some(SpecialTarget::Dns) = self.target {
            f.write_str(" specialtarget=dns")?;
        }
        if let Some(ports) = self.upper.ports() {
            write!(f, " dstports={ports}")?;
        }
        if let UpperMatch::Icmp(Some(icmp_type)) = self.upper {
            write!(f, " icmptype={icmp_type}")?;
        }
        Ok(())
    }
}
