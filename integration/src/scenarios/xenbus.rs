//! Frontends that stop on their way through the xenbus states, or jump: what a driver that hangs, or a hostile one, does.
//!
//! The frontend's domain is made and left paused, and its nodes are written in its place.

use std::time::{Duration, Instant};

use super::MOMENT;
use super::steps::{self, ALICE, BOB, CAROL, flows_again, need_both};
use crate::error::Result;
use crate::fail;
use crate::lab::domain::Domain;
use crate::lab::guests::PART;
use crate::lab::world::{ACCEPT_ALL, World};

/// Name of the domain whose frontend stops; not that of a client of the plan.
const STUCK: &str = "stuck";
/// Its address, which no client of the plan has.
const ADDRESS: &str = "10.137.0.99";
/// A removal may take so long: the frontend's grace, and what dom0 needs under emulation on a busy host. libxl itself waits for
/// 10 s twice where a backend does not answer, and complains.
const REMOVAL: Duration = Duration::from_secs(18);

/// States in which it stops (Xen public/io/xenbus.h), numbers that are none, and what is no number.
const STATES: &[&str] =
    &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "-1", "4294967300", "4 ", "x"];

/// A frontend stops in each state; dom0 removes its domain, and the directory goes in time.
///
/// # Errors
/// When it stays, a device is served that cannot be, or another client suffers.
pub fn stops_in_each_state(world: &mut World) -> Result<String> {
    need_both(world)?;
    let mut took = Vec::new();
    for state in STATES {
        let stuck = make(world)?;
        world.lab.sh(&format!("xenstore-write -- {}/state '{state}'", frontend(&stuck)))?;
        let served = steps::page(world, world.client(BOB)?, 0);
        let begun = Instant::now();
        let ended = remove(world, &stuck);
        took.push(format!("{:.1}", begun.elapsed().as_secs_f32()));
        if let Err(error) = served.and(ended) {
            fail!("a frontend in state {state:?}: {error}");
        }
        if begun.elapsed() > REMOVAL {
            fail!(
                "a frontend in state {state:?} was removed after {:.1} s",
                begun.elapsed().as_secs_f32()
            );
        }
    }
    steps::page(world, world.client(ALICE)?, 0)?;
    Ok(format!("{} states, removed after {} s", STATES.len(), took.join(" ")))
}

/// A frontend asks for an event channel each way, which is offered to nobody (`feature-split-event-channels`, Xen public/io/netif.h):
/// it is refused with the reason. Clients' own drivers, which saw no such offer, have published one channel for both ways.
///
/// # Errors
/// When it is served, or another client suffers.
pub fn split_event_channels(world: &mut World) -> Result<String> {
    need_both(world)?;
    let bob = world.client(BOB)?;
    let published = world.lab.sh(&format!("xenstore-ls {}", frontend(bob)))?;
    if published.contains("event-channel-tx") || !published.contains("event-channel = ") {
        fail!("B's driver has published {published}");
    }
    let stuck = make(world)?;
    let mark = world.firewall()?.console_mark();
    let at = frontend(&stuck);
    let nodes = [
        ("tx-ring-ref", 8),
        ("rx-ring-ref", 9),
        ("event-channel-tx", 5),
        ("event-channel-rx", 6),
        ("request-rx-copy", 1),
        ("feature-rx-notify", 1),
        ("state", 4),
    ];
    let pairs: Vec<String> =
        nodes.iter().map(|(node, value)| format!("{at}/{node} {value}")).collect();
    world.lab.sh(&format!("xenstore-write {}", pairs.join(" ")))?;
    let needle = format!("fw: client refused domid={} ", stuck.domid);
    let line = world.firewall()?.wait_console_after(&world.lab, mark, &needle, MOMENT);
    let served = steps::page(world, world.client(BOB)?, 0);
    remove(world, &stuck)?;
    let line = line?;
    served?;
    let reason = line.split_once("reason=").map_or("", |(_, reason)| reason);
    if !reason.contains("event-channel") {
        fail!("refused for another reason: {line}");
    }
    Ok(format!("refused: {reason}"))
}

/// A frontend closes before it has connected at all, as Windows' drivers do at their first start, several times and in several
/// orders; then the guest's own driver connects.
///
/// # Errors
/// When it does not, or another client suffers.
pub fn closes_before_it_connects(world: &mut World) -> Result<String> {
    need_both(world)?;
    let rounds = with_paused_client(world, close_cycles)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    Ok(format!("{rounds} close cycles, then the guest's driver connected"))
}

