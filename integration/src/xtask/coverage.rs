//! The requirement table: which tests carry which ID, from the run itself, so that it shows tests that ran and passed.
//!
//! A test covers an ID when its name begins with it (`u1_mapping_is_endpoint_independent`, `t3_t4_...` covers two).
//! That such a test can fail is shown by `parts::mutants`.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::{fail, progress};

/// Letter and last number of each group of requirements.
const GROUPS: &[(char, u8)] = &[('U', 13), ('T', 8), ('I', 8), ('P', 3), ('S', 8), ('Q', 4)];

/// Requirements that no test of ours can cover, and why.
const NOT_APPLICABLE: &[(&str, &str)] = &[
    (
        "U2",
        "paired pooling: there is one external address per family, so that pooling is always paired",
    ),
    (
        "U4",
        "parity: optional (RFC 7857 relaxes it); a port is preserved where free, else drawn at random",
    ),
    (
        "I6",
        "hairpinned queries and errors: clients cannot reach each other through our outside address (U8)",
    ),
];

/// A test that ran.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ran {
    /// Its path, as the test program prints it.
    pub name: String,
    /// Whether it passed.
    pub passed: bool,
}

/// The tests in the output of `cargo test` (not `--quiet`).
#[must_use]
pub fn ran(output: &str) -> Vec<Ran> {
    let tests = output.lines().filter_map(|line| {
        let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let passed = match outcome.trim() {
            "ok" => true,
            outcome if outcome.starts_with("FAILED") => false,
            _ => return None,
        };
        // `name - should panic` and the like.
        Some(Ran { name: name.split(' ').next().unwrap_or(name).to_owned(), passed })
    });
    tests.collect()
}

/// The IDs that a test's name begins with.
#[must_use]
pub fn ids(name: &str) -> BTreeSet<String> {
    let own = name.rsplit("::").next().unwrap_or(name);
    let words = own.split('_').map(str::to_uppercase);
    words.take_while(|word| all_ids().any(|id| id == *word)).collect()
}

fn all_ids() -> impl Iterator<Item = String> {
    GROUPS.iter().flat_map(|(letter, last)| (1..=*last).map(move |n| format!("{letter}{n}")))
}

/// Prints the table.
///
/// # Errors
/// Names the IDs without a passing test, and those of which a test failed.
pub fn report(tests: &[Ran]) -> Result<()> {
    let mut covered: BTreeMap<String, Vec<&Ran>> = BTreeMap::new();
    for test in tests {
        for id in ids(&test.name) {
            covered.entry(id).or_default().push(test);
        }
    }
    let mut missing = Vec::new();
    for id in all_ids() {
        let reason = NOT_APPLICABLE.iter().find(|(known, _)| *known == id);
        match (covered.get(&id), reason) {
            (Some(tests), _) => {
                let names: Vec<&str> =
                    tests.iter().map(|t| t.name.rsplit("::").next().unwrap_or(&t.name)).collect();
                progress::say(format!("  {id:4} {}", names.join(", ")));
                if tests.iter().any(|test| !test.passed) {
                    missing.push(format!("{id} (failed)"));
                }
            }
            (None, Some((_, reason))) => progress::say(format!("  {id:4} n/a: {reason}")),
            (None, None) => {
                progress::say(format!("  {id:4} -"));
                missing.push(id);
            }
        }
    }
    match missing.as_slice() {
        [] => Ok(()),
        missing => fail!("requirements without a passing test: {}", missing.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 3 tests\ntest tests::nat::u1_mapping ... ok\ntest a::t3_t4_silence ... FAILED\ntest b::slow ... ignored\n\ntest result: ok. 1 passed\n";

    #[test]
    fn tests_are_read_from_the_output() {
        let tests = ran(OUTPUT);
        let passed: Vec<(&str, bool)> = tests.iter().map(|t| (t.name.as_str(), t.passed)).collect();
        assert_eq!(passed, [("tests::nat::u1_mapping", true), ("a::t3_t4_silence", false)]);
    }

    #[test]
    fn names_begin_with_their_ids() {
        let of = |name: &str| ids(name).into_iter().collect::<Vec<_>>();
        assert_eq!(of("x::u11_t7_icmp_errors"), ["T7", "U11"]);
        assert_eq!(of("x::u64_of"), Vec::<String>::new(), "there is no U64");
        assert_eq!(of("x::a_u1_later"), Vec::<String>::new());
    }

    #[test]
    fn an_id_without_a_passing_test_fails_the_run() {
        let text = report(&ran(OUTPUT)).unwrap_err().to_string();
        assert!(
            text.contains("T3 (failed)") && text.contains("U5") && !text.contains("U1,"),
            "{text}"
        );
        assert!(!text.contains("I6"), "n/a");
    }
}
