//! What is either so or not, a bit for each: a flow has many such things and no room for a byte each.

/// A set of bits; what each stands for is its owner's to say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks(u8);

impl Marks {
    #[inline(always)]
    pub(super) fn has(self, mark: u8) -> bool {
        self.0 & mark != 0
    }

    pub(super) fn set(&mut self, mark: u8, is_so: bool) {
        self.0 = if is_so { self.0 | mark } else { self.0 & !mark };
    }

    /// The same with this one as it is said.
    pub(super) fn with(mut self, mark: u8, is_so: bool) -> Self {
        self.set(mark, is_so);
        self
    }
}
