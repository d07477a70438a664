//! Messages of the xenstore protocol (Xen public/io/xs_wire.h, docs/misc/xenstore.txt).

use alloc::vec::Vec;

use super::token::Token;
use crate::abi::DomId;

/// Bytes of a message header.
pub const HEADER_BYTES: usize = 16;
/// Most payload bytes of a message (`XENSTORE_PAYLOAD_MAX`); the store drops a connection that sends more.
pub const PAYLOAD_MAX: usize = 4096;
/// Most bytes of an absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABSOLUTE_PATH_MAX: usize = 3072;
/// Most bytes of a path relative to the domain's home (`XENSTORE_REL_PATH_MAX`).
pub const RELATIVE_PATH_MAX: usize = 2048;

/// `enum xsd_sockmsg_type`, as far as a guest uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// `XS_DIRECTORY`.
    Directory = 1,
    /// `XS_READ`.
    Read = 2,
    /// `XS_WATCH`.
    Watch = 4,
    /// `XS_UNWATCH`.
    Unwatch = 5,
    /// `XS_TRANSACTION_START`.
    TransactionStart = 6,
    /// `XS_TRANSACTION_END`.
    TransactionEnd = 7,
    /// `XS_WRITE`.
    Write = 11,
    /// `XS_MKDIR`.
    Mkdir = 12,
    /// `XS_RM`.
    Rm = 13,
    /// `XS_SET_PERMS`.
    SetPerms = 14,
    /// `XS_WATCH_EVENT`.
    WatchEvent = 15,
    /// `XS_ERROR`.
    Error = 16,
    /// `XS_RESET_WATCHES`.
    ResetWatches = 21,
}

/// A message header, each field as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type; of a reply the type of its request, or `XS_ERROR`.
    pub op: u32,
    /// Chosen by the client, echoed by the store; 0 in watch events.
    pub req_id: u32,
    /// Transaction, or 0.
    pub tx_id: u32,
    /// Payload bytes that follow.
    pub len: u32,
}

impl Header {
    /// Decodes a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Header {
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = *bytes;
        Header {
            op: u32::from_le_bytes([a0, a1, a2, a3]),
            req_id: u32::from_le_bytes([b0, b1, b2, b3]),
            tx_id: u32::from_le_bytes([c0, c1, c2, c3]),
            len: u32::from_le_bytes([d0, d1, d2, d3]),
        }
    }

    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields = [self.op, self.req_id, self.tx_id, self.len];
        for (place, field) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *place = field.to_le_bytes();
        }
        bytes
    }
}

/// A transaction that the store has opened for us; 0 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxId(pub u32);

impl TxId {
    /// Outside of any transaction.
    pub const NONE: TxId = TxId(0);

    /// Parses the reply to [`Request::TransactionStart`].
    pub fn parse(payload: &[u8]) -> Option<TxId> {
        let digits = payload.strip_suffix(b"\0").unwrap_or(payload);
        super::decimal_u32(digits).filter(|id| *id != 0).map(TxId)
    }
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// Apply it; `EAGAIN` means that it conflicted and has to be done again.
    Commit,
    /// Forget it.
    Abort,
}

/// One entry of a permission list; the first entry names the owner and the default for everybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The domain.
    pub dom: DomId,
    /// What it may do.
    pub mode: PermissionMode,
}

/// Letter of a permission entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermissionMode {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    Both,
}

impl PermissionMode {
    fn letter(self) -> u8 {
        match self {
            PermissionMode::None => b'n',
            PermissionMode::Read => b'r',
            PermissionMode::Write => b'w',
            PermissionMode::Both => b'b',
        }
    }
}

/// A request. Paths without a leading slash are relative to the domain's home, `/local/domain/<own id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Names of the children; `E2BIG` when they exceed one message.
    Directory {
        /// Node.
        path: &'a str,
    },
    /// Value of a node.
    Read {
        /// Node.
        path: &'a str,
    },
    /// Sets the value of a node; creates it and its parents.
    Write {
        /// Node.
        path: &'a str,
        /// New value.
        value: &'a [u8],
    },
    /// Creates an empty node.
    Mkdir {
        /// Node.
        path: &'a str,
    },
    /// Removes a node with everything below.
    Rm {
        /// Node.
        path: &'a str,
    },
    /// Watches a node and everything below; fires once at once.
    Watch {
        /// Node; need not exist.
        path: &'a str,
        /// Comes back in the events.
        token: Token,
    },
    /// Ends a watch.
    Unwatch {
        /// As given to `Watch`.
        path: &'a str,
        /// As given to `Watch`.
        token: Token,
    },
    /// Replaces the permissions of a node.
    SetPerms {
        /// Node.
        path: &'a str,
        /// At most five entries.
        permissions: &'a [Permission],
    },
    /// Opens a transaction; see [`TxId::parse`].
    TransactionStart,
    /// Closes the transaction that the request is sent in.
    TransactionEnd(TransactionEnd),
    /// Drops all watches and transactions, also those of an earlier kernel in this domain.
    ResetWatches,
}

