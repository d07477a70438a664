//! The pages of a link, mapped (client) or granted (server), and copies into and out of one direction.

use alloc::vec::Vec;

use super::index::Order;
use super::layout::{Area, area};
use crate::grant::{Granted, Mapping};
use crate::mem::PAGE_SIZE;
use crate::shared::SharedPage;

/// One of the two buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Client to server.
    Left,
    /// Server to client.
    Right,
}

/// All pages; given back on drop. Pages that the peer still maps are kept out of use by `grant`.
#[derive(Debug)]
pub(super) enum Memory {
    Client { ring: Mapping, left: Option<Mapping>, right: Option<Mapping> },
    Server { ring: Granted, left: Vec<Granted>, right: Vec<Granted> },
}

impl Memory {
    pub(super) fn ring(&self) -> &SharedPage {
        match self {
            Self::Client { ring, .. } => ring.page(0),
            Self::Server { ring, .. } => ring.shared(),
        }
    }

    fn page(&self, direction: Direction, index: usize) -> &SharedPage {
        let page = match (self, direction) {
            (Self::Client { left, .. }, Direction::Left) => left.as_ref().map(|m| m.page(index)),
            (Self::Client { right, .. }, Direction::Right) => right.as_ref().map(|m| m.page(index)),
            (Self::Server { left, .. }, Direction::Left) => left.get(index).map(Granted::shared),
            (Self::Server { right, .. }, Direction::Right) => right.get(index).map(Granted::shared),
        };
        page.expect("as many pages as the order of the direction asks for")
    }

    /// Copies from the buffer, beginning at free-running `index`. `to` must not be longer than the buffer.
    pub(super) fn copy_out(&self, at: (Direction, Order), index: u32, to: &mut [u8]) {
        let mut index = index;
        let mut rest = to;
        while !rest.is_empty() {
            let (page, offset, length) = self.piece(at, index, rest.len());
            let (piece, tail) = rest.split_at_mut(length);
            page.copy_out(offset, piece);
            index = index.wrapping_add(length as u32);
            rest = tail;
        }
    }

    /// Copies into the buffer, likewise.
    pub(super) fn copy_in(&self, at: (Direction, Order), index: u32, from: &[u8]) {
        let mut index = index;
        let mut rest = from;
        while !rest.is_empty() {
            let (page, offset, length) = self.piece(at, index, rest.len());
            let (piece, tail) = rest.split_at(length);
            page.copy_in(offset, piece);
            index = index.wrapping_add(length as u32);
            rest = tail;
        }
    }

    /// The longest piece from `index` on that lies in one page and does not wrap: page, offset in it, length.
    fn piece(
        &self,
        (direction, order): (Direction, Order),
        index: u32,
        wanted: usize,
    ) -> (&SharedPage, usize, usize) {
        let position = order.position(index);
        match area(order) {
            Area::RingPage(start) => {
                let to_end = order.size() as usize - position;
                (self.ring(), start + position, wanted.min(to_end))
            }
            Area::Pages(_) => {
                let offset = position % PAGE_SIZE;
                let page = self.page(direction, position / PAGE_SIZE);
                (page, offset, wanted.min(PAGE_SIZE - offset))
            }
        }
    }
}
