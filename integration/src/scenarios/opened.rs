//! What dom0 opens beyond the rules: a forwarded port, one client for another. Closed before and after.

use std::time::Duration;

use super::steps::{self, ALICE, BOB, need_both};
use crate::error::Result;
use crate::fail;
use crate::lab::domain::Domain;
use crate::lab::world::{ACCEPT_ALL, World};

/// For an edit in dom0 to be in force, on a busy host.
const MOMENT: Duration = Duration::from_secs(30);

/// `fw-forward`: the outside reaches one port of a client, while dom0 says so.
///
/// # Errors
/// When the port is open before or after, or not in between, or anything else is open.
pub fn forwarded_port(world: &mut World) -> Result<String> {
    need_both(world)?;
    serve(world, world.client(ALICE)?)?;
    let (netvm, own) = (world.netvm(0)?, world.plan.firewall.ip.clone());
    let url = format!("http://{own}:8080/");
    if gets(world, netvm, &url)? {
        fail!("port 8080 is open before it is forwarded");
    }
    write(world, "fw-forward", &format!("tcp/8080>{}/80", world.client_ip(ALICE)?))?;
    until(world, netvm, &url, true)?;
    for other in [format!("http://{own}:80/"), format!("http://{own}:8081/")] {
        if gets(world, netvm, &other)? {
            fail!("{other} is open, which nobody forwarded");
        }
    }
    // It opens nothing for the client itself: its rules are what they were.
    steps::refused(world, world.client(ALICE)?, &world.plan.internet)?;
    remove(world, "fw-forward")?;
    until(world, netvm, &url, false)?;
    Ok("tcp/8080 of the firewall led to A's port 80 while dom0 said so".into())
}

/// `fw-allow`: A reaches one port of B, and nothing else does.
///
/// # Errors
/// When it is open before or after, or not in between, or in the other direction.
pub fn one_client_for_another(world: &mut World) -> Result<String> {
    need_both(world)?;
    world.set_rules(ALICE, ACCEPT_ALL)?;
    let (a_ip, b_ip) = (world.client_ip(ALICE)?, world.client_ip(BOB)?);
    let (alice, bob) = (world.client(ALICE)?, world.client(BOB)?);
    serve(world, alice)?;
    serve(world, bob)?;
    let url = format!("http://{b_ip}/");
    if gets(world, alice, &url)? {
        fail!("A reaches B before dom0 allows it");
    }
    write(world, "fw-allow", &format!("{a_ip}>{b_ip}/tcp/80"))?;
    until(world, alice, &url, true)?;
    if gets(world, bob, &format!("http://{a_ip}/"))? || steps::ping(world, alice, 2, &b_ip)? > 0 {
        fail!("more is open between A and B than dom0 allowed");
    }
    // The sender's own rules still decide.
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    let (alice, bob) = (world.client(ALICE)?, world.client(BOB)?);
    until(world, alice, &url, false)?;
    remove(world, "fw-allow")?;
    steps::page(world, alice, 0)?;
    steps::page(world, bob, 0)?;
    Ok("A got B's page while dom0 and A's rules both said so".into())
}

/// A page of its own on a client's port 80.
fn serve(world: &World, client: &Domain) -> Result<()> {
    let line = "pidof httpd >/dev/null || \
                { mkdir -p /srv; echo mine >/srv/index.html; httpd -h /srv -p 80; }";
    world.sh(client, line)?;
    world.sh(client, "wget -q -O - http://127.0.0.1/ | grep -q mine").map(drop)
}

/// Whether a client's own page comes from there.
fn gets(world: &World, from: &Domain, url: &str) -> Result<bool> {
    let line = format!("timeout 3 wget -q -O - {url} 2>/dev/null | grep -q mine");
    Ok(from.exec(&world.lab, &line)?.success())
}

/// Waits until it is as it should be.
fn until(world: &World, from: &Domain, url: &str, open: bool) -> Result<()> {
    let begun = std::time::Instant::now();
    while gets(world, from, url)? != open {
        if begun.elapsed() > MOMENT {
            let state = if open { "not open" } else { "still open" };
            fail!("{}: {url} is {state} after {} s", from.name, MOMENT.as_secs());
        }
    }
    Ok(())
}

/// Sets a feature `vm-config.NAME` of the firewall, as `qvm-features` does.
fn write(world: &World, name: &str, value: &str) -> Result<()> {
    world.dom0d()?.db(&world.lab, &format!("write /vm-config/{name} '{value}'")).map(drop)
}

fn remove(world: &World, name: &str) -> Result<()> {
    world.dom0d()?.db(&world.lab, &format!("rm /vm-config/{name}")).map(drop)
}
