//! What the firewall tells dom0 of rules, drops and flows, and what callers who mean harm get out of it.

use serde_json::Value;

use super::loads::Loads;
use super::steps::{self, ALICE, BOB, need_both};
use crate::error::Result;
use crate::fail;
use crate::lab::shell::Output;
use crate::lab::world::World;

/// Calls of a flood.
const CALLS: u32 = 200;
/// Pages that dom0 may share for their data channels, 3 each.
const SHARED_PAGES: u32 = 2_048;
/// Callers who stop: as many as are served at once.
const STOPPED: u32 = 4;
/// Seconds until they have lost their channels, which takes 10 s.
const PATIENCE_S: f64 = 30.0;

/// An edit, and what all services say of it; then callers with large bodies, 200 calls in flight and callers who stop, while
/// B downloads.
///
/// # Errors
/// When an answer is not right, a refusal has no reason, or traffic stops.
pub fn rules_drops_and_flows(world: &mut World) -> Result<String> {
    need_both(world)?;
    let accept = steps::https_only(world);
    world.set_rules(ALICE, &[&accept, "action=drop"])?;
    let loads = Loads::start(world, BOB)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::refused(world, world.client(ALICE)?, &world.plan.internet)?;
    let told = agree(world)?;
    let healthy = health(world)?;
    large_bodies(world)?;
    let flood = flood(world)?;
    let stopped = callers_stop(world)?;
    let loaded = loads.enough(world)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    health(world)?;
    world.set_rules(ALICE, &[&accept])?;
    Ok(format!("{told}; {healthy}; {flood}; {stopped}; B meanwhile: {loaded}"))
}

fn ask(world: &World, service: &str) -> Result<Vec<Value>> {
    let out = world.dom0d()?.call(&world.lab, &format!("QUBESRPC {service} dom0"))?;
    lines(service, &out)
}

fn lines(service: &str, out: &Output) -> Result<Vec<Value>> {
    let lines: Option<Vec<Value>> =
        out.text.lines().map(|line| serde_json::from_str(line).ok()).collect();
    match lines {
        Some(lines) if out.success() && !lines.is_empty() => Ok(lines),
        _ => fail!("{service}: exit status {}: {}", out.status, out.text),
    }
}

/// What all lines say that have these values.
fn find<'a>(lines: &'a [Value], wanted: &[(&str, Value)]) -> Result<&'a Value> {
    let is_it = |line: &&Value| wanted.iter().all(|(key, value)| line.get(key) == Some(value));
    match lines.iter().find(is_it) {
        Some(line) => Ok(line),
        None => fail!("no line with {wanted:?}: {lines:?}"),
    }
}

