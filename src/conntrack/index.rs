//! Hash index from a key to a slab slot: open addressing, linear probing, backward-shift deletion.
//!
//! The keys themselves stay in the slab, so the caller compares. Hashes are SipHash-1-3 under a key drawn at boot: a
//! peer that chooses addresses and ports cannot aim at one chain.

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

#[derive(Clone, Copy, Debug)]
struct Cell {
    hash: u32,
    slot: u32,
}

/// The index. At most half full, so a probe ends soon.
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
        let mut at = self.home(hash);
        for _ in 0..self.cells.len() {
            let cell = self.cell(at);
            if cell.slot == EMPTY {
                return None;
            }
            if cell.hash == hash && is_match(cell.slot) {
                return Some(cell.slot);
            }
            at = self.next(at);
        }
        None
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

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.cells.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.cells.len() - 1)
    }

    fn cell(&self, at: usize) -> Cell {
        self.cells.get(at).copied().unwrap_or(Cell { hash: 0, slot: EMPTY })
    }

    fn set(&mut self, at: usize, cell: Cell) {
        if let Some(place) = self.cells.get_mut(at) {
            *place = cell;
        }
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

    #[test]
    fn different_keys_give_different_hashes() {
        let words = [1, 2, 3];
        assert_ne!(HashKey(1, 2).hash(&words), HashKey(1, 3).hash(&words));
    }
}
