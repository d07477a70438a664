//! No file panics, whatever is in it.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Times, links and lengths as they come, around packets of which some bits are wrong.
fn damaged() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let packet =
        (0..6_usize, vec((any::<u16>(), any::<u8>()), 0..4)).prop_map(|(kind, changes)| {
            let mut packet = match kind {
                0 => tcp((CLIENT, 40_000), (WEB, 443), SYN),
                1 => tcp((WEB, 443), (CLIENT, 40_000), SYN | ACK),
                2 => udp((CLIENT, 5353), (DNS, 53), b"question"),
                3 => udp((DNS, 53), (CLIENT, 5353), &[0xc0; 40]),
                4 => echo(CLIENT, WEB, 8),
                _ => [&[0x60, 0, 0, 0, 0, 40, 0, 64][..], &[0xfd; 32], &[1; 40]].concat(),
            };
            for (at, value) in changes {
                let length = packet.len();
                packet[usize::from(at) % length] = value;
            }
            packet
        });
    vec((0..u64::from(u32::MAX) * SECOND, packet), 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_bytes_panic(file in vec(any::<u8>(), 0..300), kind in 0..4_u8) {
        // With a header that is right, what follows is read.
        let start = match kind {
            0 => Vec::new(),
            1 => pcap(101, &[]),
            2 => pcap(1, &[]),
            _ => pcapng(1, &[]),
        };
        let _ = replay(&setting(), active(&rules(&["action=accept"])), &[start, file].concat()[..]);
    }

    #[test]
    fn no_packets_panic(packets in damaged(), link in prop_oneof![Just(101_u16), Just(1), Just(113), Just(276), any::<u16>()]) {
        for file in [pcap(link.into(), &packets), pcapng(link, &packets)] {
            let set = rules(&["action=accept dsthost=a.example", "action=accept"]);
            let (flows, end) = replay(&setting(), active(&set), &file[..]).unwrap();
            prop_assert_eq!(end, Ok(()));
            flows.write_table(Ok(&set), std::io::sink()).unwrap();
            flows.write_json("x", Ok(&set), std::io::sink()).unwrap();
        }
    }

    #[test]
    fn no_damage_to_a_capture_panics(
        packets in damaged(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        for mut file in [pcap(101, &packets), pcapng(101, &packets)] {
            for (at, value) in &changes {
                let at = at.index(file.len());
                file[at] = *value;
            }
            let length = cut.index(file.len());
            let set = rules(&["action=accept"]);
            for end in [length, file.len()] {
                let _ = replay(&setting(), active(&set), &file[..end]);
            }
        }
    }
}
