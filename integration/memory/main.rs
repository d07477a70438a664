//! The whole appliance with dom0's daemons and its neighbours on the in-memory hypervisor, on the heap of the image: what it
//! has left after everything came and went many times, and what it does when memory runs out.
//!
//! `memory cycles N`: N times a client, and now and then the NetVM, QubesDB or a call, comes and goes; the books must be
//! where they were, byte for byte. `memory requests FROM STEP`: a day in its life with the request number FROM failing, then FROM+STEP, ...;
//! `memory operations FROM STEP`: with that operation of the control plane put off; `memory limits COUNT`: with heaps of that many
//! sizes that are too small. Each day ends with memory for everybody, and a check that everything works again.

#![forbid(unsafe_code)]
#![expect(clippy::indexing_slicing, reason = "a mistake of a test ends it, as it should")]

mod appliance;
mod day;
#[expect(dead_code, reason = "the simulation asks more of dom0")]
#[path = "../double/dom0.rs"]
mod dom0;
#[expect(dead_code, reason = "the simulation counts turns")]
#[path = "../double/appliance.rs"]
mod double;
#[expect(dead_code, reason = "the simulation makes more kinds of frames")]
#[path = "../double/frames.rs"]
mod frames;

use std::process::ExitCode;

use xen::mem::{Heap, inject};

/// Requests of a day that may fail, at least: fewer mean that the day has not come about.
const LEAST_REQUESTS: u64 = 10;

#[global_allocator]
static HEAP: Heap = Heap;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<u64>().map_err(|_| format!("{word:?} is no number"));
    let done = match words.as_slice() {
        ["cycles", count] => number(count).and_then(day::cycles),
        ["requests", from, step] => both(number(from), number(step), requests),
        ["operations", from, step] => both(number(from), number(step), operations),
        ["limits", count] => number(count).and_then(limits),
        other => Err(format!("what is {other:?}?")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn both(
    one: Result<u64, String>,
    other: Result<u64, String>,
    work: impl FnOnce(u64, u64) -> Result<(), String>,
) -> Result<(), String> {
    work(one?, other?)
}

/// Each request that may fail, fails once.
fn requests(from: u64, step: u64) -> Result<(), String> {
    let count = day::lived(None, || inject::fail_request(None))?.requests;
    if count < LEAST_REQUESTS {
        return Err(format!("only {count} requests that may fail"));
    }
    let mut days = 0_u64;
    for number in (from..count).step_by(step as usize) {
        // Whoever does not survive that is found by the last number.
        eprintln!("request {number} of {count} fails");
        day::lived(None, || inject::fail_request(Some(number)))
            .map_err(|problem| format!("request {number} failed: {problem}"))?;
        days += 1;
    }
    println!("requests\t{count}\ndays with a failing request\t{days}");
    Ok(())
}

/// Each operation is put off once.
fn operations(from: u64, step: u64) -> Result<(), String> {
    let count = day::lived(None, || inject::refuse_operation(None))?.operations;
    let mut days = 0_u64;
    for number in (from..count).step_by(step as usize) {
        eprintln!("operation {number} of {count} is put off");
        day::lived(None, || inject::refuse_operation(Some(number)))
            .map_err(|problem| format!("operation {number} was put off: {problem}"))?;
        days += 1;
    }
    println!("operations\t{count}\ndays with an operation put off\t{days}");
    Ok(())
}

/// Heaps from one that has nothing but the reserve to one that has nearly enough.
fn limits(count: u64) -> Result<(), String> {
    let peak = day::lived(None, || ())?.peak;
    let mut refused = 0;
    for number in 0..count {
        let bytes = peak / count as usize * number as usize;
        eprintln!("heap of {bytes} bytes of {peak}");
        let day = day::lived(Some(bytes), || ())
            .map_err(|problem| format!("with a heap of {bytes} bytes: {problem}"))?;
        refused += u64::from(day.was_short);
    }
    if refused == 0 {
        return Err("no heap was too small".into());
    }
    println!("most bytes of a day\t{peak}\nheaps\t{count}\nheaps that were too small\t{refused}");
    Ok(())
}
