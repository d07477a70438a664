//! Which packets take the fast path, and what closes it. That it does what the stages do is checked for every frame that
//! any test here hands in (`Kit::check_fast_path`); the last test makes up frames and events for that alone.

use core::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super_frames::{ALL, gso4, gso6, kit};
use crate::testing::v6::*;
use crate::testing::*;
use crate::visible::{MappedIp, Visible};
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const WEB6: (Ipv6Addr, u16) = (SERVER6, 443);
const HERE: (Ipv4Addr, u16) = (A, 40_000);
const HERE6: (Ipv6Addr, u16) = (A6, 40_000);
/// The next numbers after [`Kit::connect`].
const OURS: u32 = 0x1000_2001;
const THEIRS: u32 = 0x7001;

fn ack_up() -> Build {
    Build::tcp(HERE, WEB, ACK).numbers(OURS, THEIRS)
}

fn ack_down(port: u16) -> Build {
    Build::tcp(WEB, (OWN, port), ACK).numbers(THEIRS, OURS).up()
}

impl Kit {
    /// Whether a frame takes the fast path.
    fn is_fast(&mut self, origin: Origin, frame: &[u8], offload: Offload) -> bool {
        let before = self.fast;
        self.bytes(origin, frame, offload);
        self.fast > before
    }

    fn is_fast_up(&mut self, build: &Build) -> bool {
        self.is_fast(FROM_A, &build.frame(), build.offload)
    }

    fn is_fast_down(&mut self, build: &Build) -> bool {
        self.is_fast(Origin::Uplink, &build.frame(), build.offload)
    }

    /// A connection of which a segment has passed both ways.
    fn standing(&mut self) -> u16 {
        let port = self.connect(HERE, WEB);
        self.bytes(Origin::Uplink, &ack_down(port).frame(), Offload::default());
        port
    }
}

#[test]
fn segments_of_a_connection_that_stands_are_fast_in_both_directions() {
    let mut kit = Kit::new();
    let port = kit.connect(HERE, WEB);
    assert!(kit.is_fast_up(&ack_up()));
    assert!(kit.is_fast_up(&ack_up().payload(1000)));
    // The SYN+ACK was the first packet that passed this way.
    assert!(kit.is_fast_down(&ack_down(port).payload(1000)));
    assert!(kit.is_fast_down(&ack_down(port).payload(1000).blank()));
}

#[test]
fn datagrams_are_fast_once_they_were_answered() {
    let mut kit = Kit::new();
    let question = Build::udp(HERE, (SERVER, 4500));
    assert!(!kit.is_fast_up(&question));
    assert!(kit.is_fast_up(&question));
    let port = kit.a(&question).sport();
    let answer = Build::udp((SERVER, 4500), (OWN, port)).up();
    assert!(!kit.is_fast_down(&answer), "makes the flow one that goes both ways");
    assert!(kit.is_fast_down(&answer));
    assert!(kit.is_fast_up(&question));
}

#[test]
fn ipv6_is_fast_too() {
    let mut kit = Kit::new6();
    let (mut ups, mut downs) = (vec![], vec![]);
    for protocol in [6, 17] {
        let up = |flags, numbers: (u32, u32)| match protocol {
            6 => Build6::tcp(HERE6, WEB6, flags).numbers(numbers.0, numbers.1),
            _ => Build6::udp(HERE6, WEB6),
        };
        let first = kit.bytes(FROM_A, &up(SYN, (OURS - 1, 0)).frame(), Offload::default());
        let port = first.sport();
        let down = |flags, numbers: (u32, u32)| match protocol {
            6 => Build6::tcp(WEB6, (OWN6, port), flags).numbers(numbers.0, numbers.1).up(),
            _ => Build6::udp(WEB6, (OWN6, port)).up(),
        };
        let syn_ack = down(SYN | ACK, (THEIRS - 1, OURS)).frame();
        kit.bytes(Origin::Uplink, &syn_ack, Offload::default());
        kit.bytes(FROM_A, &up(ACK, (OURS, THEIRS)).frame(), Offload::default());
        let (up, down) = (up(ACK, (OURS, THEIRS)).payload(99), down(ACK, (THEIRS, OURS)));
        ups.push(kit.is_fast(FROM_A, &up.frame(), Offload::default()));
        ups.push(kit.is_fast(FROM_A, &up.blank().frame(), blank()));
        downs.push(kit.is_fast(Origin::Uplink, &down.frame(), Offload::default()));
    }
    assert_eq!((ups, downs), (vec![true; 4], vec![true; 2]));
}

