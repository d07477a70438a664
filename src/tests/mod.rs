//! Tests of the whole core, packet in and packet out.

mod drops;
mod edits;
mod evidence;
mod exposed;
mod exposed6;
mod fast;
pub(crate) mod fragments;
mod ipv6;
mod mapped;
mod mss;
mod names;
mod nat;
mod nd;
mod netvm;
mod offload;
mod requirements;
mod robust;
mod rule_change;
mod segments;
mod spoof;
mod super_frames;
mod table;
mod vectors;
