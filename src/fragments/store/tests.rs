//! The store against a slow oracle, its shares and its clock.

use core::net::Ipv4Addr;

use proptest::prelude::*;

use super::super::datagram::MAX_FRAGMENTS;
use super::*;
use crate::port::ClientId;

const A: Origin = Origin::Client(ClientId(0));
const B: Origin = Origin::Client(ClientId(1));
const BYTES: usize = 512 << 10;

/// A UDP fragment over IPv4, as far as the store looks.
struct Piece {
    header: [u8; 20],
    origin: Origin,
    identification: u32,
    offset: u16,
    has_more: bool,
    payload: Vec<u8>,
}

fn piece(origin: Origin, identification: u32, offset: u16, has_more: bool, len: usize) -> Piece {
    let payload = (0..len).map(|n| (n + usize::from(offset)) as u8).collect();
    let mut header = [0; 20];
    (header[0], header[9]) = (0x45, 17);
    Piece { header, origin, identification, offset, has_more, payload }
}

fn insert_at(store: &mut Store, now: Instant, piece: &Piece) -> (Result<Step, DropReason>, usize) {
    let mut lost = 0;
    let key = Key {
        identification: piece.identification,
        origin: piece.origin,
        source: Ipv4Addr::new(10, 137, 0, 10).into(),
        destination: Ipv4Addr::new(198, 51, 100, 7).into(),
        protocol: 17,
    };
    let fragment = Fragment {
        key,
        header: &piece.header,
        next: None,
        offset: piece.offset,
        has_more: piece.has_more,
        payload: &piece.payload,
    };
    let step = store.insert(now, &fragment, &mut |_, _| lost += 1);
    (step, lost)
}

fn insert(store: &mut Store, piece: &Piece) -> Result<Step, DropReason> {
    insert_at(store, Instant::default(), piece).0
}

fn taken(store: &mut Store, step: Result<Step, DropReason>) -> Option<Vec<u8>> {
    let Ok(Step::Complete(slot)) = step else { return None };
    let mut out = vec![0; 70_000];
    let whole = store.take(slot, &mut out).unwrap();
    Some(out[20..whole.len].to_vec())
}

fn is_empty(store: &Store) -> bool {
    store.usage.iter().all(|usage| *usage == Usage::default())
        && store.datagrams.iter().all(Option::is_none)
        && store.pool.free_chunks() == store.pool.chunks()
}

/// What a datagram is, byte by byte.
#[derive(Default)]
struct Oracle {
    seen: Vec<(u16, bool, Vec<u8>)>,
    bytes: std::collections::BTreeMap<usize, u8>,
    end: Option<usize>,
    is_refused: bool,
}

impl Oracle {
    /// Refused, waiting, or whole.
    fn insert(&mut self, piece: &Piece) -> Result<Option<Vec<u8>>, ()> {
        let (start, len) = (usize::from(piece.offset), piece.payload.len());
        let end = start + len;
        let same = (piece.offset, piece.has_more, piece.payload.clone());
        let is_bad = len == 0
            || piece.has_more && len % 8 != 0
            || end + 20 > 65_535
            || start == 0 && len < 8;
        if self.is_refused || is_bad {
            self.is_refused = true;
            return Err(());
        }
        if self.seen.contains(&same) {
            return Ok(None);
        }
        let overlaps = (start..end).any(|at| self.bytes.contains_key(&at));
        let is_behind = self.end.is_some_and(|last| end > last);
        let contradicts = !piece.has_more
            && (self.end.is_some() || self.bytes.keys().next_back().is_some_and(|at| *at >= end));
        if overlaps || is_behind || contradicts {
            self.is_refused = true;
            return Err(());
        }
        self.seen.push(same);
        self.bytes.extend((start..end).zip(piece.payload.iter().copied()));
        if !piece.has_more {
            self.end = Some(end);
        }
        if self.end != Some(self.bytes.len()) {
            return Ok(None);
        }
        let whole = self.bytes.values().copied().collect();
        *self = Self::default();
        Ok(Some(whole))
    }
}

