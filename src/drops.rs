//! The latest packets that ended here, as numbers, for who asks (`firewall.Drops`).
//!
//! What is the same but for its source counts up in one place. A new one takes the place of the oldest of its share: the
//! uplink has one, and the clients have the others by their slots, so that one that floods does not wipe out what is kept of
//! all. A packet costs one look-up by a secret hash, whatever comes; all memory is taken at the start.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use alloc::boxed::Box;
use alloc::vec::Vec;

use rules::DecidedBy;

use crate::clients::Clients;
use crate::conntrack::index::{HashKey, Index};
use crate::frame::Frame;
use crate::ingress::L3;
use crate::limits::OutOfMemory;
use crate::packet::{Packet, Upper};
use crate::port::{ClientId, Origin};
use crate::time::Instant;
use crate::verdict::DropReason;
use crate::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ipv4, ipv6, protocol, read, read_u16};

/// Shares of the places: one is the uplink's.
const SHARES: u32 = 8;
const CLIENT_SHARES: u16 = SHARES as u16 - 1;

/// From where to where a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) protocol: u8,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Of TCP and UDP.
    pub(crate) ports: Option<(u16, u16)>,
    /// Of ICMP.
    pub(crate) icmp_type: Option<u8>,
}

impl Ends {
    pub(crate) fn of(packet: &Packet) -> Self {
        let has_ports = matches!(packet.upper, Upper::Tcp(_) | Upper::Udp);
        let icmp_type = match packet.upper {
            Upper::IcmpQuery(kind) | Upper::IcmpOther(kind) => Some(kind),
            _ => None,
        };
        Self {
            protocol: packet.protocol,
            source: packet.source,
            destination: packet.destination,
            ports: has_ports.then_some((packet.source_port, packet.destination_port)),
            icmp_type,
        }
    }

    /// What can be seen of a packet that nobody has checked. Nothing depends on it.
    pub(crate) fn peek(frame: &Frame<'_>) -> Option<Self> {
        let bytes = frame.bytes();
        let (protocol, source, destination, l4) =
            match bytes.get(12..L3).map(|_| read_u16(bytes, 12))? {
                ETHERTYPE_IPV4 => {
                    let header = bytes.get(L3..L3 + ipv4::HEADER_BYTES)?;
                    let is_first = read_u16(header, 6) & 0x1fff == 0;
                    let len = usize::from(read::<1>(header, 0)[0] & 0xf) * 4;
                    let addresses =
                        [12, 16].map(|at| IpAddr::V4(Ipv4Addr::from(read::<4>(header, at))));
                    let [source, destination] = addresses;
                    (read::<1>(header, 9)[0], source, destination, is_first.then_some(L3 + len))
                }
                ETHERTYPE_IPV6 => {
                    let header = bytes.get(L3..L3 + ipv6::HEADER_BYTES)?;
                    let addresses =
                        [8, 24].map(|at| IpAddr::V6(Ipv6Addr::from(read::<16>(header, at))));
                    let [source, destination] = addresses;
                    let l4 = Some(L3 + ipv6::HEADER_BYTES);
                    (read::<1>(header, 6)[0], source, destination, l4)
                }
                _ => return None,
            };
        let upper = l4.and_then(|l4| bytes.get(l4..)).filter(|upper| upper.len() >= 4);
        let ports = upper
            .filter(|_| matches!(protocol, protocol::TCP | protocol::UDP))
            .map(|upper| (read_u16(upper, 0), read_u16(upper, 2)));
        let icmp_type = upper
            .filter(|_| matches!(protocol, protocol::ICMP | protocol::ICMPV6))
            .map(|upper| read::<1>(upper, 0)[0]);
        Some(Self { protocol, source, destination, ports, icmp_type })
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.destination.is_ipv6()
    }

    /// What tells it from others, apart from its source.
    fn words(&self) -> [u64; 3] {
        let port = self.ports.map_or(0, |(_, port)| 1 << 16 | u32::from(port));
        let kind = self.icmp_type.map_or(0, |kind| 1 << 8 | u64::from(kind));
        let address = match self.destination {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let rest = u64::from(port) << 24 | kind << 8 | u64::from(self.protocol);
        [(address >> 64) as u64, address as u64, rest]
    }
}

/// What of the rules refused a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) by: DecidedBy,
    /// The commit that they came with.
    pub(crate) edition: u32,
}

impl Decided {
    pub(crate) fn new(by: DecidedBy, edition: u32) -> Self {
        Self { by, edition }
    }
}

