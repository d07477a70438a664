//! Every kept input once more: `corpus/TARGET` and `regressions/TARGET`.
//!
//! A finding of the fuzzer becomes a file below `regressions`, named after what was wrong.

#![allow(
    clippy::unwrap_used,
    reason = "this is a test; only helpers outside of test functions are meant"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

fn replay(kind: &str, name: &str) -> usize {
    let target = fuzz::target(name).unwrap();
    let files = entries(&folder(kind).join(name));
    for file in &files {
        let bytes = std::fs::read(file).unwrap();
        let outcome = std::panic::catch_unwind(|| (target.run)(&bytes));
        assert!(
            outcome.is_ok(),
            "{} finds something: cargo run -p fuzz --bin replay {name} {}",
            file.display(),
            file.display()
        );
    }
    files.len()
}

macro_rules! replay {
    ($($name:ident)*) => {
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            replay("regressions", stringify!($name));
            assert!(replay("corpus", stringify!($name)) >= 10, "the corpus is not there");
        })*
    };
}

replay! { dns frames netback netfront netif qrexec qubesdb ring rules vchan xenbus xenstore }

#[test]
fn every_target_is_replayed_and_every_folder_has_a_target() {
    let names: BTreeSet<String> = fuzz::TARGETS.iter().map(|t| t.name.to_owned()).collect();
    assert_eq!(names, REPLAYED.iter().map(|name| (*name).to_owned()).collect());
    for kind in ["corpus", "regressions"] {
        for dir in entries(&folder(kind)) {
            let name = dir.file_name().unwrap().to_string_lossy().into_owned();
            assert!(names.contains(&name), "{} belongs to no target", dir.display());
        }
    }
}
