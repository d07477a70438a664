//! What the processor and Xen interrupt us for: Xen's event upcall, and exceptions, which end the domain.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{early, panic};

/// Vector of the event upcall.
pub(crate) const UPCALL_VECTOR: u8 = 0xf0;

/// Exceptions of the architecture; vectors above share the last stub.
const EXCEPTIONS: usize = 32;
const STUB_BYTES: usize = 16;

/// Address of `vcpu_info[0].evtchn_upcall_pending`, for the upcall handler.
static UPCALL_PENDING: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static exception_stubs: u8;
    fn event_upcall();
    fn idle_until_upcall();
}

global_asm!(
    // STI takes effect after the next instruction, so that an event either comes before the caller's last look or
    // ends the HLT. But QEMU's emulation of AMD's virtualisation forgets that shadow when a physical interrupt falls
    // between the two: the upcall is then taken ahead of the HLT, which nothing would end any more. So the handler
    // steps over a HLT that it finds still ahead. The same emulation now and then delivers one upcall twice, the
    // second at the handler's first instruction; on the interrupted stack that is harmless.
    ".text",
    ".globl idle_until_upcall",
    "idle_until_upcall:",
    "sti",
    "idle_halt:",
    "hlt",
    "cli",
    "ret",
    "",
    // Xen raises the interrupt as long as the byte is set. Everything else is found by the scan after the HLT.
    ".globl event_upcall",
    "event_upcall:",
    "push %rax",
    "mov {upcall_pending}(%rip), %rax",
    "movb $0, (%rax)",
    "lea idle_halt(%rip), %rax",
    "cmp %rax, 8(%rsp)",
    "jne 2f",
    "incq 8(%rsp)",
    "2: pop %rax",
    "iretq",
    "",
    // One stub per exception, of equal size: error code (the processor pushes some), number. The last one stands for
    // all vectors that nobody should raise.
    ".balign 16",
    ".globl exception_stubs",
    "exception_stubs:",
    ".set exception_vector, 0",
    ".rept 33",
    ".balign 16",
    ".if (exception_vector == 8) | ((exception_vector >= 10) & (exception_vector <= 14)) | (exception_vector == 17) | (exception_vector == 21) | (exception_vector == 29) | (exception_vector == 30)",
    ".else",
    "push $0",
    ".endif",
    "push $exception_vector",
    "jmp exception_common",
    ".set exception_vector, exception_vector + 1",
    ".endr",
    "",
    "exception_common:",
    "push %r15",
    "push %r14",
    "push %r13",
    "push %r12",
    "push %r11",
    "push %r10",
    "push %r9",
    "push %r8",
    "push %rbp",
    "push %rdi",
    "push %rsi",
    "push %rdx",
    "push %rcx",
    "push %rbx",
    "push %rax",
    "mov %cr2, %rsi",
    "mov %rsp, %rdi",
    "cld",
    "and $-16, %rsp",
    "call {report}",
    "ud2",
    upcall_pending = sym UPCALL_PENDING,
    report = sym report,
    options(att_syntax)
);

/// What the stubs push, lowest address first.
#[repr(C)]
struct Frame {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rbp: u64,
    r8_to_r15: [u64; 8],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Tells the upcall handler which byte to clear.
pub(super) fn set_upcall_pending_address(address: u64) {
    UPCALL_PENDING.store(address, Ordering::Relaxed);
}

/// Sleeps until an upcall comes, at once if one is pending. The only place where interrupts are enabled.
pub(crate) fn idle() {
    // SAFETY: the function keeps to the C convention. The interrupt descriptor table is loaded before anything can
    // wait, and the handler changes nothing but the upcall flag in `shared_info`.
    unsafe { idle_until_upcall() };
}

pub(super) fn upcall_address() -> u64 {
    (event_upcall as *const ()).addr() as u64
}

pub(super) fn stub_address(vector: usize) -> u64 {
    (&raw const exception_stubs).addr() as u64 + (vector.min(EXCEPTIONS) * STUB_BYTES) as u64
}

/// Called by the stubs on a stack of their own.
unsafe extern "C" fn report(frame: *const Frame, fault_address: u64) -> ! {
    // SAFETY: the stub passes the address of what it has just pushed, which nothing else touches.
    let frame = unsafe { &*frame };
    let Frame { rax, rbx, rcx, rdx, rsi, rdi, rbp, .. } = frame;
    early::log(format_args!(
        "rax={rax:#x} rbx={rbx:#x} rcx={rcx:#x} rdx={rdx:#x} rsi={rsi:#x} rdi={rdi:#x} rbp={rbp:#x}"
    ));
    early::log(format_args!(
        "r8..r15={:x?} cs={:#x} ss={:#x}",
        frame.r8_to_r15, frame.cs, frame.ss
    ));
    let (name, vector) = (name(frame.vector), frame.vector);
    panic::die(format_args!(
        "EXCEPTION: {name} (vector {vector}, error {:#x}) at {:#x}, address {fault_address:#x}, rsp {:#x}, rflags {:#x}",
        frame.error_code, frame.rip, frame.rsp, frame.rflags
    ))
}

fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "no floating point",
        8 => "double fault",
        10 => "bad task state",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "floating point error",
        17 => "alignment",
        18 => "machine check",
        19 => "SIMD floating point error",
        _ => "unexpected interrupt",
    }
}