/// A packet that ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) origin: Origin,
    /// Address of the client that sent it.
    pub(crate) client: Option<IpAddr>,
    pub(crate) reason: DropReason,
    pub(crate) decided: Option<Decided>,
    pub(crate) ends: Option<Ends>,
}

impl Dropped {
    /// Whether they differ in their sources and in what of the rules decided at most.
    fn is_like(&self, other: &Self) -> bool {
        (self.origin, self.client, self.reason) == (other.origin, other.client, other.reason)
            && self.key() == other.key()
            && self.ends.map(|ends| ends.is_ipv6()) == other.ends.map(|ends| ends.is_ipv6())
    }

    fn key(&self) -> Option<[u64; 3]> {
        self.ends.map(|ends| ends.words())
    }
}

/// The same thing, so many times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// The latest of them.
    pub(crate) dropped: Dropped,
    pub(crate) at: Instant,
    pub(crate) times: u64,
    /// Number of the latest one: no two have the same.
    pub(crate) number: u64,
}

/// The latest drops.
#[derive(Debug)]
pub(crate) struct Drops {
    places: Box<[Option<Kept>]>,
    index: Index,
    key: HashKey,
    /// Place that is overwritten next in each share.
    next: [u32; SHARES as usize],
    number: u64,
    now: Instant,
    /// The packet whose place its answer has taken.
    pub(crate) refused: Option<Ends>,
}

impl Drops {
    pub(crate) fn new(places: u32, key: HashKey) -> Result<Self, OutOfMemory> {
        let count = (places / SHARES).max(1) * SHARES;
        let mut all = Vec::new();
        all.try_reserve_exact(count as usize).map_err(|_| OutOfMemory)?;
        all.resize(count as usize, None);
        Ok(Self {
            places: all.into_boxed_slice(),
            index: Index::with_capacity(count)?,
            key,
            next: [0; SHARES as usize],
            number: 0,
            now: Instant::default(),
            refused: None,
        })
    }

    /// A frame begins its way.
    #[inline]
    pub(crate) fn begin(&mut self, now: Instant) {
        (self.now, self.refused) = (now, None);
    }

    /// Places that there are.
    pub(crate) fn limit(&self) -> usize {
        self.places.len()
    }

