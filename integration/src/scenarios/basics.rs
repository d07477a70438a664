//! Coming up, and being there without a NetVM.

use super::steps::{BOB, decimal, flows_again, refused};
use crate::error::Result;
use crate::fail;
use crate::lab::world::{ACCEPT_ALL, World};

/// Started without a NetVM: comes up and shuts down cleanly in that state.
pub fn without_netvm(world: &mut World) -> Result<String> {
    world.clear()?;
    world.need_firewall(None)?;
    let ready = world.firewall()?.wait_console(&world.lab, "fw: ready", super::MOMENT)?;
    let name = world.plan.firewall.name.clone();
    let log = world.firewall()?.console();
    if log.contains("fw: uplink connected") {
        fail!("an uplink where there is none");
    }
    let seconds = super::lifecycle::shut_down_firewall(world, &name)?;
    Ok(format!(
        "ready after {} ms ({} ms of its CPU), off in {seconds:.1} s",
        decimal(&ready, "wall_ms")?,
        decimal(&ready, "vcpu_ms")?
    ))
}

/// Started without a NetVM, a client before it: refused there, forwards when a NetVM is attached.
pub fn netvm_attached_later(world: &mut World) -> Result<String> {
    world.set_rules(BOB, ACCEPT_ALL)?;
    world.need_netvm(0)?;
    world.need_firewall(None)?;
    world.need_client(BOB)?;
    let server = world.plan.internet.clone();
    if world.client(BOB)?.exec(&world.lab, &format!("ping -q -c 2 -W 1 {server}"))?.success() {
        fail!("echo replies without an uplink");
    }
    world.attach_uplink(0)?;
    let seconds = flows_again(world, world.client(BOB)?, &server)?;
    // It still judges: what the rules leave out stays out.
    world.set_rules(BOB, &["action=accept proto=icmp"])?;
    let ms = refused(world, world.client(BOB)?, &server)?;
    world.set_rules(BOB, ACCEPT_ALL)?;
    Ok(format!("traffic {seconds:.1} s after the attach; refusal in {ms} ms"))
}
