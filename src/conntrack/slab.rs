//! A fixed number of slots with stable small indices; all memory is taken at the start.

use alloc::vec::Vec;

use crate::limits::OutOfMemory;

const NONE: u32 = u32::MAX;

#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
enum Slot<T> {
    Used(T),
    Free { next: u32 },
}

/// Values in numbered slots. Never grows beyond its capacity.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    capacity: usize,
    free: u32,
    used: usize,
}

impl<T> Slab<T> {
    /// Bytes of one slot.
    pub(crate) const SLOT_BYTES: usize = size_of::<Slot<T>>();

    /// Room for `capacity` values.
    pub(crate) fn with_capacity(capacity: u32) -> Result<Self, OutOfMemory> {
        let capacity = usize::try_from(capacity).map_err(|_| OutOfMemory)?;
        let mut slots = Vec::new();
        slots.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        Ok(Self { slots, capacity, free: NONE, used: 0 })
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Whether there is no room for another value.
    pub(crate) fn is_full(&self) -> bool {
        self.used >= self.capacity
    }

    /// Stores a value; `None` if there is no room.
    pub(crate) fn insert(&mut self, value: T) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let index = if self.free == NONE {
            let index = u32::try_from(self.slots.len()).ok()?;
            // Below the capacity that was reserved: this push does not allocate.
            self.slots.push(Slot::Used(value));
            index
        } else {
            let index = self.free;
            let slot = self.slots.get_mut(index as usize)?;
            let Slot::Free { next } = *slot else { return None };
            self.free = next;
            *slot = Slot::Used(value);
            index
        };
        self.used += 1;
        Some(index)
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        match self.slots.get(index as usize) {
            Some(Slot::Used(value)) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        match self.slots.get_mut(index as usize) {
            Some(Slot::Used(value)) => Some(value),
            _ => None,
        }
    }

    /// Takes a value out; its slot is free again.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        if matches!(slot, Slot::Free { .. }) {
            return None;
        }
        let Slot::Used(value) = core::mem::replace(slot, Slot::Free { next: self.free }) else {
            return None;
        };
        self.free = index;
        self.used -= 1;
        Some(value)
    }

    /// Slots ever used: every value's slot is below.
    pub(crate) fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(NONE)
    }

    /// Changes every value.
    pub(crate) fn for_each_mut(&mut self, mut change: impl FnMut(&mut T)) {
        for slot in &mut self.slots {
            if let Slot::Used(value) = slot {
                change(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_is_reused_and_nothing_grows() {
        let mut slab = Slab::with_capacity(2).unwrap();
        let a = slab.insert('a').unwrap();
        let b = slab.insert('b').unwrap();
        assert_eq!(slab.insert('c'), None);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.insert('d'), Some(a));
        assert_eq!((slab.get(a), slab.get(b), slab.get(9)), (Some(&'d'), Some(&'b'), None));
        let mut values = Vec::new();
        slab.for_each_mut(|value| values.push(*value));
        assert_eq!((values, slab.slots()), (vec!['d', 'b'], 2));
        assert_eq!(slab.len(), 2);
    }
}
