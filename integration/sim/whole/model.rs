//! The oracle: which frame may leave, to the uplink and to a client, by what dom0 committed, and what must get through.
//!
//! Rules are in doubt from their commit mark until the appliance acknowledges it: in between, what the old ones or the new
//! ones accept may leave, and only what both accept must. Names are in doubt always; see `names`.

mod frames;

use std::collections::{BTreeMap, VecDeque};

use xen::fake;

use super::names::{Name, text};
use super::packets::Mark;
use super::rules::{DNS_PORT, Known, Meaning, Protocol, Rule, Target, Tree};

const S: u64 = 1_000_000_000;
const HANDLED: &str = "/qubes-firewall-handled/";
/// A commit is acknowledged within so long, in ns.
const PATIENCE: u64 = 10 * S;
/// The clock of the appliance goes on at most so far in a pause: to its next deadline, in ns.
pub(crate) const MOST_SLACK: u64 = 121 * S;
/// A flow that was answered lives at least so long after its last packet (RFC 4787: 300 s here; RFC 5508: 60 s; DNS 60 s),
/// and nobody else has its port.
const LIFE: u64 = 250 * S;
const SHORT_LIFE: u64 = 50 * S;
/// Packets that may still be on their way.
const FLIGHTS: usize = 4096;
/// Ended flows that are remembered.
const GHOSTS: usize = 32;
/// Sources whose packets have no mark: the honest clients and the hostile one.
pub(crate) const UNMARKED: usize = 3;

/// One end of a flow at a client, and the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) owner: u8,
    pub(crate) is_icmp: bool,
    pub(crate) is_tcp: bool,
    pub(crate) port: u16,
    pub(crate) address: [u8; 4],
    pub(crate) remote_port: u16,
}

impl Key {
    pub(crate) fn of(owner: u8, port: u16, target: Target) -> Self {
        let is = |protocol| target.protocol == protocol;
        let (is_icmp, is_tcp) = (is(Protocol::Icmp), is(Protocol::Tcp));
        Self { owner, is_icmp, is_tcp, port, address: target.address, remote_port: target.port }
    }

    pub(crate) fn target(&self) -> Target {
        let protocol = match (self.is_icmp, self.is_tcp) {
            (true, _) => Protocol::Icmp,
            (_, true) => Protocol::Tcp,
            _ => Protocol::Udp,
        };
        Target { protocol, address: self.address, port: self.remote_port }
    }

    fn life(&self) -> u64 {
        if self.is_icmp || self.remote_port == DNS_PORT { SHORT_LIFE } else { LIFE }
    }
}

/// A flow of which a packet has left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    /// That stands for the client's on our address.
    pub(crate) port: u16,
    /// When its latest packet left.
    at: u64,
    /// A packet came back.
    pub(crate) is_answered: bool,
    /// No rules in between may have ended it.
    is_sure: bool,
}

/// A committed meaning that is not acknowledged yet.
#[derive(Clone, Debug)]
struct Pending {
    connection: u64,
    since: u64,
    meaning: Meaning,
}

/// A client address, as dom0 knows it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) address: [u8; 4],
    /// What dom0's database has now.
    pub(crate) tree: Tree,
    pub(crate) has_mark: bool,
    in_force: Meaning,
    pending: VecDeque<Pending>,
    /// The counter of acknowledgements.
    handled: u64,
}

impl Source {
    /// All rule sets that may be in force.
    fn window(&self) -> impl Iterator<Item = &Meaning> {
        [&self.in_force].into_iter().chain(self.pending.iter().map(|pending| &pending.meaning))
    }

    pub(crate) fn ip(&self) -> String {
        let [a, b, c, d] = self.address;
        format!("{a}.{b}.{c}.{d}")
    }

    /// Names in rules that may be in force.
    pub(crate) fn names(&self) -> impl Iterator<Item = usize> {
        self.window().flat_map(Meaning::names)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }
}

/// A question that came to a resolver.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) resolver: [u8; 4],
    /// Where the answer goes.
    pub(crate) to: ([u8; 4], u16),
    pub(crate) message: Vec<u8>,
    /// Of the client that asks; our own resolver has none.
    pub(crate) mark: Option<Mark>,
}

/// What a server sent back.
#[derive(Clone, Copy, Debug)]
struct Reply {
    number: u32,
    key: Key,
}

