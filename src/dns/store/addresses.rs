//! The addresses of names.

use core::net::IpAddr;

use super::{Chain, Entry, NONE, Name, SWEEP_INTERVAL, Store};
use crate::time::Instant;

impl Store {
    /// Adds an address or prolongs it. Over its bound a name loses the address that would go first.
    pub(super) fn add(
        &mut self,
        name: u32,
        owner: u32,
        address: IpAddr,
        now: Instant,
        expires_at: Instant,
        answer: u32,
    ) {
        let known = self.find_entry(address, |entry| entry.name == name && entry.owner == owner);
        if let Some(entry) = known.and_then(|slot| self.entries.get_mut(slot)) {
            let Some(name) = self.names.get_mut(name) else { return };
            // Its time may have been over without a sweep having noticed.
            name.has_changed |= !is_valid(now, entry, name);
            entry.expires_at = entry.expires_at.max(expires_at);
            entry.answer = answer;
            return;
        }
        if !self.make_room(name, owner) {
            return;
        }
        let first = self.chain_of(name, owner).map_or(NONE, |chain| chain.first);
        let entry = Entry { address, name, owner, answer, expires_at, next: first };
        let Some(slot) = self.entries.insert(entry) else { return };
        let hash = self.hash_address(address);
        self.by_address.insert(hash, slot);
        self.learned += usize::from(owner != NONE);
        if let Some(chain) = self.chain_of(name, owner) {
            *chain = Chain { first: slot, len: chain.len.saturating_add(1) };
        }
        if let Some(name) = self.names.get_mut(name) {
            name.has_changed = true;
        }
        self.sweep_at.get_or_insert(now.after(SWEEP_INTERVAL));
    }

    /// Addresses that a name may have, of our resolver or of a client.
    pub(super) fn most_of(&self, owner: u32) -> u16 {
        let most = self.limits.addresses_per_name;
        if owner == NONE { most } else { (most / 4).max(1) }
    }

    /// Makes room for one more address: a name over its bound loses its own, and where all is full the name that has
    /// most. So whoever makes names have many addresses leaves the others a fair share.
    fn make_room(&mut self, name: u32, owner: u32) -> bool {
        let Some(own) = self.chain_of(name, owner).copied() else { return false };
        let half = self.limits.addresses as usize / 2;
        let used = if owner == NONE { self.entries.len() - self.learned } else { self.learned };
        let chain = if own.len >= self.most_of(owner) {
            own
        } else if used >= half {
            self.longest_like(owner).unwrap_or(own)
        } else {
            return true;
        };
        let expiry = |slot: &u32| self.entries.get(*slot).map(|entry| entry.expires_at);
        let Some(oldest) = self.chain_slots(chain).min_by_key(expiry) else { return false };
        let loser = self.entries.get(oldest).map_or(NONE, |entry| entry.owner);
        self.remove_entry(oldest);
        self.mark_changed(loser);
        true
    }

    /// The longest chain of those that a new address of `owner` competes with.
    fn longest_like(&self, owner: u32) -> Option<Chain> {
        let of_names =
            (0..self.names.slots()).filter_map(|slot| Some(self.names.get(slot)?.addresses));
        let of_uses = (0..self.uses.slots()).filter_map(|slot| Some(self.uses.get(slot)?.learned));
        match owner {
            NONE => of_names.max_by_key(|chain| chain.len),
            _ => of_uses.max_by_key(|chain| chain.len),
        }
    }

    pub(super) fn remove_entry(&mut self, slot: u32) {
        let Some(entry) = self.entries.get(slot) else { return };
        let (name, owner, next, hash) =
            (entry.name, entry.owner, entry.next, self.hash_address(entry.address));
        let Some(chain) = self.chain_of(name, owner).copied() else { return };
        let before = self
            .chain_slots(chain)
            .find(|at| self.entries.get(*at).is_some_and(|one| one.next == slot));
        if let Some(before) = before.and_then(|before| self.entries.get_mut(before)) {
            before.next = next;
        }
        if let Some(chain) = self.chain_of(name, owner) {
            let first = if chain.first == slot { next } else { chain.first };
            *chain = Chain { first, len: chain.len.saturating_sub(1) };
        }
        self.by_address.remove(hash, slot);
        self.entries.remove(slot);
        self.learned -= usize::from(owner != NONE);
        if let Some(name) = self.names.get_mut(name).filter(|_| owner == NONE) {
            name.has_changed = true;
        }
    }

    pub(super) fn drop_chain(&mut self, chain: Chain) {
        let mut at = chain.first;
        while let Some(gone) = self.entries.remove(at) {
            let hash = self.hash_address(gone.address);
            self.by_address.remove(hash, at);
            self.learned -= usize::from(gone.owner != NONE);
            at = gone.next;
        }
    }

    pub(super) fn chain_of(&mut self, name: u32, owner: u32) -> Option<&mut Chain> {
        match owner {
            NONE => self.names.get_mut(name).map(|name| &mut name.addresses),
            owner => self.uses.get_mut(owner).map(|one| &mut one.learned),
        }
    }

    pub(super) fn chain(&self, chain: Chain) -> impl Iterator<Item = &Entry> {
        self.chain_slots(chain).filter_map(|slot| self.entries.get(slot))
    }

    pub(super) fn chain_slots(&self, chain: Chain) -> impl Iterator<Item = u32> {
        let first = self.entries.get(chain.first).map(|_| chain.first);
        core::iter::successors(first, |slot| {
            let next = self.entries.get(*slot)?.next;
            (next != NONE).then_some(next)
        })
    }

    pub(super) fn find_entry(
        &self,
        address: IpAddr,
        mut is_match: impl FnMut(&Entry) -> bool,
    ) -> Option<u32> {
        self.by_address.find(self.hash_address(address), |slot| {
            self.entries.get(slot).is_some_and(|entry| entry.address == address && is_match(entry))
        })
    }

    pub(super) fn hash_address(&self, address: IpAddr) -> u32 {
        self.key.hash(&words(address))
    }
}

/// Whether an address of a name counts.
pub(super) fn is_valid(now: Instant, entry: &Entry, name: &Name) -> bool {
    let is_latest = entry.owner == NONE && entry.answer == name.answer;
    now < entry.expires_at || (is_latest && name.known_until.is_some())
}

pub(super) fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, u64::from(u32::from(v4))],
        IpAddr::V6(v6) => [(u128::from(v6) >> 64) as u64, u128::from(v6) as u64],
    }
}
