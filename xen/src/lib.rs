//! Everything Xen: boot, hypercalls, memory, grants, events, xenstore, network rings, vchan.
//!
//! Two builds exist. With the feature `image` alone the crate runs on Xen: hypercalls trap, memory is identity-mapped
//! guest RAM. In every other build (tests, feature `fake`) the same code runs on the host against the strict
//! in-memory hypervisor of `fake`; the seam between the two is `hypercall`.
#![cfg_attr(all(feature = "image", not(any(test, feature = "fake"))), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod abi;
pub mod boot;
pub mod console;
pub mod entropy;
pub mod event;
pub mod grant;
mod hypercall;
pub mod mem;
pub mod netback;
pub mod netfront;
pub mod netif;
pub mod power;
pub mod ring;
pub mod shared;
pub mod time;
pub mod toolstack;
pub mod vchan;
pub mod xenbus;
pub mod xenstore;

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub mod fake;

pub use abi::{DomId, EventPort, Gfn, GrantRef};