pub(crate) struct Model {
    pub(crate) sources: Vec<Source>,
    pub(crate) names: Vec<Name>,
    /// Our addresses: two while one takes the place of the other.
    pub(crate) own: Vec<[u8; 4]>,
    flights: BTreeMap<u32, Key>,
    pub(crate) flows: BTreeMap<Key, Flow>,
    ports: BTreeMap<(u8, u16), Key>,
    replies: VecDeque<Reply>,
    /// Flows that ended with their clients.
    pub(crate) ghosts: VecDeque<(Key, Flow)>,
    /// Marks of packets that left, and of those that arrived at clients, since somebody looked.
    pub(crate) left: Vec<u32>,
    pub(crate) arrived: Vec<u32>,
    pub(crate) questions: Vec<Question>,
    connection: u64,
    paused: u64,
    slack: u64,
}

/// What a client may know about names at a time.
struct View<'m> {
    names: &'m [Name],
    now: u64,
    client: u8,
}

impl Known for View<'_> {
    fn may_have(&self, name: usize, address: [u8; 4]) -> bool {
        self.names[name].may_have(self.now, self.client, address)
    }

    fn is_unresolved(&self, name: usize) -> bool {
        self.names[name].is_unresolved()
    }
}

impl Model {
    pub(crate) fn new(addresses: &[[u8; 4]]) -> Self {
        let mut model = Self {
            sources: vec![],
            names: vec![],
            own: vec![crate::frames::OWN],
            flights: BTreeMap::new(),
            flows: BTreeMap::new(),
            ports: BTreeMap::new(),
            replies: VecDeque::new(),
            ghosts: VecDeque::new(),
            left: vec![],
            arrived: vec![],
            questions: vec![],
            connection: 0,
            paused: 0,
            slack: 0,
        };
        addresses.iter().for_each(|address| model.add(*address));
        model
    }

    pub(crate) fn add(&mut self, address: [u8; 4]) {
        self.sources.push(Source {
            address,
            tree: Tree::default(),
            has_mark: false,
            in_force: Meaning::None,
            pending: VecDeque::new(),
            handled: 0,
        });
    }

    /// Time without the pauses: what the appliance's clock cannot be behind of.
    pub(crate) fn slow(&self) -> u64 {
        fake::now_ns() - self.paused
    }

    /// What it cannot be ahead of.
    fn fast(&self) -> u64 {
        self.slow() + self.slack
    }

    /// The domain was paused for so long.
    pub(crate) fn paused(&mut self, ns: u64) {
        self.paused += ns;
        self.slack += ns.min(MOST_SLACK);
    }

    /// dom0 wrote the commit mark of a source.
    pub(crate) fn committed(&mut self, owner: usize, is_live: bool) {
        let (connection, since) = (self.connection, self.slow());
        let source = &mut self.sources[owner];
        source.has_mark = true;
        if is_live {
            let meaning = source.tree.meaning();
            source.pending.push_back(Pending { connection, since, meaning });
        }
    }

    /// The appliance asked for the whole database: each tree in it counts as marked.
    pub(crate) fn dumped(&mut self, dumps: u64) {
        if dumps == self.connection {
            return;
        }
        self.connection = dumps;
        for owner in 0..self.sources.len() {
            let source = &self.sources[owner];
            let is_there = source.has_mark || source.tree.has_policy;
            if is_there || !source.tree.rules.is_empty() {
                let had_mark = source.has_mark;
                self.committed(owner, true);
                self.sources[owner].has_mark = had_mark;
            }
        }
    }

    /// The appliance wrote a key.
    pub(crate) fn written(&mut self, path: &str, value: &str) -> Result<(), String> {
        let Some(ip) = path.strip_prefix(HANDLED) else { return Ok(()) };
        let owner = self.sources.iter().position(|source| source.ip() == ip);
        let owner = owner.ok_or_else(|| format!("{path} was never committed"))?;
        let source = &mut self.sources[owner];
        source.handled += 1;
        if value.parse() != Ok(source.handled) {
            return Err(format!("{path} is {value:?}, and {} was due", source.handled));
        }
        source.pending.retain(|pending| pending.connection == self.connection);
        let Some(Pending { meaning, .. }) = source.pending.pop_front() else {
            return Err(format!("{path} counts a commit that there was not"));
        };
        source.in_force = meaning;
        // What these rules may have ended is new when it comes again.
        let in_force = &source.in_force;
        let of_it = |key: &Key| usize::from(key.owner) == owner;
        for (key, flow) in self.flows.iter_mut().filter(|(key, _)| of_it(key)) {
            flow.is_sure &= in_force.must(&key.target());
        }
        Ok(())
    }

