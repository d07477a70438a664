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

/// Neighbours in one list.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    previous: Option<u32>,
    next: Option<u32>,
}

/// Neighbours in both lists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Links {
    timer: Link,
    owner: Link,
}

/// Ends of a list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct List {
    head: Option<u32>,
    tail: Option<u32>,
}

impl List {
    /// The oldest flow.
    pub(crate) fn head(&self) -> Option<u32> {
        self.head
    }

    /// Appends a flow that is in no list of this chain.
    pub(crate) fn push_back(&mut self, flows: &mut Slab<Flow>, chain: Chain, slot: u32) {
        if let Some(link) = link(flows, chain, Some(slot)) {
            *link = Link { previous: self.tail, next: None };
        }
        match link(flows, chain, self.tail) {
            Some(tail) => tail.next = Some(slot),
            None => self.head = Some(slot),
        }
        self.tail = Some(slot);
    }

    /// Takes out a flow that is in this list.
    pub(crate) fn remove(&mut self, flows: &mut Slab<Flow>, chain: Chain, slot: u32) {
        let Some(gone) = link(flows, chain, Some(slot)).map(core::mem::take) else { return };
        match link(flows, chain, gone.previous) {
            Some(previous) => previous.next = gone.next,
            None => self.head = gone.next,
        }
        match link(flows, chain, gone.next) {
            Some(next) => next.previous = gone.previous,
            None => self.tail = gone.previous,
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
