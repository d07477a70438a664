//! `firewall.Flows`: the flow table, a flow a line. Slots are gone through in order: one whose flow goes and comes again
//! behind the place that was reached is not told twice.

use core::net::IpAddr;

use super::json::{self, Decider, NameOf, Protocol, Text};
use super::{FirewallServices, SCHEMA};
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

#[derive(serde::Serialize)]
struct Head {
    schema: u32,
    kind: &'static str,
    uptime_ms: u64,
    flows: usize,
}

#[derive(serde::Serialize)]
struct Line<'a> {
    kind: &'static str,
    client: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    slot: Option<u16>,
    direction: &'static str,
    proto: Text<Protocol>,
    src: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    dst: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    /// Of an ICMP query: its identifier and its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u16>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redirected_to: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat_port: Option<u16>,
    state: &'static str,
    rule: Decider,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<NameOf<'a>>,
    idle_ms: u64,
}

impl FirewallServices<'_> {
    pub(super) fn next_flow(&self, cursor: &mut Cursor, buffer: &mut [u8]) -> Progress {
        if !cursor.has_begun {
            cursor.has_begun = true;
            let head = Head {
                schema: SCHEMA,
                kind: "flows",
                uptime_ms: self.facts.uptime_ms,
                flows: self.firewall.flow_count(),
            };
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
                    if let Some(line) = self.flow(flow, cursor.of) {
                        return json::progress(json::write(&line, buffer));
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

    /// The line of a flow, if it is of the client that was asked about and not over.
    fn flow(&self, flow: &Flow, of: Option<IpAddr>) -> Option<Line<'_>> {
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
        let name = NameOf { firewall, now, client, address: outside.remote };
        Some(Line {
            kind: "flow",
            client,
            slot: host.and_then(|host| host.port).map(|port| port.0),
            direction,
            proto: Text(Protocol(inside.protocol)),
            src,
            sport: has_ports.then_some(sport),
            dst,
            dport: has_ports.then_some(dport),
            id: is_query.then_some(inside.local_port),
            icmp_type: is_query.then_some(inside.remote_port),
            redirected_to: Some(outside.remote).filter(|remote| *remote != inside.remote),
            nat: is_translated.then_some(outside.local),
            nat_port: Some(outside.local_port).filter(|_| is_translated && (has_ports || is_query)),
            state: flow.state_name(),
            rule: Decider(firewall.decider_of(now, flow)),
            name: name.if_any(),
            idle_ms: u64::try_from(flow.idle(now).as_millis()).unwrap_or(u64::MAX),
        })
    }
}
