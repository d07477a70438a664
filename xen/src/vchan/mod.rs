//! Byte pipes between domains: libvchan as Qubes uses it, both ends (Xen public/io/libxenvchan.h).
//!
//! A *server* grants a ring page and announces it in xenstore ([`Server`]); a *client* finds the announcement, maps
//! the page and binds the event channel ([`Connector`]). Both then hold a [`Link`]: `read`, `write`, liveness. Ends
//! are named from the client: *left* is what the client writes, *right* is what the server writes.
//!
//! The two set-up machines yield xenstore requests and take replies by value; the event loop carries them. QubesDB
//! (dom0 is the server, port 111), the qrexec control channel (we are, port 512) and qrexec data channels (the
//! caller is) run over this.
#![forbid(unsafe_code)]

mod connect;
mod index;
mod layout;
mod link;
mod memory;
mod server;
#[cfg(test)]
mod tests;

pub use connect::{ConnectError, Connector, Outcome};
pub use layout::{LayoutError, MAX_ORDER};
pub use link::{Link, LinkState};
pub use server::{Server, ServerError, ServerOutcome, Sizes};
