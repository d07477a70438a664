//! Every row of the table of measured verdicts, rules V01 to V98 and first packets M01 to M24, through the whole packet
//! path: the tree as dom0 writes it, names by DNS, the packet as bytes. Rows with a note differ from the Qubes agent.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rules::{DecidedBy, Family, RuleSet};
use serde_json::Value;

use crate::testing::v6::{A6, Build6};
use crate::testing::*;
use crate::*;

const TABLE: &str = include_str!("../../rules/src/tests/vectors.jsonl");

macro_rules! rows {
    ($($id:ident)*) => {
        const IDS: &[&str] = &[$(stringify!($id)),*];
        $(
            #[test]
            fn $id() {
                check(stringify!($id));
            }
        )*
    };
}

rows! {
    v01 v02 v03 v04 v05 v06 v07 v08 v09 v10 v11 v12 v13 v14 v15 v16 v17 v18 v19 v20 v21 v22 v23 v24
    v25 v26 v27 v28 v29 v30 v31 v32 v33 v34 v35 v36 v37 v38 v39 v40 v41 v42 v43 v44 v45 v46 v47 v48
    v49 v50 v51 v52 v53 v54 v55 v56 v57 v58 v59 v60 v61 v62 v63 v64 v65 v66 v67 v68 v69 v70 v71 v72
    v73 v74 v75 v76 v77 v78 v79 v80 v81 v82 v83 v84 v85 v86 v87 v88 v89 v90 v91 v92 v93 v94 v95 v96
    v97 v98
    m01 m02 m03 m04 m05 m06 m07 m08 m09 m10 m11 m12 m13 m14 m15 m16 m17 m18 m19 m20 m21 m22 m23 m24
}

fn row(id: &str) -> Value {
    let start = format!("{{\"id\":\"{}\",", id.to_uppercase());
    let line = TABLE.lines().find(|line| line.starts_with(&start)).expect("a row");
    serde_json::from_str(line).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn every_row_has_a_test() {
    let ids = TABLE.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rows: Vec<String> = ids.map(|row| text(&row["id"]).to_lowercase()).collect();
    assert_eq!(rows, IDS);
}

fn check(id: &str) {
    let row = &row(id);
    let (path, expect) = (&row["path"], &row["expect"]);
    let mut kit = kit(row);
    let out = send(&mut kit, row);
    let by = match kit.fw.decided_by() {
        None | Some(DecidedBy::OtherFamily) => Value::Null,
        Some(DecidedBy::Policy) => "policy".into(),
        Some(DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. }) => {
            index.into()
        }
    };
    let title = format!("{id}: {}", row["title"]);
    assert_eq!(by, expect["rule"], "{title}");
    let is_v6 = text(&row["client"]).contains(':');
    match text(&expect["verdict"]) {
        "accept" if path["answered"] == true => {
            let echo = if is_v6 { (129, 0) } else { (0, 0) };
            assert_eq!(out.assert_sent(PortId::Client(ID_A)).icmp(), Some(echo), "{title}");
        }
        "accept" => {
            out.assert_sent(PortId::Uplink);
            let own: IpAddr = if is_v6 { v6::OWN6.into() } else { OWN.into() };
            let source: IpAddr = if is_v6 { out.src6().into() } else { out.src().into() };
            assert_eq!(source, own, "{title}");
        }
        "reject" | "parse-error" => {
            let usual = if is_v6 { (1, 1) } else { (3, 13) };
            let icmp = path["icmp"].as_array().map_or(usual, |icmp| {
                (icmp[0].as_u64().unwrap() as u8, icmp[1].as_u64().unwrap() as u8)
            });
            out.assert_refused(ID_A, icmp.0, icmp.1);
        }
        "drop" => assert!(matches!(out.fate, Fate::Drop(_)), "{title}: {:?}", out.fate),
        other => panic!("{title}: verdict {other}"),
    }
}

