//! A TX packet out of its slots: every check of the backend on what a frontend wrote.
//!
//! The caller passes a function that yields each published slot once; the assembler never looks at a slot twice.
//! Three results exist: a packet, a packet to refuse ([`Assembled::Drop`], all slots answered with an error), and a
//! [`Violation`], after which the device is closed. What Linux' netback closes the device for is a violation here.

use super::{Checksum, ExtraInfo, GsoKind, MIN_FRAME_BYTES, Offload, TX_SLOT_BYTES};
use super::{TxFlags, TxRequest};
use crate::abi::GrantRef;
use crate::mem::PAGE_SIZE;
use crate::planted::{Defect, is_planted};

/// Most data slots of a packet (`XEN_NETIF_NR_SLOTS_MIN`). One with more is dropped.
pub const MAX_FRAGMENTS: usize = 18;
/// Data slots above which the frontend is taken for broken, as Linux' netback does.
const FATAL_FRAGMENTS: usize = 20;
/// Extra infos in one packet above which the frontend is taken for broken: one of each known type.
const MAX_EXTRAS: usize = 5;

/// One piece of a packet in the frontend's memory; `offset + len` is at most 4096 and `len` at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Page of the frontend.
    pub gref: GrantRef,
    /// First byte in that page.
    pub offset: u16,
    /// Bytes.
    pub len: u16,
}

/// The frontend broke the ring protocol: its device is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A slot announces a further one that was not published.
    #[error("a packet ends without its last slot")]
    Truncated,
    /// More than 20 data slots.
    #[error("a packet of too many slots")]
    TooManyFragments,
    /// More extra infos than types exist.
    #[error("an endless chain of extra infos")]
    TooManyExtras,
    /// An extra info of unknown type.
    #[error("an extra info of unknown type")]
    UnknownExtra,
    /// GSO with size zero or an unknown type.
    #[error("an invalid segmentation request")]
    BadGso,
    /// A slot of length zero.
    #[error("an empty slot")]
    EmptyFragment,
    /// The further slots hold at least as many bytes as the whole packet.
    #[error("slot sizes exceed the size of the packet")]
    SizeMismatch,
    /// A slot reaches beyond its page.
    #[error("a slot crosses the end of its page")]
    CrossesPage,
}

/// A well-formed packet that is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    TooShort,
    /// Longer than [`Limits::max_frame_bytes`].
    TooLong,
    /// 19 or 20 data slots.
    TooManyFragments,
    /// Segmentation of a type that was not offered, or without a blank checksum.
    GsoNotOffered,
    /// Two segmentation requests, or a segment size that leaves nothing to segment.
    GsoUnusable,
}

/// What the backend offered to the frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest packet without segmentation.
    pub max_frame_bytes: u16,
    /// `feature-gso-tcpv4` was written.
    pub gso_tcpv4: bool,
    /// `feature-gso-tcpv6` was written.
    pub gso_tcpv6: bool,
}

/// The slots of one packet, and what they say once checked.
#[derive(Clone, Copy, Debug)]
pub struct TxPacket {
    ids: [u16; FATAL_FRAGMENTS],
    fragments: [Fragment; MAX_FRAGMENTS],
    count: usize,
    extras: usize,
    total: u16,
    offload: Offload,
    /// More than one segmentation request.
    is_ambiguous: bool,
}

impl TxPacket {
    const EMPTY: TxPacket = TxPacket {
        ids: [0; FATAL_FRAGMENTS],
        fragments: [Fragment { gref: GrantRef(0), offset: 0, len: 0 }; MAX_FRAGMENTS],
        count: 0,
        extras: 0,
        total: 0,
        offload: Offload::NONE,
        is_ambiguous: false,
    };

    /// Length of the packet in bytes.
    pub fn len(&self) -> u16 {
        self.total
    }

    /// Whether the packet has no bytes; never true for an assembled one.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The pieces in order; their lengths add up to [`TxPacket::len`].
    pub fn fragments(&self) -> &[Fragment] {
        self.fragments.get(..self.count).unwrap_or(&[])
    }

    /// What is left to the receiver.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Ring slots taken, extra infos included: as many responses are due.
    pub fn slots(&self) -> usize {
        self.count.saturating_add(self.extras)
    }

    /// Calls `respond` once per slot in the order of the ring: the id of a data slot, `None` for an extra info.
    pub fn for_each_slot(&self, mut respond: impl FnMut(Option<u16>)) {
        for (position, id) in self.ids.iter().take(self.count).enumerate() {
            respond(Some(*id));
            if position == 0 {
                (0..self.extras).for_each(|_| respond(None));
            }
        }
    }
}

