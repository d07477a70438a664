//! Counters: one per drop reason and port, and what passed.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::limits::OutOfMemory;
use crate::port::{ClientId, PortId};
use crate::verdict::DropReason;

macro_rules! counters {
    ($($variant:ident, $name:literal, $doc:literal;)*) => {
        /// What is counted per port beside drops.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $(#[doc = $doc] $variant,)* }

        impl Counter {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// Name in statistics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it counts, in one sentence.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

counters! {
    ReceivedFrames, "received-frames", "Frames handed in from this port.";
    ReceivedBytes, "received-bytes", "Bytes of those.";
    SentFrames, "sent-frames", "Frames forwarded to this port.";
    SentBytes, "sent-bytes", "Bytes of those.";
    FlowsOpened, "flows-opened", "Flows that packets from this port opened.";
    ArpAnswers, "arp-answers", "ARP replies to this port.";
    ArpLearned, "arp-learned", "ARP replies that told us the next hop.";
    NdAnswers, "nd-answers", "Neighbour advertisements to this port.";
    NdLearned, "nd-learned", "Neighbour advertisements that told us the next hop.";
    EchoAnswers, "echo-answers", "ICMP echo replies to this port.";
    IcmpErrors, "icmp-errors", "ICMP errors of our own to this port.";
    TcpResets, "tcp-resets", "TCP resets of our own to this port.";
    AnswersSuppressed, "answers-suppressed", "Errors and resets that the rate limit kept back, or that cannot be sent.";
    ResolverPackets, "resolver-packets", "Packets of our own resolver to this port.";
    ResolverAnswers, "resolver-answers", "Packets from this port that our resolver took.";
    FragmentsKept, "fragments-kept", "Fragments from this port that waited for the rest of their datagram.";
    OwnFrames, "own-frames", "Frames to this port that nothing received caused: ARP requests, neighbour discovery.";
}

/// The counters of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStats {
    drops: [u64; DropReason::COUNT],
    counters: [u64; Counter::ALL.len()],
}

impl PortStats {
    const ZERO: Self = Self { drops: [0; DropReason::COUNT], counters: [0; Counter::ALL.len()] };

    /// Packets from this port that ended with `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// Every reason with its count, zeros included.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().zip(self.drops)
    }

    /// One counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).copied().unwrap_or(0)
    }

    /// Every counter with its name, drops not included.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.into_iter().map(Counter::name).zip(self.counters)
    }

    fn drop_one(&mut self, reason: DropReason) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count = count.saturating_add(1);
        }
    }

    fn add(&mut self, counter: Counter, amount: u64) {
        if let Some(count) = self.counters.get_mut(counter as usize) {
            // At 100 Gb/s it takes 46 years to wrap.
            *count = count.wrapping_add(amount);
        }
    }

    fn absorb(&mut self, other: &Self) {
        let pairs = self.drops.iter_mut().zip(&other.drops);
        for (sum, part) in pairs.chain(self.counters.iter_mut().zip(&other.counters)) {
            *sum = sum.saturating_add(*part);
        }
    }
}

/// The counters of all ports.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub struct Stats {
    uplink: PortStats,
    clients: Box<[PortStats]>,
    departed: PortStats,
    dropped: u64,
    without_accept: u64,
}

