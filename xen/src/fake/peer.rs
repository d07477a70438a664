//! What a test can do as another domain.
#![forbid(unsafe_code)]

use core::ops::Deref;
use std::vec::Vec;

use super::{Hypervisor, OWN_DOMAIN, PeerGrant, PeerPort, PeerState, Pins, Port, with};
use crate::abi::grant_table::{
    ENTRIES_PER_FRAME, ENTRY_BYTES, ENTRY_DOMID, ENTRY_FRAME, GTF_PERMIT_ACCESS, GTF_READING,
    GTF_READONLY, GTF_TYPE_MASK, GTF_WRITING, GrantStatus,
};
use crate::abi::{DomId, EventPort, Gfn, GrantRef};
use crate::grant::Access;
use crate::mem::{PAGE_SIZE, host};
use crate::shared::SharedPage;

/// Number of references in a peer's grant table.
const PEER_GRANTS: u32 = 512;

/// Another domain. A handle: copies stand for the same domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    domain: DomId,
}

/// The domain with this number, made on first use. A domain that died is replaced by a new one.
pub fn peer(domain: DomId) -> Peer {
    assert_ne!(domain, OWN_DOMAIN, "that is the domain under test");
    with(|xen| {
        let state = xen.peers.entry(domain).or_default();
        if state.dead {
            *state = PeerState::default();
        }
    });
    Peer { domain }
}

/// A page of ours that a peer has mapped: it is "in use" until this is dropped. Dereferences to the page.
#[derive(Debug)]
pub struct PeerMapping {
    page: SharedPage,
    gref: GrantRef,
    access: Access,
}

impl Deref for PeerMapping {
    type Target = SharedPage;

    fn deref(&self) -> &SharedPage {
        &self.page
    }
}

impl Drop for PeerMapping {
    fn drop(&mut self) {
        with(|xen| xen.unpin(self.gref, self.access));
    }
}

impl Peer {
    /// Its number.
    pub fn domain(self) -> DomId {
        self.domain
    }

    /// A new zeroed page of the peer, granted to us; with the peer's own view of it.
    pub fn grant_page(self, access: Access) -> (GrantRef, SharedPage) {
        let page = with(|xen| xen.pages.take());
        self.with(|state| {
            let gref = (8..PEER_GRANTS).find(|gref| !state.grants.contains_key(gref));
            let gref = gref.expect("the peer's grant table is full");
            let view = page.alias();
            state.grants.insert(gref, PeerGrant { page, access, mappings: 0, failure: None });
            (GrantRef(gref), view)
        })
    }

    /// Withdraws a grant. `false`: we have it mapped, nothing has changed.
    pub fn revoke(self, gref: GrantRef) -> bool {
        self.with(|state| {
            let unused = state.grants.get(&gref.0).is_some_and(|grant| grant.mappings == 0);
            unused && state.grants.remove(&gref.0).is_some()
        })
    }

    /// Withdraws the grant of a page of which the peer has no view any more, so that the page can be another one's. `false`:
    /// as for [`Peer::revoke`].
    pub fn revoke_and_free(self, gref: GrantRef) -> bool {
        with(|xen| {
            let grants = &mut xen.peer_state(self.domain).grants;
            if grants.get(&gref.0).is_none_or(|grant| grant.mappings > 0) {
                return false;
            }
            if let Some(grant) = grants.remove(&gref.0) {
                xen.pages.give_back(grant.page);
            }
            true
        })
    }

    /// Whether we have the peer's page mapped.
    pub fn is_in_use(self, gref: GrantRef) -> bool {
        self.with(|state| state.grants.get(&gref.0).is_some_and(|grant| grant.mappings > 0))
    }

    /// The peer's own view of a page that it grants.
    pub fn page(self, gref: GrantRef) -> SharedPage {
        self.with(|state| {
            state.grants.get(&gref.0).expect("the peer grants this reference").page.alias()
        })
    }

