//! Our image and a Linux firewall VM on real Xen: side by side behind one NetVM, each with clients of its own, measured
//! in turns. Processor time is what Xen says of each domain.
//!
//! `workloads` says what the clients do, `side` runs it behind one firewall, `effort` tells what ours asked the hypervisor
//! for, `capture` looks at what passes on both sides, `again` how long a firewall takes from its creation to the first packet,
//! `floor` what a datagram costs that is only looked at, `lost` tells whether the emulator has lost a guest.

mod again;
mod capture;
pub(super) mod effort;
mod floor;
mod lost;
pub(super) mod side;
mod workloads;

use std::collections::BTreeSet;
use std::time::Duration;

use super::report::{Report, median};
use crate::error::Result;
use crate::lab::dom0d::Dom0d;
use crate::lab::domain::{Domain, DomainSpec, Vif};
use crate::lab::guests::{BIG, Role};
use crate::lab::plan::{FIREWALL_CPU, Plan};
use crate::lab::qemu::MachineOptions;
use crate::lab::world::{Kind, World};
use crate::lab::{Lab, cache};
use crate::scenarios::steps::{self, ALICE, BOB};
use crate::xtask::{image, scenarios};
use crate::{apt, fail, progress};
use side::Side;
use workloads::WORKLOADS;

/// Turns of each side, and when it has to be quick.
const TURNS: usize = 5;
const QUICK_TURNS: usize = 2;
/// Machines that are booted at most, because the emulator failed in the ones before.
const BOOTS: usize = 4;
/// A run may take so long on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);
/// Memory of a client and of the Linux firewall VM in MiB: what Qubes starts a VM with. With much less the windows of a
/// client's connections stay small.
const LINUX_MIB: u32 = 400;

/// Names and addresses.
type Place = (&'static str, &'static str, &'static str);
const LINUX_FIREWALL: Place = ("linux-firewall", "10.137.0.31", "fd09:24ef:4179::a89:1f");
const LINUX_CLIENTS: [Place; 2] = [
    ("linux-client", "10.137.0.32", "fd09:24ef:4179::a89:20"),
    ("linux-other", "10.137.0.33", "fd09:24ef:4179::a89:21"),
];

/// Which workloads, and how often in turns.
struct Chosen<'a> {
    /// None: all.
    only: Option<&'a str>,
    turns: usize,
}

impl Chosen<'_> {
    fn wants(&self, key: &str) -> bool {
        self.only.is_none_or(|only| only.split(',').any(|one| one == key))
    }
}

/// Measures in the lab: quickly, if so wished, and only what `only` names (keys with commas between them).
pub(super) fn run(report: &mut Report, is_quick: bool, only: Option<&str>) -> Result<()> {
    let turns = if is_quick { QUICK_TURNS } else { TURNS };
    let chosen = Chosen { only, turns };
    let keys =
        WORKLOADS.iter().map(|workload| workload.key).chain(["start", "capture", "first_packet"]);
    for one in only.into_iter().flat_map(|only| only.split(',')) {
        if !keys.clone().any(|key| key == one) {
            fail!("no workload {one:?}; there are {}", keys.collect::<Vec<_>>().join(", "));
        }
    }
    apt::ensure(apt::LAB)?;
    let image = image::build()?;
    let images = cache::images(false)?;
    scenarios::build_dom0d()?;
    report.figure("image.bytes", image.size as f64);
    let mut done = Done::default();
    for boot in 1..=BOOTS {
        let machine =
            MachineOptions { name: "bench".into(), memory_mib: 4096, ..Default::default() };
        let lab = Lab::boot(&images, &machine)?;
        let mut plan = Plan::usual();
        plan.clients.iter_mut().for_each(|client| client.memory_mib = LINUX_MIB);
        let mut world = World::new(lab, plan, Kind::Image(image.path.clone()))?;
        let mut linux = None;
        let Err(error) = measure(&mut world, &mut linux, report, &chosen, &mut done) else { break };
        scenarios::save_logs(Some(&world), "bench");
        let fault = world.lab.fault().or_else(|| lost::guest(&world, linux.as_ref()));
        let Some(fault) = fault.filter(|_| boot < BOOTS) else { return Err(error) };
        progress::say(format!(
            "emulator fault, what is not done yet on a fresh machine: {fault} ({error})"
        ));
        done.faults.push(fault);
    }
    if !done.faults.is_empty() {
        report.table(
            "Faults of the emulator, after which the rest ran on a fresh machine",
            done.faults,
        );
    }
    Ok(())
}

/// What has been measured, on whichever machine: that is not done again.
#[derive(Default)]
struct Done {
    parts: BTreeSet<&'static str>,
    /// Least idle share of our firewall in a judged transfer.
    idle: Option<f64>,
    faults: Vec<String>,
}

