//! 32 client vifs and all their flows in a domain of 16 MiB: what a byte costs when one of them is at work and when all are, and
//! what memory is left.
//!
//! All vifs are of one Linux VM, each with an address of its own, so that for the firewall they are 32 qubes, and who loads it is
//! the same in both cases: 32 programs with a transfer each, through one vif or through 32. (With eight VMs beside each other on two
//! processors each one gets to send a frame now and then: with all of them the firewall was offered 1.3 MB in a second, with one 12.)
//!
//! Linux makes super-frames of what a transfer sends in a millisecond. Under an emulator a transfer among 32 sends next to nothing in
//! one; at the 3.0 and 5.4 Gb/s that others measured in Qubes, divided by 32, it would be 12 and 21 KB. So what is compared are transfers
//! with super-frames of 32 segments at least (`tcp_min_tso_segs`; 46 KB, as a single transfer here has them); those that Linux
//! would make itself here are measured as well.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lab::effort::{self, Effort};
use super::lab::side::difference;
use super::report::{Report, median};
use crate::error::Result;
use crate::lab::guests::PART;
use crate::lab::plan::Plan;
use crate::lab::qemu::MachineOptions;
use crate::lab::world::{Kind, World};
use crate::lab::{Lab, cache};
use crate::scenarios::{many, steps};
use crate::xtask::{image, scenarios};
use crate::{apt, fail, progress};

const VIFS: usize = 32;
/// Memory of the firewall's domain.
const FIREWALL_MIB: u32 = 16;
/// Flows that all clients have open together.
const FLOWS: u32 = 16_384;
const FLOWS_OF_A_VIF: u32 = FLOWS / VIFS as u32;
/// Flows that the table has room for: those, and what the transfers leave behind.
const TABLE: u32 = FLOWS + 2048;
/// Seconds of a run.
const SECONDS: u32 = 8;
/// Memory of their Linux VM, MiB. Linux has too little with 128 for so many sockets, and what arrives for the one that is read
/// is thrown away.
const CLIENT_MIB: u32 = 1024;
/// Segments of a super-frame, at least: what is compared, and Linux' own choice.
const SEGMENTS: [(u32, &str); 2] = [(32, ""), (2, "small_frames.")];
/// How many vifs are at work in each kind of run.
const KINDS: [usize; 2] = [1, VIFS];
/// Ports of the servers, one for each transfer.
const FIRST_PORT: usize = 5300;
/// Runs of each kind.
const TURNS: usize = 3;
/// 32 transfers at once on a busy host.
const PATIENCE: Duration = Duration::from_secs(240);

/// Measures it.
pub(super) fn run(report: &mut Report) -> Result<()> {
    apt::ensure(apt::LAB)?;
    let image = image::build()?;
    let images = cache::images(false)?;
    scenarios::build_dom0d()?;
    let options = MachineOptions { name: "scale".into(), memory_mib: 4096, ..Default::default() };
    let lab = Lab::boot(&images, &options)?;
    let mut world = World::new(lab, plan(), Kind::Image(image.path))?;
    let result = measure(&mut world, report);
    if result.is_err() {
        scenarios::save_logs(Some(&world), "scale");
    }
    result
}

/// Many clients, and memory for what they do.
fn plan() -> Plan {
    let mut plan = many::plan(1, VIFS);
    plan.firewall.memory_mib = FIREWALL_MIB;
    plan.netvms.iter_mut().for_each(|netvm| netvm.memory_mib = 512);
    plan.clients.iter_mut().for_each(|client| client.memory_mib = CLIENT_MIB);
    plan
}