fn blank() -> Offload {
    Offload { checksum: Checksum::Blank, gso: None }
}

#[test]
fn super_frames_are_fast_where_they_go_on_whole() {
    let mut fast = kit(ALL);
    let port = fast.standing();
    assert!(fast.is_fast_up(&gso4(ack_up().payload(3000), 1400)));
    assert!(fast.is_fast_down(&gso4(ack_down(port).payload(3000), 1400)));
    assert!(!fast.is_fast_up(&gso4(ack_up().payload(1400), 1400)), "no two segments");
    assert!(!fast.is_fast_up(&gso4(ack_up().payload(3000), 1480)), "segments that do not fit");
    assert!(!fast.is_fast_up(&gso6_as_4()));
    let mut cut = kit(CAPS);
    cut.standing();
    let before = cut.fast;
    let whole = gso4(ack_up().payload(3000), 1400);
    assert!(cut.scattered(FROM_A, &whole.frame(), 256, whole.offload).len() > 1);
    assert_eq!(cut.fast, before, "has to be cut up");
}

fn gso6_as_4() -> Build {
    gso4(ack_up().payload(3000), 1400)
        .with(|b| b.offload.gso = Some(Gso { kind: GsoKind::TcpV6, size: 1400 }))
}

#[test]
fn what_is_unusual_goes_through_the_stages() {
    let mut kit = Kit::new();
    let port = kit.standing();
    kit.is_thorough = true;
    let changed = |change: fn(&mut Build)| ack_up().payload(100).with(change);
    for (what, build) in [
        ("options", changed(|b| b.options = vec![1, 1, 1, 1])),
        ("a fragment", changed(|b| b.fragment = 0x2000)),
        ("the end of its time to live", changed(|b| b.ttl = 1)),
        ("another sender", changed(|b| b.src = B)),
        ("another receiver", changed(|b| b.dst = OTHER_SERVER)),
        ("no flow", changed(|b| b.l4[1] ^= 1)),
        ("another station", changed(|b| b.link.0 = MAC_B)),
        ("too long", ack_up().payload(1470)),
        ("a cut TCP header", ack_up().with(|b| b.l4[12] = 0xf0)),
        ("a TCP header of nothing", changed(|b| b.l4[12] = 0x10)),
        ("urgent data", changed(|b| b.l4[13] |= 0x20)),
        ("FIN", changed(|b| b.l4[13] |= FIN)),
        ("SYN", changed(|b| b.l4[13] |= SYN)),
    ] {
        assert!(kit.is_fast_up(&ack_up()), "before {what}");
        assert!(!kit.is_fast_up(&build), "{what}");
        if what == "FIN" || what == "SYN" {
            kit = Kit::new();
            kit.standing();
        }
    }
    let mut frame = ack_up().frame();
    assert!(kit.is_fast(FROM_A, &frame, Offload::default()));
    frame[24] ^= 1;
    assert!(!kit.is_fast(FROM_A, &frame, Offload::default()), "a wrong header checksum");
    frame[24] ^= 1;
    frame.extend([0; 6]);
    assert!(!kit.is_fast(FROM_A, &frame, Offload::default()), "padding");
    let beyond = Build::tcp(WEB, (OWN, port), ACK).numbers(THEIRS + 0x2000_0000, OURS).up();
    assert!(kit.is_fast_down(&ack_down(port)));
    assert!(!kit.is_fast_down(&beyond), "out of the window");
    assert!(!kit.is_fast_down(&ack_down(port).with(|b| b.l4[13] |= RST)), "a reset");
}

#[test]
fn dns_is_never_fast_on_its_way_back() {
    let mut kit = Kit::new();
    for server in [CLIENT_DNS[0], SERVER] {
        let question = Build::udp(HERE, (server, 53));
        let sent = kit.a(&question);
        let (port, server) = (sent.sport(), sent.dst());
        let answer = Build::udp((server, 53), (OWN, port)).up();
        assert!((0..3).all(|_| !kit.is_fast_down(&answer)));
        // A question that is redirected has another end on the far side, too.
        assert_eq!(kit.is_fast_up(&question), server == SERVER);
    }
}

/// Something that dom0 does.
type Event = fn(&mut Kit);

