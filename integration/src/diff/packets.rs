//! The packets that meet a rule set: aimed at its rules, beside them, at the firewall, at other clients, from the uplink,
//! and answers to what went before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use super::generate::{icmp_type, is_remote, pick, port, target};
use super::model::{Family, Packet, Plan, Proto, Rule, SCTP, Set, Side, To, Upper, plan};

/// Flags of a first segment: those that start a flow, and those that no stack or no unknown flow has.
const FIRST: &[u8] = &[0x02, 0xc2, 0x10, 0x18];
const NOT_FIRST: &[u8] = &[0x00, 0x01, 0x03, 0x04, 0x06, 0x08, 0x11, 0x12, 0x14, 0x29, 0x3f];
/// IPv4 in IP, GRE, ESP, SCTP, a private one, one for experiments.
const OTHERS: &[u8] = &[4, 47, 50, SCTP, 99, 253];
/// More than the uplink carries.
const TOO_BIG: u16 = 1400;
/// The port or identifier of the first packet.
const FIRST_PORT: u16 = 2000;

/// The packets of one set, as they are drawn.
pub(super) struct Packets<'s> {
    set: &'s Set,
    plan: Plan,
    drawn: Vec<Packet>,
}

impl<'s> Packets<'s> {
    pub(super) fn draw(rng: &mut Rng, set: &'s Set, count: usize) -> Vec<Packet> {
        let mut packets = Self { set, plan: plan(set.family), drawn: Vec::new() };
        for number in 0..count {
            let unique = FIRST_PORT + number as u16;
            let packet = match rng.u8(..16) {
                0 => packets.unasked(rng, unique),
                1 => packets.back(rng).unwrap_or_else(|| packets.unasked(rng, unique)),
                2 => packets.of_client(rng, Side::B, unique),
                _ => packets.of_client(rng, Side::A, unique),
            };
            let packet = packets.restricted(packet, unique);
            packets.drawn.push(packet);
        }
        packets.drawn
    }

    fn of_client(&self, rng: &mut Rng, side: Side, unique: u16) -> Packet {
        let plan = self.plan;
        let (source, other) = match side {
            Side::A => (plan.a, plan.b),
            _ => (plan.b, plan.a),
        };
        let (destination, upper) = (target(rng, &plan), self.body(rng, unique));
        let mut packet = Packet { side, source, destination, ttl: 64, upper, padding: 0 };
        if let Some((_, rule)) = rng.choice(&self.set.rules).filter(|_| rng.u8(..4) > 0) {
            self.aim(rng, &mut packet, rule, unique);
        }
        match rng.u8(..64) {
            0..=2 => packet.source = other,
            3 => packet.source = target(rng, &plan),
            4 | 5 => packet.destination = other,
            6 => packet.destination = plan.absent,
            7 => packet.destination = plan.own,
            8 => packet.destination = plan.client_gateway,
            9 => packet.destination = self.nowhere(rng),
            _ => {}
        }
        match rng.u8(..32) {
            0 => packet.ttl = pick(rng, &[0, 1]).unwrap_or(1),
            1 => packet.ttl = pick(rng, &[2, 255]).unwrap_or(2),
            2..=4 => {
                if let Upper::Tcp { flags, .. } = &mut packet.upper {
                    *flags = pick(rng, NOT_FIRST).unwrap_or(0);
                }
            }
            5 if matches!(packet.upper, Upper::Tcp { .. } | Upper::Udp { .. }) => {
                packet.padding = TOO_BIG;
            }
            _ => {}
        }
        packet
    }

    /// What nobody asked for.
    fn unasked(&self, rng: &mut Rng, unique: u16) -> Packet {
        let plan = self.plan;
        let source = target(rng, &Plan { own_dns: [plan.netvm; 2], ..plan });
        let (source, destination) = match rng.u8(..8) {
            0..=2 => (source, plan.own),
            3 | 4 => (source, plan.a),
            5 => (source, plan.absent),
            6 => (plan.a, plan.own),
            _ => (plan.absent, plan.own),
        };
        let upper = self.body(rng, unique);
        Packet { side: Side::Uplink, source, destination, ttl: 64, upper, padding: 0 }
    }

