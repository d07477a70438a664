//! Everything Xen: boot, hypercalls, memory, grants, events, xenstore, network rings, vchan.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
