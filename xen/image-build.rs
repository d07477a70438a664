//! Build script of the root package: how the binary `vmlinuz` is linked. Nothing else is affected.
//!
//! The flags live here and not in `.cargo/config.toml`, so that tests, tools and build scripts of the same workspace
//! link normally without `--target`.

use std::env;
use std::path::Path;

const SCRIPT: &str = "xen/src/boot/link.ld";

const FLAGS: [&str; 9] = [
    // No C start-up code, no C library; one position at 2 MiB.
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    // The same source gives the same file.
    "-Wl,--build-id=none",
    // Segments are page-aligned in memory, and nothing is executable that is not text.
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
    "-Wl,-z,norelro",
    "-Wl,--gc-sections",
];

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("Cargo sets the manifest directory");
    let script = Path::new(&root).join(SCRIPT);
    for flag in FLAGS {
        println!("cargo::rustc-link-arg-bin=vmlinuz={flag}");
    }
    println!("cargo::rustc-link-arg-bin=vmlinuz=-Wl,-T,{}", script.display());
    println!("cargo::rerun-if-changed={SCRIPT}");
    println!("cargo::rerun-if-changed=xen/image-build.rs");
}
