//! The hypercalls that the rest of the crate makes, as typed functions: the seam between real Xen and the fake.
//!
//! Nothing here keeps state beyond addresses; what can be tested without Xen lives in the callers (`grant`, `event`,
//! `time`).
#![expect(unsafe_code, reason = "traps into the hypervisor and executes privileged instructions")]

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod arguments;
pub(crate) mod cpu;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod events;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod real;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod trap;

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) use crate::fake::hypercalls::*;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(crate) use events::*;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(crate) use real::*;

/// A sleep.
pub(crate) struct Sleep<'a> {
    /// Ports of which an event that came just before ends it at once. While it lasts, an event of any port does.
    pub(crate) ports: &'a [u32],
    /// Xen's system time at which it ends, in nanoseconds.
    pub(crate) until: Option<u64>,
}
