//! The lines of `firewall.Version`, `firewall.Stats` and `firewall.Memory`.

use core::net::IpAddr;

use super::json::{self, EachCount, TooLong, Value, number, number_if, size, word};
use super::{FirewallServices, Kind, health, metrics};
use crate::clients::ClientPort;
use crate::event_loop::machine::MAX_PARTS;
use crate::port::ClientId;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    /// What passed: every counter.
    Counters,
    /// What ended, by reason; those that nothing ended with are left out.
    Drops,
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
            Kind::Version => Some(self.version(buffer)),
            Kind::Health => self.health(number, buffer),
            Kind::Metrics => self.metric(number, buffer),
            Kind::Memory => match number.checked_sub(1) {
                None => Some(self.memory(buffer)),
                Some(number) => self.part(number, buffer),
            },
            Kind::Stats => match number.checked_sub(FIRST_PORT_LINE) {
                None if number == 0 => Some(self.whole(buffer)),
                None => Some(self.machine(buffer)),
                Some(number) => {
                    let half = if number % 2 == 0 { Half::Counters } else { Half::Drops };
                    self.port(number / 2, half, buffer)
                }
            },
        }
    }

    fn version(&self, buffer: &mut [u8]) -> Result<usize, TooLong> {
        let line = [
            json::schema(),
            ("name", word(env!("CARGO_PKG_NAME"))),
            ("version", word(env!("CARGO_PKG_VERSION"))),
            ("uptime_ms", number(self.facts.uptime_ms)),
        ];
        json::write(&line, buffer)
    }

    /// The first line of `firewall.Memory`: heap in bytes, pages of 4 KiB, what the hypervisor lends, and what fills the
    /// tables.
    fn memory(&self, buffer: &mut [u8]) -> Result<usize, TooLong> {
        let (memory, limits) = (&self.facts.memory, self.firewall.limits());
        let (flows_limit, flows_per_client_limit) = self.firewall.flow_limits();
        let nat = self.firewall.port_use();
        let clients = (0..limits.clients).filter(|id| self.vif(*id).is_some()).count();
        let line = [
            json::schema(),
            ("kind", word("memory")),
            ("heap_used", size(memory.heap_used)),
            ("heap_peak", size(memory.heap_peak)),
            ("heap_size", size(memory.heap_size)),
            ("pages_used", size(memory.pages_used)),
            ("pages", size(memory.pages)),
            ("flows", size(self.firewall.flow_count())),
            ("flows_limit", number(flows_limit)),
            ("flows_per_client_limit", number(flows_per_client_limit)),
            ("clients", size(clients)),
            ("clients_limit", number(limits.clients)),
            ("grants", size(memory.grants)),
            ("quarantined", size(memory.quarantined)),
            ("ports", size(memory.ports)),
            ("watches", size(memory.watches)),
            ("nat_ports", number(nat.taken)),
            ("largest_operation", size(memory.largest_operation)),
            ("operations_refused", number(memory.operations_refused)),
            ("leaks", number(memory.leaks.saturating_add(u64::from(nat.leaked)))),
        ];
        json::write(&line, buffer)
    }

    /// A line of `firewall.Memory` about a part of the program: bytes, heads of blocks included, and blocks.
    fn part(&self, number: usize, buffer: &mut [u8]) -> Option<Result<usize, TooLong>> {
        let part = self.facts.memory.parts.get(number).filter(|part| !part.name.is_empty())?;
        // Without a budget it may have as much as there is.
        let budget = Some(part.budget).filter(|budget| *budget < usize::MAX);
        let line = [
            ("kind", word("part")),
            ("part", word(part.name)),
            ("live", size(part.live)),
            ("peak", size(part.peak)),
            ("budget", budget.and_then(size)),
            ("blocks", size(part.blocks)),
            ("count", json::number(part.count)),
            ("failures", json::number(part.failures)),
        ];
        Some(json::write(&line, buffer))
    }

    /// The first line of `firewall.Stats`.
    fn whole(&self, buffer: &mut [u8]) -> Result<usize, TooLong> {
        let (firewall, facts) = (self.firewall, self.facts);
        let unsent: EachCount<'_> = &|tell| facts.unsent().for_each(|(name, n)| tell(name, n));
        let line = [
            json::schema(),
            ("kind", word("firewall")),
            ("uptime_ms", number(facts.uptime_ms)),
            ("flows", size(firewall.flow_count())),
            // Frames that were about to leave without an accept; other than 0 it is a fault of the firewall.
            ("without_accept", number(firewall.stats().without_accept())),
            ("has_uplink", Some(Value::Is(firewall.has_uplink()))),
            ("unsent", Some(Value::Counts(unsent))),
        ];
        json::write(&line, buffer)
    }

    /// The line of `firewall.Stats` about what the hypervisor was asked for.
    fn machine(&self, buffer: &mut [u8]) -> Result<usize, TooLong> {
        let effort = &self.facts.effort;
        let [from_clients, from_uplink, to_clients, to_uplink] = effort.batches;
        let line = [
            ("kind", word("machine")),
            ("hypercalls", number(effort.hypercalls)),
            ("copies", number(effort.copies)),
            ("copy_operations", number(effort.copy_operations)),
            ("copied_bytes", number(effort.copied_bytes)),
            ("notifications", number(effort.notifications)),
            ("sleeps", number(effort.sleeps)),
            ("timers", number(effort.timers)),
            ("batches_from_clients", number(from_clients)),
            ("batches_from_uplink", number(from_uplink)),
            ("batches_to_clients", number(to_clients)),
            ("batches_to_uplink", number(to_uplink)),
            ("allocations", number(effort.allocations)),
            ("limited_vifs", number(effort.limited_vifs)),
        ];
        json::write(&line, buffer)
    }

    /// A line about port number `index`: the uplink, the clients that are gone, and the slots. Each port has two, so that
    /// none gets too long.
    fn port(&self, index: usize, half: Half, buffer: &mut [u8]) -> Option<Result<usize, TooLong>> {
        let stats = self.firewall.stats();
        let (kind, vif, stats) = match index {
            0 => ("uplink", None, stats.uplink()),
            1 => ("departed", None, stats.departed()),
            _ => {
                let id = u16::try_from(index.saturating_sub(FIXED_PORTS)).ok()?;
                ("client", Some((id, self.vif(id)?)), stats.client(ClientId(id))?)
            }
        };
        let counters: EachCount<'_> = &|tell| stats.counters().for_each(|(name, n)| tell(name, n));
        let drops: EachCount<'_> = &|tell| {
            let drops = stats.drops().filter(|(_, count)| *count > 0);
            drops.for_each(|(reason, count)| tell(reason.name(), count));
        };
        let address_or_null = |address: Option<IpAddr>| address.map_or(Value::Null, Value::Address);
        let ip = vif.map(|(_, port)| address_or_null(port.ip4.map(IpAddr::V4)));
        let ip6 = vif.map(|(_, port)| address_or_null(port.ip6.map(IpAddr::V6)));
        let (key, counts) = match half {
            Half::Counters => ("counters", counters),
            Half::Drops => ("drops", drops),
        };
        let line = [
            ("kind", word(kind)),
            ("slot", number_if(vif.map(|(id, _)| id))),
            ("domid", number_if(vif.map(|(_, port)| port.domid))),
            ("ip", ip),
            ("ip6", ip6),
            (key, Some(Value::Counts(counts))),
        ];
        Some(json::write(&line, buffer))
    }

    pub(super) fn vif(&self, id: u16) -> Option<&ClientPort> {
        self.firewall.client_port(ClientId(id))
    }
}
