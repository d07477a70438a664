//! Calls of the firewall's own services through the loop.

use serde_json::Value;

use super::*;

const HELLO: [u8; 12] = [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];

/// Orders a call and connects its data channel, which has room for so many bytes.
fn begin(rig: &mut Rig, service: &str, room: usize) -> CallId {
    let agent = rig.machine.agent.as_mut().unwrap();
    if !rig.event_loop.is_agent_ready {
        agent.inbound.extend(HELLO);
    }
    let text = format!("user:QUBESRPC {service} dom0\0");
    agent.inbound.extend([0, 2, 0, 0, 8 + text.len() as u8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
    agent.inbound.extend(text.bytes());
    rig.turn();
    let (call, pipe) = rig.machine.calls.last_mut().unwrap();
    let call = *call;
    pipe.room = room;
    pipe.inbound.extend(HELLO);
    pipe.inbound.extend([0x90, 1, 0, 0, 0, 0, 0, 0]);
    rig.machine.changes.push_back(Change::CallUp(call));
    rig.turn();
    call
}

/// The lines of standard output among the messages of a data channel.
fn lines(mut bytes: &[u8]) -> Vec<Value> {
    let mut text = Vec::new();
    while let Some((head, behind)) = bytes.split_first_chunk::<8>() {
        let [kind, len] = [0, 4].map(|at| u32::from_le_bytes(*head[at..].first_chunk().unwrap()));
        let (body, next) = behind.split_at(len as usize);
        if kind == 0x191 {
            text.extend_from_slice(body);
        }
        bytes = next;
    }
    let text = String::from_utf8(text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ask(rig: &mut Rig, service: &str) -> Vec<Value> {
    begin(rig, service, 1 << 20);
    lines(&rig.machine.closed_calls.pop().unwrap().outbound)
}

#[test]
fn health_follows_what_happens() {
    let mut rig = Rig::up();
    rig.write("/qubes-debug-mode", "0");
    rig.turn();
    assert_eq!(
        ask(&mut rig, "firewall.Health")[0]["ok"],
        true,
        "{:?}",
        ask(&mut rig, "firewall.Health")
    );
    rig.machine.changes.push_back(Change::DatabaseDown);
    let reason = Reason::new(format_args!("closed by the backend"));
    rig.machine.changes.push_back(Change::UplinkDown { reason });
    rig.turn();
    let told = ask(&mut rig, "firewall.Health");
    let problems = told.iter().filter(|line| line["kind"] == "problem");
    let ids: Vec<_> = problems.filter_map(|line| line["id"].as_str()).collect();
    assert_eq!(ids, ["no-uplink", "database-lost"]);
    rig.connect_database(&rules_of_a("action=accept proto=sctp"));
    rig.turn();
    let told = ask(&mut rig, "firewall.Health");
    let refused = told.iter().find(|line| line["id"] == "rules-refused").unwrap();
    assert!(refused["text"].as_str().unwrap().contains("sctp"), "{refused}");
    assert_eq!(told[0]["database"], "connected");
}

#[test]
fn an_edit_and_a_refused_packet_are_told_with_the_time_of_the_turn() {
    let mut rig = Rig::up();
    rig.client_sends(&Build::tcp((A, 5000), (SERVER, 80), testing::SYN));
    rig.machine.now_ns += 7_000_000_000;
    let drops = ask(&mut rig, "firewall.Drops");
    assert_eq!((&drops[1]["dport"], &drops[1]["rule"]), (&80.into(), &"policy".into()));
    assert!(
        drops[1]["age_ms"].as_u64().is_some_and(|age| (7000..7100).contains(&age)),
        "{drops:?}"
    );
    let rules = ask(&mut rig, "firewall.Rules+10.137.0.10");
    assert_eq!(rules[3]["hits"], 1);
    rig.write("/qubes-firewall/10.137.0.10/0000", "action=accept");
    rig.write("/qubes-firewall/10.137.0.10", "");
    rig.turn();
    let rules = ask(&mut rig, "firewall.Rules+10.137.0.10");
    assert_eq!((&rules[2]["text"], &rules[3]["hits"]), (&"action=accept".into(), &0.into()));
}

#[test]
fn a_caller_that_does_not_read_keeps_no_packet_and_no_other_caller_waiting() {
    let mut rig = Rig::up();
    let stalled = begin(&mut rig, "firewall.Stats+openmetrics", 100);
    for _ in 0..3 {
        let syn = Build::tcp((A, 5000), (SERVER, 443), testing::SYN);
        assert_eq!(rig.client_sends(&syn)[0].0, PortId::Uplink);
        assert!(!ask(&mut rig, "firewall.Version").is_empty());
        // No turn is asked for at once: nothing can be done for the caller.
        let deadline = rig.machine.deadlines.last().copied().flatten().unwrap();
        assert!(deadline > Instant::from_nanos(rig.machine.now_ns));
    }
    rig.machine.now_ns += 11_000_000_000;
    rig.turn();
    assert!(rig.machine.calls.iter().all(|(call, _)| *call != stalled), "its time is over");
}
