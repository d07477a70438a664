//! `cargo xtask lab prove`: the lab without our firewall. A Linux firewall VM stands in its place; what fails
//! here is the lab's fault, not the firewall's.

use crate::error::Result;
use crate::lab::guests::BIG;
use crate::lab::plan::Plan;
use crate::lab::qemu::MachineOptions;
use crate::lab::world::{Kind, World};
use crate::lab::{Lab, cache};
use crate::scenarios::steps;
use crate::{apt, fail, progress};

/// Boots the network with a Linux firewall and tries what the scenarios build on.
///
/// # Errors
/// When something of it does not work; the logs are kept.
pub fn run(plan: Plan) -> Result<()> {
    apt::ensure(apt::LAB)?;
    let images = cache::images(false)?;
    let lab = Lab::boot(&images, &MachineOptions { name: "prove".into(), ..Default::default() })?;
    let mut world = World::new(lab, plan, Kind::Linux)?;
    let result = prove(&mut world);
    if result.is_err() {
        let dir = world.lab.save_logs("prove")?;
        progress::say(format!("console logs of all domains: {}", dir.display()));
        if let Some(fault) = world.lab.fault() {
            progress::say(format!("the emulator failed, not the lab: {fault}"));
        }
    }
    result
}

fn prove(world: &mut World) -> Result<()> {
    progress::step("NetVM", || world.need_netvm(0))?;
    progress::step("Linux firewall", || world.need_firewall(Some(0)))?;
    progress::step("client 1", || world.need_client(0))?;
    progress::step("client 2", || world.need_client(1))?;
    let server = world.plan.internet.clone();
    progress::step("ping through the firewall", || {
        world.sh(world.client(0)?, &format!("ping -q -c 3 -W 2 {server}"))
    })?;
    progress::step("20 MB over TCP", || steps::download(world, world.client(1)?, BIG))?;
    progress::step("NetVM destroyed and made again", || restart_netvm(world))?;
    progress::step("ping after the restart", || {
        world.sh(world.client(0)?, &format!("ping -q -c 3 -W 2 {server}"))
    })?;
    progress::step("another NetVM", || world.need_firewall(Some(1)))?;
    let page = progress::step("page from the other NetVM", || {
        world.sh(world.client(0)?, &format!("wget -q -O - http://{server}:443/"))
    })?;
    if page.trim()
        != format!("page of {}", world.plan.netvms.get(1).map_or("", |netvm| &netvm.page))
    {
        fail!("the page came from another place: {page:?}");
    }
    let name = world.plan.clients.first().map(|client| client.name.clone()).unwrap_or_default();
    progress::step("client 1 shuts down", || world.shutdown(&name))?;
    progress::step("client 3", || world.need_client(2))
}

fn restart_netvm(world: &mut World) -> Result<()> {
    let name = world.plan.netvms.first().map(|netvm| netvm.name.clone()).unwrap_or_default();
    world.destroy(&name)?;
    let words = progress::step("detach from the NetVM that is gone", || world.detach_uplink())?;
    progress::say(format!("xl network-detach said: {}", words.trim()));
    progress::step("NetVM made again", || world.need_netvm(0))?;
    progress::step("attach", || world.attach_uplink(0))
}
