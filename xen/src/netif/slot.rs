//! Byte formats of the ring slots (Xen public/io/netif.h), little-endian.

use super::{Checksum, Gso, GsoKind, Offload};
use crate::abi::GrantRef;
use crate::planted::{Defect, is_planted};

/// Bytes per slot of the TX ring.
pub const TX_SLOT_BYTES: usize = 12;
/// Bytes per slot of the RX ring.
pub const RX_SLOT_BYTES: usize = 8;

/// `XEN_NETIF_RSP_OKAY`.
pub const STATUS_OKAY: i16 = 0;
/// `XEN_NETIF_RSP_ERROR`.
pub const STATUS_ERROR: i16 = -1;
/// `XEN_NETIF_RSP_DROPPED`.
pub const STATUS_DROPPED: i16 = -2;
/// `XEN_NETIF_RSP_NULL`: the slot held an extra info, there is no request to answer.
pub const STATUS_NULL: i16 = 1;

/// Flags of a TX request (`XEN_NETTXF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxFlags(pub u16);

impl TxFlags {
    /// The transport checksum covers the pseudo-header only.
    pub const CSUM_BLANK: u16 = 1;
    /// The sender says that the data are valid.
    pub const DATA_VALIDATED: u16 = 2;
    /// The packet continues in a further request.
    pub const MORE_DATA: u16 = 4;
    /// An extra info follows in the next slot.
    pub const EXTRA_INFO: u16 = 8;

    /// Flags of a frame's first slot for this offload state, without those that announce further slots.
    pub fn for_frame(offload: Offload) -> TxFlags {
        TxFlags(match offload.checksum {
            Checksum::Full if is_planted(Defect::ValidatedClaimed) => TxFlags::DATA_VALIDATED,
            Checksum::Full => 0,
            Checksum::Validated => TxFlags::DATA_VALIDATED,
            Checksum::Blank => TxFlags::CSUM_BLANK | TxFlags::DATA_VALIDATED,
        })
    }

    /// What the flags say about the checksum. A peer's `data_validated` is a claim and counts for nothing.
    pub fn checksum(self) -> Checksum {
        match (self.has(TxFlags::CSUM_BLANK), self.has(TxFlags::DATA_VALIDATED)) {
            (true, _) if is_planted(Defect::TxBlankIgnored) => Checksum::Full,
            (true, _) => Checksum::Blank,
            (false, true) if is_planted(Defect::TxChecksumBelieved) => Checksum::Blank,
            (false, _) => Checksum::Full,
        }
    }

    /// Whether all bits of `mask` are set.
    pub fn has(self, mask: u16) -> bool {
        self.0 & mask == mask
    }
}

/// Flags of an RX response (`XEN_NETRXF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxFlags(pub u16);

impl RxFlags {
    /// The sender says that the data are valid.
    pub const DATA_VALIDATED: u16 = 1;
    /// The transport checksum covers the pseudo-header only.
    pub const CSUM_BLANK: u16 = 2;
    /// The packet continues in a further response.
    pub const MORE_DATA: u16 = 4;
    /// An extra info follows in the next slot.
    pub const EXTRA_INFO: u16 = 8;

    /// Flags of a frame's first slot for this offload state, without those that announce further slots.
    pub fn for_frame(offload: Offload) -> RxFlags {
        RxFlags(match offload.checksum {
            Checksum::Full if is_planted(Defect::ValidatedClaimed) => RxFlags::DATA_VALIDATED,
            Checksum::Full => 0,
            Checksum::Validated => RxFlags::DATA_VALIDATED,
            Checksum::Blank => RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED,
        })
    }

    /// What the flags say about the checksum. A peer's `data_validated` is a claim and counts for nothing.
    pub fn checksum(self) -> Checksum {
        match (self.has(RxFlags::CSUM_BLANK), self.has(RxFlags::DATA_VALIDATED)) {
            (true, _) if is_planted(Defect::RxBlankIgnored) => Checksum::Full,
            (true, _) => Checksum::Blank,
            (false, true) if is_planted(Defect::RxChecksumBelieved) => Checksum::Blank,
            (false, _) => Checksum::Full,
        }
    }

    /// Whether all bits of `mask` are set.
    pub fn has(self, mask: u16) -> bool {
        self.0 & mask == mask
    }
}

/// `struct netif_tx_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxRequest {
    /// Page that holds the data.
    pub gref: GrantRef,
    /// First byte within that page.
    pub offset: u16,
    /// Flags; in slots after the first only `MORE_DATA` has a meaning.
    pub flags: TxFlags,
    /// Opaque to the backend, echoed in the response.
    pub id: u16,
    /// Bytes: of the whole packet in its first slot, of this slot in the others.
    pub size: u16,
}

impl TxRequest {
    /// Decodes a slot; every bit pattern is a request.
    pub fn decode(slot: &[u8; TX_SLOT_BYTES]) -> TxRequest {
        let [g0, g1, g2, g3, o0, o1, f0, f1, i0, i1, s0, s1] = *slot;
        TxRequest {
            gref: GrantRef(u32::from_le_bytes([g0, g1, g2, g3])),
            offset: u16::from_le_bytes([o0, o1]),
            flags: TxFlags(u16::from_le_bytes([f0, f1])),
            id: u16::from_le_bytes([i0, i1]),
            size: u16::from_le_bytes([s0, s1]),
        }
    }

