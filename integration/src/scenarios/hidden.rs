//! Hidden addresses (`net.fake-ip`): what a client, or the firewall itself, is told is not what it has.

use super::steps::{self, ALICE, BOB, CAROL};
use crate::error::Result;
use crate::fail;
use crate::lab::guests::PART;
use crate::lab::world::{ACCEPT_ALL, World};

/// Two clients that believe in one and the same address work side by side, each by the rules of its real address; their
/// gateway is the one that they believe in, and nothing on their wire tells the real address.
///
/// # Errors
/// When something does not work, passes, or tells.
pub fn two_clients_with_one_address(world: &mut World) -> Result<String> {
    need_all(world)?;
    let server = world.plan.internet.clone();
    let (alice, bob) = (world.client(ALICE)?, world.client(BOB)?);
    let (told, _) = world.plan.client_addresses(world.client_of_plan(ALICE)?);
    let (told, real) = (number(told)?, number(&world.client_ip(ALICE)?)?);
    // ICMP errors carry a packet of their receiver: its source is at byte 12 of what follows the ICMP header.
    let tells = format!(
        "ip[12:4] == {real} or ip[16:4] == {real} or (icmp[icmptype] == 3 and icmp[20:4] == {real})"
    );
    let leak = steps::capture(world, alice, "eth0", &tells)?;
    let control = format!("icmp[0:2] == 0x030d and icmp[20:4] == {told}");
    let control = steps::capture(world, alice, "eth0", &control)?;
    steps::resolves(world, bob)?;
    let b_loads = bob.spawn(&world.lab, &steps::download_line(&server, PART))?;
    steps::page(world, alice, 0)?;
    steps::refused(world, alice, &server)?;
    for (index, client) in [(ALICE, alice), (BOB, bob)] {
        let (_, gateway) = world.plan.client_addresses(world.client_of_plan(index)?);
        if steps::ping(world, client, 3, gateway)? == 0 {
            fail!("{}: the gateway that it believes in does not answer", client.name);
        }
    }
    let text = b_loads.finish(&world.lab, bob, steps::DOWNLOAD)?.ok("B's download")?;
    let rate = steps::downloaded(bob, PART, &text)?;
    let (told, leaked) = (control.finish(world, alice)?, leak.finish(world, alice)?);
    if told.trim().is_empty() || !leaked.trim().is_empty() {
        fail!(
            "A's wire should show its told address in a refusal and never the real one: {told:?} {leaked:?}"
        );
    }
    Ok(format!(
        "B downloads at {:.1} MB/s while A is refused; the real address never shows",
        rate / 1e6
    ))
}

/// A client without hidden addresses beside them, and the firewall itself with one towards its netvm.
///
/// # Errors
/// When one of them does not work, or the NetVM sees what the other firewall should hide.
pub fn firewall_with_a_hidden_address(world: &mut World) -> Result<String> {
    need_all(world)?;
    let line = world.firewall()?.wait_console(&world.lab, "fw: config ip=", super::MOMENT)?;
    let own = &world.plan.firewall.ip;
    if steps::field(&line, "ip") != Some(own) {
        fail!("the firewall should believe in {own}: {line}");
    }
    let netvm = world.netvm(0)?;
    let outer = &world.netvm_plan(1)?.ip;
    let dump =
        steps::capture(world, netvm, "any", &format!("icmp[icmptype] == 8 and not src {outer}"))?;
    let server = world.plan.internet.clone();
    for index in [BOB, CAROL] {
        let client = world.client(index)?;
        if steps::ping(world, client, 3, &server)? == 0 {
            fail!("{}: no answer", client.name);
        }
    }
    let seen = dump.finish(world, netvm)?;
    if !seen.trim().is_empty() {
        fail!("the NetVM saw more than {outer}: {seen}");
    }
    Ok(format!("the firewall works as {own}, its neighbours as {outer}"))
}

/// A forged source on a vif with hidden addresses: the real address is as wrong there as any other.
///
/// # Errors
/// When it is not counted.
pub fn real_address_is_forged_there(world: &mut World) -> Result<String> {
    need_all(world)?;
    let (bob, mark) = (world.client(BOB)?, world.firewall()?.console_mark());
    let (real, server) = (world.client_ip(BOB)?, &world.plan.internet);
    let line = format!(
        "ip addr add {real}/32 dev eth0; ping -q -c 4 -i 0.3 -W 1 -I {real} {server}; r=$?; \
         ip addr del {real}/32 dev eth0; exit $r"
    );
    if bob.exec(&world.lab, &line)?.success() {
        fail!("an answer to a source that this client does not have");
    }
    let told = steps::dropped(world, mark, "source-spoofed", 4)?;
    steps::page(world, bob, 0)?;
    Ok(format!("4 sent, {told} counted"))
}

fn need_all(world: &mut World) -> Result<()> {
    let rule = steps::https_only(world);
    world.need_rules(ALICE, &[&rule])?;
    world.need_rules(BOB, ACCEPT_ALL)?;
    world.need_firewall(Some(1))?;
    for client in [ALICE, BOB, CAROL] {
        world.need_client(client)?;
    }
    Ok(())
}

fn number(address: &str) -> Result<u32> {
    match address.parse::<std::net::Ipv4Addr>() {
        Ok(address) => Ok(address.to_bits()),
        Err(_) => fail!("no IPv4 address: {address:?}"),
    }
}
