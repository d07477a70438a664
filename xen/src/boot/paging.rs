//! The final page tables: nothing is both writable and executable, and what should not be touched is not there.

use core::arch::asm;

use super::memory_map::{Layout, Range};
use super::page_table::{Builder, MapError, Protection, TABLES, Table};
use super::stacks;
use crate::hypercall::{self, cpu};

const PAGE: u64 = 4096;

/// Placed in `.bss`; alive as long as the domain.
static mut FINAL_TABLES: [Table; TABLES] = [Table([0; 512]); TABLES];

// Boundaries that the linker script defines; only their addresses mean anything.
unsafe extern "C" {
    static image_start: u8;
    static image_rodata: u8;
    static image_data: u8;
    static image_end: u8;
}

/// Where the image lies.
pub(super) fn image() -> Range {
    Range {
        start: (&raw const image_start).addr() as u64,
        end: (&raw const image_end).addr() as u64,
    }
}

/// Builds the tables and switches to them. Only what `layout` names, the image and `special_pages` stays mapped.
///
/// # Safety
/// To be called once. No pointer to memory outside of these may be used afterwards, none to the text or to read-only
/// data for writing.
pub(super) unsafe fn protect(
    layout: &Layout,
    special_pages: [Option<u64>; 2],
) -> Result<(), MapError> {
    let tables = &raw mut FINAL_TABLES;
    // SAFETY: called once (above), so this is the only reference there ever is.
    let mut builder =
        Builder::new(unsafe { &mut *tables }, tables.addr() as u64, enable_no_execute());
    map_image(&mut builder)?;
    for piece in layout.ram {
        builder.map(piece.start, piece.end, Protection::Data)?;
    }
    for (start, end) in hypercall::window_parts(layout.window.start) {
        builder.map(start, end, Protection::Data)?;
    }
    for page in special_pages.into_iter().flatten() {
        builder.map(page, page + PAGE, Protection::Data)?;
    }
    if let Some(gib) = arguments_gib(layout) {
        builder.map_gib(gib)?;
    }
    // SAFETY: the new tables map the running code, its data and its stack where they are.
    unsafe { asm!("mov cr3, {}", in(reg) tables.addr(), options(nostack)) };
    restrict_processor();
    Ok(())
}

/// The GiB that one page maps, for the arguments of hypercalls.
pub(super) fn arguments_gib(layout: &Layout) -> Option<u64> {
    layout.empty_gib.filter(|_| hypercall::has_gib_pages())
}

fn map_image(builder: &mut Builder<'_>) -> Result<(), MapError> {
    let Range { start, end } = image();
    let rodata = (&raw const image_rodata).addr() as u64;
    let data = (&raw const image_data).addr() as u64;
    builder.map(start, rodata, Protection::Text)?;
    builder.map(rodata, data, Protection::ReadOnly)?;
    // The guard pages below the stacks are in ascending order.
    let mut from = data;
    for guard in stacks::guards() {
        builder.map(from, guard, Protection::Data)?;
        from = guard + PAGE;
    }
    builder.map(from, end, Protection::Data)
}

/// Turns on the no-execute bit of page table entries if the processor has it.
fn enable_no_execute() -> bool {
    /// CPUID.80000001:EDX.NX
    const NX: u32 = 20;
    const EFER: u32 = 0xc000_0080;
    const EFER_NXE: u32 = 1 << 11;
    let [_, _, _, edx] = cpu::cpuid(0x8000_0001);
    let has_nx = edx & (1 << NX) != 0;
    if has_nx {
        // SAFETY: a defined bit of a register that every 64-bit processor has; no entry uses the bit yet.
        unsafe {
            asm!("rdmsr", "or eax, {nxe}", "wrmsr", nxe = const EFER_NXE, in("ecx") EFER, out("eax") _,
                out("edx") _, options(nostack));
        }
    }
    has_nx
}

/// Supervisor-mode execution prevention and user-mode instruction prevention, where the processor has them. There is
/// no user mode here; it costs nothing to keep it that way.
fn restrict_processor() {
    /// CPUID.7.0:EBX.SMEP, CR4.SMEP
    const SMEP: (u32, u32) = (7, 20);
    /// CPUID.7.0:ECX.UMIP, CR4.UMIP
    const UMIP: (u32, u32) = (2, 11);
    let smep = if cpu::has_leaf7(false, SMEP.0) { 1 << SMEP.1 } else { 0 };
    let umip = if cpu::has_leaf7(true, UMIP.0) { 1 << UMIP.1 } else { 0 };
    let bits: u64 = smep | umip;
    // SAFETY: CPUID shows the bits; no page is a user page.
    unsafe {
        asm!("mov {cr4}, cr4", "or {cr4}, {bits}", "mov cr4, {cr4}", cr4 = out(reg) _, bits = in(reg) bits,
            options(nostack));
    }
}
