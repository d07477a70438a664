//! The image: what Xen starts.
#![no_std]
#![no_main]

use xen::boot::BootInfo;
use xen::{console_line, event, mem, power, time};

xen::entry!(run);

/// First instruction of the firewall proper. Interrupts are off, memory and console are up.
fn run(info: BootInfo) -> ! {
    let (major, minor) = info.xen_version;
    let since_entry_us = time::system_time_ns().saturating_sub(info.entry_ns) / 1000;
    let running_us = time::vcpu_running_ns().saturating_sub(info.entry_running_ns) / 1000;
    console_line!("qubes-rust-firewall {} on Xen {major}.{minor}", env!("CARGO_PKG_VERSION"));
    console_line!(
        "memory {} KiB: heap {} KiB, {} pages; up {since_entry_us} us after entry ({running_us} us running)",
        info.memory_bytes / 1024,
        mem::heap_size() / 1024,
        mem::total_pages()
    );
    if info.value("fw-selftest") == Some("poweroff") {
        power::poweroff();
    }
    loop {
        event::wait(None);
        event::take_pending(|_| {});
    }
}
