//! `cargo xtask`: the commands of the project. Built without any feature, so before anything is installed.

#![forbid(unsafe_code)]

pub mod audit;
pub mod bench;
pub mod callgrind;
pub mod coverage;
pub mod dependencies;
pub mod drawing;
pub mod image;
pub mod lab_command;
pub mod package;
pub mod parts;
pub mod prove;
pub mod reproduce;
pub mod sbom;
pub mod scenarios;
pub mod smoke;
pub mod story;
pub mod test;
mod unsafe_table;

use std::process::ExitCode;

use crate::error::Result;
use crate::{fail, progress};

const USAGE: &str = "\
usage: cargo xtask run [--keep]       from nothing to the live story: Xen, NetVM, firewall, clients
       cargo xtask test [--fast]      every check; --fast leaves the lab out
       cargo xtask test --long PART   the long form of a part
       cargo xtask fuzz TARGET [--time T]
       cargo xtask sim [--seed S] [--steps N] [--defect NAME] | --defects | --soak-minutes N
       cargo xtask memory cycles N    what is left; also: requests, operations, limits, overhead
       cargo xtask mutants            three ways to break the core, which its tests notice
       cargo xtask diff [v4 SEED SET]  our core against nftables; one set again
       cargo xtask bench [--quick] [--json FILE] [engine|nft|lab [--only KEY,KEY]]
                                      measures; the lab's part against a Linux firewall VM
       cargo xtask audit              licences, dependency directions, unsafe code
       cargo xtask image [--verify]   build target/image/vmlinuz; twice, and compare
       cargo xtask image --offline    build it from vendor/, without a network
       cargo xtask package            build the RPM for dom0 and its bill of materials
       cargo xtask release --key KEY  all that is given away, signed with a GPG key
       cargo xtask drawing            draws the book's drawings from their texts
       cargo xtask lab ...            the lab by hand";

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    progress::started();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::say(format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[&str]) -> Result<()> {
    match args {
        ["run"] => story::run(false),
        ["run", "--keep"] => story::run(true),
        ["test"] => test::run(false),
        ["test", "--fast"] => test::run(true),
        ["test", "--long"] => parts::long(None),
        ["test", "--long", part] => parts::long(Some(part)),
        ["fuzz", rest @ ..] => parts::fuzz::run(rest),
        ["sim", rest @ ..] => parts::sim::run(rest),
        ["memory", "overhead"] => parts::memory::overhead(),
        ["memory", rest @ ..] => parts::memory::run(rest),
        ["audit"] => audit::run(),
        ["mutants"] => parts::mutants::short(),
        ["diff"] => crate::diff::short(),
        ["diff", family, seed, set] => crate::diff::replay(family, seed, set),
        ["bench", rest @ ..] => bench::run(rest),
        ["image"] => image::build().map(drop),
        ["image", "--verify"] => reproduce::verify().map(drop),
        ["image", "--offline"] => reproduce::offline().map(drop),
        ["drawing"] => drawing::run(),
        ["package"] => package::run().map(drop),
        ["release", "--key", key] => package::release(key),
        ["lab", rest @ ..] => lab_command::run(rest),
        _ => fail!("{USAGE}"),
    }
}
