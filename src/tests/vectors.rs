//! What a Linux firewall VM of Qubes was measured to do with packets that rules do not decide (rows V87 to V98), and
//! with first packets of a flow: variants of the rows, which `table` takes as they are.

use core::net::Ipv4Addr;

use crate::testing::*;
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const TO_UPLINK: PortId = PortId::Uplink;

fn kit(lines: &[&str]) -> Kit {
    Kit::new().rules(A, lines)
}

fn accept_all() -> Kit {
    kit(&["action=accept"])
}

/// GRE, ESP, SCTP and a protocol that nobody assigned.
const PORTLESS: [u8; 4] = [47, 50, 132, 253];

#[test]
fn v87_accept_all_covers_other_protocols() {
    let mut kit = accept_all();
    for protocol in PORTLESS {
        let payload = vec![0x42; 32];
        let out = kit.a(&Build::raw(A, SERVER, protocol, payload.clone()));
        assert_eq!((out.assert_sent(TO_UPLINK).src(), out.dst()), (OWN, SERVER));
        assert_eq!(out.l4(), payload);
        let back = kit.up(Build::raw(SERVER, OWN, protocol, payload));
        assert_eq!(back.assert_sent(PortId::Client(ID_A)).dst(), A);
    }
}

#[test]
fn v88_other_protocols_are_not_tcp() {
    let gre = Build::raw(A, SERVER, 47, vec![0; 8]);
    kit(&["action=accept proto=tcp"]).a(&gre).assert_refused(ID_A, 3, 13);
}

#[test]
fn v89_another_client_is_out_of_reach() {
    let mut kit = accept_all();
    for other in [B, ABSENT] {
        let attempts = [
            Build::tcp((A, 1), (other, 22), SYN),
            Build::udp((A, 1), (other, 53)),
            Build::query(A, other, 8, 1),
        ];
        for attempt in attempts {
            kit.a(&attempt).assert_dropped(DropReason::ClientIsolation);
        }
    }
}

#[test]
fn v90_v91_ping_of_the_firewall_is_answered_whatever_the_rules_say() {
    for rules in [&["action=accept"], &["action=drop"]] {
        let out = kit(rules).a(&Build::query(A, OWN, 8, 9));
        assert_eq!(out.assert_sent(PortId::Client(ID_A)).icmp(), Some((0, 0)));
    }
    let mut kit = accept_all();
    for state in [RulesState::None, RulesState::Refused] {
        kit.set_rules(A, state);
        assert_eq!(kit.a(&Build::query(A, OWN, 8, 9)).icmp(), Some((0, 0)));
    }
}

#[test]
fn v92_tcp_to_the_firewall_is_rejected_as_host_prohibited() {
    let mut kit = accept_all();
    let out = kit.a(&Build::tcp((A, 1), (OWN, 22), SYN));
    assert_eq!(out.assert_refused(ID_A, 3, 10).src(), OWN);
    kit.a(&Build::udp((A, 1), (OWN, 53))).assert_refused(ID_A, 3, 10);
    kit.a(&Build::raw(A, OWN, 47, vec![0; 8])).assert_refused(ID_A, 3, 10);
}

#[test]
fn v93_udp_68_to_the_firewall_meets_silence() {
    accept_all().a(&Build::udp((A, 1), (OWN, 68))).assert_dropped(DropReason::LocalSilent);
}

#[test]
fn v94_v95_a_spoofed_source_meets_silence() {
    let mut kit = accept_all();
    for source in [Ipv4Addr::new(10, 137, 0, 99), B] {
        let syn = Build::tcp((source, 1), WEB, SYN);
        kit.a(&syn).assert_dropped(DropReason::SourceSpoofed);
    }
}

#[test]
fn v96_a_client_without_rules_meets_silence() {
    let mut kit = Kit::with_limits(LIMITS);
    kit.a(&Build::tcp((A, 1), WEB, SYN)).assert_dropped(DropReason::NoRules);
}

