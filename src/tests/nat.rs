//! NAT behaviour; the names carry the requirement of the RFC list (U: RFC 4787, T: RFC 5382, I: RFC 5508, P: ports and
//! identifications, S: security) that a test shows.

use core::net::Ipv4Addr;
use core::num::NonZeroU32;

use proptest::prelude::*;

use crate::testing::*;
use crate::*;

const UPLINK: PortId = PortId::Uplink;
const TO_A: PortId = PortId::Client(ID_A);
const TO_B: PortId = PortId::Client(ID_B);
const WEB: (Ipv4Addr, u16) = (SERVER, 443);

/// The UDP packet that answers `out`, and where it ends up.
fn udp_answer(kit: &mut Kit, out: &Out) -> Out {
    kit.up(Build::udp((out.dst(), out.dport()), (out.src(), out.sport())))
}

fn udp_out(kit: &mut Kit, sport: u16, to: (Ipv4Addr, u16)) -> Out {
    let out = kit.a(&Build::udp((A, sport), to));
    out.assert_sent(UPLINK);
    out
}

#[test]
fn u1_mapping_is_endpoint_independent() {
    let mut kit = Kit::new();
    // The port is taken, so that A's is not preserved and equality is no accident.
    kit.b(&Build::udp((B, 5000), WEB)).assert_sent(UPLINK);
    let targets = [(SERVER, 443), (SERVER, 444), (OTHER_SERVER, 443)];
    let ports = targets.map(|to| udp_out(&mut kit, 5000, to).sport());
    assert_ne!(ports[0], 5000);
    assert_eq!(ports, [ports[0]; 3]);
}

#[test]
fn t1_tcp_mapping_is_endpoint_independent() {
    let mut kit = Kit::new();
    kit.connect((B, 5000), WEB);
    let first = kit.connect((A, 5000), (SERVER, 80));
    assert_ne!(first, 5000);
    assert_eq!(kit.connect((A, 5000), (OTHER_SERVER, 80)), first);
}

#[test]
fn u3_ports_are_never_overloaded_and_keep_their_class() {
    let mut kit = Kit::new();
    for sport in [500, 1023, 1024, 40_000] {
        let first = udp_out(&mut kit, sport, WEB);
        let second = kit.b(&Build::udp((B, sport), WEB));
        assert_eq!(first.sport(), sport);
        assert_ne!(second.assert_sent(UPLINK).sport(), sport);
        assert_eq!(second.sport() < 1024, sport < 1024);
        assert_eq!(udp_answer(&mut kit, &first).fate, Fate::Send(TO_A));
        assert_eq!(udp_answer(&mut kit, &second).fate, Fate::Send(TO_B));
    }
}

#[test]
fn u5_a_udp_mapping_without_answer_lives_two_minutes() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    crowd(&mut kit);
    kit.wait(119);
    udp_answer(&mut kit, &out).assert_sent(TO_A);
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    kit.wait(120);
    udp_answer(&mut kit, &out).assert_dropped(DropReason::NoFlow);
}

#[test]
fn u5_a_udp_mapping_with_answers_lives_five_minutes() {
    for (seconds, is_alive) in [(298, true), (301, false)] {
        let mut kit = Kit::new();
        let out = udp_out(&mut kit, 5000, WEB);
        kit.wait(1);
        udp_answer(&mut kit, &out).assert_sent(TO_A);
        crowd(&mut kit);
        kit.wait(seconds);
        assert_eq!(udp_answer(&mut kit, &out).fate == Fate::Send(TO_A), is_alive, "{seconds} s");
    }
}

/// B fills its own quota many times over.
fn crowd(kit: &mut Kit) {
    for port in 1..1000 {
        kit.b(&Build::udp((B, port), WEB)).assert_sent(UPLINK);
    }
}

#[test]
fn u6_the_client_refreshes_a_mapping_and_the_far_side_does_not() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    udp_answer(&mut kit, &out).assert_sent(TO_A);
    for _ in 0..10 {
        kit.wait(250);
        udp_out(&mut kit, 5000, WEB);
    }
    for _ in 0..5 {
        kit.wait(59);
        udp_answer(&mut kit, &out).assert_sent(TO_A);
    }
    kit.wait(59);
    udp_answer(&mut kit, &out).assert_dropped(DropReason::NoFlow);
}