    /// Encodes the slot.
    pub fn encode(&self) -> [u8; TX_SLOT_BYTES] {
        let [g0, g1, g2, g3] = self.gref.0.to_le_bytes();
        let [o0, o1] = self.offset.to_le_bytes();
        let [f0, f1] = self.flags.0.to_le_bytes();
        let [i0, i1] = self.id.to_le_bytes();
        let [s0, s1] = self.size.to_le_bytes();
        [g0, g1, g2, g3, o0, o1, f0, f1, i0, i1, s0, s1]
    }
}

/// `struct netif_tx_response`: the first four bytes of a TX slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxResponse {
    /// Echo of the request's id.
    pub id: u16,
    /// One of the `STATUS_` values.
    pub status: i16,
}

impl TxResponse {
    /// Decodes a slot.
    pub fn decode(slot: &[u8; TX_SLOT_BYTES]) -> TxResponse {
        let [i0, i1, s0, s1, ..] = *slot;
        TxResponse { id: u16::from_le_bytes([i0, i1]), status: i16::from_le_bytes([s0, s1]) }
    }

    /// Encodes the response.
    pub fn encode(&self) -> [u8; 4] {
        let [i0, i1] = self.id.to_le_bytes();
        let [s0, s1] = self.status.to_le_bytes();
        [i0, i1, s0, s1]
    }
}

/// `struct netif_rx_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRequest {
    /// Opaque to the backend, echoed in the response.
    pub id: u16,
    /// Writable page for received data.
    pub gref: GrantRef,
}

impl RxRequest {
    /// Decodes a slot; every bit pattern is a request.
    pub fn decode(slot: &[u8; RX_SLOT_BYTES]) -> RxRequest {
        let [i0, i1, _, _, g0, g1, g2, g3] = *slot;
        RxRequest {
            id: u16::from_le_bytes([i0, i1]),
            gref: GrantRef(u32::from_le_bytes([g0, g1, g2, g3])),
        }
    }

    /// Encodes the slot; the padding is zero.
    pub fn encode(&self) -> [u8; RX_SLOT_BYTES] {
        let [i0, i1] = self.id.to_le_bytes();
        let [g0, g1, g2, g3] = self.gref.0.to_le_bytes();
        [i0, i1, 0, 0, g0, g1, g2, g3]
    }
}

/// `struct netif_rx_response`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxResponse {
    /// Echo of the request's id.
    pub id: u16,
    /// First byte of the data within the page.
    pub offset: u16,
    /// Flags.
    pub flags: RxFlags,
    /// Bytes in this slot, or a negative `STATUS_` value.
    pub status: i16,
}

impl RxResponse {
    /// Decodes a slot.
    pub fn decode(slot: &[u8; RX_SLOT_BYTES]) -> RxResponse {
        let [i0, i1, o0, o1, f0, f1, s0, s1] = *slot;
        RxResponse {
            id: u16::from_le_bytes([i0, i1]),
            offset: u16::from_le_bytes([o0, o1]),
            flags: RxFlags(u16::from_le_bytes([f0, f1])),
            status: i16::from_le_bytes([s0, s1]),
        }
    }

    /// Encodes the slot.
    pub fn encode(&self) -> [u8; RX_SLOT_BYTES] {
        let [i0, i1] = self.id.to_le_bytes();
        let [o0, o1] = self.offset.to_le_bytes();
        let [f0, f1] = self.flags.0.to_le_bytes();
        let [s0, s1] = self.status.to_le_bytes();
        [i0, i1, o0, o1, f0, f1, s0, s1]
    }
}

/// `struct netif_extra_info`, which overlays a TX request or an RX response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraInfo {
    /// Segmentation (type 1), with the raw type byte where it is not TCPv4 or TCPv6, or the size is zero.
    Gso(Result<Gso, u8>),
    /// A multicast filter entry (types 2 and 3); never negotiated here, ignored.
    Multicast,
    /// A flow hash (type 4); ignored.
    Hash,
    /// Head room for XDP (type 5, a Linux addition); ignored.
    Xdp,
    /// Type 0 or above 5.
    Unknown(u8),
}

impl ExtraInfo {
    /// `XEN_NETIF_EXTRA_FLAG_MORE`: another extra info follows.
    const MORE: u8 = 1;

    /// A segmentation request as the only extra info of a frame.
    pub fn encode_gso(gso: Gso) -> [u8; 8] {
        let [s0, s1] = gso.size.to_le_bytes();
        let kind = match gso.kind {
            GsoKind::TcpV4 => 1,
            GsoKind::TcpV6 => 2,
        };
        [1, 0, s0, s1, kind, 0, 0, 0]
    }

