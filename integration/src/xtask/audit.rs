//! The rules about who may depend on whom, under which licence, and where `unsafe` may be. Read from
//! `cargo metadata` and from the source files; where packages come from is in `dependencies`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::dependencies;
use super::image::cargo;
use super::unsafe_table;
use crate::error::{Attempt, Error, Result};
use crate::{command, fail, paths};

/// Licences that anything shipped or linked by default may have (SPDX).
const PERMISSIVE: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "0BSD",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "CC0-1.0",
    "BSL-1.0",
];

/// Packages under another licence. They serve the lab's dom0 side, behind the feature `lab` of `integration`.
const LAB_ONLY: &[&str] = &["xenstore-rs"];

/// The fuzzer, a workspace of its own, links LLVM's libFuzzer in source (NCSA, permissive). Nothing else uses it.
const FUZZER: (&str, &str) = ("libfuzzer-sys", "(MIT OR Apache-2.0) AND NCSA");

/// What each crate may use, besides for its tests. `None`: anything but `integration`.
const MAY_USE: &[(&str, Option<&[&str]>)] = &[
    ("rules", Some(&["ipnet", "thiserror"])),
    ("qubesdb", Some(&["thiserror"])),
    // siphasher mixes the entropy, talc is the image's heap.
    ("xen", Some(&["siphasher", "talc", "thiserror"])),
    ("qubes-rust-firewall", None),
];

/// The packages that are linked into the image, procedural macros apart. Another one is a decision.
const IN_THE_IMAGE: &[&str] = &[
    "allocator-api2",
    "arrayvec",
    "bitflags",
    "byteorder",
    "cfg-if",
    "etherparse",
    "hash32",
    "heapless",
    "ipnet",
    "lock_api",
    "managed",
    "qubes-rust-firewall",
    "qubesdb",
    "rules",
    "ryu",
    "scopeguard",
    "serde",
    "serde-json-core",
    "serde_core",
    "siphasher",
    "smoltcp",
    "stable_deref_trait",
    "talc",
    "thiserror",
    "xen",
];

/// Modules that may opt in to `unsafe`, as path prefixes.
const MAY_BE_UNSAFE: &[&str] = &[
    "xen/src/boot",
    "xen/src/hypercall",
    "xen/src/mem",
    "xen/src/shared",
    "xen/src/grant",
    "xen/src/event",
    "integration/src/ffi.rs",
    "integration/src/ffi/frontend.rs",
];

/// Crates without any `unsafe`: their root file forbids it.
const FORBIDDING: &[&str] =
    &["src/lib.rs", "src/bin/qfw/main.rs", "rules/src/lib.rs", "qubesdb/src/lib.rs"];

/// Checks all of it.
///
/// # Errors
/// Names every violation.
pub fn run() -> Result<()> {
    let plain = metadata(&[])?;
    let all = metadata(&["--all-features"])?;
    let mut faults = Vec::new();
    licences(&plain, &all, &mut faults)?;
    let fuzzer = metadata(&["--locked", "--manifest-path", "integration/fuzz/runner/Cargo.toml"])?;
    licences_of_fuzzer(&fuzzer, &mut faults)?;
    directions(&all, &mut faults)?;
    unsafe_code(&mut faults)?;
    table_of_unsafe_code(&mut faults)?;
    packages_of_image(&mut faults)?;
    dependencies::check(&mut faults)?;
    match faults.as_slice() {
        [] => Ok(()),
        faults => fail!("{}", faults.join("\n")),
    }
}

pub(super) fn metadata(args: &[&str]) -> Result<Value> {
    let mut command = cargo(&["metadata", "--format-version", "1"]);
    let text = command::output_bytes(command.args(args))?;
    serde_json::from_slice(&text).map_err(|error| Error::Failed(format!("cargo metadata: {error}")))
}