/// Result for a packet whose slots obey the protocol.
#[derive(Clone, Copy, Debug)]
pub enum Assembled {
    /// Copy its fragments, then answer its slots.
    Packet(TxPacket),
    /// Answer its slots with an error.
    Drop(TxPacket, DropReason),
}

/// Reads packets from a frontend's TX ring.
#[derive(Clone, Copy, Debug)]
pub struct Assembler {
    limits: Limits,
}

impl Assembler {
    /// An assembler for what was negotiated.
    pub fn new(limits: Limits) -> Assembler {
        Assembler { limits }
    }

    /// Assembles the packet that starts with `first`; `next` yields the slots published after it.
    pub fn assemble(
        &self,
        first: &[u8; TX_SLOT_BYTES],
        mut next: impl FnMut() -> Option<[u8; TX_SLOT_BYTES]>,
    ) -> Result<Assembled, Violation> {
        let head = TxRequest::decode(first);
        let mut packet = TxPacket { total: head.size, ..TxPacket::EMPTY };
        packet.offload.checksum = head.flags.checksum();
        if head.flags.has(TxFlags::EXTRA_INFO) {
            read_extras(&mut packet, &mut next)?;
        }
        read_fragments(&mut packet, head, &mut next)?;
        Ok(match self.objection(&packet) {
            None => Assembled::Packet(packet),
            Some(reason) => Assembled::Drop(packet, reason),
        })
    }

    fn objection(&self, packet: &TxPacket) -> Option<DropReason> {
        if packet.count > MAX_FRAGMENTS {
            return Some(DropReason::TooManyFragments);
        }
        let is_any_length = is_planted(Defect::TxLengthUnchecked);
        if packet.total < MIN_FRAME_BYTES && !is_any_length {
            return Some(DropReason::TooShort);
        }
        let Some(gso) = packet.offload.gso else {
            let too_long = packet.total > self.limits.max_frame_bytes && !is_any_length;
            return too_long.then_some(DropReason::TooLong);
        };
        let offered = match gso.kind {
            GsoKind::TcpV4 => self.limits.gso_tcpv4,
            GsoKind::TcpV6 => self.limits.gso_tcpv6,
        };
        if !offered || packet.offload.checksum != Checksum::Blank {
            return Some(DropReason::GsoNotOffered);
        }
        let unusable = packet.is_ambiguous || gso.size >= packet.total;
        unusable.then_some(DropReason::GsoUnusable)
    }
}

/// Takes the chain of extra infos after the first slot.
fn read_extras(
    packet: &mut TxPacket,
    next: &mut impl FnMut() -> Option<[u8; TX_SLOT_BYTES]>,
) -> Result<(), Violation> {
    loop {
        let [a, b, c, d, e, f, g, h, ..] = next().ok_or(Violation::Truncated)?;
        packet.extras = packet.extras.saturating_add(1);
        let (info, more) = ExtraInfo::decode(&[a, b, c, d, e, f, g, h]);
        match info {
            ExtraInfo::Gso(Ok(request)) => {
                packet.is_ambiguous |= packet.offload.gso.replace(request).is_some();
            }
            ExtraInfo::Gso(Err(_)) => return Err(Violation::BadGso),
            ExtraInfo::Multicast | ExtraInfo::Hash | ExtraInfo::Xdp => {}
            ExtraInfo::Unknown(_) if is_planted(Defect::TxExtraUnknown) => {}
            ExtraInfo::Unknown(_) => return Err(Violation::UnknownExtra),
        }
        if !more {
            return Ok(());
        }
        if packet.extras >= MAX_EXTRAS {
            return Err(Violation::TooManyExtras);
        }
    }
}

/// Takes the further data slots; the first slot's own length is what they leave of the total.
fn read_fragments(
    packet: &mut TxPacket,
    head: TxRequest,
    next: &mut impl FnMut() -> Option<[u8; TX_SLOT_BYTES]>,
) -> Result<(), Violation> {
    let mut first_len = head.size;
    packet.ids[0] = head.id;
    packet.count = 1;
    let mut more = head.flags.has(TxFlags::MORE_DATA);
    while more {
        let request = TxRequest::decode(&next().ok_or(Violation::Truncated)?);
        let id = match packet.ids.get_mut(packet.count) {
            Some(id) => id,
            None if is_planted(Defect::TxSlotsUncounted) => {
                more = request.flags.has(TxFlags::MORE_DATA);
                continue;
            }
            None => return Err(Violation::TooManyFragments),
        };
        *id = request.id;
        if request.size < first_len {
            first_len = first_len.saturating_sub(request.size);
        } else if !is_planted(Defect::TxSizesUnchecked) {
            return Err(Violation::SizeMismatch);
        }
        let fragment = fragment(request.gref, request.offset, request.size)?;
        if let Some(place) = packet.fragments.get_mut(packet.count) {
            *place = fragment;
        }
        packet.count = packet.count.saturating_add(1);
        more = request.flags.has(TxFlags::MORE_DATA);
    }
    packet.fragments[0] = fragment(head.gref, head.offset, first_len)?;
    Ok(())
}