    /// Decodes the first eight bytes of a slot; the second value says whether another extra info follows.
    pub fn decode(slot: &[u8; 8]) -> (ExtraInfo, bool) {
        let [kind, flags, s0, s1, gso, ..] = *slot;
        let size = u16::from_le_bytes([s0, s1]);
        let info = match kind {
            1 => ExtraInfo::Gso(match gso {
                1 if size > 0 => Ok(Gso { kind: GsoKind::TcpV4, size }),
                2 if size > 0 => Ok(Gso { kind: GsoKind::TcpV6, size }),
                other => Err(other),
            }),
            2 | 3 => ExtraInfo::Multicast,
            4 => ExtraInfo::Hash,
            5 => ExtraInfo::Xdp,
            other => ExtraInfo::Unknown(other),
        };
        (info, flags & ExtraInfo::MORE != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tx_request_bytes() {
        let request = TxRequest {
            gref: GrantRef(0x0403_0201),
            offset: 0x0605,
            flags: TxFlags(0x0807),
            id: 0x0a09,
            size: 0x0c0b,
        };
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(request.encode(), bytes);
        assert_eq!(TxRequest::decode(&bytes), request);
    }

    #[test]
    fn tx_response_bytes() {
        let response = TxResponse { id: 0x0201, status: STATUS_DROPPED };
        assert_eq!(response.encode(), [1, 2, 0xfe, 0xff]);
        assert_eq!(TxResponse::decode(&[1, 2, 0xfe, 0xff, 9, 9, 9, 9, 9, 9, 9, 9]), response);
    }

    #[test]
    fn rx_bytes() {
        let request = RxRequest { id: 0x0201, gref: GrantRef(0x0807_0605) };
        assert_eq!(request.encode(), [1, 2, 0, 0, 5, 6, 7, 8]);
        assert_eq!(RxRequest::decode(&[1, 2, 0xaa, 0xbb, 5, 6, 7, 8]), request);
        let response = RxResponse { id: 0x0201, offset: 0x0403, flags: RxFlags(5), status: -1 };
        assert_eq!(response.encode(), [1, 2, 3, 4, 5, 0, 0xff, 0xff]);
        assert_eq!(RxResponse::decode(&[1, 2, 3, 4, 5, 0, 0xff, 0xff]), response);
    }

    #[test]
    fn the_same_meaning_has_different_bits_on_the_two_rings() {
        assert_eq!(TxFlags::for_frame(Offload::BLANK), TxFlags(3));
        assert_eq!(RxFlags::for_frame(Offload::BLANK), RxFlags(3));
        assert_eq!(TxFlags::for_frame(Offload::VALIDATED), TxFlags(2));
        assert_eq!(RxFlags::for_frame(Offload::VALIDATED), RxFlags(1));
        assert_eq!(TxFlags::for_frame(Offload::NONE), TxFlags(0));
        assert_eq!(RxFlags::for_frame(Offload::NONE), RxFlags(0));
        assert_eq!(TxFlags(1).checksum(), Checksum::Blank);
        assert_eq!(RxFlags(2).checksum(), Checksum::Blank);
    }

    #[test]
    fn r7_data_validated_of_a_peer_is_not_believed() {
        assert_eq!(TxFlags(TxFlags::DATA_VALIDATED).checksum(), Checksum::Full);
        assert_eq!(RxFlags(RxFlags::DATA_VALIDATED).checksum(), Checksum::Full);
    }

    #[test]
    fn extra_info_types() {
        let gso = |size: u16, kind| {
            let [low, high] = size.to_le_bytes();
            ExtraInfo::decode(&[1, 0, low, high, kind, 0, 0, 0]).0
        };
        assert_eq!(gso(1448, 1), ExtraInfo::Gso(Ok(Gso { kind: GsoKind::TcpV4, size: 1448 })));
        assert_eq!(gso(1428, 2), ExtraInfo::Gso(Ok(Gso { kind: GsoKind::TcpV6, size: 1428 })));
        for (kind, size) in [(GsoKind::TcpV4, 1448), (GsoKind::TcpV6, 65535)] {
            let slot = ExtraInfo::encode_gso(Gso { kind, size });
            let decoded = ExtraInfo::decode(&slot);
            assert_eq!(decoded, (ExtraInfo::Gso(Ok(Gso { kind, size })), false));
        }
        assert_eq!(gso(0, 1), ExtraInfo::Gso(Err(1)));
        assert_eq!(gso(100, 3), ExtraInfo::Gso(Err(3)));
        assert_eq!(ExtraInfo::decode(&[2, 1, 0, 0, 0, 0, 0, 0]), (ExtraInfo::Multicast, true));
        assert_eq!(ExtraInfo::decode(&[4, 0xfe, 0, 0, 0, 0, 0, 0]), (ExtraInfo::Hash, false));
        assert_eq!(ExtraInfo::decode(&[0, 0, 0, 0, 0, 0, 0, 0]), (ExtraInfo::Unknown(0), false));
        assert_eq!(ExtraInfo::decode(&[6, 0, 0, 0, 0, 0, 0, 0]), (ExtraInfo::Unknown(6), false));
    }
}
