//! `qfw check`: does the firewall take these rules, and do they say what somebody meant?

use std::io::{Result, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rules::{RuleKey, RuleSet, RuleSetError};

use crate::rulefile::{self, Around, Tree};
use crate::{count, lint};

/// Arguments of `qfw check`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rule file, or - for the standard input
    file: PathBuf,
    #[command(flatten)]
    around: Around,
}

/// Exit status 0 if all sets are valid, 1 if one is refused.
pub(crate) fn run(arguments: &Arguments, mut output: impl Write) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for tree in rulefile::read(&arguments.file, &arguments.around)? {
        match tree.parse() {
            Ok(set) => report(&tree, &set, &mut output)?,
            Err(error) => {
                code = ExitCode::from(1);
                writeln!(output, "{}: refused: {error}{}", tree.title(), place(&tree, &error))?;
            }
        }
    }
    output.flush()?;
    Ok(code)
}

fn report(tree: &Tree, set: &RuleSet, output: &mut impl Write) -> Result<()> {
    let number = |number: usize, what| count(u64::try_from(number).unwrap_or(u64::MAX), what);
    let (rules, names) = (number(set.rules().len(), "rule"), number(set.names().count(), "name"));
    let policy = set.policy().word();
    writeln!(output, "{}: valid: {rules}, policy {policy}, {names}", tree.title())?;
    for warning in lint::warnings(set, &tree.names) {
        writeln!(output, "{}: warning: {warning}", tree.title())?;
    }
    Ok(())
}

/// The line of a text file, after the message.
fn place(tree: &Tree, error: &RuleSetError) -> String {
    let line = |key: &RuleKey| tree.line_of(*key).map(|line| format!(" (line {line})"));
    match error {
        RuleSetError::Rule { key, .. } | RuleSetError::DuplicateRule(key) => line(key),
        _ => None,
    }
    .unwrap_or_default()
}
