//! Fragments through the whole core, and packets that leave in fragments.

use core::net::Ipv4Addr;

use crate::testing::v6::*;
use crate::testing::*;
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 9999);
const UPLINK: PortId = PortId::Uplink;
const TO_A: PortId = PortId::Client(ID_A);

/// A datagram in fragments with `sizes` bytes of payload each, the rest in the last.
pub(crate) fn split(whole: &Build, sizes: &[usize]) -> Vec<Build> {
    let mut cuts = vec![0];
    cuts.extend(sizes.iter().scan(0, |at, size| {
        *at += size;
        Some(*at)
    }));
    cuts.push(whole.l4.len());
    let part = |pair: &[usize]| {
        let more = if pair[1] < whole.l4.len() { 0x2000 } else { 0 };
        whole.clone().with(|b| {
            b.l4 = whole.l4[pair[0]..pair[1]].to_vec();
            b.fragment = whole.fragment & 0x4000 | more | (pair[0] / 8) as u16;
        })
    };
    cuts.windows(2).map(part).collect()
}

fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), bytes: usize) -> Build {
    Build::udp(from, to).payload(bytes).with(|b| b.fragment = 0)
}

/// What leaves in pieces now.
fn pieces(kit: &mut Kit) -> Vec<(PortId, Vec<u8>)> {
    let mut out = Vec::new();
    while kit.fw.next_piece_len().is_some() {
        out.push(kit.generated().unwrap());
    }
    out
}

/// The datagram that the pieces make, all checks done by the book. The first header stands for the whole.
#[track_caller]
pub(crate) fn joined(out: &[(PortId, Vec<u8>)], port: PortId) -> Out {
    assert!(out.len() > 1, "{} pieces", out.len());
    let mut bytes = out[0].1[..34].to_vec();
    for (number, (to, piece)) in out.iter().enumerate() {
        assert_eq!(*to, port);
        assert_eq!(sum(&[&piece[14..34]]), 0xffff, "header checksum");
        assert_eq!(usize::from(u16::from_be_bytes([piece[16], piece[17]])), piece.len() - 14);
        assert_eq!(piece[18..20], out[0].1[18..20], "one identification");
        let place = u16::from_be_bytes([piece[20], piece[21]]);
        assert_eq!(usize::from(place & 0x1fff) * 8, bytes.len() - 34, "in order");
        assert_eq!(place & 0x2000 != 0, number + 1 < out.len());
        bytes.extend(&piece[34..]);
    }
    let total = ((bytes.len() - 14) as u16).to_be_bytes();
    bytes[16..18].copy_from_slice(&total);
    bytes[20] &= 0x40;
    bytes[21] = 0;
    bytes[24..26].fill(0);
    let checksum = !sum(&[&bytes[14..34]]);
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    let out = Out { fate: Fate::Send(port), bytes, offload: Offload::default() };
    out.assert_sums();
    out
}

/// Sends fragments that wait, and the last one.
fn feed(kit: &mut Kit, origin: Origin, parts: &[Build]) -> Vec<(PortId, Vec<u8>)> {
    let mut out = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        assert!(out.is_empty(), "nothing leaves before fragment {number}");
        let part = if origin == Origin::Uplink { part.clone().up() } else { part.clone() };
        assert_eq!(kit.send(origin, &part).fate, Fate::Consumed, "fragment {number}");
        out.extend(pieces(kit));
    }
    out
}

fn orders() -> Vec<[usize; 4]> {
    let all = (0..256).map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6]);
    all.filter(|order| (0..4).all(|n| order.contains(&n))).collect()
}

#[test]
fn u13_fragments_are_taken_in_each_of_24_orders() {
    let orders = orders();
    assert_eq!(orders.len(), 24);
    for order in orders {
        let mut kit = Kit::new();
        let whole = datagram((A, 5000), WEB, 4000);
        let parts = split(&whole, &[1480, 1000, 800]);
        let parts = order.map(|n| parts[n].clone());
        let out = joined(&feed(&mut kit, FROM_A, &parts), UPLINK);
        assert_eq!((out.src(), out.dst(), out.dport()), (OWN, SERVER, 9999));
        assert_eq!(out.l4()[8..], whole.l4[8..]);
        let answer = datagram(WEB, (OWN, out.sport()), 4000);
        let parts = split(&answer, &[1480, 1480, 80]);
        let parts = order.map(|n| parts[n].clone());
        let back = joined(&feed(&mut kit, Origin::Uplink, &parts), TO_A);
        assert_eq!((back.src(), back.dst(), back.dport()), (SERVER, A, 5000));
        assert_eq!(back.l4()[8..], answer.l4[8..]);
    }
}

