//! The C functions that the precompiled core library and the compiler call, in the image only.
//!
//! Long blocks use string instructions, eight bytes a step: microcode moves those as fast as single bytes, an emulator eight
//! times as fast. These take their time to begin, so blocks of up to 1,024 bytes (most that is moved here are values), and all
//! that is set up to a page, go through registers of 16 bytes, four in a step: each step is a jump, which an emulator has to
//! follow. The shortest are a few loads and then a few stores. A loop written in Rust would be recognised as `memcpy` and call
//! itself.

use core::arch::asm;
use core::ffi::{c_char, c_int};

/// # Safety
/// As `memcpy` of C: `len` bytes readable at `source` and writable at `dest`, not overlapping.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memcpy(dest: *mut u8, source: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        match len {
            0..=SHORT => copy_short(dest, source, len),
            _ if len <= 64 => copy_quarters(dest, source, len),
            _ if len <= MEDIUM => copy_medium(dest, source, len),
            _ => copy_up(dest, source, len),
        }
    }
    dest
}

/// # Safety
/// As `memmove` of C: `len` bytes readable at `source` and writable at `dest`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memmove(dest: *mut u8, source: *const u8, len: usize) -> *mut u8 {
    if len <= SHORT {
        // SAFETY: the caller's.
        unsafe { copy_short(dest, source, len) };
    } else if dest.addr().wrapping_sub(source.addr()) >= len {
        // SAFETY: the caller's; copying upwards reads each byte before it is overwritten, since `dest` is below
        // `source` or beyond its end.
        unsafe { copy_up(dest, source, len) };
    } else {
        // SAFETY: the caller's; downwards for the same reason: the first bytes, which the steps of eight may not reach, are
        // read before all others and written after them. The flag is clear again afterwards.
        unsafe {
            let first = source.cast::<u64>().read_unaligned();
            asm!("std", "rep movsq", "cld",
                inout("rcx") len / 8 => _,
                inout("rdi") dest.add(len - 8) => _,
                inout("rsi") source.add(len - 8) => _,
                options(nostack));
            dest.cast::<u64>().write_unaligned(first);
        }
    }
    dest
}

/// # Safety
/// As `memset` of C: `len` bytes writable at `dest`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memset(dest: *mut u8, value: c_int, len: usize) -> *mut u8 {
    let eight = u64::from(value as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller's. Each store lies within the block, which is at least as long as what is stored.
    unsafe {
        match len {
            0 => {}
            1..=3 => {
                for at in [0, len / 2, len - 1] {
                    dest.add(at).write(value as u8);
                }
            }
            4..=7 => set_ends(dest, eight as u32, len),
            8..=15 => set_ends(dest, eight, len),
            16..=SHORT => set_ends(dest, u128::from(eight) << 64 | u128::from(eight), len),
            _ if len <= 64 => {
                let value = u128::from(eight) << 64 | u128::from(eight);
                for at in quarters(len) {
                    dest.add(at).cast::<u128>().write_unaligned(value);
                }
            }
            _ if len <= PAGE => {
                asm!(
                    "movq {one}, {eight}",
                    "punpcklqdq {one}, {one}",
                    "2:",
                    "movups [{dest} + {at}], {one}",
                    "movups [{dest} + {at} + 16], {one}",
                    "movups [{dest} + {at} + 32], {one}",
                    "movups [{dest} + {at} + 48], {one}",
                    "add {at}, 64",
                    "cmp {at}, {last}",
                    "jb 2b",
                    "movups [{dest} + {last}], {one}",
                    "movups [{dest} + {last} + 16], {one}",
                    "movups [{dest} + {last} + 32], {one}",
                    "movups [{dest} + {last} + 48], {one}",
                    one = out(xmm_reg) _, eight = in(reg) eight, dest = in(reg) dest,
                    at = inout(reg) 0usize => _, last = in(reg) len - 64, options(nostack));
            }
            _ => {
                asm!("rep stosq", inout("rcx") len / 8 => _, inout("rdi") dest => _, in("rax") eight,
                    options(nostack, preserves_flags));
                dest.add(len - 8).cast::<u64>().write_unaligned(eight);
            }
        }
    }
    dest
}

