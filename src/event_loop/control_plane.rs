//! The links to dom0: QubesDB to the control plane, qrexec to the agent.

use core::net::IpAddr;

use qubesdb::Closing;

use super::EventLoop;
use super::machine::{Machine, Pipe, Stop, Work};
use crate::config::features::{Features, LogLevel};
use crate::control::{Action, SourceRules};
use crate::exposure::Exposure;
use crate::log::{Sink, Source};
use crate::planted::{Defect, is_planted};
use crate::qrexec::{self, CallId};
use crate::services::{Facts, FirewallServices};
use crate::time::Instant;
use crate::uplink::NetworkConfig;

/// Times that a link's buffer is filled in one turn: dom0 is trusted, but packets must not wait for a long dump.
const READS_PER_TURN: usize = 16;
/// A link whose peer left the protocol is closed when it has been silent for so long, in nanoseconds.
const QUIET_NS: u64 = 10_000_000_000;

impl<S: Sink> EventLoop<S> {
    /// Serves QubesDB. Says whether there is more to do at once.
    pub(super) fn serve_database<M: Machine>(&mut self, machine: &mut M) -> bool {
        for _ in 0..READS_PER_TURN {
            self.take_events(machine);
            let Some(_scope) = machine.begin(Work::Database) else { return false };
            let Some(pipe) = machine.database() else { return false };
            transmit_database(&mut self.database, pipe);
            let room = self.database.input_room().min(self.buffer.len());
            let read = pipe.read(self.buffer.get_mut(..room).unwrap_or_default());
            if read == 0 {
                self.close_if_asked(machine);
                return false;
            }
            self.database_heard_at = self.now;
            // No more was read than there is room for: all of it is taken.
            let _ = self.database.handle_bytes(self.buffer.get(..read).unwrap_or_default());
        }
        true
    }

    /// Reads what is left in a link that dom0 closed, then closes our end.
    pub(super) fn end_database<M: Machine>(&mut self, machine: &mut M) {
        while self.serve_database(machine) {}
        self.lose_database(machine);
    }

    fn lose_database<M: Machine>(&mut self, machine: &mut M) {
        self.database.disconnected();
        self.is_database_up = false;
        self.control.on_link_lost();
        self.run_actions(machine);
        if !is_planted(Defect::DatabaseNotReopened) {
            machine.close_database();
        }
    }

    /// Closes the link where the protocol asks for it; never where that would end dom0's daemon.
    fn close_if_asked<M: Machine>(&mut self, machine: &mut M) {
        let is_due = match self.database.closing() {
            Closing::Forbidden | Closing::Allowed => false,
            Closing::AfterQuiet => self.quiet_deadline() <= self.now,
            Closing::Required => true,
        };
        if is_due {
            self.lose_database(machine);
        }
    }

    fn quiet_deadline(&self) -> Instant {
        Instant::from_nanos(self.database_heard_at.as_nanos().saturating_add(QUIET_NS))
    }

    /// When the links need a turn without an event.
    pub(super) fn links_deadline(&self) -> Option<Instant> {
        let quiet = (self.database.closing() == Closing::AfterQuiet).then(|| self.quiet_deadline());
        [quiet, self.agent.next_deadline()].into_iter().flatten().min()
    }

    fn take_events<M: Machine>(&mut self, machine: &mut M) {
        while let Some(_scope) = machine.begin(Work::Rules) {
            let Some(event) = self.database.poll_event() else { return };
            if matches!(event, qubesdb::Event::Dumped) {
                (self.has_database, self.is_database_up) = (true, true);
                let entries = self.database.store().len();
                self.log.line(
                    self.now,
                    Source::System,
                    format_args!("qubesdb connected entries={entries}"),
                );
            }
            self.control.on_event(&event, self.database.store());
            self.run_actions(machine);
        }
    }

    /// Does what the control plane wants done.
    pub(super) fn run_actions<M: Machine>(&mut self, machine: &mut M) {
        while let Some(action) = self.control.poll_action() {
            match action {
                Action::SetRules { ip, rules } => self.set_rules(machine, ip, rules),
                Action::SetNetwork(network) => self.set_network(network),
                Action::SetFeatures(features) => self.set_features(features),
                Action::AddEntropy(seed) => self.firewall.add_entropy(seed.as_bytes()),
                Action::WriteDb { path, value } => {
                    if let Err(error) = self.database.write(path.as_str(), &value) {
                        self.log.line(
                            self.now,
                            Source::Control,
                            format_args!("qubesdb write of {path} not sent: {error}"),
                        );
                    }
                }
                // Nothing there to be removed, or no database: then it is gone already.
                Action::RemoveDb { path } => drop(self.database.remove(path.as_str())),
                Action::Log(notice) => {
                    self.log.line(self.now, Source::Control, format_args!("{notice}"));
                }
            }
        }
    }