#[test]
fn u7_filtering_is_address_and_port_dependent() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    for from in [(SERVER, 444), (OTHER_SERVER, 443)] {
        let stranger = Build::udp(from, (OWN, out.sport()));
        kit.up(stranger).assert_dropped(DropReason::NoFlow);
    }
    udp_answer(&mut kit, &out).assert_sent(TO_A);
}

#[test]
fn u9_payload_is_not_touched() {
    let mut kit = Kit::new();
    let ftp = b"PORT 10,137,0,10,4,1\r\n";
    let build =
        Build::tcp((A, 40_000), (SERVER, 21), ACK).with(|b| b.l4.extend(ftp)).checksummed(16);
    let out = kit.a(&build);
    assert_eq!(&out.assert_sent(UPLINK).l4()[20..], ftp);
}

#[test]
fn u11_t7_icmp_errors_end_no_flow() {
    let mut kit = Kit::new();
    let port = kit.connect((A, 40_000), WEB);
    let sent = Build::tcp((OWN, port), WEB, ACK).numbers(0x1000_2001, 0x7001).packet();
    for (kind, code) in [(3, 1), (3, 2), (3, 3), (3, 13), (11, 0), (12, 0)] {
        for _ in 0..100 {
            kit.up(Build::error(OTHER_SERVER, OWN, kind, code, &sent)).assert_sent(TO_A);
        }
    }
    let data = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, 0x1000_2001).payload(100);
    kit.up(data).assert_sent(TO_A);
    kit.wait(7439);
    let more = Build::tcp((A, 40_000), WEB, ACK).numbers(0x1000_2001, 0x7065);
    assert_eq!(kit.a(&more).assert_sent(UPLINK).sport(), port);
}

#[test]
fn t2_a_connection_opens_simultaneously() {
    let mut kit = Kit::new();
    let out = kit.a(&Build::tcp((A, 5000), WEB, SYN).numbers(100, 0));
    let here = (OWN, out.assert_sent(UPLINK).sport());
    kit.up(Build::tcp(WEB, here, SYN).numbers(700, 0)).assert_sent(TO_A);
    kit.a(&Build::tcp((A, 5000), WEB, SYN | ACK).numbers(100, 701)).assert_sent(UPLINK);
    kit.up(Build::tcp(WEB, here, ACK).numbers(701, 101)).assert_sent(TO_A);
    kit.a(&Build::tcp((A, 5000), WEB, ACK).numbers(101, 701).payload(9)).assert_sent(UPLINK);
}

#[test]
fn t3_t4_a_syn_from_outside_meets_silence_even_on_a_mapped_port() {
    let mut kit = Kit::new();
    let port = kit.connect((A, 40_000), WEB);
    for from in [(OTHER_SERVER, 443), (SERVER, 80)] {
        let syn = Build::tcp(from, (OWN, port), SYN);
        kit.up(syn.clone()).assert_dropped(DropReason::NoFlow);
        // The client's own SYN to the same place wins.
        kit.connect((A, 40_000), from);
    }
}

#[test]
fn t5_an_idle_connection_lives_two_hours_and_four_minutes() {
    for (seconds, is_alive) in [(7439, true), (7440, false)] {
        let mut kit = Kit::new();
        let port = kit.connect((A, 40_000), WEB);
        crowd(&mut kit);
        kit.wait(seconds);
        let data = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, 0x1000_2001).payload(1);
        assert_eq!(kit.up(data).fate == Fate::Send(TO_A), is_alive, "{seconds} s");
    }
}

#[test]
fn t5_a_connection_that_opens_lives_four_minutes() {
    for (seconds, is_alive) in [(239, true), (240, false)] {
        let mut kit = Kit::new();
        let out = kit.a(&Build::tcp((A, 40_000), WEB, SYN).numbers(100, 0));
        kit.wait(seconds);
        let answer = Build::tcp(WEB, (OWN, out.sport()), SYN | ACK).numbers(7, 101);
        assert_eq!(kit.up(answer).fate == Fate::Send(TO_A), is_alive, "{seconds} s");
    }
}

