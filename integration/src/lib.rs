//! Lab and tests.
#![deny(unsafe_code)]
