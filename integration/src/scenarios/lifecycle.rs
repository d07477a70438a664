//! Domains that come and go while others work.

use std::time::Duration;

use super::ends::{End, until};
use super::steps::{self, ALICE, BOB, CAROL, flows_again, need_both};
use super::{MOMENT, six};
use crate::error::Result;
use crate::fail;
use crate::lab::domain::State;
use crate::lab::guests::PART;
use crate::lab::world::{ACCEPT_ALL, World};

/// The NetVM is killed and a new one takes its place.
pub fn netvm_restart(world: &mut World) -> Result<String> {
    netvm_ends(world, End::Killed)
}

/// The same after a shutdown that was asked for, with the firewall and its clients still up.
pub fn netvm_shutdown(world: &mut World) -> Result<String> {
    netvm_ends(world, End::ShutDown)
}

/// The same after a crash of its kernel.
pub fn netvm_crash(world: &mut World) -> Result<String> {
    netvm_ends(world, End::Crashed)
}

fn netvm_ends(world: &mut World, end: End) -> Result<String> {
    need_both(world)?;
    let server = world.plan.internet.clone();
    flows_again(world, world.client(BOB)?, &server)?;
    let mark = world.firewall()?.console_mark();
    let name = world.netvm(0)?.name.clone();
    end.befalls(world, &name, |_| Ok(()))?;
    let _ = world.detach_uplink()?;
    world.firewall()?.wait_console_after(&world.lab, mark, "fw: uplink gone", MOMENT)?;
    // Without an uplink the firewall still answers its clients.
    if steps::ping(world, world.client(BOB)?, 3, &world.plan.firewall.ip)? == 0 {
        fail!("the gateway does not answer while the NetVM is gone");
    }
    world.need_netvm(0)?;
    world.attach_uplink(0)?;
    let seconds = flows_again(world, world.client(BOB)?, &server)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::refused(world, world.client(ALICE)?, &server)?;
    six::again(world, BOB)?;
    Ok(format!("traffic {seconds:.1} s after the new NetVM was attached"))
}

/// A client's vif is taken away while it runs, and given back: as Qubes does when the client's netvm is set to none and
/// to the firewall again. The other client downloads meanwhile.
///
/// # Errors
/// When traffic does not stop, or does not come back, or the other one is disturbed.
pub fn client_reattached(world: &mut World) -> Result<String> {
    need_both(world)?;
    let server = world.plan.internet.clone();
    let client = world.client_of_plan(BOB)?.clone();
    let rule = steps::https_only(world);
    let alice = world.client(ALICE)?;
    let a_loads = alice.spawn(&world.lab, &steps::download_line(&server, PART))?;
    let mark = world.firewall()?.console_mark();
    let out = world.lab.detach_vif(&client.name, client.devid)?;
    if out.text.contains("error") {
        fail!("xl network-detach: {}", out.text);
    }
    world.firewall()?.wait_console_after(&world.lab, mark, "fw: client gone", MOMENT)?;
    if world.client(BOB)?.exec(&world.lab, &format!("ping -q -c 1 -W 1 {server}"))?.success() {
        fail!("an answer without a device");
    }
    steps::page(world, alice, 0)?;
    world.lab.attach_vif(&client.name, &world.plan.client_vif(&client))?;
    world.sh(world.client(BOB)?, &configure(world, BOB)?)?;
    let seconds = flows_again(world, world.client(BOB)?, &server)?;
    six::again(world, BOB)?;
    // Rules that came after the vif count like any others.
    world.set_rules(BOB, &[&rule])?;
    steps::page(world, world.client(BOB)?, 0)?;
    steps::refused(world, world.client(BOB)?, &server)?;
    world.set_rules(BOB, ACCEPT_ALL)?;
    let alice = world.client(ALICE)?;
    let text = a_loads.finish(&world.lab, alice, steps::DOWNLOAD)?.ok("A's download meanwhile")?;
    steps::downloaded(alice, PART, &text)?;
    steps::page(world, alice, 0)?;
    Ok(format!("traffic {seconds:.1} s after the new vif, A's download and pages intact"))
}

