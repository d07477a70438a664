//! What decides beside the rules: options and extension headers, fragments, ICMP, protocols without ports, the uplink.

use std::net::IpAddr;

use firewall::{ClientId, Origin};

use super::{End, REJECT, SERVER, accept_all, entries, expect, reject_all, tcp, to};
use crate::diff::linux::Linux;
use crate::diff::model::{Family, Packet, SCTP, Side, Upper, plan};
use crate::diff::ours::Ours;
use crate::diff::{nft, packet};
use crate::error::Result;
use crate::fail;

const FROM_A: Origin = Origin::Client(ClientId(0));
const GRE: u8 = 47;
/// "For private experiments" (RFC 3692).
const EXPERIMENT: u8 = 253;
const TCP: u8 = 6;
const DESTINATION_OPTIONS: u8 = 60;
/// What we follow (S8).
const MOST_EXTENSIONS: usize = 8;

/// Runs the tests; adds the names of their rows.
pub(super) fn check(v4: &Linux, v6: &Linux, names: &mut Vec<String>) -> Result<()> {
    source_route(v4)?;
    names.push("S8: source routes".into());
    extension_headers(v6)?;
    names.push("IPv6 extension headers (design 4, S8)".into());
    overlap(v4)?;
    names.push("S3: tiny and overlapping fragments".into());
    rate_limit(v4)?;
    names.push("rate limits of ICMP errors".into());
    link_scope(v6)?;
    names.push("S6: ICMPv6 for one link".into());
    echo_only(v4, v6)?;
    names.push(
        "the firewall answers echo requests of clients to its addresses only (design 3.4)".into(),
    );
    uplink(v4)?;
    names.push("from the uplink and not for us: silence (design 3.1)".into());
    without_rules(v4)?;
    names.push("silence before the rules arrive, whatever the TTL (Q3)".into());
    portless(v4)?;
    names.push(
        "protocols without ports: addresses decide, and one client at a time (design 4, I7)".into(),
    );
    checksums(v4, v6)?;
    names.push("wrong checksums are the receiver's to find (R7)".into());
    Ok(())
}

/// A packet with this inside, and both ends of it: what Linux does and what we do.
fn ends(linux: &Linux, ours: &mut Ours, packets: &[Packet]) -> Result<(End, End)> {
    let theirs = linux.end(packets)?;
    let mut own = End::Drop;
    for packet in packets {
        own = End::of(ours.verdict(packet)?);
    }
    Ok((theirs, own))
}

fn ends_of_frame(linux: &Linux, ours: &mut Ours, frame: &[u8]) -> Result<(End, End)> {
    let theirs = linux.frames(&[(Side::A, frame.to_vec())])?;
    let theirs = theirs.first().map_or(End::Drop, |verdict| End::of(*verdict));
    Ok((theirs, End::of(ours.frame(FROM_A, frame)?)))
}

/// Linux forwards a loose source route that is used up where it is told to accept such routes; we never do.
fn source_route(linux: &Linux) -> Result<()> {
    let mut ours = accept_all(linux, Family::V4)?;
    linux.allow_source_routes()?;
    // Loose source route, 7 bytes, pointer 8: behind the list; one byte of padding.
    let options = [131, 7, 8, 192, 0, 2, 1, 0];
    let frame = packet::with_ipv4(&packet::frame(&tcp(SERVER), 1), &options, 0);
    expect("S8", ends_of_frame(linux, &mut ours, &frame)?, (End::Accept, End::Drop))
}

