//! The trap itself.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use super::cpu;
use crate::abi::Errno;

/// Whether the processor is AMD's (or Hygon's): VMMCALL instead of VMCALL.
static IS_AMD: AtomicBool = AtomicBool::new(false);

/// Picks the instruction. To be called before the first hypercall.
///
/// Direct instructions and not Xen's hypercall page: that page's code is out of reach of our own mitigations
/// (Xen Security Advisory 466).
pub(crate) fn select_instruction() {
    let [_, ebx, ecx, edx] = cpu::cpuid(0);
    let mut vendor = [0; 12];
    for (slot, byte) in
        vendor.iter_mut().zip([ebx, edx, ecx].into_iter().flat_map(u32::to_le_bytes))
    {
        *slot = byte;
    }
    IS_AMD.store(vendor == *b"AuthenticAMD" || vendor == *b"HygonGenuine", Ordering::Relaxed);
}

/// A hypercall with three arguments; none of ours has more.
///
/// # Safety
/// Number and arguments must form a hypercall of Xen's public interface whose pointers are valid for what it reads and
/// writes, and its effect on memory must not break a reference that exists.
pub(super) unsafe fn hypercall(number: u64, arguments: [u64; 3]) -> Result<u64, Errno> {
    let [first, second, third] = arguments;
    let result: i64;
    if IS_AMD.load(Ordering::Relaxed) {
        // SAFETY: the caller's. Xen preserves all registers but the result and, in debug builds, the arguments.
        unsafe {
            asm!("vmmcall", inlateout("rax") number => result, inlateout("rdi") first => _,
                inlateout("rsi") second => _, inlateout("rdx") third => _, lateout("r10") _, lateout("r8") _,
                lateout("r9") _, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
    } else {
        // SAFETY: as above.
        unsafe {
            asm!("vmcall", inlateout("rax") number => result, inlateout("rdi") first => _,
                inlateout("rsi") second => _, inlateout("rdx") third => _, lateout("r10") _, lateout("r8") _,
                lateout("r9") _, lateout("rcx") _, lateout("r11") _, options(nostack));
        }
    }
    Errno::check(result)
}
