//! Neighbour discovery: what is answered, learned and dropped.

use core::net::Ipv6Addr;

use crate::testing::v6::*;
use crate::testing::*;
use crate::*;

const NETVM_MAC: Mac = Mac([0, 0x16, 0x3e, 0, 0, 5]);

fn ask(source: Ipv6Addr, target: Ipv6Addr) -> Build6 {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    Build6::nd((source, group), 135, 0, target, (1, MAC_A))
        .with(|build| build.link.0 = Mac([0x33, 0x33, 0xff, a, b, c]))
}

fn uplink(kit: &mut Kit, build: &Build6) -> Out {
    kit.send6(Origin::Uplink, &build.clone().with(|b| b.link.1 = NETVM_MAC))
}

#[test]
fn a_client_is_answered_for_everything_but_itself() {
    let mut kit = Kit::new6();
    for target in [OWN6, NETVM6, B6, SERVER6, "fe80::1".parse().unwrap()] {
        let out = kit.a6(&ask(A6, target));
        let answer = Build6::nd((target, A6), 136, 0xc0, target, (2, Mac::GATEWAY));
        let answer = answer.with(|b| b.link = (MAC_A, Mac::GATEWAY));
        assert_eq!(out.assert_sent(PortId::Client(ID_A)).bytes, answer.frame());
    }
    kit.a6(&ask(A6, A6)).assert_dropped(DropReason::NdIgnored);
    let unasked = Build6::nd((A6, OWN6), 136, 0x60, A6, (2, MAC_A));
    kit.a6(&unasked).assert_dropped(DropReason::NdIgnored);
    // As in Qubes, other sources than its own address are spoofed ones, link-local or none.
    for source in ["fe80::216:3eff:fe5e:6c0a", "::"] {
        let build = ask(source.parse().unwrap(), OWN6);
        kit.a6(&build).assert_dropped(DropReason::SourceSpoofed);
    }
}

#[test]
fn s6_routers_are_not_discovered_and_redirect_nobody() {
    let mut kit = Kit::new6();
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    for kind in [133, 134, 137] {
        let from_client = Build6::nd((A6, OWN6), kind, 0, OWN6, (1, MAC_A));
        kit.a6(&from_client).assert_dropped(DropReason::IcmpForbidden);
        for source in [NETVM6, "fe80::5".parse().unwrap()] {
            let build = Build6::nd((source, all), kind, 0, OWN6, (1, NETVM_MAC));
            let build = build.with(|b| b.link.0 = Mac([0x33, 0x33, 0, 0, 0, 1]));
            uplink(&mut kit, &build).assert_dropped(DropReason::IcmpForbidden);
        }
    }
}

#[test]
fn the_checks_of_rfc_4861_hold_on_both_sides() {
    let mut kit = Kit::new6();
    let good = ask(A6, OWN6);
    let broken = [
        good.clone().with(|b| b.hop_limit = 254),
        good.clone().with(|b| b.l4[1] = 1).checksummed(),
        good.clone().with(|b| b.l4[8] = 0xff).checksummed(),
        good.clone().with(|b| b.l4[25] = 0).checksummed(),
        good.clone().with(|b| b.l4[25] = 2).checksummed(),
        good.clone().with(|b| b.l4.truncate(23)).checksummed(),
        good.clone().with(|b| b.l4.truncate(25)).checksummed(),
        good.clone().extended(60, &[0, 0, 1, 4, 0, 0, 0, 0]),
        good.clone().with(|b| b.link.1 = Mac::BROADCAST),
    ];
    for build in &broken {
        kit.a6(build).assert_dropped(DropReason::NdMalformed);
        let source = build.clone().with(|b| b.src = NETVM6).checksummed();
        kit.send6(Origin::Uplink, &source).assert_dropped(DropReason::NdMalformed);
    }
    let wrong = good.clone().with(|b| b.l4[2] ^= 1);
    kit.a6(&wrong).assert_dropped(DropReason::IcmpChecksum);
    let bare = good.with(|b| b.l4.truncate(24)).checksummed();
    kit.a6(&bare).assert_sent(PortId::Client(ID_A));
}

