//! The packet core: sequences of frames from two clients and the uplink, rule edits, answers of resolvers, clock steps,
//! devices that come and go, hidden addresses and what dom0 opens (`openings`), in a `world`. After each frame an
//! `oracle` checks what design section 3 promises, with its own reading of the bytes (`view`) and its own idea of what
//! is accepted (`permits`).
//!
//! An input is a list of steps; `step` says how each spends its bytes. `build` makes the frames.

mod build;
mod openings;
mod oracle;
mod permits;
mod view;
mod world;

use std::net::IpAddr;

use build::Shape;
use firewall::{Checksum, Gso, GsoKind, Mac, Offload, Origin, PortId};
use view::View;
use world::{ADDRESSES, Family, GATEWAYS, MACS, OWN, REMOTES, VISIBLE_GATEWAY, World};

use crate::source::Source;

const PORTS: &[u16] = &[53, 80, 443, 1000, 40_000, 40_001, 0, 65_535];
const FLAGS: &[u8] = &[0x02, 0x10, 0x12, 0x18, 0x11, 0x04, 0x14, 0x00, 0x3f];
const NUMBERS: &[u32] = &[1000, 1001, 2000, 2001, 1500, 0, 0x7fff_ffff, 0xffff_ffff];
const SIZES: &[usize] = &[0, 1, 5, 8, 100, 536, 1280, 1400, 1480, 3000];
/// Of super-frames: payload of a segment, and of all.
const SEGMENT_SIZES: &[u16] = &[1448, 1200, 536, 100, 1, 0, 9000];
const SUPER_SIZES: &[usize] = &[3000, 9000, 40_000, 1200];
/// Steps after which an input is long enough: the fuzzer gains nothing from longer ones.
const STEPS: usize = 400;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let mut world = World::new(source.byte());
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        step(&mut world, &mut source);
    }
    world.end();
}

fn step(world: &mut World, source: &mut Source<'_>) {
    match source.below(16) {
        0..=3 => {
            let origin = origin(source);
            let shape = shape(world, origin, source);
            send(world, origin, shape, source);
        }
        4 | 5 => reply(world, source),
        6 => error_about(world, source),
        7 => fragments(world, source),
        8 => {
            let origin = origin(source);
            let offload = offload(source);
            world.frame(origin, source.piece(), offload, source);
        }
        9 => neighbour(world, source),
        10 | 11 => world.edit_rules(source),
        12 => world.pass_time(source),
        13 => world.change_network(source),
        14 => world.change_devices(source),
        _ => world.generate(source),
    }
}

fn origin(source: &mut Source<'_>) -> Origin {
    source.pick(&[world::FROM_A, world::FROM_A, world::FROM_B, Origin::Uplink, world::FROM_NOBODY])
}

/// Index into [`MACS`].
fn port_index(origin: Origin) -> usize {
    match origin {
        Origin::Client(id) => usize::from(id.0).min(1),
        Origin::Uplink => 2,
    }
}

