//! The appliance as it is in the image, its neighbours, and what it may never do.

use std::net::Ipv4Addr;

use firewall::Limits;
use xen::fake;
use xen::fake::vif::{Guest, NetVm, attach_client, attach_uplink, detach_client};
use xen::mem::ledger::{self, Part, Use};
use xen::netif::{RxFlags, TxFlags};
use xen::{DomId, event, grant, mem};

use crate::double;
use crate::frames::{self, Ends};

const NETVM: DomId = DomId(2);
const CLIENT: DomId = DomId(5);
const MS: u64 = 1_000_000;
/// Rules of the client, apart from the one that its packet needs: enough for tables of several pages.
const RULES: usize = 150;
/// A port that no rule allows.
const FORBIDDEN_PORT: u16 = 80;
/// Turns for a packet to get through.
const PATIENCE: usize = 12;

/// Everything that is counted, but for the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Books {
    /// Bytes and blocks of each part.
    parts: Vec<(&'static str, usize, usize)>,
    grants: usize,
    quarantined: usize,
    free_pages: usize,
    ports: usize,
    watches: usize,
}

pub(crate) struct Appliance {
    pub(crate) unit: double::Appliance,
    netvm: Option<NetVm>,
    guest: Option<Guest>,
    /// What the client may send to; the other ports are forbidden at the time.
    is_open: bool,
    /// What has left to the uplink, the last of it.
    left: Option<Ends>,
    number: u64,
}

impl Appliance {
    /// With all tables, before anything else has happened.
    pub(crate) fn start() -> Self {
        let limits = Limits {
            clients: 8,
            addresses: 32,
            flows: 256,
            flows_per_client: 64,
            fragment_bytes: 65536,
        };
        let mut unit = double::Appliance::boot(limits);
        unit.dom0.set("/connected-ips", "10.137.0.10");
        unit.dom0.set("/connected-ips6", "");
        // As many digits from the first cycle to the last.
        unit.dom0.set("/qubes-firewall-handled/10.137.0.10", "100000");
        Self { unit, netvm: None, guest: None, is_open: false, left: None, number: 0 }
    }

    /// Allows or forbids the client's packets.
    pub(crate) fn set_rules(&mut self, is_open: bool) {
        let number = self.number;
        let mut rules: Vec<String> = (0..RULES)
            .map(|rule| {
                let net = Ipv4Addr::from(0xc0a8_0000 | (rule as u32) << 4);
                format!(
                    "action=accept proto=tcp dst4={net}/28 dstports={}-{}",
                    rule + 1,
                    9000 + number
                )
            })
            .collect();
        rules.push("action=accept dsthost=www.example.org proto=tcp".into());
        let action = if is_open { "accept" } else { "drop" };
        rules.push(format!("action={action} proto=udp dstports={0}-{0}", frames::SERVER_PORT));
        self.unit.dom0.set_rules("10.137.0.10", "drop", &rules);
        // What is allowed may still be refused for a while; what is forbidden not yet be so: see `forbid`.
        self.is_open |= is_open;
    }

    /// From here on nothing may leave.
    pub(crate) fn forbid(&mut self) {
        self.is_open = false;
    }

    pub(crate) fn turns(&mut self, count: usize) -> Result<(), String> {
        (0..count).try_for_each(|_| self.turn(MS))
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, ms: u64) -> Result<(), String> {
        let end = fake::now_ns() + ms * MS;
        while fake::now_ns() < end {
            self.turn((end - fake::now_ns()).min(100 * MS))?;
        }
        Ok(())
    }

    /// Turns until something is so; `false`: it never was.
    pub(crate) fn wait(
        &mut self,
        seconds: u64,
        is_so: impl Fn(&mut Self) -> bool,
    ) -> Result<bool, String> {
        let end = fake::now_ns() + seconds * 1000 * MS;
        while fake::now_ns() < end {
            if is_so(self) {
                return Ok(true);
            }
            self.turn(20 * MS)?;
        }
        Ok(is_so(self))
    }

    fn turn(&mut self, at_most_ns: u64) -> Result<(), String> {
        match self.unit.turn(at_most_ns) {
            Ok(None) => self.take_sent(),
            Ok(Some(stop)) => Err(self.told(format!("it stops: {stop:?}"))),
            Err(problem) => Err(self.told(problem)),
        }
    }

    /// A problem with what the appliance said last.
    pub(crate) fn told(&self, problem: String) -> String {
        format!("{problem}\nit said:\n{}", self.unit.said())
    }

    pub(crate) fn attach_uplink(&mut self) -> Result<bool, String> {
        attach_uplink(&mut self.unit.store, NETVM, 0);
        self.turns(4)?;
        fake::peer(NETVM);
        NetVm::offer(&mut self.unit.store, NETVM, 0);
        let is_published =
            |this: &mut Self| this.unit.store.read("device/vif/0/state").as_deref() == Some("4");
        if !self.wait(15, is_published)? {
            return Ok(false);
        }
        self.netvm = Some(NetVm::connect(&mut self.unit.store, NETVM, 0));
        self.turns(10)?;
        Ok(true)
    }

    /// The NetVM is gone, with all that it had.
    pub(crate) fn remove_uplink(&mut self) -> Result<(), String> {
        if let Some(netvm) = self.netvm.take() {
            let directory = netvm.directory.clone();
            netvm.peer.die();
            drop(netvm);
            self.unit.store.remove(&directory);
        }
        self.unit.store.remove(&NetVm::directory(NETVM, 0));
        self.unit.store.remove("device/vif/0");
        self.pass(1500)
    }

