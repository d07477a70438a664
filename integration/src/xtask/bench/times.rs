//! Times of the packet core on this machine: criterion, `integration/measure/benches/engine.rs`. Printed, not judged.

use super::report::Report;
use crate::error::Result;
use crate::xtask::image::cargo;
use crate::{command, fail, progress};

/// What there has to be.
const CASES: usize = 13;

const BENCH: &[&str] = &[
    "bench",
    "--quiet",
    "--profile",
    "measured",
    "-p",
    "measure",
    "--features",
    "times",
    "--bench",
    "engine",
];

pub(super) fn run(report: &mut Report) -> Result<()> {
    progress::step("building what is timed", || command::output(cargo(BENCH).arg("--no-run")))?;
    let text = progress::step("timing the core", || {
        command::output(cargo(BENCH).args(["--", "--output-format", "bencher"]))
    })?;
    let times = read(&text)?;
    let mut lines = Vec::new();
    for Time { name, nanos, spread } in &times {
        lines.push(format!("{name:<30} {nanos:>7.0} ns (+/- {spread:.0})"));
        report.figure(format!("engine.time.{}.ns", name.replace('/', ".")), *nanos);
    }
    lines.push(
        "With rules: the mixture, none of which matches; with flows: ten rules that name hosts."
            .into(),
    );
    report.table("Time of a packet on this machine", lines);
    Ok(())
}

#[derive(Debug, PartialEq)]
struct Time {
    name: String,
    nanos: f64,
    spread: f64,
}

/// Lines such as `test first/rules_10 ... bench:       1,703 ns/iter (+/- 268)`.
fn read(text: &str) -> Result<Vec<Time>> {
    let mut times = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let number = |text: &str| text.trim().replace(',', "").parse::<f64>().ok();
        let parts = || {
            let (name, rest) = line.strip_prefix("test ")?.split_once(" ... bench:")?;
            let (nanos, spread) = rest.split_once(" ns/iter (+/- ")?;
            let (nanos, spread) = (number(nanos)?, number(spread.strip_suffix(')')?)?);
            Some(Time { name: name.into(), nanos, spread })
        };
        match parts() {
            Some(time) if time.nanos > 0.0 => times.push(time),
            _ => fail!("no time: {line:?}"),
        }
    }
    match times.len() {
        CASES => Ok(times),
        found => fail!("{found} times, not {CASES}:\n{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_none_may_be_missing() {
        let line = "test first/rules_10 ... bench:       1,703 ns/iter (+/- 268)\n\n";
        let times = read(&line.repeat(CASES)).unwrap();
        let wanted = Time { name: "first/rules_10".into(), nanos: 1703.0, spread: 268.0 };
        assert_eq!(times.first(), Some(&wanted));
        assert!(read(&line.repeat(CASES - 1)).is_err());
        assert!(read(&format!("{}error\n", line.repeat(CASES))).is_err());
        assert!(read(&line.repeat(CASES).replace("1,703", "0")).is_err());
    }
}
