//! The segment size that TCP peers are told (`fw-mss-clamp`).

use core::net::Ipv4Addr;
use core::num::NonZeroU16;

use proptest::prelude::*;

use crate::mss::MssClamp;
use crate::testing::*;
use crate::*;

const WEB: (Ipv4Addr, u16) = (SERVER, 443);
const FROM: (Ipv4Addr, u16) = (A, 5000);
const UPLINK: PortId = PortId::Uplink;

fn bytes(most: u16) -> Option<MssClamp> {
    NonZeroU16::new(most).map(MssClamp::Bytes)
}

fn clamped(clamp: Option<MssClamp>) -> Kit {
    let mut kit = Kit::new();
    kit.fw.set_mss_clamp(clamp);
    kit
}

/// A segment with these options, padded to whole words.
fn with_options(mut build: Build, options: &[u8]) -> Build {
    build.l4.truncate(20);
    build.l4.extend(options);
    build.l4.resize(build.l4.len().next_multiple_of(4), 0);
    build.l4[12] = (build.l4.len() / 4 * 16) as u8;
    build.checksummed(16)
}

fn mss(value: u16) -> [u8; 4] {
    let [high, low] = value.to_be_bytes();
    [2, 4, high, low]
}

fn syn(options: &[u8]) -> Build {
    with_options(Build::tcp(FROM, WEB, SYN), options)
}

fn options(out: &Out) -> Vec<u8> {
    out.l4()[20..].to_vec()
}

#[test]
fn without_the_word_the_option_passes_as_it_is() {
    let out = clamped(None).a(&syn(&mss(1460)));
    assert_eq!(options(out.assert_sent(UPLINK).assert_sums()), mss(1460));
}

#[test]
fn a_larger_size_is_lowered_and_a_smaller_one_is_kept() {
    for (said, told) in [(1460, 1200), (1201, 1200), (1200, 1200), (1199, 1199), (0, 0)] {
        let out = clamped(bytes(1200)).a(&syn(&mss(said)));
        assert_eq!(options(out.assert_sent(UPLINK).assert_sums()), mss(told));
    }
}

#[test]
fn both_directions_are_told_what_fits_the_smaller_port() {
    let small = PortCaps { mtu: 1280, ..CAPS };
    let mut kit = clamped(Some(MssClamp::Mtu));
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps: small }));
    let out = kit.a(&syn(&mss(1460)));
    assert_eq!(options(out.assert_sent(UPLINK).assert_sums()), mss(1240));
    let answer = Build::tcp(WEB, (OWN, out.sport()), SYN | ACK).numbers(0x2000, 0x1001);
    let back = kit.up(with_options(answer, &mss(1460)));
    assert_eq!(options(back.assert_sent(PortId::Client(ID_A)).assert_sums()), mss(1240));
}

#[test]
fn a_small_client_is_told_to_the_server_too() {
    let small = PortCaps { mtu: 1000, ..CAPS };
    let mut kit = clamped(Some(MssClamp::Mtu));
    kit.fw.detach_client(ID_A);
    kit.fw.attach_client(ID_A, ClientPort { caps: small, ..vif(10, MAC_A, A) }).unwrap();
    let out = kit.a(&syn(&mss(960)));
    let answer = Build::tcp(WEB, (OWN, out.sport()), SYN | ACK).numbers(0x2000, 0x1001);
    let back = kit.up(with_options(answer, &mss(1460)));
    assert_eq!(options(back.assert_sent(PortId::Client(ID_A)).assert_sums()), mss(960));
}

#[test]
fn only_a_syn_is_changed() {
    let mut kit = clamped(bytes(500));
    kit.connect(FROM, WEB);
    let data = with_options(Build::tcp(FROM, WEB, ACK).numbers(0x1000_2001, 0x7001), &mss(1460));
    assert_eq!(options(kit.a(&data).assert_sent(UPLINK)), mss(1460));
}

#[test]
fn a_partial_checksum_covers_no_options() {
    let mut kit = clamped(bytes(1200));
    let full = kit.a(&syn(&mss(1460)));
    let mut kit = clamped(bytes(1200));
    kit.fw.set_uplink(kit.now, Some(UplinkPort { mac: MAC_UP, caps: PortCaps::PLAIN }));
    let completed = kit.a(&syn(&mss(1460)).blank());
    assert_eq!(completed.assert_sent(UPLINK).l4(), full.l4());
}

#[test]
fn what_is_no_well_formed_option_passes_as_it_is() {
    for odd in [
        vec![2, 3, 0xff, 0xff],
        vec![2, 5, 0xff, 0xff, 0xff],
        vec![3, 0, 2, 4, 0xff, 0xff],
        vec![3, 1, 2, 4, 0xff, 0xff],
        vec![0, 2, 4, 0xff, 0xff],
        vec![1, 1, 2, 4],
        vec![8, 40, 2, 4, 0xff, 0xff],
        vec![1, 1, 1, 2],
    ] {
        let build = syn(&odd);
        let out = clamped(bytes(1200)).a(&build);
        assert_eq!(options(out.assert_sent(UPLINK).assert_sums()), build.l4[20..]);
    }
}

proptest! {
    /// Also at odd places, and among other options.
    #[test]
    fn the_checksum_stays_right(
        before in 0_usize..8,
        said in any::<u16>(),
        most in MssClamp::MIN_BYTES..,
        ports in (1_u16.., 1_u16..),
    ) {
        let words = [&vec![1; before][..], &mss(said), &[4, 2, 3, 3, 7]].concat();
        let build = with_options(Build::tcp((A, ports.0), (SERVER, ports.1), SYN), &words);
        let out = clamped(bytes(most)).a(&build);
        let sent = out.assert_sent(UPLINK).assert_sums();
        let mut expected = build.l4[20..].to_vec();
        expected[before + 2..before + 4].copy_from_slice(&said.min(most).to_be_bytes());
        prop_assert_eq!(options(sent), expected);
    }
}
