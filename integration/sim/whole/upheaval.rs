//! What shakes the whole: the NetVM goes and another one comes, dom0's daemons go and come back, clients come and go, the
//! host sleeps, calls.

use firewall::event_loop::machine::Stop;
use xen::fake;

use super::model::Key;
use crate::double;
use crate::world::{MS, World};

/// Services that answer, and what their answers have.
const SERVICES: &[(&str, &str)] = &[
    ("firewall.Version", "\"version\""),
    ("firewall.Stats", "\"without_accept\":0"),
    ("firewall.Memory", "\"leaks\":0"),
];
/// A call is over after so many ms, a daemon back, a domain stopped.
const PATIENCE_MS: u64 = 15_000;
/// Exit code of a call for which there is no place.
const REFUSED: u32 = 126;
/// What the appliance waits for a caller's channel (README: two minutes), in ns, and some more.
const OPEN_TIMEOUT_NS: u64 = 125_000 * MS;
const PAUSES_S: [u64; 4] = [3, 60, 3600, 100_000];

impl World {
    /// The NetVM goes; in between nothing leaves. Another one comes, at our own address or another one.
    pub(crate) fn uplink_changes(&mut self) -> Result<bool, String> {
        let is_moved = self.unit.dom0.is_live() && self.random.bool();
        self.remove_netvm()?;
        self.later.clear();
        self.model.check_names(false)?;
        for _ in 0..self.random.u32(0..4) {
            self.client_talks()?;
        }
        if is_moved {
            self.rewrite_all()?;
        }
        let pause = self.random.u64(1..5000);
        self.pass(pause)?;
        self.come_back()?;
        Ok(true)
    }

    fn come_back(&mut self) -> Result<(), String> {
        self.connect_uplink()?;
        // What the clients' flows are called now.
        self.turns(4)?;
        let own = self.own;
        if self.model.own != [own] {
            self.model.own = vec![own];
            self.model.forget_flows(|_| true);
        }
        // Our gateway is asked for.
        self.take_sent().map(drop)
    }

    /// dom0 writes everything again, one by one, as at a change of the NetVM.
    fn rewrite_all(&mut self) -> Result<(), String> {
        let own = [10, 137, 0, self.random.u8(6..10)];
        if self.own != own {
            (self.own, self.model.own) = (own, vec![self.own, own]);
        }
        for (path, value) in double::network(own) {
            self.unit.dom0.set(path, &value);
            if self.random.u32(0..3) == 0 {
                self.turns(1)?;
            }
        }
        for owner in 0..self.model.sources.len() {
            let tree = self.model.sources[owner].tree.clone();
            if self.model.sources[owner].has_mark {
                self.replace(owner, tree)?;
            }
        }
        Ok(())
    }

    /// dom0's daemon goes, or comes back.
    pub(crate) fn database_changes(&mut self) -> Result<bool, String> {
        if self.unit.dom0.has_database() {
            self.unit.dom0.stop_database(&mut self.unit.store);
            self.turns(4)?;
            return Ok(true);
        }
        self.unit.dom0.start_database(&mut self.unit.store);
        for _ in 0..PATIENCE_MS / 20 {
            if self.unit.dom0.is_dumped() {
                return self.turns(4).map(|()| true);
            }
            self.pass(20)?;
        }
        Err("QubesDB is not read again".into())
    }

    /// The qrexec daemon goes, or says what none says; the next one is heard.
    pub(crate) fn agent_changes(&mut self) -> Result<bool, String> {
        self.unit.dom0.end_call(&mut self.unit.store);
        match self.random.u32(0..3) {
            0 => {
                let garbage: Vec<u8> =
                    (0..self.random.usize(1..200)).map(|_| self.random.u8(..)).collect();
                self.unit.dom0.garble_agent(&garbage);
                self.turns(6)?;
                // What is half a message is nothing yet.
                self.unit.dom0.stop_agent();
            }
            _ => self.unit.dom0.stop_agent(),
        }
        self.wait_for_agent()?;
        Ok(true)
    }

    fn wait_for_agent(&mut self) -> Result<(), String> {
        for _ in 0..PATIENCE_MS / 20 {
            if self.unit.dom0.has_agent() {
                return Ok(());
            }
            self.pass(20)?;
        }
        Err("no qrexec channel is offered".into())
    }

