//! The stacks, each above a page that the final page tables leave out.

use core::mem::offset_of;

const PAGE: usize = 4096;
/// Bytes of the main stack.
const MAIN: usize = 256 * 1024;
/// Bytes of a stack for exceptions.
const SMALL: usize = 16 * 1024;

/// All stacks. Each grows down towards its guard page.
#[repr(C, align(4096))]
pub(super) struct Stacks {
    guard_main: [u8; PAGE],
    main: [u8; MAIN],
    guard_exception: [u8; PAGE],
    exception: [u8; SMALL],
    guard_double_fault: [u8; PAGE],
    double_fault: [u8; SMALL],
    guard_nmi: [u8; PAGE],
    nmi: [u8; SMALL],
}

pub(super) static mut STACKS: Stacks = Stacks {
    guard_main: [0; PAGE],
    main: [0; MAIN],
    guard_exception: [0; PAGE],
    exception: [0; SMALL],
    guard_double_fault: [0; PAGE],
    double_fault: [0; SMALL],
    guard_nmi: [0; PAGE],
    nmi: [0; SMALL],
};

/// Offset of the main stack's end in [`STACKS`]: a multiple of 16, as calls need.
pub(super) const MAIN_TOP: usize = offset_of!(Stacks, guard_exception);

/// Addresses one past the ends of the stacks of the interrupt stack table, entries 1 to 3: exceptions, double fault, and
/// NMI with machine check.
pub(super) fn interrupt_stack_tops() -> [u64; 3] {
    let base = (&raw const STACKS).addr();
    [offset_of!(Stacks, guard_double_fault), offset_of!(Stacks, guard_nmi), size_of::<Stacks>()]
        .map(|offset| (base + offset) as u64)
}

/// Addresses of the guard pages.
pub(super) fn guards() -> [u64; 4] {
    let base = (&raw const STACKS).addr();
    [
        offset_of!(Stacks, guard_main),
        offset_of!(Stacks, guard_exception),
        offset_of!(Stacks, guard_double_fault),
        offset_of!(Stacks, guard_nmi),
    ]
    .map(|offset| (base + offset) as u64)
}
