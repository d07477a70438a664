//! Bounds of every table, fixed at boot.

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
}

/// The tables did not fit into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not enough memory for the firewall's tables")]
pub struct OutOfMemory;

impl Limits {
    /// What one flow costs in bytes, its share of the hash tables and of its NAT mapping included.
    pub const FLOW_BYTES: u32 = 384;

    /// Limits that suit a domain with `memory_bytes`: an eighth of it for flows, a quarter of those for one client.
    #[must_use]
    pub fn for_memory(memory_bytes: u64) -> Self {
        let affordable = memory_bytes / 8 / u64::from(Self::FLOW_BYTES);
        let flows = u32::try_from(affordable).unwrap_or(u32::MAX).clamp(1024, 131_072);
        Self { clients: 128, addresses: 512, flows, flows_per_client: flows / 4 }
    }
}
