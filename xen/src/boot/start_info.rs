//! The start information of PVH: Xen public/arch-x86/hvm/start_info.h.
//!
//! Everything it points to lies in RAM that we are about to use, so all of it is copied out at once.
#![forbid(unsafe_code)]

use thiserror::Error;

use super::memory_map::{MAX_ENTRIES, MemoryMap};

const MAGIC: u32 = 0x336e_c578;
const HEADER_BYTES: u64 = 40;
const VERSION: u64 = 4;
const CMDLINE: u64 = 24;
const MAP: u64 = 40;
const MAP_ENTRIES: u64 = 48;
const MAP_ENTRY_BYTES: u64 = 24;

/// Bytes of the command line that are kept.
pub(super) const CMDLINE_BYTES: usize = 2048;

/// Why the start information cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum StartInfoError {
    /// A part of it lies outside of the readable memory.
    #[error("start information outside of memory")]
    OutOfMemory,
    /// Another loader protocol, or none.
    #[error("start information without the PVH magic number")]
    NoMagic,
}

/// Reads guest-physical memory.
pub(super) trait Physical {
    /// Fills `bytes` from `address`; `None` if any of it cannot be read.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()>;
}

/// The copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StartInfo {
    cmdline: [u8; CMDLINE_BYTES],
    cmdline_len: usize,
    /// Empty if there was none (version 0): then Xen has to be asked.
    pub(super) map: MemoryMap,
}

impl StartInfo {
    /// Copies the start information at `address`.
    pub(super) fn read(memory: &impl Physical, address: u64) -> Result<StartInfo, StartInfoError> {
        let out = StartInfoError::OutOfMemory;
        if read_u32(memory, address).ok_or(out)? != MAGIC {
            return Err(StartInfoError::NoMagic);
        }
        address.checked_add(HEADER_BYTES).ok_or(out)?;
        let version = read_u32(memory, address + VERSION).ok_or(out)?;
        let cmdline_address = read_u64(memory, address + CMDLINE).ok_or(out)?;
        let mut info =
            StartInfo { cmdline: [0; CMDLINE_BYTES], cmdline_len: 0, map: MemoryMap::default() };
        if cmdline_address != 0 {
            info.read_cmdline(memory, cmdline_address);
        }
        if version >= 1 {
            info.read_map(memory, address).ok_or(out)?;
        }
        Ok(info)
    }

    /// The command line: printable ASCII, other bytes replaced by `?`, cut to [`CMDLINE_BYTES`].
    pub(super) fn cmdline(&self) -> &str {
        let bytes = self.cmdline.get(..self.cmdline_len).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Up to the first NUL, the end of memory, or the bound.
    fn read_cmdline(&mut self, memory: &impl Physical, address: u64) {
        for (at, slot) in (address..).zip(self.cmdline.iter_mut()) {
            let mut byte = [0];
            if memory.read(at, &mut byte).is_none() || byte == [0] {
                break;
            }
            let [byte] = byte;
            *slot = if byte == b' ' || byte.is_ascii_graphic() { byte } else { b'?' };
            self.cmdline_len += 1;
        }
    }

    fn read_map(&mut self, memory: &impl Physical, address: u64) -> Option<()> {
        let first = read_u64(memory, address.checked_add(MAP)?)?;
        let entries = read_u32(memory, address.checked_add(MAP_ENTRIES)?)?;
        // More entries than fit are not an error: the first ones are RAM on every loader.
        for index in 0..u64::from(entries).min(MAX_ENTRIES as u64) {
            let entry = first.checked_add(index * MAP_ENTRY_BYTES)?;
            let start = read_u64(memory, entry)?;
            let size = read_u64(memory, entry.checked_add(8)?)?;
            let kind = read_u32(memory, entry.checked_add(16)?)?;
            self.map.push(start, size, kind);
        }
        Some(())
    }
}

fn read_u32(memory: &impl Physical, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory.read(address, &mut bytes)?;
    Some(u32::from_le_bytes(bytes))
}

fn read_u64(memory: &impl Physical, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(address, &mut bytes)?;
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Memory from [`BASE`] on.
    struct Memory(Vec<u8>);

    const BASE: u64 = 0x1000;

    impl Physical for Memory {
        fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
            let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
            bytes.copy_from_slice(self.0.get(start..start.checked_add(bytes.len())?)?);
            Some(())
        }
    }

    impl Memory {
        fn put(&mut self, offset: usize, bytes: &[u8]) {
            self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        }

