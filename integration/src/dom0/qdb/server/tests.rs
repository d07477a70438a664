//! The server against the recorded exchanges.
use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::dom0::hex;
use crate::dom0::qdb::rows::{self, After, Step, message};
use crate::dom0::qdb::store::LocalError;
use crate::dom0::ring::fake::FakeRing;

fn server() -> Server {
    let time = Rc::new(Cell::new(0));
    Server::new(Box::new(move || {
        time.set(time.get() + 1);
        time.get()
    }))
}

fn loaded(entries: &[(&str, &str)]) -> Server {
    let mut server = server();
    for (key, value) in entries {
        server.local_write(None, key.as_bytes(), value.as_bytes()).unwrap();
    }
    server
}

fn connected(server: &mut Server) -> FakeRing {
    let mut ring = FakeRing::new(4096);
    assert_eq!(server.on_event(&mut ring), Ok(Next::Wait));
    ring.vm_connects();
    assert_eq!(server.on_event(&mut ring), Ok(Next::Wait));
    ring
}

fn synchronised(server: &mut Server) -> FakeRing {
    let mut ring = connected(server);
    ring.vm_writes(&message(kind::MULTIREAD, b"", b""));
    assert_eq!(server.on_event(&mut ring), Ok(Next::Wait));
    assert!(server.is_synchronised());
    ring.vm_reads_all();
    ring.writes.clear();
    ring
}

/// Replays a row; the server must do exactly what is written there.
fn replay(name: &str) {
    let row = rows::all().into_iter().find(|row| row.name == name).expect("no such row");
    let mut server = loaded(&rows::DATABASE);
    let mut ring = connected(&mut server);
    let mut result = Ok(Next::Wait);
    for step in &row.steps {
        let is_passive = matches!(step, Step::Receive(_) | Step::Silence);
        assert!(result.is_ok() || is_passive, "{name}: ended before {step:?}");
        match step {
            Step::Send(bytes) => {
                ring.vm_writes(bytes);
                // P5: the close is seen before the request is read.
                if name != "P5" {
                    result = server.on_event(&mut ring);
                }
            }
            Step::Receive(bytes) => {
                assert_eq!(hex::encode(&ring.vm_reads_all()), hex::encode(bytes), "{name}")
            }
            Step::Silence => assert_eq!(ring.vm_reads_all(), b"", "{name}"),
            Step::Dom0Writes(key, value) => {
                let done =
                    server.local_write(Some(&mut ring), key.as_bytes(), value.as_bytes()).unwrap();
                assert!(!done.is_forwarded, "{name}");
            }
            Step::Close => {
                ring.vm_closes();
                result = server.on_event(&mut ring);
            }
        }
    }
    let after = match result {
        Ok(Next::Wait) => After::Alive,
        Ok(Next::Announce) => After::Announces,
        Err(exit) => After::Exits(exit.code()),
    };
    assert_eq!(after, row.after, "{name}");
}

