//! Host names in rules (`dsthost=`): resolved ahead of matching, by a resolver of our own.
//!
//! A state machine without I/O: it is handed packets and the time, and writes packets. Its parts:
//! - [`message`]: DNS messages, read and written; `name`: the forms of a name;
//! - `store`: which client uses which name, and the addresses it has;
//! - `resolver`: questions to the servers, by UDP and, with `stream`, by TCP; `packet`: the packets around them.
//!
//! Two things feed the store. Our own resolver asks for every name that a rule has, and again before its answer is too
//! old. And answers that a client gets from the resolvers of QubesDB (`Dns::learn`) feed that client's own names, so
//! that a rule follows a name whose addresses change from one question to the next. The answer must have come to a flow
//! of that client, by UDP and in one piece.
//!
//! Rules never wait for any of it: they ask a `View` of what is known now.

pub mod message;
mod name;
mod packet;
mod resolver;
mod store;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::net::IpAddr;
use core::num::NonZeroU16;
use core::time::Duration;

use rules::{Family, HostName, NameMatch, Names};

use crate::conntrack::index::HashKey;
use crate::limits::OutOfMemory;
use crate::nat::Nat;
use crate::nat::ports::Random;
use crate::time::Instant;
use message::Outcome;
pub use resolver::Problem;
use resolver::Resolver;
pub(crate) use resolver::{Route, Taken};
pub use store::{Limits, MAX_LIFE, MAX_NAMES, MAX_NEGATIVE_LIFE, MIN_LIFE, STALE};
use store::{NameId, Store};

/// DNS (RFC 1035).
pub(crate) const DNS_PORT: u16 = 53;

/// A name by which the rules accepted a flow: the flow keeps its address under that name until it ends. Every flow has
/// room for one, so it is small: one more than the name's slot, and its serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held(NonZeroU16, [u8; 4]);

impl Held {
    /// `None` if the name's slot is beyond [`MAX_NAMES`].
    fn of(name: NameId) -> Option<Self> {
        let slot = u16::try_from(name.slot).ok()?.checked_add(1)?;
        Some(Self(NonZeroU16::new(slot)?, name.serial.to_ne_bytes()))
    }

    fn name(self) -> NameId {
        let Self(slot, serial) = self;
        NameId { slot: u32::from(slot.get()).wrapping_sub(1), serial: u32::from_ne_bytes(serial) }
    }
}

/// Names, their addresses and the questions on their way.
#[derive(Debug)]
pub(crate) struct Dns {
    store: Store,
    resolver: Resolver,
    /// No rule has a name, and no question is on its way: nothing is to be done until a client gets names.
    is_quiet: bool,
}

/// What is known about names, for one client at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    dns: &'a Dns,
    now: Instant,
    client: IpAddr,
    held: Option<(Held, IpAddr)>,
}

impl Dns {
    pub(crate) fn new(limits: Limits, key: HashKey, random: Random) -> Result<Self, OutOfMemory> {
        let (store, resolver) = (Store::new(limits, key)?, Resolver::new(random)?);
        Ok(Self { store, resolver, is_quiet: false })
    }

    pub(crate) fn add_entropy(&mut self, seed: &[u8]) {
        self.resolver.add_entropy(seed);
    }

