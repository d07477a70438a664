//! Frames from the uplink: each buffer is taken back from the backend before anybody looks into it.
//!
//! The ring slot decides which buffer a response is about. We offer neither scatter-gather nor segmentation, so that a
//! frame is one slot; what comes in several is taken off the ring, checked, and dropped.

use alloc::collections::VecDeque;

use super::link::{Link, take_back};
use super::{DownReason, Frame};
use crate::grant::{self, Access};
use crate::mem::{PAGE_SIZE, Page};
use crate::netif::{
    ExtraInfo, MAX_FRAGMENTS, MAX_FRAME_BYTES, MIN_FRAME_BYTES, Offload, RX_SLOT_BYTES, RxFlags,
    RxRequest, RxResponse,
};

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
            drop(page);
            skip_rest(link, response)?;
            link.counters.multi_slot = link.counters.multi_slot.saturating_add(1);
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
    if usize::from(response.id) != index {
        return Err(DownReason::UnknownResponse);
    }
    if response.status > 0 {
        let len = usize::from(response.status.cast_unsigned());
        if usize::from(response.offset).saturating_add(len) > PAGE_SIZE {
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

/// Takes the remaining slots of a packet off the ring.
fn skip_rest(link: &mut Link, first: RxResponse) -> Result<(), DownReason> {
    let mut extras = if first.flags.has(RxFlags::EXTRA_INFO) { MAX_EXTRAS } else { 0 };
    while extras > 0 {
        let (_, bytes) = take_slot(link)?.ok_or(DownReason::TruncatedPacket)?;
        let (info, more) = ExtraInfo::decode(&bytes);
        if matches!(info, ExtraInfo::Unknown(_)) {
            return Err(DownReason::UnknownExtra);
        }
        extras = match (more, extras) {
            (false, _) => 0,
            (true, 1) => return Err(DownReason::UnknownExtra),
            (true, left) => left.saturating_sub(1),
        };
    }
    let mut more = first.flags.has(RxFlags::MORE_DATA);
    // Linux' netback uses one slot more than the protocol's 18 when the first holds only headers.
    for _ in 0..MAX_FRAGMENTS {
        if !more {
            return Ok(());
        }
        let (response, _) = take(link)?.ok_or(DownReason::TruncatedPacket)?;
        more = response.flags.has(RxFlags::MORE_DATA);
    }
    if more { Err(DownReason::TruncatedPacket) } else { Ok(()) }
}

/// A frame out of a single slot, if it is one.
fn frame(link: &mut Link, response: RxResponse, mut page: Page) -> Option<Frame> {
    let len = u16::try_from(response.status).unwrap_or(0);
    if response.status < 0 || !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&len) {
        link.counters.unusable = link.counters.unusable.saturating_add(1);
        return None;
    }
    if response.offset > 0 {
        let start = usize::from(response.offset);
        page.bytes_mut().copy_within(start..start.saturating_add(usize::from(len)), 0);
    }
    link.counters.received_frames = link.counters.received_frames.saturating_add(1);
    link.counters.received_bytes = link.counters.received_bytes.saturating_add(u64::from(len));
    let offload = Offload { checksum: response.flags.checksum(), gso: None };
    Some(Frame { uplink: link.id, page, len, offload })
}

/// Posts fresh, cleared buffers until `target` are with the backend or memory is short.
pub(super) fn refill(link: &mut Link, target: usize) {
    while link.posted() < target && link.rx.ring().free() > 0 {
        let Some(page) = Page::alloc() else {
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
