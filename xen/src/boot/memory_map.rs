//! Which memory is ours: from the start information's map to the parts that the image is divided into.
#![forbid(unsafe_code)]

use thiserror::Error;

const PAGE: u64 = 4096;
/// Alignment and size of what one large page maps.
const LARGE: u64 = 2 << 20;
/// The same for the largest pages.
const GIB: u64 = 1 << 30;
/// Numbers of the GiB that are looked at for an empty one: beyond everything else that is mapped, within what one top-level entry of
/// the page tables covers.
const BEYOND: core::ops::Range<u64> = 4..512;
/// Memory below is left out: nothing of ours is there, and address 0 must fault.
const LOWEST: u64 = 1 << 20;
/// Memory above is left out: the identity mapping of the first instructions ends at 4 GiB, and Xen puts ACPI tables
/// and special pages right below.
const HIGHEST: u64 = 0xfc00_0000;

/// Entries that are kept of a map; Xen makes about six, QEMU about eight.
pub(super) const MAX_ENTRIES: usize = 32;

/// RAM pieces that are used at most.
pub(super) const MAX_PIECES: usize = 4;

/// Least RAM, apart from the image, with which starting makes sense.
const LEAST_USABLE: u64 = 8 << 20;

/// `XEN_HVM_MEMMAP_TYPE_RAM` of Xen public/arch-x86/hvm/start_info.h.
pub(super) const TYPE_RAM: u32 = 1;

/// One range of the map, any type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) is_ram: bool,
}

/// The map as far as it fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemoryMap {
    entries: [Entry; MAX_ENTRIES],
    len: usize,
}

/// `start..end`, whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    pub(super) fn bytes(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    fn overlaps(self, other: Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// How the memory is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// All usable RAM outside of the image.
    pub(super) ram: [Range; MAX_PIECES],
    /// The heap, part of the largest piece.
    pub(super) heap: Range,
    /// What the page pool gets.
    pub(super) pool: [Range; MAX_PIECES],
    /// Pages for the arguments of hypercalls.
    pub(super) arguments: Range,
    /// A hole without memory, for what Xen maps at our request.
    pub(super) window: Range,
    /// Where a page of 1 GiB holds nothing that is in the map, if there is such a place.
    pub(super) empty_gib: Option<u64>,
}

/// The map does not allow a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum LayoutError {
    /// Less than 8 MiB of RAM besides the image.
    #[error("too little memory: at least 8 MiB are needed besides the image")]
    TooLittleMemory,
    /// The image does not lie in RAM.
    #[error("the memory map has no RAM where the image is")]
    ImageNotInRam,
    /// No unused address range for the mapping window.
    #[error("no unused address range for grant mappings")]
    NoWindow,
}

