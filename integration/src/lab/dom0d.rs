//! The dom0 side of Qubes in the lab: the program `dom0d` (this crate, feature `lab`) as QubesDB server and
//! qrexec daemon of the firewall, run in dom0 for each firewall domain.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::Lab;
use super::domain::Domain;
use super::plan::{Client, NetVm, Plan, Visible};
use super::shell::Output;
use crate::error::{Attempt, Error, Result};
use crate::{fail, paths};

/// Exit codes from here on mean that the firewall did what ends the real daemons.
const PROVOKED: i64 = 20;

/// How long the ends of many calls are waited for. The firewall lets go of a caller after 10 s.
const FLOOD: Duration = Duration::from_secs(40);

/// Where the program is in dom0, and the one for starts that are measured.
const PROGRAM: &str = "/usr/sbin/dom0d";
pub(super) const STARTER: &str = "/usr/sbin/dom0start";

/// The programs by their names.
pub const PROGRAMS: [&str; 2] = ["dom0d", "dom0start"];

/// A built program on the host, without what debuggers want.
pub fn binary(name: &str) -> PathBuf {
    paths::target().join(format!("sim/{name}-stripped"))
}

/// Puts the programs into dom0.
///
/// # Errors
/// When they were not built.
pub fn install(lab: &Lab) -> Result<()> {
    for (name, place) in PROGRAMS.into_iter().zip([PROGRAM, STARTER]) {
        let path = lab.put(&binary(name))?;
        // A copy: programs do not run well from a file system without cache.
        // Renamed into place: the servers of a firewall that has just ended may still run from the old one.
        lab.sh(&format!(
            "cp {path} {place}.new && chmod 755 {place}.new && mv {place}.new {place}"
        ))?;
    }
    Ok(())
}

/// Xen's system time in dom0, in nanoseconds.
///
/// # Errors
/// When the program fails.
pub fn xen_time_ns(lab: &Lab) -> Result<u64> {
    let text = lab.sh(&format!("{PROGRAM} xentime"))?;
    text.trim().parse().map_err(|_| Error::Failed(format!("dom0d xentime: {text:?}")))
}

/// The line of dom0 that has a frontend of a kind break the rules for so many seconds.
pub fn hostile_line(domid: u32, kind: &str, seconds: u32) -> String {
    format!("{PROGRAM} hostile --domid {domid} --devid 9 --kind {kind} --seconds {seconds}")
}

/// What dom0 knows of a client: the part of VM.json that scenarios change.
#[derive(Clone, Debug)]
pub struct ClientState {
    /// Its address.
    pub ip: String,
    /// Its IPv6 address.
    pub ip6: Option<String>,
    /// What it believes its addresses to be.
    pub visible: Option<Visible>,
    /// Whether it runs.
    pub running: bool,
    /// Its rules, in order.
    pub rules: Vec<String>,
}

impl ClientState {
    /// A client of the plan that does not run.
    pub fn new(client: &Client, rules: &[&str]) -> Self {
        Self {
            ip: client.ip.clone(),
            ip6: client.ip6.clone(),
            visible: client.visible.clone(),
            running: false,
            rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
        }
    }

    /// The rule trees that dom0 writes: the address, and key and text of each rule. A literal destination of the other
    /// family is left out, and its number with it.
    fn trees(&self) -> Vec<(&str, Vec<(String, &str)>)> {
        let tree = |without: &str| -> Vec<(String, &str)> {
            let rules = self.rules.iter().enumerate();
            rules
                .filter(|(_, rule)| !rule.split(' ').any(|word| word.starts_with(without)))
                .map(|(number, rule)| (format!("{number:04}"), rule.as_str()))
                .collect()
        };
        let v6 = self.ip6.as_deref().map(|ip6| (ip6, tree("dst4=")));
        std::iter::once((self.ip.as_str(), tree("dst6="))).chain(v6).collect()
    }
}

/// The servers of one firewall domain.
#[derive(Debug)]
pub struct Dom0d {
    domid: u32,
    /// `/vm-config/...`, `/qubes-service/...` and other keys beyond the usual.
    pub extra: Vec<(String, String)>,
}

/// What a rule update said.
#[derive(Clone, Copy, Debug)]
pub struct Reloaded {
    /// Xen system time of the write that makes the rules valid, in nanoseconds.
    pub trigger_ns: u64,
}

