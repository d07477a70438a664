//! Names and the clients that use them.

use core::net::IpAddr;

use rules::{Family, HostName};

use super::addresses::words;
use super::{Chain, Name, Store, Trouble, Use};
use crate::time::Instant;

/// Whether a client's rules named it for the first time in this edit.
pub(super) enum IsNew {
    Yes,
    No,
}

impl Store {
    pub(super) fn use_name(
        &mut self,
        now: Instant,
        client: IpAddr,
        name: &HostName,
        used: u32,
    ) -> Option<IsNew> {
        let family = Family::of(client);
        let known = self.find_name(name.as_str(), family);
        if let Some(slot) = known.and_then(|slot| self.find_use(client, slot)) {
            let edit = self.edit;
            let one = self.uses.get_mut(slot)?;
            let is_new = if one.edit == edit { IsNew::No } else { IsNew::Yes };
            one.edit = edit;
            // dom0's copy of the addresses goes with each edit.
            self.mark_changed(slot);
            return Some(is_new);
        }
        if used >= self.limits.names_per_client || self.uses.is_full() {
            return None;
        }
        let slot = match known {
            Some(slot) => slot,
            None => self.add_name(now, name, family)?,
        };
        self.names.get_mut(slot)?.uses += 1;
        let hash = self.hash_use(client, slot);
        let one =
            Use { client, name: slot, learned: Chain::EMPTY, edit: self.edit, is_changed: false };
        let new = self.uses.insert(one)?;
        self.by_use.insert(hash, new);
        self.mark_changed(new);
        Some(IsNew::Yes)
    }

    pub(super) fn add_name(
        &mut self,
        now: Instant,
        name: &HostName,
        family: Family,
    ) -> Option<u32> {
        let hash = self.hash_name(name.as_str(), family);
        self.serial = self.serial.wrapping_add(1);
        let new = Name {
            host_name: name.clone(),
            family,
            serial: self.serial,
            uses: 0,
            answer: 0,
            known_until: None,
            addresses: Chain::EMPTY,
            has_changed: false,
            ask_at: Some(now),
            failures: 0,
            trouble: Trouble::None,
        };
        self.ask_at = Some(self.ask_at.map_or(now, |at| at.min(now)));
        let slot = self.names.insert(new)?;
        self.by_name.insert(hash, slot);
        Some(slot)
    }

    pub(super) fn end_use(&mut self, slot: u32) {
        let Some(one) = self.uses.get(slot) else { return };
        let (hash, name, learned) = (self.hash_use(one.client, one.name), one.name, one.learned);
        if one.is_changed {
            self.changed_uses = self.changed_uses.saturating_sub(1);
        }
        self.drop_chain(learned);
        self.by_use.remove(hash, slot);
        self.uses.remove(slot);
        let Some(known) = self.names.get_mut(name) else { return };
        known.uses = known.uses.saturating_sub(1);
        if known.uses > 0 {
            return;
        }
        let addresses = known.addresses;
        self.drop_chain(addresses);
        let Some(gone) = self.names.remove(name) else { return };
        self.count_untold(gone.trouble, Trouble::None);
        let hash = self.hash_name(gone.host_name.as_str(), gone.family);
        self.by_name.remove(hash, name);
    }

    pub(super) fn mark_changed(&mut self, slot: u32) {
        if let Some(one) = self.uses.get_mut(slot)
            && !one.is_changed
        {
            one.is_changed = true;
            self.changed_uses = self.changed_uses.saturating_add(1);
        }
    }

    /// Marks every use of a name whose addresses have changed.
    pub(super) fn tell_uses(&mut self, name: u32) {
        let has_changed =
            self.names.get_mut(name).is_some_and(|name| core::mem::take(&mut name.has_changed));
        if !has_changed {
            return;
        }
        for slot in 0..self.uses.slots() {
            if self.uses.get(slot).is_some_and(|one| one.name == name) {
                self.mark_changed(slot);
            }
        }
    }

    /// The same for all names.
    pub(super) fn tell_all_uses(&mut self) {
        for slot in 0..self.uses.slots() {
            let name = self.uses.get(slot).and_then(|one| self.names.get(one.name));
            if name.is_some_and(|name| name.has_changed) {
                self.mark_changed(slot);
            }
        }
        self.names.for_each_mut(|name| name.has_changed = false);
    }

    pub(super) fn find_name(&self, name: &str, family: Family) -> Option<u32> {
        self.by_name.find(self.hash_name(name, family), |slot| {
            self.names
                .get(slot)
                .is_some_and(|known| known.family == family && known.host_name.as_str() == name)
        })
    }

    /// A name that a client uses, its use, and what is known about it.
    pub(super) fn find_used(
        &self,
        client: IpAddr,
        name: &str,
        family: Family,
    ) -> Option<(u32, u32, &Name)> {
        let slot = self.find_name(name, family)?;
        Some((slot, self.find_use(client, slot)?, self.names.get(slot)?))
    }

    pub(super) fn find_use(&self, client: IpAddr, name: u32) -> Option<u32> {
        self.by_use.find(self.hash_use(client, name), |slot| {
            self.uses.get(slot).is_some_and(|one| one.client == client && one.name == name)
        })
    }

    pub(super) fn hash_name(&self, name: &str, family: Family) -> u32 {
        self.key.hash_text(name.as_bytes(), u8::from(family == Family::V6))
    }

    pub(super) fn hash_use(&self, client: IpAddr, name: u32) -> u32 {
        let [high, low] = words(client);
        self.key.hash(&[high, low, u64::from(name)])
    }
}
