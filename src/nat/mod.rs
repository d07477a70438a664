//! Masquerading: which port of our address stands for which port of a client.
//!
//! A mapping depends on the client's address and port only (RFC 4787 REQ-1, RFC 5382 REQ-1), is shared by all flows
//! from there and goes with the last of them. [`rewrite`] edits packets, [`icmp_error`] the packets inside ICMP errors.

mod books;
pub(crate) mod icmp_error;
pub(crate) mod peers;
pub(crate) mod ports;
pub(crate) mod rewrite;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::conntrack::index::{HashKey, Index};
use crate::conntrack::slab::Slab;
use crate::limits::{Limits, OutOfMemory};
use crate::planted::{Defect, is_planted};
use crate::wire::{ip, protocol};
use peers::Peers;
use ports::{Lease, PortPool, Random};

use books::Held;
pub use books::PortUse;

/// One in so many flows can be noted in [`Peers`].
pub(crate) const PEER_SHARE: u32 = 4;

/// An address of each family, to name its pools.
const FAMILIES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
/// Ports that are tried for a connection of our own until one is free in both families.
const OWN_TRIES: u8 = 64;

/// Slot of a mapping. Each copy in a flow stands for one reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MappingId(u32);

impl MappingId {
    /// What a flow keeps of it.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    /// The one that a flow has kept.
    pub(crate) fn numbered(number: u32) -> Self {
        Self(number)
    }
}

/// Where a mapping starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) protocol: u8,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// The resolver that the client meant, where DNS was redirected. Part of the endpoint because two of them may
    /// become one of ours: with a port each, the answers can still be told apart.
    pub(crate) redirected_from: Option<IpAddr>,
}

/// All ports of our own address are leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortsExhausted;

#[derive(Debug)]
struct Mapping {
    endpoint: Endpoint,
    lease: Lease,
    flows: u32,
}

/// The pools of our address of each family: IPv4, IPv6; each in the order TCP, UDP, ICMP identifiers.
#[derive(Debug)]
pub(crate) struct Nat {
    mappings: Slab<Mapping>,
    by_endpoint: Index,
    pools: [[PortPool; 3]; 2],
    pub(crate) peers: Peers,
    held: Held,
    random: Random,
    key: HashKey,
}

impl Nat {
    /// What one mapping costs in bytes, hash cells included.
    #[cfg(test)]
    pub(crate) const MAPPING_BYTES: usize = Slab::<Mapping>::SLOT_BYTES + Index::MAX_ENTRY_BYTES;

    pub(crate) fn new(limits: &Limits, key: HashKey, random: Random) -> Result<Self, OutOfMemory> {
        Ok(Self {
            mappings: Slab::with_capacity(limits.flows)?,
            by_endpoint: Index::with_capacity(limits.flows)?,
            pools: [pools()?, pools()?],
            peers: Peers::with_capacity(limits.flows / PEER_SHARE, key)?,
            held: Held::default(),
            random,
            key,
        })
    }

    pub(crate) fn add_entropy(&mut self, seed: &[u8]) {
        self.random.mix(seed);
    }

    /// The mapping of an endpoint, made if there is none, for one more flow.
    pub(crate) fn acquire(
        &mut self,
        endpoint: Endpoint,
    ) -> Result<(MappingId, u16), PortsExhausted> {
        let endpoint = match endpoint.address {
            IpAddr::V4(_) if is_planted(Defect::PortShared) => {
                Endpoint { address: Ipv4Addr::UNSPECIFIED.into(), ..endpoint }
            }
            _ => endpoint,
        };
        let hash = self.hash(&endpoint);
        let is_match =
            |slot| self.mappings.get(slot).is_some_and(|mapping| mapping.endpoint == endpoint);
        let known = self.by_endpoint.find(hash, is_match);
        if let Some(slot) = known
            && let Some(mapping) = self.mappings.get_mut(slot)
        {
            mapping.flows += 1;
            self.held.references += 1;
            return Ok((MappingId(slot), mapping.lease.port()));
        }
        if self.mappings.is_full() {
            return Err(PortsExhausted);
        }
        let Self { pools, random, .. } = self;
        let pool = pool_of(pools, endpoint.address, endpoint.protocol).ok_or(PortsExhausted)?;
        let lease = pool.lease(random, endpoint.port).ok_or(PortsExhausted)?;
        let port = lease.port();
        let mapping = Mapping { endpoint, lease, flows: 1 };
        let slot = self.mappings.insert(mapping).ok_or(PortsExhausted)?;
        self.by_endpoint.insert(hash, slot);
        self.held.references += 1;
        Ok((MappingId(slot), port))
    }

