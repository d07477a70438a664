//! The project's command, `cargo xtask`; see [`integration::xtask`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    integration::xtask::main()
}
