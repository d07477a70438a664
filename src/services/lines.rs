//! The lines of `firewall.Version`, `firewall.Stats` and `firewall.Memory`.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::json::{Counts, TooLong, write};
use super::{FirewallServices, Kind, SCHEMA, health, metrics};
use crate::clients::ClientPort;
use crate::event_loop::machine::{Effort, MAX_PARTS};
use crate::port::ClientId;
use crate::stats::PortStats;

/// `firewall.Version`.
#[derive(serde::Serialize)]
struct Version {
    schema: u32,
    name: &'static str,
    version: &'static str,
    uptime_ms: u64,
}

/// The first line of `firewall.Memory`: heap in bytes, pages of 4 KiB, what the hypervisor lends, and what fills the tables.
#[derive(serde::Serialize)]
struct Memory {
    schema: u32,
    kind: &'static str,
    heap_used: usize,
    heap_peak: usize,
    heap_size: usize,
    pages_used: usize,
    pages: usize,
    flows: usize,
    flows_limit: u32,
    flows_per_client_limit: u32,
    clients: usize,
    clients_limit: u16,
    grants: usize,
    quarantined: usize,
    ports: usize,
    watches: usize,
    /// Ports of our own address.
    nat_ports: u32,
    largest_operation: usize,
    operations_refused: u64,
    leaks: u64,
}

/// A line of `firewall.Memory` about a part of the program: bytes, heads of blocks included, and blocks.
#[derive(serde::Serialize)]
struct Part {
    kind: &'static str,
    part: &'static str,
    live: usize,
    peak: usize,
    /// Nothing: as much as there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<usize>,
    blocks: usize,
    count: u64,
    failures: u64,
}

/// The first line of `firewall.Stats`.
#[derive(serde::Serialize)]
struct Whole<U: Serialize> {
    schema: u32,
    kind: &'static str,
    uptime_ms: u64,
    flows: usize,
    /// Frames that were about to leave without an accept; other than 0 it is a fault of the firewall.
    without_accept: u64,
    has_uplink: bool,
    unsent: U,
}

/// The line of `firewall.Stats` about what the hypervisor was asked for; its keys are those of [`Effort`].
#[derive(serde::Serialize)]
struct Machine {
    kind: &'static str,
    hypercalls: u64,
    copies: u64,
    copy_operations: u64,
    copied_bytes: u64,
    notifications: u64,
    sleeps: u64,
    timers: u64,
    batches_from_clients: u64,
    batches_from_uplink: u64,
    batches_to_clients: u64,
    batches_to_uplink: u64,
    allocations: u64,
}

/// A line about a port. Each port has two, so that none gets too long.
struct Port<'a> {
    kind: &'static str,
    vif: Option<(ClientId, &'a ClientPort)>,
    stats: &'a PortStats,
    half: Half,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    /// What passed: every counter.
    Counters,
    /// What ended, by reason; those that nothing ended with are left out.
    Drops,
}

impl Serialize for Port<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.kind)?;
        if let Some((ClientId(slot), port)) = self.vif {
            map.serialize_entry("slot", &slot)?;
            map.serialize_entry("domid", &port.domid)?;
            map.serialize_entry("ip", &port.ip4)?;
            map.serialize_entry("ip6", &port.ip6)?;
        }
        match self.half {
            Half::Counters => map.serialize_entry("counters", &Counts(|| self.stats.counters()))?,
            Half::Drops => {
                let drops = || {
                    let named = self.stats.drops().map(|(reason, count)| (reason.name(), count));
                    named.filter(|(_, count)| *count > 0)
                };
                map.serialize_entry("drops", &Counts(drops))?;
            }
        }
        map.end()
    }
}

/// Lines of `firewall.Stats` ahead of those about ports.
const FIRST_PORT_LINE: usize = 2;
/// Ports that are there always: the uplink, and all clients that are gone.
pub(super) const FIXED_PORTS: usize = 2;

