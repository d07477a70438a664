//! What was measured: named figures, tables for people, and where they are written.

use std::fs;
use std::path::Path;

use serde_json::{Map, Number, Value};

use crate::error::{Attempt, Result};
use crate::{command, paths, progress};

/// The figures and tables of one run.
pub(super) struct Report {
    figures: Map<String, Value>,
    /// Heading and lines.
    tables: Vec<(String, Vec<String>)>,
    machine: String,
    commit: String,
}

impl Report {
    pub(super) fn new() -> Result<Self> {
        let commit = command::output(&mut command::new("git", &["rev-parse", "--short", "HEAD"]))?;
        let changes =
            command::output(&mut command::new("git", &["status", "--porcelain", "-uno"]))?;
        let changed = if changes.trim().is_empty() { "" } else { " with changes" };
        Ok(Self {
            figures: Map::new(),
            tables: Vec::new(),
            machine: machine(),
            commit: format!("{}{changed}", commit.trim()),
        })
    }

    /// A figure; a number that is none (a division by nothing) is left out.
    pub(super) fn figure(&mut self, key: impl Into<String>, value: f64) {
        let rounded = (value * 1000.0).round() / 1000.0;
        if let Some(number) = Number::from_f64(rounded) {
            self.figures.insert(key.into(), Value::Number(number));
        }
    }

    /// A table, shown at once as well.
    pub(super) fn table(&mut self, heading: impl Into<String>, lines: Vec<String>) {
        let heading = heading.into();
        progress::say(format!("{heading}:"));
        lines.iter().for_each(|line| progress::say(format!("    {line}")));
        self.tables.push((heading, lines));
    }

    pub(super) fn write(&self) -> Result<()> {
        let file = paths::root().join("integration/bench/RESULTS.md");
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
        }
        fs::write(&file, self.text()).doing(|| format!("cannot write {}", file.display()))?;
        progress::say(format!("written: {}", file.display()));
        Ok(())
    }

    pub(super) fn write_json(&self, file: &Path) -> Result<()> {
        let text = Value::Object(self.figures.clone()).to_string();
        fs::write(file, text + "\n").doing(|| format!("cannot write {}", file.display()))
    }

    fn text(&self) -> String {
        let mut text = format!(
            "# Measured by `cargo xtask bench`\n\n{}, commit {}. Ratios are ours divided by Linux'.\n",
            self.machine, self.commit
        );
        for (heading, lines) in &self.tables {
            text.push_str(&format!("\n## {heading}\n\n```\n{}\n```\n", lines.join("\n")));
        }
        text.push_str("\n## Figures\n\n| figure | value |\n| --- | ---: |\n");
        for (key, value) in &self.figures {
            text.push_str(&format!("| `{key}` | {value} |\n"));
        }
        text
    }
}

/// The middle one, or the mean of the two in the middle.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.as_slice() {
        [] => f64::NAN,
        all if all.len() % 2 == 1 => all.get(middle).copied().unwrap_or(f64::NAN),
        all => all
            .get(middle.saturating_sub(1)..=middle)
            .map_or(f64::NAN, |two| two.iter().sum::<f64>() / 2.0),
    }
}

/// Model and number of the processors.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = info
        .lines()
        .filter_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map(|(_, model)| model.trim())
        .collect();
    format!("{}, {} cores", models.first().unwrap_or(&"unknown processor"), models.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_one_flat_object_and_nonsense_is_left_out() {
        let mut report = Report {
            figures: Map::new(),
            tables: vec![("T".into(), vec!["a 1".into()])],
            machine: "a processor, 2 cores".into(),
            commit: "abc".into(),
        };
        report.figure("a.b", 1.23456);
        report.figure("c", f64::NAN);
        report.figure("d", f64::INFINITY);
        assert_eq!(Value::Object(report.figures.clone()).to_string(), "{\"a.b\":1.235}");
        let text = report.text();
        assert!(text.contains("a processor, 2 cores, commit abc"), "{text}");
        assert!(
            text.contains("## T\n\n```\na 1\n```") && text.contains("| `a.b` | 1.235 |"),
            "{text}"
        );
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }
}
