//! The world of a simulation: the appliance between its neighbours, step by step. `setup` makes it, `honest` has the traffic
//! that must get through, `ledger` what must come back, `guest` and `netvm` what hostile peers do; `whole` has dom0 and more
//! clients at work beside.

use std::collections::BTreeMap;

use fastrand::Rng;
use firewall::event_loop::machine::Stop;
use xen::DomId;
use xen::fake;
use xen::fake::vif::NetVm;
use xen::mem::ledger;
use xen::netif::TxRequest;

use crate::Outcome;
use crate::double::{self, Appliance};
use crate::guest::{self, Visit};
use crate::honest::Honest;
use crate::ledger::Ledger;
use crate::netvm;
use crate::whole::model::Model;
use crate::whole::{self, Client, Later};

/// Domains of hostile guests: one after the other.
pub(crate) const HOSTILE: DomId = DomId(20);
pub(crate) const HOSTILE_ADDRESS: [u8; 4] = [10, 137, 0, 20];
pub(crate) const MS: u64 = 1_000_000;
/// First bytes of what a hostile client sends.
pub(crate) const HOSTILE_MARK: &[u8] = b"hostile";
/// Turns of a loop in which nothing passes but time: as many as this, and some for each millisecond.
const MOST_TURNS: u64 = 2000;
const MOST_TURNS_PER_MS: u64 = 20;
/// What a hostile act did.
pub(crate) type Effect = Result<bool, String>;

pub(crate) struct World {
    pub(crate) random: Rng,
    pub(crate) unit: Appliance,
    pub(crate) netvm: Option<NetVm>,
    /// Our address on the uplink.
    pub(crate) own: [u8; 4],
    /// Frames that the NetVM has seen and not answered; those that it answered since somebody looked.
    pub(crate) seen: Vec<(TxRequest, Vec<u8>)>,
    pub(crate) answered: Vec<Vec<u8>>,
    /// The NetVM answers what it sees at once.
    pub(crate) is_prompt: bool,
    /// What dom0 and the clients have agreed on, and what follows from it for each frame.
    pub(crate) model: Model,
    pub(crate) clients: Vec<Client>,
    /// What comes from resolvers.
    pub(crate) later: Vec<Later>,
    /// Callers that went away are forgotten then, in ns.
    pub(crate) gone_callers_until: u64,
    /// Number of the next client's domain.
    pub(crate) next_domain: u16,
    pub(crate) honest: [Honest; 2],
    pub(crate) number: u64,
    pub(crate) visit: Option<Visit>,
    /// With no hostile peer around.
    pub(crate) quiet: Ledger,
    pub(crate) effects: BTreeMap<&'static str, u64>,
    pub(crate) tried: BTreeMap<&'static str, u64>,
    pub(crate) honest_sent: u64,
    pub(crate) honest_answered: u64,
}

/// Names of all hostile acts.
pub(crate) fn acts() -> impl Iterator<Item = &'static str> {
    let guests = guest::ACTS.iter().map(|act| act.0);
    guests
        .chain(netvm::ACTS.iter().map(|act| act.0))
        .chain([guest::VISIT, SUSPEND])
        .chain(whole::ACTS.iter().copied())
}

const SUSPEND: &str = "R11 suspend and resume";