    /// An answer to an earlier packet of a client, or an error about it, whatever became of that.
    fn back(&self, rng: &mut Rng) -> Option<Packet> {
        let asked = rng.choice(&self.drawn)?;
        let is_client = matches!(asked.side, Side::A | Side::B);
        if !is_client || !is_remote(asked.destination, &self.plan) {
            return None;
        }
        let (remote, answer) = match asked.upper {
            Upper::Tcp { from, to, flags } if flags & 0x3f == 0x02 && !self.is_answered(from) => {
                let flags = pick(rng, &[0x12, 0x12, 0x14])?;
                let answer = Upper::Tcp { from: to, to: from, flags };
                (self.plan.redirected(asked.destination, to), answer)
            }
            Upper::Udp { from, to } => {
                let answer = Upper::Udp { from: to, to: from };
                (self.plan.redirected(asked.destination, to), answer)
            }
            Upper::Icmp { kind, code, id } => {
                let kind = match kind {
                    8 => 0,
                    13 | 15 | 17 | 128 => kind + 1,
                    _ => return None,
                };
                (asked.destination, Upper::Icmp { kind, code, id })
            }
            Upper::Other { protocol } => (asked.destination, Upper::Other { protocol }),
            _ => return None,
        };
        let ttl = if rng.u8(..8) == 0 { 1 } else { 60 };
        let destination = self.plan.own;
        let mut packet = Packet {
            side: Side::Uplink,
            source: remote,
            destination,
            ttl,
            upper: answer,
            padding: 0,
        };
        if rng.u8(..3) == 0 {
            let about =
                Packet { source: self.plan.own, destination: remote, ttl: 63, ..asked.clone() };
            packet.source = target(rng, &self.plan);
            packet.upper = self.error(rng, about);
        }
        Some(packet)
    }

    /// Whether a TCP segment went to that port of ours: what comes after it has other sequence numbers.
    fn is_answered(&self, port: u16) -> bool {
        let is_uplink = |packet: &&Packet| packet.side == Side::Uplink;
        let mut uplink = self.drawn.iter().filter(is_uplink);
        uplink.any(|packet| matches!(packet.upper, Upper::Tcp { to, .. } if to == port))
    }

    fn error(&self, rng: &mut Rng, about: Packet) -> Upper {
        let kinds: &[(u8, u8, u16)] = match self.set.family {
            Family::V4 => &[(3, 1, 0), (3, 3, 0), (3, 13, 0), (11, 0, 0), (3, 4, 1300)],
            Family::V6 => &[(1, 0, 0), (1, 4, 0), (3, 0, 0), (2, 0, 1300)],
        };
        let (kind, code, mtu) = pick(rng, kinds).unwrap_or((3, 1, 0));
        Upper::Error { kind, code, mtu, about: Box::new(Packet { padding: 0, ..about }) }
    }

    fn body(&self, rng: &mut Rng, unique: u16) -> Upper {
        match rng.u8(..16) {
            0..=6 => {
                let flags = pick(rng, FIRST).unwrap_or(2);
                Upper::Tcp { from: unique, to: port(rng), flags }
            }
            7..=11 => Upper::Udp { from: unique, to: port(rng) },
            12..=14 => Upper::Icmp { kind: icmp_type(rng, self.set.family), code: 0, id: unique },
            _ => Upper::Other { protocol: pick(rng, OTHERS).unwrap_or(47) },
        }
    }

