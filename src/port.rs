//! Ports: the uplink and one per client vif.

/// Slot of a client vif, chosen by the platform: below [`crate::Limits::clients`], free for reuse after
/// [`crate::Firewall::detach_client`]. A client with two vifs (an HVM with its stub domain) has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u16);

/// Where a frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A client's vif.
    Client(ClientId),
    /// The uplink's backend.
    Uplink,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortId {
    /// A client's vif.
    Client(ClientId),
    /// The uplink's backend.
    Uplink,
}

impl From<Origin> for PortId {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Client(id) => Self::Client(id),
            Origin::Uplink => Self::Uplink,
        }
    }
}

/// What the peer behind a port said it can receive (Xen public/io/netif.h, feature nodes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortCaps {
    /// Takes TCP and UDP over IPv4 with a partial checksum: true unless `feature-no-csum-offload` is 1.
    pub accepts_blank_v4: bool,
    /// The same over IPv6: true only if `feature-ipv6-csum-offload` is 1.
    pub accepts_blank_v6: bool,
    /// Takes TCP super-frames over IPv4: `feature-gso-tcpv4` and `feature-sg` are 1.
    pub accepts_gso_v4: bool,
    /// Takes TCP super-frames over IPv6: `feature-gso-tcpv6` and `feature-sg` are 1.
    pub accepts_gso_v6: bool,
    /// Largest IP packet in bytes, Ethernet header not counted.
    pub mtu: u16,
}

impl PortCaps {
    /// A peer that said nothing and takes 1500-byte packets with complete checksums only.
    pub const PLAIN: Self = Self {
        accepts_blank_v4: false,
        accepts_blank_v6: false,
        accepts_gso_v4: false,
        accepts_gso_v6: false,
        mtu: 1500,
    };
}