/// The shell line by which a client configures a vif that has just come, as Qubes' udev rule does.
///
/// # Errors
/// When the plan has no such client.
pub fn configure(world: &World, index: usize) -> Result<String> {
    let client = world.client_of_plan(index)?;
    let (ip, gateway) = world.plan.client_addresses(client);
    let (ip6, gateway6) = world.plan.client_addresses6(client).unwrap_or_default();
    Ok(format!("/lab/uplink {ip} {gateway} 3000 {ip6} {gateway6}"))
}

/// Another NetVM, none, and the first one again.
pub fn netvm_change(world: &mut World) -> Result<String> {
    need_both(world)?;
    world.need_netvm(1)?;
    let server = world.plan.internet.clone();
    steps::page(world, world.client(ALICE)?, 0)?;
    let mut notes = Vec::new();
    for netvm in [1, 0] {
        let mark = world.firewall()?.console_mark();
        let words = world.detach_uplink()?;
        // Only that the Linux of the NetVM takes longer than libxl's 10 s for its directory may be wrong here: on a busy
        // host. Our part, state 6, comes before that.
        if words.contains("error") && !words.contains("to be removed") {
            fail!("xl network-detach: {words}");
        }
        world.firewall()?.wait_console_after(&world.lab, mark, "fw: uplink gone", MOMENT)?;
        let out = world.client(BOB)?.exec(&world.lab, &format!("ping -q -c 2 -W 1 {server}"))?;
        if out.success() {
            fail!("an answer without a NetVM");
        }
        world.attach_uplink(netvm)?;
        let seconds = flows_again(world, world.client(BOB)?, &server)?;
        steps::page(world, world.client(ALICE)?, netvm)?;
        six::again(world, BOB)?;
        steps::refused(world, world.client(ALICE)?, &server)?;
        notes.push(format!("{seconds:.1} s"));
    }
    let second = world.netvm(1)?.name.clone();
    world.shutdown(&second)?;
    Ok(format!("traffic again after {}", notes.join(" and ")))
}

/// An HVM client has two vifs with one address, of which one never connects.
pub fn stuck_twin(world: &mut World) -> Result<String> {
    need_both(world)?;
    // A paused domain's frontend does not get further than its first state.
    let mut spec = world.plan.client_spec(world.client_of_plan(ALICE)?);
    spec.name = "twin".into();
    spec.paused = true;
    world.lab.create(&spec)?;
    let result = steps::page(world, world.client(ALICE)?, 0)
        .and_then(|()| steps::refused(world, world.client(ALICE)?, &world.plan.internet).map(drop))
        .and_then(|()| steps::page(world, world.client(BOB)?, 0));
    world.lab.destroy("twin")?;
    result?;
    steps::page(world, world.client(ALICE)?, 0)?;
    Ok("the first one is served, by its rules, beside one that stays in state 1".into())
}

/// The firewall dies and a new one takes its place; dom0 attaches the vifs of the clients that run.
pub fn firewall_restart(world: &mut World) -> Result<String> {
    firewall_ends(world, |world, name| world.destroy(name))
}

/// The same after a shutdown that was asked for while a client runs.
pub fn firewall_shutdown(world: &mut World) -> Result<String> {
    firewall_ends(world, |world, name| shut_down_firewall(world, name).map(drop))
}

/// The same after it stopped itself: what it does not expect from Xen ends it with a reason, and with it all traffic.
pub fn firewall_crash(world: &mut World) -> Result<String> {
    firewall_ends(world, |world, name| {
        crash_firewall(world, name)?;
        world.destroy(name)
    })
}

