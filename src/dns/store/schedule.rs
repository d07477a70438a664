//! What the resolver asks the store and tells it: names that are due, answers, failures.

use core::net::IpAddr;

use rules::HostName;

use super::{
    Answer, MAX_LIFE, MAX_NEGATIVE_LIFE, MIN_LIFE, NONE, NameId, STALE, SWEEP_INTERVAL, Store,
    Trouble,
};
use crate::dns::resolver::Problem;
use crate::planted::{Defect, is_planted};
use crate::time::Instant;

impl Store {
    /// Takes what our resolver was answered.
    pub(crate) fn answered(&mut self, now: Instant, id: NameId, answer: Answer<'_>) {
        let life = match answer {
            Answer::Addresses(..) if is_planted(Defect::TtlIgnored) => MAX_LIFE,
            Answer::Addresses(_, ttl) => ttl.clamp(MIN_LIFE, MAX_LIFE),
            Answer::Nothing(ttl) => ttl.clamp(MIN_LIFE, MAX_NEGATIVE_LIFE),
        };
        // Early enough for all attempts before the life is over.
        let is_refreshed = !is_planted(Defect::NamesNotRefreshed);
        self.ask_again(id, is_refreshed.then(|| now.after(life.saturating_sub(life / 4))));
        self.set_trouble(id, Trouble::None);
        let Some(name) = self.name_mut(id) else { return };
        name.answer = name.answer.wrapping_add(1);
        let known_until = Some(now.after(life.saturating_add(STALE)));
        let was_known = core::mem::replace(&mut name.known_until, known_until).is_some();
        name.failures = 0;
        let number = name.answer;
        if let Answer::Addresses(addresses, _) = answer {
            for address in addresses.iter() {
                self.add(id.slot, NONE, address, now, now.after(life), number);
            }
        }
        self.tell_uses(id.slot);
        if !was_known {
            self.stamp = self.stamp.wrapping_add(1);
        }
        self.sweep_at.get_or_insert(now.after(SWEEP_INTERVAL));
    }

    /// Notes that the name could not be resolved; what was known before goes on to count.
    pub(crate) fn failed(&mut self, id: NameId, ask_at: Option<Instant>, problem: Problem) {
        self.ask_again(id, ask_at);
        let Some(name) = self.name_mut(id) else { return };
        name.failures = name.failures.saturating_add(1);
        if name.trouble == Trouble::None {
            self.set_trouble(id, Trouble::Untold(problem));
        }
    }

    /// Has every name asked for again, at once.
    pub(crate) fn ask_all(&mut self, now: Instant) {
        self.names.for_each_mut(|name| {
            name.failures = 0;
            name.ask_at = Some(now);
        });
        self.ask_at = Some(now);
    }

    /// Takes the name that has waited longest for a question that is due; it waits no more.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<NameId> {
        self.ask_at.filter(|at| *at <= now)?;
        let waiting = |slot| Some((self.names.get(slot)?.ask_at?, slot));
        let first = (0..self.names.slots()).filter_map(waiting).min();
        self.ask_at = first.map(|(at, _)| at);
        let (_, slot) = first.filter(|(at, _)| *at <= now)?;
        let name = self.names.get_mut(slot)?;
        name.ask_at = None;
        Some(NameId { slot, serial: name.serial })
    }

    /// A moment before which no question is due.
    pub(crate) fn next_ask(&self) -> Option<Instant> {
        self.ask_at
    }

    pub(super) fn ask_again(&mut self, id: NameId, at: Option<Instant>) {
        if let Some(name) = self.name_mut(id) {
            name.ask_at = at;
            self.ask_at = [self.ask_at, at].into_iter().flatten().min();
        }
    }

    pub(super) fn set_trouble(&mut self, id: NameId, trouble: Trouble) {
        let Some(name) = self.name_mut(id) else { return };
        let before = core::mem::replace(&mut name.trouble, trouble);
        self.count_untold(before, trouble);
    }

    pub(super) fn count_untold(&mut self, before: Trouble, after: Trouble) {
        if matches!(before, Trouble::Untold(_)) {
            self.untold = self.untold.saturating_sub(1);
        }
        if matches!(after, Trouble::Untold(_)) {
            self.untold = self.untold.saturating_add(1);
        }
    }

    /// A name that cannot be resolved, why, and a client that uses it.
    pub(crate) fn take_problem(&mut self) -> Option<(IpAddr, HostName, Problem)> {
        if self.untold == 0 {
            return None;
        }
        let slot = (0..self.names.slots()).find(|slot| {
            self.names.get(*slot).is_some_and(|name| matches!(name.trouble, Trouble::Untold(_)))
        })?;
        let client = self.client_of(slot)?;
        let name = self.names.get_mut(slot)?;
        let Trouble::Untold(problem) = core::mem::replace(&mut name.trouble, Trouble::Told) else {
            return None;
        };
        self.untold = self.untold.saturating_sub(1);
        Some((client, name.host_name.clone(), problem))
    }

    /// Names that could not be resolved when they were asked for last.
    pub(crate) fn troubled(&self) -> usize {
        let names = (0..self.names.slots()).filter_map(|slot| self.names.get(slot));
        names.filter(|name| name.trouble != Trouble::None).count()
    }

    pub(super) fn client_of(&self, name: u32) -> Option<IpAddr> {
        let uses = (0..self.uses.slots()).filter_map(|slot| self.uses.get(slot));
        uses.filter(|one| one.name == name).map(|one| one.client).next()
    }
}
