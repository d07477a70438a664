//! The whole system: the appliance with dom0's QubesDB and qrexec daemons, clients whose rules dom0 edits, resolvers beyond the
//! uplink, and the hostile guests and NetVMs of the other kind of seeds between them. `rules` says what rules mean, `model` is
//! the oracle, `watch` shows it everything; `traffic`, `edits` and `upheaval` are what happens.

mod client;
mod edits;
pub(crate) mod model;
mod names;
mod packets;
mod rules;
mod traffic;
mod upheaval;
mod watch;

use firewall::Limits;
use xen::DomId;

pub(crate) use client::Client;
pub(crate) use packets::is_question;
pub(crate) use watch::Later;

use crate::world::World;
use names::{NAMES, Name};

/// No client comes near its quota: one that is over it loses flows, and the oracle does not know which.
const LIMITS: Limits =
    Limits { clients: 8, addresses: 32, flows: 2048, flows_per_client: 400, fragment_bytes: 65536 };
const CLIENTS: [[u8; 4]; 4] =
    [[10, 137, 0, 30], [10, 137, 0, 31], [10, 137, 1, 7], [10, 138, 4, 9]];
/// Domains of clients, from here on.
pub(crate) const FIRST_DOMAIN: u16 = 100;

/// What is counted beside what hostile peers do.
pub(crate) const ACTS: &[&str] = &[
    EDIT,
    NARROW,
    WIDEN,
    GARBLE,
    HALF,
    REMOVE,
    UPLINK,
    DATABASE,
    AGENT,
    CALL,
    HOSTILE_CALL,
    CLIENT,
    REST,
    JUMP,
    RESOLVE,
    NAME,
    ALLOW_NAME,
    MOVE_NAME,
    UNASKED,
    CROSS,
    STOP,
];
const EDIT: &str = "W1 rules edited";
const NARROW: &str = "W1 rules narrowed under a flow";
const WIDEN: &str = "W1 rules widened";
const GARBLE: &str = "W2 rules that are none";
const HALF: &str = "W2 rules half written, without a mark";
const REMOVE: &str = "W2 rules removed";
const UPLINK: &str = "W3 the uplink goes and comes, all keys rewritten";
const DATABASE: &str = "W4 QubesDB lost, and back";
const AGENT: &str = "W4 the qrexec daemon lost, and back";
const CALL: &str = "W5 services called";
const HOSTILE_CALL: &str = "W5 callers that go away";
const CLIENT: &str = "W6 clients attached, detached, killed";
const REST: &str = "W6 clients paused";
const JUMP: &str = "W7 time jumps over a pause";
const RESOLVE: &str = "W8 clients ask resolvers";
const NAME: &str = "W8 names change: addresses, TTL, failures";
const ALLOW_NAME: &str = "W8 a name allowed, its address reached";
const MOVE_NAME: &str = "W8 a name moves to another address";
const UNASKED: &str = "W9 packets that nobody asked for";
const CROSS: &str = "W9 clients as others, and to others";
const STOP: &str = "W10 shutdown";

impl World {
    /// A world with everything in it.
    pub(crate) fn whole(seed: u64) -> Result<Self, String> {
        let mut world = Self::with(seed, LIMITS);
        world.is_prompt = true;
        world.take_sent()?;
        let random = &mut world.random;
        world.model.names = (0..NAMES).map(|_| Name::new(random)).collect();
        for address in CLIENTS {
            let owner = world.model.sources.len() as u8;
            world.model.add(address);
            world.clients.push(Client::new(owner, address, DomId(0)));
        }
        world.write_connected();
        world.narrow_unmarked()?;
        for which in 0..CLIENTS.len() - 1 {
            world.attach(which)?;
        }
        Ok(world)
    }

    fn write_connected(&mut self) {
        let list: Vec<String> = self.model.sources.iter().map(|source| source.ip()).collect();
        self.unit.dom0.set("/connected-ips", &list.join(" "));
    }

    /// One thing happens.
    pub(crate) fn whole_step(&mut self) -> Result<(), String> {
        for client in &mut self.clients {
            client.rests = client.rests.saturating_sub(1);
        }
        self.answered.clear();
        self.model.check_names(self.netvm.is_some())?;
        // dom0's daemon does not stay away for long.
        if !self.unit.dom0.has_database() && self.random.u32(0..40) == 0 {
            let effect = self.database_changes()?;
            self.note(DATABASE, effect);
            return Ok(());
        }
        let (name, effect) = match self.random.u32(0..1000) {
            0..350 => return self.client_talks(),
            350..550 => return self.server_talks(),
            550..590 => return self.honest_sends(),
            590..620 => return self.honest_gets(),
            620..660 => (RESOLVE, self.client_resolves()?),
            660..690 => {
                self.change_name();
                (NAME, true)
            }
            690..730 => (EDIT, self.edit()?),
            730..760 => (NARROW, self.narrow()?),
            760..790 => (WIDEN, self.widen()?),
            790..805 => (GARBLE, self.garble()?),
            805..820 => (HALF, self.half_write()?),
            820..827 => (REMOVE, self.remove_rules()?),
            827..837 => (ALLOW_NAME, self.allow_name()?),
            837..840 => (MOVE_NAME, self.move_name()?),
            840..860 => (UNASKED, self.unasked()?),
            860..880 => (CROSS, self.crosses()?),
            880..886 => (UPLINK, self.uplink_changes()?),
            886..894 => (DATABASE, self.database_changes()?),
            894..900 => (AGENT, self.agent_changes()?),
            900..922 => (CALL, self.call()?),
            922..925 => (HOSTILE_CALL, self.hostile_call()?),
            925..937 => (CLIENT, self.client_changes()?),
            937..945 => (REST, self.client_rests()),
            945..957 => (JUMP, self.time_jumps()?),
            957..962 => return self.hostile_visit(),
            962..966 => return self.whole_hostile_netvm(),
            966..969 => return self.suspend(),
            969..998 => {
                let ms = self.random.u64(1..300);
                return self.pass(ms);
            }
            _ => {
                let ms = self.random.u64(1..90_000);
                return self.pass(ms);
            }
        };
        self.note(name, effect);
        Ok(())
    }

    /// A hostile guest comes, does some things while others talk, and goes; all that it cost is back.
    fn hostile_visit(&mut self) -> Result<(), String> {
        if self.has_gone_callers() {
            return Ok(());
        }
        self.note_quiet()?;
        self.hostile_guest()?;
        for _ in 0..self.random.u32(1..6) {
            if self.visit.is_some() {
                self.hostile_guest()?;
                self.client_talks()?;
                self.honest_sends()?;
            }
        }
        self.end_visit()
    }

    fn whole_hostile_netvm(&mut self) -> Result<(), String> {
        if self.has_gone_callers() {
            return Ok(());
        }
        self.note_quiet()?;
        self.hostile_netvm()
    }

    /// Some seeds end with a shutdown.
    pub(crate) fn whole_end(&mut self, seed: u64) -> Result<(), String> {
        self.settle()?;
        if seed % 4 == 2 {
            let is_stopped = self.shut_down()?;
            self.note(STOP, is_stopped);
        }
        Ok(())
    }
}
