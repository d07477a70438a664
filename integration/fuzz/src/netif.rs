//! The slots of a frontend's TX ring, and the indices of rings: whatever a peer writes, nothing leaves its bounds and
//! each slot is taken and answered once. A second reading of the slots, rule by rule, says what must come of them.

use xen::netif::{
    Assembled, Assembler, Checksum, DropReason, ExtraInfo, GsoKind, Limits, MAX_FRAGMENTS, TxFlags,
    TxPacket, TxRequest,
};
use xen::ring;

use crate::source::Source;

/// Indices, limits, then slots of 12 bytes.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    indices(&mut source);
    let offers = source.byte();
    let limits = Limits {
        max_frame_bytes: source.pick(&[1514, 1518, 65_535]),
        gso_tcpv4: offers & 1 == 1,
        gso_tcpv6: offers & 2 == 2,
    };
    let mut slots = Vec::new();
    while !source.is_empty() {
        slots.push(source.array::<12>());
    }
    let assembler = Assembler::new(limits);
    let mut rest = slots.as_slice();
    while let [first, following @ ..] = rest {
        let mut taken = 0;
        let result = assembler.assemble(first, || {
            let slot = following.get(taken).copied();
            taken += usize::from(slot.is_some());
            slot
        });
        let used = taken + 1;
        let expected = judge(&limits, rest);
        let got = match &result {
            Err(_) => Verdict::Broken,
            Ok(Assembled::Drop(_, reason)) => Verdict::Refused(*reason, used),
            Ok(Assembled::Packet(_)) => Verdict::Taken(used),
        };
        assert_eq!(got, expected);
        match result {
            // The device is closed: nothing of the ring is read any more.
            Err(_) => return,
            Ok(Assembled::Drop(packet, _)) => answers(&packet, &rest[..used]),
            Ok(Assembled::Packet(packet)) => {
                answers(&packet, &rest[..used]);
                whole(&packet, &limits);
            }
        }
        rest = &rest[used..];
    }
}

/// What must come of the first packet in a row of slots; with the slots that it takes.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Broken,
    Refused(DropReason, usize),
    Taken(usize),
}

/// The rules of the assembler's documentation, all applied to the whole packet.
fn judge(limits: &Limits, slots: &[[u8; 12]]) -> Verdict {
    let head = TxRequest::decode(&slots[0]);
    let mut used = 1;
    let mut extras = Vec::new();
    let mut more = head.flags.has(TxFlags::EXTRA_INFO);
    while more {
        let Some(slot) = slots.get(used) else { return Verdict::Broken };
        let (info, further) = ExtraInfo::decode(slot.first_chunk().unwrap());
        extras.push(info);
        used += 1;
        more = further;
    }
    let mut rest = Vec::new();
    let mut more = head.flags.has(TxFlags::MORE_DATA);
    while more {
        let Some(slot) = slots.get(used) else { return Verdict::Broken };
        rest.push(TxRequest::decode(slot));
        used += 1;
        more = rest.last().is_some_and(|request| request.flags.has(TxFlags::MORE_DATA));
    }
    let further: usize = rest.iter().map(|request| usize::from(request.size)).sum();
    let total = usize::from(head.size);
    // One extra info of each type that exists; 20 data slots, as Linux.
    let is_endless = extras.len() > 5 || rest.len() >= 20;
    let is_unknown =
        |info: &ExtraInfo| matches!(info, ExtraInfo::Unknown(_) | ExtraInfo::Gso(Err(_)));
    let crosses = |offset: u16, len: usize| len == 0 || usize::from(offset) + len > 4096;
    if is_endless
        || extras.iter().any(is_unknown)
        || further >= total
        || crosses(head.offset, total - further)
        || rest.iter().any(|request| crosses(request.offset, request.size.into()))
    {
        return Verdict::Broken;
    }
    let wishes: Vec<_> = extras
        .iter()
        .filter_map(|info| match info {
            ExtraInfo::Gso(wish) => wish.ok(),
            _ => None,
        })
        .collect();
    let is_offered = |kind: GsoKind| match kind {
        GsoKind::TcpV4 => limits.gso_tcpv4,
        GsoKind::TcpV6 => limits.gso_tcpv6,
    };
    let is_blank = head.flags.checksum() == Checksum::Blank;
    let refusal = match wishes.as_slice() {
        _ if 1 + rest.len() > MAX_FRAGMENTS => Some(DropReason::TooManyFragments),
        _ if total < 14 => Some(DropReason::TooShort),
        [] => (total > limits.max_frame_bytes.into()).then_some(DropReason::TooLong),
        [.., last] if !is_offered(last.kind) || !is_blank => Some(DropReason::GsoNotOffered),
        [one] => (usize::from(one.size) >= total).then_some(DropReason::GsoUnusable),
        _ => Some(DropReason::GsoUnusable),
    };
    refusal.map_or(Verdict::Taken(used), |reason| Verdict::Refused(reason, used))
}

/// Every slot has one answer, with the id that it came with.
fn answers(packet: &TxPacket, slots: &[[u8; 12]]) {
    assert_eq!(packet.slots(), slots.len());
    let mut position = 0;
    packet.for_each_slot(|id| {
        if let Some(id) = id {
            let slot = &slots[position];
            assert_eq!(id, u16::from_le_bytes([slot[8], slot[9]]), "the id of slot {position}");
        }
        position += 1;
    });
    assert_eq!(position, slots.len());
}

fn whole(packet: &TxPacket, limits: &Limits) {
    let sum: usize = packet.fragments().iter().map(|piece| usize::from(piece.len)).sum();
    assert_eq!(sum, usize::from(packet.len()));
    assert!(packet.len() >= 14 && packet.fragments().len() <= 18);
    for piece in packet.fragments() {
        assert!(piece.len > 0 && usize::from(piece.offset) + usize::from(piece.len) <= 4096);
    }
    match packet.offload().gso {
        None => assert!(packet.len() <= limits.max_frame_bytes),
        Some(gso) => {
            assert!(gso.size > 0 && gso.size < packet.len());
            assert_eq!(packet.offload().checksum, Checksum::Blank);
        }
    }
}

/// Against the definition in Xen public/io/ring.h, with plain arithmetic.
fn indices(source: &mut Source<'_>) {
    let (base, claimed) = (source.long(), source.long());
    let limit = 1 << source.below(9);
    let seen = source.below(limit as usize + 1) as u32;
    let consumed = source.below(seen as usize + 1) as u32;
    let absolute = |distance: u32| base.wrapping_add(distance);
    let span = claimed.wrapping_sub(base);
    match ring::validate(claimed, base, absolute(consumed), absolute(seen), limit) {
        Ok(count) => assert!(count == span - consumed && count <= limit && span >= seen),
        Err(ring::RingBroken) => assert!(span > limit || span < seen),
    }
    // `event` lies in (old, new], counted from old.
    let (event, new) = (source.long(), absolute(limit));
    let expected = event.wrapping_sub(base).wrapping_sub(1) < limit;
    assert_eq!(ring::passes_event(base, new, event), expected);
}
