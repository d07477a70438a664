//! The command `rust-firewall` of dom0 against the real image: `packaging/rust-firewall` runs on the host with stand-ins of
//! dom0's programs (`packaging/rust_firewall_test/stand_in.py`), whose `qrexec-client` and whose changed rules go into the
//! lab's dom0.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::steps::{self, ALICE, BOB, need_both};
use crate::error::{Attempt, Error, Result};
use crate::lab::world::{ACCEPT_ALL, World};
use crate::{command, fail, paths};

/// How long the qube is watched, which goes on with what it does all that time.
const WATCHED: &str = "6s";

/// Seconds for an answer: each call is a session of ssh into an emulated machine, on a host that may be busy.
pub(super) const PATIENCE: &str = "120";

/// From a glance over an edit and a refusal to rules that were learned and applied.
///
/// # Errors
/// When the command says something else than what is.
pub fn from_status_to_learned_rules(world: &mut World) -> Result<String> {
    need_both(world)?;
    let dom0 = Dom0::new(world)?;
    let result = story(world, &dom0);
    let https = steps::https_only(world);
    world.set_rules(ALICE, &[&https])?;
    world.set_rules(BOB, ACCEPT_ALL)?;
    result
}

fn story(world: &World, dom0: &Dom0) -> Result<String> {
    let (alice, bob) = (name(world, ALICE)?, name(world, BOB)?);
    let server = &world.plan.internet;

    let status = dom0.json(&["status"])?;
    let listed: Vec<&str> =
        list(&status, "clients").iter().filter_map(|client| client.get("qube")?.as_str()).collect();
    if !listed.contains(&alice.as_str()) || !listed.contains(&bob.as_str()) {
        fail!("status does not list both clients: {status}");
    }

    // An edit; its first and second rule get hits.
    let rules = [
        format!("action=accept proto=tcp dst4={server}/32 dstports=443-443"),
        format!("action=drop proto=tcp dst4={server}/32 dstports=81-81"),
        "action=accept specialtarget=dns".to_owned(),
    ];
    dom0.apply(&alice, &rules.join("\n"))?;
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::refused_port(world, world.client(ALICE)?, server, 81)?;
    let hits = hits(&dom0.json(&["rules", &alice])?);
    if !matches!(hits.as_slice(), [accepted, refused, ..] if *accepted > 0 && *refused > 0) {
        fail!("hits of the rules: {hits:?}");
    }

    let answer = dom0.run(&["explain", &alice, server, "81", "--json"], 1)?;
    let answer = only(&answer, "answers")?;
    if answer.get("rule") != Some(&json!(1)) || answer.get("verdict") == Some(&json!("accept")) {
        fail!("explain: {answer}");
    }
    let drops = dom0.json(&["drops", &alice])?;
    let names_rule = |drop: &&Value| {
        drop.get("rule") == Some(&json!(1)) && drop.get("dport") == Some(&json!(81))
    };
    let Some(drop) = list(&drops, "drops").iter().find(names_rule) else {
        fail!("drops does not name the rule: {drops}");
    };
    let text = drop.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !text.starts_with("action=drop") {
        fail!("drops does not tell the rule: {drop}");
    }

    let learned = learn(world, dom0, &bob)?;
    Ok(format!("hits {hits:?}; refused by \"{text}\"; learned {learned} rules, in force"))
}

