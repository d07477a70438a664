//! The rows of qubes-protocols.md 5.2 where the Linux agent and we read a rule differently, and names without addresses.

use super::{End, REJECT, SERVER, entries, expect, tcp};
use crate::diff::linux::Linux;
use crate::diff::model::{Family, HostName};
use crate::diff::nft;
use crate::diff::ours::Ours;
use crate::error::Result;

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
        name: "leading zeros of a port",
        line: "action=accept proto=tcp dstports=0443-0443",
        chain: &["tcp dport 0443 accept", REJECT],
        to: (SERVER.0, 0o443),
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

/// A name that is not resolved, in an accept rule: Linux refuses everything, we only what could depend on the name.
const UNRESOLVED: Row = Row {
    name: "unresolved name",
    line: "action=accept dsthost=nx.example",
    chain: &[REJECT],
    to: SERVER,
    linux: End::Reject,
    ours: End::Accept,
};

/// Runs the tests of all rows; adds their names.
pub(super) fn check(linux: &Linux, names: &mut Vec<String>) -> Result<()> {
    for row in ROWS {
        test(linux, row, &[])?;
        names.push(row.name.to_owned());
    }
    test(linux, &UNRESOLVED, &[("0001", "action=accept")])?;
    // What a drop rule with such a name refuses may be too much, but never too little.
    let drop = Row { line: "action=drop dsthost=nx.example", ours: End::Reject, ..UNRESOLVED };
    test(linux, &drop, &[("0001", "action=accept")])?;
    names.push(UNRESOLVED.name.into());
    without_address(linux)?;
    names.push("name without an address of the family".into());
    Ok(())
}

fn test(linux: &Linux, row: &Row, more: &[(&str, &str)]) -> Result<()> {
    let lines = [&[("0000", row.line)], more].concat();
    let chain: Vec<String> = row.chain.iter().map(|line| (*line).to_owned()).collect();
    compare(linux, row.name, &lines, &chain, row.to, (row.linux, row.ours))
}

/// The server says that the name has no address of the family: for Linux that is a name that does not resolve.
fn without_address(linux: &Linux) -> Result<()> {
    let line = format!("action=drop dsthost={}", HostName::WITHOUT_ADDRESS.text());
    let lines = [("0000", line.as_str()), ("0001", "action=accept")];
    let chain = [REJECT.to_owned()];
    compare(linux, "name without an address", &lines, &chain, SERVER, (End::Reject, End::Accept))
}

fn compare(
    linux: &Linux,
    name: &str,
    lines: &[(&str, &str)],
    chain: &[String],
    to: ([u8; 4], u16),
    wanted: (End, End),
) -> Result<()> {
    linux.load(nft::replace_by(Family::V4, chain))?;
    let packet = tcp(to);
    let theirs = linux.end(std::slice::from_ref(&packet))?;
    let ours = Ours::new(Family::V4, &entries(lines))?.verdict(&packet)?;
    expect(name, (theirs, End::of(ours)), wanted)
}
