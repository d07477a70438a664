//! The life cycle of the uplink's device in xenstore: look, decide, act.
//!
//! As at the backend, an event only marks the device; then everything is read anew and `xenbus::frontend_action`
//! decides. A look has two steps: our own directory, which names the backend, then the backend's.

use alloc::string::String;
use alloc::vec::Vec;

use super::link::Link;
use super::{DownReason, Event, Frontend, UplinkId, from_backend};
use crate::abi::DomId;
use crate::netback::{parse_mac, parse_mtu};
use crate::netif::Capabilities;
use crate::xenbus::{
    Backoff, FrontendAction, FrontendView, LookLimit, Online, State, Uplink, frontend_action,
};
use crate::xenstore::{
    ABSOLUTE_PATH_MAX, Client, Owner, Reply, Request, StoreError, Token, WatchEvent, children,
    decimal_u32,
};

/// Where dom0 makes our device directories, relative to our home.
const ROOT: &str = "device/vif";
const ROOT_TOKEN: Token = Token { owner: Owner::Netfront, id: 0, generation: 0 };
/// Id of the token of the watch on the backend's state; its generation is above 0.
const BACKEND_WATCH: u32 = 1;
/// Domain numbers from here on have special meanings (`DOMID_FIRST_RESERVED` of Xen public/xen.h).
const FIRST_RESERVED_DOMAIN: u32 = 0x7ff0;
/// Longest node name below the backend's directory, with its slash.
const NODE_NAME_MAX: usize = 32;
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

/// Nodes of our own directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnNode {
    State,
    Backend,
    BackendId,
    Mac,
    Mtu,
}

impl OwnNode {
    const ALL: [OwnNode; 5] =
        [OwnNode::State, OwnNode::Backend, OwnNode::BackendId, OwnNode::Mac, OwnNode::Mtu];

    fn name(self) -> &'static str {
        match self {
            OwnNode::State => "state",
            OwnNode::Backend => "backend",
            OwnNode::BackendId => "backend-id",
            OwnNode::Mac => "mac",
            OwnNode::Mtu => "mtu",
        }
    }
}

/// Nodes of the backend's directory that every look needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackNode {
    State,
    Online,
}

/// Nodes of the backend's directory that a connection needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    RxCopy,
    Ipv6Csum,
}

/// What the first step of a look found.
#[derive(Debug, Default)]
pub(super) struct OwnLook {
    values: [Option<Vec<u8>>; OwnNode::ALL.len()],
    failed: bool,
}

impl OwnLook {
    fn get(&self, node: OwnNode) -> Option<&[u8]> {
        self.values.get(node as usize)?.as_deref()
    }

    fn state(&self) -> State {
        self.get(OwnNode::State).map_or(State::Unknown, State::parse)
    }

    /// Path and domain of the backend, MAC address, MTU.
    fn parse(&self) -> Option<(Peer, [u8; 6], u16)> {
        let number = decimal_u32(self.get(OwnNode::BackendId)?)?;
        let dom = DomId(u16::try_from(number).ok().filter(|_| number < FIRST_RESERVED_DOMAIN)?);
        let path = core::str::from_utf8(self.get(OwnNode::Backend)?).ok()?;
        let home = alloc::format!("/local/domain/{}/", dom.0);
        let fits = path.len().saturating_add(NODE_NAME_MAX) <= ABSOLUTE_PATH_MAX;
        if !path.starts_with(&home) || !fits {
            return None;
        }
        let mac = parse_mac(self.get(OwnNode::Mac)?)?;
        let mtu = parse_mtu(self.get(OwnNode::Mtu))?;
        Some((Peer { path: String::from(path), dom }, mac, mtu))
    }
}

/// Where the backend is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    path: String,
    dom: DomId,
}

#[derive(Debug)]
enum Work {
    Idle,
    Own { left: usize, look: OwnLook },
    Back { left: usize, own: State, back: State, online: Online, failed: bool },
    Features { left: usize, rx_copy: bool, capabilities: Capabilities },
    Publishing { left: usize, failed: bool },
}

/// The watch on the backend's state.
#[derive(Debug)]
enum Watch {
    Absent,
    Present { path: String, token: Token },
    Refused,
}