proptest! {
    #[test]
    fn s3_any_list_of_fragments_ends_as_the_slow_oracle_says(
        list in proptest::collection::vec(
            // Few places, so that they often fit together or overlap.
            (0u16..6, any::<bool>(), prop_oneof![6 => Just(1usize), 3 => Just(2), 1 => Just(0)], 0usize..12, 0u8..20),
            1..14,
        ),
        far in any::<bool>(),
    ) {
        let mut store = Store::new(BYTES, 2).unwrap();
        let mut oracle = Oracle::default();
        for (place, has_more, units, odd, damage) in list {
            let offset = place * 16 + if far && place == 5 { 65_400 } else { 0 };
            let len = units * 16 + if odd == 11 { 5 } else { 0 };
            let mut fragment = piece(A, 7, offset, has_more, len);
            if let (0, Some(byte)) = (damage, fragment.payload.first_mut()) {
                *byte ^= 0xff;
            }
            let step = insert(&mut store, &fragment);
            let expected = oracle.insert(&fragment);
            prop_assert_eq!(step.is_err(), expected.is_err());
            prop_assert_eq!(taken(&mut store, step), expected.unwrap_or(None));
        }
        store.forget(A);
        prop_assert!(is_empty(&store));
    }
}

#[test]
fn s3_what_follows_an_overlap_is_dropped_too() {
    let mut store = Store::new(BYTES, 2).unwrap();
    assert_eq!(insert(&mut store, &piece(A, 1, 0, true, 64)), Ok(Step::Waits));
    assert_eq!(insert(&mut store, &piece(A, 1, 56, false, 64)), Err(DropReason::FragmentOverlap));
    assert_eq!(store.pool.free_chunks(), store.pool.chunks());
    for offset in [0, 64, 120] {
        let rest = piece(A, 1, offset, offset < 120, 8);
        assert_eq!(insert(&mut store, &rest), Err(DropReason::FragmentOverlap));
    }
    assert_eq!(insert(&mut store, &piece(A, 2, 0, true, 64)), Ok(Step::Waits), "another datagram");
}

#[test]
fn s3_a_first_fragment_holds_its_transport_header() {
    let mut store = Store::new(BYTES, 2).unwrap();
    let mut tcp = piece(A, 1, 0, true, 16);
    tcp.header[9] = 6;
    let check = |protocol: u8, payload: Vec<u8>| {
        let mut tiny = piece(A, 1, 0, true, 0);
        (tiny.header[9], tiny.payload) = (protocol, payload);
        let mut datagram = tiny.header.to_vec();
        datagram[6] = 0x20;
        datagram.extend(&tiny.payload);
        Fragment::of_ipv4(A, &datagram, 20).unwrap().check()
    };
    let options = |words: u8| [&[0; 12][..], &[words << 4; 1], &[0; 11]].concat();
    assert_eq!(check(6, vec![0; 16]), Err(DropReason::FragmentMalformed));
    assert_eq!(check(6, options(5)), Ok(()));
    assert_eq!(check(6, options(7)), Err(DropReason::FragmentMalformed), "28 bytes in 24");
    assert_eq!(check(17, vec![0; 8]), Ok(()));
    assert_eq!(insert(&mut store, &piece(A, 1, 0, true, 0)), Err(DropReason::FragmentMalformed));
}

#[test]
fn a_datagram_waits_thirty_seconds() {
    let mut store = Store::new(BYTES, 2).unwrap();
    let at = |seconds| Instant::default().after(Duration::from_secs(seconds));
    insert_at(&mut store, at(0), &piece(A, 1, 0, true, 64)).0.unwrap();
    insert_at(&mut store, at(20), &piece(A, 1, 64, true, 64)).0.unwrap();
    assert_eq!(store.next_deadline(), Some(at(30)), "the first fragment counts");
    let (step, lost) = insert_at(&mut store, at(30), &piece(A, 1, 128, false, 64));
    assert_eq!((step, lost), (Ok(Step::Waits), 1), "a new datagram begins");
    let mut reasons = vec![];
    store.expire(at(60), &mut |side, reason| reasons.push((side, reason)));
    assert_eq!(reasons, [(A, DropReason::FragmentTimeout)]);
    assert_eq!((is_empty(&store), store.next_deadline()), (true, None));
}

