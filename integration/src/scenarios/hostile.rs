//! What a broken or hostile peer does: frames that no stack sends, directories that no toolstack writes.

use super::steps::{self, ALICE, BOB, CAROL, need_both};
use crate::error::Result;
use crate::fail;
use crate::lab::domain::Domain;
use crate::lab::guests::PART;
use crate::lab::world::World;

/// How often each frame is sent.
const REPEATS: u64 = 3;

/// A frame for the client's TX ring, and the reason by which it must be counted.
struct BadFrame {
    bytes: Vec<u8>,
    reason: &'static str,
}

/// B puts broken frames on its ring, through a packet socket: each is dropped and counted by its reason, and A notices
/// nothing.
///
/// # Errors
/// When one is not counted, or somebody suffers.
pub fn raw_frames(world: &mut World) -> Result<String> {
    need_both(world)?;
    let frames = bad_frames(world)?;
    let (alice, bob) = (world.client(ALICE)?, world.client(BOB)?);
    let mark = world.firewall()?.console_mark();
    let server = &world.plan.internet;
    let a_loads = alice.spawn(&world.lab, &steps::download_line(server, PART))?;
    for batch in frames.chunks(8) {
        send(world, bob, batch)?;
        steps::page(world, alice, 0)?;
    }
    // Beyond what can be foreseen: whole frames of noise behind a good link header.
    let noise = "for size in 1 19 20 21 40 64 200 700 1500; do \
                 { cut -c 1-28 /tmp/header | xxd -r -p; head -c $size /dev/urandom; } >/tmp/frame; \
                 socat -u -b 2000 FILE:/tmp/frame INTERFACE:eth0; done";
    world.sh(bob, &format!("echo {} >/tmp/header; {noise}", hex(&link(world, 0x0800)?)))?;
    let mut counts = std::collections::BTreeMap::new();
    for frame in &frames {
        *counts.entry(frame.reason).or_insert(0) += REPEATS;
    }
    for (reason, count) in &counts {
        steps::dropped(world, mark, reason, *count)?;
    }
    // The one that sends them keeps its device: these are packets, not breaches of the ring protocol.
    steps::page(world, bob, 0)?;
    let out = a_loads.finish(&world.lab, alice, steps::DOWNLOAD)?.ok("A's download meanwhile")?;
    steps::downloaded(alice, PART, &out)?;
    steps::page(world, alice, 0)?;
    let log = world.firewall()?.console_after(mark)?;
    if log.contains("fw: client gone") {
        fail!("a device was closed: {log}");
    }
    Ok(format!(
        "{} kinds x {REPEATS} sent by B, counted under {} reasons; A's 4 MB and pages arrive intact meanwhile",
        frames.len(),
        counts.len()
    ))
}

/// The backend directory of a third client lacks a node, or has nonsense in it: that client is refused with the reason,
/// and the others notice nothing.
///
/// # Errors
/// When it is served, or somebody else suffers.
pub fn broken_directory(world: &mut World) -> Result<String> {
    need_both(world)?;
    let firewall = world.firewall()?.domid;
    let carol = world.client_of_plan(CAROL)?.clone();
    let mut said = Vec::new();
    for (index, (node, value)) in [
        ("ip", None),
        ("ip", Some("10.137.0.999")),
        ("mac", None),
        ("mac", Some("00:16:3e:5e:6c")),
        ("frontend-id", Some("0")),
    ]
    .into_iter()
    .enumerate()
    {
        // Paused: it comes no further before the node is as it should not be.
        let mut spec = world.plan.client_spec(&carol);
        spec.name = "broken".into();
        spec.paused = true;
        let mark = world.firewall()?.console_mark();
        let broken = world.lab.create(&spec)?;
        let path =
            format!("/local/domain/{firewall}/backend/vif/{}/{}/{node}", broken.domid, carol.devid);
        let edit = match value {
            Some(value) => format!("xenstore-write {path} '{value}'"),
            None => format!("xenstore-rm {path}"),
        };
        // The first one's frontend is a Linux that boots. The others say what it would say, which takes no time.
        let start = match index {
            0 => format!("xl unpause {}", broken.domid),
            _ => frontend_connects(broken.domid, carol.devid),
        };
        let needle = format!("fw: client refused domid={} ", broken.domid);
        let refused = world.lab.sh(&format!("{edit} && {start}")).and_then(|_| {
            let moment = super::MOMENT;
            world.firewall()?.wait_console_after(&world.lab, mark, &needle, moment)
        });
        let served = steps::page(world, world.client(ALICE)?, 0)
            .and_then(|()| steps::page(world, world.client(BOB)?, 0));
        world.lab.destroy("broken")?;
        let line = refused?;
        served?;
        let reason = line.split_once("reason=").map_or("", |(_, reason)| reason);
        if !reason.contains(node) {
            fail!("{node} = {value:?}: refused for another reason: {line}");
        }
        said.push(reason.trim_matches('"').to_owned());
    }
    said.dedup();
    Ok(said.join("; "))
}

