//! A firewall with one client and an uplink, fed from a capture: the core that the image runs, with the clock of the
//! capture.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use firewall::stats::Counter;
use firewall::uplink::{FamilyConfig, NetworkConfig, UplinkPort};
use firewall::{
    ClientId, ClientPort, DropReason, Fate, Firewall, Frame, Instant, Mac, Offload, Origin,
    PortCaps, PortId, RulesState,
};
use rules::DecidedBy;

use super::packet;
use super::{Setting, dns};
use crate::engine::KnownNames;

const ID: ClientId = ClientId(0);
const MAC_CLIENT: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x0a]);
const MAC_UPLINK: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x06]);
const ETHERNET_BYTES: usize = 14;
const PAGE_BYTES: usize = ETHERNET_BYTES + (1 << 16);
/// Nobody's address (RFC 7600, 6.1; RFC 6666): a capture that has it would have it for ours.
pub(crate) const OWN4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
pub(crate) const OWN6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);
/// Captures have super-frames that their machine cut up after it captured them: no port refuses them.
const CAPS: PortCaps = PortCaps { mtu: u16::MAX, ..PortCaps::PLAIN };
/// The capture's clock begins here: rules and names are settled before.
const START: Instant = Instant::from_nanos(1_000_000_000);
/// Frames of its own that the firewall may send at once.
const MAX_GENERATED: usize = 4096;

/// What became of a packet of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// Left through the uplink.
    Accept,
    /// Refused, with an answer as far as the rate limit allows.
    Reject(DropReason),
    /// Silence.
    Drop(DropReason),
    /// Refused because the rules cannot be understood.
    ParseError,
    /// The firewall itself answered: a ping of the gateway.
    Answered,
    /// A fragment that waits for the rest of its datagram, or a message to the firewall itself.
    Kept,
}

/// The same, and what is known about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) end: End,
    /// What in the rules decided, if they were asked.
    pub(crate) by: Option<DecidedBy>,
    /// Port or identifier on our address, if it left with one.
    pub(crate) outside_port: Option<u16>,
}

/// The firewall of a replay.
pub(crate) struct World {
    firewall: Firewall,
    now: Instant,
    /// Time of the first packet.
    begin_nanos: Option<u64>,
    names: KnownNames,
    page: Vec<u8>,
}

