//! Clients that end in the middle of a transfer, and a firewall that time passes by.

use std::time::{Duration, Instant};

use super::MOMENT;
use super::books::Books;
use super::control;
use super::ends::End;
use super::loads::Loads;
use super::six;
use super::steps::{self, ALICE, BOB, flows_again, need_both};
use super::witness::{Asks, Restless, SLACK_BYTES, beside, under_load};
use crate::error::Result;
use crate::fail;
use crate::lab::world::World;

/// How often a client ends and is started anew.
const RESTARTS: u32 = 10;
/// How long a client or the firewall is paused.
const PAUSE: Duration = Duration::from_secs(20);
/// For downloads under emulation to get going.
const UNDERWAY: Duration = Duration::from_secs(2);

/// dom0 kills B while B downloads.
///
/// # Errors
/// When the firewall does not notice, or B does not come back.
pub fn client_killed(world: &mut World) -> Result<String> {
    client_ends(world, End::Killed)
}

/// B's kernel crashes while B downloads; the domain stays as it is for a while, as nobody has destroyed it yet.
///
/// # Errors
/// As [`client_killed`].
pub fn client_crashed(world: &mut World) -> Result<String> {
    client_ends(world, End::Crashed)
}

/// B's kernel reboots while B downloads, without closing anything; dom0 makes a new domain, as Qubes does.
///
/// # Errors
/// As [`client_killed`].
pub fn client_rebooted(world: &mut World) -> Result<String> {
    client_ends(world, End::Rebooted)
}

/// B shuts down while B downloads.
///
/// # Errors
/// As [`client_killed`].
pub fn client_shut_down(world: &mut World) -> Result<String> {
    client_ends(world, End::ShutDown)
}

fn client_ends(world: &mut World, how: End) -> Result<String> {
    need_both(world)?;
    let server = world.plan.internet.clone();
    let load = Restless::start(world, BOB)?;
    std::thread::sleep(UNDERWAY);
    let seconds = end(world, BOB, how)?;
    drop(load);
    world.need_client(BOB)?;
    let again = flows_again(world, world.client(BOB)?, &server)?;
    six::again(world, BOB)?;
    steps::page(world, world.client(BOB)?, 0)?;
    Ok(format!("device gone after {seconds:.1} s, traffic {again:.1} s after the new start"))
}

/// Ends a client; seconds until the firewall has let its device go.
fn end(world: &mut World, index: usize, how: End) -> Result<f32> {
    let (name, domid) = {
        let client = world.client(index)?;
        (client.name.clone(), client.domid)
    };
    let mark = world.firewall()?.console_mark();
    let begun = Instant::now();
    // Its pages are still there, and so is its device.
    how.befalls(world, &name, |world| steps::page(world, world.client(ALICE)?, 0))?;
    let needle = format!("fw: client gone domid={domid} ");
    world.firewall()?.wait_console_after(&world.lab, mark, &needle, MOMENT)?;
    Ok(begun.elapsed().as_secs_f32())
}

/// B is paused in the middle of a download, for longer than a look of the firewall at anything of B's takes, and goes on:
/// the download has the right hash.
///
/// # Errors
/// When it has not, or B stays without traffic.
pub fn client_paused(world: &mut World) -> Result<String> {
    need_both(world)?;
    let loads = Loads::start(world, BOB)?;
    std::thread::sleep(UNDERWAY);
    let name = world.client(BOB)?.name.clone();
    world.lab.sh(&format!("xl pause {name}"))?;
    let begun = Instant::now();
    while begun.elapsed() < PAUSE {
        steps::page(world, world.client(ALICE)?, 0)?;
    }
    world.lab.sh(&format!("xl unpause {name}"))?;
    world.lab.forget_states();
    let server = world.plan.internet.clone();
    let again = flows_again(world, world.client(BOB)?, &server)?;
    let loaded = loads.enough(world)?;
    Ok(format!("traffic {again:.1} s after {} s of pause, {loaded}", PAUSE.as_secs()))
}

/// The firewall itself is paused while B downloads: its clock jumps by the whole pause when it goes on. The download goes on,
/// too, rules are what they were, and an edit takes effect.
///
/// # Errors
/// When one of that does not hold.
pub fn firewall_paused(world: &mut World) -> Result<String> {
    need_both(world)?;
    let server = world.plan.internet.clone();
    let loads = Loads::start(world, BOB)?;
    std::thread::sleep(UNDERWAY);
    let name = world.firewall()?.name.clone();
    world.lab.sh(&format!("xl pause {name}"))?;
    std::thread::sleep(PAUSE);
    if world.client(BOB)?.exec(&world.lab, &format!("ping -q -c 1 -W 1 {server}"))?.success() {
        fail!("an answer through a paused firewall");
    }
    world.lab.sh(&format!("xl unpause {name}"))?;
    world.lab.forget_states();
    let again = flows_again(world, world.client(BOB)?, &server)?;
    let loaded = loads.enough(world)?;
    steps::refused(world, world.client(ALICE)?, &server)?;
    world.set_rules(ALICE, &["action=drop"])?;
    steps::refused_port(world, world.client(ALICE)?, &server, 443)?;
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    steps::page(world, world.client(ALICE)?, 0)?;
    world.check_dom0()?;
    Ok(format!("traffic {again:.1} s after {} s of pause, {loaded}", PAUSE.as_secs()))
}

/// The qrexec daemon of the firewall ends and comes back: packets pass meanwhile, calls are answered afterwards.
///
/// # Errors
/// When one of that does not hold.
pub fn qrexec_lost(world: &mut World) -> Result<String> {
    need_both(world)?;
    let server = world.dom0d()?;
    let call = || server.call(&world.lab, "QUBESRPC firewall.Version dom0");
    if !call()?.success() {
        fail!("no answer to a call before");
    }
    let begun = Instant::now();
    server.stop_qrexec(&world.lab)?;
    if call()?.success() {
        fail!("an answer without a daemon");
    }
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::refused(world, world.client(ALICE)?, &world.plan.internet)?;
    server.start_qrexec(&world.lab)?;
    let out = call()?;
    if !out.success() {
        fail!("after its return: exit status {}: {}", out.status, out.text);
    }
    steps::page(world, world.client(ALICE)?, 0)?;
    Ok(format!("calls again after {:.1} s", begun.elapsed().as_secs_f32()))
}

/// QubesDB's daemon ends and comes back under load, twice: the buffer for what is written anew grows once, and stays.
///
/// # Errors
/// When rules do not stay in force, or something is left of the second time.
pub fn qubesdb_lost(world: &mut World) -> Result<String> {
    control::qubesdb_restart(world)?;
    beside(world, Asks::Server, |world| under_load(world, control::qubesdb_restart))
}

/// B is ended in each way in turn and started anew, ten times in all, and each time what the firewall holds is what it was.
///
/// # Errors
/// When something is left, or B does not work.
pub fn client_restarts(world: &mut World) -> Result<String> {
    need_both(world)?;
    let before = Books::read(world)?;
    let ways = [End::Killed, End::ShutDown, End::Rebooted, End::Crashed];
    let mut books = String::new();
    for (_, how) in (0..RESTARTS).zip(ways.into_iter().cycle()) {
        end(world, BOB, how)?;
        world.need_client(BOB)?;
        steps::page(world, world.client(BOB)?, 0)?;
        books = before.settle_with(world, SLACK_BYTES)?;
    }
    Ok(format!("{RESTARTS} restarts, after each {books}"))
}
