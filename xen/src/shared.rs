//! Memory that another domain may change at any time.
//!
//! A [`SharedPage`] hands out no reference: every access is one volatile or atomic operation, so that a value is read
//! once and stays what it was. Offsets are ours, never a peer's: an offset outside of the page is a bug and panics.
#![expect(unsafe_code, reason = "volatile and atomic access to memory shared with other domains")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::mem::PAGE_SIZE;

/// One page that a peer, or Xen, can read and write concurrently.
///
/// Holding it proves that the page is mapped here. It proves nothing about the content, not even that two reads of
/// the same byte agree: copy first, then look at the copy.
#[derive(Debug)]
pub struct SharedPage {
    base: NonNull<u8>,
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        /// One volatile read at byte `offset`, which must be a multiple of the width.
        pub fn $read(&self, offset: usize) -> $type {
            // SAFETY: `at` checked that the aligned value lies within the page.
            unsafe { self.at::<$type>(offset).read_volatile() }
        }

        /// One volatile write at byte `offset`, which must be a multiple of the width.
        pub fn $write(&self, offset: usize, value: $type) {
            // SAFETY: `at` checked that the aligned value lies within the page.
            unsafe { self.at::<$type>(offset).write_volatile(value) }
        }
    };
}

impl SharedPage {
    /// Takes the page at `base` as shared memory.
    ///
    /// # Safety
    /// `base` must be page-aligned and point to 4096 bytes that stay readable (and, where the caller writes,
    /// writable) for the life of the value and to which no Rust reference exists in that time.
    pub(crate) const unsafe fn from_raw(base: NonNull<u8>) -> SharedPage {
        SharedPage { base }
    }

    access!(read_u8, write_u8, u8);
    access!(read_u16, write_u16, u16);
    access!(read_u32, write_u32, u32);
    access!(read_u64, write_u64, u64);

    /// Reads a producer index: what the peer wrote before it is visible afterwards.
    pub fn load_acquire_u32(&self, offset: usize) -> u32 {
        self.atomic_u32(offset).load(Ordering::Acquire)
    }

    /// Publishes a producer index: what we wrote before is visible to a peer that sees it.
    pub fn store_release_u32(&self, offset: usize, value: u32) {
        self.atomic_u32(offset).store(value, Ordering::Release);
    }

    /// Atomically sets bits; returns the previous value. A full barrier.
    pub fn fetch_or_u8(&self, offset: usize, value: u8) -> u8 {
        self.atomic_u8(offset).fetch_or(value, Ordering::SeqCst)
    }

    /// Atomically keeps only the bits of `value`; returns the previous value. A full barrier.
    pub fn fetch_and_u8(&self, offset: usize, value: u8) -> u8 {
        self.atomic_u8(offset).fetch_and(value, Ordering::SeqCst)
    }

    /// Copies from byte `offset` to `dst`.
    pub fn copy_out(&self, offset: usize, dst: &mut [u8]) {
        let source = self.range(offset, dst.len());
        let (words, tail) = dst.as_chunks_mut::<8>();
        let mut at = 0;
        for word in words {
            // SAFETY: `range` checked the whole span; a peer's concurrent write can only make the bytes differ.
            *word = unsafe { source.add(at).cast::<[u8; 8]>().read_volatile() };
            at += 8;
        }
        for byte in tail {
            // SAFETY: as above.
            *byte = unsafe { source.add(at).read_volatile() };
            at += 1;
        }
    }

    /// Copies `src` to byte `offset`.
    pub fn copy_in(&self, offset: usize, src: &[u8]) {
        let dest = self.range(offset, src.len());
        let (words, tail) = src.as_chunks::<8>();
        let mut at = 0;
        for word in words {
            // SAFETY: `range` checked the whole span.
            unsafe { dest.add(at).cast::<[u8; 8]>().write_volatile(*word) };
            at += 8;
        }
        for byte in tail {
            // SAFETY: as above.
            unsafe { dest.add(at).write_volatile(*byte) };
            at += 1;
        }
    }

    /// Zeroes the whole page.
    pub fn clear(&self) {
        for offset in (0..PAGE_SIZE).step_by(8) {
            self.write_u64(offset, 0);
        }
    }

    pub(crate) fn swap_u8(&self, offset: usize, value: u8) -> u8 {
        self.atomic_u8(offset).swap(value, Ordering::SeqCst)
    }

    pub(crate) fn load_u16(&self, offset: usize) -> u16 {
        self.atomic_u16(offset).load(Ordering::Acquire)
    }