/// Gives the firewall an interrupt that it has no use for, and waits until Xen has seen it stop.
fn crash_firewall(world: &World, name: &str) -> Result<()> {
    let mark = world.firewall()?.console_mark();
    world.lab.sh(&format!("xl trigger {name} nmi"))?;
    for line in ["vector 2", "post-mortem: memory part=packets", "event port=", "post-mortem: end"]
    {
        world.firewall()?.wait_console_after(&world.lab, mark, line, MOMENT)?;
    }
    until(world, name, State::Crashed)
}

fn firewall_ends(world: &mut World, end: fn(&mut World, &str) -> Result<()>) -> Result<String> {
    world.need_rules(BOB, ACCEPT_ALL)?;
    world.need_firewall(Some(0))?;
    world.need_client(BOB)?;
    // One client is enough to show it; another one's vif would stay behind without a backend.
    let bob = world.client_of_plan(BOB)?.name.clone();
    let others = world.plan.clients.iter().map(|client| client.name.clone());
    let others: Vec<String> = others
        .filter(|name| *name != bob && world.started().any(|started| started == name))
        .collect();
    for other in others {
        world.destroy(&other)?;
    }
    let name = world.plan.firewall.name.clone();
    end(world, &name)?;
    let client = world.client_of_plan(BOB)?.clone();
    // Its backend is gone: xl may complain.
    world.lab.detach_vif(&client.name, client.devid)?;
    // The guest waits for the device as Qubes' udev rule does.
    let configure = format!(
        "{}; until ping -q -c 1 -W 1 {}; do :; done",
        configure(world, BOB)?,
        world.plan.internet
    );
    let waits = world.client(BOB)?.spawn(&world.lab, &configure)?;
    world.need_firewall(Some(0))?;
    world.lab.attach_vif(&client.name, &world.plan.client_vif(&client))?;
    waits
        .finish(&world.lab, world.client(BOB)?, MOMENT)?
        .ok("ping after the firewall's restart")?;
    steps::page(world, world.client(BOB)?, 0)?;
    six::again(world, BOB)?;
    let line = world.firewall()?.wait_console(&world.lab, "fw: first packet forwarded", MOMENT)?;
    Ok(format!("first packet {} ms after the new one's entry", steps::decimal(&line, "wall_ms")?))
}

/// The host suspends: dom0 asks, the firewall acknowledges and suspends, and goes on where it was (a checkpoint of
/// `xl save` is libxl's suspend and resume in place). Traffic, rules and the links to dom0 are what they were.
///
/// # Errors
/// When it does not suspend or resume, or something does not work afterwards.
pub fn suspend(world: &mut World) -> Result<String> {
    need_both(world)?;
    let server = world.plan.internet.clone();
    let name = world.firewall()?.name.clone();
    let mark = world.firewall()?.console_mark();
    let begun = std::time::Instant::now();
    let line = format!("timeout 100 xl save -c {name} /tmp/checkpoint 2>&1; rm -f /tmp/checkpoint");
    world.lab.exec(&line)?;
    let seconds = begun.elapsed().as_secs_f32();
    world.firewall()?.wait_console_after(
        &world.lab,
        mark,
        "fw: resumed after a suspend",
        MOMENT,
    )?;
    let again = flows_again(world, world.client(BOB)?, &server)?;
    six::again(world, BOB)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::refused(world, world.client(ALICE)?, &server)?;
    world.set_rules(ALICE, ACCEPT_ALL)?;
    flows_again(world, world.client(ALICE)?, &server)?;
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    let service = "QUBESRPC qubes.SuspendPost dom0";
    let out = world.dom0d()?.call(&world.lab, service)?;
    if !out.success() {
        fail!("{service}: exit status {}: {}", out.status, out.text);
    }
    Ok(format!("{seconds:.1} s for the checkpoint, traffic {again:.1} s after it"))
}

