//! The shared request/response rings of Xen public/io/ring.h, for both ends.
//!
//! A [`FrontRing`] produces requests and consumes responses, a [`BackRing`] the reverse. Both keep their indices
//! privately and never read back what they published. The peer's producer index goes through [`validate`], the only
//! place where a number of the peer becomes a count. The shared page is an argument of each call, so that its owner
//! (a grant at the frontend, a mapping at the backend) can keep it beside the ring.
//!
//! A slot is copied out once ([`BackRing::take`], [`FrontRing::take`]); what the peer writes later is not seen.
#![forbid(unsafe_code)]

use crate::planted::{Defect, is_planted};
use crate::shared::{SharedPage, fence_full};

/// Slots of a network ring: the largest power of two that fits in a page for entries of 8 and of 12 bytes.
pub const RING_SLOTS: u32 = 256;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
/// First slot; the header is followed by private and padding bytes.
const SLOTS: usize = 64;

/// The peer's producer index is impossible: more slots than the ring holds, or it went backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer's ring index is impossible")]
pub struct RingBroken;

/// Whether the peer asked to be told about what was just pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Notify {
    /// The peer's event index lies in the range just published.
    Needed,
    /// The peer is still working or does not care.
    NotNeeded,
}

/// Free-running index arithmetic, modulo the width of the integer.
///
/// Two widths implement it: `u32`, which the rings use, and `u8`, on which the tests try every combination.
pub trait Index: Copy + Eq + Ord {
    /// `self - other` modulo the width.
    fn distance_from(self, other: Self) -> Self;
}

impl Index for u32 {
    fn distance_from(self, other: Self) -> Self {
        self.wrapping_sub(other)
    }
}

/// The number of unconsumed slots if the peer's producer index `claimed` is possible.
///
/// `base` is the oldest index that still counts against the ring (`limit` slots from there on are legal), `seen` the
/// largest value accepted before and `consumed` our consumer index; always `base <= consumed <= seen` in ring order.
pub fn validate<I: Index>(
    claimed: I,
    base: I,
    consumed: I,
    seen: I,
    limit: I,
) -> Result<I, RingBroken> {
    let span = claimed.distance_from(base);
    let is_ahead = span > limit && !is_planted(Defect::RingAheadAccepted);
    let is_back = span < seen.distance_from(base) && !is_planted(Defect::RingBackAccepted);
    if is_ahead || is_back {
        return Err(RingBroken);
    }
    Ok(claimed.distance_from(consumed))
}

/// Whether publishing `old..new` passes the peer's event index: `RING_PUSH_*_AND_CHECK_NOTIFY` of ring.h.
pub fn passes_event<I: Index>(old: I, new: I, event: I) -> bool {
    new.distance_from(event) < new.distance_from(old)
}

fn slot_offset(index: u32, entry_bytes: usize) -> usize {
    let slot = (index % RING_SLOTS) as usize;
    SLOTS.saturating_add(slot.saturating_mul(entry_bytes))
}

/// Publishes `new` at `prod_at`; `old` is what was published before.
fn publish(page: &SharedPage, prod_at: usize, event_at: usize, old: u32, new: u32) -> Notify {
    if old == new {
        return Notify::NotNeeded;
    }
    page.store_release_u32(prod_at, new);
    fence_full();
    let event = page.load_acquire_u32(event_at);
    if passes_event(old, new, event) { Notify::Needed } else { Notify::NotNeeded }
}

/// Our end of a ring whose requests a peer produces; `E` is the size of a slot in bytes.
#[derive(Debug)]
pub struct BackRing<const E: usize> {
    req_cons: u32,
    req_seen: u32,
    rsp_prod: u32,
    rsp_published: u32,
}

impl<const E: usize> BackRing<E> {
    /// Attaches to a ring that the peer initialised.
    ///
    /// The peer's response index is taken as the start whatever it is (a fresh ring has 0): only differences matter.
    pub fn attach(page: &SharedPage) -> Result<BackRing<E>, RingBroken> {
        let start = page.load_acquire_u32(RSP_PROD);
        let ring =
            BackRing { req_cons: start, req_seen: start, rsp_prod: start, rsp_published: start };
        validate(page.load_acquire_u32(REQ_PROD), start, start, start, RING_SLOTS)?;
        Ok(ring)
    }

