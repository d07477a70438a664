//! What the log says: devices that come and go, the moments that people wait for, and where packets ended.

use core::fmt;
use core::time::Duration;

use super::EventLoop;
use super::machine::{Machine, Reason, Stop};
use crate::clients::ClientPort;
use crate::log::{Sink, Source};
use crate::port::ClientId;
use crate::stats::{Counter, PortStats};
use crate::time::Instant;
use crate::uplink::{NetworkConfig, UplinkPort};
use crate::verdict::DropReason;

/// Reasons of a machine for not sending a frame that are told.
const MAX_UNSENT_REASONS: usize = 16;
/// Time between two summaries of dropped packets.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(2);

/// What the last summary said, to tell what has moved since.
#[derive(Debug)]
pub(super) struct DropSummary {
    clients: [u64; DropReason::COUNT],
    uplink: [u64; DropReason::COUNT],
    unsent: [u64; MAX_UNSENT_REASONS],
    /// Drops and unsent frames in all.
    all: u64,
    without_accept: u64,
    next_at: Option<Instant>,
}

impl Default for DropSummary {
    fn default() -> Self {
        Self {
            clients: [0; DropReason::COUNT],
            uplink: [0; DropReason::COUNT],
            unsent: [0; MAX_UNSENT_REASONS],
            all: 0,
            without_accept: 0,
            next_at: None,
        }
    }
}

impl<S: Sink> EventLoop<S> {
    pub(super) fn client_up<M: Machine>(
        &mut self,
        machine: &mut M,
        id: ClientId,
        port: ClientPort,
        devid: u32,
    ) {
        let netvm = self.control.client_side_netvm();
        if netvm.is_some_and(|netvm| port.ip4 == Some(netvm.gateway)) {
            return self.netvm_up(machine, id, &port, devid);
        }
        let (domid, ip4, ip6) = (port.domid, port.ip4, port.ip6);
        let source = Source::Client(id.0);
        match self.firewall.attach_client(id, port) {
            Ok(()) => self.log.line(
                self.now,
                source,
                format_args!(
                    "client connected domid={domid} devid={devid} ip={} ip6={}",
                    OrNone(ip4),
                    OrNone(ip6)
                ),
            ),
            Err(error) => self.log.line(
                self.now,
                source,
                format_args!("client refused domid={domid} devid={devid} reason=\"{error}\""),
            ),
        }
    }

    pub(super) fn client_down<M: Machine>(
        &mut self,
        machine: &mut M,
        id: ClientId,
        reason: Reason,
    ) {
        let had_uplink = self.firewall.has_uplink();
        self.firewall.detach_client(id);
        self.log.line(self.now, Source::Client(id.0), format_args!("client gone {reason}"));
        let ports = self.firewall.take_port_leak();
        if ports > 0 {
            self.log.line(self.now, Source::System, format_args!("leak nat ports={ports}"));
        }
        if had_uplink && !self.firewall.has_uplink() {
            self.uplink_gone(machine, reason);
        }
    }

    /// The vif of a NetVM that is a client of ours.
    fn netvm_up<M: Machine>(
        &mut self,
        machine: &mut M,
        id: ClientId,
        port: &ClientPort,
        devid: u32,
    ) {
        let (domid, mac) = (port.domid, port.mac);
        match self.firewall.attach_netvm(self.now, id, port) {
            Ok(()) => {
                self.take_uplink_addresses(machine);
                self.report_uplink(format_args!("client={domid} devid={devid} their_mac={mac}"));
            }
            Err(error) => self.log.line(
                self.now,
                Source::Uplink,
                format_args!("netvm refused domid={domid} devid={devid} reason=\"{error}\""),
            ),
        }
    }

    pub(super) fn uplink_up<M: Machine>(
        &mut self,
        machine: &mut M,
        port: UplinkPort,
        backend: u16,
    ) {
        if self.control.client_side_netvm().is_some() {
            return self.log.line(
                self.now,
                Source::Uplink,
                format_args!("uplink ignored backend={backend}: --ipv4-gw names another NetVM"),
            );
        }
        let mac = port.mac;
        self.firewall.set_uplink(self.now, Some(port));
        self.take_uplink_addresses(machine);
        self.report_uplink(format_args!("backend={backend} mac={mac}"));
    }