/// One directory `device/vif/<devid>`.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) devid: u32,
    generation: u32,
    peer: Option<Peer>,
    mac: [u8; 6],
    mtu: u16,
    pub(super) own: State,
    pub(super) back: State,
    work: Work,
    again: bool,
    pub(super) dirty: bool,
    watch: Watch,
    look_at: Option<u64>,
    looks: LookLimit,
    backoff: Backoff,
    /// Closed on both sides; another device may take its place.
    parked: bool,
    pub(super) link: Option<Link>,
    pub(super) reason: Option<DownReason>,
}

impl Device {
    fn new(devid: u32, generation: u32) -> Device {
        Device {
            devid,
            generation,
            peer: None,
            mac: [0; 6],
            mtu: 0,
            own: State::Unknown,
            back: State::Unknown,
            work: Work::Idle,
            again: false,
            dirty: true,
            watch: Watch::Absent,
            look_at: None,
            looks: LookLimit::default(),
            backoff: Backoff::default(),
            parked: false,
            link: None,
            reason: None,
        }
    }

    pub(super) fn backend_dom(&self) -> Option<DomId> {
        self.peer.as_ref().map(|peer| peer.dom)
    }

    fn uplink(&self) -> Uplink {
        match &self.link {
            None => Uplink::None,
            Some(link) if link.up => Uplink::Established,
            Some(_) => Uplink::Published,
        }
    }

    fn path(&self, name: &str) -> String {
        alloc::format!("{ROOT}/{}/{name}", self.devid)
    }

    /// The device waits for nothing any more; marks it if something happened meanwhile.
    fn idle(&mut self) {
        self.work = Work::Idle;
        self.dirty |= core::mem::take(&mut self.again);
    }

    fn deadline(&self) -> Option<u64> {
        if !matches!(self.work, Work::Idle) || self.dirty {
            return None;
        }
        self.look_at.map(|due| due.max(self.looks.held_until()))
    }
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

