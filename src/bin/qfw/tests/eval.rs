//! `qfw eval`.

use serde_json::{Value, json};

use super::qfw;

const TABLE: &str = include_str!("../../../../rules/src/tests/vectors.jsonl");

fn eval(input: &str) -> Vec<Value> {
    let run = qfw(&["eval"], input.as_bytes());
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The example of the contract, changed.
fn case(change: impl FnOnce(&mut Value)) -> Value {
    let mut case = json!({
        "id": "c1", "client": "10.137.0.5", "policy": "drop",
        "rules": ["action=accept proto=tcp dst4=1.2.3.4/32 dstports=443-443"],
        "dns_servers": ["10.139.1.1", "10.139.1.2"], "dns": {"example.com": ["93.184.216.34"]},
        "packet": {"src": "10.137.0.5", "dst": "1.2.3.4", "proto": "tcp", "sport": 40000, "dport": 443}
    });
    change(&mut case);
    case
}

/// Verdict and rule.
fn verdict(change: impl FnOnce(&mut Value)) -> (String, Value) {
    let replies = eval(&format!("{}\n", case(change)));
    assert_eq!(replies.len(), 1);
    let reply = &replies[0];
    let is_accept = reply["verdict"] == "accept";
    assert_eq!(reply.get("reason").is_none(), is_accept, "{reply}");
    (reply["verdict"].as_str().unwrap().to_owned(), reply["rule"].clone())
}

fn is(verdict: &str, rule: impl Into<Value>) -> (String, Value) {
    (verdict.to_owned(), rule.into())
}

/// V01 to V88, V94 and V95: the rows that are not about the packet path.
#[test]
fn every_vector_has_the_verdict_of_the_table() {
    let rows = TABLE.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rows: Vec<Value> = rows.filter(|row| row.get("path").is_none()).collect();
    assert_eq!(rows.len(), 90);
    let input: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let replies = eval(&input);
    assert_eq!(replies.len(), rows.len());
    for (row, reply) in rows.iter().zip(&replies) {
        assert_eq!(reply["id"], row["id"]);
        for (key, expected) in row["expect"].as_object().unwrap() {
            assert_eq!(&reply[key], expected, "{row}");
        }
    }
}

#[test]
fn the_example_of_the_contract_to_the_letter() {
    let run = qfw(&["eval"], case(|_| ()).to_string().as_bytes());
    assert_eq!(run.stdout, "{\"id\":\"c1\",\"verdict\":\"accept\",\"rule\":0}\n");
    assert_eq!(run.status, 0);
}

#[test]
fn what_may_be_missing_may_be_null_too() {
    for value in [None, Some(Value::Null)] {
        let without = |key: &'static str| {
            let value = value.clone();
            move |case: &mut Value| match value {
                None => drop(case.as_object_mut().unwrap().remove(key)),
                Some(null) => case[key] = null,
            }
        };
        assert_eq!(verdict(without("policy")), is("parse-error", Value::Null));
        assert_eq!(verdict(without("dns")), is("accept", 0));
        assert_eq!(verdict(without("dns_servers")), is("accept", 0));
        assert_eq!(verdict(|case| without("sport")(&mut case["packet"])), is("accept", 0));
    }
    assert_eq!(verdict(|case| case["policy"] = "".into()), is("parse-error", Value::Null));
}

#[test]
fn rules_are_a_list_or_an_object_of_keys() {
    let object = json!({"0007": "action=accept", "0003": "action=drop proto=udp"});
    assert_eq!(verdict(|case| case["rules"] = object.clone()), is("accept", 1));
    // The policy is one of the keys, and comes once.
    let keys = |policy: &str| json!({"policy": policy, "0000": "action=drop dst4=9.9.9.9"});
    let set = |rules: Value, policy: Value| {
        verdict(|case| {
            case["rules"] = rules;
            case["policy"] = policy;
        })
    };
    assert_eq!(set(keys("accept"), Value::Null), is("accept", "policy"));
    assert_eq!(set(keys("accept"), "accept".into()), is("accept", "policy"));
    assert_eq!(set(keys("accept"), "drop".into()), is("parse-error", Value::Null));
    let twice = case(|_| ()).to_string().replace(
        r#"["action=accept proto=tcp dst4=1.2.3.4/32 dstports=443-443"]"#,
        r#"{"0000":"action=drop","0000":"action=accept"}"#,
    );
    let reply = &eval(&twice)[0];
    assert_eq!(reply["reason"], "rule 0000 appears twice, expected once");
}