#[test]
fn u13_the_rules_see_the_whole_datagram_and_their_refusal_is_told() {
    let mut kit = Kit::new().rules(A, &["action=drop proto=udp", "action=accept"]);
    let parts = split(&datagram((A, 5000), WEB, 3000), &[1480, 1480]);
    for part in [&parts[2], &parts[0]] {
        assert_eq!(kit.a(part).fate, Fate::Consumed);
    }
    let refused = kit.a(&parts[1]);
    assert_eq!(refused.assert_refused(ID_A, 3, 13).dst(), A);
    assert_eq!(refused.l4()[8 + 9], 17);
    assert_eq!(kit.fw.next_piece_len(), None);
}

#[test]
fn u13_the_longest_datagram_passes() {
    let mut kit = Kit::new();
    let whole = datagram((A, 5000), WEB, 65_515 - 13);
    assert_eq!(whole.l4.len(), 65_515);
    let out = joined(&feed(&mut kit, FROM_A, &split(&whole, &[1480; 44])), UPLINK);
    assert_eq!(out.l4()[8..], whole.l4[8..]);
}

#[test]
fn u13_a_large_ping_of_the_gateway_is_answered() {
    let mut kit = Kit::new();
    let ping = Build::icmp(A, OWN, 8, 0, [0, 5, 0, 1], &[0xa5; 3000]).with(|b| b.fragment = 0);
    let before = kit.counters();
    let pong = joined(&feed(&mut kit, FROM_A, &split(&ping, &[1480, 1480])), TO_A);
    assert_eq!((pong.icmp(), pong.src(), pong.dst()), (Some((0, 0)), OWN, A));
    assert_eq!(pong.l4()[8..], ping.l4[8..]);
    let moved = kit.moved(&before);
    assert!(moved.contains(&("a/echo-answers".to_string(), 1)), "{moved:?}");
    assert!(moved.contains(&("a/fragments-kept".to_string(), 2)), "{moved:?}");
    assert!(moved.contains(&("a/sent-frames".to_string(), 3)), "{moved:?}");
}

#[test]
fn u13_a_flood_of_one_client_leaves_the_others_alone() {
    let mut kit = Kit::new();
    let parts = split(&datagram((B, 5000), WEB, 3000), &[1480, 1480]);
    let of_b: Vec<Build> = parts.into_iter().map(|part| part.with(|b| b.link.1 = MAC_B)).collect();
    kit.b(&of_b[0]);
    kit.b(&of_b[1]);
    for id in 0..5000u16 {
        let flood = datagram((A, 5000), WEB, 3000).with(|b| b.id = id);
        assert_eq!(kit.a(&split(&flood, &[1480])[0]).fate, Fate::Consumed);
    }
    joined(&feed(&mut kit, FROM_B, &of_b[2..]), UPLINK);
    let lost = kit.fw.stats().client(ID_A).unwrap().dropped(DropReason::FragmentLimit);
    assert!(lost > 4500, "{lost}");
    assert_eq!(kit.fw.stats().client(ID_B).unwrap().dropped(DropReason::FragmentLimit), 0);
}

#[test]
fn u13_what_does_not_become_whole_in_time_is_counted() {
    let mut kit = Kit::new();
    kit.a(&split(&datagram((A, 5000), WEB, 3000), &[1480])[0]);
    assert!(kit.fw.next_deadline().unwrap() <= kit.now.after(core::time::Duration::from_secs(30)));
    kit.wait(29);
    kit.fw.on_timer(kit.now);
    let timeouts =
        |kit: &Kit| kit.fw.stats().client(ID_A).unwrap().dropped(DropReason::FragmentTimeout);
    assert_eq!(timeouts(&kit), 0);
    kit.wait(1);
    kit.fw.on_timer(kit.now);
    assert_eq!(timeouts(&kit), 1);
}