fn measure(world: &mut World, report: &mut Report) -> Result<()> {
    world.extra_words = format!("fw-flows={TABLE}");
    progress::step("NetVM and firewall", || {
        world.need_netvm(0)?;
        world.need_firewall(Some(0))
    })?;
    let budgets = world.firewall()?.wait_console(&world.lab, "fw: budgets_kib", PATIENCE)?;
    progress::step("clients", || many::start(world, 0, VIFS))?;
    let mut lines = vec![budgets];
    for (segments, name) in SEGMENTS {
        choose_segments(world, segments)?;
        for (direction, reverse) in [("up", ""), ("down", " -R")] {
            let heading = format!("TCP {direction}, {segments} segments in a super-frame at least");
            let mut runs = KINDS.map(|_| Vec::new());
            progress::step(&heading, || -> Result<()> {
                for _ in 0..TURNS {
                    for (vifs, runs) in KINDS.into_iter().zip(&mut runs) {
                        runs.push(transfer(world, vifs, reverse)?);
                    }
                }
                Ok(())
            })?;
            lines.push(heading);
            for (vifs, runs) in KINDS.into_iter().zip(&runs) {
                lines.extend(told(vifs, runs));
            }
            let [one, all] = runs.map(|runs| seconds_per_gb(&runs));
            report.figure(format!("scale.tcp4_{direction}.{name}cpu_ratio"), all / one);
        }
    }
    progress::step("flows", || open_flows(world))?;
    let flows = memory(world)?;
    for reverse in ["", " -R"] {
        progress::step("all clients at work beside them", || transfer(world, VIFS, reverse))?;
    }
    steps::download(world, world.client(0)?, PART)?;
    let after = memory(world)?;
    for (when, book) in [("with all flows open", &flows), ("after full load beside them", &after)] {
        lines.push(format!("{when}: {book}"));
    }
    for (book, key) in [(&flows, "scale.flows"), (&after, "scale.flows_after_load")] {
        report.figure(key, book.flows);
        if book.flows < f64::from(FLOWS) * 0.98 || book.leaks > 0.0 || book.clients < VIFS as f64 {
            fail!("{key}: {book}; {FLOWS} flows were opened");
        }
    }
    report.table(
        format!("{VIFS} clients, {FLOWS} flows and those of transfers, {FIREWALL_MIB} MiB"),
        lines,
    );
    Ok(())
}

/// What transfers took.
struct Run {
    /// Seconds of the firewall's processor.
    used: f64,
    bytes: f64,
    seconds: f64,
    counted: BTreeMap<String, f64>,
}

fn seconds_per_gb(runs: &[Run]) -> f64 {
    median(runs.iter().map(|run| run.used * 1e9 / run.bytes))
}

fn told(vifs: usize, runs: &[Run]) -> Vec<String> {
    let each: Vec<String> = runs
        .iter()
        .map(|run| format!("{:.0} MB in {:.1} s", run.bytes / 1e6, run.seconds))
        .collect();
    let mut lines = vec![format!(
        "{VIFS} transfers through {vifs}: {:.1} s of the firewall's CPU for a GB; {}",
        seconds_per_gb(runs),
        each.join(", ")
    )];
    let sum = |name: &str| runs.iter().filter_map(|run| run.counted.get(name)).sum::<f64>();
    lines.extend(Effort::new(sum).lines.into_iter().map(|line| format!("    {line}")));
    lines
}

/// What the senders of both directions put into a super-frame at least.
fn choose_segments(world: &World, segments: u32) -> Result<()> {
    let line = format!("echo {segments} >/proc/sys/net/ipv4/tcp_min_tso_segs");
    for end in [world.client(0)?, world.netvm(0)?] {
        end.exec_for(&world.lab, &line, PATIENCE)?.ok("tcp_min_tso_segs")?;
    }
    Ok(())
}

/// Has 32 programs do a transfer each at the same time, through the first `vifs`; what they took.
fn transfer(world: &World, vifs: usize, reverse: &str) -> Result<Run> {
    let server = &world.plan.internet;
    let ports: Vec<String> = (0..VIFS).map(|index| (FIRST_PORT + index).to_string()).collect();
    let serve = format!(
        "killall iperf3 2>/dev/null && sleep 1; for port in {}; do iperf3 -s -B {server} -p $port -D; done; \
         for i in $(seq 100); do [ $(grep -c ' 0A ' /proc/net/tcp) -ge {VIFS} ] && break; sleep 0.1; done; sleep 1",
        ports.join(" ")
    );
    world.netvm(0)?.exec_for(&world.lab, &serve, PATIENCE)?;
    let mut line = String::from("rm -f /tmp/o.*; ");
    for index in 0..VIFS {
        line.push_str(&format!(
            "iperf3 -f k -t {SECONDS} -c {server} -B {} -p {}{reverse} >/tmp/o.{index} 2>&1 & ",
            world.client_ip(index % vifs)?,
            FIRST_PORT + index
        ));
    }
    line.push_str(
        "wait; for each in /tmp/o.*; do grep receiver $each | tail -n 1 | grep . || cat $each; done",
    );
    let (name, client) = (&world.plan.firewall.name, world.client(0)?);
    let counted = effort::counters(world)?;
    let (before, begun) = (world.lab.cpu_seconds(name)?, Instant::now());
    let out = client.exec_for(&world.lab, &line, PATIENCE)?.ok("iperf3")?;
    let used = f64::from(world.lab.cpu_seconds(name)? - before);
    let seconds = begun.elapsed().as_secs_f64();
    let counted = difference(&counted, effort::counters(world)?);
    let amounts: Vec<f64> = out.lines().filter_map(received).collect();
    if amounts.len() != VIFS {
        fail!("{} of {VIFS} transfers ended: {out}", amounts.len());
    }
    Ok(Run { used, bytes: amounts.iter().sum(), seconds, counted })
}

