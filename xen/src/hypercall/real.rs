//! The seam's side in the image.

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::arguments::{self, MAX_COPIES};
pub(crate) use super::arguments::{ARGUMENT_PAGES, has_gib_pages, settle as settle_arguments};
use super::{cpu, trap};
use crate::abi::grant_table::{
    GrantCopy, GrantStatus, MapGrantRef, OP_COPY, OP_MAP, OP_QUERY_SIZE, OP_UNMAP, QuerySize,
    UnmapGrantRef,
};
use crate::abi::platform::*;
use crate::abi::{DomId, Errno, EventPort};
use crate::mem::PAGE_SIZE;
use crate::shared::SharedPage;
use crate::time::PvClock;
pub(crate) use trap::select_instruction;

/// Where the hole begins that Xen's pages and peers' grants are mapped into: `shared_info`, then the frames of the
/// grant table, then from the second large page on the window for peers' pages.
static WINDOW: AtomicU64 = AtomicU64::new(0);

/// Xen raises interrupts.
pub(super) static UPCALLS_WANTED: AtomicBool = AtomicBool::new(false);

/// Frames that the grant table may grow to at most.
const MAX_GRANT_FRAMES: u32 = 64;
/// Pages of the hole ahead of the mapping window.
const WINDOW_FIRST_PAGE: usize = 512;
/// Address space that [`set_window`] needs.
pub(crate) const WINDOW_BYTES: u64 =
    ((WINDOW_FIRST_PAGE + crate::grant::WINDOW_PAGES) * PAGE_SIZE) as u64;

/// Pages of the hole that are used: for the page tables.
pub(crate) fn window_parts(base: u64) -> [(u64, u64); 3] {
    let page = PAGE_SIZE as u64;
    let frames = base + 2 * page;
    let window = base + (WINDOW_FIRST_PAGE * PAGE_SIZE) as u64;
    [
        (base, base + page),
        (frames, frames + u64::from(MAX_GRANT_FRAMES) * page),
        (window, base + WINDOW_BYTES),
    ]
}

/// A hypercall whose second argument is a structure that Xen reads and writes.
pub(super) fn call<T>(number: u64, command: u32, argument: &mut T) -> Result<u64, Errno> {
    // SAFETY: the callers, here and in `events`, pair each command with the `repr(C)` structure that Xen's header gives for it, or with
    // a slice of it; Xen accesses nothing else but pages that are mapped for sharing.
    unsafe { trap::hypercall(number, [command.into(), (&raw mut *argument).addr() as u64, 0]) }
}

fn grant_call<T>(command: u32, ops: &mut [T]) -> Result<u64, Errno> {
    let (pointer, count) = (ops.as_mut_ptr().addr() as u64, ops.len() as u64);
    // SAFETY: the callers pair each command with its structure; count is the slice's. Pages that Xen copies to are
    // owned by the copy batch or lie in a mapping window that no reference points into.
    unsafe { trap::hypercall(GRANT_TABLE_OP, [command.into(), pointer, count]) }
}

/// Maps `shared_info` at the start of the hole `base..base + WINDOW_BYTES`, which the page tables must already show.
pub(crate) fn set_window(base: u64) -> Result<(), Errno> {
    WINDOW.store(base, Ordering::Relaxed);
    add_to_physmap(MAP_SPACE_SHARED_INFO, 0, base)
}

fn add_to_physmap(space: u32, index: u64, address: u64) -> Result<(), Errno> {
    let gfn = address / PAGE_SIZE as u64;
    let mut request = AddToPhysmap { dom: DomId::SELF.0, size: 0, space, index, gfn };
    call(MEMORY_OP, MEMORY_ADD_TO_PHYSMAP, &mut request).map(drop)
}

/// Moves a page of ours to another guest-physical address.
pub(super) fn move_page(from: u64, to: u64) -> Result<(), Errno> {
    add_to_physmap(MAP_SPACE_GFN, from / PAGE_SIZE as u64, to)
}

/// A page that Xen has mapped into the hole or that the toolstack shares with us.
fn shared_page(address: u64) -> SharedPage {
    let pointer = NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize));
    // SAFETY: the addresses come from the hole or from Xen's special pages: mapped read-write, never allocated.
    unsafe { SharedPage::from_raw(pointer.expect("shared pages are not at address 0")) }
}

pub(crate) fn shared_info() -> SharedPage {
    shared_page(WINDOW.load(Ordering::Relaxed))
}

/// Address of `shared_info`; the page after it is not mapped.
pub(crate) fn shared_info_address() -> usize {
    WINDOW.load(Ordering::Relaxed) as usize
}

