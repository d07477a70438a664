//! What is known about the names in rules: which client uses which name, and the addresses that a name has.
//!
//! A *name* (text and family) exists once, however many clients use it: what our resolver learns about it serves all of
//! them. That leaks nothing: a client cannot tell whether a name was known before its own rules named it, and all are
//! given the same answer by the same servers. A *use* ties a name to a client; addresses that a client's own DNS
//! answers contained belong to its use and to nobody else's.
//!
//! An answer adds addresses, and only time takes them away: each counts until the TTL that it came with is over, so that
//! a server that rotates through its addresses does not cut off what it said a moment ago. Those of the latest answer
//! count for [`STALE`] longer while no newer answer comes. After that the name is unresolved again.
//!
//! All memory is taken in [`Store::new`], save for the text of the names, which the rules hold anyway; looking up and
//! adding addresses does not allocate.

use core::net::IpAddr;
use core::time::Duration;

use rules::{Family, HostName, NameMatch};

use super::message::Addresses;
use super::resolver::Problem;
use crate::conntrack::index::{HashKey, Index};
use crate::conntrack::slab::Slab;
use crate::limits::OutOfMemory;
use crate::time::Instant;

/// Least life of an answer: programs use an address for some time after they asked, whatever its TTL, and a TTL of zero
/// must not make us ask for ever.
pub const MIN_LIFE: Duration = Duration::from_secs(60);
/// Longest life of an address.
pub const MAX_LIFE: Duration = Duration::from_secs(86_400);
/// Longest life of "no such name" and "no address" (RFC 2308, section 5 proposes one to three hours).
pub const MAX_NEGATIVE_LIFE: Duration = Duration::from_secs(3600);
/// How much longer the latest answer counts while nothing newer is to be had (RFC 8767 allows days; ours are rules).
pub const STALE: Duration = Duration::from_secs(3600);
/// Time between two searches for addresses whose time is over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

mod addresses;
mod changes;
mod schedule;
mod uses;

use addresses::is_valid;
use uses::IsNew;

const NONE: u32 = u32::MAX;
/// Names that there can be at most: flows have two bytes for one.
pub const MAX_NAMES: u32 = 0xffff;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Names of all clients, each family on its own.
    pub names: u32,
    /// Pairs of a client and a name.
    pub uses: u32,
    /// Names of one client and family.
    pub names_per_client: u32,
    /// Addresses of all names; half of them are for what our resolver learns, half for what clients do.
    pub addresses: u32,
    /// Addresses of one name that our resolver learned; a quarter of that for each client that learned some itself.
    pub addresses_per_name: u16,
}

impl Limits {
    /// Bytes that a name costs with its share of uses and addresses, hash cells included.
    pub const NAME_BYTES: usize = 768;

    /// For so many client addresses: a name for each and 256 more, [`MAX_NAMES`] at most.
    #[must_use]
    pub fn for_clients(clients: u16) -> Self {
        let names = (256 + u32::from(clients)).min(MAX_NAMES);
        Self {
            names,
            uses: 2 * names,
            names_per_client: names / 2,
            addresses: 4 * names,
            addresses_per_name: 64,
        }
    }
}

/// What became known about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    /// It has these addresses.
    Addresses(&'a Addresses, Duration),
    /// It does not exist, or not with this family.
    Nothing(Duration),
}

/// Slot of a name, and the number that tells it from one that had the slot before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameId {
    pub(super) slot: u32,
    pub(super) serial: u32,
}

/// A name.
#[derive(Debug)]
pub(crate) struct Name {
    pub(crate) host_name: HostName,
    pub(crate) family: Family,
    serial: u32,
    uses: u32,
    /// Number of the latest answer.
    answer: u32,
    /// Set while the latest answer counts: until about then, when a sweep takes it away.
    known_until: Option<Instant>,
    addresses: Chain,
    /// An address came or went since the uses were told.
    has_changed: bool,
    /// For the resolver: when to ask next, `None` while it asks.
    pub(crate) ask_at: Option<Instant>,
    /// For the resolver: failures since the last answer.
    pub(crate) failures: u8,
    trouble: Trouble,
}