#[test]
fn v97_a_new_connection_from_the_uplink_meets_silence() {
    let mut kit = accept_all();
    let syn = Build::tcp((OTHER_SERVER, 1), (A, 22), SYN);
    kit.up(syn).assert_dropped(DropReason::NotOurAddress);
    let syn = Build::tcp((OTHER_SERVER, 1), (OWN, 22), SYN);
    kit.up(syn).assert_dropped(DropReason::NoFlow);
    kit.up(Build::query(OTHER_SERVER, OWN, 8, 1)).assert_dropped(DropReason::NoFlow);
}

#[test]
fn v98_a_client_address_on_the_uplink_meets_silence() {
    let mut kit = accept_all();
    kit.up(Build::query(A, OWN, 8, 1)).assert_dropped(DropReason::SourceSpoofed);
}

#[test]
fn first_packet_bare_ack_is_a_new_flow() {
    let mut kit = accept_all();
    let ack = Build::tcp((A, 40_000), WEB, ACK).numbers(5, 9);
    let out = kit.a(&ack);
    let back =
        Build::tcp(WEB, (OWN, out.assert_sent(TO_UPLINK).sport()), ACK).numbers(9, 5).payload(100);
    kit.up(back).assert_sent(PortId::Client(ID_A));
    kit.set_rules(A, rules(&["action=drop"]));
    kit.a(&Build::tcp((A, 40_001), WEB, ACK)).assert_refused(ID_A, 3, 13);
}

#[test]
fn first_packet_tcp_that_starts_nothing_is_dropped() {
    for (flags, reason) in [
        (RST, DropReason::NotAFirstPacket),
        (RST | ACK, DropReason::NotAFirstPacket),
        (FIN, DropReason::TcpFlags),
        (FIN | ACK, DropReason::NotAFirstPacket),
        (SYN | ACK, DropReason::NotAFirstPacket),
        (SYN | FIN, DropReason::TcpFlags),
        (0, DropReason::TcpFlags),
    ] {
        let mut kit = accept_all();
        kit.a(&Build::tcp((A, 40_000), WEB, flags)).assert_dropped(reason);
        assert_eq!(kit.fw.flow_count(), 0, "flags {flags:#x}");
    }
}

#[test]
fn first_packet_icmp_queries_open_flows() {
    for (kind, answer) in [(8, 0), (13, 14), (15, 16), (17, 18)] {
        let mut kit = accept_all();
        let out = kit.a(&Build::query(A, SERVER, kind, 300));
        let id = out.assert_sent(TO_UPLINK).icmp_id();
        kit.up(Build::query(SERVER, OWN, answer, id)).assert_sent(PortId::Client(ID_A));
        // Another type of answer, or the query itself coming back, belongs to no flow.
        for other in [0, 14, 16, 18, 8, 13].into_iter().filter(|other| *other != answer) {
            kit.up(Build::query(SERVER, OWN, other, id)).assert_dropped(DropReason::NoFlow);
        }
    }
}

#[test]
fn first_packet_unsolicited_icmp_is_dropped() {
    let mut kit = accept_all();
    for kind in [0, 10, 14, 42] {
        kit.a(&Build::query(A, SERVER, kind, 1)).assert_dropped(DropReason::NotAFirstPacket);
    }
    kit.a(&Build::query(A, SERVER, 5, 1)).assert_dropped(DropReason::IcmpForbidden);
    let about = Build::udp((SERVER, 1), (A, 2)).packet();
    for kind in [3, 11] {
        let error = Build::error(A, SERVER, kind, 0, &about);
        kit.a(&error).assert_dropped(DropReason::IcmpErrorUnrelated);
    }
}

#[test]
fn an_echo_request_is_no_answer_to_one_with_look_alike_numbers() {
    let mut kit = accept_all();
    // Identifier 8 and type 8: the tuple of a request from outside looks like that of an answer.
    kit.a(&Build::query(A, SERVER, 8, 8)).assert_sent(TO_UPLINK);
    kit.up(Build::query(SERVER, OWN, 8, 8)).assert_dropped(DropReason::NoFlow);
    let about = Build::query(OWN, SERVER, 0, 8).packet();
    kit.up(Build::error(SERVER, OWN, 3, 1, &about)).assert_dropped(DropReason::IcmpErrorUnrelated);
}

