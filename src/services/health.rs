//! `firewall.Health`: whether all is well, and each thing that is not, with what to do.

use core::fmt;
use core::net::IpAddr;

use super::FirewallServices;
use super::json::{self, TooLong, Value, number, size, text, word};
use crate::clients::RulesState;
use crate::config::ConfigError;
use crate::config::features::WordProblem;
use crate::control::RulesRefusal;

/// The first line, problems and notes; what is beyond is not told.
pub(super) const MAX_LINES: usize = 257;
/// Of the heap, from so many per cent on there is too little left.
const FULL_PERCENT: usize = 90;

/// Something that is not as it should be.
#[derive(Clone, Copy)]
enum Problem<'a> {
    WithoutAccept(u64),
    Leaks(u64),
    NoUplink,
    DatabaseLost,
    Word(&'a WordProblem),
    Config(&'a ConfigError),
    /// Without its reason, of which only so many are kept.
    RulesRefused(IpAddr, Option<&'a RulesRefusal>),
    RulesNotTaken(IpAddr),
    Memory {
        used: usize,
        size: usize,
    },
    MemoryRefused(u64),
    ClientLimited(IpAddr, u32),
    TableFull(u32),
    NamesUnresolved(usize),
}

/// The words of all problems.
#[cfg(test)]
pub(super) const IDS: [&str; 13] = [
    "without-accept",
    "leak",
    "no-uplink",
    "database-lost",
    "config-word",
    "config-value",
    "rules-refused",
    "rules-not-taken",
    "memory",
    "memory-refused",
    "client-limited",
    "flow-table-full",
    "names-unresolved",
];

impl Problem<'_> {
    /// Its word, and the client that it is about.
    fn id(&self) -> (&'static str, Option<IpAddr>) {
        match *self {
            Self::WithoutAccept(_) => ("without-accept", None),
            Self::Leaks(_) => ("leak", None),
            Self::NoUplink => ("no-uplink", None),
            Self::DatabaseLost => ("database-lost", None),
            Self::Word(_) => ("config-word", None),
            Self::Config(_) => ("config-value", None),
            Self::RulesRefused(client, _) => ("rules-refused", Some(client)),
            Self::RulesNotTaken(client) => ("rules-not-taken", Some(client)),
            Self::Memory { .. } => ("memory", None),
            Self::MemoryRefused(_) => ("memory-refused", None),
            Self::ClientLimited(client, _) => ("client-limited", Some(client)),
            Self::TableFull(_) => ("flow-table-full", None),
            Self::NamesUnresolved(_) => ("names-unresolved", None),
        }
    }
}

impl fmt::Display for Problem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WithoutAccept(count) => {
                write!(f, "{count} frames were about to leave without an accept and were dropped: a fault of the firewall; report it with the console's log")
            }
            Self::Leaks(count) => {
                write!(f, "{count} clients or connections left memory behind: a fault of the firewall; report it with the console's log, restart the VM")
            }
            Self::NoUplink => f.write_str("no NetVM is connected: set or start the NetVM of this VM"),
            Self::DatabaseLost => f.write_str("QubesDB is not connected, the last rules stay in force: look at qubesdb-daemon in dom0"),
            Self::Word(problem) => write!(f, "{problem}: correct the feature or kernelopts"),
            Self::Config(problem) => write!(f, "QubesDB {problem}: look at the network settings of this VM"),
            Self::RulesRefused(_, Some(reason)) => {
                write!(f, "everything of this client is rejected, its rules are not understood: {reason}; correct them with qvm-firewall")
            }
            Self::RulesRefused(_, None) => {
                f.write_str("everything of this client is rejected, its rules are not understood; correct them with qvm-firewall")
            }
            Self::RulesNotTaken(_) => {
                f.write_str("there is no room for this client's address, all its traffic is dropped: give the VM fewer clients")
            }
            Self::Memory { used, size } => {
                write!(f, "{used} of {size} bytes of the heap are in use: give the VM more memory")
            }
            Self::MemoryRefused(count) => {
                write!(f, "{count} requests for memory were refused since the start: give the VM more memory; firewall.Memory says which part")
            }
            Self::ClientLimited(_, most) => {
                write!(f, "this client has {most} flows, as many as it may: new ones end old or are refused; raise fw-flows-per-client")
            }
            Self::TableFull(most) => {
                write!(f, "there are {most} flows, as many as there may be: new ones are refused; raise fw-flows or give the VM more memory")
            }
            Self::NamesUnresolved(count) => {
                write!(f, "{count} host names of rules are not resolved: firewall.Rules shows which; look at the names and the DNS servers")
            }
        }
    }
}

