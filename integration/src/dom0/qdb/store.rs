//! The database: paths to values, with the time and the author of the last change.

use std::collections::BTreeMap;

use super::wire;

/// Who changed an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// A program in dom0.
    Dom0,
    /// The VM, over the vchan.
    Vm,
}

/// A value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value; no NUL in it, at most 3071 bytes.
    pub value: Vec<u8>,
    /// Xen system time of the write, nanoseconds.
    pub set_ns: u64,
    /// Who wrote it.
    pub author: Author,
}

/// Why a local change was refused. Nothing of it reaches the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// The path cannot be a key.
    #[error("not a key")]
    BadKey,
    /// 3072 bytes or more.
    #[error("value too long")]
    ValueTooLong,
    /// A NUL in the value.
    #[error("NUL in the value")]
    NulInValue,
    /// Nothing to remove.
    #[error("no such entry")]
    Absent,
}

/// All entries, sorted by byte value.
#[derive(Clone, Debug, Default)]
pub struct Store {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Store {
    /// Sets an entry; the caller has checked path and value.
    pub fn set(&mut self, path: &[u8], value: &[u8], author: Author, now_ns: u64) {
        self.entries.insert(path.to_vec(), Entry { value: value.to_vec(), set_ns: now_ns, author });
    }

    /// Removes an entry, or with a trailing slash everything that begins with the path. How many there were.
    pub fn remove(&mut self, path: &[u8]) -> usize {
        let before = self.entries.len();
        if path.last() == Some(&b'/') {
            self.entries.retain(|key, _| !key.starts_with(path));
        } else {
            self.entries.remove(path);
        }
        before - self.entries.len()
    }

    /// An entry.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The entries whose path begins with `prefix`, ascending.
    pub fn below<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl DoubleEndedIterator<Item = (&'a [u8], &'a Entry)> {
        self.entries
            .range(prefix.to_vec()..)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| (key.as_slice(), entry))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Checks what a program in dom0 wants to write.
///
/// # Errors
/// As [`LocalError`] has it.
pub fn check_local_write(path: &[u8], value: &[u8]) -> Result<(), LocalError> {
    if !wire::is_key(path) {
        return Err(LocalError::BadKey);
    }
    if value.len() >= wire::DATA_LIMIT as usize {
        return Err(LocalError::ValueTooLong);
    }
    if value.contains(&0) {
        return Err(LocalError::NulInValue);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_removal_leaves_the_mark() {
        let mut store = Store::default();
        for key in ["/t/1", "/t/1/policy", "/t/1/0000", "/t/10", "/t/10/policy"] {
            store.set(key.as_bytes(), b"", Author::Dom0, 0);
        }
        assert_eq!(store.remove(b"/t/1/"), 2);
        assert!(store.get(b"/t/1").is_some());
        assert_eq!(store.remove(b"/t/1/"), 0);
        assert_eq!(store.remove(b"/t/1"), 1);
        assert_eq!(store.remove(b""), 0);
        let left: Vec<_> = store.below(b"").map(|(key, _)| key).collect();
        assert_eq!(left, [&b"/t/10"[..], b"/t/10/policy"]);
    }

    #[test]
    fn local_limits() {
        assert_eq!(check_local_write(b"/big", &[b'x'; 3071]), Ok(()));
        assert_eq!(check_local_write(b"/big", &[b'x'; 3072]), Err(LocalError::ValueTooLong));
        assert_eq!(check_local_write(b"/nul", b"a\0b"), Err(LocalError::NulInValue));
        assert_eq!(check_local_write(&[b'/'; 64], b""), Err(LocalError::BadKey));
        let longest = [&b"/"[..], &[b'p'; 62]].concat();
        assert_eq!(check_local_write(&longest, b""), Ok(()));
    }
}
