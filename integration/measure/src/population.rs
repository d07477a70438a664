//! A table with many flows that stand.

use std::ops::Range;

use firewall::{ClientId, Limits};

use crate::Page;
use crate::connection::{Connection, Protocol};
use crate::shapes::{End, HOSTS};
use crate::world::{self, World};

/// Flows that there is room for. The hash tables are half full with them, which is the most that they can be.
const MOST: u32 = 65_536;
/// Clients that have them, as many each.
const OWNERS: u16 = 4;
/// Rules of each client.
const RULES: usize = 10;
/// Where the clients' ports begin; no two flows of a protocol have the same one.
const FIRST_PORT: u16 = 1024;
/// A step that visits all flows, in no order that the table has.
const STRIDE: usize = 40_503;

/// A firewall with flows of four clients: half of them UDP, half TCP, each with a port of its own, so that every one
/// has a mapping, too. A fifth client, the visitor, has none.
pub struct Population {
    /// The firewall.
    pub world: World,
    /// How many it is to have.
    size: usize,
    connections: Vec<Connection>,
}

impl Population {
    /// The client without flows.
    pub const VISITOR: ClientId = ClientId(OWNERS);

    /// A table that is to have `size` flows. It has none yet.
    ///
    /// # Errors
    /// When there is no room for so many.
    pub fn new(size: usize) -> Result<Self, String> {
        if size > MOST as usize {
            return Err(format!("{size} flows are more than {MOST}"));
        }
        let flows_per_client = MOST / u32::from(OWNERS);
        let limits = Limits { flows: MOST, flows_per_client, ..world::LIMITS };
        let mut world = World::with(limits, OWNERS + 1, &HOSTS, End::Policy, RULES)?;
        // The table and the code have been used before.
        Connection::open(&mut world, Self::VISITOR, Protocol::Tcp, FIRST_PORT)?;
        world.end_flows_of(Self::VISITOR)?;
        let population = Self { world, size, connections: Vec::with_capacity(size) };
        population.has(0)?;
        Ok(population)
    }

    /// Opens flows until there are `count`.
    ///
    /// # Errors
    /// When one of their packets did not get through.
    pub fn grow(&mut self, count: usize) -> Result<(), String> {
        for number in self.connections.len()..count {
            let (id, protocol, port) = self.plan(number)?;
            let connection = Connection::open(&mut self.world, id, protocol, port)?;
            self.connections.push(connection);
        }
        self.has(count)
    }

    /// The first packets of the flows with these numbers, in their order.
    ///
    /// # Errors
    /// When there are no such flows.
    pub fn first_packets(&self, numbers: Range<usize>) -> Result<Vec<Page>, String> {
        let page = |number| {
            let (id, protocol, port) = self.plan(number)?;
            Connection::first(&self.world, id, protocol, port)
        };
        numbers.map(page).collect()
    }

    /// The flows whose first packets these were, which are the next ones, answer and go on.
    ///
    /// # Errors
    /// When one of their packets did not get through.
    pub fn establish(&mut self, sent: &[Page]) -> Result<(), String> {
        for page in sent {
            let (_, protocol, port) = self.plan(self.connections.len())?;
            let connection = Connection::begun(&self.world, protocol, port, page)?;
            connection.establish(&mut self.world)?;
            self.connections.push(connection);
        }
        self.has(self.connections.len())
    }

    /// So many times a TCP connection, none again before all have had their turn.
    pub fn spread(&self, count: usize) -> impl Iterator<Item = &Connection> {
        let tcp = self.tcp();
        (0..count).filter_map(move |turn| tcp.get((turn * STRIDE).checked_rem(tcp.len())?))
    }

    /// All of those.
    #[must_use]
    pub fn tcp(&self) -> &[Connection] {
        self.connections.get(self.size / 2..).unwrap_or_default()
    }

    /// Fails unless the table has `count` flows.
    ///
    /// # Errors
    /// When it has more or fewer.
    pub fn has(&self, count: usize) -> Result<(), String> {
        match self.world.firewall.flow_count() {
            flows if flows == count => Ok(()),
            flows => Err(format!("{flows} flows in the table, not {count}")),
        }
    }

    /// Whose a flow is, what it carries, and its port. UDP comes first.
    fn plan(&self, number: usize) -> Result<(ClientId, Protocol, u16), String> {
        let (protocol, nth) = match number.checked_sub(self.size / 2) {
            None => (Protocol::Udp, number),
            Some(nth) => (Protocol::Tcp, nth),
        };
        let nth = u16::try_from(nth).map_err(|_| "too many flows")?;
        let port = FIRST_PORT.checked_add(nth).ok_or("too many flows")?;
        Ok((ClientId(nth % OWNERS), protocol, port))
    }
}