/// A shell line that writes to xenstore what a frontend does when it connects (Xen public/io/netif.h).
fn frontend_connects(domid: u32, devid: u32) -> String {
    let at = format!("/local/domain/{domid}/device/vif/{devid}");
    let nodes = [
        ("tx-ring-ref", 8),
        ("rx-ring-ref", 9),
        ("event-channel", 5),
        ("request-rx-copy", 1),
        ("feature-rx-notify", 1),
        ("state", 4),
    ];
    let words: Vec<String> =
        nodes.iter().map(|(node, value)| format!("{at}/{node} {value}")).collect();
    format!("xenstore-write {}", words.join(" "))
}

/// Writes the frames to the client's eth0 as they are.
fn send(world: &World, client: &Domain, frames: &[BadFrame]) -> Result<()> {
    let hex: Vec<String> = frames.iter().map(|frame| hex(&frame.bytes)).collect();
    let line = format!(
        "set -e; for frame in {}; do echo $frame | xxd -r -p >/tmp/frame; \
         for n in $(seq {REPEATS}); do socat -u -b 2000 FILE:/tmp/frame INTERFACE:eth0; done; done",
        hex.join(" ")
    );
    world.sh(client, &line).map(drop)
}

/// What B sends, by the stage that must stop it.
fn bad_frames(world: &World) -> Result<Vec<BadFrame>> {
    let (own, server) = (octets(&world.client_ip(BOB)?)?, octets(&world.plan.internet)?);
    let other = octets(&world.client_ip(ALICE)?)?;
    let (ip, arp) = (link(world, 0x0800)?, link(world, 0x0806)?);
    let v4 = |protocol, body: &[u8]| ipv4(own, server, protocol, body);
    let changed = |mut packet: Vec<u8>, at: usize, byte: u8| {
        if let Some(place) = packet.get_mut(at) {
            *place = byte;
        }
        packet
    };
    let summed = |mut packet: Vec<u8>| {
        finish_header(&mut packet);
        packet
    };
    let udp = v4(17, &[0x80, 0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    let echo = [8, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0];
    let tcp = |offset: u8, flags: u8| {
        let mut header = vec![0x80, 1, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, offset << 4, flags, 0xff];
        header.extend([0xff, 0, 0, 0, 0]);
        v4(6, &header)
    };
    let with_options = |options: [u8; 4]| {
        let mut packet = udp.clone();
        packet.splice(20..20, options);
        let packet = changed(packet, 0, 0x46);
        let length = u8::try_from(packet.len()).unwrap_or(0);
        summed(changed(packet, 3, length))
    };
    let arp_body = |sender: [u8; 4]| {
        let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1, 0, 0x16, 0x3e, 0x5e, 0x6c, 0];
        body.extend(sender);
        body.extend([0; 6]);
        body.extend(server);
        body
    };
    let frame =
        |head: &[u8], body: &[u8], reason| BadFrame { bytes: [head, body].concat(), reason };
    let short = |length: usize| udp.get(..length).unwrap_or(&udp).to_vec();
    Ok(vec![
        frame(&link(world, 0x88b5)?, b"an experiment", "ether-type"),
        frame(&link(world, 0x05dc)?, &[0x42; 60], "ether-type"),
        frame(&changed(ip.clone(), 0, 0x02), &udp, "link-destination"),
        frame(&ip, &[], "ipv4-header"),
        frame(&ip, &short(10), "ipv4-header"),
        frame(&ip, &short(19), "ipv4-header"),
        frame(&ip, &summed(changed(udp.clone(), 0, 0x55)), "ipv4-header"),
        frame(&ip, &summed(changed(udp.clone(), 0, 0x44)), "ipv4-header"),
        frame(&ip, &summed(changed(udp.clone(), 0, 0x4f)), "ipv4-header"),
        frame(&ip, &summed(changed(udp.clone(), 3, 200)), "ipv4-header"),
        frame(&ip, &summed(changed(udp.clone(), 3, 12)), "ipv4-header"),
        frame(&ip, &changed(udp.clone(), 10, 0xde), "ipv4-checksum"),
        // A loose source route without an address, and an option that is longer than the header.
        frame(&ip, &with_options([131, 3, 4, 0]), "source-route"),
        frame(&ip, &with_options([7, 39, 4, 0]), "source-route"),
        frame(
            &ip,
            &ipv4(own, [127, 0, 0, 1], 17, &[0x80, 0, 0, 53, 0, 8, 0, 0]),
            "destination-martian",
        ),
        frame(
            &ip,
            &ipv4(own, [224, 0, 0, 1], 17, &[0x80, 0, 0, 53, 0, 8, 0, 0]),
            "destination-martian",
        ),
        frame(
            &ip,
            &ipv4([127, 0, 0, 1], server, 17, &[0x80, 0, 0, 53, 0, 8, 0, 0]),
            "source-spoofed",
        ),
        frame(&ip, &v4(17, &[0x80, 0, 0, 53]), "transport-header"),
        frame(&ip, &v4(17, &[0x80, 0, 0, 53, 0, 60, 0, 0]), "transport-header"),
        frame(&ip, &tcp(4, 0x02), "transport-header"),
        frame(&ip, &tcp(15, 0x02), "transport-header"),
        frame(&ip, &tcp(5, 0x03), "tcp-flags"),
        frame(&ip, &tcp(5, 0x00), "tcp-flags"),
        frame(&ip, &v4(1, &echo), "icmp-checksum"),
        frame(&ip, &v4(1, &[8, 0]), "transport-header"),
        frame(&arp, &[0, 1, 8, 0], "arp-malformed"),
        frame(&arp, &arp_body(other), "arp-spoofed"),
    ])
}

/// Link header of B's frames.
fn link(world: &World, ether_type: u16) -> Result<Vec<u8>> {
    let mac = &world.client_of_plan(BOB)?.mac;
    let mut head = vec![0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
    head.extend(mac.split(':').filter_map(|pair| u8::from_str_radix(pair, 16).ok()));
    head.extend(ether_type.to_be_bytes());
    Ok(head)
}

/// An IPv4 packet with a right header checksum (RFC 791).
fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(body);
    finish_header(&mut packet);
    packet
}

/// Puts the header checksum in, over as many bytes as the header says it has.
fn finish_header(packet: &mut [u8]) {
    let length = packet.first().map_or(20, |first| usize::from(first & 15) * 4);
    if let Some(place) = packet.get_mut(10..12) {
        place.fill(0);
    }
    let header = packet.get(..length).unwrap_or(packet);
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = u16::try_from(sum).unwrap_or(0);
    if let Some(place) = packet.get_mut(10..12) {
        place.copy_from_slice(&(!sum).to_be_bytes());
    }
}

fn octets(text: &str) -> Result<[u8; 4]> {
    match text.parse::<std::net::Ipv4Addr>() {
        Ok(address) => Ok(address.octets()),
        Err(_) => fail!("no IPv4 address: {text:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    crate::lab::cache::hex(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_checksum_of_rfc_1071() {
        // The example header of many texts: 192.168.0.1 to 192.168.0.199, UDP, 115 bytes in all.
        let mut packet = vec![0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0];
        packet.extend([0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7]);
        finish_header(&mut packet);
        assert_eq!(packet[10..12], [0xb8, 0x61]);
    }

    #[test]
    fn packets_say_their_length() {
        let packet = ipv4([10, 0, 0, 1], [10, 0, 0, 2], 17, &[0; 8]);
        assert_eq!((packet.len(), packet[3]), (28, 28));
    }
}