impl Dom0d {
    /// Starts the QubesDB server of a domain that is still paused, writes every key, and lets it run after a wait.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn start(
        lab: &Lab,
        domain: &Domain,
        plan: &Plan,
        gateway: Option<&NetVm>,
        clients: &[ClientState],
        extra: &[(String, String)],
        wait: Duration,
    ) -> Result<Self> {
        let this = Self::prepare(lab, domain.domid, plan, gateway, clients, extra)?;
        lab.forget_states();
        let (file, wait) = (this.state_file(), wait.as_millis());
        lab.sh(&format!("{} --vm {file} --unpause {wait}", this.qubesdb_line()))?;
        Ok(this)
    }

    /// The servers of a domain that there may not be yet, with its keys in a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn prepare(
        lab: &Lab,
        domid: u32,
        plan: &Plan,
        gateway: Option<&NetVm>,
        clients: &[ClientState],
        extra: &[(String, String)],
    ) -> Result<Self> {
        let this = Self { domid, extra: extra.to_vec() };
        this.write_state(lab, plan, gateway, clients)?;
        Ok(this)
    }

    /// Those of a domain without keys: each VM of Qubes has one of QubesDB.
    pub fn without_keys(domid: u32) -> Self {
        Self { domid, extra: Vec::new() }
    }

    /// Starts the QubesDB server of another domain that is still paused, without keys, and lets it run.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn start_empty(lab: &Lab, domain: &Domain) -> Result<Self> {
        let this = Self::without_keys(domain.domid);
        lab.forget_states();
        lab.sh(&format!("{} --unpause 0", this.qubesdb_line()))?;
        Ok(this)
    }

    /// Starts it once more, for a domain that runs.
    ///
    /// # Errors
    /// When the server does not start.
    pub fn start_again(
        &self,
        lab: &Lab,
        plan: &Plan,
        gateway: Option<&NetVm>,
        clients: &[ClientState],
    ) -> Result<()> {
        self.write_state(lab, plan, gateway, clients)?;
        lab.forget_states();
        lab.sh(&format!("{} --vm {}", self.qubesdb_line(), self.state_file())).map(drop)
    }

    fn qubesdb_line(&self) -> String {
        let (socket, domid) = (self.db_socket(), self.domid);
        format!(
            "{PROGRAM} qubesdb --domid {domid} --socket {socket} --log /host/qubesdb-{domid}.log --detach"
        )
    }

    /// Starts the qrexec daemon and waits for the firewall's hello.
    ///
    /// # Errors
    /// When it does not come in a minute.
    pub fn start_qrexec(&self, lab: &Lab) -> Result<()> {
        let (socket, domid) = (self.qrexec_socket(), self.domid);
        let line = format!(
            "{PROGRAM} qrexec --domid {domid} --socket {socket} --log /host/qrexec-{domid}.log --detach --timeout 60"
        );
        lab.exec_for(&line, Duration::from_secs(90))?.ok("dom0d qrexec").map(drop)
    }

    /// Ends the qrexec daemon in an orderly way; [`Dom0d::start_qrexec`] starts another.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn stop_qrexec(&self, lab: &Lab) -> Result<()> {
        // Both servers take the same word.
        let line = format!("{PROGRAM} db --socket {} quit", self.qrexec_socket());
        let out = lab.exec(&line)?;
        // Unlike QubesDB's, this one ends before it answers, and says so.
        if !out.success() && !out.text.contains("the server has ended: asked to") {
            fail!("dom0d qrexec: {}", out.text.trim());
        }
        Ok(())
    }

    /// A qrexec call into the firewall: its output and exit status.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn call(&self, lab: &Lab, command: &str) -> Result<Output> {
        lab.exec(&self.call_line(command))
    }

    /// The line that makes such a call, for a shell of dom0.
    pub fn call_line(&self, command: &str) -> String {
        format!("{PROGRAM} call --socket {} '{command}'", self.qrexec_socket())
    }

    /// So many calls at once: how many ended in which way. Before them `stopped` callers of another command take places and
    /// stop; then it also says after how many seconds a call was answered beside them.
    ///
    /// # Errors
    /// When dom0 does not answer in the time that it may take.
    pub fn flood(
        &self,
        lab: &Lab,
        calls: u32,
        command: &str,
        stopped: Option<(u32, &str)>,
    ) -> Result<Value> {
        let stopped = stopped.map_or_else(String::new, |(count, command)| {
            format!("--stalled {count} --stall '{command}'")
        });
        let line = format!(
            "{PROGRAM} flood --socket {} --domid {} {stopped} --calls {calls} --seconds {} '{command}'",
            self.qrexec_socket(),
            self.domid,
            FLOOD.as_secs()
        );
        // Most of the time goes into the channels that are made before.
        parse(&lab.exec_for(&line, FLOOD * 8)?.ok("dom0d flood")?)
    }

    /// What the qrexec daemon counts, by name.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn qrexec_stats(&self, lab: &Lab) -> Result<Value> {
        parse(&lab.sh(&format!("{PROGRAM} qrexec-stats --socket {}", self.qrexec_socket()))?)
    }

    /// `dom0d db ...` on this domain's QubesDB.
    ///
    /// # Errors
    /// When it fails.
    pub fn db(&self, lab: &Lab, words: &str) -> Result<String> {
        let line = format!("{PROGRAM} db --socket {} {words}", self.db_socket());
        lab.exec(&line)?.ok(&format!("dom0d db {words}"))
    }

    /// The beginning of a shell line in dom0 that makes such a call: the command follows as one word.
    pub fn qrexec_line(&self) -> String {
        format!("{PROGRAM} call --socket {}", self.qrexec_socket())
    }

    /// A shell line in dom0 that writes the rules of an address from its standard input, `KEY RULE` on each line.
    pub fn reload_line(&self, ip: &str) -> String {
        format!("{PROGRAM} db --socket {} firewall-reload {ip}", self.db_socket())
    }

    /// Writes a client's rules as Qubes' `qvm-firewall` does, with the policy `drop`: one tree for each family.
    ///
    /// # Errors
    /// When the server refuses or is gone.
    pub fn reload(&self, lab: &Lab, client: &ClientState) -> Result<Reloaded> {
        let mut trigger_ns = None;
        for (ip, rules) in client.trees() {
            let rules: String =
                rules.iter().map(|(key, rule)| format!(" '{key} {rule}'")).collect();
            let text = lab.sh(&format!("printf '%s\\n' {rules} | {}", self.reload_line(ip)))?;
            let answer: Value = parse(&text)?;
            match answer.get("trigger_ns").and_then(Value::as_u64) {
                // The first is the one of IPv4.
                Some(ns) => trigger_ns = trigger_ns.or(Some(ns)),
                None => fail!("dom0d db firewall-reload: {text}"),
            }
        }
        Ok(Reloaded { trigger_ns: trigger_ns.unwrap_or_default() })
    }

    /// What dom0 writes before (`after` false) and after a client's start.
    ///
    /// # Errors
    /// When the server refuses or is gone.
    pub fn client_start(
        &self,
        lab: &Lab,
        plan: &Plan,
        gateway: Option<&NetVm>,
        clients: &[ClientState],
        ip: &str,
        after: bool,
    ) -> Result<()> {
        self.write_state(lab, plan, gateway, clients)?;
        let after = if after { "--after" } else { "" };
        let (socket, file) = (self.db_socket(), self.state_file());
        lab.sh(&format!("{PROGRAM} client-start --socket {socket} {file} {ip} {after}")).map(drop)
    }

    /// What dom0 writes when the firewall's netvm has changed: every key once more.
    ///
    /// # Errors
    /// When the server refuses or is gone.
    pub fn netvm_change(
        &self,
        lab: &Lab,
        plan: &Plan,
        gateway: &NetVm,
        clients: &[ClientState],
    ) -> Result<()> {
        self.write_state(lab, plan, Some(gateway), clients)?;
        let (socket, file) = (self.db_socket(), self.state_file());
        lab.sh(&format!("{PROGRAM} netvm-change --socket {socket} {file}")).map(drop)
    }

    /// Fails if the firewall has ended one of the servers by what it sent.
    ///
    /// # Errors
    /// With the server's reason.
    pub fn check(&self, lab: &Lab) -> Result<()> {
        for socket in [self.db_socket(), self.qrexec_socket()] {
            let out = lab.exec(&format!("cat {socket}.exit 2>/dev/null"))?;
            if out.text.trim().is_empty() {
                continue;
            }
            let end = parse(&out.text)?;
            if end.get("code").and_then(Value::as_i64).is_some_and(|code| code >= PROVOKED) {
                fail!("the firewall did what ends dom0's daemon ({socket}): {}", out.text.trim());
            }
        }
        Ok(())
    }

    /// Its domain.
    pub(super) fn domid(&self) -> u32 {
        self.domid
    }

    pub(super) fn db_socket(&self) -> String {
        format!("/run/lab/qubesdb.{}", self.domid)
    }

    pub(super) fn qrexec_socket(&self) -> String {
        format!("/run/lab/qrexec.{}", self.domid)
    }

    pub(super) fn state_file(&self) -> String {
        format!("/host/cfg/vm-{}.json", self.domid)
    }

    fn write_state(
        &self,
        lab: &Lab,
        plan: &Plan,
        gateway: Option<&NetVm>,
        clients: &[ClientState],
    ) -> Result<()> {
        let path = lab.share().join(format!("cfg/vm-{}.json", self.domid));
        let state = state(plan, gateway, clients, &self.extra);
        fs::write(&path, state.to_string()).doing(|| format!("cannot write {}", path.display()))
    }
}