        /// Version 1 with the command line at 0x100 and a map of two entries at 0x200.
        fn good() -> Memory {
            let mut memory = Memory(std::vec![0; 0x400]);
            memory.put(0, &MAGIC.to_le_bytes());
            memory.put(4, &1_u32.to_le_bytes());
            memory.put(24, &(BASE + 0x100).to_le_bytes());
            memory.put(40, &(BASE + 0x200).to_le_bytes());
            memory.put(48, &2_u32.to_le_bytes());
            memory.put(0x100, b"fw-log=drops x=1\0garbage");
            memory.put(0x208, &0x200_0000_u64.to_le_bytes());
            memory.put(0x210, &1_u32.to_le_bytes());
            memory.put(0x218, &0xfc00_0000_u64.to_le_bytes());
            memory.put(0x220, &0x1000_u64.to_le_bytes());
            memory.put(0x228, &3_u32.to_le_bytes());
            memory
        }
    }

    #[test]
    fn command_line_and_map_are_copied() {
        let info = StartInfo::read(&Memory::good(), BASE).unwrap();
        assert_eq!(info.cmdline(), "fw-log=drops x=1");
        let mut map = MemoryMap::default();
        map.push(0, 0x200_0000, 1);
        map.push(0xfc00_0000, 0x1000, 3);
        assert_eq!(info.map, map);
    }

    #[test]
    fn version_0_has_no_map_and_what_lies_there_is_not_read() {
        let mut memory = Memory::good();
        memory.put(4, &0_u32.to_le_bytes());
        memory.put(40, &u64::MAX.to_le_bytes());
        let info = StartInfo::read(&memory, BASE).unwrap();
        assert!(info.map.is_empty());
        assert_eq!(info.cmdline(), "fw-log=drops x=1");
    }

    #[test]
    fn a_later_version_is_read_like_version_1() {
        let mut memory = Memory::good();
        memory.put(4, &9_u32.to_le_bytes());
        assert_eq!(StartInfo::read(&memory, BASE).unwrap().map.ram_bytes(), 0x200_0000);
    }

    #[test]
    fn no_command_line_is_an_empty_one() {
        let mut memory = Memory::good();
        memory.put(24, &0_u64.to_le_bytes());
        assert_eq!(StartInfo::read(&memory, BASE).unwrap().cmdline(), "");
    }

    #[test]
    fn a_command_line_without_end_stops_at_the_end_of_memory() {
        let mut memory = Memory::good();
        memory.0.truncate(0x300);
        memory.put(24, &(BASE + 0x2fd).to_le_bytes());
        memory.put(0x2fd, b"abc");
        assert_eq!(StartInfo::read(&memory, BASE).unwrap().cmdline(), "abc");
    }

    #[test]
    fn a_long_command_line_is_cut_and_control_characters_are_replaced() {
        let mut memory = Memory::good();
        memory.put(24, &(BASE + 0x400).to_le_bytes());
        memory.0.extend(b"\x1b[2J\xff");
        memory.0.extend([b'a'; 3000]);
        let info = StartInfo::read(&memory, BASE).unwrap();
        assert_eq!(info.cmdline().len(), CMDLINE_BYTES);
        assert!(info.cmdline().starts_with("?[2J?aaa"));
    }

    #[test]
    fn wrong_magic_and_wild_pointers_are_errors() {
        let mut memory = Memory::good();
        memory.put(0, &[0]);
        assert_eq!(StartInfo::read(&memory, BASE), Err(StartInfoError::NoMagic));
        for address in [0, BASE + 0x3fe, u64::MAX, u64::MAX - 3] {
            let error = StartInfo::read(&Memory::good(), address);
            assert!(matches!(error, Err(StartInfoError::OutOfMemory)), "{address:#x}");
        }
        for map in [u64::MAX, u64::MAX - 8, BASE + 0x3f0] {
            let mut memory = Memory::good();
            memory.put(40, &map.to_le_bytes());
            assert_eq!(StartInfo::read(&memory, BASE), Err(StartInfoError::OutOfMemory));
        }
    }

    #[test]
    fn a_huge_number_of_entries_is_bounded() {
        let mut memory = Memory::good();
        memory.0.resize(0x1000, 0xff);
        memory.put(48, &u32::MAX.to_le_bytes());
        StartInfo::read(&memory, BASE).unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_memory_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..512), address: u64) {
            if bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let memory = Memory(bytes);
            let _ = StartInfo::read(&memory, BASE);
            let _ = StartInfo::read(&memory, address);
        }
    }
}