    /// Lets every operation of ours on this reference fail with a status, or work again.
    pub fn fail_grant(self, gref: GrantRef, status: Option<GrantStatus>) {
        self.with(|state| {
            state.grants.get_mut(&gref.0).expect("the peer grants this reference").failure = status
        });
    }

    /// Reads from a page that we grant, as the peer's grant copy does.
    pub fn read(self, gref: GrantRef, offset: usize, bytes: &mut [u8]) -> Result<(), GrantStatus> {
        check_span(offset, bytes.len())?;
        let page = with(|xen| xen.own_granted_page(self.domain, gref, Access::ReadOnly))?;
        page.copy_out(offset, bytes);
        Ok(())
    }

    /// Writes to a page that we grant, as the peer's grant copy does.
    pub fn write(self, gref: GrantRef, offset: usize, bytes: &[u8]) -> Result<(), GrantStatus> {
        check_span(offset, bytes.len())?;
        let page = with(|xen| xen.own_granted_page(self.domain, gref, Access::ReadWrite))?;
        page.copy_in(offset, bytes);
        Ok(())
    }

    /// Maps a page that we grant. We cannot revoke it until the result is dropped.
    pub fn map(self, gref: GrantRef, access: Access) -> Result<PeerMapping, GrantStatus> {
        with(|xen| {
            let page = xen.own_granted_page(self.domain, gref, access)?;
            xen.pin(gref, access);
            Ok(PeerMapping { page, gref, access })
        })
    }

    /// Binds to a port of ours that is reserved for this peer; returns the peer's port.
    pub fn bind(self, ours: EventPort) -> EventPort {
        with(|xen| {
            let reserved = xen.ports.get(&ours.0) == Some(&Port::Unbound { peer: self.domain });
            assert!(reserved, "{ours:?} is not an unbound port for {:?}", self.domain);
            let theirs = xen.peer_state(self.domain).new_port(Some(ours));
            xen.ports.insert(ours.0, Port::Bound { peer: self.domain, remote: theirs });
            theirs
        })
    }

    /// A port of the peer that we can bind to.
    pub fn alloc_unbound(self) -> EventPort {
        self.with(|state| state.new_port(None))
    }

    /// Raises an event through a port of the peer; lost if we are not at the other end.
    pub fn notify(self, theirs: EventPort) {
        with(|xen| {
            let state = xen.peer_state(self.domain);
            let port = state.ports.get(&theirs.0).expect("a port of the peer");
            if let Some(ours) = port.local {
                xen.raise(ours);
            }
        });
    }

    /// Ports of the peer that have an event, in ascending order; clears them.
    pub fn take_notifications(self) -> Vec<EventPort> {
        self.with(|state| {
            let ports = state.ports.iter_mut();
            ports
                .filter_map(|(number, port)| {
                    core::mem::take(&mut port.pending).then_some(EventPort(*number))
                })
                .collect()
        })
    }

    /// Closes a port of the peer; ours becomes unbound.
    pub fn close(self, theirs: EventPort) {
        with(|xen| {
            let closed =
                xen.peer_state(self.domain).ports.remove(&theirs.0).expect("a port of the peer");
            if let Some(ours) = closed.local {
                xen.ports.insert(ours.0, Port::Unbound { peer: self.domain });
            }
        });
    }

    /// Destroys the domain: its ports close, its grants fail with "bad domain". Pages that we have mapped live on.
    pub fn die(self) {
        let ports: Vec<u32> = self.with(|state| state.ports.keys().copied().collect());
        ports.into_iter().for_each(|port| self.close(EventPort(port)));
        self.with(|state| {
            state.dead = true;
            state.grants.clear();
        });
    }

    fn with<R>(self, action: impl FnOnce(&mut PeerState) -> R) -> R {
        with(|xen| action(xen.peer_state(self.domain)))
    }
}