    pub(super) fn uplink_down<M: Machine>(&mut self, machine: &mut M, reason: Reason) {
        if self.control.client_side_netvm().is_some() {
            return;
        }
        self.firewall.set_uplink(self.now, None);
        self.uplink_gone(machine, reason);
    }

    fn uplink_gone<M: Machine>(&mut self, machine: &mut M, reason: Reason) {
        self.control.on_uplink_gone();
        self.run_actions(machine);
        self.log.line(self.now, Source::Uplink, format_args!("uplink gone reason=\"{reason}\""));
    }

    fn take_uplink_addresses<M: Machine>(&mut self, machine: &mut M) {
        self.control.on_uplink_connected(self.database.store());
        self.run_actions(machine);
    }

    /// Our own addresses, which may come before the uplink or after it.
    pub(super) fn report_addresses(&mut self) {
        let NetworkConfig { v4, v6, .. } = self.firewall.network();
        self.log.line(
            self.now,
            Source::Control,
            format_args!(
                "config ip={} gateway={} ip6={} gateway6={}",
                OrNone(v4.address),
                OrNone(v4.gateway),
                OrNone(v6.address),
                OrNone(v6.gateway)
            ),
        );
    }

    fn report_uplink(&mut self, device: fmt::Arguments<'_>) {
        let v4 = &self.firewall.network().v4;
        self.log.line(
            self.now,
            Source::Uplink,
            format_args!(
                "uplink connected {device} ip={} gateway={}",
                OrNone(v4.address),
                OrNone(v4.gateway)
            ),
        );
    }

    pub(super) fn report_first_packet<M: Machine>(&mut self, machine: &M) {
        let (wall_us, running_us) = machine.uptime_us();
        self.log.line(
            self.now,
            Source::System,
            format_args!(
                "first packet forwarded wall_ms={} vcpu_ms={}",
                Millis(wall_us),
                Millis(running_us)
            ),
        );
    }

    /// The lines of the end of a turn.
    pub(super) fn report_turn<M: Machine>(&mut self, machine: &M) {
        self.report_phases(machine);
        // Ready: dom0 can call us and, unless it has no database for us, its rules are in force.
        if !self.is_ready && self.is_agent_offered && self.has_database {
            self.is_ready = true;
            self.report_ready(machine);
        }
        while let Some(edit) = self.firewall.take_rule_edit_report() {
            self.log.line(
                self.now,
                Source::Control,
                format_args!(
                    "rule edit ip={} generation={} committed_at_ns={} first_judged_at_ns={}",
                    edit.address,
                    edit.generation.0,
                    machine.shared_clock_ns(edit.committed_at),
                    machine.shared_clock_ns(edit.first_judged_at)
                ),
            );
        }
        self.report_without_accept();
        self.summarise_drops(machine);
    }

    /// What a start waits for, each once: an uplink, and that dom0's rules are in force.
    fn report_phases<M: Machine>(&mut self, machine: &M) {
        let reached = [self.firewall.has_uplink(), self.has_database];
        for ((name, is_reached), is_told) in
            ["uplink", "database"].into_iter().zip(reached).zip(&mut self.told_phases)
        {
            if is_reached && !core::mem::replace(is_told, true) {
                let (wall_us, running_us) = machine.uptime_us();
                self.log.line(
                    self.now,
                    Source::System,
                    format_args!(
                        "phase {name} wall_ms={} vcpu_ms={} hypercalls={}",
                        Millis(wall_us),
                        Millis(running_us),
                        machine.effort().hypercalls
                    ),
                );
            }
        }
    }

    /// A fault of our own is told whatever `fw-log` says.
    fn report_without_accept(&mut self) {
        let count = self.firewall.stats().without_accept();
        let new = count.saturating_sub(self.drops.without_accept);
        if new > 0 {
            self.drops.without_accept = count;
            self.log.line(
                self.now,
                Source::Traffic,
                format_args!("fault reason=without-accept new={new} count={count} (none left)"),
            );
        }
    }

    fn report_ready<M: Machine>(&mut self, machine: &M) {
        let (wall_us, running_us) = machine.uptime_us();
        let memory = machine.memory();
        self.log.line(
            self.now,
            Source::System,
            format_args!(
                "ready wall_ms={} vcpu_ms={} heap_kib={}/{} pages={}/{}",
                Millis(wall_us),
                Millis(running_us),
                memory.heap_used / 1024,
                memory.heap_size / 1024,
                memory.pages_used,
                memory.pages
            ),
        );
    }

