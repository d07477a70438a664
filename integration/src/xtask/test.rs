//! `cargo xtask test`: every tier in its short form. Steps go on after a failure, so that one run tells all.

use std::fs;
use std::time::Instant;

use super::image::{Image, cargo};
use super::parts::{self, Part};
use super::{audit, coverage, image, package, scenarios, smoke};
use crate::error::{Attempt, Result};
use crate::{apt, command, fail, paths, progress};

/// Runs the checks; without the lab when `fast`.
///
/// # Errors
/// When one of them fails; all are named.
pub fn run(fast: bool) -> Result<()> {
    let begun = Instant::now();
    let mut report = Report::default();
    sources(&mut report);
    if fast {
        unit_tests(&mut report);
    }
    let is_beside_lab = |part: &&Part| part.is_patient && !fast;
    let (patient, first): (Vec<&Part>, Vec<&Part>) = parts::ALL.iter().partition(is_beside_lab);
    report.parts(&first);
    let mut built = None;
    // The last part of an image's build leaves a processor idle.
    report.beside("packaging", packaging, |report| {
        report.check("image", || {
            built = Some(image::build()?);
            Ok(())
        });
    });
    if let Some(image) = &built {
        report.check("package in an empty root", || package::check(image));
        report.check("image in plain QEMU", || smoke::run(image));
    }
    if fast {
        more_sources(&mut report);
    } else {
        lab(&mut report, built.as_ref(), &patient);
    }
    report.end(begun)
}

/// What runs in dom0, among stand-ins of its programs; the rule tool judges the rules that are proposed there.
fn packaging() -> Result<()> {
    if !command::exists("python3") {
        apt::ensure(apt::PYTHON)?;
    }
    command::output(&mut cargo(&["build", "--quiet", "--bin", "qfw"]))?;
    let mut test = command::new(paths::root().join("packaging/test"), &[]);
    command::output(test.env("QFW", paths::target().join("debug/qfw"))).map(drop)
}

/// How the checks ended so far.
#[derive(Default)]
struct Report {
    /// Names and reasons, which the last lines repeat: of a long report often only the end is kept.
    failures: Vec<String>,
    not_run: Vec<&'static str>,
}

impl Report {
    fn check(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        if let Err(error) = progress::step(name, work) {
            progress::say(format!("FAILED {name}: {error}"));
            self.failures.push(format!("{name}: {}", command::shortened(&error.to_string())));
            return false;
        }
        true
    }

    /// The short forms that exist.
    fn parts(&mut self, parts: &[&Part]) {
        for part in parts {
            let Some(short) = part.short else { continue };
            match (part.refusal)() {
                Ok(Some(reason)) => {
                    progress::say(format!("NOT RUN {}: {reason}", part.name));
                    self.not_run.push(part.name);
                }
                Ok(None) => drop(self.check(part.name, short)),
                Err(error) => drop(self.check(part.name, || fail!("{error}"))),
            }
        }
    }

    /// A check that runs beside others.
    fn beside(
        &mut self,
        name: &'static str,
        work: fn() -> Result<()>,
        others: impl FnOnce(&mut Self),
    ) {
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let mut report = Self::default();
                report.check(name, work);
                report
            });
            others(self);
            match beside.join() {
                Ok(done) => self.add(done),
                Err(_) => self.failures.push(format!("{name}: it panicked")),
            }
        });
    }

    fn add(&mut self, other: Self) {
        self.failures.extend(other.failures);
        self.not_run.extend(other.not_run);
    }

    fn end(self, begun: Instant) -> Result<()> {
        let seconds = begun.elapsed().as_secs();
        let passed = match self.not_run.as_slice() {
            [] => "all checks passed".to_owned(),
            names => format!("what could run here passed, NOT RUN: {};", names.join(", ")),
        };
        match self.failures.as_slice() {
            [] => {
                progress::say(format!("{passed} in {} min {:02} s", seconds / 60, seconds % 60));
                Ok(())
            }
            failures => {
                fail!("{} of the checks failed:\n{}", failures.len(), failures.join("\n"))
            }
        }
    }
}