fn fragment(gref: GrantRef, offset: u16, len: u16) -> Result<Fragment, Violation> {
    if len == 0 && !is_planted(Defect::TxEmptyAccepted) {
        return Err(Violation::EmptyFragment);
    }
    let end = usize::from(offset).saturating_add(usize::from(len));
    if end > PAGE_SIZE && !is_planted(Defect::TxSpanUnchecked) {
        return Err(Violation::CrossesPage);
    }
    Ok(Fragment { gref, offset, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netif::Gso;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { max_frame_bytes: 1518, gso_tcpv4: false, gso_tcpv6: false };
    const GSO: Limits = Limits { max_frame_bytes: 1518, gso_tcpv4: true, gso_tcpv6: false };

    fn slot(gref: u32, offset: u16, flags: u16, id: u16, size: u16) -> [u8; 12] {
        TxRequest { gref: GrantRef(gref), offset, flags: TxFlags(flags), id, size }.encode()
    }

    fn extra(kind: u8, more: u8, size: u16, gso: u8) -> [u8; 12] {
        let [low, high] = size.to_le_bytes();
        [kind, more, low, high, gso, 0, 0, 0, 0, 0, 0, 0]
    }

    /// Result and number of slots taken.
    fn run(limits: Limits, slots: &[[u8; 12]]) -> (Result<Assembled, Violation>, usize) {
        let mut taken = 1;
        let result = Assembler::new(limits).assemble(&slots[0], || {
            let slot = slots.get(taken).copied();
            taken += usize::from(slot.is_some());
            slot
        });
        (result, taken)
    }

    fn packet(limits: Limits, slots: &[[u8; 12]]) -> TxPacket {
        match run(limits, slots).0.unwrap() {
            Assembled::Packet(packet) => packet,
            Assembled::Drop(_, reason) => panic!("dropped: {reason:?}"),
        }
    }

    fn dropped(limits: Limits, slots: &[[u8; 12]]) -> (DropReason, TxPacket) {
        match run(limits, slots).0.unwrap() {
            Assembled::Packet(_) => panic!("accepted"),
            Assembled::Drop(packet, reason) => (reason, packet),
        }
    }

    fn violation(slots: &[[u8; 12]]) -> Violation {
        run(GSO, slots).0.unwrap_err()
    }

    fn responses(packet: &TxPacket) -> Vec<Option<u16>> {
        let mut ids = Vec::new();
        packet.for_each_slot(|id| ids.push(id));
        assert_eq!(ids.len(), packet.slots());
        ids
    }

    #[test]
    fn a_single_slot_is_a_packet() {
        let packet = packet(LIMITS, &[slot(9, 66, TxFlags::CSUM_BLANK, 7, 1514)]);
        assert_eq!(packet.fragments(), [Fragment { gref: GrantRef(9), offset: 66, len: 1514 }]);
        assert_eq!((packet.len(), packet.offload()), (1514, Offload::BLANK));
        assert_eq!(responses(&packet), [Some(7)]);
    }

    #[test]
    fn the_first_slot_holds_what_the_others_leave() {
        let slots = [slot(1, 4000, 4, 10, 200), slot(2, 0, 4, 11, 60), slot(3, 5, 0, 12, 44)];
        let packet = packet(LIMITS, &slots);
        let pieces: Vec<_> =
            packet.fragments().iter().map(|f| (f.gref.0, f.offset, f.len)).collect();
        assert_eq!(pieces, [(1, 4000, 96), (2, 0, 60), (3, 5, 44)]);
        assert_eq!(responses(&packet), [Some(10), Some(11), Some(12)]);
    }

    #[test]
    fn extra_infos_are_answered_after_the_first_slot() {
        let slots = [
            slot(1, 0, 4 | 8, 10, 100),
            extra(2, 1, 0, 0),
            extra(4, 0, 0, 0),
            slot(2, 0, 0, 11, 40),
        ];
        let packet = packet(LIMITS, &slots);
        assert_eq!(responses(&packet), [Some(10), None, None, Some(11)]);
        assert_eq!(packet.offload().gso, None);
    }

    #[test]
    fn a_negotiated_super_frame_is_taken() {
        let mut slots = Vec::from([slot(0, 0, 1 | 4 | 8, 0, 65226), extra(1, 0, 1448, 1)]);
        for id in 1..16 {
            slots.push(slot(u32::from(id), 0, if id == 15 { 0 } else { 4 }, id, 4096));
        }
        let packet = packet(GSO, &slots);
        assert_eq!(packet.offload().gso, Some(Gso { kind: GsoKind::TcpV4, size: 1448 }));
        let sum: u32 = packet.fragments().iter().map(|f| u32::from(f.len)).sum();
        assert_eq!((sum, packet.slots()), (65226, 17));
    }

    #[test]
    fn r2_offset_and_size_out_of_range_close_the_device() {
        assert_eq!(violation(&[slot(1, 4096, 0, 0, 60)]), Violation::CrossesPage);
        assert_eq!(violation(&[slot(1, 4037, 0, 0, 60)]), Violation::CrossesPage);
        assert_eq!(violation(&[slot(1, u16::MAX, 0, 0, u16::MAX)]), Violation::CrossesPage);
        let second = [slot(1, 0, 4, 0, 200), slot(2, 4000, 0, 1, 100)];
        assert_eq!(violation(&second), Violation::CrossesPage);
        packet(LIMITS, &[slot(1, 4036, 0, 0, 60)]);
    }

    #[test]
    fn r5_zero_length_fragments_close_the_device() {
        assert_eq!(violation(&[slot(1, 0, 0, 0, 0)]), Violation::EmptyFragment);
        let second = [slot(1, 0, 4, 0, 100), slot(2, 0, 0, 1, 0)];
        assert_eq!(violation(&second), Violation::EmptyFragment);
    }

    #[test]
    fn r5_total_size_mismatch_closes_the_device() {
        for second in [100, 101, u16::MAX] {
            let slots = [slot(1, 0, 4, 0, 100), slot(2, 0, 0, 1, second)];
            assert_eq!(violation(&slots), Violation::SizeMismatch, "{second}");
        }
        packet(LIMITS, &[slot(1, 0, 4, 0, 100), slot(2, 0, 0, 1, 99)]);
    }

    fn chain(count: u16) -> Vec<[u8; 12]> {
        let more = |id| if id + 1 == count { 0 } else { 4 };
        (0..count)
            .map(|id| slot(u32::from(id), 0, more(id), id, if id == 0 { 1000 } else { 10 }))
            .collect()
    }

    #[test]
    fn r5_more_than_18_fragments_drop_the_packet_and_more_than_20_the_device() {
        assert_eq!(packet(LIMITS, &chain(18)).fragments().len(), 18);
        for count in [19, 20] {
            let (reason, packet) = dropped(LIMITS, &chain(count));
            assert_eq!(reason, DropReason::TooManyFragments);
            assert_eq!(responses(&packet), (0..count).map(Some).collect::<Vec<_>>());
        }
        assert_eq!(violation(&chain(21)), Violation::TooManyFragments);
        assert_eq!(violation(&chain(255)), Violation::TooManyFragments);
    }

    #[test]
    fn r5_headers_in_pieces_of_one_byte_are_one_packet() {
        let mut slots = Vec::from([slot(1, 0, 4, 0, 17 + 30)]);
        for id in 1..=17 {
            slots.push(slot(2, id, if id == 17 { 0 } else { 4 }, id, 1));
        }
        let packet = packet(LIMITS, &slots);
        assert_eq!(packet.fragments()[0].len, 30);
        assert!(packet.fragments()[1..].iter().all(|f| f.len == 1));
    }

    #[test]
    fn r5_a_first_fragment_shorter_than_the_header_is_joined_with_the_rest() {
        let packet = packet(LIMITS, &[slot(1, 0, 4, 0, 60), slot(2, 0, 0, 1, 59)]);
        assert_eq!(packet.fragments()[0].len, 1);
        assert_eq!(packet.len(), 60);
    }

    #[test]
    fn r5_a_frame_shorter_than_an_ethernet_header_is_dropped() {
        let (reason, packet) = dropped(LIMITS, &[slot(1, 0, 0, 3, 13)]);
        assert_eq!((reason, responses(&packet)), (DropReason::TooShort, Vec::from([Some(3)])));
    }

    #[test]
    fn frames_above_the_limit_are_dropped() {
        packet(LIMITS, &[slot(1, 0, 0, 0, 1518)]);
        assert_eq!(dropped(LIMITS, &[slot(1, 0, 0, 0, 1519)]).0, DropReason::TooLong);
    }

    #[test]
    fn a_chain_that_was_not_published_to_its_end_closes_the_device() {
        assert_eq!(violation(&[slot(1, 0, 4, 0, 100)]), Violation::Truncated);
        assert_eq!(violation(&[slot(1, 0, 8, 0, 100)]), Violation::Truncated);
        assert_eq!(violation(&[slot(1, 0, 8, 0, 100), extra(2, 1, 0, 0)]), Violation::Truncated);
    }

    #[test]
    fn r6_unknown_extra_types_close_the_device() {
        for kind in [0, 6, 0xff] {
            let slots = [slot(1, 0, 8, 0, 100), extra(kind, 0, 1448, 1)];
            assert_eq!(violation(&slots), Violation::UnknownExtra, "type {kind}");
        }
    }

    #[test]
    fn r6_endless_more_flags_close_the_device() {
        let mut slots = Vec::from([slot(1, 0, 8, 0, 100)]);
        slots.extend([extra(2, 1, 0, 0); 200]);
        let (result, taken) = run(LIMITS, &slots);
        assert_eq!(result.unwrap_err(), Violation::TooManyExtras);
        assert_eq!(taken, 1 + MAX_EXTRAS);
    }

    #[test]
    fn r6_gso_values() {
        let with = |size, kind| [slot(1, 0, 1 | 8, 0, 100), extra(1, 0, size, kind)];
        assert_eq!(violation(&with(0, 1)), Violation::BadGso);
        assert_eq!(violation(&with(1448, 0)), Violation::BadGso);
        assert_eq!(violation(&with(1448, 3)), Violation::BadGso);
        for size in [1, 99] {
            assert_eq!(packet(GSO, &with(size, 1)).offload().gso.unwrap().size, size);
        }
        for size in [100, 65535] {
            assert_eq!(dropped(GSO, &with(size, 1)).0, DropReason::GsoUnusable, "nothing to cut");
        }
    }

    #[test]
    fn r6_two_segmentation_requests_drop_the_packet() {
        let slots = [slot(1, 0, 1 | 8, 7, 3000), extra(1, 1, 1448, 1), extra(1, 0, 1448, 1)];
        let (reason, packet) = dropped(GSO, &slots);
        assert_eq!(reason, DropReason::GsoUnusable);
        assert_eq!(responses(&packet), [Some(7), None, None]);
    }

    #[test]
    fn segmentation_needs_a_blank_checksum() {
        let slots = [slot(1, 0, 2 | 8, 7, 3000), extra(1, 0, 1448, 1)];
        assert_eq!(dropped(GSO, &slots).0, DropReason::GsoNotOffered);
    }

    #[test]
    fn r6_gso_that_was_not_negotiated_is_dropped() {
        let v6 = [slot(1, 0, 1 | 8, 0, 100), extra(1, 0, 1428, 2)];
        let (reason, packet) = dropped(GSO, &v6);
        assert_eq!(reason, DropReason::GsoNotOffered);
        assert_eq!(responses(&packet), [Some(0), None]);
        let v4 = [slot(1, 0, 1 | 8, 0, 100), extra(1, 0, 1428, 1)];
        assert_eq!(dropped(LIMITS, &v4).0, DropReason::GsoNotOffered);
    }

    proptest! {
        /// Whatever a frontend writes: each slot is taken at most once, and what is accepted is within bounds.
        #[test]
        fn arbitrary_slots_never_break_the_bounds(
            slots in proptest::collection::vec(
                (any::<u32>(), any::<u16>(), 0..16u16, any::<u16>(), any::<u16>())
                    .prop_map(|(g, o, f, i, s)| slot(g, o % 5000, f, i, s % 6000)),
                1..40,
            )
        ) {
            let (result, taken) = run(LIMITS, &slots);
            prop_assert!(taken <= slots.len());
            match result {
                Err(_) => {}
                Ok(Assembled::Packet(packet)) => {
                    let sum: usize = packet.fragments().iter().map(|f| usize::from(f.len)).sum();
                    prop_assert_eq!(sum, usize::from(packet.len()));
                    prop_assert!((14..=1518).contains(&packet.len()));
                    prop_assert_eq!(packet.slots(), taken);
                    for piece in packet.fragments() {
                        prop_assert!(piece.len > 0);
                        prop_assert!(usize::from(piece.offset) + usize::from(piece.len) <= 4096);
                    }
                }
                Ok(Assembled::Drop(packet, _)) => prop_assert_eq!(packet.slots(), taken),
            }
        }
    }
}
