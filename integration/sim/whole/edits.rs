//! dom0 edits rules: whole, half, wrong, narrower, wider.

use super::model::{Key, UNMARKED};
use super::names::Mood;
use super::rules::{Destination, Entry, PORTS, Protocol, Rule, Target, Tree};
use super::traffic::FIRST_PORT;
use crate::frames;
use crate::world::World;

/// Turns in which a commit is acknowledged while the database is there.
const PATIENCE: usize = 40;
/// A TTL counts as a minute at least; after three quarters of it a name is asked for again. In ms, with some more; and the rest.
const REFRESH_MS: u64 = 47_000;
const REST_MS: u64 = 18_000;
/// Rules of one tree at most.
const MOST_RULES: usize = 8;

impl World {
    /// As dom0 would say through QubesDB before we start: those who were always there may do everything.
    pub(crate) fn write_first_rules(&mut self) {
        let list: Vec<String> = self.model.sources.iter().map(|source| source.ip()).collect();
        self.unit.dom0.set("/connected-ips", &list.join(" "));
        self.unit.dom0.set("/connected-ips6", "");
        for owner in 0..UNMARKED {
            self.write_tree(owner, Tree::of([Rule::all(true)]));
            self.mark(owner);
        }
    }

    /// They may only talk to their server.
    pub(crate) fn narrow_unmarked(&mut self) -> Result<(), String> {
        let target =
            Target { protocol: Protocol::Udp, address: frames::SERVER, port: frames::SERVER_PORT };
        for owner in 0..UNMARKED {
            self.replace(owner, Tree::of([Rule::about(true, target)]))?;
        }
        Ok(())
    }

    /// Writes a tree as dom0 does, without its mark.
    fn write_tree(&mut self, owner: usize, tree: Tree) {
        let path = format!("/qubes-firewall/{}", self.model.sources[owner].ip());
        let dom0 = &mut self.unit.dom0;
        dom0.remove(&format!("{path}/"));
        if tree.has_policy {
            dom0.set(&format!("{path}/policy"), "drop");
        }
        for (number, entry) in &tree.rules {
            dom0.set(&format!("{path}/{number:04}"), &entry.text());
        }
        self.model.sources[owner].tree = tree;
    }

    fn mark(&mut self, owner: usize) {
        let path = format!("/qubes-firewall/{}", self.model.sources[owner].ip());
        self.unit.dom0.set(&path, "");
        self.model.committed(owner, self.unit.dom0.is_live());
    }

    /// Writes a tree and its mark, and waits until it is in force. Whether that can be known.
    pub(crate) fn replace(&mut self, owner: usize, tree: Tree) -> Result<bool, String> {
        self.write_tree(owner, tree);
        self.mark(owner);
        self.is_settled(owner)
    }

    fn is_settled(&mut self, owner: usize) -> Result<bool, String> {
        if !self.unit.dom0.is_live() {
            return Ok(false);
        }
        for _ in 0..PATIENCE {
            if self.model.sources[owner].is_settled() {
                return Ok(true);
            }
            self.turns(1)?;
        }
        Err(format!("a commit of {} is not acknowledged", self.model.sources[owner].ip()))
    }

    fn any_tree(&mut self) -> Tree {
        let count = self.random.usize(1..MOST_RULES);
        let mut rules: Vec<Rule> = (0..count).map(|_| Rule::any(&mut self.random)).collect();
        if self.random.u32(0..3) == 0 {
            rules.push(Rule::all(true));
        }
        Tree::of(rules)
    }

    /// Any of the clients whose rules change, attached or not.
    pub(crate) fn any_owner(&mut self) -> usize {
        UNMARKED + self.random.usize(0..self.clients.len())
    }

    pub(crate) fn edit(&mut self) -> Result<bool, String> {
        let (owner, tree) = (self.any_owner(), self.any_tree());
        if self.random.bool() {
            return self.replace(owner, tree);
        }
        // Without waiting: other things happen meanwhile.
        self.write_tree(owner, tree);
        self.mark(owner);
        Ok(true)
    }