macro_rules! rows {
    ($($test:ident $name:literal)*) => {
        $(#[test] fn $test() { replay($name); })*

        #[test]
        fn every_row_has_its_test() {
            let mut tested = vec![$($name),*];
            let mut listed: Vec<_> = rows::all().iter().map(|row| row.name).collect();
            tested.sort_unstable();
            listed.sort_unstable();
            assert_eq!(tested, listed);
        }
    };
}

rows! {
    row_m1_second_multiread_is_refused_and_fatal "M1"
    row_m2_unknown_type_is_fatal "M2"
    row_m2_type_ff_is_fatal "M2b"
    row_m3_read_is_fatal "M3"
    row_m4_noent_is_fatal "M4"
    row_m5_dump_entry_is_fatal "M5"
    row_m6_space_in_path_is_fatal "M6"
    row_m7_path_without_slash_is_refused_and_fatal "M7"
    row_m7_trailing_slash_is_refused_and_fatal "M7b"
    row_m7_empty_path_is_refused_and_fatal "M7c"
    row_m8_path_of_64_bytes_is_cut "M8"
    row_m9_path_of_63_bytes_is_stored "M9"
    row_m10_rm_of_absent_key_is_fatal "M10"
    row_m10_rm_of_absent_prefix_is_fatal "M10b"
    row_m10_rm_of_empty_path_is_fatal "M10c"
    row_m11_rm_of_present_key_is_answered "M11"
    row_m12_value_of_3072_bytes_is_fatal "M12"
    row_m13_value_of_3071_bytes_is_stored "M13"
    row_m14_huge_length_is_fatal_at_once "M14"
    row_m15_nul_in_value_is_refused_only "M15"
    row_m16_rm_with_value_is_refused_only "M16"
    row_m17_data_of_an_answer_is_not_consumed "M17"
    row_m18_error_answer_is_survived "M18"
    row_m19_error_answer_with_data_is_fatal "M19"
    row_m20_garbage_comes_back "M20"
    row_m21_message_in_three_pieces "M21"
    row_m22_three_messages_in_one_write "M22"
    row_p1_write_before_multiread_is_in_the_dump "P1"
    row_p2_nothing_is_sent_before_multiread "P2"
    row_p3_multiread_of_a_prefix "P3"
    row_p4_close_without_multiread_is_fatal "P4"
    row_p5_close_with_unread_multiread_is_fatal "P5"
    row_p7_close_after_the_dump_announces_again "P7"
}

#[test]
fn row_p6_close_while_the_dump_is_written_is_fatal() {
    let mut server = loaded(&rows::DATABASE);
    let mut ring = connected(&mut server);
    ring.vm_writes(&message(kind::MULTIREAD, b"", b""));
    // The request is read while the link looks open; the first write finds it closed.
    struct ClosesOnWrite<'a>(&'a mut FakeRing);
    impl Ring for ClosesOnWrite<'_> {
        fn link(&mut self) -> Link {
            Link::Open
        }
        fn data_ready(&mut self) -> usize {
            self.0.data_ready()
        }
        fn space(&mut self) -> usize {
            self.0.space()
        }
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Refused> {
            self.0.read(buffer)
        }
        fn write(&mut self, _: &[u8]) -> Result<usize, Refused> {
            Err(Refused)
        }
    }
    assert_eq!(server.on_event(&mut ClosesOnWrite(&mut ring)), Err(Exit::ClosedBeforeDump));
}

#[test]
fn close_while_a_part_of_the_dump_waits_in_memory_is_fatal() {
    let mut server = loaded(&[("/big1", &"x".repeat(3000)), ("/big2", &"x".repeat(3000))]);
    let mut ring = connected(&mut server);
    ring.vm_writes(&message(kind::MULTIREAD, b"", b""));
    server.on_event(&mut ring).unwrap();
    assert!(!server.is_synchronised());
    ring.vm_closes();
    assert_eq!(server.on_event(&mut ring), Err(Exit::ClosedBeforeDump));
}

#[test]
fn smallest_dump_is_the_recorded_228_bytes() {
    let mut server = loaded(&rows::DATABASE);
    let mut ring = connected(&mut server);
    ring.vm_writes(&message(kind::MULTIREAD, b"", b""));
    server.on_event(&mut ring).unwrap();
    let zeros = |n: usize| "00".repeat(n);
    let expected = format!(
        "0b2f71756265732d6970{}0a00000031302e3133372e302e360b2f6e616d65{}0200000066770b006e616d65{}",
        zeros(58),
        zeros(62),
        zeros(66)
    );
    assert_eq!(hex::encode(&ring.vm_reads_all()), expected);
    assert_eq!(ring.writes, [72, 10, 72, 2, 72]);
}

