//! Starts of a VM by a toolstack that is loaded already, for the lab; see [`integration::dom0::run::start`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    integration::dom0::run::start::main()
}
