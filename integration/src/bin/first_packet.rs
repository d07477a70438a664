//! What `cargo xtask test --long first-packet` counts instructions of: the first packets of flows through the whole
//! packet core. `first_packet SHAPE RULES PACKETS` makes a client with that many rules of one shape and hands in that
//! many packets; the step runs it with and without packets and takes the difference.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use firewall::uplink::{FamilyConfig, NetworkConfig, UplinkPort};
use firewall::{
    ClientId, ClientPort, Fate, Firewall, Frame, Instant, Limits, Mac, Offload, Origin, PortCaps,
    PortId, RulesState,
};
use integration::xtask::parts::first_packet::{PACKETS, Shape};
use rules::{CompiledSet, RuleSet};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 10);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 138, 0, 2);
const NETVM: Ipv4Addr = Ipv4Addr::new(10, 138, 0, 1);
const CLIENT_MAC: [u8; 6] = [0, 0x16, 0x3e, 0x5e, 0x6c, 0x0a];
const OUR_MAC: [u8; 6] = [0, 0x16, 0x3e, 0x5e, 0x6c, 6];
const LIMITS: Limits = Limits {
    clients: 1,
    addresses: 4,
    flows: 4096,
    flows_per_client: 4096,
    fragment_bytes: 64 << 10,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, rules, packets] = arguments.as_slice() else { return ExitCode::from(2) };
    let numbers = (rules.parse(), packets.parse());
    let (Some(shape), (Ok(rules), Ok(packets))) = (Shape::named(shape), numbers) else {
        return ExitCode::from(2);
    };
    match forwarded(shape, rules, packets) {
        Some(count) if count == packets => ExitCode::SUCCESS,
        other => {
            eprintln!("{other:?} of {packets} packets left");
            ExitCode::FAILURE
        }
    }
}

/// How many of the packets left through the uplink; nothing if the firewall cannot be set up.
fn forwarded(shape: Shape, rules: u16, packets: u16) -> Option<u16> {
    let (mut firewall, mut now) = firewall(&shape.rules(rules))?;
    // All of them are built, however few are handed in: the difference is the core's alone.
    let mut frames: Vec<Vec<u8>> = (0..PACKETS).map(|number| syn(shape, rules, number)).collect();
    let mut left = 0;
    for bytes in frames.iter_mut().take(packets.into()) {
        now = now.after(Duration::from_micros(10));
        let length = bytes.len();
        let mut frame = Frame::new(bytes, length, Offload::default())?;
        let fate = firewall.handle(now, Origin::Client(ClientId(0)), &mut frame);
        left += u16::from(fate == Fate::Send(PortId::Uplink));
    }
    Some(left)
}

fn firewall(lines: &[String]) -> Option<(Firewall, Instant)> {
    let mut firewall = Firewall::new(LIMITS, [7; 32]).ok()?;
    let v4 = FamilyConfig {
        address: Some(OWN),
        gateway: Some(NETVM),
        client_gateway: Some(OWN),
        dns: Vec::new(),
        client_dns: Vec::new(),
    };
    let connected = vec![IpAddr::V4(CLIENT)];
    firewall.set_network(NetworkConfig { v4, connected, ..Default::default() }).ok()?;
    let now = Instant::from_nanos(1_000_000_000);
    let caps = PortCaps::PLAIN;
    firewall.set_uplink(now, Some(UplinkPort { mac: Mac(OUR_MAC), caps }));
    let port = ClientPort { domid: 1, mac: Mac(CLIENT_MAC), ip4: Some(CLIENT), ip6: None, caps };
    firewall.attach_client(ClientId(0), port).ok()?;
    let keys: Vec<String> = (0..lines.len()).map(|number| format!("{number:04}")).collect();
    let lines = keys.iter().zip(lines).map(|(key, line)| (key.as_bytes(), line.as_bytes()));
    let entries = [(&b"policy"[..], &b"accept"[..])].into_iter().chain(lines);
    let set = RuleSet::parse(rules::Family::V4, entries).and_then(CompiledSet::new).ok()?;
    firewall.set_rules(now, CLIENT.into(), RulesState::Active(set)).ok()?;
    Some((firewall, now))
}

/// The first segment of a connection that no other packet belongs to.
fn syn(shape: Shape, rules: u16, number: u16) -> Vec<u8> {
    let (to, port) = shape.destination(rules);
    let builder =
        etherparse::PacketBuilder::ethernet2(CLIENT_MAC, [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff])
            .ipv4(CLIENT.octets(), to.octets(), 64)
            .tcp(10_000 + number, port, 1, 1000)
            .syn();
    let mut bytes = Vec::new();
    // Writing to a vector does not fail.
    let _ = builder.write(&mut bytes, &[]);
    bytes
}