    /// When [`Frontend::advance`] has to be called at the latest, in ns.
    pub fn next_deadline(&self) -> Option<u64> {
        let device = self.device.as_ref();
        let marked = self.list
            || self.successor.is_some()
            || device.is_some_and(|device| device.dirty && matches!(device.work, Work::Idle));
        let at_once = (marked && !self.store_full).then_some(self.now);
        let look = device.and_then(Device::deadline);
        let gate = self.link().and_then(|link| link.gate.deadline());
        [at_once, look, gate, self.retry_at].into_iter().flatten().min()
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
    fn ask_for_device(&mut self, store: &mut Client, what: What, request: Request<'_>) {
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

    fn recheck(&mut self) {
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

    fn drop_device(&mut self, reason: DownReason, store: &mut Client) {
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

    fn act(&mut self, action: FrontendAction, own: State, back: State, store: &mut Client) {
        let Some(device) = &mut self.device else { return };
        device.parked = action == FrontendAction::Nothing && own == State::Closed;
        if matches!(device.watch, Watch::Refused) {
            self.recheck();
        }
        match action {
            FrontendAction::Nothing => {}
            FrontendAction::Restart => self.restart(store),
            FrontendAction::Connect => self.read_features(store),
            FrontendAction::Up => self.go_up(),
            FrontendAction::Close => self.close(own, back, store),
            FrontendAction::Forget => self.drop_device(DownReason::Vanished, store),
        }
    }

    fn write(&mut self, what: What, name: &str, value: &str, store: &mut Client) {
        let Some(path) = self.device.as_ref().map(|device| device.path(name)) else { return };
        let request = Request::Write { path: &path, value: value.as_bytes() };
        self.ask_for_device(store, what, request);
    }

    /// Writes our state, and looks again: what follows must not depend on the echo of our own write.
    fn write_state(&mut self, state: State, store: &mut Client) {
        if let Some(device) = &mut self.device {
            device.own = state;
            device.dirty = true;
        }
        self.write(What::State, "state", state.as_str(), store);
    }

    fn restart(&mut self, store: &mut Client) {
        let now = self.now;
        let Some(device) = &mut self.device else { return };
        let due = device.backoff.next();
        if due > now {
            device.look_at = Some(due);
            return;
        }
        device.backoff.note_start(now);
        self.write_state(State::Initialising, store);
    }

    fn close(&mut self, own: State, back: State, store: &mut Client) {
        self.disconnect(DownReason::Backend);
        let alone = matches!(back, State::Closing | State::Closed | State::Unknown);
        if own != State::Closing && !alone {
            self.write_state(State::Closing, store);
        }
        self.write_state(State::Closed, store);
    }

    fn read_features(&mut self, store: &mut Client) {
        let Some(device) = &mut self.device else { return };
        let Some(peer) = device.peer.clone() else { return };
        // Blank IPv4 checksums need no feature of the backend.
        let capabilities = Capabilities { blank_ipv4: true, blank_ipv6: false };
        device.work = Work::Features { left: 2, rx_copy: false, capabilities };
        let features = [
            (Feature::RxCopy, "feature-rx-copy"),
            (Feature::Ipv6Csum, "feature-ipv6-csum-offload"),
        ];
        for (feature, name) in features {
            let path = alloc::format!("{}/{name}", peer.path);
            self.ask_for_device(store, What::Feature(feature), Request::Read { path: &path });
        }
    }

    fn take_feature(
        &mut self,
        feature: Feature,
        result: Result<Vec<u8>, StoreError>,
        store: &mut Client,
    ) {
        let Some(device) = &mut self.device else { return };
        let Work::Features { left, rx_copy, capabilities } = &mut device.work else { return };
        let offered = result.is_ok_and(|value| value == b"1");
        match feature {
            Feature::RxCopy => *rx_copy = offered,
            Feature::Ipv6Csum => capabilities.blank_ipv6 = offered,
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let (rx_copy, capabilities) = (*rx_copy, *capabilities);
        device.idle();
        if rx_copy {
            self.publish(capabilities, store);
        } else {
            device.reason = Some(DownReason::NoRxCopy);
            self.recheck();
        }
    }

    /// Makes the rings and writes where they are. State 4 follows when the store has taken all of it.
    fn publish(&mut self, capabilities: Capabilities, store: &mut Client) {
        self.generation = self.generation.wrapping_add(1);
        let id = UplinkId(self.generation);
        let (buffers, in_flight) = (self.config.rx_buffers, self.config.tx_in_flight);
        let Some(device) = &mut self.device else { return };
        let Some(dom) = device.backend_dom() else { return };
        let Some(mut link) = Link::new(id, dom, capabilities, in_flight) else {
            device.reason = Some(DownReason::Resources);
            return self.recheck();
        };
        from_backend::refill(&mut link, buffers);
        link.push();
        let number = |number: u32| alloc::format!("{number}");
        let nodes = [
            ("tx-ring-ref", number(link.tx.gref().0)),
            ("rx-ring-ref", number(link.rx.gref().0)),
            ("event-channel", number(link.port().0)),
            ("request-rx-copy", number(1)),
            ("feature-rx-notify", number(1)),
        ];
        device.link = Some(link);
        device.work = Work::Publishing { left: nodes.len(), failed: false };
        for (name, value) in nodes {
            self.write(What::Published, name, &value, store);
        }
    }

    fn take_published(&mut self, error: bool, store: &mut Client) {
        let Some(device) = &mut self.device else { return };
        let Work::Publishing { left, failed } = &mut device.work else { return };
        *failed |= error;
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        let failed = *failed;
        device.idle();
        if failed {
            self.totals.write_errors = self.totals.write_errors.saturating_add(1);
            self.disconnect(DownReason::Resources);
            self.recheck();
        } else {
            self.write_state(State::Connected, store);
        }
    }

    fn go_up(&mut self) {
        let Some(device) = &mut self.device else { return };
        let Some(link) = device.link.as_mut().filter(|link| !link.up) else { return };
        link.up = true;
        link.ready = true;
        device.reason = None;
        self.totals.up = self.totals.up.saturating_add(1);
        self.events.push_back(Event::Up {
            uplink: link.id,
            mac: device.mac,
            backend: link.peer,
            mtu: device.mtu,
            capabilities: link.capabilities,
        });
    }
}
