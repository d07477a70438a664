//! The table of all `unsafe` in the documentation of the crate `xen`: it must name exactly the files that have any, with
//! the right numbers, and tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::error::{Attempt, Result};
use crate::fail;

/// A row `| file | count | purpose | tests | argument |`.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    file: String,
    count: usize,
    /// Names in the column of the tests.
    tests: Vec<String>,
}

/// Compares the table in the crate's `lib.rs` with the sources below `xen` (the folder of its `lib.rs`).
///
/// # Errors
/// When a file cannot be read. What does not fit is added to `faults`.
pub(super) fn check(
    xen: &Path,
    files: &[std::path::PathBuf],
    faults: &mut Vec<String>,
) -> Result<()> {
    let lib = xen.join("lib.rs");
    let text = fs::read_to_string(&lib).doing(|| format!("cannot read {}", lib.display()))?;
    let rows = rows(&text);
    if rows.is_empty() {
        fail!("{} has no table of its unsafe code", lib.display());
    }
    let (mut counts, mut functions) = (BTreeMap::new(), BTreeSet::new());
    for file in files {
        let source =
            fs::read_to_string(file).doing(|| format!("cannot read {}", file.display()))?;
        let code = code_of(&source);
        functions.extend(function_names(&code));
        let count = words(&code).filter(|word| *word == "unsafe").count();
        if count > 0
            && let Ok(name) = file.strip_prefix(xen)
        {
            counts.insert(name.to_string_lossy().into_owned(), count);
        }
    }
    compare(&rows, &counts, &functions, faults);
    Ok(())
}

fn compare(
    rows: &[Row],
    counts: &BTreeMap<String, usize>,
    functions: &BTreeSet<String>,
    faults: &mut Vec<String>,
) {
    let mut named = BTreeSet::new();
    for row in rows {
        let Row { file, count, tests } = row;
        if !named.insert(file) {
            faults.push(format!("xen's table of unsafe code names {file} twice"));
        }
        match counts.get(file) {
            None => faults.push(format!("xen's table of unsafe code names {file}, which has none")),
            Some(real) if real != count => faults.push(format!(
                "xen's table of unsafe code says {count} for {file}, which has {real}: is the new one covered by a test?"
            )),
            Some(_) => {}
        }
        for test in tests.iter().filter(|test| !functions.contains(*test)) {
            faults.push(format!(
                "xen's table of unsafe code names the test {test}, which does not exist"
            ));
        }
    }
    for file in counts.keys().filter(|file| !named.contains(file)) {
        faults.push(format!("xen's table of unsafe code does not name {file}"));
    }
}

/// The rows of the table: those whose first cell is a file in backquotes and whose second is a number.
fn rows(lib: &str) -> Vec<Row> {
    let lines = lib.lines().filter_map(|line| line.strip_prefix("//! | "));
    lines
        .filter_map(|line| {
            let mut cells = line.split(" | ");
            let file = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
            let count = cells.next()?.trim().parse().ok()?;
            let tests = cells.nth(1)?.split('`').skip(1).step_by(2);
            Some(Row { file: file.into(), count, tests: tests.map(String::from).collect() })
        })
        .collect()
}

/// The source without its comments, strings and characters.
fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let length = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment(rest),
            '"' => string(rest),
            'r' if !ends_in_word(&code) && is_raw(rest) => raw_string(rest),
            '\'' => character(rest),
            other => {
                code.push(other);
                other.len_utf8()
            }
        };
        if length > next.len_utf8() || matches!(next, '"' | '\'') {
            code.push(' ');
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    code
}

/// Length of a block comment, others within it included.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth.saturating_sub(1), at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of a string with its quotes.
fn string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, next) in text.char_indices().skip(1) {
        match next {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn is_raw(text: &str) -> bool {
    text.strip_prefix('r').is_some_and(|rest| rest.trim_start_matches('#').starts_with('"'))
}

fn raw_string(text: &str) -> usize {
    let hashes = text.bytes().skip(1).take_while(|byte| *byte == b'#').count();
    let end = format!("\"{}", "#".repeat(hashes));
    let start = hashes + 2;
    let found = text.get(start..).and_then(|rest| rest.find(&end));
    found.map_or(text.len(), |at| start + at + end.len())
}

/// Length of a character with its quotes; of the quote alone where it begins a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            let end = chars.skip(1).find(|(_, next)| *next == '\'');
            end.map_or(text.len(), |(at, _)| at + 1)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

fn ends_in_word(code: &str) -> bool {
    code.ends_with(|last: char| last.is_alphanumeric() || last == '_')
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|next: char| !next.is_alphanumeric() && next != '_').filter(|word| !word.is_empty())
}

fn function_names(code: &str) -> impl Iterator<Item = String> {
    let follows = words(code).skip(1);
    words(code).zip(follows).filter(|(word, _)| *word == "fn").map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts() {
        let source = r##"
            //! unsafe
            #[doc = "unsafe"]
            /* unsafe /* unsafe */ unsafe */
            unsafe fn one<'a>(text: &'a str) -> char { let _ = r#"unsafe " "#; '"' }
            unsafe impl Sync for Two {} // unsafe
            fn three() { let _ = ('\'', "\" unsafe"); unsafe { one("") }; }
            #[unsafe(no_mangle)]
        "##;
        let code = code_of(source);
        assert_eq!(words(&code).filter(|word| *word == "unsafe").count(), 4, "{code}");
        assert_eq!(function_names(&code).collect::<Vec<_>>(), ["one", "three"]);
    }

    fn faults(table: &str, counts: &[(&str, usize)]) -> Vec<String> {
        let counts = counts.iter().map(|(file, count)| ((*file).to_owned(), *count)).collect();
        let mut faults = Vec::new();
        compare(&rows(table), &counts, &BTreeSet::from(["a_test".to_owned()]), &mut faults);
        faults
    }

    #[test]
    fn a_table_that_does_not_fit_the_sources_is_a_fault() {
        let table = "//! | file | `unsafe` | for | tests | argument |\n//! | --- | --- | --- | --- | --- |\n\
            //! | `a/b.rs` | 2 | a thing | `a_test` | `x` |\n//! | `c.rs` | 1 | another | | all |";
        assert_eq!(faults(table, &[("a/b.rs", 2), ("c.rs", 1)]), Vec::<String>::new());
        let names = |counts: &[(&str, usize)]| faults(table, counts).join("\n");
        assert!(names(&[("a/b.rs", 3), ("c.rs", 1)]).contains("says 2 for a/b.rs, which has 3"));
        assert!(names(&[("a/b.rs", 2)]).contains("names c.rs, which has none"));
        assert!(names(&[("a/b.rs", 2), ("c.rs", 1), ("d.rs", 1)]).contains("does not name d.rs"));
        let twice = format!("{table}\n//! | `c.rs` | 1 | again | | all |");
        assert_eq!(faults(&twice, &[("a/b.rs", 2), ("c.rs", 1)]).len(), 1);
        let unknown = table.replace("`a_test`", "`a_test`, `no_test`");
        assert!(faults(&unknown, &[("a/b.rs", 2), ("c.rs", 1)]).concat().contains("no_test"));
    }

    #[test]
    fn the_table_of_the_crate_is_right() {
        let xen = crate::paths::root().join("xen/src");
        let mut files = Vec::new();
        crate::xtask::audit::rust_files(&xen, &mut files).unwrap();
        let mut faults = Vec::new();
        check(&xen, &files, &mut faults).unwrap();
        assert_eq!(faults, Vec::<String>::new());
    }
}
