//! What dom0 tells the firewall while it works.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::loads::{Loads, Sample};
use super::steps::{self, ALICE, BOB, need_both, number};
use crate::error::Result;
use crate::fail;
use crate::lab::world::{ACCEPT_ALL, World};

/// An edit may take this long from dom0's write to the first packet judged by it, in Xen's system time.
const EDIT_LIMIT_NS: u64 = 1_000_000_000;

/// A call of dom0 may take this long beside downloads: half of what its caller waits at most, after an event that was lost.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// So many calls are made.
const CALLS: usize = 3;

/// A's only permission is taken away while A downloads; B downloads at the same time and notices nothing.
pub fn rule_edit(world: &mut World) -> Result<String> {
    need_both(world)?;
    let server = world.plan.internet.clone();
    let endless = format!(
        "while wget -q -O /dev/null http://{server}:443/big; do echo again; done; echo ended"
    );
    let alice_loads = world.client(ALICE)?.spawn(&world.lab, &endless)?;
    let bob_loads = Loads::start(world, BOB)?;
    let bob_first = bob_loads.sample(world)?;
    std::thread::sleep(Duration::from_secs(2));
    let bob_before = bob_loads.sample(world)?;
    // A second connection, quiet for now: its next byte after the edit is what the reset answers. Opened late, as the
    // server waits for a request for 60 s only.
    let quiet = format!(
        "rm -f /tmp/bytes; mkfifo /tmp/bytes; exec 3<>/tmp/bytes; nc {server} 443 <&3; echo ended"
    );
    let alice_waits = world.client(ALICE)?.spawn(&world.lab, &quiet)?;
    until_both_open(world, &server)?;
    if let Some(end) = alice_loads.poll(&world.lab, world.client(ALICE)?)? {
        fail!("A's download ended before the edit: {}", end.text);
    }
    if let Some(end) = alice_waits.poll(&world.lab, world.client(ALICE)?)? {
        fail!("A's quiet connection ended before the edit: {}", end.text);
    }

    let call = slowest_call(world)?;
    let mark = world.firewall()?.console_mark();
    let edit = world.set_rules(ALICE, &["action=accept proto=icmp"])?;
    let Some(edit) = edit else { fail!("no dom0 to edit rules in") };
    let needle = format!("fw: rule edit ip={} ", world.client_ip(ALICE)?);
    let line =
        world.firewall()?.wait_console_after(&world.lab, mark, &needle, Duration::from_secs(30))?;
    let (committed, judged) =
        (number(&line, "committed_at_ns")?, number(&line, "first_judged_at_ns")?);
    let all = judged.saturating_sub(edit.trigger_ns);
    let inside = judged.saturating_sub(committed);
    if judged < edit.trigger_ns || all >= EDIT_LIMIT_NS {
        fail!("written at {} ns, first packet judged at {judged} ns: {all} ns", edit.trigger_ns);
    }
    let alice = world.client(ALICE)?;
    if let Some(end) = alice_waits.poll(&world.lab, alice)? {
        fail!("A's quiet connection ended without a packet of A: {}", end.text);
    }
    world.sh(alice, "echo x >/tmp/bytes")?;
    alice_waits.finish(&world.lab, alice, Duration::from_secs(60))?;
    // The far side was told nothing: its end of the same connection is still open.
    let own = &world.plan.firewall.ip;
    let far = world.sh(world.netvm(0)?, "netstat -tn")?;
    let is_open =
        |line: &str| line.contains("ESTABLISHED") && line.contains(&format!("{server}:443"));
    if !far.lines().any(|line| is_open(line) && line.contains(&format!("{own}:"))) {
        fail!("no connection is open any more on the server's side: {far}");
    }
    let bob_after = bob_loads.sample(world)?;
    let refusal = steps::refused_port(world, alice, &server, 443)?;
    if steps::ping(world, alice, 3, &server)? == 0 {
        fail!("A's new rule does not let ping through");
    }
    // What the far side sends is dropped without a word: the download stalls (or ended, if it was about to).
    let count = "cat /sys/class/net/eth0/statistics/rx_bytes";
    let counts = world.sh(alice, &format!("{count}; sleep 2; {count}; killall wget; true"))?;
    let counts: Vec<u64> = counts.lines().filter_map(|line| line.trim().parse().ok()).collect();
    match counts.as_slice() {
        [before, after] if after.saturating_sub(*before) < 20_000 => {}
        _ => fail!("A's download goes on after the edit (bytes received): {counts:?}"),
    }
    alice_loads.finish(&world.lab, alice, Duration::from_secs(20))?;
    let bob_end = bob_loads.sample(world)?;
    let bob_loaded = bob_loads.enough(world)?;
    let bob_note = undisturbed([bob_first, bob_before, bob_after, bob_end])?;
    steps::page(world, world.client(BOB)?, 0)?;
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    steps::page(world, world.client(ALICE)?, 0)?;
    Ok(format!(
        "{:.1} ms from the write to the first packet judged, {:.2} ms of it in the firewall; refusal in {refusal} ms; \
         B meanwhile: {bob_loaded}, {bob_note}; firewall.Stats in {} ms at most",
        ms(all),
        ms(inside),
        call.as_millis()
    ))
}

