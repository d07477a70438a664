//! Framing: a 72-byte header, then `data_len` bytes of value (Qubes `qubesdb.h`).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | type |
//! | 1 | 64 | path, NUL-terminated; the bytes after the NUL are stack contents of C peers |
//! | 65 | 3 | padding, likewise |
//! | 68 | 4 | data_len, little endian |

use crate::path::{FIELD_BYTES, Path, PathError, RawPath};

/// Size of a header in bytes.
pub const HEADER_BYTES: usize = 72;
/// Longest value in bytes. The wire's limit is `data_len < 3072`.
pub const MAX_VALUE_BYTES: usize = 3071;
/// Longest message in bytes; fits a 4096-byte ring on purpose.
pub const MAX_MESSAGE_BYTES: usize = HEADER_BYTES + MAX_VALUE_BYTES;

const PATH_OFFSET: usize = 1;
const PADDING_OFFSET: usize = 65;
const LENGTH_OFFSET: usize = 68;

/// Types that may be on a vchan. The other codes belong to the daemons' local sockets, and dom0's daemon ends when
/// it gets one of those from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Set a key. Both directions.
    Write = 1,
    /// Send all keys with the prefix. To dom0, once per connection.
    MultiRead = 2,
    /// Remove a key or, with trailing slash, all keys below. Both directions.
    Remove = 4,
    /// Done. Both directions.
    Ok = 7,
    /// The key to be removed is absent. dom0 sends it right before its daemon ends; never to be sent to dom0.
    NoEntry = 8,
    /// Refused. Both directions, without value.
    Error = 9,
    /// One entry of the dump, or its end mark. From dom0.
    DumpEntry = 11,
}

impl Kind {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Write,
            2 => Self::MultiRead,
            4 => Self::Remove,
            7 => Self::Ok,
            8 => Self::NoEntry,
            9 => Self::Error,
            11 => Self::DumpEntry,
            _ => return None,
        })
    }
}

/// Why 72 bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A type that does not belong on a vchan, or none at all.
    #[error("message type {0:#04x}")]
    Type(u8),
    /// `data_len` of 3072 or more.
    #[error("value of {0} bytes announced")]
    ValueTooLong(u32),
    /// No NUL in the 64 bytes of the path.
    #[error("path is not terminated")]
    PathNotTerminated,
}

/// A decoded header. Proves type and length to be legal, the path only to be terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    kind: Kind,
    path: RawPath,
    data_len: u16,
    raw: [u8; HEADER_BYTES],
}

impl Header {
    /// Decodes and checks type, termination of the path and length, in the order in which a broken frame is
    /// least likely to be believed.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn decode(raw: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let kind = Kind::from_code(raw[0]).ok_or(HeaderError::Type(raw[0]))?;
        let mut length = [0; 4];
        length.copy_from_slice(tail(raw, LENGTH_OFFSET));
        let length = u32::from_le_bytes(length);
        let data_len = u16::try_from(length)
            .ok()
            .filter(|&len| usize::from(len) <= MAX_VALUE_BYTES)
            .ok_or(HeaderError::ValueTooLong(length))?;
        let mut field = [0; FIELD_BYTES];
        for (to, &from) in field.iter_mut().zip(tail(raw, PATH_OFFSET)) {
            *to = from;
        }
        if !field.contains(&0) {
            return Err(HeaderError::PathNotTerminated);
        }
        Ok(Self { kind, path: RawPath::new(field), data_len, raw: *raw })
    }

    /// Type of the message.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Length of the value in bytes, at most [`MAX_VALUE_BYTES`].
    pub fn data_len(&self) -> usize {
        usize::from(self.data_len)
    }

    /// The path field, cut at the first NUL, not checked further.
    pub fn raw_path(&self) -> RawPath {
        self.path
    }

    /// The path as the key of one entry.
    ///
    /// # Errors
    /// See [`PathError`].
    pub fn entry_path(&self) -> Result<Path, PathError> {
        Path::entry_bytes(self.path.as_bytes())
    }

    /// The path as what a removal names.
    ///
    /// # Errors
    /// See [`PathError`].
    pub fn removal_path(&self) -> Result<Path, PathError> {
        Path::removal_bytes(self.path.as_bytes())
    }

    /// Does this end the dump? Only the first byte of the path counts: dom0 clears just that one, the rest of the
    /// field still holds the path of the last entry.
    pub fn is_end_of_dump(&self) -> bool {
        self.kind == Kind::DumpEntry && self.data_len == 0 && self.path.as_bytes().is_empty()
    }

    /// The answer to this header: type and length overwritten, path, the bytes after its NUL and padding returned
    /// unchanged, as the daemons do.
    pub(crate) fn answer(&self, kind: Kind) -> [u8; HEADER_BYTES] {
        let mut raw = self.raw;
        raw[0] = kind as u8;
        write_length(&mut raw, 0);
        raw
    }
}

/// A header of our own: padding and the bytes after the path zero.
pub(crate) fn encode_header(kind: Kind, path: Option<&Path>, data_len: u16) -> [u8; HEADER_BYTES] {
    let mut raw = [0; HEADER_BYTES];
    raw[0] = kind as u8;
    if let Some(path) = path {
        for (to, &from) in raw.iter_mut().skip(PATH_OFFSET).zip(path.field()) {
            *to = from;
        }
    }
    write_length(&mut raw, data_len);
    raw
}

fn write_length(raw: &mut [u8; HEADER_BYTES], data_len: u16) {
    for (to, from) in raw.iter_mut().skip(LENGTH_OFFSET).zip(u32::from(data_len).to_le_bytes()) {
        *to = from;
    }
}

fn tail(raw: &[u8; HEADER_BYTES], offset: usize) -> &[u8] {
    raw.get(offset..).unwrap_or_default()
}

const _: () = assert!(PATH_OFFSET + FIELD_BYTES == PADDING_OFFSET);
const _: () = assert!(PADDING_OFFSET + 3 == LENGTH_OFFSET);
const _: () = assert!(LENGTH_OFFSET + 4 == HEADER_BYTES);
