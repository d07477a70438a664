//! The control plane between QubesDB and the packet path: what dom0 wrote becomes rules and
//! configuration in force, or a reason why not.
//!
//! A state machine without I/O: [`Control::on_event`] takes the events of the QubesDB client,
//! [`Control::poll_action`] gives what has to happen, in order. Neighbours: `config` reads values out
//! of the store, crate `rules` parses the trees, `action` lists what can come out.
//!
//! When something takes effect:
//! - *Rules* at the commit mark (`/qubes-firewall/<ip>` written empty) and for every tree of a dump;
//!   what dom0 writes or removes before the mark changes nothing. A marked tree without entries is a
//!   source without rules. A tree that is missing from a new dump is gone.
//! - *Addresses of the uplink* when the uplink device appears: without a netvm dom0 leaves stale
//!   values in these keys. QubesDB and xenstore are not ordered with each other, so that a change
//!   that arrives while the device is connected counts as well.
//! - *Everything else* when it is written.
//! - *Link to QubesDB lost*: everything in force stays.

mod action;
mod problems;
mod published;
mod tracked;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use qubesdb::{Event, Path, RawPath, Refusal, Store, Tree};
use rules::{CompiledSet, Family, RuleSet};

pub use action::{Action, Notice, RulesRefusal, SourceRules};

use crate::config::features::{self, Features, Words};
use crate::config::netvm::ClientSideNetvm;
use crate::config::{self, ConfigError, DebugMode, DownlinkConfig, UplinkConfig};
use crate::planted::{Defect, is_planted};
use crate::uplink::NetworkConfig;
use crate::visible::MappedIp;
use tracked::{Tracked, collect};

/// Acknowledgements of commits, a counter per tree (Qubes core-agent-linux).
const HANDLED_PREFIX: &str = "/qubes-firewall-handled/";

/// Commit marks: this and the address of the source.
const MARK_PREFIX: &str = "/qubes-firewall/";

/// How much the control plane keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sources with rules.
    pub sources: usize,
    /// Heap bytes of all rule sets together, their tables included.
    pub rule_bytes: usize,
}

impl Default for Limits {
    /// More than a QubesDB store of its default size can describe: a rule takes some 120 bytes, compiled.
    fn default() -> Self {
        Self { sources: 4096, rule_bytes: 4 * 1024 * 1024 }
    }
}

/// The control plane.
#[derive(Debug)]
pub struct Control {
    limits: Limits,
    command_line: Words,
    /// What of it was not understood.
    line_problems: Vec<features::WordProblem>,
    /// A dump was seen: the store means something.
    has_store: bool,
    uplink_link: UplinkLink,
    uplink: Tracked<UplinkConfig, ConfigError>,
    downlink: Tracked<DownlinkConfig, ConfigError>,
    connected: Tracked<Vec<IpAddr>, ConfigError>,
    mapped: Tracked<Vec<MappedIp>, ConfigError>,
    /// As it was announced last.
    network: NetworkConfig,
    name: Tracked<Option<config::VmName>, ConfigError>,
    debug: Tracked<DebugMode, ConfigError>,
    feature_words: Tracked<Words, features::WordProblem>,
    features: Features,
    sources: BTreeMap<IpAddr, Source>,
    actions: VecDeque<Action>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UplinkLink {
    Gone,
    Connected,
}

/// What is known about a source that has a tree.
#[derive(Debug, Clone, Default)]
struct Source {
    /// Heap bytes of its rule set.
    rule_bytes: usize,
    /// The acknowledgement that was asked for last. The store shows it only when it was sent.
    handled: Option<u64>,
    /// Why its rules are not used.
    refusal: Option<Box<RulesRefusal>>,
}

impl Control {
    /// A control plane before the first dump. `command_line` is the whole kernel command line.
    #[must_use]
    pub fn new(command_line: &str, limits: Limits) -> Self {
        let (command_line, line_problems) =
            collect(|report| Words::of_command_line(command_line, report));
        let told = line_problems.iter().cloned().map(|one| Action::Log(Notice::Word(one)));
        let mut actions: VecDeque<Action> = told.collect();
        let features = Features::new(&Words::default(), &command_line, DebugMode::Off);
        actions.push_back(Action::SetFeatures(features.clone()));
        Self {
            limits,
            command_line,
            line_problems,
            has_store: false,
            uplink_link: UplinkLink::Gone,
            uplink: Tracked::default(),
            downlink: Tracked::default(),
            connected: Tracked::default(),
            mapped: Tracked::default(),
            network: NetworkConfig::default(),
            name: Tracked::default(),
            debug: Tracked::default(),
            feature_words: Tracked::default(),
            features,
            sources: BTreeMap::new(),
            actions,
        }
    }