impl World {
    /// The rules are in force and names are resolved, as far as they can be.
    pub(crate) fn new(setting: &Setting, rules: RulesState) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let mut firewall =
            Firewall::new(setting.limits, [7; 32]).map_err(|error| failed(&error))?;
        firewall.set_network(network(setting)).map_err(|error| failed(&error))?;
        let now = START;
        firewall.set_uplink(now, Some(UplinkPort { mac: MAC_UPLINK, caps: CAPS }));
        let (ip4, ip6) = match setting.client {
            IpAddr::V4(v4) => (Some(v4), None),
            IpAddr::V6(v6) => (None, Some(v6)),
        };
        let port = ClientPort { domid: 1, mac: MAC_CLIENT, ip4, ip6, caps: CAPS };
        firewall.attach_client(ID, port).map_err(|error| failed(&error))?;
        firewall.set_rules(now, setting.client, rules).map_err(|error| failed(&error))?;
        let page = vec![0; PAGE_BYTES];
        let names = setting.names.clone();
        let mut world = Self { firewall, now, begin_nanos: None, names, page };
        world.pump();
        Ok(world)
    }

    /// Sends an IP packet of the client.
    pub(crate) fn client_sends(&mut self, nanos: Option<u64>, packet: &[u8]) -> Outcome {
        self.advance(nanos);
        let (drops, sent) = (self.drops(), self.sent());
        let fate = self.handle(Origin::Client(ID), packet);
        let by = self.firewall.decided_by();
        let outside_port = match fate {
            Some(Fate::Send(PortId::Uplink)) => self.outside_port(),
            _ => None,
        };
        // Pieces of a datagram leave one after the other.
        self.pump();
        let refused = self.drops().into_iter().zip(drops).find(|(new, old)| new.1 > old.1);
        let refused = refused.map(|((reason, _), _)| reason);
        let end = match (fate, refused) {
            (_, Some(DropReason::RulesRefused)) => End::ParseError,
            (_, Some(reason)) if is_by_rules(reason) => End::Reject(reason),
            (Some(Fate::Send(PortId::Client(_))), Some(reason)) => End::Reject(reason),
            (Some(Fate::Send(PortId::Client(_))), None) => End::Answered,
            (Some(Fate::Send(PortId::Uplink) | Fate::Segments(_)), _) => End::Accept,
            (Some(Fate::Drop(reason)), _) => End::Drop(reason),
            (Some(Fate::Consumed) | None, Some(reason)) => End::Drop(reason),
            (Some(Fate::Consumed) | None, None) if self.sent() > sent => End::Accept,
            (Some(Fate::Consumed) | None, None) => End::Kept,
        };
        // Rules never end in silence: something else decided, whatever they said.
        let by = by.filter(|_| !matches!(end, End::Drop(_)));
        Outcome { end, by, outside_port }
    }

    /// Brings an IP packet from outside, addressed to the client: it arrives at our address, on this port.
    pub(crate) fn uplink_brings(&mut self, nanos: Option<u64>, packet: &mut [u8], port: u16) {
        self.advance(nanos);
        let Some(seen) = packet::look(packet) else { return };
        let own = if seen.ends.source.is_ipv4() { OWN4.into() } else { OWN6.into() };
        if packet::readdress(packet, &seen, own, port).is_some() {
            let _ = self.handle(Origin::Uplink, packet);
            self.pump();
        }
    }

    /// Time never goes back; a packet without a time comes when the one before it came.
    fn advance(&mut self, nanos: Option<u64>) {
        if let Some(nanos) = nanos {
            let begin = *self.begin_nanos.get_or_insert(nanos);
            let now = START.after(Duration::from_nanos(nanos.saturating_sub(begin)));
            self.now = self.now.max(now);
        }
        self.pump();
    }

    /// Lets the firewall do what is due, and answers its questions about names.
    fn pump(&mut self) {
        self.firewall.on_timer(self.now);
        for _ in 0..MAX_GENERATED {
            let Some(mut frame) = Frame::new(&mut self.page, 0, Offload::default()) else { return };
            match self.firewall.poll_generate(self.now, &mut frame) {
                None => return,
                Some(PortId::Client(_)) => {}
                Some(PortId::Uplink) => {
                    let question = frame.bytes().get(ETHERNET_BYTES..).unwrap_or_default();
                    if let Some(answer) = dns::answer(question, &self.names) {
                        let _ = self.handle(Origin::Uplink, &answer);
                    }
                }
            }
        }
    }

    /// `None` for a packet that no frame can hold.
    fn handle(&mut self, origin: Origin, packet: &[u8]) -> Option<Fate> {
        let (to, from) = match origin {
            Origin::Client(_) => (Mac::GATEWAY, MAC_CLIENT),
            Origin::Uplink => (MAC_UPLINK, Mac::GATEWAY),
        };
        let is_v6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let ether_type = if is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
        let bytes = [&to.0[..], &from.0, &ether_type, packet].concat();
        self.page.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        let mut frame = Frame::new(&mut self.page, bytes.len(), Offload::default())?;
        Some(self.firewall.handle(self.now, origin, &mut frame))
    }

    /// Source port of the frame that was handled last.
    fn outside_port(&self) -> Option<u16> {
        let seen = packet::look(self.page.get(ETHERNET_BYTES..)?)?;
        Some(seen.ends.source_port)
    }

    fn drops(&self) -> Vec<(DropReason, u64)> {
        let stats = self.firewall.stats().client(ID);
        stats.map(|stats| stats.drops().collect()).unwrap_or_default()
    }

    fn sent(&self) -> u64 {
        self.firewall.stats().uplink().get(Counter::SentFrames)
    }
}

/// Whether the rules are what refuses a packet, even where the rate limit keeps the answer back.
fn is_by_rules(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::RuleRejected | DropReason::NameUnresolved | DropReason::FlowForbidden
    )
}

fn network(setting: &Setting) -> NetworkConfig {
    fn family<A: Copy>(
        setting: &Setting,
        own: A,
        pick: fn(IpAddr) -> Option<A>,
    ) -> FamilyConfig<A> {
        let dns: Vec<A> = setting.dns_servers.iter().copied().filter_map(pick).collect();
        FamilyConfig {
            address: Some(own),
            gateway: None,
            client_gateway: setting.gateway.and_then(pick),
            client_dns: dns.clone(),
            dns,
        }
    }
    let v4 = |address| if let IpAddr::V4(v4) = address { Some(v4) } else { None };
    let v6 = |address| if let IpAddr::V6(v6) = address { Some(v6) } else { None };
    let connected = [setting.client].into_iter().chain(setting.other_clients.iter().copied());
    NetworkConfig {
        v4: family(setting, OWN4, v4),
        v6: family(setting, OWN6, v6),
        connected: connected.collect(),
        ..NetworkConfig::default()
    }
}
