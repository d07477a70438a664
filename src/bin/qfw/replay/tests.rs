//! Replays of captures that are put together here, byte by byte; [`damage`] breaks them.

mod damage;

use std::net::Ipv4Addr;
use std::slice::from_ref;

use serde_json::{Value, json};

use super::*;
use crate::case;
use rules::{CompiledSet, Family, RuleSet};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 9);
const WEB: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 139, 1, 1);
const SECOND: u64 = 1_000_000_000;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// An IPv4 packet with right checksums.
fn ipv4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, mut upper: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(upper.len()).unwrap();
    let at = match protocol {
        6 => 16,
        17 => 6,
        _ => 2,
    };
    if matches!(protocol, 1 | 6 | 17) {
        let mut pseudo = Vec::new();
        if protocol != 1 {
            pseudo.extend([source.octets(), destination.octets()].concat());
            pseudo.extend([0, protocol]);
            pseudo.extend(length.to_be_bytes());
        }
        pseudo.extend(&upper);
        let sum = !packet::sum(&pseudo);
        upper[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut header = vec![0x45, 0];
    header.extend((length + 20).to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = !packet::sum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, upper].concat()
}

/// The first segments of a connection have the numbers 1 and 2 on both sides.
fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Vec<u8> {
    let mut upper = [from.1, to.1].map(u16::to_be_bytes).concat();
    let number = if flags & SYN != 0 { 1 } else { 2 };
    upper.extend([0, 0, 0, number, 0, 0, 0, 2, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    ipv4(6, from.0, to.0, upper)
}

fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap();
    let mut upper = [from.1, to.1, length, 0].map(u16::to_be_bytes).concat();
    upper.extend(payload);
    ipv4(17, from.0, to.0, upper)
}

fn echo(source: Ipv4Addr, destination: Ipv4Addr, kind: u8) -> Vec<u8> {
    ipv4(1, source, destination, vec![kind, 0, 0, 0, 0, 7, 0, 1])
}

fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xfe; 6][..], &[2; 6], &ether_type.to_be_bytes(), payload].concat()
}

/// A little-endian pcap file of microseconds.
fn pcap(link: u32, packets: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut file = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
    file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([65_535_u32, link].map(u32::to_le_bytes).concat());
    for (nanos, bytes) in packets {
        let length = u32::try_from(bytes.len()).unwrap();
        let (seconds, micros) = (nanos / SECOND, nanos % SECOND / 1000);
        let times = [seconds, micros].map(|part| u32::try_from(part).unwrap());
        file.extend([times[0], times[1], length, length].map(u32::to_le_bytes).concat());
        file.extend(bytes);
    }
    file
}

fn block(kind: u32, mut body: Vec<u8>) -> Vec<u8> {
    body.resize(body.len().next_multiple_of(4), 0);
    let length = u32::try_from(body.len() + 12).unwrap();
    [&kind.to_be_bytes()[..], &length.to_be_bytes(), &body, &length.to_be_bytes()].concat()
}

/// A big-endian pcapng file of nanoseconds.
fn pcapng(link: u16, packets: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut section = 0x1a2b_3c4d_u32.to_be_bytes().to_vec();
    section.extend([0, 1, 0, 0]);
    section.extend([0xff; 8]);
    let mut interface = link.to_be_bytes().to_vec();
    interface.extend([0, 0, 0, 0, 0, 0]);
    // if_tsresol 9, end of options.
    interface.extend([0, 9, 0, 1, 9, 0, 0, 0, 0, 0, 0, 0]);
    let mut file = [block(0x0a0d_0d0a, section), block(1, interface)].concat();
    for (nanos, bytes) in packets {
        let length = u32::try_from(bytes.len()).unwrap();
        let mut body = vec![0, 0, 0, 0];
        body.extend(nanos.to_be_bytes());
        body.extend([length, length].map(u32::to_be_bytes).concat());
        body.extend(bytes);
        file.extend(block(6, body));
    }
    file
}

fn active(set: &RuleSet) -> RulesState {
    RulesState::Active(CompiledSet::new(set.clone()).unwrap())
}

fn rules(lines: &[&str]) -> RuleSet {
    let numbered = lines.iter().enumerate();
    let rules = numbered.map(|(n, line)| (format!("{n:04}"), (*line).to_owned()));
    let policy = [("policy".to_owned(), "drop".to_owned())];
    case::parse(Family::V4, &rules.chain(policy).collect::<Vec<_>>()).unwrap()
}