const EVENTS: [(&str, Event); 10] = [
    ("rules of this client", |kit| kit.edit(&["action=accept"])),
    ("rules of another client", |kit| {
        kit.set_rules(B, rules(&["action=accept"]));
    }),
    ("another client leaves", |kit| kit.fw.detach_client(ID_B)),
    ("another client comes", |kit| {
        let _ = kit.fw.attach_client(ClientId(2), vif(12, MAC_B, ABSENT));
    }),
    ("the network, as it was", |kit| kit.set_network(|_| {})),
    ("the server is a client", |kit| kit.set_network(|n| n.connected.push(SERVER.into()))),
    ("the server is our address", |kit| {
        kit.set_network(|n| n.v4.client_gateway = Some(SERVER));
    }),
    ("no uplink", |kit| kit.fw.set_uplink(kit.now, None)),
    ("another uplink", |kit| {
        let port = UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN };
        kit.fw.set_uplink(kit.now, Some(port));
    }),
    ("an open port", |kit| kit.expose("fw-forward=tcp/8080>10.137.0.10/80")),
];

impl Kit {
    fn edit(&mut self, lines: &[&str]) {
        self.set_rules(A, rules(lines));
    }
}

#[test]
fn whatever_dom0_changes_sends_the_next_packet_through_the_stages() {
    for (what, event) in EVENTS {
        let mut kit = Kit::new();
        let port = kit.standing();
        assert!(kit.is_fast_up(&ack_up()) && kit.is_fast_down(&ack_down(port)), "before {what}");
        event(&mut kit);
        assert!(!kit.is_fast_up(&ack_up()), "up after {what}");
        assert!(!kit.is_fast_down(&ack_down(port)), "down after {what}");
    }
}

#[test]
fn a_forbidden_flow_is_not_fast() {
    let mut kit = Kit::new();
    let port = kit.standing();
    kit.edit(&["action=drop"]);
    for _ in 0..3 {
        assert!(!kit.is_fast_up(&ack_up()) && !kit.is_fast_down(&ack_down(port)));
    }
    kit.edit(&["action=accept"]);
    kit.a(&ack_up()).assert_sent(PortId::Uplink);
}

#[test]
fn a_client_that_is_told_other_addresses_is_not_fast() {
    let mut kit = Kit::new();
    let seen = Ipv4Addr::new(192, 168, 0, 2);
    let visible = Visible::As { address: seen, gateway: Ipv4Addr::new(192, 168, 0, 1) };
    kit.set_network(|n| n.mapped = vec![MappedIp { real: A, visible }]);
    let question = Build::udp((seen, 40_000), (SERVER, 4500));
    assert!((0..3).all(|_| !kit.is_fast_up(&question)));
    let port = kit.a(&question).sport();
    let answer = Build::udp((SERVER, 4500), (OWN, port)).up();
    assert!((0..3).all(|_| !kit.is_fast_down(&answer)));
}

/// One thing that happens in the test below.
#[derive(Clone, Debug)]
enum Happening {
    Segment { is_up: bool, flags: u8, numbers: (i16, i16), payload: u16, twist: Twist },
    Datagram { is_up: bool, payload: u16, twist: Twist },
    Event(usize),
    Wait(u16),
}

/// What is odd about a packet. Mostly nothing.
#[derive(Clone, Debug)]
enum Twist {
    Nothing,
    Blank,
    Validated,
    Super(u16),
    Ttl(u8),
    /// A byte of the frame is another one.
    Byte(u8, u8),
}

fn twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        6 => Just(Twist::Nothing),
        2 => Just(Twist::Blank),
        1 => Just(Twist::Validated),
        2 => (1u16..1600).prop_map(Twist::Super),
        1 => (0u8..4).prop_map(Twist::Ttl),
        3 => (0u8..60, any::<u8>()).prop_map(|(at, value)| Twist::Byte(at, value)),
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    let flags = prop_oneof![20 => Just(ACK), 1 => Just(SYN), 1 => Just(SYN | ACK),
        1 => Just(FIN | ACK), 1 => Just(RST), 2 => any::<u8>()];
    let numbers = (-2i16..3000, -2i16..3000);
    prop_oneof![
        20 => (any::<bool>(), flags, numbers, 0u16..3000, twist()).prop_map(
            |(is_up, flags, numbers, payload, twist)| Happening::Segment {
                is_up, flags, numbers, payload, twist,
            },
        ),
        8 => (any::<bool>(), 0u16..2000, twist())
            .prop_map(|(is_up, payload, twist)| Happening::Datagram { is_up, payload, twist }),
        1 => (0..EVENTS.len()).prop_map(Happening::Event),
        2 => (0u16..400).prop_map(Happening::Wait),
    ]
}

