//! A client whose rules change: it is attached and goes, and sends what it likes.

use xen::DomId;
use xen::fake;
use xen::fake::vif::{Guest, attach_client, detach_client};
use xen::netif::{RxFlags, TxFlags};

use super::model::Model;
use crate::frames;
use crate::world::World;

/// Receive buffers that it keeps posted.
const BUFFERS: usize = 32;
/// Turns in which a vif connects.
const PATIENCE: usize = 60;

pub(crate) struct Client {
    pub(crate) owner: u8,
    address: [u8; 4],
    /// A domain number of its own each time.
    domain: DomId,
    guest: Option<Guest>,
    /// It does nothing for so many steps.
    pub(crate) rests: u32,
    /// Receive buffers to be posted again.
    owed: usize,
}

impl Client {
    pub(crate) fn new(owner: u8, address: [u8; 4], domain: DomId) -> Self {
        Self { owner, address, domain, guest: None, rests: 0, owed: 0 }
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.guest.is_some()
    }

    /// Sends a frame, if it can.
    pub(crate) fn send(&mut self, frame: &[u8]) -> bool {
        let Some(guest) = &mut self.guest else { return false };
        guest.responses();
        guest.send(frame, TxFlags(0));
        true
    }

    /// That so many of its slots were answered since it sent.
    pub(crate) fn answered(&mut self) -> usize {
        self.guest.as_mut().map_or(0, |guest| guest.responses().len())
    }

    /// Looks at what has come.
    pub(crate) fn look(&mut self, model: &mut Model) -> Result<(), String> {
        let Some(guest) = &mut self.guest else { return Ok(()) };
        let got = guest.received();
        self.owed += got.len();
        for (response, mut frame) in got.iter().cloned() {
            if response.flags.has(RxFlags::CSUM_BLANK) {
                frames::complete(&mut frame);
            }
            model.check_in(self.owner, &frame)?;
        }
        if self.rests == 0 && self.owed > 0 {
            guest.post(std::mem::take(&mut self.owed));
        }
        Ok(())
    }
}

impl World {
    fn client_state(&self, which: usize) -> Option<String> {
        self.unit.store.read(&format!("backend/vif/{}/0/state", self.clients[which].domain.0))
    }

    /// The client's VM starts.
    pub(crate) fn attach(&mut self, which: usize) -> Result<(), String> {
        let client = &mut self.clients[which];
        client.domain = DomId(self.next_domain);
        self.next_domain += 1;
        let (domain, [a, b, c, d]) = (client.domain, client.address);
        fake::peer(domain);
        attach_client(&mut self.unit.store, domain, 0, &format!("{a}.{b}.{c}.{d}"));
        self.turns(4)?;
        let guest = Guest::new(domain, 0);
        guest.publish(&mut self.unit.store);
        for _ in 0..PATIENCE {
            if self.client_state(which).as_deref() == Some("4") {
                break;
            }
            self.turns(1)?;
        }
        if self.client_state(which).as_deref() != Some("4") {
            return Err(format!("client {which} cannot connect: {:?}", self.client_state(which)));
        }
        let client = &mut self.clients[which];
        (client.guest, client.rests, client.owed) = (Some(guest), 0, 0);
        client.guest.as_mut().expect("just made").post(BUFFERS);
        self.turns(2)
    }

    /// It goes: by the toolstack, or killed.
    pub(crate) fn detach(&mut self, which: usize, is_killed: bool) -> Result<(), String> {
        let client = &mut self.clients[which];
        let (owner, domain) = (client.owner, client.domain);
        let Some(guest) = client.guest.take() else { return Ok(()) };
        let front = format!("/local/domain/{}/device", domain.0);
        if is_killed {
            guest.peer.die();
            self.unit.store.remove(&front);
        } else {
            guest.set(&mut self.unit.store, "state", "6");
        }
        detach_client(&mut self.unit.store, domain, 0);
        self.pass(2500)?;
        self.unit.store.remove(&front);
        self.unit.store.remove(&format!("backend/vif/{}", domain.0));
        self.turns(4)?;
        guest.peer.die();
        self.turns(4)?;
        self.model.forget_flows(|of| of == owner);
        Ok(())
    }
}
