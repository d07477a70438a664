//! What a long part has done: kept while it runs, so that a stopped run goes on where it was, and written to
//! `integration/results/PART.json` at its end.
//!
//! Work counts for one state of the sources only: another commit, or other uncommitted changes, begins anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Attempt, Error, Result};
use crate::lab::cache;
use crate::{command, paths, progress};

/// The record of one part.
pub struct Record {
    part: String,
    state: PathBuf,
    result: PathBuf,
    sources: Sources,
    items: Map<String, Value>,
}

/// Which sources were tested.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sources {
    commit: String,
    /// Hash of the uncommitted changes to tracked files; empty when there are none.
    changes: String,
}

impl Record {
    /// Opens the record of `part`: what an interrupted run of the same sources did is there again.
    ///
    /// # Errors
    /// When git does not answer.
    pub fn open(part: &str) -> Result<Self> {
        let results = paths::root().join("integration/results");
        Self::open_in(part, &paths::target().join("long"), &results, Sources::read()?)
    }

    fn open_in(part: &str, states: &Path, results: &Path, sources: Sources) -> Result<Self> {
        let state = states.join(format!("{part}.json"));
        let items = fs::read(&state)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .filter(|kept| sources.are_those_of(kept))
            .and_then(|kept| kept.get("items").and_then(Value::as_object).cloned())
            .unwrap_or_default();
        if !items.is_empty() {
            progress::say(format!("{part}: going on after {} items", items.len()));
        }
        let result = results.join(format!("{part}.json"));
        Ok(Self { part: part.into(), state, result, sources, items })
    }

    /// The commit under test.
    pub fn commit(&self) -> &str {
        &self.sources.commit
    }

    /// What was kept under `item`.
    pub fn get(&self, item: &str) -> Option<&Value> {
        self.items.get(item)
    }

    /// Keeps `value` under `item`, on disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&mut self, item: &str, value: Value) -> Result<()> {
        self.items.insert(item.into(), value);
        write(&self.state, &self.text())
    }

    /// The part is done: its results go to their place, the next run begins anew. Returns the file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(self) -> Result<PathBuf> {
        write(&self.result, &self.text())?;
        let _ = fs::remove_file(&self.state);
        progress::say(format!("{}: results in {}", self.part, self.result.display()));
        Ok(self.result)
    }

    fn text(&self) -> Value {
        json!({
            "part": self.part,
            "commit": self.sources.commit,
            "changes": self.sources.changes,
            "seconds_since_1970": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            "items": self.items,
        })
    }
}

impl Sources {
    fn read() -> Result<Self> {
        let git = |args: &[&str]| {
            let mut git = command::new("git", args);
            command::output(git.current_dir(paths::root()))
        };
        let commit = git(&["rev-parse", "HEAD"])?.trim().to_owned();
        // Results are no sources: writing them must not make the next part begin anew.
        let changes = git(&["diff", "HEAD", "--", ".", ":!integration/results"])?;
        let changes = match changes.as_str() {
            "" => String::new(),
            text => cache::hex(&Sha256::digest(text.as_bytes())),
        };
        Ok(Self { commit, changes })
    }

    fn are_those_of(&self, kept: &Value) -> bool {
        let field = |name: &str| kept.get(name).and_then(Value::as_str);
        field("commit") == Some(&self.commit) && field("changes") == Some(&self.changes)
    }
}

fn write(path: &Path, value: &Value) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
    }
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Failed(format!("cannot write results: {error}")))?;
    text.push('\n');
    // Whole or not at all: a run may be stopped at any time.
    let new = path.with_extension("new");
    fs::write(&new, text).doing(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).doing(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(commit: &str) -> Sources {
        Sources { commit: commit.into(), changes: String::new() }
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = paths::target().join(format!("test-record-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn interrupted_run_goes_on() {
        let dir = scratch("interrupted");
        let open = |commit| Record::open_in("x", &dir, &dir.join("results"), sources(commit));
        let mut first = open("aa").unwrap();
        first.put("one", json!({"runs": 3})).unwrap();
        drop(first);
        let again = open("aa").unwrap();
        assert_eq!(again.get("one"), Some(&json!({"runs": 3})));
        assert_eq!(open("bb").unwrap().get("one"), None, "another commit begins anew");
        let file = again.finish().unwrap();
        let written: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!(written["commit"], "aa");
        assert_eq!(written["items"]["one"]["runs"], 3);
        assert_eq!(open("aa").unwrap().get("one"), None, "a finished run is not resumed");
        fs::remove_dir_all(dir).unwrap();
    }
}
