//! What is cut can be put together again, in both families.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::port::ClientId;

const KEY: HashKey = HashKey(5, 6);
const A: Origin = Origin::Client(ClientId(0));
const TO: PortId = PortId::Uplink;

fn fragments() -> Fragments {
    Fragments::new(256 << 10, 2, KEY).unwrap()
}

/// An Ethernet frame with a UDP datagram over IPv4, `options` included.
fn frame_v4(payload: &[u8], options: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total = (header_len + payload.len()) as u16;
    let mut bytes = vec![0xee; 12];
    bytes.extend([8, 0, 0x40 | (header_len / 4) as u8, 0]);
    bytes.extend(total.to_be_bytes());
    bytes.extend([0x12, 0x34, 0, 0, 64, 17, 0, 0]);
    bytes.extend(Ipv4Addr::new(10, 137, 0, 10).octets());
    bytes.extend(Ipv4Addr::new(198, 51, 100, 7).octets());
    bytes.extend(options);
    let sum = crate::testing::sum(&[&bytes[14..]]);
    bytes[24..26].copy_from_slice(&(!sum).to_be_bytes());
    [&bytes, payload].concat()
}

/// The same over IPv6, with destination options before the place of a fragment header.
fn frame_v6(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xee; 12];
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend((payload.len() as u16 + 8).to_be_bytes());
    bytes.extend([0, 64]);
    bytes.extend(Ipv6Addr::LOCALHOST.octets());
    bytes.extend(Ipv6Addr::UNSPECIFIED.octets());
    // Hop-by-hop options: padding.
    bytes.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    [&bytes, payload].concat()
}

const CUT6: datagram::Cut6 =
    datagram::Cut6 { header_len: 48, next_at: 40, identification: 0xdead_beef };

/// A frame that may leave.
fn accepted(page: &mut [u8], len: usize) -> Frame<'_> {
    let mut frame = Frame::new(page, len, Offload::default()).unwrap();
    frame.evidence = Some(Evidence::Own);
    frame
}

fn cut(fragments: &mut Fragments, whole: &[u8], pieces: Pieces, naming: Naming) -> Vec<Vec<u8>> {
    let mut page = whole.to_vec();
    let frame = accepted(&mut page, whole.len());
    fragments.send(TO, &frame, pieces, naming).unwrap();
    let mut out = Vec::new();
    while let Some(len) = fragments.next_len() {
        let mut page = vec![0xdd; len];
        let mut frame = Frame::new(&mut page, 0, Offload::default()).unwrap();
        assert_eq!(fragments.next(&mut frame), Some(TO));
        assert_eq!(frame.evidence, Some(Evidence::Own));
        out.push(frame.bytes().to_vec());
    }
    out
}

