//! The life cycle of the uplink's device in xenstore: look, decide, act.
//!
//! As at the backend, an event only marks the device; then everything is read anew and `xenbus::frontend_action`
//! decides. A look has two steps: our own directory, which names the backend, then the backend's.

use alloc::vec::Vec;

use super::device::{BackNode, Device, Feature, OwnLook, OwnNode, Peer, ROOT, Watch, Work};
use super::link::Link;
use super::unheard::Remedy;
use super::{DownReason, Event, Frontend};
use crate::xenbus::{FrontendView, Online, State, frontend_action};
use crate::xenstore::{
    Client, Owner, Reply, Request, StoreError, Token, WatchEvent, children, decimal_u32,
};

/// Token of the watch on [`ROOT`].
const ROOT_TOKEN: Token = Token { owner: Owner::Netfront, id: 0, generation: 0 };
/// Id of the token of the watch on the backend's state; its generation is above 0.
const BACKEND_WATCH: u32 = 1;
/// Most requests that one step makes.
const REQUESTS_PER_STEP: usize = 16;
/// Pause before another look where no event announces a change, in ns.
const RECHECK_NS: u64 = 1_000_000_000;

/// What a request to the store was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    List,
    Device { generation: u32, what: What },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Own(OwnNode),
    Back(BackNode),
    Feature(Feature),
    Published,
    State,
    Watch { generation: u32 },
}

impl Frontend {
    /// Sets the watch that finds the device.
    pub fn start(&mut self, store: &mut Client) {
        self.list = true;
        if store.request(Owner::Netfront, Request::Watch { path: ROOT, token: ROOT_TOKEN }).is_err()
        {
            self.totals.write_errors = self.totals.write_errors.saturating_add(1);
        }
    }

    /// Takes note of a change; [`Frontend::advance`] looks what it is.
    pub fn on_watch(&mut self, event: &WatchEvent) {
        if event.token == ROOT_TOKEN {
            return self.on_device_change(&event.path);
        }
        if let Some(device) = &mut self.device
            && matches!(&device.watch, Watch::Present { token, .. } if *token == event.token)
        {
            device.dirty = true;
        }
    }

    /// A change below `device/vif`, our own writes included.
    fn on_device_change(&mut self, path: &str) {
        let mut names = path.strip_prefix(ROOT).unwrap_or("").split('/').skip(1);
        let (devid, leaf) = (names.next(), names.next());
        let devid = devid.and_then(|name| decimal_u32(name.as_bytes()));
        match (&mut self.device, devid) {
            (Some(device), Some(devid)) if device.devid == devid => {
                let ours = matches!(leaf, None | Some("state" | "backend" | "backend-id" | "mac"));
                device.dirty |= ours;
            }
            (Some(device), Some(devid)) => {
                if device.parked {
                    self.successor = Some(devid);
                }
            }
            (device, _) => {
                self.list = true;
                self.skip = None;
                if let Some(device) = device {
                    device.dirty = true;
                }
            }
        }
    }

    /// Does what time or marks ask for, as far as the store takes requests. Call once per turn.
    pub fn advance(&mut self, store: &mut Client, now: u64) {
        self.now = now;
        self.retry_at = super::retry_quarantine(self.retry_at, now);
        if let Some(device) = &mut self.device {
            if let Some(link) = &mut device.link {
                link.ready |= link.gate.open_if_due(&link.channel, now);
            }
            if device.deadline().is_some_and(|due| due <= now) {
                device.look_at = None;
                device.dirty = true;
            }
        }
        self.listen(now);
        self.store_full = !store.has_room(REQUESTS_PER_STEP);
        if self.store_full {
            return;
        }
        if let Some(devid) = self.successor.take() {
            self.drop_device(DownReason::Replaced, store);
            self.adopt(devid);
        }
        if core::mem::take(&mut self.list) {
            self.ask(store, Target::List, Request::Directory { path: ROOT });
        }
        self.look(store);
    }

    /// Helps a backend that does not look at our requests.
    fn listen(&mut self, now: u64) {
        let Some(link) = self.link_mut() else { return };
        let (remedy, uplink) = (link.listen(now), link.id);
        match remedy {
            Remedy::None | Remedy::Repeat { is_first: false } => {}
            Remedy::Repeat { is_first: true } => self.events.push_back(Event::Silent { uplink }),
            Remedy::GiveUp => self.give_up(DownReason::Deaf),
        }
    }

