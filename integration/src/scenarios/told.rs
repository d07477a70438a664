//! What the firewall tells dom0 of rules, drops and flows, and what callers who mean harm get out of it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::loads::Loads;
use super::steps::{self, ALICE, BOB, need_both};
use crate::error::Result;
use crate::fail;
use crate::lab::shell::Output;
use crate::lab::world::World;

/// Calls of a flood.
const CALLS: usize = 200;
/// Pages that dom0 may share for their data channels, 33 each.
const SHARED_PAGES: usize = 16_384;
/// Callers who stop: as many as are served at once.
const STOPPED: usize = 4;
/// Until they have lost their channels, which takes 10 s.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let flows = ask(world, &format!("firewall.Flows+{bob}"))?;
    let running = [("dport", 443.into()), ("state", "established".into()), ("rule", 0.into())];
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

/// 200 callers at once: each is answered, or refused with a reason.
fn flood(world: &World) -> Result<String> {
    let line = world.dom0d()?.call_line("QUBESRPC firewall.Stats dom0");
    let begun = Instant::now();
    let out = world.lab.exec_for(
        &format!(
            "limit=/sys/module/xen_gntalloc/parameters/limit; echo {SHARED_PAGES} >$limit; rm -rf /tmp/flood; \
             mkdir /tmp/flood; i=0; while [ $i -lt {CALLS} ]; do i=$((i + 1)); \
             ({line} >/tmp/flood/$i.out 2>/tmp/flood/$i.err; echo $? >/tmp/flood/$i.status) </dev/null & done; wait; \
             echo answered $(cat /tmp/flood/*.status | grep -c '^0$'); echo refused $(cat /tmp/flood/*.status | grep -c '^126$'); \
             echo reasons $(grep -l 'too many calls at once' /tmp/flood/*.err | wc -l); \
             cat /tmp/flood/*.status | sort | uniq -c; cat /tmp/flood/*.err | sort | uniq -c | sort -rn | head -3"
        ),
        Duration::from_secs(120),
    )?;
    let of = |word: &str| -> usize {
        let value = out.text.lines().find_map(|line| line.strip_prefix(word));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    let (answered, refused, reasons) = (of("answered "), of("refused "), of("reasons "));
    if answered + refused != CALLS || answered == 0 || reasons != refused {
        fail!("of {CALLS} calls some ended otherwise: {}", out.text);
    }
    Ok(format!(
        "{answered} of {CALLS} calls at once answered, {refused} refused in {:.0} s",
        begun.elapsed().as_secs_f32()
    ))
}

/// Callers whose process stops with the call open take all places: others hear so, packets pass, and the places are free
/// again after their time.
fn callers_stop(world: &World) -> Result<String> {
    let server = world.dom0d()?;
    let line = server.call_line("QUBESRPC firewall.Explain dom0");
    world.lab.sh(&format!(
        "rm -f /tmp/stopped /tmp/silence; mkfifo /tmp/silence; sleep 100 >/tmp/silence 2>/dev/null & echo $! >/tmp/stopped; i=0; \
         while [ $i -lt {STOPPED} ]; do i=$((i + 1)); {line} </tmp/silence >/dev/null 2>&1 & echo $! >>/tmp/stopped; done; \
         sleep 2; for p in $(tail -n {STOPPED} /tmp/stopped); do kill -STOP $p; done"
    ))?;
    let begun = Instant::now();
    let version = || server.call(&world.lab, "QUBESRPC firewall.Version dom0");
    let out = version()?;
    if out.status != 126 || !out.text.contains("too many calls at once") {
        fail!("beside {STOPPED} callers who stopped: exit status {}: {}", out.status, out.text);
    }
    steps::page(world, world.client(ALICE)?, 0)?;
    while version()?.status == 126 {
        if begun.elapsed() > PATIENCE {
            fail!("callers who stopped keep their places");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let free = begun.elapsed().as_secs_f32();
    world.lab.sh("for p in $(cat /tmp/stopped); do kill -9 $p 2>/dev/null; done; true")?;
    Ok(format!("places of {STOPPED} callers who stopped free after {free:.0} s"))
}
