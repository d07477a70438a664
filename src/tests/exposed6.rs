//! What dom0 opens, and hidden addresses, in IPv6. U: RFC 4787, I: RFC 5508, S: see `spoof`.

use core::net::Ipv6Addr;

use crate::testing::v6::*;
use crate::testing::*;
use crate::visible::{MappedIp, Visible};
use crate::*;

const UPLINK: PortId = PortId::Uplink;
const TO_A: PortId = PortId::Client(ID_A);
const TO_B: PortId = PortId::Client(ID_B);
const REMOTE: (Ipv6Addr, u16) = (SERVER6, 5555);

fn allow_a_to_b(scope: &str) -> String {
    format!("fw-allow={A6}>{B6}{scope}")
}

#[track_caller]
fn assert_passed(out: &Out, port: PortId, ends: (Ipv6Addr, Ipv6Addr)) {
    out.assert_sent(port).assert_sums6();
    assert_eq!(out.ends6(), ends);
}

#[test]
fn clients_may_talk_in_ipv6_where_dom0_and_the_rules_say_so() {
    let mut kit = Kit::new6();
    kit.set_rules6(B6, RulesState::None);
    let syn = Build6::tcp((A6, 40_000), (B6, 22), SYN);
    kit.a6(&syn).assert_dropped(DropReason::ClientIsolation);
    // The other family opens nothing.
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    kit.a6(&syn).assert_dropped(DropReason::ClientIsolation);
    kit.expose(&allow_a_to_b("/tcp/22"));
    assert_passed(&kit.a6(&syn), TO_B, (A6, B6));
    let syn_ack = Build6::tcp((B6, 22), (A6, 40_000), SYN | ACK).numbers(0x7000, 0x1001);
    assert_passed(&kit.b6(&syn_ack), TO_A, (B6, A6));
    kit.a6(&Build6::udp((A6, 1), (B6, 22))).assert_dropped(DropReason::ClientIsolation);
    let own = Build6::tcp((B6, 40_000), (A6, 22), SYN);
    kit.b6(&own).assert_dropped(DropReason::ClientIsolation);
    kit.expose(&allow_a_to_b("/icmp"));
    assert_passed(&kit.a6(&Build6::echo(A6, B6, 128, 9)), TO_B, (A6, B6));
    assert_passed(&kit.b6(&Build6::echo(B6, A6, 129, 9)), TO_A, (B6, A6));
    kit.b6(&Build6::echo(B6, A6, 128, 9)).assert_dropped(DropReason::ClientIsolation);
    // Its TCP flow is over, and its sender is told.
    let data = Build6::tcp((A6, 40_000), (B6, 22), ACK).numbers(0x1001, 0x7001);
    let reset = kit.a6(&data);
    assert_passed(&reset, TO_A, (B6, A6));
    assert_eq!(reset.l4()[13] & RST, RST);
    kit.expose(&allow_a_to_b(""));
    kit.set_rules6(A6, rules6(&["action=drop"]));
    let refused = kit.a6(&Build6::udp((A6, 1), (B6, 22)));
    assert_passed(&refused, TO_A, (OWN6, A6));
    assert_eq!(refused.l4()[..2], [1, 1]);
}

#[test]
fn icmpv6_errors_between_clients_pass_both_ways() {
    let mut kit = Kit::new6();
    kit.expose(&allow_a_to_b(""));
    let got = kit.a6(&Build6::udp((A6, 5000), (B6, 53))).assert_sent(TO_B).packet().to_vec();
    assert_passed(&kit.b6(&Build6::error((B6, A6), (1, 4), 0, &got)), TO_A, (B6, A6));
    let got = kit.b6(&Build6::udp((B6, 53), (A6, 5000))).assert_sent(TO_A).packet().to_vec();
    assert_passed(&kit.a6(&Build6::error((A6, B6), (1, 4), 0, &got)), TO_B, (A6, B6));
    let stray = Build6::udp((A6, 5001), (B6, 53)).packet();
    let error = Build6::error((B6, A6), (1, 4), 0, &stray);
    kit.b6(&error).assert_dropped(DropReason::ClientIsolation);
}

