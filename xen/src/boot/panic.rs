//! The end of the firewall when an invariant of its own breaks: a reason on the console, then a crashed domain.
//! No traffic passes afterwards.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use super::early;
use crate::{console, postmortem, power, time};

/// How long the report may take, in ns: dom0 reads some 2 KiB at a time and may be busy.
const REPORT_NS: u64 = 2_000_000_000;

static IS_DYING: AtomicBool = AtomicBool::new(false);

/// What `xen::entry!` installs as panic handler.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(place) => {
            let (file, line) = (place.file(), place.line());
            die(format_args!("PANIC: {} at {file}:{line}", info.message()))
        }
        None => die(format_args!("PANIC: {}", info.message())),
    }
}

/// Prints the reason to the console and to Xen's log, what happened before to the console, and crashes the domain. A second call, while the first one
/// prints, only crashes.
pub(super) fn die(reason: fmt::Arguments<'_>) -> ! {
    if !IS_DYING.swap(true, Ordering::Relaxed) {
        console::write_line(reason);
        early::log(reason);
        console::drain();
        if console::is_connected() {
            let deadline = time::system_time_ns().saturating_add(REPORT_NS);
            postmortem::report(|line| console::write_line_patiently(line, deadline));
            console::drain();
        }
    }
    power::crash()
}

/// Named by the prebuilt `core` and `alloc`, which were compiled for unwinding. Never called: a panic aborts.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`]; were it ever called, the domain must stop.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    power::crash()
}
