//! Fuzzing: the targets of `integration/fuzz` under libFuzzer, with coverage as `cargo fuzz` has it but on the stable
//! compiler: the coverage pass is LLVM's, no sanitizer is needed. Debug assertions and overflow checks are on.
//!
//! `cargo xtask fuzz TARGET --time T` runs one; `test` all of them for a minute together; `test --long fuzz` each for
//! ten minutes, two at a time. What the fuzzer learns stays below `target/fuzz`; a finding is kept there and named.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::record::Record;
use crate::error::{Attempt, Result};

use crate::xtask::image::cargo;
use crate::{apt, command, fail, paths, progress};

/// libFuzzer is C++.
const PACKAGES: &[&str] = &["g++"];
/// What the targets get in every `test`, together.
const SHORT_SECONDS: u64 = 60;
/// What each target gets in `test --long fuzz`.
const LONG_SECONDS: u64 = 600;
/// Targets at a time.
const AT_ONCE: usize = 2;
/// Named, so that the flags meant for the targets do not reach build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What `cargo fuzz` gives the compiler, less the sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// `cargo xtask fuzz TARGET [--time T]`; `T` in seconds, or with `s` or `m` behind it.
///
/// # Errors
/// When there is no such target, or it finds something.
pub fn run(args: &[&str]) -> Result<()> {
    let known = targets()?;
    let (name, seconds) = match args {
        [name] => (*name, SHORT_SECONDS),
        [name, "--time", time] => match seconds(time) {
            Some(seconds) => (*name, seconds),
            None => fail!("--time takes seconds (90), or 90s, or 10m; not {time:?}"),
        },
        _ => fail!("usage: cargo xtask fuzz TARGET [--time T]; targets: {}", known.join(", ")),
    };
    if !known.iter().any(|target| target == name) {
        fail!("no fuzz target {name:?}; there are {}", known.join(", "));
    }
    let runner = build("release")?;
    progress::step(&format!("fuzz {name} for {seconds} s"), || fuzz(&runner, name, seconds))
        .map(|result| progress::say(result.line()))
}

/// In `test`: every target, a minute in all.
///
/// # Errors
/// When something is found.
pub fn short() -> Result<()> {
    let names = targets()?;
    let each = SHORT_SECONDS.div_ceil(names.len().max(1) as u64);
    all(build("short")?, &names, each, &mut |_, _| Ok(()))
}

/// `test --long fuzz`.
///
/// # Errors
/// When something is found.
pub fn long() -> Result<()> {
    let mut record = Record::open("fuzz")?;
    let mut names = targets()?;
    names.retain(|name| record.get(name).is_none());
    if !names.is_empty() {
        let put = &mut |name: &str, done: &Done| record.put(name, done.value());
        all(build("release")?, &names, LONG_SECONDS, put)?;
    }
    record.finish().map(drop)
}

/// The targets: a folder of the corpus each. That each folder has a target is a test of the crate.
fn targets() -> Result<Vec<String>> {
    let corpus = source().join("corpus");
    let mut names: Vec<String> = fs::read_dir(&corpus)
        .doing(|| format!("cannot list {}", corpus.display()))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn source() -> PathBuf {
    paths::root().join("integration/fuzz")
}

fn work() -> PathBuf {
    paths::target().join("fuzz")
}

/// Builds the fuzzer with one of its profiles.
fn build(profile: &str) -> Result<PathBuf> {
    apt::ensure(PACKAGES)?;
    let manifest = source().join("runner/Cargo.toml");
    let manifest = manifest.to_string_lossy();
    let mut line = cargo(&["build", "--quiet", "--locked", "--target", TRIPLE]);
    line.args(["--profile", profile, "--manifest-path", &*manifest])
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", work());
    progress::step("building the fuzz targets", || command::output(&mut line))?;
    Ok(work().join(TRIPLE).join(profile).join("fuzz-runner"))
}

/// Runs the targets, [`AT_ONCE`] at a time; `done` gets each that found nothing.
fn all(
    runner: PathBuf,
    names: &[String],
    seconds: u64,
    done: &mut (dyn FnMut(&str, &Done) -> Result<()> + Send),
) -> Result<()> {
    let queue = Mutex::new(names.iter());
    let outcome = Mutex::new((done, Vec::new()));
    let worker = || {
        let next = || queue.lock().ok()?.next();
        while let Some(name) = next() {
            let result = fuzz(&runner, name, seconds);
            let Ok(mut outcome) = outcome.lock() else { return };
            let (done, errors) = &mut *outcome;
            let kept = result.and_then(|result| {
                progress::say(result.line());
                done(name, &result)
            });
            errors.extend(kept.err().map(|error| error.to_string()));
        }
    };
    progress::step(&format!("fuzz: {} targets, {seconds} s each", names.len()), || {
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(worker);
            }
        });
    });
    match outcome.into_inner().map(|(_, errors)| errors) {
        Ok(errors) if errors.is_empty() => Ok(()),
        Ok(errors) => fail!("{}", errors.join("\n")),
        Err(_) => fail!("a fuzzing thread panicked"),
    }
}

