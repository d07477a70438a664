//! `cargo xtask test`: every tier in its short form. Steps go on after a failure, so that one run tells all.

use std::time::Instant;

use super::image::cargo;
use super::{audit, coverage, image, parts, scenarios, smoke};
use crate::error::Result;
use crate::{apt, command, fail, paths, progress};

/// Runs the checks; without the lab when `fast`.
///
/// # Errors
/// When one of them fails; all are named.
pub fn run(fast: bool) -> Result<()> {
    let begun = Instant::now();
    let mut failures = Vec::new();
    let mut check = |name: &str, work: &mut dyn FnMut() -> Result<()>| {
        if let Err(error) = progress::step(name, work) {
            progress::say(format!("FAILED {name}: {error}"));
            failures.push(name.to_owned());
            return false;
        }
        true
    };
    check("fmt", &mut || command::output(&mut cargo(&["fmt", "--all", "--check"])).map(drop));
    check("clippy: workspace, the core without platform", &mut || {
        clippy(&["--workspace", "--all-targets"])
    });
    check("clippy: platform on the in-memory hypervisor", &mut || {
        clippy(&["--lib", "--tests", "--features", "fake"])
    });
    check("clippy: image", &mut || clippy(&[&["--profile", "image"], image::BINARY].concat()));
    let mut ran = Vec::new();
    check("tests", &mut || {
        ran = coverage::ran(&command::output(&mut cargo(&["test", "--workspace"]))?);
        Ok(())
    });
    if !ran.is_empty() {
        check("requirements and their tests", &mut || coverage::report(&ran));
    }
    check("tests: platform on the in-memory hypervisor", &mut || {
        let only = ["test", "--quiet", "--lib", "--features", "fake", "platform"];
        command::output(&mut cargo(&only)).map(drop)
    });
    check("docs", &mut || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
        command::output(doc.env("RUSTDOCFLAGS", "-D warnings")).map(drop)
    });
    check("licences, dependency directions, unsafe code", &mut audit::run);
    let mut not_run = Vec::new();
    for part in parts::ALL {
        let Some(mut short) = part.short else { continue };
        match (part.refusal)() {
            Ok(Some(reason)) => {
                progress::say(format!("NOT RUN {}: {reason}", part.name));
                not_run.push(part.name);
            }
            Ok(None) => drop(check(part.name, &mut short)),
            Err(error) => drop(check(part.name, &mut || fail!("{error}"))),
        }
    }
    let packaging = paths::root().join("packaging/test");
    if packaging.exists() {
        check("packaging", &mut || command::output(&mut command::new(&packaging, &[])).map(drop));
    }
    let mut built = None;
    check("image", &mut || {
        built = Some(image::build()?);
        Ok(())
    });
    if let Some(image) = &built {
        check("image in plain QEMU", &mut || smoke::run(image));
    }
    match (&built, fast) {
        (Some(image), false) => {
            let ready = check("lab: packages", &mut || apt::ensure(apt::LAB))
                && check("clippy: lab", &mut || {
                    clippy(&["-p", "integration", "--features", "lab", "--all-targets"])
                })
                && check("tests: lab", &mut || {
                    command::output(&mut cargo(&[
                        "test",
                        "-p",
                        "integration",
                        "--features",
                        "lab",
                        "--quiet",
                    ]))
                    .map(drop)
                });
            if !ready {
                failures.push("lab".into());
            } else if let Err(error) = scenarios::run_all(image) {
                progress::say(format!("FAILED lab: {error}"));
                failures.push("lab".into());
            }
        }
        (None, false) => failures.push("lab (no image to run)".into()),
        (_, true) => {}
    }
    let seconds = begun.elapsed().as_secs();
    let passed = match not_run.as_slice() {
        [] => "all checks passed".to_owned(),
        names => format!("what could run here passed, NOT RUN: {};", names.join(", ")),
    };
    match failures.as_slice() {
        [] => {
            progress::say(format!("{passed} in {} min {:02} s", seconds / 60, seconds % 60));
            Ok(())
        }
        failures => fail!("{} of the checks failed: {}", failures.len(), failures.join("; ")),
    }
}

fn clippy(args: &[&str]) -> Result<()> {
    let mut line = cargo(&["clippy", "--quiet"]);
    line.args(args).args(["--", "-D", "warnings"]);
    command::output(&mut line).map(drop)
}