/// # Safety
/// As `memcmp` of C: `len` bytes readable at both.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    let mut at = 0;
    // Eight bytes at a time while they are equal, then the deciding ones singly.
    while len - at >= 8 {
        // SAFETY: the caller's; `at + 8` is at most `len`.
        let (one, other) = unsafe {
            (
                left.add(at).cast::<u64>().read_unaligned(),
                right.add(at).cast::<u64>().read_unaligned(),
            )
        };
        if one != other {
            break;
        }
        at += 8;
    }
    while at < len {
        // SAFETY: the caller's; `at` is below `len`.
        let (one, other) = unsafe { (left.add(at).read(), right.add(at).read()) };
        if one != other {
            return c_int::from(one) - c_int::from(other);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As `bcmp` of C: `len` bytes readable at both.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    // SAFETY: the caller's.
    unsafe { memcmp(left, right, len) }
}

/// # Safety
/// As `strlen` of C: a NUL-terminated string.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut len = 0;
    // SAFETY: the caller's: every byte up to the NUL is readable. Volatile, so that the loop is not turned into a
    // call of `strlen`.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Longest block that two loads and two stores move.
const SHORT: usize = 32;
/// Longest block that is copied without a string instruction.
const MEDIUM: usize = 1024;
/// Longest block that is set without one.
const PAGE: usize = 4096;

/// # Safety
/// As `memmove`; `len` at most [`SHORT`].
#[inline]
unsafe fn copy_short(dest: *mut u8, source: *const u8, len: usize) {
    // SAFETY: the caller's: each call reads and writes within the block, which is at least as long as the value.
    unsafe {
        match len {
            0 => {}
            1..=3 => {
                let middle = len / 2;
                let bytes = [source.read(), source.add(middle).read(), source.add(len - 1).read()];
                let [first, second, last] = bytes;
                dest.write(first);
                dest.add(middle).write(second);
                dest.add(len - 1).write(last);
            }
            4..=7 => copy_ends::<u32>(dest, source, len),
            8..=15 => copy_ends::<u64>(dest, source, len),
            _ => copy_ends::<u128>(dest, source, len),
        }
    }
}

/// The first and the last `T` of the block: all of it if it is at most two `T` long. Loads come before stores, so
/// the blocks may overlap.
///
/// # Safety
/// As `memmove`; `len` at least the size of `T` and at most twice that.
#[inline]
unsafe fn copy_ends<T>(dest: *mut u8, source: *const u8, len: usize) {
    let last = len - size_of::<T>();
    // SAFETY: the caller's.
    unsafe {
        let values =
            (source.cast::<T>().read_unaligned(), source.add(last).cast::<T>().read_unaligned());
        dest.cast::<T>().write_unaligned(values.0);
        dest.add(last).cast::<T>().write_unaligned(values.1);
    }
}

/// The same value at both ends of the block.
///
/// # Safety
/// As `memset`; `len` at least the size of `T` and at most twice that.
#[inline]
unsafe fn set_ends<T: Copy>(dest: *mut u8, value: T, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        dest.cast::<T>().write_unaligned(value);
        dest.add(len - size_of::<T>()).cast::<T>().write_unaligned(value);
    }
}

/// Where four values of 16 bytes cover a block of 33 to 64 bytes.
fn quarters(len: usize) -> [usize; 4] {
    [0, 16, len - 32, len - 16]
}

/// # Safety
/// As `memcpy`; `len` from 33 to 64.
#[inline]
unsafe fn copy_quarters(dest: *mut u8, source: *const u8, len: usize) {
    // SAFETY: the caller's: each value lies within the block.
    unsafe {
        let values = quarters(len).map(|at| source.add(at).cast::<u128>().read_unaligned());
        for (at, value) in quarters(len).into_iter().zip(values) {
            dest.add(at).cast::<u128>().write_unaligned(value);
        }
    }
}

