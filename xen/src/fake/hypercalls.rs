//! The other side of the seam: what `crate::hypercall` does on the host.
#![forbid(unsafe_code)]

use super::{ForeignMapping, Hypervisor, Port, run_next_until, with};
use crate::abi::event_channel::STATUS_INTERDOMAIN;
use crate::abi::grant_table::{
    COPY_DEST_GREF, COPY_SOURCE_GREF, CopySide, GrantCopy, GrantStatus, MAP_HOST, MAP_READONLY,
    MapGrantRef, UnmapGrantRef,
};
use crate::abi::vcpu::EVTCHN_PENDING;
use crate::abi::{DomId, Errno, EventPort, Gfn};
use crate::grant::Access;
use crate::hypercall::Sleep;
use crate::mem::{PAGE_SIZE, host};
use crate::shared::SharedPage;

/// Where the fake's mapping window begins: an address that nothing on the host has.
const WINDOW: u64 = 0x1000_0000_0000_0000;

pub(crate) fn shared_info() -> SharedPage {
    with(|xen| xen.shared_info.alias())
}

pub(crate) fn store() -> Option<(SharedPage, EventPort)> {
    with(|xen| Some((xen.store.alias(), super::STORE_PORT)))
}

pub(crate) fn console() -> Option<(SharedPage, EventPort)> {
    with(|xen| Some((xen.console.alias(), super::CONSOLE_PORT)))
}

pub(crate) fn own_domain() -> Option<DomId> {
    Some(super::OWN_DOMAIN)
}

/// Records the reason. A suspension "returns" at once with 1, resumed in the same domain; every other reason returns
/// as well, and the caller ends the thread.
pub(crate) fn shutdown(reason: u32) -> Result<u64, Errno> {
    with(|xen| xen.shutdown = Some(reason));
    Ok(1)
}

/// What is left of the domain under test after it has ended.
pub(crate) fn halt() -> ! {
    panic!("the domain has ended, reason {:?}", super::shutdown_reason());
}

pub(crate) fn grant_frame(index: u32) -> Option<SharedPage> {
    with(|xen| {
        if index >= xen.max_grant_frames {
            return None;
        }
        assert_eq!(index as usize, xen.grant_frames.len(), "grant frames are added in order");
        let frame = xen.pages.take();
        let view = frame.alias();
        xen.grant_frames.push(frame);
        Some(view)
    })
}

pub(crate) fn window_address(page: usize) -> u64 {
    WINDOW + (page * PAGE_SIZE) as u64
}

pub(crate) fn mapped_page(address: u64) -> SharedPage {
    with(|xen| xen.mappings.get(&address).expect("an address with a mapping").page.alias())
}

pub(crate) fn grant_map(ops: &mut [MapGrantRef]) {
    with(|xen| {
        for op in ops {
            assert_eq!(op.flags & !MAP_READONLY, MAP_HOST, "flags that PVH guests cannot use");
            let occupied = xen.mappings.contains_key(&op.host_addr);
            assert!(!occupied, "Xen ends a domain that maps twice at one address");
            op.status = xen.map(op).err().unwrap_or(GrantStatus::OKAY);
        }
    });
}

pub(crate) fn grant_unmap(ops: &mut [UnmapGrantRef]) {
    with(|xen| {
        for op in ops {
            let mapping =
                xen.mappings.remove(&op.host_addr).expect("unmap of an address without mapping");
            assert_eq!(mapping.handle, op.handle, "unmap with the handle of another mapping");
            if let Some(peer) = xen.peers.get_mut(&mapping.peer)
                && let Some(grant) = peer.grants.get_mut(&mapping.gref)
            {
                grant.mappings = grant.mappings.saturating_sub(1);
            }
            op.status = GrantStatus::OKAY;
        }
    });
}

pub(crate) fn grant_copy(ops: &mut [GrantCopy]) {
    if let Some(action) = with(|xen| xen.before_copy.take()) {
        let _booked = crate::mem::ledger::enter(crate::mem::ledger::Part::Tables);
        action();
    }
    with(|xen| {
        for op in ops {
            op.status = xen.copy(op).err().unwrap_or(GrantStatus::OKAY);
        }
    });
}

pub(crate) fn event_alloc_unbound(peer: DomId) -> Result<EventPort, Errno> {
    with(|xen| {
        let port = xen.free_port();
        xen.ports.insert(port.0, Port::Unbound { peer });
        Ok(port)
    })
}

pub(crate) fn event_bind_interdomain(peer: DomId, remote: EventPort) -> Result<EventPort, Errno> {
    with(|xen| {
        let port = xen.free_port();
        let state = xen.peers.get_mut(&peer).filter(|state| !state.dead).ok_or(Errno::ESRCH)?;
        let theirs = state.ports.get_mut(&remote.0).ok_or(Errno::EINVAL)?;
        if theirs.local.is_some() {
            return Err(Errno::EINVAL);
        }
        theirs.local = Some(port);
        xen.ports.insert(port.0, Port::Bound { peer, remote });
        xen.raise(port);
        Ok(port)
    })
}

pub(crate) fn event_bind_timer() -> Result<EventPort, Errno> {
    with(|xen| {
        assert!(!xen.ports.values().any(|port| *port == Port::Timer), "the timer is bound already");
        let port = xen.free_port();
        xen.ports.insert(port.0, Port::Timer);
        Ok(port)
    })
}

