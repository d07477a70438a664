//! What the backend does about a vif: decide on a look, then offer, connect, close or remove.

use alloc::vec::Vec;

use super::connect::{
    GRACE_NS, Look, Offered, RECHECK_NS, REMOVE_NS, Vif, Watch, Work, backend_path, setting_path,
    vif_path,
};
use super::identity::{RawSettings, Setting};
use super::lifecycle::{Target, What};
use super::{Backend, CloseReason, Event};
use crate::planted::{Defect, is_planted};
use crate::xenbus::{BackendAction, Online, State, backend_action};
use crate::xenstore::{Client, Owner, Request, StoreError};

/// The feature without which Linux' frontend does not start (Xen public/io/netif.h).
const ESSENTIAL: &str = "feature-rx-copy";
/// The others, of which all but the first are for super-frames.
const OPTIONAL: &[&str] =
    &["feature-ipv6-csum-offload", "feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6"];

impl Backend {
    pub(super) fn decide(&mut self, slot: usize, look: Look, store: &mut Client) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        vif.state = look.own;
        let action = backend_action(vif.view(&look, self.now));
        if action != BackendAction::AwaitFrontend {
            vif.grace_until = None;
        }
        if action != BackendAction::Remove {
            vif.remove_at = None;
        }
        if vif.watch == Watch::Refused {
            vif.look_at = Some(self.now.saturating_add(RECHECK_NS));
        }
        if action != BackendAction::Forget {
            self.watch_frontend(slot, store);
        }
        let reason = match look.online {
            Online::Yes => CloseReason::Frontend,
            Online::No => CloseReason::Removed,
        };
        match action {
            BackendAction::Nothing => {}
            BackendAction::Offer => self.offer(slot, &look, store),
            BackendAction::Connect => self.read_settings(slot, look, store),
            BackendAction::AwaitFrontend => self.await_frontend(slot, look.own, store),
            BackendAction::Closing => {
                self.detach(slot, reason);
                self.write_state(slot, State::Closing, store);
            }
            BackendAction::Close => self.close(slot, look.own, reason, store),
            BackendAction::Remove => self.remove(slot, store),
            BackendAction::Forget => self.forget(slot, store),
        }
    }

    fn watch_frontend(&mut self, slot: usize, store: &mut Client) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        if vif.watch != Watch::Absent {
            return;
        }
        vif.watch = Watch::Present;
        let (token, path) = (vif.token, vif.front_state_path());
        let target = Target::Vif { slot, generation: token.generation, what: What::Watch };
        if !self.ask(store, target, Request::Watch { path: &path, token })
            && let Some(vif) = self.vifs.get_mut(slot)
        {
            vif.watch = Watch::Absent;
            vif.look_at = Some(self.now.saturating_add(RECHECK_NS));
        }
    }

    /// Writes our state; the vif counts as being in it from now on.
    fn write_state(&mut self, slot: usize, state: State, store: &mut Client) {
        if let Some(vif) = self.vifs.get_mut(slot) {
            vif.state = state;
        }
        self.write(slot, What::State, "state", state.as_str(), store);
    }

    fn write(&mut self, slot: usize, what: What, name: &str, value: &str, store: &mut Client) {
        let Some(vif) = self.vifs.get(slot) else { return };
        let path = backend_path(vif.dom, vif.devid, name);
        let target = Target::Vif { slot, generation: vif.token.generation, what };
        let request = Request::Write { path: &path, value: value.as_bytes() };
        if !self.ask(store, target, request) {
            self.recheck(slot);
        }
    }

    /// Closes a vif: always through state 5, which Windows frontends wait for.
    fn close(&mut self, slot: usize, own: State, reason: CloseReason, store: &mut Client) {
        self.detach(slot, reason);
        if own != State::Closing {
            self.write_state(slot, State::Closing, store);
        }
        self.write_state(slot, State::Closed, store);
        // What follows depends on the frontend and on dom0: look again even if our own write raises no event.
        self.dirty.mark(slot);
    }

    fn refuse(&mut self, slot: usize, own: State, reason: CloseReason, store: &mut Client) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        vif.reason = Some(reason);
        let (dom, devid) = (vif.dom, vif.devid);
        self.totals.refused = self.totals.refused.saturating_add(1);
        self.events.push_back(Event::Refused { dom, devid, reason });
        self.close(slot, own, reason, store);
    }

    /// Offers the device to the frontend.
    ///
    /// First comes the one feature without which Linux' frontend does not start: only when it is there, or cannot be, the
    /// rest follows ([`Backend::take_essential`]).
    fn offer(&mut self, slot: usize, look: &Look, store: &mut Client) {
        self.detach(slot, CloseReason::Vanished);
        let now = self.now;
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        if look.own == State::Initialising {
            vif.refused = false;
        }
        if vif.refused {
            return;
        }
        let due = vif.backoff.next();
        if due > now {
            vif.look_at = Some(due);
            return;
        }
        match look.identity.parse(vif.dom, vif.devid) {
            Err(error) => {
                vif.refused = true;
                self.refuse(slot, look.own, CloseReason::Identity(error), store);
            }
            Ok(_) => {
                vif.work = Work::Offering;
                let path = backend_path(vif.dom, vif.devid, ESSENTIAL);
                let generation = vif.token.generation;
                let target = Target::Vif { slot, generation, what: What::Essential };
                if !self.ask(store, target, Request::Write { path: &path, value: b"1" }) {
                    self.idle(slot);
                    self.recheck(slot);
                }
            }
        }
    }

    /// Offers the rest, and the device.
    ///
    /// The features go out just before the state, so that no frontend sees state 2 without them; the store handles
    /// our requests in order. Whether a quota lets us create them does not matter for the state, which dom0 has
    /// created. No more features than needed: every node counts against the quota of our domain, where vifs of many
    /// clients meet. When it is used up, another vif's nodes of features make room for the essential one of this vif: a
    /// frontend reads them once, when it connects. From then on, until a vif goes, new ones get no more than that.
    pub(super) fn take_essential(
        &mut self,
        slot: usize,
        result: &Result<Vec<u8>, StoreError>,
        store: &mut Client,
    ) {
        self.idle(slot);
        if let Err(error) = result {
            self.totals.write_errors = self.totals.write_errors.saturating_add(1);
            if *error == StoreError::Quota {
                self.is_quota_used_up = true;
                if self.make_room(slot, store) {
                    return self.recheck(slot);
                }
            }
        }
        let (now, is_limited) = (self.now, self.is_quota_used_up);
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        vif.backoff.note_start(now);
        // The nodes of one that connects again are there.
        if is_limited && vif.offered != Offered::All {
            self.note_limit(slot);
        } else {
            vif.offered = Offered::All;
            for name in self.optional_features() {
                self.write(slot, What::Feature, name, "1", store);
            }
        }
        self.write_state(slot, State::InitWait, store);
    }

    /// What a frontend may do without. No `feature-sg` without segmentation offload: it would only make Linux send each
    /// frame in two pieces, and what Linux sends in two slots without it (a frame across a page boundary) is taken anyway.
    fn optional_features(&self) -> &'static [&'static str] {
        let needed = if self.config.offloads { OPTIONAL.len() } else { 1 };
        OPTIONAL.get(..needed).unwrap_or(OPTIONAL)
    }

    /// The store has no room for one of a vif's features: it gets none of them.
    pub(super) fn limit(&mut self, slot: usize, store: &mut Client) {
        self.is_quota_used_up = true;
        if self.vifs.get(slot).is_some_and(|vif| vif.offered == Offered::All) {
            self.take_back(slot, store);
            self.note_limit(slot);
        }
    }

    fn note_limit(&mut self, slot: usize) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        vif.offered = Offered::Few;
        self.totals.limited = self.totals.limited.saturating_add(1);
        self.events.push_back(Event::Limited { dom: vif.dom, devid: vif.devid });
    }

    /// Takes back the features of one of the vifs that have them; whether there is one.
    fn make_room(&mut self, slot: usize, store: &mut Client) -> bool {
        let has_all = |vif: &Vif| vif.offered == Offered::All;
        let givers = self.vifs.iter().filter(|(giver, vif)| *giver != slot && has_all(vif));
        let Some(giver) = givers.map(|(giver, _)| giver).last() else { return false };
        let is_connected = self.vifs.get(giver).is_some_and(|vif| vif.link.is_some());
        self.take_back(giver, store);
        if !is_connected {
            self.note_limit(giver);
        }
        true
    }

    fn take_back(&mut self, slot: usize, store: &mut Client) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        vif.offered = Offered::TakenBack;
        let (dom, devid, generation) = (vif.dom, vif.devid, vif.token.generation);
        for name in self.optional_features() {
            let target = Target::Vif { slot, generation, what: What::TakenBack };
            self.ask(store, target, Request::Rm { path: &backend_path(dom, devid, name) });
        }
    }

    fn read_settings(&mut self, slot: usize, look: Look, store: &mut Client) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let identity = match look.identity.parse(vif.dom, vif.devid) {
            Ok(identity) => identity,
            Err(error) => {
                vif.refused = true;
                return self.refuse(slot, look.own, CloseReason::Identity(error), store);
            }
        };
        let (dom, devid, generation) = (vif.dom, vif.devid, vif.token.generation);
        let raw = RawSettings::default();
        let settings = Setting::needed(self.config.offloads);
        let left = settings.len();
        vif.work = Work::Settings { left, raw, identity, front: look.front };
        for setting in settings {
            let path = setting_path(dom, devid, setting);
            let target = Target::Vif { slot, generation, what: What::Setting(setting) };
            if !self.ask(store, target, Request::Read { path: &path }) {
                self.take_setting(slot, setting, Err(StoreError::Other), store);
            }
        }
    }

    pub(super) fn take_setting(
        &mut self,
        slot: usize,
        setting: Setting,
        result: Result<Vec<u8>, StoreError>,
        store: &mut Client,
    ) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let Work::Settings { left, raw, .. } = &mut vif.work else { return };
        if let Ok(value) = result {
            raw.set(setting, value);
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let work = core::mem::replace(&mut vif.work, Work::Idle);
        self.idle(slot);
        let Work::Settings { raw, identity, front, .. } = work else { return };
        // In state 3 a frontend may still be writing.
        if front == State::Initialised && raw.is_incomplete() {
            return;
        }
        let attached = raw.parse().map_err(CloseReason::Setting);
        match attached.and_then(|settings| self.attach(slot, settings, identity)) {
            Err(reason) => self.refuse(slot, State::InitWait, reason, store),
            Ok(()) => {
                self.write(slot, What::Feature, "hotplug-status", "connected", store);
                self.write_state(slot, State::Connected, store);
            }
        }
    }

    /// Dom0 removes the device and the frontend has not closed: ask it, but not for long.
    fn await_frontend(&mut self, slot: usize, own: State, store: &mut Client) {
        let until = self.now.saturating_add(GRACE_NS);
        if let Some(vif) = self.vifs.get_mut(slot) {
            vif.grace_until.get_or_insert(until);
        }
        if own != State::Closing {
            self.write_state(slot, State::Closing, store);
        }
    }

    /// Removes our directory once state 6 was visible long enough.
    fn remove(&mut self, slot: usize, store: &mut Client) {
        let now = self.now;
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        match vif.remove_at {
            None => vif.remove_at = Some(now.saturating_add(REMOVE_NS)),
            Some(due) if due > now => {}
            Some(_) => {
                vif.remove_at = None;
                vif.work = Work::Removing;
                let path = vif_path(vif.dom, vif.devid);
                let generation = vif.token.generation;
                let target = Target::Vif { slot, generation, what: What::Remove };
                if !self.ask(store, target, Request::Rm { path: &path }) {
                    self.idle(slot);
                    self.recheck(slot);
                }
            }
        }
    }

    /// The directory is gone: nothing of the vif stays.
    fn forget(&mut self, slot: usize, store: &mut Client) {
        self.detach(slot, CloseReason::Vanished);
        let Some(vif) = self.vifs.get(slot) else { return };
        if vif.watch == Watch::Present && !is_planted(Defect::WatchLeaked) {
            let (path, token) = (vif.front_state_path(), vif.token);
            if store.request(Owner::Netback, Request::Unwatch { path: &path, token }).is_err() {
                // Keep the vif until the watch can be given back.
                self.recheck(slot);
                return;
            }
        }
        self.vifs.remove(slot);
        self.dirty.clear(slot);
        self.scan.slot_freed();
        // Its nodes are gone, too.
        self.is_quota_used_up = false;
    }
}
