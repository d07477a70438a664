//! Host names in rules, packet in and packet out, with a DNS server that follows a script.

use core::net::Ipv4Addr;

use crate::dns::testing::{Asked, Reply, wire};
use crate::testing::*;
use crate::*;

const NAME: &str = "www.example.org";
/// The other address of the name.
const TWIN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 6);
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
const TO_A: PortId = PortId::Client(ID_A);

/// A client whose rules these are, and a server that knows the name.
fn kit(lines: &[&str]) -> Kit {
    let mut kit = Kit::new().rules(A, lines);
    kit.serve_dns(&[(NAME, &[SERVER, TWIN])]);
    kit
}

fn syn(to: Ipv4Addr, port: u16) -> Build {
    Build::tcp((A, 40_000), (to, port), SYN)
}

fn data(to: Ipv4Addr) -> Build {
    Build::tcp((A, 40_000), (to, 443), ACK).numbers(0x1000_2001, 0x7001).payload(10)
}

/// An answer that a client gets to a question of its own.
fn client_reply(name: &str, address: Ipv4Addr) -> Vec<u8> {
    let question = [wire(name), vec![0, 1, 0, 1]].concat();
    let asked = Asked { server: OWN_DNS[0].into(), port: 0, id: 77, question };
    Reply::to(&asked).a(60, address).bytes()
}

#[test]
fn v69_v70_a_name_stands_for_its_addresses() {
    let mut kit = kit(&["action=accept dsthost=www.example.org"]);
    kit.a(&syn(SERVER, 443)).assert_sent(PortId::Uplink);
    kit.a(&syn(TWIN, 443)).assert_sent(PortId::Uplink);
    kit.a(&syn(STRANGER, 443)).assert_refused(ID_A, 3, 13);
}

#[test]
fn v71_a_name_that_does_not_exist_disturbs_no_other_rule() {
    let mut kit = kit(&["action=accept", "action=accept dsthost=nx.example.org"]);
    kit.a(&syn(SERVER, 443)).assert_sent(PortId::Uplink);
    let mut kit = self::kit(&["action=drop dsthost=nx.example.org", "action=accept"]);
    kit.a(&syn(SERVER, 443)).assert_sent(PortId::Uplink);
}

#[test]
fn v72_a_name_without_addresses_of_the_family_matches_nothing() {
    let mut kit = Kit::new().rules(A, &["action=accept dsthost=v6only.example.org"]);
    kit.serve_dns(&[("v6only.example.org", &[])]);
    kit.a(&syn(SERVER, 443)).assert_refused(ID_A, 3, 13);
    kit.set_rules(A, rules(&["action=drop dsthost=v6only.example.org", "action=accept"]));
    kit.a(&syn(SERVER, 443)).assert_sent(PortId::Uplink);
}

#[test]
fn v73_all_predicates_must_hold() {
    let mut kit = kit(&["action=accept dsthost=www.example.org proto=tcp dstports=80-80"]);
    kit.a(&syn(SERVER, 443)).assert_refused(ID_A, 3, 13);
    kit.a(&syn(SERVER, 80)).assert_sent(PortId::Uplink);
}

#[test]
fn an_unresolved_name_accepts_nothing_and_lets_nothing_past_a_drop() {
    let before = |lines: &[&str]| Kit::new().rules(A, lines);
    let mut kit = before(&["action=accept dsthost=www.example.org", "action=accept proto=udp"]);
    kit.a(&syn(SERVER, 443)).assert_refused(ID_A, 3, 13);
    kit.a(&Build::udp((A, 1), (SERVER, 9999))).assert_sent(PortId::Uplink);
    let mut kit = before(&[
        "action=accept proto=udp",
        "action=drop dsthost=www.example.org",
        "action=accept",
    ]);
    let counters = kit.counters();
    kit.a(&Build::udp((A, 1), (SERVER, 9999))).assert_sent(PortId::Uplink);
    kit.a(&syn(STRANGER, 443)).assert_refused(ID_A, 3, 13);
    assert!(kit.moved(&counters).contains(&("a/drop:name-unresolved".into(), 1)));
    kit.serve_dns(&[(NAME, &[SERVER])]);
    kit.a(&syn(STRANGER, 443)).assert_sent(PortId::Uplink);
    kit.a(&syn(SERVER, 443)).assert_refused(ID_A, 3, 13);
}