    /// Makes the packet one that the rule matches, or misses by one.
    fn aim(&self, rng: &mut Rng, packet: &mut Packet, rule: &Rule, unique: u16) {
        let miss = |rng: &mut Rng| rng.u8(..6) == 0;
        match rule.to {
            Some(To::Net(address, length)) => {
                packet.destination = self.inside(rng, address, length);
            }
            Some(To::Name(name)) if !miss(rng) => {
                let addresses = name.addresses(self.set.family);
                packet.destination = pick(rng, &addresses).unwrap_or(packet.destination);
            }
            _ => {}
        }
        if rule.dns {
            let all = [self.plan.client_dns, self.plan.own_dns].concat();
            packet.destination = pick(rng, &all).unwrap_or(packet.destination);
        }
        let (low, high) = if rule.dns { (53, 53) } else { rule.ports.unwrap_or((0, 65535)) };
        let to = match rng.u8(..4) {
            _ if miss(rng) => match rng.bool() {
                true => low.wrapping_sub(1),
                false => high.wrapping_add(1),
            },
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
                let kind = rule.icmp_type.unwrap_or_else(|| icmp_type(rng, self.set.family));
                let kind = if miss(rng) { kind.wrapping_add(1) } else { kind };
                packet.upper = Upper::Icmp { kind, code: 0, id: unique };
            }
            None => {}
        }
    }

    /// An address of the prefix, its first and its last among them, or the one after it; where nobody routes: itself.
    fn inside(&self, rng: &mut Rng, address: IpAddr, length: u8) -> IpAddr {
        let choice = usize::from(rng.u8(..5));
        let drawn: IpAddr = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shr(length.into()).unwrap_or(0);
                let (first, last) = (u32::from(v4) & !mask, u32::from(v4) | mask);
                let any = first | rng.u32(..) & mask;
                let bits = [first, last, last.wrapping_add(1), first.wrapping_sub(1), any];
                Ipv4Addr::from(bits.get(choice).copied().unwrap_or(any)).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shr(length.into()).unwrap_or(0);
                let (first, last) = (u128::from(v6) & !mask, u128::from(v6) | mask);
                let any = first | rng.u128(..) & mask;
                let bits = [first, last, last.wrapping_add(1), first.wrapping_sub(1), any];
                Ipv6Addr::from(bits.get(choice).copied().unwrap_or(any)).into()
            }
        };
        if is_remote(drawn, &self.plan) { drawn } else { address }
    }

    /// Addresses that nobody routes.
    fn nowhere(&self, rng: &mut Rng) -> IpAddr {
        let v4 = [[255, 255, 255, 255], [224, 0, 0, 251], [127, 0, 0, 1], [0, 0, 0, 0]];
        let group = |first, last| Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last);
        let v6 = [
            group(0xff02, 0xfb),
            group(0xff05, 0xfb),
            group(0xff0e, 1),
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::UNSPECIFIED,
            // IPv4-mapped (RFC 4291, 2.5.5.2). Not link-local: what Linux makes of it depends on its own addresses there.
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc633, 0x6407),
        ];
        match self.set.family {
            Family::V4 => pick(rng, &v4).unwrap_or_default().into(),
            Family::V6 => pick(rng, &v6).unwrap_or(Ipv6Addr::UNSPECIFIED).into(),
        }
    }

    /// Takes out what `exclusions` has tests for instead.
    fn restricted(&self, mut packet: Packet, unique: u16) -> Packet {
        let is_v6 = self.set.family == Family::V6;
        let is_local = [self.plan.own, self.plan.client_gateway].contains(&packet.destination);
        let is_uplink = packet.side == Side::Uplink;
        let is_excluded = match packet.upper {
            // The firewall does not tell the time.
            Upper::Icmp { kind: 13, .. } => is_local && !is_v6,
            // It says to the uplink no more over IPv6 than over IPv4. RFC 4890.
            Upper::Icmp { kind: 128, .. } => is_local && is_v6 && is_uplink,
            Upper::Icmp { kind: 130..=143 | 148 | 149 | 151..=153, .. } => is_v6,
            Upper::Other { protocol } => self.is_ambiguous(&packet, protocol),
            _ => false,
        };
        if is_excluded {
            packet.upper = Upper::Udp { from: unique, to: 80 };
        }
        packet
    }

    /// Whether a flow without ports of the other client is in the way, or may be; from outside, whether Linux would look
    /// at the ports of SCTP.
    fn is_ambiguous(&self, packet: &Packet, protocol: u8) -> bool {
        self.drawn.iter().any(|earlier| {
            let is_same = matches!(earlier.upper, Upper::Other { protocol: p } if p == protocol);
            is_same
                && match packet.side {
                    Side::Uplink => protocol == SCTP && earlier.destination == packet.source,
                    side => earlier.side != side && earlier.destination == packet.destination,
                }
        })
    }
}
