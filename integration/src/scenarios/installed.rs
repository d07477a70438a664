//! A firewall as a user of Qubes gets it: the package in an empty root, its commands on a stand-in dom0
//! (`packaging/tests/standin.py`), and in the lab the kernel that the firewall VM has there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::dom0_command::{PATIENCE, finished, hits, list, name, on_rules, only, qrexec};
use super::lifecycle::configure;
use super::steps::{self, ALICE};
use crate::error::{Attempt, Error, Result};
use crate::lab::world::{ACCEPT_ALL, Kind, World};
use crate::xtask::{package, reproduce};
use crate::{command, fail, paths};

/// For the client's first answer after the firewall's restart.
const AGAIN: Duration = Duration::from_secs(120);

/// From the package to a firewall that works, over its upgrade and the way back, to the old one in its place.
///
/// # Errors
/// When a step does not do what it is for.
pub fn from_package_to_restore(world: &mut World) -> Result<String> {
    let own = env!("CARGO_PKG_VERSION");
    let next = next_version(own)?;
    let dom0 = Dom0::new(world)?;

    let Kind::Image(image) = world.kind.clone() else { fail!("not our image") };
    let first = package::of_version(&image, own, &dom0.folder)?;
    dom0.rpm("-i", &first)?;
    same_bytes(&image, &dom0.kernel_file(&format!("rust-firewall-{own}")))?;
    let before = dom0.state()?;
    dom0.tool("rust-firewall-dom0", &["create"])?;
    dom0.start(world, own)?;
    dom0.tool("rust-firewall-dom0", &["replace", "--updatevm", "sys-net", "--yes"])?;
    let moved = migrated(&before, &dom0.state()?)?;
    let used = used(world, &dom0, own)?;

    let second = reproduce::another_version(&next)?;
    dom0.rpm("-U", &package::of_version(&second, &next, &dom0.folder)?)?;
    // The package alone changes nothing.
    healthy(world, &dom0)?;
    dom0.tool("rust-firewall-dom0", &["upgrade"])?;
    if !findings(&dom0.doctor(world, 1)?).contains(&"restart".to_owned()) {
        fail!("doctor does not say that the firewall still runs the version before");
    }
    restart(world, &dom0, &next)?;
    same_bytes(&second, &dom0.kernel_file(&format!("rust-firewall-{next}")))?;
    dom0.tool("rust-firewall-dom0", &["rollback"])?;
    restart(world, &dom0, own)?;
    same_bytes(&image, &dom0.kernel_file(&format!("rust-firewall-{own}")))?;

    dom0.tool("rust-firewall-dom0", &["restore"])?;
    put_back(&before, &dom0.state()?)?;
    world.set_rules(ALICE, ACCEPT_ALL)?;
    Ok(format!(
        "{moved} qubes moved and put back; {used}; {own}, {next} and {own} again, doctor clean"
    ))
}

/// The last number plus one.
fn next_version(version: &str) -> Result<String> {
    let Some((front, last)) = version.rsplit_once('.') else { fail!("{version} is no version") };
    let last: u32 = last.parse().map_err(|_| Error::Failed(format!("{version} is no version")))?;
    Ok(format!("{front}.{}", last + 1))
}

fn same_bytes(one: &Path, other: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).doing(|| format!("cannot read {}", path.display()));
    if read(one)? != read(other)? {
        fail!("{} and {} differ", one.display(), other.display());
    }
    Ok(())
}

