//! Frames from the uplink: each buffer is taken back from the backend before anybody looks into it.
//!
//! The ring slot decides which buffer a response is about. A frame in several slots is put together from its buffers as
//! they came, so that no payload is copied; only what fits one page, or headers that are split, move together. Without
//! offloads, what comes in several slots is taken off the ring, checked, and dropped.

use alloc::collections::VecDeque;

use super::link::{Link, take_back};
use super::{DownReason, Frame};
use crate::grant::{self, Access};
use crate::mem::{PAGE_SIZE, Page};
use crate::netif::{
    Chain, ExtraInfo, Gso, MAX_CHAIN_PAGES, MAX_FRAGMENTS, MAX_FRAME_BYTES, MIN_FRAME_BYTES,
    Offload, Piece, RX_SLOT_BYTES, RxFlags, RxRequest, RxResponse,
};
use crate::planted::{Defect, is_planted};

/// Extra infos of one packet: one of each known type.
const MAX_EXTRAS: usize = 5;

/// Takes up to `budget` frames off the ring. `true`: more are waiting.
pub(super) fn receive(
    link: &mut Link,
    budget: usize,
    frames: &mut VecDeque<Frame>,
) -> Result<bool, DownReason> {
    for _ in 0..budget {
        let (ring, page) = link.rx.parts();
        if ring.unconsumed(page).map_err(|_| DownReason::RxRing)? == 0 {
            return Ok(false);
        }
        link.gate.note_work();
        let Some((response, page)) = take(link)? else { return Ok(false) };
        if response.flags.has(RxFlags::MORE_DATA) || response.flags.has(RxFlags::EXTRA_INFO) {
            frames.extend(assemble(link, response, page)?);
        } else {
            frames.extend(frame(link, response, page));
        }
    }
    Ok(true)
}

/// The next response with its buffer, which is private again.
fn take(link: &mut Link) -> Result<Option<(RxResponse, Page)>, DownReason> {
    let Some((slot, bytes)) = take_slot(link)? else { return Ok(None) };
    let (index, page) = slot;
    let response = RxResponse::decode(&bytes);
    // Our ids are the slot numbers; a backend that mixes them up cannot be trusted with buffers.
    if usize::from(response.id) != index && !is_planted(Defect::RxIdTrusted) {
        return Err(DownReason::UnknownResponse);
    }
    if response.status > 0 {
        let len = usize::from(response.status.cast_unsigned());
        let end = usize::from(response.offset).saturating_add(len);
        if end > PAGE_SIZE && !is_planted(Defect::RxSpanUnchecked) {
            return Err(DownReason::BadLength);
        }
    }
    Ok(Some((response, page)))
}

type Slot = ((usize, Page), [u8; RX_SLOT_BYTES]);

fn take_slot(link: &mut Link) -> Result<Option<Slot>, DownReason> {
    let (ring, page) = link.rx.parts();
    let Some((index, bytes)) = ring.take(page) else { return Ok(None) };
    let granted = link.posted.get_mut(index).and_then(Option::take);
    let buffer = take_back(granted.ok_or(DownReason::UnknownResponse)?)?;
    Ok(Some(((index, buffer), bytes)))
}

/// What the extra infos of a packet say.
#[derive(Default)]
struct Extras {
    gso: Option<Gso>,
    /// Two segmentation requests, or one that means nothing.
    is_unusable: bool,
}

/// Takes all slots of a packet off the ring and makes a frame of them, if they are one. A packet that does not end, and
/// extra infos that do not exist, are faults of the backend; everything else costs that packet.
fn assemble(link: &mut Link, first: RxResponse, page: Page) -> Result<Option<Frame>, DownReason> {
    let extras = take_extras(link, first)?;
    let mut rest = Rest::default();
    let mut chain = piece(first, page).map(Chain::of);
    let mut more = first.flags.has(RxFlags::MORE_DATA);
    // Linux' netback uses one slot more than the protocol's 18 when the first holds only headers.
    for _ in 0..MAX_FRAGMENTS {
        if !more {
            break;
        }
        let (response, page) = take(link)?.ok_or(DownReason::TruncatedPacket)?;
        more = response.flags.has(RxFlags::MORE_DATA);
        rest.add(link.offloads, &mut chain, piece(response, page));
    }
    if more {
        return Err(DownReason::TruncatedPacket);
    }
    if !link.offloads || rest.is_too_long {
        link.counters.multi_slot = link.counters.multi_slot.saturating_add(1);
        return Ok(None);
    }
    if rest.is_out_of_memory {
        link.counters.no_page = link.counters.no_page.saturating_add(1);
        return Ok(None);
    }
    let offload = Offload { checksum: first.flags.checksum(), gso: extras.gso };
    let whole = chain.filter(|_| !extras.is_unusable);
    let usable = whole.and_then(|mut chain| {
        chain.pull_up();
        chain.fault(offload).is_none().then_some(chain)
    });
    let Some(chain) = usable else {
        link.counters.unusable = link.counters.unusable.saturating_add(1);
        return Ok(None);
    };
    count_received(link, chain.len());
    if offload.gso.is_some() {
        link.transfer.note();
    }
    Ok(Some(Frame { uplink: link.id, chain, offload }))
}

