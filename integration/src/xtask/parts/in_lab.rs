//! Parts that are groups of scenarios in the lab: too long for `test`, and for people to wait for.

use super::record::Record;
use crate::apt;
use crate::error::Result;
use crate::xtask::{image, scenarios};

/// `test --long lifecycle`: domains and devices that come and go, beside a client that must not notice.
///
/// # Errors
/// When a scenario does not hold; those that do are not run again.
pub fn lifecycle() -> Result<()> {
    groups("lifecycle", &["lives", "cycles", "many", "long chain"])
}

/// `test --long abuse`: a client that does all it can to be in the way of the others, who keep their share.
///
/// # Errors
/// As [`lifecycle`].
pub fn abuse() -> Result<()> {
    groups("abuse", &["abuse"])
}

fn groups(part: &str, groups: &[&str]) -> Result<()> {
    let mut record = Record::open(part)?;
    into(&mut record, groups)?;
    record.finish().map(drop)
}

/// Runs groups of scenarios in the lab, less what `record` has already.
///
/// # Errors
/// When one does not hold.
pub fn into(record: &mut Record, groups: &[&str]) -> Result<()> {
    apt::ensure(apt::LAB)?;
    let image = image::build()?;
    let images = scenarios::prepare()?;
    scenarios::run_recorded(&images, &image, groups, record)
}
