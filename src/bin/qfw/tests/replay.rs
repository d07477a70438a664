//! `qfw replay`: arguments, files and exit status. What it finds out is tested beside it.

use serde_json::Value;

use super::{in_file, qfw};

const RULES: &[u8] = b"policy drop\naction=accept proto=tcp dstports=443\n";

/// ARP, a DNS answer, a connection with answers, a SYN to port 22, a ping, NTP, a VLAN.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/qfw/tests/sample.pcap");
const SAMPLE_RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/qfw/tests/sample.rules");

fn capture() -> Vec<u8> {
    std::fs::read(SAMPLE).unwrap()
}

#[test]
fn a_table_and_json() {
    let arguments = ["replay", "--rules", SAMPLE_RULES, "--client", "10.137.0.9", SAMPLE];
    let run = qfw(&arguments, b"");
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    assert_eq!(
        run.stdout,
        "VERDICT     RULE   PACKETS      BYTES ACCEPTED REPLIES  FLOW
accept      0001         1         61        1       1  udp 10.137.0.9:5353 > 10.139.1.1:53
accept      0000         3        125        3       2  tcp 10.137.0.9:40000 > 198.51.100.7:443
reject      0002         1         40        0       0  tcp 10.137.0.9:40001 > 198.51.100.7:22 (rule 0002 (action=drop proto=tcp dstports=22-22) is the first that matches)
accept      0003         1         32        1       1  icmp 10.137.0.9 > 198.51.100.7 type 8
reject      policy       1         76        0       0  udp 10.137.0.9:123 > 203.0.113.9:123 (no rule matches, and the policy is drop)
5 flows, 7 packets of the client; 1 arp; 1 vlan
"
    );
    let run = qfw(&[&arguments[..], &["--json"]].concat(), b"");
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["flows"][1]["rule"], 0);
    assert_eq!(json["flows"][4]["rule"], "policy");
    assert_eq!(json["skipped"]["vlan"], 1);
}

#[test]
fn from_the_standard_input_and_with_an_end_that_is_missing() {
    let rules = in_file("replay-rules-stdin", b"10.137.0.9/policy = drop\n");
    let arguments = ["replay", "--rules", rules.to_str().unwrap(), "-"];
    let mut bytes = capture();
    bytes.pop();
    let run = qfw(&arguments, &bytes);
    assert_eq!(run.status, 0);
    assert!(run.stderr.contains("in the middle of a record"), "{}", run.stderr);
    assert!(run.stdout.ends_with("5 flows, 7 packets of the client; 1 arp\n"), "{}", run.stdout);
}

#[test]
fn what_cannot_be_replayed_is_status_2() {
    let rules = in_file("replay-rules-2", RULES);
    let rules = rules.to_str().unwrap();
    for (arguments, said) in [
        (&["--rules", rules, "-"][..], "say --client"),
        (&["--rules", rules, "--client", "10.137.0.9", "/nonexistent"], "/nonexistent"),
        (&["--rules", rules, "--client", "10.137.0.9", "-"], "not a pcap or pcapng file"),
        (&["--client", "10.137.0.9", "-"], "--rules"),
    ] {
        let run = qfw(&[&["replay"], arguments].concat(), b"no capture at all, but long enough");
        assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(run.stderr.contains(said), "{}", run.stderr);
    }
    // Refused rules are an answer.
    let refused = in_file("replay-refused", b"action=accept\n");
    let arguments = ["replay", "--client=10.137.0.9", "--rules", refused.to_str().unwrap(), "-"];
    let run = qfw(&arguments, &capture());
    assert!(run.stderr.contains("key policy is missing"), "{}", run.stderr);
    assert!(run.stdout.contains("parse-error"), "{}", run.stdout);
    assert_eq!(run.status, 0);
}
