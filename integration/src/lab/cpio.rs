//! Initial RAM disks: a tree in memory, written as a "newc" cpio archive (Linux
//! Documentation/driver-api/early-userspace/buffer-format). Owners are root and times are zero, so the same
//! input gives the same bytes whoever builds it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::error::{Attempt, Result};

/// What a path of the tree is.
enum Node {
    Dir,
    File { data: Vec<u8>, executable: bool },
    Link(String),
}

/// A file tree to be packed. Paths are relative, without a leading slash.
#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory and those above it.
    pub fn dir(&mut self, path: &str) {
        let mut upto = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !upto.is_empty() {
                upto.push('/');
            }
            upto.push_str(part);
            self.nodes.entry(upto.clone()).or_insert(Node::Dir);
        }
    }

    /// Adds a file, replacing what was there.
    pub fn data(&mut self, path: &str, data: impl Into<Vec<u8>>) {
        self.put(path, Node::File { data: data.into(), executable: false });
    }

    /// Adds an executable file from the host's disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        let data = fs::read(source).doing(|| format!("cannot read {}", source.display()))?;
        self.put(path, Node::File { data, executable: true });
        Ok(())
    }

    /// Adds a symbolic link, replacing what was there.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link(target.to_owned()));
    }

    fn put(&mut self, path: &str, node: Node) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The archive.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (path, node)) in self.nodes.iter().enumerate() {
            let (mode, data): (u32, &[u8]) = match node {
                Node::Dir => (0o040_755, &[]),
                Node::File { data, executable: true } => (0o100_755, data),
                Node::File { data, executable: false } => (0o100_644, data),
                Node::Link(target) => (0o120_777, target.as_bytes()),
            };
            entry(&mut out, inode.wrapping_add(1), path, mode, data);
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[]);
        out
    }
}

fn entry(out: &mut Vec<u8>, inode: usize, path: &str, mode: u32, data: &[u8]) {
    let header = format!(
        "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
        0, // owner
        0, // group
        1, // links
        0, // time
        data.len(),
        0, // device major, minor
        0,
        0, // device numbers of special files
        0,
        path.len() + 1,
        0, // checksum, unused in this format
    );
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_has_parents_first_and_a_trailer() {
        let mut tree = Tree::new();
        tree.data("a/b/c", "hello");
        tree.link("a/l", "b/c");
        let bytes = tree.pack();
        let text = String::from_utf8_lossy(&bytes);
        let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("{needle} missing"));
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0"));
        assert!(at("hello") < at("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(text.matches("070701").count(), 5);
        // Field 1 (mode) of the file, whose header directly precedes its name.
        let header = &text[at("a/b/c\0") - 110..at("a/b/c\0")];
        assert_eq!(&header[14..22], "000081a4");
        assert_eq!(&header[54..62], "00000005");
    }
}
