//! The image again, elsewhere: `cargo xtask image --verify` in another place, language, time zone and mask, from files
//! of another date, where the same bytes must come out; `cargo xtask image --offline` from `vendor/` alone, without a network.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use super::image::{self, Image};
use crate::error::{Attempt, Error, Result};
use crate::{command, fail, paths, progress};

/// Builds the image as usual, and from a copy of the sources at another place, of another date; compares them. The clock
/// is not changed: rustc does not start under `faketime`, and nothing that it runs here asks for the time of day.
///
/// # Errors
/// When one does not build, or they differ: the first difference is named.
pub fn verify() -> Result<Image> {
    let first = image::build()?;
    let work = paths::target().join("verify/a-place-with-another-name");
    let _ = fs::remove_dir_all(&work);
    let root = work.join("sources");
    copy_sources(&root)?;
    let home = other_home(&work)?;
    let target = work.join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--offline", "--locked", "--profile", "image"];
    let words: Vec<OsString> = std::iter::once(cargo)
        .chain(args.iter().chain(image::BINARY).map(OsString::from))
        .collect();
    let mut build = masked(&words);
    build
        .current_dir(&root)
        .env("CARGO_HOME", &home)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_BUILD_JOBS", "1")
        .env("RUSTFLAGS", image::remap_of(&root, &home))
        .env("TZ", "Asia/Tokyo")
        .env("LC_ALL", "C.UTF-8")
        .env("SOURCE_DATE_EPOCH", "1700000000");
    strip_of_cargo(&mut build);
    progress::step("building it again, elsewhere", || command::output(&mut build))?;
    let second = image::measure(target.join("image/vmlinuz"))?;
    compare(&first.path, &second.path)?;
    progress::say(format!("the same {} bytes, SHA-256 {}", first.size, first.sha256));
    fs::remove_dir_all(&work).doing(|| format!("cannot remove {}", work.display()))?;
    Ok(first)
}

/// Builds the image from `vendor/`, in a network namespace without any interface. Fills `vendor/` first where it is
/// missing or older than `Cargo.lock`: that alone needs what Cargo downloads.
///
/// # Errors
/// When something is missing, or it does not build.
pub fn offline() -> Result<Image> {
    let vendor = vendored()?;
    let target = paths::target().join("offline");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = command::new("unshare", &[]);
    // Without root a user namespace of one's own is needed for it.
    build.args(if is_root()? { &["--net"][..] } else { &["--map-root-user", "--net"] });
    build.arg(cargo).arg("--config").arg(vendor.join(CONFIG));
    build.args(["build", "--offline", "--locked", "--profile", "image"]).args(image::BINARY);
    build
        .current_dir(paths::root())
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", image::remap_of(&paths::root(), &image::cargo_home()));
    strip_of_cargo(&mut build);
    progress::step("building the image without a network", || command::output(&mut build))?;
    let built = image::measure(target.join("image/vmlinuz"))?;
    let place = paths::image();
    if let Some(dir) = place.parent() {
        fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
    }
    fs::copy(&built.path, &place).doing(|| format!("cannot write {}", place.display()))?;
    Ok(Image { path: place, ..built })
}

/// Builds the image that the sources would be as another version, for what upgrades; from a copy with that version in its
/// `Cargo.toml`.
///
/// # Errors
/// When it does not build.
pub fn another_version(version: &str) -> Result<PathBuf> {
    let work = paths::target().join("another-version");
    // A whole build: the copies' dates tell Cargo nothing.
    let _ = fs::remove_dir_all(&work);
    let root = work.join("sources");
    copy_sources(&root)?;
    let manifest = root.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).doing(|| "cannot read the copied Cargo.toml")?;
    let own = format!("version = \"{}\"", env!("CARGO_PKG_VERSION"));
    if !text.contains(&own) {
        fail!("no {own} in Cargo.toml");
    }
    write(&manifest, text.replacen(&own, &format!("version = \"{version}\""), 1).as_bytes())?;
    // Not `--locked`: the versions of our own packages are in Cargo.lock as well.
    let mut build = image::cargo(&["build", "--offline", "--profile", "image"]);
    build
        .args(image::BINARY)
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", work.join("target"))
        .env("RUSTFLAGS", image::remap_of(&root, &image::cargo_home()));
    progress::step(&format!("building the image as version {version}"), || {
        command::output(&mut build)
    })?;
    Ok(image::measure(work.join("target/image/vmlinuz"))?.path)
}

/// Of the copied sources, since 1970: a day in 2001.
const OTHER_DATE: Duration = Duration::from_secs(1_000_000_000);

/// Cargo's settings for `vendor/`: `cargo --config vendor/config.toml ...` needs nothing else.
const CONFIG: &str = "config.toml";
/// The `Cargo.lock` that `vendor/` was made for.
const LOCK: &str = "Cargo.lock";

