//! Tests of the whole core, packet in and packet out.

mod drops;
mod edits;
mod exposed;
mod mapped;
mod names;
mod nat;
mod netvm;
mod offload;
mod requirements;
mod robust;
mod rule_change;
mod spoof;
mod vectors;
