//! One frame in private pages: a head, and further pages where it is a super-frame larger than one page.
//!
//! No frame allocates: see [`Tail`].

use super::{
    Capabilities, Checksum, MAX_FRAGMENTS, MAX_FRAME_BYTES, MIN_FRAME_BYTES, Offload, Tail,
};
use crate::mem::{PAGE_SIZE, Page};

/// Most pages of one frame: as many as the slots that a peer may use for it.
pub const MAX_CHAIN_PAGES: usize = MAX_FRAGMENTS;
/// Most ring slots that one frame takes: its pages, and one that says how to segment it.
pub const MAX_FRAME_SLOTS: usize = MAX_CHAIN_PAGES + 1;
/// Longest super-frame: the longest IP packet, the Ethernet header and one VLAN tag.
pub const MAX_SUPER_FRAME_BYTES: usize = 65535 + 18;
/// The first bytes of every frame that lie in its head, if it has that many: room for all headers.
pub const HEAD_BYTES: usize = 256;

/// A page with the length of what it holds, from byte 0 on; never empty.
#[derive(Debug)]
pub struct Piece {
    page: Page,
    len: u16,
}

impl Piece {
    /// The first `len` bytes of a page.
    ///
    /// # Panics
    /// If the page has not that many.
    pub fn new(page: Page, len: u16) -> Piece {
        assert!(usize::from(len) <= PAGE_SIZE, "a piece longer than its page");
        Piece { page, len }
    }

    /// Bytes in use.
    pub fn len(&self) -> u16 {
        self.len
    }

    /// Whether nothing is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is in use.
    pub fn bytes(&self) -> &[u8] {
        self.page.bytes().get(..usize::from(self.len)).unwrap_or(&[])
    }

    /// The page, what is not in use included: old bytes that must not be shown to anybody.
    pub fn page_mut(&mut self) -> &mut Page {
        &mut self.page
    }

    /// The page and the length in use.
    pub fn into_page(self) -> (Page, u16) {
        (self.page, self.len)
    }

    /// Takes the first `count` bytes away (at most all), moving the others to the start.
    fn cut_front(&mut self, count: usize) {
        let end = usize::from(self.len);
        let count = count.min(end);
        self.page.prefix_mut(end).copy_within(count.., 0);
        self.len = u16::try_from(end.saturating_sub(count)).unwrap_or(0);
    }
}

/// A frame: at least one piece, at most [`MAX_CHAIN_PAGES`].
#[derive(Debug)]
pub struct Chain {
    head: Piece,
    tail: Tail,
}

impl Chain {
    /// A frame in the first `len` bytes of one page.
    ///
    /// # Panics
    /// If the page has not that many.
    pub fn new(page: Page, len: u16) -> Chain {
        Chain::of(Piece::new(page, len))
    }

    /// A frame of one piece.
    pub fn of(head: Piece) -> Chain {
        Chain { head, tail: Tail::EMPTY }
    }

    /// Puts together again what [`Chain::into_parts`] took apart.
    pub fn from_parts(head: Piece, tail: Tail) -> Chain {
        Chain { head, tail }
    }

    /// The first piece and the further ones.
    pub fn into_parts(self) -> (Piece, Tail) {
        (self.head, self.tail)
    }

    /// Adds a piece. `false`, and the piece is gone: the chain is full, or no list for it is left.
    pub fn push(&mut self, piece: Piece) -> bool {
        self.tail.push(piece)
    }

    /// Length of the frame in bytes.
    pub fn len(&self) -> usize {
        let head = usize::from(self.head.len);
        self.tail.iter().fold(head, |sum, piece| sum.saturating_add(usize::from(piece.len)))
    }

    /// Whether the frame has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pages that the frame takes.
    pub fn pages(&self) -> usize {
        self.tail.len().saturating_add(1)
    }

    /// The first piece.
    pub fn head(&self) -> &Piece {
        &self.head
    }

    /// The first piece, for rewriting headers.
    pub fn head_mut(&mut self) -> &mut Piece {
        &mut self.head
    }

    /// The further pieces, in order.
    pub fn tail(&self) -> &[Piece] {
        &self.tail
    }

