//! Honest traffic for hours of virtual time (`integration/sim/soak.rs`), then ten minutes of load and churn on real Xen
//! (`scenarios::soak`): nothing may be left of it.

use serde_json::json;

use super::record::Record;
use super::{in_lab, sim};
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
    let args = ["--soak-minutes", MINUTES, "--rate", RATE];
    let name = args.join(" ");
    if record.get(&name).is_none() {
        let program = sim::build()?;
        let output = progress::step(&format!("soak: {MINUTES} minutes, {RATE} packets/s"), || {
            command::output(&mut command::new(&program, &args))
        })?;
        progress::say(output.trim_end());
        record.put(&name, json!(output))?;
    }
    in_lab::into(&mut record, &["soak"])?;
    record.finish().map(drop)
}
