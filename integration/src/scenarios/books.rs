//! What the firewall holds, as `firewall.Memory` tells it: compared before and after something came and went.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::Result;
use crate::fail;
use crate::lab::world::World;

/// Until the books must be where they were.
const PATIENCE: Duration = Duration::from_secs(60);

/// Figures by name, those of a part of the program with its name before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// What comes and goes with a device or a link: exactly as many again.
    held: BTreeMap<String, u64>,
    /// Bytes and blocks of the heap.
    heap: BTreeMap<String, u64>,
    /// Bytes of the heap in use.
    used: u64,
}

impl Books {
    /// What must be the same whenever the same devices are there: of the whole, and of each part.
    ///
    /// # Errors
    /// When the firewall does not tell.
    pub fn read(world: &World) -> Result<Self> {
        let out = world.dom0d()?.call(&world.lab, "QUBESRPC firewall.Memory+ dom0")?;
        let mut books = Self::default();
        for line in out.text.lines() {
            let Ok(Value::Object(line)) = serde_json::from_str(line) else {
                fail!("firewall.Memory: {:?}", out.text)
            };
            let number = |name: &str| line.get(name).and_then(Value::as_u64);
            if line.get("kind").and_then(Value::as_str) == Some("memory") {
                books.held.insert("pages".into(), number("pages_used").unwrap_or(0));
                books.used = number("heap_used").unwrap_or(0);
            }
            let part = line.get("part").and_then(Value::as_str).unwrap_or("all");
            for name in ["live", "blocks"] {
                books.heap.extend(number(name).map(|value| (format!("{part} {name}"), value)));
            }
            for name in ["grants", "quarantined", "ports", "watches", "clients", "leaks"] {
                books.held.extend(number(name).map(|value| (name.to_owned(), value)));
            }
        }
        if !out.success() || books.heap.len() < 10 || books.held.len() < 7 {
            fail!("firewall.Memory: exit status {}: {}", out.status, out.text);
        }
        Ok(books)
    }

    /// Bytes of the heap in use.
    pub fn heap_bytes(&self) -> u64 {
        self.used
    }

    /// How many figures there are.
    pub fn len(&self) -> usize {
        self.held.len() + self.heap.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the books are as they were; what is told of them.
    ///
    /// # Errors
    /// With what is left after a minute.
    pub fn settle(&self, world: &World) -> Result<String> {
        self.settle_with(world, 0)
    }

    /// The same where lists may have grown for good by `slack` bytes in each part: everything but the heap is exactly
    /// as it was.
    ///
    /// # Errors
    /// With what is left after a minute.
    pub fn settle_with(&self, world: &World, slack: u64) -> Result<String> {
        let begun = Instant::now();
        loop {
            let after = Self::read(world)?;
            let left = self.left(&after, slack);
            if left.is_empty() {
                return Ok(format!("{} figures as before", self.len()));
            }
            if begun.elapsed() > PATIENCE {
                fail!("left behind: {}", left.join(", "));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn left(&self, after: &Self, slack: u64) -> Vec<String> {
        let held = changes(&self.held, &after.held).filter(|(_, before, after)| before != after);
        let heap = changes(&self.heap, &after.heap).filter(|(name, before, after)| match slack {
            0 => before != after,
            // A list that has grown is one block still.
            _ => name.ends_with(" live") && *after > before.saturating_add(slack),
        });
        held.chain(heap)
            .map(|(name, before, after)| format!("{name}: {after}, before {before}"))
            .collect()
    }
}

/// Name, value before and after, of all that either has.
fn changes<'a>(
    before: &'a BTreeMap<String, u64>,
    after: &'a BTreeMap<String, u64>,
) -> impl Iterator<Item = (&'a str, u64, u64)> {
    let value = |books: &BTreeMap<String, u64>, name: &str| books.get(name).copied().unwrap_or(0);
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    after
        .keys()
        .chain(gone)
        .map(move |name| (name.as_str(), value(before, name), value(after, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books(grants: u64, live: u64) -> Books {
        Books {
            held: BTreeMap::from([("grants".into(), grants)]),
            heap: BTreeMap::from([("ring live".into(), live), ("ring blocks".into(), live / 100)]),
            used: live,
        }
    }

    #[test]
    fn what_is_left_is_named() {
        assert!(books(3, 100).left(&books(3, 100), 0).is_empty());
        assert_eq!(books(3, 100).left(&books(4, 100), 0), ["grants: 4, before 3"]);
        assert_eq!(books(3, 100).left(&books(3, 199), 0), ["ring live: 199, before 100"]);
    }

    #[test]
    fn slack_is_for_the_heap_alone() {
        assert!(books(3, 100).left(&books(3, 500), 400).is_empty());
        assert_eq!(books(3, 100).left(&books(3, 501), 400), ["ring live: 501, before 100"]);
        assert_eq!(books(3, 100).left(&books(2, 100), 400), ["grants: 2, before 3"]);
    }

    #[test]
    fn a_part_that_is_new_or_gone_is_seen() {
        let none = Books::default();
        assert_eq!(none.left(&books(1, 0), 0), ["grants: 1, before 0"]);
        assert_eq!(books(1, 0).left(&none, 0), ["grants: 0, before 1"]);
    }
}
