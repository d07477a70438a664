//! A firewall of ours behind another one of ours, which may be behind a Linux one: what Qubes calls a proxy VM.

use super::MOMENT;
use super::six;
use super::steps::{self, ALICE, BOB, flows_again};
use crate::error::Result;
use crate::fail;
use crate::lab::domain::Domain;
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
    // The one next to the NetVM, as each one translates.
    let way = world.plan.way_out(world.netvm_plan(1)?);
    let Some([next, _]) = way.last_chunk() else { fail!("no chain") };
    let outer = &next.ip;
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

/// What each link of the chain has to keep: the MTU (a packet of it passes whole, a larger one in fragments), checksums (those
/// that the sender itself has computed over its packets are looked at by each Linux on their way and by the receiver: none is
/// wrong), and the throughput of both directions.
///
/// # Errors
/// When one of them is not kept.
pub fn size_sums_and_speed(world: &mut World) -> Result<String> {
    world.need_rules(BOB, ACCEPT_ALL)?;
    world.need_firewall(Some(1))?;
    world.need_client(BOB)?;
    let (bob, netvm) = (world.client(BOB)?, world.netvm(0)?);
    whole_packets(world, bob)?;
    let before = wrong_sums(world, netvm)?;
    let (offloaded_down, offloaded_up) =
        (steps::download(world, bob, PART)?, steps::upload(world, bob, PART)?);
    // What leaves the sender now has its checksum (over IPv6: Linux' netfront cannot do without that of IPv4).
    let nothing = "tx off sg off tso off gso off gro off";
    world.sh(bob, &format!("ethtool -K eth0 {nothing} 2>&1; true"))?;
    let own = (steps::upload(world, bob, PART)?, six_up(world, bob)?);
    steps::resolves(world, bob)?;
    steps::resolves_over_tcp(world, bob)?;
    world.sh(bob, "ethtool -K eth0 tx on sg on tso on gso on gro on 2>&1; true")?;
    let wrong = wrong_sums(world, netvm)?.saturating_sub(before);
    if wrong > 0 {
        fail!("{wrong} packets with a wrong checksum at the server");
    }
    Ok(format!(
        "1500 bytes whole, no wrong checksum; 4 MB down at {:.1} and up at {:.1} MB/s, without offloads up at {:.1} and {:.1} (IPv6)",
        offloaded_down / 1e6,
        offloaded_up / 1e6,
        own.0 / 1e6,
        own.1 / 1e6
    ))
}

fn six_up(world: &World, bob: &Domain) -> Result<f64> {
    let Some(server6) = &world.plan.internet6 else { fail!("a chain without IPv6") };
    steps::upload_to(world, bob, PART, &format!("[{server6}]"))
}

/// The largest packets that are not to be fragmented, of both families, and one that has to be.
fn whole_packets(world: &World, bob: &Domain) -> Result<()> {
    let server = &world.plan.internet;
    let mut asked = vec![(server.as_str(), 1472, "do"), (server, 4000, "dont")];
    if let Some(server6) = &world.plan.internet6 {
        asked.push((server6, 1452, "do"));
    }
    for (address, size, fragment) in asked {
        let line = format!("ping -q -c 3 -i 0.3 -W 5 -M {fragment} -s {size} {address}");
        let out = bob.exec(&world.lab, &line)?;
        if steps::replies(&out.text).is_none_or(|replies| replies == 0) {
            fail!("{size} bytes to {address} (fragments: {fragment}): {}", out.text);
        }
    }
    Ok(())
}

/// Packets with a wrong checksum that a Linux has received (RFC 4022's and its kin's counters).
fn wrong_sums(world: &World, domain: &Domain) -> Result<u64> {
    let text = world.sh(domain, "cat /proc/net/snmp /proc/net/snmp6")?;
    Ok(sum_of_wrong(&text))
}

/// The sum of all `InCsumErrors`: `snmp` has a line of names above each line of values, `snmp6` a pair in each.
fn sum_of_wrong(text: &str) -> u64 {
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    let value = |word: &&str| word.parse::<u64>().unwrap_or(0);
    let of_pairs = lines.iter().filter_map(|line| match line.as_slice() {
        [name, number] if name.ends_with("InCsumErrors") => Some(value(number)),
        _ => None,
    });
    let of_tables = lines.windows(2).filter_map(|rows| match rows {
        [names, values] if names.first() == values.first() => {
            let at = names.iter().position(|name| *name == "InCsumErrors")?;
            values.get(at).map(value)
        }
        _ => None,
    });
    of_pairs.sum::<u64>().saturating_add(of_tables.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_sums_of_both_files() {
        let text = "Tcp: InErrs InCsumErrors\nTcp: 9 2\nUdp: InCsumErrors MemErrors\nUdp: 3 8\n\
                    Ip6InReceives                   77\nUdp6InCsumErrors                5\n";
        assert_eq!(sum_of_wrong(text), 10);
        assert_eq!(sum_of_wrong(""), 0);
    }
}
