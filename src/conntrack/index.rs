//! Hash index from a key to a slab slot: open addressing, linear probing, backward-shift deletion.
//!
//! The keys themselves stay in the slab, so the caller compares. Hashes are secret: a peer that chooses addresses and ports
//! cannot aim at one chain. They are SipHash-1-3 under a key drawn at boot; for flows, which are looked up for every packet,
//! [`FlowKey`] has a cheaper one.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::limits::OutOfMemory;

const EMPTY: u32 = u32::MAX;

/// The secret of the hash tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashKey(pub(crate) u64, pub(crate) u64);

impl HashKey {
    /// Hashes a key given as words.
    pub(crate) fn hash(self, words: &[u64]) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        for word in words {
            hasher.write_u64(*word);
        }
        hasher.finish() as u32
    }

    /// Hashes a text and a small number that goes with it.
    pub(crate) fn hash_text(self, text: &[u8], number: u8) -> u32 {
        let mut hasher = SipHasher13::new_with_keys(self.0, self.1);
        hasher.write(text);
        hasher.write_u8(number);
        hasher.finish() as u32
    }
}

/// The secret of the flow table.
///
/// Each step multiplies two words, secret words added to both, and folds the 128 bits of the product (as wyhash and its kin
/// do). That costs a tenth of SipHash and is no such cipher: what keeps chains short is that nobody outside sees a hash or
/// knows one of six secret words. A client that found out by timing could make one chain as long as its quota of flows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowKey([u64; 6]);

impl FlowKey {
    /// Secret words from a key that other tables have, too.
    pub(crate) fn derived(key: HashKey) -> Self {
        Self(core::array::from_fn(|number| {
            let mut hasher = SipHasher13::new_with_keys(key.0, key.1);
            hasher.write(b"flows");
            hasher.write_usize(number);
            hasher.finish()
        }))
    }

    /// Hashes the two addresses of an IPv4 flow and its ports.
    #[inline(always)]
    pub(crate) fn hash_v4(self, addresses: u64, ports: u64) -> u32 {
        let [a, b, .., last] = self.0;
        fold(fold(addresses ^ a, ports ^ b), last) as u32
    }

    /// Hashes the halves of both addresses of an IPv6 flow and its ports.
    #[inline(always)]
    pub(crate) fn hash_v6(self, local: [u64; 2], remote: [u64; 2], ports: u64) -> u32 {
        let ([a, b, c, d, e, last], [l0, l1], [r0, r1]) = (self.0, local, remote);
        let addresses = fold(l0 ^ a, l1 ^ b) ^ fold(r0 ^ c, r1 ^ d);
        fold(fold(addresses, ports ^ e), last) as u32
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    hash: u32,
    slot: u32,
}

/// The index. At most half full, so a probe ends soon.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Index {
    cells: Box<[Cell]>,
}

impl Index {
    /// Bytes per entry when rounding up to a power of two costs most: nearly four cells.
    #[cfg(test)]
    pub(crate) const MAX_ENTRY_BYTES: usize = 4 * size_of::<Cell>();

    /// Room for `entries` entries.
    pub(crate) fn with_capacity(entries: u32) -> Result<Self, OutOfMemory> {
        let wanted = (entries as usize).max(4).checked_mul(2).ok_or(OutOfMemory)?;
        let size = wanted.checked_next_power_of_two().ok_or(OutOfMemory)?;
        let mut cells = Vec::new();
        cells.try_reserve_exact(size).map_err(|_| OutOfMemory)?;
        cells.resize(size, Cell { hash: 0, slot: EMPTY });
        Ok(Self { cells: cells.into_boxed_slice() })
    }

    /// The slot with this hash that `is_match` confirms.
    pub(crate) fn find(&self, hash: u32, mut is_match: impl FnMut(u32) -> bool) -> Option<u32> {
        self.candidates(hash).find(|slot| is_match(*slot))
    }

    /// The first slot with this hash, which is nearly always the only one.
    #[inline(always)]
    pub(crate) fn first(&self, hash: u32) -> Option<u32> {
        let mask = self.cells.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        loop {
            // There is always an empty cell.
            let cell = self.cells.get(at)?;
            if cell.slot == EMPTY {
                return None;
            }
            if cell.hash == hash {
                return Some(cell.slot);
            }
            at = at.wrapping_add(1) & mask;
        }
    }