fn licences(plain: &Value, all: &Value, faults: &mut Vec<String>) -> Result<()> {
    let default: BTreeSet<&str> = reached(plain)?;
    for package in list(all, "packages")? {
        let (name, id) = (text(package, "name"), text(package, "id"));
        let licence = text(package, "license");
        if is_permissive(licence) {
            continue;
        }
        if !LAB_ONLY.contains(&name) {
            faults.push(format!("{name}: licence {licence:?} is not among the permissive ones"));
        } else if default.contains(id) {
            faults.push(format!("{name} ({licence}) is used without the feature lab"));
        }
    }
    // Who names it: only `integration`, and optionally.
    for package in list(all, "packages")? {
        for dependency in list(package, "dependencies")? {
            let name = text(dependency, "name");
            let optional = dependency.get("optional").and_then(Value::as_bool) == Some(true);
            if LAB_ONLY.contains(&name) && !(text(package, "name") == "integration" && optional) {
                faults.push(format!(
                    "{} depends on {name}, which is for the lab alone",
                    text(package, "name")
                ));
            }
        }
    }
    Ok(())
}

fn licences_of_fuzzer(metadata: &Value, faults: &mut Vec<String>) -> Result<()> {
    for package in list(metadata, "packages")? {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if !is_permissive(licence) && (name, licence) != FUZZER {
            faults.push(format!("{name}, used by the fuzzer: licence {licence:?}"));
        }
    }
    Ok(())
}

/// Identifiers of the packages in the resolved graph.
fn reached(metadata: &Value) -> Result<BTreeSet<&str>> {
    let resolve = metadata.get("resolve").unwrap_or(&Value::Null);
    Ok(list(resolve, "nodes")?.iter().map(|node| text(node, "id")).collect())
}

/// An SPDX expression of names joined by OR, AND, and the older slash.
fn is_permissive(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let normal = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    // AND binds tighter; without nesting of OR in AND, which `(A OR B) AND C` is, requiring every name of a
    // part that has AND is the strict reading.
    !normal.is_empty()
        && normal
            .split(" OR ")
            .any(|part| part.split(" AND ").all(|name| PERMISSIVE.contains(&name)))
}

fn directions(all: &Value, faults: &mut Vec<String>) -> Result<()> {
    let packages: BTreeMap<&str, &Value> =
        list(all, "packages")?.iter().map(|package| (text(package, "name"), package)).collect();
    for (name, allowed) in MAY_USE {
        let Some(package) = packages.get(name) else { fail!("no crate {name} in the workspace") };
        for dependency in list(package, "dependencies")? {
            let used = text(dependency, "name");
            let for_tests = dependency.get("kind").and_then(Value::as_str) == Some("dev");
            let fits = allowed.is_none_or(|allowed| allowed.contains(&used));
            if !for_tests && (!fits || used == "integration") {
                faults.push(format!("{name} may not depend on {used}"));
            }
            let optional = dependency.get("optional").and_then(Value::as_bool) == Some(true);
            if *name == "qubes-rust-firewall" && used == "xen" && !optional && !for_tests {
                faults.push(
                    "the core depends on xen: it must be optional, behind the feature platform"
                        .into(),
                );
            }
        }
    }
    Ok(())
}

/// The rule tool is a default feature of the package that is also the image: nothing of it may get there.
fn packages_of_image(faults: &mut Vec<String>) -> Result<()> {
    let tree = ["tree", "--package", "qubes-rust-firewall", "--edges", "normal,no-proc-macro"];
    let shape = ["--prefix", "none", "--format", "{p}", "--no-default-features"];
    let line = [&tree[..], &shape, &["--features", "platform"]].concat();
    let tree = command::output(&mut cargo(&line))?;
    strangers(&tree, faults);
    Ok(())
}

fn strangers(tree: &str, faults: &mut Vec<String>) {
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    let names: BTreeSet<&str> = names.filter(|name| !name.is_empty()).collect();
    for name in names.iter().filter(|name| !IN_THE_IMAGE.contains(name)) {
        faults.push(format!("{name} would be linked into the image"));
    }
    for name in IN_THE_IMAGE.iter().filter(|name| !names.contains(*name)) {
        faults.push(format!("{name} is not in the image any more: take it off the list"));
    }
}