/// What the sources alone tell.
fn sources(report: &mut Report) {
    report.check("fmt", || command::output(&mut cargo(&["fmt", "--all", "--check"])).map(drop));
    report.check("clippy: workspace, the core without platform", || {
        clippy(&["--workspace", "--all-targets"])
    });
    report.check("licences, dependency directions, unsafe code", audit::run);
}

/// The tests of all crates, and which requirements they cover. Beside the lab, which they keep from nothing: that takes
/// longer than everything else together.
fn unit_tests(report: &mut Report) {
    let mut ran = Vec::new();
    report.check("tests", || {
        ran = coverage::ran(&command::output(&mut cargo(&["test", "--workspace"]))?);
        Ok(())
    });
    if !ran.is_empty() {
        report.check("requirements and their tests", || coverage::report(&ran));
    }
}

/// The same for what has no time limit of its own: the platform, the image, the documentation.
fn more_sources(report: &mut Report) {
    report.check("clippy: platform on the in-memory hypervisor", || {
        clippy(&["--lib", "--tests", "--examples", "--features", "fake"])
    });
    report.check("clippy: image", || clippy(&[&["--profile", "image"], image::BINARY].concat()));
    report.check("tests: platform on the in-memory hypervisor", || {
        let only = ["test", "--quiet", "--lib", "--features", "fake", "platform"];
        command::output(&mut cargo(&only)).map(drop)
    });
    report.check("docs", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
        command::output(doc.env("RUSTDOCFLAGS", "-D warnings")).map(drop)
    });
}

/// The lab's own sources, which need its packages.
fn lab_sources(report: &mut Report) {
    report.check("clippy: lab", || {
        clippy(&["-p", "integration", "--features", "lab", "--all-targets"])
    });
    report.check("tests: lab", || {
        let tests = ["test", "-p", "integration", "--features", "lab", "--quiet"];
        command::output(&mut cargo(&tests)).map(drop)
    });
}

/// The scenarios, and `patient` parts beside them: emulation leaves a good part of two cores idle.
fn lab(report: &mut Report, image: Option<&Image>, patient: &[&Part]) {
    let is_ready = report.check("lab: packages", || apt::ensure(apt::LAB));
    // What Cargo builds for the scenarios is there before others ask for it.
    let mut images = None;
    if is_ready {
        report.check("lab", || {
            images = Some(scenarios::prepare()?);
            Ok(())
        });
    }
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| {
            let mut report = Report::default();
            match give_way() {
                Ok(()) => {
                    unit_tests(&mut report);
                    more_sources(&mut report);
                    if is_ready {
                        lab_sources(&mut report);
                    }
                    report.parts(patient);
                }
                Err(error) => drop(report.check("priority", || Err(error))),
            }
            report
        });
        match (image, &images) {
            (Some(image), Some(images)) => {
                if let Err(error) = scenarios::run_all(images, image) {
                    progress::say(format!("FAILED scenarios: {error}"));
                    report.failures.push(format!("scenarios: {error}"));
                }
            }
            (None, _) => report.failures.push("scenarios (no image to run)".into()),
            (_, None) => report.failures.push("scenarios (no lab)".into()),
        }
        match patient.join() {
            Ok(done) => report.add(done),
            Err(_) => report.failures.push("a part beside the lab".into()),
        }
    });
}

/// Lowers the priority of this thread and of what it starts.
fn give_way() -> Result<()> {
    let own = fs::read_link("/proc/thread-self").doing(|| "cannot tell this thread's number")?;
    let number = own.file_name().unwrap_or_default();
    command::output(command::new("renice", &["-n", "10", "-p"]).arg(number)).map(drop)
}

fn clippy(args: &[&str]) -> Result<()> {
    let mut line = cargo(&["clippy", "--quiet"]);
    line.args(args).args(["--", "-D", "warnings"]);
    command::output(&mut line).map(drop)
}