impl MemoryMap {
    /// Adds a range. Ranges that are empty or wrap around are left out; ranges that do not fit are, too.
    pub(super) fn push(&mut self, start: u64, size: u64, kind: u32) {
        let Some(end) = start.checked_add(size).filter(|end| *end > start) else { return };
        if let Some(slot) = self.entries.get_mut(self.len) {
            *slot = Entry { start, end, is_ram: kind == TYPE_RAM };
            self.len += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn entries(&self) -> &[Entry] {
        self.entries.get(..self.len).unwrap_or_default()
    }

    /// RAM in the map, bytes.
    pub(super) fn ram_bytes(&self) -> u64 {
        let ram = self.entries().iter().filter(|entry| entry.is_ram);
        ram.fold(0, |sum, entry| sum.saturating_add(entry.end - entry.start))
    }

    /// Divides the memory; `image` is where the image lies, `arguments_bytes` what the arguments of hypercalls take,
    /// `window_bytes` the size of the hole to find.
    pub(super) fn layout(
        &self,
        image: Range,
        arguments_bytes: u64,
        window_bytes: u64,
    ) -> Result<Layout, LayoutError> {
        let in_ram =
            |entry: &Entry| entry.is_ram && entry.start <= image.start && image.end <= entry.end;
        if !self.entries().iter().any(in_ram) {
            return Err(LayoutError::ImageNotInRam);
        }
        let ram = self.usable_ram(image);
        let total = ram.iter().fold(0, |sum, piece| sum + piece.bytes());
        if total < LEAST_USABLE {
            return Err(LayoutError::TooLittleMemory);
        }
        let (heap, mut pool) = divide(ram, total / 8 * 5);
        let arguments =
            take_first(&mut pool, arguments_bytes).ok_or(LayoutError::TooLittleMemory)?;
        let window = self.find_hole(window_bytes).ok_or(LayoutError::NoWindow)?;
        Ok(Layout { ram, heap, pool, arguments, window, empty_gib: self.empty_gib() })
    }

    /// The first whole GiB beyond 4 GiB that no entry touches.
    fn empty_gib(&self) -> Option<u64> {
        let is_free = |start: &u64| {
            let gib = Range { start: *start, end: start.saturating_add(GIB) };
            !self
                .entries()
                .iter()
                .any(|entry| gib.overlaps(Range { start: entry.start, end: entry.end }))
        };
        BEYOND.map(|number| number * GIB).find(is_free)
    }

    /// RAM between the bounds without the image and without what a non-RAM entry overlaps.
    fn usable_ram(&self, image: Range) -> [Range; MAX_PIECES] {
        let mut pieces = [Range::default(); MAX_PIECES];
        let mut used = 0;
        let mut keep = |start: u64, end: u64| {
            let piece = Range { start: start.next_multiple_of(PAGE), end: end - end % PAGE };
            if piece.end > piece.start
                && !self.is_claimed(piece)
                && let Some(slot) = pieces.get_mut(used)
            {
                *slot = piece;
                used += 1;
            }
        };
        for entry in self.entries().iter().filter(|entry| entry.is_ram) {
            let (start, end) = (entry.start.max(LOWEST), entry.end.min(HIGHEST));
            if image.start < end && start < image.end {
                keep(start, image.start.max(start));
                keep(image.end.min(end), end);
            } else if start < end {
                keep(start, end);
            }
        }
        pieces
    }

    fn is_claimed(&self, piece: Range) -> bool {
        let reserved = self.entries().iter().filter(|entry| !entry.is_ram);
        reserved
            .map(|entry| Range { start: entry.start, end: entry.end })
            .any(|range| range.overlaps(piece))
    }

    /// The lowest run of large pages above 16 MiB that touches nothing in the map, with a large page free before and
    /// after it.
    fn find_hole(&self, bytes: u64) -> Option<Range> {
        let mut start = 16 << 20;
        loop {
            let wanted = Range { start, end: start + bytes.next_multiple_of(LARGE) };
            let guarded = Range { start: start - LARGE, end: wanted.end + LARGE };
            if guarded.end > HIGHEST {
                return None;
            }
            let entries = self.entries().iter();
            let blocked = entries
                .filter(|entry| Range { start: entry.start, end: entry.end }.overlaps(guarded))
                .map(|entry| entry.end)
                .max();
            match blocked {
                None => return Some(wanted),
                Some(end) => start = end.checked_next_multiple_of(LARGE)?.checked_add(LARGE)?,
            }
        }
    }
}

/// Takes `heap_bytes`, as far as they fit, from the largest piece; the pool gets the rest.
fn divide(ram: [Range; MAX_PIECES], heap_bytes: u64) -> (Range, [Range; MAX_PIECES]) {
    let mut pool = ram;
    let mut heap = Range::default();
    if let Some(largest) = pool.iter_mut().max_by_key(|piece| piece.bytes()) {
        let end = largest.start + heap_bytes.next_multiple_of(PAGE).min(largest.bytes());
        heap = Range { start: largest.start, end };
        largest.start = end;
    }
    (heap, pool)
}

/// Takes whole pages from the first piece that has so many.
fn take_first(pool: &mut [Range; MAX_PIECES], bytes: u64) -> Option<Range> {
    let piece = pool.iter_mut().find(|piece| piece.bytes() >= bytes)?;
    let start = piece.start;
    piece.start += bytes;
    Some(Range { start, end: piece.start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IMAGE: Range = Range { start: 0x20_0000, end: 0x30_0000 };
    const WINDOW: u64 = 8 << 20;
    const ARGUMENTS: u64 = 6 * PAGE;

    /// What libxl gives a guest of `mib` MiB.
    fn xen_map(mib: u64) -> MemoryMap {
        let mut map = MemoryMap::default();
        map.push(0, mib << 20, 1);
        map.push(0xfc00_0000, 0x1000, 3);
        map.push(0xfeff_8000, 0x8000, 2);
        map
    }

    fn check(map: &MemoryMap, layout: &Layout) {
        let usable: u64 = layout.ram.iter().map(|piece| piece.bytes()).sum();
        let pool: u64 = layout.pool.iter().map(|piece| piece.bytes()).sum();
        let arguments = layout.arguments;
        assert_eq!(arguments.bytes(), ARGUMENTS);
        let used = layout.heap.bytes() + arguments.bytes() + pool;
        assert_eq!(used, usable, "every page is used once");
        let parts = layout.pool.iter().chain([&layout.heap, &arguments]);
        for piece in parts.filter(|piece| piece.bytes() > 0) {
            assert!(!piece.overlaps(IMAGE) && piece.start >= LOWEST && piece.end <= HIGHEST);
            assert!(piece.start.is_multiple_of(PAGE) && piece.end.is_multiple_of(PAGE));
            assert!(layout.ram.iter().any(|ram| ram.start <= piece.start && piece.end <= ram.end));
            assert!(!map.is_claimed(*piece));
        }
        assert!(!layout.pool.iter().any(|piece| piece.bytes() > 0 && piece.overlaps(layout.heap)));
        let window = Range { start: layout.window.start - LARGE, end: layout.window.end + LARGE };
        let touched = map
            .entries()
            .iter()
            .any(|entry| window.overlaps(Range { start: entry.start, end: entry.end }));
        assert!(!touched, "the window is a hole");
        let others = layout.pool.iter().chain([&layout.heap]).filter(|piece| piece.bytes() > 0);
        assert!(!others.into_iter().any(|piece| piece.overlaps(arguments)));
        let gib = layout.empty_gib.map(|start| Range { start, end: start + GIB }).unwrap();
        assert!(gib.start.is_multiple_of(GIB) && gib.start >= HIGHEST);
        let entries = map.entries().iter();
        assert!(
            !entries
                .map(|entry| Range { start: entry.start, end: entry.end })
                .any(|one| one.overlaps(gib))
        );
    }

    #[test]
    fn guests_from_16_to_4000_mib_are_divided() {
        for mib in [16, 24, 32, 64, 100, 512, 1024, 4000] {
            let map = xen_map(mib);
            let layout = map.layout(IMAGE, ARGUMENTS, WINDOW).unwrap();
            check(&map, &layout);
            let usable = (mib << 20) - LOWEST - IMAGE.bytes();
            assert_eq!(layout.heap.bytes(), (usable / 8 * 5).next_multiple_of(PAGE));
            assert_eq!(layout.window.start % LARGE, 0);
            assert_eq!(layout.window.bytes(), WINDOW);
            assert!(layout.window.start >= mib << 20);
        }
    }

    #[test]
    fn a_guest_beyond_4_gib_uses_its_lower_part() {
        let mut map = MemoryMap::default();
        map.push(0, 0xfa00_0000, 1);
        map.push(0xfeff_8000, 0x8000, 2);
        map.push(4 << 30, 4 << 30, 1);
        let layout = map.layout(IMAGE, ARGUMENTS, WINDOW).unwrap();
        check(&map, &layout);
        assert!(layout.heap.end <= 0xfa00_0000);
    }

    #[test]
    fn qemu_without_xen_has_a_map_with_holes_below_1_mib() {
        let mut map = MemoryMap::default();
        map.push(0, 0x9fc00, 1);
        map.push(0x9fc00, 0x400, 2);
        map.push(0xf0000, 0x10000, 2);
        map.push(0x10_0000, 0x7ee_0000, 1);
        map.push(0x7fe_0000, 0x2_0000, 2);
        check(&map, &map.layout(IMAGE, ARGUMENTS, WINDOW).unwrap());
    }

    #[test]
    fn too_little_memory_is_said() {
        assert_eq!(xen_map(8).layout(IMAGE, ARGUMENTS, WINDOW), Err(LayoutError::TooLittleMemory));
        assert_eq!(xen_map(2).layout(IMAGE, ARGUMENTS, WINDOW), Err(LayoutError::ImageNotInRam));
        assert_eq!(
            MemoryMap::default().layout(IMAGE, ARGUMENTS, WINDOW),
            Err(LayoutError::ImageNotInRam)
        );
    }

    #[test]
    fn a_full_address_space_leaves_no_window() {
        let mut map = xen_map(64);
        map.push(64 << 20, HIGHEST - (64 << 20), 2);
        assert_eq!(map.layout(IMAGE, ARGUMENTS, WINDOW), Err(LayoutError::NoWindow));
    }

    #[test]
    fn ram_that_is_also_reserved_is_not_used() {
        let mut map = xen_map(64);
        map.push(48 << 20, 1 << 20, 2);
        assert_eq!(map.layout(IMAGE, ARGUMENTS, WINDOW), Err(LayoutError::TooLittleMemory));
    }

    #[test]
    fn odd_entries_are_left_out() {
        let mut map = MemoryMap::default();
        map.push(5, 0, 1);
        map.push(u64::MAX - 1, 5, 1);
        assert!(map.is_empty());
        for _ in 0..=MAX_ENTRIES {
            map.push(0, 4096, 1);
        }
        assert_eq!(map.entries().len(), MAX_ENTRIES);
    }

    proptest! {
        #[test]
        fn any_map_gives_a_sound_layout_or_none(
            entries in proptest::collection::vec((any::<u32>(), any::<u32>(), 0..4_u32), 0..40),
            mib in 0..4096_u64,
        ) {
            let mut map = MemoryMap::default();
            map.push(0, mib << 20, 1);
            for (start, size, kind) in entries {
                map.push(u64::from(start) * 3, u64::from(size), kind);
            }
            if let Ok(layout) = map.layout(IMAGE, ARGUMENTS, WINDOW) {
                let window = layout.window;
                prop_assert!(window.end <= HIGHEST && window.bytes() == WINDOW);
                prop_assert!(!layout.ram.iter().any(|piece| piece.bytes() > 0 && piece.overlaps(window)));
                prop_assert!(!layout.ram.iter().any(|piece| piece.bytes() > 0 && piece.overlaps(IMAGE)));
            }
        }
    }
}