#[test]
fn silence_for_a_foreign_source_and_for_the_other_family() {
    let packet = |src: &'static str, dst: &'static str| {
        verdict(move |case| {
            case["rules"] = json!(["action=accept"]);
            case["packet"]["src"] = src.into();
            case["packet"]["dst"] = dst.into();
        })
    };
    assert_eq!(packet("10.137.0.6", "1.2.3.4"), is("drop", Value::Null));
    assert_eq!(packet("2001:db8::1", "2001:db8::2"), is("drop", Value::Null));
    assert_eq!(packet("10.137.0.5", "2001:db8::2"), is("drop", Value::Null));
    assert_eq!(packet("10.137.0.5", "::ffff:1.2.3.4"), is("drop", Value::Null));
}

#[test]
fn names_are_known_unknown_or_do_not_exist() {
    let name = |rule: &'static str, dns: Value| {
        verdict(|case| {
            case["rules"] = json!([rule, "action=accept"]);
            case["dns"] = dns;
        })
    };
    let both = json!({"a.example": ["2001:db8::1", "1.2.3.4"]});
    assert_eq!(name("action=drop dsthost=a.example", both), is("reject", 0));
    let other = json!({"a.example": ["2001:db8::1"]});
    assert_eq!(name("action=drop dsthost=a.example", other), is("accept", 1));
    assert_eq!(name("action=drop dsthost=a.example", json!({"a.example": []})), is("accept", 1));
    assert_eq!(name("action=drop dsthost=a.example", json!({})), is("reject", 0));
    assert_eq!(name("action=accept dsthost=a.example proto=tcp", json!({})), is("accept", 1));
}

#[test]
fn protocols_by_name_and_by_number_in_both_families() {
    let v6 = |rule: &'static str, packet: Value| {
        verdict(|case| {
            case["client"] = "fd09::5".into();
            case["rules"] = json!([rule]);
            case["dns_servers"] = json!(["fd09::53", "10.139.1.1"]);
            case["packet"] = packet;
            case["packet"]["src"] = "fd09::5".into();
        })
    };
    let to = "2001:db8::5";
    let echo = json!({"dst": to, "proto": "icmp", "icmptype": 128, "icmpcode": 0});
    assert_eq!(v6("action=accept proto=icmp icmptype=128", echo), is("accept", 0));
    let echo = json!({"dst": to, "proto": 58, "icmptype": 128});
    assert_eq!(v6("action=accept proto=icmp icmptype=128", echo), is("accept", 0));
    let icmp_of_the_other_family = json!({"dst": to, "proto": 1});
    assert_eq!(v6("action=accept proto=icmp", icmp_of_the_other_family), is("reject", "policy"));
    let dns = json!({"dst": "fd09::53", "proto": "udp", "dport": 53});
    assert_eq!(v6("action=accept specialtarget=dns", dns), is("accept", 0));
    let number = |packet: Value| {
        verdict(|case| {
            case["packet"] = packet;
            case["packet"]["src"] = "10.137.0.5".into();
        })
    };
    assert_eq!(number(json!({"dst": "1.2.3.4", "proto": 6, "dport": 443})), is("accept", 0));
    assert_eq!(number(json!({"dst": "1.2.3.4", "proto": 47})), is("reject", "policy"));
}

#[test]
fn a_line_of_no_use_is_answered_and_the_run_goes_on() {
    let good = case(|_| ()).to_string();
    let broken = |change: fn(&mut Value)| case(change).to_string();
    let lines = [
        "".to_owned(),
        "{".to_owned(),
        "7".to_owned(),
        "{\"id\":\"c1\"}".to_owned(),
        broken(|case| case["client"] = "10.137.0".into()),
        broken(|case| case["client"] = Value::Null),
        broken(|case| case["rules"] = Value::Null),
        broken(|case| case["rules"] = json!([1])),
        broken(|case| case["policy"] = json!(1)),
        broken(|case| case["dns"] = json!({"a": ["b"]})),
        broken(|case| case["packet"]["dport"] = Value::Null),
        broken(|case| case["packet"]["dport"] = json!(65536)),
        broken(|case| case["packet"]["proto"] = json!(256)),
        broken(|case| case["packet"]["proto"] = json!("icmp")),
        broken(|case| case["packet"]["proto"] = json!("carrier-pigeon")),
        "[".repeat(100_000),
    ];
    let input: String = lines.iter().map(|line| format!("{line}\n{good}\n")).collect();
    let replies = eval(&input);
    assert_eq!(replies.len(), 2 * lines.len());
    for (pair, line) in replies.chunks(2).zip(&lines) {
        assert_eq!(pair[0]["verdict"], "input-error", "{line}");
        assert_eq!(pair[1]["verdict"], "accept");
        let id = if line.len() > 9 && line.starts_with('{') { json!("c1") } else { Value::Null };
        assert_eq!(pair[0]["id"], id, "{line}");
    }
}

#[test]
fn no_input_no_output() {
    assert!(eval("").is_empty());
    let run = qfw(&["eval"], b"\xff\xfe\n");
    assert_eq!((run.status, run.stdout.lines().count()), (0, 1));
}