impl Done {
    /// Does a part once.
    fn once(&mut self, part: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if !self.parts.contains(part) {
            work()?;
            self.parts.insert(part);
        }
        Ok(())
    }
}

fn measure(
    world: &mut World,
    place: &mut Option<LinuxSide>,
    report: &mut Report,
    chosen: &Chosen<'_>,
    done: &mut Done,
) -> Result<()> {
    // As Qubes starts it: without words for the log.
    world.extra_words.clear();
    progress::step("NetVM", || world.need_netvm(0))?;
    done.once("start", || progress::step("our firewall starts", || starts(world, report)))?;
    if chosen.only == Some("start") {
        return Ok(());
    }
    progress::step("our firewall and its clients", || {
        world.need_firewall(Some(0))?;
        world.need_client(ALICE)?;
        world.need_client(BOB)
    })?;
    let linux = progress::step("Linux firewall and its clients", || LinuxSide::start(world))?;
    let linux = place.insert(linux);
    done.once("memory", || memory(world, report))?;
    serve(world, linux)?;
    // The content of what iperf3 sends is nobody's: that files arrive whole is looked at before and after.
    steps::download(world, world.client(ALICE)?, BIG)?;
    workloads(world, linux, report, chosen, done)?;
    steps::download(world, world.client(ALICE)?, BIG)?;
    if chosen.wants("capture") {
        done.once("capture", || capture::measure(world, report))?;
    }
    if chosen.wants("first_packet") {
        done.once("first_packet", || again::measure(world, linux, report, chosen.turns))?;
    }
    Ok(())
}

/// The servers of iperf3, and what the two firewalls need so that one client reaches another.
fn serve(world: &World, linux: &LinuxSide) -> Result<()> {
    let servers = [Some(&world.plan.internet), world.plan.internet6.as_ref()];
    for server in servers.into_iter().flatten() {
        for port in [5201, 5202] {
            world.sh(world.netvm(0)?, &format!("iperf3 -s -B {server} -p {port} -D"))?;
        }
    }
    for other in [world.client(BOB)?, &linux.other] {
        world.sh(other, "iperf3 -s -D")?;
    }
    let (from, to) = (world.client_ip(ALICE)?, world.client_ip(BOB)?);
    let allow = format!("write /vm-config/fw-allow '{from}>{to}/tcp/5201'");
    world.dom0d()?.db(&world.lab, &allow)?;
    let rule =
        "nft insert rule ip labfw through_us iifname 'vif*' oifname 'vif*' tcp dport 5201 accept";
    world.sh(&linux.firewall, rule).map(drop)
}

fn workloads(
    world: &World,
    linux: &LinuxSide,
    report: &mut Report,
    chosen: &Chosen<'_>,
    done: &mut Done,
) -> Result<()> {
    let bob_ip = world.client_ip(BOB)?;
    let ours = Side {
        name: "ours",
        is_ours: true,
        firewall: world.firewall()?,
        client: world.client(ALICE)?,
        other: world.client(BOB)?,
        other_ip: &bob_ip,
    };
    let [_, (_, other_ip, _)] = LINUX_CLIENTS;
    let linux = Side {
        name: "Linux",
        is_ours: false,
        firewall: &linux.firewall,
        client: &linux.client,
        other: &linux.other,
        other_ip,
    };
    for workload in WORKLOADS.iter().filter(|workload| chosen.wants(workload.key)) {
        if done.parts.contains(workload.key) {
            continue;
        }
        let turns = if workload.is_judged { chosen.turns } else { QUICK_TURNS };
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
        if workload.counts_packets() && workload.is_judged {
            floor::measure(world, &ours, b.cpu, report)?;
        }
        report.table(
            format!("{}, median of {turns}", workload.key),
            side::table(workload, [(&ours, of_ours, &a), (&linux, of_linux, &b)]),
        );
        done.parts.insert(workload.key);
        effort::hypercalls(report, workload, of_ours);
        if workload.unit.1 == "MB/s" {
            effort::faults(report, workload, of_ours)?;
        }
        if workload.is_ping() {
            report.figure(format!("lab.{}.ratio", workload.key), a.rate / b.rate);
            continue;
        }
        report.figure(format!("lab.{}.cpu_ratio", workload.key), a.cpu / b.cpu);
        report.figure(format!("lab.{}.rate_ratio", workload.key), a.rate / b.rate);
        if workload.is_judged && workload.key.starts_with("tcp") {
            let idle = done.idle.unwrap_or(f64::INFINITY).min(1.0 - a.share);
            done.idle = Some(idle);
            report.figure("lab.firewall_idle.share", idle);
        }
    }
    Ok(())
}

const PHASES: [&str; 5] = ["kernel", "tables", "devices", "database", "uplink"];