fn offload(source: &mut Source<'_>) -> Offload {
    let byte = source.byte();
    let checksum = match byte & 3 {
        3 => Checksum::Validated,
        2 => Checksum::Blank,
        _ => Checksum::Full,
    };
    let kind = if byte & 4 == 0 { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
    let gso = (byte >> 5 == 7).then(|| Gso { kind, size: source.word() });
    Offload { checksum, gso }
}

/// A packet as `origin` might send it, mostly with addresses that it may use.
fn shape(world: &World, origin: Origin, source: &mut Source<'_>) -> Shape {
    let family = source.pick(&[Family::V4, Family::V4, Family::V6]);
    let here = match origin {
        Origin::Client(_) => world.known(port_index(origin), family),
        Origin::Uplink => source.pick(REMOTES).of(family),
    };
    let there = match origin {
        Origin::Client(_) => source.pick(REMOTES),
        Origin::Uplink => OWN,
    };
    let all = [ADDRESSES[0], ADDRESSES[1], OWN, GATEWAYS, REMOTES[0], VISIBLE_GATEWAY];
    let unusual = source.byte();
    let src = if unusual & 0xf == 1 { source.pick(&all).of(family) } else { here };
    let dst = match (unusual >> 4, origin) {
        (1, _) => source.pick(&all),
        (2, Origin::Client(id)) => ADDRESSES[usize::from(id.0 ^ 1).min(1)],
        _ => there,
    }
    .of(family);
    let ports = (source.pick(PORTS), source.pick(PORTS));
    let size = source.pick(SIZES);
    let rest = [0, source.byte(), 0, 1];
    match source.below(8) {
        0..=2 => {
            let numbers = [source.pick(NUMBERS), source.pick(NUMBERS)];
            Shape::tcp((src, ports.0), (dst, ports.1), source.pick(FLAGS), numbers).payload(size)
        }
        3 | 4 => Shape::udp((src, ports.0), (dst, ports.1)).payload(size),
        5 => {
            let kind = source.pick(&[8, 0, 128, 129, 13, 17]);
            Shape::icmp(src, dst, kind, 0, rest, b"ping").payload(size)
        }
        6 => {
            let kind = source.byte();
            Shape::icmp(src, dst, kind, source.byte(), rest, source.piece())
        }
        _ => {
            let protocol = source.pick(&[47, 50, 51, 132, 4, 41, 58, 1, 2, 0, 255]);
            Shape::new(src, dst, protocol, source.piece().to_vec()).payload(size)
        }
    }
}

/// Sends a packet, perhaps with unusual headers, perhaps with bytes changed.
fn send(world: &mut World, origin: Origin, mut shape: Shape, source: &mut Source<'_>) {
    let mut offload = offload(source);
    let mut unusual = source.byte();
    if unusual & 32 != 0 {
        // Most of them are as they should be: little is left of one that is damaged.
        if unusual & 64 == 0 {
            unusual = 0;
        }
        if unusual == 0 && shape.protocol != 6 {
            let numbers = [source.pick(NUMBERS), source.pick(NUMBERS)];
            let ports = (source.pick(PORTS), source.pick(PORTS));
            shape = Shape::tcp((shape.src, ports.0), (shape.dst, ports.1), 0x10, numbers);
        }
        let kind = if shape.src.is_ipv4() { GsoKind::TcpV4 } else { GsoKind::TcpV6 };
        let gso = Some(Gso { kind, size: source.pick(SEGMENT_SIZES) });
        offload = Offload { checksum: Checksum::Blank, gso };
        shape = shape.payload(source.pick(SUPER_SIZES));
    }
    if unusual & 1 != 0 {
        shape.ttl = source.byte();
    }
    if unusual & 2 != 0 {
        shape.fragment = source.pick(&[0, 0x4000, 0x2000, 0x8000, 0x2001, 1, 0x1fff]);
        shape.id = source.word();
    }
    if unusual & 4 != 0 {
        shape.options = options(&shape, source);
    }
    let shape = shape.checksummed(offload.checksum == Checksum::Blank);
    let mut frame = shape.frame(link(origin).0, link(origin).1);
    if unusual & 8 != 0 {
        for _ in 0..source.below(4) + 1 {
            let at = usize::from(source.byte()) % frame.len();
            frame[at] ^= source.byte();
        }
        if source.flag() && shape.src.is_ipv4() {
            build::repair_header(&mut frame[14..]);
        }
    }
    if unusual & 16 != 0 {
        frame.truncate(usize::from(source.word()) % (frame.len() + 1));
    }
    world.frame(origin, &frame, offload, source);
}

/// Destination and source MAC address of what `origin` sends.
fn link(origin: Origin) -> (Mac, Mac) {
    match origin {
        Origin::Client(_) => (Mac::GATEWAY, MACS[port_index(origin)]),
        Origin::Uplink => (MACS[2], Mac::GATEWAY),
    }
}

fn options(shape: &Shape, source: &mut Source<'_>) -> Vec<u8> {
    if shape.src.is_ipv4() {
        let mut options = match source.below(4) {
            0 => vec![131, 3, 4],
            1 => vec![148, 4, 0, 0],
            2 => vec![1; source.below(40)],
            _ => source.bytes(40).to_vec(),
        };
        options.resize(options.len().next_multiple_of(4).min(40), 0);
        return options;
    }
    let kinds: Vec<u8> = (0..source.below(12)).map(|_| source.pick(&[0, 43, 60, 44, 51])).collect();
    extension_headers(&kinds, shape.protocol)
}

/// The number of the first header, then the chain to `protocol`.
fn extension_headers(kinds: &[u8], protocol: u8) -> Vec<u8> {
    let nexts = kinds.iter().skip(1).copied().chain([protocol]);
    let first = kinds.first().copied();
    let chain = kinds.iter().zip(nexts).flat_map(|(kind, next)| match kind {
        44 => [next, 0, 0, 0, 0, 0, 0, 1],
        // An authentication header counts in other units.
        51 => [next, 0, 0, 0, 0, 0, 0, 0],
        _ => [next, 0, 1, 4, 0, 0, 0, 0],
    });
    first.into_iter().chain(chain).collect()
}

/// Who got what went there.
fn origin_of(port: PortId) -> Origin {
    match port {
        PortId::Client(id) => Origin::Client(id),
        PortId::Uplink => Origin::Uplink,
    }
}

/// What is answered to a packet by who got it.
fn reply(world: &mut World, source: &mut Source<'_>) {
    let Some((port, sent)) = world.recent(source) else { return };
    let View { src, dst, .. } = sent;
    let numbers = [source.pick(NUMBERS), source.pick(NUMBERS)];
    let size = source.pick(SIZES);
    let mut shape = match (sent.protocol, sent.ports()) {
        (6, Some((ours, theirs))) => {
            let of = |at: usize| {
                sent.l4.get(at..at + 4).map_or(0, |n| u32::from_be_bytes(n.try_into().unwrap()))
            };
            let fitting = [of(8), of(4).wrapping_add(1)];
            let numbers = if source.flag() { numbers } else { fitting };
            let flags = source.pick(FLAGS);
            Shape::tcp((dst, theirs), (src, ours), flags, numbers).payload(size)
        }
        (17, Some((ours, theirs))) => Shape::udp((dst, theirs), (src, ours)).payload(size),
        (1 | 58, _) => {
            let kind = match sent.icmp_type() {
                Some(8) => 0,
                Some(128) => 129,
                Some(other) => other.wrapping_add(1),
                None => 0,
            };
            let [high, low] = sent.near(view::Sense::Asks).to_be_bytes();
            Shape::icmp(dst, src, kind, 0, [high, low, 0, 1], b"pong").payload(size)
        }
        (protocol, _) => Shape::new(dst, src, protocol, sent.l4.clone()),
    };
    if source.byte() & 0xf == 1 {
        shape.src = source.pick(REMOTES).of(Family::of(src));
    }
    send(world, origin_of(port), shape, source);
}

/// An ICMP error about a packet that went out, or about one that came in.
fn error_about(world: &mut World, source: &mut Source<'_>) {
    let Some((port, sent)) = world.recent(source) else { return };
    let is_v4 = sent.src.is_ipv4();
    let mut quoted = Shape::new(sent.src, sent.dst, sent.protocol, sent.l4.clone()).packet();
    quoted.truncate(usize::from(source.word()) % 600);
    let kinds: &[(u8, u8)] = if is_v4 {
        &[(3, 3), (3, 4), (11, 0), (3, 13), (4, 0), (5, 1), (12, 0)]
    } else {
        &[(1, 4), (2, 0), (3, 0), (4, 1), (1, 1), (137, 0), (100, 0)]
    };
    let (kind, code) = source.pick(kinds);
    let [high, low] = source.pick(&[1280_u16, 576, 68, 0, 1499, 65_535]).to_be_bytes();
    let rest = [0, 0, high, low];
    let router = source.pick(REMOTES).of(Family::of(sent.src));
    let from = if port == PortId::Uplink { router } else { sent.dst };
    send(world, origin_of(port), Shape::icmp(from, sent.src, kind, code, rest, &quoted), source);
}

/// A datagram in pieces: in any order, some of them twice, missing or overlapping.
fn fragments(world: &mut World, source: &mut Source<'_>) {
    let origin = origin(source);
    let whole = shape(world, origin, source).checksummed(false);
    let units = source.pick(&[1, 2, 3, 60, 61, 150]) * 8;
    let id = source.word();
    let pieces: Vec<Shape> = whole
        .l4
        .chunks(units)
        .enumerate()
        .map(|(n, bytes)| {
            let at = n * units;
            let has_more = at + bytes.len() < whole.l4.len();
            let mut piece = Shape { l4: bytes.to_vec(), id, ..whole.clone() };
            let offset = (at / 8) as u16;
            if whole.src.is_ipv4() {
                piece.fragment = offset | u16::from(has_more) << 13;
            } else {
                let field = (offset << 3 | u16::from(has_more)).to_be_bytes();
                let [a, b] = id.to_be_bytes();
                piece.options = vec![44, whole.protocol, 0, field[0], field[1], 0, 0, a, b];
            }
            piece
        })
        .collect();
    if pieces.is_empty() {
        return;
    }
    for _ in 0..pieces.len().min(6) + source.below(3) {
        let mut piece = pieces[source.below(pieces.len())].clone();
        if source.byte() & 0xf == 1 {
            piece.fragment = piece.fragment.wrapping_add(u16::from(source.byte()));
        }
        let (to, from) = link(origin);
        world.frame(origin, &piece.frame(to, from), Offload::default(), source);
    }
}

/// ARP, or what IPv6 has instead.
fn neighbour(world: &mut World, source: &mut Source<'_>) {
    let origin = origin(source);
    let (to, from) = link(origin);
    let hosts = [ADDRESSES[0], ADDRESSES[1], OWN, GATEWAYS, REMOTES[0]];
    let (sender, target) = (source.pick(&hosts), source.pick(&hosts));
    if source.flag() {
        let v4 = |host: world::Host| match host.of(Family::V4) {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let frame = build::arp(source.pick(&[1, 2, 3]), to, (from, v4(sender)), (to, v4(target)));
        return world.frame(origin, &frame, Offload::default(), source);
    }
    let (kind, option) = source.pick(&[(135, 1), (136, 2), (133, 1), (134, 1), (137, 2)]);
    let IpAddr::V6(about) = target.of(Family::V6) else { return };
    let link_option = [&[option, 1][..], &from.0].concat();
    let body = [&about.octets()[..], &link_option].concat();
    let dst = if source.flag() {
        target.of(Family::V6)
    } else {
        let octets = about.octets();
        let [.., x, y, z] = octets;
        std::net::Ipv6Addr::new(
            0xff02,
            0,
            0,
            0,
            0,
            1,
            0xff00 | u16::from(x),
            u16::from_be_bytes([y, z]),
        )
        .into()
    };
    let mut shape =
        Shape::icmp(sender.of(Family::V6), dst, kind, 0, source.array(), &body).checksummed(false);
    shape.ttl = source.pick(&[255, 255, 255, 64]);
    let frame = shape.frame(to, from);
    world.frame(origin, &frame, Offload::default(), source);
}
