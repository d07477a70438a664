//! What the fuzzer runs: one function per parser or consumer of what others write, with the checks that a finding breaks.
//!
//! A target turns any bytes into input of the code under test, through [`source::Source`], and panics when an
//! invariant does not hold. The fuzzer (`runner/`, run by `cargo xtask fuzz`) looks for such bytes; the tests of this
//! crate replay what it kept: `corpus/TARGET` covers the code, `regressions/TARGET` once broke it.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "nothing here is shipped, and a panic is how a target reports a finding"
)]

pub mod dns;
pub mod frames;
pub mod netback;
pub mod netfront;
pub mod netif;
pub mod qrexec;
pub mod qubesdb;
pub mod ring;
pub mod rules;
pub mod source;
pub mod vchan;
pub mod xenbus;
pub mod xenstore;

/// One function to be fuzzed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its module, and of its folders below `corpus` and `regressions`.
    pub name: &'static str,
    /// Runs one input; a panic is a finding.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "dns", run: dns::run },
    Target { name: "frames", run: frames::run },
    Target { name: "netback", run: netback::run },
    Target { name: "netfront", run: netfront::run },
    Target { name: "netif", run: netif::run },
    Target { name: "qrexec", run: qrexec::run },
    Target { name: "qubesdb", run: qubesdb::run },
    Target { name: "ring", run: ring::run },
    Target { name: "rules", run: rules::run },
    Target { name: "vchan", run: vchan::run },
    Target { name: "xenbus", run: xenbus::run },
    Target { name: "xenstore", run: xenstore::run },
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
