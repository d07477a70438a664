//! Where we differ from the Linux agent on purpose. Each row has its own test: what Linux does, and what we do.

use std::net::{IpAddr, Ipv4Addr};

use firewall::{ClientId, Origin};

use super::linux::Linux;
use super::model::{Family, Packet, Side, Upper, Verdict, plan};
use super::ours::Ours;
use super::{nft, packet};
use crate::error::Result;
use crate::fail;

/// How a packet ends, as far as a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accept,
    Reject,
    Drop,
}

/// A rule line, what the Linux agent makes of it (it ends with its policy, drop), and both verdicts on TCP to an
/// address and port.
struct Row {
    name: &'static str,
    line: &'static str,
    chain: &'static [&'static str],
    to: ([u8; 4], u16),
    linux: End,
    ours: End,
}

const REJECT: &str = "reject with icmp type admin-prohibited";
const SERVER: ([u8; 4], u16) = ([198, 51, 100, 7], 443);

const ROWS: &[Row] = &[
    Row {
        name: "duplicate key",
        line: "action=drop action=accept",
        chain: &["accept"],
        to: SERVER,
        linux: End::Accept,
        ours: End::Reject,
    },
    // The agent's service dies: a source that had no rules keeps none.
    Row {
        name: "element without = or with two, doubled space",
        line: "action=accept proto",
        chain: &["drop"],
        to: SERVER,
        linux: End::Drop,
        ours: End::Reject,
    },
    Row {
        name: "dst4 together with dsthost",
        line: "action=accept dst4=198.51.100.7/32 dsthost=x.example",
        chain: &["ip daddr 198.51.100.7/32 accept", REJECT],
        to: SERVER,
        linux: End::Accept,
        ours: End::Reject,
    },
    Row {
        name: "address of fewer than four parts",
        line: "action=accept dst4=198.51/16",
        chain: &["ip daddr 198.0.0.51 accept", REJECT],
        to: ([198, 0, 0, 51], 443),
        linux: End::Accept,
        ours: End::Reject,
    },
    Row {
        name: "leading zeros",
        line: "action=accept dst4=010.0.0.1/32",
        chain: &["ip daddr 010.0.0.1/32 accept", REJECT],
        to: ([8, 0, 0, 1], 443),
        linux: End::Accept,
        ours: End::Reject,
    },
    Row {
        name: "address range",
        line: "action=accept dst4=198.51.100.1-198.51.100.9",
        chain: &["ip daddr 198.51.100.1-198.51.100.9 accept", REJECT],
        to: SERVER,
        linux: End::Accept,
        ours: End::Reject,
    },
    Row {
        name: "proto as number or other name",
        line: "action=accept proto=6",
        chain: &["meta l4proto 6 accept", REJECT],
        to: SERVER,
        linux: End::Accept,
        ours: End::Reject,
    },
    Row {
        name: "service name in dstports",
        line: "action=accept proto=tcp dstports=https",
        chain: &["tcp dport https accept", REJECT],
        to: SERVER,
        linux: End::Accept,
        ours: End::Reject,
    },
    Row {
        name: "unknown specialtarget",
        line: "action=accept specialtarget=foo",
        chain: &["accept"],
        to: SERVER,
        linux: End::Accept,
        ours: End::Reject,
    },
];

/// Names that are not resolved: Linux refuses everything, we only what could depend on the name.
const UNRESOLVED: Row = Row {
    name: "unresolved name",
    line: "action=accept dsthost=nx.example",
    chain: &[REJECT],
    to: SERVER,
    linux: End::Reject,
    ours: End::Accept,
};

/// Runs the tests of all rows; returns their names.
pub(super) fn check() -> Result<Vec<String>> {
    let linux = Linux::new(Family::V4)?;
    let mut names = Vec::new();
    for row in ROWS {
        test(&linux, row, &[])?;
        names.push(row.name.to_owned());
    }
    test(&linux, &UNRESOLVED, &[("0001", "action=accept")])?;
    names.push(UNRESOLVED.name.into());
    source_route(&linux)?;
    names.push("S8: source routes".into());
    overlap(&linux)?;
    names.push("S3: tiny and overlapping fragments".into());
    rate_limit(&linux)?;
    names.push("rate limits of ICMP errors".into());
    names.push(
        "IPv6 extension headers, conntrack quirks of a rule change (tests of the core)".into(),
    );
    Ok(names)
}

