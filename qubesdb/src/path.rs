//! Keys: the 64-byte field of the wire, the checked text, and the names of firewall trees.

use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;

/// Longest key in bytes; the wire field has one more for the NUL.
pub const MAX_PATH_BYTES: usize = 63;

/// Size of the path field of a header in bytes.
pub(crate) const FIELD_BYTES: usize = 64;

/// Where the rule trees of the clients live: `/qubes-firewall/<ip>/<key>`.
const FIREWALL_PREFIX: &str = "/qubes-firewall/";

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing before the first NUL.
    #[error("empty path")]
    Empty,
    /// More than [`MAX_PATH_BYTES`]. dom0 would cut it and store another key.
    #[error("path longer than 63 bytes")]
    TooLong,
    /// A key begins with `/`.
    #[error("path without leading slash")]
    NoLeadingSlash,
    /// Only a removal may end in `/` (it then means everything below).
    #[error("path with trailing slash")]
    TrailingSlash,
    /// Legal are `a-z A-Z 0-9 - _ / . : @`.
    #[error("path with illegal byte {0:#04x}")]
    IllegalByte(u8),
}

/// A checked key, or with trailing `/` a checked prefix: 1 to 63 legal bytes that begin with `/`.
///
/// Holding one proves that dom0's header check accepts the text; not that an entry exists.
#[derive(Clone, Copy)]
pub struct Path {
    field: [u8; FIELD_BYTES],
    len: u8,
}

impl Path {
    /// Checks the key of one entry.
    ///
    /// # Errors
    /// See [`PathError`]; a trailing slash is refused.
    pub fn entry(text: &str) -> Result<Self, PathError> {
        Self::entry_bytes(text.as_bytes())
    }

    /// Checks what a removal names: one entry or, with trailing slash, everything below.
    ///
    /// # Errors
    /// See [`PathError`].
    pub fn removal(text: &str) -> Result<Self, PathError> {
        Self::removal_bytes(text.as_bytes())
    }

    pub(crate) fn entry_bytes(text: &[u8]) -> Result<Self, PathError> {
        let path = Self::removal_bytes(text)?;
        if path.is_prefix() { Err(PathError::TrailingSlash) } else { Ok(path) }
    }

    pub(crate) fn removal_bytes(text: &[u8]) -> Result<Self, PathError> {
        let mut field = [0; FIELD_BYTES];
        if text.len() > MAX_PATH_BYTES {
            return Err(PathError::TooLong);
        }
        match text.first() {
            None => return Err(PathError::Empty),
            Some(b'/') => {}
            Some(_) => return Err(PathError::NoLeadingSlash),
        }
        for (to, &from) in field.iter_mut().zip(text) {
            if !is_legal(from) {
                return Err(PathError::IllegalByte(from));
            }
            *to = from;
        }
        // At most 63, checked above.
        Ok(Self { field, len: text.len() as u8 })
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let bytes = self.field.get(..usize::from(self.len)).unwrap_or_default();
        // Only ASCII gets into the field, so the fallback is never taken.
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Does the text end in `/`, so that it stands for everything that starts with it?
    pub fn is_prefix(&self) -> bool {
        self.as_str().ends_with('/')
    }

    /// Does a removal of this path concern `key`?
    pub(crate) fn covers(&self, key: &str) -> bool {
        if self.is_prefix() { key.starts_with(self.as_str()) } else { key == self.as_str() }
    }

    /// The NUL-padded field of a header.
    pub(crate) fn field(&self) -> &[u8; FIELD_BYTES] {
        &self.field
    }

    /// The firewall tree that this key belongs to: as its commit mark or as an entry below it.
    pub(crate) fn tree(&self) -> Option<Tree> {
        Tree::of(self.as_str().as_bytes())
    }
}

/// Bytes that a key may contain (Qubes qubesdb `db-cmds.c`; `@` is accepted though its header comment omits it).
const fn is_legal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/' | b'.' | b':' | b'@')
}

impl Borrow<str> for Path {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Path {}

impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The path field as it came, for a log line about a key that is not legal. Displays as printable ASCII.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawPath([u8; FIELD_BYTES]);

impl RawPath {
    pub(crate) const fn new(field: [u8; FIELD_BYTES]) -> Self {
        Self(field)
    }

    /// The bytes before the first NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

impl fmt::Display for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().escape_ascii().fmt(f)
    }
}

impl fmt::Debug for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Name of one client's rule tree, `/qubes-firewall/<ip>`. The text after the slash is what dom0 wrote: a claim
/// that still has to be parsed as an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tree {
    mark: Path,
}

impl Tree {
    /// The tree of a client's address text.
    ///
    /// # Errors
    /// See [`PathError`]; a slash in `ip_text` counts as an illegal byte.
    pub fn new(ip_text: &str) -> Result<Self, PathError> {
        if ip_text.contains('/') {
            return Err(PathError::IllegalByte(b'/'));
        }
        let mut field = [0; FIELD_BYTES];
        let length = FIREWALL_PREFIX.len().saturating_add(ip_text.len());
        let text = field.get_mut(..length).ok_or(PathError::TooLong)?;
        for (to, from) in text.iter_mut().zip(FIREWALL_PREFIX.bytes().chain(ip_text.bytes())) {
            *to = from;
        }
        Ok(Self { mark: Path::entry_bytes(text)? })
    }

    /// The tree that the key `path` belongs to. Works for illegal keys too, as long as the tree's name is legal.
    pub(crate) fn of(path: &[u8]) -> Option<Self> {
        let below = path.strip_prefix(FIREWALL_PREFIX.as_bytes())?;
        let name = below.split(|&byte| byte == b'/').next()?;
        let mark = path.get(..FIREWALL_PREFIX.len().checked_add(name.len())?)?;
        Some(Self { mark: Path::entry_bytes(mark).ok()? })
    }

    /// The key of the commit mark, `/qubes-firewall/<ip>`.
    pub fn mark(&self) -> &Path {
        &self.mark
    }

    /// `<ip>` as dom0 wrote it.
    pub fn ip_text(&self) -> &str {
        self.mark.as_str().strip_prefix(FIREWALL_PREFIX).unwrap_or_default()
    }

    /// The part of `key` after `/qubes-firewall/<ip>/`, if it lies in this tree.
    pub fn relative<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(self.mark.as_str())?.strip_prefix('/')
    }

    /// `/qubes-firewall/<ip>/`, with which every entry of the tree begins.
    pub(crate) fn below(&self) -> Below {
        let mut field = self.mark.field;
        // A mark has at most 63 bytes, so that the slash lands inside the field.
        if let Some(slash) = field.get_mut(usize::from(self.mark.len)) {
            *slash = b'/';
        }
        Below { field, len: self.mark.len.saturating_add(1) }
    }

    /// Everything that belongs to firewall trees begins with this.
    pub(crate) const fn common_prefix() -> &'static str {
        FIREWALL_PREFIX
    }
}

/// Text of a tree's common prefix: one byte longer than a key can be.
pub(crate) struct Below {
    field: [u8; FIELD_BYTES],
    len: u8,
}

impl Below {
    pub(crate) fn as_str(&self) -> &str {
        let bytes = self.field.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tree({})", self.ip_text())
    }
}
