//! Each drop reason has a packet that causes it, and moves exactly the counters that it should.

use crate::exposure::{Allow, Exposure, Scope};
use crate::testing::v6::*;
use crate::testing::*;
use crate::visible::{MappedIp, Visible};
use crate::*;

const TCP: (core::net::Ipv4Addr, u16) = (SERVER, 443);
const UDP: (core::net::Ipv4Addr, u16) = (SERVER, 9999);

fn syn() -> Build {
    Build::tcp((A, 40_000), TCP, SYN)
}

fn syn6() -> Build6 {
    Build6::tcp((A6, 40_000), (SERVER6, 443), SYN)
}

fn solicitation(target: core::net::Ipv6Addr) -> Build6 {
    Build6::nd((A6, target), 135, 0, target, (1, MAC_A))
}

fn udp() -> Build {
    Build::udp((A, 40_000), UDP)
}

/// What else a dropped packet moves.
#[derive(Clone, Copy, Debug)]
enum Echo {
    Silence,
    Error,
    Reset,
    /// An error is due, but must not be sent.
    Kept,
}

struct Case {
    reason: DropReason,
    origin: Origin,
    frame: Vec<u8>,
    offload: Offload,
    /// Bytes of it in its page.
    head: usize,
    echo: Echo,
}

fn case(reason: DropReason, origin: Origin, build: Build, echo: Echo) -> Case {
    let build = if origin == Origin::Uplink { build.up() } else { build };
    Case { offload: build.offload, echo, ..bytes(reason, origin, build.frame()) }
}

fn bytes(reason: DropReason, origin: Origin, frame: Vec<u8>) -> Case {
    let (head, offload, echo) = (frame.len(), Offload::default(), Echo::Silence);
    Case { reason, origin, frame, offload, head, echo }
}

