//! A firewall with its clients: a workload run behind it, and the processor time that all domains took for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::workloads::{Beside, Workload};
use super::{PATIENCE, effort};
use crate::error::{Error, Result};
use crate::lab::domain::Domain;
use crate::lab::world::World;
use crate::xtask::bench::report::median;
use crate::{fail, progress};

/// After what goes on beside a workload: its server is ready again.
const BESIDE_ENDS: Duration = Duration::from_secs(2);
/// So often a workload is tried if what should go on beside it does not: a server of iperf3 may still be busy with the last one.
const TRIES: usize = 3;

/// One run.
pub(super) struct Sample {
    pub(super) rate: f64,
    /// What processor time is divided by.
    pub(super) amount: f64,
    /// Of the datagrams that the firewall handed to the NetVM, those that the server's socket had room for.
    pub(super) arrived: Option<f64>,
    pub(super) seconds: f64,
    /// Processor seconds of each domain.
    pub(super) cpu: BTreeMap<String, f64>,
    /// What our firewall asked the hypervisor for meanwhile, and what it forwarded; of ours only.
    pub(super) effort: BTreeMap<String, f64>,
    /// What the client and the server found wrong in what came, by the names of Linux' counters.
    pub(super) faults: BTreeMap<String, f64>,
}

/// Counters of Linux about segments that came: with a wrong checksum, before an earlier one, sent once more.
const FAULTS: [&str; 3] = ["InCsumErrors", "TCPOFOQueue", "RetransSegs"];

/// A firewall and its clients.
pub(super) struct Side<'a> {
    pub(super) name: &'static str,
    pub(super) is_ours: bool,
    pub(super) firewall: &'a Domain,
    pub(super) client: &'a Domain,
    pub(super) other: &'a Domain,
    /// Address of the other client.
    pub(super) other_ip: &'a str,
}

/// Medians of a side.
pub(super) struct Summary {
    pub(super) rate: f64,
    /// Processor seconds of the firewall for what the workload counts.
    pub(super) cpu: f64,
    /// Part of the time that the firewall's processor was busy.
    pub(super) share: f64,
}