impl World {
    /// One thing happens.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        match self.random.u32(0..100) {
            0..35 => self.honest_sends(),
            35..55 => self.honest_gets(),
            55..92 => self.hostile_guest(),
            92..96 => self.hostile_netvm(),
            96..98 => self.suspend(),
            _ => {
                let ms = self.random.u64(1..3000);
                self.pass(ms)
            }
        }
    }

    /// Ends the last visit, looks once more, and takes everything down.
    pub(crate) fn end(mut self) -> Result<Outcome, String> {
        self.end_visit()?;
        self.honest_sends()?;
        self.honest_gets()?;
        self.taken_down()
    }

    /// Takes everything down: nothing is left.
    pub(crate) fn taken_down(self) -> Result<Outcome, String> {
        let (effects, tried) = (self.effects, self.tried);
        let (honest_sent, honest_answered) = (self.honest_sent, self.honest_answered);
        drop(self.netvm);
        self.unit.end();
        drop((self.honest, self.clients));
        double::nothing_is_left()?;
        Ok(Outcome { effects, tried, honest_sent, honest_answered })
    }

    /// Turns of the loop, a millisecond each at most.
    pub(crate) fn turns(&mut self, count: usize) -> Result<(), String> {
        (0..count).try_for_each(|_| self.turn(MS))
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, ms: u64) -> Result<(), String> {
        self.pass_until(fake::now_ns() + ms * MS)
    }

    /// The same until a time in ns. An appliance that never rests is at fault.
    pub(crate) fn pass_until(&mut self, end: u64) -> Result<(), String> {
        let mut left = end.saturating_sub(fake::now_ns()) / MS * MOST_TURNS_PER_MS + MOST_TURNS;
        while fake::now_ns() < end {
            left = left.checked_sub(1).ok_or("it does not rest")?;
            self.turn((end - fake::now_ns()).min(100 * MS))?;
        }
        Ok(())
    }

    fn turn(&mut self, at_most_ns: u64) -> Result<(), String> {
        match self.turn_or_stop(at_most_ns)? {
            None => Ok(()),
            Some(stop) => Err(format!("it stops: {stop:?}")),
        }
    }

    /// A turn, after which everybody looks at what came.
    pub(crate) fn turn_or_stop(&mut self, at_most_ns: u64) -> Result<Option<Stop>, String> {
        let stop = self.unit.turn(at_most_ns)?;
        if ledger::operations().leaks > 0 {
            return Err("a client that went left memory behind".into());
        }
        self.watch()?;
        Ok(stop)
    }

    /// What the appliance said last.
    pub(crate) fn said(&self) -> String {
        self.unit.said()
    }

    /// A hostile guest comes, does something, or goes.
    pub(crate) fn hostile_guest(&mut self) -> Result<(), String> {
        let Some(mut visit) = self.visit.take() else {
            self.visit = Some(Visit::begin(self, HOSTILE)?);
            return Ok(());
        };
        if self.random.u32(0..6) == 0 || !visit.is_connected(self) {
            self.visit = Some(visit);
            return self.end_visit();
        }
        self.number += 1;
        let (name, act) = guest::ACTS[self.random.usize(0..guest::ACTS.len())];
        let before = format!("{:?}", visit.acts);
        visit.acts.push(name);
        let effect = act(self, &mut visit)
            .map_err(|problem| format!("{name}: {problem}; before it: {before}"))?;
        self.note(name, effect);
        // What closes its device does so before the next act. The NetVM takes what left, as one that is alive does.
        self.turns(16)?;
        self.take_sent()?;
        self.visit = Some(visit);
        Ok(())
    }

    pub(crate) fn end_visit(&mut self) -> Result<(), String> {
        let Some(visit) = self.visit.take() else { return Ok(()) };
        visit.end(self)?;
        self.note(guest::VISIT, true);
        self.expect_quiet("a hostile guest")
    }

    /// The NetVM turns hostile; after that another one takes its place.
    pub(crate) fn hostile_netvm(&mut self) -> Result<(), String> {
        self.end_visit()?;
        self.number += 1;
        let (name, act) = netvm::ACTS[self.random.usize(0..netvm::ACTS.len())];
        self.take_sent()?;
        let was_prompt = std::mem::replace(&mut self.is_prompt, false);
        let effect = act(self).map_err(|problem| format!("{name}: {problem}"))?;
        self.is_prompt = was_prompt;
        self.note(name, effect);
        self.replace_netvm()?;
        self.expect_quiet("a hostile NetVM")?;
        self.honest_sends()
    }

    pub(crate) fn suspend(&mut self) -> Result<(), String> {
        self.end_visit()?;
        self.unit.store.write("control/shutdown", "suspend");
        self.turns(6)?;
        let is_done = self.unit.store.read("control/shutdown").as_deref() == Some("");
        self.note(SUSPEND, is_done);
        self.honest_sends()
    }

    pub(crate) fn note(&mut self, name: &'static str, took_effect: bool) {
        *self.tried.entry(name).or_insert(0) += 1;
        *self.effects.entry(name).or_insert(0) += u64::from(took_effect);
    }
}