    /// All pieces in order.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        core::iter::once(&self.head).chain(self.tail.iter())
    }

    /// Ring slots that the frame takes where each holds one page of it, full but for the last.
    pub(crate) fn packed_slots(&self, offload: Offload) -> usize {
        let data = if self.tail.is_empty() { 1 } else { self.len().div_ceil(PAGE_SIZE) };
        data.saturating_add(usize::from(offload.gso.is_some()))
    }

    /// Moves bytes forward: into the head alone if they fit there, else so many that the head has [`HEAD_BYTES`].
    pub(crate) fn pull_up(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        let total = self.len();
        let target = if total <= PAGE_SIZE { total } else { HEAD_BYTES };
        while usize::from(self.head.len) < target
            && let Some(next) = self.tail.first_mut()
        {
            let at = usize::from(self.head.len);
            let count = usize::from(next.len).min(target.saturating_sub(at));
            let end = at.saturating_add(count);
            if let Some(place) = self.head.page.prefix_mut(end).get_mut(at..)
                && let Some(bytes) = next.bytes().get(..count)
            {
                place.copy_from_slice(bytes);
            }
            self.head.len = u16::try_from(end).unwrap_or(u16::MAX);
            next.cut_front(count);
            if next.is_empty() {
                self.tail.remove_first();
            }
        }
    }

    /// Whether a frame of this size and kind can exist at all, to be sent or to be passed on.
    pub(crate) fn fault(&self, offload: Offload) -> Option<Fault> {
        let total = self.len();
        if total < usize::from(MIN_FRAME_BYTES) || self.head.len < MIN_FRAME_BYTES {
            return Some(Fault::TooShort);
        }
        let Some(gso) = offload.gso else {
            let is_plain = self.tail.is_empty() && total <= usize::from(MAX_FRAME_BYTES);
            return (!is_plain).then_some(Fault::TooLong);
        };
        if total > MAX_SUPER_FRAME_BYTES {
            return Some(Fault::TooLong);
        }
        let is_usable =
            offload.checksum == Checksum::Blank && gso.size > 0 && usize::from(gso.size) < total;
        (!is_usable).then_some(Fault::Gso)
    }

    /// Whether a peer takes this frame, as far as its EtherType shows.
    pub(crate) fn suits(&self, capabilities: &Capabilities, offload: Offload) -> bool {
        capabilities.accepts(self.head.bytes(), offload)
    }
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Shorter than an Ethernet header, or its head is.
    TooShort,
    /// Longer than may be.
    TooLong,
    /// Segmentation without a blank checksum, or of a size that leaves nothing to segment.
    Gso,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netif::{Gso, GsoKind};
    use alloc::vec::Vec;

    const GSO: Offload =
        Offload { checksum: Checksum::Blank, gso: Some(Gso { kind: GsoKind::TcpV4, size: 1448 }) };

    fn page(len: usize, seed: usize) -> Piece {
        crate::netif::prepare_tails(64);
        let mut page = Page::alloc().unwrap();
        for (at, byte) in page.prefix_mut(len).iter_mut().enumerate() {
            *byte = (at + seed) as u8;
        }
        Piece::new(page, len as u16)
    }

    fn chain(lens: &[usize]) -> Chain {
        let (page_of_head, len) = page(lens[0], 0).into_page();
        let mut chain = Chain::new(page_of_head, len);
        let mut at = lens[0];
        for len in &lens[1..] {
            assert!(chain.push(page(*len, at)));
            at += len;
        }
        chain
    }

    fn bytes(chain: &Chain) -> Vec<u8> {
        chain.pieces().flat_map(|piece| piece.bytes().to_vec()).collect()
    }

    #[test]
    fn what_fits_one_page_is_pulled_into_one() {
        for lens in [&[14, 100][..], &[1, 1, 1, 4093], &[2000, 2096]] {
            let mut chain = chain(lens);
            let before = bytes(&chain);
            chain.pull_up();
            assert_eq!((chain.pages(), bytes(&chain)), (1, before));
        }
        assert_eq!(crate::mem::free_pages(), crate::mem::total_pages());
    }

    #[test]
    fn headers_in_pieces_become_contiguous() {
        for lens in [&[1, 2, 3, 4096][..], &[255, 4096], &[14, 242, 4096], &[100, 4096, 4096]] {
            let mut chain = chain(lens);
            let before = bytes(&chain);
            chain.pull_up();
            assert_eq!((chain.head().len(), bytes(&chain)), (256, before));
        }
        let mut chain = chain(&[300, 4096]);
        chain.pull_up();
        assert_eq!((chain.head().len(), chain.pages()), (300, 2), "nothing to do");
    }

    #[test]
    fn a_chain_has_18_pages_at_most() {
        let mut chain = chain(&[4096; MAX_CHAIN_PAGES]);
        assert!(!chain.push(page(1, 0)));
        assert_eq!((chain.pages(), chain.len()), (18, 18 * 4096));
        assert_eq!(chain.fault(GSO), Some(Fault::TooLong));
    }

    #[test]
    fn only_segmentation_makes_long_frames() {
        assert_eq!(chain(&[13]).fault(Offload::NONE), Some(Fault::TooShort));
        assert_eq!(chain(&[13, 4096]).fault(GSO), Some(Fault::TooShort));
        assert_eq!(chain(&[1518]).fault(Offload::BLANK), None);
        assert_eq!(chain(&[1519]).fault(Offload::BLANK), Some(Fault::TooLong));
        assert_eq!(chain(&[1000, 100]).fault(Offload::BLANK), Some(Fault::TooLong));
        assert_eq!(chain(&[4096, 100]).fault(GSO), None);
        let full = Offload { checksum: Checksum::Full, ..GSO };
        assert_eq!(chain(&[4096, 100]).fault(full), Some(Fault::Gso));
        for (size, fault) in [(0, Some(Fault::Gso)), (99, None), (100, Some(Fault::Gso))] {
            let gso = Offload { gso: Some(Gso { kind: GsoKind::TcpV6, size }), ..GSO };
            assert_eq!(chain(&[100]).fault(gso), fault, "size {size}");
        }
    }
}