/// The frame of a packet in one of both families, with its twist.
macro_rules! twisted {
    ($build:expr, $gso:path, $ttl:ident, $twist:expr) => {{
        let mut build = $build;
        let mut byte = None;
        match $twist {
            Twist::Nothing => {}
            Twist::Blank => build = build.blank(),
            Twist::Validated => build.offload.checksum = Checksum::Validated,
            Twist::Super(size) => build = $gso(build, size),
            Twist::Ttl(ttl) => build.$ttl = ttl,
            Twist::Byte(at, value) => byte = Some((usize::from(at), value)),
        }
        let mut frame = build.frame();
        if let Some(place) = byte.and_then(|(at, value)| Some((frame.get_mut(at)?, value))) {
            *place.0 = place.1;
        }
        (frame, build.offload)
    }};
}

/// Both ends of a flow, in one family.
#[derive(Clone, Copy)]
struct Flow {
    is_v6: bool,
    outside: u16,
}

impl Flow {
    fn segment(
        self,
        is_up: bool,
        flags: u8,
        numbers: (u32, u32),
        payload: usize,
        twist: Twist,
    ) -> (Vec<u8>, Offload) {
        let (seq, ack) = numbers;
        match (self.is_v6, is_up) {
            (false, true) => twisted!(
                Build::tcp(HERE, WEB, flags).numbers(seq, ack).payload(payload),
                gso4,
                ttl,
                twist
            ),
            (false, false) => twisted!(
                Build::tcp(WEB, (OWN, self.outside), flags).numbers(seq, ack).payload(payload).up(),
                gso4,
                ttl,
                twist
            ),
            (true, true) => twisted!(
                Build6::tcp(HERE6, WEB6, flags).numbers(seq, ack).payload(payload),
                gso6,
                hop_limit,
                twist
            ),
            (true, false) => twisted!(
                Build6::tcp(WEB6, (OWN6, self.outside), flags)
                    .numbers(seq, ack)
                    .payload(payload)
                    .up(),
                gso6,
                hop_limit,
                twist
            ),
        }
    }

    fn datagram(self, is_up: bool, payload: usize, twist: Twist) -> (Vec<u8>, Offload) {
        match (self.is_v6, is_up) {
            (false, true) => twisted!(Build::udp(HERE, WEB).payload(payload), gso4, ttl, twist),
            (false, false) => twisted!(
                Build::udp(WEB, (OWN, self.outside)).payload(payload).up(),
                gso4,
                ttl,
                twist
            ),
            (true, true) => {
                twisted!(Build6::udp(HERE6, WEB6).payload(payload), gso6, hop_limit, twist)
            }
            (true, false) => twisted!(
                Build6::udp(WEB6, (OWN6, self.outside)).payload(payload).up(),
                gso6,
                hop_limit,
                twist
            ),
        }
    }
}

proptest! {
    /// The comparison is made by the kit, for each frame.
    #[test]
    fn the_fast_path_and_the_stages_agree(
        is_v6: bool, takes_all: bool, happenings in proptest::collection::vec(happening(), 1..60),
    ) {
        let mut kit = kit(if takes_all { ALL } else { CAPS });
        kit.is_thorough = true;
        kit.set_rules(B, rules(&["action=accept"]));
        let mut flow = Flow { is_v6, outside: HERE.1 };
        let opening = [
            (true, SYN, (OURS - 1, 0)), (false, SYN | ACK, (THEIRS - 1, OURS)), (true, ACK, (OURS, THEIRS)),
        ];
        for (is_up, flags, numbers) in opening {
            let (frame, offload) = flow.segment(is_up, flags, numbers, 0, Twist::Nothing);
            let out = kit.bytes(if is_up { FROM_A } else { Origin::Uplink }, &frame, offload);
            if is_up {
                flow.outside = out.sport();
            }
        }
        for happening in happenings {
            let (is_up, (frame, offload)) = match happening {
                Happening::Segment { is_up, flags, numbers, payload, twist } => {
                    let (near, far) = if is_up { (OURS, THEIRS) } else { (THEIRS, OURS) };
                    let numbers = (
                        near.wrapping_add_signed(numbers.0.into()), far.wrapping_add_signed(numbers.1.into()),
                    );
                    (is_up, flow.segment(is_up, flags, numbers, payload.into(), twist))
                }
                Happening::Datagram { is_up, payload, twist } => (is_up, flow.datagram(is_up, payload.into(), twist)),
                Happening::Event(which) => {
                    (EVENTS[which].1)(&mut kit);
                    continue;
                }
                Happening::Wait(seconds) => {
                    kit.wait(seconds.into());
                    continue;
                }
            };
            let origin = if is_up { FROM_A } else { Origin::Uplink };
            let head = frame.len().min(3500);
            kit.scattered(origin, &frame, head, offload);
        }
    }
}
