//! Page tables: a builder that works on plain arrays, tested on the host.
#![forbid(unsafe_code)]

use thiserror::Error;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
/// Physical address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SMALL_PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const HUGE_PAGE: u64 = 1 << 30;

/// Tables the builder may use: top, one per 512 GiB, one per GiB, and one per 2 MiB that is not mapped whole.
pub(super) const TABLES: usize = 28;

/// What may be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    /// Read and execute.
    Text,
    /// Read.
    ReadOnly,
    /// Read and write.
    Data,
}

/// The tables cannot express what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum MapError {
    /// More tables needed than there are.
    #[error("too few page tables")]
    OutOfTables,
    /// A range that does not consist of whole pages, is mapped already, or lies beyond 512 GiB.
    #[error("bad or overlapping range for the page tables")]
    BadRange,
}

/// One table of the four-level structure.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
pub(super) struct Table(pub(super) [u64; 512]);

/// Identity mappings under construction. The first table is the top one.
pub(super) struct Builder<'a> {
    tables: &'a mut [Table; TABLES],
    /// Physical address of the first table.
    base: u64,
    used: usize,
    has_no_execute: bool,
}

impl<'a> Builder<'a> {
    /// Starts with empty tables that lie at the physical address `base`.
    pub(super) fn new(
        tables: &'a mut [Table; TABLES],
        base: u64,
        has_no_execute: bool,
    ) -> Builder<'a> {
        tables.fill(Table([0; 512]));
        Builder { tables, base, used: 1, has_no_execute }
    }

    /// Maps `start..end` (whole pages) at identical addresses, with large pages where the range covers them.
    pub(super) fn map(
        &mut self,
        start: u64,
        end: u64,
        protection: Protection,
    ) -> Result<(), MapError> {
        if !start.is_multiple_of(SMALL_PAGE) || !end.is_multiple_of(SMALL_PAGE) || end > 512 << 30 {
            return Err(MapError::BadRange);
        }
        let mut address = start;
        while address < end {
            let large = address.is_multiple_of(LARGE_PAGE) && end - address >= LARGE_PAGE;
            let size = if large { LARGE_PAGE } else { SMALL_PAGE };
            self.set(address, size, protection)?;
            address += size;
        }
        Ok(())
    }

    /// Maps the GiB that begins at `start` at identical addresses by one page, for reading and writing.
    pub(super) fn map_gib(&mut self, start: u64) -> Result<(), MapError> {
        if !start.is_multiple_of(HUGE_PAGE) || start >= 512 << 30 {
            return Err(MapError::BadRange);
        }
        self.set(start, HUGE_PAGE, Protection::Data)
    }

    fn set(&mut self, address: u64, size: u64, protection: Protection) -> Result<(), MapError> {
        let large = if size == SMALL_PAGE { 0 } else { LARGE };
        let flags = self.flags(protection);
        let entry = self.entry(address, size)?;
        if *entry != 0 {
            return Err(MapError::BadRange);
        }
        *entry = address | PRESENT | large | flags;
        Ok(())
    }

    fn flags(&self, protection: Protection) -> u64 {
        let no_execute = if self.has_no_execute { NO_EXECUTE } else { 0 };
        match protection {
            Protection::Text => 0,
            Protection::ReadOnly => no_execute,
            Protection::Data => WRITABLE | no_execute,
        }
    }

    /// The entry that maps `address` by a page of `size` bytes, with the tables above it made as needed.
    fn entry(&mut self, address: u64, size: u64) -> Result<&mut u64, MapError> {
        let mut table = 0;
        for shift in [39, 30, 21, 12] {
            let index = (address >> shift) as usize % 512;
            if 1 << shift == size {
                return self.slot(table, index);
            }
            table = self.next_table(table, index)?;
        }
        Err(MapError::BadRange)
    }

    fn next_table(&mut self, table: usize, index: usize) -> Result<usize, MapError> {
        let (base, used) = (self.base, self.used);
        let entry = self.slot(table, index)?;
        if *entry & LARGE != 0 {
            return Err(MapError::BadRange);
        }
        if *entry != 0 {
            return Ok(((*entry & ADDRESS) - base) as usize / size_of::<Table>());
        }
        if used == TABLES {
            return Err(MapError::OutOfTables);
        }
        *entry = (base + (used * size_of::<Table>()) as u64) | PRESENT | WRITABLE;
        self.used += 1;
        Ok(used)
    }

    fn slot(&mut self, table: usize, index: usize) -> Result<&mut u64, MapError> {
        let table = self.tables.get_mut(table).ok_or(MapError::OutOfTables)?;
        table.0.get_mut(index).ok_or(MapError::BadRange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    const BASE: u64 = 0x50_0000;

    fn tables() -> Box<[Table; TABLES]> {
        std::vec![Table([0xdead; 512]); TABLES].into_boxed_slice().try_into().ok().unwrap()
    }

    /// Walks the tables as the processor does: flags of the page, whether it is large.
    fn walk(tables: &[Table; TABLES], address: u64) -> Option<(u64, bool)> {
        let mut table = 0;
        for shift in [39, 30, 21, 12] {
            let entry = tables[table].0[(address >> shift) as usize % 512];
            if entry & PRESENT == 0 {
                return None;
            }
            let large = entry & LARGE != 0;
            if shift == 12 || large {
                let size = 1 << shift;
                assert_eq!(
                    entry & ADDRESS & !(size - 1),
                    address & !(size - 1),
                    "not an identity mapping"
                );
                return Some((entry & !ADDRESS, large));
            }
            table = ((entry & ADDRESS) - BASE) as usize / 4096;
        }
        unreachable!()
    }

    #[test]
    fn protections_never_allow_writing_and_executing() {
        let mut tables = tables();
        let mut builder = Builder::new(&mut tables, BASE, true);
        builder.map(0x20_0000, 0x20_3000, Protection::Text).unwrap();
        builder.map(0x20_3000, 0x20_4000, Protection::ReadOnly).unwrap();
        builder.map(0x20_4000, 0x20_5000, Protection::Data).unwrap();
        let flags = |address| walk(&tables, address).unwrap().0;
        assert_eq!(flags(0x20_2fff), PRESENT);
        assert_eq!(flags(0x20_3000), PRESENT | NO_EXECUTE);
        assert_eq!(flags(0x20_4000), PRESENT | WRITABLE | NO_EXECUTE);
        assert_eq!(walk(&tables, 0x20_5000), None);
        assert_eq!(walk(&tables, 0), None);
    }

    #[test]
    fn large_pages_cover_the_middle_of_a_range_only() {
        let mut tables = tables();
        let mut builder = Builder::new(&mut tables, BASE, true);
        builder.map(0x1f_f000, 0x80_1000, Protection::Data).unwrap();
        let large = |address| walk(&tables, address).map(|(_, large)| large);
        assert_eq!(large(0x1f_e000), None);
        assert_eq!(large(0x1f_f000), Some(false));
        assert_eq!(large(0x20_0000), Some(true));
        assert_eq!(large(0x7f_f000), Some(true));
        assert_eq!(large(0x80_0000), Some(false));
        assert_eq!(large(0x80_1000), None);
    }

    #[test]
    fn a_gib_is_one_page_that_cannot_be_executed() {
        let mut tables = tables();
        let mut builder = Builder::new(&mut tables, BASE, true);
        builder.map(0x20_0000, 0x20_1000, Protection::Text).unwrap();
        builder.map_gib(4 << 30).unwrap();
        assert_eq!(builder.map_gib(4 << 30), Err(MapError::BadRange));
        assert_eq!(
            builder.map(4 << 30, (4 << 30) + 0x1000, Protection::Data),
            Err(MapError::BadRange)
        );
        for bad in [(4 << 30) + 0x1000, 512 << 30, 0] {
            assert_eq!(builder.map_gib(bad), Err(MapError::BadRange), "{bad:x}");
        }
        for address in [4 << 30, (5 << 30) - 1] {
            let flags = PRESENT | WRITABLE | NO_EXECUTE | LARGE;
            assert_eq!(walk(&tables, address), Some((flags, true)));
        }
        assert_eq!(walk(&tables, 5 << 30), None);
    }

    #[test]
    fn ranges_may_share_a_table_but_not_a_page() {
        let mut tables = tables();
        let mut builder = Builder::new(&mut tables, BASE, true);
        builder.map(0x1000, 0x3000, Protection::Data).unwrap();
        builder.map(0x4000, 0x5000, Protection::Data).unwrap();
        assert_eq!(builder.map(0x2000, 0x4000, Protection::Text), Err(MapError::BadRange));
        builder.map(0x20_0000, 0x40_0000, Protection::Data).unwrap();
        assert_eq!(builder.map(0x20_1000, 0x20_2000, Protection::Text), Err(MapError::BadRange));
        assert_eq!(builder.map(0, 0x20_0000, Protection::Text), Err(MapError::BadRange));
    }

    #[test]
    fn partial_pages_and_far_addresses_are_refused() {
        let mut tables = tables();
        let mut builder = Builder::new(&mut tables, BASE, true);
        for (start, end) in [(1, 0x1000), (0, 0xfff), (511 << 30, (512 << 30) + 0x1000)] {
            assert_eq!(builder.map(start, end, Protection::Data), Err(MapError::BadRange));
        }
    }

    #[test]
    fn running_out_of_tables_is_an_error() {
        let mut tables = tables();
        let mut builder = Builder::new(&mut tables, BASE, true);
        let pages = (0..TABLES as u64).map(|region| region * LARGE_PAGE);
        let results: Vec<_> =
            pages.map(|page| builder.map(page, page + SMALL_PAGE, Protection::Data)).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), TABLES - 3);
        assert_eq!(results.last(), Some(&Err(MapError::OutOfTables)));
    }

    #[test]
    fn without_no_execute_the_reserved_bit_stays_clear() {
        let mut tables = tables();
        Builder::new(&mut tables, BASE, false).map(0, 0x1000, Protection::Data).unwrap();
        assert_eq!(walk(&tables, 0), Some((PRESENT | WRITABLE, false)));
    }
}
