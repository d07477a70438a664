//! Packets and a small network for tests: who is in it. `packets` has what they send, `v6` the same for IPv6, `kit` the firewall
//! between them.

mod kit;
mod packets;
pub(crate) mod v6;

use core::net::Ipv4Addr;

use crate::*;

pub(crate) use kit::*;
pub(crate) use packets::*;

/// Payload words among which one alone makes the checksum of a packet vanish, the field that the packet has with a word of 0:
/// that one, its neighbours, and some from everywhere. (All would take minutes.)
pub(crate) fn words_about(vanishing: u16) -> impl Iterator<Item = u16> {
    let mut words: Vec<u16> =
        (0..=300).map(|near| vanishing.wrapping_sub(150).wrapping_add(near)).collect();
    words.extend((0..=u16::MAX).step_by(251));
    words.sort_unstable();
    words.dedup();
    words.into_iter()
}

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 10);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 11);
/// In `/connected-ips`, never attached.
pub(crate) const ABSENT: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 12);
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 6);
pub(crate) const NETVM: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 5);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(crate) const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Resolvers that clients know, and those that we use.
pub(crate) const CLIENT_DNS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 139, 1, 1), Ipv4Addr::new(10, 139, 1, 2)];
pub(crate) const OWN_DNS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

pub(crate) const ID_A: ClientId = ClientId(0);
pub(crate) const ID_B: ClientId = ClientId(1);
pub(crate) const FROM_A: Origin = Origin::Client(ID_A);
pub(crate) const FROM_B: Origin = Origin::Client(ID_B);
pub(crate) const MAC_A: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0a]);
pub(crate) const MAC_B: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0b]);
pub(crate) const MAC_UP: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x06]);
