//! Every way in which a packet's journey can end.

use crate::port::PortId;
use crate::stats::Counter;

/// What the platform does with the frame it handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// Send the frame, which was rewritten in place, through this port: forwarded, or turned into an answer that goes
    /// back to where the packet came from.
    Send(PortId),
    /// Send it through this port in the segments that [`crate::Frame::segments`] describes.
    Segments(PortId),
    /// Forget it.
    Drop(DropReason),
    /// It was for us and is used up.
    Consumed,
}

/// How the core decided. The pipeline turns it into a [`Fate`] and the counters into numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Goes on, rewritten, through this port.
    Forward(PortId),
    /// Was for us, and is now our answer to its sender.
    Answer(Answer),
    /// Was for us, is used up and counted.
    Consumed(Counter),
    /// Was for our resolver, and is used up.
    Resolved,
    /// A fragment, kept until its datagram is complete.
    Waits,
    /// Leaves in pieces, which `fragments` holds.
    InPieces,
    /// Ends here; its sender is told so, as far as the rate limit allows.
    Reject(DropReason, Refusal),
    /// Ends here in silence.
    Drop(DropReason),
}

impl Verdict {
    /// The same to a sender that must not learn of it.
    pub(crate) fn silently(self) -> Self {
        match self {
            Self::Reject(reason, _) => Self::Drop(reason),
            other => other,
        }
    }
}

impl From<DropReason> for Verdict {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// Answers to packets that were for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// ARP reply.
    Arp,
    /// Neighbour advertisement.
    Neighbour,
    /// ICMP echo reply.
    Echo,
}

/// How a sender is told that its packet ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// ICMP 3/13, communication administratively prohibited (RFC 1812, 5.2.7.1), or ICMPv6 1/1 (RFC 4443, 3.1).
    Prohibited,
    /// ICMP 3/10, host administratively prohibited, or ICMPv6 1/1: it was for the firewall itself.
    HostProhibited,
    /// ICMP 3/0, network unreachable, or ICMPv6 1/0: there is no uplink.
    NetUnreachable,
    /// ICMP 3/4, fragmentation needed, or ICMPv6 2/0, with the MTU of the way on.
    FragmentationNeeded(u16),
    /// ICMP 11/0, time to live exceeded in transit, or ICMPv6 3/0.
    TimeExceeded,
    /// TCP reset with the sequence number that the sender waits for.
    TcpReset,
}

macro_rules! drop_reasons {
    ($($variant:ident, $name:literal, $doc:literal;)*) => {
        /// Why a packet ended here. Each has one counter per port.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $(#[doc = $doc] $variant,)* }

        impl DropReason {
            /// All of them, in the order of a packet's path.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];
            /// Number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// Name in counters and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, in one sentence.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => $doc,)* }
            }
        }
    };
}

