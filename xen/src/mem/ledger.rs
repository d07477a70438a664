//! Who has which part of the heap: every block carries the part of the program that asked for it and, where there is one,
//! the owner that must give it back (a client's vif, a call).
//!
//! What runs says who it is with [`enter`]; blocks are booked there until they are freed, wherever that happens. An owner
//! that goes must have nothing left: [`take_leak`] tells what it has, once.
//!
//! # Running out
//! After the start there are two kinds of allocation. Those that may fail are made with `try_reserve` and refused when the
//! heap or the part's budget is used up. All others are small (at most [`SMALL_BYTES`]) and made inside an *operation*
//! ([`begin`]), whatever the budget. It starts only while a reserve of [`RESERVE_BYTES`] is held back in one piece: when the
//! heap is full the operation gets the reserve. So it cannot fail as long as it asks for less than that, and none comes near
//! (`firewall.Memory` tells the largest). Whoever may not begin comes again later.
#![forbid(unsafe_code)]

use core::cell::Cell;

use super::global;
use crate::postmortem::{self, What};

/// A part of the program, as far as its memory is kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Part {
    /// The start: tables of fixed size. On the host also everything that is not ours.
    Tables,
    /// Frames on their way. Nothing is allocated for them.
    Packets,
    /// Requests to xenstore and its answers.
    Store,
    /// The clients' vifs.
    Netback,
    /// The uplink.
    Netfront,
    /// Connections to dom0's daemons.
    Links,
    /// The copy of QubesDB.
    Database,
    /// Rules and configuration made of it.
    Rules,
    /// Calls over qrexec.
    Calls,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; PARTS] = [
        Part::Tables,
        Part::Packets,
        Part::Store,
        Part::Netback,
        Part::Netfront,
        Part::Links,
        Part::Database,
        Part::Rules,
        Part::Calls,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Tables => "tables",
            Part::Packets => "packets",
            Part::Store => "store",
            Part::Netback => "netback",
            Part::Netfront => "netfront",
            Part::Links => "links",
            Part::Database => "database",
            Part::Rules => "rules",
            Part::Calls => "calls",
        }
    }
}

/// Number of parts.
pub const PARTS: usize = 9;
/// Slots of vifs whose blocks are kept apart; those of later slots have no owner.
const VIFS: usize = 128;
/// The same for connections.
const LINKS: usize = 16;
const OWNERS: usize = VIFS + LINKS + 1;
/// Largest block, in bytes, that an operation gets whatever happens: a page, with its head and what goes before it.
pub const SMALL_BYTES: usize = 4096 + 512;
/// What one operation may ask for in such blocks, in bytes, all together.
pub const RESERVE_BYTES: usize = 128 * 1024;

/// What must leave nothing behind when it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The client in this slot.
    Vif(usize),
    /// The connection with this number.
    Link(usize),
    /// The uplink.
    Uplink,
}

impl Owner {
    /// Its place in the books; a slot or number beyond them has none.
    fn place(self) -> Option<u8> {
        let place = match self {
            Owner::Vif(slot) => slot.lt(&VIFS).then_some(slot),
            Owner::Link(number) => number.lt(&LINKS).then_some(VIFS.saturating_add(number)),
            Owner::Uplink => Some(VIFS.saturating_add(LINKS)),
        };
        u8::try_from(place?).ok()
    }
}

/// Place of no owner in a block's head.
const NO_OWNER: u8 = u8::MAX;

/// Who asks: a part, and the owner that has to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) part: u8,
    pub(super) owner: u8,
}

impl Account {
    const START: Account = Account { part: Part::Tables as u8, owner: NO_OWNER };
}

/// What one part has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Bytes now.
    pub live: usize,
    /// Most bytes at one time.
    pub peak: usize,
    /// Blocks now.
    pub blocks: usize,
    /// Blocks that were given out or changed their size since the start.
    pub count: u64,
    /// Requests that were refused.
    pub failures: u64,
    /// Bytes that it may have.
    pub budget: usize,
}

/// The books of one part.
struct Entry {
    live: Cell<usize>,
    peak: Cell<usize>,
    blocks: Cell<usize>,
    count: Cell<u64>,
    failures: Cell<u64>,
    budget: Cell<usize>,
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            live: Cell::new(0),
            peak: Cell::new(0),
            blocks: Cell::new(0),
            count: Cell::new(0),
            failures: Cell::new(0),
            budget: Cell::new(usize::MAX),
        }
    }

    /// So many bytes less, and then so many more.
    fn change(&self, less: usize, more: usize) {
        let live = self.live.get().saturating_sub(less).saturating_add(more);
        self.live.set(live);
        if live > self.peak.get() {
            self.peak.set(live);
        }
    }
}