/// `dom0d`'s description of the firewall VM.
fn state(
    plan: &Plan,
    gateway: Option<&NetVm>,
    clients: &[ClientState],
    extra: &[(String, String)],
) -> Value {
    let clients: Vec<Value> = clients
        .iter()
        .map(|client| {
            let mut trees = client.trees().into_iter().map(|(_, rules)| -> Value {
                rules.into_iter().map(|(key, rule)| (key, Value::from(rule))).collect()
            });
            let visible = client.visible.as_ref();
            json!({
                "ip": client.ip,
                "ip6": client.ip6,
                "visible_ip": visible.map(|visible| &visible.ip),
                "visible_gateway": visible.map(|visible| &visible.gateway),
                "running": client.running,
                "policy": "drop",
                "rules": trees.next().unwrap_or_default(),
                "rules6": trees.next().unwrap_or_else(|| json!({})),
            })
        })
        .collect();
    let extra: serde_json::Map<_, _> =
        extra.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect();
    json!({
        "name": plan.firewall.name,
        "type": "StandaloneVM",
        "ip": plan.firewall.ip,
        "ip6": plan.firewall.ip6,
        "mac": plan.firewall.mac,
        "gateway": gateway.map(|netvm| plan.told_gateway(netvm)),
        "gateway6": gateway.and_then(|netvm| netvm.ip6.as_ref()),
        "dns": plan.resolvers_behind(gateway),
        "netvm_dns": plan.client_dns,
        "clients": clients,
        "services": {"meminfo-writer": "0"},
        "extra": extra,
    })
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text.trim())
        .map_err(|error| Error::Failed(format!("dom0d said {text:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_without_netvm_has_a_null_gateway() {
        let plan = Plan::usual();
        let client = ClientState::new(&plan.clients[0], &["action=accept"]);
        let value = state(&plan, None, &[client], &[("/x".into(), "1".into())]);
        assert!(value["gateway"].is_null());
        assert_eq!(value["clients"][0]["rules"]["0000"], "action=accept");
        assert_eq!(value["dns"][0], "192.0.2.53");
        assert_eq!(value["netvm_dns"][0], "10.139.1.1");
        assert_eq!(value["extra"]["/x"], "1");
    }

    #[test]
    fn rules_of_the_other_family_are_left_out_and_keep_their_number() {
        let rules = [
            "action=accept dst6=2001:db8::/32",
            "action=accept dst4=192.0.2.1/32",
            "action=drop proto=icmp",
        ];
        let client = ClientState::new(&Plan::usual().clients[0], &rules);
        let keys: Vec<_> = client
            .trees()
            .into_iter()
            .map(|(ip, rules)| {
                (ip.to_owned(), rules.into_iter().map(|(key, _)| key).collect::<Vec<_>>())
            })
            .collect();
        let own = |numbers: [&str; 2]| numbers.map(str::to_owned).to_vec();
        assert_eq!(keys[0], ("10.137.0.11".into(), own(["0001", "0002"])));
        assert_eq!(keys[1], ("fd09:24ef:4179::a89:b".into(), own(["0000", "0002"])));
    }
}
