//! Ports of our own address, leased to mappings: one pool per protocol.
//!
//! A port is preserved where it is free and else drawn at random (RFC 6056, algorithm 1: a random start and the next
//! free one), within its class (RFC 4787 REQ-3: 0-1023, 1024-65535) as long as that has a free one.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::Hasher;
use core::ops::RangeInclusive;

use siphasher::sip::SipHasher24;

use crate::limits::OutOfMemory;

const WORDS: usize = 65_536 / 64;

/// A keyed counter: numbers that nobody outside can predict.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    prf: SipHasher24,
    counter: u64,
}

impl Random {
    pub(crate) fn new(k0: u64, k1: u64) -> Self {
        Self { prf: SipHasher24::new_with_keys(k0, k1), counter: 0 }
    }

    /// Goes on from a state that depends on the old one and on `seed`: a bad seed takes nothing away.
    pub(crate) fn mix(&mut self, seed: &[u8]) {
        let [k0, k1] = [0u8, 1].map(|half| {
            let mut hasher = self.prf;
            hasher.write(seed);
            hasher.write(&self.counter.to_le_bytes());
            hasher.write(&[half]);
            hasher.finish()
        });
        self.prf = SipHasher24::new_with_keys(k0, k1);
    }

    /// A generator of its own, for another user.
    pub(crate) fn fork(&mut self) -> Self {
        Self::new(self.next(), self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        self.prf.hash(&self.counter.to_le_bytes())
    }

    fn below(&mut self, bound: u32) -> u32 {
        let random = self.next();
        // The bias of a 64-bit number against at most 2^16 values is below 2^-47.
        u32::try_from(random % u64::from(bound.max(1))).unwrap_or(0)
    }
}

/// The right to use a port. Goes back through [`PortPool::give_back`]; not `Clone`, so never twice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lease(u16);

impl Lease {
    pub(crate) fn port(&self) -> u16 {
        self.0
    }
}

/// The ports of one protocol.
#[derive(Debug)]
pub(crate) struct PortPool {
    /// Leased or reserved.
    taken: Box<[u64]>,
    /// Reserved ports: few, they come from a list that is bounded where it is read.
    reserved: Vec<u16>,
}

impl PortPool {
    /// All free but port 0, which is never leased.
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let mut taken = Vec::new();
        taken.try_reserve_exact(WORDS).map_err(|_| OutOfMemory)?;
        taken.resize(WORDS, 0);
        Ok(Self { taken: taken.into_boxed_slice(), reserved: Vec::new() })
    }

    /// Keeps a port from being leased; false if it is.
    pub(crate) fn reserve(&mut self, port: u16) -> bool {
        if self.reserved.contains(&port) {
            return true;
        }
        let is_free = self.take(port);
        if is_free {
            self.reserved.push(port);
        }
        is_free
    }

    /// Frees every reserved port.
    pub(crate) fn unreserve_all(&mut self) {
        while let Some(port) = self.reserved.pop() {
            self.free(port);
        }
    }

    /// Leases `wanted`, or a random port of its class, or of the other class; `None` if all are taken.
    pub(crate) fn lease(&mut self, random: &mut Random, wanted: u16) -> Option<Lease> {
        if wanted != 0 && self.take(wanted) {
            return Some(Lease(wanted));
        }
        let (own, other) =
            if wanted < 1024 { (1..=1023, 1024..=65535) } else { (1024..=65535, 1..=1023) };
        let port = self.random_free(random, own).or_else(|| self.random_free(random, other))?;
        self.take(port).then_some(Lease(port))
    }

    /// Leases a random port above the well-known ones.
    pub(crate) fn lease_random(&mut self, random: &mut Random) -> Option<Lease> {
        let port = self.random_free(random, 1024..=65535)?;
        self.take(port).then_some(Lease(port))
    }

    /// Returns a port.
    pub(crate) fn give_back(&mut self, lease: Lease) {
        self.free(lease.0);
    }

