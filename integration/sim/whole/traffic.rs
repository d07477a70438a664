//! What modelled clients send and what comes back: entitled and not.

use super::model::{Flow, Key};
use super::packets::{self, Mark};
use super::rules::{DNS_PORT, ECHO, PORTS, Protocol, REMOTES, RESOLVERS, Target};
use super::watch::LIARS;
use crate::frames::{self, Ends};
use crate::world::World;

/// Turns in which a frame has to get through.
pub(crate) const PATIENCE: usize = 12;
/// Ports of a client that flows keep for long; others are those of TCP's attempts.
pub(crate) const FIRST_PORT: u16 = 41_000;
const KEPT_PORTS: u16 = 3;
/// Nobody sends there.
const STRANGER: [u8; 4] = [198, 18, 77, 7];

impl World {
    /// A modelled client that is there and awake.
    pub(crate) fn any_client(&mut self) -> Option<usize> {
        let awake: Vec<usize> = (0..self.clients.len())
            .filter(|which| {
                let client = &self.clients[*which];
                client.is_attached() && client.rests == 0
            })
            .collect();
        (!awake.is_empty()).then(|| awake[self.random.usize(0..awake.len())])
    }

    pub(crate) fn any_target(&mut self) -> Target {
        let remote = REMOTES[self.random.usize(0..REMOTES.len())];
        let port = PORTS[self.random.usize(0..PORTS.len())];
        match self.random.u32(0..20) {
            0..3 => Target { protocol: Protocol::Icmp, address: remote, port: ECHO.into() },
            3..5 => Target { protocol: Protocol::Tcp, address: remote, port },
            5..10 => {
                let name = self.random.usize(0..self.model.names.len());
                let addresses = &self.model.names[name].addresses;
                let address = addresses[self.random.usize(0..addresses.len())];
                Target { protocol: Protocol::Udp, address, port }
            }
            10 => {
                let address = LIARS[self.random.usize(0..LIARS.len())];
                Target { protocol: Protocol::Udp, address, port }
            }
            11 => Target { protocol: Protocol::Udp, address: RESOLVERS[0], port },
            _ => Target { protocol: Protocol::Udp, address: remote, port },
        }
    }

    pub(crate) fn any_key(&mut self, which: usize) -> Key {
        let target = self.any_target();
        let owner = self.clients[which].owner;
        let port = match target.protocol {
            Protocol::Tcp => self.random.u16(10_000..60_000),
            _ => FIRST_PORT + self.random.u16(0..KEPT_PORTS),
        };
        Key::of(owner, port, target)
    }

    fn marked(&mut self, owner: u8) -> (u32, Vec<u8>) {
        self.number += 1;
        let number = self.number as u32;
        let filler = vec![0x55; self.random.usize(0..900)];
        (number, [Mark(owner, number).bytes(), filler].concat())
    }

    fn client_frame(&mut self, which: usize, key: &Key) -> (u32, Vec<u8>) {
        let (number, mut payload) = self.marked(key.owner);
        if key.remote_port == DNS_PORT && !key.is_tcp {
            let name = super::names::text(self.random.usize(0..self.model.names.len()));
            payload = packets::question(number as u16, &name, Mark(key.owner, number));
        }
        let source = (self.model.sources[usize::from(self.clients[which].owner)].address, key.port);
        let ends = Ends { source, destination: (key.address, key.remote_port) };
        let macs = (frames::GATEWAY_MAC, frames::CLIENT_MAC);
        (number, packets::packet(key.target().protocol, macs, ends, &payload))
    }

    /// A client sends on a flow: what all rules accept leaves, and each slot is answered. Whether it left.
    pub(crate) fn sends(&mut self, which: usize, key: Key) -> Result<bool, String> {
        let (number, frame) = self.client_frame(which, &key);
        self.model.departs(number, key);
        let is_due = self.netvm.is_some() && self.model.must(&key);
        self.model.left.clear();
        if !self.clients[which].send(&frame) {
            return Ok(false);
        }
        let mut slots = 0;
        for _ in 0..PATIENCE {
            self.turns(1)?;
            slots += self.clients[which].answered();
            if slots > 0 && (self.model.left.contains(&number) || !is_due) {
                break;
            }
        }
        let has_left = self.model.left.contains(&number);
        if is_due && !has_left {
            let rules = self.model.rules_of(key.owner);
            return Err(format!("a packet of {key:?} did not leave: {rules}"));
        }
        if slots != 1 && self.netvm.is_some() {
            return Err(format!("{slots} answers to a slot of client {which}"));
        }
        Ok(has_left)
    }

    /// The other end of a flow sends: what stands gets its packet. Whether it did.
    pub(crate) fn answers(&mut self, key: Key) -> Result<bool, String> {
        let Some(flow) = self.model.flows.get(&key).copied() else { return Ok(false) };
        // A port that is another one's by now says nothing of this flow.
        if key.is_tcp || !self.model.has_port(&key) {
            return Ok(false);
        }
        let (number, payload) = self.marked(key.owner);
        let source = (key.address, key.remote_port);
        let ends = Ends { source, destination: (self.own, flow.port) };
        let macs = (frames::UPLINK_MAC, frames::GATEWAY_MAC);
        let frame = packets::packet(key.target().protocol, macs, ends, &payload);
        let client = self.clients.iter().find(|client| client.owner == key.owner);
        let can_get = client.is_some_and(|client| client.is_attached() && client.rests == 0);
        let is_due = can_get && self.model.stands(&key);
        self.model.returns(number, key);
        self.model.arrived.clear();
        if !self.deliver(&frame) {
            return Ok(false);
        }
        for _ in 0..PATIENCE {
            self.turns(1)?;
            if self.model.arrived.contains(&number) {
                return Ok(true);
            }
            if !is_due {
                break;
            }
        }
        if is_due {
            let rules = self.model.rules_of(key.owner);
            return Err(format!("an answer to {key:?} did not arrive: {rules}"));
        }
        Ok(false)
    }

