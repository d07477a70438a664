//! Rules as dom0 means them: what a tree says and what it permits, written from the grammar and not from the code under
//! test.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::names::NAMES;

/// Resolvers, ours and those that clients know.
pub(crate) const RESOLVERS: [[u8; 4]; 2] = [[10, 139, 1, 1], [10, 139, 1, 2]];
pub(crate) const DNS_PORT: u16 = 53;
/// Where modelled clients send to.
pub(crate) const REMOTES: [[u8; 4]; 4] =
    [[203, 0, 113, 1], [203, 0, 113, 2], [203, 0, 113, 9], [203, 0, 113, 77]];
pub(crate) const PORTS: [u16; 3] = [5000, 5001, 6000];
pub(crate) const ECHO: u8 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    fn text(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }
}

/// What a rule is asked about: the destination, and its port or the type of an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) protocol: Protocol,
    pub(crate) address: [u8; 4],
    pub(crate) port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Any,
    Net([u8; 4], u32),
    Name(usize),
    Resolvers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) accepts: bool,
    pub(crate) destination: Destination,
    pub(crate) protocol: Option<Protocol>,
    /// Ports of TCP and UDP, or one type of ICMP.
    pub(crate) ports: Option<(u16, u16)>,
}

impl Rule {
    pub(crate) const fn all(accepts: bool) -> Self {
        Self { accepts, destination: Destination::Any, protocol: None, ports: None }
    }

    /// One that is about nothing else.
    pub(crate) fn about(accepts: bool, target: Target) -> Self {
        let destination = Destination::Net(target.address, 32);
        let ports = Some((target.port, target.port));
        Self { accepts, destination, protocol: Some(target.protocol), ports }
    }

    pub(crate) fn any(random: &mut Rng) -> Self {
        let remote = REMOTES[random.usize(0..REMOTES.len())];
        let destination = match random.u32(0..10) {
            0 => Destination::Any,
            1..5 => Destination::Net(remote, 32),
            5 => Destination::Net(remote, random.u32(20..32)),
            6 => Destination::Resolvers,
            _ => Destination::Name(random.usize(0..NAMES)),
        };
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Udp, Protocol::Icmp];
        let protocol = random.bool().then(|| protocols[random.usize(0..protocols.len())]);
        let protocol = match destination {
            Destination::Resolvers => protocol.filter(|protocol| *protocol != Protocol::Icmp),
            _ => protocol,
        };
        let from = PORTS[random.usize(0..PORTS.len())];
        let ports = match protocol {
            None => None,
            Some(_) if random.bool() || destination == Destination::Resolvers => None,
            Some(Protocol::Icmp) => Some((ECHO.into(), ECHO.into())),
            Some(_) => Some((from, from + random.u16(0..3))),
        };
        Self { accepts: random.u32(0..4) > 0, destination, protocol, ports }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("action={}", if self.accepts { "accept" } else { "drop" });
        match self.destination {
            Destination::Any | Destination::Resolvers => {}
            Destination::Net([a, b, c, d], bits) => {
                text += &format!(" dst4={a}.{b}.{c}.{d}/{bits}")
            }
            Destination::Name(name) => text += &format!(" dsthost={}", super::names::text(name)),
        }
        if let Some(protocol) = self.protocol {
            text += &format!(" proto={}", protocol.text());
        }
        if self.destination == Destination::Resolvers {
            text += " specialtarget=dns";
        }
        match (self.protocol, self.ports) {
            (Some(Protocol::Icmp), Some((kind, _))) => text += &format!(" icmptype={kind}"),
            (_, Some((from, to))) => text += &format!(" dstports={from}-{to}"),
            (_, None) => {}
        }
        text
    }

    /// All that the rule says, but for the destination.
    fn is_of_kind(&self, target: &Target) -> bool {
        let is_resolver = RESOLVERS.contains(&target.address)
            && target.port == DNS_PORT
            && target.protocol != Protocol::Icmp;
        self.protocol.is_none_or(|protocol| protocol == target.protocol)
            && self.ports.is_none_or(|(from, to)| (from..=to).contains(&target.port))
            && (self.destination != Destination::Resolvers || is_resolver)
    }

    /// Whether the destination is the rule's; what a name has is not known here.
    fn is_to(&self, target: &Target) -> bool {
        match self.destination {
            Destination::Any | Destination::Resolvers => true,
            Destination::Net(net, bits) => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                (u32::from_be_bytes(net) ^ u32::from_be_bytes(target.address)) & mask == 0
            }
            Destination::Name(_) => false,
        }
    }
}