    /// A service is called: one that there is answers, others are refused.
    pub(crate) fn call(&mut self) -> Result<bool, String> {
        self.wait_for_agent()?;
        let strange = ["firewall.Nothing", "qubes.VMExec", "firewall.Stats+x", "+", ""];
        let choice = self.random.usize(0..SERVICES.len() + strange.len());
        let (service, wanted) = match SERVICES.get(choice) {
            Some((service, wanted)) => (*service, Some(*wanted)),
            None => (strange[choice - SERVICES.len()], None),
        };
        self.unit.dom0.start_call(&mut self.unit.store, service);
        let mut over = None;
        for _ in 0..PATIENCE_MS / 20 {
            over = self
                .unit
                .dom0
                .call
                .as_ref()
                .and_then(|call| call.exit.map(|exit| (exit, call.output.clone())));
            if over.is_some() {
                break;
            }
            self.pass(20)?;
        }
        self.unit.dom0.end_call(&mut self.unit.store);
        let (exit, output) = match over {
            Some(over) => over,
            // Where there is no room even for a refusal the daemon is told on its own channel.
            None if self.has_gone_callers() => return Ok(false),
            None => return Err(format!("no answer of {service:?}")),
        };
        let output = String::from_utf8_lossy(&output).into_owned();
        match wanted {
            Some(wanted) if exit == 0 && output.contains(wanted) => Ok(true),
            None if exit != 0 => Ok(true),
            // Callers that never offered their ends keep their places for a while.
            Some(_) if exit == REFUSED && self.has_gone_callers() => Ok(false),
            _ => Err(format!("{service:?} ends with {exit}: {output}")),
        }
    }

    /// A caller goes in the middle, or says nothing at all.
    pub(crate) fn hostile_call(&mut self) -> Result<bool, String> {
        self.wait_for_agent()?;
        self.gone_callers_until = self.model.slow() + OPEN_TIMEOUT_NS;
        self.unit.dom0.start_call(&mut self.unit.store, "firewall.Stats");
        let turns = self.random.usize(0..5);
        self.turns(turns)?;
        self.unit.dom0.end_call(&mut self.unit.store);
        self.turns(4)?;
        Ok(true)
    }

    /// Whether a caller that went away may still have its place.
    pub(crate) fn has_gone_callers(&self) -> bool {
        self.model.slow() < self.gone_callers_until
    }

    /// A client comes or goes.
    pub(crate) fn client_changes(&mut self) -> Result<bool, String> {
        let which = self.random.usize(0..self.clients.len());
        if !self.clients[which].is_attached() {
            self.attach(which)?;
            return Ok(true);
        }
        let owner = self.clients[which].owner;
        let flow = self.any_standing().filter(|key| key.owner == owner);
        let flow = flow.and_then(|key| Some((key, *self.model.flows.get(&key)?)));
        let is_killed = self.random.bool();
        self.detach(which, is_killed)?;
        if self.random.bool() {
            self.attach(which)?;
            flow.map_or(Ok(false), |(key, flow)| self.ghost_answers(key, flow))?;
        }
        Ok(true)
    }

    /// A client's VM stands still for a while.
    pub(crate) fn client_rests(&mut self) -> bool {
        let Some(which) = self.any_client() else { return false };
        self.clients[which].rests = self.random.u32(1..60);
        true
    }

    /// The host sleeps, or dom0 pauses the domain: no flow that was in use is over after it.
    pub(crate) fn time_jumps(&mut self) -> Result<bool, String> {
        let Some(which) = self.any_client() else { return Ok(false) };
        let owner = self.clients[which].owner;
        // Something is due within two minutes, so that the appliance knows that it slept.
        let key = self.any_key(which);
        self.sends(which, key)?;
        let is_firm =
            |key: &&Key| key.owner == owner && !key.is_icmp && !key.is_tcp && key.remote_port != 53;
        let firm: Vec<Key> = self.model.flows.keys().filter(is_firm).copied().collect();
        let firm = firm
            .into_iter()
            .find(|key| self.model.stands(key) && self.model.flows[key].is_answered);
        if let Some(key) = firm {
            self.sends(which, key)?;
        }
        let ns = PAUSES_S[self.random.usize(0..PAUSES_S.len())] * 1000 * MS;
        self.model.paused(ns);
        fake::advance_ns(ns);
        let Some(key) = firm else { return Ok(false) };
        self.answers(key)?;
        self.sends(which, key)?;
        Ok(true)
    }

    /// dom0 shuts the domain down.
    pub(crate) fn shut_down(&mut self) -> Result<bool, String> {
        let (word, wanted) = match self.random.bool() {
            true => ("poweroff", Stop::Poweroff),
            false => ("reboot", Stop::Reboot),
        };
        self.unit.store.write("control/shutdown", word);
        for _ in 0..200 {
            match self.turn_or_stop(MS)? {
                Some(stop) if stop == wanted => return Ok(true),
                Some(other) => return Err(format!("{word}, and it stops for {other:?}")),
                None => {}
            }
        }
        Err(format!("{word}, and it goes on"))
    }
}
