//! Our image and a Linux firewall VM on real Xen: side by side behind one NetVM, each with a client of its own, measured
//! in turns. Processor time is what Xen says of each domain.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::report::{Report, median};
use crate::error::{Error, Result};
use crate::lab::domain::{Domain, DomainSpec, Vif};
use crate::lab::guests::Role;
use crate::lab::plan::{FIREWALL_CPU, Plan};
use crate::lab::qemu::MachineOptions;
use crate::lab::world::{Kind, World};
use crate::lab::{Lab, cache};
use crate::scenarios::steps::{self, ALICE, BOB};
use crate::xtask::{image, scenarios};
use crate::{apt, fail, progress};

/// Turns of each side, and when it has to be quick.
const TURNS: usize = 5;
const QUICK_TURNS: usize = 2;
/// What goes on beside a workload has ended so long after it.
const BESIDE_ENDS: Duration = Duration::from_secs(6);
/// A run may take so long on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

/// Names and addresses.
type Place = (&'static str, &'static str, &'static str);
const LINUX_FIREWALL: Place = ("linux-firewall", "10.137.0.31", "fd09:24ef:4179::a89:1f");
const LINUX_CLIENTS: [Place; 2] = [
    ("linux-client", "10.137.0.32", "fd09:24ef:4179::a89:20"),
    ("linux-other", "10.137.0.33", "fd09:24ef:4179::a89:21"),
];

/// What is measured.
struct Workload {
    /// In the figures' names.
    key: &'static str,
    /// The client's command; SERVER and SERVER6 stand for the server's addresses. Port 5202 is for what goes on beside.
    line: &'static str,
    /// What the other client begins before, if anything.
    beside: Option<&'static str>,
    /// Whether a bound is set for it: it gets more turns.
    is_judged: bool,
    /// Rate, and the amount that was transferred, from what the command printed.
    read: fn(&str) -> Option<(f64, f64)>,
    /// Of the amount, what processor time is given for, and its name.
    per: (f64, &'static str),
    /// Of the rate.
    unit: (f64, &'static str),
}

const WORKLOADS: &[Workload] = &[
    tcp("tcp4_up", "iperf3 -f k -n 48M -c SERVER"),
    tcp("tcp4_down", "iperf3 -f k -n 48M -R -c SERVER"),
    tcp("tcp6_up", "iperf3 -f k -n 48M -c SERVER6"),
    tcp("tcp6_down", "iperf3 -f k -n 48M -R -c SERVER6"),
    udp("udp64", "iperf3 -f k -u -l 64 -b 0 -t 5 -c SERVER"),
    Workload { is_judged: true, ..ping("rtt_idle", "ping -c 50 -i 0.2 SERVER", round_trip) },
    Workload { is_judged: false, ..tcp("tcp4_up_8", "iperf3 -f k -P 8 -n 6M -c SERVER") },
    Workload { is_judged: false, ..tcp("tcp4_down_8", "iperf3 -f k -P 8 -n 6M -R -c SERVER") },
    Workload { is_judged: false, ..udp("udp1400", "iperf3 -f k -u -l 1400 -b 0 -t 5 -c SERVER") },
    ping(
        "rtt_load",
        "(iperf3 -R -t 13 -p 5202 -c SERVER >/dev/null 2>&1 &); sleep 1; ping -c 100 -i 0.1 SERVER",
        worst,
    ),
    Workload {
        beside: Some("(iperf3 -u -l 64 -b 0 -t 13 -p 5202 -c SERVER >/dev/null 2>&1 &)"),
        ..ping("flooded_p99", "sleep 1; ping -c 100 -i 0.1 SERVER", worst)
    },
];

const fn tcp(key: &'static str, line: &'static str) -> Workload {
    let (per, unit) = ((1e9, "GB"), (1e6, "MB/s"));
    Workload { key, line, beside: None, is_judged: true, read: bytes, per, unit }
}

const fn udp(key: &'static str, line: &'static str) -> Workload {
    let (per, unit) = ((1e6, "million packets"), (1.0, "packets/s"));
    Workload { key, line, beside: None, is_judged: true, read: datagrams, per, unit }
}

const fn ping(
    key: &'static str,
    line: &'static str,
    read: fn(&str) -> Option<(f64, f64)>,
) -> Workload {
    let (per, unit) = ((1.0, "ping"), (1.0, "ms"));
    Workload { key, line, beside: None, is_judged: false, read, per, unit }
}

/// One run.
struct Sample {
    rate: f64,
    amount: f64,
    seconds: f64,
    /// Processor seconds of each domain.
    cpu: BTreeMap<String, f64>,
    /// What our firewall asked the hypervisor for meanwhile, and what it forwarded; of ours only.
    effort: BTreeMap<String, f64>,
}

pub(super) fn run(report: &mut Report, is_quick: bool) -> Result<()> {
    apt::ensure(apt::LAB)?;
    let image = image::build()?;
    let images = cache::images(false)?;
    scenarios::build_dom0d()?;
    report.figure("image.bytes", image.size as f64);
    let lab = Lab::boot(&images, &MachineOptions { name: "bench".into(), ..Default::default() })?;
    let mut world = World::new(lab, Plan::usual(), Kind::Image(image.path))?;
    let turns = if is_quick { QUICK_TURNS } else { TURNS };
    let result = measure(&mut world, report, turns);
    if result.is_err() {
        scenarios::save_logs(Some(&world), "bench");
    }
    result
}

fn measure(world: &mut World, report: &mut Report, turns: usize) -> Result<()> {
    progress::step("NetVM", || world.need_netvm(0))?;
    progress::step("our firewall and its clients", || {
        world.need_firewall(Some(0))?;
        world.need_client(ALICE)?;
        world.need_client(BOB)
    })?;
    let [linux, linux_other] =
        progress::step("Linux firewall and its clients", || linux_side(world))?;
    start(world, report)?;

    let servers = [Some(&world.plan.internet), world.plan.internet6.as_ref()];
    for server in servers.into_iter().flatten() {
        for port in [5201, 5202] {
            world.sh(world.netvm(0)?, &format!("iperf3 -s -B {server} -p {port} -D"))?;
        }
    }
    let ours = Side {
        name: "ours",
        is_ours: true,
        firewall: &world.plan.firewall.name,
        client: world.client(ALICE)?,
        other: world.client(BOB)?,
    };
    let linux = Side {
        name: "Linux",
        is_ours: false,
        firewall: LINUX_FIREWALL.0,
        client: &linux,
        other: &linux_other,
    };
    let mut idle = f64::INFINITY;
    for workload in WORKLOADS {
        let turns = if workload.is_judged { turns } else { QUICK_TURNS };
        let mut samples = [Vec::new(), Vec::new()];
        progress::step(workload.key, || -> Result<()> {
            for _ in 0..turns {
                for (side, samples) in [&ours, &linux].into_iter().zip(&mut samples) {
                    samples.push(side.run(world, workload)?);
                }
            }
            Ok(())
        })?;
        let [of_ours, of_linux] = &samples;
        let (a, b) = (ours.summary(workload, of_ours), linux.summary(workload, of_linux));
        report.table(
            format!("{}, median of {turns}", workload.key),
            table(workload, [(&ours, of_ours, &a), (&linux, of_linux, &b)]),
        );
        hypercalls(report, workload, of_ours);
        if workload.is_ping() {
            report.figure(format!("lab.{}.ratio", workload.key), a.rate / b.rate);
            continue;
        }
        report.figure(format!("lab.{}.cpu_ratio", workload.key), a.cpu / b.cpu);
        report.figure(format!("lab.{}.rate_ratio", workload.key), a.rate / b.rate);
        if workload.is_judged && workload.key.starts_with("tcp") {
            idle = idle.min(1.0 - a.share);
        }
    }
    report.figure("lab.firewall_idle.share", idle);
    Ok(())
}

/// The phases of our firewall's start. It is ready when it has an uplink and dom0's rules; clients are watched for from the
/// phase "devices" on.
fn start(world: &World, report: &mut Report) -> Result<()> {
    let mut lines = Vec::new();
    let mut ready = 0.0_f64;
    for phase in ["kernel", "tables", "devices", "database", "uplink"] {
        let said = format!("fw: phase {phase} ");
        let line = world.firewall()?.wait_console(&world.lab, &said, PATIENCE)?;
        let (wall, vcpu) = (steps::decimal(&line, "wall_ms")?, steps::decimal(&line, "vcpu_ms")?);
        lines.push(format!("{phase:<9} {wall:>7.1} ms of time, {vcpu:>7.1} ms of it running"));
        ready = ready.max(vcpu);
    }
    report.table("Start of our firewall, since its first instruction", lines);
    report.figure("boot.ready.vcpu_ms", ready);
    Ok(())
}

/// A Linux firewall VM beside ours, and two clients behind it.
fn linux_side(world: &World) -> Result<[Domain; 2]> {
    let netvm = world.netvm_plan(0)?;
    let netvm6 = netvm.ip6.as_deref().unwrap_or_default();
    let kernel = world.plan.kernel;
    let spec = |own: Place, role, gateways: (&str, &str), backend: &str| {
        let (name, ip, ip6) = own;
        let words = [("ip", ip), ("gw", gateways.0), ("ip6", ip6), ("gw6", gateways.1)];
        let mut spec = DomainSpec::linux(name, role, kernel, &words);
        spec.vifs.push(Vif::new(&format!("{ip} {ip6}"), backend));
        spec
    };
    let mut firewall = spec(LINUX_FIREWALL, Role::LinuxFirewall, (&netvm.ip, netvm6), &netvm.name);
    firewall.cpu = FIREWALL_CPU;
    world.lab.create(&firewall)?.wait_ready(&world.lab)?;
    let (backend, gateway, gateway6) = LINUX_FIREWALL;
    let client = |place: Place| -> Result<Domain> {
        let client = spec(place, Role::Client, (gateway, gateway6), backend);
        let client = world.lab.create(&client)?;
        client.wait_ready(&world.lab)?;
        Ok(client)
    };
    let [one, other] = LINUX_CLIENTS;
    Ok([client(one)?, client(other)?])
}

/// A firewall and its clients.
struct Side<'a> {
    name: &'static str,
    is_ours: bool,
    firewall: &'a str,
    client: &'a Domain,
    other: &'a Domain,
}

impl Workload {
    fn is_ping(&self) -> bool {
        self.per.1 == "ping"
    }
}

/// Medians of a side.
struct Summary {
    rate: f64,
    /// Processor seconds of the firewall for what the workload counts.
    cpu: f64,
    /// Part of the time that the firewall's processor was busy.
    share: f64,
}

impl Side<'_> {
    fn run(&self, world: &World, workload: &Workload) -> Result<Sample> {
        let server6 = world.plan.internet6.as_deref().unwrap_or_default();
        let named =
            |line: &str| line.replace("SERVER6", server6).replace("SERVER", &world.plan.internet);
        let line = named(workload.line);
        if let Some(beside) = workload.beside {
            self.other.exec_for(&world.lab, &named(beside), PATIENCE)?.ok(workload.key)?;
        }
        let effort_before = self.effort(world)?;
        let (before, begun) = (cpu(world)?, Instant::now());
        let out = self.client.exec_for(&world.lab, &line, PATIENCE)?.ok(workload.key)?;
        let (after, seconds) = (cpu(world)?, begun.elapsed().as_secs_f64());
        let effort = difference(&effort_before, self.effort(world)?);
        let Some((rate, amount)) = (workload.read)(&out) else {
            fail!("{}: {}: {out}", self.name, workload.key);
        };
        if workload.line.contains("5202") || workload.beside.is_some() {
            // What goes on beside has to end before the next turn.
            std::thread::sleep(BESIDE_ENDS);
        }
        Ok(Sample { rate, amount, seconds, cpu: difference(&before, after), effort })
    }

    /// The counters of `firewall.Stats`, if this is our firewall.
    fn effort(&self, world: &World) -> Result<BTreeMap<String, f64>> {
        let mut counts = BTreeMap::new();
        if !self.is_ours {
            return Ok(counts);
        }
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

    fn summary(&self, workload: &Workload, samples: &[Sample]) -> Summary {
        let own = |sample: &Sample| sample.cpu.get(self.firewall).copied().unwrap_or(f64::NAN);
        Summary {
            rate: median(samples.iter().map(|sample| sample.rate)),
            cpu: median(samples.iter().map(|sample| own(sample) / sample.amount * workload.per.0)),
            share: median(samples.iter().map(|sample| own(sample) / sample.seconds)),
        }
    }
}

/// Hypercalls, events and copies of our firewall, for a packet that it forwarded and for a MB.
///
/// The least that can be: for each batch of a client's frames, up or down, one hypercall that copies, and one for each sleep,
/// which takes the events with it; each byte copied once.
fn hypercalls(report: &mut Report, workload: &Workload, samples: &[Sample]) {
    let sum =
        |name: &str| -> f64 { samples.iter().filter_map(|sample| sample.effort.get(name)).sum() };
    let frames = sum("client sent-frames") + sum("uplink sent-frames");
    let bytes = sum("client sent-bytes") + sum("uplink sent-bytes");
    let (copies, notifications) = (sum("machine copies"), sum("machine notifications"));
    let of_clients = sum("machine batches_from_clients") + sum("machine batches_to_clients");
    let of_uplink = sum("machine batches_from_uplink") + sum("machine batches_to_uplink");
    let (all, sleeps) = (sum("machine hypercalls"), sum("machine sleeps"));
    let least = of_clients + sleeps;
    let batches = of_clients + of_uplink;
    report.table(
        format!("{}: hypercalls of our firewall", workload.key),
        vec![
            format!(
                "{:.3} hypercalls for a packet, {:.1} for a MB; the least for these batches: {:.3} and {:.1}",
                all / frames, all / bytes * 1e6, least / frames, least / bytes * 1e6
            ),
            format!(
                "{:.1} packets in a batch; {:.2} copying calls for a batch of clients' frames; {:.2} events for a batch; {:.2} sleeps for a batch",
                frames / batches * 2.0, copies / of_clients, notifications / batches, sleeps / batches
            ),
            format!(
                "{:.0} bytes copied for a packet, {:.3} for each byte forwarded; {:.0} allocations",
                sum("machine copied_bytes") / frames,
                sum("machine copied_bytes") / bytes,
                sum("machine allocations")
            ),
        ],
    );
    report.figure(format!("lab.{}.hypercalls_per_packet", workload.key), all / frames);
    report.figure(format!("lab.{}.hypercalls_per_mb", workload.key), all / bytes * 1e6);
    report.figure(format!("lab.{}.copies_per_batch", workload.key), copies / of_clients);
    report.figure(format!("lab.{}.notifications_per_batch", workload.key), notifications / batches);
    report.figure(format!("lab.{}.allocations", workload.key), sum("machine allocations"));
}

/// What changed.
fn difference(
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
fn table(workload: &Workload, sides: [(&Side<'_>, &Vec<Sample>, &Summary); 2]) -> Vec<String> {
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

/// Processor seconds that each domain has used, from `xl list` (in steps of 0.1 s).
fn cpu(world: &World) -> Result<BTreeMap<String, f64>> {
    let text = world.lab.sh("xl list")?;
    let read = |line: &str| -> Option<(String, f64)> {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        Some((name, words.next_back()?.parse().ok()?))
    };
    let used: BTreeMap<String, f64> = text.lines().skip(1).filter_map(read).collect();
    if used.is_empty() {
        return Err(Error::Failed(format!("xl list: {text:?}")));
    }
    Ok(used)
}

/// The receiver's line of iperf3: bytes per second, and bytes.
fn bytes(text: &str) -> Option<(f64, f64)> {
    let (rate, seconds) = receiver(text)?;
    Some((rate, rate * seconds))
}

/// The same for datagrams: how many arrived each second, and in all.
fn datagrams(text: &str) -> Option<(f64, f64)> {
    let (_, seconds) = receiver(text)?;
    let line = text.lines().rev().find(|line| line.contains("receiver"))?;
    let counts = |word: &str| -> Option<(f64, f64)> {
        let (lost, total) = word.split_once('/')?;
        Some((lost.parse().ok()?, total.parse().ok()?))
    };
    let (lost, total) = line.split_whitespace().find_map(counts)?;
    let arrived = total - lost;
    (arrived > 0.0 && seconds > 0.0).then_some((arrived / seconds, arrived))
}

/// Bytes per second and seconds.
fn receiver(text: &str) -> Option<(f64, f64)> {
    let line = text.lines().rev().find(|line| line.contains("receiver"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |unit: &str| {
        let at = words.iter().position(|word| *word == unit)?;
        words.get(at.checked_sub(1)?).copied()
    };
    let kilobits: f64 = before("Kbits/sec")?.parse().ok()?;
    let seconds: f64 = before("sec")?.split_once('-')?.1.parse().ok()?;
    (kilobits > 0.0 && seconds > 0.0).then_some((kilobits * 1000.0 / 8.0, seconds))
}

/// The average of ping, in milliseconds, and how many were answered.
fn round_trip(text: &str) -> Option<(f64, f64)> {
    let (_, numbers) = text.rsplit_once(" = ")?;
    let average = numbers.split('/').nth(1)?.parse().ok()?;
    Some((average, f64::from(steps::replies(text)?)))
}

/// The 99th percentile of the times, in milliseconds, and how many were answered. One that was not counts as a second.
fn worst(text: &str) -> Option<(f64, f64)> {
    let sent: usize = text.lines().find_map(|line| {
        line.split_once(" packets transmitted")?.0.split_whitespace().next_back()?.parse().ok()
    })?;
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split_once(" time=")?.1.split_whitespace().next()?.parse().ok())
        .collect();
    let answered = times.len();
    times.resize(sent.max(answered), 1000.0);
    times.sort_by(f64::total_cmp);
    let at = times.len().saturating_mul(99).div_ceil(100).saturating_sub(1);
    Some((*times.get(at)?, answered as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "[ ID] Interval           Transfer     Bitrate         Retr
[  5]   0.00-8.01   sec  20.0 MBytes  20933 Kbits/sec    0             sender
[  5]   0.00-8.00   sec  19.5 MBytes  20000 Kbits/sec                  receiver
";
    const UDP: &str =
        "[ ID] Interval           Transfer     Bitrate         Jitter    Lost/Total Datagrams
[  5]   0.00-5.00   sec  1.22 MBytes  2048 Kbits/sec  0.000 ms  0/20000 (0%)  sender
[  5]   0.00-5.00   sec  1.10 MBytes  1843 Kbits/sec  0.114 ms  2000/20000 (10%)  receiver
";
    const PING: &str = "30 packets transmitted, 30 received, 0% packet loss, time 5900ms
rtt min/avg/max/mdev = 0.500/1.250/3.000/0.100 ms";

    #[test]
    fn what_the_tools_print_is_read() {
        assert_eq!(bytes(TCP), Some((2_500_000.0, 20_000_000.0)));
        assert_eq!(datagrams(UDP), Some((3600.0, 18_000.0)));
        assert_eq!(round_trip(PING), Some((1.25, 30.0)));
        let times = "64 bytes from 192.0.2.1: icmp_seq=1 ttl=62 time=4.5 ms
64 bytes from 192.0.2.1: icmp_seq=2 ttl=62 time=1.5 ms

2 packets transmitted, 2 received, 0% packet loss, time 100ms";
        assert_eq!(worst(times), Some((4.5, 2.0)));
        let lost = times.replace("2 packets transmitted", "3 packets transmitted");
        assert_eq!(worst(&lost), Some((1000.0, 2.0)));
        for read in [bytes, datagrams, round_trip, worst] {
            assert_eq!(read("iperf3: error - unable to connect to server"), None);
            assert_eq!(read(""), None);
        }
    }
}