/// Why the further slots of a packet make no frame.
#[derive(Default)]
struct Rest {
    is_too_long: bool,
    is_out_of_memory: bool,
}

impl Rest {
    /// Adds a piece to the chain, which is gone as soon as one piece is.
    fn add(&mut self, offloads: bool, chain: &mut Option<Chain>, piece: Option<Piece>) {
        let Some(mut whole) = chain.take().filter(|_| offloads) else { return };
        let Some(piece) = piece else { return };
        if whole.pages() >= MAX_CHAIN_PAGES {
            self.is_too_long = true;
        } else if whole.push(piece) {
            *chain = Some(whole);
        } else {
            self.is_out_of_memory = true;
        }
    }
}

/// The data of a slot, from byte 0 of its page on; nothing if there are none.
fn piece(response: RxResponse, mut page: Page) -> Option<Piece> {
    let len = u16::try_from(response.status).ok().filter(|len| *len > 0)?;
    move_to_start(&mut page, response.offset, len);
    Some(Piece::new(page, len))
}

fn move_to_start(page: &mut Page, offset: u16, len: u16) {
    if offset > 0 && !is_planted(Defect::RxOffsetIgnored) {
        let start = usize::from(offset);
        page.bytes_mut().copy_within(start..start.saturating_add(usize::from(len)), 0);
    }
}

fn take_extras(link: &mut Link, first: RxResponse) -> Result<Extras, DownReason> {
    let mut extras = Extras::default();
    let mut left = if first.flags.has(RxFlags::EXTRA_INFO) { MAX_EXTRAS } else { 0 };
    while left > 0 {
        let (_, bytes) = take_slot(link)?.ok_or(DownReason::TruncatedPacket)?;
        let (info, more) = ExtraInfo::decode(&bytes);
        match info {
            ExtraInfo::Unknown(_) if is_planted(Defect::RxExtraUnknown) => {}
            ExtraInfo::Unknown(_) => return Err(DownReason::UnknownExtra),
            ExtraInfo::Gso(Ok(gso)) => extras.is_unusable |= extras.gso.replace(gso).is_some(),
            ExtraInfo::Gso(Err(_)) => extras.is_unusable = true,
            ExtraInfo::Multicast | ExtraInfo::Hash | ExtraInfo::Xdp => {}
        }
        left = match (more, left) {
            (false, _) => 0,
            (true, 1) => return Err(DownReason::UnknownExtra),
            (true, left) => left.saturating_sub(1),
        };
    }
    Ok(extras)
}

/// A frame out of a single slot, if it is one.
fn frame(link: &mut Link, response: RxResponse, mut page: Page) -> Option<Frame> {
    let len = u16::try_from(response.status).unwrap_or(0);
    if response.status < 0 || !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&len) {
        link.counters.unusable = link.counters.unusable.saturating_add(1);
        return None;
    }
    move_to_start(&mut page, response.offset, len);
    count_received(link, usize::from(len));
    let offload = Offload { checksum: response.flags.checksum(), gso: None };
    Some(Frame { uplink: link.id, chain: Chain::new(page, len), offload })
}

fn count_received(link: &mut Link, bytes: usize) {
    link.counters.received_frames = link.counters.received_frames.saturating_add(1);
    link.counters.received_bytes = link.counters.received_bytes.saturating_add(bytes as u64);
}

/// Posts fresh, cleared buffers until `target` are with the backend or memory is short.
pub(super) fn refill(link: &mut Link, target: usize) {
    while link.posted() < target && link.rx.ring().free() > 0 {
        let is_cleared = !is_planted(Defect::BufferNotCleared);
        let page = if is_cleared { Page::alloc() } else { Page::alloc_recycled() };
        let Some(page) = page else {
            link.counters.no_page = link.counters.no_page.saturating_add(1);
            return;
        };
        let Ok(granted) = grant::grant(page, link.peer, Access::ReadWrite) else { return };
        let slot = link.rx.ring().next_slot();
        let id = u16::try_from(slot).unwrap_or(u16::MAX);
        let request = RxRequest { id, gref: granted.gref() };
        if let Some(place) = link.posted.get_mut(slot) {
            *place = Some(granted);
        }
        let (ring, ring_page) = link.rx.parts();
        ring.request(ring_page, &request.encode());
    }
}
