//! Segments, task state and interrupt descriptors.
//!
//! Every exception has a stack of the interrupt stack table: the precompiled core library keeps data below the stack
//! pointer (the red zone), so that nothing may be pushed onto the interrupted stack. The event upcall is the
//! exception to that: it can only interrupt `exceptions::idle`, where nothing is kept there, and it must bear being
//! delivered twice in a row, which on a stack of the table would overwrite its return address.

use core::arch::asm;
use core::cell::UnsafeCell;

use super::{exceptions, stacks};

const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const TASK: u16 = 0x18;

/// Stacks of the interrupt stack table.
const IST_NONE: u8 = 0;
const IST_EXCEPTION: u8 = 1;
const IST_DOUBLE_FAULT: u8 = 2;
const IST_NMI: u8 = 3;

const VECTORS: usize = 256;
const NMI: usize = 2;
const DOUBLE_FAULT: usize = 8;
const MACHINE_CHECK: usize = 18;

/// Present, 64-bit interrupt gate, privilege 0.
const INTERRUPT_GATE: u8 = 0x8e;

/// A table that the processor reads, filled once at start.
#[repr(C, align(16))]
struct Table<T>(UnsafeCell<T>);

// SAFETY: written by `load` only, once, before interrupts or a second thread could exist (there is none).
unsafe impl<T> Sync for Table<T> {}

static GDT: Table<[u64; 5]> = Table(UnsafeCell::new([0; 5]));
static TASK_STATE: Table<[u32; 26]> = Table(UnsafeCell::new([0; 26]));
static IDT: Table<[Gate; VECTORS]> = Table(UnsafeCell::new([Gate::EMPTY; VECTORS]));

#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}
const _: () = assert!(size_of::<Gate>() == 16);

impl Gate {
    const EMPTY: Gate = Gate {
        offset_low: 0,
        selector: 0,
        ist: 0,
        kind: 0,
        offset_middle: 0,
        offset_high: 0,
        reserved: 0,
    };

    fn new(handler: u64, ist: u8) -> Gate {
        Gate {
            offset_low: handler as u16,
            selector: CODE,
            ist,
            kind: INTERRUPT_GATE,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        }
    }
}

/// Operand of `lgdt` and `lidt`.
#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

impl TableRegister {
    fn of<T>(table: &'static Table<T>) -> TableRegister {
        TableRegister { limit: (size_of::<T>() - 1) as u16, base: table.0.get().addr() as u64 }
    }
}

/// Fills and loads all tables. To be called once, with interrupts off.
pub(super) fn load() {
    let task_base = TASK_STATE.0.get().addr() as u64;
    // SAFETY: no other access to the tables exists (see `Table`); the processor has not been told of them yet.
    unsafe {
        GDT.0.get().write(segments(task_base));
        TASK_STATE.0.get().write(task_state());
        IDT.0.get().write(gates());
    }
    let (gdt, idt) = (TableRegister::of(&GDT), TableRegister::of(&IDT));
    // SAFETY: code and data descriptors are the same as the current ones, the task descriptor describes a static, and
    // every gate leads to code of ours. The far return reloads CS from the new table.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:e}",
            "mov es, {data:e}",
            "mov ss, {data:e}",
            "ltr {task:x}",
            "lidt [{idt}]",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            code = const CODE as u64,
            data = in(reg) u32::from(DATA),
            task = in(reg) TASK,
            scratch = out(reg) _,
        );
    }
}

/// Null, code, data, and the two halves of the task state's descriptor.
fn segments(task_base: u64) -> [u64; 5] {
    let limit = size_of::<[u32; 26]>() as u64 - 1;
    let task_low =
        limit | (task_base & 0xff_ffff) << 16 | 0x89 << 40 | (task_base >> 24 & 0xff) << 56;
    [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, task_low, task_base >> 32]
}

/// The 64-bit task state: only the interrupt stack table (from byte 36 on) and an I/O map beyond the limit.
fn task_state() -> [u32; 26] {
    let mut state = [0; 26];
    let [_, _, _, _, _, _, _, _, _, ist @ ..] = &mut state;
    let halves =
        stacks::interrupt_stack_tops().into_iter().flat_map(|top| [top as u32, (top >> 32) as u32]);
    ist.iter_mut().zip(halves).for_each(|(slot, half)| *slot = half);
    if let Some(io_map) = state.last_mut() {
        *io_map = (size_of::<[u32; 26]>() as u32) << 16;
    }
    state
}

fn gates() -> [Gate; VECTORS] {
    let mut gates = [Gate::EMPTY; VECTORS];
    for (vector, gate) in gates.iter_mut().enumerate() {
        let ist = match vector {
            NMI | MACHINE_CHECK => IST_NMI,
            DOUBLE_FAULT => IST_DOUBLE_FAULT,
            _ => IST_EXCEPTION,
        };
        *gate = if vector == usize::from(exceptions::UPCALL_VECTOR) {
            Gate::new(exceptions::upcall_address(), IST_NONE)
        } else {
            Gate::new(exceptions::stub_address(vector), ist)
        };
    }
    gates
}
