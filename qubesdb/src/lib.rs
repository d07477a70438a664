//! Placeholder of the first commit.
#![no_std]
#![forbid(unsafe_code)]