/// Steps of 64 bytes, and the last 64, which the steps may not reach.
///
/// # Safety
/// As `memcpy`; `len` more than 64.
#[inline]
unsafe fn copy_medium(dest: *mut u8, source: *const u8, len: usize) {
    // SAFETY: the caller's: `at` stays below `last`, which is `len - 64`.
    unsafe {
        asm!(
            "2:",
            "movups {a}, [{source} + {at}]",
            "movups {b}, [{source} + {at} + 16]",
            "movups {c}, [{source} + {at} + 32]",
            "movups {d}, [{source} + {at} + 48]",
            "movups [{dest} + {at}], {a}",
            "movups [{dest} + {at} + 16], {b}",
            "movups [{dest} + {at} + 32], {c}",
            "movups [{dest} + {at} + 48], {d}",
            "add {at}, 64",
            "cmp {at}, {last}",
            "jb 2b",
            "movups {a}, [{source} + {last}]",
            "movups {b}, [{source} + {last} + 16]",
            "movups {c}, [{source} + {last} + 32]",
            "movups {d}, [{source} + {last} + 48]",
            "movups [{dest} + {last}], {a}",
            "movups [{dest} + {last} + 16], {b}",
            "movups [{dest} + {last} + 32], {c}",
            "movups [{dest} + {last} + 48], {d}",
            a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
            source = in(reg) source, dest = in(reg) dest,
            at = inout(reg) 0usize => _, last = in(reg) len - 64, options(nostack));
    }
}

/// Steps of eight bytes; the last ones, which the steps may not reach, are read before all others and written after them.
///
/// # Safety
/// As `memcpy`, but `dest` may also lie below an overlapping `source`; `len` at least 8. The direction flag is clear, as the
/// ABI asks.
#[inline]
unsafe fn copy_up(dest: *mut u8, source: *const u8, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        let end = source.add(len - 8).cast::<u64>().read_unaligned();
        asm!("rep movsq", inout("rcx") len / 8 => _, inout("rdi") dest => _, inout("rsi") source => _,
            options(nostack, preserves_flags));
        dest.add(len - 8).cast::<u64>().write_unaligned(end);
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// Around every bound between two ways, and a page.
    fn lengths() -> impl Iterator<Item = usize> {
        (0..300).chain([511, 512, 513, 519, 520, 1023, 1024, 1025, 1031, 1032, 4095, 4096, 4097])
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at * 7 % 251) as u8).collect()
    }

    #[test]
    fn blocks_are_copied_and_nothing_around_them() {
        for len in lengths() {
            for shift in [0, 1, 7] {
                let source = bytes(len + shift);
                let mut dest = std::vec![0xee; len + 16];
                // SAFETY: both blocks are that long.
                unsafe { memcpy(dest.as_mut_ptr().add(8), source.as_ptr().add(shift), len) };
                assert_eq!(dest[8..8 + len], source[shift..]);
                assert!(dest[..8].iter().chain(&dest[8 + len..]).all(|byte| *byte == 0xee));
            }
        }
    }

    #[test]
    fn overlapping_blocks_are_moved_both_ways() {
        for len in lengths() {
            for distance in [0, 1, 7, 8, 15, 16, 17, 100, 255, 256] {
                for up in [true, false] {
                    let mut moved = bytes(len + distance);
                    let mut expected = moved.clone();
                    let (from, to) = if up { (0, distance) } else { (distance, 0) };
                    expected.copy_within(from..from + len, to);
                    let start = moved.as_mut_ptr();
                    // SAFETY: both blocks lie within the list.
                    unsafe { memmove(start.add(to), start.add(from), len) };
                    assert_eq!(moved, expected, "{len} bytes, {distance} apart, up {up}");
                }
            }
        }
    }

    #[test]
    fn blocks_are_set_and_nothing_around_them() {
        for len in lengths() {
            let mut dest = std::vec![0xee; len + 16];
            // SAFETY: the block is that long.
            unsafe { memset(dest.as_mut_ptr().add(8), 0x1a5, len) };
            assert!(dest[8..8 + len].iter().all(|byte| *byte == 0xa5), "{len}");
            assert!(dest[..8].iter().chain(&dest[8 + len..]).all(|byte| *byte == 0xee), "{len}");
        }
    }

    #[test]
    fn the_first_byte_that_differs_decides() {
        for len in [1, 7, 8, 9, 16, 31, 40] {
            let one = bytes(len);
            for at in 0..len {
                let mut other = one.clone();
                other[at] = other[at].wrapping_add(1);
                // SAFETY: both are that long.
                let order = unsafe { memcmp(one.as_ptr(), other.as_ptr(), len) };
                assert_eq!(order < 0, one[at] < other[at]);
                // SAFETY: as above.
                assert_eq!(unsafe { bcmp(one.as_ptr(), one.as_ptr(), len) }, 0);
            }
        }
        // SAFETY: it ends with a NUL.
        assert_eq!(unsafe { strlen(c"four".as_ptr()) }, 4);
    }
}
