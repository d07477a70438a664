//! The image on a machine without Xen: it has to say so.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::image::Image;
use crate::error::{Attempt, Result};
use crate::{apt, command, fail, paths};

/// Boots the image in plain QEMU and waits for its line on the serial port.
///
/// # Errors
/// When it does not say in 30 s that it found no Xen.
pub fn run(image: &Image) -> Result<()> {
    apt::ensure(apt::QEMU)?;
    let dir = paths::target().join("lab");
    fs::create_dir_all(&dir).doing(|| format!("cannot create {}", dir.display()))?;
    let log = dir.join("smoke.log");
    let _ = fs::remove_file(&log);
    let mut qemu = command::new(
        "setpriv",
        &["--pdeathsig", "KILL", "qemu-system-x86_64", "-name", "qrf-smoke"],
    );
    qemu.args([
        "-machine",
        "pc,accel=tcg",
        "-m",
        "64",
        "-display",
        "none",
        "-no-reboot",
        "-nodefaults",
    ]);
    qemu.arg("-serial").arg(format!("file:{}", log.display())).arg("-kernel").arg(&image.path);
    qemu.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = qemu.spawn().doing(|| "cannot start qemu-system-x86_64")?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let result = loop {
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        if text.lines().any(|line| line.to_lowercase().contains("no xen")) {
            break Ok(());
        }
        if Instant::now() > deadline {
            break Err(text);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let _ = child.kill();
    let _ = child.wait();
    match result {
        Ok(()) => Ok(()),
        Err(text) => fail!(
            "in plain QEMU the image did not say that it found no Xen; its serial output: {text:?}"
        ),
    }
}