impl FirewallServices<'_> {
    /// Line `number`: the whole, a problem or, behind these, a note.
    pub(super) fn health(
        &self,
        number: usize,
        buffer: &mut [u8],
    ) -> Option<Result<usize, TooLong>> {
        let Some(number) = number.checked_sub(1) else {
            return Some(self.whole_health(buffer));
        };
        let Some(problem) = self.problems().nth(number) else {
            return self.note(number.saturating_sub(self.problems().count()), buffer);
        };
        let (id, client) = problem.id();
        let line = [
            ("kind", word("problem")),
            ("id", word(id)),
            ("client", client.map(Value::Address)),
            ("text", text(&problem)),
        ];
        Some(json::write(&line, buffer))
    }

    fn whole_health(&self, buffer: &mut [u8]) -> Result<usize, TooLong> {
        let (firewall, facts) = (self.firewall, self.facts);
        let line = [
            json::schema(),
            ("kind", word("health")),
            ("ok", Some(Value::Is(self.problems().next().is_none()))),
            ("uptime_ms", number(facts.uptime_ms)),
            ("version", word(env!("CARGO_PKG_VERSION"))),
            ("uplink", word(if firewall.has_uplink() { "connected" } else { "none" })),
            ("database", word(if facts.has_database { "connected" } else { "lost" })),
            ("rules_refused", size(self.refused_rules().count())),
            ("without_accept", number(firewall.stats().without_accept())),
            ("leaks", number(self.leaks())),
        ];
        json::write(&line, buffer)
    }

    fn problems(&self) -> impl Iterator<Item = Problem<'_>> {
        self.faults().chain(self.misunderstood()).chain(self.shortages())
    }

    fn leaks(&self) -> u64 {
        let ports = self.firewall.port_use().leaked;
        self.facts.memory.leaks.saturating_add(u64::from(ports))
    }

    /// What must not be, and what is missing.
    fn faults(&self) -> impl Iterator<Item = Problem<'_>> {
        let (without_accept, leaks) = (self.firewall.stats().without_accept(), self.leaks());
        let all = [
            (without_accept > 0).then_some(Problem::WithoutAccept(without_accept)),
            (leaks > 0).then_some(Problem::Leaks(leaks)),
            (!self.firewall.has_uplink()).then_some(Problem::NoUplink),
            (!self.facts.has_database).then_some(Problem::DatabaseLost),
        ];
        all.into_iter().flatten()
    }

    /// What dom0 wrote that is not in force.
    fn misunderstood(&self) -> impl Iterator<Item = Problem<'_>> {
        let words = self.control.word_problems().map(Problem::Word);
        let config = self.control.config_problems().map(Problem::Config);
        let clients = &self.firewall.clients;
        let not_taken = self.control.sources().filter(|ip| clients.find(*ip).is_none());
        let refused = self.refused_rules();
        words.chain(config).chain(refused).chain(not_taken.map(Problem::RulesNotTaken))
    }

    fn refused_rules(&self) -> impl Iterator<Item = Problem<'_>> {
        let hosts = self.firewall.clients.all_hosts().map(|(_, host)| host);
        hosts
            .filter(|host| matches!(host.rules, RulesState::Refused))
            .map(|host| Problem::RulesRefused(host.address, self.refusal(host)))
    }

    /// What there is not enough of.
    fn shortages(&self) -> impl Iterator<Item = Problem<'_>> {
        let (firewall, memory) = (self.firewall, &self.facts.memory);
        let (used, size) = (memory.heap_used, memory.heap_size);
        let is_full = used.saturating_mul(100) > size.saturating_mul(FULL_PERCENT);
        let parts = memory.parts.iter().map(|part| part.failures);
        let refused = parts.fold(memory.operations_refused, u64::saturating_add);
        let (most, quota) = firewall.flow_limits();
        let names = firewall.unresolved_names();
        let all = [
            is_full.then_some(Problem::Memory { used, size }),
            (refused > 0).then_some(Problem::MemoryRefused(refused)),
            (firewall.flow_count() >= most as usize).then_some(Problem::TableFull(most)),
            (names > 0).then_some(Problem::NamesUnresolved(names)),
        ];
        let limited = firewall.clients.all_hosts();
        let limited = limited.filter(move |(id, _)| firewall.table.owned_by(*id) >= quota);
        let limited = limited.map(move |(_, host)| Problem::ClientLimited(host.address, quota));
        all.into_iter().flatten().chain(limited)
    }
}
