//! Which addresses have changed, for those who are to be told.

use core::net::IpAddr;

use rules::{Family, HostName};

use super::addresses::is_valid;
use super::{Entry, Store};
use crate::time::Instant;

impl Store {
    /// Whether [`Store::take_change`] has something.
    pub(crate) fn has_changes(&self) -> bool {
        self.changed_uses > 0
    }

    /// A client and a name of it whose addresses have changed; each client gets its turn.
    pub(crate) fn take_change(&mut self) -> Option<(IpAddr, HostName)> {
        let slots = self.uses.slots();
        for step in 0..slots {
            let slot = self.cursor.wrapping_add(step).checked_rem(slots)?;
            let Some(one) = self.uses.get_mut(slot).filter(|one| one.is_changed) else { continue };
            one.is_changed = false;
            self.changed_uses = self.changed_uses.saturating_sub(1);
            self.cursor = slot.wrapping_add(1);
            let (client, name) = (one.client, one.name);
            return Some((client, self.names.get(name)?.host_name.clone()));
        }
        self.changed_uses = 0;
        None
    }

    /// The addresses of a client's name.
    pub(crate) fn addresses_of(
        &self,
        now: Instant,
        client: IpAddr,
        name: &str,
    ) -> impl Iterator<Item = IpAddr> + '_ {
        let slot = self.find_name(name, Family::of(client));
        let owner = slot.and_then(|slot| self.find_use(client, slot));
        let known = slot.and_then(|slot| self.names.get(slot)).filter(|_| owner.is_some());
        let learned = owner.and_then(|owner| self.uses.get(owner)).map(|one| one.learned);
        let chains = [known.map(|name| name.addresses), learned].into_iter().flatten();
        let valid = move |entry: &&Entry| known.is_some_and(|name| is_valid(now, entry, name));
        chains.flat_map(|chain| self.chain(chain)).filter(valid).map(|entry| entry.address)
    }

    /// Number of names and of addresses.
    #[cfg(test)]
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.names.len(), self.entries.len())
    }
}
