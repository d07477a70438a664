//! Rule changes while flows run.

use core::net::Ipv4Addr;

use crate::testing::*;
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const SSH: (Ipv4Addr, u16) = (SERVER, 22);
const HERE: (Ipv4Addr, u16) = (A, 40_000);
const TO_A: PortId = PortId::Client(ID_A);

fn up_data(to: u16) -> Build {
    Build::tcp(WEB, (OWN, to), ACK).numbers(0x7001, 0x1000_2001).payload(10)
}

fn client_data() -> Build {
    Build::tcp(HERE, WEB, ACK).numbers(0x1000_2001, 0x7001).payload(10)
}

#[test]
fn q3_packets_before_the_rules_are_dropped_and_the_first_rules_open() {
    let mut kit = Kit::with_limits(LIMITS);
    let syn = Build::tcp(HERE, WEB, SYN);
    kit.a(&syn).assert_dropped(DropReason::NoRules);
    kit.a(&syn.clone().with(|b| b.ttl = 1)).assert_dropped(DropReason::NoRules);
    kit.set_rules(A, rules(&["action=accept"]));
    kit.a(&syn).assert_sent(PortId::Uplink);
}

#[test]
fn q3_rules_may_come_before_the_client() {
    let mut kit = Kit::new();
    kit.fw.detach_client(ID_A);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.fw.attach_client(ID_A, vif(20, MAC_A, A)).unwrap();
    kit.a(&Build::tcp(HERE, WEB, SYN)).assert_refused(ID_A, 3, 13);
}

#[test]
fn q4_a_commit_takes_effect_between_two_packets() {
    let mut kit = Kit::new();
    for round in 0..10 {
        kit.set_rules(A, rules(&["action=drop"]));
        kit.a(&Build::udp((A, 100 + round), WEB)).assert_refused(ID_A, 3, 13);
        kit.set_rules(A, rules(&["action=accept"]));
        kit.a(&Build::udp((A, 100 + round), WEB)).assert_sent(PortId::Uplink);
    }
}

#[test]
fn q4_allowed_flows_go_on_and_forbidden_ones_end() {
    let mut kit = Kit::new();
    let web = kit.connect(HERE, WEB);
    kit.connect((A, 40_001), SSH);
    kit.set_rules(A, rules(&["action=accept proto=tcp dstports=443-443"]));
    kit.a(&client_data()).assert_sent(PortId::Uplink);
    kit.up(up_data(web)).assert_sent(TO_A);
    let ssh = Build::tcp((A, 40_001), SSH, ACK).numbers(0x1000_2001, 0x7001);
    kit.a(&ssh).assert_sent(TO_A);
}

#[test]
fn a_forbidden_connection_is_reset_with_the_number_that_the_client_waits_for() {
    let mut kit = Kit::new();
    let port = kit.connect(HERE, WEB);
    kit.set_rules(A, rules(&["action=drop"]));
    // The far side first: silence, and nothing is sent to it.
    kit.up(up_data(port)).assert_dropped(DropReason::FlowForbidden);
    let reset = kit.a(&client_data());
    reset.assert_sent(TO_A);
    let expected = Build::tcp(WEB, HERE, RST).numbers(0x7001, 0).with(|b| {
        b.l4[14..16].fill(0);
        (b.link, b.id) = ((MAC_A, Mac::GATEWAY), 0);
    });
    assert_eq!(reset.bytes, expected.checksummed(16).frame());
    assert_eq!(reset.offload.checksum, Checksum::Validated);
    kit.up(up_data(port)).assert_dropped(DropReason::FlowForbidden);
    // A new connection from the same port is a new question.
    kit.a(&Build::tcp(HERE, WEB, SYN)).assert_refused(ID_A, 3, 13);
}

#[test]
fn a_forbidden_flow_that_is_allowed_again_goes_on() {
    let mut kit = Kit::new();
    let port = kit.connect(HERE, WEB);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.up(up_data(port)).assert_dropped(DropReason::FlowForbidden);
    kit.set_rules(A, rules(&["action=accept"]));
    kit.up(up_data(port)).assert_sent(TO_A);
    kit.a(&client_data()).assert_sent(PortId::Uplink);
    kit.wait(7439);
    kit.up(up_data(port)).assert_sent(TO_A);
}

#[test]
fn forbidden_udp_and_icmp_flows_end_with_an_icmp_error() {
    let mut kit = Kit::new();
    let udp = Build::udp((A, 5000), WEB);
    let ping = Build::query(A, SERVER, 8, 7);
    let port = kit.a(&udp).sport();
    let id = kit.a(&ping).icmp_id();
    kit.set_rules(A, RulesState::Refused);
    kit.a(&udp).assert_refused(ID_A, 3, 13);
    kit.a(&ping).assert_refused(ID_A, 3, 13);
    kit.up(Build::udp(WEB, (OWN, port))).assert_dropped(DropReason::FlowForbidden);
    kit.up(Build::query(SERVER, OWN, 0, id)).assert_dropped(DropReason::FlowForbidden);
    let about = Build::udp((OWN, port), WEB).packet();
    kit.up(Build::error(SERVER, OWN, 3, 3, &about)).assert_dropped(DropReason::FlowForbidden);
}