/// The request cannot be put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Empty, too long, or a character that xenstore refuses.
    #[error("the path is not a xenstore path")]
    Path,
    /// More payload than a message holds.
    #[error("the message is too long")]
    TooLong,
}

impl Request<'_> {
    /// The message type.
    pub fn op(&self) -> Op {
        match self {
            Request::Directory { .. } => Op::Directory,
            Request::Read { .. } => Op::Read,
            Request::Write { .. } => Op::Write,
            Request::Mkdir { .. } => Op::Mkdir,
            Request::Rm { .. } => Op::Rm,
            Request::Watch { .. } => Op::Watch,
            Request::Unwatch { .. } => Op::Unwatch,
            Request::SetPerms { .. } => Op::SetPerms,
            Request::TransactionStart => Op::TransactionStart,
            Request::TransactionEnd(_) => Op::TransactionEnd,
            Request::ResetWatches => Op::ResetWatches,
        }
    }

    fn path(&self) -> Option<&str> {
        match self {
            Request::Directory { path }
            | Request::Read { path }
            | Request::Write { path, .. }
            | Request::Mkdir { path }
            | Request::Rm { path }
            | Request::Watch { path, .. }
            | Request::Unwatch { path, .. }
            | Request::SetPerms { path, .. } => Some(path),
            Request::TransactionStart | Request::TransactionEnd(_) | Request::ResetWatches => None,
        }
    }

    /// Encodes header and payload as one message.
    pub fn encode(&self, req_id: u32, tx: TxId) -> Result<Vec<u8>, EncodeError> {
        let mut message = Vec::with_capacity(HEADER_BYTES.saturating_add(128));
        message.extend_from_slice(&[0; HEADER_BYTES]);
        if let Some(path) = self.path() {
            if !is_path(path) {
                return Err(EncodeError::Path);
            }
            message.extend_from_slice(path.as_bytes());
            message.push(0);
        }
        self.encode_arguments(&mut message)?;
        let len = message.len().saturating_sub(HEADER_BYTES);
        if len > PAYLOAD_MAX {
            return Err(EncodeError::TooLong);
        }
        let header = Header { op: self.op() as u32, req_id, tx_id: tx.0, len: len as u32 };
        if let Some(place) = message.first_chunk_mut() {
            *place = header.encode();
        }
        Ok(message)
    }

    /// Appends what follows the path.
    fn encode_arguments(&self, message: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Request::Write { value, .. } => {
                if value.len() > PAYLOAD_MAX {
                    return Err(EncodeError::TooLong);
                }
                message.extend_from_slice(value);
            }
            Request::Watch { token, .. } | Request::Unwatch { token, .. } => {
                message.extend_from_slice(token.encode().as_bytes());
                message.push(0);
            }
            Request::SetPerms { permissions, .. } => {
                for permission in permissions.iter().take(5) {
                    message.push(permission.mode.letter());
                    message.extend_from_slice(alloc::format!("{}", permission.dom.0).as_bytes());
                    message.push(0);
                }
            }
            Request::TransactionStart | Request::ResetWatches => message.push(0),
            Request::TransactionEnd(TransactionEnd::Commit) => message.extend_from_slice(b"T\0"),
            Request::TransactionEnd(TransactionEnd::Abort) => message.extend_from_slice(b"F\0"),
            Request::Directory { .. }
            | Request::Read { .. }
            | Request::Mkdir { .. }
            | Request::Rm { .. } => {}
        }
        Ok(())
    }
}

/// Whether xenstore takes the path of a node (or one of the `@` watches).
fn is_path(path: &str) -> bool {
    let max = if path.starts_with('/') { ABSOLUTE_PATH_MAX } else { RELATIVE_PATH_MAX };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    !path.is_empty() && path.len() <= max && path.bytes().all(legal)
}

/// An error that the store answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// `EINVAL`
    #[error("invalid request")]
    Invalid,
    /// `EACCES` or `EPERM`
    #[error("permission denied")]
    Denied,
    /// `EEXIST`
    #[error("exists already")]
    Exists,
    /// `ENOENT`
    #[error("no such node")]
    NotFound,
    /// `ENOSPC`, `E2BIG` or oxenstored's `EQUOTA`: a limit of this domain is reached.
    #[error("a quota is exhausted")]
    Quota,
    /// `EAGAIN`: a transaction conflicted.
    #[error("conflict, try again")]
    Again,
    /// `EBUSY`
    #[error("busy")]
    Busy,
    /// Any other name, among them `ENOMEM`, `EIO`, `ENOSYS`.
    #[error("the store failed")]
    Other,
}

