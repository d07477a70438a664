//! This side's copy of the database, bounded.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::ops::Bound;

use crate::path::{Path, PathError, Tree};

/// Trees that can be marked as incomplete one by one; beyond, all count as incomplete.
const MAX_INCOMPLETE_TREES: usize = 64;

/// How much a [`Store`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Number of entries.
    pub entries: usize,
    /// Sum of the lengths of keys and values in bytes. What the map itself needs (up to 170 bytes per entry, the key
    /// included) is not counted; `entries` bounds it.
    pub bytes: usize,
}

/// Heap bytes that are reckoned for one entry: its place in the map and a value of 86 bytes.
const ENTRY_HEAP_BYTES: u64 = 256;
/// Key and value bytes reckoned for one entry.
const ENTRY_BYTES: usize = 96;
/// However much memory there is: several hundred clients with a hundred rules each.
const MAX_ENTRIES: u64 = 65536;

impl Limits {
    /// What fits into a sixteenth of the domain's memory (in bytes), with a second copy while a dump is loaded: 4096
    /// entries in 32 MiB.
    pub fn for_memory(memory_bytes: u64) -> Self {
        let entries = (memory_bytes / (16 * 2 * ENTRY_HEAP_BYTES)).min(MAX_ENTRIES) as usize;
        Self { entries, bytes: entries.saturating_mul(ENTRY_BYTES) }
    }
}

impl Default for Limits {
    /// For a domain of 32 MiB.
    fn default() -> Self {
        Self::for_memory(32 << 20)
    }
}

/// Why an entry that dom0 sent is not in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key is not legal.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A value never contains NUL.
    #[error("value contains a NUL byte")]
    NulInValue,
    /// A removal carries no value.
    #[error("removal with a value")]
    RemovalWithValue,
    /// Our limit: [`Limits::entries`].
    #[error("too many entries")]
    TooManyEntries,
    /// Our limit: [`Limits::bytes`].
    #[error("too many bytes")]
    TooManyBytes,
    /// Our limit: too many trees had refused entries, so that it is not known which ones are whole.
    #[error("too many incomplete rule trees")]
    TooManyIncompleteTrees,
}

/// Entries sorted by key (byte order). As far as this side knows, what dom0 holds.
#[derive(Debug)]
pub struct Store {
    entries: BTreeMap<Path, Box<[u8]>>,
    bytes: usize,
    limits: Limits,
    /// Trees with an entry that was refused: their rules must not be taken for the whole.
    incomplete: BTreeMap<Tree, Refusal>,
    all_incomplete: bool,
}