/// Rows 1 to 30: the database of the recorded run, and the bytes 56c3a8 in the request's padding.
#[test]
fn rows_1_to_30_dump_of_2406_bytes() {
    let entries = [
        ("/type", "StandaloneVM"),
        ("/qubes-vm-updateable", "True"),
        ("/qubes-vm-type", "ProxyVM"),
        ("/qubes-vm-persistence", "full"),
        ("/qubes-timezone", "Europe/Berlin"),
        ("/qubes-service/meminfo-writer", "0"),
        ("/qubes-secondary-dns", "10.139.1.2"),
        ("/qubes-random-seed", "aGVsbG8gd29ybGQ="),
        ("/qubes-primary-dns", "10.139.1.1"),
        ("/qubes-netvm-secondary-dns", "10.139.1.2"),
        ("/qubes-netvm-primary-dns", "10.139.1.1"),
        ("/qubes-netvm-network", "10.137.0.6"),
        ("/qubes-netvm-netmask", "255.255.255.0"),
        ("/qubes-netvm-gateway", "10.137.0.6"),
        ("/qubes-netmask", "255.255.255.255"),
        ("/qubes-mac", "00:16:3e:5e:6c:00"),
        ("/qubes-ip", "10.137.0.6"),
        ("/qubes-gateway", "10.137.0.5"),
        ("/qubes-firewall/10.137.0.11/policy", "drop"),
        ("/qubes-firewall/10.137.0.11/0002", "action=accept specialtarget=dns"),
        (
            "/qubes-firewall/10.137.0.11/0000",
            "action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443",
        ),
        ("/qubes-firewall/10.137.0.11", ""),
        ("/qubes-debug-mode", "0"),
        ("/qubes-base-template", ""),
        ("/name", "sys-firewall"),
        ("/default-user", "user"),
        ("/connected-ips6", ""),
        ("/connected-ips", "10.137.0.11 10.137.0.12"),
    ];
    let mut ascending = entries;
    ascending.reverse();
    let mut server = loaded(&ascending);
    let mut ring = connected(&mut server);
    let mut request = Header::new(kind::MULTIREAD, b"", 0);
    // The upstream VM daemon leaves its stack in the path field behind the NUL.
    for (i, byte) in request.path.iter_mut().enumerate().skip(1) {
        *byte = 0x80 + i as u8;
    }
    request.padding = [0x56, 0xc3, 0xa8];
    ring.vm_writes(&request.encode());
    server.on_event(&mut ring).unwrap();
    let mut expected = Vec::new();
    for (key, value) in entries {
        let mut header = Header::new(kind::RESP_MULTIREAD, key.as_bytes(), value.len() as u32);
        header.padding = [0x56, 0xc3, 0xa8];
        expected.extend(header.encode());
        expected.extend(value.as_bytes());
    }
    let end = format!("0b00636f6e6e65637465642d697073{}56c3a800000000", "00".repeat(50));
    expected.extend(hex::decode(&end).unwrap());
    assert_eq!(expected.len(), 2406);
    assert_eq!(hex::encode(&ring.vm_reads_all()), hex::encode(&expected));
    assert!(
        server
            .journal()
            .after(0)
            .iter()
            .any(|(_, e)| e["event"] == "dump-written" && e["bytes"] == 2406)
    );
}

#[test]
fn end_mark_of_an_empty_database_has_the_path_of_the_request() {
    let mut server = server();
    let mut ring = connected(&mut server);
    let mut request = Header::new(kind::MULTIREAD, b"", 0);
    request.path[1..8].copy_from_slice(b"garbage");
    ring.vm_writes(&request.encode());
    server.on_event(&mut ring).unwrap();
    assert_eq!(ring.vm_reads_all(), request.answer(kind::RESP_MULTIREAD).encode());
}

