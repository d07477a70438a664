//! Why a rule does not decide about a packet, for people who ask.

use core::fmt;

use crate::rule::{Action, Destination, Rule, UpperMatch};
use crate::subject::{NameMatch, Names, Subject, Upper};

/// The first part of a rule, in the order of its line, that does not hold for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mismatch {
    /// `dst4=` or `dst6=`.
    Destination,
    /// `dsthost=`: the name is known, and does not have the address.
    Name,
    /// `dsthost=` of an accept rule: nothing is known about the name.
    UnresolvedName,
    /// `proto=`, or what ports and types imply.
    Protocol,
    /// `dstports=`.
    Port,
    /// `icmptype=`.
    IcmpType,
    /// `specialtarget=dns`.
    Target,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Destination => "another destination",
            Self::Name => "the name does not have the address",
            Self::UnresolvedName => "the name is not resolved",
            Self::Protocol => "another protocol",
            Self::Port => "another port",
            Self::IcmpType => "another ICMP type",
            Self::Target => "not DNS to a resolver of the firewall",
        })
    }
}

impl Rule {
    /// Why the rule leaves a packet to the next one; `None` if it decides, be it as a drop rule whose name is not
    /// resolved.
    #[must_use]
    pub fn mismatch(&self, subject: &Subject, names: &(impl Names + ?Sized)) -> Option<Mismatch> {
        match &self.destination {
            Destination::Net(net) if !net.contains(&subject.destination) => {
                return Some(Mismatch::Destination);
            }
            Destination::Any | Destination::Net(_) => {}
            Destination::Host(name) => match (names.lookup(name, subject.destination), self.action)
            {
                (NameMatch::Has, _) => {}
                (NameMatch::HasNot, _) => return Some(Mismatch::Name),
                (NameMatch::Unresolved, Action::Accept) => return Some(Mismatch::UnresolvedName),
                (NameMatch::Unresolved, Action::Drop) => return None,
            },
        }
        if !self.upper.matches(subject.upper) {
            return Some(upper(self.upper, subject.upper));
        }
        let targets = self.target.is_none_or(|target| target.matches(self.upper.ports(), subject));
        (!targets).then_some(Mismatch::Target)
    }
}

/// What differs between two that do not match.
fn upper(rule: UpperMatch, packet: Upper) -> Mismatch {
    match (rule, packet) {
        (UpperMatch::Tcp(_), Upper::Tcp { .. })
        | (UpperMatch::Udp(_), Upper::Udp { .. })
        | (UpperMatch::TcpOrUdp(_), Upper::Tcp { .. } | Upper::Udp { .. }) => Mismatch::Port,
        (UpperMatch::Icmp(_), Upper::Icmp { .. }) => Mismatch::IcmpType,
        _ => Mismatch::Protocol,
    }
}