fn setting() -> Setting {
    Setting {
        client: CLIENT.into(),
        gateway: Some(Ipv4Addr::new(10, 137, 0, 6).into()),
        other_clients: vec![Ipv4Addr::new(10, 137, 0, 10).into()],
        dns_servers: vec![DNS.into()],
        names: KnownNames::default(),
        limits: Limits {
            clients: 1,
            addresses: 4,
            flows: 64,
            flows_per_client: 64,
            fragment_bytes: 64 << 10,
        },
    }
}

fn summary(setting: &Setting, lines: &[&str], file: &[u8]) -> Value {
    let set = rules(lines);
    let (flows, end) = replay(setting, active(&set), file).unwrap();
    end.unwrap();
    let (mut text, mut json) = (Vec::new(), Vec::new());
    flows.write_table(Ok(&set), &mut text).unwrap();
    flows.write_json("client", Ok(&set), &mut json).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let flows = json["flows"].as_array().unwrap().len();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().count(), flows + 2, "{text}");
    json
}

/// Verdict and rule of each flow.
fn verdicts(setting: &Setting, lines: &[&str], packets: &[(u64, Vec<u8>)]) -> Vec<(String, Value)> {
    let summary = summary(setting, lines, &pcap(101, packets));
    let flows = summary["flows"].as_array().unwrap().iter();
    flows.map(|f| (f["verdict"].as_str().unwrap().to_owned(), f["rule"].clone())).collect()
}

fn is(verdict: &str, rule: impl Into<Value>) -> (String, Value) {
    (verdict.to_owned(), rule.into())
}

#[test]
fn every_flow_has_its_first_verdict_and_what_went_with_it() {
    let (from, web, ssh) = ((CLIENT, 40_000), (WEB, 443), (WEB, 22));
    let packets = [
        (5 * SECOND, ethernet(0x0806, &[0; 28])),
        (5 * SECOND, ethernet(0x8100, &[0; 28])),
        (5 * SECOND, ethernet(0x0800, &tcp(from, web, SYN))),
        (6 * SECOND, ethernet(0x0800, &tcp(web, from, SYN | ACK))),
        (7 * SECOND, ethernet(0x0800, &tcp(from, web, ACK))),
        (8 * SECOND, ethernet(0x0800, &tcp(from, ssh, SYN))),
        (8 * SECOND, ethernet(0x0800, &tcp(web, (CLIENT, 1), SYN))),
        (8 * SECOND, ethernet(0x0800, &tcp(web, (WEB, 1), SYN))),
    ];
    let lines = ["action=accept proto=tcp dstports=443-443"];
    let expected = json!({
        "client": "client",
        "flows": [
            {
                "verdict": "accept", "rule": 0, "key": "0000", "proto": "tcp",
                "src": "10.137.0.9", "dst": "198.51.100.7", "sport": 40000, "dport": 443,
                "packets": 2, "bytes": 80, "accepted": 2, "replies": 1
            },
            {
                "verdict": "reject", "rule": "policy", "key": "policy",
                "reason": "no rule matches, and the policy is drop", "proto": "tcp",
                "src": "10.137.0.9", "dst": "198.51.100.7", "sport": 40000, "dport": 22,
                "packets": 1, "bytes": 40, "accepted": 0, "replies": 0
            }
        ],
        "left_out": 0,
        "skipped": {"arp": 1, "vlan": 1, "unsolicited": 1, "of-others": 1}
    });
    assert_eq!(summary(&setting(), &lines, &pcap(1, &packets)), expected);
    assert_eq!(summary(&setting(), &lines, &pcapng(1, &packets)), expected);
    let cooked: Vec<_> =
        packets.iter().map(|(at, frame)| (*at, [&[0; 14][..], &frame[12..]].concat())).collect();
    assert_eq!(summary(&setting(), &lines, &pcap(113, &cooked)), expected);
}

