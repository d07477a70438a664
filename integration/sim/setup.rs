//! The appliance as it boots, with its neighbours: two honest clients, and a NetVM that others take the place of.

use std::collections::BTreeMap;

use fastrand::Rng;
use firewall::Limits;
use xen::DomId;
use xen::fake;
use xen::fake::vif::{NetVm, attach_uplink};

use crate::double::Appliance;
use crate::frames;
use crate::honest::Honest;
use crate::ledger::Ledger;
use crate::whole::FIRST_DOMAIN;
use crate::whole::model::Model;
use crate::world::{HOSTILE_ADDRESS, World};

const NETVM: DomId = DomId(2);
const LIMITS: Limits =
    Limits { clients: 8, addresses: 32, flows: 256, flows_per_client: 64, fragment_bytes: 65536 };

impl World {
    /// A world in which everybody is connected and nothing has happened.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, LIMITS)
    }

    /// The same with tables of another size.
    pub(crate) fn with(seed: u64, limits: Limits) -> Self {
        let mut unit = Appliance::boot(limits);
        let honest = [0, 1].map(|which| Honest::attach(&mut unit.store, which));
        let [one, other] = frames::HONEST;
        let mut world = Self {
            random: Rng::with_seed(seed),
            unit,
            netvm: None,
            own: frames::OWN,
            seen: vec![],
            answered: vec![],
            is_prompt: false,
            model: Model::new(&[one, other, HOSTILE_ADDRESS]),
            clients: vec![],
            later: vec![],
            gone_callers_until: 0,
            next_domain: FIRST_DOMAIN,
            honest,
            number: 0,
            visit: None,
            quiet: Ledger::default(),
            effects: BTreeMap::new(),
            tried: BTreeMap::new(),
            honest_sent: 0,
            honest_answered: 0,
        };
        world.write_first_rules();
        world.unit.dom0.start_database(&mut world.unit.store);
        world.turns(20).expect("a start without a fault");
        world.connect_uplink().expect("an uplink");
        world.honest.iter_mut().for_each(Honest::post);
        // The uplink says who it is, and asks for its gateway for five seconds.
        world.note_quiet().expect("honest clients");
        world
    }

    pub(crate) fn connect_uplink(&mut self) -> Result<(), String> {
        attach_uplink(&mut self.unit.store, NETVM, 0);
        self.turns(8)?;
        fake::peer(NETVM);
        NetVm::offer(&mut self.unit.store, NETVM, 0);
        self.turns(8)?;
        let state = self.unit.store.read("device/vif/0/state");
        if state.as_deref() != Some("4") {
            return Err(format!("the uplink does not come: state {state:?}"));
        }
        self.netvm = Some(NetVm::connect(&mut self.unit.store, NETVM, 0));
        self.honest.iter_mut().for_each(|client| client.outside = None);
        self.turns(8)
    }

    /// The NetVM goes, whatever it has done.
    pub(crate) fn remove_netvm(&mut self) -> Result<(), String> {
        self.seen.clear();
        if let Some(netvm) = self.netvm.take() {
            let directory = netvm.directory.clone();
            netvm.peer.die();
            drop(netvm);
            self.unit.store.remove(&directory);
        }
        self.unit.store.remove("device/vif/0");
        self.turns(8)
    }

    /// The same, and an honest one comes.
    pub(crate) fn replace_netvm(&mut self) -> Result<(), String> {
        self.remove_netvm()?;
        self.pass(3000)?;
        self.connect_uplink()
    }
}
