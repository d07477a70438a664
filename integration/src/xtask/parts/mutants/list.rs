//! The flips. When the code moves, the text to be replaced follows it; a flip is removed only with its requirement.

/// One way to break the implementation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flip {
    pub(super) name: &'static str,
    /// The requirements that it breaks. None if it breaks the fast path, which has to do what the stages do: its own
    /// tests have to notice that it does not.
    pub(super) ids: &'static [&'static str],
    pub(super) file: &'static str,
    /// Exactly once in the file.
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// One of those that every `test` runs.
    pub(super) is_quick: bool,
}

const fn flip(
    name: &'static str,
    ids: &'static [&'static str],
    file: &'static str,
    from: &'static str,
    to: &'static str,
) -> Flip {
    Flip { name, ids, file, from, to, is_quick: false }
}

/// The same, for every `test`.
const fn quick(flip: Flip) -> Flip {
    Flip { is_quick: true, ..flip }
}

/// One that breaks the fast path.
const fn fast(
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
) -> Flip {
    flip(name, &[], file, from, to)
}

pub(super) const FLIPS: &[Flip] = &[
    fast(
        "fast path: whatever dom0 changes",
        "src/fast/epoch.rs",
        "self.0 = self.0.saturating_add(Self::STEP);",
        "",
    ),
    fast(
        "fast path: a flow that is over",
        "src/fast/mod.rs",
        "!flow.passed.is_up(self.epoch) || now >= flow.deadline",
        "!flow.passed.is_up(self.epoch)",
    ),
    fast(
        "fast path: a client that is told other addresses",
        "src/fast/mod.rs",
        "if !is_usable || client.visible.is_some() {",
        "if !is_usable {",
    ),
    fast(
        "fast path: the end of the time to live",
        "src/fast/mod.rs",
        "if !is_whole || ip.ttl <= 1 {",
        "if !is_whole {",
    ),
    fast(
        "fast path: fragments",
        "src/fast/family.rs",
        "first == NO_OPTIONS && read_u16(header, 6) & FRAGMENT == 0",
        "first == NO_OPTIONS",
    ),
    fast(
        "fast path: the header's checksum",
        "src/fast/family.rs",
        "!is_plain || !Sum::is_right(header)",
        "!is_plain",
    ),
    fast(
        "fast path: resets of anybody",
        "src/fast/transport.rs",
        "flags & (SYN | FIN | RST | ACK | URG) == ACK &&",
        "flags & (SYN | FIN | ACK | URG) == ACK &&",
    ),
    fast(
        "fast path: the client's window",
        "src/conntrack/tcp.rs",
        "Sender::Remote if self.is_in_window(segment) => self.note_remote(segment),\n            Sender::Remote => return None,",
        "Sender::Remote => self.note_remote(segment),",
    ),
    fast(
        "fast path: what the port takes",
        "src/fast/mod.rs",
        "None => self.total_len <= usize::from(caps.mtu) && (!is_blank || F::takes(caps).0),",
        "None => self.total_len <= usize::from(caps.mtu),",
    ),
    fast(
        "fast path: answers of resolvers",
        "src/fast/mod.rs",
        " && packet.source_port != DNS_PORT {",
        " {",
    ),
    quick(flip(
        "endpoint-independence off",
        &["U1", "T1", "I1", "U7"],
        "src/nat/mod.rs",
        "let known = self.by_endpoint.find(hash, is_match);",
        "let known = self.by_endpoint.find(hash, is_match).filter(|_| false);",
    )),
    quick(flip(
        "inbound refreshes the UDP timer",
        &["U6", "S5"],
        "src/flows.rs",
        "                self.table.set_hold(id, Hold::Firm);\n",
        "                self.table.set_hold(id, Hold::Firm);\n                self.table.renew(now, id, old);\n",
    )),
    quick(flip(
        "source of clients not checked",
        &["S4"],
        "src/ingress/mod.rs",
        "if address != Some(header.source) &&",
        "if false &&",
    )),
    flip(
        "source of the uplink not checked",
        &["S4"],
        "src/ingress/mod.rs",
        "if clients.is_client(header.source) || network.is_own(header.source) {",
        "if false && (clients.is_client(header.source) || network.is_own(header.source)) {",
    ),
    flip(
        "time to live never ends",
        &["I8", "I5", "S6"],
        "src/egress.rs",
        "if packet.ttl <= 1 {",
        "if packet.ttl == 0 {",
    ),
    flip(
        "too big is cut in spite of DF",
        &["I8", "U12"],
        "src/egress.rs",
        "if len > caps.mtu && packet.is_dont_fragment {",
        "if len > caps.mtu && packet.is_dont_fragment && len == 0 {",
    ),
    flip(
        "overlapping fragments accepted",
        &["S3"],
        "src/fragments/datagram.rs",
        "if overlaps_before || overlaps_after || is_behind_end || is_second_end {",
        "if is_behind_end || is_second_end {",
    ),
    flip(
        "identification of the client kept behind our address",
        &["P2"],
        "src/defragment.rs",
        "        Verdict::Forward(PortId::Client(_)) => Naming::Kept,",
        "        Verdict::Forward(_) => Naming::Kept,",
    ),
    flip(
        "port class ignored",
        &["U3"],
        "src/nat/ports.rs",
        "if wanted < 1024 { (1..=1023, 1024..=65535) }",
        "if wanted > 65535u16 - 1 { (1..=1023, 1024..=65535) }",
    ),
    flip(
        "random ports sequential",
        &["P1"],
        "src/nat/ports.rs",
        "let start = first.checked_add(u16::try_from(random.below(span)).ok()?)?;",
        "let start = first.checked_add(u16::try_from(random.below(span) / span).ok()?)?;",
    ),
    flip(
        "source quench passed",
        &["S2"],
        "src/packet/icmp.rs",
        "            3 | 11 | 12 => Self::Error,",
        "            3 | 4 | 11 | 12 => Self::Error,",
    ),
    flip(
        "ICMPv6 packet too big dropped",
        &["S6", "S1", "U12", "I4"],
        "src/packet/icmp.rs",
        "            1..=4 => Self::Error,",
        "            1 | 3 | 4 => Self::Error,",
    ),
    flip(
        "source route passed",
        &["S8"],
        "src/packet/extensions.rs",
        "[LOOSE_ROUTE | STRICT_ROUTE, ..] => return Err(DropReason::SourceRoute),",
        "[LOOSE_ROUTE | STRICT_ROUTE, ..] if options.is_empty() => return Err(DropReason::SourceRoute),",
    ),
    flip(
        "ICMP checksum not checked",
        &["I3", "S6"],
        "src/packet/icmp.rs",
        "if icmp_sum(l4, (header.source, header.destination)).fold() != 0xffff {",
        "if icmp_sum(l4, (header.source, header.destination)).fold() == 0 {",
    ),
    flip(
        "inner packet of an ICMP error not rewritten",
        &["I3", "I4", "I5", "T7", "U11", "S6"],
        "src/nat/icmp_error.rs",
        "    rewrite_quote(bytes, quote, quoted)?;\n",
        "    if packet.l4 == 0 {\n        rewrite_quote(bytes, quote, quoted)?;\n    }\n",
    ),
    flip(
        "ICMP error ends its flow",
        &["U11", "T7", "I3", "I4", "I5", "S1", "S6"],
        "src/flows.rs",
        "        let live = found.and_then(|id| self.live(now, id));\n        let id = live.ok_or(DropReason::IcmpErrorUnrelated)?;\n",
        "        let live = found.and_then(|id| self.live(now, id));\n        let id = live.ok_or(DropReason::IcmpErrorUnrelated)?;\n        if let Some(flow) = self.table.get_mut(id) {\n            flow.deadline = now;\n        }\n",
    ),
    flip(
        "quota ignored",
        &["P3", "I7", "U5", "U10", "T5"],
        "src/conntrack/table.rs",
        "if owner.flows >= self.quota {",
        "if owner.flows >= self.quota && self.quota == 0 {",
    ),
    flip(
        "reset outside of the window believed",
        &["T6", "S7"],
        "src/conntrack/tcp.rs",
        "        if !is_believable {\n            return Step::OutOfWindow;",
        "        if !is_believable && segment.window == 12_345 {\n            return Step::OutOfWindow;",
    ),
    flip(
        "simultaneous open refused",
        &["T2"],
        "src/conntrack/tcp/opening.rs",
        "State::SynSent => !answers || self.acknowledges_syn(segment),",
        "State::SynSent => answers && self.acknowledges_syn(segment),",
    ),
    flip(
        "idle connections end after an hour",
        &["T5", "T6", "S5"],
        "src/conntrack/mod.rs",
        "Self::TcpEstablished => 7440,",
        "Self::TcpEstablished => 3600,",
    ),
    flip(
        "answered UDP ends after two minutes",
        &["U5", "U6", "S5"],
        "src/conntrack/mod.rs",
        "Self::UdpBothWays => 300,",
        "Self::UdpBothWays => 120,",
    ),
    flip(
        "ICMP queries wait for half a minute",
        &["I2"],
        "src/conntrack/mod.rs",
        "Self::IcmpQuery => 60,",
        "Self::IcmpQuery => 30,",
    ),
    flip(
        "flows not judged again after a rule edit",
        &["Q4"],
        "src/flows.rs",
        "        if flow.generation != host.generation {\n",
        "        if flow.generation.0 > host.generation.0 {\n",
    ),
    flip(
        "rules in force before their mark",
        &["Q4"],
        "src/control/mod.rs",
        "            Event::Changed { path } | Event::Removed { path } => self.on_key(path.as_str(), store),\n",
        "            Event::Changed { path } if path.as_str().starts_with(\"/qubes-firewall/\") => {\n                let ip = path.as_str().split('/').nth(2).unwrap_or_default();\n                if let Ok(tree) = qubesdb::Tree::new(ip) {\n                    self.on_committed(&tree, Ok(()), store);\n                }\n            }\n            Event::Changed { path } | Event::Removed { path } => self.on_key(path.as_str(), store),\n",
    ),
    flip(
        "DF cleared",
        &["P2", "U12", "I4", "I5"],
        "src/egress.rs",
        "    ip::decrement_ttl(bytes, L3);\n",
        "    ip::decrement_ttl(bytes, L3);\n    if packet.source.is_ipv4() {\n        let word = read_u16(bytes, L3 + 6);\n        write_u16(bytes, L3 + 6, word & !0x4000);\n        write_u16(bytes, L3 + 10, 0);\n        let sum = Sum::default().bytes(bytes.get(L3..packet.l4).unwrap_or_default());\n        write_u16(bytes, L3 + 10, sum.complete());\n    }\n",
    ),
    flip(
        "evidence outlives a commit",
        &["Q4"],
        "src/evidence.rs",
        "Standing::Accepted && flow.generation == host.generation;",
        "Standing::Accepted && flow.generation <= host.generation;",
    ),
    flip(
        "the gate asks nobody",
        &["Q3"],
        "src/conclude.rs",
        "            Verdict::Forward(port) if frame.is_accepted() => {",
        "            Verdict::Forward(port) => {",
    ),
];
