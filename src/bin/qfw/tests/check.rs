//! `qfw check`.

use super::{in_file, qfw};

fn check(text: &str) -> (i32, String) {
    let run = qfw(&["check", "-"], text.as_bytes());
    assert_eq!(run.stderr, "");
    (run.status, run.stdout)
}

#[test]
fn a_valid_set_is_summed_up() {
    let text =
        "# what the dialog writes\npolicy drop\n\naction=accept dsthost=a.example\naction=drop\n";
    let summary = "rules: valid: 2 rules, policy drop, 1 name\n";
    assert_eq!(check(text), (0, summary.to_owned()));
    let file = in_file("valid", text.as_bytes());
    let run = qfw(&["check", file.to_str().unwrap()], b"");
    assert_eq!((run.status, run.stdout.as_str()), (0, summary));
}

#[test]
fn every_spelling_of_an_entry_is_understood() {
    for text in [
        "policy drop\n0000 action=accept\n",
        "policy=drop\r\n0000=action=accept\r\n",
        "policy = drop\n0000 = action=accept",
        "action=accept\npolicy drop",
        "{\"policy\":\"drop\",\"0000\":\"action=accept\"}",
        " {\"client\":null,\"policy\":\"drop\",\"rules\":[\"action=accept\"]}\n",
    ] {
        let summary = "rules: valid: 1 rule, policy drop, 0 names\n";
        assert_eq!(check(text), (0, summary.to_owned()), "{text}");
    }
}

#[test]
fn a_refused_set_says_key_token_and_what_was_expected() {
    let (status, text) = check("policy drop\naction=accept\naction=accept dpi=NO\n");
    assert_eq!(
        text,
        "rules: refused: rule 0001: element 2 'dpi=NO': unknown option, expected action, dst4, dst6, dsthost, proto, specialtarget, dstports or icmptype (line 3)\n"
    );
    assert_eq!(status, 1);
    for (text, reason) in [
        ("", "key policy is missing, expected accept or drop"),
        ("policy deny", "key policy: unknown value 'deny', expected accept or drop"),
        ("policy", "key policy: unknown value '', expected accept or drop"),
        ("policy drop\nnote hi", "unknown key 'note', expected policy or four digits"),
        ("policy drop\npolicy drop", "key policy appears twice, expected once"),
        (
            "policy drop\n0003 action=drop\n0003 action=drop",
            "rule 0003 appears twice, expected once (line 3)",
        ),
        (
            "policy drop\naction=drop ",
            "rule 0000: element 2 '': empty element, expected one space between options and none at the ends (line 2)",
        ),
        (
            "{\"policy\":\"drop\",\"0001\":\"action=drop\",\"0001\":\"action=accept\"}",
            "rule 0001 appears twice, expected once",
        ),
    ] {
        assert_eq!(check(text), (1, format!("rules: refused: {reason}\n")), "{text}");
    }
    let (status, text) = check("policy drop\naction=accept\u{fc}\n");
    assert_eq!(
        (status, text.as_str()),
        (1, "rules: refused: rule 0000: not text, expected ASCII (line 2)\n")
    );
}

/// The firewall says `state=refused reason="..."`: `src/control` has the same text from the same type.
#[test]
fn a_dump_of_several_clients_is_checked_set_by_set() {
    let dump = "/qubes-ip = 10.137.0.6
/qubes-firewall/10.137.0.9/0000 = action=accept
/qubes-firewall/10.137.0.9/policy = drop
/qubes-firewall/10.137.0.9 = 
10.137.0.10/0000 = action=accept dst6=::1
10.137.0.10/policy = drop
fd09::9/policy = drop
fd09::9/0000 = action=accept dst6=::1
";
    let (status, text) = check(dump);
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "10.137.0.9: valid: 1 rule, policy drop, 0 names",
            "10.137.0.10: refused: rule 0000: element 2 'dst6=::1': IPv6 destination in the tree of an IPv4 address, expected IPv4 or a name (line 5)",
            "fd09::9: valid: 1 rule, policy drop, 0 names",
        ]
    );
    assert_eq!(status, 1);
    let run = qfw(&["check", "--client", "10.137.0.9", "-"], dump.as_bytes());
    assert_eq!((run.status, run.stdout.lines().count()), (0, 1));
    assert_eq!(qfw(&["check", "--client", "10.137.0.99", "-"], dump.as_bytes()).status, 2);
}

#[test]
fn warnings_do_not_fail() {
    let (status, text) = check("policy drop\naction=accept\naction=drop proto=tcp\n");
    assert!(text.contains("warning: rule 0000 (action=accept) decides about everything"), "{text}");
    assert_eq!(status, 0);
}

#[test]
fn wrong_use_and_unreadable_files_are_status_2() {
    for arguments in [
        &["check"][..],
        &["check", "/nonexistent"],
        &["frobnicate"],
        &["check", "-", "--client", "x"],
    ] {
        let run = qfw(arguments, b"");
        assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(!run.stderr.is_empty());
    }
    assert_eq!(qfw(&["check", "-"], b"{").status, 2);
    assert_eq!(qfw(&["check", "-"], b"{\"rules\":7}").status, 2);
    assert_eq!(qfw(&["help", "check"], b"").status, 0);
}