/// Client A has the rules of the row, client B may do everything.
fn kit(row: &Value) -> Kit {
    let mut kit = Kit::new6();
    // As dom0 has it: we use the resolvers that we give to the clients.
    kit.set_network(|network| network.v4.dns = CLIENT_DNS.to_vec());
    if row["path"]["has_ip6"] == false {
        kit.fw.detach_client(ID_A);
        kit.fw.attach_client(ID_A, vif(10, MAC_A, A)).unwrap();
    }
    let client: IpAddr = text(&row["client"]).parse().unwrap();
    assert!([A.into(), A6.into()].contains(&client));
    let state = match row["path"]["tree"] == "none" {
        true => RulesState::None,
        false => tree(client, row),
    };
    kit.fw.set_rules(kit.now, client, state).unwrap();
    if let Some(dns) = row["dns"].as_object() {
        let v4 = |addresses: &Value| -> Vec<Ipv4Addr> {
            let addresses = addresses.as_array().unwrap().iter();
            addresses.filter_map(|address| text(address).parse().ok()).collect()
        };
        let known: Vec<_> = dns.iter().map(|(name, addresses)| (name, v4(addresses))).collect();
        let zone: Vec<_> = known.iter().map(|(name, known)| (name.as_str(), &known[..])).collect();
        kit.serve_dns(&zone);
    }
    kit
}

fn tree(client: IpAddr, row: &Value) -> RulesState {
    let mut entries: Vec<(String, &str)> = match &row["rules"] {
        Value::Object(rules) => {
            rules.iter().map(|(key, value)| (key.clone(), text(value))).collect()
        }
        rules => {
            let numbered = rules.as_array().unwrap().iter().enumerate();
            numbered.map(|(n, value)| (format!("{n:04}"), text(value))).collect()
        }
    };
    entries.extend(row["policy"].as_str().map(|policy| ("policy".into(), policy)));
    let bytes = entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    match RuleSet::parse(Family::of(client), bytes) {
        Ok(set) => RulesState::Active(rules::CompiledSet::new(set).unwrap()),
        Err(error) => {
            assert_eq!(row["expect"]["reason"], error.to_string());
            RulesState::Refused
        }
    }
}

fn send(kit: &mut Kit, row: &Value) -> Out {
    let packet = &row["packet"];
    let ends = (text(&packet["src"]).parse().unwrap(), text(&packet["dst"]).parse().unwrap());
    let is_from_uplink = row["path"]["arrives"] == "uplink";
    match ends {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let build = packet4(src, dst, row);
            if is_from_uplink { kit.up(build) } else { kit.a(&build) }
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => kit.a6(&packet6(src, dst, row)),
        _ => panic!("mixed families"),
    }
}

fn ports(packet: &Value) -> (u16, u16) {
    let port = |key: &str| packet[key].as_u64().unwrap() as u16;
    (port("sport"), port("dport"))
}

fn flags(row: &Value) -> u8 {
    row["path"]["flags"].as_u64().map_or(SYN, |flags| flags as u8)
}

fn packet4(src: Ipv4Addr, dst: Ipv4Addr, row: &Value) -> Build {
    let packet = &row["packet"];
    match (&packet["proto"], packet["icmptype"].as_u64()) {
        (Value::Number(protocol), _) => {
            Build::raw(src, dst, protocol.as_u64().unwrap() as u8, vec![0x42; 32])
        }
        (_, Some(kind @ (3 | 11))) => {
            Build::error(src, dst, kind as u8, 0, &Build::udp((dst, 1), (src, 2)).packet())
        }
        (_, Some(kind)) => Build::query(src, dst, kind as u8, 7),
        (name, None) => {
            let (sport, dport) = ports(packet);
            match text(name) {
                "tcp" => Build::tcp((src, sport), (dst, dport), flags(row)),
                "udp" => Build::udp((src, sport), (dst, dport)),
                other => panic!("{other}"),
            }
        }
    }
}

fn packet6(src: Ipv6Addr, dst: Ipv6Addr, row: &Value) -> Build6 {
    let packet = &row["packet"];
    if let Some(kind) = packet["icmptype"].as_u64() {
        // Router advertisements come from neighbours, never through a router.
        let hop_limit = if kind == 134 { 255 } else { 64 };
        return Build6::echo(src, dst, kind as u8, 7).with(|build| build.hop_limit = hop_limit);
    }
    let (sport, dport) = ports(packet);
    assert_eq!(packet["proto"], "tcp");
    Build6::tcp((src, sport), (dst, dport), flags(row))
}