#[test]
fn a_port_is_forwarded_in_the_family_of_its_client() {
    let mut kit = Kit::new6();
    kit.set_rules6(A6, rules6(&["action=drop"]));
    let knock = Build6::tcp(REMOTE, (OWN6, 8080), SYN).numbers(0x7000, 0);
    kit.expose("fw-forward=tcp/8080>10.137.0.10/80");
    kit.up6(knock.clone()).assert_dropped(DropReason::NoFlow);
    kit.expose(&format!("fw-forward=tcp/8080>{A6}/80,udp/53>{A6}"));
    let v4 = Build::tcp((SERVER, 5555), (OWN, 8080), SYN);
    kit.up(v4).assert_dropped(DropReason::NoFlow);
    let out = kit.up6(knock.clone());
    assert_passed(&out, TO_A, (SERVER6, A6));
    assert_eq!((out.sport(), out.dport()), (5555, 80));
    let out = kit.a6(&Build6::tcp((A6, 80), REMOTE, SYN | ACK).numbers(0x1000, 0x7001));
    assert_passed(&out, UPLINK, (OWN6, SERVER6));
    assert_eq!(out.sport(), 8080);
    for source in [A6, B6, ABSENT6, OWN6] {
        let spoofed = Build6::tcp((source, 1), (OWN6, 8080), SYN);
        kit.up6(spoofed).assert_dropped(DropReason::SourceSpoofed);
    }
    // No client gets the port, neither as a mapping nor by sending there.
    let mapped = kit.b6(&Build6::tcp((B6, 8080), REMOTE, SYN));
    assert_passed(&mapped, UPLINK, (OWN6, SERVER6));
    assert_ne!(mapped.sport(), 8080);
    let hairpin = kit.b6(&Build6::tcp((B6, 1), (OWN6, 8080), SYN));
    assert_passed(&hairpin, TO_B, (OWN6, B6));
    assert_eq!(hairpin.l4()[..2], [1, 1]);
    kit.expose("");
    kit.up6(knock).assert_dropped(DropReason::FlowForbidden);
}

#[test]
fn i5_icmpv6_errors_about_forwarded_packets_come_from_our_address() {
    let mut kit = Kit::new6();
    kit.expose(&format!("fw-forward=udp/53>{A6}"));
    let probe = Build6::udp(REMOTE, (OWN6, 53));
    let out = kit.up6(probe.clone().with(|b| b.hop_limit = 1));
    assert_passed(&out, UPLINK, (OWN6, SERVER6));
    assert_eq!(out.l4()[..2], [3, 0]);
    let got = kit.up6(probe.clone()).assert_sent(TO_A).packet().to_vec();
    let out = kit.a6(&Build6::error((A6, SERVER6), (1, 4), 0, &got));
    assert_passed(&out, UPLINK, (OWN6, SERVER6));
    assert_eq!(out.l4()[8..], probe.with(|b| b.hop_limit = 63).packet()[..]);
}

#[test]
fn u7_filtering_by_address_works_in_ipv6() {
    let mut kit = Kit::new6();
    let port = kit.b6(&Build6::udp((B6, 5000), REMOTE)).assert_sent(UPLINK).sport();
    kit.up6(Build6::udp((SERVER6, 7), (OWN6, port))).assert_dropped(DropReason::NoFlow);
    kit.expose(&format!("fw-filtering-by-address={A6}"));
    let port = kit.a6(&Build6::udp((A6, 5001), REMOTE)).assert_sent(UPLINK).sport();
    assert_passed(&kit.up6(Build6::udp((SERVER6, 7), (OWN6, port))), TO_A, (SERVER6, A6));
    let other = Build6::udp((OTHER_SERVER6, 5555), (OWN6, port));
    kit.up6(other).assert_dropped(DropReason::NoFlow);
}

#[test]
fn a_client_with_a_hidden_address_has_no_ipv6() {
    for visible in [
        Visible::As { address: [192, 168, 1, 128].into(), gateway: [192, 168, 1, 1].into() },
        Visible::Unknown,
    ] {
        let mut kit = Kit::new6();
        let port = kit.a6(&Build6::udp((A6, 5000), REMOTE)).assert_sent(UPLINK).sport();
        kit.expose(&format!("fw-allow={B6}>{A6} fw-forward=udp/53>{A6}"));
        kit.set_network(|config| config.mapped = vec![MappedIp { real: A, visible }]);
        let sent = kit.a6(&Build6::udp((A6, 5000), REMOTE));
        assert!(matches!(sent.fate, Fate::Drop(_)), "{:?}", sent.fate);
        let ask = Build6::nd((A6, OWN6), 135, 0, OWN6, (1, MAC_A));
        assert!(matches!(kit.a6(&ask).fate, Fate::Drop(_)));
        kit.up6(Build6::udp(REMOTE, (OWN6, port))).assert_dropped(DropReason::NoFlow);
        kit.up6(Build6::udp(REMOTE, (OWN6, 53))).assert_dropped(DropReason::NoFlow);
        assert_ne!(kit.b6(&Build6::udp((B6, 1), (A6, 2))).fate, Fate::Send(TO_A));
        kit.set_network(|config| config.mapped.clear());
        kit.a6(&Build6::udp((A6, 5000), REMOTE)).assert_sent(UPLINK);
    }
}

#[test]
fn s4_nothing_for_a_client_leaves_upstream_in_ipv6() {
    let mut kit = Kit::new6();
    kit.expose(&format!("fw-allow={A6}>{ABSENT6}"));
    for target in [A6, B6, ABSENT6] {
        for build in [
            Build6::udp((A6, 5000), (target, 5001)),
            Build6::tcp((A6, 5000), (target, 22), SYN),
            Build6::echo(A6, target, 128, 7),
            Build6::raw(A6, target, 47, vec![0; 8]),
        ] {
            assert_ne!(kit.a6(&build).fate, Fate::Send(UPLINK), "{target}");
        }
    }
}