#[test]
fn u13_a_flood_takes_nothing_from_others_and_everything_is_bounded() {
    let mut store = Store::new(BYTES, 2).unwrap();
    // Fewer than an equal share of three sides.
    insert(&mut store, &piece(B, 1, 0, true, 1480)).unwrap();
    insert(&mut store, &piece(Origin::Uplink, 1, 0, true, 1480)).unwrap();
    let mut lost = 0;
    for flood in 0..20_000u32 {
        lost += insert_at(&mut store, Instant::default(), &piece(A, flood, 0, true, 1480)).1;
        let usage = store.usage_of(A);
        assert!(
            usage.chunks * 2 <= store.pool.chunks() && usage.datagrams * 2 <= store.datagrams.len()
        );
    }
    assert!(lost > 19_000);
    for side in [B, Origin::Uplink] {
        let step = insert(&mut store, &piece(side, 1, 1480, false, 100));
        assert_eq!(taken(&mut store, step).unwrap().len(), 1580);
    }
}

#[test]
fn u13_the_side_that_holds_most_gives_way() {
    let mut store = Store::new(64 << 10, 2).unwrap();
    // A and the uplink fill it all.
    for side in [A, Origin::Uplink] {
        for number in 0..7 {
            for part in 0..3 {
                insert(&mut store, &piece(side, number, part * 1480, true, 1480)).unwrap();
            }
        }
    }
    assert!(store.pool.free_chunks() < 3);
    // B gets a third of it, and the others keep as much.
    let mut lost = 0;
    for part in 0..14 {
        let fragment = piece(B, 9, part * 1480, true, 1480);
        let (step, more) = insert_at(&mut store, Instant::default(), &fragment);
        assert_eq!(step, Ok(Step::Waits));
        lost += more;
    }
    assert_eq!((store.usage_of(B).chunks, store.pool.chunks()), (42, 128));
    assert!(lost <= 5, "{lost} lost");
    assert!([A, Origin::Uplink].iter().all(|side| store.usage_of(*side).chunks >= 36));
}

#[test]
fn u13_one_datagram_has_a_bounded_number_of_fragments() {
    let mut store = Store::new(BYTES, 2).unwrap();
    for number in 0..MAX_FRAGMENTS as u16 {
        insert(&mut store, &piece(A, 1, number * 8, true, 8)).unwrap();
    }
    let one_more = piece(A, 1, MAX_FRAGMENTS as u16 * 8, false, 8);
    assert_eq!(insert(&mut store, &one_more), Err(DropReason::FragmentLimit));
}

#[test]
fn the_longest_datagram_fits_the_smallest_store() {
    let bytes = crate::Limits::for_memory(0).fragment_bytes as usize;
    let mut store = Store::new(bytes, 2).unwrap();
    for number in 0..44 {
        insert(&mut store, &piece(A, 1, number * 1480, true, 1480)).unwrap();
    }
    let step = insert(&mut store, &piece(A, 1, 44 * 1480, false, 65_515 - 44 * 1480));
    assert_eq!(taken(&mut store, step).unwrap().len(), 65_515);
    assert!(is_empty(&store));
    assert!(Store::cost(bytes) < 2 * bytes);
}

#[test]
fn a_repeated_fragment_is_ignored_if_it_is_the_very_same() {
    let mut store = Store::new(BYTES, 2).unwrap();
    let first = piece(A, 1, 0, true, 64);
    for _ in 0..3 {
        assert_eq!(insert(&mut store, &first), Ok(Step::Waits));
    }
    let step = insert(&mut store, &piece(A, 1, 64, false, 3));
    assert_eq!(taken(&mut store, step).unwrap().len(), 67);
}

#[test]
fn congestion_experienced_by_one_fragment_is_experienced_by_the_whole() {
    for (first, second, expected) in [
        (0, 0, Some(0)),
        (1, 1, Some(1)),
        (2, 3, Some(3)),
        (3, 1, Some(3)),
        (0, 3, None),
        (2, 0, None),
    ] {
        let mut store = Store::new(BYTES, 2).unwrap();
        let [mut head, mut tail] = [piece(A, 1, 0, true, 8), piece(A, 1, 8, false, 8)];
        (head.header[1], tail.header[1]) = (0xa0 | first, 0xa0 | second);
        insert(&mut store, &head).unwrap();
        let Ok(Step::Complete(slot)) = insert(&mut store, &tail) else { panic!("incomplete") };
        let mut out = [0; 64];
        let whole = store.take(slot, &mut out);
        assert_eq!(whole.is_ok().then_some(out[1] & 3), expected);
    }
}
