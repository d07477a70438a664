//! QubesDB message as it is on the vchan (Qubes qubesdb wire protocol): type, path in 64 bytes, 3 bytes of
//! padding, length of the value (32 bits, little endian); then the value.

/// Size of a header, bytes.
pub const HEADER_LEN: usize = 72;
/// Values are shorter than this, bytes.
pub const DATA_LIMIT: u32 = 3072;
/// Longest path, bytes; one more is its NUL.
pub const PATH_MAX: usize = 63;

/// Message types that have a meaning on the vchan.
pub mod kind {
    /// Set an entry.
    pub const WRITE: u8 = 1;
    /// Dump the entries below a prefix.
    pub const MULTIREAD: u8 = 2;
    /// Remove an entry, or with a trailing slash what begins with the path.
    pub const RM: u8 = 4;
    /// Done.
    pub const RESP_OK: u8 = 7;
    /// No such entry; only ever sent by dom0, which then ends.
    pub const RESP_ERROR_NOENT: u8 = 8;
    /// Refused.
    pub const RESP_ERROR: u8 = 9;
    /// An entry of the dump, or its end.
    pub const RESP_MULTIREAD: u8 = 11;

    /// The name of a type, for the log.
    pub fn name(kind: u8) -> &'static str {
        match kind {
            WRITE => "WRITE",
            MULTIREAD => "MULTIREAD",
            RM => "RM",
            RESP_OK => "RESP_OK",
            RESP_ERROR_NOENT => "RESP_ERROR_NOENT",
            RESP_ERROR => "RESP_ERROR",
            RESP_MULTIREAD => "RESP_MULTIREAD",
            _ => "?",
        }
    }
}

/// A header. The path field and the padding are kept as they came: answers carry them back unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Message type, see [`kind`].
    pub kind: u8,
    /// Path, ended by the first NUL; what follows is anything.
    pub path: [u8; PATH_MAX + 1],
    /// Anything.
    pub padding: [u8; 3],
    /// Length of the value, bytes.
    pub data_len: u32,
}

impl Header {
    /// From the bytes of the ring; `None` unless there are exactly 72.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (path, rest) = rest.split_first_chunk()?;
        let (padding, rest) = rest.split_first_chunk()?;
        let data_len = u32::from_le_bytes(rest.try_into().ok()?);
        Some(Self { kind: *kind, path: *path, padding: *padding, data_len })
    }

    /// As it goes into the ring.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.push(self.kind);
        bytes.extend(self.path);
        bytes.extend(self.padding);
        bytes.extend(self.data_len.to_le_bytes());
        bytes
    }

    /// The path: up to the first NUL, and at most 63 bytes.
    pub fn name(&self) -> &[u8] {
        let field = self.path.get(..PATH_MAX).unwrap_or_default();
        field.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// The same header with another type and length: how dom0 makes its answers.
    pub fn answer(mut self, kind: u8) -> Self {
        self.kind = kind;
        self.data_len = 0;
        self
    }

    /// Puts `name` (cut to 63 bytes) into the path field and zeroes the rest of it.
    pub fn set_name(&mut self, name: &[u8]) {
        self.path = [0; PATH_MAX + 1];
        for (to, from) in self.path.iter_mut().take(PATH_MAX).zip(name) {
            *to = *from;
        }
    }

    /// A header with a clean path field.
    pub fn new(kind: u8, name: &[u8], data_len: u32) -> Self {
        let mut header = Self { kind, path: [0; PATH_MAX + 1], padding: [0; 3], data_len };
        header.set_name(name);
        header
    }
}

/// Whether every byte of a path is allowed. An empty path is.
pub fn has_allowed_bytes(path: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_/.:@".contains(byte);
    path.first() != Some(&b'-') && path.iter().all(allowed)
}

