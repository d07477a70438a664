//! From the creation of a firewall's domain to the first packet of a client that has been running all the time: what a user
//! waits for when the firewall is restarted. But for `xl create` dom0's programs are loaded by then, as in Qubes
//! ([`timed_start`](crate::lab::timed_start)).

use std::time::Duration;

use super::{LINUX_CLIENTS, LINUX_FIREWALL, LinuxSide, vif};
use crate::error::Result;
use crate::lab::dom0d::Dom0d;
use crate::lab::domain::{Background, Domain};
use crate::lab::timed_start::{Parts, Start, Up};
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
    let (mut seconds, mut since_order) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut parts = [Vec::new(), Vec::new()];
    progress::step("first_packet", || -> Result<()> {
        for _ in 0..turns {
            let both = [restart_ours(world)?, restart_linux(world, linux)?];
            let places = seconds.iter_mut().zip(&mut since_order).zip(&mut parts);
            for (again, ((seconds, since_order), parts)) in both.into_iter().zip(places) {
                seconds.push(again.seconds);
                since_order.push(again.since_order);
                *parts = again.parts;
            }
        }
        Ok(())
    })?;
    let medians = |seconds: [Vec<f64>; 2]| seconds.map(|seconds| median(seconds.into_iter()));
    let ([ours, linux], [ours_order, linux_order]) = (medians(seconds), medians(since_order));
    let told = |name: &str, seconds: f64, since_order: f64, parts: &[(&str, f32)]| {
        let parts: Vec<String> =
            parts.iter().map(|(part, seconds)| format!("{part} {seconds:.1}")).collect();
        format!(
            "{name:<5} {seconds:.2} s, {since_order:.2} since the order; of the last one in dom0: {}",
            parts.join(", ")
        )
    };
    let [of_ours, of_linux] = &parts;
    report.table(
        format!(
            "From the creation of a firewall's domain to the first packet forwarded, median of {turns}"
        ),
        vec![
            told("ours", ours, ours_order, of_ours),
            told("Linux", linux, linux_order, of_linux),
        ],
    );
    report.figure("lab.first_packet.ratio", ours / linux);
    report.figure("lab.first_packet_since_order.ratio", ours_order / linux_order);
    Ok(())
}

/// One start.
struct Again {
    /// From the moment that the domain was there to the first answer that the client got.
    seconds: f64,
    /// The same from the order to make it, when dom0 had not started `xl` yet.
    since_order: f64,
    parts: Parts,
}

fn restart_ours(world: &mut World) -> Result<Again> {
    let name = world.plan.firewall.name.clone();
    world.destroy(&name)?;
    let client = world.client_of_plan(ALICE)?.clone();
    // Its backend is gone: xl may complain.
    world.lab.detach_vif(&client.name, client.devid)?;
    wait_until_gone(world, world.client(ALICE)?)?;
    let configure = lifecycle::configure(world, ALICE)?;
    let start = world.prepare_start(0, ALICE)?;
    let begun = wait(world, world.client(ALICE)?, &configure)?;
    let parts = world.go(start)?;
    end(world, world.client(ALICE)?, &begun, parts)
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
    linux.database = Dom0d::without_keys(world.lab.next_domid());
    let (spec, vif) = (LinuxSide::firewall_spec(world)?, vif(place, firewall));
    let start = Start::prepare(&world.lab, spec, &linux.database, Up::Init, &linux.client, &vif)?;
    let begun = wait(world, &linux.client, &configure)?;
    let parts;
    (linux.firewall, parts) = start.go(&world.lab)?;
    end(world, &linux.client, &begun, parts)
}

/// Else the client would configure the device that is about to go, and wait for answers without one.
fn wait_until_gone(world: &World, client: &Domain) -> Result<()> {
    let line =
        "for i in $(seq 500); do [ -e /sys/class/net/eth0 ] || exit 0; usleep 20000; done; exit 1";
    client.exec_for(&world.lab, line, PATIENCE)?.ok("a device that was detached").map(drop)
}

/// The moment of the order.
struct Begun {
    /// On the client's clock.
    client: f64,
    /// On dom0's, a little later.
    dom0: f64,
    waits: Background,
}

/// Has the client wait for its device and for an answer, and dom0 for the next domain; the moment before.
fn wait(world: &World, client: &Domain, configure: &str) -> Result<Begun> {
    // The second event is that of the node, which libxl makes when it has the domain's number.
    let watch = format!(
        "rm -f {MADE}; (xenstore-watch -n 2 /local/domain/{} >/dev/null; read up rest </proc/uptime; echo $up >{MADE}) \
         >/dev/null 2>&1 &",
        world.lab.next_domid()
    );
    world.lab.sh(&watch)?;
    std::thread::sleep(QUIET);
    // One program asks all the time, so that none has to be started when there is something to ask; until there is a device, its
    // questions end at the client's own.
    let line = format!(
        "ip route add default dev lo metric 4000; ({configure}) & ping -n -i 0.02 {} | while read -r line; do case $line in \
         *' bytes from '*) read -r up rest </proc/uptime; echo $up; break ;; esac; done; wait; ip route del default dev lo metric 4000",
        world.plan.internet
    );
    let waits = client.spawn(&world.lab, &line)?;
    let Some(at_client) = uptime(&world.sh(client, UPTIME)?) else {
        fail!("{} does not tell its clock", client.name);
    };
    let Some(at_dom0) = uptime(&world.lab.sh(UPTIME)?) else {
        fail!("dom0 does not tell its clock");
    };
    Ok(Begun { client: at_client, dom0: at_dom0, waits })
}

fn end(world: &World, client: &Domain, begun: &Begun, parts: Parts) -> Result<Again> {
    let text = begun.waits.finish(&world.lab, client, PATIENCE)?.ok("ping after a restart")?;
    let since_order = match uptime(&text) {
        Some(ended) if ended > begun.client => ended - begun.client,
        _ => fail!("{} does not tell its clock: {text:?}", client.name),
    };
    let text = world.lab.sh(&format!("cat {MADE}"))?;
    match uptime(&text) {
        Some(made) if made > begun.dom0 => {
            Ok(Again { seconds: since_order - (made - begun.dom0), since_order, parts })
        }
        _ => fail!("dom0 did not see the domain come: {text:?}"),
    }
}

/// When the domain came, on dom0's clock.
const MADE: &str = "/run/lab-made";

const UPTIME: &str = "cut -d' ' -f1 /proc/uptime";

/// The last number of the text.
fn uptime(text: &str) -> Option<f64> {
    text.split_whitespace().next_back()?.parse().ok()
}
