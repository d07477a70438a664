//! Host names in rules: what dom0 is told of their addresses, and the log of those that cannot be resolved.

use core::net::IpAddr;
use core::time::Duration;

use super::EventLoop;
use super::machine::{Machine, Work};
use crate::log::{Sink, Source};
use crate::time::Instant;

/// Names that are published at once, and the time until the next ones: clients make their own names change.
const PER_INTERVAL: usize = 8;
const INTERVAL: Duration = Duration::from_millis(250);
/// Names that are logged in one turn.
const PROBLEMS_PER_TURN: usize = 8;

impl<S: Sink> EventLoop<S> {
    /// Publishes changed names and logs those that cannot be resolved.
    pub(super) fn publish_names<M: Machine>(&mut self, machine: &mut M) {
        self.log_name_problems();
        if !self.may_publish() || self.now < self.publish_at {
            return;
        }
        let Some(_scope) = machine.begin(Work::Rules) else { return };
        for _ in 0..PER_INTERVAL {
            let Some((client, name)) = self.firewall.take_name_change() else { break };
            let addresses = self.firewall.addresses_of(self.now, client, &name);
            self.control.publish_name(client, &name, addresses);
        }
        self.publish_at = self.now.after(INTERVAL);
        self.run_actions(machine);
    }

    /// When there is something to publish.
    pub(super) fn names_deadline(&self) -> Option<Instant> {
        self.may_publish().then_some(self.publish_at)
    }

    /// While dom0 is away changes wait: with its return all rules are committed again, and with them all names.
    fn may_publish(&self) -> bool {
        self.firewall.has_name_changes() && self.database.is_synchronised()
    }

    pub(super) fn log_names_left_out(&mut self, ip: IpAddr) {
        let left_out = self.firewall.names_left_out();
        if left_out > 0 {
            self.log.line(
                self.now,
                Source::Control,
                format_args!("rules ip={ip}: no room for {left_out} names, they stay unresolved"),
            );
        }
    }

    fn log_name_problems(&mut self) {
        for _ in 0..PROBLEMS_PER_TURN {
            let Some(problem) = self.firewall.take_name_problem() else { return };
            let source = problem.port.map_or(Source::Control, |port| Source::Client(port.0));
            self.log.line(
                self.now,
                source,
                format_args!(
                    "name not resolved client={} name={} reason=\"{}\"",
                    problem.client, problem.name, problem.problem
                ),
            );
        }
    }
}
