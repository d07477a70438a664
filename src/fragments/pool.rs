//! Where the bytes of fragments wait: chunks of one allocation, chained to runs.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::limits::OutOfMemory;

/// Bytes of a chunk: the payload of a full Ethernet frame takes three of them.
pub(super) const CHUNK_BYTES: usize = 512;

/// Ends a chain.
const NONE: u16 = u16::MAX;

/// The bytes of one fragment. Not `Clone`: it is stored in one place and goes back through [`Pool::give_back`].
#[derive(Debug)]
pub(super) struct Run {
    first: u16,
    len: u16,
}

impl Run {
    /// Bytes in it.
    pub(super) fn len(&self) -> u16 {
        self.len
    }

    /// Chunks that it takes.
    pub(super) fn chunks(&self) -> usize {
        chunks_for(usize::from(self.len))
    }
}

/// Chunks that `bytes` bytes take.
pub(super) fn chunks_for(bytes: usize) -> usize {
    bytes.div_ceil(CHUNK_BYTES)
}

/// All chunks.
#[derive(Debug)]
pub(super) struct Pool {
    bytes: Box<[u8]>,
    /// For each chunk the next one of its run or of the free list.
    next: Box<[u16]>,
    free: u16,
    free_chunks: usize,
}

impl Pool {
    /// As many whole chunks as fit into `bytes`.
    pub(super) fn with_bytes(bytes: usize) -> Result<Self, OutOfMemory> {
        let chunks = (bytes / CHUNK_BYTES).min(usize::from(NONE));
        let mut next = Vec::new();
        next.try_reserve_exact(chunks).map_err(|_| OutOfMemory)?;
        // The last one ends the list: there are at most `NONE` chunks.
        let count = u16::try_from(chunks).map_err(|_| OutOfMemory)?;
        next.extend((1..count).chain((count > 0).then_some(NONE)));
        let mut storage = Vec::new();
        storage.try_reserve_exact(chunks * CHUNK_BYTES).map_err(|_| OutOfMemory)?;
        storage.resize(chunks * CHUNK_BYTES, 0);
        Ok(Self {
            bytes: storage.into_boxed_slice(),
            next: next.into_boxed_slice(),
            free: if count > 0 { 0 } else { NONE },
            free_chunks: chunks,
        })
    }

    /// Chunks there are.
    pub(super) fn chunks(&self) -> usize {
        self.next.len()
    }

    /// Chunks that are free.
    pub(super) fn free_chunks(&self) -> usize {
        self.free_chunks
    }

    /// Stores bytes; `None`, and no change, if there is no room for them or none of them.
    pub(super) fn store(&mut self, bytes: &[u8]) -> Option<Run> {
        let len = u16::try_from(bytes.len()).ok().filter(|len| *len > 0)?;
        if chunks_for(bytes.len()) > self.free_chunks {
            return None;
        }
        let first = self.free;
        let mut last = NONE;
        for part in bytes.chunks(CHUNK_BYTES) {
            last = self.free;
            self.chunk_mut(last)?.get_mut(..part.len())?.copy_from_slice(part);
            self.free = self.next_of(last);
            self.free_chunks -= 1;
        }
        *self.next.get_mut(usize::from(last))? = NONE;
        Some(Run { first, len })
    }

    /// The bytes of a run, in order.
    pub(super) fn read(&self, run: &Run) -> impl Iterator<Item = &[u8]> {
        let (mut at, mut left) = (run.first, usize::from(run.len));
        core::iter::from_fn(move || {
            let part = self.chunk(at)?.get(..left.min(CHUNK_BYTES))?;
            (at, left) = (self.next_of(at), left - part.len());
            (!part.is_empty()).then_some(part)
        })
    }

    /// Frees a run.
    pub(super) fn give_back(&mut self, run: Run) {
        let mut at = run.first;
        while at != NONE {
            let following = self.next_of(at);
            if let Some(next) = self.next.get_mut(usize::from(at)) {
                *next = self.free;
                self.free = at;
                self.free_chunks += 1;
            }
            at = following;
        }
    }

    fn next_of(&self, chunk: u16) -> u16 {
        self.next.get(usize::from(chunk)).copied().unwrap_or(NONE)
    }

    fn chunk(&self, index: u16) -> Option<&[u8]> {
        let start = usize::from(index) * CHUNK_BYTES;
        self.bytes.get(start..start + CHUNK_BYTES)
    }

    fn chunk_mut(&mut self, index: u16) -> Option<&mut [u8]> {
        let start = usize::from(index) * CHUNK_BYTES;
        self.bytes.get_mut(start..start + CHUNK_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pool_of_nothing_stores_nothing() {
        let mut pool = Pool::with_bytes(CHUNK_BYTES - 1).unwrap();
        assert_eq!((pool.chunks(), pool.store(&[1]).is_none()), (0, true));
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut pool = Pool::with_bytes(2 * CHUNK_BYTES).unwrap();
        assert!(pool.store(&[7; 2 * CHUNK_BYTES + 1]).is_none());
        assert!(pool.store(&[]).is_none());
        assert_eq!(pool.free_chunks(), 2);
        assert!(pool.store(&[7; 2 * CHUNK_BYTES]).is_some());
        assert_eq!(pool.free_chunks(), 0);
    }

    proptest! {
        #[test]
        fn runs_keep_their_bytes_and_every_chunk_comes_back(
            steps in proptest::collection::vec((any::<bool>(), 1usize..1600, any::<u8>()), 1..80),
        ) {
            let mut pool = Pool::with_bytes(24 * CHUNK_BYTES).unwrap();
            let mut held: Vec<(Run, Vec<u8>)> = Vec::new();
            for (is_release, len, seed) in steps {
                if is_release && !held.is_empty() {
                    let (run, _) = held.swap_remove(usize::from(seed) % held.len());
                    pool.give_back(run);
                } else {
                    let bytes: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(31) ^ seed).collect();
                    let fits = chunks_for(len) <= pool.free_chunks();
                    let run = pool.store(&bytes);
                    prop_assert_eq!(run.is_some(), fits);
                    held.extend(run.map(|run| (run, bytes)));
                }
                let used: usize = held.iter().map(|(run, _)| run.chunks()).sum();
                prop_assert_eq!(used + pool.free_chunks(), 24);
                for (run, bytes) in &held {
                    prop_assert_eq!(&pool.read(run).collect::<Vec<_>>().concat(), bytes);
                }
            }
            held.into_iter().for_each(|(run, _)| pool.give_back(run));
            prop_assert_eq!(pool.free_chunks(), 24);
        }
    }
}
