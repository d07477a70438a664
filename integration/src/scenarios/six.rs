//! IPv6: the same situations as for IPv4, on the same booted network.

use std::net::Ipv6Addr;
use std::time::Duration;

use super::steps::{self, ALICE, BOB};
use crate::error::{Error, Result};
use crate::fail;
use crate::lab::domain::Domain;
use crate::lab::guests::PART;
use crate::lab::world::{ACCEPT_ALL, World};

/// A client reaches the outside, which sees the firewall's address alone; names have both families.
///
/// # Errors
/// When something does not come through, or too much does.
pub fn reaches_the_outside(world: &mut World) -> Result<String> {
    let server = need_both(world)?;
    let (bob, netvm) = (world.client(BOB)?, world.netvm(0)?);
    let dump = steps::capture(world, netvm, "any", "icmp6 and ip6[40] == 128")?;
    let answered = steps::ping(world, bob, 5, &server)?;
    let seen = dump.finish(world, netvm)?;
    let own = own6(world)?;
    if answered < 4
        || !seen.contains(&format!("IP6 {own} > "))
        || seen.contains(&format!("IP6 {} > ", address(world, BOB)?))
    {
        fail!("{answered} of 5 answered; the NetVM saw:\n{seen}");
    }
    page(world, bob)?;
    if steps::ping(world, bob, 3, &own)? == 0 {
        fail!("the gateway does not answer");
    }
    let line = format!("nslookup -type=aaaa {} 2>&1", world.plan.server_name);
    let names = bob.exec(&world.lab, &line)?.text;
    if !names.contains(&server) {
        fail!("no {server} in {names}");
    }
    let line = steps::download_line(&format!("[{server}]"), PART);
    let text = bob.exec_for(&world.lab, &line, steps::DOWNLOAD)?.ok("download over IPv6")?;
    let rate = steps::downloaded(bob, PART, &text)?;
    Ok(format!("{answered} of 5 pings answered, 4 MB at {:.1} MB/s", rate / 1e6))
}

/// Client A: only tcp/443 to the server; refused at once elsewhere, by ICMPv6 type 1 code 1 on its wire.
///
/// # Errors
/// When it is not so.
pub fn one_port_only(world: &mut World) -> Result<String> {
    let server = need_both(world)?;
    let alice = world.client(ALICE)?;
    page(world, alice)?;
    let ms = refused(world, alice, &server, 80)?;
    if steps::ping(world, alice, 2, &server)? > 0 {
        fail!("ping got through");
    }
    Ok(format!("refused after {ms} ms"))
}

/// A's only permission is taken away while a connection of A over IPv6 is open: A is told at its next byte, the server
/// is told nothing, new connections are refused, and B's traffic goes on.
///
/// # Errors
/// When it is not so.
pub fn rule_edit(world: &mut World) -> Result<String> {
    let server = need_both(world)?;
    let alice = world.client(ALICE)?;
    let quiet = format!(
        "rm -f /tmp/bytes6; mkfifo /tmp/bytes6; exec 3<>/tmp/bytes6; nc {server} 443 <&3; echo ended"
    );
    let waits = alice.spawn(&world.lab, &quiet)?;
    until_open(world, &server)?;
    world.set_rules(ALICE, &["action=accept proto=icmp"])?;
    let alice = world.client(ALICE)?;
    let ms = refused(world, alice, &server, 443)?;
    if steps::ping(world, alice, 3, &server)? == 0 {
        fail!("A's new rule does not let ping through");
    }
    if let Some(end) = waits.poll(&world.lab, alice)? {
        fail!("A's quiet connection ended without a packet of A: {}", end.text);
    }
    world.sh(alice, "echo x >/tmp/bytes6")?;
    waits.finish(&world.lab, alice, Duration::from_secs(60))?;
    if !is_open(world, &server)? {
        fail!("the server's end of A's connection is closed: somebody told it");
    }
    page(world, world.client(BOB)?)?;
    need_both(world)?;
    page(world, world.client(ALICE)?)?;
    Ok(format!("refused after {ms} ms, A told at its next byte, the server's end still open"))
}

/// Waits until the server has a connection to port 443 from the firewall.
fn until_open(world: &World, server: &str) -> Result<()> {
    let begun = std::time::Instant::now();
    while !is_open(world, server)? {
        if begun.elapsed() > Duration::from_secs(60) {
            fail!("A's quiet connection does not open");
        }
    }
    Ok(())
}

/// Whether the server has an open connection to port 443 from the firewall.
fn is_open(world: &World, server: &str) -> Result<bool> {
    let connections = world.sh(world.netvm(0)?, "cat /proc/net/tcp6")?;
    let [local, remote] = [server, &own6(world)?].map(kernel_text);
    // Ports and states in hexadecimal, 443 and "established" (Linux include/net/tcp_states.h).
    let is_ours = |line: &str| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        [_, here, there, "01", ..] => {
            *here == format!("{local}:01BB") && there.starts_with(&format!("{remote}:"))
        }
        _ => false,
    };
    Ok(connections.lines().any(is_ours))
}

/// An address as Linux shows it in `/proc/net/tcp6`: four words in the order of the processor.
fn kernel_text(address: &str) -> String {
    let octets = address.parse().unwrap_or(Ipv6Addr::UNSPECIFIED).octets();
    let (words, _) = octets.as_chunks::<4>();
    words.iter().map(|word| format!("{:08X}", u32::from_le_bytes(*word))).collect()
}

