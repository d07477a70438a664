//! What dom0 opens: client to client, forwarded ports, filtering by address. U: RFC 4787, I: RFC 5508.

use core::net::Ipv4Addr;

use crate::testing::*;
use crate::*;

const UPLINK: PortId = PortId::Uplink;
const TO_A: PortId = PortId::Client(ID_A);
const TO_B: PortId = PortId::Client(ID_B);
const SSH_OF_B: (Ipv4Addr, u16) = (B, 22);
const HERE: (Ipv4Addr, u16) = (A, 40_000);
const REMOTE: (Ipv4Addr, u16) = (SERVER, 5555);

fn from_b(build: Build) -> Build {
    build.with(|b| b.link.1 = MAC_B)
}

/// A connects to B; next numbers as in [`Kit::connect`].
fn connect_to_b(kit: &mut Kit) {
    let out = kit.a(&Build::tcp(HERE, SSH_OF_B, SYN).numbers(0x1000_2000, 0));
    out.assert_sent(TO_B);
    assert_eq!((out.src(), out.sport(), out.dst(), out.dport()), (A, 40_000, B, 22));
    assert_eq!((&out.bytes[..6], &out.bytes[6..12]), (&MAC_B.0[..], &Mac::GATEWAY.0[..]));
    let out = kit.b(&from_b(Build::tcp(SSH_OF_B, HERE, SYN | ACK).numbers(0x7000, 0x1000_2001)));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (B, A));
    let ack = Build::tcp(HERE, SSH_OF_B, ACK).numbers(0x1000_2001, 0x7001);
    kit.a(&ack).assert_sent(TO_B);
}

fn data_of_a() -> Build {
    Build::tcp(HERE, SSH_OF_B, ACK).numbers(0x1000_2001, 0x7001).payload(5)
}

fn data_of_b() -> Build {
    from_b(Build::tcp(SSH_OF_B, HERE, ACK).numbers(0x7001, 0x1000_2001).payload(5))
}

#[test]
fn clients_may_talk_where_both_dom0_and_the_rules_of_the_sender_say_so() {
    for (words, rule, is_open) in [
        ("fw-allow=10.137.0.10>10.137.0.11", "action=accept", true),
        ("fw-allow=10.137.0.10>10.137.0.11/tcp", "action=accept", true),
        ("fw-allow=10.137.0.10>10.137.0.11/tcp/22", "action=accept dst4=10.137.0.11", true),
        ("fw-allow=10.137.0.10>10.137.0.11/tcp/23", "action=accept", false),
        ("fw-allow=10.137.0.10>10.137.0.11/udp", "action=accept", false),
        ("fw-allow=10.137.0.10>10.137.0.11/icmp", "action=accept", false),
        ("fw-allow=10.137.0.11>10.137.0.10", "action=accept", false),
        ("fw-allow=10.137.0.10>10.137.0.12", "action=accept", false),
        ("", "action=accept", false),
    ] {
        let mut kit = Kit::new().rules(A, &[rule]).rules(B, &["action=drop"]);
        kit.expose(words);
        let out = kit.a(&Build::tcp(HERE, SSH_OF_B, SYN));
        match is_open {
            true => drop(out.assert_sent(TO_B)),
            false => drop(out.assert_dropped(DropReason::ClientIsolation)),
        }
    }
    let mut kit = Kit::new().rules(A, &["action=accept dst4=10.137.0.12"]);
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    kit.a(&Build::tcp(HERE, SSH_OF_B, SYN)).assert_refused(ID_A, 3, 13);
    kit.set_rules(A, RulesState::None);
    kit.a(&Build::tcp(HERE, SSH_OF_B, SYN)).assert_dropped(DropReason::NoRules);
}