#[test]
fn the_netvm_itself_is_an_address_like_any_other() {
    accept_all().a(&Build::tcp((A, 1), (NETVM, 80), SYN)).assert_sent(TO_UPLINK);
    kit(&["action=drop"]).a(&Build::tcp((A, 1), (NETVM, 80), SYN)).assert_refused(ID_A, 3, 13);
}

#[test]
fn broadcast_multicast_and_loopback_are_dropped() {
    let mut kit = accept_all();
    for destination in [[255; 4], [224, 0, 0, 251], [239, 255, 255, 255], [127, 0, 0, 1], [0; 4]] {
        let build = Build::udp((A, 1), (destination.into(), 5353));
        kit.a(&build).assert_dropped(DropReason::DestinationMartian);
    }
    let broadcast = Build::udp((A, 1), WEB).with(|b| b.link.0 = Mac::BROADCAST);
    kit.a(&broadcast).assert_dropped(DropReason::LinkDestination);
}

#[test]
fn what_is_left_of_networks_0_and_240_is_governed_by_the_rules() {
    for destination in [[0, 0, 0, 1], [0, 255, 255, 255], [240, 0, 0, 1], [255, 255, 255, 254]] {
        let to = (Ipv4Addr::from(destination), 443);
        let mut kit = kit(&["action=accept dst4=0.0.0.0/4", "action=accept dst4=240.0.0.0/4"]);
        let out = kit.a(&Build::udp((A, 5000), to));
        assert_eq!(out.assert_sent(TO_UPLINK).dst(), to.0);
        kit.up(Build::udp(to, (OWN, out.sport()))).assert_sent(PortId::Client(ID_A));
        kit.set_rules(A, rules(&["action=drop"]));
        kit.a(&Build::udp((A, 5001), to)).assert_refused(ID_A, 3, 13);
    }
}

#[test]
fn traceroute_to_any_address_finds_the_firewall_first() {
    let mut kit = accept_all();
    for to in [SERVER, B, ABSENT] {
        for kind in [8, 13, 0, 14] {
            let last = Build::query(A, to, kind, 1).with(|b| b.ttl = 1);
            kit.a(&last).assert_refused(ID_A, 11, 0);
        }
        kit.a(&Build::udp((A, 1), (to, 1)).with(|b| b.ttl = 1)).assert_refused(ID_A, 11, 0);
    }
    kit.set_rules(A, RulesState::None);
    for to in [B, ABSENT] {
        let last = Build::udp((A, 1), (to, 1)).with(|b| b.ttl = 1);
        kit.a(&last).assert_dropped(DropReason::ClientIsolation);
    }
    kit.set_rules(A, rules(&["action=accept"]));
    // Nobody is told about an error, or about ICMP that may be one.
    for kind in [3, 11, 12, 9, 42] {
        let about = Build::udp((SERVER, 1), (A, 2)).packet();
        let silent = Build::error(A, SERVER, kind, 0, &about).with(|b| b.ttl = 1);
        assert!(matches!(kit.a(&silent).fate, Fate::Drop(_)), "type {kind}");
    }
}

#[test]
fn a_client_that_is_not_there_is_refused_by_the_rules_only() {
    let attempts = [
        Build::tcp((A, 1), (ABSENT, 22), SYN),
        Build::udp((A, 1), (ABSENT, 22)),
        Build::query(A, ABSENT, 8, 1),
        Build::raw(A, ABSENT, 47, vec![0; 8]),
    ];
    for attempt in attempts {
        accept_all().a(&attempt).assert_dropped(DropReason::ClientIsolation);
        let mut kit = kit(&["action=drop"]);
        kit.a(&attempt).assert_refused(ID_A, 3, 13);
        kit.set_rules(A, RulesState::None);
        kit.a(&attempt).assert_dropped(DropReason::ClientIsolation);
        assert_eq!(kit.fw.flow_count(), 0);
    }
    let mut kit = kit(&["action=drop"]);
    kit.a(&Build::tcp((A, 1), (ABSENT, 22), RST)).assert_dropped(DropReason::NotAFirstPacket);
}

