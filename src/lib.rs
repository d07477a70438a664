//! The firewall core: the path of a packet from one virtual interface to another, without I/O.
//!
//! Nothing here knows Xen, reads a clock or keeps a global: frames, time and entropy are arguments. Memory is taken
//! once, in [`Firewall::new`] and by control calls; a packet never allocates. The modules follow a packet:
//!
//! 1. [`frame`]: the bytes, in a private buffer, with their offload state; [`port`]: where they come from and go to;
//! 2. `ingress`: parse (to a `packet`) and check; spoofed sources end here; `arp` and `nd`
//!    answer neighbours;
//!    `fragments` wait there for the rest of their datagram, which `defragment` sends down the same path;
//!    `visible` translates at the vif of a client with a hidden address, `netvm` makes a client's vif the uplink;
//! 3. `route`: where does it go? `conntrack` and `flows`: is it part of a known flow? `judge`: else, what do the rules of
//!    its source say? `exposed`: did dom0 open what is closed otherwise? `names` and `dns` know, ahead of that, which
//!    addresses the names in rules have;
//! 4. `nat`: the outside face of the flow, ICMP errors included;
//! 5. `egress`: TTL, size, checksum and link header for the port it leaves through; what is too large for it leaves through
//!    `fragments` again, a super-frame that it does not take in [`segment`]s;
//! 6. `conclude`: the answer to its sender, if any, and the gate, where `evidence` says once more why a frame may leave;
//!    [`verdict`] and [`stats`]: how it ended, and the count of it; `drops` keeps the latest that ended for who asks.
//!
//! `pipeline` is that path on one screen, `firewall` the state and the control calls. `fast` takes the next packet of a
//! flow that stands past the stages, with the same outcome. `explain` says what the stages would do with a packet.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "fake")]
extern crate std;

pub mod frame;
pub mod port;
pub mod time;
mod wire;

mod arp;
mod fragments;
mod ingress;
mod nd;
mod packet;
pub mod uplink;

pub mod clients;
mod conntrack;
mod explain;
mod exposed;
pub mod exposure;
mod flows;
mod judge;
pub mod mss;
mod netvm;
mod route;
pub mod visible;

mod nat;

pub mod dns;
mod names;

mod conclude;
mod drops;
mod egress;
mod evidence;
mod icmp;
pub mod segment;

mod defragment;
mod fast;
mod pipeline;

mod firewall;
pub mod limits;
pub mod planted;
pub mod stats;
pub mod verdict;

// The control plane: what dom0 wrote into QubesDB becomes rules and configuration in force.
pub mod config;
pub mod control;

pub mod event_loop;
pub mod log;

#[cfg(feature = "platform")]
pub mod platform;
pub mod qrexec;
pub mod services;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use clients::{ClientPort, Generation, RuleEditReport, RulesState, TooManyAddresses};
pub use firewall::{AttachError, Firewall};
pub use frame::{Checksum, Frame, Gso, GsoKind, Offload};
pub use limits::{Limits, OutOfMemory};
pub use nat::PortUse;
pub use port::{ClientId, Origin, PortCaps, PortId};
pub use segment::{Payload, Segments};
pub use time::Instant;
pub use uplink::{FamilyConfig, NetworkConfig, UplinkPort};
pub use verdict::{DropReason, Fate};
pub use wire::Mac;
