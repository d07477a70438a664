//! Tests of the state machine on a clock of their own.

mod answers;
mod messages;
mod names;
mod stream;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use rules::{Family, HostName, NameMatch, Names, RuleSet};

use super::testing::*;
use super::*;
use crate::limits;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 6);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 139, 1, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 139, 1, 2);
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 137, 0, 10));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 137, 0, 11));
const NAME: &str = "www.example.org";
const X: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 6);
const Y: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

const LIMITS: Limits =
    Limits { names: 8, uses: 16, names_per_client: 4, addresses: 16, addresses_per_name: 4 };

/// A name as rules hold it.
fn host_name(text: &str) -> HostName {
    let line = format!("action=accept dsthost={text}");
    let entries = [(&b"policy"[..], &b"drop"[..]), (&b"0000"[..], line.as_bytes())];
    let set = RuleSet::parse(Family::V4, entries).unwrap();
    set.names().next().unwrap().clone()
}

/// The machine, a clock and the ports of our address.
struct Script {
    dns: Dns,
    nat: Nat,
    now: Instant,
}

impl Script {
    fn with_limits(limits: Limits) -> Self {
        let key = HashKey(3, 5);
        let tables = limits::Limits {
            clients: 1,
            addresses: 1,
            flows: 16,
            flows_per_client: 16,
            fragment_bytes: 0,
        };
        let nat = Nat::new(&tables, key, Random::new(1, 2)).unwrap();
        let dns = Dns::new(limits, key, Random::new(7, 9)).unwrap();
        Self { dns, nat, now: Instant::from_nanos(5_000_000_000) }
    }

    /// Two servers, and one client with these names.
    fn new(names: &[&str]) -> Self {
        let mut script = Self::with_limits(LIMITS);
        script.servers(&[FIRST, SECOND]);
        script.names(CLIENT, names);
        script
    }

    fn servers(&mut self, servers: &[Ipv4Addr]) {
        let route = Route::default().with(Some(OWN), servers);
        self.dns.set_route(self.now, Some(route), &mut self.nat);
    }

    fn names(&mut self, client: IpAddr, names: &[&str]) -> usize {
        let names: Vec<HostName> = names.iter().map(|name| host_name(name)).collect();
        self.dns.set_names(self.now, client, names.iter())
    }

    /// The next packet, checked as far as this side can: addresses, lengths, checksums.
    fn packet(&mut self) -> Option<Vec<u8>> {
        let mut out = [0xdd; 610];
        let len = self.dns.transmit(self.now, &mut self.nat, &mut out)?;
        let packet = out[..len].to_vec();
        assert_eq!(
            (packet[0], usize::from(u16::from_be_bytes([packet[2], packet[3]]))),
            (0x45, len)
        );
        assert_eq!(crate::testing::sum(&[&packet[..20]]), 0xffff);
        assert_eq!(packet[12..16], OWN.octets());
        Some(packet)
    }

    /// The next question by UDP; nothing else may be sent.
    fn asked(&mut self) -> Option<Asked> {
        let packet = self.packet()?;
        let udp = &packet[20..];
        assert_eq!((packet[9], u16::from_be_bytes([udp[2], udp[3]])), (17, 53));
        assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len());
        let pseudo = [&packet[12..20], &[0, 17], &udp[4..6]].concat();
        assert_eq!(crate::testing::sum(&[&pseudo, udp]), 0xffff);
        let message = &udp[8..];
        assert_eq!(
            message[2..12],
            [1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
            "recursion desired, one question"
        );
        Some(Asked {
            server: Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap()).into(),
            port: u16::from_be_bytes([udp[0], udp[1]]),
            id: u16::from_be_bytes([message[0], message[1]]),
            question: message[12..].to_vec(),
        })
    }

    fn all_asked(&mut self) -> Vec<Asked> {
        core::iter::from_fn(|| self.asked()).collect()
    }

    /// The one question that goes out now.
    #[track_caller]
    fn ask(&mut self) -> Asked {
        let mut all = self.all_asked();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn receive(&mut self, from: IpAddr, port: u16, bytes: &[u8]) -> Taken {
        self.dns.receive(self.now, from, port, bytes, &mut self.nat)
    }

    fn reply(&mut self, asked: &Asked, reply: &Reply) -> Taken {
        self.receive(asked.server, asked.port, &reply.bytes())
    }

    /// Asks and answers with one address.
    fn resolve(&mut self, ttl: u32, address: Ipv4Addr) -> Asked {
        let asked = self.ask();
        assert_eq!(self.reply(&asked, &Reply::to(&asked).a(ttl, address)), Taken::Used);
        asked
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.dns.on_timer(self.now, &mut self.nat);
    }

    /// Waits for the next thing that the machine wants to do.
    fn wait_deadline(&mut self) {
        self.now = self.now.max(self.dns.next_deadline().unwrap());
        self.dns.on_timer(self.now, &mut self.nat);
    }

    fn look(&self, client: IpAddr, name: &str, address: impl Into<IpAddr>) -> NameMatch {
        self.dns.view(self.now, client, None).lookup(&host_name(name), address.into())
    }

    fn knows(&self, address: Ipv4Addr) -> NameMatch {
        self.look(CLIENT, NAME, address)
    }

    fn learn(&mut self, client: IpAddr, reply: &Reply) {
        self.dns.learn(self.now, &reply.bytes(), |family| {
            (Family::of(client) == family).then_some(client)
        });
    }
}
