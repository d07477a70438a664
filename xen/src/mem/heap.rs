//! Counters of the heap.

use core::sync::atomic::{AtomicUsize, Ordering};

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static SIZE: AtomicUsize = AtomicUsize::new(0);

pub(super) fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

pub(super) fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}

pub(super) fn size() -> usize {
    SIZE.load(Ordering::Relaxed)
}
