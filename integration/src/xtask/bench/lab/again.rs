//! From the creation of a firewall's domain to the first packet of a client that has been running all the time: what a user
//! waits for when the firewall is restarted.

use std::time::Duration;

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
    progress::step("first_packet", || -> Result<()> {
        let [of_ours, of_linux] = &mut seconds;
        for _ in 0..turns {
            of_ours.push(restart_ours(world)?);
            of_linux.push(restart_linux(world, linux)?);
        }
        Ok(())
    })?;
    let [ours, linux] = seconds.map(|seconds| median(seconds.into_iter()));
    report.table(
        format!("From a firewall's creation to the first packet forwarded, median of {turns}"),
        vec![format!(
            "ours {ours:.2} s, Linux {linux:.2} s, with dom0's part: domain, vifs, QubesDB"
        )],
    );
    report.figure("lab.first_packet.ratio", ours / linux);
    Ok(())
}

fn restart_ours(world: &mut World) -> Result<f64> {
    let name = world.plan.firewall.name.clone();
    world.destroy(&name)?;
    let client = world.client_of_plan(ALICE)?.clone();
    // Its backend is gone: xl may complain.
    world.lab.detach_vif(&client.name, client.devid)?;
    let configure = lifecycle::configure(world, ALICE)?;
    let (begun, waits) = wait(world, world.client(ALICE)?, &configure)?;
    world.need_firewall(Some(0))?;
    world.lab.attach_vif(&client.name, &world.plan.client_vif(&client))?;
    end(world, world.client(ALICE)?, begun, &waits)
}

fn restart_linux(world: &World, linux: &mut LinuxSide) -> Result<f64> {
    let (firewall, gateway, gateway6) = LINUX_FIREWALL;
    let [place, _] = LINUX_CLIENTS;
    world.lab.destroy(firewall)?;
    world.lab.detach_vif(&linux.client.name, 0)?;
    let (_, ip, ip6) = place;
    let configure = format!("/lab/uplink {ip} {gateway} 3000 {ip6} {gateway6}");
    let (begun, waits) = wait(world, &linux.client, &configure)?;
    linux.firewall = LinuxSide::start_firewall(world)?;
    world.lab.attach_vif(&linux.client.name, &vif(place, firewall))?;
    end(world, &linux.client, begun, &waits)
}

/// Has the client wait for its device and for an answer; the moment before, on the client's clock.
fn wait(world: &World, client: &Domain, configure: &str) -> Result<(f64, Background)> {
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
