//! What the tracker reads of a segment.

/// TCP flags (RFC 9293, 3.1).
pub(crate) mod flags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const URG: u8 = 0x20;
    /// RFC 3168, 6.1.
    pub(crate) const CWR: u8 = 0x80;
}

/// What matters of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) window: u16,
    /// Bytes of payload; of the whole super-frame where there is one.
    pub(crate) payload: u16,
    /// Window scale option of a SYN.
    pub(crate) scale: Option<u8>,
}

impl Segment {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence number after the last thing in it.
    pub(super) fn end(&self) -> u32 {
        let controls = u32::from(self.has(flags::SYN)) + u32::from(self.has(flags::FIN));
        self.sequence.wrapping_add(u32::from(self.payload)).wrapping_add(controls)
    }

    /// Whether the sender waits for something: then a reset can name the sequence number it will accept.
    pub(crate) fn is_resettable(&self) -> bool {
        self.flags & (flags::ACK | flags::SYN | flags::RST) == flags::ACK
    }

    /// Whether some stack sends this combination of flags.
    pub(crate) fn has_legal_flags(&self) -> bool {
        use flags::{ACK, FIN, RST, SYN, URG};
        let relevant = self.flags & (FIN | SYN | RST | ACK | URG);
        [SYN, SYN | URG, SYN | ACK, RST, RST | ACK, FIN | ACK, FIN | ACK | URG, ACK, ACK | URG]
            .contains(&relevant)
    }
}