/// What is below `/qubes-firewall/<ip>/`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) has_policy: bool,
    pub(crate) rules: BTreeMap<u16, Entry>,
}

#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Rule(Rule),
    /// What is no rule.
    Garbage(&'static str),
}

/// Lines that the contract calls errors.
const GARBAGE: &[&str] = &[
    "action=accept action=accept",
    "action=allow",
    "action=accept proto=tcp dstports=90-80",
    "action=accept dst4=10.0.0.1/33",
    "action=accept  proto=tcp",
    "action=accept specialtarget=tor",
    "action=accept dst4=010.0.0.1/32",
    "action=accept proto=udp icmptype=8",
    "accept",
    "",
];

impl Entry {
    pub(crate) fn garbage(random: &mut Rng) -> Self {
        Self::Garbage(GARBAGE[random.usize(0..GARBAGE.len())])
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Self::Rule(rule) => rule.text(),
            Self::Garbage(text) => (*text).into(),
        }
    }
}

impl Tree {
    /// With gaps in its numbers, as real ones have.
    pub(crate) fn of(rules: impl IntoIterator<Item = Rule>) -> Self {
        let numbers = (0..).map(|number: u16| number * 2 + u16::from(number > 2));
        let rules = numbers.zip(rules.into_iter().map(Entry::Rule)).collect();
        Self { has_policy: true, rules }
    }

    pub(crate) fn meaning(&self) -> Meaning {
        if !self.has_policy && self.rules.is_empty() {
            return Meaning::None;
        }
        let rule = |entry: &Entry| match entry {
            Entry::Rule(rule) => Some(*rule),
            Entry::Garbage(_) => None,
        };
        match self.rules.values().map(rule).collect() {
            Some(rules) if self.has_policy => Meaning::Rules(rules),
            _ => Meaning::Refused,
        }
    }
}

/// What a marked tree means; its policy is drop, as dom0 always writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    None,
    Refused,
    Rules(Vec<Rule>),
}

/// What may be known about names.
pub(crate) trait Known {
    /// Whether the name may have the address.
    fn may_have(&self, name: usize, address: [u8; 4]) -> bool;
    /// Whether nobody has ever said anything about it.
    fn is_unresolved(&self, name: usize) -> bool;
}

impl Meaning {
    /// Whether there is a state of knowledge about names in which these rules accept.
    pub(crate) fn may(&self, target: &Target, names: &impl Known) -> bool {
        let Self::Rules(rules) = self else { return false };
        for rule in rules {
            let is_of_kind = rule.is_of_kind(target);
            match (rule.destination, rule.accepts) {
                (Destination::Name(name), true)
                    if is_of_kind && names.may_have(name, target.address) =>
                {
                    return true;
                }
                // Nothing passes a drop rule whose name is not known.
                (Destination::Name(name), false) if names.is_unresolved(name) => return false,
                (Destination::Name(_), _) => {}
                (_, accepts) if is_of_kind && rule.is_to(target) => return accepts,
                _ => {}
            }
        }
        false
    }

    /// Whether these rules accept whatever is known about names.
    pub(crate) fn must(&self, target: &Target) -> bool {
        let Self::Rules(rules) = self else { return false };
        for rule in rules {
            match (rule.destination, rule.accepts) {
                (Destination::Name(_), true) => {}
                (Destination::Name(_), false) => return false,
                (_, accepts) if rule.is_of_kind(target) && rule.is_to(target) => return accepts,
                _ => {}
            }
        }
        false
    }

    /// All names in them.
    pub(crate) fn names(&self) -> impl Iterator<Item = usize> {
        let rules = match self {
            Self::Rules(rules) => rules.as_slice(),
            _ => &[],
        };
        rules.iter().filter_map(|rule| match rule.destination {
            Destination::Name(name) => Some(name),
            _ => None,
        })
    }

    /// Names that accept flows of this kind: such a flow keeps an address that the name once had.
    pub(crate) fn holders(&self, target: &Target) -> impl Iterator<Item = usize> {
        let rules = match self {
            Self::Rules(rules) => rules.as_slice(),
            _ => &[],
        };
        let (target, is_held) = (*target, |rule: &&Rule| rule.accepts);
        rules.iter().filter(is_held).filter(move |rule| rule.is_of_kind(&target)).filter_map(
            |rule| match rule.destination {
                Destination::Name(name) => Some(name),
                _ => None,
            },
        )
    }
}
