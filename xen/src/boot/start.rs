//! The order in which things come up.

use core::fmt::Display;

use alloc::string::String;

use super::memory_map::{Layout, MAX_ENTRIES, MemoryMap};
use super::start_info::{Physical, StartInfo};
use super::{BootInfo, descriptors, early, exceptions, paging};
use crate::abi::vcpu::{EVTCHN_MASK, UPCALL_PENDING};
use crate::hypercall::{self, ARGUMENT_PAGES, WINDOW_BYTES, cpu};
use crate::mem::PAGE_SIZE;
use crate::{console, mem, time};

/// End of what the first page tables map.
const EARLY_MAPPED: u64 = 4 << 30;

unsafe extern "Rust" {
    /// Defined by `xen::entry!` in the binary.
    safe fn firewall_run(info: BootInfo) -> !;
}

/// First Rust function: 64-bit mode, early page tables, main stack, interrupts off.
pub(super) extern "C" fn start(start_info: u64, entry_tsc: u64) -> ! {
    descriptors::load();
    if !hypercall::is_on_xen() {
        early::no_hypervisor();
    }
    hypercall::select_instruction();
    let entry_running_ns = hypercall::vcpu_running_ns();
    let info = read_start_info(start_info);
    let arguments_bytes = (ARGUMENT_PAGES * PAGE_SIZE) as u64;
    let layout = info.map.layout(paging::image(), arguments_bytes, WINDOW_BYTES);
    let layout = or_die("memory map", layout);
    take_memory(&layout);
    let cmdline = String::from(info.cmdline()).leak();
    connect_to_xen(&layout);
    let since_entry = hypercall::ticks_to_ns(cpu::rdtsc().saturating_sub(entry_tsc));
    firewall_run(BootInfo {
        cmdline,
        memory_bytes: info.map.ram_bytes(),
        entry_ns: time::system_time_ns().saturating_sub(since_entry),
        entry_running_ns,
        xen_version: hypercall::xen_version(),
    })
}

/// Copies the start information before any RAM that it may lie in is used.
fn read_start_info(address: u64) -> StartInfo {
    let mut info = or_die("start information", StartInfo::read(&EarlyMemory, address));
    if info.map.is_empty() {
        info.map = memory_map_from_xen();
    }
    info
}

/// Version 0 of the start information has no map.
fn memory_map_from_xen() -> MemoryMap {
    let mut buffer = [[0; 5]; MAX_ENTRIES];
    let mut map = MemoryMap::default();
    let entries = hypercall::memory_map(&mut buffer).unwrap_or(0);
    for [start_low, start_high, size_low, size_high, kind] in buffer.into_iter().take(entries) {
        let wide = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        map.push(wide(start_low, start_high), wide(size_low, size_high), kind);
    }
    map
}

/// Final page tables, heap, page pool.
fn take_memory(layout: &Layout) {
    // SAFETY: called once; the start information has been copied, so only the image, the layout's ranges and the
    // special pages are used from here on.
    let protected = unsafe { paging::protect(layout, hypercall::special_pages()) };
    or_die("page tables", protected);
    let pool = layout.pool.into_iter().map(|piece| (piece.start, piece.bytes()));
    // SAFETY: the layout's ranges are disjoint RAM outside of the image that the page tables map read-write, and
    // nobody else uses them.
    let initialised = unsafe { mem::initialise((layout.heap.start, layout.heap.bytes()), pool) };
    assert!(initialised, "the heap cannot hold the page pool's bookkeeping");
    // SAFETY: the layout gives these pages to nobody else, and nothing is in that GiB.
    unsafe { hypercall::settle_arguments(layout.arguments.start, paging::arguments_gib(layout)) };
}

/// `shared_info`, console, event upcalls.
fn connect_to_xen(layout: &Layout) {
    if let Err(error) = hypercall::set_window(layout.window.start) {
        panic!("shared_info cannot be mapped: error {}", error.0);
    }
    let shared = hypercall::shared_info();
    // Xen hands the page out with every port unmasked.
    for word in 0..64 {
        shared.write_u64(EVTCHN_MASK + word * 8, u64::MAX);
    }
    if !console::connect() {
        early::log(format_args!("no console"));
    }
    exceptions::set_upcall_pending_address(layout.window.start + UPCALL_PENDING as u64);
    if let Err(error) = hypercall::fix_layout() {
        panic!("event upcalls cannot be set up: error {}", error.0);
    }
}

fn or_die<T, E: Display>(what: &str, result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Guest-physical memory under the first page tables.
struct EarlyMemory;

impl Physical for EarlyMemory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let end = address.checked_add(bytes.len() as u64)?;
        if address == 0 || end > EARLY_MAPPED {
            return None;
        }
        for (at, byte) in (address..).zip(bytes) {
            let pointer = core::ptr::with_exposed_provenance::<u8>(at as usize);
            // SAFETY: the first page tables map all of it. What is not RAM reads as all ones and harms nobody;
            // volatile, as this memory belongs to no Rust object.
            *byte = unsafe { pointer.read_volatile() };
        }
        Some(())
    }
}
