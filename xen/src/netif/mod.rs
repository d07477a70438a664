//! The network ring protocol of Xen public/io/netif.h: slot formats, flags, packets made of several slots.
//!
//! "TX" and "RX" are seen from the frontend, as in the header. The flag bits differ between the two rings, which is
//! why [`TxFlags`] and [`RxFlags`] are different types; [`Offload`] is what both mean.
//!
//! A peer's claim about a checksum is never believed: a frame that arrives with `data_validated` alone counts as
//! [`Checksum::Full`], unverified. [`Checksum::Validated`] exists only for frames that we computed ourselves.
#![forbid(unsafe_code)]

mod assemble;
mod chain;
mod gate;
mod slot;
mod tail;
mod transfer;

pub use assemble::{
    Assembled, Assembler, DropReason, Fragment, Limits, MAX_FRAGMENTS, TxPacket, Violation,
};
pub use chain::{
    Chain, HEAD_BYTES, MAX_CHAIN_PAGES, MAX_FRAME_SLOTS, MAX_SUPER_FRAME_BYTES, Piece,
};
pub(crate) use gate::EventGate;
pub use slot::{
    ExtraInfo, RX_SLOT_BYTES, RxFlags, RxRequest, RxResponse, STATUS_DROPPED, STATUS_ERROR,
    STATUS_NULL, STATUS_OKAY, TX_SLOT_BYTES, TxFlags, TxRequest, TxResponse,
};
pub use tail::{Tail, prepare as prepare_tails};
pub(crate) use transfer::{Gather, MOST_WAIT_NS, Moment, Transfer};

/// Shortest frame that has an Ethernet header, in bytes.
pub const MIN_FRAME_BYTES: u16 = 14;
/// Longest frame without segmentation that both drivers take, in bytes: an MTU of 1500, the Ethernet header and one
/// VLAN tag.
pub const MAX_FRAME_BYTES: u16 = 1518;

/// State of a frame's TCP or UDP checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Checksum {
    /// The field claims to be a complete checksum; nobody verified it.
    Full,
    /// The field is a complete checksum that we computed or verified ourselves.
    Validated,
    /// The field holds the folded sum of the pseudo-header only (`csum_blank`); the receiver completes it.
    Blank,
}

/// Kind of a segmentation-offload frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// `XEN_NETIF_GSO_TYPE_TCPV4`.
    TcpV4,
    /// `XEN_NETIF_GSO_TYPE_TCPV6`.
    TcpV6,
}

/// Segmentation that the receiver of a super-frame has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gso {
    /// Protocol to segment.
    pub kind: GsoKind,
    /// Payload bytes per segment (the MSS); never zero.
    pub size: u16,
}

/// Work on a frame that was left to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Offload {
    /// State of the transport checksum.
    pub checksum: Checksum,
    /// Segmentation to do, if the frame is a super-frame.
    pub gso: Option<Gso>,
}

impl Offload {
    /// A complete frame with a checksum of unknown truth.
    pub const NONE: Offload = Offload { checksum: Checksum::Full, gso: None };
    /// A complete frame whose checksum we computed.
    pub const VALIDATED: Offload = Offload { checksum: Checksum::Validated, gso: None };
    /// A frame whose transport checksum the receiver completes.
    pub const BLANK: Offload = Offload { checksum: Checksum::Blank, gso: None };
}

/// What a peer accepts in frames that we send to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// IPv4 frames with a blank transport checksum.
    pub blank_ipv4: bool,
    /// IPv6 frames with a blank transport checksum.
    pub blank_ipv6: bool,
    /// TCP super-frames over IPv4, of several slots.
    pub gso_tcpv4: bool,
    /// TCP super-frames over IPv6, of several slots.
    pub gso_tcpv6: bool,
}

impl Capabilities {
    /// Nothing but complete frames.
    pub const NONE: Capabilities =
        Capabilities { blank_ipv4: false, blank_ipv6: false, gso_tcpv4: false, gso_tcpv6: false };

    /// Whether a frame with this offload state may be sent, as far as its EtherType (bytes 12 and 13) shows.
    ///
    /// A blank checksum on anything but IPv4 and IPv6 has no meaning and is refused, as is segmentation of one family in
    /// a frame of the other.
    pub fn accepts(&self, frame: &[u8], offload: Offload) -> bool {
        let blank_ok = match (offload.checksum, frame.get(12..14)) {
            (Checksum::Full | Checksum::Validated, _) => true,
            (Checksum::Blank, Some([0x08, 0x00])) => self.blank_ipv4,
            (Checksum::Blank, Some([0x86, 0xdd])) => self.blank_ipv6,
            (Checksum::Blank, _) => false,
        };
        let gso_ok = match (offload.gso.map(|gso| gso.kind), frame.get(12..14)) {
            (None, _) => true,
            (Some(GsoKind::TcpV4), Some([0x08, 0x00])) => self.gso_tcpv4,
            (Some(GsoKind::TcpV6), Some([0x86, 0xdd])) => self.gso_tcpv6,
            (Some(_), _) => false,
        };
        blank_ok && gso_ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_decide_on_blank_checksums_by_ethertype() {
        let v4 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x00];
        let v6 = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x86, 0xdd];
        let arp = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x06];
        let only4 = Capabilities { blank_ipv4: true, ..Capabilities::NONE };
        let only6 = Capabilities { blank_ipv6: true, ..Capabilities::NONE };
        assert!(only4.accepts(&v4, Offload::BLANK) && !only4.accepts(&v6, Offload::BLANK));
        assert!(only6.accepts(&v6, Offload::BLANK) && !only6.accepts(&v4, Offload::BLANK));
        let both = Capabilities { blank_ipv4: true, blank_ipv6: true, ..Capabilities::NONE };
        assert!(!both.accepts(&arp, Offload::BLANK) && !both.accepts(&v4[..13], Offload::BLANK));
        assert!(Capabilities::NONE.accepts(&v4, Offload::NONE));
        assert!(Capabilities::NONE.accepts(&arp, Offload::VALIDATED));
        let gso = Offload { gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }), ..Offload::BLANK };
        assert!(!both.accepts(&v4, gso), "segmentation is not negotiated");
        let gso4 = Capabilities { gso_tcpv4: true, ..both };
        let gso6 = Capabilities { gso_tcpv6: true, ..both };
        assert!(gso4.accepts(&v4, gso) && !gso4.accepts(&v6, gso) && !gso6.accepts(&v4, gso));
        let gso = Offload { gso: Some(Gso { kind: GsoKind::TcpV6, size: 1428 }), ..Offload::BLANK };
        assert!(gso6.accepts(&v6, gso) && !gso6.accepts(&v4, gso) && !gso4.accepts(&v6, gso));
        assert!(!gso6.accepts(&arp, gso));
    }
}