    /// Replaces the names of a client. Returns how many there was no room for.
    pub(crate) fn set_names<'a>(
        &mut self,
        now: Instant,
        client: IpAddr,
        names: impl Iterator<Item = &'a HostName>,
    ) -> usize {
        self.is_quiet = false;
        self.store.set_names(now, client, names)
    }

    /// Changes the way to the servers, or takes it away.
    pub(crate) fn set_route(&mut self, now: Instant, route: Option<Route>, nat: &mut Nat) {
        self.resolver.set_route(now, route, nat, &mut self.store);
    }

    /// Takes every question back. They are asked again on the next way that is set.
    pub(crate) fn abort(&mut self, nat: &mut Nat) {
        self.resolver.abort(nat);
    }

    /// Whether a port of our address is that of a question.
    pub(crate) fn owns_port(&self, protocol: u8, port: u16) -> bool {
        self.resolver.owns_port(protocol, port)
    }

    /// What the rules of `client` may know. A flow that they accepted before says by which name, and its address.
    pub(crate) fn view(
        &self,
        now: Instant,
        client: IpAddr,
        held: Option<(Held, IpAddr)>,
    ) -> View<'_> {
        View { dns: self, now, client, held }
    }

    /// Writes the next packet of our own, from its IP header on, and says how long it is.
    pub(crate) fn transmit(
        &mut self,
        now: Instant,
        nat: &mut Nat,
        out: &mut [u8],
    ) -> Option<usize> {
        self.resolver.transmit(now, nat, &mut self.store, out)
    }

    /// Takes a UDP datagram that came from the DNS port of `from` to a port of our own address.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        from: IpAddr,
        to_port: u16,
        payload: &[u8],
        nat: &mut Nat,
    ) -> Taken {
        self.resolver.receive(now, from, to_port, payload, nat, &mut self.store)
    }

    /// Takes a TCP segment that came from the DNS port of `from` to a port of our own address, from its IP header on.
    pub(crate) fn receive_segment(
        &mut self,
        now: Instant,
        from: IpAddr,
        to_port: u16,
        packet: &[u8],
        nat: &mut Nat,
    ) -> Taken {
        self.resolver.receive_segment(now, from, to_port, packet, nat, &mut self.store)
    }

    /// Takes an answer that one of our resolvers sent to a client; `client_of` gives the client's address of a family.
    /// A message that is none is nobody's business here: it goes to the client, as any other payload.
    pub(crate) fn learn(
        &mut self,
        now: Instant,
        payload: &[u8],
        client_of: impl FnOnce(Family) -> Option<IpAddr>,
    ) {
        let Ok(message) = message::read(payload) else { return };
        let family = message.kind().family();
        let Some(client) = client_of(family) else { return };
        let Some(name) = message.name() else { return };
        for name in [name, name.with_root()] {
            // Most answers are about names that no rule has: they cost no more than this.
            if !self.store.is_used(client, name.as_str(), family) {
                continue;
            }
            if let Ok(Outcome::Addresses { addresses, ttl_s }) = message.outcome() {
                let ttl = Duration::from_secs(ttl_s.into());
                self.store.learned(now, client, name.as_str(), &addresses, ttl);
            }
        }
    }

    pub(crate) fn on_timer(&mut self, now: Instant, nat: &mut Nat) {
        self.resolver.on_timer(now, nat, &mut self.store);
        self.store.sweep(now);
        self.is_quiet = self.store.is_empty() && self.resolver.is_idle();
    }

    /// Whether neither [`Dns::set_route`] nor [`Dns::on_timer`] has anything to do, whatever the time.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// When [`Dns::on_timer`] or [`Dns::transmit`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.is_quiet {
            return None;
        }
        [self.resolver.next_deadline(&self.store), self.store.next_sweep()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether [`Dns::take_change`] has something.
    pub(crate) fn has_changes(&self) -> bool {
        self.store.has_changes()
    }

    /// A client and a name of it whose addresses have changed since they were taken.
    pub(crate) fn take_change(&mut self) -> Option<(IpAddr, HostName)> {
        self.store.take_change()
    }

    /// The addresses of a client's name; one may come twice.
    pub(crate) fn addresses_of(
        &self,
        now: Instant,
        client: IpAddr,
        name: &HostName,
    ) -> impl Iterator<Item = IpAddr> {
        self.store.addresses_of(now, client, name.as_str())
    }

    /// Names that could not be resolved when they were asked for last.
    pub(crate) fn troubled(&self) -> usize {
        self.store.troubled()
    }

    /// A client, a name of it that cannot be resolved, and why; each is told once until it is resolved.
    pub(crate) fn take_problem(&mut self) -> Option<(IpAddr, HostName, Problem)> {
        self.store.take_problem()
    }

    /// Whether a question is on its way that was asked before, or failed already.
    #[cfg(test)]
    pub(crate) fn resolver_is_past_first_attempt(&self) -> bool {
        self.resolver.is_past_first_attempt()
    }
}

impl View<'_> {
    /// What a flow keeps of the name it is accepted by.
    pub(crate) fn hold(&self, name: &HostName) -> Option<Held> {
        self.dns.store.id_of(self.client, name.as_str()).and_then(Held::of)
    }

    /// The name under which a flow to `address` keeps it.
    fn held_name(&self, address: IpAddr) -> Option<&str> {
        let (held, _) = self.held.filter(|(_, held)| *held == address)?;
        self.dns.store.text_of(self.client, held.name())
    }
}

impl Names for View<'_> {
    fn lookup(&self, name: &HostName, address: IpAddr) -> NameMatch {
        if self.held_name(address) == Some(name.as_str()) {
            return NameMatch::Has;
        }
        self.dns.store.lookup(self.now, self.client, name.as_str(), address)
    }

    fn each_at(&self, address: IpAddr, found: &mut dyn FnMut(&str)) {
        if let Some(name) = self.held_name(address) {
            found(name);
        }
        self.dns.store.names_of(self.now, self.client, address, found);
    }

    fn is_known(&self, name: &HostName) -> bool {
        self.dns.store.is_known(self.client, name.as_str())
    }

    // What a flow holds is one address more and makes no name known: the stamp is the same with it and without.
    fn stamp(&self) -> Option<u64> {
        Some(self.dns.store.stamp())
    }
}