#[test]
fn a_connection_lives_on_what_came_back() {
    let (from, web) = ((CLIENT, 40_000), (WEB, 443));
    let opening = [
        (SECOND, tcp(from, web, SYN)),
        (SECOND, tcp(web, from, SYN | ACK)),
        (SECOND, tcp(from, web, ACK)),
    ];
    // An hour later the end of an established connection still belongs to it; that of one nobody answered does not.
    let end = (3600 * SECOND, tcp(from, web, ACK | 1));
    let accepted = |packets: &[(u64, Vec<u8>)]| {
        let summary = summary(&setting(), &["action=accept"], &pcap(101, packets));
        summary["flows"][0]["accepted"].clone()
    };
    assert_eq!(accepted(&[&opening[..], from_ref(&end)].concat()), 3);
    assert_eq!(accepted(&[opening[0].clone(), end]), 1);
}

#[test]
fn names_come_from_the_options_and_from_answers_in_the_capture() {
    let web = (SECOND, tcp((CLIENT, 40_000), (WEB, 443), SYN));
    let lines = ["action=accept dsthost=www.example.org", "action=accept specialtarget=dns"];
    assert_eq!(verdicts(&setting(), &lines, from_ref(&web)), [is("reject", "policy")]);

    let mut known = setting();
    known.names.insert("www.example.org", vec![WEB.into()]);
    assert_eq!(verdicts(&known, &lines, from_ref(&web)), [is("accept", 0)]);
    known.names.insert("www.example.org", Vec::new());
    let drop_name = ["action=drop dsthost=www.example.org", "action=accept"];
    assert_eq!(verdicts(&known, &drop_name, from_ref(&web)), [is("accept", 1)]);
    assert_eq!(verdicts(&setting(), &drop_name, from_ref(&web)), [is("reject", 0)]);

    let name = b"\x03www\x07example\x03org\x00\x00\x01\x00\x01";
    let question = [&[0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name].concat();
    let record = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4][..], &WEB.octets()].concat();
    let answer = [&[0, 9, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..], name, &record].concat();
    let asked = [
        (SECOND, udp((CLIENT, 5353), (DNS, 53), &question)),
        (SECOND, udp((DNS, 53), (CLIENT, 5353), &answer)),
        web,
    ];
    assert_eq!(verdicts(&setting(), &lines, &asked), [is("accept", 1), is("accept", 0)]);
}

#[test]
fn what_is_not_up_to_the_rules() {
    let gateway = Ipv4Addr::new(10, 137, 0, 6);
    let other = Ipv4Addr::new(10, 137, 0, 10);
    let packets = [
        (SECOND, echo(CLIENT, gateway, 8)),
        (SECOND, tcp((CLIENT, 1), (gateway, 22), SYN)),
        (SECOND, echo(CLIENT, other, 8)),
        (SECOND, echo(CLIENT, WEB, 0)),
        (SECOND, echo(CLIENT, WEB, 8)),
        (SECOND, echo(WEB, CLIENT, 0)),
        (SECOND, ipv4(47, CLIENT, WEB, vec![0; 20])),
    ];
    let null = Value::Null;
    assert_eq!(
        verdicts(&setting(), &["action=accept"], &packets),
        [
            is("answered", null.clone()),
            is("reject", null.clone()),
            is("drop", null.clone()),
            is("drop", null),
            is("accept", 0),
            is("accept", 0),
        ]
    );
}