#[test]
fn t6_a_reset_counts_in_the_window_only_and_leaves_four_minutes() {
    let mut kit = Kit::new();
    let port = kit.connect((A, 40_000), WEB);
    let reset = |sequence| Build::tcp(WEB, (OWN, port), RST).numbers(sequence, 0);
    for blind in [0, 0x7000, 0x4000_0000, 0xffff_ffff] {
        kit.up(reset(blind)).assert_dropped(DropReason::TcpOutOfWindow);
    }
    kit.wait(7000);
    kit.up(reset(0x7001)).assert_sent(TO_A);
    kit.wait(239);
    kit.up(reset(0x7001)).assert_sent(TO_A);
    kit.wait(1);
    kit.up(reset(0x7001)).assert_dropped(DropReason::NoFlow);
}

#[test]
fn s7_a_challenged_reset_does_not_break_the_connection() {
    let mut kit = Kit::new();
    let port = kit.connect((A, 40_000), WEB);
    kit.up(Build::tcp(WEB, (OWN, port), RST).numbers(0x7100, 0)).assert_sent(TO_A);
    kit.a(&Build::tcp((A, 40_000), WEB, ACK).numbers(0x1000_2001, 0x7001)).assert_sent(UPLINK);
    kit.wait(1000);
    let data = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, 0x1000_2001).payload(10);
    kit.up(data).assert_sent(TO_A);
}

#[test]
fn i1_ping_identifier_mapping_does_not_depend_on_the_host() {
    let mut kit = Kit::new();
    kit.b(&Build::query(B, SERVER, 8, 77)).assert_sent(UPLINK);
    let hosts = [SERVER, OTHER_SERVER, NETVM];
    let ids = hosts.map(|host| {
        let out = kit.a(&Build::query(A, host, 8, 77));
        let id = out.assert_sent(UPLINK).icmp_id();
        let back = kit.up(Build::query(host, OWN, 0, id));
        assert_eq!(back.assert_sent(TO_A).icmp_id(), 77);
        assert_eq!((back.src(), back.dst()), (host, A));
        id
    });
    assert_ne!(ids[0], 77);
    assert_eq!(ids, [ids[0]; 3]);
}

