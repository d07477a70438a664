//! Counts instructions: `integration/measure` has the packets, callgrind counts, so that the numbers are the same on every
//! machine and whatever else runs on it.

use std::fs;
use std::path::Path;

use super::image::cargo;
use crate::error::{Attempt, Result};
use crate::{apt, command, fail, paths, progress};

const PACKAGES: &[&str] = &["valgrind"];

/// One count.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// What the program said of it; the last field of its line, the number of packets, is left out.
    pub labels: Vec<String>,
    /// Instructions of one packet.
    pub per_packet: f64,
}

/// Runs what `integration/measure` calls `what` and counts.
///
/// # Errors
/// When it cannot be built or counted.
pub fn count(what: &str) -> Result<Vec<Count>> {
    apt::ensure(PACKAGES)?;
    progress::step("building what is measured", || {
        command::output(&mut cargo(&["build", "--quiet", "--profile", "measured", "-p", "measure"]))
    })?;
    progress::step("counting instructions", || {
        let dir = paths::target().join("callgrind").join(what);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).doing(|| format!("cannot make {}", dir.display()))?;
        let out = command::output(
            command::new("valgrind", &["--tool=callgrind", "--quiet"])
                .arg("--toggle-collect=measure::measured")
                .arg("--dump-before=measure::report")
                .arg(format!("--callgrind-out-file={}", dir.join("out").display()))
                .arg(paths::target().join("measured/measure"))
                .arg(what),
        )?;
        let lines = out.lines().enumerate();
        let file = |at: usize| dir.join(format!("out.{}", at.saturating_add(1)));
        lines.map(|(at, line)| read(line, &file(at))).collect()
    })
}

/// A line of the program and the file that callgrind wrote when it was printed.
fn read(line: &str, file: &Path) -> Result<Count> {
    let text = fs::read_to_string(file).doing(|| format!("cannot read {}", file.display()))?;
    let mut labels: Vec<String> = line.split('\t').map(str::to_owned).collect();
    let packets = labels.pop().and_then(|packets| packets.parse::<u32>().ok());
    let (Some(total), Some(packets)) = (total(&text), packets.filter(|count| *count > 0)) else {
        fail!("{}: no total for {line:?}", file.display());
    };
    let per_packet = f64::from(total) / f64::from(packets);
    // The shortest way of a packet takes a hundred: less means that callgrind did not know the function.
    if per_packet < 100.0 {
        fail!("{line:?}: hardly anything was counted ({per_packet} instructions)");
    }
    Ok(Count { labels, per_packet })
}

/// The instructions of one dump.
fn total(dump: &str) -> Option<u32> {
    dump.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_read_from_a_dump() {
        assert_eq!(total("version: 1\nfn=(1)\n1 2\ntotals: 77888\n"), Some(77_888));
        assert_eq!(total("version: 1\n"), None);
    }

    #[test]
    fn what_was_not_counted_is_an_error() {
        let dump = std::env::temp_dir().join(format!("callgrind-dump-{}", std::process::id()));
        fs::write(&dump, "totals: 32000\n").unwrap();
        let count = read("up\tIPv4\t16", &dump).unwrap();
        assert_eq!((count.labels.join(" "), count.per_packet), ("up IPv4".into(), 2000.0));
        assert!(read("up\tIPv4\t0", &dump).is_err());
        assert!(read("up\tIPv4\t16000", &dump).is_err(), "two instructions");
        fs::write(&dump, "").unwrap();
        assert!(read("up\tIPv4\t16", &dump).is_err());
        fs::remove_file(&dump).unwrap();
    }
}
