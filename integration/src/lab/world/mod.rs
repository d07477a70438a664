//! The network of a [`Plan`] brought to life in a booted [`Lab`]: NetVMs, the firewall, clients. Scenarios say
//! what they need (`need_...`, in `start`); what is there already is left alone. `change` takes things away and gives them
//! back, `report` tells of a failure.

mod change;
mod report;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Lab;
use super::dom0d::{self, ClientState, Dom0d, Reloaded};
use super::domain::Domain;
use super::plan::{NetVm, Plan};
use crate::error::{Error, Result};
use crate::fail;

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
            lab.put_kernel(image)?;
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

    /// Names of the domains that were started and not seen to end.
    pub fn started(&self) -> impl Iterator<Item = &str> {
        self.domains.keys().map(String::as_str)
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

    /// Makes sure that a client has these rules.
    ///
    /// # Errors
    /// As [`World::set_rules`].
    pub fn need_rules(&mut self, index: usize, rules: &[&str]) -> Result<()> {
        if self.rules(index) != rules {
            self.set_rules(index, rules)?;
        }
        Ok(())
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
        self.dom0d()?.start_again(&self.lab, &self.plan, self.gateway()?, &self.clients)
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
