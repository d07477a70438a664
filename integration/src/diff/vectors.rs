//! The table of verdicts that were measured on a Linux firewall VM of Qubes: each row that is not one of our exclusions
//! ends as the table says, on both sides. It ties the translator to what the agent really did.

use std::net::IpAddr;

use serde_json::Value;

use super::linux::Linux;
use super::model::{Family, HostName, Packet, Proto, Rule, Set, Side, To, Upper, Verdict};
use super::nft;
use super::ours::Ours;
use crate::error::{Error, Result};
use crate::fail;

const TABLE: &str = include_str!("../../../rules/src/tests/vectors.jsonl");
/// Flags of a TCP segment where a row says nothing else: SYN.
const FIRST: u64 = 2;
/// Identifier of a query.
const ID: u16 = 300;

/// Runs the rows; says how many there were.
pub(super) fn check() -> Result<usize> {
    let both = [Linux::new(Family::V4)?, Linux::new(Family::V6)?];
    let mut count = 0;
    for line in TABLE.lines() {
        let row: Value = serde_json::from_str(line)
            .map_err(|error| Error::Failed(format!("cannot read {line}: {error}")))?;
        if is_compared(&row) {
            check_row(&both, &row)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Rows that a note marks as decided otherwise have their tests in `exclusions`. A set with an error has no translation
/// to test; the client without IPv6 is another network.
fn is_compared(row: &Value) -> bool {
    let is_error = expected(row) == "parse-error";
    !is_error && row.get("note").is_none() && row.pointer("/path/has_ip6").is_none()
}

fn check_row(both: &[Linux; 2], row: &Value) -> Result<()> {
    let id = text(&row["id"]);
    let bad = || Error::Failed(format!("cannot read row {id}"));
    let packet = packet(row).ok_or_else(bad)?;
    let family = Family::of(packet.source);
    let [v4, v6] = both;
    let linux = if family == Family::V4 { v4 } else { v6 };
    let entries = entries(row);
    let has_tree = row.pointer("/path/tree").is_none_or(|tree| tree != "none");
    let chain = match has_tree {
        true => nft::chain(&set(family, &entries).ok_or_else(bad)?),
        false => vec!["drop".into()],
    };
    linux.load(nft::replace_by(family, &chain))?;
    let theirs = linux.verdicts(std::slice::from_ref(&packet))?.pop().unwrap_or(Verdict::Drop);
    let mut ours = Ours::new(family, &entries)?;
    if !has_tree {
        ours.forget_rules()?;
    }
    let ours = ours.verdict(&packet)?;
    let word = match ours {
        Verdict::Accept { .. } | Verdict::Answer => "accept",
        Verdict::Reject { .. } => "reject",
        Verdict::Drop => "drop",
    };
    if ours != theirs || word != expected(row) {
        fail!("row {id}: ours {ours:?}, Linux {theirs:?}, measured {}", row["expect"]);
    }
    Ok(())
}

fn expected(row: &Value) -> &str {
    row.pointer("/expect/verdict").map_or("", text)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

/// The tree as dom0 writes it.
fn entries(row: &Value) -> Vec<(String, String)> {
    let mut entries: Vec<(String, String)> = match &row["rules"] {
        Value::Object(rules) => {
            rules.iter().map(|(key, line)| (key.clone(), text(line).to_owned())).collect()
        }
        rules => {
            let lines = rules.as_array().into_iter().flatten().map(text);
            lines.enumerate().map(|(n, line)| (format!("{n:04}"), line.to_owned())).collect()
        }
    };
    entries.sort();
    entries.push(("policy".into(), text(&row["policy"]).to_owned()));
    entries
}

fn set(family: Family, entries: &[(String, String)]) -> Option<Set> {
    let policy_accepts = entries.last()?.1 == "accept";
    let rules = entries.iter().filter(|(key, _)| key != "policy");
    let rules = rules.map(|(key, line)| Some((key.parse().ok()?, rule(line)?)));
    let rules = rules.collect::<Option<Vec<_>>>()?;
    Some(Set { family, rules, policy_accepts, fault: None })
}

/// A line that has no error.
fn rule(line: &str) -> Option<Rule> {
    let mut rule = Rule::all(false);
    for word in line.split(' ') {
        let (key, value) = word.split_once('=')?;
        match key {
            "action" => rule.accept = value == "accept",
            "proto" => {
                rule.proto = Some(match value {
                    "tcp" => Proto::Tcp,
                    "udp" => Proto::Udp,
                    "icmp" => Proto::Icmp,
                    _ => return None,
                });
            }
            "dst4" | "dst6" => {
                let full = if key == "dst4" { "32" } else { "128" };
                let (address, length) = value.split_once('/').unwrap_or((value, full));
                rule.to = Some(To::Net(address.parse().ok()?, length.parse().ok()?));
            }
            "dsthost" => rule.to = Some(To::Name(HostName::measured(value)?)),
            "dstports" => {
                let (low, high) = value.split_once('-').unwrap_or((value, value));
                rule.ports = Some((low.parse().ok()?, high.parse().ok()?));
            }
            "icmptype" => rule.icmp_type = Some(value.parse().ok()?),
            "specialtarget" => rule.dns = value == "dns",
            _ => return None,
        }
    }
    Some(rule)
}

fn packet(row: &Value) -> Option<Packet> {
    let (packet, path) = (&row["packet"], &row["path"]);
    let source: IpAddr = text(&packet["src"]).parse().ok()?;
    let destination = text(&packet["dst"]).parse().ok()?;
    let ports = || Some((number(&packet["sport"])?, number(&packet["dport"])?));
    let upper = match &packet["proto"] {
        Value::Number(protocol) => Upper::Other { protocol: protocol.as_u64()?.try_into().ok()? },
        proto if proto == "tcp" => {
            let (from, to) = ports()?;
            let flags = path["flags"].as_u64().unwrap_or(FIRST).try_into().ok()?;
            Upper::Tcp { from, to, flags }
        }
        proto if proto == "udp" => {
            let (from, to) = ports()?;
            Upper::Udp { from, to }
        }
        _ => Upper::Icmp { kind: number(&packet["icmptype"])?.try_into().ok()?, code: 0, id: ID },
    };
    let side = if path["arrives"] == "uplink" { Side::Uplink } else { Side::A };
    Some(Packet { side, source, destination, ttl: 64, upper, padding: 0 })
}
