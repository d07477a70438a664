//! Changes that programs in dom0 make, and how they reach the VM.

use super::Server;
use crate::dom0::qdb::event::Event;
use crate::dom0::qdb::store::{Author, LocalError, check_local_write};
use crate::dom0::qdb::wire::{self, Header, kind};
use crate::dom0::ring::Ring;

/// Result of a local change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Xen system time right before the message went to the ring, nanoseconds.
    pub at_ns: u64,
    /// Whether it was sent to the VM.
    pub is_forwarded: bool,
    /// Entries set or removed.
    pub entries: usize,
}

impl Server {
    /// A program in dom0 sets an entry. It is sent to the VM once the dump is queued, also if nothing changed.
    ///
    /// # Errors
    /// When the daemon refuses it; nothing is sent then.
    pub fn local_write(
        &mut self,
        ring: Option<&mut dyn Ring>,
        key: &[u8],
        value: &[u8],
    ) -> Result<Done, LocalError> {
        check_local_write(key, value)?;
        let len = u32::try_from(value.len()).map_err(|_| LocalError::ValueTooLong)?;
        let header = self.soiled_header(kind::WRITE, key, len);
        let (at_ns, is_forwarded) = self.forward(ring, header, value);
        self.store.set(key, value, Author::Dom0, at_ns);
        Ok(Done { at_ns, is_forwarded, entries: 1 })
    }

    /// A program in dom0 removes an entry or everything below a prefix.
    ///
    /// # Errors
    /// When there is nothing to remove; nothing is sent then.
    pub fn local_rm(
        &mut self,
        ring: Option<&mut dyn Ring>,
        path: &[u8],
    ) -> Result<Done, LocalError> {
        if !wire::has_allowed_bytes(path) || path.len() > wire::PATH_MAX {
            return Err(LocalError::BadKey);
        }
        let entries = self.store.remove(path);
        if entries == 0 {
            return Err(LocalError::Absent);
        }
        let header = self.soiled_header(kind::RM, path, 0);
        let (at_ns, is_forwarded) = self.forward(ring, header, b"");
        Ok(Done { at_ns, is_forwarded, entries })
    }

    fn forward(
        &mut self,
        ring: Option<&mut dyn Ring>,
        header: Header,
        value: &[u8],
    ) -> (u64, bool) {
        let now_ns = (self.clock)();
        let Some(ring) = ring.filter(|_| self.connection.is_multiread) else {
            return (now_ns, false);
        };
        if self.transmit(ring, &header, value).is_err() {
            // The next look at the link finds it closed; the entry will be in the next dump.
            return (now_ns, false);
        }
        self.connection.unanswered.push_back(header);
        let (kind, path) = (header.kind, header.name().to_vec());
        self.journal.push(now_ns, Event::Sent { kind, path, len: value.len() });
        (now_ns, true)
    }

    /// Live messages carry garbage behind the path and in the padding, as the real ones do: stack contents there,
    /// pseudo-random bytes that are never zero here.
    fn soiled_header(&mut self, kind: u8, path: &[u8], data_len: u32) -> Header {
        let mut header = Header::new(kind, path, data_len);
        let used = header.name().len() + 1;
        let tail = header.path.iter_mut().take(wire::PATH_MAX).skip(used);
        for byte in tail.chain(&mut header.padding) {
            self.garbage ^= self.garbage << 13;
            self.garbage ^= self.garbage >> 7;
            self.garbage ^= self.garbage << 17;
            *byte = u8::try_from(self.garbage >> 56).unwrap_or(0) | 1;
        }
        header
    }
}
