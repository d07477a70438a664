//! Flips: the implementation of a requirement is broken on purpose, and exactly its tests must notice.
//!
//! Each flip of `list::FLIPS` replaces a text, which must be there exactly once, in a copy of the tree below
//! `target/mutants`, where the tests of the core then run. It counts as found when a test fails whose name carries an
//! ID of the flip, and no test fails that carries only other IDs. Tests without an ID (of a module's own behaviour,
//! properties) may fail or not: they are counted, and prove nothing here.
//!
//! The fast path stays closed meanwhile: it would do right what a broken stage does wrong. It has flips of its own, which
//! any of its tests may notice. That two of its checks hold the same back is no fault: the source of a client, which a flow of
//! another client betrays as well, has no flip.
//!
//! The drivers are broken another way, at run time in one build, and the simulation has to notice: `planted`.

mod list;
pub mod planted;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use self::list::{FLIPS, Flip};
use super::record::Record;
use crate::error::{Attempt, Result};
use crate::xtask::coverage::{self, Ran};
use crate::xtask::image::cargo;
use crate::{command, fail, paths, progress};

/// A broken implementation may never end. The first run builds everything.
const SECONDS_PER_FLIP: &str = "300";
const SECONDS_UNBROKEN: &str = "1800";

/// Which tests a copy runs.
#[derive(Clone, Debug)]
enum Which {
    All,
    /// Those of the fast path.
    Fast,
    /// Those whose names carry an ID, by name: the others prove nothing about a flip, and take most of the time.
    WithIds(Vec<String>),
}

/// In `test`: the quick ones, and of the tests those with an ID.
///
/// # Errors
/// When a flip is not found as it must be.
pub fn short() -> Result<()> {
    let mut tree = Tree::copied()?;
    tree.stages = Which::WithIds(tree.with_ids()?);
    tree.runs_unbroken()?;
    for flip in FLIPS.iter().filter(|flip| flip.is_quick) {
        progress::say(verdict(flip, &tree.try_flip(flip)?)?);
    }
    Ok(())
}

/// `test --long mutants`: all, and the planted defects.
///
/// # Errors
/// Names every flip and every defect that is not found as it must be.
pub fn long() -> Result<()> {
    let mut record = Record::open("mutants")?;
    let mut faults = planted::long(&mut record)?;
    let tree = Tree::copied()?;
    tree.runs_unbroken()?;
    for flip in FLIPS {
        if record.get(flip.name).is_some() {
            continue;
        }
        let judged = progress::step(flip.name, || tree.try_flip(flip))
            .and_then(|tests| Ok((verdict(flip, &tests)?, tests)));
        match judged {
            Ok((line, tests)) => {
                progress::say(line);
                let failed: Vec<&str> = failed(&tests).map(|test| test.name.as_str()).collect();
                record.put(
                    flip.name,
                    json!({"ids": flip.ids, "ran": tests.len(), "failed": failed}),
                )?;
            }
            Err(error) => {
                progress::say(format!("FAILED {error}"));
                faults.push(error.to_string());
            }
        }
    }
    match faults.as_slice() {
        [] => record.finish().map(drop),
        faults => fail!("{} flips and defects:\n{}", faults.len(), faults.join("\n")),
    }
}

fn failed(tests: &[Ran]) -> impl Iterator<Item = &Ran> {
    tests.iter().filter(|test| !test.passed)
}

