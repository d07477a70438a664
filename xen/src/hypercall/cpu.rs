//! Single processor instructions that need `unsafe` or are not worth a home of their own.
use core::arch::x86_64::{__cpuid_count, _rdrand64_step, _rdseed64_step, _rdtsc};
use core::cell::Cell;

use crate::mem::global;

/// The time-stamp counter, read after all earlier loads.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC and LFENCE; CR4.TSD is clear, or would fault, not corrupt.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        _rdtsc()
    }
}

/// Leaves that are remembered.
const LEAVES: usize = 8;

/// A leaf and its EAX, EBX, ECX, EDX.
type Leaf = (u32, [u32; 4]);

global! {
    static KNOWN: [Cell<Option<Leaf>>; LEAVES] = [const { Cell::new(None) }; LEAVES];
}

/// EAX, EBX, ECX, EDX of a leaf (subleaf 0). Asked for once: it is an exit to Xen, and the leaves that are looked at here do
/// not change while the domain lives.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    KNOWN.with(|known| {
        if let Some((_, registers)) =
            known.iter().filter_map(Cell::get).find(|(one, _)| *one == leaf)
        {
            return registers;
        }
        let result = __cpuid_count(leaf, 0);
        let registers = [result.eax, result.ebx, result.ecx, result.edx];
        if let Some(place) = known.iter().find(|place| place.get().is_none()) {
            place.set(Some((leaf, registers)));
        }
        registers
    })
}

/// Whether leaf 7 exists and has this bit of EBX or ECX.
pub(crate) fn has_leaf7(in_ecx: bool, bit: u32) -> bool {
    let [highest, ..] = cpuid(0);
    if highest < 7 {
        return false;
    }
    let [_, ebx, ecx, _] = cpuid(7);
    let register = if in_ecx { ecx } else { ebx };
    register & (1 << bit) != 0
}

/// The processor's instructions for random numbers.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_the_same_when_it_is_remembered() {
        // More leaves than there are places.
        let leaves = [0, 1, 7, 0x8000_0000, 0x8000_0001, 0x8000_0002, 0x8000_0003, 0x8000_0004, 2];
        for leaf in leaves {
            let [_, vendor_or_features, ..] = cpuid(leaf);
            let result = __cpuid_count(leaf, 0);
            if leaf != 1 {
                // EBX of leaf 1 has the number of the processor that it was asked on.
                assert_eq!(vendor_or_features, result.ebx, "leaf {leaf:#x}");
            }
            assert_eq!(cpuid(leaf)[0], result.eax, "leaf {leaf:#x}");
        }
        assert_eq!(KNOWN.with(|known| known.iter().flat_map(Cell::get).count()), LEAVES);
    }
}
