//! What the frontend does about its device: restart, publish rings, go up, close.

use alloc::vec::Vec;

use super::connect::What;
use super::device::{Feature, Watch, Work};
use super::link::Link;
use super::{DownReason, Event, Frontend, UplinkId};
use crate::mem::ledger;
use crate::netif::Capabilities;
use crate::xenbus::{FrontendAction, State};
use crate::xenstore::{Client, Request, StoreError};

impl Frontend {
    pub(super) fn act(
        &mut self,
        action: FrontendAction,
        own: State,
        back: State,
        store: &mut Client,
    ) {
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
    pub(super) fn write_state(&mut self, state: State, store: &mut Client) {
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
        let capabilities = Capabilities { blank_ipv4: true, ..Capabilities::NONE };
        let features = Feature::needed(self.config.offloads);
        device.work = Work::Features {
            left: features.len(),
            rx_copy: false,
            takes_chains: false,
            capabilities,
        };
        for feature in features {
            let path = alloc::format!("{}/{}", peer.path, feature.name());
            self.ask_for_device(store, What::Feature(*feature), Request::Read { path: &path });
        }
    }

    pub(super) fn take_feature(
        &mut self,
        feature: Feature,
        result: Result<Vec<u8>, StoreError>,
        store: &mut Client,
    ) {
        let Some(device) = &mut self.device else { return };
        let Work::Features { left, rx_copy, takes_chains, capabilities } = &mut device.work else {
            return;
        };
        let offered = result.is_ok_and(|value| value == b"1");
        match feature {
            Feature::RxCopy => *rx_copy = offered,
            Feature::Ipv6Csum => capabilities.blank_ipv6 = offered,
            Feature::Sg => *takes_chains = offered,
            Feature::GsoTcpV4 => capabilities.gso_tcpv4 = offered,
            Feature::GsoTcpV6 => capabilities.gso_tcpv6 = offered,
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return;
        }
        // A super-frame comes in several slots and without its checksum.
        capabilities.gso_tcpv4 &= *takes_chains;
        capabilities.gso_tcpv6 &= *takes_chains && capabilities.blank_ipv6;
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
        let config = self.config;
        let Some(device) = &mut self.device else { return };
        let Some(dom) = device.backend_dom() else { return };
        let booked = ledger::enter_for(ledger::Part::Netfront, ledger::Owner::Uplink);
        let link = Link::new(id, dom, capabilities, &config);
        drop(booked);
        let Some(link) = link else {
            device.reason = Some(DownReason::Resources);
            return self.recheck();
        };
        let number = |number: u32| alloc::format!("{number}");
        let nodes = [
            ("tx-ring-ref", number(link.tx.gref().0)),
            ("rx-ring-ref", number(link.rx.gref().0)),
            ("event-channel", number(link.port().0)),
            ("request-rx-copy", number(1)),
            ("feature-rx-notify", number(1)),
        ];
        // What we take from the backend.
        let offloads: &[&str] = if config.offloads {
            &["feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload"]
        } else {
            &[]
        };
        device.link = Some(link);
        let left = nodes.len().saturating_add(offloads.len());
        device.work = Work::Publishing { left, failed: false };
        for (name, value) in nodes {
            self.write(What::Published, name, &value, store);
        }
        for name in offloads {
            self.write(What::Published, name, "1", store);
        }
    }

    pub(super) fn take_published(&mut self, error: bool, store: &mut Client) {
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

    /// The backend is in state 4. Only now are receive buffers posted, by the next [`Frontend::flush`].
    ///
    /// A Linux backend whose frontend uses one event channel starts its receive thread before it binds the channel, and
    /// notes the interrupt's number after that. If buffers are there already, the event that Xen raises at the binding
    /// counts as work for that thread, which then ends the interrupt by a number that is not noted yet: the end is lost,
    /// the channel stays masked, and no frame of ours is ever taken. Seen with Linux 6.12 as one interrupt in 90 s for 72
    /// frames on the ring, the thread's work done; that the number was missing is inferred from the driver's text.
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
