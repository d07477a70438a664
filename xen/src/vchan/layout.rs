//! The ring page (`struct vchan_interface` of Xen public/io/libxenvchan.h) and where each direction's bytes lie.
//!
//! | offset | size | field | writer |
//! |---|---|---|---|
//! | 0, 4 | 4 | left consumer, producer | server, client |
//! | 8, 12 | 4 | right consumer, producer | client, server |
//! | 16, 18 | 2 | left, right order | server, once |
//! | 20, 21 | 1 | client, server live | each its own |
//! | 22, 23 | 1 | what the client, the server must signal | set by the other, cleared by itself |
//! | 24 | 4 each | grants, all left pages and then all right pages | server, once |

use super::index::Order;
use crate::abi::GrantRef;
use crate::grant::MAX_MAPPING_PAGES;
use crate::mem::PAGE_SIZE;
use crate::shared::SharedPage;

pub(super) const LEFT_CONSUMER: usize = 0;
pub(super) const LEFT_PRODUCER: usize = 4;
pub(super) const RIGHT_CONSUMER: usize = 8;
pub(super) const RIGHT_PRODUCER: usize = 12;
pub(super) const LEFT_ORDER: usize = 16;
pub(super) const RIGHT_ORDER: usize = 18;
pub(super) const CLIENT_LIVE: usize = 20;
pub(super) const SERVER_LIVE: usize = 21;
pub(super) const CLIENT_NOTIFY: usize = 22;
pub(super) const SERVER_NOTIFY: usize = 23;
pub(super) const GRANTS: usize = 24;

/// Value of a live byte: this end is gone.
pub(super) const GONE: u8 = 0;
/// Value of a live byte: this end is there.
pub(super) const LIVE: u8 = 1;
/// Value of the client's live byte: nobody has connected yet.
pub(super) const NOT_CONNECTED: u8 = 2;

/// Notify bit: "tell me when you wrote".
pub(super) const NOTIFY_WRITE: u8 = 1;
/// Notify bit: "tell me when you consumed".
pub(super) const NOTIFY_READ: u8 = 2;

/// Orders of the two buffers that fit into the ring page, behind the header: 1024 bytes at 1024, 2048 at 2048.
const SMALL_ORDER: u16 = 10;
const LARGE_ORDER: u16 = 11;
/// Order of one page; from here on the buffer has pages of its own.
const PAGE_ORDER: u16 = 12;
/// Highest order that the protocol knows.
const HIGHEST_ORDER: u16 = 20;

/// Highest order that we take part in: 64 pages each way. Upstream's programs use at most 16.
pub const MAX_ORDER: u8 = 18;

/// Why the two orders of a ring page cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The protocol does not allow this pair.
    #[error("ring orders {left} and {right} are not allowed")]
    BadOrders {
        /// As found.
        left: u16,
        /// As found.
        right: u16,
    },
    /// Allowed, but beyond [`MAX_ORDER`].
    #[error("ring order {0} is too large")]
    TooLarge(u16),
}

/// Where the bytes of one direction lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    /// In the ring page from this offset on.
    RingPage(usize),
    /// In this many pages of its own.
    Pages(usize),
}

/// Both directions, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(super) left: Order,
    pub(super) right: Order,
}

impl Layout {
    /// Checks the orders that a server chose.
    pub(super) fn new(left: u16, right: u16) -> Result<Self, LayoutError> {
        let known = SMALL_ORDER..=HIGHEST_ORDER;
        let clash = left == right && left < PAGE_ORDER;
        if !known.contains(&left) || !known.contains(&right) || clash {
            return Err(LayoutError::BadOrders { left, right });
        }
        let largest = left.max(right);
        if largest > u16::from(MAX_ORDER) {
            return Err(LayoutError::TooLarge(largest));
        }
        // At most 18, so that the conversion keeps the value.
        Ok(Self { left: Order::new(left as u8), right: Order::new(right as u8) })
    }

    /// The orders that upstream's server chooses for these minimum sizes in bytes; `None` beyond [`MAX_ORDER`].
    pub(super) fn for_sizes(left_bytes: usize, right_bytes: usize) -> Option<Self> {
        const SMALL: usize = 1 << SMALL_ORDER;
        const LARGE: usize = 1 << LARGE_ORDER;
        let (left, right) = match (left_bytes, right_bytes) {
            (..=SMALL, ..=LARGE) => (SMALL_ORDER, LARGE_ORDER),
            (..=LARGE, ..=SMALL) => (LARGE_ORDER, SMALL_ORDER),
            (..=LARGE, _) => (LARGE_ORDER, page_order(right_bytes)?),
            (_, ..=LARGE) => (page_order(left_bytes)?, LARGE_ORDER),
            (_, _) => (page_order(left_bytes)?, page_order(right_bytes)?),
        };
        Self::new(left, right).ok()
    }