#[test]
fn a_portless_protocol_belongs_to_one_client_at_a_time() {
    let mut kit = accept_all();
    let esp = |src, dst| Build::raw(src, dst, 50, vec![7; 16]);
    kit.a(&esp(A, SERVER)).assert_sent(TO_UPLINK);
    kit.b(&esp(B, SERVER)).assert_refused(ID_B, 3, 13);
    kit.b(&esp(B, OTHER_SERVER)).assert_sent(TO_UPLINK);
    kit.wait(600);
    kit.b(&esp(B, SERVER)).assert_sent(TO_UPLINK);
    kit.up(esp(SERVER, OWN)).assert_sent(PortId::Client(ID_B));
}

#[test]
fn arp_answers_a_client_for_everything_but_itself() {
    let mut kit = accept_all();
    for target in [OWN, NETVM, B, SERVER] {
        let out = kit.bytes(FROM_A, &arp(1, (MAC_A, A), (Mac([0; 6]), target)), Offload::default());
        assert_eq!(out.fate, Fate::Send(PortId::Client(ID_A)));
        assert_eq!(out.bytes, arp(2, (Mac::GATEWAY, target), (MAC_A, A)));
    }
    let probe = arp(1, (MAC_A, Ipv4Addr::UNSPECIFIED), (Mac([0; 6]), A));
    kit.bytes(FROM_A, &probe, Offload::default()).assert_dropped(DropReason::ArpIgnored);
    let reply = arp(2, (MAC_A, A), (Mac::GATEWAY, OWN));
    kit.bytes(FROM_A, &reply, Offload::default()).assert_dropped(DropReason::ArpIgnored);
}

#[test]
fn arp_on_the_uplink_answers_for_our_address_only() {
    let mut kit = accept_all();
    let asker = (Mac([0, 0x16, 0x3e, 0, 0, 5]), NETVM);
    let ask = |target| arp(1, asker, (Mac([0; 6]), target));
    let out = kit.bytes(Origin::Uplink, &ask(OWN), Offload::default());
    assert_eq!(out.fate, Fate::Send(PortId::Uplink));
    assert_eq!(out.bytes, arp(2, (MAC_UP, OWN), asker));
    for target in [A, B, SERVER, NETVM] {
        kit.bytes(Origin::Uplink, &ask(target), Offload::default())
            .assert_dropped(DropReason::ArpIgnored);
    }
    for sender in [A, OWN] {
        let spoofed = arp(1, (asker.0, sender), (Mac([0; 6]), OWN));
        kit.bytes(Origin::Uplink, &spoofed, Offload::default())
            .assert_dropped(DropReason::ArpSpoofed);
    }
}

#[test]
fn the_gateway_is_asked_for_and_believed_while_asked() {
    let mut kit = accept_all();
    let netvm = Mac([0, 0x16, 0x3e, 0, 0, 5]);
    let reply = arp(2, (netvm, NETVM), (MAC_UP, OWN));
    kit.bytes(Origin::Uplink, &reply, Offload::default()).assert_dropped(DropReason::ArpIgnored);
    assert_eq!(kit.generated(), Some((PortId::Uplink, arp(1, (MAC_UP, OWN), (Mac([0; 6]), OWN)))));
    assert_eq!(
        kit.generated(),
        Some((PortId::Uplink, arp(1, (MAC_UP, OWN), (Mac([0; 6]), NETVM))))
    );
    assert_eq!(kit.generated(), None);
    let syn = Build::tcp((A, 1), WEB, SYN);
    assert_eq!(kit.a(&syn).bytes[..6], Mac::GATEWAY.0);
    let stranger = arp(2, (netvm, OTHER_SERVER), (MAC_UP, OWN));
    kit.bytes(Origin::Uplink, &stranger, Offload::default()).assert_dropped(DropReason::ArpIgnored);
    assert_eq!(kit.bytes(Origin::Uplink, &reply, Offload::default()).fate, Fate::Consumed);
    assert_eq!(kit.a(&syn).bytes[..12], [netvm.0, MAC_UP.0].concat());
    kit.bytes(Origin::Uplink, &reply, Offload::default()).assert_dropped(DropReason::ArpIgnored);
    kit.wait(10);
    assert_eq!(kit.generated(), None);
}