fn number(line: &Value, key: &str) -> u64 {
    line.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// Rules, drops, flows and explanations tell the same story.
fn agree(world: &World) -> Result<String> {
    let (alice, bob) = (world.client_ip(ALICE)?, world.client_ip(BOB)?);
    let server = &world.plan.internet;
    let rules = ask(world, &format!("firewall.Rules+{alice}"))?;
    let first = find(&rules, &[("kind", "rule".into()), ("index", 0.into())])?;
    let second = find(&rules, &[("kind", "rule".into()), ("text", "action=drop".into())])?;
    let hits = (number(first, "hits"), number(second, "hits"));
    if hits.0 == 0 || hits.1 == 0 {
        fail!("no hits: {rules:?}");
    }
    let drops = ask(world, &format!("firewall.Drops+{alice}"))?;
    let refused = [("reason", "rule-rejected".into()), ("dport", 80.into()), ("rule", 1.into())];
    let drop = find(&drops, &refused)?;
    if drop.get("text") != Some(&"action=drop".into())
        || drop.get("dst") != Some(&server.as_str().into())
    {
        fail!("a drop without its rule or destination: {drop}");
    }
    let explained = ask(world, &format!("firewall.Explain+{alice}+tcp+{server}+443"))?;
    find(&explained, &[("verdict", "accept".into()), ("rule", 0.into())])?;
    let out = world.lab.exec(&format!(
        "printf '%s\\n' '{alice} tcp {server} 80' | {}",
        world.dom0d()?.call_line("QUBESRPC firewall.Explain dom0")
    ))?;
    let explained = lines("firewall.Explain", &out)?;
    find(&explained, &[("verdict", "reject".into()), ("rule", 1.into())])?;
    let running = [("dport", 443.into()), ("state", "established".into()), ("rule", 0.into())];
    let service = format!("firewall.Flows+{bob}");
    let mut flows = ask(world, &service)?;
    // Between two of B's downloads there is none that stands.
    for _ in 0..10 {
        if find(&flows, &running).is_ok() {
            break;
        }
        flows = ask(world, &service)?;
    }
    find(&flows, &running)?;
    Ok(format!(
        "hits {} and {}, {} drops of A, {} flows of B",
        hits.0,
        hits.1,
        drops.len() - 1,
        flows.len() - 1
    ))
}

fn health(world: &World) -> Result<String> {
    let health = ask(world, "firewall.Health")?;
    if find(&health, &[("kind", "health".into())])?.get("ok") != Some(&true.into()) {
        fail!("not well: {health:?}");
    }
    Ok("well".into())
}

/// Megabytes of standard input, for a service that does not want it and for one that wants a line.
fn large_bodies(world: &World) -> Result<()> {
    for (service, status) in [("firewall.Version", 0), ("firewall.Explain", 1)] {
        let out = world.lab.exec(&format!(
            "head -c 2000000 /dev/zero | {}",
            world.dom0d()?.call_line(&format!("QUBESRPC {service} dom0"))
        ))?;
        if out.status != status {
            fail!("{service} with 2 MB: exit status {}: {}", out.status, out.text);
        }
    }
    Ok(())
}

/// 200 calls under way at once, from one process: each is answered, or refused with a reason, and dom0 has all ports back. On
/// a host that is busy with something else the firewall may have no channel for one in 10 s, and dom0's program then gives up:
/// that is not accepted.
fn flood(world: &World) -> Result<String> {
    let limit = "/sys/module/xen_gntalloc/parameters/limit";
    world.lab.sh(&format!("echo {SHARED_PAGES} >{limit}"))?;
    let server = world.dom0d()?;
    let told = server.flood(&world.lab, CALLS, "QUBESRPC firewall.Stats dom0", None)?;
    let ends = told.get("ends").and_then(Value::as_object);
    let of = |end: &str| ends.and_then(|ends| ends.get(end)?.as_u64()).unwrap_or(0);
    let (answered, refused) = (of("answer"), of("126 too many calls at once"));
    if answered == 0 || refused == 0 || answered + refused != u64::from(CALLS) {
        fail!("of {CALLS} calls at once some ended otherwise: {told}");
    }
    let stats = server.qrexec_stats(&world.lab)?;
    if stats.get("ports_in_use") != Some(&0.into()) {
        fail!("ports of calls that are over: {stats}");
    }
    let version = server.call(&world.lab, "QUBESRPC firewall.Version dom0")?;
    lines("firewall.Version", &version)?;
    Ok(format!("of {CALLS} calls at once {answered} answered, {refused} refused with a reason"))
}

/// Callers who stop with their calls open take all places: another hears so, and the places are free again after their time.
fn callers_stop(world: &World) -> Result<String> {
    let stopped = Some((STOPPED, "QUBESRPC firewall.Explain dom0"));
    let version = "QUBESRPC firewall.Version dom0";
    let told = world.dom0d()?.flood(&world.lab, 1, version, stopped)?;
    if told.pointer("/ends/126 too many calls at once") != Some(&1.into()) {
        fail!("beside {STOPPED} callers who stopped: {told}");
    }
    let free = told.get("free_after_s").and_then(Value::as_f64).unwrap_or(f64::MAX);
    if free > PATIENCE_S {
        fail!("callers who stopped keep their places for {free} s");
    }
    Ok(format!("places of {STOPPED} callers who stopped free after {free:.0} s"))
}
