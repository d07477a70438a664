//! A firewall with clients, their rules in force and the names in them resolved.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use firewall::uplink::{FamilyConfig, NetworkConfig, UplinkPort};
use firewall::{
    ClientId, ClientPort, Fate, Firewall, Frame, Instant, Limits, Mac, Offload, PortCaps,
    RulesState,
};
use rules::{CompiledSet, Family, RuleSet};

use crate::shapes::{self, End, Shape, Target};
use crate::{Fates, Page, by_uplink, through, wire};

pub(crate) const PAGE: usize = 4096;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 10);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 10);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 6);
const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 6);
const NETVM: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 5);
const NETVM6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 5);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 139, 1, 1);

/// As a firewall with enough memory for a thousand names of one client has them.
pub(crate) const LIMITS: Limits = Limits {
    clients: 128,
    addresses: 2048,
    flows: 32_768,
    flows_per_client: 8192,
    fragment_bytes: 512 << 10,
};

/// The firewall and what its clients do.
pub struct World {
    /// The firewall.
    pub firewall: Firewall,
    /// The time.
    pub now: Instant,
    pub(crate) target: Target,
    is_v6: bool,
}

impl World {
    /// With one client.
    ///
    /// # Errors
    /// When the rules cannot be put into force.
    pub fn new(shape: &Shape, end: End, rules: usize) -> Result<Self, String> {
        Self::with(LIMITS, 1, shape, end, rules)
    }

    /// With several clients of the same rules.
    ///
    /// # Errors
    /// When the rules cannot be put into force.
    pub fn with(
        limits: Limits,
        clients: u16,
        shape: &Shape,
        end: End,
        rules: usize,
    ) -> Result<Self, String> {
        let mut firewall = Firewall::new(limits, [7; 32]).map_err(|error| error.to_string())?;
        let clients = || (0..clients).map(ClientId);
        firewall.set_network(network(clients())).map_err(|error| error.to_string())?;
        let now = Instant::from_nanos(1_000_000_000);
        let uplink = UplinkPort { mac: Mac(wire::UPLINK_MAC), caps: PortCaps::PLAIN };
        firewall.set_uplink(now, Some(uplink));
        let target = match (end, rules.checked_sub(1)) {
            (End::LastRule, Some(last)) => (shape.target)(last),
            (End::LastRule, None) => return Err("no rule is the last one".into()),
            (End::Policy | End::Refused, _) => shape.miss,
        };
        let mut world = Self { firewall, now, target, is_v6: shape.is_v6 };
        for client in clients() {
            world.attach(client)?;
            let address = world.address(client);
            let set = set(shape, end, rules, Family::of(address))?;
            world.firewall.set_rules(now, address, set).map_err(|error| error.to_string())?;
            match world.firewall.names_left_out() {
                0 => {}
                names => return Err(format!("no room for {names} names")),
            }
        }
        world.resolve()?;
        Ok(world)
    }

    /// A packet of the first client that begins a flow; the number is its source port or identifier.
    #[must_use]
    pub fn first_packet(&self, number: u16) -> Page {
        let client = ClientId(0);
        Page::new(client, &wire::first(client, self.address(client), number, self.target))
    }

    /// A client's address of the family that the rules are about.
    #[must_use]
    pub fn address(&self, client: ClientId) -> IpAddr {
        let (v4, v6) = addresses(client);
        if self.is_v6 { IpAddr::V6(v6) } else { IpAddr::V4(v4) }
    }

    /// The address that servers see in the place of a client's.
    pub(crate) fn own(&self) -> IpAddr {
        if self.is_v6 { IpAddr::V6(OWN6) } else { IpAddr::V4(OWN) }
    }

    /// Has a client without flows: it leaves and comes back; its rules stay.
    ///
    /// # Errors
    /// When it cannot come back.
    pub fn end_flows_of(&mut self, client: ClientId) -> Result<(), String> {
        self.firewall.detach_client(client);
        self.attach(client)
    }

    fn attach(&mut self, client: ClientId) -> Result<(), String> {
        let (v4, v6) = addresses(client);
        let (mac, caps) = (Mac(wire::mac_of(client)), PortCaps::PLAIN);
        let port = ClientPort { domid: client.0 + 1, mac, ip4: Some(v4), ip6: Some(v6), caps };
        self.firewall.attach_client(client, port).map_err(|error| error.to_string())
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
            let mut pages = [Page::new(ClientId(0), &reply)];
            let fates: Fates = through(self, by_uplink, &mut pages);
            if fates != [Some(Fate::Consumed)] {
                return Err(format!("an answer of DNS was not taken: {fates:?}"));
            }
        }
    }
}

fn addresses(client: ClientId) -> (Ipv4Addr, Ipv6Addr) {
    let (v4, v6) = (CLIENT.to_bits(), CLIENT6.to_bits());
    (Ipv4Addr::from_bits(v4 + u32::from(client.0)), Ipv6Addr::from_bits(v6 + u128::from(client.0)))
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

fn network(clients: impl Iterator<Item = ClientId>) -> NetworkConfig {
    let both = |client| {
        <[IpAddr; 2]>::from({
            let (v4, v6) = addresses(client);
            (v4.into(), v6.into())
        })
    };
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
        connected: clients.flat_map(both).collect(),
        ..NetworkConfig::default()
    }
}
