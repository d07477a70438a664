//! Both ends of a request/response ring against a peer that writes anything into the shared page at any time.
//!
//! A slow model stands beside each end: it counts in 64 bits, tries one index after the other where the code under test
//! subtracts, and says for every byte of the page who may have written it.

use std::collections::VecDeque;

use xen::fake;
use xen::ring::{BackRing, FrontRing, Notify, RING_SLOTS, RingBroken};
use xen::shared::SharedPage;
use xen::{DomId, GrantRef};

use crate::source::Source;

/// Offsets of Xen public/io/ring.h.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
const SLOTS: usize = 64;
const PAGE: usize = 4096;

std::thread_local! {
    /// One page of a peer for all inputs: the memory of the fake's peers is never given back.
    static REF: GrantRef =
        fake::peer(DomId(9)).grant_page(xen::grant::Access::ReadWrite).0;
}

/// Which end is ours, the size of a slot, where the indices begin, then a script.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let page = REF.with(|gref| fake::peer(DomId(9)).page(*gref));
    page.clear();
    let kind = source.byte();
    let start = match source.below(4) {
        0 => 0,
        1 => u32::MAX - u32::from(source.byte()),
        2 => 0x8000_0000 - u32::from(source.byte()),
        _ => source.long(),
    };
    match kind % 5 {
        0 => Back::<12>::attach(&page, start, &mut source),
        1 => Back::<8>::attach(&page, start, &mut source),
        2 => Front::<12>::init(&page, start, &mut source),
        3 => Front::<8>::init(&page, start, &mut source),
        _ => pair(&page, start, &mut source),
    }
}

/// The whole page as it is now.
fn bytes_of(page: &SharedPage) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    page.copy_out(0, &mut bytes);
    bytes
}

/// The page, and what must be in it.
struct Page<'p> {
    page: &'p SharedPage,
    shadow: Vec<u8>,
}

impl<'p> Page<'p> {
    fn new(page: &'p SharedPage) -> Self {
        Self { page, shadow: bytes_of(page) }
    }

    /// The peer writes, or we have written.
    fn poke(&mut self, at: usize, bytes: &[u8]) {
        self.page.copy_in(at, bytes);
        self.expect(at, bytes);
    }

    /// The code under test has written.
    fn expect(&mut self, at: usize, bytes: &[u8]) {
        self.shadow[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn index(&self, at: usize) -> u32 {
        u32::from_le_bytes(*self.shadow[at..].first_chunk().unwrap())
    }

    fn slot<const E: usize>(&self, slot: usize) -> [u8; E] {
        *self.shadow[SLOTS + slot * E..].first_chunk().unwrap()
    }

    /// Nothing was written but what the model expects.
    fn check(&self) {
        assert!(bytes_of(self.page) == self.shadow, "the page is not as it must be");
    }

    /// The peer writes: one of the four indices, near to where it is or far away, or any bytes anywhere.
    fn disturb(&mut self, source: &mut Source<'_>) {
        let at = source.pick(&[REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT]);
        match source.below(4) {
            0 => self.poke(at, &source.array::<4>()),
            1 => {
                let by = source.pick(&[1, 2, 255, 256, 257, 0x8000_0000, u32::MAX, u32::MAX - 255]);
                self.poke(at, &self.index(at).wrapping_add(by).to_le_bytes());
            }
            _ => {
                let at = usize::from(source.word()) % PAGE;
                let bytes = source.piece();
                self.poke(at, &bytes[..bytes.len().min(PAGE - at)]);
            }
        }
    }
}

/// Indices from `start` on, by the number of steps since.
#[derive(Clone, Copy)]
struct Count {
    start: u32,
}

impl Count {
    fn index(self, steps: u64) -> u32 {
        self.start.wrapping_add(steps as u32)
    }

    fn slot(self, steps: u64) -> usize {
        (self.index(steps) % RING_SLOTS) as usize
    }

    /// Steps that `claimed` stands for, if it is one of the indices from `least` to `most` steps.
    fn find(self, claimed: u32, least: u64, most: u64) -> Option<u64> {
        (least..=most).find(|steps| self.index(*steps) == claimed)
    }

    /// Whether `event` is one of the indices that came with the steps from `old` to `new`.
    fn is_passed(self, event: u32, old: u64, new: u64) -> bool {
        (old + 1..=new).any(|steps| self.index(steps) == event)
    }
}

fn notify(needed: bool) -> Notify {
    if needed { Notify::Needed } else { Notify::NotNeeded }
}

/// Our backend's end with its model.
struct Back<'p, const E: usize> {
    page: Page<'p>,
    ring: BackRing<E>,
    count: Count,
    /// Requests seen and taken, responses written and published.
    seen: u64,
    taken: u64,
    answered: u64,
    published: u64,
}

impl<'p, const E: usize> Back<'p, E> {
    fn attach(page: &'p SharedPage, start: u32, source: &mut Source<'_>) {
        let count = Count { start };
        page.write_u32(RSP_PROD, start);
        let first = source.pick(&[0, 0, 1, 256, 257, u32::MAX]);
        page.write_u32(REQ_PROD, start.wrapping_add(first));
        let shown = Page::new(page);
        let attached = BackRing::attach(page);
        shown.check();
        assert_eq!(attached.is_ok(), first <= RING_SLOTS);
        let Ok(ring) = attached else { return };
        let page = shown;
        let mut back = Self { page, ring, count, seen: 0, taken: 0, answered: 0, published: 0 };
        while !source.is_empty() {
            back.step(source);
        }
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(10) {
            0 | 1 => self.page.disturb(source),
            2 => {
                // An honest frontend.
                let room = u64::from(RING_SLOTS) - (self.seen - self.answered);
                let more = u64::from(source.byte()) % (room + 1);
                self.page.poke(REQ_PROD, &self.count.index(self.seen + more).to_le_bytes());
            }
            3 => {
                let result = self.ring.unconsumed(self.page.page);
                let expected = self.look();
                assert_eq!(result, expected);
            }
            4 => {
                let expected = self.look().and_then(|count| match count {
                    0 => self.look(),
                    count => Ok(count),
                });
                let result = self.ring.final_check(self.page.page);
                assert_eq!(result, expected);
                if result == Ok(0) {
                    let event = self.count.index(self.taken + 1);
                    self.page.expect(REQ_EVENT, &event.to_le_bytes());
                }
            }
            5 => {
                let wanted = 1 + u32::from(source.byte());
                let expected = self.look();
                let result = self.ring.arm_after(self.page.page, wanted);
                assert_eq!(result, expected);
                let event = self.count.index(self.taken + u64::from(wanted));
                self.page.expect(REQ_EVENT, &event.to_le_bytes());
            }
            6 | 7 => (0..=source.below(24)).for_each(|_| self.take()),
            8 => self.respond(source),
            _ => self.push(),
        }
        self.page.check();
        let open = self.taken - self.answered;
        assert!(open <= u64::from(RING_SLOTS) && self.seen - self.answered <= 256);
        assert_eq!(u64::from(self.ring.unanswered()), open);
        assert_eq!(self.ring.requests_seen(), self.count.index(self.seen));
    }