    /// Gives back one reference; the port is free again after the last.
    pub(crate) fn release(&mut self, id: MappingId) {
        let Some(mapping) = self.mappings.get_mut(id.0) else { return };
        mapping.flows = mapping.flows.saturating_sub(1);
        self.held.references = self.held.references.saturating_sub(1);
        if mapping.flows > 0 {
            return;
        }
        let hash = self.hash_of(id);
        let Some(mapping) = self.mappings.remove(id.0) else { return };
        self.by_endpoint.remove(hash, id.0);
        let endpoint = mapping.endpoint;
        if let Some(pool) = pool_of(&mut self.pools, endpoint.address, endpoint.protocol) {
            pool.give_back(mapping.lease);
        }
    }

    /// The mapping behind a port of ours that sends to `remote`, for one more flow.
    pub(crate) fn acquire_of_peer(
        &mut self,
        protocol: u8,
        port: u16,
        remote: IpAddr,
    ) -> Option<MappingId> {
        let id = self.peers.mapping(protocol, port, remote)?;
        self.mappings.get_mut(id.0)?.flows += 1;
        self.held.references += 1;
        Some(id)
    }

    /// Where a mapping starts.
    pub(crate) fn endpoint(&self, id: MappingId) -> Option<Endpoint> {
        self.mappings.get(id.0).map(|mapping| mapping.endpoint)
    }

    /// Keeps a port from mappings; false if one has it, whose flows have to end first.
    pub(crate) fn reserve(&mut self, family_of: IpAddr, protocol: u8, port: u16) -> bool {
        pool_of(&mut self.pools, family_of, protocol).is_some_and(|pool| pool.reserve(port))
    }

    /// Gives all reserved ports back to mappings.
    pub(crate) fn unreserve_all(&mut self) {
        self.pools.iter_mut().flatten().for_each(PortPool::unreserve_all);
    }

    /// A random port for a connection of our own, whichever family its server turns out to have; no client's mapping
    /// can get it meanwhile.
    pub(crate) fn lease_own(&mut self, protocol: u8) -> Option<Lease> {
        let [v4, v6] = FAMILIES;
        for _ in 0..OWN_TRIES {
            let Self { pools, random, .. } = self;
            let lease = pool_of(pools, v4, protocol)?.lease_random(random)?;
            if pool_of(pools, v6, protocol)?.take(lease.port()) {
                self.held.own += 1;
                return Some(lease);
            }
            pool_of(pools, v4, protocol)?.give_back(lease);
        }
        None
    }

    /// Gives back what [`Nat::lease_own`] gave for the same protocol.
    pub(crate) fn give_back_own(&mut self, protocol: u8, lease: Lease) {
        let [v4, v6] = FAMILIES;
        self.held.own = self.held.own.saturating_sub(1);
        if let Some(pool) = pool_of(&mut self.pools, v6, protocol) {
            pool.free(lease.port());
        }
        if let Some(pool) = pool_of(&mut self.pools, v4, protocol) {
            pool.give_back(lease);
        }
    }

    /// Number of mappings.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// Ports taken in all pools, reserved ones included.
    pub(crate) fn leased(&self) -> u32 {
        self.pools.iter().flatten().map(PortPool::leased).sum()
    }

    fn hash_of(&self, id: MappingId) -> u32 {
        self.mappings.get(id.0).map_or(0, |mapping| self.hash(&mapping.endpoint))
    }

    fn hash(&self, endpoint: &Endpoint) -> u32 {
        let number = u64::from(endpoint.port) << 8 | u64::from(endpoint.protocol);
        let (high, low) = halves(endpoint.address);
        // Redirections are rare: endpoints that differ only there may share a chain.
        self.key.hash(&[high, low, number])
    }
}

