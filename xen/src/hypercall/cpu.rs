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

/// The processor's instructions for random numbers. CPUID is asked once: it is an exit each time.
#[derive(Clone, Copy)]
pub(crate) struct Random {
    has_rdseed: bool,
    has_rdrand: bool,
}

impl Random {
    /// Those that CPUID reports.
    pub(crate) fn detect() -> Random {
        /// CPUID.7.0:EBX.RDSEED
        const RDSEED: u32 = 18;
        /// CPUID.1:ECX.RDRAND
        const RDRAND: u32 = 30;
        let [_, _, ecx, _] = cpuid(1);
        Random { has_rdseed: has_leaf7(false, RDSEED), has_rdrand: ecx & (1 << RDRAND) != 0 }
    }

    /// 64 bits from RDSEED, if the processor has it and some are ready.
    pub(crate) fn rdseed(self) -> Option<u64> {
        let mut value = 0;
        // SAFETY: only executed if CPUID reports the instruction; only `detect` sets the field.
        (self.has_rdseed && unsafe { _rdseed64_step(&mut value) } == 1).then_some(value)
    }

    /// 64 bits from RDRAND, if the processor has it and some are ready.
    pub(crate) fn rdrand(self) -> Option<u64> {
        let mut value = 0;
        // SAFETY: as in `rdseed`.
        (self.has_rdrand && unsafe { _rdrand64_step(&mut value) } == 1).then_some(value)
    }
}
