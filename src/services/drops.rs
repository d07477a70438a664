//! `firewall.Drops`: the latest packets that ended here, the latest first. One that counts up under way is later than what
//! was told before, and is not told again.

use core::net::IpAddr;

use rules::RuleSet;

use super::FirewallServices;
use super::json::{self, Decider, NameOf, Protocol, TooLong, Value, number, number_if, size, word};
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

impl FirewallServices<'_> {
    pub(super) fn next_drop(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> Progress {
        let drops = &self.firewall.drops;
        if !cursor.has_begun {
            cursor.has_begun = true;
            let head = [
                json::schema(),
                ("kind", word("drops")),
                ("uptime_ms", number(self.facts.uptime_ms)),
                ("kept", size(drops.len())),
                ("limit", size(drops.limit())),
                ("total", number(self.firewall.stats().all_drops())),
            ];
            return json::progress(json::write(&head, buffer));
        }
        let Some(kept) = drops.before(cursor.before, cursor.of) else {
            return Progress::Exit(ExitCode::SUCCESS);
        };
        cursor.before = kept.number;
        json::progress(self.write_drop(kept, buffer))
    }

    fn write_drop(&self, kept: &Kept, buffer: &mut [u8]) -> Result<usize, TooLong> {
        let (firewall, now, dropped) = (self.firewall, self.facts.now, &kept.dropped);
        let (slot, direction) = match dropped.origin {
            Origin::Client(id) => (Some(id.0), "out"),
            Origin::Uplink => (None, "in"),
        };
        let rule = Decider(dropped.decided.map(|decided| decided.by));
        let rules = dropped.decided.and_then(|decided| self.rules_of(dropped.client, decided));
        let text_of_rule = rule.rule(rules);
        let ends = dropped.ends;
        let ports = ends.and_then(|ends| ends.ports);
        let proto = ends.map(|ends| Protocol(ends.protocol));
        let name = dropped.client.zip(ends).map(|(client, ends)| NameOf {
            firewall,
            now,
            client,
            address: ends.destination,
        });
        let name = name.as_ref().filter(|name| name.is_any());
        let age_ms = u64::try_from(now.since(kept.at).as_millis()).unwrap_or(u64::MAX);
        let line = [
            ("kind", word("drop")),
            ("age_ms", number(age_ms)),
            ("times", number(kept.times)),
            ("client", dropped.client.map(Value::Address)),
            ("slot", number_if(slot)),
            ("direction", word(direction)),
            ("reason", word(dropped.reason.name())),
            ("rule", rule.value()),
            ("text", text_of_rule.as_ref().map(|rule| Value::Text(rule))),
            ("why", word(dropped.reason.explanation())),
            ("proto", proto.as_ref().map(|proto| Value::Text(proto))),
            ("src", ends.map(|ends| Value::Address(ends.source))),
            ("sport", number_if(ports.map(|(port, _)| port))),
            ("dst", ends.map(|ends| Value::Address(ends.destination))),
            ("dport", number_if(ports.map(|(_, port)| port))),
            ("type", number_if(ends.and_then(|ends| ends.icmp_type))),
            ("name", name.map(|name| Value::Text(name))),
        ];
        json::write(&line, buffer)
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
