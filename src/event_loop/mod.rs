//! The one loop: wait, drain the ports, serve dom0, run the timers, flush.
//!
//! One thread, nothing blocks but `Machine::sleep`, and every drain has a budget, so that no client and no daemon can
//! keep the others waiting. [`machine`] says what the loop needs of the machine below it; `data_plane` takes frames
//! through the packet path, `control_plane` serves QubesDB and qrexec, `announce` asks dom0 for a feature, `report` writes the log.

mod announce;
mod control_plane;
mod data_plane;
pub mod machine;
mod names;
mod report;

pub use report::Millis;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::config::features::LogLevel;
use crate::control::{self, Control};
use crate::firewall::Firewall;
use crate::log::{Log, Sink, Source};
use crate::qrexec::{self, Agent, CallId};
use crate::services::{Facts, Session};
use crate::time::Instant;
use announce::Announcement;
use machine::{Change, Machine, Stop, Work};
use report::DropSummary;

/// Bytes read from a link at once.
const BUFFER_BYTES: usize = 4096;

/// The state of the whole appliance, apart from the devices below it.
pub struct EventLoop<S: Sink> {
    firewall: Firewall,
    control: Control,
    database: qubesdb::Client,
    agent: Agent<Session>,
    /// What callers are told of the machine.
    facts: Facts,
    log: Log<S>,
    log_level: LogLevel,
    /// The time of this turn.
    now: Instant,
    buffer: Box<[u8; BUFFER_BYTES]>,
    /// Bytes of the qrexec control channel that the agent has not taken yet; at most a buffer's worth.
    agent_input: Vec<u8>,
    /// Data channels that are open or being opened; at most `qrexec::MAX_LINKS`.
    calls: Vec<CallId>,
    database_heard_at: Instant,
    has_database: bool,
    /// It is connected now, and its entries are here.
    is_database_up: bool,
    is_agent_ready: bool,
    is_agent_offered: bool,
    announcement: Announcement,
    /// dom0 has asked for it by a call.
    asked_to: Option<Stop>,
    has_forwarded: bool,
    is_ready: bool,
    /// Phases of the start whose end was told.
    told_phases: [bool; 2],
    drops: DropSummary,
    /// No name is published before.
    publish_at: Instant,
}

impl<S: Sink> EventLoop<S> {
    /// A loop around `firewall` in a domain with `memory_bytes`; `command_line` is that of the kernel.
    pub fn new(firewall: Firewall, memory_bytes: u64, command_line: &str, sink: S) -> Self {
        Self {
            firewall,
            control: Control::new(command_line, control::Limits::default()),
            database: qubesdb::Client::new(qubesdb::Limits::for_memory(memory_bytes)),
            agent: Agent::new(),
            facts: Facts::default(),
            log: Log::new(sink),
            log_level: LogLevel::Off,
            now: Instant::default(),
            buffer: Box::new([0; BUFFER_BYTES]),
            agent_input: Vec::with_capacity(BUFFER_BYTES),
            calls: Vec::with_capacity(qrexec::MAX_LINKS),
            database_heard_at: Instant::default(),
            has_database: false,
            is_database_up: false,
            is_agent_ready: false,
            is_agent_offered: false,
            announcement: Announcement::default(),
            asked_to: None,
            has_forwarded: false,
            is_ready: false,
            told_phases: [false; 2],
            drops: DropSummary::default(),
            publish_at: Instant::default(),
        }
    }

    /// The firewall, to look at.
    pub fn firewall(&self) -> &Firewall {
        &self.firewall
    }

    /// Runs until dom0 asks us to stop.
    pub fn run<M: Machine>(&mut self, machine: &mut M) -> Stop {
        self.now = machine.now();
        self.run_actions(machine);
        loop {
            if let Some(stop) = self.turn(machine) {
                self.report_stop(machine, stop);
                return stop;
            }
        }
    }

    /// One turn, the wait at its end included: for who drives the loop himself, as simulations do.
    pub fn turn<M: Machine>(&mut self, machine: &mut M) -> Option<Stop> {
        self.now = machine.advance();
        while let Some(scope) = machine.begin(Work::Rules) {
            let Some(change) = machine.next_change() else { break };
            if let Some(stop) = self.on_change(machine, change) {
                return Some(stop);
            }
            drop(scope);
        }

        let scope = machine.begin(Work::Packets);
        self.forward(machine);
        drop(scope);
        let database_has_more = self.serve_database(machine);
        let agent_has_more = self.serve_agent(machine);
        let scope = machine.begin(Work::Packets);
        self.firewall.on_timer(self.now);
        self.generate(machine);
        drop(scope);
        self.publish_names(machine);
        let scope = machine.begin(Work::Packets);
        machine.flush();
        drop(scope);

        self.report_turn(machine);
        if let Some(stop) = self.asked_to.take() {
            return Some(stop);
        }
        let deadline = if database_has_more || agent_has_more {
            Some(self.now)
        } else {
            let deadlines = [
                self.firewall.next_deadline(),
                self.links_deadline(),
                self.report_deadline(),
                self.names_deadline(),
            ];
            deadlines.into_iter().flatten().min()
        };
        machine.sleep(deadline);
        None
    }

    fn on_change<M: Machine>(&mut self, machine: &mut M, change: Change) -> Option<Stop> {
        match change {
            Change::ClientUp { id, port, devid } => self.client_up(machine, id, port, devid),
            Change::ClientDown { id, reason } => self.client_down(machine, id, reason),
            Change::UplinkUp { port, backend } => self.uplink_up(machine, port, backend),
            Change::UplinkDown { reason } => self.uplink_down(machine, reason),
            Change::DatabaseUp => {
                self.database.connected();
                self.database_heard_at = self.now;
            }
            Change::DatabaseDown => {
                self.log.line(self.now, Source::Control, format_args!("qubesdb lost"));
                self.end_database(machine);
            }
            Change::AgentUp => {
                self.agent.control_opened();
                self.is_agent_offered = true;
            }
            Change::AgentDown => {
                self.log.line(self.now, Source::Qrexec, format_args!("qrexec daemon gone"));
                self.lose_agent(machine);
            }
            Change::CallUp(call) => self.call_up(call),
            Change::CallDown(call) => self.call_down(machine, call),
            Change::Note(reason) => {
                self.log.line(self.now, Source::Store, format_args!("{reason}"));
            }
            Change::Resumed => {
                self.log.line(self.now, Source::System, format_args!("resumed after a suspend"));
            }
            Change::Stop(stop) => return Some(stop),
        }
        None
    }
}
