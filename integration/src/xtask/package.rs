//! `cargo xtask package`: the RPM for dom0. `cargo xtask release`: everything that is given away, signed. The work is
//! done by the scripts of `packaging/`; this gives them what they need and says what came out.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::image::{self, Image};
use super::parts::record::Record;
use super::{reproduce, sbom};
use crate::error::{Attempt, Result};
use crate::lab::cache;
use crate::{apt, command, fail, paths, progress};

/// Debian packages that build the RPM, that test it, and that sign a release.
const BUILD: &[&str] = &["rpm"];
const TEST: &[&str] = &["rpm", "busybox-static", "faketime"];
const SIGN: &[&str] = &["rpm", "gnupg"];

/// Salt for its formula: the releases that dom0's Python has are of this line. What follows it is what it imports and
/// does not name, or names too loosely.
const SALT: &[&str] =
    &["salt==3006.9", "msgpack<2", "distro", "looseversion", "packaging", "pyyaml", "jinja2"];

/// Builds the package and says where it is, its size and its hash.
///
/// # Errors
/// When something of it does not build.
pub fn run() -> Result<PathBuf> {
    let image = image::build()?;
    build(&image)
}

fn build(image: &Image) -> Result<PathBuf> {
    apt::ensure(BUILD)?;
    let out = paths::target().join("package");
    let bill = sbom::write(image, &out)?;
    let mut line = script("rpm/build");
    line.arg(&image.path).arg(env!("CARGO_PKG_VERSION")).arg(&out).args(&bill);
    let said = progress::step("building the package", || command::output(&mut line))?;
    let Some(path) = said.lines().last().map(PathBuf::from) else {
        fail!("packaging/rpm/build does not say what it built");
    };
    let bytes = fs::read(&path).doing(|| format!("cannot read {}", path.display()))?;
    progress::say(format!(
        "package: {} ({} bytes, SHA-256 {})",
        path.display(),
        bytes.len(),
        cache::hex(&Sha256::digest(&bytes))
    ));
    Ok(path)
}

/// The package of an image as some version, without the bill of materials: for what installs it.
///
/// # Errors
/// When it does not build.
pub fn of_version(image: &Path, version: &str, out: &Path) -> Result<PathBuf> {
    apt::ensure(TEST)?;
    let mut line = script("rpm/build");
    let said = command::output(line.arg(image).arg(version).arg(out))?;
    match said.lines().last() {
        Some(path) => Ok(PathBuf::from(path)),
        None => fail!("packaging/rpm/build does not say what it built"),
    }
}

/// `packaging/rpm/root`: an empty root in `folder` with what dom0 has, and rpm in it.
///
/// # Errors
/// When it fails.
pub fn root(command: &str, folder: &Path, words: &[&str]) -> Result<String> {
    apt::ensure(TEST)?;
    command::output(as_root("rpm/root")?.arg(command).arg(folder).args(words))
}

/// In `test`: the package in an empty root.
///
/// # Errors
/// When a check fails.
pub fn check(image: &Image) -> Result<()> {
    apt::ensure(TEST)?;
    command::output(as_root("rpm/test")?.arg(&image.path)).map(drop)
}

/// `test --long package`: what needs minutes, or what `test` does not install.
///
/// # Errors
/// When a check fails.
pub fn long() -> Result<()> {
    let mut record = Record::open("package")?;
    let mut done = |item: &str, work: &dyn Fn() -> Result<()>| -> Result<()> {
        if record.get(item).is_none() {
            progress::step(item, work)?;
            record.put(item, json!("passed"))?;
        }
        Ok(())
    };
    done("image built twice", &|| reproduce::verify().map(drop))?;
    done("image without a network", &|| {
        let usual = image::build()?.sha256;
        let alone = reproduce::offline()?.sha256;
        if usual != alone {
            fail!("with a network {usual}, without one {alone}");
        }
        Ok(())
    })?;
    done("package in an empty root", &|| check(&image::build()?))?;
    done("formula under Salt", &salt)?;
    done("release, signed and verified", &|| {
        apt::ensure(SIGN)?;
        let image = image::build()?;
        let package = build(&image)?;
        command::output(script("tests/release").arg(&image.path).arg(&package)).map(drop)
    })?;
    record.finish().map(drop)
}

/// The formula under Salt's own `salt-call`, on the stand-in dom0.
fn salt() -> Result<()> {
    let venv = paths::target().join("salt");
    let call = venv.join("bin/salt-call");
    if !call.exists() {
        command::output(command::new("python3", &["-m", "venv"]).arg(&venv))?;
        let mut pip = command::new(venv.join("bin/pip"), &["install", "--quiet"]);
        command::output(pip.args(SALT))?;
    }
    command::output(script("tests/salt").arg(&call)).map(drop)
}

/// `cargo xtask release --key KEY`: the verified image, the package, the bill of materials, sums and signatures.
///
/// # Errors
/// When something does not build, is not reproducible, or cannot be signed.
pub fn release(key: &str) -> Result<()> {
    apt::ensure(SIGN)?;
    let image = reproduce::verify()?;
    let package = build(&image)?;
    let out = paths::target().join("release-files");
    let mut line = script("release");
    line.arg(key).arg(&out).args([&image.path, &package]);
    let beside = package.parent().unwrap_or(Path::new(""));
    line.args(["sbom.cdx.json", "LICENCES.txt"].map(|name| beside.join(name)));
    // gpg may ask for the passphrase.
    command::status(&mut line)?;
    progress::say(format!("release: {}", out.display()));
    Ok(())
}

fn script(name: &str) -> Command {
    let mut line = command::new(paths::root().join("packaging").join(name), &[]);
    line.current_dir(paths::root());
    line
}

fn as_root(name: &str) -> Result<Command> {
    if command::output(&mut command::new("id", &["-u"]))?.trim() == "0" {
        return Ok(script(name));
    }
    let mut line = command::new("sudo", &[]);
    line.arg(paths::root().join("packaging").join(name)).current_dir(paths::root());
    Ok(line)
}
