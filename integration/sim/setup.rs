//! The appliance as it boots, with its neighbours: two honest clients, and a NetVM that others take the place of.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use fastrand::Rng;
use firewall::event_loop::EventLoop;
use firewall::platform::XenMachine;
use firewall::{FamilyConfig, Firewall, Instant, Limits, NetworkConfig, RulesState};
use rules::{CompiledSet, Family, RuleSet};
use xen::boot::BootInfo;
use xen::fake::vif::{NetVm, attach_uplink};
use xen::fake::{self, xenstore::Store};
use xen::{DomId, event};

use crate::frames;
use crate::honest::Honest;
use crate::ledger::Ledger;
use crate::world::{HOSTILE_ADDRESS, Lines, World};

const NETVM: DomId = DomId(2);
const WAKER: DomId = DomId(9);
const COMMAND_LINE: &str = "fw-log=drops";
const MEMORY_BYTES: u64 = 32 << 20;
const LIMITS: Limits =
    Limits { clients: 8, addresses: 32, flows: 256, flows_per_client: 64, fragment_bytes: 65536 };

impl World {
    /// A world in which everybody is connected and nothing has happened.
    pub(crate) fn new(seed: u64) -> Self {
        fake::reset();
        let mut store = Store::new();
        store.write("data", "");
        for name in ["shutdown", "feature-poweroff", "feature-reboot", "feature-suspend"] {
            store.write(&format!("control/{name}"), "");
        }
        let boot = BootInfo {
            cmdline: COMMAND_LINE,
            memory_bytes: MEMORY_BYTES,
            entry_ns: fake::now_ns(),
            entry_running_ns: 0,
            xen_version: (4, 17),
        };
        let machine = XenMachine::start(boot, &LIMITS).expect("a toolstack that left nothing out");
        let lines = Lines::default();
        let event_loop = EventLoop::new(firewall(), MEMORY_BYTES, COMMAND_LINE, lines.clone());
        let wakers = [(), ()].map(|()| {
            let channel = event::Channel::alloc_unbound(WAKER).expect("a port");
            let port = fake::peer(WAKER).bind(channel.port());
            (channel, port)
        });
        let honest = [0, 1].map(|which| Honest::attach(&mut store, which));
        let mut world = Self {
            random: Rng::with_seed(seed),
            store,
            machine,
            event_loop,
            lines,
            waker: WAKER,
            wakers,
            turn: Rc::<Cell<u64>>::default(),
            netvm: None,
            honest,
            number: 0,
            visit: None,
            quiet: Ledger::default(),
            effects: BTreeMap::new(),
            tried: BTreeMap::new(),
            honest_sent: 0,
            honest_answered: 0,
        };
        world.turns(20).expect("a start without a fault");
        world.connect_uplink().expect("an uplink");
        world.honest.iter_mut().for_each(Honest::post);
        // The uplink says who it is, and asks for its gateway for five seconds.
        world.note_quiet().expect("honest clients");
        world
    }

    fn connect_uplink(&mut self) -> Result<(), String> {
        attach_uplink(&mut self.store, NETVM, 0);
        self.turns(8)?;
        fake::peer(NETVM);
        NetVm::offer(&mut self.store, NETVM, 0);
        self.turns(8)?;
        let state = self.store.read("device/vif/0/state");
        if state.as_deref() != Some("4") {
            return Err(format!("the uplink does not come: state {state:?}"));
        }
        self.netvm = Some(NetVm::connect(&mut self.store, NETVM, 0));
        self.honest.iter_mut().for_each(|client| client.outside = None);
        self.turns(8)
    }

    /// The NetVM goes, whatever it has done, and an honest one comes.
    pub(crate) fn replace_netvm(&mut self) -> Result<(), String> {
        if let Some(netvm) = self.netvm.take() {
            let directory = netvm.directory.clone();
            netvm.peer.die();
            drop(netvm);
            self.store.remove(&directory);
        }
        self.store.remove("device/vif/0");
        self.turns(8)?;
        self.pass(3000)?;
        self.connect_uplink()
    }
}

/// With what dom0 would say through QubesDB: all clients may do everything.
fn firewall() -> Firewall {
    let mut firewall = Firewall::new(LIMITS, [3; 32]).expect("memory");
    let [one, other] = frames::HONEST;
    let clients = [one, other, HOSTILE_ADDRESS];
    for address in clients {
        let rules = RuleSet::parse(Family::V4, [(&b"policy"[..], &b"accept"[..])]);
        let rules = CompiledSet::new(rules.expect("a policy")).expect("memory");
        let now = Instant::from_nanos(fake::now_ns());
        firewall
            .set_rules(now, IpAddr::from(address), RulesState::Active(rules))
            .expect("room for three addresses");
    }
    let v4 = FamilyConfig {
        address: Some(frames::OWN.into()),
        gateway: Some(Ipv4Addr::new(10, 137, 0, 5)),
        client_gateway: Some(frames::OWN.into()),
        ..FamilyConfig::default()
    };
    let connected = clients.map(IpAddr::from).to_vec();
    let network = NetworkConfig { v4, connected, ..NetworkConfig::default() };
    firewall.set_network(network).expect("room for three addresses");
    firewall
}
