//! dom0's part of the lab: doubles of the daemons that a Qubes dom0 runs for every VM.
//!
//! They are written from recordings of the real daemons and are exactly as unforgiving: where the real one
//! ends, the double ends, with an exit code that names the reason, and the test that caused it fails. They
//! share no code with the firewall's side of the protocols, so that one misreading does not cancel another.
//!
//! - [`qdb`]: the QubesDB server; [`qrexec`]: daemon and caller; [`keys`]: what dom0 writes, and in which order;
//!   [`xentime`]: the hypervisor's clock. These are state machines over a [`ring::Ring`] and are tested
//!   without Xen.
//! - `run` (feature `lab`): the processes around them, over libxenvchan and the xenstore daemon: `dom0d`, and `dom0start` for starts
//!   that are measured.

pub mod exit;
pub mod hex;
pub mod keys;
pub mod qdb;
pub mod qrexec;
pub mod ring;
pub mod xentime;

#[cfg(feature = "lab")]
pub mod run;
