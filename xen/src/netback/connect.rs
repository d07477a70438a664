//! The life cycle of one vif in xenstore: look, decide, act.
//!
//! Every event only marks a vif. When its turn comes all nodes that matter are read anew, in one pipeline, and
//! `xenbus::backend_action` decides on what was found. A further event meanwhile leads to a further look. So the
//! state that a peer jumps through, and in which order, does not matter; only what is there at the look does.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::identity::{RawIdentity, RawSettings, Setting, frontend_path};
use super::link::Link;
use super::{CloseReason, Identity, VifId};
use crate::abi::DomId;
use crate::xenbus::{BackendView, Backoff, Grace, LookLimit, Online, Rings, State};
use crate::xenstore::{StoreError, Token};

/// How long an unresponsive frontend may delay the removal of its device, in ns. A client that dom0 destroys is paused
/// at this point and cannot react, so that every `destroy` takes as long; a running one reacts within milliseconds.
pub(super) const GRACE_NS: u64 = 1_000_000_000;
/// How long state 6 stays visible before the directory goes, in ns: libxl waits for the value first, and calls it an error when it
/// finds nothing (`devstate_watch_callback` in its libxl_aoutils.c). A dom0 that gets little of its processor may take longer to
/// look than 150 ms, which it had before; whoever waits for the device to go waits as long.
pub(super) const REMOVE_NS: u64 = 500_000_000;
/// Pause before another look where no event announces a change, in ns.
pub(super) const RECHECK_NS: u64 = 500_000_000;

/// Nodes of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    State,
    Online,
    FrontState,
    Frontend,
    FrontendId,
    Mac,
    Ip,
    Mtu,
}

impl Node {
    /// What matters while the rings are attached.
    pub(super) const ATTACHED: &'static [Node] = &[Node::State, Node::Online, Node::FrontState];
    /// What matters otherwise.
    pub(super) const DETACHED: &'static [Node] = &[
        Node::State,
        Node::Online,
        Node::FrontState,
        Node::Frontend,
        Node::FrontendId,
        Node::Mac,
        Node::Ip,
        Node::Mtu,
    ];

    fn name(self) -> &'static str {
        match self {
            Node::State | Node::FrontState => "state",
            Node::Online => "online",
            Node::Frontend => "frontend",
            Node::FrontendId => "frontend-id",
            Node::Mac => "mac",
            Node::Ip => "ip",
            Node::Mtu => "mtu",
        }
    }

    pub(super) fn path(self, dom: DomId, devid: u32) -> String {
        let name = self.name();
        match self {
            Node::FrontState => alloc::format!("{}/{name}", frontend_path(dom, devid)),
            _ => backend_path(dom, devid, name),
        }
    }
}

/// The backend's directory of a vif, relative to our home.
pub(super) fn vif_path(dom: DomId, devid: u32) -> String {
    alloc::format!("backend/vif/{}/{devid}", dom.0)
}

/// A node in it.
pub(super) fn backend_path(dom: DomId, devid: u32, name: &str) -> String {
    alloc::format!("{}/{name}", vif_path(dom, devid))
}

/// What a look found.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) own: State,
    pub(super) online: Online,
    pub(super) front: State,
    pub(super) identity: RawIdentity,
    /// The store could not say; nothing follows from this look.
    pub(super) failed: bool,
}

impl Look {
    pub(super) fn new() -> Look {
        Look {
            own: State::Unknown,
            online: Online::No,
            front: State::Unknown,
            identity: RawIdentity::default(),
            failed: false,
        }
    }

    pub(super) fn set(&mut self, node: Node, result: Result<Vec<u8>, StoreError>) {
        let value = match result {
            Ok(value) => value,
            Err(StoreError::NotFound | StoreError::Denied) => return,
            Err(_) => {
                self.failed = true;
                return;
            }
        };
        match node {
            Node::State => self.own = State::parse(&value),
            Node::Online => self.online = if value == b"1" { Online::Yes } else { Online::No },
            Node::FrontState => self.front = State::parse(&value),
            Node::Frontend => self.identity.frontend = Some(value),
            Node::FrontendId => self.identity.frontend_id = Some(value),
            Node::Mac => self.identity.mac = Some(value),
            Node::Ip => self.identity.ip = Some(value),
            Node::Mtu => self.identity.mtu = Some(value),
        }
    }
}

/// What a vif waits for from the store.
#[derive(Debug)]
pub(super) enum Work {
    Idle,
    Looking {
        left: usize,
        look: Look,
    },
    Settings {
        left: usize,
        raw: RawSettings,
        identity: Identity,
        front: State,
    },
    /// The node is on its way without which nothing is offered.
    Offering,
    Removing,
}

/// Which features are in a vif's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    Nothing,
    All,
    /// All were, when the frontend connected; their nodes have made room for others.
    TakenBack,
    /// No more than a frontend needs: the quota allows nothing else.
    Few,
}

