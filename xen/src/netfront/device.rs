//! The uplink's device: what a look at its nodes found, and what it waits for.

use alloc::string::String;
use alloc::vec::Vec;

use super::DownReason;
use super::link::Link;
use crate::abi::DomId;
use crate::netback::{parse_mac, parse_mtu};
use crate::netif::Capabilities;
use crate::xenbus::{Backoff, LookLimit, Online, State, Uplink};
use crate::xenstore::{ABSOLUTE_PATH_MAX, Token, decimal_u32};

/// Where dom0 makes our device directories, relative to our home.
pub(super) const ROOT: &str = "device/vif";
/// Domain numbers from here on have special meanings (`DOMID_FIRST_RESERVED` of Xen public/xen.h).
const FIRST_RESERVED_DOMAIN: u32 = 0x7ff0;
/// Longest node name below the backend's directory, with its slash.
const NODE_NAME_MAX: usize = 32;

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
    pub(super) const ALL: [OwnNode; 5] =
        [OwnNode::State, OwnNode::Backend, OwnNode::BackendId, OwnNode::Mac, OwnNode::Mtu];

    pub(super) fn name(self) -> &'static str {
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
    Sg,
    GsoTcpV4,
    GsoTcpV6,
}

impl Feature {
    const PLAIN: [Feature; 2] = [Feature::RxCopy, Feature::Ipv6Csum];
    const ALL: [Feature; 5] =
        [Feature::RxCopy, Feature::Ipv6Csum, Feature::Sg, Feature::GsoTcpV4, Feature::GsoTcpV6];

    /// What a connection depends on. Without offloads nobody asks whether the backend takes super-frames.
    pub(super) fn needed(offloads: bool) -> &'static [Feature] {
        if offloads { &Feature::ALL } else { &Feature::PLAIN }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Feature::RxCopy => "feature-rx-copy",
            Feature::Ipv6Csum => "feature-ipv6-csum-offload",
            Feature::Sg => "feature-sg",
            Feature::GsoTcpV4 => "feature-gso-tcpv4",
            Feature::GsoTcpV6 => "feature-gso-tcpv6",
        }
    }
}

/// What the first step of a look found.
#[derive(Debug, Default)]
pub(super) struct OwnLook {
    pub(super) values: [Option<Vec<u8>>; OwnNode::ALL.len()],
    pub(super) failed: bool,
}

impl OwnLook {
    pub(super) fn get(&self, node: OwnNode) -> Option<&[u8]> {
        self.values.get(node as usize)?.as_deref()
    }

    pub(super) fn state(&self) -> State {
        self.get(OwnNode::State).map_or(State::Unknown, State::parse)
    }

    /// Path and domain of the backend, MAC address, MTU.
    pub(super) fn parse(&self) -> Option<(Peer, [u8; 6], u16)> {
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
    pub(super) path: String,
    pub(super) dom: DomId,
}

#[derive(Debug)]
pub(super) enum Work {
    Idle,
    Own { left: usize, look: OwnLook },
    Back { left: usize, own: State, back: State, online: Online, failed: bool },
    Features { left: usize, rx_copy: bool, takes_chains: bool, capabilities: Capabilities },
    Publishing { left: usize, failed: bool },
}

/// The watch on the backend's state.
#[derive(Debug)]
pub(super) enum Watch {
    Absent,
    Present { path: String, token: Token },
    Refused,
}

/// One directory `device/vif/<devid>`.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) devid: u32,
    pub(super) generation: u32,
    pub(super) peer: Option<Peer>,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    pub(super) own: State,
    pub(super) back: State,
    pub(super) work: Work,
    pub(super) again: bool,
    pub(super) dirty: bool,
    pub(super) watch: Watch,
    pub(super) look_at: Option<u64>,
    pub(super) looks: LookLimit,
    pub(super) backoff: Backoff,
    /// Closed on both sides; another device may take its place.
    pub(super) parked: bool,
    pub(super) link: Option<Link>,
    pub(super) reason: Option<DownReason>,
}

impl Device {
    pub(super) fn new(devid: u32, generation: u32) -> Device {
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

    pub(super) fn uplink(&self) -> Uplink {
        match &self.link {
            None => Uplink::None,
            Some(link) if link.up => Uplink::Established,
            Some(_) => Uplink::Published,
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        alloc::format!("{ROOT}/{}/{name}", self.devid)
    }

    /// The device waits for nothing any more; marks it if something happened meanwhile.
    pub(super) fn idle(&mut self) {
        self.work = Work::Idle;
        self.dirty |= core::mem::take(&mut self.again);
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        if !matches!(self.work, Work::Idle) || self.dirty {
            return None;
        }
        self.look_at.map(|due| due.max(self.looks.held_until()))
    }
}