/// Figures about operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Most bytes that one has asked for in small blocks.
    pub largest: usize,
    /// Those that could not begin for want of memory.
    pub refused: u64,
    /// Times that the reserve was needed.
    pub reserve_used: u64,
    /// Owners that went and left something behind.
    pub leaks: u64,
}

global! {
    static USES: [Entry; PARTS] = [const { Entry::new() }; PARTS];
}
global! {
    static OWNED: [[Cell<u32>; PARTS]; OWNERS] = [const { [const { Cell::new(0) }; PARTS] }; OWNERS];
}
global! {
    static CURRENT: Cell<Account> = Cell::new(Account::START);
}
global! {
    /// Bytes that the operation in hand has asked for; `None` outside of any.
    static OPERATION: Cell<Option<usize>> = Cell::new(None);
}
global! {
    static OPERATIONS: Cell<Operations> =
        Cell::new(Operations { largest: 0, refused: 0, reserve_used: 0, leaks: 0 });
}

/// Until it is dropped, blocks are booked on another account.
#[derive(Debug)]
pub struct Booked {
    before: Account,
}

impl Drop for Booked {
    fn drop(&mut self) {
        CURRENT.with(|current| current.set(self.before));
    }
}

/// Books on `part` from here on, without an owner.
pub fn enter(part: Part) -> Booked {
    switch(Account { part: part as u8, owner: NO_OWNER })
}

/// Books on `part` and on `owner`. To be used only while something is made that goes with the owner.
pub fn enter_for(part: Part, owner: Owner) -> Booked {
    switch(Account { part: part as u8, owner: owner.place().unwrap_or(NO_OWNER) })
}

fn switch(account: Account) -> Booked {
    Booked { before: CURRENT.with(|current| current.replace(account)) }
}

/// A piece of work whose small blocks are sure to be there.
#[derive(Debug)]
pub struct Operation {
    _booked: Booked,
    /// It lies within another one, which ends later.
    is_inner: bool,
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.is_inner {
            return;
        }
        let bytes = OPERATION.with(|bytes| bytes.take()).unwrap_or(0);
        OPERATIONS.with(|all| {
            let mut sum = all.get();
            sum.largest = sum.largest.max(bytes);
            all.set(sum);
        });
    }
}

/// Begins an operation of `part`; `None` while memory is short: to be tried again later. A part at its budget still begins,
/// as what it does may be to refuse, to deny or to give back.
pub fn begin(part: Part) -> Option<Operation> {
    let is_inner = OPERATION.with(|bytes| bytes.get().is_some());
    if !is_inner {
        if !super::heap::reserve() || host_refuses() {
            OPERATIONS.with(|all| {
                let mut sum = all.get();
                sum.refused = sum.refused.saturating_add(1);
                all.set(sum);
            });
            postmortem::note(What::Short, [part as u64, 0]);
            return None;
        }
        OPERATION.with(|bytes| bytes.set(Some(0)));
    }
    Some(Operation { _booked: enter(part), is_inner })
}

#[cfg(all(feature = "image", not(any(test, feature = "fake"))))]
const fn host_refuses() -> bool {
    false
}

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
fn host_refuses() -> bool {
    super::heap::inject::refuses_operation()
}

/// What a part has.
pub fn usage(part: Part) -> Use {
    entry(part as u8, |entry| Use {
        live: entry.live.get(),
        peak: entry.peak.get(),
        blocks: entry.blocks.get(),
        count: entry.count.get(),
        failures: entry.failures.get(),
        budget: entry.budget.get(),
    })
    .unwrap_or_default()
}

/// Figures about operations since the start.
pub fn operations() -> Operations {
    OPERATIONS.with(|all| all.get())
}

/// Sets what a part may have, in bytes.
pub fn set_budget(part: Part, bytes: usize) {
    entry(part as u8, |entry| entry.budget.set(bytes));
}

/// Bytes that an owner has in each part. One that goes must have none.
pub fn owned(owner: Owner) -> impl Iterator<Item = (Part, usize)> {
    Part::ALL.into_iter().filter_map(move |part| {
        let bytes = owned_cell(owner.place()?, part as u8, Cell::get)? as usize;
        (bytes > 0).then_some((part, bytes))
    })
}

