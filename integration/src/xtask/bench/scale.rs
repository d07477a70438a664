//! 32 client vifs and all their flows in a domain of 16 MiB: what a byte costs when one of them is at work and when all are, and
//! what memory is left.
//!
//! One client has as many transfers then as all of them together: what a transfer sends at once follows from its rate (Linux
//! makes super-frames of what goes out in a millisecond), so that 32 of them bring many more frames for a byte than one, whose
//! ever they are. What a single transfer costs is printed beside.
//!
//! Each of eight Linux VMs has four vifs, each with an address of its own, which for the firewall are 32 qubes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lab::effort;
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

const VMS: usize = 1;
const VIFS_OF_A_VM: usize = 32;
const VIFS: usize = VMS * VIFS_OF_A_VM;
/// Memory of the firewall's domain.
const FIREWALL_MIB: u32 = 16;
/// The table's size.
const FLOWS: u32 = 16_384;
/// Flows that each client opens: all of them, but for some that are left to the transfers beside them.
const FLOWS_OF_A_VIF: u32 = FLOWS / VIFS as u32 - 24;
/// Seconds of a run.
const SECONDS: u32 = 8;
/// How many clients are at work in each kind of run, and the transfers of each.
const KINDS: [(usize, usize); 3] = [(1, VIFS), (VIFS, 1), (1, 1)];
/// Ports of the servers, one for each client.
const FIRST_PORT: usize = 5300;
/// Runs of each kind.
const TURNS: usize = 2;
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
    let mut plan = many::plan(VMS, VIFS_OF_A_VM);
    plan.firewall.memory_mib = FIREWALL_MIB;
    plan.netvms.iter_mut().for_each(|netvm| netvm.memory_mib = 512);
    // One with all transfers: with 128 MiB Linux has too little for so many sockets, and what arrives for the one that is read is
    // thrown away.
    plan.clients.iter_mut().take(1).for_each(|client| client.memory_mib = 1024);
    plan
}

