//! The table of all flows: two hash indexes, a list per lifetime class, two lists and a quota per owner.
//!
//! A flow leaves only through [`Table::remove`], whose caller gives its NAT mapping back. Deadlines are exact where a
//! packet meets a flow ([`Table::is_due`]); the lists only decide when memory is reclaimed, and may lag.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use crate::clients::HostId;
use crate::conntrack::face::Halves;
use crate::conntrack::index::{FlowKey, HashKey, Index};
use crate::conntrack::list::{Chain, List};
use crate::conntrack::slab::Slab;
use crate::conntrack::{Class, Flow, Hold, NewFlow, Own, Tuple};
use crate::limits::{Limits, OutOfMemory};
use crate::time::Instant;

#[cfg(test)]
mod tests;

/// Slot of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowId(u32);

/// Why there is no room for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// This owner is at its quota; the flow is its oldest loose one, if it has any, and may be removed.
    Quota { oldest_loose: Option<FlowId> },
    /// The table is full.
    Table,
}

/// A client address.
#[derive(Clone, Copy, Debug)]
struct Owner {
    /// It is that of all flows here: another client can have the place only after the last of them.
    address: IpAddr,
    flows: u32,
    loose: List,
    firm: List,
}

impl Owner {
    const NOBODY: Self = Self {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        flows: 0,
        loose: List::EMPTY,
        firm: List::EMPTY,
    };

    fn list(&mut self, hold: Hold) -> &mut List {
        match hold {
            Hold::Loose => &mut self.loose,
            Hold::Firm => &mut self.firm,
        }
    }
}

/// All flows.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Table {
    flows: Slab<Flow>,
    by_inside: Index,
    by_outside: Index,
    classes: [List; Class::COUNT],
    owners: Box<[Owner]>,
    /// Stands for the clients' addresses outside. Another one ends all flows.
    own: Own,
    /// Flows between clients.
    allowed: u32,
    /// Flows with a mapping.
    mapped: u32,
    /// Flows of all owners, and of one; no more than there are slots.
    most: u32,
    quota: u32,
    key: FlowKey,
}

impl Table {
    /// What one flow costs in bytes, hash cells included.
    #[cfg(test)]
    pub(crate) const FLOW_BYTES: usize = Slab::<Flow>::SLOT_BYTES + 2 * Index::MAX_ENTRY_BYTES;

    pub(crate) fn new(limits: &Limits, key: HashKey) -> Result<Self, OutOfMemory> {
        let mut owners = Vec::new();
        owners.try_reserve_exact(usize::from(limits.addresses)).map_err(|_| OutOfMemory)?;
        owners.resize(usize::from(limits.addresses), Owner::NOBODY);
        Ok(Self {
            flows: Slab::with_capacity(limits.flows)?,
            by_inside: Index::with_capacity(limits.flows)?,
            by_outside: Index::with_capacity(limits.flows)?,
            classes: [List::EMPTY; Class::COUNT],
            owners: owners.into_boxed_slice(),
            own: Own::NONE,
            allowed: 0,
            mapped: 0,
            most: limits.flows,
            quota: limits.flows_per_client,
            key: FlowKey::derived(key),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Flows of one client address.
    pub(crate) fn owned_by(&self, host: HostId) -> u32 {
        self.owners.get(host.0 as usize).map_or(0, |owner| owner.flows)
    }

    pub(crate) fn get(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id.0)
    }

    /// The flow for changes that concern no list: standing, generation, TCP state.
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id.0)
    }

    /// A flow as its client sees it, before any DNS redirection.
    pub(crate) fn inside_of(&self, flow: &Flow) -> Tuple {
        flow.inside(self.client_of(flow))
    }

    /// A flow as the world sees it.
    pub(crate) fn outside_of(&self, flow: &Flow) -> Tuple {
        flow.outside(self.local_outside_of(flow))
    }

    /// The address of a flow's client.
    fn client_of(&self, flow: &Flow) -> IpAddr {
        let owner = self.owners.get(flow.host().0 as usize).unwrap_or(&Owner::NOBODY);
        owner.address
    }

    /// What stands for the address of a flow's client outside.
    fn local_outside_of(&self, flow: &Flow) -> IpAddr {
        let client = self.client_of(flow);
        if flow.is_between_clients() { client } else { self.own.like(client) }
    }

    /// Replaces our own addresses. Without effect while there are flows behind the old ones.
    pub(crate) fn set_own(&mut self, own: Own) {
        if self.len() == 0 {
            self.own = own;
        }
    }

    #[inline]
    pub(crate) fn find_inside(&self, tuple: &Tuple) -> Option<FlowId> {
        let mut slots = self.by_inside.candidates(hash(self.key, tuple));
        let is_match = |flow: &Flow| flow.is_inside(tuple) && self.client_of(flow) == tuple.local;
        slots.find(|slot| self.flows.get(*slot).is_some_and(is_match)).map(FlowId)
    }

