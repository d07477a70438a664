//! Captures on both sides of our firewall during a transfer: the checksums of what arrives, the sizes of the segments, their order.
//!
//! With offloads a checksum is only begun where a capture sees it, and a super-frame is what crosses. So each direction is
//! captured twice: as it is over IPv4, for the order, and over IPv6 with the sender's offloads off, when each segment leaves it
//! with a whole checksum that the firewall has to change for its translation (Linux' netfront cannot do without that of IPv4).

use std::time::Duration;

use super::super::report::Report;
use crate::error::Result;
use crate::lab::domain::Domain;
use crate::lab::world::World;
use crate::scenarios::steps::ALICE;
use crate::{fail, progress};

/// Bytes of a transfer.
const BYTES: &str = "2M";
/// For what follows a transfer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of the segments with payload in a capture's file, from the server's port if `$1` is 1, else to it: how many, those with a wrong
/// checksum, those that begin before the end of an earlier one of their connection, the longest payload, and a digest of
/// all of them in the order of capture.
const SUMMARY: &str = r#"tcpdump -Z root -r /tmp/c.pcap -n -vv 2>/dev/null | awk -v down="$1" '
    / seq [0-9]+:[0-9]+/ {
        for (at = 2; at < NF && $at != ">"; at++);
        if (($(at - 1) ~ /[.]5201$/) != down) next
        split($0, half, " seq "); split(half[2], ends, "[:,]")
        connection = $(at - 1) $(at + 1); if (!(connection in number)) number[connection] = ++connections
        packets++; size = ends[2] - ends[1]; if (size > longest) longest = size
        if (/incorrect/) wrong++
        if (ends[1] + 0 < top[connection]) late++
        if (ends[2] + 0 > top[connection]) top[connection] = ends[2] + 0
        print number[connection], ends[1], ends[2] >"/tmp/order"
    }
    END { printf "%d %d %d %d ", packets, wrong, late, longest }'
    md5sum </tmp/order; rm -f /tmp/order"#;

/// What one side saw.
#[derive(Debug)]
struct Seen {
    packets: u64,
    wrong: u64,
    late: u64,
    longest: u64,
    order: String,
}

/// One end of the path.
struct End<'a> {
    domain: &'a Domain,
    device: String,
}

/// Captures, and fails on what is wrong.
pub(super) fn measure(world: &World, report: &mut Report) -> Result<()> {
    let client = End { domain: world.client(ALICE)?, device: "eth0".into() };
    let netvm =
        End { domain: world.netvm(0)?, device: format!("vif{}.0", world.firewall()?.domid) };
    let mut lines = Vec::new();
    let mut wrong = 0;
    progress::step("captures", || -> Result<()> {
        for (name, reverse) in [("up", ""), ("down", " -R")] {
            let sender = if reverse.is_empty() { &client } else { &netvm };
            for is_whole in [true, false] {
                let server = match &world.plan.internet6 {
                    Some(server6) if !is_whole => server6,
                    _ => &world.plan.internet,
                };
                let receiver = if reverse.is_empty() { &netvm } else { &client };
                offloads(world, sender, is_whole)?;
                merging(world, receiver, is_whole)?;
                let [near, far] = capture(world, &client, &netvm, server, reverse)?;
                offloads(world, sender, true)?;
                merging(world, receiver, true)?;
                let what = if is_whole { "super-frames" } else { "segments with whole checksums" };
                lines.push(format!("{name}, {what}: {} packets, the longest payload {} bytes, {} before their turn where the client is and {} where the NetVM is",
                    near.packets, near.longest, near.late, far.late));
                if near.order != far.order || near.packets == 0 {
                    fail!("{name}, {what}: both sides saw different segments: {near:?}, {far:?}");
                }
                if !is_whole {
                    wrong += near.wrong + far.wrong;
                    let most = mss(world, sender)?;
                    if near.wrong + far.wrong > 0 || near.longest > most {
                        fail!("{name}, {what}, at most {most} bytes each: {near:?}, {far:?}");
                    }
                }
            }
        }
        Ok(())
    })?;
    report.table(
        "Captures on both sides of our firewall: the same segments in the same order",
        lines,
    );
    report.figure("lab.capture.wrong_checksums", wrong as f64);
    Ok(())
}

fn offloads(world: &World, end: &End<'_>, on: bool) -> Result<()> {
    let word = if on { "on" } else { "off" };
    let line = format!("ethtool -K {} tx {word} sg {word} tso {word} gso {word}", end.device);
    world.sh(end.domain, &line).map(drop)
}

/// Whether what arrives is merged before a capture sees it.
fn merging(world: &World, end: &End<'_>, on: bool) -> Result<()> {
    let word = if on { "on" } else { "off" };
    world.sh(end.domain, &format!("ethtool -K {} gro {word}", end.device)).map(drop)
}

/// The most that a segment may carry: of the device, without both headers of IPv6 and TCP and the time stamps that Linux adds.
fn mss(world: &World, end: &End<'_>) -> Result<u64> {
    let text = world.sh(end.domain, &format!("cat /sys/class/net/{}/mtu", end.device))?;
    match text.trim().parse::<u64>() {
        Ok(mtu) if mtu > 72 => Ok(mtu - 72),
        _ => fail!("{}: an MTU of {text:?}", end.domain.name),
    }
}

/// A transfer seen from both ends.
fn capture(
    world: &World,
    client: &End<'_>,
    netvm: &End<'_>,
    server: &str,
    reverse: &str,
) -> Result<[Seen; 2]> {
    let ends = [client, netvm];
    let start = |end: &End<'_>| {
        let line = format!(
            "rm -f /tmp/c.pcap; (exec tcpdump -Z root -B 8192 -s 0 -U -i {} -w /tmp/c.pcap 'tcp port 5201' 2>/tmp/c.log </dev/null >/dev/null & echo $! >/tmp/c.pid); \
             n=0; until grep -q 'listening on' /tmp/c.log || [ $n -gt 300 ]; do usleep 100000; n=$((n + 1)); done",
            end.device
        );
        end.domain.exec_for(&world.lab, &line, PATIENCE)?.ok("tcpdump").map(drop)
    };
    ends.into_iter().try_for_each(start)?;
    let line = format!("iperf3 -n {BYTES} -c {server}{reverse}");
    client.domain.exec_for(&world.lab, &line, PATIENCE)?.ok("iperf3")?;
    let is_down = u8::from(!reverse.is_empty());
    let read = |end: &End<'_>| -> Result<Seen> {
        let script =
            format!("sleep 1; kill -INT $(cat /tmp/c.pid); sleep 1; set -- {is_down}; {SUMMARY}");
        let out = end.domain.exec_for(&world.lab, &script, PATIENCE)?.ok("a capture")?;
        let words: Vec<&str> = out.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse().ok());
        match (number(0), number(1), number(2), number(3), words.get(4)) {
            (Some(packets), Some(wrong), Some(late), Some(longest), Some(order)) => {
                Ok(Seen { packets, wrong, late, longest, order: (*order).to_owned() })
            }
            _ => fail!("{}: a capture says {out:?}", end.domain.name),
        }
    };
    Ok([read(client)?, read(netvm)?])
}
