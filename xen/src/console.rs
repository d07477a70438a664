//! The text console: a ring that dom0's xenconsoled drains into a log file.
//!
//! Writing never waits. xenconsoled reads a limited amount per second, so that a writer who waited would let whoever
//! causes log lines stop the firewall; what does not fit is dropped and counted. Only printable ASCII goes out: the
//! log is read on a terminal in dom0.
#![forbid(unsafe_code)]

use core::cell::RefCell;
use core::fmt;

use crate::abi::platform::{CONSOLE_OUT, CONSOLE_OUT_BYTES, CONSOLE_OUT_CONS, CONSOLE_OUT_PROD};
use crate::event::{self, Channel};
use crate::mem::global;
use crate::shared::{SharedPage, fence_full};
use crate::{hypercall, time};

/// Longest line of [`console_line!`](crate::console_line), bytes; the rest is cut.
pub const LINE_BYTES: usize = 512;

/// How long [`drain`] waits at most, ns.
const DRAIN_NS: u64 = 100_000_000;

global! {
    static CONSOLE: RefCell<Console> = RefCell::new(Console { link: None, dropped: 0, reported: 0 });
}

struct Console {
    link: Option<(SharedPage, Channel)>,
    /// Bytes that did not fit, in all.
    dropped: u64,
    /// Of these, those that a line in the log tells of.
    reported: u64,
}

/// Connects to the ring that the toolstack has made. `false`: there is none, and output is dropped.
pub fn connect() -> bool {
    CONSOLE.with(|console| {
        let mut console = console.borrow_mut();
        let link = hypercall::console();
        console.link = link.map(|(page, port)| (page, Channel::from_toolstack(port)));
        console.link.is_some()
    })
}

/// Whether there is a ring: not before [`connect`], when the clock cannot be looked at either.
pub fn is_connected() -> bool {
    CONSOLE.with(|console| console.try_borrow().is_ok_and(|console| console.link.is_some()))
}

/// Writes the bytes if all of them fit, else drops all of them.
pub fn write(bytes: &[u8]) {
    CONSOLE.with(|console| {
        // Only a panic within this module finds it borrowed.
        if let Ok(mut console) = console.try_borrow_mut() {
            console.write(bytes);
        }
    });
}

/// Bytes dropped so far because the ring was full.
pub fn dropped_bytes() -> u64 {
    CONSOLE.with(|console| console.try_borrow().map_or(0, |console| console.dropped))
}

/// Waits, at most 100 ms, until xenconsoled has read everything: for last words. Events that were held are sent first.
pub fn drain() {
    event::send_held();
    CONSOLE.with(|console| {
        let Ok(console) = console.try_borrow() else { return };
        let Some((page, _)) = &console.link else { return };
        let deadline = time::system_time_ns().saturating_add(DRAIN_NS);
        while unread(page) != Some(0) && time::system_time_ns() < deadline {
            core::hint::spin_loop();
        }
    });
}

/// Lets go of the ring together with the fake hypervisor that it belonged to.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) fn reset() {
    CONSOLE.with(|console| *console.borrow_mut() = Console { link: None, dropped: 0, reported: 0 });
}

/// Bytes in the ring; `None` if the indices make no sense.
fn unread(page: &SharedPage) -> Option<u32> {
    let used =
        page.read_u32(CONSOLE_OUT_PROD).wrapping_sub(page.load_acquire_u32(CONSOLE_OUT_CONS));
    (used <= CONSOLE_OUT_BYTES).then_some(used)
}

impl Console {
    fn write(&mut self, bytes: &[u8]) {
        let lost = self.dropped - self.reported;
        if lost > 0 {
            let mut line = Line::new();
            line.push_fmt(format_args!("[console: {lost} bytes lost]"));
            if self.write_whole(line.finish()) {
                self.reported = self.dropped;
            }
        }
        if !self.write_whole(bytes) {
            self.dropped = self.dropped.saturating_add(bytes.len() as u64);
        }
    }

    fn write_whole(&self, bytes: &[u8]) -> bool {
        let Some((page, channel)) = &self.link else { return false };
        let Some(used) = unread(page) else { return false };
        if bytes.len() > (CONSOLE_OUT_BYTES - used) as usize {
            return false;
        }
        let mut position = page.read_u32(CONSOLE_OUT_PROD);
        for byte in bytes {
            page.write_u8(CONSOLE_OUT + (position % CONSOLE_OUT_BYTES) as usize, printable(*byte));
            position = position.wrapping_add(1);
        }
        page.store_release_u32(CONSOLE_OUT_PROD, position);
        fence_full();
        channel.notify();
        true
    }
}

/// The byte, or `?` where a terminal might take it for a command.
fn printable(byte: u8) -> u8 {
    if byte == b'\n' || byte == b' ' || byte.is_ascii_graphic() { byte } else { b'?' }
}