    fn set_network(&mut self, network: NetworkConfig) {
        let old = self.firewall.network();
        let is_moved = (old.v4.address, old.v4.gateway, old.v6.address, old.v6.gateway)
            != (network.v4.address, network.v4.gateway, network.v6.address, network.v6.gateway);
        match self.firewall.set_network(network) {
            Ok(()) if is_moved => self.report_addresses(),
            Ok(()) => {}
            Err(error) => self.log.line(
                self.now,
                Source::Control,
                format_args!("network configuration not taken: {error}"),
            ),
        }
    }

    fn set_features(&mut self, features: Features) {
        self.log_level = features.log;
        let open = &features.exposure;
        if *open != Exposure::default() {
            self.log.line(
                self.now,
                Source::Control,
                format_args!(
                    "config fw-allow={} fw-forward={} fw-filtering-by-address={} (entries)",
                    open.allow.len(),
                    open.forward.len(),
                    open.filtering_by_address.len()
                ),
            );
        }
        if let Some(clamp) = features.mss_clamp {
            self.log.line(self.now, Source::Control, format_args!("config mss_clamp={clamp}"));
        }
        self.firewall.set_mss_clamp(features.mss_clamp);
        self.firewall.set_exposure(features.exposure);
        let (wanted, per_client) = (features.flows, features.flows_per_client);
        let (flows, quota) = self.firewall.set_flow_limits(wanted, per_client);
        if wanted.is_some() || per_client.is_some() {
            let is_cut = wanted.is_some_and(|wanted| wanted.get() > flows);
            let hint =
                if is_cut { " (no room for more; ask on the kernel command line)" } else { "" };
            self.log.line(
                self.now,
                Source::Control,
                format_args!("config flows={flows} flows_per_client={quota}{hint}"),
            );
        }
    }

    /// Puts rules in force and says how long that took since the turn began in which dom0's mark was read.
    fn set_rules<M: Machine>(&mut self, machine: &M, ip: IpAddr, rules: SourceRules) {
        // The state's text is needed after the rules are handed over.
        let state = super::machine::Reason::new(format_args!("{rules}"));
        // Each edit publishes the names anew.
        self.control.withdraw_names(ip);
        match self.firewall.set_rules(machine.now(), ip, rules.into()) {
            Ok(generation) => {
                self.log_names_left_out(ip);
                let spent_us = machine.now().since(self.now).as_micros();
                self.log.line(
                    self.now,
                    Source::Control,
                    format_args!(
                        "rules ip={ip} generation={} {state} spent_us={spent_us}",
                        generation.0
                    ),
                );
            }
            Err(error) => self.log.line(
                self.now,
                Source::Control,
                format_args!("rules ip={ip} not taken, all its traffic is dropped: {error}"),
            ),
        }
    }

    /// Serves the qrexec agent. Says whether there is more to do at once.
    pub(super) fn serve_agent<M: Machine>(&mut self, machine: &mut M) -> bool {
        let Some(_scope) = machine.begin(Work::Calls) else { return false };
        self.agent.on_timer(self.now);
        let mut has_more = false;
        if let Some(pipe) = machine.agent() {
            has_more = self.serve_agent_control(pipe);
        }
        if !self.calls.is_empty() {
            let (wall_us, _) = machine.uptime_us();
            let (memory, effort) = (machine.memory(), machine.effort());
            let facts = Facts::new(wall_us / 1000, memory, effort, machine.unsent());
            self.facts = facts.at(self.now, self.is_database_up);
        }
        for index in 0..qrexec::MAX_LINKS {
            let Some(call) = self.calls.get(index).copied() else { break };
            if let Some(pipe) = machine.call(call) {
                has_more |= self.serve_call(pipe, call);
            }
        }
        self.run_agent_actions(machine);
        self.announce_features(machine);
        // Ends of calls are told on the control channel.
        if let Some(pipe) = machine.agent() {
            self.transmit_agent(pipe);
        }
        if self.agent.is_ready() && !self.is_agent_ready {
            self.is_agent_ready = true;
            self.log.line(self.now, Source::System, format_args!("qrexec ready version=3"));
        }
        has_more || self.agent.wants_turn()
    }

