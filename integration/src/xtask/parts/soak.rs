//! Honest traffic for hours of virtual time (`integration/sim/soak.rs`): nothing may be left of it.

use serde_json::json;

use super::record::Record;
use super::sim;
use crate::error::Result;
use crate::{command, progress};

/// Virtual time, and packets a second each way.
const MINUTES: &str = "360";
const RATE: &str = "100";

/// `test --long soak`.
///
/// # Errors
/// When a packet is lost, or what the appliance holds grows.
pub fn long() -> Result<()> {
    let mut record = Record::open("soak")?;
    let program = sim::build()?;
    let args = ["--soak-minutes", MINUTES, "--rate", RATE];
    let output = progress::step(&format!("soak: {MINUTES} minutes, {RATE} packets/s"), || {
        command::output(&mut command::new(&program, &args))
    })?;
    progress::say(output.trim_end());
    record.put(&args.join(" "), json!(output))?;
    record.finish().map(drop)
}
