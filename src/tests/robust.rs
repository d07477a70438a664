//! Nothing that a peer sends panics, whatever its origin, and nothing is forwarded that was not accepted.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::testing::*;
use crate::*;

fn offload() -> impl Strategy<Value = Offload> {
    let checksum =
        prop_oneof![Just(Checksum::Full), Just(Checksum::Validated), Just(Checksum::Blank)];
    let kind = prop_oneof![Just(GsoKind::TcpV4), Just(GsoKind::TcpV6)];
    let gso =
        proptest::option::of((kind, any::<u16>()).prop_map(|(kind, size)| Gso { kind, size }));
    (checksum, gso).prop_map(|(checksum, gso)| Offload { checksum, gso })
}

fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![Just(FROM_A), Just(FROM_B), Just(Origin::Uplink), Just(Origin::Client(ClientId(9)))]
}

/// Frames that are nearly right: a good packet with some bytes changed and its end cut off.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let good = prop_oneof![
        Just(Build::tcp((A, 40_000), (SERVER, 443), ACK)),
        Just(Build::udp((A, 40_000), (CLIENT_DNS[0], 53))),
        Just(Build::query(A, SERVER, 8, 7)),
        Just(Build::query(A, OWN, 8, 7)),
        Just(Build::error(A, SERVER, 3, 3, &Build::udp((SERVER, 443), (A, 40_000)).packet())),
        Just(Build::udp((SERVER, 443), (OWN, 40_000)).up()),
        Just(Build::tcp((SERVER, 443), (OWN, 40_000), SYN | ACK).up()),
        Just(
            Build::error(SERVER, OWN, 3, 3, &Build::udp((OWN, 40_000), (SERVER, 443)).packet())
                .up()
        ),
        Just(Build::raw(A, SERVER, 47, vec![1; 40])),
    ];
    let frames = prop_oneof![
        6 => good.prop_map(|build| build.frame()),
        1 => Just(arp(1, (MAC_A, A), (Mac([0; 6]), OWN))),
        1 => Just(arp(2, (MAC_UP, NETVM), (MAC_UP, OWN))),
    ];
    let edits = vec((12usize..90, any::<u8>()), 0..6);
    (frames, edits, proptest::option::of(0usize..120)).prop_map(|(mut frame, edits, cut)| {
        for (at, value) in edits {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            frame.truncate(cut);
        }
        // Most edits would end at the header checksum: repair it.
        if frame.len() >= 34 && frame[14] >> 4 == 4 {
            let header_len = (usize::from(frame[14] & 0xf) * 4).min(frame.len() - 14).max(20);
            frame[24..26].fill(0);
            let checksum = !sum(&[&frame[14..14 + header_len]]);
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        frame
    })
}

/// Flows of every kind that mangled packets may hit.
fn busy() -> Kit {
    let mut kit = Kit::new();
    kit.connect((A, 40_000), (SERVER, 443));
    for build in [
        Build::udp((A, 40_000), (SERVER, 443)),
        Build::udp((A, 40_000), (CLIENT_DNS[0], 53)),
        Build::query(A, SERVER, 8, 7),
        Build::raw(A, SERVER, 47, vec![0; 8]),
    ] {
        kit.a(&build).assert_sent(PortId::Uplink);
    }
    kit
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn arbitrary_bytes_never_panic(origin in origin(), bytes in vec(any::<u8>(), 0..200), offload in offload()) {
        let mut kit = Kit::new();
        kit.bytes(origin, &bytes, offload);
    }

    #[test]
    fn mangled_packets_never_panic_and_leave_whole(
        frames in vec((origin(), mangled(), offload()), 1..20), is_drop_all: bool,
    ) {
        let mut kit = busy();
        if is_drop_all {
            kit.set_rules(A, rules(&["action=drop"]));
        }
        for (origin, frame, offload) in frames {
            let out = kit.bytes(origin, &frame, offload);
            let Fate::Send(port) = out.fate else { continue };
            prop_assert!(out.bytes.len() <= 4096);
            // Whatever leaves fits its own length and carries a right header checksum, or is ARP.
            if out.bytes[12..14] == [8, 0] {
                let ip = &out.bytes[14..];
                prop_assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
                prop_assert_eq!(sum(&[&ip[..usize::from(ip[0] & 0xf) * 4]]), 0xffff);
            }
            if port == PortId::Uplink && origin != Origin::Uplink {
                prop_assert!(!is_drop_all || origin == FROM_B, "forwarded against the rules");
                prop_assert_eq!(out.src(), OWN);
            }
        }
    }
}

#[test]
fn a_frame_of_every_length_is_survived() {
    let whole = Build::tcp((A, 40_000), (SERVER, 443), ACK).payload(200).frame();
    for len in 0..=whole.len() {
        let mut kit = Kit::new();
        for origin in [FROM_A, Origin::Uplink] {
            kit.bytes(origin, &whole[..len], Offload::default());
        }
    }
}