fn collect(fragments: &mut Fragments, piece: &[u8]) -> Option<Vec<u8>> {
    let (link, datagram) = piece.split_at(14);
    let fragment = if datagram[0] >> 4 == 4 {
        Fragment::of_ipv4(A, datagram, usize::from(datagram[0] & 0xf) * 4)
    } else {
        Fragment::of_ipv6(A, datagram, 48)
    };
    let mut whole =
        fragments.collect(Instant::default(), link, &fragment.unwrap(), |_, _| ()).unwrap()?;
    let bytes = whole.frame().unwrap().bytes().to_vec();
    fragments.give_back(whole);
    Some(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pieces_put_together_in_any_order_give_the_datagram(
        mut payload in proptest::collection::vec(any::<u8>(), 200..4000), mtu in 110u16..1500, seed: u64, is_v6: bool,
    ) {
        // At most 62 pieces: more than 64 (U13) are refused when they come back. Headers of IPv6: 40 + 8 + 8 bytes.
        payload.truncate(usize::from(mtu - 56) / 8 * 8 * 60);
        let (whole, pieces) = if is_v6 {
            (frame_v6(&payload), Pieces { largest: mtu, v6: Some(CUT6) })
        } else {
            (frame_v4(&payload, &[0x94, 4, 0, 0]), Pieces::of_ipv4(mtu))
        };
        prop_assume!(whole.len() > usize::from(mtu) + 14);
        let mut fragments = fragments();
        let mut out = cut(&mut fragments, &whole, pieces, Naming::Kept);
        for piece in &out {
            prop_assert!(piece.len() <= usize::from(mtu) + 14);
            if !is_v6 {
                prop_assert_eq!(crate::testing::sum(&[&piece[14..38]]), 0xffff);
            }
        }
        prop_assert!(out.len() >= 2);
        let count = out.len();
        for at in 0..count {
            out.swap(at, (seed.rotate_left(at as u32) as usize) % count);
        }
        for (number, piece) in out.iter().enumerate() {
            let result = collect(&mut fragments, piece);
            prop_assert_eq!(result, (number + 1 == count).then(|| whole.clone()));
        }
    }
}

#[test]
fn an_option_without_the_copied_flag_stays_in_the_first_piece() {
    let options = [7, 3, 4, 0x94, 4, 0, 0, 0];
    let out =
        cut(&mut fragments(), &frame_v4(&[9; 600], &options), Pieces::of_ipv4(300), Naming::Kept);
    assert_eq!(out[0][34..42], options);
    assert_eq!(out[1][34..42], [1, 1, 1, 0x94, 4, 0, 0, 0]);
}

#[test]
fn p2_our_identification_replaces_both_families() {
    let mut fragments = fragments();
    let v4 = cut(&mut fragments, &frame_v4(&[9; 600], &[]), Pieces::of_ipv4(300), Naming::Ours);
    assert!(v4.iter().all(|piece| piece[18..20] == v4[0][18..20] && piece[18..20] != [0x12, 0x34]));
    let pieces = Pieces { largest: 300, v6: Some(CUT6) };
    let v6 = cut(&mut fragments, &frame_v6(&[9; 600]), pieces, Naming::Ours);
    let number = |piece: &[u8]| u32::from_be_bytes(piece[66..70].try_into().unwrap());
    assert!(v6.iter().all(|piece| number(piece) == number(&v6[0])));
    assert_ne!(number(&v6[0]), CUT6.identification);
}

#[test]
fn a_datagram_is_not_cut_into_a_flood() {
    let whole = frame_v4(&[9; 4000], &[]);
    let mut page = whole.clone();
    let frame = accepted(&mut page, whole.len());
    let mut fragments = fragments();
    for mtu in [0, 20, 27, 50] {
        let refused = fragments.send(TO, &frame, Pieces::of_ipv4(mtu), Naming::Kept);
        assert_eq!((refused, fragments.next_len()), (Err(DropReason::TooBig), None), "{mtu}");
    }
}

#[test]
fn one_datagram_at_a_time_is_cut() {
    let mut fragments = fragments();
    let whole = frame_v4(&[9; 600], &[]);
    let mut page = whole.clone();
    let frame = accepted(&mut page, whole.len());
    fragments.send(TO, &frame, Pieces::of_ipv4(300), Naming::Kept).unwrap();
    let second = fragments.send(TO, &frame, Pieces::of_ipv4(300), Naming::Kept);
    assert_eq!(second, Err(DropReason::FragmentLimit));
    fragments.forget(Origin::Uplink);
    assert_eq!(fragments.next_len(), None, "what was behind the port is gone");
}

#[test]
fn s3_a_first_ipv6_fragment_holds_the_whole_chain_of_headers() {
    let check = |first: u8, payload: &[u8]| {
        let mut bytes = frame_v6(&[])[14..].to_vec();
        bytes.extend([first, 0, 0, 1, 0, 0, 0, 7]);
        bytes.extend(payload);
        Fragment::of_ipv6(A, &bytes, 48).unwrap().check().is_ok()
    };
    assert!(check(17, &[0; 8]));
    assert!(!check(6, &[0; 16]));
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    assert!(check(60, &[&options[..], &[0; 8]].concat()));
    assert!(!check(60, &options), "the UDP header is missing");
    assert!(!check(0, &[0; 16]) && !check(44, &[0; 16]), "headers that do not belong there");
    assert!(!check(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(20)), "too many headers");
    assert!(check(51, &[&[17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0; 12]].concat()));
}
