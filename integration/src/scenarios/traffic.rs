//! What passes and what does not.

use super::steps::{self, ALICE, BOB, need_both, need_one};
use crate::error::Result;
use crate::fail;
use crate::lab::guests::BIG;
use crate::lab::world::{ACCEPT_ALL, World};

/// A client pings the outside; the outside sees the firewall's address.
pub fn ping_is_masqueraded(world: &mut World) -> Result<String> {
    world.need_rules(BOB, ACCEPT_ALL)?;
    world.need_firewall(Some(0))?;
    world.need_client(BOB)?;
    let netvm = world.netvm(0)?;
    let dump = steps::capture(world, netvm, "any", "icmp[icmptype] == 8")?;
    let answered = steps::ping(world, world.client(BOB)?, 5, &world.plan.internet)?;
    let seen = dump.finish(world, netvm)?;
    let (own, client) = (&world.plan.firewall.ip, world.client_ip(BOB)?);
    if answered < 4
        || !seen.contains(&format!("IP {own} > "))
        || seen.contains(&format!("IP {client} > "))
    {
        fail!("{answered} of 5 answered; the NetVM saw:\n{seen}");
    }
    // The NetVM's own address is beyond the uplink: the rules alone decide.
    let gateway = world.plan.netvms.first().map(|netvm| netvm.ip.clone()).unwrap_or_default();
    let netvm = steps::ping(world, world.client(BOB)?, 3, &gateway)?;
    let firewall = steps::ping(world, world.client(BOB)?, 3, own)?;
    if netvm == 0 || firewall == 0 {
        fail!("echo replies: {netvm} of 3 from the NetVM, {firewall} of 3 from the gateway");
    }
    Ok(format!("{answered} of 5 answered"))
}

/// Client A: only tcp/443 to the server.
pub fn one_port_only(world: &mut World) -> Result<String> {
    need_one(world)?;
    let server = world.plan.internet.clone();
    let alice = world.client(ALICE)?;
    steps::page(world, alice, 0)?;
    let ms = steps::refused(world, alice, &server)?;
    let on_the_wire = steps::refused_on_the_wire(world, alice, &server, 80)?;
    if steps::ping(world, alice, 2, &server)? > 0 {
        fail!("{}: ping got through", alice.name);
    }
    if steps::ping(world, alice, 3, &world.plan.firewall.ip)? == 0 {
        fail!("{}: the gateway does not answer ping", alice.name);
    }
    steps::page(world, alice, 0)?;
    Ok(format!(
        "port 80 refused in {ms} ms, on A's wire by ICMP type 3 code 13 after {on_the_wire} ms"
    ))
}

/// Client B: everything.
pub fn accept_all(world: &mut World) -> Result<String> {
    world.need_rules(BOB, ACCEPT_ALL)?;
    world.need_firewall(Some(0))?;
    world.need_client(BOB)?;
    let bob = world.client(BOB)?;
    let answered = steps::ping(world, bob, 5, &world.plan.internet)?;
    if answered < 4 {
        fail!("{answered} of 5 pings answered");
    }
    steps::resolves(world, bob)?;
    let before = world.lab.cpu_seconds(&world.plan.firewall.name)?;
    let rate = steps::download(world, bob, BIG)?;
    let cpu = world.lab.cpu_seconds(&world.plan.firewall.name)? - before;
    steps::resolves_over_tcp(world, bob)?;
    Ok(format!("20 MB at {:.1} MB/s, {cpu:.1} s of the firewall's CPU", rate / 1e6))
}