/// Whether somebody has to be told that the name is not resolved; once, until it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Untold(Problem),
    Told,
}

/// A client's use of a name.
#[derive(Debug)]
struct Use {
    client: IpAddr,
    name: u32,
    learned: Chain,
    /// The rule set that it was seen in last.
    edit: u32,
    is_changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Chain {
    first: u32,
    len: u16,
}

impl Chain {
    const EMPTY: Self = Self { first: NONE, len: 0 };
}

/// One address of one name.
#[derive(Debug)]
struct Entry {
    address: IpAddr,
    name: u32,
    /// The use that it belongs to, or [`NONE`]: all of them.
    owner: u32,
    answer: u32,
    expires_at: Instant,
    next: u32,
}

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    limits: Limits,
    key: HashKey,
    names: Slab<Name>,
    by_name: Index,
    uses: Slab<Use>,
    by_use: Index,
    entries: Slab<Entry>,
    by_address: Index,
    serial: u32,
    edit: u32,
    /// Moves whenever a name becomes known or ceases to be, or a client gets other names.
    stamp: u64,
    /// No name is due before.
    ask_at: Option<Instant>,
    untold: u32,
    /// Addresses that belong to a use.
    learned: usize,
    sweep_at: Option<Instant>,
    changed_uses: u32,
    /// Where the search for a changed use goes on.
    cursor: u32,
}

impl Store {
    /// What one name costs in bytes with two uses and four addresses.
    #[cfg(test)]
    pub(crate) const COST: usize = Slab::<Name>::SLOT_BYTES
        + 2 * Slab::<Use>::SLOT_BYTES
        + 4 * Slab::<Entry>::SLOT_BYTES
        + 7 * Index::MAX_ENTRY_BYTES;

    pub(crate) fn new(limits: Limits, key: HashKey) -> Result<Self, OutOfMemory> {
        Ok(Self {
            limits,
            key,
            names: Slab::with_capacity(limits.names)?,
            by_name: Index::with_capacity(limits.names)?,
            uses: Slab::with_capacity(limits.uses)?,
            by_use: Index::with_capacity(limits.uses)?,
            entries: Slab::with_capacity(limits.addresses)?,
            by_address: Index::with_capacity(limits.addresses)?,
            serial: 0,
            edit: 0,
            stamp: 0,
            ask_at: None,
            untold: 0,
            learned: 0,
            sweep_at: None,
            changed_uses: 0,
            cursor: 0,
        })
    }

