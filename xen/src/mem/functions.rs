//! The C functions that the precompiled core library and the compiler call, in the image only.
//!
//! Blocks of more than 32 bytes use string instructions: the processor's own microcode moves them fastest, and a loop
//! written in Rust would be recognised as `memcpy` and call itself. Shorter ones are a few loads and then a few stores.

use core::arch::asm;
use core::ffi::{c_char, c_int};

/// # Safety
/// As `memcpy` of C: `len` bytes readable at `source` and writable at `dest`, not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(dest: *mut u8, source: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { if len <= SHORT { copy_short(dest, source, len) } else { copy_up(dest, source, len) } }
    dest
}

/// # Safety
/// As `memmove` of C: `len` bytes readable at `source` and writable at `dest`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(dest: *mut u8, source: *const u8, len: usize) -> *mut u8 {
    if len <= SHORT {
        // SAFETY: the caller's.
        unsafe { copy_short(dest, source, len) };
    } else if dest.addr().wrapping_sub(source.addr()) >= len {
        // SAFETY: the caller's; copying upwards reads each byte before it is overwritten, since `dest` is below
        // `source` or beyond its end.
        unsafe { copy_up(dest, source, len) };
    } else {
        // SAFETY: the caller's; downwards for the same reason. The flag is clear again afterwards.
        unsafe {
            asm!("std", "rep movsb", "cld",
                inout("rcx") len => _,
                inout("rdi") dest.wrapping_add(len).wrapping_sub(1) => _,
                inout("rsi") source.wrapping_add(len).wrapping_sub(1) => _,
                options(nostack));
        }
    }
    dest
}

/// # Safety
/// As `memset` of C: `len` bytes writable at `dest`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(dest: *mut u8, value: c_int, len: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") dest => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    dest
}

/// # Safety
/// As `memcmp` of C: `len` bytes readable at both.
#[unsafe(no_mangle)]
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
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    // SAFETY: the caller's.
    unsafe { memcmp(left, right, len) }
}

/// # Safety
/// As `strlen` of C: a NUL-terminated string.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut len = 0;
    // SAFETY: the caller's: every byte up to the NUL is readable. Volatile, so that the loop is not turned into a
    // call of `strlen`.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Longest block without a string instruction.
const SHORT: usize = 32;

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

/// # Safety
/// As `memcpy`, but `dest` may also lie below an overlapping `source`. The direction flag is clear, as the ABI asks.
#[inline]
unsafe fn copy_up(dest: *mut u8, source: *const u8, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") dest => _, inout("rsi") source => _,
            options(nostack, preserves_flags));
    }
}