#[test]
fn without_an_uplink_names_wait_and_with_it_they_are_asked() {
    let mut kit = Kit::new();
    kit.fw.set_uplink(kit.now, None);
    kit.set_rules(A, rules(&["action=accept dsthost=www.example.org"]));
    assert!(kit.try_asked().is_none());
    kit.wait(100);
    assert!(kit.try_asked().is_none());
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps: CAPS }));
    kit.serve_dns(&[(NAME, &[SERVER])]);
    kit.a(&syn(SERVER, 443)).assert_sent(PortId::Uplink);
}

#[test]
fn questions_have_ports_that_no_client_gets_and_are_counted_apart() {
    let mut kit = Kit::new();
    let counters = kit.counters();
    kit.set_rules(A, rules(&["action=accept dsthost=www.example.org", "action=accept"]));
    let asked = kit.asked();
    let out = kit.a(&Build::udp((A, asked.port), (SERVER, 9999)));
    assert_ne!(out.assert_sent(PortId::Uplink).sport(), asked.port);
    let reply = Reply::to(&asked).a(60, SERVER).bytes();
    // Another address, another port there, another port here, and a wrong checksum.
    kit.dns(SERVER.into(), asked.port, &reply).assert_dropped(DropReason::NoFlow);
    kit.dns(OWN_DNS[1].into(), asked.port, &reply).assert_dropped(DropReason::DnsAnswer);
    kit.dns(asked.server, asked.port ^ 1, &reply).assert_dropped(DropReason::NoFlow);
    assert_eq!(kit.dns(asked.server, asked.port, &reply).fate, Fate::Consumed);
    let moved = kit.moved(&counters);
    assert!(moved.contains(&("uplink/resolver-packets".into(), 1)), "{moved:?}");
    assert!(moved.contains(&("uplink/resolver-answers".into(), 1)), "{moved:?}");
    kit.a(&syn(SERVER, 443)).assert_sent(PortId::Uplink);
    // The port is free again.
    let out = kit.a(&Build::udp((A, asked.port), (STRANGER, 9999)));
    out.assert_sent(PortId::Uplink);
}

#[test]
fn an_answer_with_a_wrong_checksum_is_nobodys() {
    let mut kit = Kit::new().rules(A, &["action=accept dsthost=www.example.org"]);
    let asked = kit.asked();
    let reply = Reply::to(&asked).a(60, SERVER).bytes();
    let mut l4 = [53, asked.port, (8 + reply.len()) as u16, 0].map(u16::to_be_bytes).concat();
    l4.extend(reply);
    let good = Build::raw(OWN_DNS[0], OWN, 17, l4).checksummed(6);
    let bad = good.clone().with(|b| *b.l4.last_mut().unwrap() ^= 1);
    kit.up(bad).assert_dropped(DropReason::NoFlow);
    // A checksum that the backend left to us, and none at all, are as good as a right one.
    assert_eq!(kit.up(good.blank()).fate, Fate::Consumed);
    kit.a(&syn(SERVER, 443)).assert_sent(PortId::Uplink);
}