/// The update of RFC 1624 gives the sum of all zeros the form that no receiver takes for right.
#[test]
fn replies_that_are_all_zeros_have_a_right_checksum() {
    let mut kit = Kit::new();
    let to_gateway = kit.a(&Build::icmp(A, OWN, 8, 0, [0; 4], &[]));
    assert_eq!(to_gateway.assert_sent(TO_A).l4(), [0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    // Another client has the identifier 0.
    kit.b(&Build::icmp(B, SERVER, 8, 0, [0; 4], &[])).assert_sent(UPLINK);
    let [high, low] = kit.a(&Build::icmp(A, SERVER, 8, 0, [0; 4], &[])).icmp_id().to_be_bytes();
    assert_ne!([high, low], [0, 0]);
    let reply = kit.up(Build::icmp(SERVER, OWN, 0, 0, [high, low, 0, 0], &[0; 9]));
    assert_eq!(reply.assert_sent(TO_A).l4()[..8], [0, 0, 0xff, 0xff, 0, 0, 0, 0]);
}

#[test]
fn i2_a_query_waits_a_minute_for_its_answer() {
    for (seconds, is_alive) in [(59, true), (300, false)] {
        let mut kit = Kit::new();
        let out = kit.a(&Build::query(A, SERVER, 8, 77));
        kit.wait(seconds);
        let fate = kit.up(Build::query(SERVER, OWN, 0, out.icmp_id())).fate;
        assert_eq!(fate == Fate::Send(TO_A), is_alive, "{seconds} s");
    }
}

#[test]
fn i3_inner_checksums_are_not_verified_and_outer_ones_are() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    let wrong_inside = {
        let mut packet = out.packet().to_vec();
        packet[26] ^= 0x55;
        packet
    };
    kit.up(Build::error(SERVER, OWN, 3, 3, &wrong_inside)).assert_sent(TO_A);
    let wrong_outside = Build::error(SERVER, OWN, 3, 3, out.packet()).with(|b| b.l4[2] ^= 1);
    kit.up(wrong_outside).assert_dropped(DropReason::IcmpChecksum);
}

#[test]
fn i3_extensions_and_inner_options_pass() {
    let mut kit = Kit::new();
    let with_options = Build::udp((A, 5000), WEB).with(|b| b.options = vec![1, 1, 1, 1]);
    let out = kit.a(&with_options);
    let mut quote = out.assert_sent(UPLINK).packet().to_vec();
    quote.resize(128, 0);
    quote.extend([0x20, 0, 0xaa, 0xbb, 0, 8, 1, 1, 1, 2, 3, 4]);
    let back = kit.up(Build::error(SERVER, OWN, 3, 3, &quote));
    let l4 = back.assert_sent(TO_A).l4();
    assert_eq!(l4.len(), 8 + quote.len());
    assert_eq!(l4[8 + 128..], quote[128..]);
    assert_eq!(l4[8 + 12..8 + 16], A.octets());
}

/// What the client sent, as it would be quoted one hop further.
fn one_hop_on(build: Build) -> Vec<u8> {
    build.with(|b| b.ttl -= 1).packet()
}

#[test]
fn i4_an_error_from_outside_quotes_what_the_client_sent() {
    let mut kit = Kit::new();
    // B holds the port and the identifier, so that A's are translated.
    kit.connect((B, 5000), WEB);
    kit.b(&Build::udp((B, 5000), WEB));
    kit.b(&Build::query(B, SERVER, 8, 5000));
    let sent = [
        Build::tcp((A, 5000), WEB, SYN),
        Build::udp((A, 5000), WEB),
        Build::udp((A, 5000), (CLIENT_DNS[1], 53)),
        Build::query(A, SERVER, 8, 5000),
        Build::raw(A, SERVER, 50, vec![9; 30]),
    ];
    for build in sent {
        let out = kit.a(&build);
        out.assert_sent(UPLINK);
        for (kind, code) in [(3, 1), (3, 3), (11, 0), (12, 0)] {
            let router = Ipv4Addr::new(203, 0, 113, 254);
            let back = kit.up(Build::error(router, OWN, kind, code, out.packet()));
            assert_eq!(back.assert_sent(TO_A).icmp(), Some((kind, code)));
            assert_eq!((back.src(), back.dst()), (router, A));
            assert_eq!(back.l4()[8..], one_hop_on(build.clone()), "{build:?}");
        }
    }
}

#[test]
fn i4_an_error_is_cut_off_after_eight_bytes_and_still_translated() {
    let mut kit = Kit::new();
    kit.connect((B, 5000), WEB);
    let build = Build::tcp((A, 5000), WEB, SYN);
    let out = kit.a(&build);
    let back = kit.up(Build::error(SERVER, OWN, 3, 1, &out.packet()[..28]));
    assert_eq!(back.assert_sent(TO_A).l4()[8..], one_hop_on(build)[..28]);
}

#[test]
fn i4_an_error_needs_a_mapping_and_our_address_inside() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    let about = |src, sport, to| Build::udp((src, sport), to).packet();
    let unrelated = [
        about(OWN, out.sport() + 1, WEB),
        about(OWN, out.sport(), (SERVER, 444)),
        about(A, 5000, WEB),
        // A fragment other than the first has no ports.
        Build::udp((OWN, out.sport()), WEB).with(|b| b.fragment = 100).packet(),
        vec![0x45; 28],
        out.packet()[..27].to_vec(),
    ];
    for quote in unrelated {
        let error = Build::error(SERVER, OWN, 3, 3, &quote);
        kit.up(error).assert_dropped(DropReason::IcmpErrorUnrelated);
    }
}

#[test]
fn i5_an_error_of_the_client_shows_our_address_only() {
    let mut kit = Kit::new();
    kit.b(&Build::udp((B, 5000), (CLIENT_DNS[0], 53)));
    let out = kit.a(&Build::udp((A, 5000), (CLIENT_DNS[0], 53)));
    let answer = Build::udp((OWN_DNS[0], 53), (OWN, out.sport()));
    let seen = kit.up(answer.clone());
    seen.assert_sent(TO_A);
    let error = Build::error(A, CLIENT_DNS[0], 3, 3, seen.packet());
    let sent = kit.a(&error);
    assert_eq!((sent.assert_sent(UPLINK).src(), sent.dst()), (OWN, OWN_DNS[0]));
    assert_eq!(sent.l4()[8..], one_hop_on(answer));
    // Not to anybody else, and not about what it never received.
    let elsewhere = Build::error(A, OTHER_SERVER, 3, 3, seen.packet());
    kit.a(&elsewhere).assert_dropped(DropReason::IcmpErrorUnrelated);
    let own = Build::udp((A, 5000), (CLIENT_DNS[0], 53)).packet();
    let confused = Build::error(A, CLIENT_DNS[0], 3, 3, &own);
    kit.a(&confused).assert_dropped(DropReason::IcmpErrorUnrelated);
}