#[test]
fn replies_between_clients_need_neither_an_entry_nor_rules() {
    let mut kit = Kit::new();
    kit.set_rules(B, RulesState::None);
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    connect_to_b(&mut kit);
    kit.b(&data_of_b()).assert_sent(TO_A);
    kit.a(&data_of_a()).assert_sent(TO_B);
    let ping = Build::query(A, B, 8, 8);
    assert_eq!(kit.a(&ping).assert_sent(TO_B).icmp_id(), 8);
    kit.b(&from_b(Build::query(B, A, 0, 8))).assert_sent(TO_A);
    kit.a(&Build::udp((A, 1), (B, 2))).assert_sent(TO_B);
    kit.b(&from_b(Build::udp((B, 2), (A, 1)))).assert_sent(TO_A);
    // Anything else of B is none of these flows, a query with the numbers of A's included.
    for stranger in [
        Build::tcp(SSH_OF_B, (A, 40_001), SYN | ACK),
        Build::tcp((B, 23), HERE, ACK),
        Build::udp((B, 3), (A, 1)),
        Build::query(B, A, 8, 8),
        Build::query(B, A, 0, 9),
    ] {
        let out = kit.b(&from_b(stranger.clone()));
        assert_eq!(out.fate, Fate::Drop(DropReason::ClientIsolation), "{stranger:?}");
    }
    // An answer that was not asked for is no part of A's own flow either.
    kit.a(&Build::query(A, B, 0, 8)).assert_dropped(DropReason::NotAFirstPacket);
}

#[test]
fn the_source_between_clients_is_checked_as_everywhere() {
    let mut kit = Kit::new();
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    connect_to_b(&mut kit);
    let spoofed = data_of_b().with(|b| b.link.1 = MAC_A);
    kit.a(&spoofed).assert_dropped(DropReason::SourceSpoofed);
    let spoofed = from_b(data_of_a());
    kit.b(&spoofed).assert_dropped(DropReason::SourceSpoofed);
    kit.up(data_of_b()).assert_dropped(DropReason::SourceSpoofed);
    kit.up(Build::tcp((SERVER, 22), HERE, ACK)).assert_dropped(DropReason::NotOurAddress);
}

#[test]
fn windows_guard_connections_between_clients() {
    let mut kit = Kit::new();
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    connect_to_b(&mut kit);
    let blind = from_b(Build::tcp(SSH_OF_B, HERE, RST).numbers(0x7000_0000, 0));
    kit.b(&blind).assert_dropped(DropReason::TcpOutOfWindow);
    kit.b(&data_of_b()).assert_sent(TO_A);
}

#[test]
fn icmp_errors_between_clients_pass_both_ways() {
    let mut kit = Kit::new();
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    let question = Build::udp((A, 5000), (B, 53));
    let delivered = kit.a(&question).assert_sent(TO_B).packet().to_vec();
    let error = from_b(Build::error(B, A, 3, 3, &delivered));
    let out = kit.b(&error);
    assert_eq!((out.assert_sent(TO_A).icmp(), out.src()), (Some((3, 3)), B));
    assert_eq!(out.l4()[8..], delivered[..]);
    let reply = from_b(Build::udp((B, 53), (A, 5000)));
    let delivered = kit.b(&reply).assert_sent(TO_A).packet().to_vec();
    kit.a(&Build::error(A, B, 3, 3, &delivered)).assert_sent(TO_B);
    // Not about what the sender got, or about no flow.
    let about_others = Build::udp((A, 5000), (SERVER, 53)).packet();
    kit.a(&Build::udp((A, 5000), (SERVER, 53))).assert_sent(UPLINK);
    for about in [about_others, Build::udp((A, 5001), (B, 53)).packet()] {
        let error = from_b(Build::error(B, A, 3, 3, &about));
        kit.b(&error).assert_dropped(DropReason::ClientIsolation);
    }
    // The uplink cannot speak for a client.
    let about = question.packet();
    kit.up(Build::error(SERVER, OWN, 3, 3, &about)).assert_dropped(DropReason::IcmpErrorUnrelated);
}

#[test]
fn ttl_and_size_count_between_clients_too() {
    let mut kit = Kit::new();
    kit.expose("fw-allow=10.137.0.10>10.137.0.11");
    let question = Build::udp((A, 5000), (B, 53));
    kit.a(&question.clone().with(|b| b.ttl = 1)).assert_refused(ID_A, 11, 0);
    kit.a(&question.clone().payload(1500)).assert_refused(ID_A, 3, 4);
    assert_eq!(kit.a(&question).assert_sent(TO_B).packet()[8], 63);
}