    /// What has to happen next. To be taken until nothing is left after each call of another method.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes an event of the QubesDB client; `store` is the client's store at that moment.
    pub fn on_event(&mut self, event: &Event, store: &Store) {
        match event {
            Event::Dumped => self.on_dumped(store),
            Event::Committed { tree, complete } => self.on_committed(tree, *complete, store),
            Event::Changed { path } | Event::Removed { path } => self.on_key(path.as_str(), store),
            Event::RemovedBelow { prefix } => self.on_prefix(prefix.as_str(), store),
            Event::Refused { path, reason } => {
                self.log(Notice::EntryRefused { path: *path, reason: *reason });
                self.on_refused(path, *reason, store);
            }
            Event::CommandRefused { path } => self.log(Notice::CommandRefused { path: *path }),
            Event::ProtocolError { reason } => self.log(Notice::ProtocolError(*reason)),
        }
    }

    /// The link to QubesDB is gone. Everything in force stays; a new dump replaces it.
    pub fn on_link_lost(&mut self) {
        self.log(Notice::LinkLost { sources: self.sources.len() });
        if is_planted(Defect::DatabaseLossForgets) {
            let none = |ip: &IpAddr| Action::SetRules { ip: *ip, rules: SourceRules::None };
            self.actions.extend(self.sources.keys().map(none));
        }
    }

    /// The uplink device is connected: its addresses are to be taken now, or as soon as there is a
    /// dump.
    pub fn on_uplink_connected(&mut self, store: &Store) {
        self.uplink_link = UplinkLink::Connected;
        self.uplink.forget_problems();
        self.read_uplink(store);
    }

    /// The uplink device is gone: what its keys say from now on is stale.
    pub fn on_uplink_gone(&mut self) {
        self.uplink_link = UplinkLink::Gone;
    }

    /// The name of this VM, if dom0 said it.
    #[must_use]
    pub fn name(&self) -> Option<config::VmName> {
        self.name.value
    }

    fn on_dumped(&mut self, store: &Store) {
        self.has_store = true;
        self.read_seed(store);
        self.read_name(store);
        self.read_features(store);
        self.read_connected(store);
        self.read_mapped(store);
        self.read_downlink(store);
        self.read_uplink(store);
        let found: BTreeSet<IpAddr> = store.trees().filter_map(|tree| address(&tree)).collect();
        let Self { sources, actions, .. } = self;
        sources.retain(|ip, source| {
            source.handled = None;
            let stays = found.contains(ip);
            if !stays {
                actions.push_back(Action::SetRules { ip: *ip, rules: SourceRules::None });
            }
            stays
        });
    }

    fn on_committed(&mut self, tree: &Tree, complete: Result<(), Refusal>, store: &Store) {
        match address(tree) {
            Some(ip) => {
                let rules = self.load(ip, tree, complete, store);
                if let Some(source) = self.sources.get_mut(&ip) {
                    source.refusal = match &rules {
                        SourceRules::Refused(refusal) => Some(Box::new(refusal.clone())),
                        SourceRules::None | SourceRules::Active(_) => None,
                    };
                }
                let is_kept = match rules {
                    SourceRules::None => is_planted(Defect::RemovedTreeStays),
                    SourceRules::Refused(_) => is_planted(Defect::MalformedKeepsOld),
                    SourceRules::Active(_) => false,
                };
                if !is_kept {
                    self.actions.push_back(Action::SetRules { ip, rules });
                }
                self.acknowledge(Some(ip), tree, store);
            }
            None => {
                self.log(Notice::BadTree { tree: *tree });
                self.acknowledge(None, tree, store);
            }
        }
    }

    /// The key is absent now. If it is a commit mark, dom0 believes that new rules are in force: the
    /// old ones must not go on as if nothing had happened.
    fn on_refused(&mut self, path: &RawPath, reason: Refusal, store: &Store) {
        let key = core::str::from_utf8(path.as_bytes()).unwrap_or_default();
        let ip_text = key.strip_prefix(MARK_PREFIX);
        match ip_text.and_then(|ip_text| Tree::new(ip_text).ok()) {
            Some(tree) => self.on_committed(&tree, Err(reason), store),
            None => self.on_key(key, store),
        }
    }