/// Both clients shut down by themselves; a third one starts and works.
pub fn third_client(world: &mut World) -> Result<String> {
    need_both(world)?;
    for client in [ALICE, BOB] {
        let name = world.client(client)?.name.clone();
        let domid = world.client(client)?.domid;
        let mark = world.firewall()?.console_mark();
        world.shutdown(&name)?;
        world.firewall()?.wait_console_after(&world.lab, mark, "fw: client gone", MOMENT)?;
        let left = world.lab.exec(&format!(
            "xenstore-ls /local/domain/{}/backend/vif/{domid}/{} 2>/dev/null",
            world.firewall()?.domid,
            world.client_of_plan(client)?.devid
        ))?;
        if left.success() {
            fail!("the backend directory of {name} is still there: {}", left.text);
        }
    }
    world.set_rules(CAROL, ACCEPT_ALL)?;
    world.need_client(CAROL)?;
    let carol = world.client(CAROL)?;
    if steps::ping(world, carol, 3, &world.plan.internet)? == 0 {
        fail!("{}: no answer", carol.name);
    }
    let rate = steps::download(world, carol, PART)?;
    let name = carol.name.clone();
    world.shutdown(&name)?;
    Ok(format!("the third one downloads at {:.1} MB/s", rate / 1e6))
}

/// `xl shutdown`, as Qubes does it.
pub fn powers_off(world: &mut World) -> Result<String> {
    world.need_firewall(Some(0))?;
    let name = world.plan.firewall.name.clone();
    let seconds = shut_down_firewall(world, &name)?;
    Ok(format!("off in {seconds:.1} s"))
}

/// `xl reboot`: acknowledged, and ended with that reason (Qubes then destroys the domain).
pub fn reboots(world: &mut World) -> Result<String> {
    world.need_firewall(Some(0))?;
    let name = world.plan.firewall.name.clone();
    let mark = world.firewall()?.console_mark();
    world.lab.sh(&format!("xl reboot -F {name}"))?;
    ends(world, &name, mark, "reboot")?;
    Ok(String::new())
}

/// A line for a shell, as `qvm-run` sends it: answered with 0, then the end.
pub fn powers_off_by_call(world: &mut World) -> Result<String> {
    world.need_firewall(Some(0))?;
    let name = world.plan.firewall.name.clone();
    let mark = world.firewall()?.console_mark();
    let call = world.dom0d()?.call_line("QUBESRPC qubes.VMShell dom0");
    let line = |command: &str| format!("printf '{command}; exit\\n' | {call}");
    let other = world.lab.exec(&line("id"))?;
    if other.status != 127 {
        fail!("another command: exit status {}: {}", other.status, other.text);
    }
    let out = world.lab.exec(&line("poweroff"))?;
    if !out.success() {
        fail!("exit status {}: {}", out.status, out.text);
    }
    ends(world, &name, mark, "poweroff")?;
    Ok("answered with 0, then off".into())
}

/// The firewall says why it ends, and is gone.
fn ends(world: &mut World, name: &str, mark: u64, reason: &str) -> Result<()> {
    let said = format!("fw: shutdown reason={reason}");
    let ended = world.firewall()?.wait_console_after(&world.lab, mark, &said, MOMENT);
    let begun = std::time::Instant::now();
    while world.lab.state(name)? != State::Gone {
        if begun.elapsed() > MOMENT {
            fail!("{name} is still there after a request to {reason}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    ended?;
    world.note_end(name);
    Ok(())
}

/// Asks the firewall to power off: it acknowledges, says so and is gone in time.
pub fn shut_down_firewall(world: &mut World, name: &str) -> Result<f32> {
    let log = world.firewall()?.console_file();
    let seconds = world.shutdown(name)?;
    let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
    if !text.contains("fw: shutdown reason=poweroff") {
        fail!(
            "no line about the shutdown; the console ends with:\n{}",
            crate::command::last_lines(&text, 5)
        );
    }
    if seconds > 15.0 {
        fail!("the shutdown took {seconds:.1} s");
    }
    Ok(seconds)
}
