//! Everything Xen: boot, hypercalls, memory, grants, events, xenstore, network rings, vchan.
//!
//! Two builds exist. With the feature `image` alone the crate runs on Xen: hypercalls trap, memory is identity-mapped
//! guest RAM. In every other build (tests, feature `fake`) the same code runs on the host against the strict
//! in-memory hypervisor of `fake`; the seam between the two is `hypercall`.
//!
//! # Where `unsafe` is, and what covers it
//! Every use of the word outside of comments and strings is counted: blocks, functions, impls, `extern` blocks and
//! attributes. `cargo xtask test` fails where file or number is wrong, or a test named here does not exist. All other
//! modules forbid `unsafe`.
//!
//! *Covered* has, besides the tests by name: *fuzz*, the targets of `integration/fuzz` that run the code on the host;
//! *boot*, every start of the image on Xen, of which the lab makes many; *smoke*, its start in plain QEMU, which comes as
//! far as noticing that there is no Xen; *self-test*, `fw-selftest=NAME` on the kernel command line, run by hand. Host tests run as
//! ordinary code: none of them checks each access against the rules of the language, so "rests on argument" is true of
//! aliasing everywhere.
//!
//! | file | uses | what for | covered by | rests on argument (at each place, `SAFETY`) |
//! | --- | --- | --- | --- | --- |
//! | `shared.rs` | 12 | volatile and atomic access to shared pages, copies, `from_raw` | `copies_of_any_length_and_offset_are_exact`, `values_are_little_endian_in_place`, `bit_operations_return_the_previous_value`, `a_copy_past_the_end_panics`, `a_huge_offset_does_not_wrap`, `an_unaligned_index_panics`; fuzz ring, vchan, xenstore, netback, netfront | that the page of `from_raw` stays mapped and no reference into it exists; races with a real peer, which the host has not |
//! | `mem/mod.rs` | 9 | bytes of a private page, a page as shared memory; heap and pool at start; the pool's backing on the host | `a_page_is_aligned_zeroed_and_counted`, `a_prefix_write_raises_the_mark_only_to_its_end`, `clearing_keeps_the_prefix_and_removes_the_rest`, `only_allocated_frames_are_visible_to_the_hypervisor`; fuzz netback, netfront; boot; self-test all | that the pool hands out each page once (its bookkeeping has tests, two owners would not be noticed by all of them) |
//! | `mem/global.rs` | 1 | `Sync` for state of the only thread | | all of it: one vCPU, no thread, interrupt handlers touch no such state |
//! | `mem/heap.rs` | 30 | the global allocator: heads of blocks, on `talc` in the image, on the standard allocator on the host | `a_block_is_booked_where_it_was_asked_for_until_it_is_freed`, `blocks_of_every_alignment_keep_their_bytes`, `an_operation_gets_its_small_blocks_from_the_reserve`; all tests of this crate allocate on it, and so do the program of integration/memory and the simulation; boot; self-test all, out-of-memory | that nothing allocates from within an allocation; what is particular to `talc`, and to its reserve block |
//! | `mem/functions.rs` | 39 | `memcpy`, `memmove`, `memset`, `memcmp`, `bcmp`, `strlen` of the image | `blocks_are_copied_and_nothing_around_them`, `overlapping_blocks_are_moved_both_ways`, `blocks_are_set_and_nothing_around_them`, `the_first_byte_that_differs_decides`; boot, where every copy goes through them | that what is read is readable: the tests look at what is written |
//! | `hypercall/trap.rs` | 3 | the trap into Xen | boot | the list of registers that Xen changes; `vmcall` (Intel), as the processor of the lab is an AMD one |
//! | `hypercall/real.rs` | 11 | hypercalls with pointers, shared pages at their addresses, arguments in their pages, `hlt`, I/O ports | boot; self-test all, poweroff, reboot; smoke for the ports; the lab for copies | that each command comes with its structure (sizes and offsets are asserted in `abi` at compile time), and that no index into the arguments reaches beyond its array |
//! | `hypercall/events.rs` | 10 | sends and sleeps with their arguments in their pages | boot; self-test all; the lab | as for `real.rs`; that there are at most as many sends, entries and ports as places |
//! | `hypercall/arguments.rs` | 1 | pages for arguments, moved behind a page of 1 GiB | boot; the lab | that nobody else has the pages, and that nothing is in that GiB |
//! | `hypercall/cpu.rs` | 3 | RDTSC, RDSEED, RDRAND | boot; self-test all | that CPUID is asked first |
//! | `boot/mod.rs` | 1 | the name of the image's main function | boot | |
//! | `boot/panic.rs` | 2 | names that `core` and `alloc` ask for | the link of the image | that they are never called: a panic aborts |
//! | `boot/start.rs` | 5 | main function, page tables, memory and pages for arguments once, reading the start information | `any_map_gives_a_sound_layout_or_none`, `arbitrary_memory_never_panics` for what is decided before; boot | that it is called once, and that the first page tables map what is read |
//! | `boot/paging.rs` | 6 | the final page tables, CR3, CR4, EFER | `protections_never_allow_writing_and_executing`, `ranges_may_share_a_table_but_not_a_page` for the tables' content; boot; self-test read-null, write-text, write-constant, execute-data, write-guard | that the new tables map all that is in use |
//! | `boot/descriptors.rs` | 3 | GDT, TSS and IDT | smoke, boot; self-test stack-overflow, which needs the stack that the TSS names | the bits of the descriptors |
//! | `boot/exceptions.rs` | 4 | the assembly's symbols, sleeping until an event, the report of a fault | boot, which sleeps; self-test read-null | the calling convention between assembly and Rust |
//! | `boot/selftest.rs` | 3 | accesses that must end the domain | self-test by these names | nothing: they are wrong on purpose |
//!
//! The assembly of `boot/entry.rs` and `boot/exceptions.rs` (`global_asm!`) needs no such word: smoke and boot run the
//! first, boot the second, and nothing else does. The linker script and the page tables at entry belong to them.
#![cfg_attr(all(feature = "image", not(any(test, feature = "fake"))), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod abi;
pub mod boot;
pub mod console;
pub mod counts;
pub mod entropy;
pub mod event;
pub mod grant;
mod hypercall;
pub mod mem;
pub mod netback;
pub mod netfront;
pub mod netif;
pub mod planted;
pub mod postmortem;
pub mod power;
pub mod ring;
pub mod shared;
pub mod time;
pub mod toolstack;
pub mod vchan;
pub mod xenbus;
pub mod xenstore;

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub mod fake;

pub use abi::{DomId, EventPort, Gfn, GrantRef};