/// An owner goes: what it leaves behind is told, counted, and no longer booked on its slot, which the next one gets.
pub fn take_leak(owner: Owner) -> Option<(Part, usize)> {
    let (leak, place) = (owned(owner).next()?, owner.place()?);
    for part in Part::ALL {
        owned_cell(place, part as u8, Cell::take);
    }
    OPERATIONS.with(|all| {
        let mut sum = all.get();
        sum.leaks = sum.leaks.saturating_add(1);
        all.set(sum);
    });
    Some(leak)
}

fn owned_cell<R>(owner: u8, part: u8, action: impl FnOnce(&Cell<u32>) -> R) -> Option<R> {
    OWNED.with(|owned| Some(action(owned.get(usize::from(owner))?.get(usize::from(part))?)))
}

/// The books of a part; nothing for a number that is none.
fn entry<R>(part: u8, action: impl FnOnce(&Entry) -> R) -> Option<R> {
    USES.with(|uses| uses.get(usize::from(part)).map(action))
}

/// Adds one.
fn bump(count: &Cell<u64>) {
    count.set(count.get().wrapping_add(1));
}

/// What an owner has changes by so many bytes less, and then so many more.
fn change_owned(account: Account, less: usize, more: usize) {
    if account.owner == NO_OWNER {
        return;
    }
    let bytes = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
    owned_cell(account.owner, account.part, |cell| {
        cell.set(cell.get().saturating_sub(bytes(less)).saturating_add(bytes(more)));
    });
}

/// What the heap does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is refused: beyond the budget.
    Refused,
    /// It may fail.
    Fallible,
    /// It must not fail.
    Sure,
}

/// Judges a request for `bytes` by the account that runs now.
pub(super) fn admit(account: Account, bytes: usize) -> Admission {
    if bytes <= SMALL_BYTES
        && let Some(sum) = OPERATION.with(|operation| operation.get())
    {
        OPERATION.with(|operation| operation.set(Some(sum.saturating_add(bytes))));
        return Admission::Sure;
    }
    let is_within = |entry: &Entry| {
        entry.live.get().checked_add(bytes).is_some_and(|sum| sum <= entry.budget.get())
    };
    match entry(account.part, is_within) {
        Some(true) => Admission::Fallible,
        _ => Admission::Refused,
    }
}

/// Who asks now.
pub(super) fn current() -> Account {
    CURRENT.with(|current| current.get())
}

/// Books a block that was given out.
pub(super) fn book(account: Account, bytes: usize) {
    entry(account.part, |entry| {
        entry.change(0, bytes);
        entry.blocks.set(entry.blocks.get().wrapping_add(1));
        bump(&entry.count);
    });
    change_owned(account, 0, bytes);
}

/// Takes a block off the books that came back.
pub(super) fn unbook(account: Account, bytes: usize) {
    entry(account.part, |entry| {
        entry.change(bytes, 0);
        entry.blocks.set(entry.blocks.get().saturating_sub(1));
    });
    change_owned(account, bytes, 0);
}

/// A block of `old` bytes is taken off the books to be booked again with another size.
pub(super) fn unbook_for_resize(account: Account, old: usize) {
    entry(account.part, |entry| entry.change(old, 0));
    change_owned(account, old, 0);
}

/// It is booked again.
pub(super) fn book_resized(account: Account, new: usize) {
    entry(account.part, |entry| {
        entry.change(0, new);
        bump(&entry.count);
    });
    change_owned(account, 0, new);
}

/// Counts a request that was refused.
pub(super) fn note_failure(account: Account) {
    entry(account.part, |entry| bump(&entry.failures));
}

/// The reserve was given to an operation.
pub(super) fn note_reserve_used() {
    OPERATIONS.with(|all| {
        let mut sum = all.get();
        sum.reserve_used = sum.reserve_used.saturating_add(1);
        all.set(sum);
    });
}

#[cfg(test)]
mod tests {
    use super::super::inject;
    use super::*;
    use alloc::vec::Vec;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Bytes of a block of `len` with its head.
    fn whole(len: usize) -> usize {
        len + 8
    }

    fn block(len: usize) -> Vec<u8> {
        Vec::with_capacity(len)
    }