    pub(crate) fn attach_client(&mut self) -> Result<bool, String> {
        fake::peer(CLIENT);
        attach_client(&mut self.unit.store, CLIENT, 0, "10.137.0.10");
        self.turns(4)?;
        let guest = Guest::new(CLIENT, 0);
        guest.publish(&mut self.unit.store);
        self.guest = Some(guest);
        let is_connected =
            |this: &mut Self| this.unit.store.read("backend/vif/5/0/state").as_deref() == Some("4");
        if !self.wait(15, is_connected)? {
            return Ok(false);
        }
        if let Some(guest) = &mut self.guest {
            guest.post(16);
        }
        self.turns(4)?;
        Ok(true)
    }

    pub(crate) fn remove_client(&mut self) -> Result<(), String> {
        let Some(guest) = self.guest.take() else { return Ok(()) };
        guest.set(&mut self.unit.store, "state", "6");
        detach_client(&mut self.unit.store, CLIENT, 0);
        self.pass(2500)?;
        self.unit.store.remove("/local/domain/5/device");
        self.unit.store.remove("backend/vif/5");
        self.turns(4)?;
        guest.peer.die();
        self.pass(100)
    }

    /// The client sends to the allowed and to a forbidden port; whether the first one got through.
    pub(crate) fn send(&mut self) -> Result<bool, String> {
        self.left = None;
        for port in [FORBIDDEN_PORT, frames::SERVER_PORT] {
            self.number += 1;
            let ends =
                Ends { source: (frames::HONEST[0], 40_000), destination: (frames::SERVER, port) };
            let macs = (frames::GATEWAY_MAC, frames::CLIENT_MAC);
            let frame = frames::datagram(macs, ends, &self.number.to_be_bytes());
            let Some(guest) = &mut self.guest else { return Ok(false) };
            guest.responses();
            guest.send(&frame, TxFlags(0));
            guest.peer.notify(guest.port);
        }
        for _ in 0..PATIENCE {
            self.turns(1)?;
            if let Some(ends) = self.left.take() {
                return self.answer(ends);
            }
        }
        Ok(false)
    }

    /// The server answers; whether the client got it.
    fn answer(&mut self, asked: Ends) -> Result<bool, String> {
        let ends = Ends { source: asked.destination, destination: asked.source };
        let frame = frames::datagram((frames::UPLINK_MAC, frames::GATEWAY_MAC), ends, b"answer");
        let Some(netvm) = &mut self.netvm else { return Ok(false) };
        netvm.deliver(&frame, RxFlags(0));
        for _ in 0..PATIENCE {
            self.turns(1)?;
            let Some(guest) = &mut self.guest else { return Ok(false) };
            let got = guest.received();
            guest.post(got.len());
            let is_answer =
                |frame: &Vec<u8>| frames::read(frame).is_some_and(|(_, bytes)| bytes == b"answer");
            if got.iter().any(|(_, frame)| is_answer(frame)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What has left to the uplink: nothing that is forbidden.
    fn take_sent(&mut self) -> Result<(), String> {
        let Some(netvm) = &mut self.netvm else { return Ok(()) };
        let sent = netvm.sent();
        for (ends, _) in sent.iter().filter_map(|(_, frame)| frames::read(frame)) {
            // Our own questions to resolvers are nobody's traffic.
            if ends.destination.1 == 53 {
                continue;
            }
            let is_allowed = self.is_open && ends.destination.1 == frames::SERVER_PORT;
            if !is_allowed || ends.source.0 != frames::OWN {
                return Err(self.told(format!("what is forbidden has left: {ends:?}")));
            }
            self.left = Some(ends);
        }
        Ok(())
    }

    /// The domain is suspended and goes on.
    pub(crate) fn suspend(&mut self) -> Result<(), String> {
        self.unit.store.write("control/shutdown", "suspend");
        self.pass(500)
    }

    /// A call of a service; what it answered if it did.
    pub(crate) fn call(&mut self, service: &str) -> Result<Option<String>, String> {
        self.wait(10, |this| this.unit.dom0.has_agent())?;
        self.unit.dom0.start_call(&mut self.unit.store, service);
        let is_over =
            |this: &mut Self| this.unit.dom0.call.as_ref().is_some_and(|call| call.exit.is_some());
        let is_over = self.wait(15, is_over)?;
        let answer = self.unit.dom0.call.as_ref().filter(|_| is_over).and_then(|call| {
            let text = String::from_utf8_lossy(&call.output).into_owned();
            (call.exit == Some(0)).then_some(text)
        });
        self.unit.dom0.end_call(&mut self.unit.store);
        self.wait(5, |this| this.unit.dom0.is_quiet())?;
        Ok(answer)
    }

    pub(crate) fn books(&self) -> Books {
        let part = |part: Part| {
            let Use { live, blocks, .. } = ledger::usage(part);
            (part.name(), live, blocks)
        };
        Books {
            parts: Part::ALL.into_iter().skip(1).map(part).collect(),
            grants: grant::grants_in_use(),
            quarantined: grant::quarantined(),
            free_pages: mem::free_pages(),
            ports: event::open_channels(),
            watches: self.unit.store.watches(),
        }
    }

    /// Nothing is on its way any more: pages are let go, the log is said.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.pass(1200)?;
        self.turns(4)
    }

    /// Takes everything down: nothing may be left.
    pub(crate) fn end(self) -> Result<(), String> {
        // What it has mapped cannot be taken back.
        drop(self.netvm);
        self.unit.end();
        drop(self.guest);
        double::nothing_is_left()
    }
}