#[test]
fn a_flow_keeps_its_address_when_the_name_changes() {
    let mut kit = kit(&["action=accept dsthost=www.example.org"]);
    let port = kit.connect((A, 40_000), (SERVER, 443));
    kit.wait(45);
    kit.serve_dns(&[(NAME, &[STRANGER])]);
    kit.wait(45);
    kit.serve_dns(&[(NAME, &[STRANGER])]);
    // The flow goes on, a new one to the old address is refused, to the new address accepted.
    kit.a(&data(SERVER)).assert_sent(PortId::Uplink);
    let other = Build::tcp((A, 40_001), (SERVER, 443), SYN);
    kit.a(&other).assert_refused(ID_A, 3, 13);
    kit.a(&Build::tcp((A, 40_001), (STRANGER, 443), SYN)).assert_sent(PortId::Uplink);
    let up = || Build::tcp((SERVER, 443), (OWN, port), ACK).numbers(0x7001, 0x1000_200b);
    // An edit that keeps the rule keeps the flow, wherever the rule stands and whatever else it says now.
    for lines in [
        &["action=drop proto=udp", "action=accept dsthost=www.example.org"][..],
        &["action=accept dsthost=www.example.org proto=tcp dstports=400-500"],
        &["action=accept dsthost=b.example.org", "action=accept dsthost=www.example.org"],
    ] {
        kit.set_rules(A, rules(lines));
        kit.up(up()).assert_sent(TO_A);
        kit.a(&other).assert_refused(ID_A, 3, 13);
    }
}

#[test]
fn a_flow_ends_when_its_rule_goes_or_is_narrowed_or_another_comes_before() {
    for lines in [
        &["action=accept proto=udp"][..],
        &["action=accept dsthost=b.example.org"],
        &["action=accept dsthost=www.example.org proto=tcp dstports=80-80"],
        &["action=accept dsthost=www.example.org proto=udp"],
        &["action=drop dst4=198.51.100.7", "action=accept dsthost=www.example.org"],
        &["action=drop dsthost=www.example.org", "action=accept dsthost=www.example.org"],
    ] {
        let mut kit = kit(&["action=accept dsthost=www.example.org"]);
        let port = kit.connect((A, 40_000), (SERVER, 443));
        // The name no longer has the address: nothing but the flow itself does.
        kit.wait(45);
        kit.serve_dns(&[(NAME, &[STRANGER])]);
        kit.wait(30);
        kit.set_rules(A, rules(lines));
        let up = Build::tcp((SERVER, 443), (OWN, port), ACK).numbers(0x7001, 0x1000_2001);
        kit.up(up).assert_dropped(DropReason::FlowForbidden);
        let reset = kit.a(&data(SERVER));
        assert_eq!(reset.assert_sent(TO_A).l4()[13], RST, "{lines:?}");
    }
}

#[test]
fn answers_that_a_client_gets_feed_its_own_rules() {
    let name_or_dns = ["action=accept dsthost=www.example.org", "action=accept specialtarget=dns"];
    let mut kit = kit(&name_or_dns).rules(B, &name_or_dns);
    kit.a(&syn(STRANGER, 443)).assert_refused(ID_A, 3, 13);
    let question = Build::udp((A, 5353), (CLIENT_DNS[0], 53));
    let port = kit.a(&question).assert_sent(PortId::Uplink).sport();
    let reply = client_reply(NAME, STRANGER);
    let out = kit.dns(OWN_DNS[0].into(), port, &reply);
    assert_eq!((out.assert_sent(TO_A).src(), out.l4()[8..].to_vec()), (CLIENT_DNS[0], reply));
    kit.a(&syn(STRANGER, 443)).assert_sent(PortId::Uplink);
    kit.b(&Build::tcp((B, 40_000), (STRANGER, 443), SYN)).assert_refused(ID_B, 3, 13);
}

