//! What may pass as of now, in the oracle's own words: rules, names and what dom0 opened.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rules::{HostName, NameMatch, Names, RuleSet, Subject, Upper, Verdict};

use super::view::{Sense, View};
use super::world::{ADDRESSES, Family};

/// A protocol, a port or all of them; ICMP of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    All,
    Icmp,
    Ports(u8, Option<u16>),
}

/// An entry of `fw-allow` in both families: clients by number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) reach: Reach,
}

/// An entry of `fw-forward` in both families.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forwarded {
    pub(super) protocol: u8,
    pub(super) port: u16,
    pub(super) client: usize,
    pub(super) client_port: u16,
}

/// A flow as who opened it has it: protocol, far address and port. The port of an ICMP query is its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Goal {
    pub(super) protocol: u8,
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl Goal {
    /// The goal of the flow of a packet whose sender opened it, or answers.
    pub(super) fn of(packet: &View, sense: Sense) -> Self {
        let address = match sense {
            Sense::Asks => packet.dst,
            Sense::Answers => packet.src,
        };
        Self { protocol: packet.protocol, address, port: packet.far(sense) }
    }

    fn is_icmp(&self) -> bool {
        self.protocol == if self.address.is_ipv4() { 1 } else { 58 }
    }

    fn upper(&self) -> Upper {
        match self.protocol {
            6 => Upper::Tcp { port: self.port },
            17 => Upper::Udp { port: self.port },
            _ if self.is_icmp() => Upper::Icmp { icmp_type: self.port as u8 },
            protocol => Upper::Other { protocol },
        }
    }
}

/// What is in force.
#[derive(Default)]
pub(super) struct Permits {
    /// Of A and B, IPv4 and IPv6.
    pub(super) rules: [[Option<RuleSet>; 2]; 2],
    pub(super) resolvers: Vec<IpAddr>,
    pub(super) allowed: Vec<Allowed>,
    pub(super) forwarded: Vec<Forwarded>,
    /// Clients filtered by address.
    pub(super) by_address: Vec<usize>,
    /// Every address that anybody ever said the name has.
    pub(super) answered: BTreeSet<IpAddr>,
}

impl Permits {
    /// Whether the client's rules accept the flow, for any state of the name that is possible.
    pub(super) fn accept(&self, client: usize, goal: &Goal) -> bool {
        let family = usize::from(goal.address.is_ipv6());
        let Some(set) = &self.rules[client][family] else { return false };
        let is_dns_server = self.resolvers.contains(&goal.address);
        let subject = Subject { destination: goal.address, upper: goal.upper(), is_dns_server };
        let has = self.answered.contains(&goal.address);
        let states = [Some(NameMatch::Has).filter(|_| has), Some(NameMatch::HasNot)];
        let states = states.into_iter().flatten().chain([NameMatch::Unresolved]);
        states
            .into_iter()
            .any(|state| set.evaluate(&subject, &OneState(state)).verdict == Verdict::Accept)
    }

    /// Whether a client may open this flow to another one.
    pub(super) fn accept_between(&self, from: usize, to: usize, goal: &Goal) -> bool {
        let is_open = self.allowed.iter().any(|entry| {
            let covers = match entry.reach {
                Reach::All => true,
                Reach::Icmp => [1, 58].contains(&goal.protocol),
                Reach::Ports(protocol, port) => {
                    protocol == goal.protocol && port.is_none_or(|port| port == goal.port)
                }
            };
            (entry.from, entry.to) == (from, to) && covers
        });
        goal.address == ADDRESSES[to].of(Family::of(goal.address))
            && is_open
            && self.accept(from, goal)
    }

    /// Whether what comes from the uplink for our `port` goes to the port of the client, as far as that is known.
    pub(super) fn forwards(&self, protocol: u8, port: u16, client: usize, to: Option<u16>) -> bool {
        self.forwarded.iter().any(|entry| {
            (entry.protocol, entry.port, entry.client) == (protocol, port, client)
                && to.is_none_or(|to| to == entry.client_port)
        })
    }

    /// Our ports that are forwarded to a port of the client.
    pub(super) fn forwarded_ports(
        &self,
        protocol: u8,
        client: usize,
        to: u16,
    ) -> impl Iterator<Item = u16> {
        let entries = self.forwarded.iter();
        let is_it =
            move |e: &&Forwarded| (e.protocol, e.client, e.client_port) == (protocol, client, to);
        entries.filter(is_it).map(|entry| entry.port)
    }
}

/// Every name in the same state.
struct OneState(NameMatch);

impl Names for OneState {
    fn lookup(&self, _: &HostName, _: IpAddr) -> NameMatch {
        self.0
    }

    fn each_at(&self, _: IpAddr, found: &mut dyn FnMut(&str)) {
        if self.0 == NameMatch::Has {
            found("www.example");
        }
    }

    fn is_known(&self, _: &HostName) -> bool {
        self.0 != NameMatch::Unresolved
    }
}