    /// The slots with this hash. Mostly one or none.
    pub(crate) fn candidates(&self, hash: u32) -> Candidates<'_> {
        Candidates { index: self, hash, at: self.home(hash), left: self.cells.len() }
    }

    /// Adds a slot. The owner's slab bounds the number of entries, so that a free cell always exists.
    pub(crate) fn insert(&mut self, hash: u32, slot: u32) {
        let mut at = self.home(hash);
        for _ in 0..self.cells.len() {
            if self.cell(at).slot == EMPTY {
                self.set(at, Cell { hash, slot });
                return;
            }
            at = self.next(at);
        }
        unreachable!("the index has twice as many cells as the slab has slots");
    }

    /// Removes a slot that was inserted with this hash; later cells of the same chain move up.
    pub(crate) fn remove(&mut self, hash: u32, slot: u32) {
        let mut hole = self.home(hash);
        for _ in 0..self.cells.len() {
            let cell = self.cell(hole);
            if cell.slot == EMPTY {
                return;
            }
            if cell.slot == slot && cell.hash == hash {
                break;
            }
            hole = self.next(hole);
        }
        let mut at = self.next(hole);
        for _ in 0..self.cells.len() {
            let cell = self.cell(at);
            if cell.slot == EMPTY {
                break;
            }
            // The cell may move into the hole unless its home lies behind the hole on the way to it.
            if self.distance(self.home(cell.hash), at) >= self.distance(hole, at) {
                self.set(hole, cell);
                hole = at;
            }
            at = self.next(at);
        }
        self.set(hole, Cell { hash: 0, slot: EMPTY });
    }

    #[inline(always)]
    fn home(&self, hash: u32) -> usize {
        hash as usize & self.cells.len().wrapping_sub(1)
    }

    #[inline(always)]
    fn next(&self, at: usize) -> usize {
        at.wrapping_add(1) & self.cells.len().wrapping_sub(1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.cells.len() - 1)
    }

    #[inline(always)]
    fn cell(&self, at: usize) -> Cell {
        self.cells.get(at).copied().unwrap_or(Cell { hash: 0, slot: EMPTY })
    }

    fn set(&mut self, at: usize, cell: Cell) {
        if let Some(place) = self.cells.get_mut(at) {
            *place = cell;
        }
    }
}

/// Slots of one hash, along its chain.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    index: &'a Index,
    hash: u32,
    at: usize,
    left: usize,
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.left > 0 {
            let cell = self.index.cell(self.at);
            if cell.slot == EMPTY {
                return None;
            }
            self.at = self.index.next(self.at);
            self.left = self.left.wrapping_sub(1);
            if cell.hash == self.hash {
                return Some(cell.slot);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain list, with so few hash values that chains collide and wrap around.
        #[test]
        fn behaves_like_a_list(steps in proptest::collection::vec((0u32..8, 0u32..16, any::<bool>()), 1..200)) {
            let mut index = Index::with_capacity(16).unwrap();
            let mut model: Vec<(u32, u32)> = Vec::new();
            for (hash, slot, is_insert) in steps {
                let hash = hash.wrapping_mul(0x1000_0007).wrapping_sub(3);
                if is_insert && !model.iter().any(|entry| entry.1 == slot) {
                    index.insert(hash, slot);
                    model.push((hash, slot));
                } else if !is_insert {
                    index.remove(hash, slot);
                    model.retain(|entry| *entry != (hash, slot));
                }
                for (hash, slot) in &model {
                    prop_assert_eq!(index.find(*hash, |found| found == *slot), Some(*slot));
                }
                let used = index.cells.iter().filter(|cell| cell.slot != EMPTY).count();
                prop_assert_eq!(used, model.len());
            }
        }
    }

    /// Neighbours in every field: what a client that counts up its ports or addresses makes.
    #[test]
    fn hashes_of_flows_spread() {
        let key = FlowKey::derived(HashKey(1, 2));
        let spread = |hash: &dyn Fn(u64) -> u32| {
            let mut used = [0u8; 4096];
            (0..4096).for_each(|n| used[hash(n) as usize % 4096] += 1);
            (used.iter().filter(|count| **count > 0).count(), used.into_iter().max())
        };
        let base = 0x0a89_000a_c633_6407_u64;
        for shift in [0, 8, 16, 20, 32, 48] {
            let by_port = spread(&|n| key.hash_v4(base, 6 ^ n << shift));
            let by_address = spread(&|n| key.hash_v4(base ^ n << shift, 0x9c40_01bb_0006));
            let by_port6 = spread(&|n| key.hash_v6([base, 1], [base, 2], 6 ^ n << shift));
            let by_far = spread(&|n| key.hash_v6([base, 1], [base, n << shift], 6));
            let by_near = spread(&|n| key.hash_v6([base ^ n << shift, 1], [base, 1], 6));
            for (cells, longest) in [by_port, by_address, by_port6, by_far, by_near] {
                // Chance fills 63 of 100 cells, and no cell with more than eight.
                assert!((2450..2750).contains(&cells), "{cells} cells, shift {shift}");
                assert!(longest <= Some(10), "{longest:?}, shift {shift}");
            }
        }
    }

    #[test]
    fn different_keys_give_different_hashes() {
        let hash = |key| FlowKey::derived(key).hash_v4(1, 2);
        assert_ne!(hash(HashKey(1, 2)), hash(HashKey(1, 3)));
        let words = [1, 2, 3];
        assert_ne!(HashKey(1, 2).hash(&words), HashKey(1, 3).hash(&words));
    }
}
