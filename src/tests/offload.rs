//! Partial checksums and super-frames: what is passed on, completed, or refused.

use core::net::Ipv4Addr;

use crate::testing::*;
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const UPLINK: PortId = PortId::Uplink;

/// A firewall whose ports have these capabilities.
fn kit(caps: PortCaps) -> Kit {
    let mut kit = Kit::new();
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps }));
    kit.fw.detach_client(ID_A);
    kit.fw.attach_client(ID_A, ClientPort { caps, ..vif(10, MAC_A, A) }).unwrap();
    kit
}

fn both() -> [Build; 2] {
    [Build::tcp((A, 5000), WEB, ACK).payload(101), Build::udp((A, 5000), WEB).payload(100)]
}

#[test]
fn a_partial_checksum_stays_partial_for_a_port_that_takes_it() {
    let mut kit = kit(CAPS);
    for build in both() {
        let out = kit.a(&build.blank());
        assert_eq!(out.assert_sent(UPLINK).offload.checksum, Checksum::Blank);
    }
}

#[test]
fn a_partial_checksum_is_completed_for_a_port_that_does_not() {
    let mut kit = kit(PortCaps::PLAIN);
    for build in both() {
        let full = kit.a(&build);
        let out = kit.a(&build.clone().blank());
        assert_eq!(out.assert_sent(UPLINK).offload.checksum, Checksum::Validated);
        assert_eq!(out.bytes, full.bytes, "as if it had been complete");
        let answer = |b: &Build| {
            if b.protocol == 6 {
                Build::tcp(WEB, (OWN, 5000), ACK)
            } else {
                Build::udp(WEB, (OWN, 5000))
            }
        };
        let back = kit.up(answer(&build).payload(33).blank());
        back.assert_sent(PortId::Client(ID_A));
        assert_eq!(back.offload.checksum, Checksum::Validated);
    }
}

#[test]
fn nobody_is_made_to_trust_what_a_peer_claims() {
    let mut kit = kit(CAPS);
    for build in both() {
        let claimed = build.with(|b| b.offload.checksum = Checksum::Validated);
        assert_eq!(kit.a(&claimed).assert_sent(UPLINK).offload.checksum, Checksum::Full);
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let mut kit = kit(CAPS);
    for build in both() {
        let last = build.l4.len() - 1;
        let right = kit.a(&build);
        let wrong = kit.a(&build.with(|b| b.l4[last] ^= 0x10));
        assert_eq!(wrong.fate, Fate::Send(UPLINK));
        let at = right.bytes.len() - 1;
        assert_eq!(wrong.bytes[..at], right.bytes[..at], "the checksum field too");
        assert_eq!(wrong.bytes[at], right.bytes[at] ^ 0x10);
    }
}

#[test]
fn udp_without_checksum_stays_without() {
    let mut kit = kit(CAPS);
    let out = kit.a(&Build::udp((A, 5000), WEB).with(|b| b.l4[6..8].fill(0)));
    assert_eq!(out.assert_sent(UPLINK).word(6), 0);
    let back = kit.up(Build::udp(WEB, (OWN, 5000)).with(|b| b.l4[6..8].fill(0)));
    assert_eq!(back.assert_sent(PortId::Client(ID_A)).word(6), 0);
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    let mut kit = kit(CAPS);
    let mut field = |word: u16| {
        let build =
            Build::udp((A, 5000), WEB).with(|b| b.l4[8..10].copy_from_slice(&word.to_be_bytes()));
        let field = kit.a(&build.checksummed(6)).assert_sent(UPLINK).word(6);
        assert_ne!(field, 0);
        field
    };
    let vanishing = field(0);
    let ones = words_about(vanishing).filter(|word| field(*word) == 0xffff);
    assert_eq!(ones.collect::<Vec<_>>(), [vanishing]);
}

#[test]
fn a_super_frame_crosses_whole_where_the_port_takes_it() {
    let mut kit = kit(PortCaps { accepts_gso_v4: true, ..CAPS });
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: 700 });
    let build = Build::tcp((A, 5000), WEB, ACK).payload(3000).blank().with(|b| b.offload.gso = gso);
    let out = kit.a(&build);
    assert_eq!(out.assert_sent(UPLINK).offload, Offload { checksum: Checksum::Blank, gso });
    assert_eq!(out.bytes.len(), 14 + 20 + 20 + 3000);
}

#[test]
fn illegal_super_frames_are_dropped() {
    let mut kit = kit(PortCaps { accepts_gso_v4: true, accepts_gso_v6: true, ..CAPS });
    for (kind, size) in [(GsoKind::TcpV4, 0), (GsoKind::TcpV6, 1448)] {
        let build = Build::tcp((A, 5000), WEB, ACK).payload(100).blank();
        let build = build.with(|b| b.offload.gso = Some(Gso { kind, size }));
        kit.a(&build).assert_dropped(DropReason::GsoIllegal);
    }
}

#[test]
fn answers_carry_complete_checksums_even_about_partial_ones() {
    let mut kit = Kit::new().rules(A, &["action=drop"]);
    for build in both() {
        let out = kit.a(&build.blank());
        assert_eq!(
            out.assert_refused(ID_A, 3, 13).offload,
            Offload { checksum: Checksum::Validated, gso: None }
        );
    }
}

#[test]
fn an_error_fits_the_buffer_that_it_is_written_into() {
    let mut kit = Kit::new().rules(A, &["action=drop"]);
    let frame = Build::udp((A, 5000), WEB).payload(60).frame();
    for room in frame.len()..frame.len() + 40 {
        let mut page = vec![0; room];
        page[..frame.len()].copy_from_slice(&frame);
        let mut small = Frame::new(&mut page, frame.len(), Offload::default()).unwrap();
        let fate = kit.fw.handle(kit.now, FROM_A, &mut small);
        let out = Out { fate, bytes: small.bytes().to_vec(), offload: small.offload };
        out.assert_refused(ID_A, 3, 13);
    }
}
