//! What the firewall has left after devices came and went, as it tells it itself.

use std::time::Duration;

use super::books::Books;
use super::steps::{self, ALICE, BOB, need_both};
use crate::error::Result;
use crate::fail;
use crate::lab::domain::Vif;
use crate::lab::world::World;

/// Devices that come and go together, of each client, and how often; all in all 52. A Linux client of 128 MiB has lost two
/// MiB for each in the end, and ends itself at about the fortieth.
const AT_ONCE: u32 = 2;
const CLIENTS: [usize; 2] = [ALICE, BOB];
const ROUNDS: u32 = 13;
const VIFS: u32 = AT_ONCE * CLIENTS.len() as u32 * ROUNDS;
/// Their first number: the client's own is below.
const FIRST_DEVICE: u32 = 10;

/// Two clients get two more vifs each and lose them again, 13 times: every figure of `firewall.Memory` is where it was.
///
/// # Errors
/// When a device does not connect, or something is left.
pub fn vifs_come_and_go(world: &mut World) -> Result<String> {
    need_both(world)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    // The first round makes what stays for good: lists that have grown.
    both(world)?;
    let before = Books::read(world)?;
    for _ in 0..ROUNDS {
        both(world)?;
    }
    let books = before.settle(world)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    Ok(format!("{VIFS} vifs, {books}"))
}

fn both(world: &World) -> Result<()> {
    CLIENTS.iter().try_for_each(|client| round(world, *client))
}

/// All devices of a client come, and go.
fn round(world: &World, index: usize) -> Result<()> {
    let client = world.client_of_plan(index)?;
    let firewall = &world.plan.firewall.name;
    let devices = || FIRST_DEVICE..FIRST_DEVICE + AT_ONCE;
    let attach = |device: u32| {
        let mut vif = Vif::new(&format!("10.137.200.{device}"), firewall);
        vif.devid = Some(device);
        vif.attach_line(&client.name)
    };
    let lines: Vec<String> = devices().map(attach).collect();
    let backend =
        format!("/local/domain/$(xl domid {firewall})/backend/vif/$(xl domid {})", client.name);
    let numbers: Vec<String> = devices().map(|device| device.to_string()).collect();
    let numbers = numbers.join(" ");
    let out = world.lab.exec_for(
        &format!(
            "set -e; {}; dir={backend}; for device in {numbers}; do tries=0; \
             until [ \"$(xenstore-read $dir/$device/state)\" = 4 ]; do tries=$((tries + 1)); \
             [ $tries -lt 300 ] || {{ echo \"device $device does not connect\"; exit 1; }}; sleep 0.2; done; done",
            lines.join("; ")
        ),
        Duration::from_secs(300),
    )?;
    if !out.success() {
        fail!("vifs of {}: {}", client.name, out.text.trim());
    }
    let out = world.lab.exec_for(
        &format!(
            "for device in {numbers}; do xl network-detach {} $device || exit 1; done",
            client.name
        ),
        Duration::from_secs(300),
    )?;
    if !out.success() {
        fail!("vifs of {} do not go: {}", client.name, out.text.trim());
    }
    Ok(())
}