    /// The same tree, a rule more at its start.
    fn with_first(&self, owner: usize, first: Rule) -> Tree {
        let rules = self.model.sources[owner].tree.rules.values();
        let rest = rules.filter_map(|entry| match entry {
            Entry::Rule(rule) => Some(*rule),
            Entry::Garbage(_) => None,
        });
        let is_other =
            |rule: &Rule| rule.destination != first.destination || rule.ports != first.ports;
        Tree::of([first].into_iter().chain(rest.filter(is_other).take(MOST_RULES)))
    }

    fn client_of(&self, key: &Key) -> Option<usize> {
        let is_it = |which: &usize| {
            let client = &self.clients[*which];
            client.owner == key.owner && client.is_attached() && client.rests == 0
        };
        (0..self.clients.len()).find(is_it)
    }

    /// A flow that stands is forbidden: it ends, both ways, with the acknowledgement. Another one goes on.
    pub(crate) fn narrow(&mut self) -> Result<bool, String> {
        let Some(key) = self.any_standing() else { return Ok(false) };
        let owner = usize::from(key.owner);
        let tree = self.with_first(owner, Rule::about(false, key.target()));
        if !self.replace(owner, tree)? {
            return Ok(false);
        }
        // The oracle looks whether anything of it passes.
        self.answers(key)?;
        if let Some(which) = self.client_of(&key) {
            self.sends(which, key)?;
            self.answers(key)?;
        }
        self.others_go_on(&key)?;
        Ok(true)
    }

    fn others_go_on(&mut self, but: &Key) -> Result<(), String> {
        let flows: Vec<Key> = self.model.flows.keys().copied().collect();
        for key in flows.iter().filter(|key| *key != but && key.owner == but.owner).take(3) {
            self.answers(*key)?;
        }
        Ok(())
    }

    /// What was forbidden is allowed, at once.
    pub(crate) fn widen(&mut self) -> Result<bool, String> {
        let Some(which) = self.any_client() else { return Ok(false) };
        let key = self.any_key(which);
        let owner = usize::from(key.owner);
        let tree = self.with_first(owner, Rule::about(true, key.target()));
        if !self.replace(owner, tree)? || self.netvm.is_none() {
            return Ok(false);
        }
        if !self.sends(which, key)? {
            return Err(format!("{key:?} was allowed and does not leave"));
        }
        self.answers(key)?;
        self.others_go_on(&key)?;
        Ok(true)
    }

    /// A tree with a line that is none: nothing of its client may leave.
    pub(crate) fn garble(&mut self) -> Result<bool, String> {
        let owner = self.any_owner();
        let mut tree = self.with_first(owner, Rule::all(true));
        match self.random.u32(0..4) {
            0 => tree.has_policy = false,
            _ => {
                let number = self.random.u16(0..20);
                tree.rules.insert(number, Entry::garbage(&mut self.random));
            }
        }
        let is_in_force = self.replace(owner, tree)?;
        self.owner_sends(owner)?;
        Ok(is_in_force)
    }

    fn owner_sends(&mut self, owner: usize) -> Result<(), String> {
        let is_it = |which: &usize| {
            let client = &self.clients[*which];
            usize::from(client.owner) == owner && client.is_attached() && client.rests == 0
        };
        let Some(which) = (0..self.clients.len()).find(is_it) else { return Ok(()) };
        let key = self.any_key(which);
        self.sends(which, key).map(drop)
    }

    /// dom0 writes a tree and no mark: what was in force stays.
    pub(crate) fn half_write(&mut self) -> Result<bool, String> {
        let owner = self.any_owner();
        let mut tree = self.any_tree();
        tree.has_policy = self.random.bool();
        if self.random.bool() {
            tree.rules.insert(1, Entry::Rule(Rule::all(true)));
        }
        self.write_tree(owner, tree);
        self.turns(4)?;
        for _ in 0..4 {
            self.owner_sends(owner)?;
        }
        Ok(self.unit.dom0.is_live())
    }

