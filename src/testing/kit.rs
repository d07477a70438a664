//! A firewall with a small network around it.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::sync::LazyLock;

use rules::{CompiledSet, Family, RuleSet};

use super::*;
use crate::config::DebugMode;
use crate::config::features::{Features, Words};
use crate::dns::testing::{self as dns_testing, Asked, Reply};
use crate::stats::PortStats;

/// Whether the fast path is to stay closed: `cargo xtask test` sets this where it breaks one of the stages, whose tests have
/// to notice.
pub(crate) fn is_fast_path_closed() -> bool {
    static IS_CLOSED: LazyLock<bool> =
        LazyLock::new(|| std::env::var_os("FIREWALL_TESTS_STAGES_ALONE").is_some());
    *IS_CLOSED
}

/// What the fast path does not take is left as it is.
struct OrNothing;

impl crate::fast::Ending for OrNothing {
    type Out = Option<Fate>;

    fn taken(fate: Fate) -> Option<Fate> {
        Some(fate)
    }

    fn not_taken(_: &mut Firewall, _: Instant, _: Origin, _: &mut Frame<'_>) -> Option<Fate> {
        None
    }
}

/// A firewall with two clients, an uplink, and a clock.
#[derive(Debug)]
pub(crate) struct Kit {
    pub(crate) fw: Firewall,
    pub(crate) now: Instant,
    page: Vec<u8>,
    /// Frames that took the fast path.
    pub(crate) fast: u32,
    /// Whether the state behind a frame that did not take it is compared, too.
    pub(crate) is_thorough: bool,
}

pub(crate) const CAPS: PortCaps =
    PortCaps { accepts_blank_v4: true, accepts_blank_v6: true, ..PortCaps::PLAIN };
pub(crate) const LIMITS: Limits = Limits {
    clients: 4,
    addresses: 16,
    flows: 64,
    flows_per_client: 32,
    fragment_bytes: 512 << 10,
};

pub(crate) fn vif(domid: u16, mac: Mac, ip: Ipv4Addr) -> ClientPort {
    ClientPort { domid, mac, ip4: Some(ip), ip6: None, caps: CAPS }
}

pub(crate) fn network() -> NetworkConfig {
    let v4 = FamilyConfig {
        address: Some(OWN),
        gateway: Some(NETVM),
        client_gateway: Some(OWN),
        dns: OWN_DNS.to_vec(),
        client_dns: CLIENT_DNS.to_vec(),
    };
    NetworkConfig {
        v4,
        connected: vec![A.into(), B.into(), ABSENT.into()],
        ..NetworkConfig::default()
    }
}

pub(crate) fn rules(lines: &[&str]) -> RulesState {
    let keys: Vec<String> = (0..lines.len()).map(|n| format!("{n:04}")).collect();
    let lines = keys.iter().zip(lines).map(|(key, line)| (key.as_bytes(), line.as_bytes()));
    let entries = [(&b"policy"[..], &b"drop"[..])].into_iter().chain(lines);
    let set = RuleSet::parse(Family::V4, entries).unwrap();
    RulesState::Active(CompiledSet::new(set).unwrap())
}

impl Kit {
    pub(crate) fn with_limits(limits: Limits) -> Self {
        let mut fw = Firewall::new(limits, *b"0123456789abcdef0123456789abcdef").unwrap();
        fw.set_network(network()).unwrap();
        fw.set_uplink(Instant::from_nanos(0), Some(UplinkPort { mac: MAC_UP, caps: CAPS }));
        fw.attach_client(ID_A, vif(10, MAC_A, A)).unwrap();
        fw.attach_client(ID_B, vif(11, MAC_B, B)).unwrap();
        let now = Instant::from_nanos(1_000_000_000);
        Self { fw, now, page: vec![0; 4096], fast: 0, is_thorough: false }
    }

    /// Both clients may do everything.
    pub(crate) fn new() -> Self {
        Self::with_limits(LIMITS).rules(A, &["action=accept"]).rules(B, &["action=accept"])
    }

    pub(crate) fn rules(mut self, ip: Ipv4Addr, lines: &[&str]) -> Self {
        self.set_rules(ip, rules(lines));
        self
    }

    pub(crate) fn set_rules(&mut self, ip: Ipv4Addr, state: RulesState) -> Generation {
        self.fw.set_rules(self.now, IpAddr::V4(ip), state).unwrap()
    }

    pub(crate) fn set_network(&mut self, change: impl FnOnce(&mut NetworkConfig)) {
        let mut config = self.fw.network().clone();
        change(&mut config);
        self.fw.set_network(config).unwrap();
    }

    /// Opens what the words `fw-allow`, `fw-forward` and `fw-filtering-by-address` say, given as on the command line.
    #[track_caller]
    pub(crate) fn expose(&mut self, words: &str) {
        let words = Words::of_command_line(words, &mut |problem| panic!("{problem}"));
        let features = Features::new(&Words::default(), &words, DebugMode::Off);
        self.fw.set_exposure(features.exposure);
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
    }

