//! What our firewall asked the hypervisor for.

use std::collections::BTreeMap;

use serde_json::Value;

use super::side::Sample;
use super::workloads::Workload;
use crate::error::Result;
use crate::fail;
use crate::lab::world::World;
use crate::xtask::bench::report::Report;

/// The counters of `firewall.Stats`.
///
/// # Errors
/// When it does not answer.
pub(in crate::xtask::bench) fn counters(world: &World) -> Result<BTreeMap<String, f64>> {
    let mut counts = BTreeMap::new();
    let out = world.dom0d()?.call(&world.lab, "QUBESRPC firewall.Stats+ dom0")?;
    for line in out.text.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let kind = line.get("kind").and_then(Value::as_str).unwrap_or_default();
        let numbers = match kind {
            "machine" => Some(&line),
            "client" | "uplink" => line.get("counters"),
            _ => None,
        };
        for (name, value) in numbers.and_then(Value::as_object).into_iter().flatten() {
            if let Some(value) = value.as_f64().filter(|_| name != "slot" && name != "domid") {
                *counts.entry(format!("{kind} {name}")).or_default() += value;
            }
        }
    }
    if !counts.contains_key("machine hypercalls") {
        fail!("firewall.Stats: exit status {}: {}", out.status, out.text);
    }
    Ok(counts)
}

/// What our firewall asked for, from sums of [`counters`].
///
/// The least that can be: for each batch of a client's frames, up or down, one hypercall that copies, and one for each sleep,
/// which takes the events with it; each byte copied once.
pub(in crate::xtask::bench) struct Effort {
    pub(in crate::xtask::bench) hypercalls_per_packet: f64,
    pub(in crate::xtask::bench) hypercalls_per_mb: f64,
    copies_per_batch: f64,
    notifications_per_batch: f64,
    allocations: f64,
    pub(in crate::xtask::bench) lines: Vec<String>,
}

impl Effort {
    pub(in crate::xtask::bench) fn new(sum: impl Fn(&str) -> f64) -> Self {
        let frames = sum("client sent-frames") + sum("uplink sent-frames");
        let bytes = sum("client sent-bytes") + sum("uplink sent-bytes");
        let (copies, notifications) = (sum("machine copies"), sum("machine notifications"));
        let of_clients = sum("machine batches_from_clients") + sum("machine batches_to_clients");
        let of_uplink = sum("machine batches_from_uplink") + sum("machine batches_to_uplink");
        let (all, sleeps) = (sum("machine hypercalls"), sum("machine sleeps"));
        let least = of_clients + sleeps;
        let batches = of_clients + of_uplink;
        let mb = 1e6 / bytes;
        let lines = vec![
            format!(
                "{:.3} hypercalls for a packet, {:.1} for a MB; the least for these batches: {:.3} and {:.1}",
                all / frames,
                all * mb,
                least / frames,
                least * mb
            ),
            format!(
                "{:.1} packets in a batch; {:.2} copying calls for a batch of clients' frames; {:.2} events for a batch; {:.2} sleeps for a batch",
                frames / batches * 2.0,
                copies / of_clients,
                notifications / batches,
                sleeps / batches
            ),
            format!(
                "{:.0} bytes copied for a packet, {:.3} for each byte forwarded; {:.0} packets for a MB; {:.0} allocations",
                sum("machine copied_bytes") / frames,
                sum("machine copied_bytes") / bytes,
                frames * mb,
                sum("machine allocations")
            ),
        ];
        Self {
            hypercalls_per_packet: all / frames,
            hypercalls_per_mb: all * mb,
            copies_per_batch: copies / of_clients,
            notifications_per_batch: notifications / batches,
            allocations: sum("machine allocations"),
            lines,
        }
    }
}

/// Hypercalls, events and copies of our firewall, for a packet that it forwarded and for a MB.
pub(super) fn hypercalls(report: &mut Report, workload: &Workload, samples: &[Sample]) {
    let effort =
        Effort::new(|name| samples.iter().filter_map(|sample| sample.effort.get(name)).sum());
    let mut figure =
        |name: &str, value| report.figure(format!("lab.{}.{name}", workload.key), value);
    figure("hypercalls_per_packet", effort.hypercalls_per_packet);
    figure("hypercalls_per_mb", effort.hypercalls_per_mb);
    figure("copies_per_batch", effort.copies_per_batch);
    figure("notifications_per_batch", effort.notifications_per_batch);
    figure("allocations", effort.allocations);
    report.table(format!("{}: hypercalls of our firewall", workload.key), effort.lines);
}

/// What both ends found wrong in what came through ours: nothing, or a table with it.
///
/// # Errors
/// When a checksum was wrong.
pub(super) fn faults(report: &mut Report, workload: &Workload, samples: &[Sample]) -> Result<()> {
    let sum =
        |name: &str| -> f64 { samples.iter().filter_map(|sample| sample.faults.get(name)).sum() };
    let wrong = sum("InCsumErrors");
    if wrong > 0.0 {
        fail!("{}: {wrong} segments came through our firewall with a wrong checksum", workload.key);
    }
    report.table(
        format!("{}: what both ends received through our firewall", workload.key),
        vec![format!(
            "0 wrong checksums, {:.0} segments out of order, {:.0} sent again",
            sum("TCPOFOQueue"),
            sum("RetransSegs")
        )],
    );
    report.figure(format!("lab.{}.out_of_order", workload.key), sum("TCPOFOQueue"));
    Ok(())
}