    #[test]
    fn a_block_is_booked_where_it_was_asked_for_until_it_is_freed() {
        let outer = enter(Part::Store);
        let inner = enter_for(Part::Netback, Owner::Vif(7));
        let mut one = block(100);
        drop(inner);
        let two = block(10);
        drop(outer);
        assert_eq!(usage(Part::Netback).live, whole(100));
        assert_eq!((usage(Part::Store).live, usage(Part::Store).blocks), (whole(10), 1));
        assert_eq!(owned(Owner::Vif(7)).collect::<Vec<_>>(), [(Part::Netback, whole(100))]);
        // It grows, and shrinks, on the account that it has.
        one.reserve_exact(1000);
        assert_eq!(owned(Owner::Vif(7)).collect::<Vec<_>>(), [(Part::Netback, whole(1000))]);
        one.shrink_to(10);
        assert_eq!(usage(Part::Netback).live, whole(10));
        assert_eq!((usage(Part::Netback).peak, usage(Part::Netback).count), (whole(1000), 3));
        assert_eq!(take_leak(Owner::Vif(7)), Some((Part::Netback, whole(10))));
        assert_eq!((take_leak(Owner::Vif(7)), operations().leaks), (None, 1));
        drop((one, two));
        for part in [Part::Netback, Part::Store] {
            assert_eq!((usage(part).live, usage(part).blocks), (0, 0));
        }
        assert_eq!(owned(Owner::Vif(7)).count(), 0, "a late return harms nobody");
    }

    #[test]
    fn blocks_of_every_alignment_keep_their_bytes() {
        #[repr(align(64))]
        #[derive(Clone, PartialEq, Debug)]
        struct Wide([u8; 64]);
        let _booked = enter(Part::Rules);
        let mut wide = alloc::vec![Wide([5; 64]); 3];
        wide.extend((0..100).map(|number| Wide([number; 64])));
        assert_eq!(wide.as_ptr().addr() % 64, 0);
        assert!(wide[..3].iter().all(|one| *one == Wide([5; 64])));
        assert!(wide[3..].iter().zip(0..).all(|(one, number)| *one == Wide([number; 64])));
        drop(wide);
        assert_eq!(usage(Part::Rules).live, 0);
    }

    #[test]
    fn a_part_gets_no_more_than_its_budget() {
        set_budget(Part::Rules, 1000);
        let _booked = enter(Part::Rules);
        let mut one = Vec::<u8>::new();
        assert!(one.try_reserve_exact(993).is_err());
        one.try_reserve_exact(992).unwrap();
        assert!(Vec::<u8>::new().try_reserve_exact(1).is_err());
        // What it has counts once when it grows or shrinks.
        one.shrink_to(500);
        one.try_reserve_exact(900).unwrap();
        let _others = enter(Part::Store);
        assert!(Vec::<u8>::new().try_reserve_exact(5000).is_ok(), "others have theirs");
        assert_eq!(usage(Part::Rules).failures, 2);
    }

    #[test]
    fn an_operation_gets_its_small_blocks_from_the_reserve() {
        let _booked = enter(Part::Store);
        inject::set_limit(Some(RESERVE_BYTES + 10_000));
        let operation = begin(Part::Store).unwrap();
        let mut filler = Vec::<u8>::new();
        filler.try_reserve_exact(9_000).unwrap();
        assert!(Vec::<u8>::new().try_reserve_exact(SMALL_BYTES + 1).is_err(), "not a small one");
        let small: Vec<Vec<u8>> = (0..20).map(|_| block(4000)).collect();
        assert_eq!((small.len(), operations().reserve_used), (20, 1));
        drop(operation);
        assert!(operations().largest >= 20 * 4000);
        // Until enough is free again, none begins; then one does.
        assert!(begin(Part::Store).is_none());
        assert!(Vec::<u8>::new().try_reserve_exact(100_000).is_err());
        drop(small);
        assert!(begin(Part::Store).is_some());
        assert_eq!(operations().refused, 1);
        inject::set_limit(None);
    }

    #[test]
    fn an_operation_within_another_is_part_of_it() {
        let outer = begin(Part::Store).unwrap();
        inject::refuse_operation(Some(0));
        let inner = begin(Part::Netback).expect("the outer one has begun");
        let one = block(1000);
        drop(inner);
        let two = block(1000);
        drop(outer);
        assert_eq!(usage(Part::Netback).live, whole(1000));
        assert_eq!(operations().largest, 2 * whole(1000));
        assert!(begin(Part::Store).is_none() && begin(Part::Store).is_some());
        drop((one, two));
    }

    #[test]
    fn a_request_fails_when_the_test_says_so() {
        let _booked = enter(Part::Links);
        inject::fail_request(Some(1));
        let reserve = |bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
        assert_eq!([reserve(10), reserve(10), reserve(10)], [true, false, true]);
        assert_eq!(inject::requests(), 3);
        inject::fail_request(None);
    }

    #[test]
    fn a_panic_leaves_the_books_as_they_were() {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _operation = begin(Part::Links).unwrap();
            panic!("on purpose");
        }));
        assert!(caught.is_err());
        assert_eq!(current(), Account::START);
        assert!(OPERATION.with(|bytes| bytes.get().is_none()));
    }
}