fn entries(lines: &[(&str, &str)]) -> Vec<(String, String)> {
    let all = lines.iter().chain(&[("policy", "drop")]);
    all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn test(linux: &Linux, row: &Row, more: &[(&str, &str)]) -> Result<()> {
    let lines = [&[("0000", row.line)], more].concat();
    let chain: Vec<String> = row.chain.iter().map(|line| (*line).to_owned()).collect();
    linux.load(nft::replace_by(Family::V4, &chain))?;
    let packet = tcp(row.to);
    let theirs = linux.verdicts(std::slice::from_ref(&packet))?;
    let theirs = theirs.first().copied().unwrap_or(Verdict::Drop);
    let ours = Ours::new(Family::V4, &entries(&lines))?.verdict(&packet)?;
    expect(row.name, (end(theirs), end(ours)), (row.linux, row.ours))
}

fn expect(name: &str, found: (End, End), wanted: (End, End)) -> Result<()> {
    if found != wanted {
        fail!("{name}: (Linux, ours) should be {wanted:?} and is {found:?}");
    }
    Ok(())
}

fn end(verdict: Verdict) -> End {
    match verdict {
        Verdict::Accept { .. } | Verdict::Answer => End::Accept,
        Verdict::Reject { .. } => End::Reject,
        Verdict::Drop => End::Drop,
    }
}

fn tcp((to, port): ([u8; 4], u16)) -> Packet {
    let destination = IpAddr::from(Ipv4Addr::from(to));
    let upper = Upper::Tcp { from: 1500 + u16::from(to[3]), to: port, flags: 2 };
    Packet { side: Side::A, source: plan(Family::V4).a, destination, ttl: 64, upper }
}

fn accept_all(linux: &Linux) -> Result<Ours> {
    linux.load(nft::replace_by(Family::V4, &["accept".to_owned()]))?;
    Ours::new(Family::V4, &entries(&[("0000", "action=accept")]))
}

/// A frame with other words of its IPv4 header, and the checksum to it.
fn with_header(frame: &[u8], options: &[u8], fragment: u16) -> Vec<u8> {
    let mut bytes = frame.get(..34).unwrap_or_default().to_vec();
    bytes.extend(options);
    bytes.extend(frame.get(34..).unwrap_or_default());
    let total = (bytes.len() - 14) as u16;
    let mut put = |at: usize, value: [u8; 2]| {
        if let Some(place) = bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&value);
        }
    };
    put(14, [0x45 + (options.len() / 4) as u8, 0]);
    put(16, total.to_be_bytes());
    put(20, fragment.to_be_bytes());
    put(24, [0, 0]);
    let checksum = packet::checksum(bytes.get(14..34 + options.len()).unwrap_or_default());
    if let Some(place) = bytes.get_mut(24..26) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

/// Linux forwards a loose source route that is used up where it is told to accept such routes; we never do.
fn source_route(linux: &Linux) -> Result<()> {
    let mut ours = accept_all(linux)?;
    linux.allow_source_routes()?;
    // Loose source route, 7 bytes, pointer 8: behind the list; one byte of padding.
    let frame = with_header(&packet::frame(&tcp(SERVER), 1), &[131, 7, 8, 192, 0, 2, 1, 0], 0);
    let theirs = linux.frames(&[(Side::A, frame.clone())])?;
    let ours = ours.frame(Origin::Client(ClientId(0)), &frame)?;
    let found = (theirs.first().map_or(End::Drop, |verdict| end(*verdict)), end(ours));
    expect("S8", found, (End::Accept, End::Drop))
}

/// A first fragment of 8 bytes of TCP header: Linux waits for the rest and reassembles, we drop it.
fn overlap(linux: &Linux) -> Result<()> {
    let mut ours = accept_all(linux)?;
    let whole = packet::frame(&tcp((SERVER.0, 444)), 1);
    let (head, tail) = whole.split_at_checked(42).unwrap_or_default();
    let link_and_ip = head.get(..34).unwrap_or_default();
    let rest = [link_and_ip, tail].concat();
    let first = with_header(head, &[], 0x2000);
    let second = with_header(&rest, &[], 1);
    let theirs = linux.frames(&[(Side::A, first.clone()), (Side::A, second.clone())])?;
    let theirs = theirs.first().map_or(End::Drop, |verdict| end(*verdict));
    let from = Origin::Client(ClientId(0));
    let both = [ours.frame(from, &first)?, ours.frame(from, &second)?];
    if both != [Verdict::Drop; 2] {
        fail!("S3: our firewall let a tiny fragment pass: {both:?}");
    }
    expect("S3", (theirs, End::Drop), (End::Accept, End::Drop))
}

/// A thousand refusals at one moment: Linux, its limits off, answers them all; we answer a bounded number.
fn rate_limit(linux: &Linux) -> Result<()> {
    linux.load(nft::replace_by(Family::V4, &[REJECT.to_owned()]))?;
    let packets: Vec<Packet> = (0..1000)
        .map(|n| {
            let upper = Upper::Udp { from: 3000 + n, to: 9 };
            Packet { upper, ..tcp(SERVER) }
        })
        .collect();
    let theirs = linux.verdicts(&packets)?;
    let mut ours = Ours::new(Family::V4, &entries(&[]))?;
    ours.step = std::time::Duration::ZERO;
    let mut answered = 0;
    for packet in &packets {
        answered += usize::from(end(ours.verdict(packet)?) == End::Reject);
    }
    let linux_answered = theirs.iter().filter(|verdict| end(**verdict) == End::Reject).count();
    if linux_answered != 1000 || !(1..=200).contains(&answered) {
        fail!("rate limit: Linux answered {linux_answered}, we {answered} of 1000");
    }
    Ok(())
}