impl StoreError {
    /// Parses the payload of an error reply.
    pub fn parse(payload: &[u8]) -> StoreError {
        match payload.strip_suffix(b"\0").unwrap_or(payload) {
            b"EINVAL" => StoreError::Invalid,
            b"EACCES" | b"EPERM" => StoreError::Denied,
            b"EEXIST" => StoreError::Exists,
            b"ENOENT" => StoreError::NotFound,
            b"ENOSPC" | b"E2BIG" | b"EQUOTA" => StoreError::Quota,
            b"EAGAIN" => StoreError::Again,
            b"EBUSY" => StoreError::Busy,
            _ => StoreError::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xenstore::Owner;

    #[test]
    fn a_read_request_on_the_wire() {
        let message = Request::Read { path: "domid" }.encode(0x0102_0304, TxId::NONE).unwrap();
        let expected =
            [2, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0, 6, 0, 0, 0, b'd', b'o', b'm', b'i', b'd', 0];
        assert_eq!(message, expected);
    }

    #[test]
    fn payloads_of_all_kinds() {
        let token = Token { owner: Owner::Netback, id: 3, generation: 10 };
        let permissions = [
            Permission { dom: DomId(3), mode: PermissionMode::None },
            Permission { dom: DomId(0), mode: PermissionMode::Read },
        ];
        let cases: [(Request<'_>, u32, &[u8]); 11] = [
            (Request::Directory { path: "a" }, 1, b"a\0"),
            (Request::Read { path: "/a" }, 2, b"/a\0"),
            (Request::Watch { path: "b/c", token }, 4, b"b/c\0b-3-a\0"),
            (Request::Unwatch { path: "b/c", token }, 5, b"b/c\0b-3-a\0"),
            (Request::TransactionStart, 6, b"\0"),
            (Request::TransactionEnd(TransactionEnd::Commit), 7, b"T\0"),
            (Request::TransactionEnd(TransactionEnd::Abort), 7, b"F\0"),
            (Request::Write { path: "s", value: b"4" }, 11, b"s\x004"),
            (Request::Mkdir { path: "m" }, 12, b"m\0"),
            (Request::SetPerms { path: "p", permissions: &permissions }, 14, b"p\0n3\0r0\0"),
            (Request::ResetWatches, 21, b"\0"),
        ];
        for (request, op, payload) in cases {
            let message = request.encode(7, TxId(9)).unwrap();
            let header = Header::decode(message.first_chunk().unwrap());
            assert_eq!(header, Header { op, req_id: 7, tx_id: 9, len: payload.len() as u32 });
            assert_eq!(&message[HEADER_BYTES..], payload, "{request:?}");
        }
        let empty = Request::Write { path: "s", value: b"" }.encode(1, TxId::NONE).unwrap();
        assert_eq!(&empty[HEADER_BYTES..], b"s\0");
    }

    #[test]
    fn paths_that_xenstore_refuses_are_not_sent() {
        for bad in ["", "a b", "a\0b", "ä", "a.b", "a\n"] {
            let got = Request::Read { path: bad }.encode(1, TxId::NONE);
            assert_eq!(got, Err(EncodeError::Path), "{bad:?}");
        }
        let longest = "a".repeat(RELATIVE_PATH_MAX);
        assert!(Request::Read { path: &longest }.encode(1, TxId::NONE).is_ok());
        let longer = "a".repeat(RELATIVE_PATH_MAX + 1);
        assert_eq!(Request::Read { path: &longer }.encode(1, TxId::NONE), Err(EncodeError::Path));
        let value = [0; PAYLOAD_MAX - 2];
        assert!(Request::Write { path: "a", value: &value }.encode(1, TxId::NONE).is_ok());
        let value = [0; PAYLOAD_MAX - 1];
        let got = Request::Write { path: "a", value: &value }.encode(1, TxId::NONE);
        assert_eq!(got, Err(EncodeError::TooLong));
    }

    #[test]
    fn error_names() {
        assert_eq!(StoreError::parse(b"ENOENT\0"), StoreError::NotFound);
        assert_eq!(StoreError::parse(b"EQUOTA\0"), StoreError::Quota);
        assert_eq!(StoreError::parse(b"E2BIG\0"), StoreError::Quota);
        assert_eq!(StoreError::parse(b"EAGAIN\0"), StoreError::Again);
        assert_eq!(StoreError::parse(b"EACCES\0"), StoreError::Denied);
        assert_eq!(StoreError::parse(b"ENEW\0"), StoreError::Other);
        assert_eq!(StoreError::parse(b""), StoreError::Other);
    }

    #[test]
    fn transaction_ids() {
        assert_eq!(TxId::parse(b"17\0"), Some(TxId(17)));
        assert_eq!(TxId::parse(b"0\0"), None);
        assert_eq!(TxId::parse(b"x\0"), None);
    }
}
