//! `cargo run -p fuzz --bin replay TARGET FILE...`: runs inputs through a target, without the fuzzer.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(target) = args.next().and_then(|name| fuzz::target(&name)) else {
        let names: Vec<&str> = fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("usage: replay TARGET FILE...; targets: {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    for file in args {
        match std::fs::read(&file) {
            Ok(bytes) => (target.run)(&bytes),
            Err(error) => {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
        }
        println!("{file}: no finding");
    }
    ExitCode::SUCCESS
}