    /// Parses and compiles a tree and keeps the books; what does not fit is refused.
    fn load(
        &mut self,
        ip: IpAddr,
        tree: &Tree,
        complete: Result<(), Refusal>,
        store: &Store,
    ) -> SourceRules {
        if !self.sources.contains_key(&ip) && self.sources.len() >= self.limits.sources {
            return SourceRules::Refused(RulesRefusal::TooManySources(self.limits.sources));
        }
        self.sources.entry(ip).or_default().rule_bytes = 0;
        let rules = match parse(ip, tree, complete, store) {
            Ok(Some(rules)) => rules,
            Ok(None) => return SourceRules::None,
            Err(refusal) => return SourceRules::Refused(refusal),
        };
        let bytes = rules.heap_bytes();
        let all = self.sources.values().fold(bytes, |sum, s| sum.saturating_add(s.rule_bytes));
        if all > self.limits.rule_bytes {
            return SourceRules::Refused(RulesRefusal::TooManyBytes(self.limits.rule_bytes));
        }
        self.sources.entry(ip).or_default().rule_bytes = bytes;
        SourceRules::Active(rules)
    }

    /// Counts the commit in dom0's database, whatever came of it. Missing or garbage counts as 0.
    fn acknowledge(&mut self, ip: Option<IpAddr>, tree: &Tree, store: &Store) {
        let key = format!("{HANDLED_PREFIX}{}", tree.ip_text());
        let path = match Path::entry(&key) {
            Ok(path) => path,
            // dom0 would cut a longer key and store another one.
            Err(reason) => return self.log(Notice::NotAcknowledged { tree: *tree, reason }),
        };
        let stored = store.get_str(&key).and_then(|text| text.parse().ok()).unwrap_or(0_u64);
        let source = ip.and_then(|ip| self.sources.get_mut(&ip));
        let before = source.as_ref().and_then(|source| source.handled).unwrap_or(stored);
        let counter = before.checked_add(1).unwrap_or(1);
        if let Some(source) = source {
            source.handled = Some(counter);
        }
        if is_planted(Defect::HandledNotWritten) {
            return;
        }
        self.actions.push_back(Action::WriteDb { path, value: format!("{counter}").into_bytes() });
    }

    fn on_key(&mut self, key: &str, store: &Store) {
        if is_planted(Defect::RulesBeforeMark)
            && let Some((ip_text, _)) =
                key.strip_prefix(MARK_PREFIX).and_then(|rest| rest.split_once('/'))
            && let (Ok(tree), Ok(ip)) = (Tree::new(ip_text), ip_text.parse())
        {
            let rules = self.load(ip, &tree, Ok(()), store);
            self.actions.push_back(Action::SetRules { ip, rules });
        }
        if let Some(text) = key.strip_prefix(HANDLED_PREFIX) {
            self.forget_handled(|ip| text.parse() == Ok(ip));
        }
        self.read_where(|candidate| candidate == key, store);
        if key.starts_with(features::KEY_PREFIX) {
            self.read_features(store);
        }
        if key.starts_with(config::mapped::PREFIX) {
            self.read_mapped(store);
        }
    }

    fn on_prefix(&mut self, prefix: &str, store: &Store) {
        if HANDLED_PREFIX.starts_with(prefix) {
            self.forget_handled(|_| true);
        }
        self.read_where(|candidate| candidate.starts_with(prefix), store);
        if features::KEY_PREFIX.starts_with(prefix) {
            self.read_features(store);
        }
        let mapped = config::mapped::PREFIX;
        if mapped.starts_with(prefix) || prefix.starts_with(mapped) {
            self.read_mapped(store);
        }
    }

    /// Reads again every group with a key that `touched` names.
    fn read_where(&mut self, touched: impl Fn(&str) -> bool, store: &Store) {
        let any = |keys: &[&str]| keys.iter().any(|key| touched(key));
        if any(&[config::SEED_KEY]) {
            self.read_seed(store);
        }
        if any(&[config::NAME_KEY]) {
            self.read_name(store);
        }
        if any(&[config::DEBUG_KEY]) {
            self.read_features(store);
        }
        if any(&config::CONNECTED_KEYS) {
            self.read_connected(store);
        }
        if any(&config::DOWNLINK_KEYS) {
            self.read_downlink(store);
        }
        if any(&config::UPLINK_KEYS) {
            self.read_uplink(store);
        }
    }

    /// The NetVM that is a client of ours, if the command line describes one.
    #[must_use]
    pub fn client_side_netvm(&self) -> Option<ClientSideNetvm> {
        self.command_line.client_side_netvm()
    }

