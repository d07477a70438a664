//! Devices and domains that go and come.

use std::time::Duration;

use super::{Kind, START, World};
use crate::error::Result;
use crate::lab::Lab;
use crate::lab::domain::Vif;
use crate::{fail, progress};

/// How often an uplink is attached when the NetVM does not answer in libxl's time.
const UPLINK_TRIES: u32 = 3;

impl World {
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
    pub(super) fn forget(&mut self, name: &str) {
        self.lab.forget_states();
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

    /// Takes note of a domain that ended by itself.
    pub fn note_end(&mut self, name: &str) {
        self.forget(name);
    }

    /// Ends everything: the next scenario finds an empty world.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn clear(&mut self) -> Result<()> {
        // Clients first: a vif whose backend is gone keeps libxl waiting for 10 s.
        let names = self.plan.clients.iter().map(|client| &client.name);
        let names = names.chain([&self.plan.firewall.name]);
        // Then who has the longest way out, as another one of the plan is in front of it.
        let mut netvms: Vec<_> = self.plan.netvms.iter().collect();
        netvms.sort_by_key(|netvm| std::cmp::Reverse(self.plan.way_out(netvm).len()));
        let names = names.chain(netvms.into_iter().map(|netvm| &netvm.name));
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
}