fn vendored() -> Result<PathBuf> {
    let vendor = paths::root().join("vendor");
    let lock = paths::root().join(LOCK);
    let wanted = fs::read(&lock).doing(|| format!("cannot read {}", lock.display()))?;
    if fs::read(vendor.join(LOCK)).is_ok_and(|made_for| made_for == wanted) {
        return Ok(vendor);
    }
    let _ = fs::remove_dir_all(&vendor);
    progress::step("filling vendor/ (cargo vendor)", || {
        let mut line = image::cargo(&["vendor", "--locked", "--versioned-dirs"]);
        command::output(line.arg(&vendor))
    })?;
    // Relative to the folder above the one that has the file, as Cargo reads it: the checkout can be moved.
    let text = "[source.crates-io]\nreplace-with = \"vendored-sources\"\n\n\
         [source.vendored-sources]\ndirectory = \"vendor\"\n";
    write(&vendor.join(CONFIG), text.as_bytes())?;
    // Last: a run that was stopped before begins anew.
    write(&vendor.join(LOCK), &wanted)?;
    Ok(vendor)
}

/// What git has, and what is new and not ignored, as it is now.
fn copy_sources(to: &Path) -> Result<()> {
    let root = paths::root();
    let list = ["ls-files", "--cached", "--others", "--exclude-standard", "-z"];
    let listed = command::output_bytes(command::new("git", &list).current_dir(&root))?;
    let listed = String::from_utf8(listed)
        .map_err(|error| Error::Failed(format!("a file name is no text: {error}")))?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let (source, copy) = (root.join(name), to.join(name));
        // A file that is deleted and not yet committed.
        if !source.is_file() {
            continue;
        }
        if let Some(dir) = copy.parent() {
            fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
        }
        fs::copy(&source, &copy).doing(|| format!("cannot copy {name}"))?;
        let copied = fs::File::options().append(true).open(&copy);
        let dated = copied.and_then(|file| file.set_modified(UNIX_EPOCH + OTHER_DATE));
        dated.doing(|| format!("cannot date {name}"))?;
    }
    Ok(())
}

/// A Cargo home with another name and the same downloads.
fn other_home(work: &Path) -> Result<PathBuf> {
    let home = work.join("cargo-home");
    fs::create_dir_all(&home).doing(|| format!("cannot make {}", home.display()))?;
    let registry = image::cargo_home().join("registry");
    std::os::unix::fs::symlink(&registry, home.join("registry"))
        .doing(|| format!("cannot link {}", registry.display()))?;
    Ok(home)
}

/// `words` with a mask that hides every file from others.
fn masked(words: &[OsString]) -> Command {
    let mut line = command::new("sh", &["-c", "umask 077 && exec \"$@\"", "sh"]);
    line.args(words);
    line
}

/// What `cargo run` set for this program is not meant for the builds that it starts.
fn strip_of_cargo(line: &mut Command) {
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        line.env_remove(name);
    }
}

fn is_root() -> Result<bool> {
    Ok(command::output(&mut command::new("id", &["-u"]))?.trim() == "0")
}

fn compare(one: &Path, other: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).doing(|| format!("cannot read {}", path.display()));
    let (first, second) = (read(one)?, read(other)?);
    if first == second {
        return Ok(());
    }
    let at = first.iter().zip(&second).position(|(a, b)| a != b);
    fail!(
        "{} and {} differ: {} and {} bytes, first at byte {}",
        one.display(),
        other.display(),
        first.len(),
        second.len(),
        at.unwrap_or(first.len().min(second.len()))
    )
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).doing(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_other_byte_is_a_difference() {
        let dir = paths::target().join(format!("test-compare-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            fs::write(dir.join(name), bytes).unwrap();
            dir.join(name)
        };
        let first = file("first", b"abcd");
        compare(&first, &file("same", b"abcd")).unwrap();
        let error = compare(&first, &file("other", b"abxd")).unwrap_err().to_string();
        assert!(error.contains("first at byte 2"), "{error}");
        assert!(compare(&first, &file("longer", b"abcde")).is_err());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_copied_sources_are_those_that_build() {
        let to = paths::target().join(format!("test-copy-{}", std::process::id()));
        copy_sources(&to).unwrap();
        for name in ["Cargo.lock", "src/main.rs", "xen/src/boot/link.ld"] {
            assert_eq!(
                fs::read(to.join(name)).unwrap(),
                fs::read(paths::root().join(name)).unwrap()
            );
        }
        assert!(!to.join("target").exists() && !to.join("vendor").exists());
        fs::remove_dir_all(to).unwrap();
    }
}
