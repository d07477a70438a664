//! Rule sets drawn from a seed: the same seed and number give the same set. `packets` draws what meets them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use super::model::{Family, Fault, HostName, Packet, Plan, Proto, Rule, Set, To, plan};
use super::packets::Packets;

const PORTS: &[u16] = &[0, 1, 22, 52, 53, 54, 67, 68, 80, 443, 444, 1023, 1024, 8080, 65534, 65535];

/// One set with its packets.
pub(super) fn case(family: Family, seed: u64, number: u64, packets: usize) -> (Set, Vec<Packet>) {
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let set = set(&mut rng, family);
    let packets = Packets::draw(&mut rng, &set, packets);
    (set, packets)
}

pub(super) fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> Option<T> {
    rng.choice(from).copied()
}

fn set(rng: &mut Rng, family: Family) -> Set {
    let mut key = 0_u16;
    let count = if rng.u8(..20) == 0 { rng.usize(30..120) } else { rng.usize(0..8) };
    let rules = (0..count)
        .map(|_| {
            key = key.saturating_add(if rng.u8(..4) == 0 { rng.u16(1..9) } else { 1 });
            (key, rule(rng, family))
        })
        .collect();
    let fault = if rng.u8(..16) == 0 { pick(rng, &Fault::ALL) } else { None };
    Set { family, rules, policy_accepts: rng.u8(..3) == 0, fault }
}

fn rule(rng: &mut Rng, family: Family) -> Rule {
    let mut rule = Rule { spelling: rng.u32(..), ..Rule::all(rng.u8(..5) < 3) };
    rule.to = match rng.u8(..8) {
        0..=3 => Some(net(rng, family)),
        4 => Some(To::Name(HostName(rng.u8(..HostName::COUNT)))),
        _ => None,
    };
    rule.proto =
        pick(rng, &[None, Some(Proto::Tcp), Some(Proto::Udp), Some(Proto::Icmp)]).flatten();
    let is_icmp = rule.proto == Some(Proto::Icmp);
    match rng.u8(..8) {
        0..=2 if !is_icmp => {
            let [one, two] = [port(rng), port(rng)];
            rule.ports = Some(if rng.bool() { (one, one) } else { (one.min(two), one.max(two)) });
        }
        3 if !is_icmp => {
            rule.dns = true;
            rule.ports = pick(rng, &[None, None, Some((53, 53)), Some((80, 80))]).flatten();
        }
        4 | 5 if is_icmp || rule.proto.is_none() => rule.icmp_type = Some(icmp_type(rng, family)),
        _ => {}
    }
    rule
}

fn net(rng: &mut Rng, family: Family) -> To {
    let longest = if family == Family::V4 { 32 } else { 128 };
    let length = match rng.u8(..4) {
        0 => longest,
        1 => rng.u8(0..=longest),
        _ => longest - rng.u8(..12),
    };
    To::Net(target(rng, &plan(family)), length)
}

pub(super) fn port(rng: &mut Rng) -> u16 {
    if rng.u8(..4) == 0 { rng.u16(..) } else { pick(rng, PORTS).unwrap_or(80) }
}

pub(super) fn icmp_type(rng: &mut Rng, family: Family) -> u8 {
    let common: &[u8] = match family {
        Family::V4 => &[8, 8, 8, 13, 15, 17, 0, 3, 42],
        Family::V6 => &[128, 128, 128, 128, 129, 1, 100, 200],
    };
    if rng.u8(..8) == 0 { rng.u8(..) } else { pick(rng, common).unwrap_or(8) }
}

/// An address beyond the uplink, one that rules and packets often share.
pub(super) fn target(rng: &mut Rng, plan: &Plan) -> IpAddr {
    let low = rng.u8(..=255);
    match (plan.a, rng.u8(..8)) {
        (_, 0) => pick(rng, &plan.client_dns).unwrap_or(plan.netvm),
        (_, 1) => pick(rng, &plan.own_dns).unwrap_or(plan.netvm),
        (_, 2) => plan.netvm,
        (IpAddr::V4(_), 3) => {
            let first = pick(rng, &[0, 1, 9, 100, 126, 191, 223, 240, 255]).unwrap_or(9);
            Ipv4Addr::new(first, rng.u8(1..255), rng.u8(..), low).into()
        }
        (IpAddr::V4(_), 4) => Ipv4Addr::new(203, 0, 113, low).into(),
        (IpAddr::V4(_), _) => Ipv4Addr::new(198, 51, 100, low % 16).into(),
        (IpAddr::V6(_), 3) => {
            Ipv6Addr::new(0x2000 | rng.u16(..0x1000), rng.u16(..), 0, 0, 0, 0, 0, low.into()).into()
        }
        (IpAddr::V6(_), _) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, (low % 16).into()).into(),
    }
}

/// Whether an address lies beyond the uplink and is a receiver's.
pub(super) fn is_remote(address: IpAddr, plan: &Plan) -> bool {
    let is_ours = [plan.a, plan.b, plan.absent, plan.own, plan.client_gateway].contains(&address);
    let is_unicast = match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => matches!(v6.segments(), [0x2000..=0x3fff | 0xfd09, ..]),
    };
    is_unicast && !is_ours
}
