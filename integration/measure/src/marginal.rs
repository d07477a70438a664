//! What rules that do not match cost the first packet of a flow, in time: Linux is measured with the same rules and the same
//! packet beside it (`cargo xtask bench nft`).

use std::time::Instant;

use crate::by_client;
use crate::shapes::{End, HOSTS};
use crate::world::{self, World};

/// Packets of one call, calls, and those that warm up.
const PACKETS: usize = 500;
const CALLS: usize = 40;
const WARM_UP: usize = 4;

/// Lines: what the rules say, one for each; the frame in hexadecimal; then the nanoseconds of a packet without a rule and
/// with as many as each argument says.
pub(crate) fn run(sizes: impl Iterator<Item = String>) -> Result<(), String> {
    let sizes: Vec<usize> = sizes
        .map(|size| size.parse().map_err(|_| format!("how many rules are {size:?}?")))
        .collect::<Result<_, _>>()?;
    for number in 0..sizes.iter().copied().max().unwrap_or(0) {
        println!("rule\t{}", (HOSTS.line)(number));
    }
    for rules in sizes {
        let mut world = World::new(&HOSTS, End::Refused, rules)?;
        let frame = world.first_packet(40_000)?;
        if rules == 0 {
            let hex: String =
                frame.bytes.iter().take(frame.len).map(|byte| format!("{byte:02x}")).collect();
            println!("frame\t{hex}");
        }
        let mut spent = 0;
        for call in 0..CALLS + WARM_UP {
            let mut pages = (0..PACKETS)
                .map(|_| world::page(frame.bytes.get(..frame.len).unwrap_or_default()))
                .collect::<Result<Vec<_>, _>>()?;
            let begun = Instant::now();
            let fates = by_client(&mut world, &mut pages);
            if call >= WARM_UP {
                spent += begun.elapsed().as_nanos();
            }
            if fates.iter().any(|fate| matches!(fate, Some(firewall::Fate::Send(to)) if *to == firewall::PortId::Uplink)) {
                return Err("a packet that no rule accepts was accepted".into());
            }
        }
        println!("time\t{rules}\t{:.2}", spent as f64 / (CALLS * PACKETS) as f64);
    }
    Ok(())
}