/// The bytes of a receiver's line of iperf3.
fn received(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |unit: &str| words.iter().position(|word| *word == unit)?.checked_sub(1);
    let kilobits: f64 = words.get(before("Kbits/sec")?)?.parse().ok()?;
    let seconds: f64 = words.get(before("sec")?)?.split_once('-')?.1.parse().ok()?;
    line.contains("receiver").then_some(kilobits * 1000.0 / 8.0 * seconds)
}

/// Each vif sends one datagram from each of so many ports.
fn open_flows(world: &World) -> Result<()> {
    let mut line =
        String::from("modprobe pktgen; echo rem_device_all >/proc/net/pktgen/kpktgend_0; ");
    for index in 0..VIFS {
        let (ip, device) = (world.client_ip(index)?, format!("eth{index}"));
        let last = 20_000 + FLOWS_OF_A_VIF - 1;
        line.push_str(&format!(
            "echo add_device {device} >/proc/net/pktgen/kpktgend_0; for word in 'count {FLOWS_OF_A_VIF}' \
             'clone_skb 0' 'pkt_size 60' 'delay 4000000' 'src_min {ip}' 'src_max {ip}' 'dst {}' \
             'dst_mac fe:ff:ff:ff:ff:ff' 'udp_src_min 20000' 'udp_src_max {last}' 'udp_dst_min 9' 'udp_dst_max 9'; \
             do echo \"$word\" >/proc/net/pktgen/{device}; done; ",
            world.plan.internet
        ));
    }
    line.push_str("echo start >/proc/net/pktgen/pgctrl; grep -h Result: /proc/net/pktgen/eth*");
    let out = world.client(0)?.exec_for(&world.lab, &line, PATIENCE)?.ok("pktgen")?;
    if out.matches("OK").count() != VIFS {
        fail!("pktgen: {out}");
    }
    Ok(())
}

/// What `firewall.Memory` says of the whole.
struct Book {
    flows: f64,
    clients: f64,
    leaks: f64,
    text: String,
}

impl std::fmt::Display for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn memory(world: &World) -> Result<Book> {
    let out = world.dom0d()?.call(&world.lab, "QUBESRPC firewall.Memory+ dom0")?;
    let first: Value =
        serde_json::from_str(out.text.lines().next().unwrap_or_default()).unwrap_or_default();
    let number = |key: &str| first.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let [heap, size, pages, all, refused] =
        ["heap_used", "heap_size", "pages_used", "pages", "operations_refused"].map(number);
    let [flows, clients, leaks] = ["flows", "clients", "leaks"].map(number);
    let kib = |bytes: f64| bytes / 1024.0;
    let failed: Vec<String> = out
        .text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|part| part.get("failures").and_then(Value::as_u64).unwrap_or(0) > 0)
        .filter_map(|part| {
            Some(format!("{} {}", part.get("part")?.as_str()?, part.get("failures")?))
        })
        .collect();
    let text = format!(
        "{flows} flows, {clients} clients, heap {:.0} of {:.0} KiB, pages {pages} of {all}, leaks {leaks}, \
         operations put off {refused}, refused requests: {}",
        kib(heap),
        kib(size),
        if failed.is_empty() { "none".into() } else { failed.join(", ") }
    );
    Ok(Book { flows, clients, leaks, text })
}
