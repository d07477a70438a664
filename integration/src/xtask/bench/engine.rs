//! The packet core: instructions by callgrind, allocations, and times.

use std::collections::BTreeMap;
use std::process::Command;

use super::report::Report;
use super::times;
use crate::error::Result;
use crate::xtask::callgrind::{self, Count};
use crate::xtask::parts::first_packet;
use crate::{command, fail, progress};

/// Flows in the table, as `integration/measure` has them.
const FLOWS: [&str; 3] = ["1", "1000", "65536"];
/// Rules, likewise.
const RULES: [&str; 4] = ["0", "10", "1000", "10000"];
/// The timer may cost so many instructions more with some number of flows than with another one. Not all kinds of flows are
/// there when there is but one.
const TIMER_LIMIT: f64 = 40.0;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let measuring = established(report)?;
    first_packets(report)?;
    rules(report)?;
    flows(report, measuring)?;
    rewrite(report)?;
    allocations(report)?;
    times::run(report)
}

/// Returns what the measuring of a packet takes.
fn established(report: &mut Report) -> Result<f64> {
    let counts = callgrind::count("established")?;
    let Some((nothing, counts)) = counts.split_first() else { fail!("nothing was measured") };
    if nothing.labels.first().is_none_or(|label| label != "nothing") || nothing.per_packet > 50.0 {
        fail!("what the measuring takes: {nothing:?}");
    }
    let mut most = 0.0_f64;
    let mut lines = Vec::new();
    for count in counts {
        let [direction, family] = count.labels.as_slice() else {
            fail!("what was measured? {count:?}")
        };
        let own = count.per_packet - nothing.per_packet;
        lines.push(format!("{direction:<5} {family} {own:>6.0}"));
        let key = format!(
            "engine.established.{direction}{}.instructions",
            family.trim_start_matches("IPv")
        );
        report.figure(key, own);
        most = most.max(own);
    }
    lines.push(format!("(without {:.0} of the measuring itself)", nothing.per_packet));
    report.table("Instructions of an established connection's packet", lines);
    report.figure("engine.established.instructions", most);
    Ok(nothing.per_packet)
}

fn first_packets(report: &mut Report) -> Result<()> {
    let rows = first_packet::rows(&callgrind::count("first-packet")?)?;
    let lines = rows.iter().map(first_packet::Row::line).collect();
    report.table("Instructions of a flow's first packet: 10 rules, 1,000 rules, times", lines);
    // The shape that costs most with many rules.
    if let Some(row) = rows.iter().max_by(|a, b| a.many.total_cmp(&b.many)) {
        report.figure("engine.first_10.instructions", row.few);
        report.figure("engine.first_1000.instructions", row.many);
    }
    Ok(())
}

/// Few shapes over the whole range. No rule matches: without rules there is nothing else.
fn rules(report: &mut Report) -> Result<()> {
    let rows =
        Rows::new(&callgrind::count("rules")?, &RULES, |count| match count.labels.as_slice() {
            [shape, rules, _] => Some((shape, rules)),
            _ => None,
        })?;
    for (shape, costs) in &rows.0 {
        for (rules, cost) in RULES.iter().zip(costs) {
            report.figure(format!("engine.first_{rules}.{}.instructions", word(shape)), *cost);
        }
    }
    report.table(
        "Instructions of a flow's first packet: no rule, 10, 1,000, 10,000 rules that do not match",
        rows.0.iter().map(|(shape, costs)| format!("{shape:<36}{}", columns(costs))).collect(),
    );
    // The one that costs most with many rules, as above.
    if let Some((_, costs)) = rows.0.iter().max_by(|a, b| last(&a.1).total_cmp(&last(&b.1))) {
        report.figure("engine.first_0.instructions", costs.first().copied().unwrap_or(f64::NAN));
        report.figure("engine.first_10000.instructions", last(costs));
    }
    Ok(())
}

