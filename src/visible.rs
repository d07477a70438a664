//! Clients that are told other addresses than their real ones (Qubes `net.fake-ip`, `net.fake-gateway`).

use core::net::Ipv4Addr;

/// How one client sees itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedIp {
    /// Its real address: that of its vif, its rules and its flows.
    pub real: Ipv4Addr,
    /// What it knows instead.
    pub visible: Visible,
}

/// What such a client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visible {
    /// It has this address and that gateway. No IPv6.
    As {
        /// `visible-ip`.
        address: Ipv4Addr,
        /// `visible-gateway`.
        gateway: Ipv4Addr,
    },
    /// dom0 said something that cannot be understood: nothing of the client is taken.
    Unknown,
}