/// Linux takes the first extension header for the protocol, and so lets TCP behind one pass a rule against TCP. We look
/// at what follows, up to eight of them.
fn extension_headers(linux: &Linux) -> Result<()> {
    let packet = to(Family::V6, Upper::Tcp { from: 1500, to: 443, flags: 2 });
    let tcp = packet::frame(&packet, 1).get(54..).unwrap_or_default().to_vec();
    let behind = |count: usize| {
        let headers = (1..=count).flat_map(|n| {
            let next = if n == count { TCP } else { DESTINATION_OPTIONS };
            [next, 0, 1, 4, 0, 0, 0, 0]
        });
        let payload: Vec<u8> = headers.chain(tcp.iter().copied()).collect();
        packet::frame_with(&packet, 1, DESTINATION_OPTIONS, &payload)
    };
    let lines = [("0000", "action=drop proto=tcp"), ("0001", "action=accept")];
    let chain = [format!("ip6 nexthdr tcp {}", nft::reject(Family::V6)), "accept".into()];
    linux.load(nft::replace_by(Family::V6, &chain))?;
    let mut ours = Ours::new(Family::V6, &entries(&lines))?;
    let found = ends_of_frame(linux, &mut ours, &behind(1))?;
    expect("TCP behind an extension header", found, (End::Accept, End::Reject))?;
    let mut ours = accept_all(linux, Family::V6)?;
    let found = ends_of_frame(linux, &mut ours, &behind(MOST_EXTENSIONS))?;
    expect("eight extension headers", found, (End::Accept, End::Accept))?;
    let found = ends_of_frame(linux, &mut ours, &behind(MOST_EXTENSIONS + 1))?;
    expect("nine extension headers", found, (End::Accept, End::Drop))
}

/// A first fragment of 8 bytes of TCP header: Linux waits for the rest and reassembles, we drop it.
fn overlap(linux: &Linux) -> Result<()> {
    let mut ours = accept_all(linux, Family::V4)?;
    let whole = packet::frame(&tcp((SERVER.0, 444)), 1);
    let (head, tail) = whole.split_at_checked(42).unwrap_or_default();
    let link_and_ip = head.get(..34).unwrap_or_default();
    let rest = [link_and_ip, tail].concat();
    let first = packet::with_ipv4(head, &[], 0x2000);
    let second = packet::with_ipv4(&rest, &[], 1);
    let theirs = linux.frames(&[(Side::A, first.clone()), (Side::A, second.clone())])?;
    let theirs = theirs.first().map_or(End::Drop, |verdict| End::of(*verdict));
    let both = [ours.frame(FROM_A, &first)?, ours.frame(FROM_A, &second)?].map(End::of);
    if both != [End::Drop; 2] {
        fail!("S3: our firewall let a tiny fragment pass: {both:?}");
    }
    expect("S3", (theirs, End::Drop), (End::Accept, End::Drop))
}

/// A thousand refusals at one moment: Linux, its limits off, answers them all; we answer a bounded number.
fn rate_limit(linux: &Linux) -> Result<()> {
    linux.load(nft::replace_by(Family::V4, &[REJECT.to_owned()]))?;
    let packets: Vec<Packet> = (0..1000)
        .map(|n| {
            let upper = Upper::Udp { from: 3000 + n, to: 9 };
            Packet { upper, ..tcp(SERVER) }
        })
        .collect();
    let theirs = linux.verdicts(&packets)?;
    let mut ours = Ours::new(Family::V4, &entries(&[]))?;
    ours.step = std::time::Duration::ZERO;
    let mut answered = 0;
    for packet in &packets {
        answered += usize::from(End::of(ours.verdict(packet)?) == End::Reject);
    }
    let refused = theirs.iter().filter(|verdict| End::of(**verdict) == End::Reject);
    let linux_answered = refused.count();
    if linux_answered != 1000 || !(1..=200).contains(&answered) {
        fail!("rate limit: Linux answered {linux_answered}, we {answered} of 1000");
    }
    Ok(())
}

/// A multicast listener's report to a far address: Linux forwards it, with the client's own address in it.
fn link_scope(linux: &Linux) -> Result<()> {
    let mut ours = accept_all(linux, Family::V6)?;
    let report = to(Family::V6, Upper::Icmp { kind: 131, code: 0, id: 1 });
    expect("S6", ends(linux, &mut ours, &[report])?, (End::Accept, End::Drop))
}