#[test]
fn u13_fragments_of_a_client_that_is_gone_are_forgotten() {
    let mut kit = Kit::new();
    let parts = split(&datagram((A, 5000), WEB, 2000), &[1480]);
    kit.a(&parts[0]);
    kit.fw.detach_client(ID_A);
    kit.fw.attach_client(ID_A, vif(12, MAC_A, A)).unwrap();
    assert_eq!(kit.a(&parts[1]).fate, Fate::Consumed);
    assert_eq!(kit.fw.next_piece_len(), None);
}

#[test]
fn u13_fragments_from_outside_need_a_flow() {
    let mut kit = Kit::new();
    let parts = split(&datagram(WEB, (OWN, 5000), 2000), &[1480]);
    assert_eq!(kit.up(parts[0].clone()).fate, Fate::Consumed);
    kit.up(parts[1].clone()).assert_dropped(DropReason::NoFlow);
}

fn narrow(mtu: u16) -> Kit {
    let mut kit = Kit::new();
    let caps = PortCaps { mtu, ..CAPS };
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps }));
    kit
}

#[test]
fn u12_without_df_a_packet_is_cut_in_order_for_a_narrow_uplink() {
    for is_blank in [false, true] {
        let mut kit = narrow(1280);
        let whole = datagram((A, 5000), WEB, 1400);
        let whole = if is_blank { whole.blank() } else { whole };
        assert_eq!(kit.a(&whole).fate, Fate::Consumed);
        let out = pieces(&mut kit);
        assert!(out.iter().all(|(_, piece)| piece.len() <= 1280 + 14));
        let out = joined(&out, UPLINK);
        assert_eq!((out.src(), out.bytes[22]), (OWN, 63));
        assert_eq!(out.l4()[8..], whole.l4[8..]);
    }
}

#[test]
fn u12_with_df_the_sender_learns_the_mtu_for_fragments_too() {
    let mut kit = narrow(1280);
    let whole = datagram((A, 5000), WEB, 2000).with(|b| b.fragment = 0x4000);
    kit.a(&Build::udp((A, 5000), WEB).payload(1400)).assert_refused(ID_A, 3, 4);
    let parts = split(&whole, &[1480]);
    kit.a(&parts[0]);
    assert_eq!(kit.a(&parts[1]).assert_refused(ID_A, 3, 4).word(6), 1280);
    // Fragments that fit pass, and keep the flag.
    let out = feed(&mut kit, FROM_A, &split(&whole, &[1200]));
    assert!(out.iter().all(|(_, piece)| piece[20] & 0x40 != 0));
    joined(&out, UPLINK);
}

#[test]
fn u12_pieces_are_no_larger_than_the_largest_fragment_was() {
    let mut kit = Kit::new();
    let out = feed(&mut kit, FROM_A, &split(&datagram((A, 5000), WEB, 1000), &[400, 400]));
    assert!(out.iter().all(|(_, piece)| piece.len() <= 14 + 20 + 400));
    joined(&out, UPLINK);
}

#[test]
fn u12_a_wide_answer_is_cut_for_a_narrow_client() {
    let mut kit = Kit::new();
    kit.fw.detach_client(ID_A);
    let caps = PortCaps { mtu: 1000, ..CAPS };
    kit.fw.attach_client(ID_A, ClientPort { caps, ..vif(10, MAC_A, A) }).unwrap();
    let port = kit.a(&Build::udp((A, 5000), WEB)).sport();
    let answer = datagram(WEB, (OWN, port), 1400);
    assert_eq!(kit.up(answer.clone()).fate, Fate::Consumed);
    let out = pieces(&mut kit);
    assert_eq!(out[0].1[18..20], answer.id.to_be_bytes(), "towards a client the sender's own");
    assert_eq!(joined(&out, TO_A).l4()[8..], answer.l4[8..]);
}

