//! Our grant table (version 1), mappings of peers' grants, and grant copies.
//!
//! [`Granted`] lends a page of ours to one peer, [`Mapping`] shows pages of a peer here, [`CopyBatch`] moves bytes
//! between private pages and peers' grants. All three give back on drop; a page that a peer still uses is put in
//! quarantine instead of being reused (Xen public/grant_table.h, Xen Security Advisory 396).
#![forbid(unsafe_code)]

mod copy;
mod map;
mod places;
mod table;

use thiserror::Error;

pub use crate::abi::grant_table::GrantStatus;
pub use copy::{CopyBatch, CopyRejected, CopyStatus};
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(crate) use map::WINDOW_PAGES;
pub use map::{MAX_MAPPING_PAGES, Mapping, map};
#[cfg(test)]
pub(crate) use places::MAX_PAGES as SHARED_PAGES;
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) use table::reset;
pub use table::{Granted, grant, grants_in_use, prepare, quarantined, retry_quarantine};

/// What the other side may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// Why a grant or a mapping could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GrantError {
    /// Our grant table is full and Xen does not let it grow.
    #[error("grant table full")]
    TableFull,
    /// No run of free pages in the mapping window.
    #[error("mapping window full")]
    WindowFull,
    /// No pages, or more than [`MAX_MAPPING_PAGES`], asked for in one mapping.
    #[error("bad number of pages in one mapping")]
    BadCount,
    /// Xen refused one of the peer's references.
    #[error("grant operation failed with status {}", .0.0)]
    Refused(GrantStatus),
}