/// Status, an edit with its hits, an explanation, and nothing wrong.
fn used(world: &mut World, dom0: &Dom0, version: &str) -> Result<String> {
    world.need_client(ALICE)?;
    let (alice, server) = (name(world, ALICE)?, world.plan.internet.clone());
    let status = dom0.json(world, &["status", "--json"], 0)?;
    let is_alice = |client: &Value| client.get("qube") == Some(&json!(alice));
    if status.get("version") != Some(&json!(version))
        || !list(&status, "clients").iter().any(is_alice)
    {
        fail!("status: {status}");
    }
    let rules = [
        format!("action=accept proto=tcp dst4={server}/32 dstports=443-443"),
        "action=accept proto=icmp".to_owned(),
    ];
    let file = dom0.folder.join("rules");
    fs::write(&file, rules.join("\n")).doing(|| "cannot write rules")?;
    dom0.look(world, &["apply", &alice, &file.to_string_lossy(), "--yes"], 0)?;
    let client = world.client(ALICE)?;
    steps::page(world, client, 0)?;
    steps::refused(world, client, &server)?;
    let found = hits(&dom0.json(world, &["rules", &alice, "--json"], 0)?);
    if found.first().is_none_or(|hits| *hits == 0) {
        fail!("hits of the rules: {found:?}");
    }
    let answer = dom0.json(world, &["explain", &alice, &server, "80", "--json"], 1)?;
    let answer = only(&answer, "answers")?;
    if answer.get("verdict").and_then(Value::as_str).is_none_or(|verdict| verdict == "accept") {
        fail!("explain: {answer}");
    }
    healthy(world, dom0)?;
    // What dom0 writes again when the firewall starts anew.
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    world.set_rules(ALICE, &rules)?;
    Ok(format!("hits {found:?}"))
}

/// Doctor finds nothing. That the old firewall is still on its netvm, for the way back, is a note of it, and true.
fn healthy(world: &World, dom0: &Dom0) -> Result<()> {
    let told = dom0.doctor(world, 0)?;
    match findings(&told).as_slice() {
        [one] if one == "other-firewall" => Ok(()),
        some => fail!("doctor: {some:?}: {told}"),
    }
}

/// What is there in `doctor --json`, by name.
fn findings(told: &Value) -> Vec<String> {
    let ids = list(told, "findings").iter().filter_map(|one| one.get("id")?.as_str());
    ids.map(str::to_owned).collect()
}

/// The firewall stops and starts with the kernel that dom0 has for it now; its client goes on.
fn restart(world: &mut World, dom0: &Dom0, version: &str) -> Result<()> {
    let firewall = world.plan.firewall.name.clone();
    dom0.tool("qvm-shutdown", &["--wait", "--force", &firewall])?;
    world.shutdown(&firewall)?;
    let client = world.client_of_plan(ALICE)?.clone();
    // Its backend is gone: xl may complain.
    world.lab.detach_vif(&client.name, client.devid)?;
    let line = format!(
        "{}; until ping -q -c 1 -W 1 {}; do :; done",
        configure(world, ALICE)?,
        world.plan.internet
    );
    let waits = world.client(ALICE)?.spawn(&world.lab, &line)?;
    dom0.start(world, version)?;
    world.lab.attach_vif(&client.name, &world.plan.client_vif(&client))?;
    let client = world.client(ALICE)?;
    waits.finish(&world.lab, client, AGAIN)?.ok("ping after the firewall's restart")?;
    steps::page(world, client, 0)?;
    steps::refused(world, client, &world.plan.internet)?;
    let status = dom0.json(world, &["status", "--json"], 0)?;
    if status.get("version") != Some(&json!(version)) {
        fail!("not version {version}: {status}");
    }
    healthy(world, dom0)
}

/// Every qube that had `sys-firewall` as its netvm has the new one, updates and time another: how many.
fn migrated(before: &Value, after: &Value) -> Result<usize> {
    let global = |state: &Value, name: &str| state.pointer(&format!("/global/{name}")).cloned();
    if global(after, "default_netvm") != Some(json!("rust-firewall"))
        || global(after, "updatevm") != Some(json!("sys-net"))
    {
        fail!("after the migration: {after}");
    }
    let netvm = |state: &Value, qube: &str| -> Option<String> {
        Some(state.pointer(&format!("/vms/{qube}/props/netvm"))?.as_str()?.to_owned())
    };
    let qubes = before.get("vms").and_then(Value::as_object);
    let mut moved = 0;
    for qube in qubes.into_iter().flatten().map(|(qube, _)| qube) {
        if netvm(before, qube).as_deref() == Some("sys-firewall") {
            moved += 1;
            if netvm(after, qube).as_deref() != Some("rust-firewall") {
                fail!("{qube} was not moved: {after}");
            }
        } else if netvm(before, qube) != netvm(after, qube) {
            fail!("the netvm of {qube} was changed: {after}");
        }
    }
    if moved == 0 { fail!("nothing was moved: {before}") } else { Ok(moved) }
}

