//! `shared_info`, `vcpu_info` and the time structures: Xen public/xen.h, 64-bit layout. One vCPU only.

/// `vcpu_info[0].evtchn_upcall_pending`, u8.
pub const UPCALL_PENDING: usize = 0;
/// `vcpu_info[0].evtchn_pending_sel`, u64: bit n says that word n of the pending array has news.
pub const PENDING_SEL: usize = 8;
/// `vcpu_info[0].time`, 32 bytes: see [`TIME_VERSION`] and the following.
pub const VCPU_TIME: usize = 32;
/// `evtchn_pending`, 64 words of 64 bits.
pub const EVTCHN_PENDING: usize = 2048;
/// `evtchn_mask`, 64 words of 64 bits.
pub const EVTCHN_MASK: usize = 2560;
/// `wc_version`, u32: sequence lock of the wall clock, odd while Xen writes.
pub const WC_VERSION: usize = 3072;
/// `wc_sec`, u32, low half.
pub const WC_SEC: usize = 3076;
/// `wc_nsec`, u32.
pub const WC_NSEC: usize = 3080;
/// `wc_sec_hi`, u32.
pub const WC_SEC_HI: usize = 3084;

/// `vcpu_time_info.version`, u32: odd while Xen writes. Offsets from here on are relative to [`VCPU_TIME`].
pub const TIME_VERSION: usize = 0;
/// `tsc_timestamp`, u64.
pub const TIME_TSC: usize = 8;
/// `system_time`, u64, ns.
pub const TIME_SYSTEM: usize = 16;
/// `tsc_to_system_mul`, u32.
pub const TIME_MUL: usize = 24;
/// `tsc_shift`, i8.
pub const TIME_SHIFT: usize = 28;