    /// The orders in a ring page, read once each.
    pub(super) fn read(ring: &SharedPage) -> Result<Self, LayoutError> {
        Self::new(ring.read_u16(LEFT_ORDER), ring.read_u16(RIGHT_ORDER))
    }

    /// Reads the grants of the data pages: left ones, right ones.
    pub(super) fn read_grants(&self, ring: &SharedPage) -> [alloc::vec::Vec<GrantRef>; 2] {
        let (left, right) = (pages(self.left), pages(self.right));
        let read = |index: usize| GrantRef(ring.read_u32(grant_offset(index)));
        [(0..left).map(read).collect(), (left..left.saturating_add(right)).map(read).collect()]
    }
}

/// Smallest order of at least a page that holds so many bytes.
fn page_order(bytes: usize) -> Option<u16> {
    (PAGE_ORDER..=u16::from(MAX_ORDER)).find(|order| bytes <= 1 << order)
}

/// Where a direction of this order lies.
pub(super) const fn area(order: Order) -> Area {
    if order.size() < PAGE_SIZE as u32 {
        Area::RingPage(order.size() as usize)
    } else {
        Area::Pages(order.size() as usize / PAGE_SIZE)
    }
}

/// Pages of its own that a direction has.
pub(super) const fn pages(order: Order) -> usize {
    match area(order) {
        Area::RingPage(_) => 0,
        Area::Pages(count) => count,
    }
}

const fn grant_offset(index: usize) -> usize {
    GRANTS + 4 * index
}

/// Writes the header of a server that waits for its client; the page must be zero.
pub(super) fn announce(ring: &SharedPage, layout: Layout, grants: impl Iterator<Item = GrantRef>) {
    ring.write_u16(LEFT_ORDER, u16::from(layout.left.number()));
    ring.write_u16(RIGHT_ORDER, u16::from(layout.right.number()));
    ring.write_u8(CLIENT_LIVE, NOT_CONNECTED);
    ring.write_u8(SERVER_LIVE, LIVE);
    ring.write_u8(CLIENT_NOTIFY, NOTIFY_WRITE);
    for (index, gref) in grants.enumerate() {
        ring.write_u32(grant_offset(index), gref.0);
    }
}

const _: () = assert!(1 << (MAX_ORDER as u16 - PAGE_ORDER) == MAX_MAPPING_PAGES);
// With pages of its own on both sides the list may go on into the rest of the ring page; beside a buffer in the ring
// page (from 1024 on) at most one direction has grants.
const _: () = assert!(grant_offset(2 * MAX_MAPPING_PAGES) <= 1024);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_9_1_order_checks() {
        for (left, right) in [(10, 11), (11, 10), (12, 12), (12, 10), (11, 16), (16, 16)] {
            assert!(Layout::new(left, right).is_ok(), "({left},{right})");
        }
        for (left, right) in
            [(10, 10), (11, 11), (9, 12), (21, 12), (12, 9), (0, 0), (u16::MAX, 12)]
        {
            assert_eq!(Layout::new(left, right), Err(LayoutError::BadOrders { left, right }));
        }
        assert_eq!(Layout::new(12, 19), Err(LayoutError::TooLarge(19)), "our limit");
    }

    #[test]
    fn vector_9_1_orders_12_and_10_use_one_page_and_the_ring_page() {
        let layout = Layout::new(12, 10).unwrap();
        assert_eq!(area(layout.left), Area::Pages(1));
        assert_eq!(area(layout.right), Area::RingPage(1024));
        assert_eq!(area(Order::new(11)), Area::RingPage(2048));
        assert_eq!(area(Order::new(16)), Area::Pages(16));
    }

    #[test]
    fn sizes_give_upstreams_orders() {
        for ((left, right), orders) in [
            ((1024, 1024), (10, 11)),
            ((0, 2048), (10, 11)),
            ((2048, 1024), (11, 10)),
            ((2048, 2048), (11, 12)),
            ((2048, 65536), (11, 16)),
            ((65536, 1), (16, 11)),
            ((4096, 4096), (12, 12)),
            ((4097, 4096), (13, 12)),
            ((65536, 65536), (16, 16)),
        ] {
            let layout = Layout::for_sizes(left, right).unwrap();
            assert_eq!((layout.left.number(), layout.right.number()), orders, "({left},{right})");
        }
        assert_eq!(Layout::for_sizes(1 << 19, 4096), None);
    }
}
