//! What is measured, as a program. For callgrind, which counts the instructions within [`measured`] from one [`report`] to
//! the next: `first-packet`, `rules`, `established`, `flows` and `rewrite`. By itself: `allocations`, and `marginal` for time.
//! Each line that it prints says what was measured.

#![forbid(unsafe_code)]

mod allocations;

use std::process::ExitCode;

use measure::{Meter, World, established, first_packet, flows, marginal, rewrite};

fn main() -> ExitCode {
    let what = std::env::args().nth(1).unwrap_or_default();
    let outcome = match what.as_str() {
        "first-packet" => first_packet::run(&mut Callgrind),
        "rules" => first_packet::sizes(&mut Callgrind, &first_packet::SIZES),
        "established" => established::run(&mut Callgrind),
        "flows" => flows::run(&mut Callgrind, &flows::SIZES),
        "rewrite" => rewrite::run(&mut Callgrind),
        "allocations" => allocations::run(),
        "marginal" => marginal::run(std::env::args().skip(2)),
        other => Err(format!(
            "measure first-packet | rules | established | flows | rewrite | allocations | \
             marginal SIZES, not {other:?}"
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// Callgrind, from outside.
struct Callgrind;

impl Meter for Callgrind {
    fn measure(&mut self, world: &mut World, work: &mut dyn FnMut(&mut World)) {
        measured(world, work);
    }

    fn report(&mut self, line: &str) {
        report(line);
    }
}

/// What is counted. Not inlined, so that it has a name in the program.
#[inline(never)]
fn measured(world: &mut World, work: &mut dyn FnMut(&mut World)) {
    work(world);
}

/// Not inlined either: here callgrind writes down its count and begins anew.
#[inline(never)]
fn report(line: &str) {
    println!("{line}");
}