    /// A client's tree is gone: nothing of it may leave.
    pub(crate) fn remove_rules(&mut self) -> Result<bool, String> {
        let owner = self.any_owner();
        let is_gone = self.replace(owner, Tree::default())?;
        self.owner_sends(owner)?;
        Ok(is_gone)
    }

    /// A name that is answered is allowed: its addresses are, after seconds.
    pub(crate) fn allow_name(&mut self) -> Result<bool, String> {
        let Some(which) = self.any_client() else { return Ok(false) };
        let name = self.random.usize(0..self.model.names.len());
        self.model.names[name].mood = Mood::Answers;
        let (owner, port) = (self.clients[which].owner, PORTS[0]);
        let first = Rule {
            accepts: true,
            destination: Destination::Name(name),
            protocol: Some(Protocol::Udp),
            ports: Some((port, port)),
        };
        let tree = self.with_first(owner.into(), first);
        if !self.allow_only(owner.into(), name, tree)? {
            return Ok(false);
        }
        self.reaches(which, name, port).map(|_| true)
    }

    /// Sets rules with a name that no others have, so that it is asked for at once. Whether that worked.
    fn allow_only(&mut self, owner: usize, name: usize, tree: Tree) -> Result<bool, String> {
        // A name that nobody asks for any more is forgotten.
        self.replace(owner, Tree::default())?;
        let is_used = (0..self.model.sources.len()).any(|other| self.uses(other, name));
        let is_in_force = self.replace(owner, tree)?;
        self.pass(3000)?;
        Ok(!is_used && is_in_force && self.netvm.is_some())
    }

    /// An address of a name has to be reached.
    fn reaches(&mut self, which: usize, name: usize, port: u16) -> Result<Key, String> {
        let address = self.model.names[name].addresses[0];
        let target = Target { protocol: Protocol::Udp, address, port };
        let key = Key::of(self.clients[which].owner, FIRST_PORT, target);
        match self.sends(which, key)? {
            true => Ok(key),
            false => Err(format!("an address of a name that is allowed is refused: {key:?}")),
        }
    }

    /// A name moves to another address: that one counts once the TTL is nearly over, the old one no more when it is, but for
    /// the flow that has it.
    pub(crate) fn move_name(&mut self) -> Result<bool, String> {
        let Some(which) = self.any_client() else { return Ok(false) };
        let name = self.random.usize(0..self.model.names.len());
        let (owner, port) = (self.clients[which].owner, PORTS[0]);
        let known = &mut self.model.names[name];
        (known.mood, known.ttl) = (Mood::Answers, [0, 1, 30][self.random.usize(0..3)]);
        known.addresses = vec![[192, 0, 2, self.random.u8(100..140)]];
        let rule = Rule {
            accepts: true,
            destination: Destination::Name(name),
            protocol: Some(Protocol::Udp),
            ports: None,
        };
        if !self.allow_only(owner.into(), name, Tree::of([rule]))? {
            return Ok(false);
        }
        let old = self.reaches(which, name, port)?;
        self.model.names[name].addresses = vec![[192, 0, 2, self.random.u8(140..180)]];
        self.pass(REFRESH_MS)?;
        self.reaches(which, name, port)?;
        self.model.names[name].is_heard();
        self.pass(REST_MS)?;
        // The oracle looks whether a new flow to the old address leaves.
        self.sends(which, Key { port: FIRST_PORT + 1, ..old })?;
        match self.sends(which, old)? {
            true => Ok(true),
            false => Err(format!("a flow lost the address of its name: {old:?}")),
        }
    }

    /// Whether rules that are or were in force have a name.
    fn uses(&self, owner: usize, name: usize) -> bool {
        self.model.sources[owner].names().any(|used| used == name)
    }

    /// What the resolver says of a name changes, and how.
    pub(crate) fn change_name(&mut self) {
        let name = self.random.usize(0..self.model.names.len());
        self.model.names[name].change(&mut self.random);
    }
}
