//! `firewall.Drops`: the latest packets that ended here, the latest first. One that counts up under way is later than what
//! was told before, and is not told again.

use core::fmt;
use core::net::IpAddr;

use rules::RuleSet;
use serde::Serialize;

use super::json::{self, Decider, NameOf, Protocol, Text};
use super::{FirewallServices, SCHEMA};
use crate::clients::RulesState;
use crate::drops::{Decided, Kept};
use crate::port::Origin;
use crate::qrexec::{ExitCode, Progress};

/// A place in what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    of: Option<IpAddr>,
    has_begun: bool,
    /// Number of the one that was told last.
    before: u64,
}

impl Cursor {
    pub(super) fn new(of: Option<IpAddr>) -> Self {
        Self { of, has_begun: false, before: u64::MAX }
    }
}

#[derive(serde::Serialize)]
struct Head {
    schema: u32,
    kind: &'static str,
    uptime_ms: u64,
    kept: usize,
    limit: usize,
    total: u64,
}

#[derive(serde::Serialize)]
struct Line<'a, T: Serialize> {
    kind: &'static str,
    age_ms: u64,
    times: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u16>,
    direction: &'static str,
    reason: &'static str,
    rule: Decider,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<T>,
    why: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    proto: Option<Text<Protocol>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<NameOf<'a>>,
}

impl FirewallServices<'_> {
    pub(super) fn next_drop(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> Progress {
        let drops = &self.firewall.drops;
        if !cursor.has_begun {
            cursor.has_begun = true;
            let head = Head {
                schema: SCHEMA,
                kind: "drops",
                uptime_ms: self.facts.uptime_ms,
                kept: drops.len(),
                limit: drops.limit(),
                total: self.firewall.stats().all_drops(),
            };
            return json::progress(json::write(&head, buffer));
        }
        let Some(kept) = drops.before(cursor.before, cursor.of) else {
            return Progress::Exit(ExitCode::SUCCESS);
        };
        cursor.before = kept.number;
        json::progress(json::write(&self.dropped(kept), buffer))
    }

    fn dropped(&self, kept: &Kept) -> Line<'_, Text<impl fmt::Display>> {
        let (firewall, now, dropped) = (self.firewall, self.facts.now, &kept.dropped);
        let (slot, direction) = match dropped.origin {
            Origin::Client(id) => (Some(id.0), "out"),
            Origin::Uplink => (None, "in"),
        };
        let rule = Decider(dropped.decided.map(|decided| decided.by));
        let rules = dropped.decided.and_then(|decided| self.rules_of(dropped.client, decided));
        let ends = dropped.ends;
        let name = dropped.client.zip(ends).and_then(|(client, ends)| {
            NameOf { firewall, now, client, address: ends.destination }.if_any()
        });
        Line {
            kind: "drop",
            age_ms: u64::try_from(now.since(kept.at).as_millis()).unwrap_or(u64::MAX),
            times: kept.times,
            client: dropped.client,
            slot,
            direction,
            reason: dropped.reason.name(),
            rule,
            text: rule.text(rules),
            why: dropped.reason.explanation(),
            proto: ends.map(|ends| Text(Protocol(ends.protocol))),
            src: ends.map(|ends| ends.source),
            sport: ends.and_then(|ends| ends.ports).map(|(port, _)| port),
            dst: ends.map(|ends| ends.destination),
            dport: ends.and_then(|ends| ends.ports).map(|(_, port)| port),
            icmp_type: ends.and_then(|ends| ends.icmp_type),
            name,
        }
    }

    /// The rules of a client, if they are still those that decided.
    fn rules_of(&self, client: Option<IpAddr>, decided: Decided) -> Option<&RuleSet> {
        let clients = &self.firewall.clients;
        let host = clients.host(clients.find(client?)?)?;
        match &host.rules {
            RulesState::Active(rules) if host.edition == decided.edition => Some(rules.rules()),
            _ => None,
        }
    }
}
