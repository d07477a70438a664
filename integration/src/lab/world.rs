//! The network of a [`Plan`] brought to life in a booted [`Lab`]: NetVMs, the firewall, clients. Scenarios say
//! what they need (`need_...`); what is there already is left alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Lab;
use super::dom0d::{self, ClientState, Dom0d, Reloaded};
use super::domain::{Domain, DomainSpec, State, Vif};
use super::guests::Role;
use super::plan::{FIREWALL_CPU, Firewall, NetVm, Plan, Provider, UPLINK_CPU};
use crate::error::{Error, Result};
use crate::{fail, progress};

/// What stands in the firewall's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Linux firewall VM that accepts everything its clients send: shows that the lab itself works.
    Linux,
    /// Ours, from this ELF file on the host.
    Image(PathBuf),
}

/// A lab with a plan, and the domains that were started by it.
pub struct World {
    /// The machine.
    pub lab: Lab,
    /// Names and addresses.
    pub plan: Plan,
    /// What the firewall is.
    pub kind: Kind,
    domains: BTreeMap<String, Domain>,
    /// Index of the NetVM that the firewall's vif leads to.
    uplink: Option<usize>,
    /// dom0's servers of the running firewall (not for a Linux one).
    dom0d: Option<Dom0d>,
    /// The same of another firewall of ours between this one and the NetVM.
    upstream: Option<Dom0d>,
    /// Rules and state of each client of the plan, as dom0 has them.
    clients: Vec<ClientState>,
    /// Keys beyond the usual for firewalls that are started from now on.
    pub extra_keys: Vec<(String, String)>,
    /// Kernel command line words for firewalls that are started from now on.
    pub extra_words: String,
}

/// Rules of a client that may do everything.
pub const ACCEPT_ALL: &[&str] = &["action=accept"];

/// Shell lines that show a guest's network from inside.
const NETWORK_STATE: &str = "mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; ip -s link; ip addr; ip route; netstat -tn; ps; \
    ip -6 route; ip neigh; cat /tmp/hotplug.log; grep -i -e xen -e vif -e eth /proc/interrupts; cat /proc/net/snmp; \
    for f in /sys/kernel/debug/xen-netback/*/*; do echo \"$f:\"; cat $f; done; xenstore-ls backend; \
    for d in $(xenstore-list backend/vif); do for n in $(xenstore-list backend/vif/$d); do \
    f=$(xenstore-read backend/vif/$d/$n/frontend); echo $f; xenstore-ls $f; done; done; dmesg | tail -30";

/// How often an uplink is attached when the NetVM does not answer in libxl's time.
const UPLINK_TRIES: u32 = 3;

/// For what the firewall does in a moment; generous for a busy host.
const START: Duration = Duration::from_secs(90);

