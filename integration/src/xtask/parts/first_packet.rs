//! What the first packet of a flow costs against many rules and against few: in instructions, through the whole core.
//!
//! They can be had by hand with `cargo xtask test --long first-packet`. That the limit can be missed: with the interpreter
//! in the place of the compiled set (`rules.rules().evaluate` in `src/judge.rs`) every row is over it.

use crate::error::Result;
use crate::xtask::callgrind::{self, Count};
use crate::{fail, progress};

/// 1,000 rules may cost so many times what 10 cost.
const LIMIT: f64 = 4.0;
const FEW: usize = 10;
const MANY: usize = 1000;

/// What one kind of rule set costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Shape of the rule set, and what decides.
    pub case: String,
    /// Instructions with few rules.
    pub few: f64,
    /// Instructions with many.
    pub many: f64,
}

impl Row {
    fn times(&self) -> f64 {
        self.many / self.few
    }

    /// For people.
    pub fn line(&self) -> String {
        format!("{:<36} {:>8.0} {:>8.0} {:>6.2}", self.case, self.few, self.many, self.times())
    }
}

/// Counts, prints the table and holds it to the limit.
///
/// # Errors
/// When a case costs too much with many rules, or nothing could be counted.
pub fn run() -> Result<()> {
    let rows = rows(&callgrind::count("first-packet")?)?;
    progress::say(format!(
        "instructions of a flow's first packet: {FEW} rules, {MANY} rules, times (at most {LIMIT})"
    ));
    rows.iter().for_each(|row| progress::say(row.line()));
    judge(&rows)
}

/// Few and many side by side.
///
/// # Errors
/// When one of them is missing.
pub fn rows(counts: &[Count]) -> Result<Vec<Row>> {
    let cases = |count: &Count| match count.labels.as_slice() {
        [shape, rules, end] => Some((format!("{shape}, {end}"), rules.parse::<usize>().ok()?)),
        _ => None,
    };
    let mut rows = Vec::new();
    for few in counts {
        let Some((case, rules)) = cases(few) else { fail!("what was measured? {few:?}") };
        if rules != FEW {
            continue;
        }
        let is_other = |count: &&Count| cases(count) == Some((case.clone(), MANY));
        let Some(many) = counts.iter().find(is_other) else {
            fail!("{case} was not measured with {MANY} rules");
        };
        rows.push(Row { case, few: few.per_packet, many: many.per_packet });
    }
    if rows.is_empty() {
        fail!("nothing was measured");
    }
    Ok(rows)
}

fn judge(rows: &[Row]) -> Result<()> {
    let over: Vec<String> = rows.iter().filter(|row| row.times() > LIMIT).map(Row::line).collect();
    if !over.is_empty() {
        fail!("more than {LIMIT} times the instructions with {MANY} rules:\n{}", over.join("\n"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rules: usize, per_packet: f64) -> Count {
        Count { labels: vec!["hosts".into(), rules.to_string(), "policy".into()], per_packet }
    }

    #[test]
    fn more_than_the_limit_fails() {
        judge(&rows(&[count(10, 2000.0), count(1000, 8000.0)]).unwrap()).unwrap();
        let rows = rows(&[count(10, 2000.0), count(1000, 8001.0)]).unwrap();
        let error = judge(&rows).unwrap_err();
        assert!(error.to_string().contains("hosts, policy"), "{error}");
    }

    #[test]
    fn what_was_not_counted_fails() {
        assert!(rows(&[]).is_err());
        assert!(rows(&[count(10, 2000.0)]).is_err());
        assert!(rows(&[count(1000, 2000.0)]).is_err());
    }
}