    /// When the next summary may be due.
    pub(super) fn report_deadline(&self) -> Option<Instant> {
        self.drops.next_at
    }

    fn summarise_drops<M: Machine>(&mut self, machine: &M) {
        if !self.logs_drops() {
            return;
        }
        match self.drops.next_at {
            Some(due) if due > self.now => return,
            Some(_) => self.drops.next_at = None,
            None => {}
        }
        // The sums over all clients take long, and in most turns nothing was dropped.
        let unsent = machine.unsent().iter().map(|(_, count)| *count);
        let all = unsent.fold(self.firewall.stats().all_drops(), u64::saturating_add);
        if all == core::mem::replace(&mut self.drops.all, all) {
            return;
        }
        let (clients, uplink) = self.drop_totals();
        let mut has_moved = false;
        for reason in DropReason::ALL {
            let index = reason as usize;
            let pairs = [
                ("client", clients.get(index), self.drops.clients.get_mut(index)),
                ("uplink", uplink.get(index), self.drops.uplink.get_mut(index)),
            ];
            for (origin, now, before) in pairs {
                let (Some(now), Some(before)) = (now, before) else { continue };
                if now == before {
                    continue;
                }
                has_moved = true;
                let new = now.saturating_sub(*before);
                *before = *now;
                self.log.line(
                    self.now,
                    Source::Traffic,
                    format_args!(
                        "drop reason={} origin={origin} new={new} count={now}",
                        reason.name()
                    ),
                );
            }
        }
        for ((name, count), before) in machine.unsent().iter().zip(&mut self.drops.unsent) {
            let new = count.saturating_sub(*before);
            if new > 0 {
                has_moved = true;
                *before = *count;
                self.log.line(
                    self.now,
                    Source::Traffic,
                    format_args!("unsent reason={name} new={new} count={count}"),
                );
            }
        }
        if has_moved {
            self.drops.next_at = Some(self.now.after(SUMMARY_INTERVAL));
        }
    }

    /// Drops since the start: of all clients, those that left included, and of the uplink.
    fn drop_totals(&self) -> ([u64; DropReason::COUNT], [u64; DropReason::COUNT]) {
        let stats = self.firewall.stats();
        (drops_of(&stats.all_clients()), drops_of(stats.uplink()))
    }

    pub(super) fn report_stop<M: Machine>(&mut self, machine: &M, stop: Stop) {
        let (wall_us, running_us) = machine.uptime_us();
        let memory = machine.memory();
        self.log.line(
            self.now,
            Source::System,
            format_args!(
                "stats wall_ms={} vcpu_ms={} heap_kib={}/{} pages={}/{} flows={} \
                 without_accept={}",
                Millis(wall_us),
                Millis(running_us),
                memory.heap_used / 1024,
                memory.heap_size / 1024,
                memory.pages_used,
                memory.pages,
                self.firewall.flow_count(),
                self.firewall.stats().without_accept()
            ),
        );
        let clients = self.firewall.stats().all_clients();
        self.log.line(self.now, Source::System, format_args!("stats clients {}", Counts(&clients)));
        self.log.line(
            self.now,
            Source::System,
            format_args!("stats uplink {}", Counts(self.firewall.stats().uplink())),
        );
        for (name, count) in machine.unsent().iter().filter(|(_, count)| *count > 0) {
            self.log.line(
                self.now,
                Source::System,
                format_args!("stats unsent reason={name} count={count}"),
            );
        }
        self.log.line(self.now, Source::System, format_args!("shutdown reason={}", stop.name()));
    }
}

fn drops_of(stats: &PortStats) -> [u64; DropReason::COUNT] {
    DropReason::ALL.map(|reason| stats.dropped(reason))
}

/// A port's counters that are not zero, as `name=value`.
struct Counts<'a>(&'a PortStats);

impl fmt::Display for Counts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = Counter::ALL.map(|counter| (counter.name(), self.0.get(counter)));
        let drops = DropReason::ALL.map(|reason| (reason.name(), self.0.dropped(reason)));
        let moved = counters.into_iter().chain(drops).filter(|(_, count)| *count > 0);
        for (index, (name, count)) in moved.enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{name}={count}")?;
        }
        Ok(())
    }
}

struct OrNone<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrNone<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Microseconds, shown as milliseconds with one decimal.
#[derive(Clone, Copy, Debug)]
pub struct Millis(pub u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 100)
    }
}
