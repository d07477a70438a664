//! The uplink: our addresses, the resolvers, and the MAC address of the next hop.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use crate::clients::ClientPort;
use crate::conntrack::Own;
use crate::port::PortCaps;
use crate::time::Instant;
use crate::visible::MappedIp;
use crate::wire::Mac;

/// Requests for the gateway's MAC address after the uplink came up, and the time between two of them.
const REQUESTS: u8 = 5;
const REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// How long an answer to a request is believed.
const PATIENCE: Duration = Duration::from_secs(3);

/// Addresses of one family, as QubesDB has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FamilyConfig<A> {
    /// Our address on the uplink (`/qubes-ip`).
    pub address: Option<A>,
    /// The next hop (`/qubes-gateway`).
    pub gateway: Option<A>,
    /// The address that clients use as their gateway (`/qubes-netvm-gateway`).
    pub client_gateway: Option<A>,
    /// The resolvers that we use (`/qubes-primary-dns`, `/qubes-secondary-dns`).
    pub dns: Vec<A>,
    /// The resolvers that clients use (`/qubes-netvm-primary-dns`, `/qubes-netvm-secondary-dns`).
    pub client_dns: Vec<A>,
}

impl<A> Default for FamilyConfig<A> {
    fn default() -> Self {
        Self {
            address: None,
            gateway: None,
            client_gateway: None,
            dns: Vec::new(),
            client_dns: Vec::new(),
        }
    }
}

/// The network configuration of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkConfig {
    /// IPv4.
    pub v4: FamilyConfig<Ipv4Addr>,
    /// IPv6.
    pub v6: FamilyConfig<Ipv6Addr>,
    /// Addresses of all clients that dom0 knows, attached or not (`/connected-ips`, `/connected-ips6`).
    pub connected: Vec<IpAddr>,
    /// Clients that are told other addresses than their real ones (`/mapped-ip`), ascending.
    pub mapped: Vec<MappedIp>,
}

impl NetworkConfig {
    /// Our own address towards the uplink.
    pub(crate) fn own_address(&self, family_of: IpAddr) -> Option<IpAddr> {
        match family_of {
            IpAddr::V4(_) => self.v4.address.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.address.map(IpAddr::V6),
        }
    }

    /// The same of both families at once.
    pub(crate) fn own(&self) -> Own {
        let unspecified = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        Own {
            v4: self.v4.address.unwrap_or(unspecified.0),
            v6: self.v6.address.unwrap_or(unspecified.1),
        }
    }

    /// The address that clients know us by, in which errors to them come.
    pub(crate) fn client_gateway(&self, family_of: IpAddr) -> Option<IpAddr> {
        let gateway = match family_of {
            IpAddr::V4(_) => self.v4.client_gateway.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.client_gateway.map(IpAddr::V6),
        };
        gateway.or_else(|| self.own_address(family_of))
    }

    /// Whether the firewall itself answers to `address`.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => [self.v4.address, self.v4.client_gateway].contains(&Some(v4)),
            IpAddr::V6(v6) => [self.v6.address, self.v6.client_gateway].contains(&Some(v6)),
        }
    }

    /// Whether there is IPv6 at all: without any address of ours Qubes' own firewall drops all of it.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.v6.address.is_some() || self.v6.client_gateway.is_some()
    }

    /// Whether `address` is one of the resolvers that we use ourselves.
    pub(crate) fn is_resolver(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.dns.contains(&v4),
            IpAddr::V6(v6) => self.v6.dns.contains(&v6),
        }
    }

    /// Where DNS to `address` goes: the n-th resolver of the clients is the n-th of ours, ours used cyclically.
    pub(crate) fn redirect_dns(&self, address: IpAddr) -> Redirect {
        match address {
            IpAddr::V4(v4) => redirect(&self.v4, v4),
            IpAddr::V6(v6) => redirect(&self.v6, v6),
        }
    }
}