    pub(crate) fn bytes(&mut self, origin: Origin, bytes: &[u8], offload: Offload) -> Out {
        self.page[..bytes.len()].copy_from_slice(bytes);
        self.page[bytes.len()..].fill(0xdd);
        self.check_fast_path(origin, bytes, bytes.len(), offload);
        let mut frame = Frame::new(&mut self.page, bytes.len(), offload).unwrap();
        let fate = self.fw.handle(self.now, origin, &mut frame);
        assert_accepted(&self.fw);
        Out { fate, bytes: frame.bytes().to_vec(), offload: frame.offload }
    }

    /// Hands in a frame of which only the first `head` bytes are in its page. Gives what comes out: one frame, its tail
    /// included, or all segments of it.
    pub(crate) fn scattered(
        &mut self,
        origin: Origin,
        bytes: &[u8],
        head: usize,
        offload: Offload,
    ) -> Vec<Out> {
        self.check_fast_path(origin, &bytes[..head], bytes.len(), offload);
        let (mut page, tail) = (vec![0xdd; 4096.max(head)], &bytes[head..]);
        page[..head].copy_from_slice(&bytes[..head]);
        let mut frame = Frame::with_tail(&mut page, head, bytes.len(), offload).unwrap();
        let fate = self.fw.handle(self.now, origin, &mut frame);
        assert_accepted(&self.fw);
        let Fate::Segments(port) = fate else {
            let tail = &tail[..frame.tail_len()];
            let bytes = [frame.bytes(), tail].concat();
            return vec![Out { fate, bytes, offload: frame.offload }];
        };
        let (mut segments, fate) = (frame.segments().unwrap(), Fate::Send(port));
        let mut all = vec![];
        while let Some(len) = segments.next_len() {
            let (left, mut page) = (segments.left(), vec![0xdd; len]);
            let mut out = Frame::new(&mut page, 0, Offload::default()).unwrap();
            segments.write_next(&frame, tail, &mut out).unwrap();
            assert_eq!((out.len(), segments.left()), (len, left - 1));
            all.push(Out { fate, bytes: out.whole().unwrap().to_vec(), offload: out.offload });
        }
        all
    }

    /// Hands a frame to the fast path and to the stages, and leaves the firewall as it was: what comes out is the same, the
    /// state behind it too. What the fast path leaves to the stages it has not touched; of the state that is looked at only
    /// where [`Kit::is_thorough`] is set, as it takes long. Not with large tables: the tests that fill them would take minutes.
    #[track_caller]
    fn check_fast_path(&mut self, origin: Origin, head: &[u8], len: usize, offload: Offload) {
        if self.fw.limits().flows > LIMITS.flows || is_fast_path_closed() {
            return;
        }
        let before = self.fw.packet_state();
        let original = self.fw.replace_packet_state(before.clone());
        let mut after = |is_fast: bool| {
            let mut page = [head, &vec![0xdd; 4096_usize.saturating_sub(head.len())]].concat();
            let mut frame = Frame::with_tail(&mut page, head.len(), len, offload).unwrap();
            let fate = match is_fast {
                true => self.fw.fast_path::<OrNothing>(self.now, origin, &mut frame),
                false => Some(self.fw.handle_in_stages(self.now, origin, &mut frame)),
            };
            let of_frame = (frame.offload, frame.len(), frame.evidence, frame.segments());
            let accepted = frame.is_accepted();
            if fate.is_none() && !self.is_thorough {
                return (fate, accepted, String::new(), page);
            }
            let state = self.fw.replace_packet_state(before.clone());
            (fate, accepted, format!("{of_frame:?} {state:?}"), page)
        };
        let fast = after(true);
        if let (Some(_), is_accepted, ..) = fast {
            assert!(is_accepted, "the fast path sends what was not accepted");
            assert!(fast == after(false), "the fast path and the stages differ: {fast:?}");
            self.fast += 1;
        } else {
            let (_, _, state, page) = fast;
            assert_eq!(page[..head.len()], *head, "the fast path wrote into a frame and left it");
            let is_same = !self.is_thorough || state.ends_with(&format!("{before:?}"));
            assert!(is_same, "the fast path left traces");
        }
        self.fw.replace_packet_state(original);
    }

    pub(crate) fn send(&mut self, origin: Origin, build: &Build) -> Out {
        self.bytes(origin, &build.frame(), build.offload)
    }

    pub(crate) fn a(&mut self, build: &Build) -> Out {
        self.send(FROM_A, build)
    }

    pub(crate) fn b(&mut self, build: &Build) -> Out {
        self.send(FROM_B, build)
    }

    pub(crate) fn up(&mut self, build: Build) -> Out {
        self.send(Origin::Uplink, &build.up())
    }

