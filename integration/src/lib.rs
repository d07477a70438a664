//! The lab, the scenario tests on it, and the `xtask` command that drives everything.
#![deny(unsafe_code)]

pub mod apt;
pub mod command;
pub mod diff;
pub mod dom0;
pub mod error;
pub mod ffi;
pub mod lab;
pub mod netns;
pub mod paths;
pub mod progress;
pub mod scenarios;
pub mod stacks;
pub mod xtask;