/// What a run without finding did.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    name: String,
    seed: u32,
    seconds: u64,
    runs: u64,
    coverage: u64,
    features: u64,
    peak_rss_mb: u64,
}

impl Done {
    fn line(&self) -> String {
        let Self { name, seed, seconds, runs, coverage, features, .. } = self;
        format!(
            "fuzz {name}: nothing found in {seconds} s, {runs} inputs, seed {seed}, {coverage} edges, {features} features"
        )
    }

    fn value(&self) -> Value {
        json!({
            "seed": self.seed,
            "seconds": self.seconds,
            "runs": self.runs,
            "edges": self.coverage,
            "features": self.features,
            "peak_rss_mb": self.peak_rss_mb,
            "findings": 0,
        })
    }
}

fn fuzz(runner: &Path, name: &str, seconds: u64) -> Result<Done> {
    // 0 would mean "choose one" to libFuzzer.
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.subsec_nanos()).max(1);
    let learnt = work().join("corpus").join(name);
    let findings = work().join("findings").join(name);
    let _ = fs::remove_dir_all(&findings);
    for dir in [&learnt, &findings] {
        fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
    }
    let mut line = command::new(runner, &["-max_len=4096", "-timeout=10", "-rss_limit_mb=1024"]);
    line.env("FUZZ_TARGET", name)
        .arg("-print_final_stats=1")
        .arg(format!("-seed={seed}"))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", findings.display()));
    let dictionary = source().join("dictionaries").join(name);
    if dictionary.exists() {
        line.arg(format!("-dict={}", dictionary.display()));
    }
    line.arg(&learnt);
    let kept = ["corpus", "regressions"].map(|kind| source().join(kind).join(name));
    line.args(kept.iter().filter(|dir| dir.exists()));
    let out = line
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .doing(|| format!("cannot run {}", runner.display()))?;
    let log = String::from_utf8_lossy(&out.stderr);
    if out.status.success() {
        return done(name, seed, seconds, &log);
    }
    let file = fs::read_dir(&findings).into_iter().flatten().flatten().map(|f| f.path()).next();
    let Some(file) = file else {
        fail!("fuzz {name} (seed {seed}): {}\n{}", out.status, command::last_lines(&log, 30))
    };
    let what: Vec<&str> =
        log.lines().skip_while(|line| !line.contains("panicked at")).take(4).collect();
    fail!(
        "fuzz {name} (seed {seed}) found something: {}\n{}\nreplay: cargo run -p fuzz --bin replay {name} {}",
        file.display(),
        what.join("\n"),
        file.display()
    )
}

fn done(name: &str, seed: u32, seconds: u64, log: &str) -> Result<Done> {
    let stat = |key: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.trim().parse().ok())
    };
    // The last progress line: `#12 DONE cov: 34 ft: 56 corp: ...`.
    let last = log.lines().rfind(|line| line.contains(" cov: ")).unwrap_or_default();
    let after = |key: &str| {
        let mut words = last.split_whitespace().skip_while(|word| *word != key);
        words.nth(1).and_then(|word| word.parse().ok())
    };
    match (stat("stat::number_of_executed_units:"), after("cov:"), after("ft:")) {
        (Some(runs), Some(coverage), Some(features)) if runs > 0 && coverage > 0 => Ok(Done {
            name: name.into(),
            seed,
            seconds,
            runs,
            coverage,
            features,
            peak_rss_mb: stat("stat::peak_rss_mb:").unwrap_or(0),
        }),
        _ => fail!("fuzz {name} ran nothing:\n{}", command::last_lines(log, 20)),
    }
}

/// `90`, `90s` or `10m` in seconds.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(number) => (number, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(["90", "90s", "10m"].map(seconds), [Some(90), Some(90), Some(600)]);
        assert_eq!(["", "0", "m", "-1", "1h"].map(seconds), [None; 5]);
    }

    #[test]
    fn what_a_run_did_is_read_from_its_log() {
        let log = "INFO: x\n#9\tDONE   cov: 195 ft: 977 corp: 2/3b\nstat::number_of_executed_units: 364545\nstat::peak_rss_mb:              29\n";
        let done_it = done("rules", 7, 8, log).unwrap();
        assert_eq!((done_it.runs, done_it.coverage, done_it.features), (364_545, 195, 977));
        assert_eq!(done_it.peak_rss_mb, 29);
        assert!(done("rules", 7, 8, "").is_err(), "a run that did nothing is no pass");
    }
}
