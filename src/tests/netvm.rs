//! A NetVM that is a client of ours (`--ipv4-gw`): the uplink is a client slot.

use crate::testing::*;
use crate::*;

/// The slots of its vif, and of the one that its stub domain emulates.
const VIF: ClientId = ClientId(2);
const STUB: ClientId = ClientId(3);
const FROM_NETVM: Origin = Origin::Client(VIF);
const TO_NETVM: PortId = PortId::Client(VIF);
const MAC_NETVM: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x05]);
const MAC_STUB: Mac = Mac([0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x04]);

/// The usual network, but without an uplink of its own.
fn kit() -> Kit {
    let mut kit = Kit::new();
    kit.fw.set_uplink(kit.now, None);
    kit.fw.attach_netvm(kit.now, VIF, &vif(3, MAC_NETVM, NETVM)).unwrap();
    kit
}

fn from_netvm(build: Build) -> Build {
    build.with(|b| b.link = (Mac::GATEWAY, MAC_NETVM))
}

fn udp() -> Build {
    Build::udp((A, 5000), (SERVER, 53))
}

#[test]
fn the_world_is_behind_the_vif_of_the_netvm() {
    let mut kit = kit();
    let out = kit.a(&udp());
    out.assert_sent(TO_NETVM);
    assert_eq!((out.src(), out.dst()), (OWN, SERVER));
    assert_eq!((&out.bytes[..6], &out.bytes[6..12]), (&MAC_NETVM.0[..], &Mac::GATEWAY.0[..]));
    let reply = from_netvm(Build::udp((SERVER, 53), (OWN, out.sport())));
    kit.send(FROM_NETVM, &reply).assert_sent(PortId::Client(ID_A));
    assert_eq!(kit.fw.stats().uplink().drops().map(|(_, n)| n).sum::<u64>(), 0);
}

#[test]
fn frames_of_the_netvm_are_those_of_an_uplink() {
    let mut kit = kit();
    for source in [A, ABSENT, OWN] {
        let spoofed = from_netvm(Build::udp((source, 1), (OWN, 2)));
        kit.send(FROM_NETVM, &spoofed).assert_dropped(DropReason::SourceSpoofed);
    }
    let to_client = from_netvm(Build::udp((SERVER, 1), (A, 2)));
    kit.send(FROM_NETVM, &to_client).assert_dropped(DropReason::NotOurAddress);
    let unasked = from_netvm(Build::tcp((NETVM, 1), (OWN, 22), SYN));
    kit.send(FROM_NETVM, &unasked).assert_dropped(DropReason::NoFlow);
    // Clients reach its own address as the rules say, like any other one.
    kit.a(&Build::tcp((A, 1), (NETVM, 22), SYN)).assert_sent(TO_NETVM);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.a(&Build::tcp((A, 2), (NETVM, 22), SYN)).assert_refused(ID_A, 3, 13);
    // Not from where the uplink is otherwise.
    kit.up(Build::udp((SERVER, 1), (OWN, 2))).assert_dropped(DropReason::UnknownPort);
}

#[test]
fn arp_of_the_netvm_is_answered_for_our_address_only() {
    let mut kit = kit();
    let ask = |target| arp(1, (MAC_NETVM, NETVM), (Mac([0; 6]), target));
    let out = kit.bytes(FROM_NETVM, &ask(OWN), Offload::default());
    assert_eq!(out.fate, Fate::Send(TO_NETVM));
    assert_eq!((&out.bytes[..6], &out.bytes[22..28]), (&MAC_NETVM.0[..], &Mac::GATEWAY.0[..]));
    let out = kit.bytes(FROM_NETVM, &ask(SERVER), Offload::default());
    out.assert_dropped(DropReason::ArpIgnored);
    let generated: Vec<_> = core::iter::from_fn(|| kit.generated()).collect();
    assert_eq!(generated.len(), 2);
    assert!(generated.iter().all(|(port, frame)| *port == TO_NETVM && frame[20..22] == [0, 1]));
}

#[test]
fn of_two_vifs_the_one_that_sent_last_is_used() {
    let mut kit = kit();
    kit.fw.attach_netvm(kit.now, STUB, &vif(4, MAC_STUB, NETVM)).unwrap();
    let out = kit.a(&udp());
    let port = out.assert_sent(TO_NETVM).sport();
    // What is refused says nothing about who is there.
    let reply = Build::udp((SERVER, 53), (OWN, port)).with(|b| b.link = (Mac::GATEWAY, MAC_STUB));
    let stub = Origin::Client(STUB);
    kit.send(stub, &reply.clone().with(|b| b.src = A)).assert_dropped(DropReason::SourceSpoofed);
    kit.a(&udp()).assert_sent(TO_NETVM);
    kit.send(stub, &reply).assert_sent(PortId::Client(ID_A));
    let out = kit.a(&udp());
    assert_eq!(out.assert_sent(PortId::Client(STUB)).bytes[..6], MAC_STUB.0);
    kit.fw.detach_client(STUB);
    assert_eq!(kit.a(&udp()).assert_sent(TO_NETVM).bytes[..6], MAC_NETVM.0);
    let third = vif(6, MAC_STUB, NETVM);
    assert_eq!(kit.fw.attach_netvm(kit.now, VIF, &third), Err(AttachError::SlotTaken));
    assert_eq!(kit.fw.attach_netvm(kit.now, ClientId(9), &third), Err(AttachError::NoSuchSlot));
    assert_eq!(kit.fw.attach_client(VIF, third), Err(AttachError::SlotTaken));
}

#[test]
fn a_netvm_that_goes_is_an_uplink_that_goes() {
    let mut kit = kit();
    let port = kit.a(&udp()).assert_sent(TO_NETVM).sport();
    kit.fw.detach_client(VIF);
    assert!(!kit.fw.has_uplink());
    kit.a(&udp()).assert_refused(ID_A, 3, 0);
    let reply = from_netvm(Build::udp((SERVER, 53), (OWN, port)));
    kit.send(FROM_NETVM, &reply).assert_dropped(DropReason::UnknownPort);
    kit.fw.attach_netvm(kit.now, VIF, &vif(8, MAC_NETVM, NETVM)).unwrap();
    kit.send(FROM_NETVM, &reply).assert_sent(PortId::Client(ID_A));
}

#[test]
fn questions_about_names_go_to_the_netvm_and_come_back_from_it() {
    use crate::dns::testing::{Asked, Reply};

    let mut kit = kit().rules(A, &["action=accept dsthost=www.example.org"]);
    kit.fw.on_timer(kit.now);
    let mut frames = core::iter::from_fn(|| kit.generated());
    let (port, frame) = frames.find(|(_, frame)| frame[12..14] == [8, 0]).unwrap();
    assert_eq!(
        (port, &frame[..6], &frame[26..30]),
        (TO_NETVM, &MAC_NETVM.0[..], &OWN.octets()[..])
    );
    assert_eq!(frame[30..34], OWN_DNS[0].octets());
    let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let question = frame[54..].to_vec();
    let asked = Asked { server: OWN_DNS[0].into(), port: number(34), id: number(42), question };
    let message = Reply::to(&asked).a(60, SERVER).bytes();
    let mut l4 = [53, asked.port, (8 + message.len()) as u16, 0].map(u16::to_be_bytes).concat();
    l4.extend(message);
    let reply = from_netvm(Build::raw(OWN_DNS[0], OWN, 17, l4).checksummed(6));
    assert_eq!(kit.send(FROM_NETVM, &reply).fate, Fate::Consumed);
    kit.a(&Build::tcp((A, 1), (SERVER, 443), SYN)).assert_sent(TO_NETVM);
}
