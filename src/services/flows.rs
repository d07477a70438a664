//! `firewall.Flows`: the flow table, a flow a line. Slots are gone through in order: one whose flow goes and comes again
//! behind the place that was reached is not told twice.

use core::net::IpAddr;

use super::FirewallServices;
use super::json::{
    self, Decider, NameOf, Protocol, TooLong, Value, address, number, number_if, size, text, word,
};
use crate::conntrack::{Basis, Flow};
use crate::qrexec::{ExitCode, Progress};
use crate::wire::{ip, protocol};

/// Slots of the table that are looked at before the packets get their turn.
const SLOTS_AT_ONCE: u32 = 2048;

/// A place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The client that was asked about.
    of: Option<IpAddr>,
    /// The first line was told.
    has_begun: bool,
    slot: Option<u32>,
}

impl Cursor {
    pub(super) fn new(of: Option<IpAddr>) -> Self {
        Self { of, has_begun: false, slot: Some(0) }
    }
}

impl FirewallServices<'_> {
    pub(super) fn next_flow(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> Progress {
        if !cursor.has_begun {
            cursor.has_begun = true;
            let head = [
                json::schema(),
                ("kind", word("flows")),
                ("uptime_ms", number(self.facts.uptime_ms)),
                ("flows", size(self.firewall.flow_count())),
            ];
            return json::progress(json::write(&head, buffer));
        }
        let mut left = SLOTS_AT_ONCE;
        while let Some(slot) = cursor.slot {
            match self.firewall.table.flow_from(slot, left) {
                Err(next) => {
                    cursor.slot = next;
                    return match next {
                        Some(_) => Progress::Later,
                        None => Progress::Exit(ExitCode::SUCCESS),
                    };
                }
                Ok((found, flow)) => {
                    let next = found.saturating_add(1);
                    cursor.slot = Some(next);
                    if let Some(written) = self.flow(flow, cursor.of, buffer) {
                        return json::progress(written);
                    }
                    left = left.saturating_sub(next.saturating_sub(slot));
                    if left == 0 {
                        return Progress::Later;
                    }
                }
            }
        }
        Progress::Exit(ExitCode::SUCCESS)
    }

    /// Writes the line of a flow, if it is of the client that was asked about and not over.
    fn flow(
        &self,
        flow: &Flow,
        of: Option<IpAddr>,
        buffer: &mut [u8],
    ) -> Option<Result<usize, TooLong>> {
        let (firewall, now) = (self.firewall, self.facts.now);
        let (inside, outside) = (firewall.table.inside_of(flow), firewall.table.outside_of(flow));
        let client = inside.local;
        if of.is_some_and(|of| of != client) || flow.deadline <= now {
            return None;
        }
        let basis = flow.basis();
        let has_ports = matches!(inside.protocol, protocol::TCP | protocol::UDP);
        let is_query = inside.protocol == ip::icmp(client);
        let (near, far) = ((client, inside.local_port), (inside.remote, inside.remote_port));
        let (direction, (src, sport), (dst, dport)) = match basis {
            Basis::Rules => ("out", near, far),
            Basis::Allowed { .. } => ("across", near, far),
            Basis::Forwarded => ("in", far, near),
        };
        let is_translated = outside.local != client;
        let host = firewall.clients.host(flow.host());
        let proto = Protocol(inside.protocol);
        let name = NameOf { firewall, now, client, address: outside.remote };
        let redirected = outside.remote != inside.remote;
        let has_nat_port = is_translated && (has_ports || is_query);
        let idle_ms = u64::try_from(flow.idle(now).as_millis()).unwrap_or(u64::MAX);
        let line = [
            ("kind", word("flow")),
            ("client", address(client)),
            ("slot", number_if(host.and_then(|host| host.port).map(|port| port.0))),
            ("direction", word(direction)),
            ("proto", text(&proto)),
            ("src", address(src)),
            ("sport", number_if(has_ports.then_some(sport))),
            ("dst", address(dst)),
            ("dport", number_if(has_ports.then_some(dport))),
            ("id", number_if(is_query.then_some(inside.local_port))),
            ("type", number_if(is_query.then_some(inside.remote_port))),
            ("redirected_to", redirected.then_some(Value::Address(outside.remote))),
            ("nat", is_translated.then_some(Value::Address(outside.local))),
            ("nat_port", number_if(has_nat_port.then_some(outside.local_port))),
            ("state", word(flow.state_name())),
            ("rule", Decider(firewall.decider_of(now, flow)).value()),
            ("name", name.is_any().then_some(Value::Text(&name))),
            ("idle_ms", number(idle_ms)),
        ];
        Some(json::write(&line, buffer))
    }
}