fn unsafe_code(faults: &mut Vec<String>) -> Result<()> {
    let root = paths::root();
    let mut files = Vec::new();
    for dir in ["src", "rules", "qubesdb", "xen", "integration"] {
        rust_files(&root.join(dir), &mut files)?;
    }
    let mut of_integration = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().into_owned();
        let source = fs::read_to_string(&file).doing(|| format!("cannot read {path}"))?;
        if !opts_in(&source) {
            continue;
        }
        if !MAY_BE_UNSAFE.iter().any(|prefix| path.starts_with(prefix)) {
            faults.push(format!("{path} opts in to unsafe code"));
        }
        if path.starts_with("integration/") {
            of_integration.push(path);
        }
    }
    if of_integration.len() > 1 {
        faults.push(format!(
            "more than one module of integration/ is unsafe: {}",
            of_integration.join(", ")
        ));
    }
    for path in FORBIDDING {
        let source = fs::read_to_string(root.join(path)).doing(|| format!("cannot read {path}"))?;
        if !source.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
            faults.push(format!("{path} does not forbid unsafe code"));
        }
    }
    Ok(())
}

/// What the crate `xen` says about its `unsafe` blocks and the tests that cover them.
fn table_of_unsafe_code(faults: &mut Vec<String>) -> Result<()> {
    let xen = paths::root().join("xen/src");
    let mut files = Vec::new();
    rust_files(&xen, &mut files)?;
    unsafe_table::check(&xen, &files, faults)
}

/// Whether a line of code (not a comment, not a string) lowers the lint.
fn opts_in(source: &str) -> bool {
    source.lines().map(str::trim_start).any(|line| {
        // An attribute may go over several lines.
        let is_code =
            line.starts_with('#') || line.starts_with("expect(") || line.starts_with("allow(");
        is_code
            && line.contains("unsafe_code")
            && (line.contains("expect(") || line.contains("allow("))
    })
}

pub(super) fn rust_files(dir: &Path, found: &mut Vec<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).doing(|| format!("cannot list {}", dir.display()))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    match value.get(key).and_then(Value::as_array) {
        Some(list) => Ok(list),
        None => fail!("cargo metadata has no list {key}"),
    }
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions() {
        for good in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
        ] {
            assert!(is_permissive(good), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "LGPL-2.1", "MPL-2.0"] {
            assert!(!is_permissive(bad), "{bad}");
        }
    }

    #[test]
    fn a_package_that_the_image_does_not_need_is_a_fault() {
        let known: String = IN_THE_IMAGE.iter().map(|name| format!("{name} v1.0.0\n")).collect();
        let faults_of = |tree: &str| {
            let mut faults = Vec::new();
            strangers(tree, &mut faults);
            faults
        };
        assert!(faults_of(&known).is_empty());
        let faults = faults_of(&format!("{known}serde_json v1.0.0\n"));
        assert_eq!(faults, ["serde_json would be linked into the image"]);
        assert_eq!(faults_of("").len(), IN_THE_IMAGE.len());
    }

    #[test]
    fn only_an_attribute_opts_in() {
        assert!(opts_in("#![expect(unsafe_code, reason = \"x\")]"));
        assert!(opts_in("    #[allow(unsafe_code)]"));
        assert!(!opts_in(
            "#![forbid(unsafe_code)]\n// expect(unsafe_code)\nlet x = \"allow(unsafe_code)\";"
        ));
    }

    #[test]
    fn lab_only_package_in_the_default_graph_is_a_fault() {
        let package = serde_json::json!({
            "packages": [{"name": "xenstore-rs", "id": "x", "license": "GPL-3.0-or-later", "dependencies": []}],
            "resolve": {"nodes": [{"id": "x"}]}
        });
        let mut faults = Vec::new();
        licences(&package, &package, &mut faults).unwrap();
        assert_eq!(faults.len(), 1, "{faults:?}");
        let empty = serde_json::json!({"packages": [], "resolve": {"nodes": []}});
        faults.clear();
        licences(&empty, &package, &mut faults).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
    }
}