    #[inline]
    pub(crate) fn find_outside(&self, tuple: &Tuple) -> Option<FlowId> {
        let mut slots = self.by_outside.candidates(hash(self.key, tuple));
        let is_match =
            |flow: &Flow| flow.is_outside(tuple) && self.local_outside_of(flow) == tuple.local;
        slots.find(|slot| self.flows.get(*slot).is_some_and(is_match)).map(FlowId)
    }

    /// [`Table::find_inside`] as a part of the fast path, which knows the family and whose address it is: that of `host`.
    /// Of two flows with one hash it knows the first only. With the flow comes what stands for its client's address
    /// outside if it is not between clients.
    #[inline(always)]
    pub(crate) fn inside(
        &mut self,
        tuple: &Tuple,
        host: HostId,
    ) -> Option<(FlowId, &mut Flow, Own)> {
        let slot = self.by_inside.first(hash(self.key, tuple))?;
        let flow = self.flows.get_mut(slot)?;
        let is_match = flow.is_inside(tuple) && flow.host() == host;
        is_match.then_some((FlowId(slot), flow, self.own))
    }

    /// [`Table::find_outside`] as a part of the fast path, likewise. It knows no flows between clients.
    #[inline(always)]
    pub(crate) fn outside(&mut self, tuple: &Tuple) -> Option<&mut Flow> {
        let slot = self.by_outside.first(hash(self.key, tuple))?;
        let flow = self.flows.get_mut(slot)?;
        let is_match = flow.is_outside_of_us(tuple) && self.own.like(tuple.local) == tuple.local;
        is_match.then_some(flow)
    }

    /// Whether `host` may open one more flow.
    pub(crate) fn room_for(&self, host: HostId) -> Result<(), NoRoom> {
        let Some(owner) = self.owners.get(host.0 as usize) else { return Err(NoRoom::Table) };
        if owner.flows >= self.quota {
            return Err(NoRoom::Quota { oldest_loose: owner.loose.head().map(FlowId) });
        }
        if self.flows.len() >= self.most as usize { Err(NoRoom::Table) } else { Ok(()) }
    }

    /// Changes the bounds. Flows that are there stay.
    pub(crate) fn set_bounds(&mut self, most: u32, quota: u32) {
        (self.most, self.quota) = (most, quota);
    }

    pub(crate) fn bounds(&self) -> (u32, u32) {
        (self.most, self.quota)
    }

    /// Adds a flow; `None` if there is no room, or its faces are not those of a flow of its client behind our own address.
    /// Neither of them may be in the table yet.
    pub(crate) fn insert(&mut self, now: Instant, new: &NewFlow) -> Option<FlowId> {
        self.room_for(new.host).ok()?;
        let (inside, outside) = (hash(self.key, &new.inside), hash(self.key, &new.outside));
        let (host, class) = (new.host, new.class);
        let owner = self.owners.get_mut(host.0 as usize)?;
        if owner.flows == 0 {
            owner.address = new.inside.local;
        }
        let flow = Flow::new(now, new)?;
        let locals = (self.client_of(&flow), self.local_outside_of(&flow));
        if locals != (new.inside.local, new.outside.local) {
            return None;
        }
        let is_between_clients = flow.is_between_clients();
        let slot = self.flows.insert(flow)?;
        self.allowed += u32::from(is_between_clients);
        self.mapped += u32::from(new.mapping.is_some());
        self.by_inside.insert(inside, slot);
        self.by_outside.insert(outside, slot);
        if let Some(owner) = self.owners.get_mut(host.0 as usize) {
            owner.flows += 1;
            owner.loose.push_back(&mut self.flows, Chain::Owner, slot);
        }
        self.class_list(class).push_back_timer(slot);
        Some(FlowId(slot))
    }

