//! From the creation of a firewall's domain to the first packet of a client that has been running all the time: what a user
//! waits for when the firewall is restarted.

use std::time::{Duration, Instant};

use super::{LINUX_CLIENTS, LINUX_FIREWALL, LinuxSide, vif};
use crate::error::Result;
use crate::lab::domain::{Background, Domain};
use crate::lab::world::World;
use crate::scenarios::lifecycle;
use crate::scenarios::steps::{ALICE, BOB};
use crate::xtask::bench::report::{Report, median};
use crate::{fail, progress};

/// A restart may take so long on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the end of the old firewall leaves to do in dom0 and in the NetVM is over by then.
const QUIET: Duration = Duration::from_secs(3);

pub(super) fn measure(
    world: &mut World,
    linux: &mut LinuxSide,
    report: &mut Report,
    turns: usize,
) -> Result<()> {
    // One client each: the vif of another one would stay behind without a backend.
    let bob = world.client(BOB)?.name.clone();
    world.destroy(&bob)?;
    world.lab.destroy(&linux.other.name)?;
    let mut seconds = [Vec::new(), Vec::new()];
    let mut parts = [Vec::new(), Vec::new()];
    progress::step("first_packet", || -> Result<()> {
        for _ in 0..turns {
            for (again, (seconds, parts)) in [restart_ours(world)?, restart_linux(world, linux)?]
                .into_iter()
                .zip(seconds.iter_mut().zip(&mut parts))
            {
                seconds.push(again.seconds);
                *parts = again.parts;
            }
        }
        Ok(())
    })?;
    let [ours, linux] = seconds.map(|seconds| median(seconds.into_iter()));
    let told = |name: &str, seconds: f64, parts: &[(&str, f32)]| {
        let parts: Vec<String> =
            parts.iter().map(|(part, seconds)| format!("{part} {seconds:.1}")).collect();
        format!("{name:<5} {seconds:.2} s; of the last one in dom0: {}", parts.join(", "))
    };
    let [of_ours, of_linux] = &parts;
    report.table(
        format!(
            "From the order to make a firewall to the first packet forwarded, median of {turns}"
        ),
        vec![told("ours", ours, of_ours), told("Linux", linux, of_linux)],
    );
    report.figure("lab.first_packet.ratio", ours / linux);
    // The same since the domain is there, which dom0 and Xen make of the same size of work for both.
    let made = |parts: &[(&str, f32)]| {
        parts
            .iter()
            .find(|(part, _)| *part == CREATE)
            .map_or(f64::NAN, |(_, seconds)| f64::from(*seconds))
    };
    report.figure(
        "lab.first_packet_since_made.ratio",
        (ours - made(of_ours)) / (linux - made(of_linux)),
    );
    Ok(())
}

/// One start.
struct Again {
    /// From the order to the first answer that the client got.
    seconds: f64,
    /// What dom0 did, and for how many seconds.
    parts: Vec<(&'static str, f32)>,
}

/// Dom0's first part.
const CREATE: &str = "xl create";

fn restart_ours(world: &mut World) -> Result<Again> {
    let name = world.plan.firewall.name.clone();
    world.destroy(&name)?;
    let client = world.client_of_plan(ALICE)?.clone();
    // Its backend is gone: xl may complain.
    world.lab.detach_vif(&client.name, client.devid)?;
    wait_until_gone(world, world.client(ALICE)?)?;
    let configure = lifecycle::configure(world, ALICE)?;
    let (begun, waits) = wait(world, world.client(ALICE)?, &configure)?;
    let parts = world.start_firewall_before(0, ALICE)?;
    let seconds = end(world, world.client(ALICE)?, begun, &waits)?;
    Ok(Again { seconds, parts })
}

fn restart_linux(world: &World, linux: &mut LinuxSide) -> Result<Again> {
    let (firewall, gateway, gateway6) = LINUX_FIREWALL;
    let [place, _] = LINUX_CLIENTS;
    world.lab.destroy(firewall)?;
    linux.database.db(&world.lab, "quit")?;
    world.lab.detach_vif(&linux.client.name, 0)?;
    wait_until_gone(world, &linux.client)?;
    let (_, ip, ip6) = place;
    let configure = format!("/lab/uplink {ip} {gateway} 3000 {ip6} {gateway6}");
    let (begun, waits) = wait(world, &linux.client, &configure)?;
    let start = Instant::now();
    (linux.firewall, linux.database) = LinuxSide::start_firewall(world)?;
    let (made, ready) = (linux.firewall.create_seconds, start.elapsed().as_secs_f32());
    world.lab.attach_vif(&linux.client.name, &vif(place, firewall))?;
    let attached = start.elapsed().as_secs_f32() - ready;
    let parts =
        vec![(CREATE, made), ("until it is up", ready - made), ("xl network-attach", attached)];
    Ok(Again { seconds: end(world, &linux.client, begun, &waits)?, parts })
}

/// Else the client would configure the device that is about to go, and wait for answers without one.
fn wait_until_gone(world: &World, client: &Domain) -> Result<()> {
    let line =
        "for i in $(seq 500); do [ -e /sys/class/net/eth0 ] || exit 0; usleep 20000; done; exit 1";
    client.exec_for(&world.lab, line, PATIENCE)?.ok("a device that was detached").map(drop)
}

/// Has the client wait for its device and for an answer; the moment before, on the client's clock.
fn wait(world: &World, client: &Domain, configure: &str) -> Result<(f64, Background)> {
    std::thread::sleep(QUIET);
    let line = format!(
        "{configure}; until ping -q -c 1 -W 0.2 {} >/dev/null 2>&1; do usleep 20000; done; {UPTIME}",
        world.plan.internet
    );
    let waits = client.spawn(&world.lab, &line)?;
    let Some(begun) = uptime(&world.sh(client, UPTIME)?) else {
        fail!("{} does not tell its clock", client.name);
    };
    Ok((begun, waits))
}

fn end(world: &World, client: &Domain, begun: f64, waits: &Background) -> Result<f64> {
    let text = waits.finish(&world.lab, client, PATIENCE)?.ok("ping after a restart")?;
    match uptime(&text) {
        Some(ended) if ended > begun => Ok(ended - begun),
        _ => fail!("{} does not tell its clock: {text:?}", client.name),
    }
}

const UPTIME: &str = "cut -d' ' -f1 /proc/uptime";

/// The last number of the text.
fn uptime(text: &str) -> Option<f64> {
    text.split_whitespace().next_back()?.parse().ok()
}