impl PeerState {
    fn new_port(&mut self, local: Option<EventPort>) -> EventPort {
        let number =
            (10..).find(|number| !self.ports.contains_key(number)).expect("some number is free");
        self.ports.insert(number, PeerPort { local, pending: false });
        EventPort(number)
    }

    /// The grant that an operation of ours asks for, or the status it fails with.
    pub(super) fn granted(
        &mut self,
        gref: u32,
        access: Access,
    ) -> Result<&mut PeerGrant, GrantStatus> {
        if self.dead {
            return Err(GrantStatus::BAD_DOMAIN);
        }
        if gref >= PEER_GRANTS {
            return Err(GrantStatus::BAD_GNTREF);
        }
        let grant = self.grants.get_mut(&gref).ok_or(GrantStatus::GENERAL_ERROR)?;
        if let Some(status) = grant.failure {
            return Err(status);
        }
        if access == Access::ReadWrite && grant.access == Access::ReadOnly {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        Ok(grant)
    }
}

impl Hypervisor {
    pub(super) fn peer_state(&mut self, domain: DomId) -> &mut PeerState {
        self.peers.get_mut(&domain).expect("a domain that exists")
    }

    /// The page behind a grant of ours, if our entry lets `peer` access it so.
    fn own_granted_page(
        &self,
        peer: DomId,
        gref: GrantRef,
        access: Access,
    ) -> Result<SharedPage, GrantStatus> {
        let (frame, offset) = self.own_entry(gref).ok_or(GrantStatus::BAD_GNTREF)?;
        let flags = frame.load_u16(offset);
        let readable = flags & GTF_TYPE_MASK == GTF_PERMIT_ACCESS
            && frame.read_u16(offset + ENTRY_DOMID) == peer.0;
        let writable = flags & GTF_READONLY == 0;
        if !readable || (access == Access::ReadWrite && !writable) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let gfn = Gfn(u64::from(frame.read_u32(offset + ENTRY_FRAME)));
        Ok(host::live_page(gfn).expect("a grant entry names a page that is not allocated"))
    }

    fn own_entry(&self, gref: GrantRef) -> Option<(&SharedPage, usize)> {
        let frame = self.grant_frames.get((gref.0 / ENTRIES_PER_FRAME) as usize)?;
        Some((frame, (gref.0 % ENTRIES_PER_FRAME) as usize * ENTRY_BYTES))
    }

    fn pin(&mut self, gref: GrantRef, access: Access) {
        let pins = self.pins.entry(gref.0).or_default();
        pins.readers += 1;
        pins.writers += usize::from(access == Access::ReadWrite);
        self.show_pins(gref);
    }

    fn unpin(&mut self, gref: GrantRef, access: Access) {
        // Nothing is left to unpin from after a reset in the meantime.
        if let Some(pins) = self.pins.get_mut(&gref.0) {
            pins.readers -= 1;
            pins.writers -= usize::from(access == Access::ReadWrite);
            self.show_pins(gref);
        }
    }

    /// Sets the in-use bits of our entry as Xen does.
    fn show_pins(&self, gref: GrantRef) {
        let Pins { readers, writers } = self.pins.get(&gref.0).copied().unwrap_or_default();
        let (frame, offset) = self.own_entry(gref).expect("a pinned grant has an entry");
        let in_use =
            if readers > 0 { GTF_READING } else { 0 } | if writers > 0 { GTF_WRITING } else { 0 };
        let mut flags = frame.load_u16(offset);
        assert_ne!(flags & GTF_TYPE_MASK, 0, "a grant entry was cleared while the peer used it");
        while let Err(now) =
            frame.compare_exchange_u16(offset, flags, flags & !(GTF_READING | GTF_WRITING) | in_use)
        {
            flags = now;
        }
    }
}

fn check_span(offset: usize, len: usize) -> Result<(), GrantStatus> {
    let fits = offset.checked_add(len).is_some_and(|end| end <= PAGE_SIZE);
    if fits { Ok(()) } else { Err(GrantStatus::BAD_COPY_ARG) }
}