/// The watch on the frontend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    Absent,
    Present,
    /// A quota forbids it: look every [`RECHECK_NS`].
    Refused,
}

/// One directory `backend/vif/<dom>/<devid>`.
#[derive(Debug)]
pub(super) struct Vif {
    pub(super) dom: DomId,
    pub(super) devid: u32,
    pub(super) token: Token,
    pub(super) work: Work,
    /// An event came while the store was being asked.
    pub(super) again: bool,
    pub(super) watch: Watch,
    pub(super) state: State,
    pub(super) grace_until: Option<u64>,
    pub(super) remove_at: Option<u64>,
    pub(super) look_at: Option<u64>,
    pub(super) backoff: Backoff,
    /// The identity was refused; nothing is offered until dom0 makes the directory anew.
    pub(super) refused: bool,
    pub(super) offered: Offered,
    looks: LookLimit,
    pub(super) link: Option<Link>,
    pub(super) reason: Option<CloseReason>,
}

impl Vif {
    fn new(dom: DomId, devid: u32, token: Token) -> Vif {
        Vif {
            dom,
            devid,
            token,
            work: Work::Idle,
            again: false,
            watch: Watch::Absent,
            state: State::Unknown,
            grace_until: None,
            remove_at: None,
            look_at: None,
            backoff: Backoff::default(),
            refused: false,
            offered: Offered::Nothing,
            looks: LookLimit::default(),
            link: None,
            reason: None,
        }
    }

    pub(super) fn front_state_path(&self) -> String {
        Node::FrontState.path(self.dom, self.devid)
    }

    pub(super) fn view(&self, look: &Look, now: u64) -> BackendView {
        let over = self.grace_until.is_some_and(|until| until <= now);
        BackendView {
            own: look.own,
            online: look.online,
            front: look.front,
            rings: if self.link.is_some() { Rings::Attached } else { Rings::None },
            grace: if over { Grace::Over } else { Grace::Running },
        }
    }

    /// Whether the vif may look now; otherwise it looks later.
    pub(super) fn may_look(&mut self, now: u64) -> bool {
        let later = self.looks.take(now);
        self.look_at = later;
        later.is_none()
    }

    /// Whether the store or time will have something to say about it.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.work, Work::Idle) && self.deadline().is_none()
    }

    /// Earliest time at which another look is due without an event; none while one is under way.
    pub(super) fn deadline(&self) -> Option<u64> {
        if !matches!(self.work, Work::Idle) {
            return None;
        }
        let due = [self.grace_until, self.remove_at, self.look_at].into_iter().flatten().min();
        due.map(|due| due.max(self.looks.held_until()))
    }
}

/// Path of a setting in the frontend's directory.
pub(super) fn setting_path(dom: DomId, devid: u32, setting: Setting) -> String {
    alloc::format!("{}/{}", frontend_path(dom, devid), setting.name())
}

/// All vifs, by slot and by name.
#[derive(Debug)]
pub(super) struct Vifs {
    slots: Vec<Option<Vif>>,
    most: usize,
    names: BTreeMap<(DomId, u32), usize>,
    free: Vec<usize>,
}

impl Vifs {
    pub(super) fn new(most: usize) -> Vifs {
        Vifs { slots: Vec::new(), most, names: BTreeMap::new(), free: Vec::new() }
    }

    pub(super) fn find(&self, dom: DomId, devid: u32) -> Option<usize> {
        self.names.get(&(dom, devid)).copied()
    }

    /// Makes a vif; `None` when there are too many. `token` gets the slot.
    pub(super) fn insert(
        &mut self,
        dom: DomId,
        devid: u32,
        token: impl FnOnce(u32) -> Token,
    ) -> Option<usize> {
        let slot = self.free.pop().or_else(|| {
            let next = self.slots.len();
            (next < self.most).then(|| {
                self.slots.push(None);
                next
            })
        })?;
        let place = self.slots.get_mut(slot)?;
        *place = Some(Vif::new(dom, devid, token(u32::try_from(slot).ok()?)));
        self.names.insert((dom, devid), slot);
        Some(slot)
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Vif> {
        let vif = self.slots.get_mut(slot)?.take()?;
        self.names.remove(&(vif.dom, vif.devid));
        self.free.push(slot);
        Some(vif)
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Vif> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Vif> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn link(&self, id: VifId) -> Option<&Link> {
        self.get(id.slot())?.link.as_ref().filter(|link| link.id == id)
    }

    pub(super) fn link_mut(&mut self, id: VifId) -> Option<&mut Link> {
        self.get_mut(id.slot())?.link.as_mut().filter(|link| link.id == id)
    }

    /// Slots in use, with their vifs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Vif)> {
        self.slots.iter().enumerate().filter_map(|(slot, vif)| Some((slot, vif.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Vif> {
        self.slots.iter_mut().filter_map(Option::as_mut)
    }

    /// Slots that were ever in use at the same time; all numbers are below.
    pub(super) fn bound(&self) -> usize {
        self.slots.len()
    }
}