#[test]
fn a_flow_between_clients_ends_with_its_entry_and_with_the_rules() {
    let mut kit = Kit::new();
    let words = "fw-allow=10.137.0.10>10.137.0.11/tcp/22";
    kit.expose(words);
    connect_to_b(&mut kit);
    kit.expose("");
    let reset = kit.a(&data_of_a());
    assert_eq!(reset.assert_sent(TO_A).l4()[13] & RST, RST);
    assert_eq!((reset.src(), reset.sport()), SSH_OF_B);
    kit.b(&data_of_b()).assert_dropped(DropReason::FlowForbidden);
    kit.a(&Build::tcp((A, 1), SSH_OF_B, SYN)).assert_dropped(DropReason::ClientIsolation);
    // Forbidden is not forgotten: with the entry it goes on, as with rules.
    kit.expose(words);
    kit.b(&data_of_b()).assert_sent(TO_A);
    kit.set_rules(A, rules(&["action=drop"]));
    assert_eq!(kit.a(&data_of_a()).assert_sent(TO_A).l4()[13] & RST, RST);
    kit.b(&data_of_b()).assert_dropped(DropReason::FlowForbidden);
    kit.set_rules(B, rules(&["action=drop"]));
    kit.set_rules(A, rules(&["action=accept dst4=10.137.0.11 proto=tcp dstports=22"]));
    kit.b(&data_of_b()).assert_sent(TO_A);
}

#[test]
fn a_flow_between_clients_ends_with_either_of_them() {
    for gone in [ID_A, ID_B] {
        let mut kit = Kit::new();
        kit.expose("fw-allow=10.137.0.10>10.137.0.11");
        connect_to_b(&mut kit);
        let flows = kit.fw.flow_count();
        kit.fw.detach_client(gone);
        assert_eq!((flows, kit.fw.flow_count()), (1, 0));
    }
}

#[test]
fn clients_do_not_pass_for_flows_of_the_uplink() {
    let mut kit = Kit::new();
    kit.expose("fw-allow=10.137.0.10>10.137.0.11 fw-forward=tcp/80>10.137.0.10/22");
    let port = kit.connect((A, 1000), (SERVER, 443));
    // B claims to be the far side, or the world that a port is forwarded to.
    kit.b(&from_b(Build::tcp((B, 443), (OWN, port), ACK))).assert_refused(ID_B, 3, 10);
    kit.b(&from_b(Build::tcp((B, 443), (A, 80), SYN))).assert_dropped(DropReason::ClientIsolation);
    connect_to_b(&mut kit);
    kit.wait(8000);
    // A's flow is over: what B sends in it opens nothing.
    let late = from_b(Build::tcp(SSH_OF_B, (A, 40_000), SYN));
    kit.b(&late).assert_dropped(DropReason::NoFlow);
}

/// The SYN of a stranger for `port` of our address.
fn knock(port: u16) -> Build {
    Build::tcp(REMOTE, (OWN, port), SYN).numbers(0x7000, 0)
}

/// A stranger connects to our port 8080, which is A's port 80.
fn visit(kit: &mut Kit) {
    let out = kit.up(knock(8080));
    assert_eq!((out.assert_sent(TO_A).src(), out.sport()), REMOTE);
    assert_eq!((out.dst(), out.dport(), &out.bytes[..6]), (A, 80, &MAC_A.0[..]));
    let out = kit.a(&Build::tcp((A, 80), REMOTE, SYN | ACK).numbers(0x1000, 0x7001));
    assert_eq!((out.assert_sent(UPLINK).src(), out.sport()), (OWN, 8080));
    assert_eq!((out.dst(), out.dport()), REMOTE);
    let ack = Build::tcp(REMOTE, (OWN, 8080), ACK).numbers(0x7001, 0x1001);
    kit.up(ack).assert_sent(TO_A);
    kit.a(&answer_of_a()).assert_sent(UPLINK);
}

fn answer_of_a() -> Build {
    Build::tcp((A, 80), REMOTE, ACK).numbers(0x1001, 0x7001).payload(3)
}

fn question_of_remote() -> Build {
    Build::tcp(REMOTE, (OWN, 8080), ACK).numbers(0x7001, 0x1001).payload(3)
}

const FORWARD: &str = "fw-forward=tcp/8080>10.137.0.10/80,udp/53>10.137.0.10";