#[test]
fn without_rules_running_flows_meet_silence_too() {
    let mut kit = Kit::new();
    let port = kit.connect(HERE, WEB);
    kit.set_rules(A, RulesState::None);
    kit.a(&client_data()).assert_dropped(DropReason::NoRules);
    kit.up(up_data(port)).assert_dropped(DropReason::FlowForbidden);
}

#[test]
fn another_client_does_not_notice() {
    let mut kit = Kit::new();
    let port = kit.connect((B, 40_000), WEB);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.up(up_data(port)).assert_sent(PortId::Client(ID_B));
    assert_eq!(
        kit.fw.take_rule_edit_report().map(|report| report.address),
        None.or(Some(B.into()))
    );
    assert_eq!(kit.fw.take_rule_edit_report(), None);
}

#[test]
fn an_edit_is_reported_once_with_both_times() {
    let mut kit = Kit::new();
    kit.connect(HERE, WEB);
    while kit.fw.take_rule_edit_report().is_some() {}
    let committed_at = kit.now;
    let generation = kit.set_rules(A, rules(&["action=accept"]));
    assert_eq!(kit.fw.take_rule_edit_report(), None);
    kit.wait(3);
    let first_judged_at = kit.now;
    kit.a(&client_data()).assert_sent(PortId::Uplink);
    kit.wait(1);
    kit.a(&Build::udp((A, 1), WEB));
    let report = RuleEditReport { address: A.into(), generation, committed_at, first_judged_at };
    assert_eq!(kit.fw.take_rule_edit_report(), Some(report));
    assert_eq!(kit.fw.take_rule_edit_report(), None);
}

#[test]
fn rules_see_the_destination_after_the_dns_redirection() {
    let mut kit = Kit::new().rules(A, &["action=accept specialtarget=dns"]);
    kit.a(&Build::udp((A, 1), (CLIENT_DNS[0], 53))).assert_sent(PortId::Uplink);
    kit.a(&Build::udp((A, 1), (OWN_DNS[1], 53))).assert_sent(PortId::Uplink);
    kit.a(&Build::udp((A, 1), (CLIENT_DNS[0], 54))).assert_refused(ID_A, 3, 13);
    // Other resolvers of our own: the old flow is judged by them.
    kit.set_network(|config| config.v4.dns = vec![[192, 0, 2, 9].into()]);
    kit.a(&Build::udp((A, 1), (OWN_DNS[1], 53))).assert_refused(ID_A, 3, 13);
}

#[test]
fn a_returning_client_finds_none_of_its_old_flows() {
    let mut kit = Kit::new();
    let port = kit.connect(HERE, WEB);
    kit.fw.detach_client(ID_A);
    kit.up(up_data(port)).assert_dropped(DropReason::NoFlow);
    kit.a(&client_data()).assert_dropped(DropReason::UnknownPort);
    kit.fw.attach_client(ID_A, vif(30, MAC_A, A)).unwrap();
    kit.up(up_data(port)).assert_dropped(DropReason::NoFlow);
    assert_eq!(kit.fw.attach_client(ID_A, vif(30, MAC_A, A)), Err(AttachError::SlotTaken));
    assert_eq!(kit.fw.attach_client(ClientId(4), vif(30, MAC_A, A)), Err(AttachError::NoSuchSlot));
}

#[test]
fn answers_go_to_the_vif_that_sent_last() {
    let mut kit = Kit::new();
    let second = Origin::Client(ClientId(2));
    // An HVM: its stub domain has the same address.
    kit.fw.attach_client(ClientId(2), vif(9, MAC_B, A)).unwrap();
    let port = kit.connect(HERE, WEB);
    let out = kit.up(up_data(port));
    assert_eq!(out.assert_sent(TO_A).bytes[..6], MAC_A.0);
    kit.send(second, &client_data()).assert_sent(PortId::Uplink);
    let out = kit.up(up_data(port));
    assert_eq!(out.assert_sent(PortId::Client(ClientId(2))).bytes[..6], MAC_B.0);
    kit.fw.detach_client(ClientId(2));
    kit.up(up_data(port)).assert_sent(TO_A);
}

#[test]
fn a_forbidden_connection_is_forgotten_after_four_minutes() {
    let mut kit = Kit::new();
    let port = kit.connect(HERE, WEB);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.up(up_data(port)).assert_dropped(DropReason::FlowForbidden);
    kit.wait(239);
    kit.up(up_data(port)).assert_dropped(DropReason::FlowForbidden);
    kit.wait(1);
    kit.up(up_data(port)).assert_dropped(DropReason::NoFlow);
}

#[test]
fn a_forbidden_connection_makes_room_for_an_allowed_one() {
    let mut kit = Kit::new();
    for n in 1..LIMITS.flows_per_client as u16 {
        kit.connect((A, 20_000 + n), WEB);
    }
    kit.connect((A, 40_001), SSH);
    let allowed = Build::tcp((A, 1), WEB, SYN);
    kit.a(&allowed).assert_refused(ID_A, 3, 13);
    kit.set_rules(A, rules(&["action=accept proto=tcp dstports=443-443"]));
    kit.a(&Build::tcp((A, 40_001), SSH, ACK)).assert_sent(TO_A);
    kit.a(&allowed).assert_sent(PortId::Uplink);
}