impl FirewallServices<'_> {
    /// Lines that an answer has at most.
    pub(super) fn most_lines(&self, kind: Kind) -> usize {
        let clients = usize::from(self.firewall.limits().clients);
        match kind {
            Kind::Version => 1,
            Kind::Memory => MAX_PARTS.saturating_add(1),
            Kind::Health => health::MAX_LINES,
            Kind::Metrics => metrics::lines(clients.saturating_add(FIXED_PORTS)),
            Kind::Stats => clients
                .saturating_add(FIXED_PORTS)
                .saturating_mul(2)
                .saturating_add(FIRST_PORT_LINE),
        }
    }

    /// Writes line `number` of an answer; `None` if there is nothing to say.
    pub(super) fn line(
        &self,
        kind: Kind,
        number: usize,
        buffer: &mut [u8],
    ) -> Option<Result<usize, TooLong>> {
        match kind {
            Kind::Version => Some(write(&self.version(), buffer)),
            Kind::Health => self.health(number, buffer),
            Kind::Metrics => self.metric(number, buffer),
            Kind::Memory => match number.checked_sub(1) {
                None => Some(write(&self.memory(), buffer)),
                Some(number) => self.part(number).map(|part| write(&part, buffer)),
            },
            Kind::Stats => match number.checked_sub(FIRST_PORT_LINE) {
                None if number == 0 => Some(write(&self.whole(), buffer)),
                None => Some(write(&self.machine(), buffer)),
                Some(number) => {
                    let half = if number % 2 == 0 { Half::Counters } else { Half::Drops };
                    self.port(number / 2, half).map(|port| write(&port, buffer))
                }
            },
        }
    }

    fn version(&self) -> Version {
        Version {
            schema: SCHEMA,
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: self.facts.uptime_ms,
        }
    }

    fn memory(&self) -> Memory {
        let (memory, limits) = (self.facts.memory, self.firewall.limits());
        let (flows_limit, flows_per_client_limit) = self.firewall.flow_limits();
        let nat = self.firewall.port_use();
        Memory {
            schema: SCHEMA,
            kind: "memory",
            heap_used: memory.heap_used,
            heap_peak: memory.heap_peak,
            heap_size: memory.heap_size,
            pages_used: memory.pages_used,
            pages: memory.pages,
            flows: self.firewall.flow_count(),
            flows_limit,
            flows_per_client_limit,
            clients: (0..limits.clients).filter(|id| self.vif(*id).is_some()).count(),
            clients_limit: limits.clients,
            grants: memory.grants,
            quarantined: memory.quarantined,
            ports: memory.ports,
            watches: memory.watches,
            nat_ports: nat.taken,
            largest_operation: memory.largest_operation,
            operations_refused: memory.operations_refused,
            leaks: memory.leaks.saturating_add(u64::from(nat.leaked)),
        }
    }

    fn part(&self, number: usize) -> Option<Part> {
        let part = self.facts.memory.parts.get(number).filter(|part| !part.name.is_empty())?;
        Some(Part {
            kind: "part",
            part: part.name,
            live: part.live,
            peak: part.peak,
            budget: Some(part.budget).filter(|budget| *budget < usize::MAX),
            blocks: part.blocks,
            count: part.count,
            failures: part.failures,
        })
    }

    fn whole(&self) -> Whole<impl Serialize> {
        Whole {
            schema: SCHEMA,
            kind: "firewall",
            uptime_ms: self.facts.uptime_ms,
            flows: self.firewall.flow_count(),
            without_accept: self.firewall.stats().without_accept(),
            has_uplink: self.firewall.has_uplink(),
            unsent: Counts(|| self.facts.unsent()),
        }
    }

    fn machine(&self) -> Machine {
        let Effort {
            hypercalls,
            copies,
            copy_operations,
            copied_bytes,
            notifications,
            sleeps,
            timers,
            batches: [from_clients, from_uplink, to_clients, to_uplink],
            allocations,
        } = self.facts.effort;
        Machine {
            kind: "machine",
            hypercalls,
            copies,
            copy_operations,
            copied_bytes,
            notifications,
            sleeps,
            timers,
            batches_from_clients: from_clients,
            batches_from_uplink: from_uplink,
            batches_to_clients: to_clients,
            batches_to_uplink: to_uplink,
            allocations,
        }
    }

    /// Port number `index`: the uplink, the clients that are gone, and the slots.
    fn port(&self, index: usize, half: Half) -> Option<Port<'_>> {
        let stats = self.firewall.stats();
        let fixed = |kind, stats| Some(Port { kind, vif: None, stats, half });
        match index {
            0 => fixed("uplink", stats.uplink()),
            1 => fixed("departed", stats.departed()),
            _ => {
                let id = u16::try_from(index.saturating_sub(FIXED_PORTS)).ok()?;
                let (vif, stats) = (self.vif(id)?, stats.client(ClientId(id))?);
                Some(Port { kind: "client", vif: Some((ClientId(id), vif)), stats, half })
            }
        }
    }

    pub(super) fn vif(&self, id: u16) -> Option<&ClientPort> {
        self.firewall.client_port(ClientId(id))
    }
}
