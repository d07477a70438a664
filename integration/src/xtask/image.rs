//! The image: built, measured, held to its limit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::{Attempt, Result};
use crate::lab::cache;
use crate::{command, fail, paths, progress};

/// The image may have this size, in bytes.
pub const LIMIT: u64 = 1 << 20;

/// The image for Cargo: without the rule tool, which is a default feature of the same package.
pub const BINARY: &[&str] =
    &["--no-default-features", "--features", "platform", "--bin", "vmlinuz"];

/// A built image.
pub struct Image {
    /// The ELF file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// Builds the image and says its size and hash.
///
/// # Errors
/// When it does not build or is larger than [`LIMIT`].
pub fn build() -> Result<Image> {
    progress::step("building the image", || {
        command::output(
            cargo(&["build", "--profile", "image"]).args(BINARY).env("RUSTFLAGS", remap()),
        )
    })?;
    measure(paths::image())
}

/// Says what was built, and holds it to the limit.
pub(super) fn measure(path: PathBuf) -> Result<Image> {
    let bytes = fs::read(&path).doing(|| format!("cannot read {}", path.display()))?;
    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let sha256 = cache::hex(&Sha256::digest(&bytes));
    progress::say(format!("image: {} ({size} bytes, SHA-256 {sha256})", path.display()));
    if size > LIMIT {
        fail!("the image has {size} bytes, more than the limit of {LIMIT}");
    }
    Ok(Image { path, size, sha256 })
}

/// Panic messages name source files: without the place of the checkout and of the downloaded crates, so that the image
/// does not depend on them.
fn remap() -> String {
    remap_of(&paths::root(), &cargo_home())
}

/// Where Cargo keeps what it downloads.
pub(super) fn cargo_home() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let user = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    home.or_else(user).unwrap_or_default()
}

/// The compiler flags for a checkout at `root`. The last prefix that fits is the one that rustc takes.
pub(super) fn remap_of(root: &Path, cargo_home: &Path) -> String {
    let registries = fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten().flatten();
    let mut from: Vec<(PathBuf, &str)> =
        registries.map(|registry| (registry.path(), "crates")).collect();
    from.push((root.to_owned(), "."));
    from.push((root.join("vendor"), "crates"));
    let flag =
        |(path, to): &(PathBuf, &str)| format!("--remap-path-prefix={}={to}", path.display());
    from.iter().map(flag).collect::<Vec<_>>().join(" ")
}

/// This Cargo, in the checkout.
pub fn cargo(args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = command::new(program, args);
    cargo.current_dir(paths::root());
    // What `cargo run` set for this program is not meant for the builds that it starts.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        cargo.env_remove(name);
    }
    cargo
}
