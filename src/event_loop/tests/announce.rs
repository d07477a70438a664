//! The feature that dom0 is asked for.

use super::*;

const HELLO: [u8; 12] = [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];
const KEY: &str = "/features-request/qubes-firewall";
const SERVICE: &[u8] = b"qubes.FeaturesRequest\0";

/// Types of the messages that the control channel got.
fn said(rig: &Rig) -> Vec<u32> {
    let mut kinds = Vec::new();
    let mut bytes = &rig.machine.agent.as_ref().unwrap().outbound[..];
    while let Some((head, behind)) = bytes.split_first_chunk::<8>() {
        let [kind, len] = [0, 4].map(|at| u32::from_le_bytes(*head[at..].first_chunk().unwrap()));
        kinds.push(kind);
        bytes = &behind[len as usize..];
    }
    kinds
}

fn has_written_key(rig: &Rig) -> bool {
    let written = message(1, KEY, "1");
    let outbound = &rig.machine.database.as_ref().unwrap().outbound;
    outbound.windows(written.len()).filter(|bytes| *bytes == written).count() == 1
}

/// Both hellos are done.
fn greeted() -> Rig {
    let mut rig = Rig::up();
    assert!(!has_written_key(&rig));
    rig.machine.agent.as_mut().unwrap().inbound.extend(HELLO);
    rig.turn();
    rig
}

/// dom0 answers every write so far.
fn answer_writes(rig: &mut Rig) {
    let database = rig.machine.database.as_mut().unwrap();
    let mut rest = &database.outbound.clone()[..];
    while let Some((head, behind)) = rest.split_at_checked(HEADER) {
        let len = u32::from_le_bytes(*head[68..].first_chunk().unwrap()) as usize;
        if head[0] == 1 {
            let path = head[1..65].split(|byte| *byte == 0).next().unwrap();
            database.inbound.extend(message(7, core::str::from_utf8(path).unwrap(), ""));
        }
        rest = &behind[len..];
    }
}

#[test]
fn the_key_is_there_before_dom0_is_asked_and_that_happens_once() {
    let mut rig = greeted();
    rig.turn();
    assert!(has_written_key(&rig));
    assert_eq!(said(&rig), [0x300], "dom0 has not answered the write");
    answer_writes(&mut rig);
    rig.turn();
    rig.turn();
    assert_eq!(said(&rig), [0x300, 0x212]);
    assert!(rig.machine.agent.as_ref().unwrap().outbound.ends_with(SERVICE));
    let refusal = [&[3, 2, 0, 0, 32, 0, 0, 0], &b"features"[..], &[0; 24]].concat();
    rig.machine.agent.as_mut().unwrap().inbound.extend(refusal);
    rig.turn();
    assert!(rig.has_line("fw: qubes.FeaturesRequest: refused by dom0"), "{:?}", rig.lines.0);
    // A new link to either daemon changes nothing.
    rig.machine.changes.push_back(Change::DatabaseDown);
    rig.turn();
    rig.connect_database(&rules_of_a("action=accept"));
    rig.machine.changes.push_back(Change::AgentDown);
    rig.turn();
    rig.machine.agent = Some(pipe());
    rig.machine.changes.push_back(Change::AgentUp);
    rig.machine.agent.as_mut().unwrap().inbound.extend(HELLO);
    rig.turn();
    rig.turn();
    assert!(!has_written_key(&rig));
    assert_eq!(said(&rig), [0x300]);
}

#[test]
fn where_dom0_runs_the_service_its_channel_is_served_to_the_end() {
    let mut rig = greeted();
    rig.turn();
    answer_writes(&mut rig);
    rig.turn();
    rig.turn();
    let head = [2, 2, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0];
    let order = [&head, &b"features"[..], &[0; 24]].concat();
    rig.machine.agent.as_mut().unwrap().inbound.extend(order);
    rig.turn();
    rig.turn();
    assert_eq!(rig.machine.served, [513]);
    let (_, channel) = rig.machine.calls.last_mut().unwrap();
    assert_eq!(channel.outbound, [&HELLO[..], &[0x90, 1, 0, 0, 0, 0, 0, 0]].concat());
    channel.inbound.extend(HELLO);
    channel.inbound.extend([0x93, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    rig.turn();
    assert!(rig.machine.calls.is_empty());
    assert!(rig.has_line("fw: qubes.FeaturesRequest: done"), "{:?}", rig.lines.0);
    assert_eq!(said(&rig), [0x300, 0x212, 0x211]);
}

#[test]
fn dom0_may_ask_for_the_end_by_a_call() {
    let mut rig = greeted();
    let order =
        [&[0, 2, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0][..], b"root:poweroff\0"].concat();
    rig.machine.agent.as_mut().unwrap().inbound.extend(order);
    rig.turn();
    let call = rig.machine.calls.last().unwrap().0;
    rig.machine.changes.push_back(Change::CallUp(call));
    let (_, channel) = rig.machine.calls.last_mut().unwrap();
    channel.inbound.extend(HELLO);
    let stops: Vec<Option<Stop>> = (0..3).map(|_| rig.turn()).collect();
    assert!(stops.contains(&Some(Stop::Poweroff)), "{stops:?}");
    // It was answered, and dom0 knows that its port is free.
    assert_eq!(said(&rig).last(), Some(&0x211));
}