#[test]
fn rows_31_to_40_reload_does_not_wait_for_answers() {
    let tree = "/qubes-firewall/10.137.0.11";
    let mut server = loaded(&[(tree, ""), ("/qubes-firewall/10.137.0.11/policy", "drop")]);
    let mut ring = synchronised(&mut server);
    server.local_rm(Some(&mut ring), b"/qubes-firewall/10.137.0.11/").unwrap();
    for (key, value) in [("/policy", "drop"), ("/0000", "action=accept"), ("", "")] {
        let done = server.local_write(
            Some(&mut ring),
            format!("{tree}{key}").as_bytes(),
            value.as_bytes(),
        );
        assert!(done.unwrap().is_forwarded);
    }
    assert_eq!(ring.writes, [72, 72, 4, 72, 13, 72]);
    let bytes = ring.vm_reads_all();
    let first = Header::decode(&bytes[..72]).unwrap();
    assert_eq!(
        (first.kind, first.name(), first.data_len),
        (kind::RM, &b"/qubes-firewall/10.137.0.11/"[..], 0)
    );
    let mark = Header::decode(&bytes[bytes.len() - 72..]).unwrap();
    assert_eq!((mark.kind, mark.name(), mark.data_len), (kind::WRITE, tree.as_bytes(), 0));
    assert_eq!(server.unanswered(), 4);
    ring.vm_writes(&first.answer(kind::RESP_OK).encode());
    server.on_event(&mut ring).unwrap();
    assert_eq!(server.unanswered(), 3);
    assert_eq!(server.journal().counters()["acks_matched"], 1);
    // An answer out of order is none of ours.
    ring.vm_writes(&mark.answer(kind::RESP_OK).encode());
    server.on_event(&mut ring).unwrap();
    assert_eq!(server.journal().counters()["acks_unmatched"], 1);
}

#[test]
fn rows_33_and_59_live_messages_carry_garbage_but_end_with_a_nul() {
    let mut server = server();
    let mut ring = synchronised(&mut server);
    server.local_write(Some(&mut ring), b"/k", b"").unwrap();
    let longest = [&b"/"[..], &[b'p'; 62]].concat();
    server.local_write(Some(&mut ring), &longest, b"").unwrap();
    let bytes = ring.vm_reads_all();
    let short = Header::decode(&bytes[..72]).unwrap();
    assert_eq!(short.name(), b"/k");
    assert!(short.path[3..63].iter().all(|byte| *byte != 0));
    assert_eq!(short.path[63], 0);
    assert!(short.padding.iter().all(|byte| *byte != 0));
    let long = Header::decode(&bytes[72..]).unwrap();
    assert_eq!((long.name(), long.path[63]), (longest.as_slice(), 0));
}

#[test]
fn rows_41_to_47_unchanged_and_empty_values_are_sent_but_absent_removals_are_not() {
    let mut server = loaded(&[("/connected-ips", "10.137.0.11"), ("/t", ""), ("/t/a", "1")]);
    let mut ring = synchronised(&mut server);
    assert!(
        server
            .local_write(Some(&mut ring), b"/connected-ips", b"10.137.0.11")
            .unwrap()
            .is_forwarded
    );
    assert!(
        server.local_write(Some(&mut ring), b"/qubes-iptables-error", b"").unwrap().is_forwarded
    );
    assert_eq!(server.local_rm(Some(&mut ring), b"/t/").unwrap().entries, 1);
    ring.vm_reads_all();
    for path in [&b"/t/"[..], b"/absent", b"/absent/"] {
        assert_eq!(server.local_rm(Some(&mut ring), path), Err(LocalError::Absent));
    }
    assert_eq!(ring.vm_reads_all(), b"");
    assert!(server.store().get(b"/t").is_some());
}

#[test]
fn row_57_local_value_of_3072_bytes_is_refused_and_3071_is_sent() {
    let mut server = server();
    let mut ring = synchronised(&mut server);
    let refused = server.local_write(Some(&mut ring), b"/big", &[b'x'; 3072]);
    assert_eq!(refused, Err(LocalError::ValueTooLong));
    assert!(server.local_write(Some(&mut ring), b"/big", &[b'x'; 3071]).unwrap().is_forwarded);
    assert_eq!(ring.writes, [72, 3071]);
}

