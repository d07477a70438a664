//! A firewall with one client, its rules in force and their names resolved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use firewall::uplink::{FamilyConfig, NetworkConfig, UplinkPort};
use firewall::{
    ClientId, ClientPort, Fate, Firewall, Frame, Instant, Limits, Mac, Offload, Origin, PortCaps,
    RulesState,
};
use rules::{CompiledSet, Family, RuleSet};

use crate::Page;
use crate::shapes::{self, End, Shape, Target};
use crate::wire;

const PAGE: usize = 4096;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 10);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 10);
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 6);
pub(crate) const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 6);
const NETVM: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 5);
const NETVM6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 5);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 139, 1, 1);

/// As a firewall with enough memory for a thousand names of one client has them.
const LIMITS: Limits = Limits {
    clients: 128,
    addresses: 2048,
    flows: 32_768,
    flows_per_client: 8192,
    fragment_bytes: 512 << 10,
};

pub(crate) struct World {
    pub(crate) firewall: Firewall,
    pub(crate) now: Instant,
    pub(crate) client: IpAddr,
    pub(crate) target: Target,
}

impl World {
    pub(crate) fn new(shape: &Shape, end: End, rules: usize) -> Result<Self, String> {
        let mut firewall = Firewall::new(LIMITS, [7; 32]).map_err(|error| error.to_string())?;
        firewall.set_network(network()).map_err(|error| error.to_string())?;
        let now = Instant::from_nanos(1_000_000_000);
        let uplink = UplinkPort { mac: Mac(wire::UPLINK_MAC), caps: PortCaps::PLAIN };
        firewall.set_uplink(now, Some(uplink));
        let (mac, caps) = (Mac(wire::CLIENT_MAC), PortCaps::PLAIN);
        let port = ClientPort { domid: 1, mac, ip4: Some(CLIENT), ip6: Some(CLIENT6), caps };
        firewall.attach_client(ClientId(0), port).map_err(|error| error.to_string())?;
        let client = if shape.is_v6 { IpAddr::V6(CLIENT6) } else { IpAddr::V4(CLIENT) };
        let set = set(shape, end, rules, Family::of(client))?;
        firewall.set_rules(now, client, set).map_err(|error| error.to_string())?;
        let target = match end {
            End::LastRule => (shape.target)(rules - 1),
            End::Policy | End::Refused => shape.miss,
        };
        let mut world = Self { firewall, now, client, target };
        world.resolve()?;
        Ok(world)
    }

    /// A packet of the client that begins a flow; the number is its source port or identifier.
    pub(crate) fn first_packet(&self, number: u16) -> Result<Page, String> {
        page(&wire::first(self.client, number, self.target))
    }

    /// Answers what the firewall's resolver asks.
    fn resolve(&mut self) -> Result<(), String> {
        self.firewall.on_timer(self.now);
        let mut bytes = vec![0; PAGE];
        loop {
            let Some(mut frame) = Frame::new(&mut bytes, 0, Offload::default()) else {
                return Err("no frame".into());
            };
            if self.firewall.poll_generate(self.now, &mut frame).is_none() {
                return Ok(());
            }
            let number = |label: &str| label.strip_prefix('n')?.parse().ok();
            let Some(reply) = wire::answer(frame.bytes(), |label| number(label).map(shapes::host))
            else {
                continue;
            };
            let mut page = page(&reply)?;
            let Some(mut frame) = Frame::new(&mut page.bytes, page.len, Offload::default()) else {
                return Err("no frame".into());
            };
            match self.firewall.handle(self.now, Origin::Uplink, &mut frame) {
                Fate::Consumed => {}
                other => return Err(format!("an answer of DNS was not taken: {other:?}")),
            }
        }
    }
}

pub(crate) fn page(frame: &[u8]) -> Result<Page, String> {
    let mut bytes = frame.to_vec();
    bytes.resize(PAGE, 0);
    Ok(Page { bytes, len: frame.len() })
}

/// All rules but one that is to match do the opposite of what is wanted: a wrong one would show.
fn set(shape: &Shape, end: End, rules: usize, family: Family) -> Result<RulesState, String> {
    let action = |n| match end {
        End::LastRule if n + 1 == rules => "accept",
        End::LastRule | End::Policy => "drop",
        End::Refused => "accept",
    };
    let policy = match end {
        End::LastRule | End::Refused => "drop",
        End::Policy => "accept",
    };
    let lines = (0..rules)
        .map(|n| (format!("{n:04}"), format!("action={} {}", action(n), (shape.line)(n))));
    let entries: Vec<(String, String)> = lines.chain([("policy".into(), policy.into())]).collect();
    let bytes = entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    let set = RuleSet::parse(family, bytes).and_then(CompiledSet::new);
    set.map(RulesState::Active).map_err(|error| error.to_string())
}

fn network() -> NetworkConfig {
    NetworkConfig {
        v4: FamilyConfig {
            address: Some(OWN),
            gateway: Some(NETVM),
            client_gateway: Some(OWN),
            dns: vec![DNS],
            client_dns: vec![DNS],
        },
        v6: FamilyConfig {
            address: Some(OWN6),
            gateway: Some(NETVM6),
            client_gateway: Some(OWN6),
            dns: Vec::new(),
            client_dns: Vec::new(),
        },
        connected: vec![CLIENT.into(), CLIENT6.into()],
        ..NetworkConfig::default()
    }
}
