//! What the appliance holds, and that it holds no more than before.

use firewall::PortUse;
use xen::{event, fake, grant, mem};

use crate::world::World;

/// Turns in which a frame of our own comes and goes.
const PATIENCE: usize = 4;

/// What the hypervisor, xenstored and the appliance count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    grants: usize,
    quarantined: usize,
    free_pages: usize,
    mappings: usize,
    watches: usize,
    ports: usize,
    /// What comes and goes with traffic; nothing of it is compared while there is some.
    traffic: Traffic,
}

/// What time alone gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traffic {
    flows: usize,
    /// Ports of our own address.
    nat: Option<PortUse>,
    /// Bytes of the heap that are allocated, without the tables.
    heap: usize,
}

impl Ledger {
    /// Without what traffic costs.
    fn of_devices(self) -> Self {
        Self { traffic: Traffic::default(), ..self }
    }
}

impl World {
    /// Everything that may leak.
    pub(crate) fn ledger(&mut self) -> Ledger {
        Ledger {
            grants: grant::grants_in_use(),
            quarantined: grant::quarantined(),
            free_pages: mem::free_pages(),
            mappings: fake::mappings(),
            watches: self.unit.store.watches(),
            ports: event::open_channels(),
            traffic: Traffic {
                flows: self.unit.event_loop.firewall().flow_count(),
                nat: Some(self.unit.event_loop.firewall().port_use()),
                heap: mem::heap_used(),
            },
        }
    }

    /// Until nothing is on its way any more.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        for _ in 0..8 {
            self.pass(1000)?;
            self.take_sent()?;
        }
        self.turns(2)
    }

    /// Notes what the appliance holds when nobody wants anything of it.
    pub(crate) fn note_quiet(&mut self) -> Result<(), String> {
        self.settle()?;
        let first = self.ledger();
        self.turns(PATIENCE)?;
        let second = self.ledger();
        // What is on its way is no part of it.
        self.quiet = if second.grants < first.grants { second } else { first };
        Ok(())
    }

    /// That devices which came and went have cost nothing; flows may still be there.
    pub(crate) fn expect_quiet(&mut self, after: &str) -> Result<(), String> {
        self.settle()?;
        // A question about a name may be on its way at any time.
        for _ in 0..PATIENCE {
            if self.ledger().of_devices() == self.quiet.of_devices() {
                break;
            }
            self.turns(1)?;
        }
        let (now, quiet) = (self.ledger().of_devices(), self.quiet.of_devices());
        let nat = self.unit.event_loop.firewall().port_use();
        if nat.leaked > 0 {
            return Err(format!("after {after}: {nat:?}"));
        }
        same(now, quiet, after)
    }

    /// That nothing at all is left of what was done.
    pub(crate) fn expect_all_back(&mut self, after: &str) -> Result<(), String> {
        self.settle()?;
        let (now, quiet) = (self.ledger(), self.quiet);
        same(now, quiet, after)
    }
}

fn same(now: Ledger, before: Ledger, after: &str) -> Result<(), String> {
    if now == before { Ok(()) } else { Err(format!("after {after}: {now:?}, before {before:?}")) }
}
