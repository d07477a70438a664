//! Output before and without a console: Xen's debug port, and a serial port for machines that are not Xen guests.

use core::fmt::{self, Write};

use crate::hypercall;

/// Xen puts whole lines into its own log (`xl dmesg`, guest debug level); QEMU has the same port as `-debugcon`.
const DEBUG_PORT: u16 = 0xe9;
const SERIAL: u16 = 0x3f8;
/// Line status register; bit 5: the transmitter takes another byte.
const SERIAL_STATUS: u16 = SERIAL + 5;
const SERIAL_READY: u8 = 1 << 5;
/// Register, value: 115200 baud, 8N1, no interrupts.
const SERIAL_SETUP: [(u16, u8); 6] =
    [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0x07)];
/// Reads of the status register before a byte is given up.
const SERIAL_TRIES: usize = 10_000;
/// QEMU's `isa-debug-exit`, where tests add it; unused everywhere else.
const EXIT_PORT: u16 = 0x501;

struct DebugPort;

impl Write for DebugPort {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| hypercall::out(DEBUG_PORT, byte));
        Ok(())
    }
}

/// One line to Xen's log. Every byte is an exit to the hypervisor: for start-up and last words only.
pub(super) fn log(arguments: fmt::Arguments<'_>) {
    let mut port = DebugPort;
    let _ = port.write_fmt(arguments);
    let _ = port.write_str("\n");
}

/// Says on every port there may be that nothing can run here, and stops.
pub(super) fn no_hypervisor() -> ! {
    const MESSAGE: &str =
        "qubes-rust-firewall: no Xen hypervisor found; this image runs as a Xen PVH guest";
    log(format_args!("{MESSAGE}"));
    for (register, value) in SERIAL_SETUP {
        hypercall::out(SERIAL + register, value);
    }
    b"\r\n".iter().copied().chain(MESSAGE.bytes()).chain(*b"\r\n").for_each(serial_byte);
    hypercall::out(EXIT_PORT, 1);
    hypercall::halt()
}

fn serial_byte(byte: u8) {
    let is_ready = || hypercall::input(SERIAL_STATUS) & SERIAL_READY != 0;
    if (0..SERIAL_TRIES).any(|_| is_ready()) {
        hypercall::out(SERIAL, byte);
    }
}
