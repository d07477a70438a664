//! Section 3 of the recordings: live traffic, each command with its answer, then the whole sequence.

use super::{cat, feed, sent, synchronised};
use crate::{Client, Event, Path, Tree};
use alloc::vec;
use alloc::vec::Vec;

#[test]
fn captures_3_row_31_answered_by_row_32() {
    let command =
        cat(&[&[0x04], b"/qubes-firewall/10.137.0.11/", &[0; 36], &[0; 3], &[0, 0, 0, 0], b""]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11/", &[0; 36], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(
        feed(&mut client, &command),
        [Event::RemovedBelow { prefix: Path::removal("/qubes-firewall/10.137.0.11/").unwrap() }]
    );
    assert_eq!(client.store().iter_prefix("/qubes-firewall/10.137.0.11/").count(), 0);
    assert!(client.store().get("/qubes-firewall/10.137.0.11").is_some(), "the mark stays");
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_33_answered_by_row_36() {
    let command = cat(&[
        &[0x01],
        b"/qubes-firewall/10.137.0.11/policy",
        &[0; 30],
        &[0; 3],
        &[0x04, 0x00, 0x00, 0x00],
        b"drop",
    ]);
    let answer = cat(&[
        &[0x07],
        b"/qubes-firewall/10.137.0.11/policy",
        &[0; 30],
        &[0; 3],
        &[0, 0, 0, 0],
        b"",
    ]);
    assert_eq!(command.len(), 76);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/qubes-firewall/10.137.0.11/policy")]);
    assert_eq!(client.store().get("/qubes-firewall/10.137.0.11/policy"), Some(b"drop".as_slice()));
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_34_answered_by_row_37() {
    let command = cat(&[
        &[0x01],
        b"/qubes-firewall/10.137.0.11/0000",
        &[0; 32],
        &[0; 3],
        &[0x3d, 0x00, 0x00, 0x00],
        b"action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443",
    ]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11/0000", &[0; 32], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 133);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/qubes-firewall/10.137.0.11/0000")]);
    assert_eq!(
        client.store().get("/qubes-firewall/10.137.0.11/0000"),
        Some(b"action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443".as_slice())
    );
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_35_answered_by_row_38() {
    let command = cat(&[
        &[0x01],
        b"/qubes-firewall/10.137.0.11/0002",
        &[0; 32],
        &[0; 3],
        &[0x1f, 0x00, 0x00, 0x00],
        b"action=accept specialtarget=dns",
    ]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11/0002", &[0; 32], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 103);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/qubes-firewall/10.137.0.11/0002")]);
    assert_eq!(
        client.store().get("/qubes-firewall/10.137.0.11/0002"),
        Some(b"action=accept specialtarget=dns".as_slice())
    );
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_39_answered_by_row_40() {
    let command =
        cat(&[&[0x01], b"/qubes-firewall/10.137.0.11", &[0; 37], &[0; 3], &[0, 0, 0, 0], b""]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11", &[0; 37], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [committed()]);
    assert_eq!(client.store().get("/qubes-firewall/10.137.0.11"), Some(b"".as_slice()));
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_41_answered_by_row_42() {
    let command = cat(&[
        &[0x01],
        b"/connected-ips",
        &[0; 50],
        &[0; 3],
        &[0x17, 0x00, 0x00, 0x00],
        b"10.137.0.11 10.137.0.12",
    ]);
    let answer = cat(&[&[0x07], b"/connected-ips", &[0; 50], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 95);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/connected-ips")]);
    assert_eq!(client.store().get("/connected-ips"), Some(b"10.137.0.11 10.137.0.12".as_slice()));
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_43_answered_by_row_44() {
    let command = cat(&[&[0x01], b"/qubes-iptables-error", &[0; 43], &[0; 3], &[0, 0, 0, 0], b""]);
    let answer = cat(&[&[0x07], b"/qubes-iptables-error", &[0; 43], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/qubes-iptables-error")]);
    assert_eq!(client.store().get("/qubes-iptables-error"), Some(b"".as_slice()));
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_45_answered_by_row_46() {
    let command = cat(&[&[0x04], b"/qubes-iptables-error", &[0; 43], &[0; 3], &[0, 0, 0, 0], b""]);
    let answer = cat(&[&[0x07], b"/qubes-iptables-error", &[0; 43], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client = synchronised(&[("/qubes-iptables-error", "v")]);
    assert_eq!(
        feed(&mut client, &command),
        [Event::Removed { path: Path::entry("/qubes-iptables-error").unwrap() }]
    );
    assert_eq!(client.store().get("/qubes-iptables-error"), None);
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_47_answered_by_row_48() {
    let command =
        cat(&[&[0x04], b"/qubes-firewall/10.137.0.11/", &[0; 36], &[0; 3], &[0, 0, 0, 0], b""]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11/", &[0; 36], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(
        feed(&mut client, &command),
        [Event::RemovedBelow { prefix: Path::removal("/qubes-firewall/10.137.0.11/").unwrap() }]
    );
    assert_eq!(client.store().iter_prefix("/qubes-firewall/10.137.0.11/").count(), 0);
    assert!(client.store().get("/qubes-firewall/10.137.0.11").is_some(), "the mark stays");
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_49_answered_by_row_52() {
    let command = cat(&[
        &[0x01],
        b"/qubes-firewall/10.137.0.11/policy",
        &[0; 30],
        &[0; 3],
        &[0x04, 0x00, 0x00, 0x00],
        b"drop",
    ]);
    let answer = cat(&[
        &[0x07],
        b"/qubes-firewall/10.137.0.11/policy",
        &[0; 30],
        &[0; 3],
        &[0, 0, 0, 0],
        b"",
    ]);
    assert_eq!(command.len(), 76);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/qubes-firewall/10.137.0.11/policy")]);
    assert_eq!(client.store().get("/qubes-firewall/10.137.0.11/policy"), Some(b"drop".as_slice()));
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_50_answered_by_row_53() {
    let command = cat(&[
        &[0x01],
        b"/qubes-firewall/10.137.0.11/0000",
        &[0; 32],
        &[0; 3],
        &[0x3d, 0x00, 0x00, 0x00],
        b"action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443",
    ]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11/0000", &[0; 32], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 133);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/qubes-firewall/10.137.0.11/0000")]);
    assert_eq!(
        client.store().get("/qubes-firewall/10.137.0.11/0000"),
        Some(b"action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443".as_slice())
    );
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_51_answered_by_row_54() {
    let command = cat(&[
        &[0x01],
        b"/qubes-firewall/10.137.0.11/0002",
        &[0; 32],
        &[0; 3],
        &[0x1f, 0x00, 0x00, 0x00],
        b"action=accept specialtarget=dns",
    ]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11/0002", &[0; 32], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 103);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/qubes-firewall/10.137.0.11/0002")]);
    assert_eq!(
        client.store().get("/qubes-firewall/10.137.0.11/0002"),
        Some(b"action=accept specialtarget=dns".as_slice())
    );
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_55_answered_by_row_56() {
    let command =
        cat(&[&[0x01], b"/qubes-firewall/10.137.0.11", &[0; 37], &[0; 3], &[0, 0, 0, 0], b""]);
    let answer =
        cat(&[&[0x07], b"/qubes-firewall/10.137.0.11", &[0; 37], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [committed()]);
    assert_eq!(client.store().get("/qubes-firewall/10.137.0.11"), Some(b"".as_slice()));
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_57_answered_by_row_58() {
    let command =
        cat(&[&[0x01], b"/big", &[0; 60], &[0; 3], &[0xff, 0x0b, 0x00, 0x00], &[b'x'; 3071]]);
    let answer = cat(&[&[0x07], b"/big", &[0; 60], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 3143);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(feed(&mut client, &command), [changed("/big")]);
    assert_eq!(client.store().get("/big"), Some([b'x'; 3071].as_slice()));
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_59_answered_by_row_60() {
    let command = cat(&[
        &[0x01],
        b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
        &[0; 1],
        &[0; 3],
        &[0x01, 0x00, 0x00, 0x00],
        b"v",
    ]);
    let answer = cat(&[
        &[0x07],
        b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
        &[0; 1],
        &[0; 3],
        &[0, 0, 0, 0],
        b"",
    ]);
    assert_eq!(command.len(), 73);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    assert_eq!(
        feed(&mut client, &command),
        [changed("/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp")]
    );
    assert_eq!(
        client.store().get("/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp"),
        Some(b"v".as_slice())
    );
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_61_answered_by_row_62() {
    let command = cat(&[
        &[0x04],
        b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
        &[0; 1],
        &[0; 3],
        &[0, 0, 0, 0],
        b"",
    ]);
    let answer = cat(&[
        &[0x07],
        b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
        &[0; 1],
        &[0; 3],
        &[0, 0, 0, 0],
        b"",
    ]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client =
        synchronised(&[("/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp", "v")]);
    assert_eq!(
        feed(&mut client, &command),
        [Event::Removed {
            path: Path::entry("/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp")
                .unwrap()
        }]
    );
    assert_eq!(
        client.store().get("/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp"),
        None
    );
    assert_eq!(sent(&mut client), answer);
}

#[test]
fn captures_3_row_63_answered_by_row_64() {
    let command = cat(&[
        &[0x01],
        b"/qubes-firewall-handled/10.137.0.11",
        &[0; 29],
        &[0; 3],
        &[0x01, 0x00, 0x00, 0x00],
        b"1",
    ]);
    let answer = cat(&[
        &[0x07],
        b"/qubes-firewall-handled/10.137.0.11",
        &[0; 29],
        &[0; 3],
        &[0, 0, 0, 0],
        b"",
    ]);
    assert_eq!(command.len(), 73);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    client.write("/qubes-firewall-handled/10.137.0.11", b"1").unwrap();
    assert_eq!(sent(&mut client), command);
    assert_eq!(feed(&mut client, &answer), []);
    assert_eq!(client.store().get("/qubes-firewall-handled/10.137.0.11"), Some(b"1".as_slice()));
    assert_eq!(client.counters().unexpected_answers, 0);
    assert!(client.is_synchronised());
}

#[test]
fn captures_3_row_65_answered_by_row_66() {
    let command = cat(&[
        &[0x01],
        b"/dns/10.137.0.11/www.example.org",
        &[0; 32],
        &[0; 3],
        &[0x11, 0x00, 0x00, 0x00],
        b"{198.51.100.7/32}",
    ]);
    let answer =
        cat(&[&[0x07], b"/dns/10.137.0.11/www.example.org", &[0; 32], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 89);
    assert_eq!(answer.len(), 72);
    let mut client = recorded();
    client.write("/dns/10.137.0.11/www.example.org", b"{198.51.100.7/32}").unwrap();
    assert_eq!(sent(&mut client), command);
    assert_eq!(feed(&mut client, &answer), []);
    assert_eq!(
        client.store().get("/dns/10.137.0.11/www.example.org"),
        Some(b"{198.51.100.7/32}".as_slice())
    );
    assert_eq!(client.counters().unexpected_answers, 0);
    assert!(client.is_synchronised());
}

#[test]
fn captures_3_row_67_answered_by_row_68() {
    let command = cat(&[&[0x04], b"/dns/10.137.0.11/", &[0; 47], &[0; 3], &[0, 0, 0, 0], b""]);
    let answer = cat(&[&[0x07], b"/dns/10.137.0.11/", &[0; 47], &[0; 3], &[0, 0, 0, 0], b""]);
    assert_eq!(command.len(), 72);
    assert_eq!(answer.len(), 72);
    let mut client = synchronised(&[("/dns/10.137.0.11/www.example.org", "{198.51.100.7/32}")]);
    client.remove("/dns/10.137.0.11/").unwrap();
    assert_eq!(sent(&mut client), command);
    assert_eq!(feed(&mut client, &answer), []);
    assert!(client.store().is_empty());
    assert_eq!(client.counters().unexpected_answers, 0);
    assert!(client.is_synchronised());
}

/// The firewall tree as in the recorded dump.
fn recorded() -> Client {
    synchronised(&[
        ("/qubes-firewall/10.137.0.11/policy", "drop"),
        ("/qubes-firewall/10.137.0.11/0002", "action=accept specialtarget=dns"),
        ("/qubes-firewall/10.137.0.11/0000", "action=accept"),
        ("/qubes-firewall/10.137.0.11", ""),
        ("/connected-ips", "10.137.0.11 10.137.0.12"),
    ])
}

fn changed(path: &str) -> Event {
    Event::Changed { path: Path::entry(path).unwrap() }
}

fn committed() -> Event {
    Event::Committed { tree: Tree::new("10.137.0.11").unwrap(), complete: Ok(()) }
}

enum Row {
    FromDom0(Vec<u8>),
    FromUs(Vec<u8>),
    WeWrite(&'static str, &'static [u8]),
    WeRemove(&'static str),
}

#[test]
fn captures_3_rows_31_to_68_in_sequence() {
    let mut client = recorded();
    let mut from_us = Vec::new();
    for row in rows() {
        match row {
            Row::FromDom0(bytes) => {
                feed(&mut client, &bytes);
                from_us.extend(sent(&mut client));
            }
            Row::WeWrite(path, value) => {
                client.write(path, value).unwrap();
                from_us.extend(sent(&mut client));
            }
            Row::WeRemove(path) => {
                client.remove(path).unwrap();
                from_us.extend(sent(&mut client));
            }
            Row::FromUs(bytes) => {
                assert!(from_us.starts_with(&bytes));
                from_us.drain(..bytes.len());
            }
        }
    }
    assert_eq!(from_us, [], "nothing but the recorded rows");
    let keys: Vec<_> = client.store().iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "/big",
            "/connected-ips",
            "/qubes-firewall-handled/10.137.0.11",
            "/qubes-firewall/10.137.0.11",
            "/qubes-firewall/10.137.0.11/0000",
            "/qubes-firewall/10.137.0.11/0002",
            "/qubes-firewall/10.137.0.11/policy",
        ]
    );
}

fn rows() -> Vec<Row> {
    vec![
        Row::FromDom0(cat(&[
            &[0x04],
            b"/qubes-firewall/10.137.0.11/",
            &[0; 36],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/",
            &[0; 36],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11/policy",
            &[0; 30],
            &[0; 3],
            &[0x04, 0x00, 0x00, 0x00],
            b"drop",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11/0000",
            &[0; 32],
            &[0; 3],
            &[0x3d, 0x00, 0x00, 0x00],
            b"action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11/0002",
            &[0; 32],
            &[0; 3],
            &[0x1f, 0x00, 0x00, 0x00],
            b"action=accept specialtarget=dns",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/policy",
            &[0; 30],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/0000",
            &[0; 32],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/0002",
            &[0; 32],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11",
            &[0; 37],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11",
            &[0; 37],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/connected-ips",
            &[0; 50],
            &[0; 3],
            &[0x17, 0x00, 0x00, 0x00],
            b"10.137.0.11 10.137.0.12",
        ])),
        Row::FromUs(cat(&[&[0x07], b"/connected-ips", &[0; 50], &[0; 3], &[0, 0, 0, 0], b""])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-iptables-error",
            &[0; 43],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-iptables-error",
            &[0; 43],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x04],
            b"/qubes-iptables-error",
            &[0; 43],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-iptables-error",
            &[0; 43],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x04],
            b"/qubes-firewall/10.137.0.11/",
            &[0; 36],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/",
            &[0; 36],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11/policy",
            &[0; 30],
            &[0; 3],
            &[0x04, 0x00, 0x00, 0x00],
            b"drop",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11/0000",
            &[0; 32],
            &[0; 3],
            &[0x3d, 0x00, 0x00, 0x00],
            b"action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11/0002",
            &[0; 32],
            &[0; 3],
            &[0x1f, 0x00, 0x00, 0x00],
            b"action=accept specialtarget=dns",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/policy",
            &[0; 30],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/0000",
            &[0; 32],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11/0002",
            &[0; 32],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/qubes-firewall/10.137.0.11",
            &[0; 37],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/qubes-firewall/10.137.0.11",
            &[0; 37],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/big",
            &[0; 60],
            &[0; 3],
            &[0xff, 0x0b, 0x00, 0x00],
            &[b'x'; 3071],
        ])),
        Row::FromUs(cat(&[&[0x07], b"/big", &[0; 60], &[0; 3], &[0, 0, 0, 0], b""])),
        Row::FromDom0(cat(&[
            &[0x01],
            b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
            &[0; 1],
            &[0; 3],
            &[0x01, 0x00, 0x00, 0x00],
            b"v",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
            &[0; 1],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromDom0(cat(&[
            &[0x04],
            b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
            &[0; 1],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::FromUs(cat(&[
            &[0x07],
            b"/pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp",
            &[0; 1],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::WeWrite("/qubes-firewall-handled/10.137.0.11", b"1"),
        Row::FromUs(cat(&[
            &[0x01],
            b"/qubes-firewall-handled/10.137.0.11",
            &[0; 29],
            &[0; 3],
            &[0x01, 0x00, 0x00, 0x00],
            b"1",
        ])),
        Row::FromDom0(cat(&[
            &[0x07],
            b"/qubes-firewall-handled/10.137.0.11",
            &[0; 29],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::WeWrite("/dns/10.137.0.11/www.example.org", b"{198.51.100.7/32}"),
        Row::FromUs(cat(&[
            &[0x01],
            b"/dns/10.137.0.11/www.example.org",
            &[0; 32],
            &[0; 3],
            &[0x11, 0x00, 0x00, 0x00],
            b"{198.51.100.7/32}",
        ])),
        Row::FromDom0(cat(&[
            &[0x07],
            b"/dns/10.137.0.11/www.example.org",
            &[0; 32],
            &[0; 3],
            &[0, 0, 0, 0],
            b"",
        ])),
        Row::WeRemove("/dns/10.137.0.11/"),
        Row::FromUs(cat(&[&[0x04], b"/dns/10.137.0.11/", &[0; 47], &[0; 3], &[0, 0, 0, 0], b""])),
        Row::FromDom0(cat(&[&[0x07], b"/dns/10.137.0.11/", &[0; 47], &[0; 3], &[0, 0, 0, 0], b""])),
    ]
}

#[test]
fn captures_3_repeated_removal_of_an_emptied_tree_is_answered_and_no_event() {
    let mut client = recorded();
    let removal = super::message(0x04, "/qubes-firewall/10.137.0.11/");
    assert_eq!(feed(&mut client, &removal).len(), 1);
    assert_eq!(feed(&mut client, &removal), []);
    assert_eq!(sent(&mut client).len(), 2 * 72);
}

#[test]
fn captures_3_dom0_never_waits_three_commands_before_the_first_answer() {
    let mut client = recorded();
    let commands = [33, 34, 35].map(row_bytes).concat();
    assert_eq!(feed(&mut client, &commands).len(), 3);
    assert_eq!(sent(&mut client), [36, 37, 38].map(row_bytes).concat());
}

/// The bytes of a row of the sequence.
fn row_bytes(number: usize) -> Vec<u8> {
    rows()
        .into_iter()
        .filter_map(|row| match row {
            Row::FromDom0(bytes) | Row::FromUs(bytes) => Some(bytes),
            Row::WeWrite(..) | Row::WeRemove(_) => None,
        })
        .nth(number - 31)
        .unwrap()
}

/// Header of row 33 with the stack contents that the writer left after the NUL and in the padding.
const ROW_33: [u8; 76] = [
    0x01, 0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x66, 0x69, 0x72, 0x65, 0x77, 0x61, 0x6c, 0x6c,
    0x2f, 0x31, 0x30, 0x2e, 0x31, 0x33, 0x37, 0x2e, 0x30, 0x2e, 0x31, 0x31, 0x2f, 0x70, 0x6f, 0x6c,
    0x69, 0x63, 0x79, 0x00, 0xfc, 0x7f, 0x00, 0x00, 0x58, 0x9d, 0xbe, 0xf6, 0x51, 0x56, 0x00, 0x00,
    0x00, 0x9e, 0xd9, 0x49, 0xfc, 0x7f, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x95, 0xd9, 0x49, 0x04, 0x00, 0x00, 0x00, 0x64, 0x72, 0x6f, 0x70,
];

/// Its answer, row 36.
const ROW_36: [u8; 72] = [
    0x07, 0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x66, 0x69, 0x72, 0x65, 0x77, 0x61, 0x6c, 0x6c,
    0x2f, 0x31, 0x30, 0x2e, 0x31, 0x33, 0x37, 0x2e, 0x30, 0x2e, 0x31, 0x31, 0x2f, 0x70, 0x6f, 0x6c,
    0x69, 0x63, 0x79, 0x00, 0xfc, 0x7f, 0x00, 0x00, 0x58, 0x9d, 0xbe, 0xf6, 0x51, 0x56, 0x00, 0x00,
    0x00, 0x9e, 0xd9, 0x49, 0xfc, 0x7f, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x95, 0xd9, 0x49, 0x00, 0x00, 0x00, 0x00,
];

/// Row 39, the commit mark.
const ROW_39: [u8; 72] = [
    0x01, 0x2f, 0x71, 0x75, 0x62, 0x65, 0x73, 0x2d, 0x66, 0x69, 0x72, 0x65, 0x77, 0x61, 0x6c, 0x6c,
    0x2f, 0x31, 0x30, 0x2e, 0x31, 0x33, 0x37, 0x2e, 0x30, 0x2e, 0x31, 0x31, 0x00, 0x7f, 0x00, 0x00,
    0xf8, 0x92, 0xa4, 0x2f, 0xfc, 0x7f, 0x00, 0x00, 0x58, 0x6d, 0x90, 0xa4, 0x6b, 0x55, 0x00, 0x00,
    0xab, 0x9e, 0xa4, 0x2f, 0xfc, 0x7f, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x92, 0xa4, 0x2f, 0x00, 0x00, 0x00, 0x00,
];

/// Row 30, the end mark.
const ROW_30: [u8; 72] = [
    0x0b, 0x00, 0x63, 0x6f, 0x6e, 0x6e, 0x65, 0x63, 0x74, 0x65, 0x64, 0x2d, 0x69, 0x70, 0x73, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x56, 0xc3, 0xa8, 0x00, 0x00, 0x00, 0x00,
];

#[test]
fn captures_3_full_header_row_30_end_mark() {
    let mut client = super::requesting();
    assert_eq!(feed(&mut client, &ROW_30), [Event::Dumped]);
}

#[test]
fn captures_3_full_headers_rows_33_and_36_path_is_cut_at_the_first_nul() {
    let mut client = recorded();
    let event = changed("/qubes-firewall/10.137.0.11/policy");
    assert_eq!(feed(&mut client, &ROW_33), [event]);
    assert_eq!(sent(&mut client), ROW_36);
}

#[test]
fn captures_3_full_header_row_39_commit_mark() {
    let mut client = recorded();
    assert_eq!(feed(&mut client, &ROW_39), [committed()]);
    let mut answer = ROW_39;
    answer[0] = 0x07;
    assert_eq!(sent(&mut client), answer);
}
