//! Rule sets and packets that meet them, drawn from a seed: the same seed and number give the same set.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use super::model::{Family, Fault, Packet, Plan, Proto, Rule, Set, Side, Upper, plan};

const PORTS: &[u16] = &[0, 1, 22, 52, 53, 54, 67, 68, 80, 443, 444, 1023, 1024, 8080, 65534, 65535];
/// Flags of a first segment: those that start a flow, and those that no stack or no unknown flow has.
const FIRST: &[u8] = &[0x02, 0xc2, 0x10, 0x18];
const NOT_FIRST: &[u8] = &[0x00, 0x01, 0x03, 0x04, 0x06, 0x08, 0x11, 0x12, 0x14, 0x29, 0x3f];
/// GRE and ESP. An SCTP packet would have to be a whole INIT to be a first one. Linux looks for a checksum in protocols that it does not know before it answers a rejected
/// packet, and so keeps silent about them; we answer.
const OTHERS: &[u8] = &[47, 50];

/// One set with its packets.
pub(super) fn case(family: Family, seed: u64, number: u64, packets: usize) -> (Set, Vec<Packet>) {
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let set = set(&mut rng, family);
    let first = (number.wrapping_mul(packets as u64) % 50_000) as u16;
    let packets = (0..packets)
        .map(|n| packet(&mut rng, &set, 2_000_u16.wrapping_add(first).wrapping_add(n as u16)))
        .collect();
    (set, packets)
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> Option<T> {
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
    if rng.u8(..2) == 0 {
        let longest = if family == Family::V4 { 32 } else { 128 };
        let length = match rng.u8(..4) {
            0 => longest,
            1 => rng.u8(0..=longest),
            _ => longest - rng.u8(..12),
        };
        rule.to = Some((target(rng, &plan(family)), length));
    }
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

fn port(rng: &mut Rng) -> u16 {
    if rng.u8(..4) == 0 { rng.u16(..) } else { pick(rng, PORTS).unwrap_or(80) }
}

fn icmp_type(rng: &mut Rng, family: Family) -> u8 {
    let common: &[u8] = match family {
        Family::V4 => &[8, 8, 8, 13, 15, 17, 0, 3, 42],
        Family::V6 => &[128, 128, 128, 129, 1, 130],
    };
    if rng.u8(..8) == 0 { rng.u8(..) } else { pick(rng, common).unwrap_or(8) }
}

/// An address beyond the uplink, one that rules and packets often share.
fn target(rng: &mut Rng, plan: &Plan) -> IpAddr {
    let low = rng.u8(..=255);
    match (plan.a, rng.u8(..8)) {
        (_, 0) => pick(rng, &plan.client_dns).unwrap_or(plan.netvm),
        (_, 1) => pick(rng, &plan.own_dns).unwrap_or(plan.netvm),
        (_, 2) => plan.netvm,
        (IpAddr::V4(_), 3) => Ipv4Addr::new(rng.u8(1..126), rng.u8(..), rng.u8(..), low).into(),
        (IpAddr::V4(_), 4) => Ipv4Addr::new(203, 0, 113, low).into(),
        (IpAddr::V4(_), _) => Ipv4Addr::new(198, 51, 100, low % 16).into(),
        (IpAddr::V6(_), 3) => {
            Ipv6Addr::new(0x2000 | rng.u16(..0x1000), rng.u16(..), 0, 0, 0, 0, 0, low.into()).into()
        }
        (IpAddr::V6(_), _) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, (low % 16).into()).into(),
    }
}

fn packet(rng: &mut Rng, set: &Set, unique: u16) -> Packet {
    let plan = plan(set.family);
    let side = match rng.u8(..16) {
        0 => Side::B,
        1 => Side::Uplink,
        _ => Side::A,
    };
    let source = match side {
        Side::A => plan.a,
        Side::B => plan.b,
        Side::Uplink => target(rng, &Plan { own_dns: [plan.netvm; 2], ..plan }),
    };
    let mut packet = Packet {
        side,
        source,
        destination: target(rng, &plan),
        ttl: 64,
        upper: body(rng, set.family, unique),
    };
    if let Some((_, rule)) = rng.choice(&set.rules).filter(|_| rng.u8(..4) > 0) {
        aim(rng, &mut packet, rule, unique);
    }
    match (side, rng.u8(..64)) {
        (Side::Uplink, 0..=23) => packet.destination = plan.own,
        (Side::Uplink, 24..=39) => packet.destination = plan.a,
        (Side::Uplink, 40..=47) => packet.destination = plan.absent,
        (Side::Uplink, 48..=55) => (packet.source, packet.destination) = (plan.a, plan.own),
        (Side::Uplink, _) => (packet.source, packet.destination) = (plan.absent, plan.own),
        (_, 0..=2) => packet.source = if side == Side::A { plan.b } else { plan.a },
        (_, 3) => packet.source = target(rng, &plan),
        (_, 4 | 5) => packet.destination = if side == Side::A { plan.b } else { plan.a },
        (_, 6 | 7) => local(&mut packet, plan.own),
        (_, 8) => local(&mut packet, plan.client_gateway),
        (_, 9) => packet.destination = nowhere(rng, set.family),
        // We send no error about ICMP that is not a query, Linux does about all but errors.
        (_, 10) if !matches!(packet.upper, Upper::Icmp { .. }) => packet.ttl = 1,
        (_, 11..=15) if matches!(packet.upper, Upper::Tcp { .. }) => {
            if let Upper::Tcp { flags, .. } = &mut packet.upper {
                *flags = pick(rng, NOT_FIRST).unwrap_or(0);
            }
        }
        _ => {}
    }
    restrict(&mut packet, unique);
    packet
}

/// For the firewall itself.
fn local(packet: &mut Packet, own: IpAddr) {
    packet.destination = own;
}

/// Addresses that nobody routes. 0.0.0.0/8 and 240.0.0.0/4 are left out: Linux forwards them, we drop them.
fn nowhere(rng: &mut Rng, family: Family) -> IpAddr {
    let v4 = [[255, 255, 255, 255], [224, 0, 0, 251], [127, 0, 0, 1]];
    let v6 = [[0xff02, 0xfb], [0xff05, 2], [0, 1]];
    match family {
        Family::V4 => pick(rng, &v4).unwrap_or_default().into(),
        Family::V6 => {
            let [first, last] = pick(rng, &v6).unwrap_or_default();
            Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last).into()
        }
    }
}

