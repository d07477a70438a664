//! Frames to the uplink: granted read-only for the time between the verdict and the backend's response.

use super::link::{Link, take_back};
use super::{DownReason, SendError};
use crate::abi::DomId;
use crate::grant::{self, Access, Granted};
use crate::netif::{
    Chain, ExtraInfo, Offload, Piece, STATUS_DROPPED, STATUS_ERROR, STATUS_NULL, STATUS_OKAY,
    TxFlags, TxRequest, TxResponse,
};
use crate::planted::{Defect, is_planted};

/// Grants a frame to the backend and writes its requests: one for each page, and behind the first what says how to
/// segment it. Nothing is written before all of it is granted.
pub(super) fn send(link: &mut Link, chain: Chain, offload: Offload) -> Result<(), SendError> {
    let total = match (u16::try_from(chain.len()), chain.fault(offload)) {
        // A request can say no larger size.
        (Err(_), _) | (_, Some(_)) => return Err(SendError::BadLength),
        (Ok(total), None) => total,
    };
    if !chain.suits(&link.capabilities, offload) {
        return Err(SendError::Unsupported);
    }
    let extras = usize::from(offload.gso.is_some());
    let pages = chain.pages();
    let ring_free = link.tx.ring().free() as usize;
    if link.free_ids.len() < pages || ring_free < pages.saturating_add(extras) {
        return Err(SendError::Full);
    }
    let (head, mut tail) = chain.into_parts();
    let (head, _) = grant_piece(link.peer, head)?;
    for piece in tail.take() {
        match grant_piece(link.peer, piece) {
            Ok(granted) => link.granting.push(granted),
            Err(error) => {
                link.granting.clear();
                return Err(error);
            }
        }
    }
    write_requests(link, head, total, offload);
    link.counters.sent_frames = link.counters.sent_frames.saturating_add(1);
    link.counters.sent_bytes = link.counters.sent_bytes.saturating_add(u64::from(total));
    Ok(())
}

/// Nothing of the page's former content is visible: the rest is cleared first (Xen Security Advisory 403).
fn grant_piece(peer: DomId, piece: Piece) -> Result<(Granted, u16), SendError> {
    let (mut page, len) = piece.into_page();
    if !is_planted(Defect::SentPageNotCleared) {
        page.clear_from(usize::from(len));
    }
    let is_writable = is_planted(Defect::SentPageWritable);
    let access = if is_writable { Access::ReadWrite } else { Access::ReadOnly };
    let granted = grant::grant(page, peer, access).map_err(|_| SendError::NoGrant)?;
    Ok((granted, len))
}

/// Room in the ring and ids were counted before.
fn write_requests(link: &mut Link, head: Granted, total: u16, offload: Offload) {
    let mut flags = TxFlags::for_frame(offload);
    let mut left = link.granting.len();
    if left > 0 {
        flags.0 |= TxFlags::MORE_DATA;
    }
    if offload.gso.is_some() {
        flags.0 |= TxFlags::EXTRA_INFO;
    }
    write_request(link, head, flags, total);
    if let Some(gso) = offload.gso {
        let (ring, ring_page) = link.tx.parts();
        ring.request(ring_page, &ExtraInfo::encode_gso(gso));
        link.extras = link.extras.saturating_add(1);
    }
    let mut rest = core::mem::take(&mut link.granting);
    for (granted, len) in rest.drain(..) {
        left = left.saturating_sub(1);
        let flags = TxFlags(if left > 0 { TxFlags::MORE_DATA } else { 0 });
        write_request(link, granted, flags, len);
    }
    link.granting = rest;
}

fn write_request(link: &mut Link, granted: Granted, flags: TxFlags, size: u16) {
    let id = link.free_ids.pop().expect("free ids were counted");
    let request = TxRequest { gref: granted.gref(), offset: 0, flags, id, size };
    let (ring, ring_page) = link.tx.parts();
    ring.request(ring_page, &request.encode());
    if let Some(place) = link.sent.get_mut(usize::from(id)) {
        *place = Some(granted);
    }
}

/// Takes the responses: each ends the grant of the page that its id names in our own table. A slot without a page has an
/// answer that names nothing.
pub(super) fn complete(link: &mut Link) -> Result<(), DownReason> {
    let (ring, page) = link.tx.parts();
    let count = ring.unconsumed(page).map_err(|_| DownReason::TxRing)?;
    for _ in 0..count {
        let (ring, page) = link.tx.parts();
        let Some((_, slot)) = ring.take(page) else { break };
        link.gate.note_work();
        let response = TxResponse::decode(&slot);
        if response.status == STATUS_NULL {
            link.extras = link.extras.checked_sub(1).ok_or(DownReason::BadStatus)?;
            continue;
        }
        let entry = link.sent.get_mut(usize::from(response.id));
        match entry.and_then(Option::take) {
            Some(granted) if is_planted(Defect::SentGrantKept) => core::mem::forget(granted),
            // Freed whatever the status says; the id is free only if the page is.
            Some(granted) => drop(take_back(granted)?),
            None if is_planted(Defect::ResponseIdTrusted) => {}
            None => return Err(DownReason::UnknownResponse),
        }
        if !is_planted(Defect::SentIdNotFreed) {
            link.free_ids.push(response.id);
        }
        match response.status {
            STATUS_OKAY => {}
            STATUS_ERROR | STATUS_DROPPED => {
                link.counters.refused = link.counters.refused.saturating_add(1);
            }
            _ => return Err(DownReason::BadStatus),
        }
    }
    Ok(())
}