fn close_cycles(world: &World, carol: &Domain) -> Result<usize> {
    let (front, back) = (frontend(carol), backend(world, carol)?);
    let orders: [&[u32]; 4] = [&[5, 6, 1], &[6, 1], &[5, 1], &[2, 3, 5, 6, 1]];
    for order in orders {
        for state in order {
            world.lab.sh(&format!("xenstore-write {front}/state {state}"))?;
            steps::page(world, world.client(BOB)?, 0)?;
        }
        // libxl's directory is still online: the backend offers the device again.
        until_state(world, &back, "2")?;
    }
    world.lab.unpause(carol)?;
    carol.wait_ready(&world.lab)?;
    until_state(world, &back, "4")?;
    flows_again(world, carol, &world.plan.internet)?;
    steps::page(world, carol, 0)?;
    Ok(orders.len())
}

/// A client whose frontend was offered nothing (no scatter-gather, no segmentation or checksum offload), and which itself
/// computes every checksum: what old drivers do. Transfers in both directions are intact.
///
/// # Errors
/// When they are not.
pub fn without_features(world: &mut World) -> Result<String> {
    need_both(world)?;
    with_paused_client(world, plain)
}

/// Makes client C and leaves it paused before its first instruction, for `scenario` to go on with; C is gone afterwards.
fn with_paused_client<T>(
    world: &mut World,
    scenario: impl FnOnce(&World, &Domain) -> Result<T>,
) -> Result<T> {
    world.set_rules(CAROL, ACCEPT_ALL)?;
    world.announce_client(CAROL, false)?;
    let mut spec = world.plan.client_spec(world.client_of_plan(CAROL)?);
    spec.paused = true;
    let carol = world.lab.create(&spec)?;
    let result = world.announce_client(CAROL, true).and_then(|()| scenario(world, &carol));
    let ended = world.lab.destroy(&carol.name);
    world.note_end(&carol.name);
    result.and_then(|value| ended.map(|()| value))
}

fn plain(world: &World, carol: &Domain) -> Result<String> {
    let back = backend(world, carol)?;
    until_state(world, &back, "2")?;
    let features = ["sg", "gso-tcpv4", "gso-tcpv6", "ipv6-csum-offload"];
    let nodes: Vec<String> =
        features.iter().map(|feature| format!("{back}/feature-{feature} 0")).collect();
    world.lab.sh(&format!("xenstore-write {}", nodes.join(" ")))?;
    world.lab.unpause(carol)?;
    carol.wait_ready(&world.lab)?;
    world.sh(carol, "ethtool -K eth0 tx off rx off sg off tso off gso off gro off 2>&1; true")?;
    let told = world.sh(carol, "ethtool -k eth0")?;
    // Its IPv4 checksums cannot be turned off: in Linux' frontend they are always left to the backend.
    for name in ["tx-checksum-ipv6", "scatter-gather", "tcp-segmentation-offload"] {
        if !told.contains(&format!("{name}: off")) {
            fail!("{name} is still on: {told}");
        }
    }
    flows_again(world, carol, &world.plan.internet)?;
    let down = steps::download(world, carol, PART)?;
    let up = steps::upload(world, carol, PART)?;
    Ok(format!("{:.1} MB/s down, {:.1} MB/s up", down / 1e6, up / 1e6))
}

/// A domain with a vif, paused before its first instruction.
fn make(world: &World) -> Result<Domain> {
    let carol = world.client_of_plan(CAROL)?;
    let mut spec = world.plan.client_spec(carol);
    spec.name = STUCK.into();
    spec.memory_mib = 64;
    // What boots it does not matter, as it never runs.
    spec.ramdisk = None;
    spec.paused = true;
    for vif in &mut spec.vifs {
        vif.ip = ADDRESS.into();
        vif.devid = Some(0);
    }
    let domain = world.lab.create(&spec)?;
    until_state(world, &backend(world, &domain)?, "2")?;
    Ok(domain)
}

/// Destroys it; the backend's directory must be gone then.
fn remove(world: &World, stuck: &Domain) -> Result<()> {
    let back = backend(world, stuck)?;
    world.lab.destroy(&stuck.name)?;
    let left = world.lab.exec(&format!("xenstore-ls {back} 2>/dev/null"))?;
    if left.success() {
        fail!("the backend's directory is still there: {}", left.text);
    }
    Ok(())
}

fn frontend(domain: &Domain) -> String {
    format!("/local/domain/{}/device/vif/0", domain.domid)
}

fn backend(world: &World, domain: &Domain) -> Result<String> {
    Ok(format!("/local/domain/{}/backend/vif/{}/0", world.firewall()?.domid, domain.domid))
}

fn until_state(world: &World, directory: &str, wanted: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let state = world.lab.exec(&format!("xenstore-read {directory}/state"))?.text;
        if state.trim() == wanted {
            return Ok(());
        }
        if begun.elapsed() > MOMENT {
            fail!("{directory} is in state {:?}, not {wanted}", state.trim());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