    fn serve_agent_control(&mut self, pipe: &mut dyn Pipe) -> bool {
        for _ in 0..READS_PER_TURN {
            self.transmit_agent(pipe);
            let kept = self.agent_input.len();
            if kept == 0 {
                let read = pipe.read(&mut self.buffer[..]);
                if read == 0 {
                    return false;
                }
                self.agent_input.extend_from_slice(self.buffer.get(..read).unwrap_or_default());
            }
            let mut services = FirewallServices::new(&self.firewall, &self.control, &self.facts);
            let taken = self.agent.control_bytes(self.now, &self.agent_input, &mut services);
            self.agent_input.drain(..taken.min(self.agent_input.len()));
            if taken == 0 && kept > 0 {
                // Answers wait for space first; dom0's event tells when there is some.
                return false;
            }
        }
        true
    }

    fn transmit_agent(&mut self, pipe: &mut dyn Pipe) {
        loop {
            let bytes = self.agent.control_transmit();
            if bytes.is_empty() {
                return;
            }
            let written = pipe.write(bytes);
            self.agent.control_transmitted(written);
            if written == 0 {
                return;
            }
        }
    }

    fn serve_call(&mut self, pipe: &mut dyn Pipe, call: CallId) -> bool {
        for _ in 0..READS_PER_TURN {
            self.transmit_call(pipe, call);
            let read = pipe.read(&mut self.buffer[..]);
            if read == 0 {
                return false;
            }
            let bytes = self.buffer.get(..read).unwrap_or_default();
            let mut services = FirewallServices::new(&self.firewall, &self.control, &self.facts);
            self.agent.data_bytes(self.now, call, bytes, &mut services);
        }
        true
    }

    fn transmit_call(&mut self, pipe: &mut dyn Pipe, call: CallId) {
        let mut services = FirewallServices::new(&self.firewall, &self.control, &self.facts);
        loop {
            let bytes = self.agent.data_transmit(call, &mut services);
            if bytes.is_empty() {
                return;
            }
            let written = pipe.write(bytes);
            self.agent.data_transmitted(self.now, call, written);
            if written == 0 {
                return;
            }
        }
    }

    fn run_agent_actions<M: Machine>(&mut self, machine: &mut M) {
        while let Some(action) = self.agent.poll_action() {
            match action {
                qrexec::Action::OpenData { call, domain, port } => {
                    self.calls.push(call);
                    machine.open_call(call, domain, port);
                }
                qrexec::Action::ServeData { call, port } => {
                    self.calls.push(call);
                    machine.serve_call(call, port);
                }
                qrexec::Action::End(ending) => {
                    self.asked_to = Some(match ending {
                        qrexec::Ending::Poweroff => Stop::Poweroff,
                        qrexec::Ending::Reboot => Stop::Reboot,
                    });
                }
                qrexec::Action::RequestEnded(end) => self.announced(end),
                qrexec::Action::CloseData { call } => {
                    self.calls.retain(|one| *one != call);
                    machine.close_call(call);
                }
                qrexec::Action::ResetControl { reason } => {
                    self.log.line(
                        self.now,
                        Source::Qrexec,
                        format_args!("qrexec control channel reset: {reason}"),
                    );
                    self.lose_agent(machine);
                }
            }
        }
    }

    /// The control channel is gone: forget what was half received and offer a new one.
    pub(super) fn lose_agent<M: Machine>(&mut self, machine: &mut M) {
        self.agent.control_closed();
        self.agent_input.clear();
        self.is_agent_ready = false;
        if !is_planted(Defect::AgentNotOffered) {
            machine.reset_agent();
        }
    }

    /// A data channel opened.
    pub(super) fn call_up(&mut self, call: CallId) {
        self.agent.data_opened(self.now, call);
    }

    /// A data channel is gone.
    pub(super) fn call_down<M: Machine>(&mut self, machine: &mut M, call: CallId) {
        if let Some(pipe) = machine.call(call) {
            // Once is enough for a whole ring; a caller that goes on writing is not listened to.
            let _ = self.serve_call(pipe, call);
        }
        self.calls.retain(|one| *one != call);
        self.agent.data_closed(call);
        machine.close_call(call);
    }

    /// Is refused traffic to be summarised in the log?
    pub(super) fn logs_drops(&self) -> bool {
        self.log_level >= LogLevel::Drops
    }
}

fn transmit_database(database: &mut qubesdb::Client, pipe: &mut dyn Pipe) {
    loop {
        let bytes = database.poll_transmit(pipe.unread(), pipe.space());
        if bytes.is_empty() {
            return;
        }
        let written = pipe.write(bytes);
        database.transmitted(written);
        if written == 0 {
            return;
        }
    }
}