#[test]
fn p2_datagrams_of_two_clients_are_not_mixed_up_behind_one_address() {
    let mut kit = Kit::new();
    let of = |source: Ipv4Addr, mac: Mac| {
        let whole = datagram((source, 5000), WEB, 2000).with(|b| b.link.1 = mac);
        split(&whole, &[1480])
    };
    let first = feed(&mut kit, FROM_A, &of(A, MAC_A));
    let second = feed(&mut kit, FROM_B, &of(B, MAC_B));
    assert_ne!(first[0].1[18..20], second[0].1[18..20], "both clients chose the same one");
}

#[test]
fn p2_fragments_without_df_leave_without_and_with_df_with() {
    for flag in [0u16, 0x4000] {
        let mut kit = Kit::new();
        let whole = datagram((A, 5000), WEB, 2000).with(|b| b.fragment = flag);
        let out = feed(&mut kit, FROM_A, &split(&whole, &[1480]));
        assert!(out.iter().all(|(_, piece)| u16::from(piece[20] & 0x40) << 8 == flag));
    }
}

#[test]
fn s3_no_part_of_an_overlapping_datagram_leaves() {
    let mut kit = Kit::new();
    let whole = datagram((A, 5000), WEB, 2000);
    let parts = split(&whole, &[1480]);
    // A second fragment that would rewrite the end of the first.
    let overlap = whole.clone().with(|b| {
        b.l4 = whole.l4[1472..].to_vec();
        b.fragment = 1472 / 8;
    });
    assert_eq!(kit.a(&parts[0]).fate, Fate::Consumed);
    kit.a(&overlap).assert_dropped(DropReason::FragmentOverlap);
    kit.a(&parts[1]).assert_dropped(DropReason::FragmentOverlap);
    kit.a(&parts[0]).assert_dropped(DropReason::FragmentOverlap);
    assert_eq!(kit.fw.next_piece_len(), None);
}

#[test]
fn s3_a_tiny_first_fragment_is_dropped() {
    let mut kit = Kit::new();
    let syn = Build::tcp((A, 5000), WEB, SYN).payload(100).with(|b| b.fragment = 0);
    for first in [8, 16] {
        let parts = split(&syn.clone().with(|b| b.id = first), &[usize::from(first)]);
        kit.a(&parts[0]).assert_dropped(DropReason::FragmentMalformed);
        kit.a(&parts[1]).assert_dropped(DropReason::FragmentMalformed);
    }
}

#[test]
fn r7_a_fragment_with_a_partial_checksum_is_dropped() {
    let mut kit = Kit::new();
    let part = split(&datagram((A, 5000), WEB, 2000), &[1480])[0].clone();
    kit.a(&part.with(|b| b.offload.checksum = Checksum::Blank))
        .assert_dropped(DropReason::BlankIllegal);
}

/// A datagram over IPv6 in fragments, as [`split`] for IPv4; hop-by-hop options come before the fragment header.
fn split6(whole: &Build6, sizes: &[usize]) -> Vec<Build6> {
    let mut cuts = vec![0];
    for size in sizes {
        cuts.push(cuts[cuts.len() - 1] + size);
    }
    cuts.push(whole.l4.len());
    let part = |pair: &[usize]| {
        let place = pair[0] as u16 | u16::from(pair[1] < whole.l4.len());
        let [high, low] = place.to_be_bytes();
        let part = whole.clone().extended(0, &[0, 0, 1, 4, 0, 0, 0, 0]);
        let part = part.extended(44, &[0, 0, high, low, 0xab, 0xcd, 0, 1]);
        part.with(|b| b.l4 = whole.l4[pair[0]..pair[1]].to_vec())
    };
    cuts.windows(2).map(part).collect()
}

/// As [`joined`], for IPv6 with eight bytes of hop-by-hop options.
#[track_caller]
fn joined6(out: &[(PortId, Vec<u8>)], port: PortId) -> Out {
    assert!(out.len() > 1);
    let mut bytes = out[0].1[..62].to_vec();
    for (number, (to, piece)) in out.iter().enumerate() {
        assert_eq!((*to, piece[54], piece[62]), (port, 44, 17));
        assert_eq!(usize::from(u16::from_be_bytes([piece[18], piece[19]])), piece.len() - 54);
        assert_eq!(piece[66..70], out[0].1[66..70], "one identification");
        let place = u16::from_be_bytes([piece[64], piece[65]]);
        assert_eq!(usize::from(place & !7), bytes.len() - 62, "in order");
        assert_eq!(place & 1 != 0, number + 1 < out.len());
        bytes.extend(&piece[70..]);
    }
    let payload_len = ((bytes.len() - 54) as u16).to_be_bytes();
    bytes[18..20].copy_from_slice(&payload_len);
    bytes[54] = 17;
    let out = Out { fate: Fate::Send(port), bytes, offload: Offload::default() };
    out.assert_sums6();
    out
}

