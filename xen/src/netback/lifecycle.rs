//! What drives the vifs from the outside: watch events, replies of the store, time.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::connect::{
    GRACE_NS, Look, Node, RECHECK_NS, REMOVE_NS, Watch, Work, backend_path, setting_path,
};
use super::identity::{RawSettings, Setting, parse_domain};
use super::{Backend, CloseReason, Event};
use crate::abi::DomId;
use crate::xenbus::{BackendAction, Online, State, backend_action};
use crate::xenstore::{
    Client, Owner, Reply, Request, StoreError, Token, WatchEvent, children, decimal_u32,
};

/// Where dom0 makes the directories, relative to our home.
const ROOT: &str = "backend/vif";
/// Token of the watch on [`ROOT`]; vifs use their slot with a generation above 0.
const ROOT_TOKEN: Token = Token { owner: Owner::Netback, id: u32::MAX, generation: 0 };
/// Most requests that one step of one vif makes.
const REQUESTS_PER_STEP: usize = 16;
/// Most domain directories that wait to be listed; beyond, everything is listed again.
const MAX_DOMAINS: usize = 1024;

/// Search for vifs that are not known yet.
#[derive(Debug, Default)]
pub(super) struct Scan {
    root: bool,
    domains: BTreeSet<DomId>,
}

impl Scan {
    pub(super) fn is_pending(&self) -> bool {
        self.root || !self.domains.is_empty()
    }
}

/// What a request to the store was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Root,
    Domain(DomId),
    Vif { slot: usize, generation: u32, what: What },
}

/// What a vif asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Node(Node),
    Setting(Setting),
    Watch,
    /// A feature that the client may do without.
    Feature,
    State,
    Remove,
}

impl Backend {
    /// Sets the watch that finds all vifs.
    pub fn start(&mut self, store: &mut Client) {
        self.scan.root = true;
        // A store that cannot take one request at boot leaves us without clients, which `totals` shows.
        if store.request(Owner::Netback, Request::Watch { path: ROOT, token: ROOT_TOKEN }).is_err()
        {
            self.totals.write_errors = self.totals.write_errors.saturating_add(1);
        }
    }

    /// Takes note of a change; [`Backend::advance`] looks what it is.
    pub fn on_watch(&mut self, event: &WatchEvent) {
        if event.token == ROOT_TOKEN {
            return self.on_backend_change(&event.path);
        }
        let slot = event.token.id as usize;
        if self.vifs.get(slot).is_some_and(|vif| vif.token == event.token) {
            self.dirty.mark(slot);
        }
    }

    /// A change below `backend/vif`, our own writes included.
    fn on_backend_change(&mut self, path: &str) {
        let mut names = path.strip_prefix(ROOT).unwrap_or("").split('/').skip(1);
        let (dom, devid, leaf) = (names.next(), names.next(), names.next());
        let Some(dom) = dom.and_then(parse_domain) else {
            self.scan.root = true;
            return;
        };
        let Some(devid) = devid.and_then(|name| decimal_u32(name.as_bytes())) else {
            return self.scan_domain(dom);
        };
        if matches!(leaf, None | Some("state" | "online")) {
            self.notice(dom, devid);
        }
    }