/// IPv6 works again for a client that may do everything, after IPv4 does: seconds. Nothing to do in a plan without it.
///
/// # Errors
/// When it does not.
pub fn again(world: &World, client: usize) -> Result<f32> {
    let Some(server) = world.plan.internet6.clone() else { return Ok(0.0) };
    let seconds = steps::flows_again(world, world.client(client)?, &server)?;
    page(world, world.client(client)?)?;
    Ok(seconds)
}

/// A and B do not reach each other.
///
/// # Errors
/// When they do.
pub fn clients_are_isolated(world: &mut World) -> Result<String> {
    need_both(world)?;
    world.set_rules(ALICE, ACCEPT_ALL)?;
    for (from, to) in [(ALICE, BOB), (BOB, ALICE)] {
        let (client, target) = (world.client(from)?, world.client(to)?);
        let filter = format!("ip6 src {}", address(world, from)?);
        let dump = steps::capture(world, target, "eth0", &filter)?;
        if steps::ping(world, client, 3, &address(world, to)?)? > 0 {
            fail!("{} answers {}", target.name, client.name);
        }
        let seen = dump.finish(world, target)?;
        if !seen.trim().is_empty() {
            fail!("{} saw {}: {seen}", target.name, client.name);
        }
    }
    need_both(world).map(|_| String::new())
}

/// A client that uses another's address, one of the outside, or the firewall's.
///
/// # Errors
/// When one passes, or is not counted.
pub fn forged_source(world: &mut World) -> Result<String> {
    let server = need_both(world)?;
    let (bob, netvm) = (world.client(BOB)?, world.netvm(0)?);
    let mark = world.firewall()?.console_mark();
    let dump = steps::capture(world, netvm, "any", "icmp6 and ip6[40] == 128 and greater 1200")?;
    let mut sent = 0;
    for source in [address(world, ALICE)?, "2001:db8:bad::1".into(), own6(world)?] {
        let line = format!(
            "ip addr add {source}/128 dev eth0 nodad; ping -q -c 4 -i 0.3 -W 1 -s 1200 -I {source} {server}; r=$?; \
             ip addr del {source}/128 dev eth0; exit $r"
        );
        if bob.exec(&world.lab, &line)?.success() {
            fail!("an answer to the forged source {source}");
        }
        sent += 4;
    }
    // A control: that such a ping is seen when its source is right.
    let honest = steps::ping_large(world, bob, &server)?;
    let seen = dump.finish(world, netvm)?;
    let own = format!("IP6 {} > ", own6(world)?);
    if honest == 0 || !seen.contains(&own) || seen.lines().any(|line| !line.contains(&own)) {
        fail!("{honest} honest packets answered; the NetVM saw:\n{seen}");
    }
    let told = steps::dropped(world, mark, "source-spoofed", sent)?;
    page(world, bob)?;
    Ok(format!("{sent} sent, {told} counted"))
}

/// Both clients, A with one port of the server in both families, B with everything; the server's address.
fn need_both(world: &mut World) -> Result<String> {
    let Some(server) = world.plan.internet6.clone() else { fail!("the plan is without IPv6") };
    let v4 = steps::https_only(world);
    let v6 = format!("action=accept proto=tcp dst6={server}/128 dstports=443-443");
    world.need_rules(ALICE, &[&v4, &v6])?;
    world.need_firewall(Some(0))?;
    world.need_client(ALICE)?;
    world.need_client(BOB)?;
    Ok(server)
}

/// Tries a port, which must be refused at once: milliseconds on the client's wire from its SYN to ICMPv6 type 1 code 1.
///
/// # Errors
/// When it is open, or not refused at once.
pub fn refused(world: &World, client: &Domain, server: &str, port: u16) -> Result<u64> {
    let filter = format!(
        "(ip6 dst host {server} and tcp dst port {port}) or (icmp6 and ip6[40] == 1 and ip6[41] == 1)"
    );
    let dump = steps::capture(world, client, "eth0", &filter)?;
    let get = format!("timeout 10 wget -q -O /dev/null http://[{server}]:{port}/");
    if client.exec(&world.lab, &get)?.success() {
        fail!("port {port} is open");
    }
    let packets = dump.finish(world, client)?;
    match steps::syn_to_icmp_ms(&packets) {
        Some(ms) if ms < 900 => Ok(ms),
        _ => fail!("port {port} is not refused at once by ICMPv6 1/1:\n{packets}"),
    }
}

fn own6(world: &World) -> Result<String> {
    let own = world.plan.firewall.ip6.clone();
    own.ok_or_else(|| Error::Failed("the firewall of the plan has no IPv6 address".into()))
}

fn address(world: &World, index: usize) -> Result<String> {
    let own = world.client_ip6(index)?;
    own.ok_or_else(|| Error::Failed("a client of the plan has no IPv6 address".into()))
}

/// The small page of the first NetVM from tcp/443.
fn page(world: &World, client: &Domain) -> Result<()> {
    let server = world.plan.internet6.as_deref().unwrap_or_default();
    let line = format!("timeout 60 wget -q -O - http://[{server}]:443/ 2>&1");
    let out = client.exec(&world.lab, &line)?;
    if !out.success() || !out.text.starts_with("page of ") {
        fail!("{}: page over IPv6: {} {:?}", client.name, out.status, out.text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_kernel() {
        assert_eq!(kernel_text("::1"), "00000000000000000000000001000000");
        assert_eq!(kernel_text("2001:db8::2"), "B80D0120000000000000000002000000");
    }
}