#[test]
fn i7_a_session_that_cannot_be_is_refused_and_held_ones_survive() {
    let mut kit = Kit::new();
    let quota = LIMITS.flows_per_client as u16;
    let ports: Vec<u16> = (0..quota).map(|n| kit.connect((A, 20_000 + n), WEB)).collect();
    kit.a(&Build::tcp((A, 1), WEB, SYN)).assert_refused(ID_A, 3, 13);
    for port in ports {
        let data = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, 0x1000_2001).payload(1);
        kit.up(data).assert_sent(TO_A);
    }
    assert_eq!(kit.fw.flows_of(A.into()), usize::from(quota));
}

#[test]
fn i7_over_its_quota_a_client_loses_its_own_oldest_half_open_flow() {
    let mut kit = Kit::new();
    let kept = kit.connect((A, 1), WEB);
    let others = kit.b(&Build::udp((B, 7), WEB));
    let oldest = udp_out(&mut kit, 2, WEB);
    let next = udp_out(&mut kit, 3, WEB);
    for port in 3..LIMITS.flows_per_client as u16 + 1 {
        udp_out(&mut kit, 100 + port, WEB);
    }
    assert_eq!(kit.fw.flows_of(A.into()), LIMITS.flows_per_client as usize);
    udp_answer(&mut kit, &oldest).assert_dropped(DropReason::NoFlow);
    udp_answer(&mut kit, &next).assert_sent(TO_A);
    udp_answer(&mut kit, &others).assert_sent(TO_B);
    let data = Build::tcp(WEB, (OWN, kept), ACK).numbers(0x7001, 0x1000_2001).payload(1);
    kit.up(data).assert_sent(TO_A);
}

#[test]
fn i8_our_own_icmp_echo_time_exceeded_and_fragmentation_needed() {
    let mut kit = Kit::new();
    let ping = Build::query(A, OWN, 8, 5);
    let pong = kit.a(&ping);
    assert_eq!(pong.assert_sent(TO_A).icmp(), Some((0, 0)));
    assert_eq!((pong.src(), pong.dst(), pong.l4()[4..].to_vec()), (OWN, A, ping.l4[4..].to_vec()));
    let expiring = Build::udp((A, 5000), WEB).with(|b| b.ttl = 1);
    let exceeded = kit.a(&expiring);
    assert_eq!(exceeded.assert_refused(ID_A, 11, 0).src(), OWN);
    assert_eq!(exceeded.l4()[8..], expiring.packet());
    let big = Build::udp((A, 5000), WEB).payload(1468);
    let needed = kit.a(&big);
    assert_eq!(needed.assert_refused(ID_A, 3, 4).word(6), 1500);
    assert_eq!(needed.packet().len(), 576);
    assert_eq!(needed.l4()[8..], big.packet()[..548]);
}

#[test]
fn i8_time_exceeded_towards_the_uplink_comes_from_our_address() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    let answer = Build::udp(WEB, (OWN, out.sport())).with(|b| b.ttl = 1);
    let exceeded = kit.up(answer.clone());
    assert_eq!(exceeded.assert_sent(UPLINK).icmp(), Some((11, 0)));
    assert_eq!((exceeded.src(), exceeded.dst()), (OWN, SERVER));
    assert_eq!(exceeded.l4()[8..], answer.packet());
}

#[test]
fn p2_identification_and_dont_fragment_are_kept() {
    let mut kit = Kit::new();
    for (id, fragment) in [(0, 0x4000), (0xbeef, 0x4000), (0xbeef, 0)] {
        let build = Build::udp((A, 5000), WEB).with(|b| (b.id, b.fragment) = (id, fragment));
        let out = kit.a(&build);
        assert_eq!(out.assert_sent(UPLINK).bytes[18..22], build.frame()[18..22]);
        let back =
            Build::udp(WEB, (OWN, out.sport())).with(|b| (b.id, b.fragment) = (id, fragment));
        assert_eq!(kit.up(back).assert_sent(TO_A).bytes[18..22], build.frame()[18..22]);
    }
}

