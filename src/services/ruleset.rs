//! `firewall.Rules`: the rules in force, client by client, with how often each has decided. A set that is replaced while it
//! is told ends there with a line that says so.

use core::net::IpAddr;

use rules::{CompiledSet, Rule, RuleKey};
use serde::Serialize;

use super::json::{self, Text, Texts, TooLong};
use super::{FirewallServices, SCHEMA};
use crate::clients::{Host, RulesState};
use crate::control::RulesRefusal;
use crate::qrexec::{ExitCode, Progress};

/// Addresses of a name that are told.
const MAX_ADDRESSES: usize = 32;

/// A place among the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    of: Option<IpAddr>,
    has_begun: bool,
    /// Place of the client that is told next, or is being told.
    place: u32,
    /// The set that is being told, and its next rule.
    set: Option<(IpAddr, u32, usize)>,
}

impl Cursor {
    pub(super) fn new(of: Option<IpAddr>) -> Self {
        Self { of, has_begun: false, place: 0, set: None }
    }

    fn go_on(&mut self) {
        self.place = self.place.saturating_add(1);
        self.set = None;
    }
}

#[derive(serde::Serialize)]
struct Head {
    schema: u32,
    kind: &'static str,
    clients: usize,
}

#[derive(serde::Serialize)]
struct Set<W: Serialize> {
    kind: &'static str,
    client: IpAddr,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<W>,
    rules: usize,
    generation: u32,
}

#[derive(serde::Serialize)]
struct RuleLine<'a, A: Serialize> {
    kind: &'static str,
    client: IpAddr,
    index: usize,
    key: Text<RuleKey>,
    text: Text<&'a Rule>,
    hits: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    addresses: Option<A>,
    #[serde(skip_serializing_if = "Option::is_none")]
    more_addresses: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unresolved: Option<bool>,
}

#[derive(serde::Serialize)]
struct Policy {
    kind: &'static str,
    client: IpAddr,
    action: &'static str,
    hits: u64,
}

impl FirewallServices<'_> {
    pub(super) fn next_rule(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> Progress {
        let clients = &self.firewall.clients;
        if !cursor.has_begun {
            cursor.has_begun = true;
            let is_told = |host: &&Host| cursor.of.is_none_or(|of| of == host.address);
            let count = clients.all_hosts().map(|(_, host)| host).filter(is_told).count();
            let head = Head { schema: SCHEMA, kind: "rules", clients: count };
            return json::progress(json::write(&head, buffer));
        }
        if let Some((client, edition, index)) = cursor.set {
            return json::progress(self.next_of_set(cursor, (client, edition, index), buffer));
        }
        while let Some((id, host)) = clients.host_from(cursor.place) {
            cursor.place = id.0;
            if cursor.of.is_none_or(|of| of == host.address) {
                return json::progress(self.begin_set(cursor, host, buffer));
            }
            cursor.go_on();
        }
        Progress::Exit(ExitCode::SUCCESS)
    }

    /// The first line about a client.
    fn begin_set(
        &self,
        cursor: &mut Cursor,
        host: &Host,
        buffer: &mut [u8],
    ) -> Result<usize, TooLong> {
        let (state, rules) = match &host.rules {
            RulesState::None => ("none", None),
            RulesState::Refused => ("refused", None),
            RulesState::Active(rules) => ("in-force", Some(rules.rules().rules().len())),
        };
        match rules {
            Some(_) => cursor.set = Some((host.address, host.edition, 0)),
            None => cursor.go_on(),
        }
        let why = self.refusal(host).map(Text);
        let (kind, client) = ("ruleset", host.address);
        let (rules, generation) = (rules.unwrap_or(0), host.generation.0);
        json::write(&Set { kind, client, state, why, rules, generation }, buffer)
    }

    /// Why the rules of a client are refused, if they are.
    pub(super) fn refusal(&self, host: &Host) -> Option<&RulesRefusal> {
        let is_refused = matches!(host.rules, RulesState::Refused);
        self.control.refusal(host.address).filter(|_| is_refused)
    }

    /// The next rule of a set, or its policy.
    fn next_of_set(
        &self,
        cursor: &mut Cursor,
        (client, edition, index): (IpAddr, u32, usize),
        buffer: &mut [u8],
    ) -> Result<usize, TooLong> {
        let clients = &self.firewall.clients;
        let host = clients.host_from(cursor.place).map(|(_, host)| host);
        let same = host.filter(|host| (host.address, host.edition) == (client, edition));
        let Some(RulesState::Active(set)) = same.map(|host| &host.rules) else {
            cursor.go_on();
            let (kind, state) = ("ruleset", "replaced");
            let why = None::<&str>;
            let generation = host.map_or(0, |host| host.generation.0);
            return json::write(&Set { kind, client, state, why, rules: 0, generation }, buffer);
        };
        match set.rules().get(index) {
            Some((key, rule)) => {
                cursor.set = Some((client, edition, index.saturating_add(1)));
                self.write_rule(client, set, (index, key, rule), buffer)
            }
            None => {
                cursor.go_on();
                let (kind, hits) = ("policy", set.policy_hits());
                let action = set.rules().policy().word();
                json::write(&Policy { kind, client, action, hits }, buffer)
            }
        }
    }

    fn write_rule(
        &self,
        client: IpAddr,
        set: &CompiledSet,
        (index, key, rule): (usize, RuleKey, &Rule),
        buffer: &mut [u8],
    ) -> Result<usize, TooLong> {
        let (firewall, now) = (self.firewall, self.facts.now);
        let name = rule.host_name();
        let all = || name.into_iter().flat_map(|name| firewall.addresses_of(now, client, name));
        let more = all().count().saturating_sub(MAX_ADDRESSES);
        let is_unresolved = name.is_some_and(|name| !firewall.is_name_known(client, name));
        let line = RuleLine {
            kind: "rule",
            client,
            index,
            key: Text(key),
            text: Text(rule),
            hits: set.hits(index),
            addresses: name.map(|_| Texts(|| all().take(MAX_ADDRESSES))),
            more_addresses: Some(more).filter(|more| *more > 0),
            unresolved: Some(true).filter(|_| is_unresolved),
        };
        json::write(&line, buffer)
    }
}