    /// What a look at the peer's index must say: it never goes back, and the ring holds 256.
    fn look(&mut self) -> Result<u32, RingBroken> {
        let claimed = self.page.index(REQ_PROD);
        let most = self.answered + u64::from(RING_SLOTS);
        let found = self.count.find(claimed, self.seen, most).ok_or(RingBroken)?;
        self.seen = found;
        Ok((found - self.taken) as u32)
    }

    fn take(&mut self) {
        let got = self.ring.take(self.page.page);
        let slot = self.page.slot(self.count.slot(self.taken));
        let expected = (self.taken < self.seen).then_some(slot);
        assert_eq!(got, expected);
        self.taken += u64::from(got.is_some());
    }

    fn respond(&mut self, source: &mut Source<'_>) {
        for _ in 0..=source.below(24) {
            if self.answered == self.taken {
                return;
            }
            let bytes = [source.byte(); E];
            let response = &bytes[..source.pick(&[4, E])];
            let at = SLOTS + self.count.slot(self.answered) * E;
            self.ring.respond(self.page.page, response);
            self.page.expect(at, response);
            self.answered += 1;
        }
    }

    fn push(&mut self) {
        let event = self.page.index(RSP_EVENT);
        let expected = notify(self.count.is_passed(event, self.published, self.answered));
        assert_eq!(self.ring.push(self.page.page), expected);
        if self.published < self.answered {
            let index = self.count.index(self.answered);
            self.page.expect(RSP_PROD, &index.to_le_bytes());
        }
        self.published = self.answered;
    }
}

/// Our frontend's end with its model.
struct Front<'p, const E: usize> {
    page: Page<'p>,
    ring: FrontRing<E>,
    count: Count,
    /// Requests written and published, responses seen and taken.
    written: u64,
    published: u64,
    seen: u64,
    taken: u64,
}