/// What may depend on the number of flows. `measuring` is what the measuring of a packet takes.
fn flows(report: &mut Report, measuring: f64) -> Result<()> {
    let rows =
        Rows::new(&callgrind::count("flows")?, &FLOWS, |count| match count.labels.as_slice() {
            [what, flows] => Some((what, flows)),
            _ => None,
        })?;
    let (up, down) = (rows.of("up")?, rows.of("down")?);
    let paused = rows.of("up after a pause")?;
    let (new, timer, expiry) = (rows.of("new")?, rows.of("idle timer")?, rows.of("expiry")?);
    let own = |costs: &[f64]| costs.iter().map(|cost| cost - measuring).collect::<Vec<_>>();
    let (up, down, paused) = (own(up), own(down), own(paused));
    let shown: [(&str, &str, &[f64]); 6] = [
        ("established, up", "established.flows_N.up4", &up),
        ("established, up after two seconds", "established.flows_N.up4_paused", &paused),
        ("established, down", "established.flows_N.down4", &down),
        ("first packet (insert)", "insert.flows_N", new),
        ("timer, nothing due", "timer.flows_N", timer),
        ("timer, each flow that expires", "expiry.flows_N", expiry),
    ];
    let mut lines: Vec<String> =
        shown.iter().map(|(name, _, costs)| format!("{name:<36}{}", columns(costs))).collect();
    lines.push(
        "Half of the flows are TCP, half UDP, of four clients with ten rules; the packets are"
            .into(),
    );
    lines.push(
        "spread over the TCP flows. The one flow that expires pays a call of the timer.".into(),
    );
    for (_, key, costs) in shown {
        for (flows, cost) in FLOWS.iter().zip(costs) {
            let key = key.replace("flows_N", &format!("flows_{flows}"));
            report.figure(format!("engine.{key}.instructions"), *cost);
        }
    }
    for (flows, (up, down)) in FLOWS.iter().zip(up.iter().zip(&down)) {
        report.figure(format!("engine.established.flows_{flows}.instructions"), up.max(*down));
    }
    report.table("Instructions with 1, 1,000 and 65,536 flows in the table (IPv4)", lines);
    is_flat(timer)
}

/// The timer looks at the oldest flows only.
fn is_flat(timer: &[f64]) -> Result<()> {
    let least = timer.iter().copied().fold(f64::INFINITY, f64::min);
    let most = timer.iter().copied().fold(0.0, f64::max);
    if most - least > TIMER_LIMIT {
        fail!("the timer costs more with more flows, though nothing is due: {timer:?}");
    }
    Ok(())
}

/// The function of the stages. In the fast path it is a part of one straight piece and cannot be told apart.
fn rewrite(report: &mut Report) -> Result<()> {
    let counts = callgrind::count_within("rewrite", "firewall::nat::rewrite::apply")?;
    let mut lines = Vec::new();
    for Count { labels, per_packet } in &counts {
        let [direction, what, family] = labels.as_slice() else {
            fail!("what was measured? {labels:?}")
        };
        lines.push(format!("{direction:<5} {family} {what:<20} {per_packet:>6.0}"));
        let key = [word(what), direction.clone()].join("_") + family.trim_start_matches("IPv");
        report.figure(format!("engine.rewrite.{key}.instructions"), *per_packet);
    }
    lines.push("What the function of the stages takes, with those that it calls. The fast path does the same".into());
    lines.push("in its middle, where it cannot be told apart.".into());
    report.table("Instructions of rewriting addresses, ports and checksums alone (NAT)", lines);
    Ok(())
}

/// The program itself fails if there was one.
fn allocations(report: &mut Report) -> Result<()> {
    let program = callgrind::program()?;
    let text = progress::step("counting allocations", || {
        command::output(Command::new(program).arg("allocations"))
    })?;
    let (kinds, total) = allocations_of(&text)?;
    let line = |(kind, packets): (&String, &u64)| format!("{kind:<24} {packets:>8}");
    let mut lines: Vec<String> = kinds.iter().map(line).collect();
    lines.push(format!("{total} allocations in all of them"));
    report.table("Packets (or flows, or calls) after warm-up, and allocations", lines);
    report.figure("engine.allocations", total as f64);
    Ok(())
}

/// Packets by what they are, and the allocations of all.
fn allocations_of(text: &str) -> Result<(BTreeMap<String, u64>, u64)> {
    let (mut kinds, mut total) = (BTreeMap::<String, u64>::new(), 0);
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [labels @ .., packets, allocations] = fields.as_slice() else { fail!("{line:?}") };
        let (Ok(packets), Ok(allocations)) = (packets.parse::<u64>(), allocations.parse::<u64>())
        else {
            fail!("{line:?}")
        };
        total += allocations;
        let kind = match labels {
            ["nothing", _] => continue,
            ["up" | "down" | "up after a pause", _] => "established",
            ["new", _] | [_, _, _] => "first of a flow",
            ["idle timer", _] => "timer, nothing due",
            ["expiry", _] => "flows that expired",
            _ => fail!("{line:?}"),
        };
        *kinds.entry(kind.into()).or_default() += packets;
    }
    match (kinds.len(), total) {
        (4, 0) => Ok((kinds, total)),
        (4, _) => fail!("{total} allocations:\n{text}"),
        _ => fail!("not everything was measured: {kinds:?}"),
    }
}