/// A line about a flip that was found as it must be.
fn verdict(flip: &Flip, tests: &[Ran]) -> Result<String> {
    if flip.ids.is_empty() {
        let found = failed(tests).count();
        if found == 0 {
            fail!("{}: no test notices", flip.name);
        }
        return Ok(format!("flip {}: {found} tests fail", flip.name));
    }
    let wanted: BTreeSet<String> = flip.ids.iter().map(|id| (*id).to_owned()).collect();
    let (mut right, mut wrong, mut without) = (Vec::new(), Vec::new(), 0_usize);
    for test in failed(tests) {
        let ids = coverage::ids(&test.name);
        match (ids.is_empty(), ids.is_disjoint(&wanted)) {
            (true, _) => without = without.saturating_add(1),
            (false, false) => right.push(test.name.as_str()),
            (false, true) => wrong.push(test.name.as_str()),
        }
    }
    let (name, ids) = (flip.name, flip.ids.join(" "));
    if right.is_empty() {
        fail!("{name}: no test of {ids} notices ({without} without an ID do)");
    }
    if !wrong.is_empty() {
        fail!("{name}: tests of other requirements than {ids} fail: {}", wrong.join(", "));
    }
    Ok(format!("flip {name}: {ids} fail ({} tests, and {without} without an ID)", right.len()))
}

/// A copy of the sources to be broken.
struct Tree {
    root: PathBuf,
    /// What runs for a flip of a stage.
    stages: Which,
}

impl Tree {
    /// Copies what git knows.
    fn copied() -> Result<Self> {
        let tree = Self { root: paths::target().join("mutants/tree"), stages: Which::All };
        let mut git =
            command::new("git", &["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let files = command::output(git.current_dir(paths::root()))?;
        let files: BTreeSet<&Path> =
            files.split('\0').filter(|file| !file.is_empty()).map(Path::new).collect();
        remove_others(&tree.root, &tree.root, &files);
        for file in files {
            copy(&paths::root().join(file), &tree.root.join(file))?;
        }
        for flip in FLIPS {
            replaced(flip, &fs::read_to_string(tree.root.join(flip.file)).unwrap_or_default())?;
        }
        Ok(tree)
    }

    /// Builds the copy and runs it unbroken.
    fn runs_unbroken(&self) -> Result<()> {
        let tests = progress::step("flips: the unbroken copy", || {
            self.test(SECONDS_UNBROKEN, &self.stages)
        })?;
        match failed(&tests).next() {
            Some(test) => fail!("{} fails without any flip", test.name),
            None => Ok(()),
        }
    }

    /// Builds the copy and names the tests that carry an ID.
    fn with_ids(&self) -> Result<Vec<String>> {
        let mut line = self.cargo_test(SECONDS_UNBROKEN);
        let out = progress::step("flips: building a copy", || {
            command::output(line.args(["--", "--list"]))
        })?;
        let names = out.lines().filter_map(|line| line.strip_suffix(": test"));
        let names: Vec<String> =
            names.filter(|name| !coverage::ids(name).is_empty()).map(str::to_owned).collect();
        if names.is_empty() {
            fail!("no test carries an ID");
        }
        Ok(names)
    }

    fn try_flip(&self, flip: &Flip) -> Result<Vec<Ran>> {
        let path = self.root.join(flip.file);
        let read = || format!("cannot read {}", path.display());
        let whole = fs::read_to_string(&path).doing(read)?;
        let write = |text: &str| {
            fs::write(&path, text).doing(|| format!("cannot write {}", path.display()))
        };
        write(&replaced(flip, &whole)?)?;
        let which = if flip.ids.is_empty() { &Which::Fast } else { &self.stages };
        let tests = self.test(SECONDS_PER_FLIP, which);
        write(&whole)?;
        tests.map_err(|error| crate::error::Error::Failed(format!("{}: {error}", flip.name)))
    }

    /// Runs tests of the core and of the rules.
    fn test(&self, seconds: &str, which: &Which) -> Result<Vec<Ran>> {
        let mut line = self.cargo_test(seconds);
        if let Which::Fast = which {
            line.arg("fast::");
        } else {
            line.args(["--", "--skip", "tests::fast::"]).env("FIREWALL_TESTS_STAGES_ALONE", "1");
        }
        if let Which::WithIds(names) = which {
            line.arg("--exact").args(names);
        }
        let out = line.output().doing(|| "cannot run timeout and cargo")?;
        let text = String::from_utf8_lossy(&out.stdout);
        let tests = coverage::ran(&text);
        if tests.is_empty() {
            fail!(
                "no test ran:\n{}",
                command::last_lines(&String::from_utf8_lossy(&out.stderr), 20)
            );
        }
        Ok(tests)
    }

    /// `cargo test` in the copy. The dependencies are those that the tree itself has built.
    fn cargo_test(&self, seconds: &str) -> Command {
        let inner = cargo(&[]);
        let mut line = command::new("timeout", &[seconds]);
        line.arg(inner.get_program());
        line.args(["test", "--lib", "--no-fail-fast", "-p", "qubes-rust-firewall", "-p", "rules"]);
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => line.env(name, value),
                None => line.env_remove(name),
            };
        }
        line.current_dir(&self.root).env("CARGO_TARGET_DIR", paths::target());
        // Cases that a property test once failed with belong to the tree, not to a broken copy.
        line.env("PROPTEST_FAILURE_PERSISTENCE", "off");
        line
    }
}

