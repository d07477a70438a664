//! The further pages of a super-frame. The lists that hold them are made at the start and go round, so that no frame
//! allocates: where none is left, the frame is refused.

use alloc::vec::{Drain, Vec};
use core::cell::RefCell;
use core::ops::{Deref, DerefMut};

use super::{MAX_CHAIN_PAGES, Piece};
use crate::mem::global;

/// Pages behind the first one, at most.
const MAX_PIECES: usize = MAX_CHAIN_PAGES - 1;
/// Lists for a pool: a frame that needs one has two pages at least, most have many more.
const PAGES_PER_LIST: usize = 8;
const MOST_LISTS: usize = 512;

global! {
    static FREE: RefCell<Vec<Vec<Piece>>> = RefCell::new(Vec::new());
}

/// Makes the lists for a pool of `pages`, once at the start; those that memory has no room for are missing.
pub fn prepare(pages: usize) {
    let wanted = (pages / PAGES_PER_LIST).clamp(1, MOST_LISTS);
    FREE.with(|free| {
        let mut free = free.borrow_mut();
        let missing = wanted.saturating_sub(free.len());
        if free.try_reserve_exact(missing).is_err() {
            return;
        }
        for _ in 0..missing {
            let mut list = Vec::new();
            if list.try_reserve_exact(MAX_PIECES).is_err() {
                return;
            }
            free.push(list);
        }
    });
}

/// Pages in order. An empty one has no list.
#[derive(Debug, Default)]
pub struct Tail {
    pieces: Vec<Piece>,
}

impl Tail {
    /// No page.
    pub const EMPTY: Tail = Tail { pieces: Vec::new() };

    /// Adds a page. `false`, and it is gone: the tail is full, or no list is left.
    pub(super) fn push(&mut self, piece: Piece) -> bool {
        if self.pieces.capacity() == 0 {
            let Some(list) = FREE.with(|free| free.borrow_mut().pop()) else { return false };
            self.pieces = list;
        }
        if self.pieces.len() >= MAX_PIECES {
            return false;
        }
        self.pieces.push(piece);
        true
    }

    /// Takes the first page away.
    pub(super) fn remove_first(&mut self) {
        if !self.pieces.is_empty() {
            self.pieces.remove(0);
        }
    }

    /// Takes all pages out.
    pub fn take(&mut self) -> Drain<'_, Piece> {
        self.pieces.drain(..)
    }
}

impl Deref for Tail {
    type Target = [Piece];

    fn deref(&self) -> &[Piece] {
        &self.pieces
    }
}

impl DerefMut for Tail {
    fn deref_mut(&mut self) -> &mut [Piece] {
        &mut self.pieces
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        if self.pieces.capacity() == 0 {
            return;
        }
        let mut list = core::mem::take(&mut self.pieces);
        list.clear();
        FREE.with(|free| {
            let mut free = free.borrow_mut();
            // The lists' own list had room for all of them at the start.
            if free.len() < free.capacity() {
                free.push(list);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Page;

    fn piece() -> Piece {
        Piece::new(Page::alloc().unwrap(), 1)
    }

    fn free() -> usize {
        FREE.with(|free| free.borrow().len())
    }

    #[test]
    fn lists_go_round_and_none_is_made_later() {
        prepare(2 * PAGES_PER_LIST);
        assert_eq!(free(), 2);
        let mut tails: [Tail; 3] = Default::default();
        assert!(tails[0].push(piece()) && tails[1].push(piece()));
        assert!(!tails[2].push(piece()), "no list is left");
        assert_eq!(tails[0].take().count(), 1);
        drop(tails);
        assert_eq!(free(), 2);
        assert_eq!(crate::mem::free_pages(), crate::mem::total_pages());
    }

    #[test]
    fn a_tail_holds_17_pages() {
        prepare(PAGES_PER_LIST);
        let mut tail = Tail::EMPTY;
        for _ in 0..17 {
            assert!(tail.push(piece()));
        }
        assert!(!tail.push(piece()));
        tail.remove_first();
        assert_eq!(tail.len(), 16);
    }
}