/// B opens a page and pings, again and again; what is proposed lets both pass and nothing else.
fn learn(world: &World, dom0: &Dom0, bob: &str) -> Result<usize> {
    let server = &world.plan.internet;
    let client = world.client(BOB)?;
    world.sh(client, "rm -f /tmp/enough")?;
    let busy = client.spawn(
        &world.lab,
        &format!(
            "until [ -e /tmp/enough ]; do wget -q -O /dev/null http://{server}:443/; ping -c 1 {server}; sleep 1; done"
        ),
    )?;
    // Both stand in the table before anybody looks.
    steps::page(world, client, 0)?;
    let pinged = steps::ping(world, client, 1, server)?;
    let args = ["learn", bob, WATCHED];
    let proposal = finished(dom0.start(&args)?, &args, 0);
    world.sh(client, "touch /tmp/enough")?;
    busy.finish(&world.lab, client, Duration::from_secs(60))?;
    let proposal = proposal?;
    let rules: Vec<&str> = proposal.lines().filter(|line| !line.starts_with('#')).collect();
    let wanted = [
        format!("action=accept dst4={server}/32 proto=tcp dstports=443-443"),
        format!("action=accept dst4={server}/32 proto=icmp icmptype=8"),
    ];
    if pinged == 0 || !wanted.iter().all(|rule| rules.contains(&rule.as_str())) {
        fail!("proposed (ping: {pinged} answers): {proposal}");
    }
    dom0.apply(bob, &proposal)?;
    steps::page(world, client, 0)?;
    if steps::ping(world, client, 1, server)? == 0 {
        fail!("B cannot ping any more: {proposal}");
    }
    steps::refused(world, client, server)?;
    Ok(rules.len())
}

/// The command with its stand-ins, in a folder that goes with it.
struct Dom0 {
    folder: PathBuf,
    programs: PathBuf,
}

impl Dom0 {
    fn new(world: &World) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("qrf-dom0-{}", std::process::id()));
        let this = Self { programs: folder.join("bin"), folder };
        fs::create_dir_all(&this.folder).doing(|| "cannot make a folder for the stand-ins")?;
        let mut install = command::new("python3", &["-B", "-m", "rust_firewall_test.stand_in"]);
        command::output(install.arg(&this.programs).current_dir(paths::root().join("packaging")))?;
        this.write("state.json", &state(world)?.to_string())?;
        this.write("on-rules", &on_rules(world)?)?;
        fs::set_permissions(this.folder.join("on-rules"), fs::Permissions::from_mode(0o755))
            .doing(|| "cannot make a script executable")?;
        this.write("qrexec.json", &qrexec(world)?.to_string())?;
        Ok(this)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(name), text).doing(|| format!("cannot write {name}"))
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let path = std::env::var("PATH").unwrap_or_default();
        let on_rules = json!([self.folder.join("on-rules")]).to_string();
        let qrexec = fs::read_to_string(self.folder.join("qrexec.json"))
            .doing(|| "cannot read qrexec.json")?;
        let mut line = command::new(paths::root().join("packaging/rust-firewall"), args);
        line.args(["--timeout", PATIENCE]);
        line.env("PATH", format!("{}:{path}", self.programs.display()))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("STAND_IN_STATE", self.folder.join("state.json"))
            .env("STAND_IN_ON_RULES", on_rules)
            .env("STAND_IN_QREXEC", qrexec)
            .current_dir(&self.folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(line)
    }

    fn start(&self, args: &[&str]) -> Result<Child> {
        self.command(args)?.spawn().doing(|| "cannot run rust-firewall")
    }

    fn run(&self, args: &[&str], status: i32) -> Result<Value> {
        let text = finished(self.start(args)?, args, status)?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Failed(format!("rust-firewall {args:?}: {error}: {text}")))
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        self.run(&[args, &["--json"]].concat(), 0)
    }

    fn apply(&self, qube: &str, rules: &str) -> Result<()> {
        self.write("rules", rules)?;
        let args = ["apply", qube, "rules", "--yes"];
        finished(self.start(&args)?, &args, 0).map(drop)
    }
}