    pub(crate) fn store_release_u16(&self, offset: usize, value: u16) {
        self.atomic_u16(offset).store(value, Ordering::Release);
    }

    pub(crate) fn compare_exchange_u16(
        &self,
        offset: usize,
        old: u16,
        new: u16,
    ) -> Result<u16, u16> {
        self.atomic_u16(offset).compare_exchange(old, new, Ordering::SeqCst, Ordering::Acquire)
    }

    pub(crate) fn load_u64(&self, offset: usize) -> u64 {
        self.atomic_u64(offset).load(Ordering::SeqCst)
    }

    pub(crate) fn swap_u64(&self, offset: usize, value: u64) -> u64 {
        self.atomic_u64(offset).swap(value, Ordering::SeqCst)
    }

    pub(crate) fn fetch_or_u64(&self, offset: usize, value: u64) -> u64 {
        self.atomic_u64(offset).fetch_or(value, Ordering::SeqCst)
    }

    pub(crate) fn fetch_and_u64(&self, offset: usize, value: u64) -> u64 {
        self.atomic_u64(offset).fetch_and(value, Ordering::SeqCst)
    }

    /// Whether both are views of one page.
    #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
    pub(crate) fn is_same(&self, other: &SharedPage) -> bool {
        self.base == other.base
    }

    /// Another view of the same page for the fake hypervisor, which stands for the other side.
    #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
    pub(crate) fn alias(&self) -> SharedPage {
        SharedPage { base: self.base }
    }

    fn atomic_u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: in the page; every access to shared memory goes through this type, atomic or volatile.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }
    }

    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: in the page and aligned (`at`); every access goes through this type, atomic or volatile.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: in the page and aligned (`at`); every access goes through this type, atomic or volatile.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }
    }

    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: in the page and aligned (`at`); every access goes through this type, atomic or volatile.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }

    /// Pointer to a naturally aligned value within the page.
    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(size_of::<T>()), "unaligned access to a shared page");
        self.range(offset, size_of::<T>()).cast()
    }

    fn range(&self, offset: usize, len: usize) -> *mut u8 {
        let fits = offset <= PAGE_SIZE && len <= PAGE_SIZE - offset;
        assert!(fits, "access outside of a shared page");
        // SAFETY: `offset` is at most one past the end of the page that `base` starts.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

/// Orders everything before it, stores included, ahead of every later load: between publishing an index and reading
/// the peer's event index, or between arming our event index and the last look at the ring.
pub fn fence_full() {
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::host;

    #[test]
    fn copies_of_any_length_and_offset_are_exact() {
        let page = host::foreign_page();
        let data: alloc::vec::Vec<u8> = (0..40).map(|value| value + 1).collect();
        for offset in [0, 1, 7, 8, PAGE_SIZE - 40] {
            for len in 0..=data.len() {
                page.clear();
                page.copy_in(offset, &data[..len]);
                let mut out = [0xff; 40];
                page.copy_out(offset, &mut out[..len]);
                assert_eq!(&out[..len], &data[..len]);
                assert!(out[len..].iter().all(|&byte| byte == 0xff));
                if offset + len < PAGE_SIZE {
                    assert_eq!(page.read_u8(offset + len), 0, "offset {offset} length {len}");
                }
            }
        }
    }

    #[test]
    fn values_are_little_endian_in_place() {
        let page = host::foreign_page();
        page.write_u32(8, 0x0403_0201);
        assert_eq!((page.read_u8(8), page.read_u16(10)), (1, 0x0403));
        page.store_release_u32(12, 7);
        assert_eq!((page.load_acquire_u32(12), page.read_u64(8)), (7, 0x0000_0007_0403_0201));
    }

    #[test]
    fn bit_operations_return_the_previous_value() {
        let page = host::foreign_page();
        assert_eq!(page.fetch_or_u8(3, 0b101), 0);
        assert_eq!(page.fetch_and_u8(3, 0b100), 0b101);
        assert_eq!(page.read_u8(3), 0b100);
    }

    #[test]
    #[should_panic(expected = "outside of a shared page")]
    fn a_copy_past_the_end_panics() {
        host::foreign_page().copy_in(PAGE_SIZE - 1, &[1, 2]);
    }

    #[test]
    #[should_panic(expected = "outside of a shared page")]
    fn a_huge_offset_does_not_wrap() {
        host::foreign_page().copy_out(usize::MAX - 3, &mut [0; 8]);
    }

    #[test]
    #[should_panic(expected = "unaligned")]
    fn an_unaligned_index_panics() {
        host::foreign_page().load_acquire_u32(2);
    }
}