#[test]
fn p3_a_client_that_floods_harms_itself_only() {
    let mut kit = Kit::new();
    let (before, port) = (kit.b(&Build::udp((B, 7), WEB)), kit.connect((B, 8), WEB));
    for n in 0..5000u16 {
        kit.a(&Build::tcp((A, n + 1), WEB, SYN));
        kit.a(&Build::udp((A, n + 1), WEB));
    }
    assert!(kit.fw.flows_of(A.into()) <= LIMITS.flows_per_client as usize);
    udp_answer(&mut kit, &before).assert_sent(TO_B);
    let data = Build::tcp(WEB, (OWN, port), ACK).numbers(0x7001, 0x1000_2001).payload(1);
    kit.up(data).assert_sent(TO_B);
    for n in 0..20 {
        kit.connect((B, 1000 + n), WEB);
    }
}

#[test]
fn s2_source_quench_is_dropped_both_ways() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5000, WEB);
    let quench = Build::error(SERVER, OWN, 4, 0, out.packet());
    kit.up(quench).assert_dropped(DropReason::IcmpForbidden);
    let seen = udp_answer(&mut kit, &out);
    kit.a(&Build::error(A, SERVER, 4, 0, seen.packet())).assert_dropped(DropReason::IcmpForbidden);
}

#[test]
fn s4_spoofed_sources_are_dropped_on_both_sides() {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut kit = Kit::new();
    for src in [B, ABSENT, OWN, NETVM, SERVER, zero, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST] {
        kit.a(&Build::udp((src, 1), WEB)).assert_dropped(DropReason::SourceSpoofed);
        kit.a(&Build::query(src, OWN, 8, 1)).assert_dropped(DropReason::SourceSpoofed);
    }
    let out = udp_out(&mut kit, 5000, WEB);
    for src in [A, B, ABSENT, OWN] {
        let spoofed = Build::udp((src, 443), (OWN, out.sport()));
        kit.up(spoofed).assert_dropped(DropReason::SourceSpoofed);
    }
    for src in
        [zero, Ipv4Addr::LOCALHOST, [224, 0, 0, 1].into(), [239, 0, 0, 1].into(), [255; 4].into()]
    {
        let martian = Build::udp((src, 443), (OWN, out.sport()));
        kit.up(martian).assert_dropped(DropReason::SourceMartian);
    }
    for dst in [A, B, NETVM, SERVER, [255; 4].into(), [224, 0, 0, 1].into()] {
        kit.up(Build::udp(WEB, (dst, out.sport()))).assert_dropped(DropReason::NotOurAddress);
    }
    kit.bytes(FROM_A, &arp(1, (MAC_A, NETVM), (Mac([0; 6]), B)), Offload::default())
        .assert_dropped(DropReason::ArpSpoofed);
}

#[test]
fn s8_source_routes_are_dropped_and_other_options_pass() {
    let mut kit = Kit::new();
    let with = |options: &[u8]| Build::udp((A, 5000), WEB).with(|b| b.options = options.to_vec());
    for options in [
        &[131, 3, 4, 0][..],
        &[1, 137, 3, 4],
        &[7, 3, 4, 131, 3, 4, 0, 0],
        &[7, 9, 4, 0],
        &[7, 0, 0, 0],
    ] {
        kit.a(&with(options)).assert_dropped(DropReason::SourceRoute);
    }
    // Record route, no-operation, end of list with anything behind it.
    for options in [&[7, 3, 4, 0][..], &[1, 1, 1, 1], &[0, 131, 3, 4]] {
        kit.a(&with(options)).assert_sent(UPLINK);
    }
}

#[test]
fn dns_goes_to_the_nth_resolver_and_answers_come_from_where_they_are_expected() {
    let mut kit = Kit::new();
    for (asked, used) in CLIENT_DNS.into_iter().zip(OWN_DNS) {
        let out = udp_out(&mut kit, 5353, (asked, 53));
        assert_eq!(out.dst(), used);
        let back = udp_answer(&mut kit, &out);
        assert_eq!((back.assert_sent(TO_A).src(), back.dst(), back.dport()), (asked, A, 5353));
        let tcp = kit.a(&Build::tcp((A, 5353), (asked, 53), SYN));
        assert_eq!(tcp.assert_sent(UPLINK).dst(), used);
    }
    // Other ports are no DNS.
    assert_eq!(udp_out(&mut kit, 5353, (CLIENT_DNS[0], 5353)).dst(), CLIENT_DNS[0]);
}

