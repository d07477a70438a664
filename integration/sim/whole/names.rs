//! Host names: what the resolver beyond the uplink says of them, how it behaves, and for how long who heard it may believe it.

use std::collections::BTreeSet;

use fastrand::Rng;

/// Names that rules may have.
pub(crate) const NAMES: usize = 10;
const S: u64 = 1_000_000_000;
/// Least life of an address, how much longer the latest answer counts, and what is allowed for the clock, in ns.
const MIN_LIFE: u64 = 60 * S;
const STALE: u64 = 3600 * S;
const MARGIN: u64 = 2 * S;
/// Longest pause between two questions about a name that fails, and of an absence that has no TTL, in ns.
const LONGEST_PAUSE: u64 = 300 * S;
/// Longest life of an address, in ns.
const MAX_LIFE: u64 = 86_400 * S;
/// Latest answers that may still be the latest that was heard: one may have been lost.
const LATEST: u64 = 3;
/// What takes longer may come when nobody waits for it any more, in ns.
const PROMPT: u64 = S;

pub(crate) fn text(name: usize) -> String {
    format!("n{name}.example.org")
}

/// How the resolver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Answers,
    Silent,
    Fails,
    NoSuchName,
    /// After so many ns.
    Late(u64),
}

/// An address that was told.
#[derive(Clone, Copy, Debug)]
struct Told {
    address: [u8; 4],
    at: u64,
    life: u64,
    number: u64,
    /// A newer answer was heard.
    is_old: bool,
    /// To this client only.
    only: Option<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) addresses: Vec<[u8; 4]>,
    /// In seconds.
    pub(crate) ttl: u32,
    pub(crate) mood: Mood,
    told: Vec<Told>,
    /// Answers so far that came while somebody waited for them.
    count: u64,
    is_told: bool,
    /// Since when rules have it while it can be asked for, and when it was asked for last, in ns.
    pub(crate) used_since: Option<u64>,
    pub(crate) asked_at: u64,
    /// All addresses that were ever told: a flow keeps its own.
    pub(crate) ever: BTreeSet<[u8; 4]>,
}

impl Name {
    pub(crate) fn new(random: &mut Rng) -> Self {
        let mut name = Self {
            addresses: vec![],
            ttl: 300,
            mood: Mood::Answers,
            told: vec![],
            count: 0,
            is_told: false,
            used_since: None,
            asked_at: 0,
            ever: BTreeSet::new(),
        };
        name.change(random);
        name
    }

    /// It gets other addresses, another TTL, and the resolver another mood.
    pub(crate) fn change(&mut self, random: &mut Rng) {
        let count = random.usize(1..4);
        self.addresses = (0..count).map(|_| [192, 0, 2, random.u8(1..40)]).collect();
        self.ttl = [0, 1, 30, 300, 86_400][random.usize(0..5)];
        self.mood = match random.u32(0..10) {
            0 => Mood::Silent,
            1 => Mood::Fails,
            2 => Mood::NoSuchName,
            3 => Mood::Late(random.u64(1..9) * S),
            _ => Mood::Answers,
        };
    }

    /// An answer is on its way at `now`, to our resolver or to a client.
    pub(crate) fn tell(&mut self, now: u64, only: Option<u8>, addresses: &[[u8; 4]]) {
        self.told.retain(|told| now <= told.at + told.life + STALE + MARGIN);
        self.is_told |= only.is_none();
        let life = (u64::from(self.ttl) * S).clamp(MIN_LIFE, MAX_LIFE);
        let number = if only.is_none() { self.count + 1 } else { 0 };
        let told = |address: &[u8; 4]| Told {
            address: *address,
            at: now,
            life,
            number,
            is_old: false,
            only,
        };
        self.told.extend(addresses.iter().map(told));
        self.ever.extend(addresses);
    }

    /// The answer to our resolver's question of `asked_at` was delivered at `now`. One that comes late is perhaps not listened
    /// to: what was said before may count on, with any number of such answers.
    pub(crate) fn is_delivered(&mut self, asked_at: u64, now: u64) {
        self.count += u64::from(now < asked_at + PROMPT);
    }

    /// The latest answer was heard: no older one is the latest any more.
    pub(crate) fn is_heard(&mut self) {
        let count = self.count;
        self.told.iter_mut().filter(|told| told.number < count).for_each(|told| told.is_old = true);
    }

    /// How long after a question the next one is due at the latest, in ns: the longest life that an answer had of late, or
    /// the longest pause after failures.
    pub(crate) fn patience(&self) -> u64 {
        let lives = self.told.iter().map(|told| told.life);
        lives.max().unwrap_or(0).max(LONGEST_PAUSE) + MIN_LIFE
    }

    /// Whether a client may believe at `now` that the name has the address.
    pub(crate) fn may_have(&self, now: u64, client: u8, address: [u8; 4]) -> bool {
        self.told.iter().any(|told| {
            let is_latest =
                told.only.is_none() && !told.is_old && told.number + LATEST > self.count;
            let stale = if is_latest { STALE } else { 0 };
            told.address == address
                && told.only.is_none_or(|only| only == client)
                && now <= told.at + told.life + stale + MARGIN
        })
    }

    pub(crate) fn is_unresolved(&self) -> bool {
        !self.is_told && self.told.is_empty()
    }
}