/// What a client learned is one address of the name. Others may still be: the drop rule refuses all that reaches it.
#[test]
fn one_learned_address_does_not_open_a_drop_rule_whose_name_is_not_known() {
    let mut kit = Kit::new().rules(
        A,
        &[
            "action=accept specialtarget=dns",
            "action=drop dsthost=www.example.org proto=tcp",
            "action=accept",
        ],
    );
    let question = Build::udp((A, 5353), (CLIENT_DNS[0], 53));
    let port = kit.a(&question).assert_sent(PortId::Uplink).sport();
    kit.dns(OWN_DNS[0].into(), port, &client_reply(NAME, STRANGER)).assert_sent(TO_A);
    for _ in 0..2 {
        let counters = kit.counters();
        // To the learned address the rule applies, or not; both are known.
        kit.a(&syn(STRANGER, 443)).assert_refused(ID_A, 3, 13);
        kit.a(&Build::udp((A, 5), (STRANGER, 9))).assert_sent(PortId::Uplink);
        assert!(kit.moved(&counters).contains(&("a/drop:rule-rejected".into(), 1)));
        kit.wait(1);
        kit.a(&syn(SERVER, 443)).assert_refused(ID_A, 3, 13);
        assert!(kit.moved(&counters).contains(&("a/drop:name-unresolved".into(), 1)));
        kit.wait(1);
    }
}

/// The same where a flow alone keeps the address: judging it again must not open the rest.
#[test]
fn a_kept_address_does_not_open_a_drop_rule_whose_name_is_not_known() {
    let mut kit = kit(&["action=accept dsthost=www.example.org"]);
    kit.connect((A, 40_000), (SERVER, 443));
    // Long enough that the answer counts no more, while the flow lives.
    kit.wait(3700);
    kit.fw.on_timer(kit.now);
    let lines = ["action=drop dsthost=www.example.org proto=udp", "action=accept"];
    kit.set_rules(A, rules(&lines));
    for _ in 0..2 {
        kit.a(&data(SERVER)).assert_sent(PortId::Uplink);
        let counters = kit.counters();
        kit.a(&Build::tcp((A, 40_001), (STRANGER, 443), SYN)).assert_refused(ID_A, 3, 13);
        assert!(kit.moved(&counters).contains(&("a/drop:name-unresolved".into(), 1)));
        kit.wait(1);
    }
}

#[test]
fn nothing_else_feeds_them() {
    let lines = ["action=accept dsthost=www.example.org", "action=accept proto=udp"];
    let mut kit = kit(&lines);
    let reply = client_reply(NAME, STRANGER);
    let check = |kit: &mut Kit| {
        kit.a(&Build::tcp((A, 40_000), (STRANGER, 443), SYN)).assert_refused(ID_A, 3, 13);
    };
    // No flow.
    kit.dns(OWN_DNS[0].into(), 5353, &reply).assert_dropped(DropReason::NoFlow);
    check(&mut kit);
    // Another server than those of QubesDB.
    let port = kit.a(&Build::udp((A, 5353), (OTHER_SERVER, 53))).sport();
    kit.dns(OTHER_SERVER.into(), port, &reply).assert_sent(TO_A);
    check(&mut kit);
    // Another port of such a server.
    let port = kit.a(&Build::udp((A, 5354), (OWN_DNS[0], 99))).sport();
    let mut l4 = [99, port, (8 + reply.len()) as u16, 0].map(u16::to_be_bytes).concat();
    l4.extend(&reply);
    kit.up(Build::raw(OWN_DNS[0], OWN, 17, l4).checksummed(6)).assert_sent(TO_A);
    check(&mut kit);
    // A message of the client itself, to the server and to itself.
    let mut l4 = [53, 53, (8 + reply.len()) as u16, 0].map(u16::to_be_bytes).concat();
    l4.extend(&reply);
    kit.a(&Build::raw(A, CLIENT_DNS[0], 17, l4).checksummed(6)).assert_sent(PortId::Uplink);
    check(&mut kit);
    // A name that no rule has.
    let port = kit.a(&Build::udp((A, 5355), (CLIENT_DNS[0], 53))).sport();
    kit.dns(OWN_DNS[0].into(), port, &client_reply("b.example.org", STRANGER)).assert_sent(TO_A);
    check(&mut kit);
    kit.dns(OWN_DNS[0].into(), port, &client_reply(NAME, STRANGER)).assert_sent(TO_A);
    kit.a(&Build::tcp((A, 40_000), (STRANGER, 443), SYN)).assert_sent(PortId::Uplink);
}