pub(crate) fn event_send(port: EventPort) {
    with(|xen| {
        let bound = xen.ports.get(&port.0).expect("send through a port that is not open");
        if let Port::Bound { peer, remote } = *bound
            && let Some(theirs) = xen.peer_state(peer).ports.get_mut(&remote.0)
        {
            theirs.pending = true;
        }
    });
}

pub(crate) fn event_close(port: EventPort) {
    with(|xen| {
        let closed = xen.ports.remove(&port.0).expect("close of a port that is not open");
        if let Port::Bound { peer, remote } = closed
            && let Some(theirs) = xen.peer_state(peer).ports.get_mut(&remote.0)
        {
            theirs.local = None;
        }
    });
}

pub(crate) fn event_status(port: EventPort) -> u32 {
    with(|xen| match xen.ports.get(&port.0) {
        None => 0,
        Some(Port::Unbound { .. }) => 1,
        Some(Port::Bound { .. }) => STATUS_INTERDOMAIN,
        Some(Port::Timer) => 4,
    })
}

pub(crate) fn set_timer(deadline_ns: u64) -> Result<(), Errno> {
    with(|xen| {
        xen.timer_ns = Some(deadline_ns);
        xen.raise_timer_if_due();
    });
    Ok(())
}

/// All of it, in order.
pub(crate) fn notify_all(ports: &[EventPort], sleep: Option<&Sleep<'_>>) {
    ports.iter().for_each(|port| event_send(*port));
    sleep.into_iter().for_each(block);
}

/// Lets virtual time run to the next event, or to the end of the sleep. One that came before counts if it is of the sleep's ports.
pub(crate) fn block(sleep: &Sleep<'_>) {
    let pending = |port: &u32| {
        let word = EVTCHN_PENDING + (port / 64) as usize * 8;
        with(|xen| xen.shared_info.load_u64(word) & (1 << (port % 64)) != 0)
    };
    let raised = || with(|xen| xen.raised);
    let before = raised();
    while !sleep.ports.iter().any(pending) && raised() == before {
        let (now, timer, planned) = with(|xen| {
            let planned = xen.agenda.first_key_value().map(|(key, _)| key.0);
            (xen.clock_ns, xen.timer_ns, planned)
        });
        if sleep.until.is_some_and(|until| until <= now) {
            return;
        }
        let next = [timer, planned, sleep.until].into_iter().flatten().min();
        let next = next.expect("the domain would sleep for ever");
        if !run_next_until(next) {
            with(|xen| {
                xen.clock_ns = xen.clock_ns.max(next);
                xen.raise_timer_if_due();
            });
        }
    }
}

pub(crate) fn system_time_ns() -> u64 {
    with(|xen| xen.clock_ns)
}

pub(crate) fn vcpu_running_ns() -> u64 {
    with(|xen| xen.clock_ns - super::START_NS)
}

impl Hypervisor {
    fn map(&mut self, op: &mut MapGrantRef) -> Result<(), GrantStatus> {
        let access =
            if op.flags & MAP_READONLY != 0 { Access::ReadOnly } else { Access::ReadWrite };
        let peer = DomId(op.dom);
        let state = self.peers.get_mut(&peer).ok_or(GrantStatus::BAD_DOMAIN)?;
        let grant = state.granted(op.gref, access)?;
        grant.mappings += 1;
        let page = grant.page.alias();
        op.handle = self.next_handle;
        self.next_handle += 1;
        let mapping = ForeignMapping { peer, gref: op.gref, handle: op.handle, page };
        self.mappings.insert(op.host_addr, mapping);
        Ok(())
    }

    fn copy(&mut self, op: &GrantCopy) -> Result<(), GrantStatus> {
        let len = usize::from(op.len);
        assert!(len > 0, "Xen versions differ in what a copy of zero bytes does");
        for side in [&op.source, &op.dest] {
            assert!(
                usize::from(side.offset) + len <= PAGE_SIZE,
                "a copy crosses the end of a page"
            );
        }
        let source = self.side(&op.source, op.flags & COPY_SOURCE_GREF != 0, Access::ReadOnly)?;
        let dest = self.side(&op.dest, op.flags & COPY_DEST_GREF != 0, Access::ReadWrite)?;
        let mut buffer = [0; PAGE_SIZE];
        let (bytes, _) = buffer.split_at_mut(len);
        source.copy_out(op.source.offset.into(), bytes);
        dest.copy_in(op.dest.offset.into(), bytes);
        Ok(())
    }

    fn side(
        &mut self,
        side: &CopySide,
        is_gref: bool,
        access: Access,
    ) -> Result<SharedPage, GrantStatus> {
        if is_gref {
            let gref = u32::try_from(side.ref_or_gfn).expect("a grant reference has 32 bits");
            let state = self.peers.get_mut(&DomId(side.dom)).ok_or(GrantStatus::BAD_DOMAIN)?;
            Ok(state.granted(gref, access)?.page.alias())
        } else {
            assert_eq!(side.dom, DomId::SELF.0, "a local page belongs to DOMID_SELF");
            Ok(host::live_page(Gfn(side.ref_or_gfn))
                .expect("a copy names a page that is not allocated"))
        }
    }
}
