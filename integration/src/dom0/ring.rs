//! One end of a vchan, as the state machines see it: libxenvchan in the lab, a model of it in unit tests.
#![forbid(unsafe_code)]

/// State of the link, as `libxenvchan_is_open` and the state of the event channel tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Server only: no client has connected yet.
    Waiting,
    /// Both sides are there.
    Open,
    /// The other side closed, died, or its event channel is gone. What it wrote can still be read.
    Closed,
}

/// The library refused an operation: the link is closed, or the indices make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The operations of libxenvchan that the daemons use, none of which blocks.
pub trait Ring {
    /// State of the link now.
    fn link(&mut self) -> Link;
    /// Bytes that can be read; asks for an event when there are more.
    fn data_ready(&mut self) -> usize;
    /// Bytes that can be written; asks for an event when there are more.
    fn space(&mut self) -> usize;
    /// Reads up to the length of `buffer`.
    ///
    /// # Errors
    /// On a closed link with nothing left to read.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Refused>;
    /// Writes a prefix of `bytes`, as much as there is space for.
    ///
    /// # Errors
    /// On a closed link.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Refused>;
}

/// Reads exactly `len` bytes if they are all there, else nothing (`Ok(None)`).
///
/// # Errors
/// As [`Ring::read`].
pub fn read_exactly(ring: &mut dyn Ring, len: usize) -> Result<Option<Vec<u8>>, Refused> {
    if ring.data_ready() < len {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match ring.read(rest)? {
            0 => return Err(Refused),
            n => done += n,
        }
    }
    Ok(Some(bytes))
}

#[cfg(test)]
pub(crate) mod fake {
    //! A vchan of two byte queues that remembers the size of every write.
    use super::*;
    use std::collections::VecDeque;

    /// Both ends of a link; the daemon under test has the [`Ring`] side.
    #[derive(Debug)]
    pub(crate) struct FakeRing {
        pub(crate) state: Link,
        capacity: usize,
        from_vm: VecDeque<u8>,
        to_vm: VecDeque<u8>,
        /// Sizes of the daemon's ring writes, those that moved nothing included.
        pub(crate) writes: Vec<usize>,
    }

    impl FakeRing {
        pub(crate) fn new(capacity: usize) -> Self {
            Self {
                state: Link::Waiting,
                capacity,
                from_vm: VecDeque::new(),
                to_vm: VecDeque::new(),
                writes: Vec::new(),
            }
        }

        pub(crate) fn vm_connects(&mut self) {
            self.state = Link::Open;
        }

        pub(crate) fn vm_closes(&mut self) {
            self.state = Link::Closed;
        }

        pub(crate) fn vm_writes(&mut self, bytes: &[u8]) {
            assert!(self.from_vm.len() + bytes.len() <= self.capacity, "the VM's ring is full");
            self.from_vm.extend(bytes);
        }

        pub(crate) fn vm_reads(&mut self, most: usize) -> Vec<u8> {
            let n = most.min(self.to_vm.len());
            self.to_vm.drain(..n).collect()
        }

        pub(crate) fn vm_reads_all(&mut self) -> Vec<u8> {
            self.vm_reads(usize::MAX)
        }

        pub(crate) fn unread(&self) -> usize {
            self.from_vm.len()
        }
    }

    impl Ring for FakeRing {
        fn link(&mut self) -> Link {
            self.state
        }

        fn data_ready(&mut self) -> usize {
            self.from_vm.len()
        }

        fn space(&mut self) -> usize {
            self.capacity - self.to_vm.len()
        }

        fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Refused> {
            let n = buffer.len().min(self.from_vm.len());
            if n == 0 && self.state == Link::Closed {
                return Err(Refused);
            }
            for (to, from) in buffer.iter_mut().zip(self.from_vm.drain(..n)) {
                *to = from;
            }
            Ok(n)
        }

        fn write(&mut self, bytes: &[u8]) -> Result<usize, Refused> {
            if self.state == Link::Closed {
                return Err(Refused);
            }
            let n = bytes.len().min(self.capacity - self.to_vm.len());
            self.to_vm.extend(bytes.iter().take(n));
            self.writes.push(n);
            Ok(n)
        }
    }
}
