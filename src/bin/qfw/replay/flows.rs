//! What became of each flow: its first packet's verdict, and what went with it.

use std::collections::BTreeMap;
use std::io::{Result, Write};

use rules::{DecidedBy, RuleSet};
use serde::Serialize;

use super::packet::{Ends, Skipped};
use super::world::{End, Outcome};
use crate::answer::RuleRef;
use crate::{count, engine};

/// Flows that are told apart; more are counted only.
const MAX_FLOWS: usize = 100_000;

/// One flow.
#[derive(Debug)]
pub(crate) struct Flow {
    ends: Ends,
    end: End,
    by: Option<DecidedBy>,
    packets: u64,
    bytes: u64,
    accepted: u64,
    replies: u64,
    /// Its port on our address.
    pub(crate) outside_port: Option<u16>,
}

/// All of them, in the order of their first packets.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    flows: Vec<Flow>,
    by_ends: BTreeMap<Ends, usize>,
    left_out: u64,
    skipped: BTreeMap<Skipped, u64>,
}

impl Flows {
    pub(crate) fn skip(&mut self, why: Skipped) {
        let count = self.skipped.entry(why).or_default();
        *count = count.saturating_add(1);
    }

    /// Counts a packet of the client.
    pub(crate) fn sent(&mut self, ends: Ends, bytes: usize, outcome: Outcome) {
        let Some(flow) = self.flow(ends, outcome) else {
            self.left_out = self.left_out.saturating_add(1);
            return;
        };
        flow.packets = flow.packets.saturating_add(1);
        flow.bytes = flow.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if outcome.end == End::Accept {
            flow.accepted = flow.accepted.saturating_add(1);
            flow.outside_port = outcome.outside_port.or(flow.outside_port);
        }
        // Fragments say nothing until their datagram is whole.
        if flow.end == End::Kept {
            (flow.end, flow.by) = (outcome.end, outcome.by);
        }
    }

    /// The flow that a packet to the client belongs to; counts it.
    pub(crate) fn answered(&mut self, asked: &Ends) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(*self.by_ends.get(asked)?)?;
        flow.replies = flow.replies.saturating_add(1);
        Some(flow)
    }

    fn flow(&mut self, ends: Ends, outcome: Outcome) -> Option<&mut Flow> {
        let known = self.by_ends.get(&ends).copied();
        let at = match known {
            Some(at) => at,
            None if self.flows.len() >= MAX_FLOWS => return None,
            None => {
                let Outcome { end, by, .. } = outcome;
                let counts = (0, 0, 0, 0);
                let (packets, bytes, accepted, replies) = counts;
                let flow =
                    Flow { ends, end, by, packets, bytes, accepted, replies, outside_port: None };
                self.by_ends.insert(ends, self.flows.len());
                self.flows.push(flow);
                self.flows.len().saturating_sub(1)
            }
        };
        self.flows.get_mut(at)
    }
}

/// A flow as JSON.
#[derive(Serialize)]
struct Row<'f> {
    verdict: &'static str,
    rule: Option<RuleRef>,
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    proto: String,
    src: String,
    dst: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmptype: Option<u16>,
    packets: u64,
    bytes: u64,
    accepted: u64,
    replies: u64,
    #[serde(skip)]
    flow: &'f Flow,
}

#[derive(Serialize)]
struct Summary<'f> {
    client: String,
    flows: Vec<Row<'f>>,
    /// Packets of flows that were too many.
    left_out: u64,
    skipped: BTreeMap<&'static str, u64>,
}

impl End {
    const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Reject(_) => "reject",
            Self::Drop(_) => "drop",
            Self::ParseError => "parse-error",
            Self::Answered => "answered",
            Self::Kept => "kept",
        }
    }
}

fn row<'f>(flow: &'f Flow, rules: std::result::Result<&RuleSet, &str>) -> Row<'f> {
    let (rule, key) = match flow.by {
        Some(DecidedBy::Rule { index, key } | DecidedBy::UnresolvedName { index, key }) => {
            (Some(RuleRef::Index(index)), Some(key.to_string()))
        }
        Some(DecidedBy::Policy) => (Some(RuleRef::Policy), Some("policy".to_owned())),
        Some(DecidedBy::OtherFamily) | None => (None, None),
    };
    let by_rules = || flow.by.zip(rules.ok()).map(|(by, rules)| engine::reason(rules, by));
    let reason = match flow.end {
        End::Accept | End::Answered => None,
        End::ParseError => rules.err().map(str::to_owned),
        End::Kept => Some("the rest of the datagram is not in the capture".to_owned()),
        End::Reject(why) | End::Drop(why) => {
            let why = format!("{}: {}", why.name(), why.explanation().trim());
            Some(if rule.is_some() { by_rules().unwrap_or(why) } else { why })
        }
    };
    let ends = &flow.ends;
    let port = |port| ends.has_ports().then_some(port);
    Row {
        verdict: flow.end.name(),
        rule,
        key,
        reason,
        proto: ends.name(),
        src: ends.source.to_string(),
        dst: ends.destination.to_string(),
        sport: port(ends.source_port),
        dport: port(ends.destination_port),
        icmptype: ends.is_icmp().then_some(ends.destination_port),
        packets: flow.packets,
        bytes: flow.bytes,
        accepted: flow.accepted,
        replies: flow.replies,
        flow,
    }
}

impl Flows {
    fn rows(&self, rules: std::result::Result<&RuleSet, &str>) -> Vec<Row<'_>> {
        self.flows.iter().map(|flow| row(flow, rules)).collect()
    }

    fn skipped(&self) -> BTreeMap<&'static str, u64> {
        self.skipped.iter().map(|(why, count)| (why.name(), *count)).collect()
    }

    /// One JSON object.
    pub(crate) fn write_json(
        &self,
        client: &str,
        rules: std::result::Result<&RuleSet, &str>,
        mut output: impl Write,
    ) -> Result<()> {
        let client = client.to_owned();
        let (flows, skipped) = (self.rows(rules), self.skipped());
        let summary = Summary { client, flows, left_out: self.left_out, skipped };
        serde_json::to_writer(&mut output, &summary)?;
        writeln!(output)
    }

    /// A table, and a line about what is not in it.
    pub(crate) fn write_table(
        &self,
        rules: std::result::Result<&RuleSet, &str>,
        mut output: impl Write,
    ) -> Result<()> {
        writeln!(
            output,
            "{:11} {:6} {:>7} {:>10} {:>8} {:>7}  FLOW",
            "VERDICT", "RULE", "PACKETS", "BYTES", "ACCEPTED", "REPLIES"
        )?;
        let rows = self.rows(rules);
        for row in &rows {
            let key = row.key.as_deref().unwrap_or("-");
            write!(
                output,
                "{:11} {key:6} {:>7} {:>10} {:>8} {:>7}  {}",
                row.verdict,
                row.packets,
                row.bytes,
                row.accepted,
                row.replies,
                row.flow.ends.text()
            )?;
            match &row.reason {
                Some(reason) => writeln!(output, " ({reason})")?,
                None => writeln!(output)?,
            }
        }
        let packets: u64 = rows.iter().map(|row| row.packets).fold(0, u64::saturating_add);
        let flows = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        let (flows, packets) = (count(flows, "flow"), count(packets, "packet"));
        write!(output, "{flows}, {packets} of the client")?;
        if self.left_out > 0 {
            write!(output, "; {} packets of more flows than {MAX_FLOWS}", self.left_out)?;
        }
        for (why, count) in self.skipped() {
            write!(output, "; {count} {why}")?;
        }
        writeln!(output)
    }
}