impl Side<'_> {
    /// Runs it once.
    ///
    /// # Errors
    /// When the client's command fails, or says what cannot be read, or what should go on beside it does not.
    pub(super) fn run(&self, world: &World, workload: &Workload) -> Result<Sample> {
        let mut said = String::new();
        for _ in 0..TRIES {
            let sample = self.run_once(world, workload)?;
            let Some(beside) = workload.beside else { return Ok(sample) };
            let outlasts = self.place(beside).exec_for(
                &world.lab,
                "! grep -q ^ended /tmp/beside",
                PATIENCE,
            )?;
            said = self.end_of(world, beside)?;
            std::thread::sleep(BESIDE_ENDS);
            // It was still at it when the workload was over, and ended as iperf3 wants it.
            if outlasts.status == 0 && said.contains("receiver") {
                return Ok(sample);
            }
            progress::say(format!("{}: {}: beside it: {said}", self.name, workload.key));
        }
        fail!(
            "{}: {}: what should go on beside it did not, or not to its end: {said}",
            self.name,
            workload.key
        )
    }

    /// Waits for the end of what goes on beside; what it printed.
    fn end_of(&self, world: &World, beside: Beside) -> Result<String> {
        let line = "n=0; while ! grep -q ^ended /tmp/beside && [ $n -lt 150 ]; do usleep 200000; n=$((n + 1)); done; \
                    cat /tmp/beside";
        self.place(beside).exec_for(&world.lab, line, PATIENCE)?.ok("what goes on beside")
    }

    fn place(&self, beside: Beside) -> &Domain {
        if beside.is_others { self.other } else { self.client }
    }

    fn run_once(&self, world: &World, workload: &Workload) -> Result<Sample> {
        let server6 = world.plan.internet6.as_deref().unwrap_or_default();
        let named = |line: &str| {
            line.replace("SERVER6", server6)
                .replace("SERVER", &world.plan.internet)
                .replace("OTHER", self.other_ip)
        };
        let line = named(workload.line);
        if let Some(beside) = workload.beside {
            let line = named(beside.line);
            let line =
                format!("({line} >/tmp/beside 2>&1; echo ended >>/tmp/beside) >/dev/null 2>&1 &");
            self.place(beside).exec_for(&world.lab, &line, PATIENCE)?.ok(workload.key)?;
        }
        let faults_before = self.faults(world)?;
        let forwarded_before = self.forwarded(world)?;
        let effort_before = self.counters(world)?;
        let (before, begun) = (world.lab.all_cpu_seconds()?, Instant::now());
        let out = self.client.exec_for(&world.lab, &line, PATIENCE)?.ok(workload.key)?;
        let (after, seconds) = (world.lab.all_cpu_seconds()?, begun.elapsed().as_secs_f64());
        let effort = difference(&effort_before, self.counters(world)?);
        let forwarded = self.forwarded(world)? - forwarded_before;
        let faults = difference(&faults_before, self.faults(world)?);
        let Some((rate, mut amount)) = (workload.read)(&out) else {
            fail!("{}: {}: {out}", self.name, workload.key);
        };
        let mut arrived = None;
        if workload.counts_packets() && forwarded > 0.0 {
            arrived = Some(amount / forwarded);
            amount = forwarded;
        }
        Ok(Sample {
            rate,
            amount,
            arrived,
            seconds,
            cpu: difference(&before, after),
            effort,
            faults,
        })
    }

    /// Packets that the NetVM has got from the firewall.
    fn forwarded(&self, world: &World) -> Result<f64> {
        let device = format!("/sys/class/net/vif{}.0/statistics/rx_packets", self.firewall.domid);
        let text = world.sh(world.netvm(0)?, &format!("cat {device}"))?;
        text.trim().parse().map_err(|_| Error::Failed(format!("{device}: {text:?}")))
    }

    /// What our firewall counts; nothing of the other.
    fn counters(&self, world: &World) -> Result<BTreeMap<String, f64>> {
        if self.is_ours { effort::counters(world) } else { Ok(BTreeMap::new()) }
    }

    /// The sums over both ends. A NetVM serves both sides, one after the other.
    fn faults(&self, world: &World) -> Result<BTreeMap<String, f64>> {
        let mut sums = BTreeMap::new();
        for end in [self.client, world.netvm(0)?] {
            let line = "grep ^Tcp: /proc/net/snmp; grep ^TcpExt: /proc/net/netstat";
            let text = world.sh(end, line)?;
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.chunks(2) {
                let [names, values] = pair else { continue };
                for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                    if let Ok(value) = value.parse::<f64>()
                        && FAULTS.contains(&name)
                    {
                        *sums.entry(name.to_owned()).or_default() += value;
                    }
                }
            }
        }
        if sums.len() != FAULTS.len() {
            fail!("{} does not count what came: {sums:?}", self.client.name);
        }
        Ok(sums)
    }

    /// Medians of several runs.
    pub(super) fn summary(&self, workload: &Workload, samples: &[Sample]) -> Summary {
        let own =
            |sample: &Sample| sample.cpu.get(&self.firewall.name).copied().unwrap_or(f64::NAN);
        Summary {
            rate: median(samples.iter().map(|sample| sample.rate)),
            cpu: median(samples.iter().map(|sample| own(sample) / sample.amount * workload.per.0)),
            share: median(samples.iter().map(|sample| own(sample) / sample.seconds)),
        }
    }
}

/// What changed.
pub(in crate::xtask::bench) fn difference(
    before: &BTreeMap<String, f64>,
    after: BTreeMap<String, f64>,
) -> BTreeMap<String, f64> {
    let change = |(name, after): (String, f64)| {
        let change = after - before.get(&name).copied().unwrap_or(0.0);
        (name, change)
    };
    after.into_iter().map(change).collect()
}

/// Rate and processor time of both sides, with the share of the time that each domain was running.
pub(super) fn table(
    workload: &Workload,
    sides: [(&Side<'_>, &Vec<Sample>, &Summary); 2],
) -> Vec<String> {
    let mut lines = Vec::new();
    for (side, samples, summary) in sides {
        let (scale, unit) = workload.unit;
        let mut line = format!("{:<5} {:>9.2} {unit}", side.name, summary.rate / scale);
        if !workload.is_ping() {
            line.push_str(&format!(
                ", {:>8.1} s of the firewall's CPU for a {}",
                summary.cpu, workload.per.1
            ));
        }
        if let Some(arrived) = samples.first().and_then(|sample| sample.arrived) {
            line.push_str(&format!(
                " handed to the NetVM, where {:.0} % found room",
                arrived * 100.0
            ));
        }
        let domains = samples.first().map(|sample| sample.cpu.keys()).into_iter().flatten();
        let shares: Vec<String> = domains
            .map(|name| {
                let share =
                    median(samples.iter().map(|sample| {
                        sample.cpu.get(name).copied().unwrap_or(0.0) / sample.seconds
                    }));
                (name, share)
            })
            .filter(|(_, share)| *share >= 0.005)
            .map(|(name, share)| format!("{name} {:.0} %", share * 100.0))
            .collect();
        line.push_str(&format!("; running: {}", shares.join(", ")));
        lines.push(line);
    }
    lines
}
