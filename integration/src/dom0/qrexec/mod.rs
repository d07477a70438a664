//! qrexec as dom0 speaks it: [`control`] is the daemon's channel to a VM's agent, [`call`] the channel of one
//! call, [`wire`] their messages.
#![forbid(unsafe_code)]

pub mod call;
pub mod control;
pub mod wire;
