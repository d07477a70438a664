//! Why a double ends where the real daemon ends, and the exit codes by which a test sees it.
#![forbid(unsafe_code)]

use std::fmt;

/// The end of a daemon, caused by the VM. The codes are stable: scripts and tests compare them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// QubesDB: a message type that has no place on the vchan (rows M2 to M5).
    ForbiddenType(u8),
    /// QubesDB: a second MULTIREAD on one connection (row M1).
    SecondMultiread,
    /// QubesDB: a forbidden byte in a path (row M6).
    BadPath,
    /// QubesDB: a WRITE of a path that cannot be a key (row M7).
    RefusedWrite,
    /// QubesDB: an RM of what is not there; the databases have diverged (row M10).
    AbsentEntry,
    /// QubesDB: a value of 3072 bytes or more (rows M12 and M14).
    TooLong(u32),
    /// QubesDB: an error answer with data (row M19).
    ErrorWithData,
    /// QubesDB: an RM while its answer does not fit into the ring.
    NoRoomForAnswer,
    /// QubesDB: the link went before the dump was written (rows P4 to P6).
    ClosedBeforeDump,
    /// QubesDB: the library refused to read or write although the link is open.
    RingBroken,
    /// qrexec: the agent's protocol version is below 2.
    OldVersion(u32),
    /// qrexec: a message type that the agent may not send.
    UnknownMessage(u32),
    /// qrexec: a body of another length than its type has.
    WrongLength {
        /// Message type.
        kind: u32,
        /// Length in its header, bytes.
        len: u32,
    },
    /// qrexec: the text of a call does not fit into the agent's ring.
    BodyTooLarge(usize),
    /// qrexec: the library refused to read or write although the link is open.
    ControlRingBroken,
}

impl Exit {
    /// The process's exit code, 20 or more.
    pub fn code(self) -> u8 {
        match self {
            Self::ForbiddenType(_) => 20,
            Self::SecondMultiread => 21,
            Self::BadPath => 22,
            Self::RefusedWrite => 23,
            Self::AbsentEntry => 24,
            Self::TooLong(_) => 25,
            Self::ErrorWithData => 26,
            Self::NoRoomForAnswer => 27,
            Self::ClosedBeforeDump => 28,
            Self::RingBroken => 29,
            Self::OldVersion(_) => 40,
            Self::UnknownMessage(_) => 41,
            Self::WrongLength { .. } => 42,
            Self::BodyTooLarge(_) => 43,
            Self::ControlRingBroken => 44,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForbiddenType(kind) => write!(f, "the VM sent message type {kind:#04x}"),
            Self::SecondMultiread => {
                f.write_str("the VM sent a second MULTIREAD on one connection")
            }
            Self::BadPath => f.write_str("the VM sent a path with a forbidden byte"),
            Self::RefusedWrite => f.write_str("the VM wrote to a path that cannot be a key"),
            Self::AbsentEntry => f.write_str("the VM removed what is not in the database"),
            Self::TooLong(len) => write!(f, "the VM announced {len} bytes of data"),
            Self::ErrorWithData => f.write_str("the VM sent an error answer with data"),
            Self::NoRoomForAnswer => {
                f.write_str("the VM sent an RM while its answer does not fit into the ring")
            }
            Self::ClosedBeforeDump => {
                f.write_str("the VM closed the link before the dump was written")
            }
            Self::RingBroken | Self::ControlRingBroken => {
                f.write_str("the ring's indices make no sense")
            }
            Self::OldVersion(version) => write!(f, "the agent speaks version {version}"),
            Self::UnknownMessage(kind) => write!(f, "the agent sent message type {kind:#x}"),
            Self::WrongLength { kind, len } => {
                write!(f, "the agent sent {len} bytes with message type {kind:#x}")
            }
            Self::BodyTooLarge(len) => {
                write!(f, "a body of {len} bytes does not fit into the agent's ring")
            }
        }
    }
}