    /// Requests that the peer has published and that were not taken yet.
    pub fn unconsumed(&mut self, page: &SharedPage) -> Result<u32, RingBroken> {
        let claimed = page.load_acquire_u32(REQ_PROD);
        let count = validate(claimed, self.rsp_prod, self.req_cons, self.req_seen, RING_SLOTS)?;
        self.req_seen = claimed;
        Ok(count)
    }

    /// Copies the next request out, once; `None` when all that were seen are taken.
    pub fn take(&mut self, page: &SharedPage) -> Option<[u8; E]> {
        if self.req_cons == self.req_seen {
            return None;
        }
        let mut slot = [0; E];
        page.copy_out(slot_offset(self.req_cons, E), &mut slot);
        self.req_cons = self.req_cons.wrapping_add(1);
        Some(slot)
    }

    /// The peer's producer index as accepted last: it changes exactly when new requests were seen.
    pub fn requests_seen(&self) -> u32 {
        self.req_seen
    }

    /// Requests taken and not answered yet.
    pub fn unanswered(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Writes the next response; it is visible to the peer after [`BackRing::push`].
    ///
    /// # Panics
    /// When nothing is unanswered: that would overwrite a request that was not read yet.
    pub fn respond(&mut self, page: &SharedPage, response: &[u8]) {
        let is_due = self.unanswered() > 0 || is_planted(Defect::TxAnsweredTwice);
        assert!(is_due, "a response without a request");
        assert!(response.len() <= E, "a response larger than its slot");
        page.copy_in(slot_offset(self.rsp_prod, E), response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// The request that the next response answers, as the shared page has it now: for [`Defect::TxSlotReadTwice`] alone.
    pub(crate) fn read_again(&self, page: &SharedPage) -> [u8; E] {
        let mut slot = [0; E];
        page.copy_out(slot_offset(self.rsp_prod, E), &mut slot);
        slot
    }

    /// Publishes the responses written so far.
    pub fn push(&mut self, page: &SharedPage) -> Notify {
        let old = self.rsp_published;
        self.rsp_published = self.rsp_prod;
        publish(page, RSP_PROD, RSP_EVENT, old, self.rsp_prod)
    }

    /// Asks for an event at the next request, then looks once more. Call before sleeping.
    pub fn final_check(&mut self, page: &SharedPage) -> Result<u32, RingBroken> {
        let count = self.unconsumed(page)?;
        if count > 0 || is_planted(Defect::RingEventNotAsked) {
            return Ok(count);
        }
        self.arm_after(page, 1)
    }

    /// Asks for an event once `count` more requests than taken so far exist, then counts them once more.
    pub fn arm_after(&mut self, page: &SharedPage, count: u32) -> Result<u32, RingBroken> {
        page.store_release_u32(REQ_EVENT, self.req_cons.wrapping_add(count));
        fence_full();
        self.unconsumed(page)
    }
}

/// Our end of a ring whose requests we produce; `E` is the size of a slot in bytes.
#[derive(Debug)]
pub struct FrontRing<const E: usize> {
    req_prod: u32,
    req_published: u32,
    rsp_cons: u32,
    rsp_seen: u32,
}

impl<const E: usize> FrontRing<E> {
    /// Initialises a zeroed page of ours as an empty ring.
    pub fn init(page: &SharedPage) -> FrontRing<E> {
        FrontRing::starting_at(page, 0)
    }

    /// The same with another first index, so that tests reach the wrap of the indices at once.
    #[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
    pub fn init_at(page: &SharedPage, start: u32) -> FrontRing<E> {
        FrontRing::starting_at(page, start)
    }

    fn starting_at(page: &SharedPage, start: u32) -> FrontRing<E> {
        page.write_u32(REQ_PROD, start);
        page.write_u32(REQ_EVENT, start.wrapping_add(1));
        page.write_u32(RSP_PROD, start);
        page.store_release_u32(RSP_EVENT, start.wrapping_add(1));
        FrontRing { req_prod: start, req_published: start, rsp_cons: start, rsp_seen: start }
    }

    /// Slots that neither hold a request nor an unread response.
    pub fn free(&self) -> u32 {
        RING_SLOTS.saturating_sub(self.in_flight())
    }

    /// Requests without a consumed response.
    pub fn in_flight(&self) -> u32 {
        self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Index (0 to 255) of the slot that the next request takes.
    pub fn next_slot(&self) -> usize {
        (self.req_prod % RING_SLOTS) as usize
    }

    /// Writes the next request; it is visible to the peer after [`FrontRing::push`].
    ///
    /// # Panics
    /// When the ring is full.
    pub fn request(&mut self, page: &SharedPage, request: &[u8]) {
        assert!(self.free() > 0, "a request into a full ring");
        assert!(request.len() <= E, "a request larger than its slot");
        page.copy_in(slot_offset(self.req_prod, E), request);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Whether requests were written that are not published yet.
    pub fn has_unpublished(&self) -> bool {
        self.req_published != self.req_prod
    }

    /// Publishes the requests written so far.
    pub fn push(&mut self, page: &SharedPage) -> Notify {
        let old = self.req_published;
        self.req_published = self.req_prod;
        publish(page, REQ_PROD, REQ_EVENT, old, self.req_prod)
    }

    /// The index at which the peer wants to be told, as it stands in the page: any number at all.
    pub fn event_wanted(&self, page: &SharedPage) -> u32 {
        page.load_acquire_u32(REQ_EVENT)
    }

    /// Whether a request is without a response although the peer was told of it: the index at which it wants an event
    /// lies among those that are published and not answered.
    pub fn is_unheard(&self, event: u32) -> bool {
        passes_event(self.rsp_cons, self.req_published, event)
    }

    /// Responses taken so far, modulo the width of the index.
    pub fn answered(&self) -> u32 {
        self.rsp_cons
    }

    /// Responses that the peer has published and that were not taken yet.
    pub fn unconsumed(&mut self, page: &SharedPage) -> Result<u32, RingBroken> {
        let claimed = page.load_acquire_u32(RSP_PROD);
        let published = self.req_published.wrapping_sub(self.rsp_cons);
        let count = validate(claimed, self.rsp_cons, self.rsp_cons, self.rsp_seen, published)?;
        self.rsp_seen = claimed;
        Ok(count)
    }

    /// Copies the next response out, once, with the index (0 to 255) of its slot.
    pub fn take(&mut self, page: &SharedPage) -> Option<(usize, [u8; E])> {
        if self.rsp_cons == self.rsp_seen {
            return None;
        }
        let mut slot = [0; E];
        page.copy_out(slot_offset(self.rsp_cons, E), &mut slot);
        let index = (self.rsp_cons % RING_SLOTS) as usize;
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Some((index, slot))
    }

    /// Asks for an event once `count` more responses than taken so far exist, then counts them once more.
    pub fn arm_after(&mut self, page: &SharedPage, count: u32) -> Result<u32, RingBroken> {
        page.store_release_u32(RSP_EVENT, self.rsp_cons.wrapping_add(count));
        fence_full();
        self.unconsumed(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::host;

    impl Index for u8 {
        fn distance_from(self, other: Self) -> Self {
            self.wrapping_sub(other)
        }
    }

    const LIMIT: u8 = 16;

    /// Every base, every legal consumer and seen index, every claim: accepted exactly if a walk of at most `LIMIT`
    /// steps from `base`, not ending before `seen`, reaches the claim.
    #[test]
    fn validate_agrees_with_a_step_by_step_model_for_all_u8_indices() {
        for base in 0..=u8::MAX {
            for seen_steps in 0..=LIMIT {
                let seen = base.wrapping_add(seen_steps);
                for cons_steps in 0..=seen_steps {
                    let cons = base.wrapping_add(cons_steps);
                    for claimed in 0..=u8::MAX {
                        let mut model = Err(RingBroken);
                        for steps in seen_steps..=LIMIT {
                            if base.wrapping_add(steps) == claimed {
                                model = Ok(steps - cons_steps);
                            }
                        }
                        assert_eq!(validate(claimed, base, cons, seen, LIMIT), model);
                    }
                }
            }
        }
    }

    /// The event index asks for a notification exactly if it is one of the indices `old + 1 ..= new`.
    #[test]
    fn passes_event_agrees_with_a_step_by_step_model_for_all_u8_indices() {
        for old in 0..=u8::MAX {
            for steps in 0..=LIMIT {
                let new = old.wrapping_add(steps);
                for event in 0..=u8::MAX {
                    let model = (1..=steps).any(|step| old.wrapping_add(step) == event);
                    assert_eq!(passes_event(old, new, event), model, "{old} {new} {event}");
                }
            }
        }
    }

    /// A frontend and a backend on one page, starting just before the indices wrap.
    fn pair() -> (SharedPage, FrontRing<12>, BackRing<12>) {
        let page = host::foreign_page();
        page.clear();
        let front = FrontRing::init_at(&page, u32::MAX - 100);
        let back = BackRing::attach(&page).unwrap();
        (page, front, back)
    }

    #[test]
    fn requests_and_responses_cross_the_wrap_in_order() {
        let (page, mut front, mut back) = pair();
        for round in 0..5u32 {
            for number in 0..RING_SLOTS {
                front.request(&page, &[round as u8, number as u8, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
            }
            assert_eq!(front.free(), 0);
            assert_eq!(front.push(&page), Notify::Needed);
            assert_eq!(back.unconsumed(&page), Ok(RING_SLOTS));
            for number in 0..RING_SLOTS {
                let slot = back.take(&page).unwrap();
                assert_eq!(slot[..3], [round as u8, number as u8, 3]);
                back.respond(&page, &[number as u8, 0, 0, 0]);
            }
            assert_eq!(back.take(&page), None);
            assert_eq!(back.push(&page), Notify::Needed);
            assert_eq!(back.final_check(&page), Ok(0));
            assert_eq!(front.unconsumed(&page), Ok(RING_SLOTS));
            for number in 0..RING_SLOTS {
                let (_, slot) = front.take(&page).unwrap();
                assert_eq!(slot[0], number as u8);
            }
            assert_eq!(front.arm_after(&page, 1), Ok(0));
            assert_eq!(front.in_flight(), 0);
        }
    }

    #[test]
    fn a_push_between_check_and_arming_is_seen_by_the_final_check() {
        let (page, mut front, mut back) = pair();
        assert_eq!(back.unconsumed(&page), Ok(0));
        front.request(&page, &[1; 12]);
        let _ = front.push(&page);
        assert_eq!(back.final_check(&page), Ok(1));
    }

    #[test]
    fn no_notification_while_the_event_index_is_ahead() {
        let (page, mut front, mut back) = pair();
        assert_eq!(back.arm_after(&page, 3), Ok(0));
        for expected in [Notify::NotNeeded, Notify::NotNeeded, Notify::Needed, Notify::NotNeeded] {
            front.request(&page, &[0; 12]);
            assert_eq!(front.push(&page), expected);
        }
        assert_eq!(front.push(&page), Notify::NotNeeded, "nothing new");
    }

    #[test]
    fn a_backend_refuses_jumps_and_steps_backwards() {
        for claim in [RING_SLOTS + 1, u32::MAX, 0x8000_0000, 1] {
            let (page, mut front, mut back) = pair();
            for _ in 0..2 {
                front.request(&page, &[0; 12]);
            }
            let _ = front.push(&page);
            assert_eq!(back.unconsumed(&page), Ok(2));
            page.write_u32(REQ_PROD, (u32::MAX - 100).wrapping_add(claim));
            assert_eq!(back.unconsumed(&page), Err(RingBroken), "claim {claim}");
        }
    }

    #[test]
    fn a_backend_counts_unanswered_requests_against_the_ring() {
        let (page, _, mut back) = pair();
        let start = u32::MAX - 100;
        page.write_u32(REQ_PROD, start.wrapping_add(RING_SLOTS));
        assert_eq!(back.unconsumed(&page), Ok(RING_SLOTS));
        let _ = back.take(&page);
        page.write_u32(REQ_PROD, start.wrapping_add(RING_SLOTS + 1));
        assert_eq!(back.unconsumed(&page), Err(RingBroken));
    }

    #[test]
    fn a_frontend_refuses_more_responses_than_it_made_requests() {
        let (page, mut front, _) = pair();
        front.request(&page, &[0; 12]);
        front.request(&page, &[0; 12]);
        let _ = front.push(&page);
        front.request(&page, &[0; 12]);
        page.write_u32(RSP_PROD, (u32::MAX - 100).wrapping_add(2));
        assert_eq!(front.unconsumed(&page), Ok(2));
        page.write_u32(RSP_PROD, (u32::MAX - 100).wrapping_add(3));
        assert_eq!(front.unconsumed(&page), Err(RingBroken), "the third is not published");
    }

    #[test]
    fn attaching_to_an_overfull_ring_fails() {
        let page = host::foreign_page();
        page.clear();
        page.write_u32(REQ_PROD, RING_SLOTS + 1);
        assert_eq!(BackRing::<8>::attach(&page).err(), Some(RingBroken));
    }
}
