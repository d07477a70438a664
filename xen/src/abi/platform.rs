//! Hypercall numbers and the small structures around start, shutdown and time: Xen public/xen.h, sched.h, vcpu.h,
//! memory.h, hvm/params.h, hvm/hvm_op.h, arch-x86/cpuid.h, io/console.h.

/// `__HYPERVISOR_memory_op`.
pub const MEMORY_OP: u64 = 12;
/// `__HYPERVISOR_multicall`.
pub const MULTICALL: u64 = 13;
/// `__HYPERVISOR_xen_version`.
pub const XEN_VERSION: u64 = 17;
/// `__HYPERVISOR_grant_table_op`.
pub const GRANT_TABLE_OP: u64 = 20;
/// `__HYPERVISOR_vcpu_op`.
pub const VCPU_OP: u64 = 24;
/// `__HYPERVISOR_sched_op`.
pub const SCHED_OP: u64 = 29;
/// `__HYPERVISOR_event_channel_op`.
pub const EVENT_CHANNEL_OP: u64 = 32;
/// `__HYPERVISOR_hvm_op`.
pub const HVM_OP: u64 = 34;

/// One call of several (`struct multicall_entry` of Xen public/xen.h).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MulticallEntry {
    /// Number of the hypercall.
    pub op: u64,
    /// What it returned.
    pub result: u64,
    /// Its arguments.
    pub args: [u64; 6],
}
const _: () = assert!(size_of::<MulticallEntry>() == 64);

/// `XENMEM_add_to_physmap`.
pub const MEMORY_ADD_TO_PHYSMAP: u32 = 7;
/// `XENMEM_memory_map`.
pub const MEMORY_MEMORY_MAP: u32 = 9;
/// `XENMAPSPACE_shared_info`.
pub const MAP_SPACE_SHARED_INFO: u32 = 0;
/// `XENMAPSPACE_grant_table`.
pub const MAP_SPACE_GRANT_TABLE: u32 = 1;
/// `XENMAPSPACE_gmfn`: a page of the domain itself, which moves.
pub const MAP_SPACE_GFN: u32 = 2;

/// `VCPUOP_get_runstate_info`.
pub const VCPU_GET_RUNSTATE: u32 = 4;
/// `VCPUOP_set_singleshot_timer`.
pub const VCPU_SET_SINGLESHOT_TIMER: u32 = 8;
/// `SCHEDOP_poll`.
pub const SCHED_POLL: u32 = 3;
/// Most ports that `SCHEDOP_poll` takes.
pub const MAX_POLLED_PORTS: usize = 128;
/// `SCHEDOP_shutdown`.
pub const SCHED_SHUTDOWN: u32 = 2;
/// `HVMOP_set_param`.
pub const HVM_SET_PARAM: u32 = 0;
/// `HVMOP_get_param`.
pub const HVM_GET_PARAM: u32 = 1;

/// `HVM_PARAM_CALLBACK_IRQ`.
pub const PARAM_CALLBACK_IRQ: u32 = 0;
/// `HVM_PARAM_STORE_PFN`.
pub const PARAM_STORE_PFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`.
pub const PARAM_STORE_EVTCHN: u32 = 2;
/// `HVM_PARAM_CONSOLE_PFN`.
pub const PARAM_CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`.
pub const PARAM_CONSOLE_EVTCHN: u32 = 18;
/// `HVM_PARAM_CALLBACK_TYPE_VECTOR` in the top byte of [`PARAM_CALLBACK_IRQ`]: the low byte is an interrupt vector.
pub const CALLBACK_VIA_VECTOR: u64 = 2 << 56;

/// `SHUTDOWN_poweroff`.
pub const SHUTDOWN_POWEROFF: u32 = 0;
/// `SHUTDOWN_reboot`.
pub const SHUTDOWN_REBOOT: u32 = 1;
/// `SHUTDOWN_suspend`.
pub const SHUTDOWN_SUSPEND: u32 = 2;
/// `SHUTDOWN_crash`.
pub const SHUTDOWN_CRASH: u32 = 3;

