//! Whose frames are taken in a turn: all clients' in rounds, from another one on each time, and who rests.

use super::from_guest::{Budget, Drained};
use super::slot_set::SlotSet;
use super::{Backend, NO_PAGE_PAUSE_NS};
use crate::netif::Moment;

impl Backend {
    /// Takes frames from the clients' rings, in turns, within the budget; they wait for [`Backend::next_frame`]. What waits
    /// for the clients is copied to them in the same batch, and published by [`Backend::flush`].
    pub fn receive(&mut self, budget: Budget, now: u64) {
        self.now = now;
        self.starved = None;
        self.from.begin();
        self.pump_all(now);
        let mut total = budget.total;
        let bound = self.vifs.bound();
        let first = if self.turn < bound { self.turn } else { 0 };
        self.turn = first.saturating_add(1);
        while self.serve_round(first, budget.quantum, &mut total, now) {}
        self.complete();
    }

    /// Serves each vif once, from `first` on. Says whether one still has frames and may get another round.
    fn serve_round(&mut self, first: usize, quantum: u32, total: &mut usize, now: u64) -> bool {
        let mut is_waiting = false;
        for (from, to) in [(first, usize::MAX), (0, first)] {
            let mut at = from;
            while let Some(slot) = self.busy.next_in(at, to) {
                at = slot.saturating_add(1);
                if *total < self.least_budget() || self.from.room() == 0 {
                    // Whoever is cut off starts the next call.
                    self.turn = self.cut_off.unwrap_or(slot);
                    return false;
                }
                is_waiting |= self.receive_from(slot, quantum, total, now);
            }
        }
        is_waiting
    }

    /// Says whether the vif has frames for which its credit did not suffice.
    fn receive_from(&mut self, slot: usize, quantum: u32, total: &mut usize, now: u64) -> bool {
        let when = Moment { now, is_one_alone: self.is_one_alone(now) };
        let mut left = Budget { quantum, total: *total };
        let taken = self.from.taken();
        let goes_on = self.cut_off.take_if(|cut_off| *cut_off == slot).is_some();
        if let Some(link) = self.vifs.get_mut(slot).and_then(|vif| vif.link.as_mut())
            && !goes_on
        {
            link.begin_round(quantum);
        }
        let recent = self.recent(slot);
        let ended = loop {
            let Some(link) = self.vifs.get_mut(slot).and_then(|vif| vif.link.as_mut()) else {
                return false;
            };
            if !link.ready || link.pace.rests() {
                return false;
            }
            match self.from.drain(link, &mut left, &mut self.copies, when) {
                Ok(Drained::Empty) => {
                    // What was not used is lost, what is owed is not.
                    link.credit = link.credit.min(0);
                    break link.settle(now).map(|()| false);
                }
                Ok(Drained::Full) => self.complete(),
                Ok(Drained::Rests) => break Ok(false),
                Ok(Drained::Spent) => {
                    // With credit left it was the whole that ended.
                    self.cut_off = (link.credit > 0).then_some(slot);
                    break Ok(true);
                }
                Ok(Drained::NoPage) => {
                    self.starved = Some(now.saturating_add(NO_PAGE_PAUSE_NS));
                    *total = 0;
                    return false;
                }
                Err(reason) => break Err(reason),
            }
        };
        *total = left.total;
        self.ageing.note(self.recent(slot).saturating_sub(recent));
        if self.from.taken() != taken {
            self.lone.note(slot, now);
        }
        ended.unwrap_or_else(|reason| {
            self.break_link(slot, reason);
            false
        })
    }

    /// Packets that the last [`Backend::receive`] took off the rings, those included that came to nothing.
    pub fn taken(&self) -> usize {
        self.from.taken()
    }

    /// A client's recent work.
    fn recent(&self, slot: usize) -> u64 {
        let link = self.vifs.get(slot).and_then(|vif| vif.link.as_ref());
        link.map_or(0, |link| link.pace.recent())
    }

    /// At the end of a turn that began at `begun` (ns). If it took packets, and a client's frame took `frame_ns` of whatever is
    /// busiest, clients that sent many rest for a while if others have work, too. From now on nobody is looked at before
    /// something happens to it, or its time has come.
    pub fn end_turn(&mut self, begun: u64, frame_ns: Option<u64>) {
        let all = self.ageing.all();
        let mut at = 0;
        while let Some(slot) = self.busy.next_in(at, usize::MAX) {
            at = slot.saturating_add(1);
            let mut stays = false;
            if let Some(link) = self.vifs.get_mut(slot).and_then(|vif| vif.link.as_mut()) {
                if let Some(frame_ns) = frame_ns {
                    link.pace.end_turn(begun, frame_ns, all);
                }
                stays = link.has_work() || link.is_looked_at();
                if link.deadline(begun).is_some() {
                    self.timed.mark(slot);
                }
            }
            if !stays {
                self.busy.clear(slot);
            }
        }
        self.forget_times(begun);
        if frame_ns.is_some() {
            let paces = self.vifs.iter_mut().filter_map(|vif| vif.link.as_mut());
            self.ageing.apply(begun, paces.map(|link| &mut link.pace));
        }
    }

    /// Those that wait for no time and no answer of the store any more are not looked at for it.
    fn forget_times(&mut self, now: u64) {
        let mut at = 0;
        while let Some(slot) = self.timed.next_in(at, usize::MAX) {
            at = slot.saturating_add(1);
            let waits = self.vifs.get(slot).is_some_and(|vif| {
                let link = vif.link.as_ref();
                !vif.is_idle() || link.is_some_and(|link| link.deadline(now).is_some())
            });
            if !waits {
                self.timed.clear(slot);
            }
        }
    }

    /// The next vif from `from` on that time may have something for, or that is at work.
    pub(super) fn next_awaited(&self, from: usize) -> Option<usize> {
        let next = |set: &SlotSet| set.next_in(from, usize::MAX);
        [next(&self.busy), next(&self.timed)].into_iter().flatten().min()
    }

    /// Whether one client alone has had frames for a while, at `now` (ns).
    pub fn is_one_alone(&self, now: u64) -> bool {
        self.lone.is_alone(now)
    }
}
