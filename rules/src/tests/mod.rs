//! Tests of the crate as a whole: the measured vectors, the messages, properties.

mod compiled;
mod errors;
mod properties;
mod vectors;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::{
    CompiledSet, DecidedBy, Family, HostName, NameMatch, Names, RuleSet, Subject, Upper, Verdict,
};

/// One source with its tree, the names that are known, and one packet at a time.
struct Tree {
    family: Family,
    entries: Vec<(String, String)>,
    names: KnownNames,
}

/// Names with their addresses; all others are unresolved.
#[derive(Default)]
struct KnownNames(BTreeMap<String, Vec<IpAddr>>);

impl Names for KnownNames {
    fn lookup(&self, name: &HostName, address: IpAddr) -> NameMatch {
        match self.0.get(name.as_str()) {
            None => NameMatch::Unresolved,
            Some(addresses) if addresses.contains(&address) => NameMatch::Has,
            Some(_) => NameMatch::HasNot,
        }
    }

    fn each_at(&self, address: IpAddr, found: &mut dyn FnMut(&str)) {
        let has = |addresses: &Vec<IpAddr>| addresses.contains(&address);
        self.0.iter().filter(|(_, addresses)| has(addresses)).for_each(|(name, _)| found(name));
    }

    fn is_known(&self, name: &HostName) -> bool {
        self.0.contains_key(name.as_str())
    }
}

/// Rules numbered from 0000 below an IPv4 source, policy drop.
fn v4(rules: &[&str]) -> Tree {
    tree(Family::V4, rules)
}

/// Rules numbered from 0000 below an IPv6 source, policy drop.
fn v6(rules: &[&str]) -> Tree {
    tree(Family::V6, rules)
}

fn tree(family: Family, rules: &[&str]) -> Tree {
    let numbered = rules.iter().enumerate().map(|(n, rule)| (format!("{n:04}"), (*rule).into()));
    let entries = numbered.chain([("policy".into(), "drop".into())]).collect();
    Tree { family, entries, names: KnownNames::default() }
}

impl Tree {
    fn without_policy(mut self) -> Self {
        self.entries.retain(|(key, _)| key != "policy");
        self
    }

    fn policy(mut self, value: &str) -> Self {
        self = self.without_policy();
        self.entries.push(("policy".into(), value.into()));
        self
    }

    /// Renames the keys of the rules, in the order in which the rules were given.
    fn keys(mut self, keys: &[&str]) -> Self {
        for (entry, key) in self.entries.iter_mut().zip(keys) {
            entry.0 = (*key).into();
        }
        self
    }

    fn name(mut self, name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.names.0.insert(name.into(), addresses);
        self
    }

    fn parse(&self) -> Result<RuleSet, crate::RuleSetError> {
        let entries = self.entries.iter();
        RuleSet::parse(self.family, entries.map(|(key, value)| (key.as_bytes(), value.as_bytes())))
    }

    /// `accept 0000`, `reject policy`, `reject 0001 (name)` or `refused: ...`.
    fn judge(&self, subject: Subject) -> String {
        let set = match self.parse() {
            Ok(set) => set,
            Err(error) => return format!("refused: {error}"),
        };
        let decision = set.evaluate(&subject, &self.names);
        let compiled = CompiledSet::new(set.clone()).unwrap();
        assert_eq!(compiled.evaluate(&subject, &self.names), decision);
        let verdict = match decision.verdict {
            Verdict::Accept => "accept",
            Verdict::Reject => "reject",
        };
        match decision.by {
            DecidedBy::Rule { index, key } => {
                assert_eq!(set.get(index).unwrap().0, key);
                format!("{verdict} {key}")
            }
            DecidedBy::Policy => format!("{verdict} policy"),
            DecidedBy::UnresolvedName { key, .. } => format!("{verdict} {key} (name)"),
            DecidedBy::OtherFamily => format!("{verdict} (other family)"),
        }
    }
}

fn tcp(destination: &str, port: u16) -> Subject {
    subject(destination, Upper::Tcp { port })
}

fn udp(destination: &str, port: u16) -> Subject {
    subject(destination, Upper::Udp { port })
}

fn icmp(destination: &str, icmp_type: u8) -> Subject {
    subject(destination, Upper::Icmp { icmp_type })
}

fn subject(destination: &str, upper: Upper) -> Subject {
    let is_dns_server = ["10.139.1.1", "10.139.1.2"].contains(&destination);
    Subject { destination: destination.parse().unwrap(), upper, is_dns_server }
}
