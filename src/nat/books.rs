//! Who stands behind the ports of our own address: each taken one belongs to a mapping, to a question of our own to a name
//! server, or to `fw-forward`; each reference to a mapping belongs to a flow. What nobody stands behind is a leak.
//!
//! Ports cost no memory (their tables are as large as they will ever be), but one that is lost is lost until the restart,
//! and a client could do that again and again.

use super::{Nat, PortPool};
use crate::firewall::Firewall;

/// What was given out, as counted where it is given.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// References to mappings.
    pub(super) references: u32,
    /// Ports for connections of our own, in both families each.
    pub(super) own: u32,
    /// Leaks that were told.
    told: u32,
}

/// Ports of our own address in use: TCP, UDP and ICMP identifiers, of both families together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// Taken: by clients' mappings, for our own questions, for `fw-forward`.
    pub taken: u32,
    /// Of these and of the references to them, those that nobody stands behind. Other than 0 it is a fault of the firewall.
    pub leaked: u32,
}

impl Nat {
    /// Compares what was given out with who has it; `flows`: those that have a mapping.
    fn port_use(&self, flows: u32) -> PortUse {
        let taken = self.leased();
        let reserved: usize = self.pools.iter().flatten().map(PortPool::reserved).sum();
        let mappings = u32::try_from(self.mappings.len()).unwrap_or(u32::MAX);
        let reserved = u32::try_from(reserved).unwrap_or(u32::MAX);
        let own = self.held.own.saturating_mul(2);
        let accounted = mappings.saturating_add(reserved).saturating_add(own);
        let leaked = taken.abs_diff(accounted).saturating_add(self.held.references.abs_diff(flows));
        PortUse { taken, leaked }
    }
}

impl Firewall {
    /// Ports in use.
    #[must_use]
    pub fn port_use(&self) -> PortUse {
        self.nat.port_use(self.table.mapped())
    }

    /// Ports and references to them that were lost since the last call. To be asked when a client has gone.
    pub fn take_port_leak(&mut self) -> u32 {
        let leaked = self.port_use().leaked;
        let lost = leaked.saturating_sub(self.nat.held.told);
        self.nat.held.told = leaked;
        lost
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::PortUse;
    use crate::nat::Endpoint;
    use crate::testing::{A, Build, Kit, SERVER};
    use crate::wire::protocol;

    const NOTHING: PortUse = PortUse { taken: 0, leaked: 0 };

    fn endpoint(port: u16) -> Endpoint {
        let address = Ipv4Addr::new(10, 137, 0, 10).into();
        Endpoint { protocol: protocol::UDP, address, port, redirected_from: None }
    }

    #[test]
    fn a_port_is_its_mappings_and_a_reference_its_flows() {
        let mut kit = Kit::new().rules(A, &["action=accept"]);
        assert_eq!(kit.fw.port_use(), NOTHING);
        for (from, to) in [(5000, 53), (5000, 123), (5001, 123)] {
            kit.a(&Build::udp((A, from), (SERVER, to)));
        }
        assert_eq!(kit.fw.port_use(), PortUse { taken: 2, leaked: 0 });
        let own = kit.fw.nat.lease_own(protocol::UDP).unwrap();
        assert_eq!(kit.fw.port_use(), PortUse { taken: 4, leaked: 0 });
        kit.fw.nat.give_back_own(protocol::UDP, own);
        assert_eq!(kit.fw.take_port_leak(), 0);
    }

    #[test]
    fn what_nobody_stands_behind_is_told_once() {
        let mut kit = Kit::new();
        // A reference without a flow, on a mapping of its own.
        let (id, _) = kit.fw.nat.acquire(endpoint(5000)).unwrap();
        assert_eq!((kit.fw.take_port_leak(), kit.fw.take_port_leak()), (1, 0));
        // A second one on the same.
        kit.fw.nat.acquire(endpoint(5000)).unwrap();
        assert_eq!((kit.fw.take_port_leak(), kit.fw.take_port_leak()), (1, 0));
        kit.fw.nat.release(id);
        kit.fw.nat.release(id);
        assert_eq!((kit.fw.port_use(), kit.fw.take_port_leak()), (NOTHING, 0));
        // A port without a mapping.
        assert!(kit.fw.nat.pools[0][1].take(7000));
        assert_eq!(kit.fw.take_port_leak(), 1);
    }
}