/// The longest of some calls that dom0 makes now.
fn slowest_call(world: &World) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..CALLS {
        let begun = Instant::now();
        world.dom0d()?.call(&world.lab, "QUBESRPC firewall.Stats+ dom0")?.ok("firewall.Stats")?;
        slowest = slowest.max(begun.elapsed());
    }
    if slowest > CALL_LIMIT {
        fail!("firewall.Stats took {} ms beside downloads", slowest.as_millis());
    }
    Ok(slowest)
}

/// Waits until A's download and its quiet connection are open: what opens after the edit is refused, as it should be.
fn until_both_open(world: &World, server: &str) -> Result<()> {
    let begun = Instant::now();
    let is_open =
        |line: &str| line.contains("ESTABLISHED") && line.contains(&format!("{server}:443"));
    loop {
        let connections = world.sh(world.client(ALICE)?, "netstat -tn")?;
        if connections.lines().filter(|line| is_open(line)).count() > 1 {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(60) {
            fail!("A's download and its quiet connection do not open: {connections}");
        }
    }
}

/// Around A's edit B must have received at least half as much per second as before it or after it, whichever is less, and
/// after it at least a quarter of what it was: what else the emulated machine has to do changes at any moment. `[first, before, after, end]`: when B's downloads began, before
/// the edit, after its first packet was judged, and at the end.
fn undisturbed([first, before, after, end]: [Sample; 4]) -> Result<String> {
    let (calm, edit) = (before.rate_since(first), after.rate_since(before));
    let later = end.rate_since(after);
    if edit <= 0.0 || edit < calm.min(later) / 2.0 || later < calm / 4.0 {
        fail!(
            "B received {calm:.0} B/s before A's edit, {edit:.0} B/s around it, {later:.0} B/s after it"
        );
    }
    Ok(format!(
        "{:.1} MB/s before the edit, {:.1} around it, {:.1} after it",
        calm / 1e6,
        edit / 1e6,
        later / 1e6
    ))
}

#[expect(clippy::cast_precision_loss, reason = "for people; far below 2^52")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// A rule that cannot be parsed: everything of that client is denied, with a reason; nobody else notices.
pub fn malformed_rule(world: &mut World) -> Result<String> {
    need_both(world)?;
    let mut reasons = Vec::new();
    let bad: [&[&str]; 4] = [
        &["action=accept", "action=accept dstports=99999-1"],
        &["action=accept proto=tcp nonsense=1"],
        &["accept all"],
        &["action=accept specialtarget=moon"],
    ];
    for rules in bad {
        let mark = world.firewall()?.console_mark();
        world.set_rules(ALICE, rules)?;
        let needle = format!("fw: rules ip={} ", world.client_ip(ALICE)?);
        let line = world.firewall()?.wait_console_after(
            &world.lab,
            mark,
            &needle,
            Duration::from_secs(30),
        )?;
        if !line.contains("state=refused") || !line.contains("reason=") {
            fail!("{rules:?} was not refused with a reason: {line}");
        }
        reasons.push(line.split_once("reason=").map_or("", |(_, reason)| reason).to_owned());
        let out = world.client(ALICE)?.exec(
            &world.lab,
            &format!("timeout 3 wget -q -O - http://{}:443/", world.plan.internet),
        )?;
        if out.success() {
            fail!("{rules:?}: traffic passed under a refused rule set");
        }
        steps::page(world, world.client(BOB)?, 0)?;
    }
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    steps::page(world, world.client(ALICE)?, 0)?;
    Ok(reasons.first().cloned().unwrap_or_default())
}

/// The QubesDB server goes away: the rules in force stay; it comes back: edits work again.
pub fn qubesdb_restart(world: &mut World) -> Result<String> {
    need_both(world)?;
    let mark = world.firewall()?.console_mark();
    world.stop_qubesdb()?;
    world.firewall()?.wait_console_after(
        &world.lab,
        mark,
        "fw: qubesdb lost",
        Duration::from_secs(30),
    )?;
    steps::page(world, world.client(ALICE)?, 0)?;
    let ms = steps::refused(world, world.client(ALICE)?, &world.plan.internet)?;
    steps::page(world, world.client(BOB)?, 0)?;
    world.start_qubesdb()?;
    world.firewall()?.wait_console_after(
        &world.lab,
        mark,
        "fw: qubesdb connected",
        Duration::from_secs(60),
    )?;
    world.set_rules(ALICE, ACCEPT_ALL)?;
    steps::flows_again(world, world.client(ALICE)?, &world.plan.internet)?;
    let rule = steps::https_only(world);
    world.set_rules(ALICE, &[&rule])?;
    Ok(format!("rules in force without it (refusal in {ms} ms), edits after its return"))
}

/// The calls of dom0 at start-up and suspend, and one that is not for us.
pub fn qrexec_calls(world: &mut World) -> Result<String> {
    need_both(world)?;
    let server = world.dom0d()?;
    let known = [
        "qubes.WaitForSession",
        "qubes.SetDateTime",
        "qubes.SuspendPreAll",
        "qubes.SuspendPre",
        "qubes.SuspendPost",
        "qubes.SuspendPostAll",
        "qubes.WaitForNetworkUplink",
        "qubes.WaitForRunningSystem",
    ];
    for service in known {
        let out = server.call(&world.lab, &format!("QUBESRPC {service} dom0"))?;
        if !out.success() {
            fail!("{service}: exit status {}: {}", out.status, out.text);
        }
    }
    for service in ["QUBESRPC qubes.VMShell dom0", "QUBESRPC no.such.Service dom0", "id"] {
        let out = server.call(&world.lab, service)?;
        if out.status != 127 {
            fail!("{service:?}: exit status {} instead of 127: {}", out.status, out.text);
        }
    }
    steps::page(world, world.client(ALICE)?, 0)?;
    let told = reports(world)?;
    feature_asked_for(world)?;
    Ok(format!("{} known services; {told}", known.len()))
}

/// It has asked dom0 once for its feature: the key is there, and the call came. The lab's policy says no, which harms nothing.
fn feature_asked_for(world: &World) -> Result<()> {
    let server = world.dom0d()?;
    // A database that has replaced the first one knows nothing of what was written into that.
    let is_first = !world.firewall()?.console().contains("fw: qubesdb lost");
    let key = match is_first {
        true => server.db(&world.lab, "read /features-request/qubes-firewall")?,
        false => "1".into(),
    };
    let stats = server.qrexec_stats(&world.lab)?;
    if key.trim() != "1" || stats.get("triggers_refused") != Some(&1.into()) {
        fail!("feature request {key:?}, daemon: {stats}");
    }
    let line = "fw: qubes.FeaturesRequest: refused by dom0";
    world.firewall()?.wait_console(&world.lab, line, Duration::from_secs(30)).map(drop)
}

/// What the firewall tells of itself: version, memory, and that A's packets were counted.
fn reports(world: &World) -> Result<String> {
    let server = world.dom0d()?;
    let ask = |service: &str| -> Result<Vec<Value>> {
        let out = server.call(&world.lab, &format!("QUBESRPC {service}+ dom0"))?;
        let lines: Option<Vec<Value>> =
            out.text.lines().map(|line| serde_json::from_str(line).ok()).collect();
        match lines {
            Some(lines) if out.success() && !lines.is_empty() => Ok(lines),
            _ => fail!("{service}: exit status {}: {}", out.status, out.text),
        }
    };
    let of = |lines: &[Value], key: &str| lines.first().and_then(|line| line.get(key)).cloned();
    let version = of(&ask("firewall.Version")?, "version");
    let memory = ask("firewall.Memory")?;
    let stats = ask("firewall.Stats")?;
    let own = world.client_ip(ALICE)?;
    let is_alice = |line: &&Value| {
        line.get("ip").and_then(Value::as_str) == Some(&own) && line.get("counters").is_some()
    };
    let alice = stats.iter().find(is_alice).and_then(|line| line.get("counters"));
    let sent = alice.and_then(|counts| counts.get("received-frames")).and_then(Value::as_u64);
    let heap = of(&memory, "heap_used").and_then(|used| used.as_u64());
    let without_accept = of(&stats, "without_accept").and_then(|count| count.as_u64());
    match (version, heap, sent, without_accept) {
        (Some(Value::String(version)), Some(heap), Some(sent), Some(0)) if heap > 0 && sent > 0 => {
            Ok(format!("version {version}, heap {} KiB, {sent} frames of A", heap / 1024))
        }
        other => fail!("told: {other:?} in {memory:?} and {stats:?}"),
    }
}
