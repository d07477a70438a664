//! Counts instructions: `integration/measure` has the packets, callgrind counts, so that the numbers are the same on every
//! machine and whatever else runs on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Builds the program of `integration/measure`, with the optimisations of the image.
///
/// # Errors
/// When it cannot be built.
pub fn program() -> Result<PathBuf> {
    progress::step("building what is measured", || {
        command::output(&mut cargo(&["build", "--quiet", "--profile", "measured", "-p", "measure"]))
    })?;
    Ok(paths::target().join("measured/measure"))
}

/// Runs what `integration/measure` calls `what` and counts.
///
/// # Errors
/// When it cannot be built or counted.
pub fn count(what: &str) -> Result<Vec<Count>> {
    count_within(what, "measure::measured")
}

/// The same for the instructions within one function, with those that it calls; in the preparations, too.
///
/// # Errors
/// When it cannot be built or counted, or the function has become a part of its callers.
pub fn count_within(what: &str, function: &str) -> Result<Vec<Count>> {
    apt::ensure(PACKAGES)?;
    let program = program()?;
    progress::step("counting instructions", || {
        let dir = paths::target().join("callgrind").join(what);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).doing(|| format!("cannot make {}", dir.display()))?;
        let out = command::output(
            command::new("valgrind", &["--tool=callgrind", "--quiet"])
                .arg(format!("--toggle-collect={function}"))
                .arg("--dump-before=measure::report")
                .arg(format!("--callgrind-out-file={}", dir.join("out").display()))
                .arg(program)
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
    // What the measuring itself takes is a few dozen: less means that callgrind did not know the function.
    if per_packet < 10.0 {
        fail!("{line:?}: hardly anything was counted ({per_packet} instructions)");
    }
    Ok(Count { labels, per_packet })
}

/// Instructions within `function` (a pattern of callgrind's), by the function that ran them: its own, without those that
/// it called.
///
/// # Errors
/// When the program fails, or nothing was counted.
pub fn by_function(program: &mut Command, function: &str) -> Result<Vec<(String, u64)>> {
    apt::ensure(PACKAGES)?;
    let dir = paths::target().join("callgrind/functions");
    fs::create_dir_all(&dir).doing(|| format!("cannot make {}", dir.display()))?;
    let file = dir.join("out");
    command::output(
        command::new("valgrind", &["--tool=callgrind", "--quiet"])
            .arg(format!("--toggle-collect={function}"))
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(program.get_program())
            .args(program.get_args()),
    )?;
    let text = command::output(
        command::new("callgrind_annotate", &["--threshold=100", "--auto=no"]).arg(&file),
    )?;
    match functions(&text) {
        list if list.is_empty() => fail!("{function}: nothing was counted"),
        list => Ok(list),
    }
}

/// Lines such as `1,234 ( 0.05%)  file:function [program]`.
fn functions(text: &str) -> Vec<(String, u64)> {
    let lines = text.lines().filter_map(|line| {
        let (count, rest) = line.trim_start().split_once(" (")?;
        let (_, name) = rest.split_once("%)  ")?;
        Some((name.to_owned(), count.replace(',', "").parse().ok()?))
    });
    lines.filter(|(name, _)| name != "PROGRAM TOTALS").collect()
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
    fn instructions_are_told_apart_by_function() {
        let text = "25,347,483 (100.0%)  PROGRAM TOTALS\n\nIr  file:function\n\
                    360,319 ( 1.42%)  ???:<a::Heap as b>::alloc [x]\n 12 ( 0.00%)  m.c:free [y]\n";
        let list = functions(text);
        assert_eq!(list[0], ("???:<a::Heap as b>::alloc [x]".into(), 360_319));
        assert_eq!((list.len(), list[1].1), (2, 12));
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