drop_reasons! {
    UnknownPort, "unknown-port", "The frame came from a client slot or an uplink that is not attached.";
    Scattered, "scattered", "A frame in several pages that is no super-frame, without all headers in the first, or for ourselves.";
    FrameTooShort, "frame-too-short", "The frame ends before the Ethernet header does.";
    LinkDestination, "link-destination", "The destination MAC address is not ours.";
    EtherType, "ether-type", "Neither IPv4 nor ARP nor IPv6.";
    Ipv6, "ipv6", "IPv6 is off: dom0 gave neither us nor the clients' gateway an address.";
    MappingUnknown, "mapping-unknown", "What dom0 said about the visible address of this client cannot be understood.";
    ArpMalformed, "arp-malformed", "Not a complete ARP packet for IPv4 over Ethernet.";
    ArpSpoofed, "arp-spoofed", "The ARP sender address does not belong to the sender.";
    ArpIgnored, "arp-ignored", "ARP that asks us nothing and answers nothing we asked: gratuitous, for others.";
    Ipv4Header, "ipv4-header", "Bad version or header length, or longer than its frame.";
    Ipv6Header, "ipv6-header", "Bad version, or longer than its frame.";
    Ipv4Checksum, "ipv4-checksum", "Wrong IPv4 header checksum.";
    SourceSpoofed, "source-spoofed", "From a client: not its address. From the uplink: an address of a client or of ours.";
    SourceMartian, "source-martian", "A source that cannot be answered: unspecified, loopback, link-local (IPv6), multicast, broadcast.";
    SourceRoute, "source-route", "IPv4 options that steer the route (LSRR, SSRR) or cannot be read; IPv6 routing headers of type 0 or not at their end.";
    ExtensionHeader, "extension-header", "IPv6 extension headers that cannot be followed to their end, or more than eight.";
    NdMalformed, "nd-malformed", "Neighbour discovery that fails the checks of RFC 4861.";
    NdIgnored, "nd-ignored", "Neighbour discovery that asks us nothing and answers nothing we asked.";
    FragmentMalformed, "fragment-malformed", "A fragment that no stack sends: empty, off the border of eight bytes, too far out, or a first one without its transport header.";
    FragmentOverlap, "fragment-overlap", "Fragments of one datagram overlap or contradict each other: none of it passes.";
    FragmentLimit, "fragment-limit", "No room for a datagram in fragments, or it has too many of them.";
    FragmentTimeout, "fragment-timeout", "The rest of a datagram in fragments did not come in time.";
    DestinationMartian, "destination-martian", "Loopback, link-local (IPv6) or multicast destination; unspecified or broadcast (IPv4).";
    NotOurAddress, "not-our-address", "From the uplink, not for our address.";
    TransportHeader, "transport-header", "TCP, UDP or ICMP header cut off or contradicting itself.";
    TcpFlags, "tcp-flags", "A combination of TCP flags that no stack sends.";
    IcmpChecksum, "icmp-checksum", "Wrong ICMP checksum.";
    IcmpForbidden, "icmp-forbidden", "ICMP source quench or redirect; ICMPv6 that is for one link or site only, router discovery and redirects included.";
    BlankIllegal, "blank-illegal", "A partial checksum on something that is neither TCP nor UDP.";
    GsoIllegal, "gso-illegal", "A super-frame that contradicts itself: not TCP of the stated family, without a partial checksum, of another length, or of less than two segments.";
    LocalSilent, "local-silent", "For the firewall itself, where it keeps silent: DHCP, ICMP other than echo.";
    LocalService, "local-service", "For the firewall itself, which offers no service: answered with ICMP 3/10, ICMPv6 1/1.";
    ClientIsolation, "client-isolation", "From one client to another.";
    ClientAbsent, "client-absent", "To a client that it may be sent to, which is not attached.";
    NoRules, "no-rules", "No rules are known for this source (yet).";
    NoResolver, "no-resolver", "DNS to an address that clients know, while we have no resolver ourselves.";
    NoUplink, "no-uplink", "There is no uplink, or it has no address.";
    TtlExpired, "ttl-expired", "The time to live ends here.";
    NotAFirstPacket, "not-a-first-packet", "No known flow, and such a packet cannot start one.";
    IcmpErrorUnrelated, "icmp-error-unrelated", "An ICMP error about no flow that is known.";
    PathMtu, "path-mtu", "An ICMP report of a path MTU that is too small to be true, or about a TCP segment that is not in flight.";
    RulesRefused, "rules-refused", "The rules of this source cannot be understood: everything is rejected.";
    NameUnresolved, "name-unresolved", "A drop rule of this source has a host name that is not resolved: it might match, so the flow is rejected.";
    RuleRejected, "rule-rejected", "The rules of this source reject the flow.";
    FlowForbidden, "flow-forbidden", "The flow was accepted once; the current rules forbid it.";
    QuotaExceeded, "quota-exceeded", "The client holds as many established flows as it may.";
    FlowTableFull, "flow-table-full", "No room for a new flow.";
    PortsExhausted, "ports-exhausted", "No port is free on our address.";
    NatAmbiguous, "nat-ambiguous", "A protocol without ports, in use by another client with the same destination.";
    TcpOutOfWindow, "tcp-out-of-window", "A TCP segment from outside that the client's window excludes.";
    TooBig, "too-big", "Larger than the way on can carry.";
    GsoUnsupported, "gso-unsupported", "A super-frame for a port that cannot take it, of more segments than it is cut up into.";
    DnsAnswer, "dns-answer", "From a DNS server to a port of our own resolver, and not what was asked there.";
    NoFlow, "no-flow", "From the uplink, part of no flow.";
    SegmentsLost, "segments-lost", "No memory for a segment of a super-frame that has to be cut up; each is counted.";
    WithoutAccept, "without-accept", "About to leave without an accept, which is a fault of the firewall: must stay 0.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_positions_match() {
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
            assert_eq!(DropReason::ALL.iter().filter(|r| r.name() == reason.name()).count(), 1);
        }
    }
}