    /// Ports that are reserved.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved.len()
    }

    /// Ports that are taken. Looks at all of them: 8 KiB.
    pub(crate) fn leased(&self) -> u32 {
        self.taken.iter().map(|word| word.count_ones()).sum()
    }

    /// Takes one port; false if it is taken already.
    pub(super) fn take(&mut self, port: u16) -> bool {
        let Some(word) = self.taken.get_mut(usize::from(port) / 64) else { return false };
        let bit = 1u64 << (port % 64);
        let was_free = *word & bit == 0;
        *word |= bit;
        was_free
    }

    /// Frees a port that [`PortPool::take`] took.
    pub(super) fn free(&mut self, port: u16) {
        if let Some(word) = self.taken.get_mut(usize::from(port) / 64) {
            *word &= !(1 << (port % 64));
        }
    }

    fn random_free(&self, random: &mut Random, range: RangeInclusive<u16>) -> Option<u16> {
        let (first, last) = (*range.start(), *range.end());
        let span = u32::from(last - first) + 1;
        let start = first.checked_add(u16::try_from(random.below(span)).ok()?)?;
        self.next_free(start, last).or_else(|| self.next_free(first, start))
    }

    /// The first free port from `from` to `to`, a word at a time.
    fn next_free(&self, from: u16, to: u16) -> Option<u16> {
        let (first_word, last_word) = (usize::from(from) / 64, usize::from(to) / 64);
        let words = self.taken.iter().enumerate().take(last_word + 1).skip(first_word);
        for (index, word) in words {
            let mask = if index == first_word { u64::MAX << (from % 64) } else { u64::MAX };
            let free = !word & mask;
            if free != 0 {
                let port = u16::try_from(index * 64 + free.trailing_zeros() as usize).ok()?;
                return (port <= to).then_some(port);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn random() -> Random {
        Random::new(7, 7)
    }

    #[test]
    fn a_free_port_is_preserved_and_a_taken_one_is_not() {
        let (mut pool, mut random) = (PortPool::new().unwrap(), random());
        assert_eq!(pool.lease(&mut random, 5000).unwrap().port(), 5000);
        let other = pool.lease(&mut random, 5000).unwrap().port();
        assert!(other != 5000 && other >= 1024);
    }

    #[test]
    fn the_class_of_the_port_is_kept_while_it_lasts() {
        let (mut pool, mut random) = (PortPool::new().unwrap(), random());
        for _ in 0..1023 {
            assert!(pool.lease(&mut random, 68).unwrap().port() < 1024);
        }
        assert!(pool.lease(&mut random, 68).unwrap().port() >= 1024);
    }

    #[test]
    fn every_port_but_zero_is_leased_before_none_is_left() {
        let (mut pool, mut random) = (PortPool::new().unwrap(), random());
        let leases: Vec<_> = core::iter::from_fn(|| pool.lease(&mut random, 0)).collect();
        assert_eq!(leases.len(), 65_535);
        assert!(leases.iter().all(|lease| lease.port() != 0));
        leases.into_iter().for_each(|lease| pool.give_back(lease));
        assert_eq!(pool.leased(), 0);
    }

    #[test]
    fn a_reserved_port_is_never_leased() {
        let (mut pool, mut random) = (PortPool::new().unwrap(), random());
        let held = pool.lease(&mut random, 80).unwrap();
        assert!(!pool.reserve(80));
        pool.give_back(held);
        assert!(pool.reserve(80) && pool.reserve(80) && pool.reserve(8080));
        let leases: Vec<_> = core::iter::from_fn(|| pool.lease(&mut random, 80)).collect();
        assert_eq!(leases.len(), 65_533);
        assert!(leases.iter().all(|lease| ![80, 8080].contains(&lease.port())));
        pool.unreserve_all();
        assert_eq!(pool.lease(&mut random, 80).unwrap().port(), 80);
    }

    /// P1: ports that are not preserved are spread evenly. Chi-square over 64 buckets and 20 000 draws; 63 degrees of
    /// freedom exceed 120 with a probability below 1e-5, and the key is fixed.
    #[test]
    fn p1_random_ports_are_uniform() {
        let mut random = random();
        let mut buckets = [0f64; 64];
        for _ in 0..20_000 {
            let mut pool = PortPool::new().unwrap();
            assert!(pool.take(40_000));
            let port = pool.lease(&mut random, 40_000).unwrap().port();
            buckets[usize::from(port - 1024) * 64 / 64_512] += 1.0;
        }
        let expected = 20_000.0 / 64.0;
        let chi: f64 = buckets.iter().map(|n| (n - expected).powi(2) / expected).sum();
        assert!(chi < 120.0, "chi-square {chi}");
    }

    proptest! {
        #[test]
        fn ports_are_never_leased_twice(steps in proptest::collection::vec((any::<u16>(), any::<bool>()), 1..300)) {
            let (mut pool, mut random) = (PortPool::new().unwrap(), random());
            let mut held: Vec<Lease> = Vec::new();
            for (wanted, gives_back) in steps {
                if gives_back && !held.is_empty() {
                    let lease = held.swap_remove(usize::from(wanted) % held.len());
                    pool.give_back(lease);
                } else {
                    // Few values, so that they collide.
                    let lease = pool.lease(&mut random, wanted % 8 + 1020).unwrap();
                    prop_assert!(!held.contains(&lease));
                    held.push(lease);
                }
                prop_assert_eq!(pool.leased() as usize, held.len());
            }
        }
    }
}