/// Removes what an earlier copy had and the tree has no more.
fn remove_others(root: &Path, dir: &Path, files: &BTreeSet<&Path>) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            remove_others(root, &path, files);
        } else if path.strip_prefix(root).is_ok_and(|file| !files.contains(file)) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Leaves a file alone that is the same: its time decides what is built again.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let Ok(new) = fs::read(from) else {
        let _ = fs::remove_file(to);
        return Ok(());
    };
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(to, new).doing(|| format!("cannot write {}", to.display()))
}

fn replaced(flip: &Flip, source: &str) -> Result<String> {
    match source.matches(flip.from).count() {
        1 => Ok(source.replacen(flip.from, flip.to, 1)),
        count => fail!(
            "flip {}: its text is {count} times in {}; the list (xtask/parts/mutants/list.rs) has to follow the code",
            flip.name,
            flip.file
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLIP: Flip = Flip {
        name: "x",
        ids: &["U1", "T1"],
        file: "src/lib.rs",
        from: "a + b",
        to: "a - b",
        is_quick: false,
    };

    fn test(name: &str, passed: bool) -> Ran {
        Ran { name: name.into(), passed }
    }

    #[test]
    fn any_test_may_notice_a_flip_of_the_fast_path() {
        let flip = Flip { ids: &[], ..FLIP };
        assert!(verdict(&flip, &[test("plain", false), test("u5_y", true)]).is_ok());
        assert!(verdict(&flip, &[test("plain", true)]).is_err());
    }

    #[test]
    fn exactly_the_tests_of_its_ids_must_fail() {
        let tests = [test("m::u1_t3_x", false), test("m::plain", false), test("m::u5_y", true)];
        assert!(verdict(&FLIP, &tests).is_ok());
        assert!(verdict(&FLIP, &[test("plain", false)]).is_err(), "no test of the ID");
        let other = [test("u1_x", false), test("u5_y", false)];
        assert!(verdict(&FLIP, &other).unwrap_err().to_string().contains("u5_y"));
    }

    #[test]
    fn the_text_must_be_there_once() {
        assert_eq!(replaced(&FLIP, "x = a + b;").unwrap(), "x = a - b;");
        assert!(replaced(&FLIP, "").is_err() && replaced(&FLIP, "a + b, a + b").is_err());
    }

    #[test]
    fn there_are_enough_flips_with_names_of_their_own() {
        let names: BTreeSet<&str> = FLIPS.iter().map(|flip| flip.name).collect();
        assert_eq!(names.len(), FLIPS.len());
        assert!(FLIPS.len() >= 15 && FLIPS.iter().filter(|flip| flip.is_quick).count() == 3);
        for flip in FLIPS {
            let known: BTreeSet<String> =
                coverage::ids(&format!("{}_x", flip.ids.join("_").to_lowercase()));
            assert_eq!(known.len(), flip.ids.len(), "{}", flip.name);
        }
    }
}
