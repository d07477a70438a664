//! A firewall of ours behind another one of ours: what Qubes calls a proxy VM.

use super::lifecycle::MOMENT;
use super::six;
use super::steps::{self, ALICE, BOB, flows_again};
use crate::error::Result;
use crate::fail;
use crate::lab::guests::PART;
use crate::lab::world::{ACCEPT_ALL, World};

/// A firewall of ours behind another one of ours, which is behind the NetVM (a proxy VM in Qubes' words): the rules of
/// the first decide about its clients, both masquerade, names are resolved through both. IPv6 likewise: A's rules name an
/// IPv4 address alone, so nothing of A passes there.
///
/// # Errors
/// When something passes that should not, or the other way round.
pub fn behind_another_firewall(world: &mut World) -> Result<String> {
    let rule = steps::https_only(world);
    world.need_rules(ALICE, &[&rule])?;
    world.need_firewall(Some(1))?;
    world.need_client(ALICE)?;
    world.need_client(BOB)?;
    let server = world.plan.internet.clone();
    let (alice, bob) = (world.client(ALICE)?, world.client(BOB)?);
    steps::page(world, alice, 0)?;
    let ms = steps::refused_on_the_wire(world, alice, &server, 80)?;
    steps::resolves(world, bob)?;
    let netvm = world.netvm(0)?;
    let dump = steps::capture(world, netvm, "any", "icmp[icmptype] == 8")?;
    let answered = steps::ping(world, bob, 5, &server)?;
    let seen = dump.finish(world, netvm)?;
    let outer = &world.netvm_plan(1)?.ip;
    let hidden = [&world.plan.firewall.ip, &world.client_ip(BOB)?];
    if answered < 4
        || !seen.contains(&format!("IP {outer} > "))
        || hidden.iter().any(|inner| seen.contains(&format!("IP {inner} > ")))
    {
        fail!("{answered} of 5 answered; the NetVM should see {outer} alone:\n{seen}");
    }
    if steps::ping(world, bob, 2, &world.client_ip(ALICE)?)? > 0 {
        fail!("A answers B");
    }
    let rate = steps::download(world, bob, PART)?;
    six::again(world, BOB)?;
    if let Some(server6) = &world.plan.internet6 {
        six::refused(world, alice, server6, 443)?;
    }
    Ok(format!(
        "refusal of the first after {ms} ms, the NetVM sees {outer} alone, 4 MB through both at {:.1} MB/s",
        rate / 1e6
    ))
}

/// The firewall in front of ours is killed and a new one takes its place.
///
/// # Errors
/// When traffic does not come back.
pub fn other_firewall_restart(world: &mut World) -> Result<String> {
    world.need_rules(BOB, ACCEPT_ALL)?;
    world.need_firewall(Some(1))?;
    world.need_client(BOB)?;
    let server = world.plan.internet.clone();
    flows_again(world, world.client(BOB)?, &server)?;
    let mark = world.firewall()?.console_mark();
    let name = world.netvm(1)?.name.clone();
    world.destroy(&name)?;
    let _ = world.detach_uplink()?;
    world.firewall()?.wait_console_after(&world.lab, mark, "fw: uplink gone", MOMENT)?;
    world.need_netvm(1)?;
    world.attach_uplink(1)?;
    let seconds = flows_again(world, world.client(BOB)?, &server)?;
    six::again(world, BOB)?;
    Ok(format!("traffic {seconds:.1} s after the new one was attached"))
}
