//! Frames to the uplink: granted read-only for the time between the verdict and the backend's response.

use super::link::{Link, take_back};
use super::{DownReason, SendError};
use crate::grant::{self, Access};
use crate::mem::Page;
use crate::netif::{
    MAX_FRAME_BYTES, MIN_FRAME_BYTES, Offload, STATUS_DROPPED, STATUS_ERROR, STATUS_OKAY, TxFlags,
    TxRequest, TxResponse,
};

/// Grants the first `len` bytes of `page` to the backend and writes the request. Nothing of the page's former content
/// is visible: the rest is cleared first (Xen Security Advisory 403).
pub(super) fn send(
    link: &mut Link,
    mut page: Page,
    len: u16,
    offload: Offload,
) -> Result<(), SendError> {
    if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&len) {
        return Err(SendError::BadLength);
    }
    let frame = page.bytes().get(..usize::from(len)).unwrap_or(&[]);
    if !link.capabilities.accepts(frame, offload) {
        return Err(SendError::Unsupported);
    }
    if link.send_room() == 0 {
        return Err(SendError::Full);
    }
    page.clear_from(usize::from(len));
    let granted =
        grant::grant(page, link.peer, Access::ReadOnly).map_err(|_| SendError::NoGrant)?;
    let id = link.free_ids.pop().ok_or(SendError::Full)?;
    let flags = TxFlags::for_frame(offload);
    let request = TxRequest { gref: granted.gref(), offset: 0, flags, id, size: len };
    let (ring, ring_page) = link.tx.parts();
    ring.request(ring_page, &request.encode());
    if let Some(place) = link.sent.get_mut(usize::from(id)) {
        *place = Some(granted);
    }
    link.counters.sent_frames = link.counters.sent_frames.saturating_add(1);
    link.counters.sent_bytes = link.counters.sent_bytes.saturating_add(u64::from(len));
    Ok(())
}

/// Takes the responses: each ends the grant of the frame that its id names in our own table.
pub(super) fn complete(link: &mut Link) -> Result<(), DownReason> {
    let (ring, page) = link.tx.parts();
    let count = ring.unconsumed(page).map_err(|_| DownReason::TxRing)?;
    for _ in 0..count {
        let (ring, page) = link.tx.parts();
        let Some((_, slot)) = ring.take(page) else { break };
        link.gate.note_work();
        let response = TxResponse::decode(&slot);
        let entry = link.sent.get_mut(usize::from(response.id));
        let granted = entry.and_then(Option::take).ok_or(DownReason::UnknownResponse)?;
        // Freed whatever the status says; the id is free only if the page is.
        drop(take_back(granted)?);
        link.free_ids.push(response.id);
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
