//! All that a rule can say about protocol, port, ICMP type and DNS target as spans of one axis of numbers: a packet is
//! one place on it, so that one search answers what would be a question per protocol.
//!
//! On the axis follow each other: TCP ports, UDP ports, ICMP types, all the rest. Among the ports there is one more
//! behind 53: that port of a resolver of ours, which alone `specialtarget=dns` means.

use crate::rule::{DNS_PORT, PortRange, Rule, SpecialTarget, UpperMatch};
use crate::subject::{Subject, Upper};

/// Port 53 of a resolver, among the ports of its protocol.
const RESOLVER: u32 = port_place(DNS_PORT) + 1;
const PORTS: u32 = port_place(u16::MAX) + 1;

const TCP: u32 = 0;
const UDP: u32 = TCP + PORTS;
const ICMP: u32 = UDP + PORTS;
const OTHER: u32 = ICMP + 256;
/// Places on the axis.
pub(super) const PLACES: u32 = OTHER + 1;

/// Some places in a row, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) last: u32,
}

/// Where a packet is.
pub(super) fn place(subject: &Subject) -> u32 {
    let port_of = |port: u16| match subject.is_dns_server && port == DNS_PORT {
        true => RESOLVER,
        false => port_place(port),
    };
    match subject.upper {
        Upper::Tcp { port } => TCP + port_of(port),
        Upper::Udp { port } => UDP + port_of(port),
        Upper::Icmp { icmp_type } => ICMP + u32::from(icmp_type),
        Upper::Other { .. } => OTHER,
    }
}

/// The places of all packets to the destinations of a rule that it matches.
pub(super) fn spans(rule: &Rule) -> impl Iterator<Item = Span> {
    let spans = match rule.target() {
        None => plain_spans(rule.upper()),
        Some(SpecialTarget::Dns) => dns_spans(rule.upper()),
    };
    spans.into_iter().flatten()
}

fn plain_spans(upper: UpperMatch) -> [Option<Span>; 2] {
    match upper {
        UpperMatch::Any => [Some(Span { first: 0, last: PLACES - 1 }), None],
        UpperMatch::Tcp(ports) => [Some(port_span(TCP, ports)), None],
        UpperMatch::Udp(ports) => [Some(port_span(UDP, ports)), None],
        UpperMatch::TcpOrUdp(ports) => [TCP, UDP].map(|base| Some(port_span(base, Some(ports)))),
        UpperMatch::Icmp(None) => [Some(Span { first: ICMP, last: OTHER - 1 }), None],
        UpperMatch::Icmp(Some(icmp_type)) => [Some(point(ICMP + u32::from(icmp_type))), None],
    }
}

fn dns_spans(upper: UpperMatch) -> [Option<Span>; 2] {
    let at = |base: u32| Some(point(base + RESOLVER));
    // The reference skips a rule whose ports are anything but 53, also a wider range.
    let only_53 = |ports: PortRange| (ports.first(), ports.last()) == (DNS_PORT, DNS_PORT);
    match upper {
        UpperMatch::Any => [at(TCP), at(UDP)],
        UpperMatch::TcpOrUdp(ports) if only_53(ports) => [at(TCP), at(UDP)],
        UpperMatch::Tcp(ports) if ports.is_none_or(only_53) => [at(TCP), None],
        UpperMatch::Udp(ports) if ports.is_none_or(only_53) => [at(UDP), None],
        UpperMatch::TcpOrUdp(_) | UpperMatch::Tcp(_) | UpperMatch::Udp(_) | UpperMatch::Icmp(_) => {
            [None, None]
        }
    }
}

/// Ports of a protocol, all if none are named. A range with port 53 has that of the resolvers as well.
fn port_span(base: u32, ports: Option<PortRange>) -> Span {
    let Some(ports) = ports else { return Span { first: base, last: base + PORTS - 1 } };
    let last = match ports.last() {
        DNS_PORT => RESOLVER,
        port => port_place(port),
    };
    Span { first: base + port_place(ports.first()), last: base + last }
}

const fn point(place: u32) -> Span {
    Span { first: place, last: place }
}

/// A port among those of its protocol.
const fn port_place(port: u16) -> u32 {
    // A cast because `u32::from` is not const.
    if port > DNS_PORT { port as u32 + 1 } else { port as u32 }
}
