//! Mirrors of Xen's public headers: identifiers, structures, numbers. No behaviour.
//!
//! Each submodule cites its header; structure sizes and offsets are asserted at compile time.

pub mod event_channel;
pub mod grant_table;
pub mod platform;
pub mod vcpu;

/// Identifier of a domain (`domid_t` of Xen public/xen.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

impl DomId {
    /// The calling domain itself (`DOMID_SELF` of Xen public/xen.h).
    pub const SELF: DomId = DomId(0x7ff0);
    /// The control domain, which runs xenstored and the toolstack.
    pub const DOM0: DomId = DomId(0);
}

/// Index into some domain's grant table (`grant_ref_t` of Xen public/grant_table.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef(pub u32);

/// Number of an event-channel port (`evtchn_port_t` of Xen public/event_channel.h). Port 0 is never valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPort(pub u32);

/// Guest frame number: guest-physical address divided by 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

impl Gfn {
    /// Frame of a page of ours: the image maps guest-physical memory at the same virtual address. 32 bits, as an
    /// entry of grant table version 1 holds.
    pub(crate) const fn of_address(address: usize) -> Gfn {
        Gfn((address >> 12) as u32 as u64)
    }
}

/// A negative hypercall result, stored as the positive number of Xen public/errno.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Errno = Errno(1);
    /// No such domain.
    pub const ESRCH: Errno = Errno(3);
    /// Out of memory.
    pub const ENOMEM: Errno = Errno(12);
    /// Invalid argument.
    pub const EINVAL: Errno = Errno(22);
    /// No free port or frame.
    pub const ENOSPC: Errno = Errno(28);

    /// Splits a raw hypercall result into a non-negative value or an error.
    pub const fn check(result: i64) -> Result<u64, Errno> {
        if result >= 0 {
            Ok(result.unsigned_abs())
        } else {
            Err(Errno(result.unsigned_abs() as u32))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_results_become_errors() {
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(17), Ok(17));
        assert_eq!(Errno::check(-22), Err(Errno::EINVAL));
    }
}
