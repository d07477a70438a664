//! A NetVM that is a client of ours: the uplink is one of our own vifs. Everywhere else it is the uplink; only here and
//! at the two ends of `pipeline::handle` it is known that its frames come from and go to a client slot.

use crate::clients::ClientPort;
use crate::firewall::{AttachError, Firewall};
use crate::port::{ClientId, Origin, PortId};
use crate::time::Instant;
use crate::uplink::Uplink;
use crate::verdict::{DropReason, Fate};

/// The vifs of a NetVM that is a client of ours. An HVM has a second one, which its stub domain emulates; the one that
/// sent last is in use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct NetvmVifs {
    vifs: [Option<(ClientId, ClientPort)>; 2],
    in_use: usize,
}

impl NetvmVifs {
    /// Whether the vif is one of them.
    pub(crate) fn contains(&self, id: ClientId) -> bool {
        self.vifs.iter().flatten().any(|(known, _)| *known == id)
    }

    /// Whether there is none: the uplink is no client.
    pub(crate) fn is_empty(&self) -> bool {
        self.vifs.iter().all(Option::is_none)
    }

    /// The vif that is used.
    pub(crate) fn in_use(&self) -> Option<(ClientId, ClientPort)> {
        self.vifs.get(self.in_use).copied().flatten()
    }

    /// Adds a vif; false if there is no room. The first one is used until another one sends.
    pub(crate) fn add(&mut self, id: ClientId, port: ClientPort) -> bool {
        let Some(free) = self.vifs.iter_mut().find(|vif| vif.is_none()) else { return false };
        *free = Some((id, port));
        if self.in_use().is_none() {
            self.choose(|_| true);
        }
        true
    }

    pub(crate) fn remove(&mut self, id: ClientId) {
        for vif in &mut self.vifs {
            *vif = vif.filter(|(known, _)| *known != id);
        }
        if self.in_use().is_none() {
            self.choose(|_| true);
        }
    }

    /// Uses the vif; false if it was used already.
    pub(crate) fn choose_sender(&mut self, id: ClientId) -> bool {
        let before = self.in_use;
        self.choose(|known| known == id);
        before != self.in_use
    }

    fn choose(&mut self, is_it: impl Fn(ClientId) -> bool) {
        let found = self.vifs.iter().position(|vif| vif.is_some_and(|(id, _)| is_it(id)));
        self.in_use = found.unwrap_or(self.in_use);
    }
}

impl Firewall {
    /// Attaches a vif whose client is the NetVM: its frames are those of the uplink, and packets for the world go there.
    ///
    /// # Errors
    /// If the slot does not exist or is in use, or the NetVM has two vifs already.
    pub fn attach_netvm(
        &mut self,
        now: Instant,
        id: ClientId,
        port: &ClientPort,
    ) -> Result<(), AttachError> {
        if !self.clients.has_slot(id) {
            return Err(AttachError::NoSuchSlot);
        }
        self.epoch.advance();
        let is_taken = self.clients.attached(id).is_some() || self.netvm.contains(id);
        if is_taken || !self.netvm.add(id, *port) {
            return Err(AttachError::SlotTaken);
        }
        if let Some((in_use, port)) = self.netvm.in_use()
            && in_use == id
        {
            self.uplink = Some(Uplink::of_client(now, &port));
        }
        Ok(())
    }

    /// Detaches a vif of the NetVM; false if it is none. Flows stay: a NetVM that restarts finds them again.
    pub(crate) fn detach_netvm(&mut self, id: ClientId) -> bool {
        let is_known = self.netvm.contains(id);
        if is_known {
            self.netvm.remove(id);
            self.use_vif_of_netvm();
        }
        is_known
    }

    /// Whether packets for the world have a device to go to.
    #[must_use]
    pub fn has_uplink(&self) -> bool {
        self.uplink.is_some()
    }

    /// The side that a frame comes from; nothing if the uplink is elsewhere.
    pub(crate) fn side_of(&self, origin: Origin) -> Option<Origin> {
        match origin {
            Origin::Client(id) if self.netvm.contains(id) => Some(Origin::Uplink),
            Origin::Uplink if self.netvm.in_use().is_some() => None,
            _ => Some(origin),
        }
    }

    pub(crate) fn no_such_port(&mut self, origin: Origin) -> Fate {
        self.stats.count_drop(origin, DropReason::UnknownPort);
        self.drops.note_bare(&self.clients, origin, DropReason::UnknownPort);
        Fate::Drop(DropReason::UnknownPort)
    }

    /// Notes which vif the NetVM uses: the one that sends what is not refused.
    pub(crate) fn note_vif_of_netvm(&mut self, origin: Origin, fate: Fate) {
        if let Origin::Client(id) = origin
            && !matches!(fate, Fate::Drop(_))
            && self.netvm.contains(id)
            && self.netvm.choose_sender(id)
        {
            self.use_vif_of_netvm();
        }
    }

    /// The port that stands for one of the sides.
    pub(crate) fn port_of(&self, side: PortId) -> PortId {
        match (side, self.netvm.in_use()) {
            (PortId::Uplink, Some((id, _))) => PortId::Client(id),
            _ => side,
        }
    }

    fn use_vif_of_netvm(&mut self) {
        let vif = self.netvm.in_use();
        self.uplink = self.uplink.zip(vif).map(|(uplink, (_, port))| uplink.moved_to(&port));
    }
}