/// Prepares the firewall and says what to send. Exhaustive: a new reason does not compile without a packet.
fn prepare(reason: DropReason, kit: &mut Kit) -> Case {
    use DropReason::*;
    use Echo::*;
    let gso = |kind, size| Offload { checksum: Checksum::Blank, gso: Some(Gso { kind, size }) };
    let far = (A, 40_000);
    match reason {
        UnknownPort => bytes(reason, Origin::Client(ClientId(3)), syn().frame()),
        Scattered => Case { head: 300, ..case(reason, FROM_A, udp().payload(1000), Silence) },
        FrameTooShort => bytes(reason, FROM_A, syn().frame()[..13].to_vec()),
        LinkDestination => {
            case(reason, FROM_A, syn().with(|b| b.link.0 = Mac([2, 0, 0, 0, 0, 9])), Silence)
        }
        EtherType => case(reason, FROM_A, syn().with(|b| b.ether_type = 0x8100), Silence),
        Ipv6 => case(reason, FROM_A, syn().with(|b| b.ether_type = 0x86dd), Silence),
        MappingUnknown => {
            let unknown = MappedIp { real: A, visible: Visible::Unknown };
            kit.set_network(|config| config.mapped = vec![unknown]);
            case(reason, FROM_A, syn(), Silence)
        }
        ArpMalformed => {
            bytes(reason, FROM_A, arp(1, (MAC_A, A), (Mac([0; 6]), OWN))[..41].to_vec())
        }
        ArpSpoofed => bytes(reason, FROM_A, arp(1, (MAC_A, B), (Mac([0; 6]), OWN))),
        ArpIgnored => bytes(reason, FROM_A, arp(1, (MAC_A, A), (Mac([0; 6]), A))),
        Ipv6Header => {
            *kit = Kit::new6();
            bytes(reason, FROM_A, syn6().frame()[..60].to_vec())
        }
        ExtensionHeader => {
            *kit = Kit::new6();
            let nine = (0..9).fold(syn6(), |b, _| b.extended(60, &[0, 0, 1, 4, 0, 0, 0, 0]));
            bytes(reason, FROM_A, nine.frame())
        }
        NdMalformed => {
            *kit = Kit::new6();
            let far = solicitation(OWN6).with(|b| b.hop_limit = 254);
            bytes(reason, FROM_A, far.frame())
        }
        NdIgnored => {
            *kit = Kit::new6();
            bytes(reason, FROM_A, solicitation(A6).frame())
        }
        PathMtu => {
            let port = kit.connect((A, 40_000), TCP);
            let about = Build::tcp((OWN, port), TCP, ACK).numbers(0x1000_2001, 0x7001).packet();
            let tiny = Build::icmp(SERVER, OWN, 3, 4, [0, 0, 0, 68], &about);
            case(reason, Origin::Uplink, tiny, Silence)
        }
        Ipv4Header => bytes(reason, FROM_A, syn().frame()[..50].to_vec()),
        Ipv4Checksum => {
            let mut frame = syn().frame();
            frame[24] ^= 1;
            bytes(reason, FROM_A, frame)
        }
        SourceSpoofed => case(reason, FROM_A, syn().with(|b| b.src = B), Silence),
        SourceMartian => {
            let loopback = core::net::Ipv4Addr::LOCALHOST;
            case(reason, Origin::Uplink, Build::udp((loopback, 1), (OWN, 2)), Silence)
        }
        SourceRoute => {
            let route = vec![131, 7, 4, 10, 0, 0, 1, 0];
            case(reason, FROM_A, syn().with(|b| b.options = route), Silence)
        }
        // Five bytes behind a border of eight.
        FragmentMalformed => case(reason, FROM_A, udp().with(|b| b.fragment = 0x2000), Silence),
        FragmentOverlap => {
            let first = udp().payload(3).with(|b| b.fragment = 0x2000);
            assert_eq!(kit.a(&first).fate, Fate::Consumed);
            case(reason, FROM_A, udp().with(|b| b.fragment = 1), Silence)
        }
        FragmentLimit => {
            *kit = Kit::with_limits(Limits { fragment_bytes: 0, ..LIMITS });
            case(reason, FROM_A, udp().with(|b| b.fragment = 1), Silence)
        }
        FragmentTimeout => unreachable!("ends a datagram while no packet comes"),
        SegmentsLost => unreachable!("ends a segment while there is no memory"),
        WithoutAccept => unreachable!("no packet may cause it: `evidence` has its tests"),
        DestinationMartian => {
            case(reason, FROM_A, udp().with(|b| b.dst = [224, 0, 0, 251].into()), Silence)
        }
        NotOurAddress => case(reason, Origin::Uplink, Build::udp((SERVER, 53), far), Silence),
        TransportHeader => case(reason, FROM_A, Build::raw(A, SERVER, 6, vec![0; 19]), Silence),
        TcpFlags => case(reason, FROM_A, Build::tcp((A, 1), TCP, SYN | FIN), Silence),
        IcmpChecksum => {
            case(reason, FROM_A, Build::query(A, SERVER, 8, 7).with(|b| b.l4[2] ^= 1), Silence)
        }
        IcmpForbidden => {
            let about = udp().packet();
            case(reason, Origin::Uplink, Build::error(SERVER, OWN, 4, 0, &about), Silence)
        }
        BlankIllegal => {
            let ping = Build::query(A, SERVER, 8, 7);
            case(reason, FROM_A, ping.with(|b| b.offload.checksum = Checksum::Blank), Silence)
        }
        GsoIllegal => case(
            reason,
            FROM_A,
            udp().blank().with(|b| b.offload = gso(GsoKind::TcpV4, 1448)),
            Silence,
        ),
        LocalSilent => case(reason, FROM_A, Build::udp((A, 67), (OWN, 68)), Silence),
        LocalService => case(reason, FROM_A, Build::tcp((A, 1), (OWN, 22), SYN), Error),
        ClientIsolation => case(reason, FROM_A, Build::tcp((A, 1), (B, 22), SYN), Silence),
        ClientAbsent => {
            let allow = Allow { from: A.into(), to: ABSENT.into(), scope: Scope::All };
            kit.fw.set_exposure(Exposure { allow: vec![allow], ..Exposure::default() });
            case(reason, FROM_A, Build::tcp((A, 1), (ABSENT, 22), SYN), Error)
        }
        NoRules => {
            kit.set_rules(A, RulesState::None);
            case(reason, FROM_A, syn(), Silence)
        }
        NoResolver => {
            kit.set_network(|config| config.v4.dns.clear());
            case(reason, FROM_A, Build::udp(far, (CLIENT_DNS[0], 53)), Silence)
        }
        NoUplink => {
            kit.fw.set_uplink(kit.now, None);
            case(reason, FROM_A, syn(), Error)
        }
        TtlExpired => case(reason, FROM_A, syn().with(|b| b.ttl = 1), Error),
        NotAFirstPacket => case(reason, FROM_A, Build::tcp((A, 1), TCP, RST), Silence),
        IcmpErrorUnrelated => {
            let about = Build::udp((OWN, 40_000), UDP).packet();
            case(reason, Origin::Uplink, Build::error(SERVER, OWN, 3, 3, &about), Silence)
        }
        RulesRefused => {
            kit.set_rules(A, RulesState::Refused);
            case(reason, FROM_A, syn(), Error)
        }
        NameUnresolved => {
            kit.set_rules(A, rules(&["action=drop dsthost=www.example.org", "action=accept"]));
            case(reason, FROM_A, syn(), Error)
        }
        DnsAnswer => {
            kit.set_rules(A, rules(&["action=accept dsthost=www.example.org"]));
            let asked = kit.asked();
            let noise = Build::udp((OWN_DNS[0], 53), (OWN, asked.port));
            case(reason, Origin::Uplink, noise, Silence)
        }
        RuleRejected => {
            kit.set_rules(A, rules(&["action=drop"]));
            case(reason, FROM_A, syn(), Error)
        }
        FlowForbidden => {
            kit.connect((A, 40_000), TCP);
            kit.set_rules(A, rules(&["action=drop"]));
            case(reason, FROM_A, Build::tcp((A, 40_000), TCP, ACK), Reset)
        }
        QuotaExceeded => {
            for port in 0..LIMITS.flows_per_client as u16 {
                kit.connect((A, 40_000 + port), TCP);
            }
            case(reason, FROM_A, Build::tcp((A, 1), TCP, SYN), Error)
        }
        FlowTableFull => {
            for port in 0..LIMITS.flows_per_client as u16 - 1 {
                kit.connect((A, 40_000 + port), TCP);
                kit.connect((B, 40_000 + port), TCP);
            }
            kit.fw.attach_client(ClientId(2), vif(12, MAC_A, ABSENT)).unwrap();
            kit.set_rules(ABSENT, rules(&["action=accept"]));
            let third = |port| Build::tcp((ABSENT, port), TCP, SYN);
            for port in [1, 2] {
                kit.send(Origin::Client(ClientId(2)), &third(port)).assert_sent(PortId::Uplink);
            }
            case(reason, FROM_A, Build::tcp((A, 1), TCP, SYN), Error)
        }
        PortsExhausted => {
            let flows = 140_000;
            *kit = Kit::with_limits(Limits { flows, flows_per_client: flows, ..LIMITS })
                .rules(A, &["action=accept"])
                .rules(B, &["action=accept"]);
            for port in 1..=u16::MAX {
                kit.b(&Build::udp((B, port), UDP)).assert_sent(PortId::Uplink);
            }
            case(reason, FROM_A, udp(), Error)
        }
        NatAmbiguous => {
            kit.b(&Build::raw(B, SERVER, 47, vec![0; 8])).assert_sent(PortId::Uplink);
            case(reason, FROM_A, Build::raw(A, SERVER, 47, vec![0; 8]), Error)
        }
        TcpOutOfWindow => {
            let port = kit.connect((A, 40_000), TCP);
            let blind = Build::tcp(TCP, (OWN, port), RST).numbers(0x8000_7000, 0);
            case(reason, Origin::Uplink, blind, Silence)
        }
        TooBig => case(reason, FROM_A, udp().payload(1468), Error),
        GsoUnsupported => {
            let many = Build::tcp(far, TCP, ACK).payload(129).blank();
            case(reason, FROM_A, many.with(|b| b.offload = gso(GsoKind::TcpV4, 1)), Silence)
        }
        NoFlow => case(reason, Origin::Uplink, Build::tcp(TCP, (OWN, 40_000), SYN), Silence),
    }
}