    /// Replaces the names that a client uses. Returns how many there was no room for: those stay unresolved.
    pub(crate) fn set_names<'a>(
        &mut self,
        now: Instant,
        client: IpAddr,
        names: impl Iterator<Item = &'a HostName>,
    ) -> usize {
        self.edit = self.edit.wrapping_add(1);
        self.stamp = self.stamp.wrapping_add(1);
        let (mut used, mut left_out) = (0, 0);
        for name in names {
            match self.use_name(now, client, name, used) {
                Some(IsNew::Yes) => used += 1,
                Some(IsNew::No) => {}
                None => left_out += 1,
            }
        }
        for slot in 0..self.uses.slots() {
            let one = self.uses.get(slot);
            if one.is_some_and(|one| one.client == client && one.edit != self.edit) {
                self.end_use(slot);
            }
        }
        left_out
    }

    /// What is known about an address of a name, for one client.
    pub(crate) fn lookup(
        &self,
        now: Instant,
        client: IpAddr,
        name: &str,
        address: IpAddr,
    ) -> NameMatch {
        let Some((slot, owner, known)) = self.find_used(client, name, Family::of(address)) else {
            return NameMatch::Unresolved;
        };
        let has = self.find_entry(address, |entry| {
            entry.name == slot
                && (entry.owner == NONE || entry.owner == owner)
                && is_valid(now, entry, known)
        });
        if has.is_some() {
            NameMatch::Has
        } else if known.known_until.is_some() {
            NameMatch::HasNot
        } else {
            NameMatch::Unresolved
        }
    }

    /// Whether the latest answer about a name of a client counts, so that it has no addresses but those that are here.
    pub(crate) fn is_known(&self, client: IpAddr, name: &str) -> bool {
        let found = self.find_used(client, name, Family::of(client));
        found.is_some_and(|(_, _, known)| known.known_until.is_some())
    }

    /// Calls `found` with every name of a client that has this address.
    pub(crate) fn names_of(
        &self,
        now: Instant,
        client: IpAddr,
        address: IpAddr,
        found: &mut dyn FnMut(&str),
    ) {
        let _ = self.find_entry(address, |entry| {
            let Some(name) = self.names.get(entry.name) else { return false };
            let is_its_own = match entry.owner {
                NONE => self.find_use(client, entry.name).is_some(),
                owner => self.uses.get(owner).is_some_and(|one| one.client == client),
            };
            if is_its_own && is_valid(now, entry, name) {
                found(name.host_name.as_str());
            }
            false
        });
    }

    /// Whether a client uses a name of this family.
    pub(crate) fn is_used(&self, client: IpAddr, name: &str, family: Family) -> bool {
        self.find_name(name, family).is_some_and(|name| self.find_use(client, name).is_some())
    }

    /// Takes an answer that a client received itself. Only names that it uses count.
    pub(crate) fn learned(
        &mut self,
        now: Instant,
        client: IpAddr,
        name: &str,
        addresses: &Addresses,
        ttl: Duration,
    ) {
        let Some(first) = addresses.iter().next() else { return };
        let Some(slot) = self.find_name(name, Family::of(first)) else { return };
        let Some(owner) = self.find_use(client, slot) else { return };
        let expires_at = now.after(ttl.clamp(MIN_LIFE, MAX_LIFE));
        // Answers of the resolver are numbered from 1: what was learned never counts as its latest.
        let before = self.names.get(slot).is_some_and(|name| name.has_changed);
        for address in addresses.iter().take(self.most_of(owner).into()) {
            self.add(slot, owner, address, now, expires_at, 0);
        }
        if let Some(name) = self.names.get_mut(slot) {
            let is_changed = core::mem::replace(&mut name.has_changed, before);
            if is_changed && !before {
                self.mark_changed(owner);
            }
        }
    }

    /// A name, unless it is gone.
    pub(crate) fn name(&self, id: NameId) -> Option<&Name> {
        self.names.get(id.slot).filter(|name| name.serial == id.serial)
    }

    fn name_mut(&mut self, id: NameId) -> Option<&mut Name> {
        self.names.get_mut(id.slot).filter(|name| name.serial == id.serial)
    }

    /// When [`Store::sweep`] has something to do.
    pub(crate) fn next_sweep(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Whether no client uses a name, and nothing of one is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.len() == 0 && self.sweep_at.is_none()
    }

    /// A number that stands for which names are known.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// What a flow keeps of a name that a client uses.
    pub(crate) fn id_of(&self, client: IpAddr, name: &str) -> Option<NameId> {
        let slot = self.find_name(name, Family::of(client))?;
        self.find_use(client, slot)?;
        Some(NameId { slot, serial: self.names.get(slot)?.serial })
    }

    /// The text of a name that a client still uses.
    pub(crate) fn text_of(&self, client: IpAddr, id: NameId) -> Option<&str> {
        let name = self.name(id)?;
        self.find_use(client, id.slot)?;
        Some(name.host_name.as_str())
    }

    /// Removes addresses whose time is over, and what was known of names that nobody answers for any more.
    pub(crate) fn sweep(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        let mut stamp = self.stamp;
        self.names.for_each_mut(|name| {
            if name.known_until.is_some_and(|until| until <= now) {
                name.known_until = None;
                stamp = stamp.wrapping_add(1);
            }
        });
        self.stamp = stamp;
        for slot in 0..self.entries.slots() {
            let Some(entry) = self.entries.get(slot) else { continue };
            let is_over = self.names.get(entry.name).is_none_or(|name| !is_valid(now, entry, name));
            if is_over {
                let owner = entry.owner;
                self.remove_entry(slot);
                if owner != NONE {
                    self.mark_changed(owner);
                }
            }
        }
        self.tell_all_uses();
        self.sweep_at = (self.names.len() > 0).then(|| now.after(SWEEP_INTERVAL));
    }
}