    fn scan_domain(&mut self, dom: DomId) {
        if self.scan.domains.len() < MAX_DOMAINS {
            self.scan.domains.insert(dom);
        } else {
            self.scan.root = true;
        }
        let slots: Vec<usize> =
            self.vifs.iter().filter(|(_, vif)| vif.dom == dom).map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.dirty.mark(slot));
    }

    /// Marks a vif; makes it if it is not known.
    fn notice(&mut self, dom: DomId, devid: u32) {
        let found = self.vifs.find(dom, devid).or_else(|| {
            self.generation = self.generation.wrapping_add(1).max(1);
            let generation = self.generation;
            let token = |id| Token { owner: Owner::Netback, id, generation };
            self.vifs.insert(dom, devid, token)
        });
        match found {
            Some(slot) => self.dirty.mark(slot),
            None => self.totals.too_many = self.totals.too_many.saturating_add(1),
        }
    }

    /// Does what time or marks ask for, as far as the store takes requests. Call once per turn.
    pub fn advance(&mut self, store: &mut Client, now: u64) {
        self.now = now;
        self.mark_due(now);
        self.scan(store);
        while store.has_room(REQUESTS_PER_STEP) {
            let Some(slot) = self.dirty.pop() else { break };
            self.look(slot, store);
        }
        self.store_full = !store.has_room(REQUESTS_PER_STEP);
    }

    fn mark_due(&mut self, now: u64) {
        for slot in 0..self.vifs.bound() {
            let Some(vif) = self.vifs.get_mut(slot) else { continue };
            if let Some(link) = &mut vif.link {
                link.open_if_due(now);
            }
            if vif.deadline().is_some_and(|due| due <= now) {
                vif.look_at = None;
                self.dirty.mark(slot);
            }
        }
    }

    fn scan(&mut self, store: &mut Client) {
        if self.scan.root && store.has_room(1) {
            self.scan.root = false;
            (0..self.vifs.bound()).filter(|slot| self.vifs.get(*slot).is_some()).for_each(|slot| {
                self.dirty.mark(slot);
            });
            self.ask(store, Target::Root, Request::Directory { path: ROOT });
        }
        while store.has_room(REQUESTS_PER_STEP) {
            let Some(dom) = self.scan.domains.pop_first() else { break };
            let path = alloc::format!("{ROOT}/{}", dom.0);
            self.ask(store, Target::Domain(dom), Request::Directory { path: &path });
        }
    }

    /// Sends a request and remembers what for. Without room the target is marked again by its timer.
    fn ask(&mut self, store: &mut Client, target: Target, request: Request<'_>) -> bool {
        match store.request(Owner::Netback, request) {
            Ok(id) => {
                self.asked.insert(id, target);
                true
            }
            Err(_) => {
                self.totals.write_errors = self.totals.write_errors.saturating_add(1);
                false
            }
        }
    }

    /// Starts reading everything that the next decision needs.
    fn look(&mut self, slot: usize, store: &mut Client) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        if !matches!(vif.work, Work::Idle) {
            vif.again = true;
            return;
        }
        if !vif.may_look(self.now) {
            return;
        }
        let nodes = if vif.link.is_some() { Node::ATTACHED } else { Node::DETACHED };
        let (dom, devid, generation) = (vif.dom, vif.devid, vif.token.generation);
        vif.work = Work::Looking { left: nodes.len(), look: Look::new() };
        for node in nodes {
            let path = node.path(dom, devid);
            let target = Target::Vif { slot, generation, what: What::Node(*node) };
            if !self.ask(store, target, Request::Read { path: &path }) {
                self.take_node(slot, *node, Err(StoreError::Other), store);
            }
        }
    }

    /// Handles a reply of the store to one of our requests.
    pub fn on_reply(&mut self, reply: Reply, store: &mut Client, now: u64) {
        self.now = now;
        match self.asked.remove(&reply.id) {
            None => {}
            Some(Target::Root) => {
                let list = reply.result.unwrap_or_default();
                for dom in children(&list).filter_map(parse_domain) {
                    self.scan_domain(dom);
                }
            }
            Some(Target::Domain(dom)) => {
                let list = reply.result.unwrap_or_default();
                for devid in children(&list).filter_map(|name| decimal_u32(name.as_bytes())) {
                    self.notice(dom, devid);
                }
            }
            Some(Target::Vif { slot, generation, what }) => {
                let current = |vif: &super::connect::Vif| vif.token.generation == generation;
                if self.vifs.get(slot).is_some_and(current) {
                    self.take_reply(slot, what, reply.result, store);
                }
            }
        }
    }

    fn take_reply(
        &mut self,
        slot: usize,
        what: What,
        result: Result<Vec<u8>, StoreError>,
        store: &mut Client,
    ) {
        match what {
            What::Node(node) => self.take_node(slot, node, result, store),
            What::Setting(setting) => self.take_setting(slot, setting, result, store),
            What::Watch => {
                if let (Err(_), Some(vif)) = (result, self.vifs.get_mut(slot)) {
                    vif.watch = Watch::Refused;
                    vif.look_at = Some(self.now.saturating_add(RECHECK_NS));
                }
            }
            What::Feature | What::State => {
                if result.is_err() {
                    self.totals.write_errors = self.totals.write_errors.saturating_add(1);
                    self.recheck(slot);
                }
            }
            What::Remove => {
                self.idle(slot);
                if result.is_err() {
                    self.recheck(slot);
                } else {
                    self.dirty.mark(slot);
                }
            }
        }
    }

    fn recheck(&mut self, slot: usize) {
        if let Some(vif) = self.vifs.get_mut(slot) {
            vif.look_at.get_or_insert(self.now.saturating_add(RECHECK_NS));
        }
    }

    /// The vif waits for nothing any more; marks it if something happened meanwhile.
    fn idle(&mut self, slot: usize) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        vif.work = Work::Idle;
        if core::mem::take(&mut vif.again) {
            self.dirty.mark(slot);
        }
    }

    fn take_node(
        &mut self,
        slot: usize,
        node: Node,
        result: Result<Vec<u8>, StoreError>,
        store: &mut Client,
    ) {
        let Some(vif) = self.vifs.get_mut(slot) else { return };
        let Work::Looking { left, look } = &mut vif.work else { return };
        look.set(node, result);
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let look = core::mem::replace(look, Look::new());
        self.idle(slot);
        if look.failed {
            self.recheck(slot);
        } else {
            self.decide(slot, look, store);
        }
    }

    fn decide(&mut self, slot: usize, look: Look, store: &mut Client) {
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
    /// `feature-rx-copy` goes out just before the state, so that no frontend sees state 2 without it; the store
    /// handles our requests in order. Whether a quota lets us create it does not matter for the state, which dom0
    /// has created. No more features than needed: every node counts against the quota of our domain. In particular
    /// no `feature-sg`: without segmentation offload it would only make Linux send each frame in two pieces.
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
                self.write_state(slot, State::InitWait, store);
                self.write(slot, What::Feature, "feature-ipv6-csum-offload", "1", store);
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
        let left = Setting::ALL.len();
        vif.work = Work::Settings { left, raw, identity, front: look.front };
        for setting in Setting::ALL {
            let path = setting_path(dom, devid, setting);
            let target = Target::Vif { slot, generation, what: What::Setting(setting) };
            if !self.ask(store, target, Request::Read { path: &path }) {
                self.take_setting(slot, setting, Err(StoreError::Other), store);
            }
        }
    }

    fn take_setting(
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
                let path = alloc::format!("{ROOT}/{}/{}", vif.dom.0, vif.devid);
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
        if vif.watch == Watch::Present {
            let (path, token) = (vif.front_state_path(), vif.token);
            if store.request(Owner::Netback, Request::Unwatch { path: &path, token }).is_err() {
                // Keep the vif until the watch can be given back.
                self.recheck(slot);
                return;
            }
        }
        self.vifs.remove(slot);
        self.dirty.clear(slot);
    }
}
