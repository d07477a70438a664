//! The first instructions: from the 32-bit state that PVH defines to 64-bit Rust.
//!
//! State at entry (Xen docs/misc/pvh.pandoc): protected mode without paging, flat segments, EBX = physical address of
//! the start information, everything else unspecified. All memory of `.bss` is zero.

use core::arch::global_asm;

use super::stacks;

/// Page tables of the first microseconds: 4 GiB at identical addresses, in 2 MiB pages, all writable and executable.
/// `page_table` builds the real ones.
#[repr(C, align(4096))]
struct EarlyTables([[u64; 512]; 6]);

static mut EARLY_TABLES: EarlyTables = EarlyTables([[0; 512]; 6]);

global_asm!(
    // Xen public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY. Eight bytes of address: Xen takes four or eight, QEMU reads
    // eight from a 64-bit file.
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad pvh_entry",
    "",
    ".section .text.entry, \"ax\", @progbits",
    ".code32",
    ".globl pvh_entry",
    "pvh_entry:",
    "cli",
    "cld",
    "mov $({stacks} + {stack_top}), %esp",
    // The time-stamp counter at entry, kept in ebp:esi.
    "rdtsc",
    "mov %eax, %esi",
    "mov %edx, %ebp",
    // PML4[0] -> PDPT, PDPT[0..4] -> four page directories, flags: present, writable.
    "mov ${tables}, %edi",
    "lea 0x1003(%edi), %eax",
    "mov %eax, (%edi)",
    "lea 0x2003(%edi), %eax",
    "lea 0x1000(%edi), %edx",
    "mov $4, %ecx",
    "2: mov %eax, (%edx)",
    "add $0x1000, %eax",
    "add $8, %edx",
    "loop 2b",
    // 2048 entries of 2 MiB, flags: present, writable, large.
    "mov $0x83, %eax",
    "lea 0x2000(%edi), %edx",
    "mov $2048, %ecx",
    "3: mov %eax, (%edx)",
    "add $0x200000, %eax",
    "add $8, %edx",
    "loop 3b",
    "mov %edi, %cr3",
    // CR4: PAE, OSFXSR, OSXMMEXCPT. The precompiled core library uses SSE from the first call on.
    "mov $0x620, %eax",
    "mov %eax, %cr4",
    // EFER.LME
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "or $0x100, %eax",
    "wrmsr",
    // CR0: PG, WP, NE, ET, MP, PE.
    "mov $0x80010033, %eax",
    "mov %eax, %cr0",
    "lgdt 4f",
    "ljmp $0x08, $5f",
    ".balign 8",
    "4: .word 23",
    ".long 6f",
    ".balign 8",
    "6: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    ".code64",
    "5: mov $0x10, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    "xor %eax, %eax",
    "mov %eax, %fs",
    "mov %eax, %gs",
    "mov $({stacks} + {stack_top}), %esp",
    "fninit",
    // First argument: start information. Second: the counter at entry.
    "mov %ebx, %edi",
    "mov %esi, %eax",
    "mov %ebp, %esi",
    "shl $32, %rsi",
    "or %rax, %rsi",
    "xor %ebp, %ebp",
    "call {start}",
    "ud2",
    ".text",
    stacks = sym stacks::STACKS,
    stack_top = const stacks::MAIN_TOP,
    tables = sym EARLY_TABLES,
    start = sym super::start,
    options(att_syntax)
);