#[test]
fn a_resolver_that_refuses_is_seen_under_the_address_that_was_asked() {
    let mut kit = Kit::new();
    let out = udp_out(&mut kit, 5353, (CLIENT_DNS[1], 53));
    let refused = kit.up(Build::error(OWN_DNS[1], OWN, 3, 3, out.packet()));
    assert_eq!((refused.assert_sent(TO_A).src(), refused.dst()), (CLIENT_DNS[1], A));
}

#[test]
fn two_resolvers_that_become_one_can_still_be_told_apart() {
    let mut kit = Kit::new();
    kit.set_network(|config| config.v4.dns.truncate(1));
    let outs = CLIENT_DNS.map(|asked| udp_out(&mut kit, 5353, (asked, 53)));
    let direct = udp_out(&mut kit, 5353, (OWN_DNS[0], 53));
    assert_eq!(outs.each_ref().map(Out::dst), [OWN_DNS[0]; 2]);
    for (out, asked) in outs.iter().zip(CLIENT_DNS).chain([(&direct, OWN_DNS[0])]) {
        assert_eq!(udp_answer(&mut kit, out).assert_sent(TO_A).src(), asked);
    }
}

#[test]
fn ports_come_back_when_flows_end() {
    let mut kit = Kit::new();
    for port in 0..20 {
        kit.connect((A, 1000 + port), WEB);
        kit.b(&Build::udp((B, 1000 + port), WEB)).assert_sent(UPLINK);
    }
    assert_eq!((kit.fw.flow_count(), kit.fw.nat.leased()), (40, 40));
    kit.fw.detach_client(ID_A);
    assert_eq!((kit.fw.flow_count(), kit.fw.nat.leased()), (20, 20));
    assert_eq!(kit.fw.next_deadline(), Some(Instant::from_nanos(0)), "the uplink's announcement");
    while kit.generated().is_some() {}
    kit.wait(120);
    assert!(kit.fw.next_deadline().unwrap() <= kit.now);
    kit.fw.on_timer(kit.now);
    assert_eq!((kit.fw.flow_count(), kit.fw.nat.leased(), kit.fw.nat.len()), (0, 0, 0));
}

#[test]
fn timer_work_is_bounded_and_what_is_left_stays_due() {
    let limits = Limits { flows: 2000, flows_per_client: 2000, ..LIMITS };
    let mut kit = Kit::with_limits(limits).rules(A, &["action=accept"]);
    (0..1000).for_each(|port| drop(udp_out(&mut kit, 1000 + port, WEB)));
    kit.wait(1000);
    kit.fw.on_timer(kit.now);
    assert_eq!(kit.fw.flow_count(), 1000 - 256);
    assert!(kit.fw.next_deadline().unwrap() <= kit.now);
}

#[test]
fn another_address_of_our_own_ends_all_flows() {
    let mut kit = Kit::new();
    kit.connect((A, 40_000), WEB);
    kit.set_network(|config| config.v4.address = Some([10, 137, 0, 99].into()));
    assert_eq!((kit.fw.flow_count(), kit.fw.nat.leased()), (0, 0));
    let out = udp_out(&mut kit, 5000, WEB);
    assert_eq!(out.src(), Ipv4Addr::new(10, 137, 0, 99));
}

#[test]
fn flows_survive_a_restart_of_the_uplink() {
    let mut kit = Kit::new();
    let port = kit.connect((A, 40_000), WEB);
    kit.fw.set_uplink(kit.now, None);
    let data = Build::tcp((A, 40_000), WEB, ACK).numbers(0x1000_2001, 0x7001);
    kit.a(&data).assert_refused(ID_A, 3, 0);
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps: CAPS }));
    assert_eq!(kit.a(&data).assert_sent(UPLINK).sport(), port);
}