#[test]
fn a_forwarded_port_reaches_its_client_whatever_the_rules() {
    for state in [RulesState::None, RulesState::Refused, rules(&["action=drop"])] {
        let mut kit = Kit::new();
        kit.set_rules(A, state);
        kit.up(knock(8080)).assert_dropped(DropReason::NoFlow);
        kit.expose(FORWARD);
        visit(&mut kit);
        let out = kit.up(Build::udp(REMOTE, (OWN, 53)));
        assert_eq!((out.assert_sent(TO_A).dst(), out.dport()), (A, 53));
        let out = kit.a(&Build::udp((A, 53), REMOTE));
        assert_eq!((out.assert_sent(UPLINK).src(), out.sport()), (OWN, 53));
        // Nothing else is open, in either direction.
        for closed in [knock(80), knock(8081), Build::udp(REMOTE, (OWN, 8080))] {
            kit.up(closed).assert_dropped(DropReason::NoFlow);
        }
        kit.up(Build::query(SERVER, OWN, 8, 1)).assert_dropped(DropReason::NoFlow);
        let own = kit.a(&Build::tcp((A, 81), REMOTE, SYN));
        assert!(own.fate != Fate::Send(UPLINK));
        assert!(kit.a(&Build::tcp((A, 80), (SERVER, 5556), SYN)).fate != Fate::Send(UPLINK));
    }
}

#[test]
fn only_a_syn_opens_a_forwarded_tcp_port() {
    let mut kit = Kit::new();
    kit.expose(FORWARD);
    for flags in [ACK, SYN | ACK, RST, FIN | ACK] {
        let stray = Build::tcp(REMOTE, (OWN, 8080), flags);
        kit.up(stray).assert_dropped(DropReason::NoFlow);
    }
    assert_eq!(kit.fw.flow_count(), 0);
    visit(&mut kit);
    let blind = Build::tcp(REMOTE, (OWN, 8080), RST).numbers(0x7000_0000, 0);
    kit.up(blind).assert_dropped(DropReason::TcpOutOfWindow);
    // Both have finished: the same port may connect again at once.
    kit.a(&Build::tcp((A, 80), REMOTE, FIN | ACK).numbers(0x1004, 0x7001)).assert_sent(UPLINK);
    let fin = Build::tcp(REMOTE, (OWN, 8080), FIN | ACK).numbers(0x7001, 0x1005);
    kit.up(fin).assert_sent(TO_A);
    kit.a(&Build::tcp((A, 80), REMOTE, ACK).numbers(0x1005, 0x7002)).assert_sent(UPLINK);
    kit.up(Build::tcp(REMOTE, (OWN, 8080), SYN).numbers(0x9000, 0)).assert_sent(TO_A);
}

#[test]
fn spoofed_sources_do_not_reach_a_forwarded_port() {
    let mut kit = Kit::new();
    kit.expose(FORWARD);
    for source in [A, B, ABSENT, OWN] {
        let spoofed = Build::tcp((source, 1), (OWN, 8080), SYN);
        kit.up(spoofed).assert_dropped(DropReason::SourceSpoofed);
    }
    let elsewhere = Build::tcp(REMOTE, (A, 80), SYN);
    kit.up(elsewhere).assert_dropped(DropReason::NotOurAddress);
}

#[test]
fn a_forwarded_port_is_open_only_while_its_client_is_attached() {
    let mut kit = Kit::new();
    kit.expose(FORWARD);
    visit(&mut kit);
    kit.fw.detach_client(ID_A);
    kit.up(question_of_remote()).assert_dropped(DropReason::NoFlow);
    kit.up(knock(8080)).assert_dropped(DropReason::NoFlow);
    kit.fw.attach_client(ID_A, vif(20, MAC_A, A)).unwrap();
    kit.up(question_of_remote()).assert_dropped(DropReason::NoFlow);
    visit(&mut kit);
}

#[test]
fn forwarded_flows_end_with_their_entry() {
    for words in ["", "fw-forward=tcp/8080>10.137.0.10/81", "fw-forward=tcp/8080>10.137.0.11/80"] {
        let mut kit = Kit::new();
        kit.expose(FORWARD);
        visit(&mut kit);
        kit.expose(words);
        kit.up(question_of_remote()).assert_dropped(DropReason::FlowForbidden);
        let reset = kit.a(&answer_of_a());
        assert_eq!(reset.assert_sent(TO_A).l4()[13] & RST, RST, "{words}");
        // The other client's, or the port of none.
        let other = Build::tcp((SERVER, 5556), (OWN, 8080), SYN);
        assert_eq!(matches!(kit.up(other).fate, Fate::Drop(_)), words.is_empty());
    }
}

