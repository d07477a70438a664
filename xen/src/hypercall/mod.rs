//! The hypercalls that the rest of the crate makes, as typed functions: the seam between real Xen and the fake.
//!
//! Nothing here keeps state of ours; what can be tested without Xen lives in the callers (`grant`, `event`, `time`).

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) use crate::fake::hypercalls::*;
