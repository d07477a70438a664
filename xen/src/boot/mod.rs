//! From the loader's hand-over to the firewall: PVH entry, memory, page tables, interrupts, panic.
//!
//! `entry` (assembly) calls `start`, which brings everything up in the order that each step needs and then calls the
//! function given to [`entry!`](crate::entry).
#![cfg_attr(
    all(feature = "image", not(any(test, feature = "fake"))),
    expect(unsafe_code, reason = "processor set-up, page tables and the image's own memory")
)]

#[cfg(any(test, all(feature = "image", not(feature = "fake"))))]
mod memory_map;
#[cfg(any(test, all(feature = "image", not(feature = "fake"))))]
mod page_table;
#[cfg(any(test, all(feature = "image", not(feature = "fake"))))]
mod start_info;

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod descriptors;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod early;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod entry;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod exceptions;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod paging;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod panic;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub mod selftest;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod stacks;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
mod start;

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub(crate) use exceptions::{UPCALL_VECTOR, idle};
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
pub use panic::panic;
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
use start::start;

/// What the firewall is told at start.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// Kernel command line: printable ASCII, at most 2048 bytes.
    pub cmdline: &'static str,
    /// RAM of the domain, bytes.
    pub memory_bytes: u64,
    /// Xen's system time at the first instruction, ns.
    pub entry_ns: u64,
    /// What [`time::vcpu_running_ns`](crate::time::vcpu_running_ns) was at the first instruction, ns: domain building
    /// is not in it, so this is near zero.
    pub entry_running_ns: u64,
    /// Version of Xen, major and minor.
    pub xen_version: (u32, u32),
}

impl BootInfo {
    /// Time since the first instruction: on the wall, and of that running, in microseconds.
    pub fn uptime_us(&self) -> (u64, u64) {
        let wall = crate::time::system_time_ns().saturating_sub(self.entry_ns) / 1000;
        let running = crate::time::vcpu_running_ns().saturating_sub(self.entry_running_ns) / 1000;
        (wall, running)
    }

    /// Whether the command line has this word.
    pub fn has_word(&self, word: &str) -> bool {
        self.cmdline.split_ascii_whitespace().any(|one| one == word)
    }

    /// The value of the last `name=value` on the command line.
    pub fn value(&self, name: &str) -> Option<&'static str> {
        let words = self.cmdline.split_ascii_whitespace().rev();
        words
            .filter_map(|word| word.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// Makes the binary bootable: `xen::entry!(run);` where `fn run(info: xen::boot::BootInfo) -> !`.
///
/// Defines the panic handler, the global allocator and the symbol that the start-up code calls.
#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            $crate::boot::panic(info)
        }

        #[global_allocator]
        static HEAP: $crate::mem::Heap = $crate::mem::Heap;

        #[unsafe(no_mangle)]
        extern "Rust" fn firewall_run(info: $crate::boot::BootInfo) -> ! {
            let run: fn($crate::boot::BootInfo) -> ! = $run;
            run(info)
        }
    };
}

/// On the host there is nothing to boot; the binary only has to compile.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
#[macro_export]
macro_rules! entry {
    ($run:path) => {
        const _: fn($crate::boot::BootInfo) -> ! = $run;
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: BootInfo = BootInfo {
        cmdline: " fw-selftest=all  quiet fw-log=drops fw-log=off fw-logging",
        memory_bytes: 0,
        entry_ns: 0,
        entry_running_ns: 0,
        xen_version: (4, 17),
    };

    #[test]
    fn words_are_whole_words() {
        assert!(INFO.has_word("quiet") && INFO.has_word("fw-selftest=all"));
        assert!(!INFO.has_word("fw-selftest") && !INFO.has_word("") && !INFO.has_word("qui"));
    }

    #[test]
    fn the_last_value_wins() {
        assert_eq!(INFO.value("fw-log"), Some("off"));
        assert_eq!(INFO.value("fw-logging"), None);
        assert_eq!(INFO.value("quiet"), None);
    }
}
