//! Plain ELF kernels out of Debian's bzImages. Unpacking a compressed kernel inside the emulator costs many
//! seconds at each boot, so it is done once, here. Layout: Linux Documentation/arch/x86/boot.rst.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Attempt, Error, Result};
use crate::fail;

/// Writes the ELF kernel inside `bzimage` to `vmlinux`. With `guest`, the busy loop that a PVH guest needs
/// seconds for under emulation is cut short (see `shorten_pit_calibration`).
///
/// # Errors
/// When the file is not a bzImage, or its compression is unknown or broken.
pub fn extract(bzimage: &Path, vmlinux: &Path, guest: bool) -> Result<()> {
    let image = fs::read(bzimage).doing(|| format!("cannot read {}", bzimage.display()))?;
    let Some(payload) = payload(&image) else {
        fail!("{}: not a bzImage", bzimage.display());
    };
    let mut kernel = decompress(payload)?;
    if !kernel.starts_with(b"\x7fELF") {
        fail!("{}: no ELF kernel inside", bzimage.display());
    }
    if guest {
        shorten_pit_calibration(&mut kernel);
    }
    fs::write(vmlinux, kernel).doing(|| format!("cannot write {}", vmlinux.display()))
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(match *image.get(0x1f1)? {
        0 => 4,
        n => n,
    });
    let word = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?))
            .ok()
    };
    let start = setup_sectors.checked_add(1)?.checked_mul(512)?.checked_add(word(0x248)?)?;
    // The build appends the unpacked size, which the unpackers would take for garbage.
    image.get(start..start.checked_add(word(0x24c)?.checked_sub(4)?)?)
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    let program = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => fail!("kernel with an unknown compression"),
    };
    let mut child = Command::new(program)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .doing(|| format!("cannot run {program}"))?;
    let mut input = child.stdin.take().ok_or_else(|| Error::Failed("no pipe".into()))?;
    std::thread::scope(|scope| {
        // A broken pipe shows as a failure of the program, below.
        scope.spawn(move || input.write_all(payload));
        let out = child.wait_with_output().doing(|| format!("cannot run {program}"))?;
        if !out.status.success() {
            fail!("{program} cannot unpack the kernel: {}", out.status);
        }
        Ok(out.stdout)
    })
}

/// Cuts the two 50000-iteration loops of `quick_pit_calibrate` to 64 iterations. A PVH guest has no PIT; each
/// iteration is two port reads that exit to Xen, 4 s in all under emulation, for nothing: the frequency of the
/// TSC is given by `tsc_early_khz=`. Returns how many places were changed; none is only slow.
fn shorten_pit_calibration(kernel: &mut [u8]) -> usize {
    // cmp $50000, %reg; je +x; in $0x42, %al; in $0x42, %al
    let mut places = 0;
    for window in 0..kernel.len().saturating_sub(12) {
        let Some(code) = kernel.get_mut(window..window + 12) else { break };
        if let [0x81, 0xf8..=0xff, count @ .., 0x74, _, 0xe4, 0x42, 0xe4, 0x42] = code
            && count == [0x50, 0xc3, 0, 0]
        {
            count.copy_from_slice(&[64, 0, 0, 0]);
            places += 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_loops_are_found_and_nothing_else() {
        let mut code = vec![0x90; 8];
        code.extend([0x81, 0xfb, 0x50, 0xc3, 0, 0, 0x74, 0x10, 0xe4, 0x42, 0xe4, 0x42]);
        code.extend([0x81, 0xfb, 0x51, 0xc3, 0, 0, 0x74, 0x10, 0xe4, 0x42, 0xe4, 0x42]);
        let before = code.clone();
        assert_eq!(shorten_pit_calibration(&mut code), 1);
        assert_eq!(code[10..14], [64, 0, 0, 0]);
        assert_eq!(code[14..], before[14..]);
    }

    #[test]
    fn truncated_image_is_no_bzimage() {
        assert!(payload(&[0; 0x300]).is_none());
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c] = 0xff;
        image[0x24d] = 0xff;
        assert!(payload(&image).is_none());
    }
}