    /// A client sends; often somebody answers.
    pub(crate) fn client_talks(&mut self) -> Result<(), String> {
        let Some(which) = self.any_client() else { return Ok(()) };
        let key = self.any_key(which);
        if self.sends(which, key)? && self.random.bool() {
            self.answers(key)?;
        }
        Ok(())
    }

    /// A flow that there is.
    pub(crate) fn any_flow(&mut self) -> Option<Key> {
        let count = self.model.flows.len();
        if count == 0 {
            return None;
        }
        let at = self.random.usize(0..count);
        self.model.flows.keys().nth(at).copied()
    }

    /// One of those that stand.
    pub(crate) fn any_standing(&mut self) -> Option<Key> {
        let stands = |key: &&Key| !key.is_tcp && self.model.stands(key);
        let all: Vec<Key> = self.model.flows.keys().filter(stands).copied().collect();
        (!all.is_empty()).then(|| all[self.random.usize(0..all.len())])
    }

    pub(crate) fn server_talks(&mut self) -> Result<(), String> {
        match self.any_flow() {
            Some(key) => self.answers(key).map(drop),
            None => Ok(()),
        }
    }

    /// A client asks a resolver.
    pub(crate) fn client_resolves(&mut self) -> Result<bool, String> {
        let Some(which) = self.any_client() else { return Ok(false) };
        let address = RESOLVERS[self.random.usize(0..RESOLVERS.len())];
        let target = Target { protocol: Protocol::Udp, address, port: DNS_PORT };
        let key = Key::of(self.clients[which].owner, FIRST_PORT + KEPT_PORTS, target);
        let has_left = self.sends(which, key)?;
        self.turns(2)?;
        Ok(has_left)
    }

    /// The other end of a flow that ended with its client goes on: the next client there gets nothing of it.
    pub(crate) fn ghost_answers(&mut self, key: Key, flow: Flow) -> Result<bool, String> {
        // A port that is another one's by now is his.
        if self.model.user_of(&key, &flow).is_some_and(|user| user != key) {
            return Ok(false);
        }
        let (number, payload) = self.marked(key.owner);
        self.model.returns(number, key);
        let source = (key.address, key.remote_port);
        let ends = Ends { source, destination: (self.own, flow.port) };
        let macs = (frames::UPLINK_MAC, frames::GATEWAY_MAC);
        let is_there = self.deliver(&packets::packet(key.target().protocol, macs, ends, &payload));
        self.turns(2)?;
        Ok(is_there)
    }

    /// Somebody outside sends to a port that nobody asked it to, or as somebody that it is not.
    pub(crate) fn unasked(&mut self) -> Result<bool, String> {
        let ghosts = self.model.ghosts.len();
        if ghosts > 0 && self.random.bool() {
            let ghost = self.model.ghosts.get(self.random.usize(0..ghosts)).copied();
            return ghost.map_or(Ok(false), |(key, flow)| self.ghost_answers(key, flow));
        }
        let Some(key) = self.any_flow() else { return Ok(false) };
        let Some(flow) = self.model.flows.get(&key).copied() else { return Ok(false) };
        let (_, payload) = self.marked(key.owner);
        let client = self.model.sources[usize::from(key.owner)].address;
        let (source, destination) = match self.random.u32(0..4) {
            // The flow's port, for another remote.
            0 => ((STRANGER, key.remote_port), (self.own, flow.port)),
            1 => ((key.address, key.remote_port ^ 0x4000), (self.own, flow.port)),
            // Straight to the client, and as another client.
            2 => ((key.address, key.remote_port), (client, key.port)),
            _ => ((self.model.sources[0].address, 4500), (self.own, flow.port)),
        };
        let macs = (frames::UPLINK_MAC, frames::GATEWAY_MAC);
        let frame = packets::packet(Protocol::Udp, macs, Ends { source, destination }, &payload);
        let is_there = self.deliver(&frame);
        self.turns(2)?;
        Ok(is_there)
    }

    /// A client sends as another one, and to another one.
    pub(crate) fn crosses(&mut self) -> Result<bool, String> {
        let Some(which) = self.any_client() else { return Ok(false) };
        let owner = usize::from(self.clients[which].owner);
        let others: Vec<[u8; 4]> = (0..self.model.sources.len())
            .filter(|other| *other != owner)
            .map(|other| self.model.sources[other].address)
            .collect();
        let other = others[self.random.usize(0..others.len())];
        let (own, target) = (self.model.sources[owner].address, self.any_target());
        let (number, payload) = self.marked(owner as u8);
        let port = FIRST_PORT;
        let (source, destination) = match self.random.bool() {
            true => ((other, port), (target.address, target.port)),
            false => ((own, port), (other, PORTS[0])),
        };
        let macs = (frames::GATEWAY_MAC, frames::CLIENT_MAC);
        let frame = packets::packet(Protocol::Udp, macs, Ends { source, destination }, &payload);
        // Nothing of it may leave: a flight that nobody has.
        let is_there = self.clients[which].send(&frame);
        self.turns(3)?;
        if self.model.left.contains(&number) {
            return Err("a client's packet to another one left".into());
        }
        Ok(is_there)
    }
}