impl World {
    /// An empty world.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn new(lab: Lab, plan: Plan, kind: Kind) -> Result<Self> {
        let policy = if plan.random_domids { "random" } else { "xen" };
        lab.sh(&format!("echo 'domid_policy=\"{policy}\"' >/etc/xen/xl.conf"))?;
        if let Kind::Image(image) = &kind {
            lab.put(image)?;
            dom0d::install(&lab)?;
        }
        let clients =
            plan.clients.iter().map(|client| ClientState::new(client, ACCEPT_ALL)).collect();
        Ok(Self {
            lab,
            plan,
            kind,
            domains: BTreeMap::new(),
            uplink: None,
            dom0d: None,
            upstream: None,
            clients,
            extra_keys: Vec::new(),
            extra_words: "fw-log=drops".into(),
        })
    }

    /// A domain that was started.
    ///
    /// # Errors
    /// When it was not.
    pub fn domain(&self, name: &str) -> Result<&Domain> {
        self.domains
            .get(name)
            .ok_or_else(|| Error::Failed(format!("domain {name} was not started")))
    }

    /// The firewall.
    ///
    /// # Errors
    /// When it was not started.
    pub fn firewall(&self) -> Result<&Domain> {
        self.domain(&self.plan.firewall.name)
    }

    /// The client number `index` of the plan.
    ///
    /// # Errors
    /// When it was not started.
    pub fn client(&self, index: usize) -> Result<&Domain> {
        self.domain(&self.client_of_plan(index)?.name)
    }

    /// The NetVM number `index` of the plan.
    ///
    /// # Errors
    /// When it was not started.
    pub fn netvm(&self, index: usize) -> Result<&Domain> {
        self.domain(&self.netvm_plan(index)?.name)
    }

    /// Runs a command in a domain; the output of a success.
    ///
    /// # Errors
    /// When it fails.
    pub fn sh(&self, domain: &Domain, line: &str) -> Result<String> {
        domain.sh(&self.lab, line)
    }

    /// Writes what each Linux domain knows of its network to a file of its own in `dir`: interfaces with counters,
    /// routes, neighbours, and a backend's rings and directories. What cannot be had is left out.
    pub fn save_network_state(&self, dir: &Path) {
        for (name, domain) in &self.domains {
            if self.is_image(name) {
                continue;
            }
            // A guest that hangs must not hold up the report for long.
            let state = domain.exec_for(&self.lab, NETWORK_STATE, Duration::from_secs(20));
            if let Ok(state) = state {
                let _ = std::fs::write(dir.join(format!("network-{name}.txt")), state.text);
            }
        }
    }

    /// Ends the firewalls of ours as dom0 does: the last `lines` lines of each one's console, with what it counted among
    /// them. For the report of a failure; what cannot be had is left out.
    pub fn last_words(&self, lines: usize) -> Vec<String> {
        let images = || self.domains.iter().filter(|(name, _)| self.is_image(name));
        let ends: String = images().map(|(name, _)| format!("xl shutdown -F {name}; ")).collect();
        if self.lab.fault().is_none() {
            let _ = self.lab.exec_for(&format!("{ends}sleep 5"), Duration::from_secs(30));
        }
        let tail = |(name, domain): (&String, &Domain)| {
            let console = domain.console();
            let all: Vec<&str> = console.lines().collect();
            let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
            last.iter().map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
        };
        images().flat_map(tail).collect()
    }

    fn is_image(&self, name: &str) -> bool {
        let is_provider = |netvm: &NetVm| netvm.name == name && netvm.kind == Provider::Firewall;
        self.kind != Kind::Linux
            && (name == self.plan.firewall.name || self.plan.netvms.iter().any(is_provider))
    }

    /// Names of the domains that were started and not seen to end.
    pub fn started(&self) -> impl Iterator<Item = &str> {
        self.domains.keys().map(String::as_str)
    }

    /// Makes sure that a NetVM runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn need_netvm(&mut self, index: usize) -> Result<()> {
        let netvm = self.netvm_plan(index)?;
        if netvm.kind == Provider::Firewall {
            return self.need_upstream(index);
        }
        let spec = self.plan.netvm_spec(netvm);
        self.need(spec)
    }

    /// Makes sure that the firewall between ours and the first NetVM runs; its rules for ours are to accept all.
    fn need_upstream(&mut self, index: usize) -> Result<()> {
        self.need_netvm(0)?;
        let netvm = self.netvm_plan(index)?;
        let (name, plan) = (netvm.name.clone(), self.plan.seen_by(netvm));
        if self.runs(&name)? {
            return Ok(());
        }
        let mut spec = self.image_spec(&plan.firewall);
        let provider = self.netvm_plan(0)?;
        spec.vifs.push(plan.uplink(provider));
        let domain = self.lab.create(&spec)?;
        let mut clients: Vec<_> =
            plan.clients.iter().map(|client| ClientState::new(client, ACCEPT_ALL)).collect();
        clients.iter_mut().for_each(|client| client.running = true);
        let server =
            Dom0d::start(&self.lab, &domain, &plan, Some(provider), &clients, &self.extra_keys)?;
        self.lab.unpause(&domain)?;
        domain.wait_console(&self.lab, "fw: ready", START)?;
        server.start_qrexec(&self.lab)?;
        domain.wait_console(&self.lab, "fw: uplink connected", START)?;
        self.upstream = Some(server);
        self.domains.insert(name, domain);
        Ok(())
    }

    /// Makes sure that a firewall runs with its uplink at NetVM `uplink`, or without one.
    ///
    /// # Errors
    /// When it does not start.
    pub fn need_firewall(&mut self, uplink: Option<usize>) -> Result<()> {
        let name = self.plan.firewall.name.clone();
        if let Some(index) = uplink {
            self.need_netvm(index)?;
        }
        if self.runs(&name)? {
            if self.uplink != uplink {
                self.detach_uplink()?;
                uplink.map_or(Ok(()), |index| self.attach_uplink(index))?;
            }
            return Ok(());
        }
        let mut spec = self.firewall_spec()?;
        spec.cpu = FIREWALL_CPU;
        if let Some(index) = uplink {
            spec.vifs.push(self.plan.uplink(self.netvm_plan(index)?));
        }
        self.uplink = uplink;
        let domain = self.lab.create(&spec)?;
        if self.kind == Kind::Linux {
            domain.wait_ready(&self.lab)?;
        } else {
            // As Qubes does: QubesDB complete before the first instruction, qrexec after it.
            let server = Dom0d::start(
                &self.lab,
                &domain,
                &self.plan,
                self.gateway()?,
                &self.clients,
                &self.extra_keys,
            )?;
            self.lab.unpause(&domain)?;
            domain.wait_console(&self.lab, "fw: ready", START)?;
            server.start_qrexec(&self.lab)?;
            self.dom0d = Some(server);
            if uplink.is_some() {
                domain.wait_console(&self.lab, "fw: uplink connected", START)?;
            }
        }
        self.domains.insert(name, domain);
        Ok(())
    }

    /// dom0's servers of the firewall.
    ///
    /// # Errors
    /// When none of ours runs.
    pub fn dom0d(&self) -> Result<&Dom0d> {
        self.dom0d.as_ref().ok_or_else(|| Error::Failed("no firewall of ours runs".into()))
    }

    /// Gives a client other rules, in dom0 and, if the firewall runs, at once there.
    ///
    /// # Errors
    /// When the QubesDB server refuses or is gone.
    pub fn set_rules(&mut self, index: usize, rules: &[&str]) -> Result<Option<Reloaded>> {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        let Some(client) = self.clients.get_mut(index) else {
            fail!("the plan has no client {index}")
        };
        client.rules = rules;
        match &self.dom0d {
            Some(server) => server.reload(&self.lab, client).map(Some),
            None => Ok(None),
        }
    }

    /// The rules that dom0 has for a client.
    pub fn rules(&self, index: usize) -> &[String] {
        self.clients.get(index).map_or(&[], |client| &client.rules)
    }

    /// Address of a client.
    ///
    /// # Errors
    /// When the plan has no such client.
    pub fn client_ip(&self, index: usize) -> Result<String> {
        Ok(self.client_of_plan(index)?.ip.clone())
    }

    /// IPv6 address of a client; none in a network without IPv6 and with hidden addresses.
    ///
    /// # Errors
    /// When the plan has no such client.
    pub fn client_ip6(&self, index: usize) -> Result<Option<String>> {
        let client = self.client_of_plan(index)?;
        Ok(self.plan.client_addresses6(client).map(|(own, _)| own.to_owned()))
    }

    /// Ends the QubesDB server of the firewall in an orderly way.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn stop_qubesdb(&self) -> Result<()> {
        self.dom0d()?.db(&self.lab, "quit").map(drop)
    }

    /// Starts a new QubesDB server for the running firewall, with every key.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_qubesdb(&mut self) -> Result<()> {
        let server = Dom0d::start(
            &self.lab,
            self.firewall()?,
            &self.plan,
            self.gateway()?,
            &self.clients,
            &self.extra_keys,
        )?;
        self.dom0d = Some(server);
        Ok(())
    }

    /// Takes note of a domain that ended by itself.
    pub fn note_end(&mut self, name: &str) {
        self.forget(name);
    }

    /// Fails if the firewall did what ends dom0's daemons.
    ///
    /// # Errors
    /// With the daemon's reason.
    pub fn check_dom0(&self) -> Result<()> {
        let mut servers = self.dom0d.iter().chain(&self.upstream);
        servers.try_for_each(|server| server.check(&self.lab))
    }

    fn gateway(&self) -> Result<Option<&NetVm>> {
        self.uplink.map(|index| self.netvm_plan(index)).transpose()
    }

    /// Makes sure that a client runs. Linux guests that boot together take many times longer than one after
    /// the other.
    ///
    /// # Errors
    /// When it does not start.
    pub fn need_client(&mut self, index: usize) -> Result<()> {
        let spec = self.plan.client_spec(self.client_of_plan(index)?);
        if self.runs(&spec.name)? {
            return Ok(());
        }
        self.announce_client(index, false)?;
        self.need(spec)?;
        self.announce_client(index, true)
    }

    /// What dom0 writes before and after a client's start.
    fn announce_client(&mut self, index: usize, after: bool) -> Result<()> {
        let Some(client) = self.clients.get_mut(index) else {
            fail!("the plan has no client {index}")
        };
        client.running = after;
        let ip = client.ip.clone();
        match &self.dom0d {
            Some(server) => server.client_start(
                &self.lab,
                &self.plan,
                self.gateway()?,
                &self.clients,
                &ip,
                after,
            ),
            None => Ok(()),
        }
    }

    /// Connects the firewall to a NetVM that runs, as Qubes does at a netvm change.
    ///
    /// # Errors
    /// When `xl` refuses.
    pub fn attach_uplink(&mut self, index: usize) -> Result<()> {
        let vif = self.plan.uplink(self.netvm_plan(index)?);
        if let Some(server) = &self.dom0d {
            // Qubes writes every key again, one by one, before it attaches the device.
            server.netvm_change(&self.lab, &self.plan, self.netvm_plan(index)?, &self.clients)?;
        }
        let mark = self.firewall()?.console_mark();
        self.attach_patiently(&vif)?;
        self.uplink = Some(index);
        if self.kind == Kind::Linux {
            // Qubes' udev rule does this in a Linux VM.
            let gateway = &self.netvm_plan(index)?.ip;
            self.sh(
                self.firewall()?,
                &format!("/lab/uplink {} {gateway} 200", self.plan.firewall.ip),
            )?;
        } else {
            self.firewall()?.wait_console_after(&self.lab, mark, "fw: uplink connected", START)?;
        }
        Ok(())
    }

    /// Attaches an uplink. libxl gives the backend 10 s, and the Linux of the NetVM can be slower on a busy host: that
    /// is said and tried again, after the removal of what is left.
    fn attach_patiently(&self, vif: &Vif) -> Result<()> {
        let name = &self.plan.firewall.name;
        for tried in 1..UPLINK_TRIES {
            match self.lab.attach_vif(name, vif) {
                Err(error) if error.to_string().contains("unable to add device") => {
                    progress::say(format!("NetVM slower than libxl waits, once more ({tried})"));
                    self.lab.detach_vif(name, self.plan.firewall.devid)?;
                }
                other => return other,
            }
        }
        self.lab.attach_vif(name, vif)
    }

    /// Disconnects the firewall from its NetVM; what `xl` said.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn detach_uplink(&mut self) -> Result<String> {
        self.uplink = None;
        let output = self.lab.detach_vif(&self.plan.firewall.name, self.plan.firewall.devid)?;
        Ok(output.text)
    }

    /// Ends a domain without asking it.
    ///
    /// # Errors
    /// When `xl` refuses.
    pub fn destroy(&mut self, name: &str) -> Result<()> {
        self.forget(name);
        self.lab.destroy(name)
    }

    /// Asks a domain to shut down, and waits for it; seconds taken.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn shutdown(&mut self, name: &str) -> Result<f32> {
        let seconds = self.lab.shutdown(name, Duration::from_secs(60))?;
        self.forget(name);
        Ok(seconds)
    }

    /// Takes note of a domain's end.
    fn forget(&mut self, name: &str) {
        self.domains.remove(name);
        if name == self.plan.firewall.name {
            self.dom0d = None;
            self.uplink = None;
        }
        for (client, state) in self.plan.clients.iter().zip(&mut self.clients) {
            if client.name == name {
                state.running = false;
            }
        }
    }

    /// Ends everything: the next scenario finds an empty world.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn clear(&mut self) -> Result<()> {
        // Clients first: a vif whose backend is gone keeps libxl waiting for 10 s.
        let names = self.plan.clients.iter().map(|client| &client.name);
        let names = names.chain([&self.plan.firewall.name]);
        // The NetVM last: the first of the plan may be what the others have in front of them.
        let names = names.chain(self.plan.netvms.iter().rev().map(|netvm| &netvm.name));
        let names: Vec<String> =
            names.filter(|name| self.domains.contains_key(*name)).cloned().collect();
        for name in names {
            // One that ended by itself is no news here.
            let _ = self.destroy(&name);
        }
        Ok(())
    }

    /// Destroys every domain; the machine is there for another world.
    ///
    /// # Errors
    /// When dom0 does not answer, or a domain stays.
    pub fn end(mut self) -> Result<Lab> {
        self.clear()?;
        // One is there until nobody maps its pages any more: the NetVM is destroyed after the firewall.
        let left = self.lab.sh(
            "for n in $(seq 20); do [ \"$(xl list | wc -l)\" = 2 ] && break; sleep 0.5; done; xl list | tail -n +3",
        )?;
        if !left.trim().is_empty() {
            fail!("domains that stay: {left}");
        }
        Ok(self.lab)
    }

    fn need(&mut self, spec: DomainSpec) -> Result<()> {
        if self.runs(&spec.name)? {
            return Ok(());
        }
        let domain = self.lab.create(&spec)?;
        domain.wait_ready(&self.lab)?;
        self.domains.insert(spec.name, domain);
        Ok(())
    }

    fn runs(&mut self, name: &str) -> Result<bool> {
        if !self.domains.contains_key(name) {
            return Ok(false);
        }
        let state = self.lab.state(name)?;
        if state == State::Running {
            return Ok(true);
        }
        self.forget(name);
        if state != State::Gone {
            self.lab.destroy(name)?;
        }
        Ok(false)
    }

    fn firewall_spec(&self) -> Result<DomainSpec> {
        let plan = &self.plan.firewall;
        let spec = match &self.kind {
            Kind::Linux => {
                let gateway =
                    self.plan.netvms.first().map(|netvm| netvm.ip.as_str()).unwrap_or_default();
                DomainSpec::linux(
                    &plan.name,
                    Role::LinuxFirewall,
                    self.plan.kernel,
                    &[("ip", &plan.ip), ("gw", gateway)],
                )
            }
            Kind::Image(_) => self.image_spec(plan),
        };
        Ok(spec)
    }

    /// A domain of our image, paused for dom0 to fill its QubesDB.
    fn image_spec(&self, plan: &Firewall) -> DomainSpec {
        let words = format!("{} {}", plan.cmdline, self.extra_words);
        let mut spec =
            DomainSpec::unikernel(&plan.name, "/host/vmlinuz", plan.memory_mib, words.trim());
        spec.paused = true;
        spec.cpu = UPLINK_CPU;
        spec
    }

    /// A client of the plan.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn client_of_plan(&self, index: usize) -> Result<&super::plan::Client> {
        match self.plan.clients.get(index) {
            Some(client) => Ok(client),
            None => fail!("the plan has no client {index}"),
        }
    }

    /// A NetVM of the plan.
    ///
    /// # Errors
    /// When there is none of that number.
    pub fn netvm_plan(&self, index: usize) -> Result<&super::plan::NetVm> {
        match self.plan.netvms.get(index) {
            Some(netvm) => Ok(netvm),
            None => fail!("the plan has no NetVM {index}"),
        }
    }
}