fn check(kit: &mut Kit, case: &Case) {
    let before = kit.counters();
    let out = kit.scattered(case.origin, &case.frame, case.head, case.offload).remove(0);
    let port = match case.origin {
        Origin::Uplink => "uplink",
        FROM_A => "a",
        Origin::Client(_) => "slot3",
    };
    let name = |what: &str| format!("{port}/{what}");
    let mut expected = vec![
        (name(&format!("drop:{}", case.reason.name())), 1),
        (name("received-frames"), 1),
        (name("received-bytes"), case.frame.len() as u64),
    ];
    match case.echo {
        Echo::Silence => {}
        Echo::Error => expected.push((name("icmp-errors"), 1)),
        Echo::Reset => expected.push((name("tcp-resets"), 1)),
        Echo::Kept => expected.push((name("answers-suppressed"), 1)),
    }
    let mut moved = kit.moved(&before);
    moved.sort();
    expected.sort();
    assert_eq!(moved, expected, "{:?}", case.reason);
    match case.echo {
        Echo::Silence | Echo::Kept => {
            out.assert_dropped(case.reason);
        }
        Echo::Error | Echo::Reset => {
            out.assert_sent(case.origin.into());
        }
    }
}

#[test]
fn each_drop_reason_has_a_packet_and_moves_exactly_its_counters() {
    // `u13_what_does_not_become_whole_in_time_is_counted`, `super_frames` and `evidence` have those that no packet causes.
    let others = [DropReason::FragmentTimeout, DropReason::SegmentsLost, DropReason::WithoutAccept];
    for reason in DropReason::ALL.into_iter().filter(|reason| !others.contains(reason)) {
        let mut kit = Kit::new();
        let case = prepare(reason, &mut kit);
        assert_eq!(case.reason, reason);
        check(&mut kit, &case);
    }
}

