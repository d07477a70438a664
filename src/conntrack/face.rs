//! The two faces of a flow, as packets have them and as a flow keeps them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One face of a flow. `local` is the client's end, or our own address in its place; `remote` the far one,
/// of the same family.
///
/// Ports of ICMP queries: the identifier is the local one, the query's type the remote one. Protocols without ports
/// have zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tuple {
    pub(crate) protocol: u8,
    pub(crate) local: IpAddr,
    pub(crate) local_port: u16,
    pub(crate) remote: IpAddr,
    pub(crate) remote_port: u16,
}

impl Tuple {
    /// All of it but the addresses.
    #[inline(always)]
    pub(super) fn word(&self) -> Word {
        Word(
            u64::from(self.local_port) << Word::LOCAL_PORT
                | u64::from(self.remote_port) << Word::REMOTE_PORT
                | u64::from(self.remote.is_ipv6()) << Word::IS_IPV6
                | u64::from(self.protocol),
        )
    }

    /// Whether both addresses are of one family.
    pub(super) fn is_of_one_family(&self) -> bool {
        self.local.is_ipv6() == self.remote.is_ipv6()
    }
}

/// Protocol, family and ports of a face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    const IS_IPV6: u32 = 8;
    const REMOTE_PORT: u32 = 16;
    const LOCAL_PORT: u32 = 32;

    #[inline(always)]
    pub(super) fn bits(self) -> u64 {
        self.0
    }
}

/// The words of both faces. They differ in their local ports alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words(u64);

impl Words {
    const IS_BETWEEN_CLIENTS: u64 = 1 << 9;
    const LOCAL_PORT_OUTSIDE: u32 = 48;
    /// Everything that the outside face has in common with the inside one.
    const COMMON: u64 = u32::MAX as u64 & !Self::IS_BETWEEN_CLIENTS;
    const INSIDE: u64 = u64::MAX >> 16 & !Self::IS_BETWEEN_CLIENTS;

    /// `None` if they differ in something else.
    pub(super) fn new(inside: &Tuple, outside: &Tuple, is_between_clients: bool) -> Option<Self> {
        let is_one = inside.is_of_one_family() && outside.is_of_one_family();
        let words = Self(
            u64::from(outside.local_port) << Self::LOCAL_PORT_OUTSIDE
                | if is_between_clients { Self::IS_BETWEEN_CLIENTS } else { 0 }
                | inside.word().0,
        );
        (is_one && words.outside() == outside.word()).then_some(words)
    }

    #[inline(always)]
    pub(super) fn inside(self) -> Word {
        Word(self.0 & Self::INSIDE)
    }

    #[inline(always)]
    pub(super) fn outside(self) -> Word {
        Word(self.0 & Self::COMMON | u64::from(self.local_port_outside()) << Word::LOCAL_PORT)
    }

    /// Whether `word` is that of the outside face, and that has our own address.
    #[inline(always)]
    pub(super) fn is_outside_of_us(self, word: Word) -> bool {
        self.0 as u32 == word.0 as u32
            && u64::from(self.local_port_outside()) == word.0 >> Word::LOCAL_PORT
    }

    pub(super) fn is_between_clients(self) -> bool {
        self.0 & Self::IS_BETWEEN_CLIENTS != 0
    }

    pub(super) fn protocol(self) -> u8 {
        self.0 as u8
    }

    pub(super) fn is_ipv6(self) -> bool {
        self.0 & 1 << Word::IS_IPV6 != 0
    }

    pub(super) fn remote_port(self) -> u16 {
        (self.0 >> Word::REMOTE_PORT) as u16
    }

    pub(super) fn local_port_inside(self) -> u16 {
        (self.0 >> Word::LOCAL_PORT) as u16
    }

    #[inline(always)]
    pub(super) fn local_port_outside(self) -> u16 {
        (self.0 >> Self::LOCAL_PORT_OUTSIDE) as u16
    }
}

/// An address whose family is known from elsewhere: the high and the low half, of an IPv4 address in the low one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Halves(u64, u64);

impl Halves {
    #[inline(always)]
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(0, u32::from(v4).into()),
            IpAddr::V6(v6) => Self((u128::from(v6) >> 64) as u64, u128::from(v6) as u64),
        }
    }

    #[inline(always)]
    pub(super) fn words(self) -> [u64; 2] {
        [self.0, self.1]
    }

    pub(super) fn address(self, is_ipv6: bool) -> IpAddr {
        let Self(high, low) = self;
        match is_ipv6 {
            true => Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).into(),
            false => Ipv4Addr::from(low as u32).into(),
        }
    }

    /// Whether it is `address`, if it is one of that family.
    #[inline(always)]
    pub(super) fn is(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.1 == u64::from(u32::from(v4)),
            IpAddr::V6(_) => self == Self::of(address),
        }
    }
}

/// Our own address of each family, behind which clients are; unspecified where we have none, which no flow is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Own {
    pub(super) const NONE: Self = Self { v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED };

    /// The one of the family of `address`.
    #[inline(always)]
    pub(super) fn like(self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6.into(),
        }
    }
}