impl Drop for Dom0 {
    fn drop(&mut self) {
        // What cannot be removed stays in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What it wrote, if its exit status is the wanted one.
pub(super) fn finished(child: Child, args: &[&str], status: i32) -> Result<String> {
    let out = child.wait_with_output().doing(|| "rust-firewall")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.code() != Some(status) {
        let errors = String::from_utf8_lossy(&out.stderr);
        fail!("rust-firewall {args:?}: {} instead of {status}: {text}{errors}", out.status);
    }
    Ok(text)
}

/// The qubes of the plan, for the stand-ins.
fn state(world: &World) -> Result<Value> {
    let firewall = &world.plan.firewall;
    let qube = |ip: &str, ip6: Option<&str>, netvm: Option<&str>, firewall: &[String]| {
        json!({
            "state": "Running", "class": "AppVM", "netvm": netvm, "ip": ip, "ip6": ip6, "kernel": "linux",
            "provides_network": netvm.is_none(), "template_for_dispvms": false, "default_dispvm": null,
            "firewall": firewall,
        })
    };
    let netvm = world.netvm_plan(0)?;
    let mut own = qube(&firewall.ip, firewall.ip6.as_deref(), Some(&netvm.name), &[]);
    if let Some(own) = own.as_object_mut() {
        own.insert("kernel".into(), "rust-firewall".into());
        own.insert("provides_network".into(), true.into());
    }
    let mut qubes = serde_json::Map::new();
    qubes.insert(netvm.name.clone(), qube(&netvm.ip, netvm.ip6.as_deref(), None, &[]));
    qubes.insert(firewall.name.clone(), own);
    for index in [ALICE, BOB] {
        let (ip, ip6) = (world.client_ip(index)?, world.client_ip6(index)?);
        let value = qube(&ip, ip6.as_deref(), Some(&firewall.name), world.rules(index));
        qubes.insert(name(world, index)?, value);
    }
    Ok(json!({
        "qubes": qubes, "system": {"default_netvm": firewall.name}, "firewall": {"vm": firewall.name},
    }))
}

/// Words of ssh into dom0, then a remote line that ends with `tail`.
fn remote(world: &World, tail: &str) -> Vec<String> {
    let ssh = world.lab.shells().ssh();
    let words = std::iter::once(ssh.get_program()).chain(ssh.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned());
    words.chain([format!(". /root/.profile; {tail}")]).collect()
}

/// The beginning of a command that asks the firewall. What ssh gets as further words becomes one for `dom0d`.
pub(super) fn qrexec(world: &World) -> Result<Value> {
    let call = world.dom0d()?.qrexec_line();
    Ok(json!(remote(world, &format!("ask() {{ {call} \"$*\"; }}; ask"))))
}

/// A script that writes the rules of a qube as dom0 does: `QUBE`, and rules on standard input.
pub(super) fn on_rules(world: &World) -> Result<String> {
    let mut script = "#!/bin/sh\nset -e\nrules=$(sed 's/ comment=.*//' | awk '{ printf \"%04d %s\\n\", NR - 1, $0 }')\n\
                      case $1 in\n"
        .to_owned();
    for index in [ALICE, BOB] {
        script.push_str(&format!("{})\n", name(world, index)?));
        let trees = [(Some(world.client_ip(index)?), "dst6="), (world.client_ip6(index)?, "dst4=")];
        for (ip, other) in trees {
            let Some(ip) = ip else { continue };
            let words = remote(world, &world.dom0d()?.reload_line(&ip));
            let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
            let ssh = quoted.join(" ");
            script.push_str(&format!(
                "printf '%s\\n' \"$rules\" | {{ grep -v {other} || true; }} | {ssh}\n"
            ));
        }
        script.push_str(";;\n");
    }
    script.push_str("*) exit 1 ;;\nesac\n");
    Ok(script)
}

pub(super) fn name(world: &World, index: usize) -> Result<String> {
    Ok(world.client_of_plan(index)?.name.clone())
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn only<'a>(value: &'a Value, key: &str) -> Result<&'a Value> {
    match list(value, key) {
        [one] => Ok(one),
        _ => fail!("not one of {key}: {value}"),
    }
}

/// Hits of the first rule set.
pub(super) fn hits(rules: &Value) -> Vec<u64> {
    let first = list(rules, "sets").first();
    let rules = first.map_or(&[][..], |set| list(set, "rules"));
    rules.iter().filter_map(|rule| rule.get("hits")?.as_u64()).collect()
}