#[test]
fn rows_63_to_68_writes_of_the_vm_are_stored_and_not_echoed() {
    let mut server = server();
    let mut ring = synchronised(&mut server);
    ring.vm_writes(&message(kind::WRITE, b"/qubes-firewall-handled/10.137.0.11", b"1"));
    ring.vm_writes(&message(
        kind::WRITE,
        b"/dns/10.137.0.11/www.example.org",
        b"{198.51.100.7/32}",
    ));
    ring.vm_writes(&message(kind::RM, b"/dns/10.137.0.11/", b""));
    server.on_event(&mut ring).unwrap();
    let expected = [
        message(kind::RESP_OK, b"/qubes-firewall-handled/10.137.0.11", b""),
        message(kind::RESP_OK, b"/dns/10.137.0.11/www.example.org", b""),
        message(kind::RESP_OK, b"/dns/10.137.0.11/", b""),
    ];
    assert_eq!(ring.vm_reads_all(), expected.concat());
    let entry = server.store().get(b"/qubes-firewall-handled/10.137.0.11").unwrap();
    assert_eq!((entry.value.as_slice(), entry.author), (&b"1"[..], Author::Vm));
    assert!(server.store().get(b"/dns/10.137.0.11/www.example.org").is_none());
}

/// Section 4: four local writes of 3000 bytes while the VM does not read.
fn with_full_ring() -> (Server, FakeRing) {
    let mut server = loaded(&[("/name", "fw")]);
    let mut ring = synchronised(&mut server);
    for key in ["/big1", "/big2", "/big3", "/big4"] {
        assert!(
            server
                .local_write(Some(&mut ring), key.as_bytes(), &[b'b'; 3000])
                .unwrap()
                .is_forwarded
        );
    }
    (server, ring)
}

#[test]
fn full_ring_keeps_the_rest_in_memory() {
    let (mut server, mut ring) = with_full_ring();
    assert_eq!(ring.writes, [72, 3000, 72, 952]);
    assert_eq!(server.pending_bytes(), 4 * 3072 - 4096);
    ring.writes.clear();
    let mut got = Vec::new();
    loop {
        let bytes = ring.vm_reads_all();
        if bytes.is_empty() {
            break;
        }
        got.extend(bytes);
        server.on_event(&mut ring).unwrap();
    }
    assert_eq!(ring.writes, [4096, 4096]);
    assert_eq!(got.len(), 4 * 3072);
    for (message, name) in got.chunks(3072).zip([b"/big1", b"/big2", b"/big3", b"/big4"]) {
        assert_eq!(Header::decode(&message[..72]).unwrap().name(), name);
        assert!(message[72..].iter().all(|byte| *byte == b'b'));
    }
}

#[test]
fn full_ring_answer_to_a_write_queues_behind() {
    let (mut server, mut ring) = with_full_ring();
    ring.vm_writes(&message(kind::WRITE, b"/w1", b"1"));
    assert_eq!(server.on_event(&mut ring), Ok(Next::Wait));
    assert!(server.store().get(b"/w1").is_some());
    let mut got = Vec::new();
    while server.pending_bytes() > 0 || ring.space() < 4096 {
        got.extend(ring.vm_reads_all());
        server.on_event(&mut ring).unwrap();
    }
    assert_eq!(got.split_off(4 * 3072), message(kind::RESP_OK, b"/w1", b""));
}

#[test]
fn full_ring_makes_an_rm_fatal() {
    let (mut server, mut ring) = with_full_ring();
    ring.vm_writes(&message(kind::RM, b"/name", b""));
    assert_eq!(server.on_event(&mut ring), Err(Exit::NoRoomForAnswer));
    assert!(server.store().get(b"/name").is_some());
    assert_eq!(ring.vm_reads_all().len(), 4096);
}

#[test]
fn full_ring_rm_of_a_vm_that_reads_at_once_is_executed() {
    let (mut server, mut ring) = with_full_ring();
    ring.vm_writes(&message(kind::RM, b"/name", b""));
    let mut got = ring.vm_reads_all();
    while server.pending_bytes() > 0 || ring.space() < 4096 || ring.unread() > 0 {
        server.on_event(&mut ring).unwrap();
        got.extend(ring.vm_reads_all());
    }
    assert!(server.store().get(b"/name").is_none());
    assert_eq!(got.split_off(4 * 3072), message(kind::RESP_OK, b"/name", b""));
}