pub(crate) fn grant_frame(index: u32) -> Option<SharedPage> {
    if index >= max_grant_frames() {
        return None;
    }
    let address = WINDOW.load(Ordering::Relaxed) + (2 + u64::from(index)) * PAGE_SIZE as u64;
    add_to_physmap(MAP_SPACE_GRANT_TABLE, index.into(), address).ok()?;
    Some(shared_page(address))
}

fn max_grant_frames() -> u32 {
    let status = GrantStatus::GENERAL_ERROR;
    let mut query =
        [QuerySize { dom: DomId::SELF.0, pad: 0, nr_frames: 0, max_nr_frames: 0, status, pad2: 0 }];
    let result = grant_call(OP_QUERY_SIZE, &mut query);
    let [query] = query;
    if result.is_err() || query.status != GrantStatus::OKAY {
        0
    } else {
        query.max_nr_frames.min(MAX_GRANT_FRAMES)
    }
}

pub(crate) fn window_address(page: usize) -> u64 {
    WINDOW.load(Ordering::Relaxed) + ((WINDOW_FIRST_PAGE + page) * PAGE_SIZE) as u64
}

pub(crate) fn mapped_page(address: u64) -> SharedPage {
    shared_page(address)
}

// The status of each operation tells what happened, an error of the whole call leaves the preset failures.

pub(crate) fn grant_map(ops: &mut [MapGrantRef]) {
    let _ = grant_call(OP_MAP, ops);
}

pub(crate) fn grant_unmap(ops: &mut [UnmapGrantRef]) {
    let _ = grant_call(OP_UNMAP, ops);
}

pub(crate) fn grant_copy(ops: &mut [GrantCopy]) {
    let place = arguments::place();
    for ops in ops.chunks_mut(MAX_COPIES) {
        // SAFETY: as for `place`; a chunk has at most as many operations as there are places.
        let copies = unsafe {
            let copies = (&raw mut (*place).copies).cast::<GrantCopy>();
            copies.copy_from_nonoverlapping(ops.as_ptr(), ops.len());
            copies
        };
        let (list, count) = (copies.addr() as u64, ops.len() as u64);
        // SAFETY: operations of this command, as many as were written. The pages that Xen copies to are owned by the batch.
        let _ = unsafe { trap::hypercall(GRANT_TABLE_OP, [OP_COPY.into(), list, count]) };
        for (at, op) in ops.iter_mut().enumerate() {
            // SAFETY: below `ops.len()`, written above.
            op.status = unsafe { (*copies.add(at)).status };
        }
    }
}

/// Sets the one-shot timer of the vCPU. A deadline in the past fires at once.
pub(crate) fn set_timer(deadline_ns: u64) -> Result<(), Errno> {
    let mut timer = SingleshotTimer { timeout_abs_ns: deadline_ns, flags: 0, pad: 0 };
    vcpu_call(VCPU_SET_SINGLESHOT_TIMER, &mut timer)
}

fn vcpu_call<T>(command: u32, argument: &mut T) -> Result<(), Errno> {
    let pointer = (&raw mut *argument).addr() as u64;
    // SAFETY: the two callers pair the command with its structure; vCPU 0 is the only one.
    unsafe { trap::hypercall(VCPU_OP, [command.into(), 0, pointer]) }.map(drop)
}

pub(crate) fn system_time_ns() -> u64 {
    PvClock::read_system_time(&shared_info(), cpu::rdtsc)
}

/// Nanoseconds that `ticks` of the time-stamp counter are.
pub(crate) fn ticks_to_ns(ticks: u64) -> u64 {
    PvClock::ticks_to_ns(&shared_info(), ticks)
}

pub(crate) fn vcpu_running_ns() -> u64 {
    let mut state = Runstate::default();
    match vcpu_call(VCPU_GET_RUNSTATE, &mut state) {
        Ok(()) => {
            let [running, ..] = state.time;
            running
        }
        Err(_) => 0,
    }
}

/// Ends or suspends the domain; returns only from a suspension, or if Xen refuses.
///
/// The toolstack gives a suspended domain that it resumes in place the return value 1 only if that takes interrupts for events
/// (`modify_returncode` of Xen's libxenguest): else it would look like a new domain.
pub(crate) fn shutdown(reason: u32) -> Result<u64, Errno> {
    let takes_interrupts = UPCALLS_WANTED.load(Ordering::Relaxed);
    if reason == SHUTDOWN_SUSPEND {
        set_callback(upcall())?;
    }
    let returned = call(SCHED_OP, SCHED_SHUTDOWN, &mut { reason });
    if !takes_interrupts {
        set_callback(0)?;
    }
    returned
}