    /// The next question of the resolver; ARP and ND before it are passed over.
    #[track_caller]
    pub(crate) fn asked(&mut self) -> Asked {
        self.try_asked().expect("a question")
    }

    pub(crate) fn try_asked(&mut self) -> Option<Asked> {
        self.fw.on_timer(self.now);
        loop {
            let (port, frame) = self.generated()?;
            assert_eq!(port, PortId::Uplink);
            let is_neighbour = frame[12..14] == [0x86, 0xdd] && frame[20] == 58;
            if is_neighbour || frame[12..14] == [8, 6] {
                continue;
            }
            let out = Out { fate: Fate::Send(port), bytes: frame, offload: Offload::default() };
            out.assert_sums();
            assert_eq!((out.src(), out.bytes[23], out.dport()), (OWN, 17, 53));
            let message = out.l4()[8..].to_vec();
            let id = u16::from_be_bytes([message[0], message[1]]);
            let (server, port) = (out.dst().into(), out.sport());
            return Some(Asked { server, port, id, question: message[12..].to_vec() });
        }
    }

    /// A datagram from a DNS server to one of our ports.
    pub(crate) fn dns(&mut self, from: IpAddr, port: u16, message: &[u8]) -> Out {
        let IpAddr::V4(from) = from else { panic!("an IPv4 server") };
        let mut l4 = [53u16, port, (8 + message.len()) as u16, 0].map(u16::to_be_bytes).concat();
        l4.extend(message);
        self.up(Build::raw(from, OWN, 17, l4).checksummed(6))
    }

    /// Answers the questions that are due as a DNS server that knows these names, and no others.
    pub(crate) fn serve_dns(&mut self, zone: &[(&str, &[Ipv4Addr])]) {
        while let Some(asked) = self.try_asked() {
            let known = zone
                .iter()
                .find(|(name, _)| asked.name().eq_ignore_ascii_case(&dns_testing::wire(name)));
            let reply = match known {
                Some((_, addresses)) => {
                    addresses.iter().fold(Reply::to(&asked), |reply, address| reply.a(60, *address))
                }
                None => Reply::to(&asked).rcode(3),
            };
            let out = self.dns(asked.server, asked.port, &reply.bytes());
            assert_eq!(out.fate, Fate::Consumed);
        }
    }

    /// The next frame that the firewall sends by itself.
    pub(crate) fn generated(&mut self) -> Option<(PortId, Vec<u8>)> {
        let mut frame = Frame::new(&mut self.page, 0, Offload::default()).unwrap();
        let port = self.fw.poll_generate(self.now, &mut frame);
        assert_accepted(&self.fw);
        Some((port?, frame.bytes().to_vec()))
    }

    /// Opens a TCP connection from A; returns the port on our address. Next numbers: 0x1000_2001 and 0x7001.
    pub(crate) fn connect(&mut self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> u16 {
        let origin = if from.0 == A { FROM_A } else { FROM_B };
        let syn = self.send(origin, &Build::tcp(from, to, SYN).numbers(0x1000_2000, 0));
        let port = syn.assert_sent(PortId::Uplink).sport();
        let syn_ack = Build::tcp(to, (OWN, port), SYN | ACK).numbers(0x7000, 0x1000_2001);
        self.up(syn_ack).assert_sent(PortId::from(origin));
        let ack = Build::tcp(from, to, ACK).numbers(0x1000_2001, 0x7001);
        self.send(origin, &ack).assert_sent(PortId::Uplink);
        port
    }

    /// Every counter of every port that is not zero, as `port/name`.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let stats = self.fw.stats();
        let mut all = named("uplink", stats.uplink());
        for (slot, name) in ["a", "b", "slot2", "slot3"].into_iter().enumerate() {
            all.extend(named(name, stats.client(ClientId(slot as u16)).unwrap()));
        }
        all.extend(named("departed", stats.departed()));
        all
    }

    /// The counters that differ from `before`, with their difference.
    pub(crate) fn moved(&self, before: &[(String, u64)]) -> Vec<(String, u64)> {
        let old =
            |name: &str| before.iter().find(|(known, _)| known == name).map_or(0, |(_, n)| *n);
        let changes = self.counters().into_iter().map(|(name, n)| (name.clone(), n - old(&name)));
        changes.filter(|(_, difference)| *difference > 0).collect()
    }
}

/// Checked after each step: the gate had nothing to stop.
#[track_caller]
pub(crate) fn assert_accepted(firewall: &Firewall) {
    assert_eq!(firewall.stats().without_accept(), 0, "about to leave without an accept");
}

fn named(port: &str, stats: &PortStats) -> Vec<(String, u64)> {
    let drops = stats.drops().map(|(reason, n)| (format!("{port}/drop:{}", reason.name()), n));
    let counters = stats.counters().map(|(name, n)| (format!("{port}/{name}"), n));
    drops.chain(counters).filter(|(_, n)| *n > 0).collect()
}
