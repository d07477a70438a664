//! The few xenstore operations of the daemons.

use std::io;

use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

use super::{Attempt, Result};

/// A connection to the xenstore daemon.
pub(crate) struct Xenstore(XsUnix);

impl Xenstore {
    pub(crate) fn open() -> Result<Self> {
        XsUnix::new().map(Self).doing("cannot reach xenstore")
    }

    /// Whether a node exists.
    pub(crate) fn exists(&self, path: &str) -> io::Result<bool> {
        match self.0.directory(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether a link is announced: its second node exists and is not empty.
    pub(crate) fn is_announced(&self, directory: &str) -> bool {
        self.0.read(&format!("{directory}/event-channel")).is_ok_and(|text| !text.is_empty())
    }

    /// Takes an announcement away: the port's directory, and its parent if nothing else is in it.
    ///
    /// One removal of the parent does both, so that nobody sees half of it.
    pub(crate) fn remove_announcement(&self, parent: &str, port: u32) -> io::Result<()> {
        let port = port.to_string();
        let children = self.0.directory(parent)?;
        let is_alone = children.iter().all(|child| **child == *port);
        let path = if is_alone { parent.to_owned() } else { format!("{parent}/{port}") };
        self.0.rm(&path)
    }
}