/// Stops for good without Xen's help. With interrupts off a halted last vCPU is a powered-off domain.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: stops the only vCPU; nothing runs afterwards.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

pub(crate) fn store() -> Option<(SharedPage, EventPort)> {
    special_page(PARAM_STORE_PFN, PARAM_STORE_EVTCHN)
}

pub(crate) fn console() -> Option<(SharedPage, EventPort)> {
    special_page(PARAM_CONSOLE_PFN, PARAM_CONSOLE_EVTCHN)
}

fn special_page(page: u32, port: u32) -> Option<(SharedPage, EventPort)> {
    let address = special_page_address(page)?;
    let port = u32::try_from(hvm_param(port)?).ok().filter(|port| *port != 0)?;
    Some((shared_page(address), EventPort(port)))
}

/// Addresses of the pages of xenstore and console, for the page tables.
pub(crate) fn special_pages() -> [Option<u64>; 2] {
    [PARAM_STORE_PFN, PARAM_CONSOLE_PFN].map(special_page_address)
}

fn special_page_address(param: u32) -> Option<u64> {
    let gfn = hvm_param(param).filter(|gfn| *gfn != 0)?;
    // The first page tables end at 4 GiB.
    gfn.checked_mul(PAGE_SIZE as u64).filter(|address| *address < 4 << 30)
}

fn hvm_param(index: u32) -> Option<u64> {
    let mut param = HvmParam { dom: DomId::SELF.0, pad: 0, index, value: 0 };
    call(HVM_OP, HVM_GET_PARAM, &mut param).ok()?;
    Some(param.value)
}

/// How Xen raises an interrupt when an event is pending.
pub(super) fn upcall() -> u64 {
    CALLBACK_VIA_VECTOR | u64::from(crate::boot::UPCALL_VECTOR)
}

/// Fixes the layout of `shared_info`, which must be done in 64-bit mode: it happens when Xen is told of an interrupt. None is
/// wanted: with events to be delivered Xen would interrupt us, and have something to do at each entry until it can.
pub(crate) fn fix_layout() -> Result<(), Errno> {
    set_callback(upcall())?;
    set_callback(0)
}

pub(super) fn set_callback(value: u64) -> Result<(), Errno> {
    let mut param = HvmParam { dom: DomId::SELF.0, pad: 0, index: PARAM_CALLBACK_IRQ, value };
    call(HVM_OP, HVM_SET_PARAM, &mut param).map(drop)
}

/// Xen's version as major and minor number.
pub(crate) fn xen_version() -> (u32, u32) {
    // SAFETY: XENVER_version (0) takes no argument.
    let version = unsafe { trap::hypercall(XEN_VERSION, [0; 3]) }.unwrap_or_default() as u32;
    (version >> 16, version & 0xffff)
}

/// Xen's copy of the memory map, `{u64 address; u64 size; u32 type}` each; returns the number of entries.
pub(crate) fn memory_map(buffer: &mut [[u32; 5]]) -> Result<usize, Errno> {
    let (entries, buffer) = (buffer.len() as u32, buffer.as_mut_ptr().addr() as u64);
    let mut request = MemoryMapRequest { entries, pad: 0, buffer };
    call(MEMORY_OP, MEMORY_MEMORY_MAP, &mut request)?;
    Ok(request.entries.min(entries) as usize)
}

/// Whether Xen is there.
pub(crate) fn is_on_xen() -> bool {
    first_leaf().is_some()
}

/// Our number, if Xen tells it.
pub(crate) fn own_domain() -> Option<DomId> {
    let [flags, _, domain, _] = cpu::cpuid(first_leaf()? + CPUID_HVM_LEAF);
    (flags & CPUID_HVM_DOMID_PRESENT != 0).then_some(DomId(domain as u16))
}

/// Finds Xen's CPUID leaves. They need not be the first ones (Viridian), so all are looked at.
fn first_leaf() -> Option<u32> {
    (CPUID_FIRST..CPUID_LIMIT).step_by(CPUID_STEP as usize).find(|leaf| {
        let [highest, signature @ ..] = cpu::cpuid(*leaf);
        signature == CPUID_SIGNATURE && highest >= leaf + 2
    })
}

/// Writes to an I/O port.
pub(crate) fn out(port: u16, value: u8) {
    // SAFETY: the ports used (0xe9 Xen's debug port, 0x3f8.. serial, 0x501 QEMU's exit device) affect no memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}

/// Reads from an I/O port.
pub(crate) fn input(port: u16) -> u8 {
    let value;
    // SAFETY: as for `out`.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}
