//! Where things are: the checkout, Cargo's target directory, the cache of lab images.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn root() -> PathBuf {
    // Set by `cargo run`; the compiled-in value serves a binary that is started by hand.
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| own.clone(), Path::to_path_buf)
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The files that become part of the lab's dom0 and guests.
pub fn lab_files() -> PathBuf {
    root().join("integration/lab")
}

/// Downloaded packages and built lab images; survives `cargo clean`.
pub fn cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let base = base.unwrap_or_else(|| {
        env::var_os("HOME")
            .map_or_else(|| target().join("cache"), |home| Path::new(&home).join(".cache"))
    });
    base.join("qubes-rust-firewall-lab")
}

/// The built image.
pub fn image() -> PathBuf {
    target().join("image/vmlinuz")
}