    /// Places that are taken.
    pub(crate) fn len(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// Keeps one of which nothing is known but where it came from.
    pub(crate) fn note_bare(&mut self, clients: &Clients, origin: Origin, reason: DropReason) {
        let client = clients.address_at(origin, false);
        self.note(Dropped { origin, client, reason, decided: None, ends: None });
    }

    /// Keeps one.
    pub(crate) fn note(&mut self, dropped: Dropped) {
        self.number = self.number.wrapping_add(1);
        let (at, number) = (self.now, self.number);
        let hash = self.hash(&dropped);
        let kept = |place: u32| self.places.get(place as usize).and_then(Option::as_ref);
        let is_like = |place| kept(place).is_some_and(|kept| kept.dropped.is_like(&dropped));
        let place = match self.index.find(hash, is_like) {
            Some(place) => place,
            None => self.empty_place(dropped.origin, hash),
        };
        let Some(place) = self.places.get_mut(place as usize) else { return };
        let times = place.map_or(0, |kept| kept.times).saturating_add(1);
        *place = Some(Kept { dropped, at, times, number });
    }

    /// The latest one of those before `number` that is of `client`, if one is asked for.
    pub(crate) fn before(&self, number: u64, client: Option<IpAddr>) -> Option<&Kept> {
        let is_asked_for =
            |kept: &&Kept| client.is_none_or(|client| kept.dropped.client == Some(client));
        let earlier = self.places.iter().flatten().filter(|kept| kept.number < number);
        earlier.filter(is_asked_for).max_by_key(|kept| kept.number)
    }

    /// Empties the oldest place of a share, for what has `hash`.
    fn empty_place(&mut self, origin: Origin, hash: u32) -> u32 {
        let share = match origin {
            Origin::Uplink => 0,
            Origin::Client(ClientId(slot)) => 1 + u32::from(slot % CLIENT_SHARES),
        };
        let size = self.places.len() as u32 / SHARES;
        let Some(next) = self.next.get_mut(share as usize) else { return 0 };
        let place = share * size + *next;
        *next = (*next + 1) % size.max(1);
        let old = self.places.get_mut(place as usize).and_then(Option::take);
        if let Some(old) = old {
            let old = self.hash(&old.dropped);
            self.index.remove(old, place);
        }
        self.index.insert(hash, place);
        place
    }

    fn hash(&self, dropped: &Dropped) -> u32 {
        let origin = match dropped.origin {
            Origin::Uplink => 0,
            Origin::Client(ClientId(slot)) => 1 + u64::from(slot),
        };
        let [high, low, rest] = dropped.key().unwrap_or_default();
        self.key.hash(&[high, low, rest, origin << 16 | dropped.reason as u64])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HashKey = HashKey(1, 2);

    fn to(port: u16) -> Dropped {
        from(Origin::Client(ClientId(0)), port)
    }

    fn from(origin: Origin, port: u16) -> Dropped {
        let ends = Ends {
            protocol: protocol::TCP,
            source: IpAddr::from([10, 137, 0, 9]),
            destination: IpAddr::from([192, 0, 2, 1]),
            ports: Some((40_000, port)),
            icmp_type: None,
        };
        let (client, reason) = (Some(ends.source), DropReason::RuleRejected);
        Dropped { origin, client, reason, decided: None, ends: Some(ends) }
    }

    fn all(drops: &Drops) -> Vec<(u16, u64)> {
        let mut number = u64::MAX;
        core::iter::from_fn(|| {
            let kept = drops.before(number, None)?;
            number = kept.number;
            Some((kept.dropped.ends?.ports?.1, kept.times))
        })
        .collect()
    }

    #[test]
    fn what_differs_in_its_source_alone_counts_up_in_one_place() {
        let mut drops = Drops::new(64, KEY).unwrap();
        for (port, source_port) in [(1, 7), (2, 7), (1, 8), (1, 9)] {
            let mut one = to(port);
            one.ends.as_mut().unwrap().ports = Some((source_port, port));
            drops.note(one);
        }
        assert_eq!(all(&drops), [(1, 3), (2, 1)], "the latest first");
        assert_eq!(drops.before(u64::MAX, None).unwrap().dropped.ends.unwrap().ports, Some((9, 1)));
        assert_eq!(drops.len(), 2);
    }

    #[test]
    fn every_other_difference_takes_a_place_of_its_own() {
        let mut drops = Drops::new(128, KEY).unwrap();
        let base = to(1);
        let ends = base.ends.unwrap();
        let change = |ends: Ends| Dropped { ends: Some(ends), ..base };
        let others = [
            Dropped { reason: DropReason::NoFlow, ..base },
            Dropped { client: None, ..base },
            Dropped { origin: Origin::Uplink, ..base },
            Dropped { ends: None, ..base },
            change(Ends { protocol: protocol::UDP, ..ends }),
            change(Ends { destination: IpAddr::from([192, 0, 2, 2]), ..ends }),
            change(Ends { ports: None, ..ends }),
            change(Ends { ports: None, icmp_type: Some(0), ..ends }),
        ];
        drops.note(base);
        others.into_iter().for_each(|other| drops.note(other));
        assert_eq!(drops.len(), 1 + others.len());
    }

    #[test]
    fn a_flood_of_one_leaves_the_places_of_others() {
        let mut drops = Drops::new(64, KEY).unwrap();
        let (other, uplink) = (Origin::Client(ClientId(1)), Origin::Uplink);
        drops.note(from(other, 5));
        drops.note(from(uplink, 6));
        for port in 0..10_000 {
            drops.note(to(port));
        }
        assert_eq!(drops.len(), 8 + 2);
        let told = all(&drops);
        assert_eq!(told.first(), Some(&(9999, 1)));
        assert_eq!(told.get(8..), Some(&[(6, 1), (5, 1)][..]));
        // Whatever was overwritten is found no more, and what came back is new.
        drops.note(to(0));
        assert_eq!(all(&drops).first(), Some(&(0, 1)));
    }

    #[test]
    fn what_cannot_be_read_is_not() {
        for len in 0..80 {
            for ether_type in [[8, 0], [0x86, 0xdd], [8, 6]] {
                let mut bytes = vec![0xff; len];
                if let Some(place) = bytes.get_mut(12..14) {
                    place.copy_from_slice(&ether_type);
                }
                let offload = crate::Offload::default();
                let Some(frame) = Frame::new(&mut bytes, len, offload) else { continue };
                let seen = Ends::peek(&frame);
                let header = if ether_type == [8, 0] { 34 } else { 54 };
                assert_eq!(seen.is_some(), len >= header && ether_type != [8, 6], "{len}");
            }
        }
    }
}
