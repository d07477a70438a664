//! Single processor instructions that need `unsafe` or are not worth a home of their own.
use core::arch::x86_64::{__cpuid, __cpuid_count, _rdrand64_step, _rdseed64_step, _rdtsc};

/// The time-stamp counter, read after all earlier loads.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC and LFENCE; CR4.TSD is clear, or would fault, not corrupt.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        _rdtsc()
    }
}

/// EAX, EBX, ECX, EDX of a leaf.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    let result = __cpuid(leaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Whether subleaf 0 of leaf 7 exists and has this bit of EBX or ECX.
pub(crate) fn has_leaf7(in_ecx: bool, bit: u32) -> bool {
    let [highest, ..] = cpuid(0);
    let leaf = __cpuid_count(7, 0);
    let register = if in_ecx { leaf.ecx } else { leaf.ebx };
    highest >= 7 && register & (1 << bit) != 0
}

/// 64 bits from RDSEED, if the processor has it and some are ready.
pub(crate) fn rdseed() -> Option<u64> {
    /// CPUID.7.0:EBX.RDSEED
    const RDSEED: u32 = 18;
    let mut value = 0;
    // SAFETY: only executed if CPUID reports the instruction.
    (has_leaf7(false, RDSEED) && unsafe { _rdseed64_step(&mut value) } == 1).then_some(value)
}

/// 64 bits from RDRAND, if the processor has it and some are ready.
pub(crate) fn rdrand() -> Option<u64> {
    /// CPUID.1:ECX.RDRAND
    const RDRAND: u32 = 30;
    let [_, _, ecx, _] = cpuid(1);
    let mut value = 0;
    // SAFETY: only executed if CPUID reports the instruction.
    (ecx & (1 << RDRAND) != 0 && unsafe { _rdrand64_step(&mut value) } == 1).then_some(value)
}
