//! Want of memory on purpose, on the host: a limit, the n-th request that fails, the n-th operation that may not begin.
//! Requests of the start (and of the test itself) are not counted. All of it is the thread's own.
#![forbid(unsafe_code)]

use core::cell::Cell;

use crate::mem::global;
use crate::mem::ledger::RESERVE_BYTES;

/// What is arranged, and what was seen.
#[derive(Clone, Copy)]
struct State {
    used: usize,
    peak: usize,
    limit: usize,
    has_reserve: bool,
    requests: u64,
    failing: Option<u64>,
    operations: u64,
    refusing: Option<u64>,
}

global! {
    static STATE: Cell<State> = Cell::new(State {
        used: 0,
        peak: 0,
        limit: usize::MAX,
        has_reserve: false,
        requests: 0,
        failing: None,
        operations: 0,
        refusing: None,
    });
}

fn with<R>(action: impl FnOnce(&mut State) -> R) -> R {
    STATE.with(|cell| {
        let mut state = cell.get();
        let result = action(&mut state);
        cell.set(state);
        result
    })
}

/// The heap holds no more than `bytes`, the reserve included; none: as much as is asked for.
pub fn set_limit(bytes: Option<usize>) {
    with(|state| state.limit = bytes.unwrap_or(usize::MAX));
}

/// The request number `number` from here on (0 is the next) fails, of those that may fail.
pub fn fail_request(number: Option<u64>) {
    with(|state| (state.requests, state.failing) = (0, number));
}

/// The operation number `number` from here on (0 is the next) may not begin.
pub fn refuse_operation(number: Option<u64>) {
    with(|state| (state.operations, state.refusing) = (0, number));
}

/// Requests that might have failed since [`fail_request`].
pub fn requests() -> u64 {
    with(|state| state.requests)
}

/// Operations since [`refuse_operation`].
pub fn operations() -> u64 {
    with(|state| state.operations)
}

pub(in crate::mem) fn refuses_operation() -> bool {
    with(|state| {
        let number = state.operations;
        state.operations += 1;
        state.refusing == Some(number)
    })
}

pub(super) fn fails_request() -> bool {
    with(|state| {
        let number = state.requests;
        state.requests += 1;
        state.failing == Some(number)
    })
}

pub(super) fn used() -> usize {
    with(|state| state.used)
}

pub(super) fn peak() -> usize {
    with(|state| state.peak)
}

pub(super) fn limit() -> Option<usize> {
    with(|state| Some(state.limit).filter(|limit| *limit < usize::MAX))
}

pub(super) fn take(bytes: usize) -> bool {
    with(|state| {
        let reserved = if state.has_reserve { RESERVE_BYTES } else { 0 };
        let wanted = state.used.saturating_add(bytes);
        if wanted.saturating_add(reserved) > state.limit {
            return false;
        }
        state.used = wanted;
        state.peak = state.peak.max(wanted);
        true
    })
}

pub(super) fn keep(bytes: usize) {
    with(|state| state.used = state.used.saturating_add(bytes));
}

pub(super) fn give(bytes: usize) {
    with(|state| state.used = state.used.saturating_sub(bytes));
}

pub(super) fn hold_reserve() -> bool {
    with(|state| {
        state.has_reserve |= state.used.saturating_add(RESERVE_BYTES) <= state.limit;
        state.has_reserve
    })
}

pub(super) fn release_reserve() -> bool {
    with(|state| core::mem::take(&mut state.has_reserve))
}
