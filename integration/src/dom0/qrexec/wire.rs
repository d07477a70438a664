//! qrexec messages (Qubes qrexec protocol): type and length of the body, 32 bits each, little endian; the body.

/// Size of a header, bytes.
pub const HEADER_LEN: usize = 8;

/// Message types.
pub mod kind {
    /// Data for the service; empty: no more.
    pub const STDIN: u32 = 0x190;
    /// Output of the service; empty: no more.
    pub const STDOUT: u32 = 0x191;
    /// Error output of the service; empty: no more.
    pub const STDERR: u32 = 0x192;
    /// Exit status of the service, 32 bits.
    pub const EXIT_CODE: u32 = 0x193;
    /// Run a command and connect to a port for its data.
    pub const EXEC_CMDLINE: u32 = 0x200;
    /// Run a command; only its exit code is of interest.
    pub const JUST_EXEC: u32 = 0x201;
    /// Answer to a trigger: refused.
    pub const SERVICE_REFUSED: u32 = 0x203;
    /// The agent asks for a service, protocol 2.
    pub const TRIGGER_SERVICE: u32 = 0x210;
    /// The agent has finished with a port.
    pub const CONNECTION_TERMINATED: u32 = 0x211;
    /// The agent asks for a service, protocol 3.
    pub const TRIGGER_SERVICE3: u32 = 0x212;
    /// The agent asks for a service, protocol 4.
    pub const TRIGGER_SERVICE4: u32 = 0x213;
    /// Protocol version.
    pub const HELLO: u32 = 0x300;
}

/// A message without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// See [`kind`].
    pub kind: u32,
    /// Length of the body, bytes.
    pub len: u32,
}

impl Header {
    /// From 8 bytes; `None` for another number of bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, len) = words(bytes)?;
        Some(Self { kind, len })
    }

    /// As it goes into the ring.
    pub fn encode(self) -> Vec<u8> {
        [self.kind.to_le_bytes(), self.len.to_le_bytes()].concat()
    }
}

/// A header for a body.
pub fn header(kind: u32, body: usize) -> Vec<u8> {
    Header { kind, len: u32::try_from(body).unwrap_or(u32::MAX) }.encode()
}

/// Two 32-bit numbers from exactly 8 bytes.
pub fn words(bytes: &[u8]) -> Option<(u32, u32)> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*first), u32::from_le_bytes(rest.try_into().ok()?)))
}

/// One 32-bit number from the first 4 bytes.
pub fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_le_bytes(*word))
}