/// Everything is as it was; only the new VM is still there.
fn put_back(before: &Value, after: &Value) -> Result<()> {
    let mut after = after.clone();
    if let Some(vms) = after.get_mut("vms").and_then(Value::as_object_mut) {
        vms.remove("rust-firewall");
    }
    if *before != after {
        fail!("before: {before}\nafter 'restore': {after}");
    }
    Ok(())
}

/// The stand-in dom0 with the package's root, in a folder that goes with it.
struct Dom0 {
    folder: PathBuf,
}

impl Dom0 {
    fn new(world: &World) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("qrf-installed-{}", std::process::id()));
        let this = Self { folder };
        fs::create_dir_all(&this.folder).doing(|| "cannot make a folder for the stand-ins")?;
        let packaging = paths::root().join("packaging");
        let standin = packaging.join("tests/standin.py");
        let mut install = command::new("python3", &["-B"]);
        command::output(install.arg(&standin).arg("install").arg(this.folder.join("bin")))?;
        let usual = command::output(command::new("python3", &["-B"]).arg(&standin).arg("usual"))?;
        let mut state = parse("standin.py usual", &usual)?;
        // The one of the lab, and where it is.
        let alice = name(world, ALICE)?;
        let ips = [Some(world.client_ip(ALICE)?), world.client_ip6(ALICE)?];
        let ips: Vec<String> = ips.into_iter().flatten().collect();
        let like = state.pointer("/vms/banking").cloned().unwrap_or_default();
        if let Some(vms) = state.pointer_mut("/vms").and_then(Value::as_object_mut) {
            vms.insert(alice.clone(), like);
        }
        if let Some(all) = state.as_object_mut() {
            all.insert("addresses".into(), json!({ alice.clone(): ips }));
        }
        this.write("dom0.json", &state.to_string())?;
        this.write("calls", "")?;
        // Rules, and the way to the firewall, are the other stand-in's.
        let mut install = command::new("python3", &["-B", "-m", "rust_firewall_test.stand_in"]);
        command::output(install.arg(this.folder.join("bin2")).current_dir(&packaging))?;
        let rules = json!({ "qubes": { alice: { "firewall": ["action=accept"] } } });
        this.write("rules.json", &rules.to_string())?;
        package::root("make", &this.folder, &[])?;
        package::root("new", &this.folder, &[])?;
        this.rpm("-i", &this.folder.join("dom0.rpm"))?;
        Ok(this)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join(name), text).doing(|| format!("cannot write {name}"))
    }

    fn rpm(&self, option: &str, package: &Path) -> Result<()> {
        package::root("rpm", &self.folder, &[option, &package.to_string_lossy()]).map(drop)
    }

    fn kernels(&self) -> PathBuf {
        self.folder.join("root/var/lib/qubes/vm-kernels")
    }

    fn kernel_file(&self, kernel: &str) -> PathBuf {
        self.kernels().join(kernel).join("vmlinuz")
    }

    fn state(&self) -> Result<Value> {
        let text = fs::read_to_string(self.folder.join("dom0.json"))
            .doing(|| "cannot read the stand-in's state")?;
        parse("dom0.json", &text)
    }

    /// A command of the package, or one of dom0.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let own = self.folder.join("root/usr/bin").join(program);
        let program = if own.exists() { own } else { PathBuf::from(program) };
        // The program is looked for on the PATH that is set here.
        let mut line = command::new("env", &[]);
        let path = std::env::var("PATH").unwrap_or_default();
        let folder = self.folder.display();
        line.arg(format!("PATH={folder}/bin:{folder}/bin2:{path}"))
            .arg(program)
            .args(args)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("DOM0_STATE", self.folder.join("dom0.json"))
            .env("DOM0_CALLS", self.folder.join("calls"))
            .env("RUST_FIREWALL_KERNELS", self.kernels())
            .current_dir(&self.folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        line
    }

    /// Runs a command that changes something in dom0.
    fn tool(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut line = self.command(program, args);
        command::output(line.env("RUST_FIREWALL_STATE", self.folder.join("list")))
    }

    /// Starts the firewall in dom0, and in the lab the kernel that it has there.
    fn start(&self, world: &mut World, version: &str) -> Result<()> {
        let firewall = world.plan.firewall.name.clone();
        self.tool("qvm-start", &[&firewall])?;
        let kernel = self.tool("qvm-prefs", &[&firewall, "kernel"])?;
        if kernel.trim() != format!("rust-firewall-{version}") {
            fail!("the kernel of {firewall} is {kernel}, not version {version}");
        }
        let image = self.kernel_file(kernel.trim());
        let there = world.lab.put_kernel(&image)?;
        world.lab.sh(&format!("cp {there} /host/kernel-in-dom0"))?;
        same_bytes(&image, &world.lab.share().join("kernel-in-dom0"))?;
        world.kind = Kind::Image(image);
        world.need_firewall(Some(0))
    }

    /// `rust-firewall` with what leads into the lab's dom0.
    fn look(&self, world: &World, args: &[&str], status: i32) -> Result<String> {
        let on_rules_file = self.folder.join("on-rules");
        self.write("on-rules", &on_rules(world)?)?;
        fs::set_permissions(&on_rules_file, fs::Permissions::from_mode(0o755))
            .doing(|| "cannot make a script executable")?;
        let mut line = self.command("rust-firewall", args);
        line.args(["--timeout", PATIENCE])
            .env("STAND_IN_STATE", self.folder.join("rules.json"))
            .env("STAND_IN_ON_RULES", json!([on_rules_file]).to_string())
            .env("STAND_IN_QREXEC", qrexec(world)?.to_string());
        finished(line.spawn().doing(|| "cannot run rust-firewall")?, args, status)
    }

    fn json(&self, world: &World, args: &[&str], status: i32) -> Result<Value> {
        parse(&format!("rust-firewall {args:?}"), &self.look(world, args, status)?)
    }

    fn doctor(&self, world: &World, status: i32) -> Result<Value> {
        self.json(world, &["doctor", "--json"], status)
    }
}

impl Drop for Dom0 {
    fn drop(&mut self) {
        // What cannot be removed stays in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn parse(what: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| Error::Failed(format!("{what}: {error}: {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_version_is_a_higher_one() {
        assert_eq!(next_version("0.1.9").unwrap(), "0.1.10");
        assert!(next_version("1").is_err() && next_version("1.x").is_err());
    }

    #[test]
    fn one_qube_that_stays_where_it_was_is_no_migration() {
        let before = json!({"global": {"default_netvm": "sys-firewall", "updatevm": "sys-firewall"},
            "vms": {"a": {"props": {"netvm": "sys-firewall"}}, "b": {"props": {"netvm": ""}}}});
        let mut after = before.clone();
        after["global"] = json!({"default_netvm": "rust-firewall", "updatevm": "sys-net"});
        assert!(migrated(&before, &after).is_err());
        after["vms"]["a"]["props"]["netvm"] = json!("rust-firewall");
        assert_eq!(migrated(&before, &after).unwrap(), 1);
        assert!(put_back(&before, &after).is_err());
        let mut restored = before.clone();
        restored["vms"]["rust-firewall"] = json!({});
        assert!(put_back(&before, &restored).is_ok());
    }
}
