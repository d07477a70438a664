//! Where packages come from, from `Cargo.lock` alone, so that it can be checked without a network: registries only, each
//! with its checksum, and in the image no package in two versions.

use std::collections::BTreeMap;
use std::fs;

use super::sbom;
use crate::error::{Attempt, Result};
use crate::paths;

/// Lock files: of the workspace, and of the fuzzer, which is one of its own.
const LOCKS: [&str; 2] = ["Cargo.lock", "integration/fuzz/runner/Cargo.lock"];

/// Packages that the workspace has in two versions, outside the image: two dependencies want different ones, both of them
/// current. Another one is a decision.
const TWICE: &[&str] = &["bitflags", "cpufeatures", "syn"];

/// Adds every fault that it finds.
///
/// # Errors
/// When a file cannot be read or Cargo does not answer.
pub(super) fn check(faults: &mut Vec<String>) -> Result<()> {
    for name in LOCKS {
        let path = paths::root().join(name);
        let text = fs::read_to_string(&path).doing(|| format!("cannot read {name}"))?;
        sources(name, &text, faults);
        if name == "Cargo.lock" {
            repeated("the workspace", names(&text), TWICE, faults);
        }
    }
    let tree = sbom::tree(sbom::LINKED)?;
    repeated("the image", tree.keys().map(|package| package.0.as_str()), &[], faults);
    Ok(())
}

/// Each package of a lock file is ours, without a source, or from a registry with a SHA-256.
fn sources(lock: &str, text: &str, faults: &mut Vec<String>) {
    for block in text.split("[[package]]").skip(1) {
        let name = field(block, "name").unwrap_or("a package without a name");
        let Some(source) = field(block, "source") else { continue };
        if !source.starts_with("registry+") {
            faults.push(format!("{lock}: {name} comes from {source}, which is no registry"));
        }
        let is_sum =
            |sum: &str| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !field(block, "checksum").is_some_and(is_sum) {
            faults.push(format!("{lock}: {name} has no checksum"));
        }
    }
}

fn field<'a>(block: &'a str, key: &str) -> Option<&'a str> {
    let rest = |line: &'a str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
    block.lines().find_map(rest)
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split("[[package]]").skip(1).filter_map(|block| field(block, "name"))
}

fn repeated<'a>(
    whole: &str,
    names: impl Iterator<Item = &'a str>,
    known: &[&str],
    faults: &mut Vec<String>,
) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    for (name, count) in counts.iter().filter(|(name, count)| **count > 1 && !known.contains(name))
    {
        faults.push(format!("{whole} has {count} versions of {name}"));
    }
    for name in known.iter().filter(|name| counts.get(**name).is_none_or(|count| *count < 2)) {
        faults.push(format!("{whole} has {name} no longer twice: take it off the list"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(block: &str) -> Vec<String> {
        let mut faults = Vec::new();
        sources("x", &format!("version = 4\n\n[[package]]\n{block}\n"), &mut faults);
        faults
    }

    #[test]
    fn sources_without_a_checksum_or_outside_a_registry_are_faults() {
        let sum = "0a".repeat(32);
        let package = |source: &str, sum: &str| {
            faults_of(&format!(
                "name = \"a\"\nversion = \"1\"\nsource = \"{source}\"\nchecksum = \"{sum}\""
            ))
        };
        assert_eq!(package("registry+x", &sum), [""; 0]);
        assert_eq!(faults_of("name = \"ours\"\nversion = \"1\""), [""; 0]);
        assert_eq!(package("registry+x", "0a"), ["x: a has no checksum"]);
        assert_eq!(faults_of("name = \"a\"\nsource = \"registry+x\""), ["x: a has no checksum"]);
        assert_eq!(package("git+x", &sum), ["x: a comes from git+x, which is no registry"]);
    }

    #[test]
    fn a_second_version_is_a_fault_unless_it_is_known() {
        let mut faults = Vec::new();
        repeated("it", ["a", "b", "a", "c", "c"].into_iter(), &["c", "d"], &mut faults);
        assert_eq!(
            faults,
            ["it has 2 versions of a", "it has d no longer twice: take it off the list"]
        );
    }
}
