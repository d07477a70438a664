//! The QubesDB server of one domain: [`wire`] is the message, [`store`] the database, [`server`] the daemon's
//! behaviour, [`rows`] the recorded exchanges.
#![forbid(unsafe_code)]

pub mod control;
pub mod event;
pub mod rows;
pub mod server;
pub mod store;
pub mod wire;