#[test]
fn rule_edits_do_not_touch_forwarded_flows() {
    let mut kit = Kit::new();
    kit.expose(FORWARD);
    visit(&mut kit);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.up(question_of_remote()).assert_sent(TO_A);
    kit.a(&answer_of_a()).assert_sent(UPLINK);
}

#[test]
fn a_forwarded_port_is_never_the_mapping_of_a_client() {
    let mut kit = Kit::new();
    // B has the port when it is forwarded to A: B's flows from there end, and get another port.
    let b_port = kit.connect((B, 8080), (SERVER, 443));
    assert_eq!(b_port, 8080);
    kit.expose(FORWARD);
    assert_eq!(kit.fw.flow_count(), 0);
    let data = Build::tcp((SERVER, 443), (OWN, 8080), ACK).numbers(0x7001, 0x1000_2001);
    kit.up(data).assert_dropped(DropReason::NoFlow);
    assert_ne!(kit.connect((B, 8080), (SERVER, 443)), 8080);
    visit(&mut kit);
    // UDP has ports of its own.
    assert_eq!(kit.b(&from_b(Build::udp((B, 8080), REMOTE))).assert_sent(UPLINK).sport(), 8080);
    kit.expose("");
    kit.fw.detach_client(ID_B);
    kit.fw.attach_client(ID_B, vif(21, MAC_B, B)).unwrap();
    assert_eq!(kit.connect((B, 8080), (OTHER_SERVER, 443)), 8080);
}

#[test]
fn u8_a_client_that_sends_to_a_forwarded_port_is_told_no() {
    let mut kit = Kit::new();
    kit.expose("fw-forward=tcp/8080>10.137.0.10/80,udp/53>10.137.0.10");
    for (id, from) in [(ID_A, A), (ID_B, B)] {
        for build in [Build::tcp((from, 1), (OWN, 8080), SYN), Build::udp((from, 1), (OWN, 53))] {
            kit.send(Origin::Client(id), &build).assert_refused(id, 3, 10);
        }
    }
    assert_eq!(kit.fw.flow_count(), 0);
}

#[test]
fn i5_errors_about_forwarded_packets_come_from_our_address() {
    let mut kit = Kit::new();
    kit.expose(FORWARD);
    // traceroute: the hop that we are, then the client itself.
    let probe = Build::udp(REMOTE, (OWN, 53));
    let out = kit.up(probe.clone().with(|b| b.ttl = 1));
    assert_eq!((out.assert_sent(UPLINK).icmp(), out.src()), (Some((11, 0)), OWN));
    let delivered = kit.up(probe.clone()).assert_sent(TO_A).packet().to_vec();
    let out = kit.a(&Build::error(A, SERVER, 3, 3, &delivered));
    assert_eq!((out.assert_sent(UPLINK).icmp(), out.src()), (Some((3, 3)), OWN));
    assert_eq!(out.dst(), SERVER);
    // What was sent, but for the TTL that the quote has lost on its way.
    let quoted = Build::udp(REMOTE, (OWN, 53)).with(|b| b.ttl = 63).packet();
    assert_eq!(out.l4()[8..], quoted[..]);
    // An error from outside about the client's answer.
    let answer = kit.a(&Build::udp((A, 53), REMOTE)).assert_sent(UPLINK).packet().to_vec();
    let out = kit.up(Build::error(OTHER_SERVER, OWN, 11, 0, &answer));
    assert_eq!((out.assert_sent(TO_A).src(), out.dst()), (OTHER_SERVER, A));
    assert_eq!(u16::from_be_bytes([out.l4()[28], out.l4()[29]]), 53);
}

