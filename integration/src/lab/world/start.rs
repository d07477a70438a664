//! Makes sure that domains of the plan run, as Qubes starts them.

use std::time::Duration;

use super::{ACCEPT_ALL, Kind, START, World};
use crate::error::Result;
use crate::fail;
use crate::lab::dom0d::{ClientState, Dom0d};
use crate::lab::domain::{Domain, DomainSpec, State};
use crate::lab::guests::Role;
use crate::lab::plan::{FIREWALL_CPU, Firewall, Provider, UPLINK_CPU};
use crate::lab::timed_start::{Parts, Start, Up};

/// Before a firewall gets to run, what dom0 started for it is over, unless a user's wait for it is measured: how long the firewall
/// runs until it is ready depends on who else has the host's processors.
const QUIET: Duration = Duration::from_millis(300);

impl World {
    /// Makes sure that a NetVM runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn need_netvm(&mut self, index: usize) -> Result<()> {
        let netvm = self.netvm_plan(index)?;
        match netvm.kind {
            Provider::Linux => self.need(self.plan.netvm_spec(netvm)),
            Provider::LinuxFirewall(front) => {
                self.need_netvm(front)?;
                let (netvm, front) = (self.netvm_plan(index)?, self.netvm_plan(front)?);
                self.need(self.plan.linux_firewall_spec(netvm, front))
            }
            Provider::Firewall(front) => self.need_upstream(index, front),
        }
    }

    /// Makes sure that the firewall between ours and the NetVM number `front` runs; its rules for ours are to accept all.
    fn need_upstream(&mut self, index: usize, front: usize) -> Result<()> {
        self.need_netvm(front)?;
        let netvm = self.netvm_plan(index)?;
        let (name, plan) = (netvm.name.clone(), self.plan.seen_by(netvm));
        if self.runs(&name)? {
            return Ok(());
        }
        let mut spec = self.image_spec(&plan.firewall);
        let provider = self.netvm_plan(front)?;
        spec.vifs.push(plan.uplink(provider));
        let domain = self.lab.create(&spec)?;
        let mut clients: Vec<_> =
            plan.clients.iter().map(|client| ClientState::new(client, ACCEPT_ALL)).collect();
        clients.iter_mut().for_each(|client| client.running = true);
        let keys = &self.extra_keys;
        let server =
            Dom0d::start(&self.lab, &domain, &plan, Some(provider), &clients, keys, QUIET)?;
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
        let spec = self.firewall_with(uplink)?;
        let domain = self.lab.create(&spec)?;
        if self.kind == Kind::Linux {
            domain.wait_ready(&self.lab)?;
        } else {
            // As Qubes does: QubesDB is complete before the first instruction, qrexec comes after it.
            let server = self.start_database(&domain, QUIET)?;
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

    /// Prepares a start of our firewall with its uplink at NetVM `uplink`, in which a client that has been running gets its device as
    /// soon as the firewall is up, as Qubes does. [`World::go`] begins it.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn prepare_start(&mut self, uplink: usize, client: usize) -> Result<Start> {
        let spec = self.firewall_with(Some(uplink))?;
        let server = Dom0d::prepare(
            &self.lab,
            self.lab.next_domid(),
            &self.plan,
            self.gateway()?,
            &self.clients,
            &self.extra_keys,
        )?;
        let vif = self.plan.client_vif(self.client_of_plan(client)?);
        let start =
            Start::prepare(&self.lab, spec, &server, Up::Qrexec, self.client(client)?, &vif)?;
        self.dom0d = Some(server);
        Ok(start)
    }

    /// Begins a start that was prepared. Seconds that dom0 took for the parts.
    ///
    /// # Errors
    /// When something of it fails.
    pub fn go(&mut self, start: Start) -> Result<Parts> {
        let (domain, parts) = start.go(&self.lab)?;
        self.domains.insert(domain.name.clone(), domain);
        Ok(parts)
    }

    /// The firewall's domain, ours paused.
    fn firewall_with(&mut self, uplink: Option<usize>) -> Result<DomainSpec> {
        let mut spec = self.firewall_spec()?;
        spec.cpu = FIREWALL_CPU;
        if let Some(index) = uplink {
            spec.vifs.push(self.plan.uplink(self.netvm_plan(index)?));
        }
        self.uplink = uplink;
        Ok(spec)
    }

    fn start_database(&self, domain: &Domain, wait: Duration) -> Result<Dom0d> {
        Dom0d::start(
            &self.lab,
            domain,
            &self.plan,
            self.gateway()?,
            &self.clients,
            &self.extra_keys,
            wait,
        )
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

    /// Gives a client's domain the device of another client of the plan, whose domain is the same one: as if it were a qube of its own.
    ///
    /// # Errors
    /// When `xl` refuses, or dom0 does not answer.
    pub fn need_vif(&mut self, index: usize) -> Result<()> {
        self.announce_client(index, false)?;
        let client = self.client_of_plan(index)?;
        self.lab.attach_vif(&client.name, &self.plan.client_vif(client))?;
        self.announce_client(index, true)
    }

    /// What dom0 writes before and after a client's start: for one that a scenario starts by itself. [`World::note_end`] says
    /// that it has ended.
    ///
    /// # Errors
    /// When the plan has no such client, or dom0 does not answer.
    pub fn announce_client(&mut self, index: usize, after: bool) -> Result<()> {
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
        let state = self.lab.state_lately(name)?;
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
            DomainSpec::unikernel(&plan.name, "/run/lab/vmlinuz", plan.memory_mib, words.trim());
        spec.paused = true;
        spec.cpu = UPLINK_CPU;
        spec
    }
}