/// Costs of cases, in the order of the sizes.
struct Rows(Vec<(String, Vec<f64>)>);

impl Rows {
    /// `key` finds case and size in the labels.
    fn new<'a>(
        counts: &'a [Count],
        sizes: &[&str],
        key: impl Fn(&'a Count) -> Option<(&'a String, &'a String)>,
    ) -> Result<Self> {
        let mut rows: Vec<(String, Vec<f64>)> = Vec::new();
        for count in counts {
            let Some((case, size)) = key(count) else { fail!("what was measured? {count:?}") };
            let Some(at) = sizes.iter().position(|known| known == size) else {
                fail!("why was that measured? {count:?}")
            };
            let place = match rows.iter().position(|(known, _)| known == case) {
                Some(place) => place,
                None => {
                    rows.push((case.clone(), vec![f64::NAN; sizes.len()]));
                    rows.len().saturating_sub(1)
                }
            };
            if let Some(cost) = rows.get_mut(place).and_then(|(_, costs)| costs.get_mut(at)) {
                *cost = count.per_packet;
            }
        }
        // As many counts as places, and none of those empty: each has one.
        let is_full = rows.iter().flat_map(|(_, costs)| costs).all(|cost| !cost.is_nan());
        if rows.is_empty() || !is_full || rows.len() * sizes.len() != counts.len() {
            fail!("not everything was measured, or something twice: {rows:?}");
        }
        Ok(Self(rows))
    }

    fn of(&self, case: &str) -> Result<&[f64]> {
        match self.0.iter().find(|(known, _)| known == case) {
            Some((_, costs)) => Ok(costs),
            None => fail!("{case:?} was not measured"),
        }
    }
}

fn columns(costs: &[f64]) -> String {
    costs.iter().map(|cost| format!(" {cost:>8.0}")).collect()
}

fn last(costs: &[f64]) -> f64 {
    costs.last().copied().unwrap_or(f64::NAN)
}

/// A part of a key.
fn word(text: &str) -> String {
    let letters =
        text.to_ascii_lowercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), " ");
    letters.split_whitespace().collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(case: &str, size: &str, per_packet: f64) -> Count {
        Count { labels: vec![case.into(), size.into()], per_packet }
    }

    fn rows(counts: &[Count]) -> Result<Rows> {
        Rows::new(counts, &["1", "1000"], |count| match count.labels.as_slice() {
            [case, size] => Some((case, size)),
            _ => None,
        })
    }

    #[test]
    fn costs_stand_in_the_order_of_the_sizes() {
        let all = [count("a", "1000", 4.0), count("a", "1", 3.0)];
        assert_eq!(rows(&all).unwrap().of("a").unwrap(), [3.0, 4.0]);
        assert!(rows(&all).unwrap().of("b").is_err());
    }

    #[test]
    fn what_was_not_measured_fails() {
        assert!(rows(&[]).is_err());
        assert!(rows(&[count("a", "1", 3.0)]).is_err());
        let stranger = [count("a", "1000", 4.0), count("a", "1", 3.0), count("a", "7", 3.0)];
        assert!(rows(&stranger).is_err());
        let twice = [count("a", "1", 4.0), count("a", "1", 3.0)];
        assert!(rows(&twice).is_err());
    }

    #[test]
    fn a_timer_that_grows_fails() {
        is_flat(&[383.0, 392.0, 392.0]).unwrap();
        assert!(is_flat(&[383.0, 392.0, 900.0]).is_err());
    }

    #[test]
    fn an_allocation_fails_and_so_does_a_kind_that_is_missing() {
        let text = "hosts\t10\tpolicy\t16\t0\nnothing\tat all\t9\t0\nup\tIPv4\t256\t0\n\
                    new\t1\t1\t0\nidle timer\t1\t5\t0\nexpiry\t1\t1\t0\n";
        let (kinds, total) = allocations_of(text).unwrap();
        assert_eq!((kinds.get("first of a flow"), total), (Some(&17), 0));
        assert!(allocations_of(&text.replace("256\t0", "256\t1")).is_err());
        assert!(allocations_of("hosts\t10\tpolicy\t16\t0\n").is_err());
        assert!(allocations_of("").is_err() && allocations_of("hosts\n").is_err());
    }

    #[test]
    fn keys_are_words() {
        assert_eq!(word("nested prefixes, IPv6"), "nested_prefixes_ipv6");
    }
}