    /// When [`Frontend::advance`] has to be called at the latest, in ns.
    pub fn next_deadline(&self) -> Option<u64> {
        let device = self.device.as_ref();
        let marked = self.list
            || self.successor.is_some()
            || device.is_some_and(|device| device.dirty && matches!(device.work, Work::Idle));
        let at_once = (marked && !self.store_full).then_some(self.now);
        let look = device.and_then(Device::deadline);
        let gate = self.link().and_then(|link| link.gate.deadline());
        let unheard = self.link().and_then(Link::unheard_deadline);
        let answers = self.link().and_then(Link::look_deadline);
        [at_once, look, gate, unheard, answers, self.retry_at].into_iter().flatten().min()
    }

    fn ask(&mut self, store: &mut Client, target: Target, request: Request<'_>) -> bool {
        match store.request(Owner::Netfront, request) {
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

    /// Asks on behalf of the device; what cannot be sent counts as answered with an error.
    pub(super) fn ask_for_device(&mut self, store: &mut Client, what: What, request: Request<'_>) {
        let Some(generation) = self.device.as_ref().map(|device| device.generation) else { return };
        if !self.ask(store, Target::Device { generation, what }, request) {
            self.take_reply(what, Err(StoreError::Other), store);
        }
    }

    fn adopt(&mut self, devid: u32) {
        self.generation = self.generation.wrapping_add(1);
        self.device = Some(Device::new(devid, self.generation));
    }

    /// Starts reading our own directory.
    fn look(&mut self, store: &mut Client) {
        let now = self.now;
        let Some(device) = &mut self.device else { return };
        if !device.dirty {
            return;
        }
        device.dirty = false;
        if !matches!(device.work, Work::Idle) {
            device.again = true;
            return;
        }
        device.look_at = device.looks.take(now);
        if device.look_at.is_some() {
            return;
        }
        device.work = Work::Own { left: OwnNode::ALL.len(), look: OwnLook::default() };
        let paths = OwnNode::ALL.map(|node| (node, device.path(node.name())));
        for (node, path) in paths {
            self.ask_for_device(store, What::Own(node), Request::Read { path: &path });
        }
    }

    /// Handles a reply of the store to one of our requests.
    pub fn on_reply(&mut self, reply: Reply, store: &mut Client, now: u64) {
        self.now = now;
        match self.asked.remove(&reply.id) {
            Some(Target::List) => self.take_list(&reply.result.unwrap_or_default()),
            Some(Target::Device { generation, what })
                if self.device.as_ref().is_some_and(|device| device.generation == generation) =>
            {
                self.take_reply(what, reply.result, store);
            }
            // Of an earlier device.
            Some(Target::Device { .. }) | None => {}
        }
    }

    fn take_list(&mut self, list: &[u8]) {
        let devids = children(list).filter_map(|name| decimal_u32(name.as_bytes()));
        let first = devids.filter(|devid| Some(*devid) != self.skip).min();
        if let (None, Some(devid)) = (&self.device, first) {
            self.adopt(devid);
        }
    }

    fn take_reply(&mut self, what: What, result: Result<Vec<u8>, StoreError>, store: &mut Client) {
        match what {
            What::Own(node) => self.take_own(node, result, store),
            What::Back(node) => self.take_back_node(node, result, store),
            What::Feature(feature) => self.take_feature(feature, result, store),
            What::Published => self.take_published(result.is_err(), store),
            What::State => {
                if result.is_err() {
                    self.totals.write_errors = self.totals.write_errors.saturating_add(1);
                    self.recheck();
                }
            }
            What::Watch { generation } => self.take_watch(generation, result.is_err()),
        }
    }

    pub(super) fn recheck(&mut self) {
        let due = self.now.saturating_add(RECHECK_NS);
        if let Some(device) = &mut self.device {
            device.look_at.get_or_insert(due);
        }
    }

    fn take_watch(&mut self, generation: u32, failed: bool) {
        let Some(device) = &mut self.device else { return };
        let current =
            matches!(&device.watch, Watch::Present { token, .. } if token.generation == generation);
        if failed && current {
            // A quota forbids it: look now and then.
            device.watch = Watch::Refused;
            self.recheck();
        }
    }

    fn take_own(&mut self, node: OwnNode, result: Result<Vec<u8>, StoreError>, store: &mut Client) {
        let Some(device) = &mut self.device else { return };
        let Work::Own { left, look } = &mut device.work else { return };
        match result {
            Ok(value) => {
                if let Some(place) = look.values.get_mut(node as usize) {
                    *place = Some(value);
                }
            }
            Err(StoreError::NotFound | StoreError::Denied) => {}
            Err(_) => look.failed = true,
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let look = core::mem::take(look);
        device.idle();
        if look.failed {
            return self.recheck();
        }
        device.own = look.state();
        if device.own == State::Unknown {
            self.skip = Some(device.devid);
            self.list = true;
            return self.drop_device(DownReason::Vanished, store);
        }
        match look.parse() {
            Some((peer, mac, mtu)) => {
                (device.mac, device.mtu) = (mac, mtu);
                self.look_at_backend(peer, store);
            }
            None => {
                self.disconnect(DownReason::Malformed);
                if let Some(device) = &mut self.device {
                    device.reason = Some(DownReason::Malformed);
                }
            }
        }
    }

    /// Starts the second step of a look.
    fn look_at_backend(&mut self, peer: Peer, store: &mut Client) {
        let Some(device) = &mut self.device else { return };
        if device.peer.as_ref() != Some(&peer) {
            self.disconnect(DownReason::Replaced);
            self.unwatch(store);
            if let Some(device) = &mut self.device {
                device.peer = Some(peer.clone());
            }
            self.watch_backend(&peer, store);
        }
        let Some(device) = &mut self.device else { return };
        device.work = Work::Back {
            left: 2,
            own: device.own,
            back: State::Unknown,
            online: Online::No,
            failed: false,
        };
        for (node, name) in [(BackNode::State, "state"), (BackNode::Online, "online")] {
            let path = alloc::format!("{}/{name}", peer.path);
            self.ask_for_device(store, What::Back(node), Request::Read { path: &path });
        }
    }

    fn watch_backend(&mut self, peer: &Peer, store: &mut Client) {
        self.generation = self.generation.wrapping_add(1).max(1);
        let generation = self.generation;
        let token = Token { owner: Owner::Netfront, id: BACKEND_WATCH, generation };
        let path = alloc::format!("{}/state", peer.path);
        if let Some(device) = &mut self.device {
            device.watch = Watch::Present { path: path.clone(), token };
        }
        let what = What::Watch { generation };
        self.ask_for_device(store, what, Request::Watch { path: &path, token });
    }

    fn unwatch(&mut self, store: &mut Client) {
        let Some(device) = &mut self.device else { return };
        if let Watch::Present { path, token } = core::mem::replace(&mut device.watch, Watch::Absent)
        {
            // Should the queue be full the watch stays, once; its events carry an old generation.
            if store.request(Owner::Netfront, Request::Unwatch { path: &path, token }).is_err() {
                self.totals.write_errors = self.totals.write_errors.saturating_add(1);
            }
        }
    }

    pub(super) fn drop_device(&mut self, reason: DownReason, store: &mut Client) {
        self.disconnect(reason);
        self.unwatch(store);
        self.device = None;
    }

    fn take_back_node(
        &mut self,
        node: BackNode,
        result: Result<Vec<u8>, StoreError>,
        store: &mut Client,
    ) {
        let Some(device) = &mut self.device else { return };
        let Work::Back { left, own, back, online, failed } = &mut device.work else { return };
        match (node, result) {
            (BackNode::State, Ok(value)) => *back = State::parse(&value),
            (BackNode::Online, Ok(value)) if value == b"1" => *online = Online::Yes,
            (_, Ok(_) | Err(StoreError::NotFound | StoreError::Denied)) => {}
            (_, Err(_)) => *failed = true,
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let (own, back, online, failed) = (*own, *back, *online, *failed);
        device.idle();
        if failed {
            return self.recheck();
        }
        device.back = back;
        let view = FrontendView { own, back, online, uplink: device.uplink() };
        self.act(frontend_action(view), own, back, store);
    }
}
