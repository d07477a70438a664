//! The gate: what nothing accepted does not leave, whatever a verdict says.

use crate::conntrack::table::FlowId;
use crate::evidence::Evidence;
use crate::testing::*;
use crate::verdict::{Answer, Refusal, Verdict};
use crate::*;

/// Hands the last stages of the path a frame as if a stage before them had come to `verdict`.
fn emit(kit: &mut Kit, verdict: Verdict, evidence: Option<Evidence>) -> Fate {
    let mut bytes = Build::tcp((A, 40_000), (SERVER, 443), SYN).frame();
    let len = bytes.len();
    let mut frame = Frame::new(&mut bytes, len, Offload::default()).unwrap();
    frame.evidence = evidence;
    kit.fw.emit(FROM_A, FROM_A, verdict, &mut frame)
}

/// The flow that the client opens with this packet.
fn opened(kit: &mut Kit, build: &Build) -> FlowId {
    kit.a(build).assert_sent(PortId::Uplink);
    kit.fw.table.any().unwrap()
}

fn evidence_of(kit: &Kit, flow: FlowId) -> Option<Evidence> {
    kit.fw.evidence_of(kit.fw.table.get(flow).unwrap())
}

#[test]
fn q3_what_nothing_accepted_ends_at_the_gate_and_is_counted() {
    let mut kit = Kit::new();
    let before = kit.counters();
    let forwarded = Verdict::Forward(PortId::Uplink);
    assert_eq!(emit(&mut kit, forwarded, None), Fate::Drop(DropReason::WithoutAccept));
    assert_eq!(kit.moved(&before), [("a/drop:without-accept".into(), 1)]);
    assert_eq!(kit.fw.stats().without_accept(), 1);
    assert_eq!(kit.fw.next_piece_len(), None);
}

#[test]
fn what_we_wrote_goes_back_and_nowhere_else() {
    let mut kit = Kit::new();
    let own = Some(Evidence::Own);
    let refused = Verdict::Reject(DropReason::TooBig, Refusal::FragmentationNeeded(1280));
    for verdict in [Verdict::Answer(Answer::Arp), refused] {
        assert_eq!(emit(&mut kit, verdict, own), Fate::Send(PortId::Client(ID_A)));
        assert_eq!(emit(&mut kit, verdict, None), Fate::Drop(DropReason::WithoutAccept));
    }
    let elsewhere = Verdict::Forward(PortId::Uplink);
    assert_eq!(emit(&mut kit, elsewhere, own), Fate::Drop(DropReason::WithoutAccept));
}

#[test]
fn q4_a_flow_has_no_evidence_from_a_commit_until_it_is_judged_again() {
    let mut kit = Kit::new();
    let build = Build::udp((A, 40_000), (SERVER, 443));
    let flow = opened(&mut kit, &build);
    let accepted = evidence_of(&kit, flow);
    assert!(matches!(accepted, Some(Evidence::Accepted(_))));
    assert_eq!(emit(&mut kit, Verdict::Forward(PortId::Uplink), accepted), {
        Fate::Send(PortId::Uplink)
    });
    kit.set_rules(A, rules(&["action=accept proto=udp"]));
    assert_eq!(evidence_of(&kit, flow), None);
    kit.a(&build).assert_sent(PortId::Uplink);
    assert_eq!(evidence_of(&kit, flow), accepted);
}

#[test]
fn a_flow_that_the_rules_forbid_has_no_evidence() {
    let mut kit = Kit::new();
    let build = Build::udp((A, 40_000), (SERVER, 443));
    let flow = opened(&mut kit, &build);
    kit.set_rules(A, rules(&["action=drop"]));
    kit.a(&build).assert_refused(ID_A, 3, 13);
    assert_eq!(evidence_of(&kit, flow), None);
}

#[test]
fn a_frame_brings_no_evidence_along() {
    let mut kit = Kit::new().rules(A, &["action=drop"]);
    let flow_of_b = {
        kit.b(&Build::udp((B, 40_000), (SERVER, 443))).assert_sent(PortId::Uplink);
        kit.fw.table.any().unwrap()
    };
    let mut bytes = Build::udp((A, 1), (SERVER, 2)).frame();
    bytes.resize(4096, 0);
    let mut frame = Frame::new(&mut bytes, 47, Offload::default()).unwrap();
    frame.evidence = evidence_of(&kit, flow_of_b);
    // The error to the client is our own.
    assert_eq!(kit.fw.handle(kit.now, FROM_A, &mut frame), Fate::Send(PortId::Client(ID_A)));
    assert_eq!(frame.evidence, Some(Evidence::Own));
    frame.evidence = evidence_of(&kit, flow_of_b);
    assert_eq!(kit.fw.poll_generate(kit.now, &mut frame), Some(PortId::Uplink));
    assert_eq!(frame.evidence, Some(Evidence::Own));
}