impl Store {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        Self {
            entries: BTreeMap::new(),
            bytes: 0,
            limits,
            incomplete: BTreeMap::new(),
            all_incomplete: false,
        }
    }

    /// The value of `key`. An entry with an empty value is `Some` of an empty slice.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key).map(|value| &**value)
    }

    /// Like [`Self::get`] for values that are text; `None` also if the value is not UTF-8.
    pub fn get_str(&self, key: &str) -> Option<&str> {
        core::str::from_utf8(self.get(key)?).ok()
    }

    /// All entries, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|(path, value)| (path.as_str(), &**value))
    }

    /// All entries whose key starts with `prefix` (as text: `/a` finds `/ab` too), sorted.
    pub fn iter_prefix<'s, 'p>(
        &'s self,
        prefix: &'p str,
    ) -> impl Iterator<Item = (&'s str, &'s [u8])> + use<'s, 'p> {
        self.entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .map(|(path, value)| (path.as_str(), &**value))
            .take_while(move |(path, _)| path.starts_with(prefix))
    }

    /// The entries of a rule tree, sorted, each with the key below `/qubes-firewall/<ip>/`. The mark is not among
    /// them.
    pub fn tree_entries<'s, 't>(
        &'s self,
        tree: &'t Tree,
    ) -> impl Iterator<Item = (&'s str, &'s [u8])> + use<'s, 't> {
        let from = tree.below();
        self.entries
            .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded))
            .map_while(move |(path, value)| Some((tree.relative(path.as_str())?, &**value)))
    }

    /// Is every entry of this tree that dom0 sent in the store? A tree that is not whole must be treated like one
    /// that cannot be parsed.
    ///
    /// # Errors
    /// Why the first missing entry was refused.
    pub fn tree_is_complete(&self, tree: &Tree) -> Result<(), Refusal> {
        match self.incomplete.get(tree) {
            Some(&refusal) => Err(refusal),
            None if self.all_incomplete => Err(Refusal::TooManyIncompleteTrees),
            None => Ok(()),
        }
    }

    /// The rule trees of which at least the mark or one entry exists, each once, in no order that matters.
    pub fn trees(&self) -> impl Iterator<Item = Tree> {
        self.iter_prefix(Tree::common_prefix()).filter_map(|(key, _)| self.tree_begun_by(key))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is there no entry?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sum of the lengths of keys and values in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first tree of [`Self::trees`] whose key comes after `after`, with the key that stands for it.
    pub(crate) fn next_tree(&self, after: Option<&Path>) -> Option<(Path, Tree)> {
        let from = after
            .map_or(Bound::Included(Tree::common_prefix()), |path| Bound::Excluded(path.as_str()));
        self.entries
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(path, _)| path.as_str().starts_with(Tree::common_prefix()))
            .find_map(|(path, _)| Some((*path, self.tree_begun_by(path.as_str())?)))
    }

    /// The tree for which `key` stands: its mark or, without mark, its first entry.
    fn tree_begun_by(&self, key: &str) -> Option<Tree> {
        let tree = Tree::of(key.as_bytes())?;
        if key == tree.mark().as_str() {
            return Some(tree);
        }
        if self.entries.contains_key(tree.mark()) {
            return None;
        }
        let from = tree.below();
        let (first, _) = self
            .entries
            .range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded))
            .next()?;
        (first.as_str() == key).then_some(tree)
    }

    /// Would [`Self::insert`] succeed?
    pub(crate) fn check_room(&self, path: &Path, value: &[u8]) -> Result<(), Refusal> {
        let old = self.get(path.as_str());
        if old.is_none() && self.entries.len() >= self.limits.entries {
            return Err(Refusal::TooManyEntries);
        }
        let freed = old.map_or(0, |old| cost(path, old));
        let bytes = self.bytes.saturating_sub(freed).saturating_add(cost(path, value));
        if bytes > self.limits.bytes { Err(Refusal::TooManyBytes) } else { Ok(()) }
    }

    /// Sets an entry. When it is refused, an older value does not stay: no value is better than a stale one.
    pub(crate) fn insert(&mut self, path: Path, value: &[u8]) -> Result<(), Refusal> {
        let room = if value.contains(&0) {
            Err(Refusal::NulInValue)
        } else {
            self.check_room(&path, value)
        };
        self.remove_entry(&path);
        if let Err(refusal) = room {
            self.mark_incomplete(path.as_str().as_bytes(), refusal);
            return Err(refusal);
        }
        self.bytes = self.bytes.saturating_add(cost(&path, value));
        self.entries.insert(path, Box::from(value));
        Ok(())
    }

    /// Notes that an entry of the tree to which `path` belongs (if any) is missing.
    pub(crate) fn mark_incomplete(&mut self, path: &[u8], refusal: Refusal) {
        let Some(tree) = Tree::of(path) else { return };
        if self.incomplete.contains_key(&tree) || self.incomplete.len() < MAX_INCOMPLETE_TREES {
            self.incomplete.entry(tree).or_insert(refusal);
        } else {
            self.all_incomplete = true;
        }
    }

    /// Removes an entry or everything below a prefix; says whether there was any.
    pub(crate) fn remove(&mut self, path: &Path) -> bool {
        if !path.is_prefix() {
            return self.remove_entry(path);
        }
        self.incomplete.retain(|tree, _| !is_whole_tree_below(path, tree));
        let mut any = false;
        while let Some((key, _)) = self.entries.range(*path..).next() {
            let key = *key;
            if !path.covers(key.as_str()) {
                break;
            }
            self.remove_entry(&key);
            any = true;
        }
        any
    }

    /// Is there an entry that a removal of `path` would remove?
    pub(crate) fn holds_any(&self, path: &Path) -> bool {
        if path.is_prefix() {
            self.iter_prefix(path.as_str()).next().is_some()
        } else {
            self.entries.contains_key(path)
        }
    }

    fn remove_entry(&mut self, path: &Path) -> bool {
        let Some(value) = self.entries.remove(path) else { return false };
        self.bytes = self.bytes.saturating_sub(cost(path, &value));
        true
    }
}

/// Does the removal of `prefix` leave nothing in `tree`, refused entries included?
fn is_whole_tree_below(prefix: &Path, tree: &Tree) -> bool {
    let below = prefix.as_str();
    tree.relative(below) == Some("") || tree.mark().as_str().starts_with(below)
}

fn cost(path: &Path, value: &[u8]) -> usize {
    path.as_str().len().saturating_add(value.len())
}