    fn read_uplink(&mut self, store: &Store) {
        let netvm = self.client_side_netvm();
        if self.uplink_link == UplinkLink::Connected && (self.has_store || netvm.is_some()) {
            let (uplink, problems) = match netvm {
                Some(netvm) => (config::client_side_uplink(&netvm), Vec::new()),
                None => collect(|report| config::uplink(store, report)),
            };
            if is_planted(Defect::OwnAddressStays) && self.uplink.value != UplinkConfig::default() {
                return;
            }
            let fresh = self.uplink.update(uplink, problems);
            self.log_all(fresh, Notice::Config);
            self.announce_network();
        }
    }

    fn read_downlink(&mut self, store: &Store) {
        let (downlink, problems) = collect(|report| config::downlink(store, report));
        let fresh = self.downlink.update(downlink, problems);
        self.log_all(fresh, Notice::Config);
        self.announce_network();
    }

    fn read_connected(&mut self, store: &Store) {
        let (mut connected, problems) = collect(|report| config::connected_ips(store, report));
        // To dom0 the NetVM is a client like any other; to us its address is beyond the uplink.
        let gateway = self.client_side_netvm().map(|netvm| IpAddr::V4(netvm.gateway));
        connected.retain(|ip| Some(*ip) != gateway);
        let fresh = self.connected.update(connected, problems);
        self.log_all(fresh, Notice::Config);
        self.announce_network();
    }

    fn read_mapped(&mut self, store: &Store) {
        let (mapped, problems) = collect(|report| config::mapped_ips(store, report));
        let fresh = self.mapped.update(mapped, problems);
        self.log_all(fresh, Notice::Config);
        self.announce_network();
    }

    fn announce_network(&mut self) {
        let Self { uplink, downlink, connected, mapped, .. } = self;
        let network =
            config::network(&uplink.value, &downlink.value, &connected.value, &mapped.value);
        if network != self.network {
            self.network = network.clone();
            self.actions.push_back(Action::SetNetwork(network));
        }
    }

    fn read_name(&mut self, store: &Store) {
        let before = self.name.value;
        let (name, problems) = collect(|report| config::name(store, report));
        let fresh = self.name.update(name, problems);
        self.log_all(fresh, Notice::Config);
        if let Some(name) = name.filter(|_| name != before) {
            self.log(Notice::Name(name));
        }
    }

    fn read_seed(&mut self, store: &Store) {
        let (seed, problems) = collect(|report| config::random_seed(store, report));
        self.log_all(problems, Notice::Config);
        self.actions.extend(seed.map(Action::AddEntropy));
    }

    fn read_features(&mut self, store: &Store) {
        let (debug, problems) = collect(|report| config::debug_mode(store, report));
        let fresh = self.debug.update(debug, problems);
        self.log_all(fresh, Notice::Config);
        let (words, problems) = collect(|report| Words::of_features(store, report));
        let features = Features::new(&words, &self.command_line, debug);
        let fresh = self.feature_words.update(words, problems);
        self.log_all(fresh, Notice::Word);
        if features != self.features {
            self.features = features.clone();
            self.actions.push_back(Action::SetFeatures(features));
        }
    }

    fn forget_handled(&mut self, which: impl Fn(IpAddr) -> bool) {
        for (_, source) in self.sources.iter_mut().filter(|(ip, _)| which(**ip)) {
            source.handled = None;
        }
    }

    fn log_all<E>(&mut self, problems: Vec<E>, notice: impl Fn(E) -> Notice) {
        self.actions.extend(problems.into_iter().map(|problem| Action::Log(notice(problem))));
    }

    fn log(&mut self, notice: Notice) {
        self.actions.push_back(Action::Log(notice));
    }
}

/// The source that a tree is about, if its name is an address.
fn address(tree: &Tree) -> Option<IpAddr> {
    tree.ip_text().parse().ok()
}

/// Nothing: the tree has no entries, so that the source has no rules.
fn parse(
    ip: IpAddr,
    tree: &Tree,
    complete: Result<(), Refusal>,
    store: &Store,
) -> Result<Option<CompiledSet>, RulesRefusal> {
    complete.map_err(RulesRefusal::Incomplete)?;
    let entries = || store.tree_entries(tree).map(|(key, value)| (key.as_bytes(), value));
    if entries().next().is_none() {
        return Ok(None);
    }
    let compiled = RuleSet::parse(Family::of(ip), entries()).and_then(CompiledSet::new);
    compiled.map(Some).map_err(RulesRefusal::Parse)
}

#[cfg(test)]
mod tests;
