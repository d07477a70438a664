//! What the first packet of a flow costs against many rules and against few: in instructions, through the whole core.
//!
//! `integration/measure` has the rule sets and the packets; callgrind counts, so that the numbers are the same on every
//! machine and whatever else runs on it. They can be had by hand with `cargo xtask test --long first-packet`. That the
//! limit can be missed: with the interpreter in the place of the compiled set (`rules.rules().evaluate` in
//! `src/judge.rs`) every row is over it.

use std::fs;
use std::path::Path;

use crate::error::{Attempt, Result};
use crate::xtask::image::cargo;
use crate::{apt, command, fail, paths, progress};

const PACKAGES: &[&str] = &["valgrind"];
/// 1,000 rules may cost so many times what 10 cost.
const LIMIT: f64 = 4.0;
const FEW: usize = 10;
const MANY: usize = 1000;

/// One count.
#[derive(Clone, Debug, PartialEq)]
struct Count {
    /// Shape of the rule set, and what decides.
    case: String,
    rules: usize,
    per_packet: f64,
}

/// Counts, prints the table and holds it to the limit.
///
/// # Errors
/// When a case costs too much with many rules, or nothing could be counted.
pub fn run() -> Result<()> {
    apt::ensure(PACKAGES)?;
    progress::step("building what is measured", || {
        command::output(&mut cargo(&["build", "--quiet", "--profile", "measured", "-p", "measure"]))
    })?;
    let counts = progress::step("counting instructions", count)?;
    judge(&counts).map(|lines| lines.iter().for_each(progress::say))
}

/// Runs the program under callgrind.
fn count() -> Result<Vec<Count>> {
    let dir = paths::target().join("first-packet");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).doing(|| format!("cannot make {}", dir.display()))?;
    let out = command::output(
        command::new("valgrind", &["--tool=callgrind", "--quiet"])
            .arg("--toggle-collect=first_packet::measured")
            .arg("--dump-before=first_packet::report")
            .arg(format!("--callgrind-out-file={}", dir.join("out").display()))
            .arg(paths::target().join("measured/first_packet")),
    )?;
    let lines = out.lines().enumerate();
    lines.map(|(at, line)| read(line, &dir.join(format!("out.{}", at.saturating_add(1))))).collect()
}

/// A line of the program and the file that callgrind wrote when it was printed.
fn read(line: &str, file: &Path) -> Result<Count> {
    let text = fs::read_to_string(file).doing(|| format!("cannot read {}", file.display()))?;
    let total = total(&text);
    let [shape, rules, end, packets] = line.split('\t').collect::<Vec<_>>()[..] else {
        fail!("first_packet printed {line:?}");
    };
    let (Some(total), Ok(rules), Ok(packets)) = (total, rules.parse(), packets.parse::<u32>())
    else {
        fail!("{}: no total for {line:?}", file.display());
    };
    let per_packet = f64::from(total) / f64::from(packets);
    Ok(Count { case: format!("{shape}, {end}"), rules, per_packet })
}

/// The instructions of one dump.
fn total(dump: &str) -> Option<u32> {
    dump.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

/// The table, if all of it is within the limit.
fn judge(counts: &[Count]) -> Result<Vec<String>> {
    let mut lines = vec![format!(
        "instructions of a flow's first packet: {FEW} rules, {MANY} rules, times (at most {LIMIT})"
    )];
    let mut over = Vec::new();
    for few in counts.iter().filter(|count| count.rules == FEW) {
        let is_other = |count: &&Count| count.rules == MANY && count.case == few.case;
        let Some(many) = counts.iter().find(is_other) else {
            fail!("{} was not measured with {MANY} rules", few.case);
        };
        // A packet that opens a flow takes thousands: less means that callgrind did not know the function.
        if few.per_packet < 500.0 || many.per_packet < 500.0 {
            fail!("{}: hardly anything was counted ({few:?}, {many:?})", few.case);
        }
        let times = many.per_packet / few.per_packet;
        let line = format!(
            "{:<36} {:>8.0} {:>8.0} {times:>6.2}",
            few.case, few.per_packet, many.per_packet
        );
        if times > LIMIT {
            over.push(line.clone());
        }
        lines.push(line);
    }
    match over.as_slice() {
        [] if lines.len() == 1 => fail!("nothing was measured"),
        [] => Ok(lines),
        over => fail!(
            "more than {LIMIT} times the instructions with {MANY} rules:\n{}",
            over.join("\n")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rules: usize, per_packet: f64) -> Count {
        Count { case: "hosts, policy".into(), rules, per_packet }
    }

    #[test]
    fn more_than_the_limit_fails() {
        assert_eq!(judge(&[count(10, 2000.0), count(1000, 8000.0)]).unwrap().len(), 2);
        let error = judge(&[count(10, 2000.0), count(1000, 8001.0)]).unwrap_err();
        assert!(error.to_string().contains("hosts, policy"), "{error}");
    }

    #[test]
    fn what_was_not_counted_fails() {
        assert!(judge(&[]).is_err());
        assert!(judge(&[count(10, 2000.0)]).is_err());
        assert!(judge(&[count(10, 0.0), count(1000, 0.0)]).is_err());
    }

    #[test]
    fn a_total_is_read_from_a_dump() {
        assert_eq!(total("version: 1\nfn=(1)\n1 2\ntotals: 77888\n"), Some(77_888));
        assert_eq!(total("version: 1\n"), None);
    }
}
