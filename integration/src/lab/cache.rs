//! The cache of lab images: two stages, each in a directory named by the hash of what went into it, built in a
//! temporary place and renamed when complete. Two runs at once do not build twice: a lock file orders them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};

use super::base::{self, Base};
use super::guests;
use crate::error::{Attempt, Result};
use crate::{paths, progress};

/// Second-stage directories that are kept (an edited script makes a new one).
const KEPT: usize = 3;

/// Everything that a lab boots from.
pub struct Images {
    /// Hypervisor, dom0's kernel and disk.
    pub base: Base,
    /// RAM disks and guest kernels; dom0 sees it as `/images`.
    pub dir: PathBuf,
}

/// The images, built now if their inputs changed; with `fresh`, built from newly resolved packages.
///
/// # Errors
/// When packages cannot be had, a host tool fails or the disk is full.
pub fn images(fresh: bool) -> Result<Images> {
    let cache = paths::cache();
    fs::create_dir_all(&cache).doing(|| format!("cannot create {}", cache.display()))?;
    let lock = File::create(cache.join("lock")).doing(|| "cannot create the cache's lock")?;
    lock.lock().doing(|| "cannot lock the cache")?;

    // The recipe is its own source text.
    let recipe = [include_str!("base.rs"), include_str!("kernel.rs"), include_str!("modules.rs")];
    let mut key = Sha256::new();
    recipe.iter().for_each(|text| key.update(text));
    let base_key = hex(&key.clone().finalize());
    let base_dir = cache.join(format!("base-{}", short(&base_key)));
    if fresh {
        let _ = fs::remove_dir_all(&base_dir);
    }
    if !base_dir.exists() {
        in_place(&base_dir, |dir| base::build(dir, &cache.join("debs")).map(drop))?;
        remove_others(&cache, "base-", 1);
        // Guest images of another first stage would hold its kernels.
        remove_others(&cache, "images-", 0);
    }
    let base = Base { dir: base_dir };

    let scripts = paths::lab_files();
    key.update(include_str!("guests.rs"));
    key.update(include_str!("cpio.rs"));
    for sub in ["dom0", "guest"] {
        for name in base::read_dir(&scripts.join(sub))? {
            let path = scripts.join(sub).join(&name);
            key.update(name.as_encoded_bytes());
            key.update(fs::read(&path).doing(|| format!("cannot read {}", path.display()))?);
        }
    }
    let dir = cache.join(format!("images-{}", short(&hex(&key.finalize()))));
    if !dir.exists() {
        progress::step("lab: images of dom0 and the guests", || {
            in_place(&dir, |dir| guests::build(dir, &base, &scripts))
        })?;
        remove_others(&cache, "images-", KEPT);
    }
    Ok(Images { base, dir })
}

/// Runs `build` on a temporary directory that takes `dir`'s name when it succeeded.
fn in_place(dir: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = dir.with_extension("part");
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary).doing(|| format!("cannot create {}", temporary.display()))?;
    build(&temporary)?;
    fs::rename(&temporary, dir).doing(|| format!("cannot rename to {}", dir.display()))
}

fn remove_others(cache: &Path, prefix: &str, keep: usize) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    let mut found: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found.reverse();
    for (_, path) in found.iter().skip(keep) {
        let _ = fs::remove_dir_all(path);
    }
}

/// Lower-case hexadecimal text of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn short(key: &str) -> &str {
    key.get(..16).unwrap_or(key)
}