    /// Whatever was committed is acknowledged in time.
    pub(crate) fn check_patience(&self, is_live: bool) -> Result<(), String> {
        for source in &self.sources {
            let oldest = source.pending.iter().find(|one| one.connection == self.connection);
            if oldest.is_some_and(|oldest| is_live && self.slow() > oldest.since + PATIENCE) {
                return Err(format!("a commit of {} is not acknowledged", source.ip()));
            }
        }
        Ok(())
    }

    /// Names that rules have are asked for again in time, while there is a way to the resolvers.
    pub(crate) fn check_names(&mut self, has_way: bool) -> Result<(), String> {
        let now = self.slow();
        for name in 0..self.names.len() {
            let is_used = |source: &Source| {
                source.is_settled() && source.in_force.names().any(|one| one == name)
            };
            let is_used = has_way && self.sources.iter().any(is_used);
            let known = &mut self.names[name];
            let since = *known.used_since.get_or_insert(now);
            if !is_used {
                known.used_since = None;
            } else if now > since.max(known.asked_at) + known.patience() {
                return Err(format!("{} is not asked for again", text(name)));
            }
        }
        Ok(())
    }

    /// A client is about to send.
    pub(crate) fn departs(&mut self, number: u32, key: Key) {
        self.flights.insert(number, key);
        while self.flights.len() > FLIGHTS {
            self.flights.pop_first();
        }
    }

    /// The flow of a packet that was sent lately.
    pub(crate) fn flight(&self, number: u32) -> Option<Key> {
        self.flights.get(&number).copied()
    }

    /// A server sends back on a flow.
    pub(crate) fn returns(&mut self, number: u32, key: Key) {
        self.replies.push_back(Reply { number, key });
        if self.replies.len() > FLIGHTS {
            self.replies.pop_front();
        }
    }

    /// Nothing of a client's flows is left.
    pub(crate) fn forget_flows(&mut self, of: impl Fn(u8) -> bool) {
        let ended = self.flows.extract_if(.., |key, _| of(key.owner));
        self.ghosts.extend(ended.filter(|(key, _)| !key.is_tcp));
        while self.ghosts.len() > GHOSTS {
            self.ghosts.pop_front();
        }
        self.ports.retain(|_, key| !of(key.owner));
    }

    fn view(&self, owner: u8) -> View<'_> {
        View { names: &self.names, now: self.slow(), client: owner }
    }

    /// Whether rules that may be in force accept the flow.
    pub(crate) fn may(&self, key: &Key) -> bool {
        let (target, view) = (key.target(), self.view(key.owner));
        let is_known = self.flows.contains_key(key);
        self.sources[usize::from(key.owner)].window().any(|meaning| {
            let mut holders = meaning.holders(&target);
            meaning.may(&target, &view)
                || (is_known && holders.any(|name| self.names[name].ever.contains(&key.address)))
        })
    }

    /// Whether all rules that may be in force accept it, whatever is known about names.
    pub(crate) fn must(&self, key: &Key) -> bool {
        let mut window = self.sources[usize::from(key.owner)].window();
        window.all(|meaning| meaning.must(&key.target()))
    }

    /// The rule sets that may be in force, for a message.
    pub(crate) fn rules_of(&self, owner: u8) -> String {
        let sets = self.sources[usize::from(owner)].window().map(|meaning| match meaning {
            Meaning::Rules(rules) => rules.iter().map(Rule::text).collect::<Vec<_>>().join("; "),
            other => format!("{other:?}"),
        });
        sets.collect::<Vec<_>>().join(" | ")
    }

    /// Whether a flow stands for certain, so that an answer to it has to arrive.
    pub(crate) fn stands(&self, key: &Key) -> bool {
        let flow = self.flows.get(key);
        flow.is_some_and(|flow| flow.is_sure && self.is_alive(key, flow)) && self.must(key)
    }

    /// Whose packet left last with the port of a flow.
    pub(crate) fn user_of(&self, key: &Key, flow: &Flow) -> Option<Key> {
        let protocol = if key.is_icmp { 1 } else { 17 };
        self.ports.get(&(protocol, flow.port)).copied()
    }

    /// Whether nobody else was seen with the flow's port since.
    pub(crate) fn has_port(&self, key: &Key) -> bool {
        let last = self.flows.get(key).and_then(|flow| self.user_of(key, flow));
        last.is_some_and(|last| (last.owner, last.port) == (key.owner, key.port))
    }

    fn is_alive(&self, key: &Key, flow: &Flow) -> bool {
        let life = if flow.is_answered { key.life() } else { SHORT_LIFE };
        self.fast() < flow.at + life
    }
}
