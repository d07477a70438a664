//! Event channels: Xen public/event_channel.h and the 2-level part of public/xen.h.

use super::{DomId, EventPort};

/// `EVTCHNOP_bind_interdomain`.
pub const OP_BIND_INTERDOMAIN: u32 = 0;
/// `EVTCHNOP_bind_virq`.
pub const OP_BIND_VIRQ: u32 = 1;
/// `EVTCHNOP_close`.
pub const OP_CLOSE: u32 = 3;
/// `EVTCHNOP_send`.
pub const OP_SEND: u32 = 4;
/// `EVTCHNOP_status`.
pub const OP_STATUS: u32 = 5;
/// `EVTCHNOP_alloc_unbound`.
pub const OP_ALLOC_UNBOUND: u32 = 6;

/// `VIRQ_TIMER`: the one-shot timer of a vCPU.
pub const VIRQ_TIMER: u32 = 0;

/// `EVTCHNSTAT_interdomain`: bound to a port of another domain.
pub const STATUS_INTERDOMAIN: u32 = 2;

/// Argument of [`OP_BIND_INTERDOMAIN`].
#[repr(C)]
#[derive(Debug)]
pub struct BindInterdomain {
    /// In: the domain that owns the unbound port.
    pub remote_dom: DomId,
    /// Padding.
    pub pad: u16,
    /// In: its port.
    pub remote_port: EventPort,
    /// Out: our port.
    pub local_port: EventPort,
}
const _: () = assert!(size_of::<BindInterdomain>() == 12);

/// Argument of [`OP_BIND_VIRQ`].
#[repr(C)]
#[derive(Debug)]
pub struct BindVirq {
    /// In: number of the virtual interrupt.
    pub virq: u32,
    /// In: vCPU.
    pub vcpu: u32,
    /// Out: our port.
    pub port: EventPort,
}
const _: () = assert!(size_of::<BindVirq>() == 12);

/// Argument of [`OP_CLOSE`] and [`OP_SEND`].
#[repr(C)]
#[derive(Debug)]
pub struct PortOnly {
    /// In: our port.
    pub port: EventPort,
}
const _: () = assert!(size_of::<PortOnly>() == 4);

/// Argument of [`OP_STATUS`].
#[repr(C)]
#[derive(Debug, Default)]
pub struct Status {
    /// In: domain that owns the port (`DOMID_SELF`).
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// In: the port.
    pub port: u32,
    /// Out: 0 closed, 1 unbound, 2 interdomain, 3 physical interrupt, 4 virtual interrupt, 5 IPI.
    pub status: u32,
    /// Out: vCPU that gets the events.
    pub vcpu: u32,
    /// Out: union; for an interdomain port the domain at the other end.
    pub remote_dom: u16,
    /// Padding.
    pub pad2: u16,
    /// Out: union; for an interdomain port the port at the other end.
    pub remote_port: u32,
}
const _: () = assert!(size_of::<Status>() == 24);

/// Argument of [`OP_ALLOC_UNBOUND`].
#[repr(C)]
#[derive(Debug)]
pub struct AllocUnbound {
    /// In: domain that gets the port (`DOMID_SELF`).
    pub dom: DomId,
    /// In: the only domain that may bind to it.
    pub remote_dom: DomId,
    /// Out: the port.
    pub port: EventPort,
}
const _: () = assert!(size_of::<AllocUnbound>() == 8);

/// Number of ports of the 2-level ABI on x86-64 (`EVTCHN_2L_NR_CHANNELS`).
pub const PORTS: u32 = 4096;
