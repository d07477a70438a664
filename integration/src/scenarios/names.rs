//! Rules with host names.

use std::time::Duration;

use super::steps::{self, ALICE, need_one};
use crate::error::Result;
use crate::fail;
use crate::lab::domain::Domain;
use crate::lab::world::World;

/// For an answer to arrive and be in force, on a busy host.
const MOMENT: Duration = Duration::from_secs(45);

/// A rule with the server's name: the name's address is open and another one is not, dom0 sees what the name stands for
/// and that the rules were handled; the name gets another address, the client asks for it, and the rule follows.
///
/// # Errors
/// When it is not so.
pub fn rule_with_a_name(world: &mut World) -> Result<String> {
    need_one(world)?;
    let name = world.plan.server_name.clone();
    let first = world.plan.internet.clone();
    let second = neighbour(&first)?;
    let netvm = world.netvm(0)?;
    let serve = format!(
        "ip addr replace {second}/32 dev ext0; netstat -ltn | grep -q {second}:443 || \
         httpd -h /srv -p {second}:443"
    );
    world.sh(netvm, &serve)?;
    world.set_rules(
        ALICE,
        &[
            &format!("action=accept dsthost={name} proto=tcp dstports=443-443"),
            "action=accept specialtarget=dns",
        ],
    )?;
    let key = format!("/dns/{}/{name}", world.client_ip(ALICE)?);
    let shown = published(world, &key, &first)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::refused_port(world, world.client(ALICE)?, &second, 443)?;
    let handled = format!("read /qubes-firewall-handled/{}", world.client_ip(ALICE)?);
    let handled = world.dom0d()?.db(&world.lab, &handled)?;

    let result = point_to(world, &second).and_then(|()| follows(world, &name, &second, &key));
    point_to(world, &first)?;
    let seconds = result?;
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    Ok(format!(
        "dom0 saw {} and handled={}; the new address was open {seconds:.1} s after the client's question",
        shown.trim(),
        handled.trim()
    ))
}

/// The client asks for the name, whose address has changed; seconds until the rule lets it there.
fn follows(world: &World, name: &str, second: &str, key: &str) -> Result<f32> {
    let alice = world.client(ALICE)?;
    let begun = std::time::Instant::now();
    let resolver = world.plan.client_dns.first().map_or("", |dns| dns);
    let answer = alice
        .exec(
            &world.lab,
            &format!("for n in 1 2 3; do nslookup -type=a {name} {resolver} 2>&1 && break; done"),
        )?
        .text;
    if !answer.contains(second) {
        fail!("the resolver did not move {name} to {second}: {answer}");
    }
    while !gets(world, alice, second)? {
        if begun.elapsed() > MOMENT {
            fail!("the rule does not follow {name} to {second}");
        }
    }
    let seconds = begun.elapsed().as_secs_f32();
    published(world, key, second)?;
    Ok(seconds)
}

fn gets(world: &World, client: &Domain, address: &str) -> Result<bool> {
    let line = format!("timeout 3 wget -q -O - http://{address}:443/ 2>/dev/null | grep -q page");
    Ok(client.exec(&world.lab, &line)?.success())
}

/// Waits until dom0 sees that the name stands for `address`; what it sees.
fn published(world: &World, key: &str, address: &str) -> Result<String> {
    let begun = std::time::Instant::now();
    loop {
        let shown = world.dom0d()?.db(&world.lab, &format!("read {key}"));
        match shown {
            Ok(value) if value.contains(&format!("'{address}/32'")) => return Ok(value),
            other if begun.elapsed() > MOMENT => {
                fail!("dom0 should see {address} in {key}: {other:?}")
            }
            _ => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}

/// Lets the NetVM's resolvers answer with another address.
fn point_to(world: &World, address: &str) -> Result<()> {
    let mut line = "killall dnsmasq; sleep 1".to_owned();
    let name = &world.plan.server_name;
    // The IPv6 address goes with the first one.
    let six = world.plan.internet6.as_deref().filter(|_| address == world.plan.internet);
    let six = six.map(|six| format!("--address=/{name}/{six}")).unwrap_or_default();
    for resolver in &world.plan.resolvers {
        line.push_str(&format!(
            "; dnsmasq -C /dev/null -u root -z -a {resolver} --no-resolv --no-hosts --pid-file= --local-ttl=30 \
             --address=/{name}/{address} {six} || exit 1"
        ));
    }
    world.sh(world.netvm(0)?, &line).map(drop)
}

/// The address after this one.
fn neighbour(address: &str) -> Result<String> {
    match address.parse::<std::net::Ipv4Addr>() {
        Ok(address) => Ok(std::net::Ipv4Addr::from_bits(address.to_bits() + 1).to_string()),
        Err(_) => fail!("no IPv4 address: {address:?}"),
    }
}
