//! The servers, and our address towards each.

use core::net::IpAddr;

/// Servers that are asked: two of each family.
const MAX_SERVERS: usize = 4;

/// The way to the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    servers: [Option<Server>; MAX_SERVERS],
}

/// A server and our address towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) address: IpAddr,
    pub(super) own: IpAddr,
}

impl Route {
    /// Adds servers that are reached from our address `own`.
    pub(crate) fn with<A: Copy + Into<IpAddr>>(mut self, own: Option<A>, servers: &[A]) -> Self {
        let Some(own) = own else { return self };
        let free = self.servers.iter_mut().filter(|place| place.is_none());
        for (place, server) in free.zip(servers) {
            *place = Some(Server { address: (*server).into(), own: own.into() });
        }
        self
    }

    /// The server of the n-th attempt.
    pub(super) fn nth(&self, n: usize) -> Option<Server> {
        let count = self.servers.iter().flatten().count();
        self.servers.get(n.checked_rem(count)?).copied().flatten()
    }
}