/// What becomes of a DNS packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// Its destination is no resolver that clients were given.
    Unchanged,
    /// It goes here instead.
    To(IpAddr),
    /// We have no resolver.
    Nowhere,
}

fn redirect<A: Copy + PartialEq + Into<IpAddr>>(config: &FamilyConfig<A>, address: A) -> Redirect {
    let Some(position) = config.client_dns.iter().position(|known| *known == address) else {
        return Redirect::Unchanged;
    };
    match position.checked_rem(config.dns.len()).and_then(|nth| config.dns.get(nth)) {
        Some(own) => Redirect::To((*own).into()),
        None => Redirect::Nowhere,
    }
}

/// The uplink's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkPort {
    /// Our MAC address there.
    pub mac: Mac,
    /// What the backend can receive.
    pub caps: PortCaps,
}

/// What the uplink should say next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announcement {
    /// Our own address, unasked.
    Own,
    /// A question for the gateway's.
    Gateway,
}

/// State of an attached uplink.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uplink {
    pub(crate) port: UplinkPort,
    pub(crate) v4: NextHop,
    pub(crate) v6: NextHop,
}

impl Uplink {
    pub(crate) fn new(now: Instant, port: UplinkPort) -> Self {
        Self::towards(now, port, Mac::GATEWAY)
    }

    /// An uplink to a NetVM behind one of our own vifs: the toolstack says its MAC address.
    pub(crate) fn of_client(now: Instant, port: &ClientPort) -> Self {
        let ours = UplinkPort { mac: Mac::GATEWAY, caps: port.caps };
        Self::towards(now, ours, port.mac)
    }

    /// The same on another vif of the NetVM.
    pub(crate) fn moved_to(&self, port: &ClientPort) -> Self {
        Self::of_client(self.v4.next_at, port)
    }

    fn towards(now: Instant, port: UplinkPort, first: Mac) -> Self {
        let next_hop = NextHop::new(now, first);
        Self { port, v4: next_hop, v6: next_hop }
    }

    /// MAC address of the next hop of packets of this family.
    pub(crate) fn next_hop(&self, family_of: IpAddr) -> Mac {
        if family_of.is_ipv4() { self.v4.mac() } else { self.v6.mac() }
    }

    /// The next frame of our own that is due, and its family.
    pub(crate) fn announce(&mut self, now: Instant, network: &NetworkConfig) -> Option<Announced> {
        let v4 = network.v4.address.and_then(|_| self.v4.announce(now)).map(Announced::V4);
        let v6 = || network.v6.address.and_then(|_| self.v6.announce(now)).map(Announced::V6);
        v4.or_else(v6)
    }

    /// When [`Uplink::announce`] has something to say, if ever.
    pub(crate) fn next_deadline(&self, network: &NetworkConfig) -> Option<Instant> {
        let v4 = network.v4.address.and_then(|_| self.v4.next_deadline());
        let v6 = network.v6.address.and_then(|_| self.v6.next_deadline());
        [v4, v6].into_iter().flatten().min()
    }
}

/// An announcement and how it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announced {
    /// By ARP.
    V4(Announcement),
    /// By neighbour discovery.
    V6(Announcement),
}

/// Way to the next hop of one family. Its MAC address starts as the one that every Qubes NetVM has and is replaced by
/// what the gateway answers, which NetVMs that are not Linux need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NextHop {
    /// Before the gateway has answered, and since.
    first: Mac,
    mac: Mac,
    announced: bool,
    requests_left: u8,
    next_at: Instant,
    /// Answers are believed until then.
    pending_until: Option<Instant>,
}

impl NextHop {
    fn new(now: Instant, first: Mac) -> Self {
        Self {
            first,
            mac: first,
            announced: false,
            requests_left: REQUESTS,
            next_at: now,
            pending_until: None,
        }
    }

    /// MAC address of the next hop.
    pub(crate) fn mac(&self) -> Mac {
        self.mac
    }

    /// Asks anew, after the gateway's address changed.
    pub(crate) fn restart(&mut self) {
        *self = Self::new(self.next_at, self.first);
    }

