//! Instructions of the packet core, by callgrind.

use super::report::Report;
use crate::error::Result;
use crate::fail;
use crate::xtask::callgrind;
use crate::xtask::parts::first_packet;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let counts = callgrind::count("established")?;
    let mut most = 0.0_f64;
    let mut lines = Vec::new();
    for count in &counts {
        let [direction, family] = count.labels.as_slice() else {
            fail!("what was measured? {count:?}")
        };
        lines.push(format!("{direction:<5} {family} {:>6.0}", count.per_packet));
        let key = format!(
            "engine.established.{direction}{}.instructions",
            family.trim_start_matches("IPv")
        );
        report.figure(key, count.per_packet);
        most = most.max(count.per_packet);
    }
    report.table("Instructions of an established connection's packet", lines);
    report.figure("engine.established.instructions", most);

    let rows = first_packet::rows(&callgrind::count("first-packet")?)?;
    let lines = rows.iter().map(first_packet::Row::line).collect();
    report.table("Instructions of a flow's first packet: 10 rules, 1,000 rules, times", lines);
    // The shape that costs most with many rules.
    if let Some(row) = rows.iter().max_by(|a, b| a.many.total_cmp(&b.many)) {
        report.figure("engine.first_10.instructions", row.few);
        report.figure("engine.first_1000.instructions", row.many);
    }
    Ok(())
}