/// A does not reach B, nor B A, whatever their rules say.
pub fn clients_are_isolated(world: &mut World) -> Result<String> {
    need_both(world)?;
    world.set_rules(ALICE, ACCEPT_ALL)?;
    for (from, to) in [(ALICE, BOB), (BOB, ALICE)] {
        let target = world.client(to)?;
        let ip = world.client_ip(to)?;
        world.sh(target, "pidof httpd >/dev/null || { mkdir -p /srv; echo mine >/srv/index.html; httpd -h /srv -p 80; }")?;
        world.sh(target, "wget -q -O - http://127.0.0.1/ | grep -q mine")?;
        let dump =
            steps::capture(world, target, "eth0", &format!("src {}", world.client_ip(from)?))?;
        let client = world.client(from)?;
        if steps::ping(world, client, 3, &ip)? > 0 {
            fail!("{} answers the ping of {}", target.name, client.name);
        }
        if client.exec(&world.lab, &format!("timeout 3 wget -q -O - http://{ip}/"))?.success() {
            fail!("{} serves {} a page", target.name, client.name);
        }
        let seen = dump.finish(world, target)?;
        if !seen.trim().is_empty() {
            fail!("{} saw frames of {}: {seen}", target.name, client.name);
        }
    }
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    Ok(String::new())
}

/// New connections from the outside do not get in, to the clients or to the firewall.
pub fn nothing_inwards(world: &mut World) -> Result<String> {
    need_both(world)?;
    let (bob_ip, own) = (world.client_ip(BOB)?, world.plan.firewall.ip.clone());
    let netvm = world.netvm(0)?;
    // The NetVM is made to believe that the client's address is behind the firewall.
    let vif = world.sh(netvm, "ls /sys/class/net | grep '^vif' | head -1")?;
    world.sh(netvm, &format!("ip route replace {bob_ip} via {own} dev {} onlink", vif.trim()))?;
    for address in [&bob_ip, &own] {
        if netvm
            .exec(&world.lab, &format!("ping -q -c 2 -W 2 -I {} {address}", world.plan.internet))?
            .success()
        {
            fail!("the outside pings {address}");
        }
        let line = format!("echo | nc -w 3 {address} 80");
        if netvm.exec(&world.lab, &line)?.success() {
            fail!("the outside connects to {address}");
        }
    }
    world.sh(netvm, &format!("ip route del {bob_ip}"))?;
    steps::page(world, world.client(BOB)?, 0)?;
    Ok(String::new())
}

/// A client that uses another's address, or one of the outside.
pub fn forged_source(world: &mut World) -> Result<String> {
    need_both(world)?;
    let bob = world.client(BOB)?;
    let netvm = world.netvm(0)?;
    let mark = world.firewall()?.console_mark();
    let server = world.plan.internet.clone();
    let mut sent = 0;
    let forged =
        [world.client_ip(ALICE)?, "203.0.113.77".to_owned(), world.plan.firewall.ip.clone()];
    // Only these pings are that large.
    let dump = steps::capture(world, netvm, "any", "icmp[icmptype] == 8 and greater 1200")?;
    for source in &forged {
        let line = format!(
            "ip addr add {source}/32 dev eth0; ping -q -c 4 -i 0.3 -W 1 -s 1200 -I {source} {server}; r=$?; \
             ip addr del {source}/32 dev eth0; exit $r"
        );
        if bob.exec(&world.lab, &line)?.success() {
            fail!("an answer to the forged source {source}");
        }
        sent += 4;
    }
    // A control: that such a ping is seen when its source is right.
    let honest = steps::ping_large(world, bob, &server)?;
    let seen = dump.finish(world, netvm)?;
    let own = format!(" {} > ", world.plan.firewall.ip);
    if honest == 0 || !seen.contains(&own) {
        fail!("the capture saw nothing of {honest} answered honest packets: {seen}");
    }
    let seen: String = seen.lines().filter(|line| !line.contains(&own)).collect();
    if !seen.trim().is_empty() {
        fail!("forged packets reached the NetVM: {seen}");
    }
    let told = steps::dropped(world, mark, "source-spoofed", sent)?;
    steps::page(world, bob, 0)?;
    Ok(format!("{sent} sent, {told} counted"))
}
