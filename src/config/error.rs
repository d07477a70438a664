//! What was wrong with a configuration key.

use rules::{Excerpt, Family};
use thiserror::Error;

/// A key that is missing or cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// There is no such key.
    #[error("missing")]
    Missing,
    /// The value is not what it has to be.
    #[error("{value} is not {wanted}")]
    Bad {
        /// The value, or for a list the first element that is wrong.
        value: Excerpt,
        /// What it has to be.
        wanted: Wanted,
    },
    /// The value is secret and not what it has to be.
    #[error("the value is not {0}")]
    BadSecret(Wanted),
    /// A mapping of a client's address.
    #[error("{value} of client {client} is not {wanted} of its own; the client is shut out")]
    BadMapping {
        /// Its real address.
        client: Excerpt,
        /// What is wrong.
        value: Excerpt,
        /// What it has to be.
        wanted: Wanted,
    },
    /// The gateway is our own address.
    #[error("the gateway is our own address")]
    GatewayIsOwn,
}

/// What a value has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Wanted {
    /// A dotted IPv4 address of a single host, or its IPv6 counterpart.
    #[error("an {0} host address")]
    Host(Family),
    /// An address of either family.
    #[error("a host address")]
    AnyHost,
    /// A contiguous dotted mask or a prefix length.
    #[error("a netmask")]
    Netmask,
    /// The name of a VM.
    #[error("a VM name")]
    Name,
    /// `0` or `1`.
    #[error("0 or 1")]
    Switch,
    /// Base64 with padding (RFC 4648 section 4), not empty.
    #[error("base64")]
    Base64,
}