/// Whether a path can name an entry.
pub fn is_key(path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && path.last() != Some(&b'/')
        && path.len() <= PATH_MAX
        && has_allowed_bytes(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::hex;

    const ROW_33: &str = "012f71756265732d6669726577616c6c2f31302e3133372e302e31312f706f6c69637900fc7f0000589dbef651560000009ed949fc7f000008000000000000000095d94904000000";
    const ROW_36: &str = "072f71756265732d6669726577616c6c2f31302e3133372e302e31312f706f6c69637900fc7f0000589dbef651560000009ed949fc7f000008000000000000000095d94900000000";

    #[test]
    fn row_33_path_is_cut_at_the_first_nul() {
        let header = Header::decode(&hex::decode(ROW_33).unwrap()).unwrap();
        assert_eq!(header.kind, kind::WRITE);
        assert_eq!(header.name(), b"/qubes-firewall/10.137.0.11/policy");
        assert_eq!(header.padding, [0x95, 0xd9, 0x49]);
        assert_eq!(header.data_len, 4);
        assert_eq!(hex::encode(&header.encode()), ROW_33);
    }

    #[test]
    fn row_36_answer_carries_back_garbage_and_padding() {
        let header = Header::decode(&hex::decode(ROW_33).unwrap()).unwrap();
        assert_eq!(hex::encode(&header.answer(kind::RESP_OK).encode()), ROW_36);
    }

    #[test]
    fn header_needs_72_bytes() {
        assert_eq!(Header::decode(&[0; 71]), None);
        assert_eq!(Header::decode(&[0; 73]), None);
        assert!(Header::decode(&[0; 72]).is_some());
    }

    #[test]
    fn path_of_64_bytes_is_cut_to_63() {
        let mut header = Header::new(kind::WRITE, b"", 0);
        header.path = [b'q'; 64];
        assert_eq!(header.name(), [b'q'; 63]);
        header.set_name(&[b'p'; 80]);
        assert_eq!(header.name(), [b'p'; 63]);
        assert_eq!(header.path[63], 0);
    }

    #[test]
    fn vectors_of_section_9_2() {
        let zeros = |n: usize| "00".repeat(n);
        let header = |kind, name: &[u8], len| hex::encode(&Header::new(kind, name, len).encode());
        assert_eq!(header(kind::MULTIREAD, b"", 0), format!("02{}", zeros(71)));
        assert_eq!(
            header(kind::RESP_MULTIREAD, b"/qubes-ip", 10),
            format!("0b2f71756265732d6970{}0a000000", zeros(55 + 3))
        );
        assert_eq!(
            header(kind::RESP_MULTIREAD, b"/qubes-usb-devices", 0),
            format!("0b2f71756265732d7573622d64657669636573{}", zeros(46 + 3 + 4))
        );
        assert_eq!(header(kind::RESP_MULTIREAD, b"", 0), format!("0b{}", zeros(71)));
        assert_eq!(
            header(kind::WRITE, b"/qubes-firewall/10.137.0.9/0000", 13),
            format!(
                "012f71756265732d6669726577616c6c2f31302e3133372e302e392f30303030{}0d000000",
                zeros(33 + 3)
            )
        );
        assert_eq!(
            header(kind::WRITE, b"/qubes-firewall/10.137.0.9", 0),
            format!("012f71756265732d6669726577616c6c2f31302e3133372e302e39{}", zeros(38 + 7))
        );
        assert_eq!(
            header(kind::RESP_OK, b"/qubes-firewall/10.137.0.9", 0),
            format!("072f71756265732d6669726577616c6c2f31302e3133372e302e39{}", zeros(38 + 7))
        );
        assert_eq!(
            header(kind::RM, b"/qubes-firewall/10.137.0.9/", 0),
            format!("042f71756265732d6669726577616c6c2f31302e3133372e302e392f{}", zeros(37 + 7))
        );
        assert_eq!(
            header(kind::WRITE, b"/qubes-firewall-handled/10.137.0.9", 1),
            format!(
                "012f71756265732d6669726577616c6c2d68616e646c65642f31302e3133372e302e39{}01000000",
                zeros(30 + 3)
            )
        );
        assert_eq!(header(kind::WRITE, b"/a", 1), format!("012f61{}01000000", zeros(62 + 3)));
    }

    #[test]
    fn negative_vectors_of_section_9_2() {
        for bad in [&b"/a b"[..], b"-a", "/-ü".as_bytes(), b"/a\n", b"/a\xff", b"/a+b"] {
            assert!(!has_allowed_bytes(bad), "{bad:?}");
        }
        for good in [&b"/-a"[..], b"/a-b", b"", b"a/b", b"/fd09:24ef:4179::a89:9/", b"/x@y_z.0"] {
            assert!(has_allowed_bytes(good), "{good:?}");
        }
        for no_key in [&b"a/b"[..], b"", b"/a/", b"/", b"/a b", &[b'/'; 65]] {
            assert!(!is_key(no_key), "{no_key:?}");
        }
        assert!(is_key(b"/a"));
    }
}
