//! Bounds of every table, fixed at boot.

use core::num::NonZeroU32;

/// How large the tables are. All memory for them is taken by [`crate::Firewall::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client vifs at one time; [`crate::ClientId`]s are below this number.
    pub clients: u16,
    /// Addresses that something is known about: attached, in `/connected-ips*`, or with rules.
    pub addresses: u16,
    /// Flows of all clients together.
    pub flows: u32,
    /// Flows of one client address.
    pub flows_per_client: u32,
    /// Bytes of fragments that wait for the rest of their datagram.
    pub fragment_bytes: u32,
}

/// The tables did not fit into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not enough memory for the firewall's tables")]
pub struct OutOfMemory;

impl Limits {
    /// What one flow costs in bytes, its share of the hash tables and of its NAT mapping included.
    pub const FLOW_BYTES: u32 = 288;

    /// Limits that suit a domain with `memory_bytes`: an eighth of it for flows, a quarter of those for one client.
    #[must_use]
    pub fn for_memory(memory_bytes: u64) -> Self {
        let affordable = memory_bytes / 8 / u64::from(Self::FLOW_BYTES);
        let flows = u32::try_from(affordable).unwrap_or(u32::MAX).clamp(1024, 131_072);
        let fragment_bytes = u32::try_from(memory_bytes / 64).unwrap_or(u32::MAX);
        Self {
            clients: 128,
            addresses: 512,
            flows,
            flows_per_client: flows / 4,
            fragment_bytes: fragment_bytes.clamp(256 << 10, 4 << 20),
        }
    }

    /// Dropped packets that are kept for who asks: one for 64 flows, at least 64 and at most 1024.
    #[must_use]
    pub fn drops(&self) -> u32 {
        (self.flows / 64).clamp(64, 1024)
    }

    /// The same with tables large enough for the flows that the kernel command line asks for (`fw-flows`), as far as a
    /// quarter of the memory goes. Fewer need no smaller tables: [`crate::Firewall::set_flow_limits`].
    #[must_use]
    pub fn with_flows(self, memory_bytes: u64, wanted: Option<NonZeroU32>) -> Self {
        let affordable = memory_bytes / 4 / u64::from(Self::FLOW_BYTES);
        let affordable = u32::try_from(affordable).unwrap_or(u32::MAX).min(1 << 20);
        let wanted = wanted.map_or(0, |wanted| wanted.get().min(affordable));
        let flows = self.flows.max(wanted);
        Self { flows, flows_per_client: flows / 4, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::table::Table;
    use crate::nat::peers::Peers;
    use crate::nat::{Nat, PEER_SHARE};

    #[test]
    fn a_flow_costs_no_more_than_it_says() {
        let cost = Table::FLOW_BYTES
            + Nat::MAPPING_BYTES
            + Peers::PEER_BYTES.div_ceil(PEER_SHARE as usize);
        assert!(cost <= Limits::FLOW_BYTES as usize, "{cost} bytes");
    }

    #[test]
    fn the_smallest_domain_gets_useful_tables() {
        let limits = Limits::for_memory(32 << 20);
        assert!(limits.flows >= 8192 && limits.flows_per_client >= 2048, "{limits:?}");
        assert!(u64::from(limits.flows) * u64::from(Limits::FLOW_BYTES) <= 4 << 20);
        assert_eq!(Limits::for_memory(u64::MAX).flows, 131_072);
    }

    #[test]
    fn the_command_line_can_ask_for_larger_tables_within_reason() {
        let memory = 32 << 20;
        let usual = Limits::for_memory(memory);
        let flows = |wanted| usual.with_flows(memory, NonZeroU32::new(wanted)).flows;
        assert_eq!(
            [flows(0), flows(1), flows(usual.flows + 1)],
            [usual.flows, usual.flows, usual.flows + 1]
        );
        assert!(u64::from(flows(u32::MAX)) * u64::from(Limits::FLOW_BYTES) <= memory / 4);
    }
}
