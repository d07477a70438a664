//! What the unmodified Qubes agent was measured to do with rules V01 to V88: rows of `vectors.jsonl`, which also drives
//! `qfw eval` and the whole packet path (`src/tests/table.rs` of the root package). Where this project decided otherwise
//! the row has a note.
//!
//! Rows with `path` are about the packet path, not about rules, and so are V94 and V95 (a spoofed source).

use std::net::IpAddr;

use serde_json::Value;

use super::{KnownNames, Tree, subject};
use crate::{Family, Upper};

const TABLE: &str = include_str!("vectors.jsonl");

macro_rules! rows {
    ($($id:ident)*) => {$(
        #[test]
        fn $id() {
            check(stringify!($id));
        }
    )*};
}

rows! {
    v01 v02 v03 v04 v05 v06 v07 v08 v09 v10 v11 v12 v13 v14 v15 v16 v17 v18 v19 v20 v21 v22 v23 v24
    v25 v26 v27 v28 v29 v30 v31 v32 v33 v34 v35 v36 v37 v38 v39 v40 v41 v42 v43 v44 v45 v46 v47 v48
    v49 v50 v51 v52 v53 v54 v55 v56 v57 v58 v59 v60 v61 v62 v63 v64 v65 v66 v67 v68 v69 v70 v71 v72
    v73 v74 v75 v76 v77 v78 v79 v80 v81 v82 v83 v84 v85 v86 v87 v88
}

fn row(id: &str) -> Value {
    let start = format!("{{\"id\":\"{}\",", id.to_uppercase());
    let line = TABLE.lines().find(|line| line.starts_with(&start)).expect("a row");
    serde_json::from_str(line).unwrap()
}

fn check(id: &str) {
    let row = row(id);
    assert!(row.get("path").is_none(), "{id} is about the packet path");
    let expect = &row["expect"];
    let judged = tree(&row).judge(packet(&row["packet"]));
    let expected = match (expect["verdict"].as_str().unwrap(), &expect["rule"]) {
        ("parse-error", _) => format!("refused: {}", expect["reason"].as_str().unwrap()),
        (verdict, Value::Number(index)) => {
            format!("{verdict} {}", keys(&row)[index.as_u64().unwrap() as usize])
        }
        (verdict, by) => format!("{verdict} {}", by.as_str().unwrap()),
    };
    assert_eq!(judged, expected, "{id}: {}", row["title"]);
}

/// The keys of the rules, ascending.
fn keys(row: &Value) -> Vec<String> {
    match &row["rules"] {
        Value::Object(rules) => rules.keys().cloned().collect(),
        rules => (0..rules.as_array().unwrap().len()).map(|n| format!("{n:04}")).collect(),
    }
}

fn tree(row: &Value) -> Tree {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let values: Vec<String> = match &row["rules"] {
        Value::Object(rules) => rules.values().map(text).collect(),
        rules => rules.as_array().unwrap().iter().map(text).collect(),
    };
    let policy = row.get("policy").map(|policy| ("policy".to_owned(), text(policy)));
    let entries = keys(row).into_iter().zip(values).chain(policy).collect();
    let mut names = KnownNames::default();
    for (name, addresses) in row.get("dns").and_then(Value::as_object).into_iter().flatten() {
        let addresses = addresses.as_array().unwrap().iter();
        let addresses = addresses.map(|address| address.as_str().unwrap().parse().unwrap());
        names.0.insert(name.clone(), addresses.collect());
    }
    let client: IpAddr = row["client"].as_str().unwrap().parse().unwrap();
    Tree { family: Family::of(client), entries, names }
}

fn packet(packet: &Value) -> crate::Subject {
    let number = |key: &str| packet[key].as_u64().unwrap();
    let port = || number("dport") as u16;
    let upper = match &packet["proto"] {
        Value::Number(protocol) => Upper::Other { protocol: protocol.as_u64().unwrap() as u8 },
        name if name == "tcp" => Upper::Tcp { port: port() },
        name if name == "udp" => Upper::Udp { port: port() },
        _ => Upper::Icmp { icmp_type: number("icmptype") as u8 },
    };
    subject(packet["dst"].as_str().unwrap(), upper)
}

#[test]
fn no_row_is_lost() {
    let rows = TABLE.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ids: Vec<String> = rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    let vectors = (1..=98).map(|n| format!("V{n:02}"));
    let measured = (1..=24).map(|n| format!("M{n:02}"));
    assert_eq!(ids, vectors.chain(measured).collect::<Vec<_>>());
}