fn endpoint() -> impl Strategy<Value = (Ipv4Addr, u16)> {
    (1u8..=223, any::<[u8; 3]>(), 1u16..)
        .prop_filter_map("an address outside", |(a, [b, c, d], port)| {
            (a != 10 && a != 127).then_some((Ipv4Addr::new(a, b, c, d), port))
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    /// NAT and then un-NAT is identity: an answer to what left comes back as the answer to what was sent.
    #[test]
    fn translation_and_back_is_identity(
        remote in endpoint(), sport in 1u16.., is_tcp: bool, is_blank: bool, is_port_taken: bool, extra in 0usize..1400,
    ) {
        let mut kit = Kit::new();
        let packet = |from, to| {
            let build = if is_tcp { Build::tcp(from, to, ACK) } else { Build::udp(from, to) };
            let build = build.payload(extra);
            if is_blank { build.blank() } else { build }
        };
        if is_port_taken {
            kit.b(&packet((B, sport), remote)).assert_sent(UPLINK);
        }
        let out = kit.a(&packet((A, sport), remote));
        out.assert_sent(UPLINK);
        prop_assert_eq!((out.src(), out.dst(), out.dport()), (OWN, remote.0, remote.1));
        prop_assert_eq!(out.sport() == sport, !is_port_taken);
        prop_assert_eq!(out.offload.checksum == Checksum::Blank, is_blank);

        let back = kit.up(packet(remote, (OWN, out.sport())));
        back.assert_sent(TO_A);
        let expected = packet(remote, (A, sport)).with(|b| {
            b.link = (MAC_A, Mac::GATEWAY);
            b.ttl -= 1;
        });
        prop_assert_eq!(back.bytes, expected.frame());
    }

    /// Whatever clients send, quotas hold, ports are not shared, and everything comes back in the end.
    #[test]
    fn the_table_never_exceeds_its_quotas(
        steps in proptest::collection::vec((any::<bool>(), 0u8..4, 1u16..60, 0u8..3, 0u64..50), 1..400),
    ) {
        let mut kit = Kit::new();
        for (is_a, kind, port, host, seconds) in steps {
            let (ip, origin) = if is_a { (A, FROM_A) } else { (B, FROM_B) };
            let to = Ipv4Addr::new(198, 51, 100, host);
            let build = match kind {
                0 => Build::tcp((ip, port), (to, 80), SYN),
                1 => Build::tcp((ip, port), (to, 80), ACK),
                2 => Build::udp((ip, port), (to, 80)),
                _ => Build::query(ip, to, 8, port),
            };
            kit.send(origin, &build);
            kit.wait(seconds);
            kit.fw.on_timer(kit.now);
            let (a, b) = (kit.fw.flows_of(A.into()), kit.fw.flows_of(B.into()));
            prop_assert!(a.max(b) <= LIMITS.flows_per_client as usize);
            prop_assert_eq!(kit.fw.flow_count(), a + b);
            prop_assert_eq!(kit.fw.nat.len(), kit.fw.nat.leased() as usize);
        }
        kit.wait(10_000);
        kit.fw.on_timer(kit.now);
        prop_assert_eq!((kit.fw.flow_count(), kit.fw.nat.len(), kit.fw.nat.leased()), (0, 0, 0));
    }
}

#[test]
fn bounds_of_flows_change_while_flows_run() {
    let mut kit = Kit::new();
    let [few, one] = [NonZeroU32::new(4), NonZeroU32::new(1)];
    for port in 1..=8 {
        kit.b(&Build::udp((B, port), WEB)).assert_sent(UPLINK);
    }
    assert_eq!(kit.fw.set_flow_limits(few, None), (4, 1));
    kit.a(&Build::udp((A, 1), WEB)).assert_refused(ID_A, 3, 13);
    // A flow that is there stays.
    kit.b(&Build::udp((B, 8), WEB)).assert_sent(UPLINK);
    assert_eq!(kit.fw.set_flow_limits(NonZeroU32::new(u32::MAX), one), (LIMITS.flows, 1));
    kit.a(&Build::udp((A, 1), WEB)).assert_sent(UPLINK);
    kit.a(&Build::udp((A, 2), WEB)).assert_sent(UPLINK);
    assert_eq!(kit.fw.flows_of(A.into()), 1);
    assert_eq!(kit.fw.set_flow_limits(None, None), (LIMITS.flows, LIMITS.flows_per_client));
}
