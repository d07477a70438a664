//! What rules that do not match cost the first packet of a flow, in time: Linux is measured with the same rules and the same
//! packet beside it (`cargo xtask bench nft`).

use std::time::Instant;

use firewall::{ClientId, Fate, PortId};

use crate::shapes::{End, HOSTS};
use crate::world::World;
use crate::{Page, by_client, through};

/// Packets of one call, calls, and those that warm up.
const PACKETS: usize = 500;
const CALLS: usize = 40;
const WARM_UP: usize = 4;

/// Lines: what the rules say, one for each; the frame in hexadecimal; then the nanoseconds of a packet without a rule and
/// with as many as each argument says.
///
/// # Errors
/// When an argument is no number, or a packet is accepted.
pub fn run(sizes: impl Iterator<Item = String>) -> Result<(), String> {
    let sizes: Vec<usize> = sizes
        .map(|size| size.parse().map_err(|_| format!("how many rules are {size:?}?")))
        .collect::<Result<_, _>>()?;
    for number in 0..sizes.iter().copied().max().unwrap_or(0) {
        println!("rule\t{}", (HOSTS.line)(number));
    }
    for rules in sizes {
        let mut world = World::new(&HOSTS, End::Refused, rules)?;
        let page = world.first_packet(40_000);
        if rules == 0 {
            let hex: String = page.frame().iter().map(|byte| format!("{byte:02x}")).collect();
            println!("frame\t{hex}");
        }
        let mut spent = 0;
        for call in 0..CALLS + WARM_UP {
            let copy = || Page::new(ClientId(0), page.frame());
            let mut pages: Vec<_> = std::iter::repeat_with(copy).take(PACKETS).collect();
            let begun = Instant::now();
            let fates = through(&mut world, by_client, &mut pages);
            if call >= WARM_UP {
                spent += begun.elapsed().as_nanos();
            }
            if fates.contains(&Some(Fate::Send(PortId::Uplink))) {
                return Err("a packet that no rule accepts was accepted".into());
            }
        }
        println!("time\t{rules}\t{:.2}", spent as f64 / (CALLS * PACKETS) as f64);
    }
    Ok(())
}