impl<'p, const E: usize> Front<'p, E> {
    fn init(page: &'p SharedPage, start: u32, source: &mut Source<'_>) {
        let count = Count { start };
        let mut shown = Page::new(page);
        let ring = FrontRing::init_at(page, start);
        for (at, index) in [(REQ_PROD, 0), (RSP_PROD, 0), (REQ_EVENT, 1), (RSP_EVENT, 1)] {
            shown.expect(at, &count.index(index).to_le_bytes());
        }
        let page = shown;
        let mut front = Self { page, ring, count, written: 0, published: 0, seen: 0, taken: 0 };
        while !source.is_empty() {
            front.step(source);
        }
    }

    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(9) {
            0 | 1 => self.page.disturb(source),
            2 => {
                // An honest backend.
                let more = u64::from(source.byte()) % (self.published - self.seen + 1);
                self.page.poke(RSP_PROD, &self.count.index(self.seen + more).to_le_bytes());
            }
            3 => {
                let result = self.ring.unconsumed(self.page.page);
                let expected = self.look();
                assert_eq!(result, expected);
            }
            4 => {
                let wanted = 1 + u32::from(source.byte());
                let expected = self.look();
                let result = self.ring.arm_after(self.page.page, wanted);
                assert_eq!(result, expected);
                let event = self.count.index(self.taken + u64::from(wanted));
                self.page.expect(RSP_EVENT, &event.to_le_bytes());
            }
            5 => (0..=source.below(24)).for_each(|_| self.take()),
            6 | 7 => self.request(source),
            _ => self.push(),
        }
        self.page.check();
        let in_flight = self.written - self.taken;
        assert!(in_flight <= u64::from(RING_SLOTS));
        assert_eq!(u64::from(self.ring.in_flight()), in_flight);
        assert_eq!(u64::from(self.ring.free()), u64::from(RING_SLOTS) - in_flight);
        assert_eq!(self.ring.next_slot(), self.count.slot(self.written));
        assert_eq!(self.ring.answered(), self.count.index(self.taken));
        let event = self.ring.event_wanted(self.page.page);
        assert_eq!(event, self.page.index(REQ_EVENT));
        let unheard = self.count.is_passed(event, self.taken, self.published);
        assert_eq!(self.ring.is_unheard(event), unheard);
    }

    /// What a look at the peer's index must say: it never goes back, and never beyond what was published.
    fn look(&mut self) -> Result<u32, RingBroken> {
        let claimed = self.page.index(RSP_PROD);
        let found = self.count.find(claimed, self.seen, self.published).ok_or(RingBroken)?;
        self.seen = found;
        Ok((found - self.taken) as u32)
    }

    fn take(&mut self) {
        let got = self.ring.take(self.page.page);
        let index = self.count.slot(self.taken);
        let expected = (self.taken < self.seen).then_some((index, self.page.slot(index)));
        assert_eq!(got, expected);
        self.taken += u64::from(got.is_some());
    }

    fn request(&mut self, source: &mut Source<'_>) {
        let most = source.pick(&[1, 3, 64, 256]);
        for _ in 0..most {
            if self.ring.free() == 0 {
                return;
            }
            let request = [source.byte(); E];
            let at = SLOTS + self.count.slot(self.written) * E;
            self.ring.request(self.page.page, &request);
            self.page.expect(at, &request);
            self.written += 1;
        }
    }

    fn push(&mut self) {
        let event = self.page.index(REQ_EVENT);
        let expected = notify(self.count.is_passed(event, self.published, self.written));
        assert_eq!(self.ring.push(self.page.page), expected);
        if self.published < self.written {
            let index = self.count.index(self.written);
            self.page.expect(REQ_PROD, &index.to_le_bytes());
        }
        self.published = self.written;
    }
}

/// Both ends of ours on one page: everything arrives once and in order, and who sleeps is told.
fn pair(page: &SharedPage, start: u32, source: &mut Source<'_>) {
    let mut front = FrontRing::<12>::init_at(page, start);
    let mut back = BackRing::<12>::attach(page).expect("a fresh ring");
    let (mut requests, mut responses) = (VecDeque::new(), VecDeque::new());
    // Written and not published; published and not taken.
    let (mut new_requests, mut new_responses) = (0, 0);
    let (mut back_sleeps, mut front_sleeps) = (false, false);
    let mut number = 0_u32;
    while !source.is_empty() {
        match source.below(6) {
            0 => {
                for _ in 0..=source.byte().min(front.free().saturating_sub(1) as u8) {
                    if front.free() > 0 {
                        number += 1;
                        front.request(page, &[&number.to_le_bytes()[..], &[7; 8]].concat());
                        requests.push_back(number);
                        new_requests += 1;
                    }
                }
            }
            1 => {
                let told = front.push(page) == Notify::Needed;
                assert!(told || !back_sleeps || new_requests == 0, "the backend sleeps on");
                back_sleeps &= new_requests == 0;
                new_requests = 0;
            }
            2 => {
                let count = back.unconsumed(page).expect("our frontend") as usize;
                assert_eq!(count, requests.len() - new_requests);
                for _ in 0..count.min(source.byte().into()) {
                    let slot = back.take(page).expect("counted");
                    let got = u32::from_le_bytes(*slot.first_chunk().unwrap());
                    assert_eq!(Some(got), requests.pop_front());
                    back.respond(page, &slot);
                    responses.push_back(got);
                    new_responses += 1;
                }
            }
            3 => {
                let told = back.push(page) == Notify::Needed;
                assert!(told || !front_sleeps || new_responses == 0, "the frontend sleeps on");
                front_sleeps &= new_responses == 0;
                new_responses = 0;
            }
            4 => back_sleeps = back.final_check(page) == Ok(0),
            _ => {
                let count = front.unconsumed(page).expect("our backend") as usize;
                assert_eq!(count, responses.len() - new_responses);
                for _ in 0..count {
                    let (_, slot) = front.take(page).expect("counted");
                    let got = u32::from_le_bytes(*slot.first_chunk().unwrap());
                    assert_eq!(Some(got), responses.pop_front());
                }
                front_sleeps = front.arm_after(page, 1) == Ok(0);
            }
        }
        assert_eq!(front.in_flight() as usize, requests.len() + responses.len());
    }
}
