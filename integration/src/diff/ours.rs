//! Our side: the whole core, one packet after the other.

use std::net::IpAddr;
use std::time::Duration;

use firewall::uplink::{FamilyConfig, NetworkConfig, UplinkPort};
use firewall::{
    ClientId, ClientPort, Fate, Firewall, Frame, Instant, Limits, Mac, Offload, Origin, PortCaps,
    PortId, RulesState,
};
use rules::{CompiledSet, RuleSet};

use super::model::{Family, Packet, Plan, Side, UPLINK_MTU, Verdict, plan};
use super::{names, packet};
use crate::error::{Error, Result};
use crate::fail;

const LIMITS: Limits = Limits {
    clients: 2,
    addresses: 8,
    flows: 1024,
    flows_per_client: 512,
    fragment_bytes: 256 << 10,
};
/// Time between two packets: more than our limit on ICMP errors asks for.
const STEP: Duration = Duration::from_millis(10);

/// Our firewall with clients A and B.
pub(super) struct Ours {
    firewall: Firewall,
    plan: Plan,
    now: Instant,
    /// Time from one packet to the next.
    pub(super) step: Duration,
}

impl Ours {
    /// A new firewall whose client A has these entries.
    pub(super) fn new(family: Family, entries: &[(String, String)]) -> Result<Self> {
        let plan = plan(family);
        let mut firewall = Firewall::new(LIMITS, [7; 32]).map_err(|error| failed(&error))?;
        firewall.set_network(network(&plan)).map_err(|error| failed(&error))?;
        let now = Instant::from_nanos(1_000_000_000);
        let caps = PortCaps { mtu: UPLINK_MTU, ..PortCaps::PLAIN };
        let port = UplinkPort { mac: Mac(packet::MAC_UPLINK), caps };
        firewall.set_uplink(now, Some(port));
        let clients = [(plan.a, packet::MAC_A), (plan.b, packet::MAC_B)];
        for (slot, (address, mac)) in (0_u16..).zip(clients) {
            let (ip4, ip6) = match address {
                IpAddr::V4(v4) => (Some(v4), None),
                IpAddr::V6(v6) => (None, Some(v6)),
            };
            let port = ClientPort { domid: slot, mac: Mac(mac), ip4, ip6, caps: PortCaps::PLAIN };
            firewall.attach_client(ClientId(slot), port).map_err(|error| failed(&error))?;
        }
        let open = [("0000".into(), "action=accept".into()), ("policy".into(), "drop".into())];
        set_rules(&mut firewall, now, plan.a, entries)?;
        set_rules(&mut firewall, now, plan.b, &open)?;
        let mut ours = Self { firewall, plan, now, step: STEP };
        ours.resolve()?;
        Ok(ours)
    }

    /// Answers the questions of the firewall's resolver, so that all names that exist are known.
    fn resolve(&mut self) -> Result<()> {
        let family = Family::of(self.plan.a);
        self.firewall.on_timer(self.now);
        let mut page = [0; 4096];
        loop {
            let size = page.len();
            let Some(mut frame) = Frame::new(&mut page, size, Offload::default()) else {
                return Ok(());
            };
            let Some(_) = self.firewall.poll_generate(self.now, &mut frame) else { return Ok(()) };
            if let Some(answer) = names::answer(frame.bytes(), family) {
                match self.handle(Origin::Uplink, &answer)? {
                    (Fate::Consumed, _) => {}
                    (fate, _) => fail!("our firewall does not take an answer of DNS: {fate:?}"),
                }
            }
        }
    }

    /// What becomes of a packet.
    pub(super) fn verdict(&mut self, packet: &Packet) -> Result<Verdict> {
        let origin = match packet.side {
            Side::A => Origin::Client(ClientId(0)),
            Side::B => Origin::Client(ClientId(1)),
            Side::Uplink => Origin::Uplink,
        };
        self.frame(origin, &packet::frame(packet, 1))
    }

    /// What becomes of a frame with the number 1.
    pub(super) fn frame(&mut self, origin: Origin, bytes: &[u8]) -> Result<Verdict> {
        self.now = self.now.after(self.step);
        let (fate, bytes) = self.handle(origin, bytes)?;
        let out = match fate {
            Fate::Send(PortId::Uplink) => Side::Uplink,
            Fate::Send(PortId::Client(ClientId(0))) => Side::A,
            Fate::Send(PortId::Client(_)) => Side::B,
            Fate::Drop(_) | Fate::Consumed => return Ok(Verdict::Drop),
            Fate::Segments(_) => fail!("no super-frame came in, and one is to leave"),
        };
        match packet::observe(&bytes, out, &self.plan) {
            Some((1, verdict)) => Ok(verdict),
            other => Err(Error::Failed(format!("our firewall sent something else: {other:?}"))),
        }
    }

    /// Gives the rules of client A new entries.
    pub(super) fn edit(&mut self, entries: &[(String, String)]) -> Result<()> {
        set_rules(&mut self.firewall, self.now, self.plan.a, entries)
    }

    /// Takes the rules of client A away, as if dom0 had not written any.
    pub(super) fn forget_rules(&mut self) -> Result<()> {
        let gone = self.firewall.set_rules(self.now, self.plan.a, RulesState::None);
        gone.map(drop).map_err(|error| failed(&error))
    }

    fn handle(&mut self, origin: Origin, bytes: &[u8]) -> Result<(Fate, Vec<u8>)> {
        let mut page = [0; 4096];
        let place =
            page.get_mut(..bytes.len()).ok_or_else(|| Error::Failed("frame too long".into()))?;
        place.copy_from_slice(bytes);
        let Some(mut frame) = Frame::new(&mut page, bytes.len(), Offload::default()) else {
            return Err(Error::Failed("frame too long".into()));
        };
        let fate = self.firewall.handle(self.now, origin, &mut frame);
        if self.firewall.stats().without_accept() > 0 {
            fail!("a frame was about to leave without an accept");
        }
        Ok((fate, frame.bytes().to_vec()))
    }
}

fn set_rules(
    firewall: &mut Firewall,
    now: Instant,
    address: IpAddr,
    entries: &[(String, String)],
) -> Result<()> {
    let bytes = entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    let parsed = RuleSet::parse(rules::Family::of(address), bytes).and_then(CompiledSet::new);
    let state = parsed.map_or(RulesState::Refused, RulesState::Active);
    firewall.set_rules(now, address, state).map(drop).map_err(|error| failed(&error))
}

fn failed(error: &dyn std::error::Error) -> Error {
    Error::Failed(format!("our firewall cannot be set up: {error}"))
}

fn network(plan: &Plan) -> NetworkConfig {
    let mut config =
        NetworkConfig { connected: vec![plan.a, plan.b, plan.absent], ..Default::default() };
    fn family<A>(plan: &Plan, pick: impl Fn(IpAddr) -> Option<A>) -> FamilyConfig<A> {
        FamilyConfig {
            address: pick(plan.own),
            gateway: pick(plan.netvm),
            client_gateway: pick(plan.client_gateway),
            dns: plan.own_dns.into_iter().filter_map(&pick).collect(),
            client_dns: plan.client_dns.into_iter().filter_map(&pick).collect(),
        }
    }
    match plan.a {
        IpAddr::V4(_) => {
            config.v4 = family(plan, |ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None });
        }
        IpAddr::V6(_) => {
            config.v6 = family(plan, |ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None });
        }
    }
    config
}
