//! What the backend does about a vif: decide on a look, then offer, connect, close or remove.

use alloc::vec::Vec;

use super::connect::{
    GRACE_NS, Look, RECHECK_NS, REMOVE_NS, Watch, Work, backend_path, setting_path, vif_path,
};
use super::identity::{RawSettings, Setting};
use super::lifecycle::{Target, What};
use super::{Backend, CloseReason, Event};
use crate::planted::{Defect, is_planted};
use crate::xenbus::{BackendAction, Online, State, backend_action};
use crate::xenstore::{Client, Owner, Request, StoreError};

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
    /// The features go out just before the state, so that no frontend sees state 2 without them; the store handles
    /// our requests in order. Whether a quota lets us create them does not matter for the state, which dom0 has
    /// created. No more features than needed: every node counts against the quota of our domain. In particular no
    /// `feature-sg` without segmentation offload: it would only make Linux send each frame in two pieces, and what
    /// Linux sends in two slots without it (a frame across a page boundary) is taken anyway.
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
                vif.backoff.note_start(now);
                self.write(slot, What::Feature, "feature-rx-copy", "1", store);
                self.write(slot, What::Feature, "feature-ipv6-csum-offload", "1", store);
                if self.config.offloads {
                    for name in ["feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6"] {
                        self.write(slot, What::Feature, name, "1", store);
                    }
                }
                self.write_state(slot, State::InitWait, store);
            }
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
    }
}
