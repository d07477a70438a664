//! The one error type of the lab and of `xtask`: a sentence for the person at the terminal.

use std::io;

/// What went wrong, said in words. Nothing is matched on but the two kinds the runner treats differently.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something did not work, or a scenario did not hold.
    #[error("{0}")]
    Failed(String),
    /// A file or process operation of the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to which file.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The software emulation itself broke (see `lab::fault`); the work is repeated on a fresh boot.
    #[error("fault of the emulator: {0}")]
    EmulatorFault(String),
}

/// Result with the sentence above.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Ends the function with [`Error::Failed`].
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => {
        return Err($crate::error::Error::Failed(format!($($arg)*)))
    };
}

/// Adds the missing half of an `io::Error`: what was attempted.
pub trait Attempt<T> {
    /// Turns the system's error into ours, naming the operation.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Attempt<T> for io::Result<T> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Io { what: what().into(), source })
    }
}
