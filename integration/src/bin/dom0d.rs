//! dom0's daemons for the lab; see [`integration::dom0`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    integration::dom0::run::main()
}
