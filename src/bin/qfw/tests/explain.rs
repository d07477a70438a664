//! `qfw explain`.

use serde_json::{Value, json};

use super::qfw;

const RULES: &str = "policy drop
action=accept dst4=198.51.100.0/24 proto=tcp dstports=443-443
action=drop dsthost=bad.example
action=accept specialtarget=dns
action=accept proto=icmp icmptype=8
";

fn explain(arguments: &[&str]) -> String {
    let run = qfw(&[&["explain", "--rules", "-"], arguments].concat(), RULES.as_bytes());
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    run.stdout
}

#[test]
fn the_deciding_rule_and_those_before_it() {
    let bad = "--resolve=bad.example=192.0.2.1,2001:db8::1";
    assert_eq!(
        explain(&[bad, "icmp", "203.0.113.1", "8"]),
        "accept: rule 0003 (action=accept proto=icmp icmptype=8) is the first that matches
  0000 action=accept dst4=198.51.100.0/24 proto=tcp dstports=443-443: another destination
  0001 action=drop dsthost=bad.example: the name does not have the address
  0002 action=accept specialtarget=dns: not DNS to a resolver of the firewall
  0003 action=accept proto=icmp icmptype=8: decides
"
    );
    let policy = explain(&[bad, "udp", "203.0.113.1", "53"]);
    assert!(policy.starts_with("reject: no rule matches, and the policy is drop\n"), "{policy}");
    let dns = explain(&[bad, "udp", "10.139.1.2", "53"]);
    assert!(dns.starts_with("accept: rule 0002"), "{dns}");
    let other = explain(&[bad, "--dns-server=192.0.2.53", "udp", "10.139.1.2", "53"]);
    assert!(other.starts_with("reject: no rule"), "{other}");
}

#[test]
fn an_unresolved_name_is_the_reason() {
    let text = explain(&["47", "203.0.113.1"]);
    assert!(text.starts_with(
        "reject: rule 0001 (action=drop dsthost=bad.example) has a name that is not resolved"
    ));
    let text = explain(&["--resolve", "bad.example=", "47", "203.0.113.1"]);
    assert!(text.starts_with("reject: no rule matches"), "{text}");
}

#[test]
fn json_in_and_out() {
    let packet = r#"{"src":"10.137.0.9","dst":"198.51.100.7","proto":"tcp","dport":443}"#;
    let reply: Value = serde_json::from_str(&explain(&["--json", packet])).unwrap();
    let rule = "action=accept dst4=198.51.100.0/24 proto=tcp dstports=443-443";
    assert_eq!(
        reply,
        json!({
            "verdict": "accept", "rule": 0,
            "reason": format!("rule 0000 ({rule}) is the first that matches"),
            "asked": [{"key": "0000", "rule": rule, "mismatch": null}]
        })
    );
    let case = r#"{"client":"fd09::9","policy":"accept","rules":[],"packet":{"src":"fd09::9","dst":"2001:db8::1","proto":"udp","dport":1}}"#;
    let run = qfw(&["explain", "--json", case], b"");
    assert!(run.stdout.starts_with(r#"{"verdict":"accept","rule":"policy""#), "{}", run.stdout);
}

#[test]
fn spoofed_and_refused() {
    let text = explain(&["--client", "10.137.0.9", "--src", "10.137.0.8", "47", "203.0.113.1"]);
    assert!(text.starts_with("drop: the source 10.137.0.8 is not 10.137.0.9"), "{text}");
    let run = qfw(&["explain", "--rules", "-", "47", "203.0.113.1"], b"action=accept\n");
    assert_eq!(run.stdout, "parse-error: key policy is missing, expected accept or drop\n");
    assert_eq!(run.status, 0);
}

#[test]
fn what_is_missing_is_said() {
    for (packet, missing) in [
        (&["tcp", "203.0.113.1"][..], "dport"),
        (&["icmp", "203.0.113.1"], "icmptype"),
        (&["tcp"], "PROTO DESTINATION"),
        (&["carp", "203.0.113.1"], "expected tcp, udp, icmp"),
        (&["tcp", "example.com", "1"], "not an address"),
        (&["tcp", "203.0.113.1", "https"], "no port"),
        (&["{}"], "missing field"),
    ] {
        let run = qfw(&[&["explain", "--rules", "-"], packet].concat(), RULES.as_bytes());
        assert_eq!((run.status, run.stdout.as_str()), (2, ""));
        assert!(run.stderr.contains(missing), "{packet:?}: {}", run.stderr);
    }
    let run = qfw(&["explain", "tcp", "203.0.113.1", "1"], b"");
    assert!(run.stderr.contains("--rules"), "{}", run.stderr);
}