    fn next_deadline(&self) -> Option<Instant> {
        (!self.announced || self.requests_left > 0).then_some(self.next_at)
    }

    fn announce(&mut self, now: Instant) -> Option<Announcement> {
        if now < self.next_deadline()? {
            return None;
        }
        if !self.announced {
            self.announced = true;
            return Some(Announcement::Own);
        }
        self.requests_left = self.requests_left.checked_sub(1)?;
        self.next_at = now.after(REQUEST_INTERVAL);
        self.pending_until = Some(now.after(PATIENCE));
        Some(Announcement::Gateway)
    }

    /// Takes what the gateway answered; false if it was not asked.
    pub(crate) fn learn(&mut self, now: Instant, mac: Mac) -> bool {
        if self.pending_until.is_none_or(|until| now > until) || !mac.is_station() {
            return false;
        }
        self.mac = mac;
        self.requests_left = 0;
        self.pending_until = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(own: &[u8], clients: &[u8]) -> NetworkConfig {
        let mut config = NetworkConfig::default();
        config.v4.dns = own.iter().map(|n| Ipv4Addr::new(10, 139, 1, *n)).collect();
        config.v4.client_dns = clients.iter().map(|n| Ipv4Addr::new(10, 139, 2, *n)).collect();
        config
    }

    fn client_dns(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 139, 2, n).into()
    }

    fn own_dns(n: u8) -> Redirect {
        Redirect::To(Ipv4Addr::new(10, 139, 1, n).into())
    }

    #[test]
    fn the_nth_resolver_maps_to_the_nth() {
        let config = config(&[1, 2], &[1, 2]);
        assert_eq!(config.redirect_dns(client_dns(2)), own_dns(2));
        assert_eq!(config.redirect_dns(client_dns(3)), Redirect::Unchanged);
    }

    #[test]
    fn fewer_own_resolvers_are_used_cyclically() {
        let config = config(&[1, 2], &[1, 2, 3]);
        assert_eq!(config.redirect_dns(client_dns(3)), own_dns(1));
    }

    #[test]
    fn without_a_resolver_dns_goes_nowhere() {
        assert_eq!(config(&[], &[1]).redirect_dns(client_dns(1)), Redirect::Nowhere);
    }

    const PORT: UplinkPort =
        UplinkPort { mac: Mac([0, 0x16, 0x3e, 0, 0, 1]), caps: PortCaps::PLAIN };
    const ANSWER: Mac = Mac([0, 0x16, 0x3e, 9, 9, 9]);

    #[test]
    fn the_gateway_is_asked_a_bounded_number_of_times() {
        let mut now = Instant::from_nanos(5);
        let mut uplink = NextHop::new(now, Mac::GATEWAY);
        assert_eq!(uplink.announce(now), Some(Announcement::Own));
        for _ in 0..REQUESTS {
            assert_eq!(uplink.announce(now), Some(Announcement::Gateway));
            assert_eq!(uplink.announce(now), None);
            now = uplink.next_deadline().unwrap_or(now);
        }
        assert_eq!(uplink.next_deadline(), None);
        assert_eq!(uplink.announce(now.after(Duration::from_secs(99))), None);
        assert_eq!(uplink.mac, Mac::GATEWAY);
    }

    #[test]
    fn an_answer_counts_only_while_a_request_is_pending() {
        let now = Instant::from_nanos(0);
        let mut uplink = NextHop::new(now, Mac::GATEWAY);
        assert!(!uplink.learn(now, ANSWER));
        uplink.announce(now);
        uplink.announce(now);
        assert!(!uplink.learn(now, Mac::BROADCAST));
        assert!(!uplink.learn(now.after(PATIENCE * 2), ANSWER));
        assert!(uplink.learn(now.after(PATIENCE), ANSWER));
        assert_eq!(uplink.mac, ANSWER);
        assert!(!uplink.learn(now.after(PATIENCE), PORT.mac));
    }
}