#[test]
fn the_uplink_is_answered_for_our_address_only() {
    let mut kit = Kit::new6();
    for source in [NETVM6, "fe80::5".parse().unwrap()] {
        let out = uplink(&mut kit, &ask(source, OWN6));
        let answer = Build6::nd((OWN6, source), 136, 0x60, OWN6, (2, MAC_UP));
        let answer = answer.with(|b| b.link = (NETVM_MAC, MAC_UP));
        assert_eq!(out.assert_sent(PortId::Uplink).bytes, answer.frame());
    }
    for target in [A6, B6, SERVER6, NETVM6] {
        uplink(&mut kit, &ask(NETVM6, target)).assert_dropped(DropReason::NdIgnored);
    }
    let probe = ask(Ipv6Addr::UNSPECIFIED, OWN6);
    uplink(&mut kit, &probe).assert_dropped(DropReason::NdIgnored);
    for source in [A6, ABSENT6, OWN6] {
        uplink(&mut kit, &ask(source, OWN6)).assert_dropped(DropReason::SourceSpoofed);
    }
}

#[test]
fn the_gateway_is_asked_for_and_believed_while_asked() {
    let mut kit = Kit::new6();
    let answer = Build6::nd((NETVM6, OWN6), 136, 0x60, NETVM6, (2, NETVM_MAC)).up();
    uplink(&mut kit, &answer).assert_dropped(DropReason::NdIgnored);
    let own: Vec<_> = core::iter::from_fn(|| kit.generated())
        .filter(|(_, frame)| frame[12..14] == [0x86, 0xdd])
        .map(|(_, frame)| frame)
        .collect();
    let all = "ff02::1".parse().unwrap();
    let announced = Build6::nd((OWN6, all), 136, 0x20, OWN6, (2, MAC_UP));
    let announced = announced.with(|b| b.link = (Mac([0x33, 0x33, 0, 0, 0, 1]), MAC_UP));
    let asked = ask(OWN6, NETVM6).with(|b| {
        b.link.1 = MAC_UP;
        b.l4[26..32].copy_from_slice(&MAC_UP.0);
    });
    assert_eq!(own, [announced.frame(), asked.checksummed().frame()]);
    let syn = Build6::tcp((A6, 1), (SERVER6, 443), SYN);
    assert_eq!(kit.a6(&syn).bytes[..6], Mac::GATEWAY.0);
    for ignored in [
        Build6::nd((SERVER6, OWN6), 136, 0x60, SERVER6, (2, NETVM_MAC)),
        Build6::nd((NETVM6, OWN6), 136, 0x60, NETVM6, (1, NETVM_MAC)),
        Build6::nd((NETVM6, OWN6), 136, 0x60, NETVM6, (2, Mac::BROADCAST)),
        Build6::nd((NETVM6, all), 136, 0x20, NETVM6, (2, NETVM_MAC)),
    ] {
        uplink(&mut kit, &ignored.up()).assert_dropped(DropReason::NdIgnored);
    }
    let before = kit.counters();
    assert_eq!(uplink(&mut kit, &answer).fate, Fate::Consumed);
    assert!(kit.moved(&before).contains(&("uplink/nd-learned".to_string(), 1)));
    assert_eq!(kit.a6(&syn).bytes[..12], [NETVM_MAC.0, MAC_UP.0].concat());
    // The way of IPv4 is another one.
    let v4 = Build::tcp((A, 1), (SERVER, 443), SYN);
    assert_eq!(kit.a(&v4).bytes[..6], Mac::GATEWAY.0);
    uplink(&mut kit, &answer).assert_dropped(DropReason::NdIgnored);
    // Another gateway is asked for anew.
    kit.set_network(|config| config.v6.gateway = Some(SERVER6));
    assert_eq!(kit.a6(&syn).bytes[..6], Mac::GATEWAY.0);
    assert!(
        kit.fw
            .next_deadline()
            .is_some_and(|at| at <= kit.now.after(core::time::Duration::from_secs(1)))
    );
}