#[test]
fn ipv6_goes_both_ways() {
    let (client, web) = ([0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], [0x20; 16]);
    let echo = |from: [u8; 16], to: [u8; 16], kind: u8| {
        let mut upper = vec![kind, 0, 0, 0, 0, 7, 0, 1];
        let sum = !packet::sum(&[&from[..], &to, &[0, 0, 0, 8, 0, 0, 0, 58], &upper].concat());
        upper[2..4].copy_from_slice(&sum.to_be_bytes());
        [&[0x60, 0, 0, 0, 0, 8, 58, 64][..], &from, &to, &upper].concat()
    };
    let frames = [echo(client, web, 128), echo(web, client, 129)];
    let frames = frames.map(|packet| (SECOND, ethernet(0x86dd, &packet)));
    let setting = Setting { client: client.into(), ..setting() };
    let set = RuleSet::parse(
        Family::V6,
        [(&b"policy"[..], &b"drop"[..]), (b"0000", b"action=accept proto=icmp icmptype=128")],
    );
    let rules = active(set.as_ref().unwrap());
    let (flows, end) = replay(&setting, rules, &pcap(1, &frames)[..]).unwrap();
    assert_eq!(end, Ok(()));
    let mut text = Vec::new();
    flows.write_table(Ok(&set.unwrap()), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let row = "accept      0000         1         48        1       1  icmp fd09::9 > ";
    assert!(text.contains(row), "{text}");
}

#[test]
fn a_datagram_in_fragments_is_judged_as_a_whole() {
    let whole = udp((CLIENT, 7), (WEB, 7), &[1; 1592]);
    let mut first = whole[..20 + 800].to_vec();
    let mut last = [&whole[..20], &whole[20 + 800..]].concat();
    for (piece, fragment) in [(&mut first, 0x2000_u16), (&mut last, 100)] {
        let length = u16::try_from(piece.len()).unwrap();
        piece[2..4].copy_from_slice(&length.to_be_bytes());
        piece[6..8].copy_from_slice(&fragment.to_be_bytes());
        piece[10..12].fill(0);
        let sum = !packet::sum(&piece[..20]);
        piece[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let pieces = [(SECOND, first), (SECOND, last)];
    let lines = ["action=accept proto=udp dstports=7-7"];
    assert_eq!(verdicts(&setting(), &lines, &pieces), [is("accept", 0)]);
    assert_eq!(verdicts(&setting(), &["action=drop"], &pieces), [is("reject", 0)]);
    assert_eq!(verdicts(&setting(), &lines, &pieces[..1]), [is("kept", Value::Null)]);
}

#[test]
fn refused_rules_refuse_everything() {
    let file = pcap(101, &[(SECOND, tcp((CLIENT, 1), (WEB, 443), SYN))]);
    let (flows, _) = replay(&setting(), RulesState::Refused, &file[..]).unwrap();
    let mut text = Vec::new();
    flows.write_table(Err("because"), &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("parse-error -") && text.contains("(because)"), "{text}");
}

#[test]
fn a_packet_that_was_captured_in_part_is_judged_by_its_headers() {
    let whole = udp((CLIENT, 7), (WEB, 7), &[1; 1000]);
    let mut file = pcap(101, &[(SECOND, whole[..60].to_vec())]);
    let at = file.len() - 60 - 4;
    file[at..at + 4].copy_from_slice(&u32::try_from(whole.len()).unwrap().to_le_bytes());
    let summary = summary(&setting(), &["action=accept"], &file);
    assert_eq!(summary["flows"][0]["verdict"], "accept");
    assert_eq!(summary["flows"][0]["bytes"], 1028);
}

#[test]
fn what_is_no_capture_or_broken_is_said() {
    let end = |file: &[u8]| replay(&setting(), RulesState::None, file).unwrap().1;
    assert_eq!(end(b""), Err(Broken::NotACapture));
    assert_eq!(end(b"GIF89a and so on, for more than a header"), Err(Broken::NotACapture));
    let file = pcap(101, &[(SECOND, tcp((CLIENT, 1), (WEB, 443), SYN))]);
    assert_eq!(end(&file), Ok(()));
    assert_eq!(end(&file[..file.len() - 1]), Err(Broken::CutOff));
    let mut large = file.clone();
    large[32..36].copy_from_slice(&(64_u32 << 20).to_le_bytes());
    large.resize(100, 0);
    assert!(matches!(end(&large), Err(Broken::TooLarge | Broken::CutOff)));
    large.resize(3 << 20, 0);
    assert_eq!(end(&large), Err(Broken::TooLarge));
    let interfaces = vec![block(1, vec![0, 1, 0, 0, 0, 0, 0, 0]); 5000].concat();
    let many = [pcapng(1, &[]), interfaces].concat();
    assert_eq!(end(&many), Err(Broken::TooManyInterfaces));
}

#[test]
fn addresses_that_answers_are_sent_to_leave_checksums_right() {
    for mut packet in [
        tcp((WEB, 443), (CLIENT, 9), ACK),
        udp((WEB, 443), (CLIENT, 9), b"odd"),
        echo(WEB, CLIENT, 0),
    ] {
        let seen = packet::look(&packet).unwrap();
        packet::readdress(&mut packet, &seen, world::OWN4.into(), 12345).unwrap();
        let moved = match seen.ends.protocol {
            6 => tcp((WEB, 443), (world::OWN4, 12345), ACK),
            17 => udp((WEB, 443), (world::OWN4, 12345), b"odd"),
            _ => ipv4(1, WEB, world::OWN4, vec![0, 0, 0, 0, 0x30, 0x39, 0, 1]),
        };
        assert_eq!(packet, moved);
    }
}