    /// Takes a flow out. The caller releases its mapping.
    pub(crate) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let flow = self.flows.get(id.0)?;
        let (host, hold, class) = (flow.host(), flow.hold(), flow.class);
        let inside = hash(self.key, &self.inside_of(flow));
        let outside = hash(self.key, &self.outside_of(flow));
        self.allowed -= u32::from(flow.is_between_clients());
        self.mapped -= u32::from(flow.mapping().is_some());
        self.by_inside.remove(inside, id.0);
        self.by_outside.remove(outside, id.0);
        self.class_list(class).remove_timer(id.0);
        if let Some(owner) = self.owners.get_mut(host.0 as usize) {
            owner.list(hold).remove(&mut self.flows, Chain::Owner, id.0);
            owner.flows = owner.flows.saturating_sub(1);
        }
        self.flows.remove(id.0)
    }

    /// Starts the lifetime of `class` anew.
    pub(crate) fn renew(&mut self, now: Instant, id: FlowId, class: Class) {
        let Some(flow) = self.flows.get_mut(id.0) else { return };
        let old = core::mem::replace(&mut flow.class, class);
        if flow.prolong(now) && old == class {
            return;
        }
        flow.note_listed();
        self.class_list(old).remove_timer(id.0);
        self.class_list(class).push_back_timer(id.0);
    }

    /// Moves a flow to the end of the list of its class, as [`Flow::prolong`] asks for.
    #[inline(never)]
    pub(crate) fn relist(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id.0) else { return };
        flow.note_listed();
        let class = flow.class;
        self.class_list(class).remove_timer(id.0);
        self.class_list(class).push_back_timer(id.0);
    }

    /// Changes the lifetime of a flow without starting it anew: the client's last packet still counts.
    pub(crate) fn reclassify(&mut self, id: FlowId, class: Class) {
        let Some(flow) = self.flows.get_mut(id.0) else { return };
        let old = core::mem::replace(&mut flow.class, class);
        let longer = class.lifetime().saturating_sub(old.lifetime());
        flow.deadline = flow.deadline.after(longer);
        flow.note_listed();
        self.class_list(old).remove_timer(id.0);
        self.class_list(class).push_back_timer(id.0);
    }

    /// Makes a flow firm or loose.
    pub(crate) fn set_hold(&mut self, id: FlowId, hold: Hold) {
        let Some(flow) = self.flows.get_mut(id.0) else { return };
        let (host, old) = (flow.host(), flow.hold());
        if old == hold {
            return;
        }
        flow.set_hold(hold);
        if let Some(owner) = self.owners.get_mut(host.0 as usize) {
            owner.list(old).remove(&mut self.flows, Chain::Owner, id.0);
            owner.list(hold).push_back(&mut self.flows, Chain::Owner, id.0);
        }
    }

    /// Whether the flow's time is over.
    pub(crate) fn is_due(&self, now: Instant, id: FlowId) -> bool {
        self.get(id).is_none_or(|flow| flow.deadline <= now)
    }

    /// A flow whose time is over, if the head of any class is.
    pub(crate) fn next_due(&self, now: Instant) -> Option<FlowId> {
        self.heads().find(|id| self.is_due(now, *id))
    }

    /// When [`Table::next_due`] will find something, at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.heads().filter_map(|id| Some(self.get(id)?.deadline)).min()
    }

    /// Any flow of `host`.
    pub(crate) fn any_of(&self, host: HostId) -> Option<FlowId> {
        let owner = self.owners.get(host.0 as usize)?;
        owner.loose.head().or(owner.firm.head()).map(FlowId)
    }

    /// Whether there is any flow between clients.
    pub(crate) fn has_allowed(&self) -> bool {
        self.allowed > 0
    }

    /// Flows that hold a reference to a mapping.
    pub(crate) fn mapped(&self) -> u32 {
        self.mapped
    }

    /// The first flow in slots behind `after` that `is_match` picks. Looks at every slot: for the control plane only.
    pub(crate) fn find_after(
        &self,
        after: Option<FlowId>,
        is_match: impl Fn(&Flow) -> bool,
    ) -> Option<FlowId> {
        let first = after.map_or(0, |id| id.0.saturating_add(1));
        let mut slots = first..self.flows.slots();
        slots.find(|slot| self.flows.get(*slot).is_some_and(&is_match)).map(FlowId)
    }

    /// The first flow in so many slots from `slot` on, with its slot; else the slot to go on from, if there are more.
    pub(crate) fn flow_from(&self, slot: u32, slots: u32) -> Result<(u32, &Flow), Option<u32>> {
        let end = slot.saturating_add(slots).min(self.flows.slots());
        let found = (slot..end).find_map(|slot| Some((slot, self.flows.get(slot)?)));
        found.ok_or((end < self.flows.slots()).then_some(end))
    }

    /// Any flow at all.
    pub(crate) fn any(&self) -> Option<FlowId> {
        self.heads().next()
    }

    fn heads(&self) -> impl Iterator<Item = FlowId> + '_ {
        self.classes.iter().filter_map(|list| list.head().map(FlowId))
    }

    fn class_list(&mut self, class: Class) -> ClassList<'_> {
        ClassList { list: self.classes.get_mut(class as usize), flows: &mut self.flows }
    }
}

struct ClassList<'a> {
    list: Option<&'a mut List>,
    flows: &'a mut Slab<Flow>,
}

impl ClassList<'_> {
    fn push_back_timer(self, slot: u32) {
        if let Some(list) = self.list {
            list.push_back(self.flows, Chain::Timer, slot);
        }
    }

    fn remove_timer(self, slot: u32) {
        if let Some(list) = self.list {
            list.remove(self.flows, Chain::Timer, slot);
        }
    }
}

#[inline(always)]
fn hash(key: FlowKey, tuple: &Tuple) -> u32 {
    let word = tuple.word().bits();
    match (tuple.local, tuple.remote) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            key.hash_v4(u64::from(u32::from(local)) << 32 | u64::from(u32::from(remote)), word)
        }
        (local, remote) => {
            let [local, remote] = [local, remote].map(|address| Halves::of(address).words());
            key.hash_v6(local, remote, word)
        }
    }
}
