//! Which remote addresses a mapping sends to, for clients whose mappings are filtered by address only (RFC 4787,
//! section 5: what comes from there is taken whatever its port).
//!
//! Only flows of such clients are noted. When there is no room, the flow is not, and is filtered by address and port.

use core::net::IpAddr;

use crate::conntrack::index::{HashKey, Index};
use crate::conntrack::slab::Slab;
use crate::limits::OutOfMemory;
use crate::nat::{MappingId, halves};

/// Slot of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PeerId(u32);

#[derive(Debug)]
struct Peer {
    mapping: MappingId,
    remote: IpAddr,
    /// A mapping is known by its protocol and port from outside.
    protocol: u8,
    port: u16,
    flows: u32,
}

#[derive(Debug)]
pub(crate) struct Peers {
    peers: Slab<Peer>,
    by_remote: Index,
    key: HashKey,
}

impl Peers {
    /// What one peer costs in bytes, hash cells included.
    #[cfg(test)]
    pub(crate) const PEER_BYTES: usize = Slab::<Peer>::SLOT_BYTES + Index::MAX_ENTRY_BYTES;

    pub(crate) fn with_capacity(peers: u32, key: HashKey) -> Result<Self, OutOfMemory> {
        let by_remote = Index::with_capacity(peers)?;
        Ok(Self { peers: Slab::with_capacity(peers)?, by_remote, key })
    }

    /// Notes that a flow of `mapping`, which has `port` on our address, goes to `remote`. False if there is no room.
    pub(crate) fn add(
        &mut self,
        mapping: MappingId,
        protocol: u8,
        port: u16,
        remote: IpAddr,
    ) -> bool {
        if let Some(known) = self.find(protocol, port, remote) {
            let peer = self.peers.get_mut(known.0);
            return peer.map(|peer| peer.flows += 1).is_some();
        }
        let peer = Peer { mapping, remote, protocol, port, flows: 1 };
        let Some(slot) = self.peers.insert(peer) else { return false };
        self.by_remote.insert(self.hash(protocol, port, remote), slot);
        true
    }

    /// One flow less that was noted.
    pub(crate) fn release(&mut self, protocol: u8, port: u16, remote: IpAddr) {
        let Some(id) = self.find(protocol, port, remote) else { return };
        let Some(peer) = self.peers.get_mut(id.0) else { return };
        peer.flows = peer.flows.saturating_sub(1);
        if peer.flows > 0 {
            return;
        }
        self.by_remote.remove(self.hash(protocol, port, remote), id.0);
        self.peers.remove(id.0);
    }

    /// The mapping behind `port` if it has a flow to `remote`.
    pub(crate) fn mapping(&self, protocol: u8, port: u16, remote: IpAddr) -> Option<MappingId> {
        let peer = self.find(protocol, port, remote)?;
        self.peers.get(peer.0).map(|peer| peer.mapping)
    }

    fn find(&self, protocol: u8, port: u16, remote: IpAddr) -> Option<PeerId> {
        let is_match = |slot| {
            self.peers.get(slot).is_some_and(|peer| {
                (peer.protocol, peer.port, peer.remote) == (protocol, port, remote)
            })
        };
        self.by_remote.find(self.hash(protocol, port, remote), is_match).map(PeerId)
    }

    fn hash(&self, protocol: u8, port: u16, remote: IpAddr) -> u32 {
        let (high, low) = halves(remote);
        self.key.hash(&[high, low, u64::from(port) << 8 | u64::from(protocol)])
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_lives_as_long_as_a_flow_to_it() {
        let mut peers = Peers::with_capacity(2, HashKey(1, 2)).unwrap();
        let [here, there] = [[198, 51, 100, 7], [203, 0, 113, 9]].map(IpAddr::from);
        assert!(peers.add(MappingId(7), 17, 5000, here) && peers.add(MappingId(7), 17, 5000, here));
        assert_eq!(peers.mapping(17, 5000, here), Some(MappingId(7)));
        for (protocol, port, remote) in [(6, 5000, here), (17, 5001, here), (17, 5000, there)] {
            assert_eq!(peers.mapping(protocol, port, remote), None);
            peers.release(protocol, port, remote);
        }
        assert!(peers.add(MappingId(8), 17, 5001, here));
        assert!(!peers.add(MappingId(8), 17, 5001, there));
        peers.release(17, 5000, here);
        assert_eq!(peers.mapping(17, 5000, here), Some(MappingId(7)));
        peers.release(17, 5000, here);
        assert_eq!(peers.mapping(17, 5000, here), None);
        peers.release(17, 5001, here);
        assert_eq!(peers.len(), 0);
    }
}