#[test]
fn what_cannot_be_resolved_is_told_with_its_client() {
    let mut kit = Kit::new().rules(A, &["action=accept dsthost=www.example.org"]);
    for _ in 0..4 {
        let asked = kit.asked();
        kit.dns(asked.server, asked.port, &Reply::to(&asked).rcode(2).bytes());
    }
    let problem = kit.fw.take_name_problem().unwrap();
    assert_eq!((problem.client, problem.port, problem.name.as_str()), (A.into(), Some(ID_A), NAME));
    assert_eq!(problem.problem, dns::Problem::ServerFailure);
    assert_eq!(kit.fw.take_name_problem(), None);
}

#[test]
fn a_port_that_is_to_be_forwarded_is_taken_from_a_question() {
    use core::num::NonZeroU16;

    use crate::exposure::{Exposure, Forward, Transport};

    let mut kit = Kit::new().rules(A, &["action=accept dsthost=www.example.org"]);
    let asked = kit.asked();
    let port = NonZeroU16::new(asked.port).unwrap();
    let forward = Forward { transport: Transport::Udp, port, client: A.into(), client_port: port };
    kit.fw.set_exposure(Exposure { forward: vec![forward], ..Exposure::default() });
    kit.up(Build::udp((OTHER_SERVER, 9), (OWN, asked.port))).assert_sent(TO_A);
    let again = kit.asked();
    assert_ne!(again.port, asked.port);
    assert!(kit.fw.take_name_problem().is_none());
}

mod v6 {
    use core::net::{IpAddr, Ipv6Addr};

    use super::{NAME, TO_A};
    use crate::dns::testing::{AAAA, Asked, Reply, TO_QUESTION, record, wire};
    use crate::testing::v6::*;
    use crate::testing::*;
    use crate::*;

    const ANY: Ipv6Addr = OTHER_SERVER6;

    fn aaaa(asked: &Asked, address: Ipv6Addr) -> Vec<u8> {
        Reply::to(asked).answer(record(TO_QUESTION, AAAA, 60, &address.octets())).bytes()
    }

    /// A client whose IPv6 rules these are, and a server that knows the name.
    fn kit(lines: &[&str]) -> Kit {
        let mut kit = Kit::new6().rules6(A6, lines);
        let asked = kit.asked();
        assert_eq!(asked.kind(), AAAA);
        let reply = aaaa(&asked, SERVER6);
        assert_eq!(kit.dns(asked.server, asked.port, &reply).fate, Fate::Consumed);
        kit
    }

    fn syn(to: Ipv6Addr) -> Build6 {
        Build6::tcp((A6, 40_000), (to, 443), SYN)
    }

    #[test]
    fn a_name_stands_for_its_addresses_of_the_family() {
        let mut kit = kit(&["action=accept dsthost=www.example.org"]);
        kit.a6(&syn(SERVER6)).assert_sent(PortId::Uplink);
        kit.a6(&syn(ANY)).assert_refused(ID_A, 1, 1);
        // The IPv4 tree has no such name.
        let before = kit.counters();
        kit.set_rules(A, rules(&["action=accept dsthost=www.example.org"]));
        kit.a(&Build::tcp((A, 1), (SERVER, 443), SYN)).assert_refused(ID_A, 3, 13);
        assert!(kit.moved(&before).contains(&("a/drop:rule-rejected".into(), 1)));
        assert_eq!(kit.asked().kind(), 1);
    }

