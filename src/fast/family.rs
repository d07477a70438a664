//! What the fast path has to know of IPv4 and IPv6. As types, so that each gets code of its own without a question left.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::clients::{Attached, HostId};
use crate::conntrack::Own;
use crate::frame::GsoKind;
use crate::ingress::L3;
use crate::port::PortCaps;
use crate::uplink::Uplink;
use crate::wire::checksum::Sum;
use crate::wire::{Mac, Side, ipv4, ipv6, read, read_u16};

/// A family of addresses.
pub(super) trait Family {
    /// An address of it.
    type Address: Copy + Eq + Into<IpAddr>;

    /// Offset of TCP and UDP in a frame without options or extension headers.
    const L4: usize;
    /// Super-frames of it.
    const GSO: GsoKind;
    /// Whether UDP must have a checksum (RFC 8200, 8.1).
    const NEEDS_CHECKSUM: bool;

    /// The address, if it belongs to it.
    fn own(address: IpAddr) -> Option<Self::Address>;
    /// Our own address.
    fn of_us(own: Own) -> Self::Address;
    /// A client's address, and the host that it stands for.
    fn of_client(client: &Attached) -> Option<(Self::Address, HostId)>;
    /// The next hop behind the uplink.
    fn next_hop(uplink: &Uplink) -> Mac;
    /// Whether a port takes partial checksums, and super-frames.
    fn takes(caps: &PortCaps) -> (bool, bool);
    /// What follows the header.
    fn protocol(head: &[u8; V4::L4]) -> u8;
    /// The header of a frame, if it is right and has nothing unusual. What follows it is the caller's to look at.
    fn read(bytes: &[u8]) -> Option<Ip<Self::Address>>;
    /// Replaces one address and takes one off the time to live. Returns what changed for the pseudo header.
    fn hand_on(bytes: &mut [u8], side: Side, address: Self::Address) -> Sum;
}

/// A header that is right.
pub(super) struct Ip<A> {
    pub(super) source: A,
    pub(super) destination: A,
    pub(super) ttl: u8,
    pub(super) total_len: usize,
}

/// IPv4.
pub(super) struct V4;

impl Family for V4 {
    type Address = Ipv4Addr;
    const L4: usize = L3 + ipv4::HEADER_BYTES;
    const GSO: GsoKind = GsoKind::TcpV4;
    const NEEDS_CHECKSUM: bool = false;

    #[inline(always)]
    fn own(address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }
    }

    #[inline(always)]
    fn of_us(own: Own) -> Ipv4Addr {
        own.v4
    }

    #[inline(always)]
    fn of_client(client: &Attached) -> Option<(Ipv4Addr, HostId)> {
        Some((client.port.ip4?, client.host4?))
    }

    #[inline(always)]
    fn next_hop(uplink: &Uplink) -> Mac {
        uplink.v4.mac()
    }

    #[inline(always)]
    fn takes(caps: &PortCaps) -> (bool, bool) {
        (caps.accepts_blank_v4, caps.accepts_gso_v4)
    }

    #[inline(always)]
    fn protocol(head: &[u8; V4::L4]) -> u8 {
        read::<1>(head, L3 + 9)[0]
    }

    #[inline(always)]
    fn read(bytes: &[u8]) -> Option<Ip<Ipv4Addr>> {
        /// More fragments, and the offset (RFC 791, 3.1): not the bit that is reserved, nor "don't fragment".
        const FRAGMENT: u16 = 0x3fff;
        const NO_OPTIONS: u8 = 0x45;
        let header: &[u8; ipv4::HEADER_BYTES] = bytes.get(L3..)?.first_chunk()?;
        let [first, ..] = *header;
        let is_plain = first == NO_OPTIONS && read_u16(header, 6) & FRAGMENT == 0;
        if !is_plain || !Sum::is_right(header) {
            return None;
        }
        let [ttl] = read(header, 8);
        Some(Ip {
            source: read::<4>(header, 12).into(),
            destination: read::<4>(header, 16).into(),
            ttl,
            total_len: read_u16(header, 2).into(),
        })
    }

    #[inline(always)]
    fn hand_on(bytes: &mut [u8], side: Side, address: Ipv4Addr) -> Sum {
        ipv4::hand_on(bytes, L3, side, address)
    }
}

/// IPv6.
pub(super) struct V6;

impl Family for V6 {
    type Address = Ipv6Addr;
    const L4: usize = L3 + ipv6::HEADER_BYTES;
    const GSO: GsoKind = GsoKind::TcpV6;
    const NEEDS_CHECKSUM: bool = true;

    #[inline(always)]
    fn own(address: IpAddr) -> Option<Ipv6Addr> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(v6),
        }
    }

    #[inline(always)]
    fn of_us(own: Own) -> Ipv6Addr {
        own.v6
    }

    #[inline(always)]
    fn of_client(client: &Attached) -> Option<(Ipv6Addr, HostId)> {
        Some((client.port.ip6?, client.host6?))
    }

    #[inline(always)]
    fn next_hop(uplink: &Uplink) -> Mac {
        uplink.v6.mac()
    }

    #[inline(always)]
    fn takes(caps: &PortCaps) -> (bool, bool) {
        (caps.accepts_blank_v6, caps.accepts_gso_v6)
    }

    #[inline(always)]
    fn protocol(head: &[u8; V4::L4]) -> u8 {
        read::<1>(head, L3 + 6)[0]
    }

    #[inline(always)]
    fn read(bytes: &[u8]) -> Option<Ip<Ipv6Addr>> {
        let header: &[u8; ipv6::HEADER_BYTES] = bytes.get(L3..)?.first_chunk()?;
        let [first, ..] = *header;
        if first >> 4 != 6 {
            return None;
        }
        let [ttl] = read(header, 7);
        Some(Ip {
            source: read::<16>(header, 8).into(),
            destination: read::<16>(header, 24).into(),
            ttl,
            total_len: usize::from(read_u16(header, 4)) + ipv6::HEADER_BYTES,
        })
    }

    #[inline(always)]
    fn hand_on(bytes: &mut [u8], side: Side, address: Ipv6Addr) -> Sum {
        ipv6::decrement_hop_limit(bytes, L3);
        ipv6::set_address(bytes, L3, side, address)
    }
}