fn halves(address: IpAddr) -> (u64, u64) {
    match address {
        IpAddr::V4(v4) => (0, u64::from(u32::from(v4))),
        IpAddr::V6(v6) => ((u128::from(v6) >> 64) as u64, u128::from(v6) as u64),
    }
}

/// Whether flows of this protocol have ports (or identifiers) that are mapped.
pub(crate) fn has_ports(family_of: IpAddr, protocol: u8) -> bool {
    let is_icmp = protocol == ip::icmp(family_of);
    is_icmp || matches!(protocol, protocol::TCP | protocol::UDP)
}

fn pools() -> Result<[PortPool; 3], OutOfMemory> {
    Ok([PortPool::new()?, PortPool::new()?, PortPool::new()?])
}

fn pool_of(
    pools: &mut [[PortPool; 3]; 2],
    family_of: IpAddr,
    protocol: u8,
) -> Option<&mut PortPool> {
    let [v4, v6] = pools;
    let [tcp, udp, icmp] = if family_of.is_ipv4() { v4 } else { v6 };
    match protocol {
        protocol::TCP => Some(tcp),
        protocol::UDP => Some(udp),
        number if number == ip::icmp(family_of) => Some(icmp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nat(flows: u32) -> Nat {
        let limits =
            Limits { clients: 1, addresses: 1, flows, flows_per_client: flows, fragment_bytes: 0 };
        Nat::new(&limits, HashKey(3, 4), Random::new(1, 1)).unwrap()
    }

    fn endpoint(host: u8, port: u16) -> Endpoint {
        let address = Ipv4Addr::new(10, 137, 0, host).into();
        Endpoint { protocol: protocol::UDP, address, port, redirected_from: None }
    }

    #[test]
    fn the_last_flow_gives_the_port_back() {
        let mut nat = nat(8);
        let (first, port) = nat.acquire(endpoint(1, 5000)).unwrap();
        assert_eq!(nat.acquire(endpoint(1, 5000)), Ok((first, port)));
        nat.release(first);
        assert_ne!(nat.acquire(endpoint(2, 5000)).unwrap().1, 5000);
        nat.release(first);
        assert_eq!((nat.len(), nat.leased()), (1, 1));
        assert_eq!(nat.acquire(endpoint(3, 5000)).unwrap().1, 5000);
    }

    #[test]
    fn a_port_of_our_own_is_nobodys_mapping_in_either_family() {
        let mut nat = nat(8);
        let own = nat.lease_own(protocol::UDP).unwrap();
        let port = own.port();
        let of_v6 = |port| {
            let address = Ipv6Addr::LOCALHOST.into();
            Endpoint { address, ..endpoint(1, port) }
        };
        assert_ne!(nat.acquire(endpoint(1, port)).unwrap().1, port);
        assert_ne!(nat.acquire(of_v6(port)).unwrap().1, port);
        nat.give_back_own(protocol::UDP, own);
        assert_eq!(nat.acquire(endpoint(2, port)).unwrap().1, port);
        let other = Endpoint { redirected_from: Some(Ipv6Addr::LOCALHOST.into()), ..of_v6(port) };
        assert_eq!(nat.acquire(other).unwrap().1, port);
    }

    proptest! {
        #[test]
        fn no_two_endpoints_share_a_port(steps in proptest::collection::vec((0u8..4, 0u16..6, any::<bool>()), 1..300)) {
            let mut nat = nat(16);
            let mut held: Vec<(Endpoint, MappingId, u16)> = Vec::new();
            for (host, port, is_release) in steps {
                let wanted = endpoint(host, port);
                if is_release {
                    if let Some(at) = held.iter().position(|entry| entry.0 == wanted) {
                        nat.release(held.swap_remove(at).1);
                    }
                } else if let Ok((id, leased)) = nat.acquire(wanted) {
                    for (other, _, taken) in &held {
                        prop_assert_eq!(*taken == leased, *other == wanted);
                    }
                    held.push((wanted, id, leased));
                }
            }
            held.into_iter().for_each(|(_, id, _)| nat.release(id));
            prop_assert_eq!((nat.len(), nat.leased()), (0, 0));
        }
    }
}
