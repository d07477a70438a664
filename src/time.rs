//! Time as the core sees it: a number that the platform hands in with every call.

use core::time::Duration;

/// Nanoseconds of a monotonic clock whose zero does not matter (in the image: Xen system time).
///
/// The platform takes pauses out of it (suspend, a paused domain): the core expires whatever is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The instant `nanos` nanoseconds after the clock's zero.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The instant `by` later; stops at the end of the clock, 584 years from its zero.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time since `earlier`; zero if that is later, as after a clock that went backwards.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_clock_saturate() {
        let last = Instant::from_nanos(u64::MAX);
        assert_eq!(last.after(Duration::from_secs(1)), last);
        assert_eq!(Instant::default().since(last), Duration::ZERO);
        assert_eq!(last.after(Duration::MAX), last);
    }
}