fn feed6(kit: &mut Kit, origin: Origin, parts: &[Build6]) -> Vec<(PortId, Vec<u8>)> {
    let mut out = Vec::new();
    for part in parts {
        assert!(out.is_empty(), "nothing leaves before the last");
        assert_eq!(kit.send6(origin, part).fate, Fate::Consumed);
        out.extend(pieces(kit));
    }
    out
}

const WEB6: (core::net::Ipv6Addr, u16) = (SERVER6, 9999);

#[test]
fn u13_ipv6_fragments_are_taken_in_each_of_24_orders() {
    for order in orders() {
        let mut kit = Kit::new6();
        let whole = Build6::udp((A6, 5000), WEB6).payload(4000);
        let parts = split6(&whole, &[1400, 1000, 800]);
        let out = feed6(&mut kit, FROM_A, &order.map(|n| parts[n].clone()));
        let out = joined6(&out, UPLINK);
        assert_eq!(out.ends6(), (OWN6, SERVER6));
        assert_eq!(out.bytes[70..], whole.l4[8..]);
        let port = u16::from_be_bytes([out.bytes[62], out.bytes[63]]);
        let answer = Build6::udp(WEB6, (OWN6, port)).payload(4000).up();
        let parts = split6(&answer, &[1400, 1400, 80]);
        let out = feed6(&mut kit, Origin::Uplink, &order.map(|n| parts[n].clone()));
        assert_eq!(out[0].1[66..70], [0xab, 0xcd, 0, 1]);
        let back = joined6(&out, TO_A);
        assert_eq!(back.ends6(), (SERVER6, A6));
        assert_eq!(back.bytes[70..], answer.l4[8..]);
    }
}

#[test]
fn p2_ipv6_fragments_leave_with_an_identification_of_ours() {
    let mut kit = Kit::new6();
    let whole = Build6::udp((A6, 5000), WEB6).payload(4000);
    let parts = split6(&whole, &[1400, 1000, 800]);
    let out = feed6(&mut kit, FROM_A, &parts);
    assert_ne!(out[0].1[66..70], [0xab, 0xcd, 0, 1]);
    assert!(out.iter().all(|piece| piece.1[66..70] == out[0].1[66..70]));
}

#[test]
fn s3_no_part_of_an_overlapping_ipv6_datagram_leaves() {
    let mut kit = Kit::new6();
    let whole = Build6::udp((A6, 5000), WEB6).payload(2000);
    let parts = split6(&whole, &[1400]);
    let overlap = split6(&whole, &[1392]).remove(1);
    assert_eq!(kit.a6(&parts[0]).fate, Fate::Consumed);
    for part in [&overlap, &parts[1], &parts[0]] {
        kit.a6(part).assert_dropped(DropReason::FragmentOverlap);
    }
}

#[test]
fn s3_a_tiny_first_ipv6_fragment_is_dropped() {
    let mut kit = Kit::new6();
    let syn = Build6::tcp((A6, 5000), WEB6, SYN).payload(100);
    for part in split6(&syn, &[16]) {
        kit.a6(&part).assert_dropped(DropReason::FragmentMalformed);
    }
}

#[test]
fn u12_ipv6_fragments_are_not_cut_smaller_on_the_way() {
    let mut kit = Kit::new6();
    let caps = PortCaps { mtu: 1280, ..CAPS };
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps }));
    let parts = split6(&Build6::udp((A6, 5000), WEB6).payload(2000), &[1400]);
    assert_eq!(kit.a6(&parts[0]).fate, Fate::Consumed);
    let too_big = kit.a6(&parts[1]);
    assert_eq!(too_big.assert_sent(TO_A).bytes[54..56], [2, 0]);
    assert_eq!(too_big.bytes[58..62], 1280u32.to_be_bytes());
}