#[test]
fn a_flood_to_a_forwarded_port_costs_its_client_alone() {
    let mut kit = Kit::new();
    kit.expose(FORWARD);
    let port_of_b = kit.connect((B, 1000), (SERVER, 443));
    visit(&mut kit);
    for port in 1..1000 {
        kit.up(Build::udp((OTHER_SERVER, port), (OWN, 53))).assert_sent(TO_A);
        kit.up(Build::tcp((OTHER_SERVER, port), (OWN, 8080), SYN)).assert_sent(TO_A);
    }
    assert_eq!(kit.fw.flows_of(A.into()), LIMITS.flows_per_client as usize);
    kit.up(question_of_remote()).assert_sent(TO_A);
    let data = Build::tcp((SERVER, 443), (OWN, port_of_b), ACK).numbers(0x7001, 0x1000_2001);
    kit.up(data).assert_sent(TO_B);
    kit.b(&from_b(Build::udp((B, 2), REMOTE))).assert_sent(UPLINK);
}

#[test]
fn u7_a_client_can_have_its_mappings_filtered_by_address_only() {
    let mut kit = Kit::new();
    kit.expose("fw-filtering-by-address=10.137.0.10");
    let port = kit.a(&Build::udp((A, 5000), REMOTE)).assert_sent(UPLINK).sport();
    let out = kit.up(Build::udp((SERVER, 7777), (OWN, port)));
    assert_eq!((out.assert_sent(TO_A).dst(), out.dport(), out.sport()), (A, 5000, 7777));
    let answer = kit.a(&Build::udp((A, 5000), (SERVER, 7777)));
    assert_eq!(answer.assert_sent(UPLINK).sport(), port);
    // Another address, another port of ours, another protocol.
    for (from, to) in [((OTHER_SERVER, 5555), port), ((SERVER, 7778), port ^ 1)] {
        kit.up(Build::udp(from, (OWN, to))).assert_dropped(DropReason::NoFlow);
    }
    kit.up(Build::tcp((SERVER, 7778), (OWN, port), SYN)).assert_dropped(DropReason::NoFlow);
    // TCP likewise.
    let port = kit.connect((A, 6000), REMOTE);
    kit.up(Build::tcp((SERVER, 7777), (OWN, port), ACK)).assert_dropped(DropReason::NoFlow);
    kit.up(Build::tcp((SERVER, 7777), (OWN, port), SYN)).assert_sent(TO_A);
    let syn_ack = Build::tcp((A, 6000), (SERVER, 7777), SYN | ACK);
    assert_eq!(kit.a(&syn_ack).assert_sent(UPLINK).sport(), port);
    // B was not named.
    let port = kit.b(&from_b(Build::udp((B, 5001), REMOTE))).assert_sent(UPLINK).sport();
    kit.up(Build::udp((SERVER, 7777), (OWN, port))).assert_dropped(DropReason::NoFlow);
}

#[test]
fn filtering_by_address_lasts_as_long_as_a_flow_the_word_and_the_rules() {
    let mut kit = Kit::new();
    let word = "fw-filtering-by-address=10.137.0.10";
    kit.expose(word);
    let port = kit.a(&Build::udp((A, 5000), REMOTE)).assert_sent(UPLINK).sport();
    kit.expose("");
    kit.up(Build::udp((SERVER, 7777), (OWN, port))).assert_dropped(DropReason::NoFlow);
    kit.expose(word);
    // The rules of the client are asked as if it had opened the flow.
    kit.set_rules(A, rules(&["action=accept proto=udp dstports=5555-7777"]));
    kit.up(Build::udp((SERVER, 7778), (OWN, port))).assert_dropped(DropReason::RuleRejected);
    kit.up(Build::udp((SERVER, 7777), (OWN, port))).assert_sent(TO_A);
    kit.set_rules(A, rules(&["action=accept proto=udp dstports=5555-5555"]));
    kit.up(Build::udp((SERVER, 7777), (OWN, port))).assert_dropped(DropReason::FlowForbidden);
    kit.wait(301);
    kit.fw.on_timer(kit.now);
    kit.set_rules(A, rules(&["action=accept"]));
    kit.up(Build::udp((SERVER, 7777), (OWN, port))).assert_dropped(DropReason::NoFlow);
    // DNS that was redirected stays filtered by port.
    let port = kit.a(&Build::udp((A, 5001), (CLIENT_DNS[0], 53))).assert_sent(UPLINK).sport();
    kit.up(Build::udp((OWN_DNS[0], 54), (OWN, port))).assert_dropped(DropReason::NoFlow);
    kit.up(Build::udp((OWN_DNS[0], 53), (OWN, port))).assert_sent(TO_A);
}
