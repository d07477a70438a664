//! The one place that asks a rule set about a packet, and what the answer means.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rules::{
    CompiledSet, DecidedBy, Decision, Family, HostName, NameMatch, Names, RuleKey, RuleSet,
    Subject, Upper,
};

use crate::answer::{Answer, RuleRef, Verdict};

/// Addresses of names. One that is missing could not be resolved, one without addresses does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownNames(BTreeMap<String, Vec<IpAddr>>);

impl KnownNames {
    /// Adds a name, which has no other addresses than these.
    pub(crate) fn insert(&mut self, name: &str, addresses: Vec<IpAddr>) {
        self.0.insert(name.to_ascii_lowercase(), addresses);
    }

    /// The addresses of a name, if something is known about it.
    pub(crate) fn addresses(&self, name: &str) -> Option<&[IpAddr]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// Whether something is known about a name, if only that it does not exist.
    pub(crate) fn knows(&self, name: &HostName) -> bool {
        self.0.contains_key(name.as_str())
    }

    /// Whether nothing is known about any name.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

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
        self.knows(name)
    }
}

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) upper: Upper,
}

impl Packet {
    /// What rules look at. The clients' resolvers are taken to be our own: dom0 gives both the same addresses.
    pub(crate) fn subject(&self, dns_servers: &[IpAddr]) -> Subject {
        let is_dns_server = dns_servers.contains(&self.destination);
        Subject { destination: self.destination, upper: self.upper, is_dns_server }
    }

    /// Why a packet of a client never comes before its rules.
    pub(crate) fn stopped_before_rules(&self, client: IpAddr) -> Option<String> {
        let family = Family::of(client);
        let (source, destination) = (self.source, self.destination);
        if let Some(other) = [source, destination].into_iter().find(|ip| Family::of(*ip) != family)
        {
            let of = Family::of(other);
            return Some(format!("{other} is an {of} address, and the client has {family}"));
        }
        (source != client)
            .then(|| format!("the source {source} is not {client}, the address of the client"))
    }
}

/// Asks the rules, compiled as in the firewall. Everything that the tool says about rules comes through here, so that
/// there is one engine. Without memory to compile them their interpreter answers, which says the same.
pub(crate) fn decide(rules: &RuleSet, subject: &Subject, names: &KnownNames) -> Decision {
    match CompiledSet::new(rules.clone()) {
        Ok(compiled) => compiled.evaluate(subject, names),
        Err(_) => rules.evaluate(subject, names),
    }
}

/// The answer that a decision amounts to.
pub(crate) fn answer(rules: &RuleSet, decision: Decision) -> Answer {
    let verdict = match decision.verdict {
        rules::Verdict::Accept => Verdict::Accept,
        rules::Verdict::Reject => Verdict::Reject,
    };
    let reason = (verdict != Verdict::Accept).then(|| reason(rules, decision.by));
    match decision.by {
        DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. } => {
            Answer { verdict, rule: Some(RuleRef::Index(index)), reason }
        }
        DecidedBy::Policy => Answer { verdict, rule: Some(RuleRef::Policy), reason },
        DecidedBy::OtherFamily => Answer { verdict: Verdict::Drop, rule: None, reason },
    }
}

/// What decided, as a sentence.
pub(crate) fn reason(rules: &RuleSet, by: DecidedBy) -> String {
    let line = |index| rules.get(index).map_or(String::new(), |(_, rule)| rule.to_string());
    let named = |index, key: RuleKey| format!("rule {key} ({})", line(index));
    match by {
        DecidedBy::Rule { index, key } => {
            format!("{} is the first that matches", named(index, key))
        }
        DecidedBy::UnresolvedName { index, key } => {
            format!("{} has a name that is not resolved, so it might match", named(index, key))
        }
        DecidedBy::Policy => {
            format!("no rule matches, and the policy is {}", rules.policy().word())
        }
        DecidedBy::OtherFamily => format!("the client has {}", rules.family()),
    }
}
