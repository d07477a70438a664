//! Instructions of the packet core, by callgrind.

use super::report::Report;
use crate::error::Result;
use crate::fail;
use crate::xtask::callgrind;
use crate::xtask::parts::first_packet;

pub(super) fn run(report: &mut Report) -> Result<()> {
    let counts = callgrind::count("established")?;
    let Some((nothing, counts)) = counts.split_first() else { fail!("nothing was measured") };
    if nothing.labels.first().is_none_or(|label| label != "nothing") || nothing.per_packet > 50.0 {
        fail!("what the measuring takes: {nothing:?}");
    }
    let mut most = 0.0_f64;
    let mut lines = Vec::new();
    for count in counts {
        let [direction, family] = count.labels.as_slice() else {
            fail!("what was measured? {count:?}")
        };
        let own = count.per_packet - nothing.per_packet;
        lines.push(format!("{direction:<5} {family} {own:>6.0}"));
        let key = format!(
            "engine.established.{direction}{}.instructions",
            family.trim_start_matches("IPv")
        );
        report.figure(key, own);
        most = most.max(own);
    }
    lines.push(format!("(without {:.0} of the measuring itself)", nothing.per_packet));
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