#[test]
fn answers_are_rate_limited_per_client_and_come_back_with_time() {
    let mut kit = Kit::new().rules(A, &["action=drop"]).rules(B, &["action=drop"]);
    let mut errors = 0;
    for _ in 0..1000 {
        let out = kit.a(&syn());
        errors += u32::from(out.fate == Fate::Send(PortId::Client(ID_A)));
    }
    assert_eq!(errors, 100);
    let kept =
        Case { echo: Echo::Kept, ..case(DropReason::RuleRejected, FROM_A, syn(), Echo::Kept) };
    check(&mut kit, &kept);
    kit.b(&Build::tcp((B, 1), TCP, SYN)).assert_refused(ID_B, 3, 13);
    kit.wait(1);
    kit.a(&syn()).assert_refused(ID_A, 3, 13);
}

#[test]
fn an_icmp_error_is_never_answered_with_one() {
    let mut kit = Kit::new();
    kit.connect((A, 40_000), TCP);
    let about = Build::tcp(TCP, (A, 40_000), ACK).packet();
    let error = Build::error(A, SERVER, 3, 3, &about).with(|b| b.ttl = 1);
    let kept = case(DropReason::TtlExpired, FROM_A, error, Echo::Kept);
    check(&mut kit, &kept);
}

#[test]
fn a_frame_from_a_slot_that_does_not_exist_is_counted_with_the_departed() {
    let mut kit = Kit::new();
    let before = kit.counters();
    let out = kit.send(Origin::Client(ClientId(999)), &syn());
    out.assert_dropped(DropReason::UnknownPort);
    let moved = kit.moved(&before);
    assert!(moved.iter().all(|(name, _)| name.starts_with("departed/")), "{moved:?}");
    assert!(moved.contains(&("departed/drop:unknown-port".to_string(), 1)));
}

#[test]
fn link_padding_is_cut_off() {
    let mut kit = Kit::new();
    let mut frame = udp().frame();
    let len = frame.len();
    frame.resize(60.max(len + 5), 0xee);
    let out = kit.bytes(FROM_A, &frame, Offload::default());
    assert_eq!(out.assert_sent(PortId::Uplink).bytes.len(), len);
}