/// What the comparison leaves out: an answer to a timestamp request to the firewall (we answer echo only), and
/// protocols without ports from B (two clients' flows of such a protocol cannot be told apart behind one address) or from the uplink (it
/// would be the answer to an earlier packet of A).
fn restrict(packet: &mut Packet, unique: u16) {
    let is_other = matches!(packet.upper, Upper::Other { .. });
    let is_query = matches!(packet.upper, Upper::Icmp { kind: 13, .. });
    let plan = plan(if packet.source.is_ipv4() { Family::V4 } else { Family::V6 });
    let is_local = [plan.own, plan.client_gateway].contains(&packet.destination);
    if packet.side != Side::A && is_other || is_query && is_local {
        packet.upper = Upper::Udp { from: unique, to: 80 };
    }
}

fn body(rng: &mut Rng, family: Family, unique: u16) -> Upper {
    match rng.u8(..16) {
        0..=6 => Upper::Tcp { from: unique, to: port(rng), flags: pick(rng, FIRST).unwrap_or(2) },
        7..=11 => Upper::Udp { from: unique, to: port(rng) },
        12..=14 => Upper::Icmp { kind: icmp_type(rng, family), code: 0, id: unique },
        _ => Upper::Other { protocol: pick(rng, OTHERS).unwrap_or(47) },
    }
}

/// Makes the packet one that the rule matches, or misses by one.
fn aim(rng: &mut Rng, packet: &mut Packet, rule: &Rule, unique: u16) {
    let miss = |rng: &mut Rng| rng.u8(..6) == 0;
    if let Some((address, length)) = rule.to {
        packet.destination = inside(rng, address, length);
    }
    if rule.dns {
        let servers = plan(if packet.source.is_ipv4() { Family::V4 } else { Family::V6 });
        let all = [servers.client_dns, servers.own_dns].concat();
        packet.destination = pick(rng, &all).unwrap_or(packet.destination);
    }
    let (low, high) = if rule.dns { (53, 53) } else { rule.ports.unwrap_or((0, 65535)) };
    let to = match rng.u8(..4) {
        _ if miss(rng) => {
            if rng.bool() {
                low.wrapping_sub(1)
            } else {
                high.wrapping_add(1)
            }
        }
        0 => low,
        1 => high,
        _ => rng.u16(low..=high),
    };
    let proto = rule.proto.or_else(|| match (rule.icmp_type, rule.ports, rule.dns) {
        (Some(_), ..) => Some(Proto::Icmp),
        (_, Some(_), _) | (.., true) => pick(rng, &[Proto::Tcp, Proto::Udp]),
        _ => None,
    });
    match proto {
        Some(Proto::Tcp) => packet.upper = Upper::Tcp { from: unique, to, flags: 2 },
        Some(Proto::Udp) => packet.upper = Upper::Udp { from: unique, to },
        Some(Proto::Icmp) => {
            let family = if packet.source.is_ipv4() { Family::V4 } else { Family::V6 };
            let kind = rule.icmp_type.unwrap_or_else(|| icmp_type(rng, family));
            let kind = if miss(rng) { kind.wrapping_add(1) } else { kind };
            packet.upper = Upper::Icmp { kind, code: 0, id: unique };
        }
        None => {}
    }
}

/// An address of the prefix, its first and its last among them, or the one after it; where nobody routes: itself.
fn inside(rng: &mut Rng, address: IpAddr, length: u8) -> IpAddr {
    let choice = rng.u8(..5);
    let drawn: IpAddr = match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let (first, last) = (u32::from(v4) & !mask, u32::from(v4) | mask);
            let any = first | rng.u32(..) & mask;
            let bits = [first, last, last.wrapping_add(1), first.wrapping_sub(1), any];
            Ipv4Addr::from(bits.get(usize::from(choice)).copied().unwrap_or(any)).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let (first, last) = (u128::from(v6) & !mask, u128::from(v6) | mask);
            let any = first | rng.u128(..) & mask;
            let bits = [first, last, last.wrapping_add(1), first.wrapping_sub(1), any];
            Ipv6Addr::from(bits.get(usize::from(choice)).copied().unwrap_or(any)).into()
        }
    };
    let is_routable = match drawn {
        IpAddr::V4(v4) => matches!(v4.octets(), [1..=9 | 11..=126 | 128..=223, ..] | [10, 139, ..]),
        IpAddr::V6(v6) => matches!(v6.segments(), [0x2000..=0x3fff, ..]),
    };
    if is_routable { drawn } else { address }
}
