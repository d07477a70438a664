//! Bytes of the fuzzer as choices.

/// Hands out the bytes of an input from front to back; an exhausted source gives zeros.
#[derive(Clone, Debug)]
pub struct Source<'d> {
    rest: &'d [u8],
}

impl<'d> Source<'d> {
    /// All of `data`.
    #[must_use]
    pub fn new(data: &'d [u8]) -> Self {
        Self { rest: data }
    }

    /// Whether everything was handed out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Whether the next byte is odd.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn long(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A number below `bound`, from one byte.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound.max(1)
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// As many as there are of `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'d [u8] {
        let (bytes, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        bytes
    }

    /// A piece whose length is the next byte, or the next two of them if that is 255.
    pub fn piece(&mut self) -> &'d [u8] {
        let length = match self.byte() {
            255 => usize::from(self.word()),
            short => usize::from(short),
        };
        self.bytes(length)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'d [u8] {
        core::mem::take(&mut self.rest)
    }
}
