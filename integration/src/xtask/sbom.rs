//! The bill of materials of the image: CycloneDX 1.5 as JSON, and the licences of what is linked into it, as text.
//!
//! Which packages are in the image, and who uses whom, is what `cargo tree` says; licences come from `cargo metadata`,
//! checksums from `Cargo.lock`. Packages that only run while it is built (procedural macros, build scripts) are listed
//! with the scope `excluded`. No time and no random number: the same sources give the same file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::audit;
use super::image::{Image, cargo};
use crate::error::{Attempt, Error, Result};
use crate::lab::cache;
use crate::{command, fail, paths, progress};

/// The root of the image's dependency tree.
const ROOT: &str = "qubes-rust-firewall";
/// What is linked into the image.
pub const LINKED: &str = "normal,no-proc-macro";
/// The same, and what runs while it is built.
const USED: &str = "normal,build";

/// Name and version.
type Package = (String, String);

/// Writes `sbom.cdx.json` and `LICENCES.txt` for `image` into `dir`.
///
/// # Errors
/// When Cargo does not answer, or a package has no licence.
pub fn write(image: &Image, dir: &Path) -> Result<[PathBuf; 2]> {
    let metadata = audit::metadata(&["--locked", "--all-features"])?;
    let linked = tree(LINKED)?;
    let used = tree(USED)?;
    let sums = checksums(&read(&paths::root().join("Cargo.lock"))?);
    let bill = bill(image, &linked, &used, &metadata, &sums)?;
    let mut text = serde_json::to_string_pretty(&bill)
        .map_err(|error| Error::Failed(format!("cannot write the bill of materials: {error}")))?;
    text.push('\n');
    fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
    let files = [dir.join("sbom.cdx.json"), dir.join("LICENCES.txt")];
    let contents = [text, licences(&linked, &metadata)?];
    for (file, text) in files.iter().zip(contents) {
        fs::write(file, text).doing(|| format!("cannot write {}", file.display()))?;
        progress::say(format!("written: {}", file.display()));
    }
    Ok(files)
}

/// Each package of the image with those that it uses.
pub fn tree(edges: &str) -> Result<BTreeMap<Package, BTreeSet<Package>>> {
    let args = ["tree", "--locked", "--package", ROOT, "--no-default-features"];
    let shape = ["--features", "platform", "--prefix", "depth", "--no-dedupe", "--format", " {p}"];
    let mut line = cargo(&[&args[..], &shape, &["--edges", edges]].concat());
    parse_tree(&command::output(&mut line)?)
}

/// Lines `DEPTH NAME vVERSION ...`, depth first.
fn parse_tree(text: &str) -> Result<BTreeMap<Package, BTreeSet<Package>>> {
    let mut found: BTreeMap<Package, BTreeSet<Package>> = BTreeMap::new();
    let mut path: Vec<Package> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let depth = words.next().and_then(|word| word.parse::<usize>().ok());
        let version = |word: &str| word.strip_prefix('v').map(str::to_owned);
        let (Some(depth), Some(name), Some(version)) =
            (depth, words.next(), words.next().and_then(version))
        else {
            fail!("cargo tree said {line:?}");
        };
        let package = (name.to_owned(), version);
        path.truncate(depth);
        if let Some(user) = path.last() {
            found.entry(user.clone()).or_default().insert(package.clone());
        }
        found.entry(package.clone()).or_default();
        path.push(package);
    }
    Ok(found)
}

/// SHA-256 of each downloaded package, from `Cargo.lock`.
pub fn checksums(lock: &str) -> BTreeMap<Package, String> {
    let mut sums = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1) {
        let field = |key: &str| {
            let start = format!("{key} = \"");
            block.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix('"'))
        };
        if let (Some(name), Some(version), Some(sum)) =
            (field("name"), field("version"), field("checksum"))
        {
            sums.insert((name.to_owned(), version.to_owned()), sum.to_owned());
        }
    }
    sums
}

fn bill(
    image: &Image,
    linked: &BTreeMap<Package, BTreeSet<Package>>,
    used: &BTreeMap<Package, BTreeSet<Package>>,
    metadata: &Value,
    sums: &BTreeMap<Package, String>,
) -> Result<Value> {
    let Some(root) = linked.keys().find(|package| package.0 == ROOT) else {
        fail!("{ROOT} is not in its own tree");
    };
    let mut components = Vec::new();
    for package in used.keys().filter(|package| *package != root) {
        let mut component = json!({
            "type": "library",
            "bom-ref": reference(package),
            "name": package.0,
            "version": package.1,
            "purl": reference(package),
            "scope": if linked.contains_key(package) { "required" } else { "excluded" },
            "licenses": [{"expression": expression(licence(package, metadata)?)}],
        });
        if let (Some(sum), Some(fields)) = (sums.get(package), component.as_object_mut()) {
            fields.insert("hashes".into(), json!([{"alg": "SHA-256", "content": sum}]));
        }
        components.push(component);
    }
    let dependencies: Vec<Value> = used
        .iter()
        .map(|(package, needs)| {
            json!({"ref": reference(package), "dependsOn": needs.iter().map(reference).collect::<Vec<_>>()})
        })
        .collect();
    let contents = json!({"components": components, "dependencies": dependencies});
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": serial(&format!("{}{contents}", image.sha256)),
        "version": 1,
        "metadata": {"component": {
            "type": "firmware",
            "bom-ref": reference(root),
            "name": root.0,
            "version": root.1,
            "purl": reference(root),
            "licenses": [{"expression": expression(licence(root, metadata)?)}],
            "hashes": [{"alg": "SHA-256", "content": image.sha256}],
        }},
        "components": components,
        "dependencies": dependencies,
    }))
}

fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.0, package.1)
}

/// A UUID that names the contents: their hash, with the bits of version 8 (RFC 9562, section 5.8).
fn serial(contents: &str) -> String {
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().zip(Sha256::digest(contents.as_bytes())) {
        *to = from;
    }
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = cache::hex(&bytes);
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default());
    format!("urn:uuid:{}", parts.join("-"))
}

fn of<'a>(package: &Package, metadata: &'a Value) -> Result<&'a Value> {
    let is_it = |one: &&Value| {
        audit::text(one, "name") == package.0 && audit::text(one, "version") == package.1
    };
    match audit::list(metadata, "packages")?.iter().find(is_it) {
        Some(found) => Ok(found),
        None => fail!("cargo metadata does not know {} {}", package.0, package.1),
    }
}

fn licence<'a>(package: &Package, metadata: &'a Value) -> Result<&'a str> {
    match audit::text(of(package, metadata)?, "license") {
        "" => fail!("{} {} names no licence", package.0, package.1),
        licence => Ok(licence),
    }
}

/// SPDX: the older slash is an OR.
fn expression(licence: &str) -> String {
    licence.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ")
}

/// A list, then the text that each package has about its licence.
fn licences(linked: &BTreeMap<Package, BTreeSet<Package>>, metadata: &Value) -> Result<String> {
    let mut list = String::from("What is linked into the image, and under which licence.\n\n");
    let mut texts = String::new();
    for package in linked.keys() {
        let line =
            format!("{} {}: {}", package.0, package.1, expression(licence(package, metadata)?));
        let _ = writeln!(list, "{line}");
        let manifest = PathBuf::from(audit::text(of(package, metadata)?, "manifest_path"));
        for file in licence_files(manifest.parent().unwrap_or(Path::new("")))? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let _ = write!(texts, "\n---- {} {}, {name}\n\n{}", package.0, package.1, read(&file)?);
        }
    }
    Ok(list + &texts)
}

fn licence_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).doing(|| format!("cannot list {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        path.is_file()
            && ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"]
                .iter()
                .any(|start| name.starts_with(start))
    });
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).doing(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(image: &Image) -> (Value, String) {
        let dir = paths::target().join(format!("test-sbom-{}-{}", std::process::id(), image.size));
        let [bill, licences] = write(image, &dir).unwrap();
        let read = (
            serde_json::from_str(&fs::read_to_string(bill).unwrap()).unwrap(),
            fs::read_to_string(licences).unwrap(),
        );
        fs::remove_dir_all(dir).unwrap();
        read
    }

    fn image(size: u64) -> Image {
        Image { path: PathBuf::new(), size, sha256: "ab".repeat(32) }
    }

    /// What is listed is what `cargo tree` lists, asked in another way than the generator does.
    #[test]
    fn components_are_those_of_the_tree() {
        let (bill, licences) = written(&image(1));
        let components = bill["components"].as_array().unwrap();
        for (edges, scopes) in [
            ("normal,no-proc-macro", &["required"][..]),
            ("normal,build", &["required", "excluded"]),
        ] {
            let line = ["tree", "-p", ROOT, "--no-default-features", "--features", "platform"];
            let shape = ["--prefix", "none", "--format", "{p}", "--edges", edges];
            let said = command::output(&mut cargo(&[&line[..], &shape].concat())).unwrap();
            let name = |line: &str| {
                let mut words = line.split_whitespace();
                let package = (words.next()?, words.next()?.strip_prefix('v')?);
                (package.0 != ROOT).then(|| format!("pkg:cargo/{}@{}", package.0, package.1))
            };
            let expected: BTreeSet<String> = said.lines().filter_map(name).collect();
            let listed: BTreeSet<String> = components
                .iter()
                .filter(|one| scopes.contains(&one["scope"].as_str().unwrap()))
                .map(|one| one["bom-ref"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(listed, expected, "{edges}");
            assert!(listed.len() > 10);
        }
        assert!(licences.contains("smoltcp") && licences.contains("Permission"));
    }

    #[test]
    fn the_bill_is_whole_and_the_same_again() {
        let (bill, _) = written(&image(2));
        assert_eq!(bill["bomFormat"], "CycloneDX");
        assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], "ab".repeat(32));
        let serial = bill["serialNumber"].as_str().unwrap();
        assert_eq!(serial.len(), "urn:uuid:".len() + 36);
        let components = bill["components"].as_array().unwrap();
        let names: BTreeSet<&str> =
            components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(names.len(), components.len(), "a reference twice");
        for component in components {
            assert!(!component["licenses"][0]["expression"].as_str().unwrap().contains('/'));
            let ours = ["rules", "qubesdb", "xen"].contains(&component["name"].as_str().unwrap());
            assert_eq!(component["hashes"].is_array(), !ours, "{component}");
        }
        for dependency in bill["dependencies"].as_array().unwrap() {
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(names.contains(on.as_str().unwrap()), "{on} is used and not listed");
            }
        }
        assert_eq!(written(&image(3)).0, bill);
    }

    #[test]
    fn a_tree_is_read_with_its_edges() {
        let found = parse_tree("0 a v1.0.0 (/x)\n1 b v2.0.0\n2 c v3.0.0\n1 c v3.0.0\n").unwrap();
        let package = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        let needs = |name: &str, version: &str| found[&package(name, version)].clone();
        let (b, c) = (package("b", "2.0.0"), package("c", "3.0.0"));
        assert_eq!(needs("a", "1.0.0"), [b, c.clone()].into());
        assert_eq!(needs("b", "2.0.0"), [c].into());
        assert!(needs("c", "3.0.0").is_empty());
        assert!(parse_tree("b v2.0.0").is_err());
    }
}