impl Stats {
    pub(crate) fn new(clients: u16) -> Result<Self, OutOfMemory> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(usize::from(clients)).map_err(|_| OutOfMemory)?;
        slots.resize(usize::from(clients), PortStats::ZERO);
        Ok(Self {
            uplink: PortStats::ZERO,
            clients: slots.into_boxed_slice(),
            departed: PortStats::ZERO,
            dropped: 0,
            without_accept: 0,
        })
    }

    /// The uplink, since boot.
    #[must_use]
    pub fn uplink(&self) -> &PortStats {
        &self.uplink
    }

    /// The client in this slot, since it was attached.
    #[must_use]
    pub fn client(&self, id: ClientId) -> Option<&PortStats> {
        self.clients.get(usize::from(id.0))
    }

    /// The sum over all clients that are gone, and over frames from slots that never existed.
    #[must_use]
    pub fn departed(&self) -> &PortStats {
        &self.departed
    }

    /// The sum over all clients, present and gone.
    #[must_use]
    pub fn all_clients(&self) -> PortStats {
        let mut sum = self.departed.clone();
        self.clients.iter().for_each(|client| sum.absorb(client));
        sum
    }

    /// Packets of all ports that ended for whatever reason, since boot: whether anything did is asked for in every turn.
    #[must_use]
    pub fn all_drops(&self) -> u64 {
        self.dropped
    }

    /// Frames of all ports that were about to leave without an accept and ended there, since boot. Other than 0 it means
    /// a fault of the firewall.
    #[must_use]
    pub fn without_accept(&self) -> u64 {
        self.without_accept
    }

    /// Moves the counters of a slot to the departed ones.
    pub(crate) fn retire(&mut self, id: ClientId) {
        if let Some(slot) = self.clients.get_mut(usize::from(id.0)) {
            self.departed.absorb(slot);
            *slot = PortStats::ZERO;
        }
    }

    pub(crate) fn count_drop(&mut self, port: impl Into<PortId>, reason: DropReason) {
        if reason == DropReason::WithoutAccept {
            self.without_accept = self.without_accept.saturating_add(1);
        }
        self.dropped = self.dropped.saturating_add(1);
        self.port_mut(port.into()).drop_one(reason);
    }

    pub(crate) fn count(&mut self, port: PortId, counter: Counter, amount: u64) {
        self.port_mut(port).add(counter, amount);
    }

    /// Counts a frame that came in through `port`.
    #[inline]
    pub(crate) fn received(&mut self, port: PortId, bytes: u64) {
        let port = self.port_mut(port);
        port.add(Counter::ReceivedFrames, 1);
        port.add(Counter::ReceivedBytes, bytes);
    }

    /// Counts a frame that goes out through `port`.
    #[inline]
    pub(crate) fn sent(&mut self, port: PortId, bytes: u64) {
        let port = self.port_mut(port);
        port.add(Counter::SentFrames, 1);
        port.add(Counter::SentBytes, bytes);
    }

    #[inline]
    fn port_mut(&mut self, port: PortId) -> &mut PortStats {
        match port {
            PortId::Uplink => &mut self.uplink,
            PortId::Client(id) => {
                self.clients.get_mut(usize::from(id.0)).unwrap_or(&mut self.departed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Origin;

    #[test]
    fn a_departed_client_leaves_its_counts_to_the_sum() {
        let mut stats = Stats::new(2).unwrap();
        let (port, origin) = (PortId::Client(ClientId(1)), Origin::Client(ClientId(1)));
        stats.count(port, Counter::SentBytes, 7);
        stats.count_drop(origin, DropReason::NoRules);
        stats.retire(ClientId(1));
        assert_eq!(stats.client(ClientId(1)).unwrap(), &PortStats::ZERO);
        assert_eq!(stats.departed().get(Counter::SentBytes), 7);
        assert_eq!(stats.all_clients().dropped(DropReason::NoRules), 1);
        assert_eq!(stats.all_drops(), 1);
    }

    #[test]
    fn iterators_name_every_counter() {
        let mut stats = Stats::new(0).unwrap();
        stats.count(PortId::Uplink, Counter::OwnFrames, 3);
        stats.count_drop(Origin::Uplink, DropReason::NoFlow);
        assert!(stats.uplink().counters().any(|pair| pair == ("own-frames", 3)));
        assert!(stats.uplink().drops().any(|pair| pair == (DropReason::NoFlow, 1)));
        assert_eq!(stats.uplink().drops().map(|(_, n)| n).sum::<u64>(), 1);
    }
}