/// Sections 6 and 9.2: the database outlives the link; the VM's own writes are in the next dump.
#[test]
fn reconnect_dumps_what_was_written_in_between() {
    let mut server = loaded(&[("/qubes-debug-mode", "0")]);
    let mut ring = synchronised(&mut server);
    ring.vm_writes(&message(kind::WRITE, b"/qubes-firewall-handled/10.137.0.11", b"1"));
    server.on_event(&mut ring).unwrap();
    ring.vm_closes();
    assert_eq!(server.on_event(&mut ring), Ok(Next::Announce));
    assert!(!server.local_write(None, b"/qubes-debug-mode", b"1").unwrap().is_forwarded);
    let mut ring = connected(&mut server);
    ring.vm_writes(&message(kind::MULTIREAD, b"", b""));
    server.on_event(&mut ring).unwrap();
    let dump = ring.vm_reads_all();
    let expected = [
        message(kind::RESP_MULTIREAD, b"/qubes-firewall-handled/10.137.0.11", b"1"),
        message(kind::RESP_MULTIREAD, b"/qubes-debug-mode", b"1"),
    ]
    .concat();
    assert_eq!(dump[..expected.len()], expected);
    assert_eq!(dump.len(), expected.len() + 72);
}

/// The sequence of section 9.2: dump, reload of a tree, mark, the VM's counter.
#[test]
fn sequence_of_section_9_2() {
    let tree = "/qubes-firewall/10.137.0.9";
    let mut server = loaded(&[
        ("/type", "StandaloneVM"),
        ("/qubes-ip", "10.137.0.6"),
        ("/qubes-firewall/10.137.0.9/policy", "drop"),
        ("/qubes-firewall/10.137.0.9/0000", "action=accept"),
        (tree, ""),
        ("/connected-ips", "10.137.0.9"),
    ]);
    let mut ring = connected(&mut server);
    ring.vm_writes(&message(kind::MULTIREAD, b"", b""));
    server.on_event(&mut ring).unwrap();
    let names = |bytes: &[u8]| {
        let (mut rest, mut names) = (bytes, Vec::new());
        while let Some((header, body)) = rest.split_at_checked(HEADER_LEN) {
            let header = Header::decode(header).unwrap();
            names.push((header.kind, String::from_utf8(header.name().to_vec()).unwrap()));
            rest = &body[header.data_len as usize..];
        }
        names
    };
    let dump = names(&ring.vm_reads_all());
    let expected = [
        "/type",
        "/qubes-ip",
        "/qubes-firewall/10.137.0.9/policy",
        "/qubes-firewall/10.137.0.9/0000",
        tree,
        "/connected-ips",
        "",
    ];
    assert_eq!(dump, expected.map(|name| (kind::RESP_MULTIREAD, name.to_owned())));
    server.local_rm(Some(&mut ring), format!("{tree}/").as_bytes()).unwrap();
    for (key, value) in [
        ("/policy", "drop"),
        ("/0000", "action=accept proto=icmp"),
        ("/0002", "action=drop"),
        ("", ""),
    ] {
        let key = format!("{tree}{key}");
        server.local_write(Some(&mut ring), key.as_bytes(), value.as_bytes()).unwrap();
    }
    let live = ring.vm_reads_all();
    let mut rest = live.as_slice();
    while let Some((header, body)) = rest.split_at_checked(HEADER_LEN) {
        let header = Header::decode(header).unwrap();
        ring.vm_writes(&header.answer(kind::RESP_OK).encode());
        rest = &body[header.data_len as usize..];
    }
    ring.vm_writes(&message(kind::WRITE, b"/qubes-firewall-handled/10.137.0.9", b"1"));
    server.on_event(&mut ring).unwrap();
    let answer = message(kind::RESP_OK, b"/qubes-firewall-handled/10.137.0.9", b"");
    assert_eq!(ring.vm_reads_all(), answer);
    assert_eq!(server.unanswered(), 0);
    assert_eq!(server.journal().counters()["acks_matched"], 5);
    let keys: Vec<_> =
        server.store().below(tree.as_bytes()).map(|(key, _)| key.len() - tree.len()).collect();
    assert_eq!(keys, [0, 5, 5, 7], "mark, 0000, 0002, policy");
}