    #[test]
    fn a_flow_keeps_its_address_when_the_name_changes() {
        let mut kit = kit(&["action=accept dsthost=www.example.org"]);
        let port = kit.connect6((A6, 40_000), (SERVER6, 443));
        for _ in 0..2 {
            kit.wait(45);
            let asked = kit.asked();
            let reply = aaaa(&asked, ANY);
            kit.dns(asked.server, asked.port, &reply);
        }
        kit.set_rules6(A6, rules6(&["action=accept dsthost=www.example.org proto=tcp"]));
        let up = || Build6::tcp((SERVER6, 443), (OWN6, port), ACK).numbers(0x7001, 0x1000_2001);
        kit.up6(up()).assert_sent(TO_A);
        kit.a6(&Build6::tcp((A6, 40_001), (SERVER6, 443), SYN)).assert_refused(ID_A, 1, 1);
        kit.set_rules6(A6, rules6(&["action=accept dsthost=www.example.org proto=udp"]));
        kit.up6(up()).assert_dropped(DropReason::FlowForbidden);
    }

    /// The question of a client, by either family, is about the tree of the family that it asks for.
    #[test]
    fn answers_that_a_client_gets_feed_the_tree_of_the_addresses_in_them() {
        let lines = ["action=accept dsthost=www.example.org", "action=accept proto=udp"];
        let question = [wire(NAME), vec![0, 28, 0, 1]].concat();
        let asked = Asked { server: OWN_DNS[0].into(), port: 0, id: 9, question };
        let message = aaaa(&asked, ANY);

        let mut by_v4 = kit(&lines);
        let query = Build::udp((A, 5353), (CLIENT_DNS[0], 53));
        by_v4.set_rules(A, rules(&["action=accept"]));
        let port = by_v4.a(&query).assert_sent(PortId::Uplink).sport();
        by_v4.dns(OWN_DNS[0].into(), port, &message).assert_sent(TO_A);
        by_v4.a6(&syn(ANY)).assert_sent(PortId::Uplink);

        let mut by_v6 = kit(&lines);
        by_v6.a6(&syn(ANY)).assert_refused(ID_A, 1, 1);
        let query = Build6::udp((A6, 5353), (CLIENT_DNS6, 53));
        let port = by_v6.a6(&query).assert_sent(PortId::Uplink).bytes[54..56].to_vec();
        let port = u16::from_be_bytes([port[0], port[1]]);
        by_v6.up6(datagram(OWN_DNS6, port, &message)).assert_sent(TO_A);
        by_v6.a6(&syn(ANY)).assert_sent(PortId::Uplink);
    }

    #[test]
    fn a_server_of_the_other_family_is_asked_as_well() {
        let mut kit = Kit::new6().rules6(A6, &["action=accept dsthost=www.example.org"]);
        for _ in 0..2 {
            let asked = kit.asked();
            kit.dns(asked.server, asked.port, &Reply::to(&asked).rcode(2).bytes());
        }
        let mut frames = core::iter::from_fn(|| kit.generated());
        let is_udp = |frame: &Vec<u8>| frame[12..14] == [0x86, 0xdd] && frame[20] == 17;
        let (port, frame) = frames.find(|(_, frame)| is_udp(frame)).unwrap();
        let out = Out { fate: Fate::Send(port), bytes: frame, offload: Offload::default() };
        out.assert_sums6();
        assert_eq!(out.ends6(), (OWN6, OWN_DNS6));
        let udp = &out.bytes[54..];
        let number = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        assert_eq!(number(2), 53);
        let server = IpAddr::from(OWN_DNS6);
        let asked = Asked { server, port: number(0), id: number(8), question: udp[20..].to_vec() };
        let answer = datagram(OWN_DNS6, asked.port, &aaaa(&asked, SERVER6));
        let unchecked = answer.clone().with(|b| b.l4[6..8].fill(0));
        kit.up6(unchecked).assert_dropped(DropReason::TransportHeader);
        assert_eq!(kit.up6(answer).fate, Fate::Consumed);
        kit.a6(&syn(SERVER6)).assert_sent(PortId::Uplink);
    }

    /// From a server's DNS port to ours.
    fn datagram(from: Ipv6Addr, port: u16, message: &[u8]) -> Build6 {
        let mut l4 = [53, port, (8 + message.len()) as u16, 0].map(u16::to_be_bytes).concat();
        l4.extend(message);
        Build6::raw(from, OWN6, 17, l4).checksummed()
    }
}
