//! Doubly linked lists through the flows themselves, so that expiry and eviction find the oldest without a scan.
//!
//! Each flow is in two lists at any time: one per [`super::Class`] (by deadline) and one per owner and
//! [`super::Hold`] (by age).

use crate::conntrack::Flow;
use crate::conntrack::slab::Slab;

/// Which of a flow's two links.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chain {
    Timer,
    Owner,
}

/// A slot or none, in half the space of an `Option`.
#[derive(Clone, Copy, Debug)]
struct Neighbour(u32);

impl Neighbour {
    /// No slot has this number: there are fewer.
    const NONE: Self = Self(u32::MAX);

    fn slot(self) -> Option<u32> {
        (self.0 != Self::NONE.0).then_some(self.0)
    }
}

impl From<Option<u32>> for Neighbour {
    fn from(slot: Option<u32>) -> Self {
        slot.map_or(Self::NONE, Self)
    }
}

/// Neighbours in one list.
#[derive(Clone, Copy, Debug)]
struct Link {
    previous: Neighbour,
    next: Neighbour,
}

impl Default for Link {
    fn default() -> Self {
        Self { previous: Neighbour::NONE, next: Neighbour::NONE }
    }
}

/// Neighbours in both lists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Links {
    timer: Link,
    owner: Link,
}

/// Ends of a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: Option<u32>,
    tail: Option<u32>,
}

impl List {
    pub(crate) const EMPTY: Self = Self { head: None, tail: None };

    /// The oldest flow.
    pub(crate) fn head(&self) -> Option<u32> {
        self.head
    }

    /// Appends a flow that is in no list of this chain.
    pub(crate) fn push_back(&mut self, flows: &mut Slab<Flow>, chain: Chain, slot: u32) {
        if let Some(link) = link(flows, chain, Some(slot)) {
            *link = Link { previous: self.tail.into(), next: Neighbour::NONE };
        }
        match link(flows, chain, self.tail) {
            Some(tail) => tail.next = Neighbour(slot),
            None => self.head = Some(slot),
        }
        self.tail = Some(slot);
    }

    /// Takes out a flow that is in this list.
    pub(crate) fn remove(&mut self, flows: &mut Slab<Flow>, chain: Chain, slot: u32) {
        let Some(gone) = link(flows, chain, Some(slot)).map(core::mem::take) else { return };
        match link(flows, chain, gone.previous.slot()) {
            Some(previous) => previous.next = gone.next,
            None => self.head = gone.next.slot(),
        }
        match link(flows, chain, gone.next.slot()) {
            Some(next) => next.previous = gone.previous,
            None => self.tail = gone.previous.slot(),
        }
    }
}

fn link(flows: &mut Slab<Flow>, chain: Chain, slot: Option<u32>) -> Option<&mut Link> {
    let links = &mut flows.get_mut(slot?)?.links;
    Some(match chain {
        Chain::Timer => &mut links.timer,
        Chain::Owner => &mut links.owner,
    })
}