/// The phases of our firewall's start, the medians of some starts. It is ready when it has an uplink and dom0's rules; clients are
/// watched for from the phase "devices" on.
fn starts(world: &mut World, report: &mut Report) -> Result<()> {
    let mut samples: [[Vec<f64>; 2]; PHASES.len()] = Default::default();
    let mut ready = Vec::new();
    for turn in 0..TURNS {
        if turn > 0 {
            let name = world.firewall()?.name.clone();
            world.destroy(&name)?;
        }
        world.need_firewall(Some(0))?;
        let mut latest = 0.0_f64;
        for (phase, [walls, vcpus]) in PHASES.iter().zip(&mut samples) {
            let said = format!("fw: phase {phase} ");
            let line = world.firewall()?.wait_console(&world.lab, &said, PATIENCE)?;
            walls.push(steps::decimal(&line, "wall_ms")?);
            let vcpu = steps::decimal(&line, "vcpu_ms")?;
            vcpus.push(vcpu);
            // dom0's rules may come after the uplink.
            latest = latest.max(vcpu);
        }
        ready.push(latest);
    }
    let each: Vec<String> = ready.iter().map(|ms| format!("{ms:.1}")).collect();
    let of = |all: &Vec<f64>| median(all.iter().copied());
    let mut lines: Vec<String> = PHASES
        .iter()
        .zip(&samples)
        .map(|(phase, [walls, vcpus])| {
            format!("{phase:<9} {:>7.1} ms of time, {:>7.1} ms of it running", of(walls), of(vcpus))
        })
        .collect();
    lines.push(format!("until all of it: {} ms running", each.join(", ")));
    report.table(
        format!("Start of our firewall, since its first instruction, medians of {TURNS}"),
        lines,
    );
    report.figure("boot.ready.vcpu_ms", of(&ready));
    Ok(())
}

/// What the two firewalls were given.
fn memory(world: &World, report: &mut Report) -> Result<()> {
    let text = world.lab.sh("xl list")?;
    let of = |name: &str| -> f64 {
        let mut lines = text.lines().map(str::split_whitespace);
        let mut words =
            lines.find_map(|mut words| words.next().filter(|one| *one == name).and(Some(words)));
        words.as_mut().and_then(|words| words.nth(1)?.parse().ok()).unwrap_or(f64::NAN)
    };
    let (ours, linux) = (of(&world.plan.firewall.name), of(LINUX_FIREWALL.0));
    report.table("Memory", vec![format!("ours {ours:.0} MiB, Linux {linux:.0} MiB")]);
    report.figure("lab.memory.ratio", ours / linux);
    Ok(())
}

/// A Linux firewall VM beside ours, and two clients behind it.
struct LinuxSide {
    firewall: Domain,
    /// Nothing in this VM asks it; but dom0 starts one for each VM, so what a start takes is the same for both.
    database: Dom0d,
    client: Domain,
    other: Domain,
}

impl LinuxSide {
    fn start(world: &World) -> Result<Self> {
        let (firewall, database) = Self::start_firewall(world)?;
        let [one, other] = LINUX_CLIENTS;
        let client = |place: Place| -> Result<Domain> {
            let (backend, gateway, gateway6) = LINUX_FIREWALL;
            let mut client = linux_spec(world, place, Role::Client, (gateway, gateway6), backend);
            client.memory_mib = LINUX_MIB;
            let client = world.lab.create(&client)?;
            client.wait_ready(&world.lab)?;
            Ok(client)
        };
        Ok(Self { firewall, database, client: client(one)?, other: client(other)? })
    }

    fn start_firewall(world: &World) -> Result<(Domain, Dom0d)> {
        let firewall = world.lab.create(&Self::firewall_spec(world)?)?;
        let database = Dom0d::start_empty(&world.lab, &firewall)?;
        firewall.wait_ready(&world.lab)?;
        Ok((firewall, database))
    }

    /// The Linux firewall VM, paused.
    fn firewall_spec(world: &World) -> Result<DomainSpec> {
        let netvm = world.netvm_plan(0)?;
        let gateways = (netvm.ip.as_str(), netvm.ip6.as_deref().unwrap_or_default());
        let mut firewall =
            linux_spec(world, LINUX_FIREWALL, Role::LinuxFirewall, gateways, &netvm.name);
        firewall.cpu = FIREWALL_CPU;
        firewall.memory_mib = LINUX_MIB;
        firewall.paused = true;
        Ok(firewall)
    }
}

fn linux_spec(
    world: &World,
    place: Place,
    role: Role,
    gateways: (&str, &str),
    backend: &str,
) -> DomainSpec {
    let (name, ip, ip6) = place;
    let words = [("ip", ip), ("gw", gateways.0), ("ip6", ip6), ("gw6", gateways.1)];
    let mut spec = DomainSpec::linux(name, role, world.plan.kernel, &words);
    spec.vifs.push(vif(place, backend));
    spec
}

fn vif((_, ip, ip6): Place, backend: &str) -> Vif {
    Vif::new(&format!("{ip} {ip6}"), backend)
}