fn echo_only(v4: &Linux, v6: &Linux) -> Result<()> {
    let mut ours = accept_all(v4, Family::V4)?;
    let own = plan(Family::V4).own;
    // Sequence number 1 is where the number of the packet is.
    let ask = |kind| to(Family::V4, Upper::Icmp { kind, code: 0, id: 1 });
    let time = Packet { destination: own, ..ask(13) };
    expect("timestamp", ends(v4, &mut ours, &[time])?, (End::Accept, End::Drop))?;

    let mut ours = accept_all(v6, Family::V6)?;
    let ping = to(Family::V6, Upper::Icmp { kind: 128, code: 0, id: 1 });
    let own = plan(Family::V6).own;
    let from_uplink =
        Packet { side: Side::Uplink, source: ping.destination, destination: own, ..ping.clone() };
    let found = ends(v6, &mut ours, &[from_uplink])?;
    expect("ping from the uplink over IPv6", found, (End::Accept, End::Drop))?;
    let all_nodes = IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]);
    let to_all = Packet { destination: all_nodes, ..ping };
    expect("ping to a group", ends(v6, &mut ours, &[to_all])?, (End::Accept, End::Drop))
}

/// Linux routes what comes from the uplink and goes back there, and says where the time to live ends.
fn uplink(linux: &Linux) -> Result<()> {
    let mut ours = accept_all(linux, Family::V4)?;
    let plan = plan(Family::V4);
    let udp = to(Family::V4, Upper::Udp { from: 1500, to: 9 });
    let transit = Packet { side: Side::Uplink, source: plan.netvm, ..udp.clone() };
    expect("transit", ends(linux, &mut ours, &[transit])?, (End::Accept, End::Drop))?;
    let (source, destination) = (plan.netvm, plan.a);
    let last = Packet { side: Side::Uplink, source, destination, ttl: 1, ..udp };
    expect("last hop to a client", ends(linux, &mut ours, &[last])?, (End::Reject, End::Drop))
}

/// Linux says where the time to live ends before it asks whether there are rules.
fn without_rules(linux: &Linux) -> Result<()> {
    linux.load(nft::replace_by(Family::V4, &["drop".to_owned()]))?;
    let mut ours = Ours::new(Family::V4, &entries(&[]))?;
    ours.forget_rules()?;
    let last = Packet { ttl: 1, ..tcp(SERVER) };
    expect("no rules yet", ends(linux, &mut ours, &[last])?, (End::Reject, End::Drop))
}

fn portless(linux: &Linux) -> Result<()> {
    let mut ours = accept_all(linux, Family::V4)?;
    // Linux forwards no SCTP before an association begins; for us it is a protocol like others.
    let packet = to(Family::V4, Upper::Other { protocol: SCTP });
    let frame = packet::frame_with(&packet, 1, SCTP, &[0; 16]);
    let found = ends_of_frame(linux, &mut ours, &frame)?;
    expect("SCTP without an association", found, (End::Drop, End::Accept))?;
    // Nor does it tell the second client why its packets go nowhere.
    let a = to(Family::V4, Upper::Other { protocol: GRE });
    let b = Packet { side: Side::B, source: plan(Family::V4).b, ..a.clone() };
    let found = ends(linux, &mut ours, &[a, b])?;
    expect("GRE of two clients", found, (End::Drop, End::Reject))
}

/// Linux looks at checksums before it forwards or answers, in protocols that it does not know too, and keeps silent. A
/// refusal of ours says nothing that the rules do not say, and what is forwarded stays as wrong as it was.
fn checksums(v4: &Linux, v6: &Linux) -> Result<()> {
    let syn = tcp(SERVER);
    let mut bytes = packet::frame(&syn, 1).get(34..).unwrap_or_default().to_vec();
    if let Some(byte) = bytes.get_mut(17) {
        *byte ^= 1;
    }
    let frame = packet::frame_with(&syn, 1, TCP, &bytes);
    let mut ours = accept_all(v4, Family::V4)?;
    expect("wrong TCP checksum", ends_of_frame(v4, &mut ours, &frame)?, (End::Drop, End::Accept))?;
    for (linux, family) in [(v4, Family::V4), (v6, Family::V6)] {
        let mut ours = reject_all(linux, family)?;
        let packet = to(family, Upper::Other { protocol: EXPERIMENT });
        let frame = packet::frame_with(&packet, 1, EXPERIMENT, &[9; 12]);
        let found = ends_of_frame(linux, &mut ours, &frame)?;
        expect("unknown protocol without a checksum", found, (End::Drop, End::Reject))?;
    }
    Ok(())
}
