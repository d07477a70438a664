//! What a datagram costs our firewall when nothing is done with it: it is copied from the client's ring, its sender's address is
//! not the client's, and it is dropped there. Whoever takes datagrams by grant copies, one operation each, is no cheaper on
//! this machine.

use super::side::{Side, difference};
use super::{PATIENCE, effort};
use crate::error::Result;
use crate::lab::world::World;
use crate::xtask::bench::report::{Report, median};
use crate::{fail, progress};

/// Seconds of a run, and runs.
const SECONDS: u32 = 5;
const TURNS: usize = 3;
/// A frame with 64 bytes of UDP payload.
const FRAME_BYTES: u32 = 14 + 20 + 8 + 64;
/// An address that no client has (RFC 5737).
const FORGED: &str = "198.51.100.77";
/// Fewer datagrams than these show nothing.
const FEWEST: f64 = 1000.0;

/// Measures `ours`; `linux` are the processor seconds of the Linux firewall for a million datagrams that it forwarded.
pub(super) fn measure(
    world: &World,
    ours: &Side<'_>,
    linux: f64,
    report: &mut Report,
) -> Result<()> {
    let words = [
        "count 0".to_owned(),
        "clone_skb 0".into(),
        format!("pkt_size {FRAME_BYTES}"),
        format!("src_min {FORGED}"),
        format!("src_max {FORGED}"),
        format!("dst {}", world.plan.internet),
        "dst_mac fe:ff:ff:ff:ff:ff".into(),
    ];
    let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "modprobe pktgen; cd /proc/net/pktgen; echo rem_device_all >kpktgend_0; echo add_device eth0 >kpktgend_0; \
         for word in {}; do echo \"$word\" >eth0 || exit 1; done; (sleep {SECONDS}; echo stop >pgctrl) & echo start >pgctrl; \
         wait; echo rem_device_all >kpktgend_0",
        words.join(" ")
    );
    let mut costs = Vec::new();
    let mut shares = Vec::new();
    progress::step("udp64 dropped at first look", || -> Result<()> {
        for _ in 0..TURNS {
            let counted = effort::counters(world)?;
            let (before, begun) = (world.lab.all_cpu_seconds()?, std::time::Instant::now());
            ours.client.exec_for(&world.lab, &line, PATIENCE)?.ok("pktgen")?;
            let (after, seconds) = (world.lab.all_cpu_seconds()?, begun.elapsed().as_secs_f64());
            let counted = difference(&counted, effort::counters(world)?);
            let taken = counted.get("client received-frames").copied().unwrap_or_default();
            if taken < FEWEST {
                fail!("pktgen: {taken} frames reached the firewall");
            }
            let used = difference(&before, after).get(&ours.firewall.name).copied();
            let used = used.unwrap_or(f64::NAN);
            costs.push(used / taken * 1e6);
            shares.push(used / seconds);
        }
        Ok(())
    })?;
    let (cost, share) = (median(costs.into_iter()), median(shares.into_iter()));
    report.table(
        format!("udp64, dropped at first look, median of {TURNS}"),
        vec![format!(
            "ours {cost:>8.1} s of the firewall's CPU for a million datagrams that were only copied, {:.0} % of what Linux takes \
             to forward them; it was busy for {:.0} % of the time",
            cost / linux * 100.0,
            share * 100.0
        )],
    );
    report.figure("lab.udp64.floor_ratio", cost / linux);
    Ok(())
}
