//! What `etherparse` does not give: rewriting in place, checksum updates, building answers over the packet they answer.
//!
//! Offsets come from [`crate::ingress`], which has checked them against the frame: reading or writing beyond it is
//! our own mistake and stops the domain.

pub(crate) mod checksum;
pub(crate) mod ip;
pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod tcp;

use core::fmt;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_BYTES: usize = 14;
/// EtherType of IPv4.
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol numbers that the core looks into (IANA "Assigned Internet Protocol Numbers").
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMPV6: u8 = 58;
}

/// Which address of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Ours on every client vif, and the one a NetVM has for us (Qubes `vif-route-qubes`, `setup-ip`).
    pub const GATEWAY: Self = Self([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it may be the source of a frame: not a group address, not zero.
    #[must_use]
    pub const fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && u64_of(self.0) != 0
    }
}

const fn u64_of(octets: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = octets;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The `N` bytes at `at`.
///
/// # Panics
/// If the packet ends before: an offset that ingress did not check.
pub(crate) fn read<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    *field.expect("ingress checked every offset that is read")
}

/// The big-endian 16-bit number at `at`; see [`read`].
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(read(bytes, at))
}

/// Overwrites the bytes at `at`.
///
/// # Panics
/// If the packet ends before: an offset that ingress did not check.
pub(crate) fn write<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    let field = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
    *field.expect("ingress checked every offset that is written") = value;
}

/// Writes a big-endian 16-bit number; see [`write`].
pub(crate) fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    write(bytes, at, value.to_be_bytes());
}

/// Writes an Ethernet header.
pub(crate) fn write_ethernet(bytes: &mut [u8], destination: Mac, source: Mac, ether_type: u16) {
    write(bytes, 0, destination.0);
    write(bytes, 6, source.0);
    write_u16(bytes, 12, ether_type);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_addresses_and_zero_are_no_stations() {
        assert!(Mac::GATEWAY.is_station());
        assert!(!Mac::BROADCAST.is_station());
        assert!(!Mac([0; 6]).is_station());
        assert!(!Mac([1, 0, 0x5e, 0, 0, 1]).is_station());
    }

    #[test]
    fn a_mac_prints_as_qubes_writes_it() {
        assert_eq!(Mac::GATEWAY.to_string(), "fe:ff:ff:ff:ff:ff");
    }
}