fn measure(world: &mut World, report: &mut Report) -> Result<()> {
    world.extra_words = format!("fw-flows={FLOWS}");
    progress::step("NetVM and firewall", || {
        world.need_netvm(0)?;
        world.need_firewall(Some(0))
    })?;
    let budgets = world.firewall()?.wait_console(&world.lab, "fw: budgets_kib", PATIENCE)?;
    progress::step("clients", || (0..VMS).try_for_each(|vm| many::start(world, vm, VIFS_OF_A_VM)))?;
    let line = format!("echo 32 >/proc/sys/net/ipv4/tcp_min_tso_segs");
    for end in [world.client(0)?, world.netvm(0)?] { end.exec_for(&world.lab, &line, PATIENCE)?.ok("tso")?; }
    let mut lines = vec![budgets];
    for (name, key, reverse) in [("TCP up", "up", ""), ("TCP down", "down", " -R")] {
        let mut cost = KINDS.map(|_| Vec::new());
        progress::step(name, || -> Result<()> {
            for _ in 0..TURNS {
                for (kind, cost) in KINDS.into_iter().zip(&mut cost) {
                    cost.push(transfer(world, kind, reverse)?);
                }
            }
            Ok(())
        })?;
        let per_gb = |runs: &[Run]| median(runs.iter().map(|run| run.used * 1e9 / run.bytes));
        let [one, all, single] = [0, 1, 2].map(|kind| per_gb(&cost[kind]));
        for (kind, runs) in KINDS.iter().zip(&cost) {
            let sum = |name: &str| runs.iter().filter_map(|run| run.counted.get(name)).sum::<f64>();
            for run in runs {
                lines.push(format!(
                    "{name} {kind:?}: {:.1} MB in {:.1} s, {:.1} s of CPU",
                    run.bytes / 1e6,
                    run.seconds,
                    run.used
                ));
            }
            lines.extend(effort::Effort::new(sum).lines);
        }
        lines.push(format!(
            "{name}: {one:.1} s of the firewall's CPU for a GB in {VIFS} transfers of one client, {all:.1} s in one of each of {VIFS} \
             clients; {single:.1} s in a single one"
        ));
        report.figure(format!("scale.tcp4_{key}.cpu_ratio"), all / one);
    }
    progress::step("flows", || (0..VMS).try_for_each(|vm| open_flows(world, vm)))?;
    let flows = memory(world)?;
    for reverse in ["", " -R"] {
        progress::step("all clients at work beside them", || transfer(world, (VIFS, 1), reverse))?;
    }
    steps::download(world, world.client(0)?, PART)?;
    let after = memory(world)?;
    for (when, book) in [("with all flows open", &flows), ("after full load beside them", &after)] {
        lines.push(format!("{when}: {book}"));
    }
    for (book, key) in [(&flows, "scale.flows"), (&after, "scale.flows_after_load")] {
        report.figure(key, book.flows);
        if book.flows < f64::from(FLOWS) * 0.95 || book.leaks > 0.0 || book.clients < VIFS as f64 {
            fail!("{key}: {book}, of {FLOWS} flows");
        }
    }
    let opened = VIFS as u32 * FLOWS_OF_A_VIF;
    report.table(
        format!("{VIFS} clients, {opened} flows and those of transfers, {FIREWALL_MIB} MiB"),
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

/// Has the first clients do so many transfers each at the same time; what they took.
fn transfer(world: &World, (clients, each): (usize, usize), reverse: &str) -> Result<Run> {
    let server = &world.plan.internet;
    let transfers = clients * each;
    let ports: Vec<String> = (0..transfers).map(|index| (FIRST_PORT + index).to_string()).collect();
    let serve = format!(
        "killall iperf3 2>/dev/null && sleep 1; for port in {}; do iperf3 -s -B {server} -p $port -D; done; \
         for i in $(seq 100); do [ $(grep -c ' 0A ' /proc/net/tcp) -ge {transfers} ] && break; sleep 0.1; done; sleep 1",
        ports.join(" ")
    );
    world.netvm(0)?.exec_for(&world.lab, &serve, PATIENCE)?;
    let name = &world.plan.firewall.name;
    let counted = effort::counters(world)?;
    let (before, begun) = (world.lab.cpu_seconds(name)?, Instant::now());
    let mut running = Vec::new();
    for vm in 0..clients.div_ceil(VIFS_OF_A_VM) {
        let first = vm * VIFS_OF_A_VM;
        let mut line = String::from("rm -f /tmp/o.*; ");
        for index in (first..clients.min(first + VIFS_OF_A_VM))
            .flat_map(|index| std::iter::repeat_n(index, each))
            .enumerate()
        {
            line.push_str(&format!(
                "iperf3 -f k -t {SECONDS} -c {server} -B {} -p {}{reverse} >/tmp/o.{} 2>&1 & ",
                world.client_ip(index.1)?,
                FIRST_PORT + vm * VIFS_OF_A_VM * each + index.0,
                index.0
            ));
        }
        line.push_str("wait; for each in /tmp/o.*; do grep receiver $each | tail -n 1 | grep . || cat $each; done");
        running.push((first, world.client(first)?.spawn(&world.lab, &line)?));
    }
    let (mut ended, mut bytes) = (0, 0.0);
    for (first, transfers) in running {
        let out = transfers.finish(&world.lab, world.client(first)?, PATIENCE)?.ok("iperf3")?;
        for line in out.lines() {
            match received(line) {
                Some(amount) => (ended, bytes) = (ended + 1, bytes + amount),
                None => progress::say(format!("{}: {line}", world.client(first)?.name)),
            }
        }
    }
    if ended != transfers {
        fail!("{ended} of {transfers} transfers ended");
    }
    let used = world.lab.cpu_seconds(name)? - before;
    let counted = difference(&counted, effort::counters(world)?);
    Ok(Run { used: f64::from(used), bytes, seconds: begun.elapsed().as_secs_f64(), counted })
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
fn open_flows(world: &World, vm: usize) -> Result<()> {
    let first = vm * VIFS_OF_A_VM;
    let mut line =
        String::from("modprobe pktgen; echo rem_device_all >/proc/net/pktgen/kpktgend_0; ");
    for index in first..first + VIFS_OF_A_VM {
        let (ip, device) = (world.client_ip(index)?, format!("eth{}", index - first));
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
    let out = world.client(first)?.exec_for(&world.lab, &line, PATIENCE)?.ok("pktgen")?;
    if out.matches("OK").count() != VIFS_OF_A_VM {
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