/// Writes one line, waiting until `deadline` (ns of system time) for xenconsoled to make room: for last words. `false`: it did
/// not.
pub fn write_line_patiently(arguments: fmt::Arguments<'_>, deadline: u64) -> bool {
    let mut line = Line::new();
    line.push_fmt(arguments);
    let bytes = line.finish();
    CONSOLE.with(|console| {
        let Ok(console) = console.try_borrow() else { return false };
        loop {
            if console.write_whole(bytes) {
                event::send_held();
                return true;
            }
            if console.link.is_none() || time::system_time_ns() >= deadline {
                return false;
            }
            core::hint::spin_loop();
        }
    })
}

/// Writes one formatted line without allocating; cut at [`LINE_BYTES`].
#[macro_export]
macro_rules! console_line {
    ($($argument:tt)*) => {
        $crate::console::write_line(::core::format_args!($($argument)*))
    };
}

/// Writes one line. Usually through [`console_line!`](crate::console_line).
pub fn write_line(arguments: fmt::Arguments<'_>) {
    let mut line = Line::new();
    line.push_fmt(arguments);
    write(line.finish());
}

/// A line under construction, on the stack.
pub(crate) struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    pub(crate) fn new() -> Line {
        Line { bytes: [0; LINE_BYTES], len: 0 }
    }

    /// Appends as much as fits.
    pub(crate) fn push_fmt(&mut self, arguments: fmt::Arguments<'_>) {
        // An error only says that the text was cut.
        let _ = fmt::Write::write_fmt(self, arguments);
    }

    /// The line with a newline at its end; line breaks within it have become `?`.
    pub(crate) fn finish(&mut self) -> &[u8] {
        let len = self.len.min(LINE_BYTES - 1);
        if let Some(end) = self.bytes.get_mut(len) {
            *end = b'\n';
        }
        self.bytes.get(..=len).unwrap_or_default()
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let slot = self.bytes.get_mut(self.len).ok_or(fmt::Error)?;
            *slot = if byte == b'\n' { b'?' } else { printable(byte) };
            self.len += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::{DomId, EventPort};
    use std::string::String;

    /// Plays xenconsoled: reads everything.
    fn read_all() -> String {
        let page = fake::console_page();
        let (mut at, end) =
            (page.read_u32(CONSOLE_OUT_CONS), page.load_acquire_u32(CONSOLE_OUT_PROD));
        let mut text = String::new();
        while at != end {
            text.push(char::from(page.read_u8(CONSOLE_OUT + (at % 2048) as usize)));
            at = at.wrapping_add(1);
        }
        page.write_u32(CONSOLE_OUT_CONS, at);
        text
    }

    #[test]
    fn a_line_arrives_and_dom0_is_told() {
        assert!(connect());
        crate::console_line!("memory {} MiB", 32);
        let notified = fake::peer(DomId::DOM0).take_notifications();
        assert_eq!(notified, [EventPort(31)]);
        assert_eq!(read_all(), "memory 32 MiB\n");
    }

    #[test]
    fn terminal_commands_are_defused() {
        connect();
        crate::console_line!("a\x1b[2Jb\r\nc\u{e9}");
        assert_eq!(read_all(), "a?[2Jb??c??\n");
    }

    #[test]
    fn what_does_not_fit_is_dropped_whole_counted_and_reported() {
        connect();
        write(&[b'x'; 2000]);
        write(&[b'z'; 48]);
        write(&[b'y'; 49]);
        assert_eq!(dropped_bytes(), 49);
        let text = read_all();
        assert_eq!((text.len(), text.contains('y'), text.ends_with('z')), (2048, false, true));
        write(b"next\n");
        assert_eq!(read_all(), "[console: 49 bytes lost]\nnext\n");
        write(b"last\n");
        assert_eq!(read_all(), "last\n");
    }

    #[test]
    fn positions_wrap_around() {
        connect();
        let page = fake::console_page();
        for index in [CONSOLE_OUT_CONS, CONSOLE_OUT_PROD] {
            page.write_u32(index, u32::MAX - 2);
        }
        write(b"across the end\n");
        assert_eq!(read_all(), "across the end\n");
    }

    #[test]
    fn nonsense_from_the_other_side_drops_output() {
        connect();
        fake::console_page().write_u32(CONSOLE_OUT_CONS, 5);
        write(b"lost\n");
        assert_eq!(dropped_bytes(), 5);
    }

    #[test]
    fn without_a_console_output_is_dropped() {
        write(b"nobody\n");
        assert_eq!(dropped_bytes(), 7);
    }

    #[test]
    fn draining_ends_when_everything_is_read() {
        connect();
        drain();
        let before = time::system_time_ns();
        assert_eq!(time::system_time_ns(), before);
    }

    #[test]
    fn a_long_line_is_cut_and_still_ends() {
        connect();
        crate::console_line!("{:>600}", 1);
        let text = read_all();
        assert_eq!((text.len(), text.ends_with('\n')), (LINE_BYTES, true));
    }
}
