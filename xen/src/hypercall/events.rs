//! Event channels, and the sleep that their events end.

use core::sync::atomic::{AtomicBool, Ordering};

use super::arguments::{self, MAX_SENDS};
use super::real::{UPCALLS_WANTED, call, set_callback, upcall};
use super::{Sleep, trap};
use crate::abi::event_channel::{
    AllocUnbound, BindInterdomain, BindVirq, OP_ALLOC_UNBOUND, OP_BIND_INTERDOMAIN, OP_BIND_VIRQ,
    OP_CLOSE, OP_SEND, OP_STATUS, PortOnly, Status, VIRQ_TIMER,
};
use crate::abi::platform::*;
use crate::abi::{DomId, Errno, EventPort};

/// Xen takes one hypercall at a time.
static NO_MULTICALL: AtomicBool = AtomicBool::new(false);

pub(crate) fn event_alloc_unbound(peer: DomId) -> Result<EventPort, Errno> {
    let mut request = AllocUnbound { dom: DomId::SELF, remote_dom: peer, port: EventPort(0) };
    call(EVENT_CHANNEL_OP, OP_ALLOC_UNBOUND, &mut request)?;
    Ok(request.port)
}

pub(crate) fn event_bind_interdomain(peer: DomId, remote: EventPort) -> Result<EventPort, Errno> {
    let mut request =
        BindInterdomain { remote_dom: peer, pad: 0, remote_port: remote, local_port: EventPort(0) };
    call(EVENT_CHANNEL_OP, OP_BIND_INTERDOMAIN, &mut request)?;
    Ok(request.local_port)
}

pub(crate) fn event_bind_timer() -> Result<EventPort, Errno> {
    let mut request = BindVirq { virq: VIRQ_TIMER, vcpu: 0, port: EventPort(0) };
    call(EVENT_CHANNEL_OP, OP_BIND_VIRQ, &mut request)?;
    Ok(request.port)
}

pub(crate) fn event_send(port: EventPort) {
    // SAFETY: as for `place`; an array's first element.
    let send = unsafe {
        let send = (&raw mut (*arguments::place()).sends).cast::<PortOnly>();
        send.write(PortOnly { port });
        send.addr() as u64
    };
    // SAFETY: the structure of this command. It fails only for a port that is not ours; a dead peer is no error to Xen.
    let _ = unsafe { trap::hypercall(EVENT_CHANNEL_OP, [OP_SEND.into(), send, 0]) };
}

pub(crate) fn event_close(port: EventPort) {
    let _ = call(EVENT_CHANNEL_OP, OP_CLOSE, &mut PortOnly { port });
}

pub(crate) fn event_status(port: EventPort) -> u32 {
    let mut status = Status { dom: DomId::SELF.0, port: port.0, ..Status::default() };
    if call(EVENT_CHANNEL_OP, OP_STATUS, &mut status).is_ok() { status.status } else { 0 }
}

/// Sends events through all these ports, then sleeps as [`block`] does if there is a `sleep`: in one hypercall, as far as Xen
/// takes several at once.
pub(crate) fn notify_all(ports: &[EventPort], sleep: Option<&Sleep<'_>>) {
    let fits =
        ports.len() <= MAX_SENDS && sleep.is_none_or(|sleep| sleep.ports.len() <= MAX_POLLED_PORTS);
    if fits && !NO_MULTICALL.load(Ordering::Relaxed) {
        if multicall(ports, sleep).is_ok() {
            return;
        }
        NO_MULTICALL.store(true, Ordering::Relaxed);
    }
    ports.iter().for_each(|port| event_send(*port));
    sleep.into_iter().for_each(block);
}

/// As [`notify_all`]. An error: nothing was done.
fn multicall(ports: &[EventPort], sleep: Option<&Sleep<'_>>) -> Result<(), Errno> {
    let place = arguments::place();
    // SAFETY: as for `place`.
    let (sends, entries) = unsafe { (&raw mut (*place).sends, &raw mut (*place).entries) };
    let (sends, entries) = (sends.cast::<PortOnly>(), entries.cast::<MulticallEntry>());
    let mut count = 0;
    for port in ports.iter().take(MAX_SENDS) {
        // SAFETY: there are `MAX_SENDS` of the one and one more of the other.
        unsafe {
            let send = sends.add(count);
            send.write(PortOnly { port: *port });
            let args = [OP_SEND.into(), send.addr() as u64, 0, 0, 0, 0];
            entries.add(count).write(MulticallEntry { op: EVENT_CHANNEL_OP, result: 0, args });
        }
        count += 1;
    }
    if let Some(sleep) = sleep {
        let args = [SCHED_POLL.into(), poll_for(sleep), 0, 0, 0, 0];
        // SAFETY: one more than there can be sends.
        unsafe { entries.add(count).write(MulticallEntry { op: SCHED_OP, result: 0, args }) };
        count += 1;
    }
    // SAFETY: the first `count` entries are hypercalls with the structures that `event_send` and `block` give them; Xen
    // writes nothing but their results.
    unsafe { trap::hypercall(MULTICALL, [entries.addr() as u64, count as u64, 0]) }.map(drop)
}

/// Sleeps; not at all if one of the sleep's ports has an event, so that none is lost between the caller's last look
/// and the sleep.
///
/// `SCHEDOP_poll` needs no interrupt: the processor takes none from boot to shutdown, which also spares us the delivery.
/// (QEMU's emulated SVM was seen to deliver the upcall over and over without one instruction in between.) Only with
/// more ports than Xen polls does the domain sleep in HLT, until its timer ends that; Xen is asked for interrupts only then.
pub(crate) fn block(sleep: &Sleep<'_>) {
    if sleep.ports.len() > MAX_POLLED_PORTS {
        if !UPCALLS_WANTED.swap(true, Ordering::Relaxed) {
            set_callback(upcall()).expect("the upcall vector was taken at boot");
        }
        return crate::boot::idle();
    }
    let poll = poll_for(sleep);
    // SAFETY: the structure of this command, with ports that were written.
    let done = unsafe { trap::hypercall(SCHED_OP, [SCHED_POLL.into(), poll, 0]) };
    // Fails only for a port beyond the ABI or a bad pointer, which would be a fault of ours.
    done.expect("open ports can be polled");
}

/// Writes what `SCHEDOP_poll` needs; its address. A port that is alone is named twice: else Xen would wake us for an event of
/// that port only (`do_poll` in its common/sched/core.c).
fn poll_for(sleep: &Sleep<'_>) -> u64 {
    let place = arguments::place();
    // SAFETY: as for `place`.
    let (ports, poll) = unsafe { (&raw mut (*place).ports, &raw mut (*place).poll) };
    let list = ports.cast::<u32>();
    let twice = usize::from(sleep.ports.len() == 1).saturating_add(1);
    let named = core::iter::repeat_n(sleep.ports, twice).flatten().take(MAX_POLLED_PORTS);
    let mut count = 0;
    for port in named {
        // SAFETY: one of the first `MAX_POLLED_PORTS`.
        unsafe { list.add(count).write(*port) };
        count += 1;
    }
    let (ports, count) = (list.addr() as u64, count as u32);
    let value = Poll { ports, count, pad: 0, timeout_ns: sleep.until.unwrap_or(0) };
    // SAFETY: as for `place`.
    unsafe { poll.write(value) };
    poll.addr() as u64
}
