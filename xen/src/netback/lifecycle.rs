//! What drives the vifs from the outside: watch events, replies of the store, time.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::Backend;
use super::connect::{Look, Node, RECHECK_NS, Watch, Work};
use super::identity::{Setting, parse_domain};
use crate::abi::DomId;
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
    /// Vifs were left out for want of a slot.
    overflow: bool,
    domains: BTreeSet<DomId>,
}

impl Scan {
    /// A slot is free again: looks for a vif that was left out.
    pub(super) fn slot_freed(&mut self) {
        self.root |= core::mem::take(&mut self.overflow);
    }

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
    /// The feature without which Linux' frontend does not start.
    Essential,
    /// A feature that the client may do without.
    Feature,
    /// Such a feature makes room.
    TakenBack,
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
            None => {
                self.scan.overflow = true;
                self.totals.too_many = self.totals.too_many.saturating_add(1);
            }
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

    /// Looks whose time has come.
    fn mark_due(&mut self, now: u64) {
        let mut at = 0;
        while let Some(slot) = self.next_awaited(at) {
            at = slot.saturating_add(1);
            let Some(vif) = self.vifs.get_mut(slot) else { continue };
            if let Some(link) = &mut vif.link {
                link.open_if_due(now);
                link.pace.wake_if_due(now);
                link.look_if_due(now);
                if link.has_work() || link.is_due(now) {
                    self.busy.mark(slot);
                }
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
    pub(super) fn ask(&mut self, store: &mut Client, target: Target, request: Request<'_>) -> bool {
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
        self.timed.mark(slot);
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
                    self.timed.mark(slot);
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
            What::Essential => self.take_essential(slot, &result, store),
            What::Feature | What::State => {
                if let Err(error) = result {
                    self.totals.write_errors = self.totals.write_errors.saturating_add(1);
                    if what == What::Feature && error == StoreError::Quota {
                        self.limit(slot, store);
                    }
                    self.recheck(slot);
                }
            }
            // One that is not there needs no room.
            What::TakenBack => {}
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

    pub(super) fn recheck(&mut self, slot: usize) {
        self.timed.mark(slot);
        if let Some(vif) = self.vifs.get_mut(slot) {
            vif.look_at.get_or_insert(self.now.saturating_add(RECHECK_NS));
        }
    }

    /// The vif waits for nothing any more; marks it if something happened meanwhile.
    pub(super) fn idle(&mut self, slot: usize) {
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
}