/// First leaf that may be Xen's; the others follow in steps of [`CPUID_STEP`], since Viridian leaves may come first.
pub const CPUID_FIRST: u32 = 0x4000_0000;
/// End of the leaves to look at.
pub const CPUID_LIMIT: u32 = 0x4001_0000;
/// Distance of the leaves to look at.
pub const CPUID_STEP: u32 = 0x100;
/// "XenVMMXenVMM" in EBX, ECX, EDX.
pub const CPUID_SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];

/// Distance of the leaf with HVM properties from the first leaf.
pub const CPUID_HVM_LEAF: u32 = 4;
/// `XEN_HVM_CPUID_DOMID_PRESENT` in EAX of that leaf: ECX is our domain.
pub const CPUID_HVM_DOMID_PRESENT: u32 = 1 << 4;

/// Console page: bytes of the output ring (`xencons_interface.out`).
pub const CONSOLE_OUT_BYTES: u32 = 2048;
/// Offset of the output ring.
pub const CONSOLE_OUT: usize = 1024;
/// Offset of `out_cons`, u32.
pub const CONSOLE_OUT_CONS: usize = 3080;
/// Offset of `out_prod`, u32.
pub const CONSOLE_OUT_PROD: usize = 3084;

/// `struct xen_add_to_physmap`.
#[repr(C)]
#[derive(Debug)]
pub struct AddToPhysmap {
    /// In: `DOMID_SELF`.
    pub dom: u16,
    /// In: 0.
    pub size: u16,
    /// In: what to map.
    pub space: u32,
    /// In: index within the space.
    pub index: u64,
    /// In: where to.
    pub gfn: u64,
}
const _: () = assert!(size_of::<AddToPhysmap>() == 24);

/// `struct xen_memory_map`.
#[repr(C)]
#[derive(Debug)]
pub struct MemoryMapRequest {
    /// In: entries that fit into the buffer; out: entries written.
    pub entries: u32,
    /// Padding.
    pub pad: u32,
    /// In: address of the buffer of 20-byte entries `{u64 address; u64 size; u32 type}`.
    pub buffer: u64,
}
const _: () = assert!(size_of::<MemoryMapRequest>() == 16);

/// `struct vcpu_runstate_info`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Runstate {
    /// Out: 0 running, 1 runnable, 2 blocked, 3 offline.
    pub state: u32,
    /// Padding.
    pub pad: u32,
    /// Out: system time of the last change, ns.
    pub entered: u64,
    /// Out: ns spent in each state.
    pub time: [u64; 4],
}
const _: () = assert!(size_of::<Runstate>() == 48);

/// `struct vcpu_set_singleshot_timer`.
#[repr(C)]
#[derive(Debug)]
pub struct SingleshotTimer {
    /// In: system time, ns.
    pub timeout_abs_ns: u64,
    /// In: 0.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<SingleshotTimer>() == 16);

/// `struct xen_hvm_param`.
#[repr(C)]
#[derive(Debug)]
pub struct HvmParam {
    /// In: `DOMID_SELF`.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// In: which parameter.
    pub index: u32,
    /// In or out: its value.
    pub value: u64,
}
const _: () = assert!(size_of::<HvmParam>() == 16);

/// Argument of [`SCHED_POLL`] (`sched_poll`, Xen public/sched.h).
#[repr(C)]
#[derive(Debug)]
pub struct Poll {
    /// Linear address of the port numbers, u32 each.
    pub ports: u64,
    /// How many.
    pub count: u32,
    /// Padding.
    pub pad: u32,
    /// System time in ns at which the sleep ends; 0 for never.
    pub timeout_ns: u64,
}
const _: () = assert!(size_of::<Poll>() == 24);
